"""The MP tables: CPUs and interrupts, for kernels that know no ACPI.

Document: Intel MultiProcessor Specification 1.4, chapter 4: the floating pointer structure (4.1)
and the configuration table (4.2, 4.3), both at the beginning of segment F000, which is the last
place where a kernel looks for the pointer. Before that it looks into the EBDA, and finds that by
the BIOS data area; so the two words that tell where conventional memory ends are put there as well,
for kernels that are entered without a BIOS.

They say what the MADT and the DSDT of :mod:`pyvmm.boot.acpi` say. Left out: extended entries (4.4);
nothing that these tell can be changed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pyvmm import layout
from pyvmm.memory import KIB, GuestMemory

OEM_ID, PRODUCT_ID = b"PYVMM   ", b"PC          "

_POINTER = struct.Struct("<4sIBBB5s")
"""Signature, table, length in paragraphs, revision, checksum, features."""
_HEADER = struct.Struct("<4sHBB8s12sIHHIHBx")
_PROCESSOR = struct.Struct("<BBBBII8x")
_BUS = struct.Struct("<BB6s")
_IO_APIC = struct.Struct("<BBBBI")
_INTERRUPT = struct.Struct("<BBHBBBB")
_POINTER_CHECKSUM, _HEADER_CHECKSUM = 10, 7

REVISION_1_4 = 4
_NO_IMCR = bytes(5)
"""Features: there is a table, no default configuration; virtual wire mode."""


class Entry:
    """Types of entries (table 4-3)."""

    PROCESSOR = 0
    BUS = 1
    IO_APIC = 2
    IO_INTERRUPT = 3
    LOCAL_INTERRUPT = 4


class Interrupt:
    """Interrupt types (table 4-11)."""

    INT = 0
    NMI = 1
    EXTINT = 3


LAPIC_VERSION = 0x14
IO_APIC_VERSION = 0x11
ENABLED, BOOT_PROCESSOR = 1, 2
CPU_SIGNATURE, FPU_AND_APIC = 0x600, 0x201
"""CPUID tells better; these are a Pentium Pro's."""
PCI_BUS, ISA_BUS = 0, 1
CONFORMING, ACTIVE_HIGH_LEVEL = 0b0000, 0b1101
ALL_LOCAL_APICS = 0xFF
LINT0, LINT1 = 0, 1
CASCADE_IRQ = 2
ISA_IRQS = 16

BDA_EBDA_SEGMENT, BDA_MEMORY_KIB = 0x40E, 0x413


def place(memory: GuestMemory, cpus: int, levels: Sequence[int] = ()) -> None:
    """Put the tables of a machine with ``cpus`` vCPUs into memory. The ISA interrupts ``levels``
    are no edges, as ISA's are otherwise."""
    memory.write(BDA_EBDA_SEGMENT, struct.pack("<H", layout.EBDA >> 4))
    memory.write(BDA_MEMORY_KIB, struct.pack("<H", layout.EBDA // KIB))
    memory.write(layout.MP_TABLE, build(layout.MP_TABLE, cpus, levels))


def build(address: int, cpus: int, levels: Sequence[int] = ()) -> bytes:
    """The floating pointer structure, and behind it the configuration table, for ``address``."""
    pointer = bytearray(
        _POINTER.pack(b"_MP_", address + _POINTER.size, 1, REVISION_1_4, 0, _NO_IMCR)
    )
    pointer[_POINTER_CHECKSUM] = -sum(pointer) & 0xFF
    entries = _entries(cpus, levels)
    body = b"".join(entries)
    no_oem_table = (0, 0)
    header = _HEADER.pack(
        *(b"PCMP", _HEADER.size + len(body), REVISION_1_4, 0, OEM_ID, PRODUCT_ID),
        *(*no_oem_table, len(entries), layout.LOCAL_APIC, 0, 0),
    )
    table = bytearray(header + body)
    table[_HEADER_CHECKSUM] = -sum(table) & 0xFF
    return bytes(pointer + table)


def _entries(cpus: int, levels: Sequence[int]) -> list[bytes]:
    """In the order of their types, as 4.3 wants it."""
    entries = [
        _PROCESSOR.pack(
            *(Entry.PROCESSOR, cpu, LAPIC_VERSION, ENABLED | (0 if cpu else BOOT_PROCESSOR)),
            *(CPU_SIGNATURE, FPU_AND_APIC),
        )
        for cpu in range(cpus)
    ]
    entries.append(_BUS.pack(Entry.BUS, PCI_BUS, b"PCI   "))
    entries.append(_BUS.pack(Entry.BUS, ISA_BUS, b"ISA   "))
    entries.append(
        _IO_APIC.pack(Entry.IO_APIC, layout.IOAPIC_ID, IO_APIC_VERSION, ENABLED, layout.IOAPIC)
    )
    for irq in range(ISA_IRQS):
        if irq != CASCADE_IRQ:
            level = irq in levels or irq == layout.SCI_IRQ
            flags = ACTIVE_HIGH_LEVEL if level else CONFORMING
            pin = layout.PIT_IOAPIC_PIN if irq == layout.PIT_IRQ else irq
            entries.append(_io_interrupt(flags, ISA_BUS, irq, pin))
    for device in range(layout.PCI_DEVICES):
        for pin in range(layout.PCI_PINS):
            source = device << 2 | pin
            entries.append(_io_interrupt(CONFORMING, PCI_BUS, source, layout.pci_gsi(device, pin)))
    for kind, lint in ((Interrupt.EXTINT, LINT0), (Interrupt.NMI, LINT1)):
        entries.append(
            _INTERRUPT.pack(
                Entry.LOCAL_INTERRUPT, kind, CONFORMING, ISA_BUS, 0, ALL_LOCAL_APICS, lint
            )
        )
    return entries


def _io_interrupt(flags: int, bus: int, source: int, pin: int) -> bytes:
    return _INTERRUPT.pack(
        Entry.IO_INTERRUPT, Interrupt.INT, flags, bus, source, layout.IOAPIC_ID, pin
    )
