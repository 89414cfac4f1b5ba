"""fw_cfg, as firmware reads it: byte by byte, and by DMA."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import RecordingFaults

from pyvmm.devices.fw_cfg import FwCfg
from pyvmm.memory import MIB, GuestMemory

FILES = {"etc/two": b"2" * 5000, "etc/a-file": b"content", "empty": b""}


class Rig:
    def __init__(self) -> None:
        self.memory = GuestMemory(MIB)
        self.faults = RecordingFaults()
        self.device = FwCfg(self.memory, self.faults, 3, FILES)

    def item(self, selector: int, length: int) -> bytes:
        self.device.write(0, 2, selector)
        return bytes(self.device.read(1, 1) for _ in range(length))

    def dma(self, control: int, length: int, target: int, at: int = 0x1000) -> int:
        """Have an access done; the result."""
        self.memory.write(at, struct.pack(">IIQ", control, length, target))
        self.start(at)
        return int.from_bytes(self.memory.read(at, 4), "big")

    def start(self, address: int) -> None:
        high, low = (address >> 32).to_bytes(4, "big"), (address & 0xFFFF_FFFF).to_bytes(4, "big")
        self.device.write(4, 4, int.from_bytes(high, "little"))
        self.device.write(8, 4, int.from_bytes(low, "little"))

    def directory(self) -> dict[str, tuple[int, int]]:
        (count,) = struct.unpack(">I", self.item(0x19, 4))
        found = {}
        for _ in range(count):
            raw = bytes(self.device.read(1, 1) for _ in range(64))
            size, select, _, name = struct.unpack(">IHH56s", raw)
            found[name.rstrip(b"\0").decode()] = (select, size)
        return found


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_the_signature(rig: Rig) -> None:
    assert rig.item(0, 4) == b"QEMU"
    assert rig.item(1, 4) == b"\x03\0\0\0"
    assert rig.item(5, 2) == b"\x03\0"
    assert rig.item(3, 8) == MIB.to_bytes(8, "little")


def test_files(rig: Rig) -> None:
    directory = rig.directory()
    assert list(directory) == ["empty", "etc/a-file", "etc/two"]
    for name, (select, size) in directory.items():
        assert rig.item(select, size) == FILES[name]


def test_behind_an_items_end_there_are_zeros(rig: Rig) -> None:
    assert rig.item(0, 8) == b"QEMU\0\0\0\0"
    assert rig.item(0x3FFF, 4) == bytes(4)


def test_selecting_begins_anew(rig: Rig) -> None:
    assert rig.item(0, 2) == b"QE"
    assert rig.item(0, 2) == b"QE"


def test_dma_is_there(rig: Rig) -> None:
    raw = b"".join(rig.device.read(offset, 4).to_bytes(4, "little") for offset in (4, 8))
    assert raw == b"QEMU CFG"


def test_dma_reads(rig: Rig) -> None:
    select, _ = rig.directory()["etc/two"]
    assert rig.dma(select << 16 | 8 | 2, 1000, 0x2000) == 0
    assert rig.memory.read(0x2000, 1001) == b"2" * 1000 + b"\0"
    assert rig.dma(4, 3990, 0) == 0  # skip
    rig.memory.fill(0x4000, 100, 0xFF)
    assert rig.dma(2, 30, 0x4000) == 0
    assert rig.memory.read(0x4000, 31) == b"2" * 10 + bytes(20) + b"\xff"


def test_dma_does_not_write_items(rig: Rig) -> None:
    select, _ = rig.directory()["etc/a-file"]
    assert rig.dma(select << 16 | 8 | 16, 4, 0x2000) == 1
    assert rig.item(select, 7) == b"content"


@pytest.mark.parametrize("target", [MIB - 10, MIB, 1 << 40, (1 << 64) - 4])
def test_dma_outside_ram(rig: Rig, target: int) -> None:
    assert rig.dma(8 | 2, 100, target) == 1
    assert rig.faults.counts["fw_cfg: DMA outside RAM"]
    rig.start(target)
    assert rig.faults.counts["fw_cfg: DMA structure outside RAM"]


def test_a_request_for_4_gib_is_no_allocation(rig: Rig) -> None:
    assert rig.dma(8 | 2, 0xFFFF_FFFF, 0) == 1


@given(
    st.lists(st.tuples(st.integers(0, 11), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)))
)
def test_no_sequence_of_accesses_breaks_it(accesses: list[tuple[int, int, int]]) -> None:
    rig = Rig()
    for offset, size, value in accesses:
        rig.device.write(offset, size, value & (1 << 8 * size) - 1)
        assert 0 <= rig.device.read(offset, size) < 1 << 8 * size


def test_saved_state_is_all_there_is(rig: Rig) -> None:
    rig.item(0, 2)
    rig.device.write(4, 4, 0x1234)
    state = rig.device.save()
    other = Rig()
    other.device.restore(state)
    assert other.device.read(1, 1) == ord("M")
    assert other.device.save() == {**state, "position": 3}


def test_a_reset_forgets(rig: Rig) -> None:
    rig.item(5, 1)
    rig.device.reset()
    assert rig.device.save() == {"selected": 0, "position": 0, "dma_address": 0}
