"""virtio-vsock: packets from a driver, programs at Unix sockets, and the lies of either."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fakes import FakeClock, FakeReactor, RecordingFaults
from unit.virtio_driver import NEEDS_RESET, DriverQueue, Pc, VirtioDriver

from pyvmm.backends.unix_socket import RETRY_NS, UnixListener
from pyvmm.virtio.vsock import (
    FIRST_HOST_PORT,
    HEADER,
    MAX_ANSWERS,
    MAX_CONNECTIONS,
    PATIENCE_NS,
    VsockDevice,
)
from pyvmm.virtio.vsock_connection import BUFFER_SIZE, MAX_LINE, parse_greeting

RX, TX, EVENT = 0, 1, 2
CID, HOST = 42, 2
REQUEST, RESPONSE, RST, SHUTDOWN, RW, UPDATE, CREDIT_REQUEST = range(1, 8)
BUF_ALLOC = 1 << 18
RX_SIZE = 44 + 4096


class Packet(NamedTuple):
    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int
    data: bytes = b""


class Rig:
    """A PC with a socket device, its driver, and a directory for the sockets."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "v"
        self.loop, self.clock, self.faults = FakeReactor(), FakeClock(), RecordingFaults()
        listener = UnixListener(str(self.path), "--vsock", backlog=1024)
        self.device = VsockDevice(self.loop, self.clock, self.faults, CID, listener)
        self.pc = Pc(self.device)
        self.driver = VirtioDriver(self.pc)
        self.sockets: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        self.driver.negotiate()
        self.queues: list[DriverQueue] = [self.driver.add_queue(index) for index in range(3)]
        self.driver.run()
        self.loop.settle()
        self.header = self.driver.allocate(44)
        self.buffers: dict[int, int] = {}
        self.fwd_cnt = 0

    def close(self) -> None:
        self.pc.close()
        for each in self.sockets:
            each.close()

    # The driver.

    def give(self, count: int = 1) -> None:
        """Receive buffers, each of a header and 4 KiB."""
        for _ in range(count):
            address = self.driver.allocate(RX_SIZE)
            head = self.queues[RX].add([], [(address, 44), (address + 44, 4096)])
            self.buffers[head] = address
        self.queues[RX].kick()
        self.loop.settle()

    def got(self) -> list[Packet]:
        """The packets that have come; their buffers are given again."""
        packets = []
        used = [(self.buffers.pop(head), written) for head, written in self.queues[RX].take()]
        for address, written in used:
            data = self.pc.memory.read(address, written)
            packets.append(Packet(*HEADER.unpack(data[:44]), data[44:]))
            assert packets[-1].length == len(packets[-1].data)
            head = self.queues[RX].add([], [(address, 44), (address + 44, 4096)])
            self.buffers[head] = address
        self.queues[RX].kick()
        self.loop.settle()
        return packets

    def send_raw(self, data: bytes, payload: tuple[int, int] | None = None) -> None:
        address = self.driver.allocate(len(data))
        self.pc.memory.write(address, data)
        self.queues[TX].add([(address, len(data)), *([payload] if payload else [])], [])
        self.queues[TX].kick()
        self.loop.settle()
        self.driver._free = address  # used up

    def send(
        self, op: int, guest_port: int, host_port: int, data: bytes = b"", **fields: int
    ) -> None:
        values = {
            "src_cid": CID,
            "dst_cid": HOST,
            "src_port": guest_port,
            "dst_port": host_port,
            "length": len(data),
            "type": 1,
            "op": op,
            "flags": 0,
            "buf_alloc": BUF_ALLOC,
            "fwd_cnt": self.fwd_cnt,
        }
        values.update(fields)
        self.send_raw(HEADER.pack(*values.values()) + data)
        self.queues[TX].take()

    # The host.

    def listen(self, port: int) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self.path}_{port}")
        listener.listen(1024)
        self.sockets.append(listener)
        return listener

    def client(self, line: bytes = b"") -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))
        client.sendall(line)
        client.settimeout(10)
        self.sockets.append(client)
        self.loop.settle()
        return client

    def from_host(self, guest_port: int = 5) -> tuple[socket.socket, int]:
        """An established connection that a host program made, and its host port."""
        client = self.client(b"CONNECT %d\n" % guest_port)
        (request,) = self.got()
        assert (request.op, request.dst_port) == (REQUEST, guest_port)
        self.send(RESPONSE, guest_port, request.src_port)
        assert client.recv(100) == b"OK %d\n" % request.src_port
        return client, request.src_port

    def from_guest(self, host_port: int = 9, guest_port: int = 1000) -> socket.socket:
        """The host program's end of an established connection that the guest made."""
        listener = self.listen(host_port)
        self.send(REQUEST, guest_port, host_port)
        assert [p.op for p in self.got()] == [RESPONSE]
        host, _ = listener.accept()
        host.settimeout(10)
        self.sockets.append(host)
        return host


