"""The address space: who is called, with which offset, and what happens where nobody is."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import RecordingFaults

import pyvmm.bus
from pyvmm.bus import Bus, Device, Window

SPACE = 0x1000


class Registers(Device):
    """Remembers writes by offset and size; reads what a byte array holds."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.bytes = bytearray(length)
        self.calls: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append(("read", offset, size))
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append(("write", offset, size))
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")


@pytest.fixture
def faults() -> RecordingFaults:
    return RecordingFaults()


@pytest.fixture(params=[True, False], ids=["flat", "sparse"])
def bus(request: pytest.FixtureRequest, faults: RecordingFaults) -> Bus:
    return Bus("test", SPACE, faults, flat=request.param)


def test_a_device_sees_offsets(bus: Bus) -> None:
    device = Registers(16)
    bus.add(0x100, 16, device, "registers")
    bus.write(0x104, 4, 0x1234_5678)
    assert device.calls == [("write", 4, 4)]
    assert bus.read(0x104, 4) == 0x1234_5678


def test_nobody_reads_as_ones(bus: Bus, faults: RecordingFaults) -> None:
    assert bus.read(0, 1) == 0xFF
    assert bus.read(0, 4) == 0xFFFF_FFFF
    assert bus.read(SPACE - 1, 2) == 0xFFFF
    assert bus.read(SPACE + 5, 8) == (1 << 64) - 1
    bus.write(0, 8, 0)
    assert faults.counts == {
        "test read that no device claims": 15,
        "test write that no device claims": 8,
    }
    assert faults.lines == []


def test_wide_accesses_are_split(bus: Bus) -> None:
    device = Registers(4)
    bus.add(0x100, 4, device, "8-bit device", max_size=1)
    bus.write(0x100, 4, 0x0403_0201)
    assert device.calls == [("write", offset, 1) for offset in range(4)]
    assert bus.read(0x100, 4) == 0x0403_0201


def test_strings(bus: Bus) -> None:
    """A device that can fill them does; others are read a value at a time."""
    calls = []

    def fill(offset: int, size: int, data: memoryview) -> None:
        calls.append((offset, size))
        data[:] = b"string"[: len(data)]

    device = Registers(8)
    device.bytes[:] = range(8)
    bus.add(0x100, 4, device, "plain")
    window = Window(device.lock, device.read, device.write, fill)
    bus.add(0x104, 4, window, "strings")
    data = memoryview(bytearray(6))
    bus.read_string(0x105, 2, data)
    assert bytes(data) == b"string"
    assert calls == [(1, 2)]
    bus.read_string(0x101, 2, data)
    assert bytes(data) == b"\1\2" * 3
    bus.read_string(0x107, 2, data)  # over the edge
    assert len(calls) == 1
    bus.read_string(0x10A, 2, data)
    assert bytes(data) == b"\xff" * 6


def test_accesses_over_the_edge_are_split(bus: Bus) -> None:
    low, high = Registers(4), Registers(4)
    bus.add(0x100, 4, low, "low")
    bus.add(0x104, 4, high, "high")
    bus.write(0x102, 4, 0xDDCC_BBAA)
    assert bytes(low.bytes) == b"\0\0\xaa\xbb"
    assert bytes(high.bytes) == b"\xcc\xdd\0\0"
    assert bus.read(0x106, 4) == 0xFFFF_0000


@pytest.mark.parametrize(("base", "length"), [(0x0FF, 2), (0x10F, 1), (0x100, 16), (0x0F0, 0x40)])
def test_overlaps_are_refused(bus: Bus, base: int, length: int) -> None:
    bus.add(0x100, 16, Registers(16), "first")
    with pytest.raises(ValueError, match=r"second at .* overlaps first"):
        bus.add(base, length, Registers(length), "second")
    assert [r.name for r in bus.ranges()] == ["first"]


@pytest.mark.parametrize(("base", "length"), [(-1, 2), (SPACE, 1), (SPACE - 1, 2), (0, 0), (5, -1)])
def test_ranges_outside_the_space_are_refused(bus: Bus, base: int, length: int) -> None:
    with pytest.raises(ValueError, match="outside the test bus"):
        bus.add(base, length, Registers(1), "stray")


