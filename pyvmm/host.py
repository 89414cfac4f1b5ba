"""The Linux calls that Python 3.11's ``os`` lacks: timerfd(2), fallocate(2), madvise(2) without
the interpreter's lock, and a thread's name for the kernel.

Thin: the same names and meanings as in C, times in nanoseconds, OSError on failure.
"""

from __future__ import annotations

import os

from pyvmm._host import ffi, lib

FALLOC_FL_KEEP_SIZE: int = lib.FALLOC_FL_KEEP_SIZE
FALLOC_FL_PUNCH_HOLE: int = lib.FALLOC_FL_PUNCH_HOLE
FALLOC_FL_ZERO_RANGE: int = lib.FALLOC_FL_ZERO_RANGE
MADV_DONTNEED: int = lib.MADV_DONTNEED
MADV_MERGEABLE: int = lib.MADV_MERGEABLE
MADV_POPULATE_WRITE: int = lib.MADV_POPULATE_WRITE


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return result


def timerfd_create() -> int:
    """A non-blocking, close-on-exec timer file descriptor on CLOCK_MONOTONIC."""
    return _check(lib.timerfd_create(lib.CLOCK_MONOTONIC, lib.TFD_CLOEXEC | lib.TFD_NONBLOCK))


def timerfd_settime(fd: int, deadline_ns: int, period_ns: int = 0) -> None:
    """Expire at CLOCK_MONOTONIC ``deadline_ns``, then every ``period_ns``; deadline 0 disarms."""
    _check(lib.pyvmm_timerfd_settime(fd, deadline_ns, period_ns))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    _check(lib.fallocate(fd, mode, offset, length))


def madvise(view: memoryview, advice: int) -> None:
    """madvise(2) for the pages of ``view``, which begins at a page's start."""
    _check(lib.madvise(ffi.from_buffer(view), len(view), advice))


def address_of(view: memoryview) -> int:
    """The address of a view's first byte in this process."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(view)))


def set_thread_name(name: str) -> None:
    """What ``top -H`` and ``/proc`` call this thread; the kernel keeps 15 bytes of it."""
    _check(lib.pyvmm_set_thread_name(name.encode()))
