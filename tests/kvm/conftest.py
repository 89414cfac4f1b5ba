"""The kvm tier: guests of our own on this host's /dev/kvm. Without one, its tests are skipped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guests import artefacts

PROJECT = Path(__file__).parent.parent.parent
DEVICE = "/dev/kvm"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        skip = pytest.mark.skip(reason=f"this host's {DEVICE} can't be used: {error.strerror}")
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def signals() -> None:
    """As on a terminal: nohup, or a script's background job, has some ignored, and what we start
    would inherit that."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def guests() -> Path:
    """The directory with the guests of guests/asm, built."""
    build = subprocess.run(
        [sys.executable, "-m", "guests.asm.build"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Path(build.stdout.strip())


@pytest.fixture(scope="session")
def lessons() -> Path:
    """The directory with the lessons of guests/lessons, built."""
    with artefacts.lock():
        make = ["make", "--silent", "-C", str(PROJECT / "guests/lessons")]
        subprocess.run(make, check=True)
    return artefacts.BUILD / "lessons"
