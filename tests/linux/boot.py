"""Booting Linux as a user does, and asking it what it sees."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kvm.command import PYVMM, Ended, run_to_end

TIMEOUT = 90
"""Seconds for one boot. In the lab it takes about 8, on hardware less than one."""

QUICK = "quiet nokaslr cryptomgr.notests"
"""What spares a boot in the lab two seconds. Some tests boot without."""


class Images(NamedTuple):
    """What there is to boot."""

    bzimage: Path
    vmlinux: Path
    initrd: Path
    memory_initrd: Path
    sockets_initrd: Path
    memtest_64: Path
    memtest_32: Path


def built(path: Path) -> Path:
    """``path``, if it has been built."""
    assert path.exists(), f"{path} is missing: run `make guests` first"
    return path


def job(text: str, end: str = "poweroff") -> tuple[str, ...]:
    """Options that let the guest run a shell command, and end as ``end`` says."""
    return ("--append", f'{QUICK} end={end} job="{text}"')


def boot_command(kernel: Path, *options: str) -> list[str]:
    """The words of ``pyvmm run``, for a run that the test speaks with."""
    return [*PYVMM, "run", "--kernel", str(kernel), "--timeout", str(TIMEOUT), *options]


def boot(kernel: Path, *options: str, stdin: bytes = b"") -> Ended:
    """Run a guest to its end."""
    return run_to_end(boot_command(kernel, *options), stdin, TIMEOUT)