class FailingSocket:
    """A socket from which nothing can be read, though it is readable."""

    def __init__(self, real: socket.socket) -> None:
        self.fileno, self.close, self.shutdown = real.fileno, real.close, real.shutdown

    def recv(self, *_: object) -> bytes:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    recvmsg_into = recv


def ended(client: socket.socket) -> bool:
    """Whether the other end has closed; it may have left unread what we sent."""
    try:
        return not client.recv(9)
    except ConnectionResetError:
        return True


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    rig.give(32)
    yield rig
    rig.close()


@pytest.fixture
def starved(tmp_path: Path) -> Iterator[Rig]:
    """Whose driver gives no receive buffers."""
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def test_what_is_offered(rig: Rig) -> None:
    assert rig.driver.function.read(2, 2) == 0x1053
    assert rig.driver.offered() & 0xFF_FFFF == 1
    assert rig.driver.config(0, 4) == CID
    assert rig.driver.get("num_queues") == 3


class TestFromTheHost:
    def test_a_conversation(self, rig: Rig) -> None:
        client, port = rig.from_host(5)
        assert port >= FIRST_HOST_PORT
        client.sendall(b"question")
        rig.loop.settle()
        (packet,) = rig.got()
        assert packet == Packet(HOST, CID, port, 5, 8, 1, RW, 0, BUFFER_SIZE, 0, b"question")
        rig.send(RW, 5, port, b"answer")
        assert client.recv(99) == b"answer"
        rig.send(CREDIT_REQUEST, 5, port)
        (packet,) = rig.got()
        assert (packet.op, packet.fwd_cnt) == (UPDATE, 6)

    def test_data_behind_the_line_is_the_guests(self, rig: Rig) -> None:
        client = rig.client(b"CONNECT 7\nearly")
        (request,) = rig.got()
        rig.send(RESPONSE, 7, request.src_port)
        assert [p.data for p in rig.got()] == [b"early"]
        assert client.recv(99).startswith(b"OK ")

    def test_a_line_may_come_in_pieces(self, rig: Rig) -> None:
        client = rig.client(b"CONN")
        client.sendall(b"ECT 1")
        rig.loop.settle()
        assert rig.got() == []
        client.sendall(b"2\n")
        rig.loop.settle()
        assert rig.got()[0].dst_port == 12

    @pytest.mark.parametrize(
        "line", [b"HELLO\n", b"CONNECT x\n", b"CONNECT 4294967295\n", b"x" * 100, b"\n"]
    )
    def test_other_lines_end_it(self, rig: Rig, line: bytes) -> None:
        client = rig.client(line)
        assert ended(client)
        assert rig.got() == []
        assert not rig.device.connections

    def test_refused(self, rig: Rig) -> None:
        client = rig.client(b"CONNECT 5\n")
        (request,) = rig.got()
        rig.send(RST, 5, request.src_port)
        assert client.recv(9) == b""
        assert rig.got() == []

    def test_no_answer_in_time(self, rig: Rig) -> None:
        client = rig.client(b"CONNECT 5\n")
        rig.got()
        rig.clock.advance(PATIENCE_NS)
        assert client.recv(9) == b""
        assert [p.op for p in rig.got()] == [RST]
        assert not rig.device.connections

    def test_no_line_in_time(self, rig: Rig) -> None:
        client = rig.client(b"CONN")
        rig.clock.advance(PATIENCE_NS - 1)
        assert rig.clock.armed
        rig.clock.advance(1)
        assert client.recv(9) == b""
        assert rig.got() == []

    def test_an_established_one_has_time(self, rig: Rig) -> None:
        client, port = rig.from_host()
        rig.clock.advance(100 * PATIENCE_NS)
        rig.send(RW, 5, port, b"x")
        assert client.recv(9) == b"x"

    def test_a_client_that_leaves_before_the_request_is_sent(self, starved: Rig) -> None:
        for _ in range(3 * MAX_CONNECTIONS):
            starved.client(b"CONNECT 5\n")
            starved.sockets.pop().close()
        starved.clock.advance(PATIENCE_NS)
        starved.loop.settle()
        starved.clock.advance(PATIENCE_NS)
        starved.loop.settle()
        assert len(starved.device.connections) <= MAX_CONNECTIONS

    def test_ports_differ(self, rig: Rig) -> None:
        assert len({rig.from_host()[1] for _ in range(5)}) == 5


