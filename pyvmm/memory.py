"""Guest-physical memory.

RAM is one memfd, so that it can later be shared with another process (vhost-user) and so that
KVM, our devices and the host's I/O calls all use the same pages. It appears in the guest-physical
address space as one or two regions: below the 32-bit MMIO hole, and from 4 GiB up for what
doesn't fit below it. GPA stands for guest-physical address throughout.

Nothing outside this file and :mod:`pyvmm.kvm` computes with host addresses. Every access is
checked: a range that is not wholly inside one region, wrap-around included, raises
:class:`~pyvmm.errors.GuestMemoryError`.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple

from pyvmm import host
from pyvmm.errors import GuestMemoryError, HostError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE_SIZE = 4096

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
    """The guest's RAM: ``size`` bytes, a multiple of the page size.

    Raises :class:`~pyvmm.errors.HostError` if the host won't map that much.
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE_SIZE:
            raise ValueError(f"memory size {size} is not a positive multiple of {PAGE_SIZE}")
        self.size = size
        self.fd = os.memfd_create("pyvmm-guest-ram", os.MFD_CLOEXEC)
        below = min(size, MMIO_HOLE_START)
        pieces = [(0, below)]
        if size > below:
            pieces.append((MMIO_HOLE_END, size - below))
        try:
            os.ftruncate(self.fd, size)
            regions = []
            offset = 0
            for gpa, length in pieces:
                mapping = mmap.mmap(
                    self.fd,
                    length,
                    flags=mmap.MAP_SHARED | MAP_NORESERVE,
                    offset=offset,
                )
                regions.append(MemoryRegion(gpa, length, offset, memoryview(mapping)))
                offset += length
        except (OSError, OverflowError, ValueError) as error:
            os.close(self.fd)
            raise HostError(
                f"can't map {size // MIB} MiB of guest memory: {error}", "use a smaller --memory"
            ) from error
        self.regions: tuple[MemoryRegion, ...] = tuple(regions)

    @property
    def top(self) -> int:
        """The first GPA behind all RAM."""
        return self.regions[-1].end

    def close(self) -> None:
        """Close the memfd. The mapping itself goes when the last view of it does."""
        os.close(self.fd)

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
        so clearing memory that was never touched costs none."""
        view = self.view(gpa, length)
        head = min(-gpa % PAGE_SIZE, length)
        pages = (length - head) & -PAGE_SIZE
        view[:head] = bytes(head)
        view[head + pages :] = bytes(length - head - pages)
        if pages:
            region = next(r for r in self.regions if r.gpa <= gpa < r.end)
            host.fallocate(
                self.fd,
                host.FALLOC_FL_PUNCH_HOLE | host.FALLOC_FL_KEEP_SIZE,
                region.file_offset + gpa - region.gpa + head,
                pages,
            )

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
