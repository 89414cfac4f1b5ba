"""Small static programs for our Linux guests, where busybox has nothing of the kind."""

import subprocess
from pathlib import Path

from guests import artefacts, debian

SOURCES = artefacts.PROJECT / "guests/programs"
FLAGS = "-O2 -std=gnu17 -static -s -Wall -Wextra -Werror".split()


def build(name: str) -> Path:
    """Compile ``NAME.c`` unless it is fresh; return the program."""
    debian.ensure("gcc", "libc headers", "kernel headers")
    source, target = SOURCES / f"{name}.c", artefacts.BUILD / "programs" / name
    inputs = artefacts.digest([source, Path(__file__)])
    with artefacts.lock():
        if not artefacts.is_fresh(target, inputs):
            with artefacts.making(target, inputs) as unfinished:
                subprocess.run(["gcc", *FLAGS, source, "-o", unfinished], check=True)
    return target
