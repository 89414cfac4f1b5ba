"""The e820 map against the RAM that there is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import layout
from pyvmm.boot.memory_map import MemoryType, memory_map
from pyvmm.memory import GIB, MIB, PAGE_SIZE, GuestMemory


@given(pages=st.integers(1, 8 * GIB // PAGE_SIZE))
def test_the_map_covers_ram_exactly_without_overlaps(pages: int) -> None:
    memory = GuestMemory(pages * PAGE_SIZE)
    try:
        entries = memory_map(memory)
        for low, high in pairwise(entries):
            assert low.end <= high.start
        usable = [(e.start, e.end) for e in entries if e.type == MemoryType.RAM]
        expected = []
        for region in memory.regions:
            if region.gpa == 0:
                expected.append((0, min(region.end, layout.EBDA)))
                if region.end > layout.HIGH_RAM:
                    expected.append((layout.HIGH_RAM, region.end))
            else:
                expected.append((region.gpa, region.end))
        assert usable == expected
    finally:
        memory.close()


@pytest.mark.parametrize("size", [64 * MIB, 5 * GIB])
def test_ecam_and_what_lies_below_1_mib_are_reserved(size: int) -> None:
    memory = GuestMemory(size)
    reserved = [(e.start, e.end) for e in memory_map(memory) if e.type == MemoryType.RESERVED]
    assert reserved == [
        (0x9_FC00, 0x10_0000),
        (layout.ECAM, layout.ECAM + layout.ECAM_SIZE),
    ]
    memory.close()
