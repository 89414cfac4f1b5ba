"""The MP tables, read as a kernel reads them."""

from __future__ import annotations

import struct

import pytest

from pyvmm import layout
from pyvmm.boot import acpi, mptable
from pyvmm.memory import MIB, GuestMemory

BASE = 0xF0000
SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def entries(blob: bytes) -> list[bytes]:
    """All entries, and both structures checked as the specification says."""
    pointer = blob[:16]
    assert pointer[:4] == b"_MP_"
    assert sum(pointer) & 0xFF == 0
    table, paragraphs, revision = struct.unpack_from("<IBB", pointer, 4)
    assert (paragraphs, revision) == (1, 4)
    assert pointer[11:] == bytes(5)  # a table, virtual wire mode
    table -= BASE
    assert blob[table : table + 4] == b"PCMP"
    length, revision = struct.unpack_from("<HB", blob, table + 4)
    assert table + length == len(blob)
    assert sum(blob[table:]) & 0xFF == 0
    count, lapic = struct.unpack_from("<HI", blob, table + 34)
    assert lapic == layout.LOCAL_APIC
    found, at = [], table + 44
    while at < len(blob):
        size = SIZES[blob[at]]
        found.append(blob[at : at + size])
        at += size
    assert (at, len(found)) == (len(blob), count)
    assert [entry[0] for entry in found] == sorted(entry[0] for entry in found)
    return found


@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_processors(cpus: int) -> None:
    processors = [entry for entry in entries(mptable.build(BASE, cpus)) if entry[0] == 0]
    assert [entry[1] for entry in processors] == list(range(cpus))
    assert [entry[3] for entry in processors] == [3] + [1] * (cpus - 1)


def test_buses_and_io_apic() -> None:
    found = entries(mptable.build(BASE, 2))
    assert [(e[1], e[2:]) for e in found if e[0] == 1] == [(0, b"PCI   "), (1, b"ISA   ")]
    (apic,) = (entry for entry in found if entry[0] == 2)
    assert (apic[1], apic[3]) == (layout.IOAPIC_ID, 1)
    assert struct.unpack_from("<I", apic, 4) == (layout.IOAPIC,)


def interrupts(levels: list[int]) -> dict[tuple[int, int], tuple[int, int]]:
    """(flags, pin) by (bus, source)."""
    found = {}
    for entry in entries(mptable.build(BASE, 2, levels)):
        if entry[0] == 3:
            _, kind, flags, bus, source, apic, pin = struct.unpack("<BBHBBBB", entry)
            assert (kind, apic) == (0, layout.IOAPIC_ID)
            found[bus, source] = flags, pin
    return found


def test_isa_interrupts_are_the_madts() -> None:
    """Pins and triggers are those of the ACPI tables' overrides."""
    madt = acpi.build(
        cpus=2, virtio_mmio=[layout.virtio_mmio_slot(number) for number in range(2)]
    ).tables["APIC"]
    expected = {irq: (0, irq) for irq in range(16) if irq != 2}
    at = 44
    while at < len(madt):
        kind, size = madt[at], madt[at + 1]
        if kind == acpi.MadtType.INTERRUPT_SOURCE_OVERRIDE:
            source, gsi, flags = struct.unpack_from("<BIH", madt, at + 3)
            expected[source] = flags, gsi
        at += size
    found = interrupts([5, 6])
    assert {source: found[1, source] for bus, source in found if bus == 1} == expected


def test_pci_interrupts() -> None:
    found = interrupts([])
    assert found[0, 0 << 2 | 0] == (0, 16)
    assert found[0, 3 << 2 | 2] == (0, 21)
    assert found[0, 31 << 2 | 3] == (0, 16 + 34 % 8)
    assert sum(bus == 0 for bus, _ in found) == 128


def test_local_interrupts() -> None:
    local = [entry for entry in entries(mptable.build(BASE, 2)) if entry[0] == 4]
    assert [(entry[1], entry[6], entry[7]) for entry in local] == [(3, 0xFF, 0), (1, 0xFF, 1)]


def test_they_fit() -> None:
    assert len(mptable.build(BASE, 64)) <= layout.MP_TABLE_END - layout.MP_TABLE


def test_place() -> None:
    memory = GuestMemory(2 * MIB)
    mptable.place(memory, 2, [5])
    assert memory.read(0x40E, 2) == struct.pack("<H", 0x9FC0)
    assert memory.read(0x413, 2) == struct.pack("<H", 639)
    expected = mptable.build(layout.MP_TABLE, 2, [5])
    assert memory.read(layout.MP_TABLE, len(expected)) == expected
    memory.close()
