"""The SMBIOS tables, read as an operating system reads them."""

from __future__ import annotations

import struct

import pytest

from pyvmm.boot import smbios
from pyvmm.boot.memory_map import MapEntry, MemoryType
from pyvmm.memory import GIB, MIB

ADDRESS = 0xE_2000
LENGTHS = {0: 0x1A, 1: 0x1B, 4: 0x30, 16: 0x17, 17: 0x28, 19: 0x1F, 32: 0x0B, 127: 4}
"""What the structures have in the versions of the specification that they are of."""


def ram(start: int, end: int) -> MapEntry:
    return MapEntry(start, end - start, MemoryType.RAM)


def tables(blob: bytes) -> list[tuple[int, int, bytes, list[str]]]:
    """Type, handle, formatted part and strings of each structure."""
    found = []
    rest = blob[smbios.ENTRY_POINTS_SIZE :]
    while rest:
        kind, length, handle = struct.unpack_from("<BBH", rest)
        end = rest.index(b"\0\0", length) + 2
        strings = [s.decode() for s in rest[length : end - 2].split(b"\0") if s]
        found.append((kind, handle, rest[:length], strings))
        rest = rest[end:]
    return found


def build(cpus: int, memory_map: list[MapEntry]) -> bytes:
    return smbios.build(ADDRESS, cpus=cpus, bios_segment=0xFC00, memory_map=memory_map)


SMALL = [ram(0, 0x9FC00), MapEntry(0x9FC00, 0x60400, MemoryType.RESERVED), ram(MIB, 256 * MIB)]


def test_both_entry_points() -> None:
    blob = build(2, SMALL)
    rest = blob[smbios.ENTRY_POINTS_SIZE :]
    new, old = blob[:24], blob[32:63]
    assert (new[:5], old[:4], old[16:21]) == (b"_SM3_", b"_SM_", b"_DMI_")
    assert sum(new) & 0xFF == sum(old) & 0xFF == sum(old[16:]) & 0xFF == 0
    assert struct.unpack_from("<IQ", new, 12) == (len(rest), ADDRESS + 64)
    length, address, count = struct.unpack_from("<HIH", old, 22)
    assert (length, address, count) == (len(rest), ADDRESS + 64, len(tables(blob)))
    assert old[5] == 31
    assert new[6] == 24


def test_the_structures() -> None:
    found = tables(build(2, SMALL))
    assert [kind for kind, *_ in found] == [0, 1, 4, 4, 16, 17, 19, 19, 32, 127]
    assert len({handle for _, handle, *_ in found}) == len(found)
    for kind, _, body, strings in found:
        assert len(body) == LENGTHS[kind], kind
        assert body[1] == len(body)
        if kind == 0:
            assert strings[0] == "PyVMM"


@pytest.mark.parametrize(
    ("memory_map", "size"),
    [
        (SMALL, 256),
        ([*SMALL[:2], ram(MIB, 3 * GIB), ram(4 * GIB, 6 * GIB)], 5 * 1024),
        ([*SMALL[:2], ram(MIB, 3 * GIB), ram(4 * GIB, 65 * GIB)], 64 * 1024),
    ],
)
def test_the_memory(memory_map: list[MapEntry], size: int) -> None:
    found = tables(build(1, memory_map))
    (array,) = (body for kind, _, body, _ in found if kind == 16)
    (device,) = (body for kind, _, body, _ in found if kind == 17)
    assert struct.unpack_from("<I", array, 7) == (size * 1024,)
    (small,), (extended,) = (
        struct.unpack_from("<H", device, 12),
        struct.unpack_from("<I", device, 28),
    )
    assert (extended if small == 0x7FFF else small) == size
    mapped = [body for kind, _, body, _ in found if kind == 19]
    total = 0
    for body in mapped:
        first, last = struct.unpack_from("<II", body, 4)
        assert first <= last
        total += (last - first + 1) * 1024
    assert total == sum(e.size for e in memory_map if e.type == MemoryType.RAM)
