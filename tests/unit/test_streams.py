"""Character backends over real pipes, files and pseudo-terminals."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from unit.fakes import RecordingLine

from pyvmm.backends.character import CharacterBackend, NullBackend
from pyvmm.backends.streams import (
    OUTPUT_CAPACITY,
    TYPE_AHEAD_LIMIT,
    StreamBackend,
    open_file,
    open_pty,
)
from pyvmm.backends.terminal import EscapeKeys, Key
from pyvmm.devices.serial import LineStatus, Register, Serial
from pyvmm.errors import HostError
from pyvmm.eventloop import EventLoop

PATIENCE = 20  # seconds; only a failing test waits that long


class FakeDevice:
    """Takes ``room`` bytes of input; remembers what it was told. ``wait_for`` waits for it."""

    def __init__(self, backend: CharacterBackend, room: int = 1 << 30) -> None:
        self.backend = backend
        self.input = bytearray()
        self.breaks = 0
        self.ready = 0
        self._room = room
        self._changed = threading.Condition()
        backend.connect(self)

    def receive(self, data: bytes | bytearray) -> int:
        with self._changed:
            accepted = min(self._room, len(data))
            self._room -= accepted
            self.input += data[:accepted]
            self._changed.notify_all()
            return accepted

    def receive_break(self) -> None:
        with self._changed:
            self.breaks += 1
            self._changed.notify_all()

    def output_ready(self) -> None:
        with self._changed:
            self.ready += 1
            self._changed.notify_all()

    def carrier(self, present: bool) -> None:
        raise AssertionError("a stream's other end doesn't tell")

    def give_room(self, room: int) -> None:
        with self._changed:
            self._room = room
        self.backend.resume_input()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE)

    def print(self, data: bytes) -> None:
        for byte in data:
            assert self.backend.put(byte)


class Bench:
    """An event loop, and backends on it that are closed at the end."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.failed = threading.Event()
        self.loop = EventLoop(self._on_error)
        self.loop.start()
        self.backends: list[StreamBackend] = []

    def _on_error(self, error: BaseException) -> None:
        self.failure = error
        self.failed.set()

    def start(self, backend: StreamBackend, room: int = 1 << 30) -> FakeDevice:
        device = FakeDevice(backend, room)
        self.backends.append(backend)
        backend.start()
        return device

    def settle(self) -> None:
        """Wait until the I/O thread has done what it was asked to."""
        done = threading.Event()
        self.loop.call(lambda: self.loop.call(done.set))
        assert done.wait(PATIENCE)

    def close(self) -> None:
        self.loop.stop()
        for backend in self.backends:
            backend.close()
        self.loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass  # the test did


@pytest.fixture
def bench(pipe: tuple[int, int]) -> Iterator[Bench]:
    """Closed before the pipe is."""
    bench = Bench()
    yield bench
    bench.close()


def read_exactly(fd: int, length: int) -> bytes:
    data = b""
    while len(data) < length and select.select([fd], [], [], PATIENCE)[0]:
        data += os.read(fd, length - len(data))
    return data


