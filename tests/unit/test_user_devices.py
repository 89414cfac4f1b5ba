"""Devices that users write: loading one, where it may go, what it is called with, and whose an
error is."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import FakeClock, FakeReactor
from unit.test_board import Bench
from unit.virtio_driver import Pc

import pyvmm
from pyvmm import MmioDevice, PciDevice, PioDevice, VirtioDevice
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError, DeviceError, PyvmmError
from pyvmm.user_devices.attachment import MAX_TIMERS
from pyvmm.user_devices.interface import UserDevice
from pyvmm.user_devices.loading import instances, load
from pyvmm.user_devices.overdue import Patience
from pyvmm.user_devices.plugging import plug

SECOND = 10**9
BASE = 0x510


class Recorder(PioDevice):
    """Remembers what it is called with."""

    default_base, default_irq = BASE, 5
    length = 4
    max_size = 2

    def __init__(self, start: int = 7, **place: Any) -> None:
        super().__init__(**place)
        self.start = start
        self.blob = bytearray(b"ab")

    def reset(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.value = self.start

    def read(self, offset: int, size: int) -> int:
        self.calls.append(("read", offset, size))
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append(("write", offset, size, value))
        self.value = value


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.board.close()


def clock(bench: Bench) -> FakeClock:
    found = bench.board.wiring.clock
    assert isinstance(found, FakeClock)
    return found


def plugged(bench: Bench, device: UserDevice) -> None:
    plug([device], bench.board)


def plugged_to_fail(bench: Bench, device: UserDevice) -> list[DeviceError]:
    """As ``plugged``; the device's failures from then on."""
    failures: list[Any] = []
    bench.board.requests = bench.board.requests._replace(failed=failures.append)
    plugged(bench, device)
    return failures


# What it is called with.


def test_reads_and_writes_arrive_with_their_offset(bench: Bench) -> None:
    device = Recorder(start=3)
    plugged(bench, device)
    assert bench.board.pio.read(BASE + 2, 2) == 3
    bench.board.pio.write(BASE + 1, 1, 0x42)
    assert device.calls == [("read", 2, 2), ("write", 1, 1, 0x42)]
    assert bench.board.pio.read(BASE, 4) == 0x42 << 16 | 0x42  # in halves


def test_a_value_is_cut_to_its_size(bench: Bench) -> None:
    device = Recorder()
    plugged(bench, device)
    device.value = -1
    assert bench.board.pio.read(BASE, 1) == 0xFF
    device.value = 0x12345
    assert bench.board.pio.read(BASE, 2) == 0x2345


def test_what_a_device_does_not_implement(bench: Bench) -> None:
    class Silent(PioDevice):
        length = 2

    plugged(bench, Silent(base=BASE))
    bench.board.pio.write(BASE, 1, 3)
    assert bench.board.pio.read(BASE, 1) == 0xFF


def test_a_wrong_size_or_alignment_is_the_guests_fault(bench: Bench) -> None:
    class Wide(MmioDevice):
        length = 16

        def read(self, offset: int, size: int) -> int:
            assert size == 4
            assert offset % 4 == 0
            return 0x11223344

    plugged(bench, Wide(base=0xF000_0000))
    mmio = bench.board.mmio
    assert mmio.read(0xF000_0004, 4) == 0x11223344
    assert mmio.read(0xF000_0000, 8) == 0x11223344_11223344
    assert mmio.read(0xF000_0004, 2) == 0xFFFF
    assert mmio.read(0xF000_0002, 4) == 0xFFFF_FFFF
    mmio.write(0xF000_0001, 1, 0)
    assert [line for line in bench.said if "wrong size or alignment" in line] == [
        "guest: Wide: read of a wrong size or alignment: 2 bytes at offset 0x4",
        "guest: Wide: write of a wrong size or alignment: 1 bytes at offset 0x1",
    ]
    assert bench.wishes == []


def test_interrupt(bench: Bench) -> None:
    device = Recorder(irq=7)
    plugged(bench, device)
    device.irq.set(True)
    assert bench.levels[7]
    other = Recorder(irq=7, base=0x700)
    plug([other], bench.board)
    other.irq.set(True)
    device.irq.set(False)
    assert bench.levels[7]  # a shared wire
    other.irq.set(False)
    assert not bench.levels[7]