class TestFromTheGuest:
    def test_a_conversation(self, rig: Rig) -> None:
        host = rig.from_guest(9, 1000)
        rig.send(RW, 1000, 9, b"question")
        assert host.recv(99) == b"question"
        host.sendall(b"answer")
        rig.loop.settle()
        (packet,) = rig.got()
        assert packet == Packet(HOST, CID, 9, 1000, 6, 1, RW, 0, BUFFER_SIZE, 8, b"answer")

    def test_nobody_listens(self, rig: Rig) -> None:
        rig.send(REQUEST, 1000, 9)
        (packet,) = rig.got()
        assert (packet.op, packet.src_port, packet.dst_port) == (RST, 9, 1000)

    def test_a_packet_for_no_connection(self, rig: Rig) -> None:
        for op in (RESPONSE, RW, SHUTDOWN, UPDATE, CREDIT_REQUEST):
            rig.send(op, 1000, 9)
            assert [p.op for p in rig.got()] == [RST]
        rig.send(RST, 1000, 9)
        assert rig.got() == []

    def test_another_type_of_socket(self, rig: Rig) -> None:
        rig.listen(9)
        rig.send(REQUEST, 1000, 9, type=2)
        assert [p.op for p in rig.got()] == [RST]

    @pytest.mark.parametrize("cids", [(CID, 3), (CID, 1), (43, HOST), (CID, 1 << 40)])
    def test_wrong_cids_are_dropped_and_counted(self, rig: Rig, cids: tuple[int, int]) -> None:
        rig.listen(9)
        for _ in range(2):
            rig.send(REQUEST, 1000, 9, src_cid=cids[0], dst_cid=cids[1])
        assert rig.got() == []
        assert rig.faults.counts == {"virtio-vsock: wrong CID": 2}


