"""What a hostile driver can do to any device type, behind either transport: broken chains on every
queue, scribbled rings, registers at the wrong time, resets in the middle, storms of doorbells.

A device may ask for a reset, say so once, and then has to be as good as new after it."""

from __future__ import annotations

import gc
import os
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.fake_tap import HEADER, OUR_MAC, FakeTap, frame
from unit.fakes import FakeClock, FakeReactor, RecordingFaults
from unit.test_virtio_console import FakeBackend
from unit.virtio_driver import (
    COMMON,
    COMMON_CFG,
    EVENT_IDX,
    INDIRECT,
    INDIRECT_DESC,
    MEMORY_SIZE,
    MMIO_CONFIG,
    NEEDS_RESET,
    NEXT,
    TIMEOUT,
    WRITE,
    DriverQueue,
    MmioDriver,
    Pc,
)

from pyvmm.backends.disk import DiskImage
from pyvmm.backends.unix_socket import UnixListener
from pyvmm.memory import GuestMemory
from pyvmm.virtio.balloon import BalloonDevice
from pyvmm.virtio.blk import BlockDevice
from pyvmm.virtio.console import ConsoleDevice
from pyvmm.virtio.device import DriverSession, VirtioDevice
from pyvmm.virtio.net import NetDevice
from pyvmm.virtio.queue import Virtqueue
from pyvmm.virtio.rng import EntropyDevice
from pyvmm.virtio.vsock import VsockDevice

DATA = 0x80_0000
"""Where the driver's buffers are; half of them hold something that makes sense to the device."""
TABLE = 0x90_0000
"""Indirect descriptors."""
MANY = 2000
"""Looks at a queue in one turn of the I/O thread, of which no device has a reason to need more."""

Malformed = Callable[[DriverQueue], None]


class Rig:
    """A PC with one device, its driver, and the world outside.

    ``queues`` are those that the device serves. :meth:`provoke` has it look at one on whose
    buffers it waits for something to put in; :meth:`works` sends something through it.
    """

    queues: tuple[int, ...] = (0,)
    request = b""
    """What a driver might say to the device."""

    def __init__(self, transport: str, directory: Path) -> None:
        self.directory = directory
        self.loop, self.clock, self.faults = FakeReactor(), FakeClock(), RecordingFaults()
        self.errors: list[BaseException] = []
        self.idle = threading.Event()
        self.looks = 0
        self.memory = GuestMemory(MEMORY_SIZE)
        self.device = self.make()
        self.pc = Pc(self.device, transport=transport, doorbells=True, memory=self.memory)
        self.session = self.pc.transports[0].session
        self.driver = self.pc.driver()
        self.start()

    def make(self) -> VirtioDevice:
        raise NotImplementedError

    def start(self, without: int = 0, places: tuple[int, int, int] | None = None) -> None:
        """Reset, and set up every queue, with all features but ``without``; its rings at
        ``places`` in memory of the queue's own, if any are given."""
        driver = self.driver
        driver._free = 0x10_0000
        driver.negotiate(driver.offered() & ~without)
        driver.enable_msix(2)
        driver.set("config_msix_vector", 0)
        self.rings = [
            driver.add_queue(index, vector=1, places=places)
            for index in range(len(self.device.queue_sizes))
        ]
        self.memory.fill(DATA, 0x1_0000)
        self.memory.write(DATA, self.request)
        driver.run()
        self.settle()

    def config_address(self) -> int:
        """Of the device's configuration space, or what is there if it has none."""
        if isinstance(self.driver, MmioDriver):
            return self.driver.base + MMIO_CONFIG
        return self.driver.structures[COMMON_CFG].address + 0x2000

    def settle(self) -> None:
        """Let the device do what it has to, but not for ever."""
        for _ in range(50):
            self.looks = 0
            if not self.loop.turn():
                break

    def provoke(self, index: int) -> None:
        pass

    def works(self) -> None:
        raise NotImplementedError

    def sent(self, index: int, data: bytes, room: int = 0) -> tuple[int, bytes]:
        """One chain, which comes back: how much was written, and that."""
        ring = self.rings[index]
        self.memory.write(DATA, data)
        readable = [(DATA, len(data))] if data else []
        ring.add(readable, [(DATA + 0x2000, room)] if room else [])
        ring.kick()
        self.settle()
        ((_, written),) = ring.wait()
        return written, self.memory.read(DATA + 0x2000, written)

    def close(self) -> None:
        self.pc.close()
        assert self.errors == []