def test_a_device_without_an_interrupt(bench: Bench) -> None:
    class Plain(PioDevice):
        length = 1

    device = Plain(base=BASE)
    plugged(bench, device)
    device.irq.set(False)
    assert bench.said == []
    device.irq.pulse()
    device.irq.set(True)
    assert True not in bench.levels.values()
    assert bench.said == [
        "Plain: it raises self.irq, which leads nowhere "
        "(a PioDevice or MmioDevice has irq= or default_irq)"
    ]


def test_no_interrupt_before_there_is_a_machine() -> None:
    with pytest.raises(RuntimeError, match=r"do this in reset\(\), not __init__"):
        Recorder().irq.set(True)


def test_dma_outside_memory_is_the_guests_fault(bench: Bench) -> None:
    class Reader(Recorder):
        def write(self, offset: int, size: int, value: int) -> None:
            self.value = self.memory.read_u8(value << 40)

    plugged(bench, Reader())
    bench.board.pio.write(BASE, 1, 0)
    bench.board.pio.write(BASE, 1, 1)
    assert bench.wishes == []
    assert any("Reader: DMA outside memory" in line for line in bench.said)


def test_log_and_fault(bench: Bench) -> None:
    device = Recorder()
    plugged(bench, device)
    device.log("hello")
    device.fault("odd value", "%d", 3)
    device.fault("odd value", "%d", 4)
    assert bench.said == ["Recorder: hello", "guest: Recorder: odd value: 3"]
    assert bench.board.wiring.faults.counts["Recorder: odd value"] == 2


# Timers and files.


class Ticker(Recorder):
    def reset(self) -> None:
        super().reset()
        self.ticks = 0

    def tick(self) -> None:
        self.ticks += 1

    def stop(self) -> None:
        self.cancel(self.tick)


