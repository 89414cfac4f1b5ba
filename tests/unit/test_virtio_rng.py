"""virtio-rng: what it hands out, and how fast at most."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import FakeClock, FakeReactor
from unit.virtio_driver import EVENT_IDX, NEEDS_RESET, VERSION_1, DriverQueue, Pc, VirtioDriver

from pyvmm.eventloop import NS_PER_SECOND
from pyvmm.virtio.rng import MAX_REQUEST, QUANTUM, EntropyDevice, TokenBucket

KIB = 1 << 10
RATE = 100 * KIB
SOURCE = bytes(range(1, 251)) * 8000
"""What is "random" here: no zero in it."""
BUFFER = 0x80_0000


class Rig:
    """A PC with an entropy device, and its driver."""

    def __init__(self, rate: int = RATE, features: int | None = None) -> None:
        self.clock = FakeClock()
        self.loop = FakeReactor()
        self.source = os.memfd_create("source")
        os.write(self.source, SOURCE)
        os.lseek(self.source, 0, os.SEEK_SET)
        self.device = EntropyDevice(self.loop, self.clock, self.source, rate)
        self.pc = Pc(self.device)
        self.driver = VirtioDriver(self.pc)
        self.queue: DriverQueue = self.driver.start(features)
        self.loop.settle()

    def ask(self, *buffers: tuple[int, int]) -> list[tuple[int, int]]:
        """One request; what came back."""
        self.queue.add([], buffers)
        self.queue.kick()
        self.loop.settle()
        return self.queue.take()

    def drain(self) -> int:
        """Ask until nothing comes any more: how many bytes that were. One request waits then."""
        total = 0
        while used := self.ask((BUFFER, MAX_REQUEST)):
            total += sum(written for _, written in used)
        return total


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.pc.close()


def test_a_driver_finds_an_entropy_device(rig: Rig) -> None:
    assert rig.driver.function.read(2, 2) == 0x1044
    assert rig.driver.offered() & 0xFF_FFFF == 0
    assert rig.driver.get("num_queues") == 1


def test_buffers_are_filled_in_order(rig: Rig) -> None:
    assert rig.ask((BUFFER, 64))[0][1] == 64
    assert rig.pc.memory.read(BUFFER, 65) == SOURCE[:64] + b"\0"
    assert rig.ask((BUFFER, 3), (BUFFER + 0x1000, 5))[0][1] == 8
    assert rig.pc.memory.read(BUFFER, 3) == SOURCE[64:67]
    assert rig.pc.memory.read(BUFFER + 0x1000, 6) == SOURCE[67:72] + b"\0"


def test_one_request_is_a_small_piece_of_work(rig: Rig) -> None:
    size = rig.pc.memory.size - BUFFER
    rig.pc.memory.fill(BUFFER, 2 * MAX_REQUEST)
    assert rig.ask((BUFFER, size), (BUFFER, size))[0][1] == MAX_REQUEST
    assert rig.pc.memory.read(BUFFER + MAX_REQUEST, MAX_REQUEST) == bytes(MAX_REQUEST)


def test_other_devices_get_their_turn() -> None:
    rig = Rig(rate=1 << 30)
    for _ in range(rig.queue.size):
        rig.queue.add([], [(BUFFER, MAX_REQUEST)])
    rig.queue.kick()
    rig.loop.turn()
    first = len(rig.queue.take())
    assert 0 < first < rig.queue.size
    rig.loop.settle()
    assert first + len(rig.queue.take()) == rig.queue.size
    rig.pc.close()


@pytest.mark.parametrize("features", [None, VERSION_1])
def test_a_guest_that_asks_for_more_than_its_share_waits(features: int | None) -> None:
    """A second's worth at once, then what the rate allows; no request is lost."""
    rig = Rig(features=features)
    burst = rig.drain()
    assert RATE - QUANTUM < burst <= RATE
    total = 0
    for _ in range(1000):
        rig.clock.advance(10_000_000)
        rig.loop.settle()
        if used := rig.queue.take():
            total += sum(written for _, written in used) + rig.drain()
    assert abs(total - 10 * RATE) < RATE // 20
    rig.pc.close()