class ThreadedRig(Rig):
    """For a device with threads of its own."""

    def settle(self) -> None:
        """Wait until the device sleeps, or has given up, or had time enough."""
        if self.session.running and not self.session.status & NEEDS_RESET:
            self.idle.clear()
            os.eventfd_write(self.device.doorbells[0], 1)
            self.idle.wait(0.02)


class Blk(ThreadedRig):
    request = struct.pack("<IIQ", 0, 0, 3)

    def make(self) -> VirtioDevice:
        path = self.directory / "disk.raw"
        path.write_bytes(bytes(64 << 10))
        self.image = DiskImage.open(str(path))
        return BlockDevice(self.image, "spindle", on_error=self.errors.append)

    def works(self) -> None:
        written, data = self.sent(0, struct.pack("<IIQ", 8, 0, 0), 21)
        assert (written, data) == (21, b"spindle".ljust(21, b"\0"))

    def close(self) -> None:
        super().close()
        self.image.close()


class Net(ThreadedRig):
    queues = (0, 1, 2)
    request = HEADER + frame()

    def make(self) -> VirtioDevice:
        self.tap = FakeTap()
        return NetDevice(self.tap, OUR_MAC, self.faults, on_error=self.errors.append)

    def drain(self) -> None:
        wire = self.tap.wires[0]
        wire.setblocking(False)
        try:
            while wire.recv(1 << 17):
                pass
        except BlockingIOError:
            wire.settimeout(TIMEOUT)

    def settle(self) -> None:
        super().settle()
        self.drain()

    def provoke(self, index: int) -> None:
        try:
            self.tap.wires[0].send(HEADER + frame(), socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass  # it has enough that it doesn't fetch

    def works(self) -> None:
        self.drain()
        self.memory.write(DATA, HEADER + frame())
        self.rings[1].add([(DATA, len(HEADER + frame()))], [])
        self.rings[1].kick()
        assert self.tap.wires[0].recv(1 << 17) == HEADER + frame()

    def close(self) -> None:
        super().close()
        self.tap.close()


class Rng(Rig):
    def make(self) -> VirtioDevice:
        source = os.open("/dev/zero", os.O_RDONLY)
        return EntropyDevice(self.loop, self.clock, source, 1 << 30)

    def works(self) -> None:
        assert self.sent(0, b"", 16) == (16, bytes(16))


class Balloon(Rig):
    queues = (0, 1, 2, 4)
    request = struct.pack("<4I", 0xA00, 0xA01, 0xA03, 0xFFFF_FFFF)

    def make(self) -> VirtioDevice:
        return BalloonDevice(
            *(self.loop, self.clock, self.memory, self.faults),
            stats_seconds=1.0,
            free_page_reporting=True,
        )

    def works(self) -> None:
        assert self.sent(0, self.request)[0] == 0
        self.clock.advance(1_000_000_000)


class Console(Rig):
    queues = (0, 1, 2, 3, 4, 5)
    request = struct.pack("<IHH", 0, 0, 1)

    def make(self) -> VirtioDevice:
        self.backends = [FakeBackend(), FakeBackend()]
        return ConsoleDevice(
            *(self.loop, self.clock, self.faults, self.backends[0]),
            [("port", self.backends[1])],
            (80, 25),
        )

    def provoke(self, index: int) -> None:
        control = self.rings[3]
        message = {0: (0, 6, 1), 2: (0, 0, 1), 4: (1, 6, 1)}.get(index)
        if message is not None and control._free:
            self.memory.write(DATA + 0x3000, struct.pack("<IHH", *message))
            control.add([(DATA + 0x3000, 8)], [])
            control.kick()
            self.settle()
        for backend in self.backends:
            backend.waiting = b""
            backend.offer(b"input")

    def works(self) -> None:
        del self.backends[0].output[:]
        self.sent(1, b"output")
        assert self.backends[0].output == b"output"


class Vsock(Rig):
    queues = (0, 1, 2)
    packet = struct.Struct("<QQIIIHHIII")
    request = packet.pack(3, 2, 1000, 2000, 0, 1, 5, 0, 4096, 0)

    def make(self) -> VirtioDevice:
        listener = UnixListener(str(self.directory / "v"), "--vsock")
        return VsockDevice(self.loop, self.clock, self.faults, 3, listener)

    def provoke(self, index: int) -> None:
        if index == 0 and self.rings[1]._free:
            self.memory.write(DATA + 0x3000, self.request)
            self.rings[1].add([(DATA + 0x3000, len(self.request))], [])
            self.rings[1].kick()
            self.settle()
        elif index == 2:
            self.device.restore({})
            self.rings[2].kick()

    def works(self) -> None:
        self.rings[0].add([], [(DATA + 0x2000, 4096)])
        self.sent(1, self.request)
        assert self.memory.read(DATA + 0x2000 + 30, 2) == b"\3\0"  # RST
        self.rings[0].take()


RIGS: dict[str, type[Rig]] = {
    "blk": Blk,
    "net": Net,
    "rng": Rng,
    "balloon": Balloon,
    "console": Console,
    "vsock": Vsock,
}
QUEUES = [(name, index) for name, rig in RIGS.items() for index in rig.queues]

Rigs = Callable[[str, str], Rig]


@pytest.fixture
def rigs(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Rigs]:
    """Makes rigs, one at a time: the one before is closed."""
    made: list[Rig] = []

    def make(name: str, transport: str) -> Rig:
        close()
        made.append(RIGS[name](transport, tmp_path_factory.mktemp("rig")))
        return made[0]

    def close() -> None:
        while made:
            made.pop().close()

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def look(*arguments: Any) -> Any:
            result = method(*arguments)
            if made:
                made[0].looks += 1
                assert isinstance(made[0], ThreadedRig) or made[0].looks < MANY, "no end"
                if result is False or method is fail:
                    made[0].idle.set()
            return result

        return look

    fail = DriverSession.fail
    for method in (Virtqueue.pop_batch, Virtqueue.pop_buffers, Virtqueue.enable_notifications):
        monkeypatch.setattr(Virtqueue, method.__name__, counted(method))
    monkeypatch.setattr(DriverSession, "fail", counted(fail))
    yield make
    close()


# Chains that break the rules.


def links(ring: DriverQueue, table: int, count: int, last: int) -> None:
    for index in range(count):
        ring.put(table, index, DATA, 16, NEXT, index + 1)
    ring.put(table, count, DATA, 16, NEXT, last)


def single(address: int, length: int, flags: int = 0, following: int = 0) -> Malformed:
    def put(ring: DriverQueue) -> None:
        ring.put(ring.descriptors, 0, address, length, flags, following)
        ring.offer(0)

    return put


def loop(ring: DriverQueue) -> None:
    links(ring, ring.descriptors, 3, 1)
    ring.offer(0)


def every_descriptor(ring: DriverQueue) -> None:
    links(ring, ring.descriptors, ring.size - 1, 0)
    ring.offer(0)


def longer_than_the_queue(ring: DriverQueue) -> None:
    links(ring, TABLE, ring.size + 1, ring.size + 2)
    single(TABLE, 16 * (ring.size + 3), INDIRECT)(ring)


def indirect(table: list[tuple[int, int, int, int]], length: int = 0, more: int = 0) -> Malformed:
    def put(ring: DriverQueue) -> None:
        for index, descriptor in enumerate(table):
            ring.put(TABLE, index, *descriptor)
        single(TABLE, length or 16 * len(table), INDIRECT | more, 1)(ring)

    return put


def writable_first(ring: DriverQueue) -> None:
    ring.put(ring.descriptors, 1, DATA, 16, 0, 0)
    single(DATA, 16, NEXT | WRITE, 1)(ring)


def empty_last(ring: DriverQueue) -> None:
    ring.put(ring.descriptors, 1, DATA, 0, 0, 0)
    single(DATA, 16, NEXT, 1)(ring)


def head_outside(ring: DriverQueue) -> None:
    ring.offer(ring.size)


def index_jumps(ring: DriverQueue) -> None:
    ring.memory.write_u16(ring.avail + 2, ring.avail_index + ring.size + 1 & 0xFFFF)


def index_goes_back(ring: DriverQueue) -> None:
    ring.memory.write_u16(ring.avail + 2, ring.avail_index - 1 & 0xFFFF)


GOOD = (DATA, 16, 0, 0)
MALFORMED: dict[str, Malformed] = {
    "loop": loop,
    "loop of all": every_descriptor,
    "longer than the queue": longer_than_the_queue,
    "behind RAM": single(MEMORY_SIZE, 16),
    "writable behind RAM": single(MEMORY_SIZE, 16, WRITE),
    "across the end of RAM": single(MEMORY_SIZE - 8, 16),
    "writable across the end of RAM": single(MEMORY_SIZE - 8, 16, WRITE),
    "address wraps": single(2**64 - 8, 16, WRITE),
    "empty": single(DATA, 0),
    "empty and writable": single(DATA, 0, WRITE),
    "empty last": empty_last,
    "next outside": single(DATA, 16, NEXT, 0xFFFF),
    "nested tables": indirect([(TABLE + 16, 16, INDIRECT, 0), GOOD]),
    "odd table": indirect([GOOD, GOOD], 24),
    "empty table": single(TABLE, 0, INDIRECT),
    "table that goes on": indirect([GOOD], 16, NEXT),
    "table behind RAM": single(MEMORY_SIZE, 32, INDIRECT),
    "table across the end of RAM": single(MEMORY_SIZE - 16, 32, INDIRECT),
    "loop in a table": indirect([(DATA, 16, NEXT, 1), (DATA, 16, NEXT, 0)]),
    "next outside the table": indirect([(DATA, 16, NEXT, 1)]),
    "writable first": writable_first,
    "head outside": head_outside,
    "index jumps": index_jumps,
    "index goes back": index_goes_back,
}


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize(("name", "index"), QUEUES)
def test_a_broken_chain_needs_a_reset(rigs: Rigs, name: str, index: int, transport: str) -> None:
    rig = rigs(name, transport)
    for malformed in MALFORMED.values():
        rig.start()
        while not rig.pc.msi.sent.empty():
            rig.pc.msi.sent.get()
        ring = rig.rings[index]
        malformed(ring)
        ring.kick()
        rig.provoke(index)
        rig.settle()
        while not rig.driver.wait_for_interrupt():
            pass
        assert rig.driver.status & NEEDS_RESET
        assert ring.take() == []
        ring.kick()
        rig.settle()
    assert [line[:27] for line in rig.pc.faults.lines] == ["guest: virtio: broken queue"]
    assert rig.pc.faults.counts == {"virtio: broken queue": len(MALFORMED)}
    rig.start()
    rig.works()


# Rings and registers that are scribbled over.

ADDRESSES = st.sampled_from(
    [0, DATA, DATA + 8, TABLE, 0x10_0000, 0x10_1000, 0x10_1208, MEMORY_SIZE - 8, 2**64 - 16]
)
LENGTHS = st.sampled_from([0, 1, 8, 12, 16, 26, 44, 512, 4096, 0x10_0000, 0xFFFF_FFFF])
DESCRIPTORS = st.tuples(
    ADDRESSES, LENGTHS, st.sampled_from([0, 0, 1, 2, 2, 3, 4, 5, 7]), st.integers(0, 4)
)
REGISTERS = [name for name in COMMON if name not in ("device_feature", "num_queues")]
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("offer"), st.integers(0, 5), st.lists(DESCRIPTORS, min_size=1, max_size=4)
        ),
        st.tuples(st.just("jump"), st.integers(0, 5), st.integers(0, 0xFFFF)),
        st.tuples(st.just("full"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("scribble"), st.integers(0, 0x3000), st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("say"), st.integers(0, 64), st.binary(max_size=16)),
        st.tuples(
            st.just("register"),
            st.sampled_from(REGISTERS),
            st.sampled_from([0, 1, 2, 3, 15, 0x10_0000, 2**64 - 16]),
        ),
        st.tuples(st.just("config"), st.integers(0, 64), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("world"), st.integers(0, 5), st.just(0)),
    ),
    min_size=1,
    max_size=12,
)


