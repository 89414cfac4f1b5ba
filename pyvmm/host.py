"""The Linux calls that Python 3.11's ``os`` lacks: timerfd(2), fallocate(2), madvise(2) without
the interpreter's lock, a thread's name for the kernel, and readv(2) and writev(2) of many packets.

Thin: the same names and meanings as in C, times in nanoseconds, OSError on failure.
"""

from __future__ import annotations

import os

from pyvmm._host import ffi, lib

FALLOC_FL_KEEP_SIZE: int = lib.FALLOC_FL_KEEP_SIZE
FALLOC_FL_PUNCH_HOLE: int = lib.FALLOC_FL_PUNCH_HOLE
FALLOC_FL_ZERO_RANGE: int = lib.FALLOC_FL_ZERO_RANGE
MADV_DONTNEED: int = lib.MADV_DONTNEED
MADV_HUGEPAGE: int = lib.MADV_HUGEPAGE
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


def resident_pages(view: memoryview, page_size: int) -> int:
    """How many of the pages of ``view``, which begins at a page's start, the host has allocated:
    mincore(2)."""
    pages = bytearray(-(-len(view) // page_size))
    _check(lib.mincore(ffi.from_buffer(view), len(view), ffi.from_buffer(pages)))
    return pages.count(1)


def address_of(view: memoryview) -> int:
    """The address of a view's first byte in this process."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(view)))


def set_thread_name(name: str) -> None:
    """What ``top -H`` and ``/proc`` call this thread; the kernel keeps 15 bytes of it."""
    _check(lib.pyvmm_set_thread_name(name.encode()))


class Packets:
    """readv(2) and writev(2) of up to ``limit`` packets in one call.

    A part of a packet is 16 bytes: a guest's address of 64 bits and a length of 32, and 32 that
    aren't looked at. ``memory`` is where these addresses are in this process
    (:meth:`GuestMemory.host_ranges <pyvmm.memory.GuestMemory.host_ranges>`); one that isn't in it
    is EFAULT. ``longest`` is how long a packet may be; what its parts have no room for is in
    ``spill``.
    """

    def __init__(self, fd: int, memory: list[int], limit: int, longest: int) -> None:
        self._fd = fd
        self._memory = ffi.new("uint64_t[]", memory)
        self._regions = len(memory) // 3
        self._limit = limit
        self._results = ffi.new("int[]", 3 * limit)
        self.spill = memoryview(bytearray(longest))
        self._spill = ffi.from_buffer(self.spill)

    def read(self, parts: bytearray, limit: int, limit_bytes: int) -> list[int]:
        """Read up to ``limit`` packets, no more after ``limit_bytes`` bytes. Each begins with the
        first part that the one before has left untouched. Three numbers for each: its length, how
        many parts it has, and how many bytes are in the last; (length, 0, bytes) if only so many
        bytes are in the parts; (-errno, 0, …), or 0 for an end of file."""
        done = lib.pyvmm_read_packets(
            self._fd,
            self._memory,
            self._regions,
            ffi.from_buffer(parts),
            len(parts) >> 4,
            self._spill,
            len(self.spill),
            self._results,
            min(limit, self._limit),
            limit_bytes,
        )
        return list(ffi.unpack(self._results, 3 * done))

    def write(self, parts: bytes, counts: list[int]) -> list[int]:
        """Write packets, at most ``limit``, of so many parts each, until one would block: for each
        its length or -errno. Packets of no parts are passed over."""
        done = lib.pyvmm_write_packets(
            self._fd,
            self._memory,
            self._regions,
            parts,
            len(parts) >> 4,
            counts,
            self._results,
            min(len(counts), self._limit),
        )
        return list(ffi.unpack(self._results, done))