class TestEnds:
    def test_the_guest_closes(self, rig: Rig) -> None:
        host = rig.from_guest()
        rig.send(RW, 1000, 9, b"bye")
        rig.send(SHUTDOWN, 1000, 9, flags=3)
        assert [p.op for p in rig.got()] == [RST]
        assert host.recv(9) == b"bye"
        assert host.recv(9) == b""
        assert not rig.device.connections

    def test_the_guest_closes_on_a_slow_reader(self, rig: Rig) -> None:
        """The driver is done with it; the data isn't lost."""
        host = rig.from_guest()
        data = random.Random(5).randbytes(4096)
        sent = b""
        while len(rig.device.connections[9, 1000].unsent) < 8192:
            rig.send(RW, 1000, 9, data)
            sent += data
        rig.got()
        rig.send(SHUTDOWN, 1000, 9, flags=3)
        assert [p.op for p in rig.got()] == [RST]
        rig.clock.advance(10 * PATIENCE_NS)
        received = bytearray()
        while piece := host.recv(1 << 16):
            received += piece
            rig.loop.settle()
        assert received == sent

    def test_the_guest_shuts_down_one_direction(self, rig: Rig) -> None:
        host = rig.from_guest()
        rig.send(SHUTDOWN, 1000, 9, flags=2)
        assert host.recv(9) == b""
        host.sendall(b"still here")
        rig.loop.settle()
        assert [p.data for p in rig.got()] == [b"still here"]
        rig.send(SHUTDOWN, 1000, 9, flags=1)
        assert [p.op for p in rig.got()] == [RST]
        with pytest.raises(BrokenPipeError):
            host.sendall(b"x")

    def test_the_guest_stops_receiving(self, rig: Rig) -> None:
        host = rig.from_guest()
        rig.send(SHUTDOWN, 1000, 9, flags=1)
        with pytest.raises(BrokenPipeError):
            host.sendall(b"x")
        rig.send(RW, 1000, 9, b"y")
        assert host.recv(9) == b"y"

    def test_a_reset_by_the_guest(self, rig: Rig) -> None:
        host = rig.from_guest()
        rig.send(RST, 1000, 9)
        assert host.recv(9) == b""
        assert rig.got() == []

    def test_the_host_program_ends_its_stream(self, rig: Rig) -> None:
        host = rig.from_guest()
        host.sendall(b"last")
        host.shutdown(socket.SHUT_WR)
        rig.loop.settle()
        data, end = rig.got()
        assert data.data == b"last"
        assert (end.op, end.flags) == (SHUTDOWN, 2)
        rig.send(RW, 1000, 9, b"reply")
        assert host.recv(9) == b"reply"

    def test_the_host_program_is_gone(self, rig: Rig) -> None:
        host = rig.from_guest()
        host.close()
        rig.loop.settle()
        rig.send(RW, 1000, 9, b"to nobody")
        packets = rig.got()
        assert [p.op for p in packets] == [SHUTDOWN] * len(packets)
        assert packets[-1].flags == 3
        rig.clock.advance(PATIENCE_NS)
        assert [p.op for p in rig.got()] == [RST]
        assert not rig.device.connections

    @pytest.mark.parametrize("greeted", [True, False])
    def test_a_host_that_fails(self, rig: Rig, greeted: bool) -> None:
        """Such as for lack of memory; that ends the connection, and nothing else."""
        client = rig.from_host()[0] if greeted else rig.client(b"CON")
        for connection in rig.device._all():
            connection.socket = cast(socket.socket, FailingSocket(connection.socket))
        client.sendall(b"NECT 5\n")
        rig.loop.settle()
        assert [p.op for p in rig.got()] == ([SHUTDOWN] if greeted else [])
        if not greeted:
            assert ended(client)
        rig.from_host()

    def test_a_driver_reset_closes_all(self, rig: Rig) -> None:
        host = rig.from_guest()
        client, _ = rig.from_host()
        rig.driver.reset()
        assert host.recv(9) == client.recv(9) == b""
        rig.start()
        rig.give(8)
        rig.from_host()

    def test_restore_tells_the_driver(self, rig: Rig, tmp_path: Path) -> None:
        rig.from_host()
        event = rig.driver.allocate(8)
        rig.pc.memory.write(event, b"\xff" * 8)
        rig.queues[EVENT].add([], [(event, 8)])
        rig.device.pause()
        state = rig.pc.transports[0].save()
        (tmp_path / "other").mkdir()
        other = Rig(tmp_path / "other")
        other.pc.memory.write(0, rig.pc.memory.read(0, rig.pc.memory.size))
        other.pc.transports[0].restore(state)
        other.loop.settle()
        assert other.pc.memory.read(event, 8) == struct.pack("<I", 0) + b"\xff" * 4
        assert not other.device.connections
        other.close()

    def test_a_pause_keeps_connections(self, rig: Rig) -> None:
        client, _ = rig.from_host()
        rig.device.pause()
        client.sendall(b"wait")
        rig.loop.settle()
        assert rig.queues[RX].take() == []
        rig.device.resume()
        rig.loop.settle()
        assert [p.data for p in rig.got()] == [b"wait"]

    def test_the_socket_goes_with_the_device(self, rig: Rig) -> None:
        rig.device.close()
        assert not rig.path.exists()