def step(rig: Rig, kind: str, where: Any, what: Any) -> None:
    if kind == "register":
        rig.driver.set(where, what)
    elif kind == "config":
        rig.pc.mmio.write(rig.config_address() + where, 4, what)
    elif kind == "scribble":
        rig.memory.write(0x10_0000 + where, what)
    elif kind == "say":
        rig.memory.write(DATA + where, what)
    elif kind == "world":
        rig.provoke(where)
        rig.clock.advance(1_000_000_000)
    else:
        ring = rig.rings[where % len(rig.rings)]
        if kind == "offer":
            for index, descriptor in enumerate(what):
                ring.put(ring.descriptors, index, *descriptor)
                ring.put(TABLE, index, *descriptor)
            ring.offer(0)
        elif kind == "full":
            for _ in range(ring.size):
                ring.offer(0)
        else:
            ring.memory.write_u16(ring.avail + 2, what)
        ring.kick()
        rig.settle()


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("name", RIGS)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, without=st.sampled_from([0, EVENT_IDX, INDIRECT_DESC]))
def test_anything_goes(
    rigs: Rigs, name: str, transport: str, steps: list[tuple[str, Any, Any]], without: int
) -> None:
    """Nothing escapes, no turn is endless, nothing is said twice; after a reset all is well."""
    rig = rigs(name, transport)
    rig.start(without)
    for each in steps:
        step(rig, *each)
    rig.settle()
    for faults in (rig.faults, rig.pc.faults):
        assert len(faults.lines) <= len(faults.counts)
    rig.start()
    rig.works()


