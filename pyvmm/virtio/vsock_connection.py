"""A connection of the socket device: a stream between a socket in the guest and one on the host.

Virtual I/O Device (VIRTIO) Version 1.2, section 5.10.6. What is here is one connection's state:
which packets it owes to the driver, the credit of either side (5.10.6.3), and what waits for the
host's socket. The device (:mod:`pyvmm.virtio.vsock`) has the queues and decides what becomes of a
connection.

Credit: each side says how large its buffer is (``buf_alloc``) and how much it has taken out of it
so far (``fwd_cnt``, modulo 2**32); so the other knows how much it may send.
"""

from __future__ import annotations

import socket

from pyvmm.virtio.buffers import behind, first

BUFFER_SIZE = 256 * 1024
"""What may wait for a host program that doesn't read: the credit that we give the driver."""
UPDATE_AFTER = BUFFER_SIZE // 4
"""Tell the driver once this much has gone to the host's socket, if no packet has told it."""

MAX_LINE = 32
"""``CONNECT``, a port and a line feed have room in it."""
MAX_PORT = 0xFFFF_FFFE
"""VMADDR_PORT_ANY is above."""

CYCLE = 1 << 32


class Op:
    """Packets' operations (5.10.6)."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown:
    """Flags of a SHUTDOWN packet: what its sender will not do any more."""

    RECEIVE = 1
    SEND = 2
    BOTH = 3


class State:
    """Where a connection stands."""

    GREETING = 0  # a host program has connected to us, and its CONNECT line isn't complete
    REQUESTED = 1  # the driver has been asked, or will be
    ESTABLISHED = 2
    DRAINING = 3  # over for the driver; the rest of its data goes to the host program
    DEAD = 4  # no socket any more; the driver is still to be told


class Connection:
    """``key`` is (host port, guest port); ``owed`` are the operations of the packets that the
    driver is still to get, in their order; ``deadline`` is when we lose patience, if at all;
    ``watched`` are the events that the loop waits for."""

    __slots__ = (
        "asked_for_credit",
        "deadline",
        "fwd_cnt",
        "key",
        "line",
        "owed",
        "peer_buf_alloc",
        "peer_fwd_cnt",
        "read_ended",
        "rx_cnt",
        "shutdown_by_driver",
        "shutdown_by_us",
        "socket",
        "state",
        "told_fwd_cnt",
        "tx_cnt",
        "unsent",
        "watched",
        "write_ended",
    )

    def __init__(self, host: socket.socket, key: tuple[int, int], state: int) -> None:
        self.socket = host
        self.key = key
        self.state = state
        self.owed: list[int] = []
        self.deadline: int | None = None
        self.watched = 0
        self.line = b""
        self.unsent = bytearray()
        self.read_ended = False
        self.write_ended = False
        self.shutdown_by_us = 0
        self.shutdown_by_driver = 0
        self.tx_cnt = self.peer_buf_alloc = self.peer_fwd_cnt = 0
        self.rx_cnt = self.fwd_cnt = self.told_fwd_cnt = 0
        self.asked_for_credit = False

    def owe(self, op: int) -> None:
        if op not in self.owed:
            self.owed.append(op)

    # Credit.

    @property
    def credit(self) -> int:
        """How many bytes the driver has room for, as far as we know. A driver that lies about what
        it has taken gets nothing."""
        return max(0, self.peer_buf_alloc - (self.tx_cnt - self.peer_fwd_cnt) % CYCLE)

    def credit_told(self, buf_alloc: int, fwd_cnt: int) -> None:
        """Each packet from the driver says it."""
        self.peer_buf_alloc, self.peer_fwd_cnt = buf_alloc, fwd_cnt
        if self.credit:
            self.asked_for_credit = False

    @property
    def wants_to_read(self) -> bool:
        """Whether what the host program sends can go to the driver."""
        return (
            self.state == State.ESTABLISHED
            and not self.read_ended
            and not self.shutdown_by_driver & Shutdown.RECEIVE
            and self.credit > 0
        )

    # To the host program.

    def take(self, data: list[memoryview], length: int) -> bool:
        """Data from the driver goes to the socket, or waits for it. False if that is more than the
        driver had credit for."""
        if (self.rx_cnt - self.fwd_cnt) % CYCLE + length > BUFFER_SIZE:
            return False
        self.rx_cnt = (self.rx_cnt + length) % CYCLE
        sent = 0 if self.unsent else self._send(data)
        for view in behind(data, sent):
            self.unsent += view
        self._forwarded(sent)
        return True

    def flush(self) -> None:
        """The socket may have room again."""
        if self.unsent:
            with memoryview(self.unsent) as view:
                sent = self._send([view])
            del self.unsent[:sent]
            self._forwarded(sent)
        if not self.unsent and self.shutdown_by_driver & Shutdown.SEND:
            self._end_writing()

    def _send(self, data: list[memoryview]) -> int:
        total = sum(map(len, data))
        if self.write_ended:
            return total
        try:
            return self.socket.sendmsg(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.write_ended = True  # nobody reads any more; what follows is thrown away
            return total

    def _forwarded(self, length: int) -> None:
        self.fwd_cnt = (self.fwd_cnt + length) % CYCLE
        if (self.fwd_cnt - self.told_fwd_cnt) % CYCLE >= UPDATE_AFTER:
            self.owe(Op.CREDIT_UPDATE)

    def shut_down(self, flags: int) -> None:
        """The driver will not receive, or not send, any more; the host program gets to know."""
        self.shutdown_by_driver |= flags & Shutdown.BOTH
        if flags & Shutdown.RECEIVE:
            self._shut(socket.SHUT_RD)
        self.flush()

    def _end_writing(self) -> None:
        """The driver sends nothing any more; the host program sees the end of the stream."""
        if not self.write_ended:
            self.write_ended = True
            self._shut(socket.SHUT_WR)

    def _shut(self, how: int) -> None:
        try:
            self.socket.shutdown(how)
        except OSError:
            pass  # the other end has gone

    # From the host program.

    def read_into(self, buffers: list[memoryview]) -> int:
        """Fill the driver's buffers as far as its credit goes; 0 at the end of the stream.
        BlockingIOError if there is nothing now."""
        try:
            length = self.socket.recvmsg_into(first(buffers, self.credit))[0]
        except BlockingIOError:
            raise
        except OSError:
            length = 0  # most likely it was killed with our data unread
        self.tx_cnt = (self.tx_cnt + length) % CYCLE
        return length

    def read_greeting(self) -> int | None:
        """The port of a complete CONNECT line; None if it isn't complete. What follows the line is
        left in the socket. ValueError if it is no such line, EOFError at the end of the stream."""
        try:
            seen = self.socket.recv(MAX_LINE - len(self.line), socket.MSG_PEEK)
            end = seen.find(b"\n") + 1
            self.line += self.socket.recv(end or len(seen))
        except BlockingIOError:
            return None
        except OSError:
            raise EOFError from None
        if not seen:
            raise EOFError
        if end:
            return parse_greeting(self.line)
        if len(self.line) >= MAX_LINE:
            raise ValueError(self.line)
        return None

    def close(self) -> None:
        self.socket.close()
        self.unsent.clear()
        self.state = State.DEAD
        self.deadline = None


def parse_greeting(line: bytes) -> int:
    """The port in ``CONNECT <port>\\n``. ValueError if it is anything else."""
    word, _, number = line.rstrip(b"\r\n").partition(b" ")
    if word != b"CONNECT" or not line.endswith(b"\n") or not number.isdigit():
        raise ValueError(line)
    port = int(number)
    if port > MAX_PORT:
        raise ValueError(line)
    return port


def connect_unix(path: str) -> socket.socket | None:
    """A connection to who listens at ``path``; None if nobody does, or has no time for us."""
    host = None
    try:
        host = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        host.connect(path)
    except OSError:
        if host is not None:
            host.close()
        return None
    return host
