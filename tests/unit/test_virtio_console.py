"""virtio-console: a driver with its ports, and backends that are full, empty, gone and back."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fakes import FakeClock, FakeReactor, RecordingFaults
from unit.virtio_driver import (
    EVENT_IDX,
    INDIRECT_DESC,
    NEEDS_RESET,
    VERSION_1,
    DriverQueue,
    Pc,
    VirtioDriver,
)

from pyvmm.backends.character import CharacterDevice
from pyvmm.eventloop import NS_PER_SECOND
from pyvmm.virtio.console import PIECE, QUEUE_SIZE, ConsoleDevice

SIZE, MULTIPORT, EMERG_WRITE = 1, 2, 4
READY, ADD, PORT_READY, CONSOLE_PORT, RESIZE, OPEN, NAME = 0, 1, 3, 4, 5, 6, 7
CONTROL_IN, CONTROL_OUT = 2, 3
CONTROL = struct.Struct("<IHH")
BUFFER_SIZE = 64
SCRATCH = 0x90_0000


class FakeBackend:
    """Takes ``room`` bytes of output; ``waiting`` is input that the device hasn't taken."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.output = bytearray()
        self.waiting = b""
        self.resumed = 0
        self.device: CharacterDevice | None = None

    def connect(self, device: CharacterDevice) -> None:
        self.device = device

    def put(self, byte: int) -> bool:
        return self.write(memoryview(bytes([byte]))) == 1

    def write(self, data: memoryview) -> int:
        accepted = min(self.room, len(data))
        self.room -= accepted
        self.output += data[:accepted]
        return accepted

    def resume_input(self) -> None:
        self.resumed += 1

    def offer(self, data: bytes = b"") -> int:
        """Give the device what waits, and ``data``; how much it took."""
        assert self.device is not None
        self.waiting += data
        accepted = self.device.receive(self.waiting)
        self.waiting = self.waiting[accepted:]
        return accepted

    def make_room(self, room: int) -> None:
        assert self.device is not None
        self.room = room
        self.device.output_ready()


class Rig:
    """A PC with a console device, and a driver with all queues."""

    def __init__(
        self,
        ports: tuple[str, ...] = (),
        size: tuple[int, int] | None = None,
        console: bool = True,
        features: int | None = None,
        start: bool = True,
    ) -> None:
        self.loop, self.clock = FakeReactor(), FakeClock()
        self.backends = [FakeBackend() for _ in range(1 + len(ports))]
        named = list(zip(ports, self.backends[1:], strict=True))
        faults = RecordingFaults()
        self.reports = faults.lines
        self.device = ConsoleDevice(
            self.loop, self.clock, faults, self.backends[0] if console else None, named, size
        )
        self.pc = Pc(self.device)
        self.driver = VirtioDriver(self.pc)
        self.queues: list[DriverQueue] = []
        self.buffers: dict[tuple[int, int], int] = {}
        if start:
            self.start(features)

    def start(self, features: int | None = None) -> None:
        self.driver.negotiate(features)
        self.driver.enable_msix(2)
        self.driver.set("config_msix_vector", 0)
        count = self.driver.get("num_queues")
        self.queues = [self.driver.add_queue(index, vector=1) for index in range(count)]
        self.driver.run()
        self.loop.settle()

    def send(self, data: bytes, queue: int = 1) -> int:
        """Output, of which the device is told; the chain."""
        address = self.driver.allocate(max(len(data), 1))
        self.pc.memory.write(address, data)
        head = self.queues[queue].add([(address, len(data))], [])
        self.queues[queue].kick()
        self.loop.settle()
        return head

    def give(self, count: int = 1, queue: int = 0, size: int = BUFFER_SIZE) -> None:
        """Buffers for input."""
        for _ in range(count):
            address = self.driver.allocate(size)
            self.buffers[queue, self.queues[queue].add([], [(address, size)])] = address
        self.queues[queue].kick()
        self.loop.settle()

    def got(self, queue: int = 0) -> list[bytes]:
        """What has come in the buffers that are back."""
        return [
            self.pc.memory.read(self.buffers.pop((queue, head)), written)
            for head, written in self.queues[queue].take()
        ]

    def control(self, port: int, event: int, value: int = 1, more: bytes = b"") -> None:
        self.send(CONTROL.pack(port, event, value) + more, CONTROL_OUT)

    def messages(self) -> list[tuple[int, int, int, bytes]]:
        """The control messages that have come; the buffers are replaced."""
        found = self.got(CONTROL_IN)
        self.give(len(found), CONTROL_IN)
        return [(*CONTROL.unpack(data[:8]), data[8:]) for data in found]

    def set_up(self) -> None:
        """What Linux does with a device of several ports."""
        self.give(16, CONTROL_IN)
        self.control(0, READY)
        for port, event, _, _ in self.messages():
            assert event == ADD
            self.give(4, queue_of(port))
            self.control(port, PORT_READY)