def test_a_removed_device_answers_no_more(bus: Bus) -> None:
    device, other = Registers(4), Registers(4)
    bus.add(0x100, 4, device, "device")
    bus.add(0x104, 4, other, "other")
    assert bus.read(0x100, 4) == 0
    bus.remove(0x100, device)
    assert bus.read(0x100, 4) == 0xFFFF_FFFF
    assert bus.read(0x104, 4) == 0
    bus.add(0x100, 4, device, "device")


def test_only_its_owner_can_remove_a_range(bus: Bus) -> None:
    bus.add(0x100, 4, Registers(4), "device")
    with pytest.raises(KeyError):
        bus.remove(0x100, Registers(4))
    with pytest.raises(KeyError):
        bus.remove(0x104, Registers(4))


def test_a_window_is_another_way_to_the_same_device(bus: Bus) -> None:
    device = Registers(16)
    window = Window(
        device.lock,
        lambda offset, size: device.read(offset + 8, size),
        lambda offset, size, value: device.write(offset + 8, size, value),
    )
    bus.add(0x100, 4, device, "registers")
    bus.add(0x200, 4, window, "window")
    bus.write(0x201, 1, 7)
    assert device.bytes[9] == 7


def test_the_device_is_locked_during_a_call(bus: Bus) -> None:
    class Watcher(Registers):
        def read(self, offset: int, size: int) -> int:
            free: list[bool] = []
            probe = threading.Thread(target=lambda: free.append(self.lock.acquire(blocking=False)))
            probe.start()
            probe.join()
            return int(free[0])

    bus.add(0x100, 4, Watcher(4), "watcher")
    assert bus.read(0x100, 4) == 0


@given(
    ranges=st.lists(st.tuples(st.integers(0, SPACE), st.integers(1, 64)), max_size=12),
    addresses=st.lists(st.integers(0, SPACE - 1), min_size=1, max_size=40),
    flat=st.booleans(),
)
def test_look_up_agrees_with_a_plain_search(
    ranges: list[tuple[int, int]], addresses: list[int], flat: bool
) -> None:
    bus = Bus("test", SPACE, RecordingFaults(), flat=flat)
    for base, length in ranges:
        try:
            bus.add(base, length, Registers(length), f"{base:#x}")
        except ValueError:
            pass
    for address in addresses:
        expected = [r for r in bus.ranges() if r.base <= address < r.base + r.length]
        found = bus.find(address)
        assert [found] == expected if found else expected == []


@given(
    address=st.integers(0xF8, 0x118),
    size=st.sampled_from([1, 2, 4, 8]),
    value=st.integers(0, (1 << 64) - 1),
    max_size=st.sampled_from([1, 2, 4, 8]),
)
def test_what_is_written_reads_back_where_a_device_is(
    address: int, size: int, value: int, max_size: int
) -> None:
    bus = Bus("test", SPACE, RecordingFaults())
    bus.add(0x100, 16, Registers(16), "registers", max_size=max_size)
    value &= (1 << 8 * size) - 1
    bus.write(address, size, value)
    back = bus.read(address, size).to_bytes(size, "little")
    for index, byte in enumerate(value.to_bytes(size, "little")):
        inside = 0x100 <= address + index < 0x110
        assert back[index] == (byte if inside else 0xFF)


def test_a_range_that_goes_while_it_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another vCPU moves a BAR: who came too late may still reach the old place, but only once."""
    bus = Bus("test", SPACE, RecordingFaults())
    old, new = Registers(16), Registers(16)
    bus.add(0x100, 16, old, "old")

    def look_up(*arguments: Any, **options: Any) -> int:
        monkeypatch.undo()
        bus.remove(0x100, old)
        bus.add(0x100, 16, new, "new")
        return 1

    monkeypatch.setattr(pyvmm.bus, "bisect_right", look_up)
    bus.write(0x104, 1, 1)
    bus.write(0x105, 1, 2)
    assert old.calls == [("write", 4, 1)]
    assert new.calls == [("write", 5, 1)]