LAYOUTS = {
    "all in one place": (0, 0, 0),
    "used flags over the avail index": (0, 0x1002, 0x1004),
    "used index over the avail index": (0, 0x1004, 0x1004),
    "used elements over descriptors": (0x1000, 0x3000, 0x1000),
    "used index over the used event": (0, 0x1000, 0x1000),
    "avail ring over descriptors": (0x1000, 0x1000, 0x3000),
}


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("name", RIGS)
def test_rings_in_each_others_place(rigs: Rigs, name: str, transport: str) -> None:
    """Then the device talks to itself; a reset ends it."""
    rig = rigs(name, transport)
    for without in (0, EVENT_IDX):
        for places in LAYOUTS.values():
            rig.start(without, places)
            for value in (1, 5):
                for ring in rig.rings:
                    if receives(rig, ring.index):
                        single(DATA, 64, WRITE)(ring)
                    else:
                        ring.put(ring.descriptors, 1, DATA + 64, 64, WRITE, 0)
                        single(DATA, 16, NEXT, 1)(ring)
                    ring.memory.write_u16(ring.avail + 2, value)
                    ring.kick()
                    rig.provoke(ring.index)
                    rig.settle()
            rig.start()
            rig.works()


# In the middle of it, and all the time.


def endless(rig: Rig) -> None:
    """Every queue full, though none of it has come back: as much as the device can be given."""
    for ring in rig.rings:
        ring.put(ring.descriptors, 0, DATA, 512, NEXT, 1)
        ring.put(ring.descriptors, 1, DATA + 0x4000, 4096, WRITE, 0)
        ring.put(ring.descriptors, 2, DATA + 0x4000, 4096, WRITE, 0)
        for _ in range(ring.size):
            ring.offer(2 if receives(rig, ring.index) else 0)
        ring.kick()


