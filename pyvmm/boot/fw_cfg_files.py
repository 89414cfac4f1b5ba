"""What firmware that isn't ours is told through fw_cfg: memory map, ACPI tables, a console.

Documents: QEMU, docs/specs/fw_cfg.rst, and its table loader ("etc/table-loader", described in
hw/acpi/bios-linker-loader.c); SeaBIOS, docs/Runtime_config.md, for the others.

The ACPI tables are finished and lie in memory that the map says is reserved; only the root pointer
has to be put where operating systems look, and the loader has one command for that.
"""

from __future__ import annotations

import struct

from pyvmm import layout
from pyvmm.boot.acpi import AcpiTables
from pyvmm.boot.memory_map import MemoryType
from pyvmm.memory import GuestMemory

ACPI_ROOM = 0x2_0000
"""How much of the end of RAM below 4 GiB is kept for the tables."""

_E820_ENTRY = struct.Struct("<QQI")
_LOADER_COMMAND = struct.Struct("<I56sIB63x")
_ALLOCATE = 1
_ZONE_FSEG = 2
_RSDP_FILE = "etc/acpi/rsdp"
_RSDP_SIZE = 36
_RSDP_ALIGNMENT = 16


def acpi_address(memory: GuestMemory) -> int:
    """Where the ACPI tables go."""
    return memory.regions[0].end - ACPI_ROOM


def files(memory: GuestMemory, tables: AcpiTables) -> dict[str, bytes]:
    """The files of fw_cfg by name."""
    allocate = _LOADER_COMMAND.pack(_ALLOCATE, _RSDP_FILE.encode(), _RSDP_ALIGNMENT, _ZONE_FSEG)
    return {
        "etc/e820": _memory_map(memory),
        "etc/table-loader": allocate,
        _RSDP_FILE: tables.blob[:_RSDP_SIZE],
        "etc/sercon-port": struct.pack("<H", layout.SERIAL_PORTS[0]),
        "etc/show-boot-menu": struct.pack("<H", 0),
    }


def _memory_map(memory: GuestMemory) -> bytes:
    """RAM without the tables, and what else there is that isn't free. The firmware adds its own."""
    low, *high = memory.regions
    entries = [
        (low.gpa, low.size - ACPI_ROOM, MemoryType.RAM),
        (acpi_address(memory), ACPI_ROOM, MemoryType.RESERVED),
        (layout.ECAM, layout.ECAM_SIZE, MemoryType.RESERVED),
        *((region.gpa, region.size, MemoryType.RAM) for region in high),
    ]
    return b"".join(_E820_ENTRY.pack(*entry) for entry in entries)
