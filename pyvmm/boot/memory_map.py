"""What is where, as a kernel is told: the e820 map.

The entries and their types are those of INT 15h, AX=E820h (ACPI specification, "System Address
Map Interfaces"). The zero page and PVH's start info carry the same list in different clothes.
The MMIO hole has one entry only: the ECAM window, because Linux believes the MCFG table only if
the window is reserved here or by a motherboard resource.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from pyvmm import layout
from pyvmm.memory import MIB, GuestMemory, align_up


class MemoryType(IntEnum):
    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4


class MapEntry(NamedTuple):
    start: int
    size: int
    type: MemoryType

    @property
    def end(self) -> int:
        """The first address behind the entry."""
        return self.start + self.size


def memory_map(memory: GuestMemory) -> list[MapEntry]:
    """The map of this machine, in order of addresses.

    All RAM is usable but the piece between the EBDA and 1 MiB, where a PC has its EBDA, the VGA
    window and ROMs, and where our ACPI tables lie.
    """
    return sorted(_entries(memory))


def memory_option(size: int) -> str:
    """The hint that a machine with ``size`` bytes of RAM would do."""
    return f"use --memory {align_up(size, MIB) // MIB}M or more"


def _entries(memory: GuestMemory) -> Iterator[MapEntry]:
    yield MapEntry(layout.EBDA, layout.HIGH_RAM - layout.EBDA, MemoryType.RESERVED)
    yield MapEntry(layout.ECAM, layout.ECAM_SIZE, MemoryType.RESERVED)
    for region in memory.regions:
        for start, end in ((region.gpa, min(region.end, layout.EBDA)),
                           (max(region.gpa, layout.HIGH_RAM), region.end)):  # fmt: skip
            if start < end:
                yield MapEntry(start, end - start, MemoryType.RAM)
