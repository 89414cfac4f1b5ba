"""virtio-balloon: which pages go back to the host, and what the guest says of its memory."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import FakeClock, FakeReactor, RecordingFaults
from unit.virtio_driver import (
    MEMORY_SIZE,
    NEEDS_RESET,
    VERSION_1,
    DriverQueue,
    Pc,
    VirtioDriver,
)

from pyvmm import host
from pyvmm.errors import ConfigError
from pyvmm.eventloop import NS_PER_SECOND
from pyvmm.memory import GIB, KIB, MIB, MMIO_HOLE_END, MMIO_HOLE_START, PAGE_SIZE, GuestMemory
from pyvmm.virtio.balloon import MAX_PAGES, MIN_COST, TURN, BalloonDevice, coalesce
from pyvmm.virtio.queue import MAX_CHAIN_BYTES

STATS_VQ, DEFLATE_ON_OOM, PAGE_REPORTING = 1 << 1, 1 << 2, 1 << 5
INFLATE, DEFLATE, STATS, HINTS, REPORTING = range(5)
ARRAY = 0x40_0000
"""Where the driver keeps its arrays."""
POOL = 0x80_0000
"""Where the pages lie that are given away."""


class Rig:
    """A PC with a balloon, and its driver; ``queues`` by index."""

    def __init__(
        self, *indices: int, memory: GuestMemory | None = None, features: int | None = None, **kind
    ) -> None:
        self.clock = FakeClock()
        self.loop = FakeReactor()
        self.faults = RecordingFaults()
        self.memory = memory or GuestMemory(MEMORY_SIZE)
        self.memory.fill(ARRAY, PAGE_SIZE)  # allocated from the start
        self.device = BalloonDevice(self.loop, self.clock, self.memory, self.faults, **kind)
        self.pc = Pc(self.device, memory=self.memory)
        self.driver = VirtioDriver(self.pc)
        self.queues: dict[int, DriverQueue] = {}
        self.start(*(indices or (INFLATE, DEFLATE)), features=features)

    def start(self, *indices: int, features: int | None = None) -> None:
        self.driver.negotiate(features)
        self.driver.enable_msix(6)
        self.driver.set("config_msix_vector", 0)
        self.queues = {index: self.driver.add_queue(index, vector=index + 1) for index in indices}
        self.driver.run()
        self.loop.settle()

    def array(self, data: bytes, index: int = INFLATE) -> int:
        """Offer a buffer with ``data``; its head."""
        self.memory.write(ARRAY, data)
        return self.offer(index, [(ARRAY, len(data))], [])

    def offer(
        self, index: int, readable: list[tuple[int, int]], writable: list[tuple[int, int]]
    ) -> int:
        head = self.queues[index].add(readable, writable)
        self.queues[index].kick()
        return head

    def inflate(self, *pages: int) -> None:
        """Lend pages, by number, and wait."""
        head = self.array(struct.pack(f"<{len(pages)}I", *pages))
        self.loop.settle()
        assert self.queues[INFLATE].take() == [(head, 0)]

    def kept(self, gpa: int, length: int) -> list[bool]:
        """For each page whether its content, which wasn't zeros, is still there."""
        data = self.memory.read(gpa, length)
        return [any(data[at : at + PAGE_SIZE]) for at in range(0, length, PAGE_SIZE)]

    def messages(self, vector: int) -> int:
        return [data for _, data in self.pc.msi.fired].count(vector + 1)

    def close(self) -> None:
        self.pc.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.memory.fill(POOL, 4 * MIB, 0xAA)
    yield rig
    rig.close()


def blocks(memory: GuestMemory) -> int:
    """How much of the memory the host has allocated, in bytes."""
    return os.fstat(memory.fd).st_blocks * 512


@pytest.mark.parametrize(
    ("kind", "features"),
    [
        ({}, 0),
        ({"stats_seconds": 1.0}, STATS_VQ),
        ({"deflate_on_oom": True}, DEFLATE_ON_OOM),
        ({"free_page_reporting": True}, PAGE_REPORTING),
    ],
)
def test_what_is_offered(kind: dict[str, float], features: int) -> None:
    rig = Rig(**kind)
    assert rig.driver.function.read(2, 2) == 0x1045
    assert rig.driver.offered() & 0xFF_FFFF == features
    rig.close()


