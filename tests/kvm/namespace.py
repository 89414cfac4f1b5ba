"""A network of a test's own: a namespace for the thread that asks for one, and what it starts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

CLONE_NEWNET = 0x4000_0000

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def network_namespace() -> Iterator[None]:
    """PermissionError if this user may not. What is in it goes with it."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        try:
            yield
        finally:
            if _libc.setns(before, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(before)


def shell(script: str) -> str:
    """Run commands, all of which must succeed; what they print."""
    result = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, (script, result.stdout, result.stderr)
    return result.stdout