class TestCredit:
    def test_nothing_is_lost_to_a_slow_guest(self, rig: Rig) -> None:
        """Data is read only while the driver has room for it."""
        host = rig.from_guest()
        rig.send(UPDATE, 1000, 9, buf_alloc=10_000)
        data = random.Random(6).randbytes(100_000)
        host.sendall(data)
        rig.loop.settle()
        received = b""
        asked = 0
        for _ in range(200):
            packets = rig.got()
            received += b"".join(p.data for p in packets)
            asked += sum(p.op == CREDIT_REQUEST for p in packets)
            assert len(received) - rig.fwd_cnt <= 10_000
            if not packets:
                rig.fwd_cnt = len(received)
                rig.send(UPDATE, 1000, 9, buf_alloc=10_000)
        assert received == data
        assert 1 <= asked <= 11

    def test_nothing_is_lost_to_a_slow_host_program(self, rig: Rig) -> None:
        host = rig.from_guest()
        rng = random.Random(7)
        sent, received, told = bytearray(), bytearray(), 0
        while len(sent) < 2 << 20:
            piece = rng.randbytes(min(BUFFER_SIZE - (len(sent) - told), 60_000))
            if piece:
                rig.send(RW, 1000, 9, piece)
                sent += piece
            else:
                received += host.recv(100_000)
                rig.loop.settle()
            told = max([told, *(p.fwd_cnt for p in rig.got())])
        while len(received) < len(sent):
            received += host.recv(1 << 20)
            rig.loop.settle()
        assert received == sent
        assert not rig.faults.counts

    def test_more_than_the_credit_ends_the_connection(self, rig: Rig) -> None:
        host = rig.from_guest()
        piece = bytes(60_000)
        packets: list[Packet] = []
        for _ in range(100):
            rig.send(RW, 1000, 9, piece)
            packets += rig.got()
            if any(p.op == RST for p in packets):
                break
        assert any(p.op == RST for p in packets)
        assert "virtio-vsock: more data than there is credit for" in rig.faults.counts
        host.close()

    def test_a_driver_that_lies_gets_nothing(self, rig: Rig) -> None:
        host = rig.from_guest()
        rig.send(UPDATE, 1000, 9, fwd_cnt=100_000)  # it has been sent nothing
        host.sendall(b"data")
        rig.loop.settle()
        assert [p.op for p in rig.got() if p.op == RW] == []
        rig.send(UPDATE, 1000, 9, fwd_cnt=0)
        assert [p.data for p in rig.got() if p.op == RW] == [b"data"]

    def test_counters_wrap(self, rig: Rig) -> None:
        host = rig.from_guest()
        connection = rig.device.connections[9, 1000]
        start = (1 << 32) - 3
        connection.tx_cnt = connection.rx_cnt = connection.fwd_cnt = start
        connection.told_fwd_cnt = start
        rig.send(RW, 1000, 9, b"abcdef", fwd_cnt=start)
        assert host.recv(9) == b"abcdef"
        host.sendall(b"ghijkl")
        rig.loop.settle()
        (packet,) = rig.got()
        assert (packet.data, packet.fwd_cnt) == (b"ghijkl", 3)
        host.sendall(b"m")
        rig.loop.settle()
        assert rig.got()[0].data == b"m"