def test_the_wait_ends_by_itself(rig: Rig) -> None:
    rig.drain()
    assert rig.queue.take() == []
    assert len(rig.clock.armed) == 1
    rig.clock.advance(NS_PER_SECOND // 100)
    rig.loop.settle()
    ((_, written),) = rig.queue.take()
    assert QUANTUM <= written <= RATE // 100 + QUANTUM
    rig.clock.advance(NS_PER_SECOND)  # what isn't used adds up, to a second's worth
    assert RATE - QUANTUM < rig.drain() <= RATE


def test_who_waits_is_woken_now_and_then(rig: Rig) -> None:
    rig.drain()
    (timer,) = rig.clock.armed
    for _ in range(1000):
        rig.clock.advance(NS_PER_SECOND // 1000)
        rig.loop.settle()
        if rig.queue.take():
            rig.drain()
    assert 50 < timer.expiries <= 100


def test_the_flag_for_who_need_not_ring() -> None:
    rig = Rig(features=VERSION_1)
    assert rig.pc.memory.read_u16(rig.queue.used) == 0
    rig.drain()
    assert rig.pc.memory.read_u16(rig.queue.used) == 1
    rig.clock.advance(2 * NS_PER_SECOND)
    rig.loop.settle()
    assert rig.pc.memory.read_u16(rig.queue.used) == 0
    rig.pc.close()


def test_who_waits_need_not_ring(rig: Rig) -> None:
    rig.drain()
    event = rig.queue.avail_event
    rig.queue.add([], [(BUFFER, 64)])
    assert rig.driver.features & EVENT_IDX
    assert event != (rig.queue.avail_index - 1) & 0xFFFF
    rig.clock.advance(NS_PER_SECOND)
    rig.loop.settle()
    assert len(rig.queue.take()) == 2


@pytest.mark.parametrize("buffers", [[], [(BUFFER, 64)]])
def test_a_request_without_a_buffer_breaks_the_queue(
    rig: Rig, buffers: list[tuple[int, int]]
) -> None:
    rig.queue.add([(BUFFER, 64)], buffers)
    rig.queue.kick()
    rig.loop.settle()
    assert bool(rig.driver.status & NEEDS_RESET) == (not buffers)
    if not buffers:
        rig.queue = rig.driver.start()
        rig.loop.settle()
        assert rig.ask((BUFFER, 64))[0][1] == 64


def test_at_rest_nothing_is_handed_out(rig: Rig) -> None:
    rig.drain()
    rig.device.pause()
    assert rig.clock.armed == []
    rig.clock.advance(NS_PER_SECOND)
    rig.loop.settle()
    assert rig.queue.take() == []
    rig.device.resume()
    rig.loop.settle()
    assert len(rig.queue.take()) == 1


def test_a_timer_that_comes_late_rings_nobody() -> None:
    rig = Rig()
    rig.drain()
    (timer,) = rig.clock.armed
    rig.driver.reset()
    timer.deadline = rig.clock.now  # it had expired already when it was cancelled
    timer.expire()
    rig.loop.settle()
    rig.pc.close()
    timer.deadline = rig.clock.now
    timer.expire()


def test_the_source_is_closed_once() -> None:
    rig = Rig()
    rig.device.close()
    rig.pc.close()
    with pytest.raises(OSError):
        os.fstat(rig.source)


@given(
    rate=st.integers(QUANTUM, 1 << 30),
    steps=st.lists(st.tuples(st.integers(0, 10 * NS_PER_SECOND), st.integers(0, 1 << 31))),
)
def test_a_bucket_gives_what_its_rate_allows(rate: int, steps: list[tuple[int, int]]) -> None:
    clock = FakeClock()
    start = clock.now
    bucket = TokenBucket(clock, rate)
    taken = 0
    for pause, wanted in steps:
        clock.now += pause
        assert 0 <= bucket.level <= rate
        amount = min(wanted, bucket.level)
        bucket.take(amount)
        taken += amount
        assert taken <= rate + (clock.now - start) * rate // NS_PER_SECOND
    if bucket.level < rate:
        wanted = bucket.level + 1
        ready = bucket.ready_ns(wanted)
        clock.now = ready - 1
        assert bucket.level < wanted
        clock.now = ready
        assert bucket.level >= wanted


def test_a_slow_bucket_loses_no_fraction() -> None:
    """Looked at often, it fills as fast as if it were left alone."""
    clock = FakeClock()
    bucket = TokenBucket(clock, 1000)
    bucket.take(1000)
    for _ in range(3000):
        clock.now += NS_PER_SECOND // 3000
        assert bucket.level <= 1000
    assert bucket.level >= 999