def queue_of(port: int) -> int:
    return 2 * port + 2 if port else 0


@pytest.fixture
def rigs() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(*arguments: object, **options: object) -> Rig:
        made.append(Rig(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for rig in made:
        rig.pc.close()


class TestConsole:
    def test_what_is_offered(self, rigs: Callable[..., Rig]) -> None:
        plain = rigs(start=False).driver
        assert plain.function.read(2, 2) == 0x1043
        assert plain.offered() & 0xFF_FFFF == EMERG_WRITE
        assert plain.get("num_queues") == 2
        sized = rigs(size=(80, 25), start=False).driver
        assert sized.offered() & 0xFF_FFFF == EMERG_WRITE | SIZE
        assert (sized.config(0, 2), sized.config(2, 2)) == (80, 25)
        ports = rigs(("a", "b"), start=False).driver
        assert ports.offered() & 0xFF_FFFF == EMERG_WRITE | MULTIPORT
        assert ports.config(4, 4) == 3
        assert ports.get("num_queues") == 8

    def test_output(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs()
        head = rig.send(b"hello ")
        rig.send(b"world")
        assert rig.backends[0].output == b"hello world"
        assert rig.queues[1].take()[0] == (head, 0)

    def test_output_in_pieces_and_indirect(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs()
        rig.pc.memory.write(SCRATCH, b"abcdefgh")
        pieces = [(SCRATCH, 3), (SCRATCH + 3, 1), (SCRATCH + 4, 4)]
        rig.queues[1].add(pieces, [])
        rig.queues[1].add(pieces, [], indirect=True)
        rig.queues[1].kick()
        rig.loop.settle()
        assert rig.backends[0].output == b"abcdefgh" * 2

    @pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | EVENT_IDX | INDIRECT_DESC])
    def test_a_full_backend_holds_the_chain(self, rigs: Callable[..., Rig], features: int) -> None:
        rig = rigs(features=features)
        rig.backends[0].room = 4
        rig.send(b"abc")
        rig.send(b"defgh")
        rig.send(b"ij")
        assert rig.backends[0].output == b"abcd"
        assert len(rig.queues[1].take()) == 1
        rig.backends[0].make_room(2)
        rig.loop.settle()
        assert rig.backends[0].output == b"abcdef"
        assert rig.queues[1].take() == []
        rig.backends[0].make_room(100)
        rig.loop.settle()
        assert rig.backends[0].output == b"abcdefghij"
        assert len(rig.queues[1].take()) == 2
        rig.send(b"k")
        assert rig.backends[0].output.endswith(b"k")

    def test_an_enormous_chain_is_written_piece_by_piece(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs()
        rig.queues[1].add([(0, 3 * PIECE + 5), (0, 7)], [])
        rig.queues[1].kick()
        rig.loop.turn()
        rig.loop.turn()
        assert len(rig.backends[0].output) <= 2 * PIECE
        rig.loop.settle()
        assert len(rig.backends[0].output) == 3 * PIECE + 12

    def test_input_waits_for_buffers(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs()
        backend = rig.backends[0]
        assert backend.offer(b"x" * 100) == 0
        assert backend.resumed == 0
        rig.give(1)
        assert backend.resumed == 1
        assert backend.offer() == BUFFER_SIZE
        assert backend.offer() == 0
        rig.give(3)
        assert backend.resumed == 2
        assert backend.offer() == 100 - BUFFER_SIZE
        assert rig.got() == [b"x" * BUFFER_SIZE, b"x" * (100 - BUFFER_SIZE)]
        rig.give(1)
        assert backend.resumed == 2  # nothing waited

    def test_input_before_the_driver(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(start=False)
        assert rig.backends[0].offer(b"early") == 0
        rig.start()
        rig.give(1)
        assert rig.backends[0].resumed
        assert rig.backends[0].offer() == 5

    def test_a_break_is_ctrl_o(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs()
        assert rig.backends[0].device is not None
        rig.backends[0].device.receive_break()  # no buffer: lost
        rig.give(2)
        rig.backends[0].device.receive_break()
        assert rig.got() == [b"\x0f"]

    def test_emergency_write_needs_no_driver(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(start=False)
        structure = rig.driver.structures[4].address
        for byte in b"Oops":
            rig.pc.mmio.write(structure + 8, 4, byte)
        rig.pc.mmio.write(structure, 4, ord("x"))  # not that register
        rig.backends[0].room = 0
        rig.pc.mmio.write(structure + 8, 4, ord("y"))
        assert rig.backends[0].output == b"Oops"

    def test_last_words(self, rigs: Callable[..., Rig]) -> None:
        """What was rung for, but not served yet, when the machine stops."""
        rig = rigs()
        rig.pc.memory.write(SCRATCH, b"bye")
        rig.queues[1].add([(SCRATCH, 3)], [])
        rig.queues[1].kick()
        rig.pc.transports[0].reset()
        assert rig.backends[0].output == b"bye"

    def test_a_pause_keeps_a_held_chain(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs()
        rig.backends[0].room = 2
        rig.send(b"abcd")
        rig.device.pause()
        rig.backends[0].make_room(100)
        rig.loop.settle()
        assert rig.backends[0].output == b"ab"
        rig.device.resume()
        rig.loop.settle()
        assert rig.backends[0].output == b"abcd"

    def test_a_saved_state_goes_on_in_the_middle_of_a_chain(self, rigs: Callable[..., Rig]) -> None:
        rig, other = rigs(("port",)), rigs(("port",), start=False)
        rig.set_up()
        rig.control(1, OPEN)
        rig.backends[0].room = 2
        rig.send(b"abcd")
        rig.device.pause()
        state = rig.pc.transports[0].save()
        other.pc.memory.write(0, rig.pc.memory.read(0, rig.pc.memory.size))
        other.pc.transports[0].restore(state)
        other.loop.settle()
        assert other.backends[0].output == b"cd"
        assert other.backends[1].offer(b"still open") == 10

    def test_a_reset_forgets(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs()
        rig.backends[0].room = 1
        rig.send(b"abc")
        rig.driver.reset()
        rig.backends[0].make_room(100)
        rig.start()
        rig.send(b"x")
        assert rig.backends[0].output == b"ax"


class TestSize:
    def test_a_change_is_a_configuration_interrupt(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(size=(80, 25))
        rig.clock.advance(30 * NS_PER_SECOND)
        before = len(rig.pc.msi.vectors[0].fired)
        generation = rig.driver.get("config_generation")
        rig.device.resize(100, 50)
        rig.device.resize(100, 50)
        assert len(rig.pc.msi.vectors[0].fired) == before + 1
        assert rig.driver.get("config_generation") != generation
        assert (rig.driver.config(0, 2), rig.driver.config(2, 2)) == (100, 50)

    def test_the_driver_is_reminded_for_a_while(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(size=(80, 25))
        rig.clock.advance(NS_PER_SECOND)
        assert 5 <= len(rig.pc.msi.vectors[0].fired) <= 10
        rig.clock.advance(1000 * NS_PER_SECOND)
        assert len(rig.pc.msi.vectors[0].fired) <= 12
        assert rig.clock.armed == []

    def test_without_the_feature_nobody_is_told(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(size=(80, 25), features=VERSION_1)
        rig.device.resize(100, 50)
        rig.clock.advance(NS_PER_SECOND)
        assert rig.pc.msi.vectors[0].fired == []
        rig = rigs()
        rig.device.resize(100, 50)
        assert rig.driver.config(0, 2) == 0

    def test_with_ports_it_is_a_message(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(("p",), size=(80, 25))
        rig.device.resize(90, 30)  # before the port is known
        rig.set_up()
        assert (0, RESIZE, 1, struct.pack("<HH", 90, 30)) in rig.messages()
        rig.device.resize(100, 50)
        rig.loop.settle()
        assert rig.messages() == [(0, RESIZE, 1, struct.pack("<HH", 100, 50))]
        assert rig.pc.msi.vectors[0].fired == []


class TestPorts:
    def test_introduction(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(("first", "zweiter Anschluß"))
        rig.give(16, CONTROL_IN)
        rig.control(0, READY)
        assert rig.messages() == [(n, ADD, 1, b"") for n in range(3)]
        rig.control(0, PORT_READY)
        assert rig.messages() == [(0, CONSOLE_PORT, 1, b""), (0, OPEN, 1, b"")]
        rig.control(2, PORT_READY)
        name = "zweiter Anschluß".encode()
        assert rig.messages() == [(2, NAME, 1, name), (2, OPEN, 1, b"")]

    def test_without_a_console_there_is_no_port_0(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(("only",), console=False)
        rig.give(16, CONTROL_IN)
        rig.control(0, READY)
        assert rig.messages() == [(1, ADD, 1, b"")]

    def test_input_waits_until_the_port_is_open(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(("p",))
        rig.set_up()
        backend = rig.backends[1]
        assert backend.offer(b"data") == 0
        rig.control(1, OPEN, 1)
        assert backend.resumed == 1
        assert backend.offer() == 4
        assert rig.got(4) == [b"data"]
        rig.control(1, OPEN, 0)
        assert backend.offer(b"more") == 0

    def test_output_of_a_port(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(("p", "q"))
        rig.set_up()
        rig.send(b"to q", 7)
        rig.send(b"to p", 5)
        assert [bytes(b.output) for b in rig.backends] == [b"", b"to p", b"to q"]

    def test_clients_come_and_go(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(("p",))
        device = rig.backends[1].device
        assert device is not None
        device.carrier(False)
        rig.set_up()
        assert (1, OPEN, 0, b"") in rig.messages()
        for present in (True, False, True):
            device.carrier(present)
            device.carrier(present)
            rig.loop.settle()
            assert rig.messages() == [(1, OPEN, int(present), b"")]
        assert rig.backends[0].device is not None
        rig.backends[0].device.carrier(False)  # a console is always open
        rig.loop.settle()
        assert rig.messages() == []

    def test_messages_without_buffers_dont_pile_up(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(("p",))
        device = rig.backends[1].device
        assert device is not None
        for _ in range(300):
            rig.control(0, READY)
            for port in (0, 1):
                rig.control(port, PORT_READY)
            for queue in rig.queues:
                queue.take()
            device.carrier(False)
            device.carrier(True)
        rig.give(32, CONTROL_IN)
        assert len(rig.messages()) <= 7

    def test_a_driver_without_multiport_has_the_console_alone(
        self, rigs: Callable[..., Rig]
    ) -> None:
        rig = rigs(("p",), features=VERSION_1)
        rig.give(1)
        assert rig.backends[0].offer(b"in") == 2
        rig.send(b"out")
        assert rig.backends[0].output == b"out"
        rig.give(4, CONTROL_IN)
        rig.control(0, READY)
        rig.loop.settle()
        assert rig.got(CONTROL_IN) == []


class TestHostile:
    @pytest.mark.parametrize(
        ("message", "complaint"),
        [
            (b"short", "too short"),
            (CONTROL.pack(2, PORT_READY, 1), "no port"),
            (CONTROL.pack(0xFFFF_FFFF, OPEN, 1), "no port"),
            (CONTROL.pack(1, 99, 1), "unknown"),
            (CONTROL.pack(1, PORT_READY, 0), "could not add"),
            (CONTROL.pack(0, READY, 0), "could not set up"),
        ],
    )
    def test_bad_messages(self, rigs: Callable[..., Rig], message: bytes, complaint: str) -> None:
        rig = rigs(("p",))
        rig.give(4, CONTROL_IN)
        rig.send(message, CONTROL_OUT)
        rig.send(message, CONTROL_OUT)
        assert len(rig.reports) == 1
        assert complaint in rig.reports[0]
        assert len(rig.queues[CONTROL_OUT].take()) == 2
        assert not rig.driver.status & NEEDS_RESET

    def test_a_control_buffer_too_short(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs(("p",))
        rig.give(1, CONTROL_IN, size=3)
        rig.control(0, READY)
        assert rig.got(CONTROL_IN) == [CONTROL.pack(0, ADD, 1)[:3]]
        assert "too short" in rig.reports[0]

    def test_a_receive_buffer_that_cant_be_written(self, rigs: Callable[..., Rig]) -> None:
        rig = rigs()
        rig.queues[0].add([(SCRATCH, 8)], [])
        assert rig.backends[0].offer(b"x") == 0
        assert rig.driver.status & NEEDS_RESET
        assert rig.backends[0].offer(b"x") == 0
        rig.backends[0].make_room(5)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("control"), st.binary(max_size=24)),
                st.tuples(
                    st.just("control"),
                    st.builds(
                        CONTROL.pack,
                        st.integers(0, 4),
                        st.integers(0, 9),
                        st.integers(0, 2),
                    ),
                ),
                st.tuples(st.just("give"), st.integers(0, 5)),
                st.tuples(st.just("input"), st.binary(max_size=100)),
                st.tuples(st.just("carrier"), st.booleans()),
                st.tuples(st.just("output"), st.binary(min_size=1, max_size=40)),
            ),
            max_size=25,
        )
    )
    def test_anything_goes(self, steps: list[tuple[str, object]]) -> None:
        """No order of things breaks the device, and output arrives whole."""
        rig = Rig(("p", "q"), size=(80, 25))
        written = b""
        try:
            for what, value in steps:
                device = rig.backends[1].device
                assert device is not None
                if what == "control":
                    assert isinstance(value, bytes)
                    rig.send(value or b"\0", CONTROL_OUT)
                elif what == "give":
                    assert isinstance(value, int)
                    rig.give(1, [0, 2, 4, 6, 2, 2][value])
                elif what == "input":
                    assert isinstance(value, bytes)
                    device.receive(value)
                elif what == "carrier":
                    device.carrier(bool(value))
                else:
                    assert isinstance(value, bytes)
                    rig.send(value, 5)
                    written += value
            assert not rig.driver.status & NEEDS_RESET
            assert rig.backends[1].output == written
        finally:
            rig.pc.close()


def test_queues_are_small() -> None:
    """A guest fills them with a page a buffer."""
    assert QUEUE_SIZE <= 128