class TestHostile:
    def test_short_packets(self, rig: Rig) -> None:
        for length in (1, 43):
            rig.send_raw(bytes(length))
        assert rig.faults.counts == {"virtio-vsock: packet without a whole header": 2}
        assert not rig.driver.status & NEEDS_RESET

    @pytest.mark.parametrize("length", [7, 0xFFFF_FFFF])
    def test_a_length_beyond_the_packet(self, rig: Rig, length: int) -> None:
        host = rig.from_guest()
        rig.send(RW, 1000, 9, b"123456", length=length)
        assert [p.op for p in rig.got()] == [RST]
        assert host.recv(9) == b""

    def test_a_packet_of_all_memory(self, rig: Rig) -> None:
        rig.from_guest()
        header = HEADER.pack(CID, HOST, 1000, 9, 15 << 20, 1, RW, 0, BUF_ALLOC, 0)
        rig.send_raw(header, (0, 15 << 20))
        assert [p.op for p in rig.got()] == [RST]

    def test_a_receive_buffer_too_small(self, starved: Rig) -> None:
        address = starved.driver.allocate(44)
        starved.queues[RX].add([], [(address, 44)])
        starved.send(REQUEST, 1, 1)
        assert starved.driver.status & NEEDS_RESET

    def test_10_000_requests_without_receive_buffers(self, starved: Rig) -> None:
        """Answers are bounded: the device stops to read, and goes on later."""
        starved.listen(9)
        sent = 0
        for port in range(10_000):
            if not starved.queues[TX]._free:
                break
            starved.send_raw(
                HEADER.pack(CID, HOST, port, 9 if port % 2 else 8, 0, 1, REQUEST, 0, 0, 0)
            )
            starved.queues[TX].take()
            sent += 1
        assert sent < 10_000
        assert len(starved.device._answers) < 2 * MAX_ANSWERS
        assert len(starved.device.connections) <= MAX_CONNECTIONS
        starved.give(32)
        answered = 0
        while packets := starved.got():
            answered += len(packets)
        assert answered >= sent - 1
        assert len(starved.queues[TX].take()) > 0  # it has gone on

    def test_more_connections_than_there_may_be(self, rig: Rig) -> None:
        listener = rig.listen(9)
        listener.setblocking(False)
        accepted = refused = 0
        for port in range(MAX_CONNECTIONS + 100):
            rig.send(REQUEST, port, 9)
            (packet,) = rig.got()
            refused += packet.op == RST
            accepted += packet.op == RESPONSE
            try:
                rig.sockets.append(listener.accept()[0])
            except BlockingIOError:
                pass
        assert accepted == MAX_CONNECTIONS
        assert refused
        assert rig.faults.counts["virtio-vsock: too many connections"] == refused
        client = rig.client(b"CONNECT 5\n")
        assert rig.got() == []  # it waits in the queue
        rig.send(RST, 0, 9)
        rig.loop.settle()
        assert [p.op for p in rig.got()] == [REQUEST]
        client.close()

    def test_no_file_descriptor_for_a_host_program(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def accept(self: UnixListener) -> None:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(UnixListener, "accept", accept)
            rig.client(b"CONNECT 5\n")
        rig.clock.advance(RETRY_NS)
        rig.loop.settle()
        assert [p.op for p in rig.got()] == [REQUEST]

    def test_data_waits_for_receive_buffers(self, starved: Rig) -> None:
        listener = starved.listen(9)
        starved.send(REQUEST, 1000, 9)
        host, _ = listener.accept()
        starved.sockets.append(host)
        host.sendall(b"data")
        starved.loop.settle()  # no busy loop
        starved.give(8)
        assert [(p.op, p.data) for p in starved.got()] == [(RESPONSE, b""), (RW, b"data")]

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 9),  # operation
                st.sampled_from([1000, 1001]),
                st.sampled_from([8, 9, FIRST_HOST_PORT, FIRST_HOST_PORT + 1]),
                st.binary(max_size=20),
                st.fixed_dictionaries(
                    {},
                    optional={
                        "length": st.integers(0, 0xFFFF_FFFF),
                        "flags": st.integers(0, 7),
                        "fwd_cnt": st.integers(0, 0xFFFF_FFFF),
                        "buf_alloc": st.sampled_from([0, 1, 5000, 0xFFFF_FFFF]),
                        "type": st.integers(0, 2),
                    },
                ),
                st.sampled_from(["", "client", "data", "close", "accept", "time"]),
            ),
            max_size=25,
        )
    )
    def test_anything_goes(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        steps: list[tuple[int, int, int, bytes, dict[str, int], str]],
    ) -> None:
        rig = Rig(tmp_path_factory.mktemp("v"))
        try:
            rig.give(16)
            listener = rig.listen(9)
            listener.setblocking(False)
            clients: list[socket.socket] = []
            for op, guest, host, data, fields, event in steps:
                rig.send(op, guest, host, data, **fields)
                rig.got()
                try:
                    if event == "client":
                        clients.append(rig.client(b"CONNECT 1000\n"))
                    elif event == "accept":
                        clients.append(listener.accept()[0])
                    elif event == "data" and clients:
                        clients[0].sendall(data)
                    elif event == "close" and clients:
                        clients.pop().close()
                    elif event == "time":
                        rig.clock.advance(PATIENCE_NS)
                except OSError:
                    pass
                rig.loop.settle()
            assert not rig.driver.status & NEEDS_RESET
            for key in list(rig.device.connections):
                rig.send(RST, key[1], key[0])
            assert not rig.device.connections
        finally:
            for client in clients:
                client.close()
            rig.close()


@given(st.binary(max_size=MAX_LINE))
def test_greetings(line: bytes) -> None:
    try:
        port = parse_greeting(line)
    except ValueError:
        return
    assert line.rstrip(b"\r\n").split(b" ") == [b"CONNECT", line[8:].rstrip(b"\r\n")]
    assert int(line[8:]) == port


@given(st.integers(0, 0xFFFF_FFFE))
def test_good_greetings(port: int) -> None:
    assert parse_greeting(b"CONNECT %d\n" % port) == port
    assert parse_greeting(b"CONNECT %d\r\n" % port) == port
