"""pvpanic: what a guest learns from the port and what the host learns from the guest."""

from __future__ import annotations

import pytest
from unit.fakes import RecordingFaults

from pyvmm.devices.pvpanic import PanicEvent, Pvpanic


def test_reading_tells_the_supported_events() -> None:
    assert Pvpanic(lambda events: None, RecordingFaults()).read(0, 1) == 0b111


@pytest.mark.parametrize(
    ("value", "reported", "faults"),
    [
        (PanicEvent.PANICKED, [1], 0),
        (PanicEvent.CRASH_LOADED, [2], 0),
        (PanicEvent.SHUTDOWN, [4], 0),
        (0, [], 0),
        (0x80, [], 1),
        (0x81, [1], 1),
    ],
)
def test_writing_reports_known_events(value: int, reported: list[int], faults: int) -> None:
    events: list[int] = []
    counter = RecordingFaults()
    Pvpanic(events.append, counter).write(0, 1, value)
    assert events == reported
    assert sum(counter.counts.values()) == faults