def receives(rig: Rig, index: int) -> bool:
    return isinstance(rig, Rng) or (index in (0, 2, 4) and not isinstance(rig, Blk | Balloon))


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate())


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("name", RIGS)
def test_a_reset_in_the_middle(rigs: Rigs, name: str, transport: str) -> None:
    """When it has returned nothing touches guest memory any more, and nothing is left of it."""
    rig = rigs(name, transport)
    before = threads(), descriptors()
    for _ in range(5):
        rig.start()
        rig.provoke(rig.queues[0])
        endless(rig)
        rig.driver.reset()
        rig.memory.fill(0x10_0000, 0x80_0000, 0xEE)
        rig.settle()
        rig.clock.advance(1_000_000_000)
        assert rig.memory.read(0x10_0000, 0x80_0000).count(0xEE) == 0x80_0000
    rig.start()
    rig.works()
    assert (threads(), descriptors()) == before
    assert rig.pc.faults.lines == []


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("name", RIGS)
def test_a_storm(rigs: Rigs, name: str, transport: str) -> None:
    """Doorbells without anything to do, queues that are full whatever comes back, broken ones, and
    drivers that come and go: nothing piles up."""
    rig = rigs(name, transport)

    def storm() -> None:
        for _ in range(2):
            rig.start()
            for _ in range(100):
                for ring in rig.rings:
                    ring.kick()
            for _ in range(4):
                endless(rig)
                rig.settle()
            head_outside(rig.rings[rig.queues[-1]])
            rig.provoke(rig.queues[-1])
            rig.settle()
        while not rig.pc.msi.sent.empty():
            rig.pc.msi.sent.get()
        for vector in rig.pc.msi.vectors:
            vector.fired.clear()
            vector.routes.clear()
        for changes in rig.pc.mmio_changes:
            while not changes.empty():
                changes.get()
        if isinstance(rig, Console):
            for backend in rig.backends:
                backend.output.clear()

    before = threads(), descriptors()
    storm()
    rig.driver.reset()
    tracemalloc.start()
    storm()
    rig.driver.reset()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1 << 15
    assert peak < 1 << 20
    rig.start()
    rig.works()
    assert (threads(), descriptors()) == before


@pytest.mark.parametrize(("name", "index"), QUEUES)
def test_a_queue_that_is_taken_back(rigs: Rigs, name: str, index: int) -> None:
    """Only virtio-mmio has it. The device leaves it alone, whatever it had got from it, and what
    is left doesn't make it stumble."""
    rig = rigs(name, "mmio")
    ring = rig.rings[index]
    ring.add([] if receives(rig, index) else [(DATA, 16)], [(DATA + 0x4000, 4096)])
    ring.kick()
    rig.settle()
    rig.driver.set("queue_select", index)
    rig.driver.set("queue_enable", 0)
    end = ring.used + 6 + 8 * ring.size
    rig.memory.write_u16(ring.avail + 2, 99)
    rig.memory.fill(ring.used, end - ring.used, 0xEE)
    for other in rig.queues:
        rig.provoke(other)
    ring.kick()
    rig.settle()
    rig.clock.advance(1_000_000_000)
    assert rig.memory.read(ring.used, end - ring.used) == b"\xee" * (end - ring.used)
    assert rig.pc.faults.lines == []
    rig.start()
    rig.works()
