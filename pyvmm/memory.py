"""Guest-physical memory.

RAM is one memfd, so that it can later be shared with another process (vhost-user) and so that
KVM, our devices and the host's I/O calls all use the same pages. (The exceptions are mergeable
memory, because the kernel merges private pages only, and transparent huge pages, which most hosts
give to private memory only.) It appears in the guest-physical address space
as one or two regions: below the 32-bit MMIO hole, and from 4 GiB up for what doesn't fit below
it. GPA stands for guest-physical address throughout.

Nothing outside this file and :mod:`pyvmm.kvm` computes with host addresses. Every access is
checked: a range that is not wholly inside one region, wrap-around included, raises
:class:`~pyvmm.errors.GuestMemoryError`.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from pyvmm import host
from pyvmm.errors import GuestMemoryError, HostError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE_SIZE = 4096
HUGE_PAGE_SIZE = 2 * MIB

MMIO_HOLE_START = 3 * GIB
"""Where RAM ends below 4 GiB: PCI windows, ECAM, IOAPIC, LAPIC and the ROM lie above."""

MMIO_HOLE_END = 4 * GIB
"""Where RAM that doesn't fit below the hole goes on."""

MAP_NORESERVE = 0x4000
"""Don't count the mapping against the host's commit limit; Python 3.13's mmap has the name."""

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def align_up(value: int, alignment: int) -> int:
    """``value``, or the next higher multiple of ``alignment``."""
    return -(-value // alignment) * alignment


class MemoryRegion(NamedTuple):
    """A contiguous piece of RAM: ``size`` bytes at guest-physical ``gpa``, the memfd's bytes from
    ``file_offset`` on, mapped as ``view``."""

    gpa: int
    size: int
    file_offset: int
    view: memoryview

    @property
    def end(self) -> int:
        """The first GPA behind the region."""
        return self.gpa + self.size


class GuestMemory:
    """The guest's RAM: ``size`` bytes, a multiple of ``page_size``.

    It is made of huge pages of 2 MiB, reserved for it, with ``hugepages``; allocated in full now
    and not when it is touched with ``prealloc``; subject to same-page merging (KSM) with
    ``mergeable``, not together with ``hugepages``; and with ``thp`` the host uses huge pages where
    it has some. With one of the last two there is no file to share (``fd`` is -1).

    Raises :class:`~pyvmm.errors.HostError` if the host won't map or allocate that much.
    """

    def __init__(
        self,
        size: int,
        *,
        hugepages: bool = False,
        prealloc: bool = False,
        mergeable: bool = False,
        thp: bool = False,
    ) -> None:
        self.fd = -1
        thp = thp and not hugepages
        self.page_size = HUGE_PAGE_SIZE if hugepages else PAGE_SIZE
        if size <= 0 or size % self.page_size:
            raise ValueError(f"memory size {size} is not a positive multiple of {self.page_size}")
        self.size = size
        self._stays_allocated = hugepages or prealloc
        hint = "use a smaller --memory"
        if hugepages:
            wanted = size // HUGE_PAGE_SIZE
            hint = f"reserve huge pages with 'sysctl vm.nr_hugepages={wanted}', more if others do"
        try:
            if not (mergeable or thp):
                flags = os.MFD_HUGETLB | os.MFD_HUGE_2MB if hugepages else 0
                self.fd = os.memfd_create("pyvmm-guest-ram", os.MFD_CLOEXEC | flags)
                os.ftruncate(self.fd, size)
            # A mapping of huge pages is a reservation, which can fail now; without it the first
            # touch would fail, with SIGBUS.
            self.regions = self._map(0 if hugepages else MAP_NORESERVE)
            if mergeable:
                self._advise_merging()
            if thp:
                with suppress(OSError):  # a kernel without them
                    self._advise(host.MADV_HUGEPAGE)
            if prealloc:
                self._allocate()
        except (OSError, OverflowError, ValueError) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) else error
            pages = " in huge pages" if hugepages else ""
            raise HostError(
                f"can't map {size // MIB} MiB of guest memory{pages}: {reason}", hint
            ) from error
        except HostError:
            self.close()
            raise

    def _map(self, flags: int) -> tuple[MemoryRegion, ...]:
        """Map all of it: what lies below the hole, and the rest."""
        flags |= mmap.MAP_SHARED if self.fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        below = min(self.size, MMIO_HOLE_START)
        pieces = [(0, below, 0)]
        if self.size > below:
            pieces.append((MMIO_HOLE_END, self.size - below, below))
        map_piece = self._map_file if self.fd >= 0 else _map_private
        return tuple(
            MemoryRegion(gpa, length, offset, map_piece(length, flags, offset))
            for gpa, length, offset in pieces
        )

    def _map_file(self, length: int, flags: int, offset: int) -> memoryview:
        return memoryview(mmap.mmap(self.fd, length, flags, offset=offset))

    def _advise(self, advice: int) -> None:
        for region in self.regions:
            host.madvise(region.view, advice)

    def _advise_merging(self) -> None:
        try:
            self._advise(host.MADV_MERGEABLE)
        except OSError as error:
            raise HostError(f"--memory: the host can't merge pages: {error.strerror}") from error

    def _allocate(self) -> None:
        """Have the host allocate every page. What it doesn't have it refuses in words only if it
        is asked in time: later it kills."""
        if self.page_size == PAGE_SIZE and self.size > _available():
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        for region in self.regions:
            try:
                host.madvise(region.view, host.MADV_POPULATE_WRITE)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._allocate_as_before_linux_5_14(region)

    def _allocate_as_before_linux_5_14(self, region: MemoryRegion) -> None:
        if self.fd >= 0:
            host.fallocate(self.fd, 0, region.file_offset, region.size)
        else:
            region.view[::PAGE_SIZE] = bytes(region.size // PAGE_SIZE)

    @property
    def top(self) -> int:
        """The first GPA behind all RAM."""
        return self.regions[-1].end

    @property
    def allocated(self) -> int:
        """How many bytes the host has allocated for it."""
        if self.fd >= 0:
            return os.fstat(self.fd).st_blocks * 512
        pages = sum(host.resident_pages(region.view, PAGE_SIZE) for region in self.regions)
        return pages * PAGE_SIZE

    def close(self) -> None:
        """Close the memfd. The mapping itself goes when the last view of it does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Bound above, because at the interpreter's end there may be no module os any more.
        if self.fd >= 0:
            close(self.fd)

    def contains(self, gpa: int, length: int) -> bool:
        """Whether ``length`` bytes at ``gpa`` are all RAM."""
        return any(r.gpa <= gpa and 0 <= length <= r.end - gpa for r in self.regions)

    def view(self, gpa: int, length: int) -> memoryview:
        """``length`` bytes at ``gpa`` as a writable view of the guest's own memory; no copy."""
        for region in self.regions:
            offset = gpa - region.gpa
            if offset >= 0 and 0 <= length <= region.size - offset:
                return region.view[offset : offset + length]
        raise GuestMemoryError(f"{length:#x} bytes at GPA {gpa:#x} are not in RAM")

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes at ``gpa``."""
        return bytes(self.view(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at ``gpa``."""
        self.view(gpa, len(data))[:] = data

    def fill(self, gpa: int, length: int, value: int = 0) -> None:
        """Set ``length`` bytes at ``gpa`` to ``value``."""
        self.view(gpa, length)[:] = bytes((value,)) * length

    def clear(self, gpa: int, length: int) -> None:
        """Zero ``length`` bytes at ``gpa``. Whole pages aren't written but given back to the host,
        so clearing memory that was never touched costs none; unless it was allocated on
        purpose."""
        view = self.view(gpa, length)
        if self._stays_allocated:
            for start in range(0, length, MIB):
                piece = view[start : start + MIB]
                piece[:] = bytes(len(piece))
            return
        head = min(-gpa % PAGE_SIZE, length)
        pages = (length - head) & -PAGE_SIZE
        view[:head] = bytes(head)
        view[head + pages :] = bytes(length - head - pages)
        self.discard(gpa + head, pages)

    def discard(self, gpa: int, length: int) -> None:
        """Give the whole pages in ``length`` bytes at ``gpa`` back to the host. They read as zeros
        from then on, and are allocated anew when they are written. OSError if the host fails."""
        view = self.view(gpa, length)
        head = min(-gpa % self.page_size, length)
        pages = (length - head) & -self.page_size
        if not pages:
            return
        if self.fd < 0:
            host.madvise(view[head : head + pages], host.MADV_DONTNEED)
            return
        region = next(r for r in self.regions if r.gpa <= gpa < r.end)
        host.fallocate(
            self.fd,
            host.FALLOC_FL_PUNCH_HOLE | host.FALLOC_FL_KEEP_SIZE,
            region.file_offset + gpa - region.gpa + head,
            pages,
        )

    def gpa_of(self, view: memoryview) -> int:
        """Where ``view``, which is one of this memory, lies."""
        address = host.address_of(view)
        for region in self.regions:
            offset = address - host.address_of(region.view)
            if 0 <= offset < region.size:
                return region.gpa + offset
        raise ValueError("not a view of guest memory")

    def host_ranges(self) -> list[int]:
        """Where RAM is in this process, for system calls that are given many addresses: the first
        GPA of each region, the first behind it, and the address of the first."""
        return [n for r in self.regions for n in (r.gpa, r.end, host.address_of(r.view))]

    def read_u8(self, gpa: int) -> int:
        return self.view(gpa, 1)[0]

    def read_u16(self, gpa: int) -> int:
        return int(_U16.unpack(self.view(gpa, 2))[0])

    def read_u32(self, gpa: int) -> int:
        return int(_U32.unpack(self.view(gpa, 4))[0])

    def read_u64(self, gpa: int) -> int:
        return int(_U64.unpack(self.view(gpa, 8))[0])

    def write_u8(self, gpa: int, value: int) -> None:
        self.view(gpa, 1)[0] = value

    def write_u16(self, gpa: int, value: int) -> None:
        _U16.pack_into(self.view(gpa, 2), 0, value)

    def write_u32(self, gpa: int, value: int) -> None:
        _U32.pack_into(self.view(gpa, 4), 0, value)

    def write_u64(self, gpa: int, value: int) -> None:
        _U64.pack_into(self.view(gpa, 8), 0, value)


def _map_private(length: int, flags: int, _: int) -> memoryview:
    """Private memory at a multiple of 2 MiB, as its GPA is: only then the guest's page tables and
    the host's can both have huge pages there."""
    mapping = memoryview(mmap.mmap(-1, length + HUGE_PAGE_SIZE, flags))
    start = -host.address_of(mapping) % HUGE_PAGE_SIZE
    return mapping[start : start + length]


def _available() -> int:
    """How much memory the host can still allocate, swap included, in bytes."""
    with open("/proc/meminfo") as meminfo:
        lines = dict(line.split(":") for line in meminfo)
    return sum(int(lines[name].split()[0]) * KIB for name in ("MemAvailable", "SwapFree"))
