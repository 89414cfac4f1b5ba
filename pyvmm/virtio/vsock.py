"""virtio-vsock: stream sockets between the guest and programs on the host.

Virtual I/O Device (VIRTIO) Version 1.2, section 5.10. The host's side is Unix sockets, in the way
that Firecracker made known (its docs/vsock.md):

* a host program connects to PATH, sends ``CONNECT <port>\\n`` and, when the guest has accepted,
  gets ``OK <its own port>\\n``; then the stream is the guest's;
* a guest program that connects to the host (CID 2), port P, reaches who listens at ``PATH_P``; it
  is refused if nobody does.

Everything is bounded: connections, what waits for a slow host program (the credit that the driver
gets), and the answers that wait for a driver which gives no buffers: when there are too many, its
packets aren't read any more (5.10.6.1). Data goes between guest memory and the sockets directly.

Left out: seqpacket sockets, other CIDs than the host's.
"""

from __future__ import annotations

import struct
from typing import Any

from pyvmm.backends.unix_socket import RETRY_NS, UnixListener
from pyvmm.errors import GuestFaults
from pyvmm.eventloop import NS_PER_SECOND, READABLE, WRITABLE, Clock, Reactor
from pyvmm.virtio.buffers import behind, first, gather, scatter
from pyvmm.virtio.device import DeviceId
from pyvmm.virtio.loop_device import LoopDevice
from pyvmm.virtio.queue import Chain, Virtqueue, VirtqueueError
from pyvmm.virtio.vsock_connection import (
    BUFFER_SIZE,
    Connection,
    Op,
    Shutdown,
    State,
    connect_unix,
)

RX, TX, EVENT = 0, 1, 2
QUEUE_SIZE = 128
EVENT_QUEUE_SIZE = 16
BATCH = 16
"""Packets of one kind that are dealt with before others have their turn."""

VSOCK_F_STREAM = 1 << 0
TYPE_STREAM = 1
EVENT_TRANSPORT_RESET = 0

HOST_CID = 2

MAX_CONNECTIONS = 512
MAX_ANSWERS = 256
"""RST packets that may wait for a buffer before we read no further packets."""

FIRST_HOST_PORT = 1 << 30
"""Our end's port numbers, for connections that host programs make."""

PATIENCE_NS = 10 * NS_PER_SECOND
"""For a CONNECT line, for the driver's answer to a REQUEST, and for its RST after a SHUTDOWN."""

_CONFIG = struct.Struct("<Q")  # guest_cid
_EVENT = struct.Struct("<I")
# struct virtio_vsock_hdr: src_cid, dst_cid, src_port, dst_port, len, type, op, flags, buf_alloc,
# fwd_cnt.
HEADER = struct.Struct("<QQIIIHHIII")


