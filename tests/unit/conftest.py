"""What holds for all unit tests."""

from __future__ import annotations

import resource


def pytest_configure() -> None:
    """Thousands of devices with guest memory and sockets leave descriptors behind until the garbage
    collector finds them: more than the 1024 of a login shell, which a process may raise."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
