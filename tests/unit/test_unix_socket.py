"""Listening Unix sockets, and the character backend on one, with real sockets."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.fakes import FakeClock, FakeReactor

from pyvmm.backends.unix_socket import (
    COALESCE_NS,
    OUTPUT_CAPACITY,
    RETRY_NS,
    SocketBackend,
    UnixListener,
)
from pyvmm.errors import HostError


class TestListener:
    def test_the_path_is_there_while_it_listens(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        listener = UnixListener(str(path), "--serial")
        assert path.is_socket()
        assert listener.accept() is None
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            accepted = listener.accept()
            assert accepted is not None
            assert not accepted.getblocking()
            accepted.close()
        listener.close()
        listener.close()
        assert not path.exists()

    def test_a_dead_one_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(path))
        UnixListener(str(path), "--serial").close()

    def test_one_in_use_is_not(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        first = UnixListener(str(path), "--serial")
        with pytest.raises(HostError, match=r"--port x: .*in use"):
            UnixListener(str(path), "--port x")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        first.close()

    def test_a_file_is_not_removed(self, tmp_path: Path) -> None:
        path = tmp_path / "precious"
        path.write_text("data")
        with pytest.raises(HostError, match="no socket"):
            UnixListener(str(path), "--serial")
        assert path.read_text() == "data"

    @pytest.mark.parametrize("path", ["x" * 200, "missing/s"])
    def test_impossible_paths(self, tmp_path: Path, path: str) -> None:
        with pytest.raises(HostError, match="--vsock: can't listen at"):
            UnixListener(str(tmp_path / path), "--vsock")

    def test_somebody_elses_path_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        listener = UnixListener(str(path), "--serial")
        path.unlink()
        other = UnixListener(str(path), "--serial")
        listener.close()
        assert path.is_socket()
        other.close()


class Device:
    """A character device with ``room`` for input."""

    def __init__(self, backend: SocketBackend, room: int = 1 << 30) -> None:
        self.backend = backend
        self.room = room
        self.input = bytearray()
        self.carriers: list[bool] = []
        self.ready = 0
        self.breaks = 0
        backend.connect(self)

    def receive(self, data: bytes | bytearray) -> int:
        accepted = min(self.room, len(data))
        self.room -= accepted
        self.input += data[:accepted]
        return accepted

    def receive_break(self) -> None:
        self.breaks += 1

    def output_ready(self) -> None:
        self.ready += 1

    def carrier(self, present: bool) -> None:
        self.carriers.append(present)


class Rig:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop, self.clock = FakeReactor(), FakeClock()
        self.seen = bytearray()
        listener = UnixListener(str(path), "--port x")
        self.backend = SocketBackend(self.loop, self.clock, listener, on_output=self.seen.extend)
        self.device = Device(self.backend)
        self.backend.start()
        self.loop.settle()
        self.clients: list[socket.socket] = []

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(str(self.path))
        self.clients.append(client)
        self.loop.settle()
        return client

    def put(self, data: bytes) -> None:
        for byte in data:
            assert self.backend.put(byte)

    def write_all(self, data: bytes, client: socket.socket) -> bytes:
        """Write ``data`` as fast as the client takes it; what it got."""
        rest, received = memoryview(data), bytearray()
        while len(received) < len(data):
            ready = self.device.ready
            rest = rest[self.backend.write(rest) :]
            received += client.recv(1 << 20)
            self.loop.settle()
            assert not rest or self.device.ready > ready
        return bytes(received)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "socket")
    yield rig
    rig.backend.close(0)
    for client in rig.clients:
        client.close()


class TestBackend:
    def test_both_directions(self, rig: Rig) -> None:
        assert rig.device.carriers == [False]
        client = rig.client()
        assert rig.device.carriers == [False, True]
        client.sendall(b"in")
        rig.loop.settle()
        assert rig.device.input == b"in"
        assert rig.backend.write(memoryview(b"out")) == 3
        assert client.recv(9) == b"out"
        assert rig.seen == b"out"

    def test_bytes_leave_together_and_before_what_is_written_later(self, rig: Rig) -> None:
        client = rig.client()
        rig.put(b"one ")
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(9)
        rig.clock.advance(COALESCE_NS)
        assert client.recv(9) == b"one "
        rig.put(b"two ")
        rig.backend.write(memoryview(b"three"))
        client.setblocking(True)
        assert client.recv(9, socket.MSG_WAITALL) == b"two three"
        assert rig.seen == b"one two three"

    def test_nothing_is_lost_when_the_client_is_slow(self, rig: Rig) -> None:
        client = rig.client()
        data = random.Random(3).randbytes(3 << 20)
        assert rig.write_all(data, client) == data
        assert rig.seen == data

    def test_bytes_are_refused_when_the_client_doesnt_read(self, rig: Rig) -> None:
        client = rig.client()
        accepted = 0
        while rig.backend.put(0x55):
            accepted += 1
            if not accepted % 1000:
                rig.clock.advance(COALESCE_NS)
            assert accepted < 1 << 20
        assert rig.device.ready == 0
        received = 0
        while received < accepted:
            received += len(client.recv(1 << 16))
            rig.loop.settle()
        assert rig.device.ready == 1

    def test_without_a_client_output_is_thrown_away_but_seen(self, rig: Rig) -> None:
        assert rig.backend.write(memoryview(b"nobody")) == 6
        rig.put(b"!" * (OUTPUT_CAPACITY - 1))
        rig.clock.advance(COALESCE_NS)
        assert rig.seen == b"nobody" + b"!" * (OUTPUT_CAPACITY - 1)
        client = rig.client()
        rig.backend.write(memoryview(b"hello"))
        assert client.recv(9) == b"hello"

    def test_input_is_read_as_the_device_takes_it(self, rig: Rig) -> None:
        client = rig.client()
        rig.device.room = 3
        data = random.Random(4).randbytes(1 << 20)
        client.setblocking(False)
        sent = 0
        while sent < len(data):
            try:
                sent += client.send(data[sent:])
            except BlockingIOError:
                break
            rig.loop.settle()
        assert sent < len(data)  # it isn't read ahead without bound
        assert rig.device.input == data[:3]
        client.setblocking(True)
        while len(rig.device.input) < sent:
            rig.device.room = 10_000
            rig.backend.resume_input()
            rig.loop.settle()
        assert rig.device.input == data[:sent]

    def test_clients_follow_one_another(self, rig: Rig) -> None:
        first = rig.client()
        second = rig.client()
        second.sendall(b"second")
        rig.loop.settle()
        assert rig.device.input == b""
        first.sendall(b"first ")
        first.close()
        rig.loop.settle()
        assert rig.device.input == b"first second"
        assert rig.device.carriers == [False, True, False, True]

    def test_all_input_comes_before_the_hang_up(self, rig: Rig) -> None:
        client = rig.client()
        rig.device.room = 1
        client.sendall(b"abc")
        client.close()
        rig.loop.settle()
        assert rig.device.carriers == [False, True]
        rig.device.room = 9
        rig.backend.resume_input()
        rig.loop.settle()
        assert rig.device.input == b"abc"
        assert rig.device.carriers == [False, True, False]

    def test_a_client_that_vanishes_frees_the_device(self, rig: Rig) -> None:
        client = rig.client()
        data = memoryview(bytes(1 << 20))
        while rig.backend.write(data):
            pass
        client.close()
        rig.loop.settle()
        assert rig.device.ready
        assert rig.backend.write(data) == len(data)
        assert rig.device.carriers[-1] is False

    def test_output_is_flushed_at_the_end(self, rig: Rig) -> None:
        client = rig.client()
        rig.put(b"last words")
        rig.backend.close(1.0)
        assert client.recv(20) == b"last words"
        assert client.recv(20) == b""
        assert not rig.path.exists()

    def test_flush(self, rig: Rig) -> None:
        client = rig.client()
        rig.put(b"now")
        assert rig.backend.flush(1.0)
        assert client.recv(20) == b"now"

    def test_a_client_that_doesnt_read_cant_keep_us(self, rig: Rig) -> None:
        rig.client()
        while rig.backend.write(memoryview(bytes(1 << 16))):
            pass
        rig.put(b"x")
        assert not rig.backend.flush(0.01)
        rig.backend.close(0.01)

    def test_no_file_descriptor_for_a_client(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def accept(self: UnixListener) -> None:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(UnixListener, "accept", accept)
            client = rig.client()  # settles: there is no busy loop
        client.sendall(b"patient")
        rig.clock.advance(RETRY_NS)
        rig.loop.settle()
        assert rig.device.input == b"patient"

    def test_never_started(self, tmp_path: Path) -> None:
        path = tmp_path / "other"
        loop = FakeReactor()
        backend = SocketBackend(loop, FakeClock(), UnixListener(str(path), "--port x"))
        Device(backend)
        backend.close()
        assert not path.exists()
        assert not loop.watched

    def test_break(self, rig: Rig) -> None:
        rig.backend.send_break()
        assert rig.device.breaks == 1
