"""The SMBIOS tables: what machine this is, for dmidecode and for inventories.

Document: DSP0134, System Management BIOS Reference Specification 3.6. Section 5.2 has the two entry
points, chapter 7 the structures; here are those that there is something true to say of: BIOS
(type 0), system (1), processors (4), memory (16, 17, 19), boot status (32), and the end (127).

Left out: baseboard and chassis, which there aren't, caches, slots, and everything with sensors.
"""

from __future__ import annotations

import struct

from pyvmm.boot.memory_map import MapEntry, MemoryType
from pyvmm.memory import KIB, MIB, align_up

MAJOR, MINOR, REVISION = 3, 6, 0
ENTRY_POINTS_SIZE = 64
"""The 64-bit entry point in 32 bytes, and the 32-bit one in the other 32."""

MANUFACTURER = "PyVMM"
BIOS_ROM_KIB = 64
"""What type 0 counts in: the ROM is no larger."""

_ENTRY_64 = struct.Struct("<5sBBBBBBBIQ")
_ENTRY_32 = struct.Struct("<4sBBBBHB5s5sBHIHB")
_CHECKSUM_64, _CHECKSUM_32, _INTERMEDIATE, _INTERMEDIATE_CHECKSUM = 5, 4, 0x10, 0x15
_ENTRY_32_REVISION_2_8 = (2, 8)

_UNKNOWN = 2
"""In most enumerations."""
_OTHER = 1
_NONE = 0xFFFE
_NO_HANDLE = 0xFFFF

_HANDLES = {0: 0x000, 1: 0x100, 4: 0x400, 16: 0x1000, 17: 0x1100, 19: 0x1300, 32: 0x2000,
            127: 0x7F00}  # fmt: skip
_MAX_SIZE_17 = 0x7FFF
"""In MiB; a larger device has its size in the extended field."""


def build(address: int, *, cpus: int, bios_segment: int, memory_map: list[MapEntry]) -> bytes:
    """Entry points and tables, to be put at the GPA ``address``, below 4 GiB: first the 64-bit
    entry point in 32 bytes, then the 32-bit one in 32 bytes, then the tables.

    An operating system finds the entry points only in segment F000, where the BIOS copies them.
    """
    ram = [entry for entry in memory_map if entry.type == MemoryType.RAM]
    size = align_up(sum(entry.size for entry in ram), MIB) // MIB
    structures = [
        _bios(bios_segment),
        _system(),
        *(_processor(number) for number in range(cpus)),
        _memory_array(size * KIB),
        _memory_device(size),
        *(_mapped(number, entry) for number, entry in enumerate(ram)),
        _structure(32, 0, bytes(6) + bytes(1)),
        _structure(127, 0, b""),
    ]
    tables = b"".join(structures)
    where = address + ENTRY_POINTS_SIZE
    return (
        _entry_64(where, len(tables)).ljust(32, b"\0")
        + _entry_32(where, tables, structures).ljust(32, b"\0")
        + tables
    )


def _entry_64(where: int, size: int) -> bytes:
    entry = bytearray(
        _ENTRY_64.pack(b"_SM3_", 0, _ENTRY_64.size, MAJOR, MINOR, REVISION, 1, 0, size, where)
    )
    entry[_CHECKSUM_64] = -sum(entry) & 0xFF
    return bytes(entry)


def _entry_32(where: int, tables: bytes, structures: list[bytes]) -> bytes:
    largest = max(len(structure) for structure in structures)
    major, minor = _ENTRY_32_REVISION_2_8
    entry = bytearray(
        _ENTRY_32.pack(
            *(b"_SM_", 0, _ENTRY_32.size, major, minor, largest, 0, bytes(5)),
            *(b"_DMI_", 0, len(tables), where, len(structures), major << 4 | minor),
        )
    )
    entry[_INTERMEDIATE_CHECKSUM] = -sum(entry[_INTERMEDIATE:]) & 0xFF
    entry[_CHECKSUM_32] = -sum(entry) & 0xFF
    return bytes(entry)


