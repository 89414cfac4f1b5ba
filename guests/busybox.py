"""Debian's static busybox: the whole user space of our Linux guests, and of the lab's start."""

import subprocess
from pathlib import Path

from guests import artefacts, debian

PACKAGE = "busybox-static"


def build() -> Path:
    """Fetch busybox unless it is there; return the program."""
    target = artefacts.BUILD / "busybox"
    inputs = artefacts.digest([], PACKAGE)
    with artefacts.lock():
        if not artefacts.is_fresh(target, inputs):
            with artefacts.making(target, inputs) as unfinished:
                debian.unpack(PACKAGE, unfinished)
    (program,) = (path for path in target.rglob("bin/busybox") if path.is_file())
    return program


def applets(program: Path) -> list[str]:
    """List the commands in it, each with the directory where it belongs: ``sbin/init``."""
    result = subprocess.run([program, "--list-full"], check=True, capture_output=True, text=True)
    return [line for line in result.stdout.split() if line != "bin/busybox"]
