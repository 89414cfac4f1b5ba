"""The vCPU's state at entry, and the tables in memory that it relies on."""

from __future__ import annotations

import pytest

from pyvmm import layout
from pyvmm.boot.entry import BOOT_CS, BOOT_DS, EntryState, Segment
from pyvmm.memory import GIB, MIB, GuestMemory


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(4 * MIB)


def walk(memory: GuestMemory, cr3: int, address: int) -> tuple[int, bool]:
    """Translate as the MMU does: (physical address, whether user mode may)."""
    table, user = cr3, True
    for shift in (39, 30, 21):
        entry = memory.read_u64(table + 8 * (address >> shift & 0x1FF))
        assert entry & 1, f"{address:#x} is not mapped"
        user = user and bool(entry & 4)
        assert entry & 2
        table = entry & 0xF_FFFF_FFFF_F000
        if entry & 0x80:
            return table + (address & ((1 << shift) - 1)), user
    raise AssertionError("no leaf")


@pytest.mark.parametrize("address", [0, 0xFFF, 2 * MIB, 0x123_4567, 3 * GIB + 5, 4 * GIB - 1])
def test_long_mode_maps_the_first_4_gib_to_themselves_for_the_kernel_only(
    memory: GuestMemory, address: int
) -> None:
    state = EntryState.long_mode(memory, 0x100_0000)
    assert walk(memory, state.cr3, address) == (address, False)


def test_nothing_is_mapped_beyond_4_gib(memory: GuestMemory) -> None:
    state = EntryState.long_mode(memory, 0x100_0000)
    with pytest.raises(AssertionError, match="not mapped"):
        walk(memory, state.cr3, 4 * GIB)


def test_long_mode_is_on_with_interrupts_off(memory: GuestMemory) -> None:
    state = EntryState.long_mode(memory, 0x100_0200, rsi=0x7000)
    assert state.cr0 & (1 << 31 | 1) == 1 << 31 | 1
    assert state.cr4 & 1 << 5
    assert state.efer == 1 << 10 | 1 << 8
    assert state.registers == {"rip": 0x100_0200, "rsi": 0x7000, "rflags": 2}
    assert (state.cs.selector, state.cs.l, state.cs.db) == (BOOT_CS, 1, 0)
    assert state.ss.selector == state.ds.selector == BOOT_DS


def test_protected_mode_has_neither_paging_nor_long_mode(memory: GuestMemory) -> None:
    state = EntryState.protected_mode(memory, 0x10_0000, rbx=0x6000)
    assert (state.cr0 & 1, state.cr0 >> 31, state.cr4, state.efer) == (1, 0, 0, 0)
    assert (state.cs.l, state.cs.db, state.cs.limit) == (0, 1, 0xFFFF_FFFF)


@pytest.mark.parametrize("enter", [EntryState.long_mode, EntryState.protected_mode])
def test_the_gdt_in_memory_says_what_the_segment_registers_hold(memory: GuestMemory, enter) -> None:
    state = enter(memory, 0x10_0000)
    assert state.gdt.base == layout.BOOT_GDT
    assert memory.read_u64(state.gdt.base) == 0
    for segment in (state.cs, state.ds, state.ss):
        assert segment.selector + 7 <= state.gdt.limit
        assert memory.read_u64(state.gdt.base + segment.selector) == segment.descriptor()


@pytest.mark.parametrize(
    ("segment", "descriptor"),
    [
        # The flat segments as they appear in countless boot loaders.
        (Segment(0, 0xFFFF_FFFF, 0x10, 0xB, l=1, g=1), 0x00AF_9B00_0000_FFFF),
        (Segment(0, 0xFFFF_FFFF, 0x10, 0xB, db=1, g=1), 0x00CF_9B00_0000_FFFF),
        (Segment(0, 0xFFFF_FFFF, 0x18, 0x3, db=1, g=1), 0x00CF_9300_0000_FFFF),
        (Segment(0x1234_5678, 0x67, 0x20, 0xB, s=0), 0x1200_8B34_5678_0067),
    ],
)
def test_descriptor_encoding(segment: Segment, descriptor: int) -> None:
    assert segment.descriptor() == descriptor


def test_real_mode_segments_are_paragraphs() -> None:
    state = EntryState.real_mode(0xF000, 0xFFF0)
    assert (state.cs.base, state.cs.selector, state.cs.limit) == (0xF_0000, 0xF000, 0xFFFF)
    assert state.registers["rip"] == 0xFFF0
    assert state.cr0 & 1 == 0
    assert state.idt == (0, 0x3FF)