def _structure(kind: int, number: int, body: bytes, *strings: str) -> bytes:
    """A structure with its header (6.1.2) and its strings (6.1.3), which it names from 1 on."""
    header = struct.pack("<BBH", kind, 4 + len(body), _HANDLES[kind] + number)
    text = b"".join(string.encode() + b"\0" for string in strings)
    return header + body + (text or b"\0") + b"\0"


def _bios(segment: int) -> bytes:
    """7.1: PCI, selectable boot, EDD, serial services, ACPI; a virtual machine."""
    characteristics = 1 << 7 | 1 << 16 | 1 << 19 | 1 << 29
    acpi, virtual_machine = 1 << 0, 1 << 4
    vendor, version, date = 1, 2, 3
    no_embedded_controller = (0xFF, 0xFF)
    body = struct.pack(
        "<BBHBBQBBBBBBH",
        *(vendor, version, segment, date, BIOS_ROM_KIB // 64 - 1, characteristics),
        *(acpi, virtual_machine, 0, 1, *no_embedded_controller, 0),
    )
    return _structure(0, 0, body, MANUFACTURER, "1", "11/21/2026")


def _system() -> bytes:
    """7.2; it has neither a serial number nor a UUID."""
    power_switch = 6
    body = struct.pack("<BBBB16sBBB", 1, 2, 0, 0, bytes(16), power_switch, 0, 0)
    return _structure(1, 0, body, MANUFACTURER, "PC")


def _processor(number: int) -> bytes:
    """7.5; what the CPU is, CPUID tells."""
    central, enabled = 3, 0x41
    no_cache = (_NO_HANDLE,) * 3
    cores = threads = 1
    body = struct.pack(
        "<BBBBQBBHHHBB3HBBBBBBHHHHH",
        *(1, central, _UNKNOWN, 0, 0, 0, 0, 0, 0, 0, enabled, _OTHER, *no_cache),
        *(0, 0, 0, cores, cores, threads, 1 << 2, _UNKNOWN, cores, cores, threads),
    )
    return _structure(4, number, body, f"CPU {number}")


def _memory_array(kib: int) -> bytes:
    """7.17: all memory is one device."""
    motherboard, system_memory, no_correction = 3, 3, 3
    extended = kib >= 0x8000_0000
    body = struct.pack(
        "<BBBIHHQ",
        *(motherboard, system_memory, no_correction, 0x8000_0000 if extended else kib, _NONE, 1),
        kib * KIB if extended else 0,
    )
    return _structure(16, 0, body)


def _memory_device(mib: int) -> bytes:
    """7.18, as far as 2.7 has it."""
    dimm, ram = 9, 7
    small = mib if mib < _MAX_SIZE_17 else _MAX_SIZE_17
    body = struct.pack(
        "<HHHHHBBBBBHHBBBBBI4H",
        *(_HANDLES[16], _NONE, _NO_HANDLE, _NO_HANDLE, small, dimm, 0, 1, 0, ram, 1 << 1, 0),
        *(2, 0, 0, 0, 0, mib if mib >= _MAX_SIZE_17 else 0, 0, 0, 0, 0),
    )
    return _structure(17, 0, body, "RAM", MANUFACTURER)


def _mapped(number: int, entry: MapEntry) -> bytes:
    """7.20: one for each piece of RAM. Addresses in KiB where they fit, else in bytes."""
    first, last = entry.start // KIB, entry.end // KIB - 1
    if last <= 0xFFFF_FFFE:
        body = struct.pack("<IIHBQQ", first, last, _HANDLES[16], 1, 0, 0)
    else:
        body = struct.pack(
            "<IIHBQQ", 0xFFFF_FFFF, 0xFFFF_FFFF, _HANDLES[16], 1, entry.start, entry.end - 1
        )
    return _structure(19, number, body)