class TestOutput:
    def test_pipe(self, bench: Bench, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        device = bench.start(StreamBackend(bench.loop, None, writer))
        device.print(b"hello\n")
        assert read_exactly(reader, 6) == b"hello\n"

    def test_bytes_that_come_together_leave_together(
        self, bench: Bench, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, writer = pipe
        monkeypatch.setattr("pyvmm.backends.streams.COALESCE_SECONDS", PATIENCE)
        seen: list[bytes] = []
        backend = StreamBackend(bench.loop, None, writer, on_output=seen.append)
        device = bench.start(backend)
        device.print(b"one line of output\n")
        assert backend.flush()
        assert seen == [b"one line of output\n"]

    def test_every_byte_is_seen_before_it_is_written(
        self, bench: Bench, pipe: tuple[int, int]
    ) -> None:
        reader, writer = pipe
        seen = bytearray()
        device = bench.start(StreamBackend(bench.loop, None, writer, on_output=seen.extend))
        text = bytes(range(256)) * 8
        device.print(text)
        assert read_exactly(reader, len(text)) == text
        assert seen == text

    def test_nothing_is_lost_when_the_reader_is_slow(
        self, bench: Bench, pipe: tuple[int, int]
    ) -> None:
        reader, writer = pipe
        device = bench.start(StreamBackend(bench.loop, None, writer))
        text = bytes(n * 7 & 0xFF for n in range(3 * OUTPUT_CAPACITY + 200_000))
        read = bytearray()
        slow_reader = threading.Thread(target=lambda: read.extend(read_exactly(reader, len(text))))
        refusals = 0
        for byte in text:
            before = device.ready
            while not device.backend.put(byte):
                refusals += 1
                if not slow_reader.ident:
                    slow_reader.start()
                device.wait_for(lambda before=before: device.ready > before)  # type: ignore[misc]
                before = device.ready
        slow_reader.join(PATIENCE)
        assert refusals
        assert read == text

    def test_a_reader_that_never_reads_costs_bounded_memory_and_time(
        self, bench: Bench, pipe: tuple[int, int]
    ) -> None:
        reader, writer = pipe
        backend = StreamBackend(bench.loop, None, writer)
        bench.start(backend)
        accepted = sum(backend.put(0x55) for _ in range(10 * OUTPUT_CAPACITY))
        pipe_size = 1 << 16
        assert accepted <= 2 * OUTPUT_CAPACITY + pipe_size
        assert not backend.flush(0.01)
        os.close(reader)  # lets the writing thread go

    def test_nothing_written_in_bulk_is_lost_when_the_reader_is_slow(
        self, bench: Bench, pipe: tuple[int, int]
    ) -> None:
        reader, writer = pipe
        device = bench.start(StreamBackend(bench.loop, None, writer))
        text = bytes(n * 7 & 0xFF for n in range(3 * OUTPUT_CAPACITY + 200_000))
        read = bytearray()
        slow_reader = threading.Thread(target=lambda: read.extend(read_exactly(reader, len(text))))
        rest = memoryview(text)
        while rest:
            before = device.ready
            accepted = device.backend.write(rest[:100_000])
            assert accepted <= OUTPUT_CAPACITY
            rest = rest[accepted:]
            if accepted < OUTPUT_CAPACITY and rest:
                if not slow_reader.ident:
                    slow_reader.start()
                device.wait_for(lambda before=before: device.ready > before)  # type: ignore[misc]
        slow_reader.join(PATIENCE)
        assert device.ready
        assert read == text

    def test_bytes_and_bulk_keep_their_order(self, bench: Bench, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        device = bench.start(StreamBackend(bench.loop, None, writer))
        device.print(b"one ")
        assert device.backend.write(memoryview(b"two ")) == 4
        device.print(b"three")
        assert read_exactly(reader, 13) == b"one two three"

    def test_flush_waits_for_what_the_uart_still_holds(
        self, bench: Bench, pipe: tuple[int, int]
    ) -> None:
        reader, writer = pipe
        seen = bytearray()
        backend = StreamBackend(bench.loop, None, writer, on_output=seen.extend)
        uart = Serial(RecordingLine(), backend)
        uart.write(Register.FCR, 1, 1)
        sent = 0
        # The thread isn't started, so the buffer fills up, and then the FIFO.
        while uart.read(Register.LSR, 1) & LineStatus.THR_EMPTY:
            uart.write(Register.THR, 1, sent & 0xFF)
            sent += 1
        assert sent == OUTPUT_CAPACITY + 1
        reading = threading.Thread(target=lambda: read_exactly(reader, sent))
        reading.start()
        bench.backends.append(backend)
        backend.start()
        assert backend.flush(PATIENCE)
        reading.join(PATIENCE)
        assert len(seen) == sent
        assert uart.read(Register.LSR, 1) & LineStatus.THR_EMPTY

    def test_the_reader_goes_away(self, bench: Bench, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        os.close(reader)
        lost: list[OSError] = []
        seen = bytearray()
        backend = StreamBackend(
            bench.loop, None, writer, on_output=seen.extend, on_lost=lost.append
        )
        device = bench.start(backend)
        for _ in range(3):
            device.print(b"x" * 1000)
            assert backend.flush(PATIENCE)
        assert [error.errno for error in lost] == [errno.EPIPE]
        assert len(seen) == 3000  # --expect still works

    def test_no_space_left(self, bench: Bench) -> None:
        lost: list[OSError] = []
        backend = open_file(bench.loop, "/dev/full", on_lost=lost.append)
        bench.start(backend).print(b"x")
        assert backend.flush(PATIENCE)
        assert [error.errno for error in lost] == [errno.ENOSPC]

    def test_a_descriptor_that_somebody_made_non_blocking(
        self, bench: Bench, pipe: tuple[int, int]
    ) -> None:
        reader, writer = pipe
        os.set_blocking(writer, False)
        device = bench.start(StreamBackend(bench.loop, None, writer))
        text = bytes(range(256)) * (OUTPUT_CAPACITY // 256)
        device.print(text)
        device.wait_for(lambda: True)
        assert read_exactly(reader, len(text)) == text
        assert not os.get_blocking(writer)

    def test_flags_of_the_user_s_descriptors_stay(
        self, bench: Bench, pipe: tuple[int, int]
    ) -> None:
        reader, writer = pipe
        bench.start(StreamBackend(bench.loop, reader, writer))
        bench.settle()
        assert os.get_blocking(reader)
        assert os.get_blocking(writer)

    def test_an_error_of_ours_ends_the_machine(self, bench: Bench) -> None:
        bug = RuntimeError("a bug in a callback")

        def see(data: bytes) -> None:
            raise bug

        device = bench.start(StreamBackend(bench.loop, None, None, on_output=see))
        device.print(b"x")
        assert bench.failed.wait(PATIENCE)
        assert bench.failure is bug

    def test_close_while_the_loop_runs(self, bench: Bench, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        device = bench.start(StreamBackend(bench.loop, reader, None))
        bench.settle()
        bench.backends[0].close()
        os.write(writer, b"too late")
        bench.settle()
        assert device.input == b""
        assert bench.failure is None

    def test_close_writes_the_last_words_and_is_idempotent(
        self, bench: Bench, tmp_path: Path
    ) -> None:
        path = tmp_path / "console"
        backend = open_file(bench.loop, str(path))
        bench.start(backend).print(b"reboot: Power down\n")
        backend.close()
        backend.close()
        assert path.read_bytes() == b"reboot: Power down\n"


class TestFile:
    def test_is_emptied(self, bench: Bench, tmp_path: Path) -> None:
        path = tmp_path / "console"
        path.write_bytes(b"yesterday's")
        backend = open_file(bench.loop, str(path))
        assert path.read_bytes() == b"yesterday's"
        bench.start(backend)
        assert path.read_bytes() == b""

    def test_that_cannot_be_written(self, bench: Bench, tmp_path: Path) -> None:
        with pytest.raises(HostError, match="console output"):
            open_file(bench.loop, str(tmp_path / "missing" / "console"))
        with pytest.raises(HostError, match="Is a directory"):
            open_file(bench.loop, str(tmp_path))


class TestInput:
    def test_pipe(self, bench: Bench, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        device = bench.start(StreamBackend(bench.loop, reader, None))
        os.write(writer, b"ls\n")
        device.wait_for(lambda: device.input == b"ls\n")

    def test_only_as_fast_as_the_device_takes_it(self, bench: Bench, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        text = bytes(n * 7 & 0xFF for n in range(50_000))
        os.write(writer, text)
        device = bench.start(StreamBackend(bench.loop, reader, None), room=0)
        bench.settle()
        for total in range(1000, len(text) + 1, 1000):
            device.give_room(1000)
            device.wait_for(lambda total=total: len(device.input) == total)  # type: ignore[misc]
        assert device.input == text

    def test_end_of_file_ends_the_reading(self, bench: Bench, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        backend = StreamBackend(bench.loop, reader, None)
        device = bench.start(backend)
        os.write(writer, b"last")
        os.close(writer)
        device.wait_for(lambda: device.input == b"last")
        bench.settle()
        backend.resume_input()
        bench.settle()
        assert device.input == b"last"
        device.print(b"and the guest runs on")
        assert backend.flush(PATIENCE)

    def test_regular_file(self, bench: Bench, tmp_path: Path) -> None:
        path = tmp_path / "script"
        text = bytes(range(256)) * 100
        path.write_bytes(text)
        with path.open("rb") as script:
            device = bench.start(StreamBackend(bench.loop, script.fileno(), None), room=16)
            for total in range(16, len(text) + 1, 16):
                device.wait_for(lambda total=total: len(device.input) == total)  # type: ignore[misc]
                device.give_room(16)
            bench.settle()
        assert device.input == text

    def test_dev_null(self, bench: Bench) -> None:
        with open(os.devnull, "rb") as null:
            device = bench.start(StreamBackend(bench.loop, null.fileno(), None))
            bench.settle()
            device.backend.resume_input()
            bench.settle()
            assert device.input == b""

    def test_through_a_uart_into_a_driver(self, bench: Bench, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        backend = StreamBackend(bench.loop, reader, None)
        raised = threading.Event()
        line = RecordingLine()
        uart = Serial(line, backend)
        # Edges are delivered to a driver that sleeps until there is one.
        line._drive = lambda level: raised.set() if level else None
        uart.write(Register.FCR, 1, 0xC1)
        uart.write(Register.MCR, 1, 0x0B)
        uart.write(Register.IER, 1, 0x01)
        bench.backends.append(backend)
        backend.start()
        text = bytes(n * 13 & 0xFF for n in range(10_000))
        os.write(writer, text)
        got = bytearray()
        while len(got) < len(text):
            assert raised.wait(PATIENCE)
            raised.clear()
            with uart.lock:
                while uart.read(Register.LSR, 1) & LineStatus.DATA_READY:
                    got.append(uart.read(Register.RBR, 1))
        assert got == text


class TestKeys:
    def test_break(self, bench: Bench, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        keys = EscapeKeys({"b": Key("send a break", lambda: backend.send_break())})
        backend = StreamBackend(bench.loop, reader, None, keys=keys)
        device = bench.start(backend)
        os.write(writer, b"\x01bh")
        device.wait_for(lambda: device.breaks == 1 and device.input == b"h")

    def test_a_guest_that_does_not_read_can_be_quit(
        self, bench: Bench, pipe: tuple[int, int]
    ) -> None:
        reader, writer = pipe
        quit_asked = threading.Event()
        keys = EscapeKeys({"x": Key("quit", quit_asked.set)})
        backend = StreamBackend(bench.loop, reader, None, keys=keys)
        device = bench.start(backend, room=0)
        pasted = b"p" * 10_000
        os.write(writer, pasted)
        os.write(writer, b"\x01x")
        assert quit_asked.wait(PATIENCE)
        device.give_room(1 << 30)
        device.wait_for(lambda: device.input == pasted)

    def test_what_is_typed_at_such_a_guest_is_bounded(
        self, bench: Bench, pipe: tuple[int, int]
    ) -> None:
        reader, writer = pipe
        quit_asked = threading.Event()
        keys = EscapeKeys({"x": Key("quit", quit_asked.set)})
        backend = StreamBackend(bench.loop, reader, None, keys=keys)
        device = bench.start(backend, room=0)
        for _ in range(TYPE_AHEAD_LIMIT // 4096 + 10):
            os.write(writer, b"p" * 4096)
        os.write(writer, b"\x01x")
        assert quit_asked.wait(PATIENCE)
        device.give_room(1 << 30)
        device.wait_for(lambda: len(device.input) == TYPE_AHEAD_LIMIT)


class TestPty:
    def open(self, bench: Bench) -> tuple[StreamBackend, FakeDevice, str]:
        names: list[str] = []
        backend = open_pty(bench.loop, names.append)
        (name,) = names
        return backend, bench.start(backend), name

    def test_both_directions(self, bench: Bench) -> None:
        _, device, name = self.open(bench)
        slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
        device.print(b"login: ")
        assert read_exactly(slave, 7) == b"login: "
        os.write(slave, b"root\r\x03")
        device.wait_for(lambda: device.input == b"root\r\x03")
        os.close(slave)

    def test_the_guest_does_not_wait_for_nobody(self, bench: Bench) -> None:
        backend, device, _ = self.open(bench)
        for _ in range(20):
            device.print(b"x" * 10_000)
            assert backend.flush(PATIENCE)

    def test_a_user_who_leaves_with_output_unread_frees_the_guest(self, bench: Bench) -> None:
        backend, device, name = self.open(bench)
        slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
        device.print(b"x" * 60_000)
        assert not backend.flush(0.01)  # the guest's output waits for the user
        os.close(slave)
        assert backend.flush(PATIENCE)

    def test_users_come_and_go(self, bench: Bench) -> None:
        backend, device, name = self.open(bench)
        for visit in (b"first", b"second", b"third"):
            device.print(b"nobody sees this")
            assert backend.flush(PATIENCE)
            slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
            os.write(slave, visit)
            device.wait_for(lambda visit=visit: device.input.endswith(visit))  # type: ignore[misc]
            device.print(visit)
            assert read_exactly(slave, len(visit)) == visit
            os.close(slave)
            bench.settle()
        assert device.input == b"firstsecondthird"

    def test_an_empty_seat_costs_no_time(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a hang-up the descriptor stays "ready"; the I/O thread must not spin on it."""
        reads = 0
        real_read = os.read

        def counting_read(fd: int, length: int) -> bytes:
            nonlocal reads
            reads += 1
            return real_read(fd, length)

        _, device, name = self.open(bench)
        slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
        os.write(slave, b"x")
        device.wait_for(lambda: device.input == b"x")
        monkeypatch.setattr(os, "read", counting_read)
        os.close(slave)
        for _ in range(100):
            bench.settle()
        assert reads < 5


def test_null_backend_takes_everything() -> None:
    backend = NullBackend()
    uart = Serial(RecordingLine(), backend)
    for _ in range(100_000):
        uart.write(Register.THR, 1, 0x55)
    assert uart.read(Register.LSR, 1) == LineStatus.IDLE