# Inflating and deflating.


def test_lent_pages_go_back_to_the_host(rig: Rig) -> None:
    first = POOL // PAGE_SIZE
    before = blocks(rig.memory)
    rig.inflate(first + 7, first, first + 1, first + 7)
    assert blocks(rig.memory) == before - 3 * PAGE_SIZE
    kept = rig.kept(POOL, 10 * PAGE_SIZE)
    assert [page for page in range(10) if not kept[page]] == [0, 1, 7]
    rig.memory.write(POOL, b"used again")
    assert rig.memory.read(POOL, 10) == b"used again"


def test_pages_that_are_taken_back_are_acknowledged(rig: Rig) -> None:
    heads = {rig.array(struct.pack("<I", POOL // PAGE_SIZE), DEFLATE) for _ in range(40)}
    rig.loop.settle()
    assert {head for head, _ in rig.queues[DEFLATE].take()} == heads
    assert all(rig.kept(POOL, PAGE_SIZE))
    assert rig.faults.counts == {}


def test_pages_that_are_no_ram() -> None:
    rig = Rig(memory=GuestMemory(MMIO_HOLE_START + MIB))
    last, high = MMIO_HOLE_START // PAGE_SIZE - 1, MMIO_HOLE_END // PAGE_SIZE
    end = high + MIB // PAGE_SIZE - 1
    for page in (last, high, end):
        rig.memory.fill(page * PAGE_SIZE, PAGE_SIZE, 1)
    before = blocks(rig.memory)
    rig.inflate(last, last + 1, high - 1, high, end, end + 1, 0xFFFF_FFFF)
    assert before - blocks(rig.memory) == 3 * PAGE_SIZE
    assert rig.faults.counts == {"balloon: pages outside RAM": 4}
    assert not rig.driver.status & NEEDS_RESET
    rig.close()


@pytest.mark.parametrize("data", [b"123", struct.pack("<I", POOL // PAGE_SIZE) + b"12"])
def test_an_array_that_is_cut_off(rig: Rig, data: bytes) -> None:
    rig.array(data)
    rig.loop.settle()
    assert len(rig.queues[INFLATE].take()) == 1
    assert rig.kept(POOL, PAGE_SIZE) == [len(data) < 4]
    assert rig.faults.counts == {"balloon: not an array of page numbers": 1}


def test_an_array_in_pieces(rig: Rig) -> None:
    pages = struct.pack("<3I", *(POOL // PAGE_SIZE + page for page in range(3)))
    rig.memory.write(ARRAY, pages[:5])
    rig.memory.write(ARRAY + 0x1000, pages[5:])
    rig.offer(INFLATE, [(ARRAY, 5), (ARRAY + 0x1000, 7)], [])
    rig.loop.settle()
    assert rig.kept(POOL, 4 * PAGE_SIZE) == [False, False, False, True]


def test_an_array_of_gigabytes_is_not_read_to_its_end(rig: Rig) -> None:
    size = MEMORY_SIZE - ARRAY
    assert 100 * size < MAX_CHAIN_BYTES
    rig.memory.fill(ARRAY, 4 * MAX_PAGES)
    rig.memory.write_u32(ARRAY + 4 * MAX_PAGES, POOL // PAGE_SIZE)
    rig.offer(INFLATE, [(ARRAY, size)] * 100, [])
    rig.loop.settle()
    assert len(rig.queues[INFLATE].take()) == 1
    assert all(rig.kept(POOL, PAGE_SIZE))
    assert rig.faults.counts["balloon: not an array of page numbers"] == 1


@pytest.mark.parametrize("index", [INFLATE, DEFLATE])
def test_a_buffer_to_write_to_names_no_page(rig: Rig, index: int) -> None:
    rig.offer(index, [], [(POOL, PAGE_SIZE)])
    rig.loop.settle()
    assert len(rig.queues[index].take()) == 1
    assert all(rig.kept(POOL, PAGE_SIZE))


def test_many_pages_are_work_for_several_turns(rig: Rig) -> None:
    """And the driver hears of them when all is done."""
    first, turn = POOL // PAGE_SIZE, TURN // MIN_COST
    pages = range(first, first + 6 * turn, 2)
    rig.memory.fill(POOL, MEMORY_SIZE - POOL, 0xAA)
    rig.array(struct.pack(f"<{len(pages)}I", *pages))
    turns = 0
    while not (used := rig.queues[INFLATE].take()):
        rig.loop.turn()
        turns += 1
        assert turns < 10
    assert turns > 2
    assert len(used) == 1
    assert rig.kept(POOL, 6 * turn * PAGE_SIZE) == [False, True] * 3 * turn


def test_a_pause_finishes_what_has_begun(rig: Rig) -> None:
    turn = TURN // MIN_COST
    pages = [POOL // PAGE_SIZE + 2 * page for page in range(2 * turn)]
    rig.memory.fill(POOL, MEMORY_SIZE - POOL, 0xAA)
    rig.array(struct.pack(f"<{len(pages)}I", *pages))
    rig.loop.turn()
    assert rig.queues[INFLATE].take() == []
    rig.device.pause()
    assert len(rig.queues[INFLATE].take()) == 1
    rig.array(struct.pack("<I", POOL // PAGE_SIZE + 1))
    rig.loop.settle()
    assert rig.kept(POOL, 4 * turn * PAGE_SIZE) == [False, True] * 2 * turn
    rig.device.resume()
    rig.loop.settle()
    assert len(rig.queues[INFLATE].take()) == 1
    assert rig.kept(POOL, 2 * PAGE_SIZE) == [False, False]


def test_a_reset_drops_what_has_begun(rig: Rig) -> None:
    turn = TURN // MIN_COST
    pages = [POOL // PAGE_SIZE + 2 * page for page in range(2 * turn)]
    rig.array(struct.pack(f"<{len(pages)}I", *pages))
    rig.loop.turn()
    rig.driver.reset()
    before = blocks(rig.memory)
    rig.start(INFLATE, DEFLATE)
    assert blocks(rig.memory) >= before
    rig.inflate(POOL // PAGE_SIZE)


def test_a_host_that_keeps_the_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(host, "fallocate", refuse)
    rig.inflate(POOL // PAGE_SIZE)
    assert rig.faults.lines == ["host: balloon: memory stays allocated: not here"]


@given(pages=st.lists(st.integers(0, (1 << 32) - 1) | st.integers(0, 20)))
def test_pages_make_ranges(pages: list[int]) -> None:
    ranges = coalesce(pages)
    assert ranges == sorted(ranges)
    named = set()
    for gpa, length in ranges:
        assert gpa % PAGE_SIZE == length % PAGE_SIZE == 0
        assert length > 0
        assert gpa + length not in [other for other, _ in ranges], "they could be one"
        if length <= 64 * PAGE_SIZE:
            named |= {(gpa + at) // PAGE_SIZE for at in range(0, length, PAGE_SIZE)}
    assert named == set(pages)


MIXED = Rig()


@given(pages=st.lists(st.integers(0x800, 0x1010) | st.integers(0, (1 << 32) - 1), max_size=300))
def test_any_array_takes_the_pages_that_it_names(pages: list[int]) -> None:
    pool = MEMORY_SIZE - POOL
    pages = [page for page in pages if page >= 0x800]  # below are the rings
    MIXED.memory.fill(POOL, pool, 0xAA)
    MIXED.inflate(*(pages or [POOL // PAGE_SIZE]))
    kept = MIXED.kept(POOL, pool)
    lent = {page * PAGE_SIZE for page in pages or [POOL // PAGE_SIZE]}
    assert kept == [gpa not in lent for gpa in range(POOL, MEMORY_SIZE, PAGE_SIZE)]


# The target.


def test_the_driver_is_asked_for_memory() -> None:
    rig = Rig(target=3 * MIB)
    assert rig.driver.config(0, 4) == 3 * MIB // PAGE_SIZE
    before = rig.messages(0)
    generation = rig.driver.get("config_generation")
    rig.device.set_target(5 * MIB + 1)
    assert rig.driver.config(0, 4) == 5 * MIB // PAGE_SIZE
    assert rig.device.target == 5 * MIB
    assert rig.messages(0) == before + 1
    assert rig.driver.get("config_generation") != generation
    rig.close()


@pytest.mark.parametrize("size", [-1, MEMORY_SIZE + 1])
def test_the_guest_has_no_more_than_all(rig: Rig, size: int) -> None:
    with pytest.raises(ConfigError, match="--balloon"):
        rig.device.set_target(size)
    assert rig.device.target == 0


def write_config(rig: Rig, offset: int, size: int, value: int) -> None:
    address = rig.driver.structures[4].address
    rig.pc.mmio.write(address + offset, size, value)


def test_the_driver_says_what_it_has_lent(rig: Rig) -> None:
    write_config(rig, 4, 4, 0x1234)
    assert rig.device.actual == 0x1234 * PAGE_SIZE
    assert rig.driver.config(4, 4) == 0x1234
    rig.driver.reset()
    assert rig.device.actual == 0


@given(offset=st.integers(0, 64), size=st.sampled_from([1, 2, 4]), value=st.integers(0, 1 << 32))
def test_it_says_nothing_else(offset: int, size: int, value: int) -> None:
    write_config(MIXED, offset, size, value & (1 << 8 * size) - 1)
    assert MIXED.device.target == 0
    assert len(MIXED.device.config) == 8


# Statistics.


def stats(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<HQ", tag, value) for tag, value in pairs)


@pytest.fixture
def polled() -> Iterator[Rig]:
    rig = Rig(INFLATE, DEFLATE, STATS, stats_seconds=2.0)
    yield rig
    rig.close()


def test_statistics_are_fetched_from_time_to_time(polled: Rig) -> None:
    assert polled.device.stats() == {}
    polled.array(stats((4, 1000), (5, 2000), (0, 1)), STATS)
    polled.loop.settle()
    assert polled.device.stats() == {"free_memory": 1000, "total_memory": 2000, "swap_in": 1}
    assert polled.queues[STATS].take() == []
    polled.clock.advance(2 * NS_PER_SECOND)
    assert len(polled.queues[STATS].take()) == 1
    polled.clock.advance(2 * NS_PER_SECOND)  # the driver is slow: there is nothing to return
    assert polled.queues[STATS].take() == []
    polled.array(stats((4, 900)), STATS)
    polled.loop.settle()
    assert polled.device.stats()["free_memory"] == 900
    polled.clock.advance(2 * NS_PER_SECOND)
    assert len(polled.queues[STATS].take()) == 1


def test_many_buffers_of_statistics(polled: Rig) -> None:
    """There should be one; the last counts, and the others are handed back."""
    for value in range(100):
        polled.memory.write(ARRAY + 16 * value, stats((6, value)))
        polled.queues[STATS].add([(ARRAY + 16 * value, 10)], [])
    polled.queues[STATS].kick()
    polled.loop.settle()
    assert len(polled.queues[STATS].take()) == 99
    assert polled.device.stats() == {"available_memory": 99}


def test_statistics_that_make_no_sense(polled: Rig) -> None:
    polled.array(stats((10, 1), (0xFFFF, 2), (9, (1 << 64) - 1)) + b"rest", STATS)
    polled.offer(STATS, [(0, MEMORY_SIZE)] * 50, [])
    polled.offer(STATS, [], [(POOL, 64)])
    polled.loop.settle()
    assert set(polled.device.stats()) <= set(
        "swap_in swap_out major_faults minor_faults free_memory total_memory available_memory"
        " disk_caches hugetlb_allocations hugetlb_failures".split()
    )
    assert polled.device.stats()["hugetlb_failures"] == (1 << 64) - 1
    assert not polled.driver.status & NEEDS_RESET


def test_no_statistics_at_rest(polled: Rig) -> None:
    polled.array(stats((4, 1)), STATS)
    polled.loop.settle()
    polled.device.pause()
    assert polled.clock.armed == []
    polled.clock.advance(10 * NS_PER_SECOND)
    assert polled.queues[STATS].take() == []
    polled.device.resume()
    polled.clock.advance(2 * NS_PER_SECOND)
    assert len(polled.queues[STATS].take()) == 1
    polled.array(stats((4, 1)), STATS)
    polled.loop.settle()
    polled.start(INFLATE, DEFLATE, STATS)
    assert polled.device.stats() == {}
    polled.clock.advance(2 * NS_PER_SECOND)
    assert polled.queues[STATS].take() == [], "what was there before the reset is forgotten"


def test_a_driver_without_statistics() -> None:
    rig = Rig(INFLATE, DEFLATE, stats_seconds=1.0, features=VERSION_1)
    assert rig.clock.armed == []
    rig.inflate(POOL // PAGE_SIZE)
    rig.close()


def test_what_is_saved_can_be_restored(polled: Rig) -> None:
    polled.array(stats((4, 1000)), STATS)
    write_config(polled, 4, 4, 7)
    polled.device.set_target(MIB)
    polled.loop.settle()
    polled.device.pause()
    saved = json.loads(json.dumps(polled.device.save()))
    polled.device.reset()
    polled.device.restore(saved)
    assert (polled.device.target, polled.device.actual) == (MIB, 7 * PAGE_SIZE)
    assert polled.device.stats() == {"free_memory": 1000}


# Free page reporting.


@pytest.mark.parametrize(
    ("kind", "index", "features"),
    [
        ({}, REPORTING, None),
        ({}, STATS, None),
        ({"stats_seconds": 1.0}, HINTS, None),
        ({"stats_seconds": 1.0}, REPORTING, None),
        ({"stats_seconds": 1.0}, STATS, VERSION_1 | PAGE_REPORTING),
    ],
)
def test_free_pages_go_back_wherever_the_driver_has_the_queue(
    kind: dict[str, float], index: int, features: int | None
) -> None:
    queues = {INFLATE, DEFLATE, index}
    if kind and features is None:
        queues.add(STATS)
    rig = Rig(*sorted(queues), free_page_reporting=True, features=features, **kind)
    rig.memory.fill(POOL, 4 * MIB, 0xAA)
    before = blocks(rig.memory)
    rig.offer(index, [], [(POOL, MIB), (POOL + 2 * MIB, MIB)])
    rig.loop.settle()
    assert len(rig.queues[index].take()) == 1
    assert blocks(rig.memory) == before - 2 * MIB
    assert rig.memory.read(POOL, 4 * MIB) == (bytes(MIB) + b"\xaa" * MIB) * 2
    rig.close()


@pytest.mark.parametrize(
    ("start", "length", "pages"),
    [
        (0, 1, []),
        (0, 4095, []),
        (1, 8190, []),
        (1, 8191, [1]),
        (4095, 4098, [1]),
        (1, 12288, [1, 2]),
    ],
)
def test_only_whole_pages_are_taken(start: int, length: int, pages: list[int]) -> None:
    rig = Rig(INFLATE, DEFLATE, REPORTING, free_page_reporting=True)
    rig.memory.fill(POOL, 8 * PAGE_SIZE, 0xAA)
    rig.offer(REPORTING, [], [(POOL + start, length)])
    rig.loop.settle()
    assert len(rig.queues[REPORTING].take()) == 1
    kept = rig.kept(POOL, 8 * PAGE_SIZE)
    assert [page for page in range(8) if not kept[page]] == pages
    rig.close()


def test_nothing_is_taken_that_is_not_reported() -> None:
    """A readable buffer isn't, nor is one on a queue that wasn't agreed on."""
    rig = Rig(INFLATE, DEFLATE, HINTS, REPORTING, free_page_reporting=True)
    rig.memory.fill(POOL, PAGE_SIZE, 0xAA)
    rig.offer(REPORTING, [(POOL, PAGE_SIZE)], [])
    rig.offer(HINTS, [], [(POOL, PAGE_SIZE)])
    rig.loop.settle()
    assert all(rig.kept(POOL, PAGE_SIZE))
    rig.start(INFLATE, DEFLATE, REPORTING, features=VERSION_1)
    rig.offer(REPORTING, [], [(POOL, PAGE_SIZE)])
    rig.loop.settle()
    assert all(rig.kept(POOL, PAGE_SIZE))
    rig.close()


def test_free_gigabytes_are_work_for_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(INFLATE, DEFLATE, REPORTING, memory=GuestMemory(4 * GIB), free_page_reporting=True)
    pieces: list[tuple[int, int]] = []
    monkeypatch.setattr(rig.memory, "discard", lambda gpa, length: pieces.append((gpa, length)))
    rig.offer(REPORTING, [], [(GIB, GIB), (MMIO_HOLE_END, 64 * KIB)])
    turns = 0
    while not rig.queues[REPORTING].take():
        done = len(pieces)
        rig.loop.turn()
        assert sum(length for _, length in pieces[done:]) <= TURN
        turns += 1
        assert turns < 100
    assert sum(length for _, length in pieces) == GIB + 64 * KIB
    assert len(set(pieces)) == len(pieces)
    rig.close()