def test_every_and_after(bench: Bench) -> None:
    device = Ticker()
    plugged(bench, device)
    device.every(0.1, device.tick)
    clock(bench).advance(SECOND // 2)
    assert device.ticks == 5
    device.after(0.15, device.stop)
    clock(bench).advance(SECOND)
    assert device.ticks == 6
    clock(bench).stall(SECOND)
    device.every(0.1, device.tick)
    clock(bench).stall(SECOND)
    clock(bench).advance(0)
    assert device.ticks == 7  # those that are missed count as one


def test_a_reset_cancels_timers_and_lowers_the_interrupt(bench: Bench) -> None:
    device = Ticker()
    plugged(bench, device)
    device.every(0.1, device.tick)
    device.irq.set(True)
    device.value = 99
    bench.board.reset()
    assert not bench.levels[5]
    assert device.value == 7
    clock(bench).advance(SECOND)
    assert device.ticks == 0
    device.every(0.1, device.tick)
    clock(bench).advance(SECOND)
    assert device.ticks == 10


def test_pause(bench: Bench) -> None:
    device = Ticker()
    plugged(bench, device)
    device.after(0.1, device.tick)
    bench.board.pause()
    clock(bench).advance(SECOND)
    assert device.ticks == 0
    bench.board.resume()
    clock(bench).advance(0)
    assert device.ticks == 1


def test_nothing_happens_after_the_end(bench: Bench) -> None:
    device = Ticker()
    plugged(bench, device)
    device.after(0.1, device.tick)
    bench.board.quiesce()
    clock(bench).advance(SECOND)
    assert device.ticks == 0


def test_timers_are_limited(bench: Bench) -> None:
    class Eager(Recorder):
        def write(self, offset: int, size: int, value: int) -> None:
            self.after(1, lambda: None)

    plugged(bench, Eager())
    for _ in range(MAX_TIMERS):
        bench.board.pio.write(BASE, 1, 0)
    assert bench.wishes == []
    bench.board.pio.write(BASE, 1, 0)
    assert "callbacks already" in bench.wishes[0]
    assert len(clock(bench).armed) == 1


def test_a_file(bench: Bench) -> None:
    device = Ticker()
    plugged(bench, device)
    reactor = bench.board.wiring.reactor
    assert isinstance(reactor, FakeReactor)
    ours, theirs = os.pipe()
    device.watch(ours, device.tick)
    os.write(theirs, b"x")
    bench.board.pause()
    assert not reactor.turn()
    bench.board.resume()
    reactor.turn()
    assert device.ticks == 1
    device.unwatch(ours)
    assert not reactor.turn()
    os.close(ours)
    os.close(theirs)


# Its state.


def test_the_state_can_be_saved(bench: Bench) -> None:
    device = Ticker()
    plugged(bench, device)
    device.value, device.blob = 55, bytearray(b"xyz")
    device.irq.set(True)
    device.every(0.1, device.tick)
    device.after(0.25, device.stop)
    state = bench.board.devices["Ticker"].save()

    other = Bench()
    copy = Ticker()
    plugged(other, copy)
    other.board.devices["Ticker"].restore(state)
    assert (copy.value, copy.blob) == (55, bytearray(b"xyz"))
    assert other.levels[5]
    clock(other).advance(SECOND)
    assert copy.ticks == 2
    other.board.close()


# Whose an error is.


class Broken(Recorder):
    def read(self, offset: int, size: int) -> int:
        return [1][offset]


def test_an_exception_ends_the_machine_once(bench: Bench) -> None:
    plugged(bench, Broken())
    assert bench.board.pio.read(BASE, 1) == 1
    assert bench.board.pio.read(BASE + 1, 1) == 0xFF
    assert bench.board.pio.read(BASE, 1) == 0xFF  # it isn't called any more
    (wish,) = bench.wishes
    assert "device Broken failed: IndexError: list index out of range" in wish


@pytest.mark.parametrize("value", [None, "7", 1.5])
def test_a_value_that_is_no_number(bench: Bench, value: Any) -> None:
    device = Recorder()
    plugged(bench, device)
    device.value = value
    assert bench.board.pio.read(BASE, 1) == 0xFF
    assert f"read(0x0, 1) returned {value!r}, which is no whole number" in bench.wishes[0]


def test_an_exception_in_the_first_reset(bench: Bench) -> None:
    class Bad(PioDevice):
        length = 1

        def reset(self) -> None:
            raise OSError(2, "nothing there")

    with pytest.raises(DeviceError, match="device Bad failed: FileNotFound") as caught:
        plugged(bench, Bad(base=BASE))
    assert "nothing there" in "\n".join(caught.value.report)
    assert isinstance(caught.value.__cause__, OSError)


def test_exceptions_in_timers_and_resets(bench: Bench) -> None:
    class Late(Recorder):
        def fail(self) -> None:
            raise SystemExit(3)

    device = Late()
    plugged(bench, device)
    device.after(1, device.fail)
    clock(bench).advance(2 * SECOND)
    assert "device Late failed: SystemExit: 3" in bench.wishes[0]


def test_a_method_with_the_wrong_arguments(bench: Bench) -> None:
    """The place is the method's, and nothing of ours is shown."""

    class Short(Recorder):
        def write(self, offset: int) -> None:  # type: ignore[override]
            pass

    failures = plugged_to_fail(bench, Short())
    bench.board.pio.write(BASE, 1, 0)
    (failure,) = failures
    line = Short.write.__code__.co_firstlineno
    assert "takes 2 positional arguments but 4 were given" in str(failure)
    assert f"{os.path.basename(__file__)}:{line}" in str(failure)
    assert "attachment.py" not in f"{failure}{failure.report}"


def test_an_exception_of_several_lines(bench: Bench) -> None:
    class Wordy(Recorder):
        def write(self, offset: int, size: int, value: int) -> None:
            raise ValueError("the first\nthe second")

    failures = plugged_to_fail(bench, Wordy())
    bench.board.pio.write(BASE, 1, 0)
    (failure,) = failures
    assert str(failure).startswith("device Wordy failed: ValueError: the first (")
    assert "the second" in failure.report


@pytest.mark.parametrize("blocked", [False, True])
def test_a_method_that_does_not_return(bench: Bench, blocked: bool) -> None:
    """A loop is ended, and the device has failed. Of what waits for the host it is said."""
    begun, goes_on = threading.Event(), threading.Lock()

    class Endless(Recorder):
        def write(self, offset: int, size: int, value: int) -> None:
            begun.set()
            if blocked:
                goes_on.acquire()
            while True:
                pass

    failures = plugged_to_fail(bench, Endless())
    goes_on.acquire()
    thread = threading.Thread(target=bench.board.pio.write, args=(BASE, 1, 0), daemon=True)
    thread.start()
    begun.wait()
    with Patience(bench.board.user_devices, 0.02):
        while blocked and bench.said != ["Endless: waiting for write() to return"]:
            thread.join(0.01)
        goes_on.release()
        thread.join()
    (failure,) = failures
    assert "device Endless failed: write() doesn't return" in str(failure)
    assert f"{os.path.basename(__file__)}:" in str(failure)


def test_calls_that_return_are_left_alone(bench: Bench) -> None:
    other = Bench()
    device, elsewhere = Recorder(), Recorder()
    plugged(bench, device)
    plugged(other, elsewhere)
    looked = threading.Event()

    def long_enough() -> None:
        looked.wait(0.2)

    with Patience(bench.board.user_devices, 0.02):
        other.board.user_devices[0].call(None, long_enough)  # another machine's
        for _ in range(100):
            bench.board.pio.write(BASE, 1, 0)
    assert bench.wishes == other.wishes == []
    other.board.close()


# Where it goes.


@pytest.mark.parametrize(
    ("cls", "place", "message"),
    [
        (PioDevice, {}, "base is missing"),
        (PioDevice, {"base": 0x3FE}, "base 0x3fe overlaps serial COM1 at 0x3f8 to 0x3ff"),
        (PioDevice, {"base": 0xFFFF}, "base 0xffff, length 0x8: the port space ends at 0xffff"),
        (PioDevice, {"base": -1}, "outside the port space"),
        (PioDevice, {"base": 0x20}, "overlaps the interrupt controllers"),
        (PioDevice, {"base": 0xC100}, "overlaps the window of PCI devices"),
        (PioDevice, {"base": BASE, "irq": 4}, r"irq 4 isn't free \(5, 6, 7, 10, 11, 14, 15 are"),
        (MmioDevice, {"base": 0x1000}, "overlaps memory at 0x0 to 0x3fffff"),
        (MmioDevice, {"base": 0xFEE0_0300}, "overlaps the local APICs"),
        (MmioDevice, {"base": 0xE000_0000}, "overlaps ECAM"),
        (MmioDevice, {"base": 0xC000_0000}, "overlaps the window of PCI devices"),
        (MmioDevice, {"base": 0xF000_0002}, "no multiple of 4"),
        (MmioDevice, {"base": 1 << 52}, "outside the MMIO space"),
    ],
)
def test_places_that_are_taken(
    bench: Bench, cls: type[Any], place: dict[str, int], message: str
) -> None:
    from pyvmm.backends.character import NullBackend

    bench.board.add_serial_port(NullBackend())
    made = type("Mine", (cls,), {"length": 8})(**place)
    with pytest.raises(ConfigError, match=f"device Mine: .*{message}"):
        plugged(bench, made)


@pytest.mark.parametrize(
    ("cls", "attributes", "message"),
    [
        (PioDevice, {"default_base": BASE}, "length is 0"),
        (PioDevice, {"default_base": BASE, "length": 1, "max_size": 8}, "max_size is 8"),
        (PioDevice, {"default_base": BASE, "length": 1, "min_size": 4}, "min_size is greater"),
        (PioDevice, {"default_base": BASE, "length": 1, "registers": ["A"]}, "names by offset"),
        (PciDevice, {"registers": {"A": 0}}, r'names by offset \(such as {0: "TEMP"}'),
        (PciDevice, {"length": 100}, "no power of two"),
        (PciDevice, {"io": True}, "no power of two from 4 to 256"),
        (PciDevice, {"msix_vectors": 4096}, "msix_vectors"),
        (PciDevice, {"vendor_id": 1 << 16}, "vendor_id is no number of 16 bits"),
        (VirtioDevice, {}, "device_id 0 is not from 1 to 63"),
        (VirtioDevice, {"device_id": 42, "queues": (3,)}, "powers of two"),
        (VirtioDevice, {"device_id": 42, "features": 1 << 32}, "features"),
        (VirtioDevice, {"device_id": 42, "event_queues": (1,)}, "a queue that isn't there"),
    ],
)
def test_classes_that_can_not_be(
    bench: Bench, cls: type[Any], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"device Mine: .*{message}"):
        plugged(bench, type("Mine", (cls,), attributes)())


def test_an_instance_is_for_one_machine(bench: Bench) -> None:
    device = Recorder()
    plugged(bench, device)
    other = Bench()
    with pytest.raises(ConfigError, match="in a machine already"):
        plugged(other, device)
    other.board.close()


# PCI.


class Card(PciDevice):
    vendor_id, device_id, class_code = 0x1234, 0x5678, 0x12_0000
    length = 32
    msix_vectors = 2

    def read(self, offset: int, size: int) -> int:
        return offset


def test_pci(bench: Bench) -> None:
    device = Card()
    plugged(bench, device)
    bench.board.assign_pci_addresses()
    pci = bench.board.pci
    assert pci.config_read(0, 8, 0, 4) == 0x5678_1234
    base = pci.config_read(0, 8, 0x10, 4)
    assert bench.board.mmio.read(base + 8, 4) == 8
    gsi = pci.config_read(0, 8, 0x3C, 1)
    device.irq.set(True)
    assert bench.levels[gsi]
    assert not device.msix_enabled
    device.fire(1)  # nobody hears it
    control = pci.config_read(0, 8, 0x34, 1) + 2
    pci.config_write(0, 8, control, 2, 0x8000)
    assert device.msix_enabled
    assert not bench.levels[gsi]
    bench.board.reset()
    assert not device.msix_enabled
    assert not bench.levels[gsi]
    with pytest.raises(ValueError, match="no MSI-X vector 2"):
        device.fire(2)


def test_pci_in_io_space(bench: Bench) -> None:
    class Ports(Card):
        io = True
        msix_vectors = 0

    plugged(bench, Ports())
    bench.board.assign_pci_addresses()
    base = bench.board.pci.config_read(0, 8, 0x10, 4)
    assert base & 1
    assert bench.board.pio.read((base & ~3) + 4, 4) == 4


# Virtio.


class Upper(VirtioDevice):
    device_id = 42
    features = 0b101
    queues = (16, 4)
    event_queues = (1,)
    config = b"\x01\x02\x03\x04"

    def reset(self) -> None:
        self.resets = getattr(self, "resets", 0) + 1
        self.room = -1

    def request(self, queue: int, data: bytes, room: int) -> bytes:
        if data == b"fail":
            raise KeyError("fail")
        if data == b"none":
            return None  # type: ignore[return-value]
        return data.upper()

    def buffers_added(self, queue: int) -> None:
        self.room = queue


class Virtio:
    """A user's virtio device, and a driver of it."""

    def __init__(self) -> None:
        self.bench = Bench()
        from pyvmm.user_devices.virtio import VirtioAttachment

        self.device = Upper()
        self.failures: list[BaseException] = []
        board = self.bench.board
        requests = board.requests._replace(failed=self.failures.append)
        attachment = VirtioAttachment(self.device, "Upper", board.wiring, requests)
        attachment.power_on()
        self.pc = Pc(attachment.virtio, memory=board.wiring.memory)
        self.driver = self.pc.driver()
        self.driver.negotiate(1 << 32 | 0b001)
        self.requests = self.driver.add_queue(0)
        self.events = self.driver.add_queue(1)
        self.driver.run()
        self.next = 0x30_0000

    def settle(self) -> None:
        reactor = self.bench.board.wiring.reactor
        assert isinstance(reactor, FakeReactor)
        reactor.settle()

    def buffer(self, size: int, data: bytes = b"") -> tuple[int, int]:
        self.next += 0x1000
        self.pc.memory.write(self.next, data)
        return self.next, size

    def ask(self, data: bytes, room: int = 16) -> bytes | None:
        answer = self.buffer(room)
        self.requests.add([self.buffer(len(data), data)], [answer])
        self.requests.kick()
        self.settle()
        used = self.requests.take()
        return self.pc.memory.read(answer[0], used[0][1]) if used else None


@pytest.fixture
def virtio() -> Iterator[Virtio]:
    virtio = Virtio()
    yield virtio
    for transport in virtio.pc.transports:
        transport.close()
    virtio.bench.board.close()


def test_virtio_requests(virtio: Virtio) -> None:
    assert virtio.ask(b"hello") == b"HELLO"
    assert virtio.ask(b"hello", room=3) == b"HEL"
    assert virtio.device.negotiated & 0b111 == 0b001
    assert virtio.driver.config(0, 4) == 0x04030201


def test_virtio_events(virtio: Virtio) -> None:
    assert not virtio.device.send(1, b"early")
    buffer = virtio.buffer(16)
    virtio.events.add([], [buffer])
    virtio.events.kick()
    virtio.settle()
    assert virtio.device.room == 1
    assert virtio.device.send(1, b"now")
    assert virtio.events.take() == [(0, 3)]
    assert virtio.pc.memory.read(buffer[0], 3) == b"now"
    assert not virtio.device.send(1, b"more")
    with pytest.raises(ValueError, match="none of the event queues"):
        virtio.device.send(0, b"x")


def test_virtio_configuration(virtio: Virtio) -> None:
    virtio.device.config = b"\x05\x06\x07\x08"
    virtio.device.config_changed()
    assert virtio.driver.config(0, 4) == 0x08070605
    virtio.device.config = b"\x05"
    with pytest.raises(ValueError, match="another length"):
        virtio.device.config_changed()


def test_virtio_reset_by_the_driver(virtio: Virtio) -> None:
    before = virtio.device.resets
    virtio.driver.reset()
    assert virtio.device.resets == before + 1
    assert virtio.device.negotiated == 0
    assert not virtio.device.send(1, b"x")


def test_virtio_state(virtio: Virtio) -> None:
    (session,) = (transport.session for transport in virtio.pc.transports)
    virtio.device.room = 77
    session.device.pause()
    state = session.save()
    virtio.device.room = 0
    session.restore(state)
    assert virtio.device.room == 77
    assert virtio.ask(b"again") == b"AGAIN"


@pytest.mark.parametrize(("data", "error"), [(b"fail", "KeyError"), (b"none", "TypeError")])
def test_virtio_errors_are_the_users(virtio: Virtio, data: bytes, error: str) -> None:
    assert virtio.ask(data) == b""
    (failure,) = virtio.failures
    assert f"device Upper failed: {error}" in str(failure)


# A guest that means no good.

ACCESSES = st.lists(
    st.tuples(
        st.sampled_from(["port", "MMIO", "card"]),
        st.integers(0, 40),
        st.sampled_from([1, 2, 4, 8]),
        st.none() | st.integers(0, (1 << 64) - 1),
    ),
    max_size=40,
)


@given(ACCESSES)
def test_no_access_makes_the_examples_fail(
    accesses: list[tuple[str, int, int, int | None]],
) -> None:
    bench = Bench()
    names = ("thermometer:Thermometer", "stopwatch:Stopwatch", "checksum:Checksum")
    plug([load(f"guests.devices.{name}") for name in names], bench.board)
    bench.board.assign_pci_addresses()
    card = bench.board.pci.config_read(0, 8, 0x10, 4)
    places = {"port": BASE, "MMIO": 0xF000_0000, "card": card}
    for place, offset, size, value in accesses:
        bus = bench.board.pio if place == "port" else bench.board.mmio
        if value is None:
            assert 0 <= bus.read(places[place] + offset, size) < 1 << 8 * size
        else:
            bus.write(places[place] + offset, size, value & (1 << 8 * size) - 1)
        clock(bench).advance(10**7)
    bench.board.close()
    assert bench.wishes == []


# Loading.

SOURCE = """
from __future__ import annotations
from typing import Any, Optional
import neighbour
from pyvmm import PioDevice

class Typed(PioDevice):
    length, default_base = 4, 0x510
    def __init__(self, *, number: int, ratio: float = 0.5, on: bool = False,
                 text: str = "x", maybe: Optional[int] = None, plain=3, free=None, **place: Any):
        super().__init__(**place)
        self.options = number, ratio, on, text, maybe, plain, free

class Plain(PioDevice):
    length, default_base = 4, 0x510

class NoSuper(PioDevice):
    def __init__(self) -> None:
        pass

class Fails(PioDevice):
    def __init__(self) -> None:
        super().__init__()
        raise ValueError("not today")

NotADevice = 3
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("")
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_options_have_types(source: Path) -> None:
    text = f"{source}:Typed,number=0x10,ratio=2,on=on,text=7,maybe=5,plain=4,free=abc,base=1296"
    device: Any = load(text)
    assert device.options == (16, 2.0, True, "7", 5, 4, "abc")
    assert (device.base, device.irq_number) == (1296, None)
    other: Any = load(f"{source}:Typed,number=1,irq=5")
    assert other.options == (1, 0.5, False, "x", None, 3, None)
    assert type(other) is type(device)  # the file is loaded once


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (":Typed", r":Typed: number= is missing \(such as number=NUMBER\)"),
        (":Typed,number=x", r"number: 'x' is not understood \(it takes NUMBER\)"),
        (":Typed,number=1,on=maybe", r"on: 'maybe' is not understood \(it takes on\|off\)"),
        (":Typed,number", "'number' is not understood"),
        (":Typed,place=1", "'place=1' is not understood"),
        (":Plain,number=1", r"'number=1' is not understood \(it takes base=NUMBER, irq=NUMBER\)"),
        ("", "which class"),
        (":", "which class"),
    ],
)
def test_options_that_can_not_be(source: Path, rest: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(f"{source}{rest}")


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (":Other", r"Other isn't there in .*mine.py \(it has Typed, Plain, NoSuper, Fails\)"),
        (":NotADevice", "NotADevice is no device"),
        (":PioDevice,base=1", ""),
        (":NoSuper", r"NoSuper.__init__ doesn't call super\(\).__init__\(\)"),
        (":Fails", r":Fails: ValueError: not today \(.*mine.py:24\)"),
    ],
)
def test_classes_that_can_not_be_loaded(source: Path, rest: str, message: str) -> None:
    if not message:
        assert isinstance(load(f"{source}{rest}"), PioDevice)  # which has no length, but that's it
        return
    with pytest.raises(DeviceError, match=message) as caught:
        load(f"{source}{rest}")
    assert caught.value.report == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class A(\n", r"SyntaxError: .*\(.*mine.py:1\)"),
        ("import nowhere_at_all\n", r"ModuleNotFoundError: No module named .*\(.*mine.py:1\)"),
        ("\n\nopen('/nonexistent')\n", r"FileNotFoundError: .*\(.*mine.py:3\)"),
        ("\n1 / 0\n", r"ZeroDivisionError: division by zero \(.*mine.py:2\)"),
        ("raise SystemExit(1)\n", r"SystemExit: 1 \(.*mine.py:1\)"),
        ("a\0b", "source code"),
    ],
)
def test_files_that_can_not_be_loaded(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(DeviceError, match=message):
        load(f"{path}:A")
    path.write_text("from pyvmm import PioDevice\nclass A(PioDevice):\n    length = 1\n")
    assert load(f"{path}:A")  # put right, it can be loaded after all


def test_no_such_file_or_module(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"nowhere\.py doesn't exist"):
        load(f"{tmp_path}/nowhere.py:A")
    with pytest.raises(DeviceError, match="there is no module nowhere_at_all"):
        load("nowhere_at_all.sub:A")
    with pytest.raises(DeviceError):
        load(f"{tmp_path}/:A")


def test_a_module() -> None:
    device = load("guests.devices.thermometer:Thermometer,start=30")
    assert device.registers == {0: "TEMP", 1: "LIMIT", 2: "STATUS"}


def test_the_configuration_takes_texts_and_instances(source: Path) -> None:
    mine = Recorder()
    devices: Any = (f"{source}:Plain", mine)
    config = MachineConfig(kernel="k", devices=devices)
    assert [type(device).__name__ for device in config.devices] == ["Plain", "Recorder"]
    with pytest.raises(ConfigError, match="devices: 3 is no device"):
        instances([3])


def test_a_virtio_device_counts_as_one(source: Path) -> None:
    config = MachineConfig(kernel="k", devices=(Upper(transport="mmio"), Recorder()))
    assert config.mmio_devices == 1


@given(st.text())
def test_any_text(text: str) -> None:
    with pytest.raises(PyvmmError):
        load(text)


@given(st.text(alphabet="=,x0:1+-onf.", max_size=30))
def test_any_options(text: str) -> None:
    with suppress(ConfigError):
        load(f"guests.devices.thermometer:Thermometer,{text}")


def test_the_package_has_the_classes() -> None:
    for name in ("PioDevice", "MmioDevice", "PciDevice", "VirtioDevice", "DeviceError"):
        assert name in pyvmm.__all__
        assert getattr(pyvmm, name).__name__ == name