class VsockDevice(LoopDevice):
    """The guest is ``cid``; host programs reach it at ``listener``, and it reaches them at that
    path with ``_<port>`` behind it."""

    def __init__(
        self, loop: Reactor, clock: Clock, faults: GuestFaults, cid: int, listener: UnixListener
    ) -> None:
        sizes = (QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE)
        super().__init__(loop, DeviceId.SOCKET, VSOCK_F_STREAM, sizes, _CONFIG.pack(cid))
        self.cid = cid
        self.connections: dict[tuple[int, int], Connection] = {}
        self._strangers: set[Connection] = set()  # with no key: greeting, or draining
        self._debtors: dict[Connection, None] = {}  # who owe the driver packets, in turn
        self._answers: list[tuple[int, int]] = []
        self._hungry: set[Connection] = set()  # readers that wait for the driver's buffers
        self._used: list[tuple[int, int]] = []
        self._transport_reset = False
        self._next_port = FIRST_HOST_PORT
        self._clock, self._faults = clock, faults
        self._listener = listener
        self._timer = clock.timer(self._lose_patience)
        self._retry = clock.timer(self._listen)

    # Life.

    def started(self) -> None:
        self._listen()
        for connection in self._all():
            self._watch(connection)
        self._set_timer()

    def stopped(self) -> None:
        self._loop.unwatch(self._listener.fileno())
        self._timer.cancel()
        self._retry.cancel()
        for connection in self._all():
            self._unwatch(connection)

    def reset(self) -> None:
        with self.serving:
            super().reset()
            for connection in self._all():
                connection.close()
            self.connections.clear()
            self._strangers.clear()
            self._debtors.clear()
            self._answers.clear()
            self._hungry.clear()
            self._used.clear()
            self._transport_reset = False

    def close(self) -> None:
        super().close()
        self._listener.close()

    def restore(self, state: dict[str, Any]) -> None:
        """Connections don't survive: the driver is told to drop its own (5.10.6.7)."""
        with self.serving:
            self._transport_reset = True

    def _all(self) -> list[Connection]:
        return [*self.connections.values(), *self._strangers]

    def serve(self, index: int, queue: Virtqueue) -> bool:
        if index == TX:
            return self._transmit(queue)
        if index == RX:
            hungry, self._hungry = self._hungry, set()
            for connection in hungry:
                self._watch(connection)
            self._pay_debts()
        elif self._transport_reset:
            self._send_event(queue)
        return False

    def _send_event(self, queue: Virtqueue) -> None:
        chain = queue.pop()
        if chain is None:
            return
        if chain.writable_bytes < _EVENT.size:
            raise VirtqueueError("buffer too short for an event")
        self._transport_reset = False
        event = _EVENT.pack(EVENT_TRANSPORT_RESET)
        queue.push_batch([(chain.head, scatter(event, chain.writable))])

    # Packets from the driver.

    def _transmit(self, queue: Virtqueue) -> bool:
        if len(self._answers) >= MAX_ANSWERS:
            return False  # go on when the driver has taken some
        chains = queue.pop_batch(BATCH)
        if not chains:
            return queue.enable_notifications()
        for chain in chains:
            self._received(chain)
        queue.push_batch([(chain.head, 0) for chain in chains])
        self._pay_debts()
        return True

    def _received(self, chain: Chain) -> None:
        header = gather(chain.readable, HEADER.size)
        if len(header) < HEADER.size:
            self._faults.report("virtio-vsock: packet without a whole header")
            return
        fields = HEADER.unpack(header)
        source_cid, target_cid, source, target, length, kind, op, flags, buf_alloc, fwd_cnt = fields
        if source_cid != self.cid or target_cid != HOST_CID:
            self._faults.report("virtio-vsock: wrong CID", "%d to %d", source_cid, target_cid)
            return
        key = target, source
        connection = self.connections.get(key)
        if kind != TYPE_STREAM or (connection is None and op != Op.REQUEST):
            if op != Op.RST:
                self._refuse(key)
            return
        if connection is None:
            self._requested(key, buf_alloc, fwd_cnt)
            return
        if connection.state == State.DEAD and op != Op.RST:
            return  # the RST that we owe is the answer
        connection.credit_told(buf_alloc, fwd_cnt)
        if op == Op.RW:
            self._data(connection, behind(chain.readable, HEADER.size), length)
        else:
            self._control(connection, op, flags)
        if self.connections.get(key) is connection:
            self._watch(connection)

    def _refuse(self, key: tuple[int, int]) -> None:
        self._answers.append(key)

    def _requested(self, key: tuple[int, int], buf_alloc: int, fwd_cnt: int) -> None:
        """A guest program wants to connect to who listens at ``PATH_<port>``."""
        host = None
        if len(self.connections) + len(self._strangers) < MAX_CONNECTIONS:
            host = connect_unix(f"{self._listener.path}_{key[0]}")
        else:
            self._faults.report("virtio-vsock: too many connections")
        if host is None:
            self._refuse(key)
            return
        connection = Connection(host, key, State.ESTABLISHED)
        connection.credit_told(buf_alloc, fwd_cnt)
        self.connections[key] = connection
        self._owe(connection, Op.RESPONSE)
        self._watch(connection)
        self._listen()

    def _data(self, connection: Connection, data: list[memoryview], length: int) -> None:
        views = first(data, length)
        if connection.state != State.ESTABLISHED or sum(map(len, views)) != length:
            self._faults.report("virtio-vsock: data where none is expected")
            self._break(connection)
        elif not connection.take(views, length):
            self._faults.report("virtio-vsock: more data than there is credit for")
            self._break(connection)
        else:
            self._taken(connection)

    def _taken(self, connection: Connection) -> None:
        """The socket has been written: does the driver have to know?"""
        if connection.write_ended and not connection.shutdown_by_driver & Shutdown.SEND:
            self._host_shut_down(connection, Shutdown.RECEIVE)
        if connection.owed:
            self._debtors[connection] = None

    def _control(self, connection: Connection, op: int, flags: int) -> None:
        if op == Op.RST:
            self._forget(connection)
            connection.close()
        elif op == Op.RESPONSE and connection.state == State.REQUESTED:
            self._accepted(connection)
        elif op == Op.SHUTDOWN and connection.state == State.ESTABLISHED:
            self._shut_down(connection, flags)
        elif op == Op.CREDIT_REQUEST:
            self._owe(connection, Op.CREDIT_UPDATE)
        elif op != Op.CREDIT_UPDATE:
            self._faults.report("virtio-vsock: packet out of order", "operation %d", op)
            self._break(connection)

    def _accepted(self, connection: Connection) -> None:
        connection.state = State.ESTABLISHED
        connection.deadline = None
        try:
            connection.socket.send(b"OK %d\n" % connection.key[0])
        except OSError:
            self._break(connection)  # the host program didn't wait

    def _shut_down(self, connection: Connection, flags: int) -> None:
        connection.shut_down(flags)
        if connection.shutdown_by_driver != Shutdown.BOTH:
            return
        # Over. The driver gets its RST at once; what it has sent still goes to the host program.
        self._forget(connection)
        self._refuse(connection.key)
        if connection.unsent:
            connection.state = State.DRAINING
            connection.deadline = None
            self._strangers.add(connection)
            self._watch(connection)
        else:
            connection.close()

    # The end of a connection.

    def _break(self, connection: Connection) -> None:
        """Close the socket, and reset the driver's end once there is a buffer for the packet.
        Until then the connection counts as one, or a host program could make us owe any number."""
        if connection.state == State.DEAD:
            return
        self._unwatch(connection)
        unannounced = Op.REQUEST in connection.owed
        connection.close()
        connection.owed.clear()
        self._hungry.discard(connection)
        if connection in self._strangers or unannounced:
            self._forget(connection)
        else:
            self._owe(connection, Op.RST)

    def _forget(self, connection: Connection) -> None:
        """The driver has no such connection any more."""
        self._unwatch(connection)
        if self.connections.get(connection.key) is connection:
            del self.connections[connection.key]
        self._strangers.discard(connection)
        self._debtors.pop(connection, None)
        self._hungry.discard(connection)
        self._listen()

    # Packets to the driver.

    def _owe(self, connection: Connection, op: int) -> None:
        connection.owe(op)
        self._debtors[connection] = None

    def _buffer(self) -> Chain | None:
        """A buffer for a packet; None if there is none, and then the driver will ring."""
        queue = self.queues[RX]
        chain = queue.pop() if queue.ready else None
        if chain is not None and chain.writable_bytes <= HEADER.size:
            raise VirtqueueError("receive buffer with no room behind the header")
        return chain

    def _pay_debts(self) -> None:
        """Send what the driver is owed, as far as it has given buffers."""
        paused = len(self._answers) >= MAX_ANSWERS
        while (self._answers or self._debtors) and (chain := self._buffer()) is not None:
            if self._answers:
                self._packet(chain, self._answers.pop(0), Op.RST)
                continue
            connection = next(iter(self._debtors))
            self._pay(connection, chain)
        self._publish()
        if paused and len(self._answers) < MAX_ANSWERS:
            self.ring(TX)

    def _pay(self, connection: Connection, chain: Chain) -> None:
        op = connection.owed.pop(0)
        if not connection.owed:
            del self._debtors[connection]
        flags = connection.shutdown_by_us if op == Op.SHUTDOWN else 0
        self._packet(chain, connection.key, op, connection, flags=flags)
        if op == Op.RST:
            self._forget(connection)

    def _packet(
        self,
        chain: Chain,
        key: tuple[int, int],
        op: int,
        connection: Connection | None = None,
        *,
        length: int = 0,
        flags: int = 0,
    ) -> None:
        """Complete a buffer, in which data of ``length`` has its place already."""
        buf_alloc = fwd_cnt = 0
        if connection is not None:
            buf_alloc, fwd_cnt = BUFFER_SIZE, connection.fwd_cnt
            connection.told_fwd_cnt = fwd_cnt
        host_port, guest_port = key
        header = HEADER.pack(
            *(HOST_CID, self.cid, host_port, guest_port, length),
            *(TYPE_STREAM, op, flags, buf_alloc, fwd_cnt),
        )
        self._used.append((chain.head, scatter(header, chain.writable) + length))

    def _publish(self) -> None:
        if self._used:
            used, self._used = self._used, []
            self.queues[RX].push_batch(used)

    # Host programs' sockets; on the I/O thread.

    def _watch(self, connection: Connection) -> None:
        """Wait for what the connection can make use of."""
        if connection.state == State.DEAD:
            return
        events = 0
        if connection.state == State.GREETING or (
            connection.wants_to_read and connection not in self._hungry
        ):
            events |= READABLE
        elif connection.state == State.ESTABLISHED and not connection.credit:
            self._ask_for_credit(connection)
        if connection.unsent:
            events |= WRITABLE
        if not events:
            self._unwatch(connection)
        elif events != connection.watched:
            connection.watched = events
            fd = connection.socket.fileno()
            self._loop.watch(fd, lambda: self._ready(connection), events)

    def _unwatch(self, connection: Connection) -> None:
        if connection.watched:
            connection.watched = 0
            self._loop.unwatch(connection.socket.fileno())

    def _ask_for_credit(self, connection: Connection) -> None:
        if not connection.asked_for_credit and not connection.read_ended:
            connection.asked_for_credit = True
            self._owe(connection, Op.CREDIT_REQUEST)

    def _ready(self, connection: Connection) -> None:
        def act() -> bool:
            if connection.state != State.DEAD:
                self._serve_socket(connection)
                self._watch(connection)
                self._pay_debts()
            return True

        self.guarded(act)

    def _serve_socket(self, connection: Connection) -> None:
        connection.flush()
        if connection.state == State.GREETING:
            self._greet(connection)
        elif connection.state == State.DRAINING:
            if not connection.unsent:
                self._forget(connection)
                connection.close()
        elif connection.state == State.ESTABLISHED:
            self._taken(connection)
        if connection.wants_to_read and connection not in self._hungry:
            self._read(connection)

    def _read(self, connection: Connection) -> None:
        """Give the driver what the host program has sent."""
        self._pay_debts()  # the response comes before the data
        for _ in range(BATCH):
            if not connection.wants_to_read:
                break
            chain = None if connection.owed else self._buffer()
            if chain is None:
                self._hungry.add(connection)
                break
            try:
                length = connection.read_into(behind(chain.writable, HEADER.size))
            except BlockingIOError:
                self.queues[RX].unpop(1)
                break
            if not length:
                self.queues[RX].unpop(1)
                connection.read_ended = True
                self._host_shut_down(connection, Shutdown.SEND)
                break
            self._packet(chain, connection.key, Op.RW, connection, length=length)
        self._publish()

    def _host_shut_down(self, connection: Connection, flags: int) -> None:
        if connection.shutdown_by_us | flags == connection.shutdown_by_us:
            return
        connection.shutdown_by_us |= flags
        self._owe(connection, Op.SHUTDOWN)
        if connection.shutdown_by_us == Shutdown.BOTH:
            self._give_time(connection)

    # Host programs that connect.

    def _listen(self) -> None:
        """Take new host programs while there is room for them; the others wait."""
        with self.serving:
            fd = self._listener.fileno()
            if not self.running or fd < 0:
                return
            if len(self.connections) + len(self._strangers) < MAX_CONNECTIONS:
                self._loop.watch(fd, self._connected)
            else:
                self._loop.unwatch(fd)

    def _connected(self) -> None:
        with self.serving:
            if not self.running:
                return
            try:
                client = self._listener.accept()
            except OSError:  # no file descriptor left
                self._loop.unwatch(self._listener.fileno())
                self._retry.arm(self._clock.now_ns() + RETRY_NS)
                return
            if client is None:
                return
            connection = Connection(client, (0, 0), State.GREETING)
            self._strangers.add(connection)
            self._give_time(connection)
            self._watch(connection)
            self._listen()

    def _greet(self, connection: Connection) -> None:
        try:
            port = connection.read_greeting()
        except (ValueError, EOFError):
            self._break(connection)
            return
        if port is None:
            return
        self._strangers.discard(connection)
        connection.key = self._free_port(port), port
        connection.state = State.REQUESTED
        self.connections[connection.key] = connection
        self._give_time(connection)
        self._owe(connection, Op.REQUEST)

    def _free_port(self, guest_port: int) -> int:
        while True:
            port = self._next_port
            self._next_port = FIRST_HOST_PORT + (port + 1 - FIRST_HOST_PORT) % FIRST_HOST_PORT
            if (port, guest_port) not in self.connections:
                return port

    # Patience.

    def _give_time(self, connection: Connection) -> None:
        connection.deadline = self._clock.now_ns() + PATIENCE_NS
        self._set_timer()

    def _set_timer(self) -> None:
        deadlines = [c.deadline for c in self._all() if c.deadline is not None]
        if deadlines:
            self._timer.arm(min(deadlines))
        else:
            self._timer.cancel()

    def _lose_patience(self) -> None:
        def act() -> bool:
            now = self._clock.now_ns()
            for connection in self._all():
                if connection.deadline is not None and connection.deadline <= now:
                    self._break(connection)
            self._pay_debts()
            self._set_timer()
            return True

        self.guarded(act)
