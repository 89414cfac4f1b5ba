"""Wires: level, edge, and several drivers of one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import RecordingLine

from pyvmm.interrupts import SharedIrq


def test_only_changes_are_driven() -> None:
    line = RecordingLine()
    for level in (False, True, True, False, False):
        line.set(level)
    assert line.edges == [True, False]


def test_a_pulse_is_two_edges() -> None:
    line = RecordingLine()
    line.pulse()
    assert line.edges == [True, False]
    assert not line.level


def test_a_pulse_on_a_line_that_is_high_is_one() -> None:
    line = RecordingLine()
    line.set(True)
    line.pulse()
    assert line.edges == [True, False]


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30))
def test_a_shared_wire_is_high_while_anyone_drives_it(changes: list[tuple[int, bool]]) -> None:
    line = RecordingLine()
    shared = SharedIrq(line)
    inputs = [shared.input() for _ in range(3)]
    for index, level in changes:
        inputs[index].set(level)
        assert line.level == any(input.level for input in inputs)
