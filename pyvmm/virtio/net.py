"""virtio-net: a network card.

Virtual I/O Device (VIRTIO) Version 1.2, section 5.1. Pairs of queues, one for received and one for
sent packets, and a control queue; checksum and segmentation offload, mergeable receive buffers,
receive filters, several pairs of queues, and the state of the link.

Each pair has a thread, which sleeps until a doorbell rings or the tap has a packet. It moves
packets between the tap and the guest's buffers with readv(2) and writev(2), without a copy of ours,
header included: the tap speaks struct virtio_net_hdr, so it is the host's kernel that checks what
the guest says about checksums and segments. The first pair's thread serves the control queue too.

If the guest has no buffers for a packet it stays in the tap, which drops what doesn't fit.

Left out: announcements (VIRTIO_NET_F_GUEST_ANNOUNCE), hash reports and receive-side scaling, the
speed of the link, notification coalescing, and the features that only the legacy interface has.
"""

from __future__ import annotations

import binascii
import errno
import os
import select
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from pyvmm.backends.tap import VNET_HEADER_SIZE, Offload
from pyvmm.errors import GuestFaults
from pyvmm.host import Packets
from pyvmm.threads import NamedThread
from pyvmm.virtio.device import DeviceId, VirtioDevice
from pyvmm.virtio.queue import Virtqueue, VirtqueueError
from pyvmm.virtio.queue_buffers import Buffers
from pyvmm.virtio.receive_buffers import ReceiveBuffers

QUEUE_SIZE = 256
CONTROL_QUEUE_SIZE = 64
BATCH = 16
"""Packets that are completed together at most."""
BATCH_BYTES = 512 << 10
"""Received bytes after which the guest hears of them, so that it works on them meanwhile."""

HEADER_SIZE = VNET_HEADER_SIZE
ETHERNET_HEADER = 14
MAX_PACKET = HEADER_SIZE + ETHERNET_HEADER + 4 + 0xFFFF
"""With a VLAN tag, and the longest IP packet."""
SHORTEST_PACKET = HEADER_SIZE + ETHERNET_HEADER

MAX_FILTER_ENTRIES = 64
"""Addresses of a kind that are filtered by; if a driver has more, all of that kind pass."""
MAX_COMMAND = 64 << 10

_MAC_AT = HEADER_SIZE
_VLAN_AT = HEADER_SIZE + 12
_LOOKED_AT = HEADER_SIZE + ETHERNET_HEADER + 2
_BROADCAST = b"\xff" * 6
_VLAN_TAG = b"\x81\x00"


class NetFeature:
    """Feature bits (5.1.3)."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_RX_EXTRA = 1 << 20
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23


# What the guest may be given unfinished, what it may give so, and the tap's word for it.
_OFFLOADS = (
    (NetFeature.GUEST_CSUM, NetFeature.CSUM, Offload.CSUM),
    (NetFeature.GUEST_TSO4, NetFeature.HOST_TSO4, Offload.TSO4),
    (NetFeature.GUEST_TSO6, NetFeature.HOST_TSO6, Offload.TSO6),
    (NetFeature.GUEST_ECN, NetFeature.HOST_ECN, Offload.TSO_ECN),
    (NetFeature.GUEST_UFO, NetFeature.HOST_UFO, Offload.UFO),
)
_GUEST_OFFLOADS = sum(guest for guest, _, _ in _OFFLOADS)

VIRTIO_NET_S_LINK_UP = 1

VIRTIO_NET_OK = 0
VIRTIO_NET_ERR = 1


class Command:
    """Class and command of the control queue (5.1.6.5), as one number."""

    RX_PROMISC = 0x0000
    RX_ALLMULTI = 0x0001
    RX_ALLUNI = 0x0002
    RX_NOMULTI = 0x0003
    RX_NOUNI = 0x0004
    RX_NOBCAST = 0x0005
    MAC_TABLE_SET = 0x0100
    MAC_ADDR_SET = 0x0101
    VLAN_ADD = 0x0200
    VLAN_DEL = 0x0201
    MQ_VQ_PAIRS_SET = 0x0400
    GUEST_OFFLOADS_SET = 0x0500


# struct virtio_net_config (5.1.4) up to what our features need: mac, status,
# max_virtqueue_pairs, mtu.
_CONFIG = struct.Struct("<6sHHH")
_STATUS_AT = 6
_PART = struct.Struct("<QII")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Backend(Protocol):
    """What a network card is plugged into; a :class:`~pyvmm.backends.tap.Tap`.

    A read from one of ``fds`` gives a packet behind a virtio_net_hdr, a write sends one; there is
    one for each pair of queues, and it doesn't block. ``offloads`` is of :class:`Offload`.
    """

    name: str
    fds: tuple[int, ...]
    offloads: int

    def set_offloads(self, offloads: int) -> None: ...

    def enable_queue(self, index: int, enabled: bool) -> None: ...


class ReceiveFilter:
    """Which packets the driver wants to see (5.1.6.5.1 to 5.1.6.5.3)."""

    def __init__(self, mac: bytes, features: int) -> None:
        self.mac = mac
        self.modes = {
            Command.RX_PROMISC: True,  # until the driver says otherwise
            Command.RX_ALLMULTI: False,
            Command.RX_ALLUNI: False,
            Command.RX_NOMULTI: False,
            Command.RX_NOUNI: False,
            Command.RX_NOBCAST: False,
        }
        self.passes_all = True
        """Whether there is nothing to look at."""
        self.unicast: frozenset[bytes] | None = frozenset()
        self.multicast: frozenset[bytes] | None = frozenset()
        self.vlans: set[int] | None = set() if features & NetFeature.CTRL_VLAN else None

    def set_mode(self, mode: int, on: bool) -> None:
        """Switch one of the modes, a command's number, on or off."""
        self.modes[mode] = on
        self.passes_all = self.modes[Command.RX_PROMISC]

    def passes(self, start: bytes) -> bool:
        """Whether the packet that begins like this, with its virtio_net_hdr, is wanted."""
        if self.vlans is not None and start[_VLAN_AT : _VLAN_AT + 2] == _VLAN_TAG:
            tag = int.from_bytes(start[_VLAN_AT + 2 : _VLAN_AT + 4], "big")
            if tag & 0xFFF not in self.vlans:
                return False
        to = start[_MAC_AT : _MAC_AT + 6]
        modes = self.modes
        if to == _BROADCAST:
            return not modes[Command.RX_NOBCAST]
        if to[0] & 1:
            known, none, every = self.multicast, Command.RX_NOMULTI, Command.RX_ALLMULTI
        else:
            known, none, every = self.unicast, Command.RX_NOUNI, Command.RX_ALLUNI
            if to == self.mac:
                return not modes[none]
        return not modes[none] and (known is None or modes[every] or to in known)

    def set_tables(self, data: bytes) -> bool:
        """Two tables of addresses, unicast and multicast, each behind its number of entries."""
        tables = []
        for _ in range(2):
            if len(data) < _U32.size:
                return False
            end = _U32.size + 6 * _U32.unpack_from(data)[0]
            if len(data) < end:
                return False
            addresses = (data[at : at + 6] for at in range(_U32.size, end, 6))
            few = end <= _U32.size + 6 * MAX_FILTER_ENTRIES
            tables.append(frozenset(addresses) if few else None)
            data = data[end:]
        if data:
            return False
        self.unicast, self.multicast = tables
        return True

    def set_vlan(self, data: bytes, wanted: bool) -> bool:
        """Let the packets of a VLAN pass, or no more."""
        if len(data) != _U16.size or self.vlans is None:
            return False
        (vlan,) = _U16.unpack(data)
        if vlan > 0xFFF:
            return False
        if wanted:
            self.vlans.add(vlan)
        else:
            self.vlans.discard(vlan)
        return True


class NetDevice(VirtioDevice):
    """A network card with the address ``mac``, plugged into ``tap``.

    ``mtu`` is what the driver is told to use if it isn't 0; ``name`` names the threads.
    ``on_error`` is told of an exception that is our bug, after which the card is dead; without it
    the thread prints a traceback.
    """

    def __init__(
        self,
        tap: Backend,
        mac: bytes,
        faults: GuestFaults,
        *,
        mtu: int = 0,
        name: str = "net0",
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        pairs = len(tap.fds)
        super().__init__(
            DeviceId.NETWORK,
            _offered(tap, mtu),
            (QUEUE_SIZE,) * (2 * pairs) + (CONTROL_QUEUE_SIZE,),
            _CONFIG.pack(mac, VIRTIO_NET_S_LINK_UP, pairs, mtu),
        )
        self.tap = tap
        self.faults = faults
        self.name = name
        self.on_error = on_error
        self.mac = mac
        self.negotiated = 0
        self.filter = ReceiveFilter(mac, 0)
        self.link_up = True
        self.gone = False
        self._link_lock = threading.Lock()
        self._pairs: list[QueuePair] = []
        self._active_pairs = 0

    # Life, from the vCPUs' and the machine's threads.

    def activate(self, queues: Sequence[Virtqueue], features: int) -> None:
        self.negotiated = features
        self.config[:6] = self.mac
        self.filter = ReceiveFilter(self.mac, features)
        self._set_offloads(features)
        several = bool(features & NetFeature.MQ)
        number = len(self.tap.fds) if several else 1
        control = queues[2 * number] if features & NetFeature.CTRL_VQ else None
        for index in range(number):
            doorbells = self.doorbells[2 * index : 2 * index + 2]
            pair = QueuePair(self, index, queues[2 * index], queues[2 * index + 1], doorbells)
            if not index and control is not None and control.ready:
                pair.serve_control(control, self.doorbells[2 * number])
            self._pairs.append(pair)
        self._active_pairs = 1
        for index in range(1, len(self.tap.fds)):
            self.tap.enable_queue(index, False)
        self.resume()

    def reset(self) -> None:
        self.pause()
        self._pairs = []
        self._active_pairs = 0
        if self.negotiated & _GUEST_OFFLOADS:
            self._set_offloads(0)
        self.negotiated = 0

    def pause(self) -> None:
        for pair in self._pairs:  # the first one first: it starts and stops the others
            pair.stop()

    def resume(self) -> None:
        for pair in reversed(self._pairs[: self._active_pairs]):
            pair.start()

    def set_link(self, up: bool) -> None:
        """Plug the cable in or out. While it is out, packets are dropped both ways."""
        with self._link_lock:
            up = up and not self.gone
            if up == self.link_up:
                return
            self.link_up = up
            _U16.pack_into(self.config, _STATUS_AT, VIRTIO_NET_S_LINK_UP if up else 0)
        self.config_changed()

    def tap_gone(self, detail: str) -> None:
        """The interface has been deleted: from now on the cable is out for good."""
        if not self.gone:
            self.gone = True
            self.faults.report_host(
                "tap is gone, so the link is down", "%s: %s", self.tap.name, detail
            )
            self.set_link(False)

    def send_failed(self, error: OSError) -> None:
        """The tap has refused a packet, which is dropped."""
        if error.errno == errno.EBADFD:
            self.tap_gone(error.strerror or "")
        elif error.errno == errno.EINVAL:
            self.faults.report("network: bad virtio_net_hdr")
        elif error.errno == errno.EIO:
            self.faults.report_host("tap is down", "ip link set %s up", self.tap.name)
        else:
            self.faults.report_host("packet not sent", "%s: %s", self.tap.name, error.strerror)

    # The control queue, on the first pair's thread.

    def control(self, queue: Virtqueue) -> bool:
        """Carry out the commands that are there; whether there were any."""
        chains = queue.pop_batch(BATCH)
        for chain in chains:
            if not chain.writable:
                raise VirtqueueError("command without room for an answer")
            done = chain.readable_bytes <= MAX_COMMAND and self._execute(b"".join(chain.readable))
            chain.writable[0][0] = VIRTIO_NET_OK if done else VIRTIO_NET_ERR
            queue.push_batch([(chain.head, 1)])
        return bool(chains)

    def _execute(self, request: bytes) -> bool:
        """Whether the command was understood and done."""
        if len(request) < 2:
            return False
        command, data, features = request[0] << 8 | request[1], request[2:], self.negotiated
        if command <= Command.RX_NOBCAST:
            extra = command > Command.RX_ALLMULTI
            needed = NetFeature.CTRL_RX_EXTRA if extra else NetFeature.CTRL_RX
            if not features & needed or len(data) != 1 or data[0] > 1:
                return False
            self.filter.set_mode(command, bool(data[0]))
            return True
        if command == Command.MAC_TABLE_SET and features & NetFeature.CTRL_RX:
            return self.filter.set_tables(data)
        if command == Command.MAC_ADDR_SET and features & NetFeature.CTRL_MAC_ADDR:
            return self._set_mac(data)
        if command in (Command.VLAN_ADD, Command.VLAN_DEL):
            return self.filter.set_vlan(data, command == Command.VLAN_ADD)
        if command == Command.MQ_VQ_PAIRS_SET and features & NetFeature.MQ:
            return self._set_pairs(data)
        if command == Command.GUEST_OFFLOADS_SET and features & NetFeature.CTRL_GUEST_OFFLOADS:
            return self._choose_offloads(data)
        return False

    def _set_mac(self, data: bytes) -> bool:
        if len(data) != 6:
            return False
        self.config[:6] = self.filter.mac = data
        return True

    def _set_pairs(self, data: bytes) -> bool:
        """Use that many pairs of queues from now on."""
        if len(data) != _U16.size or not 1 <= _U16.unpack(data)[0] <= len(self._pairs):
            return False
        (number,) = _U16.unpack(data)
        for pair in self._pairs[number:]:
            pair.stop()
            self.tap.enable_queue(pair.index, False)
        for pair in self._pairs[1:number]:
            self.tap.enable_queue(pair.index, True)
            pair.start()
        self._active_pairs = number
        return True

    def _choose_offloads(self, data: bytes) -> bool:
        """The driver wants only some of the offloads that it has negotiated."""
        if len(data) != _U64.size:
            return False
        (wanted,) = _U64.unpack(data)
        if wanted & ~(self.negotiated & _GUEST_OFFLOADS):
            return False
        self._set_offloads(wanted)
        return True

    def _set_offloads(self, features: int) -> None:
        """Let the tap give us what the driver takes. The host knows no segmentation without
        checksums (nor does the standard, 5.1.3.1), and no ECN without TCP segmentation."""
        offloads = sum(tap for guest, _, tap in _OFFLOADS if features & guest)
        if not offloads & Offload.CSUM:
            offloads = 0
        if not offloads & (Offload.TSO4 | Offload.TSO6):
            offloads &= ~(Offload.TSO_ECN | Offload.UFO)
        if not self.gone:
            try:
                self.tap.set_offloads(offloads)
            except OSError as error:
                self.tap_gone(error.strerror or "")


class QueuePair:
    """A receive queue, a transmit queue, and the thread that moves packets between them and one
    descriptor of the tap."""

    def __init__(
        self,
        device: NetDevice,
        index: int,
        receive: Virtqueue,
        transmit: Virtqueue,
        doorbells: Sequence[int],
    ) -> None:
        self.index = index
        self._device = device
        self._fd = device.tap.fds[index]
        self._rx = receive
        self._tx = transmit
        self._receives = self._sends = False
        self._control: Virtqueue | None = None
        self._doorbells = list(doorbells)
        self._mergeable = bool(device.negotiated & NetFeature.MRG_RXBUF)
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._readable = self._writable = True
        self._starved = False
        self._held = ReceiveBuffers(receive, receive.memory)
        self._packets = Packets(self._fd, receive.memory.host_ranges(), BATCH, MAX_PACKET)
        self._spilled = 0  # the length of a packet that has begun in the buffers and ends there,
        self._room = 0  # after so many bytes

    def serve_control(self, queue: Virtqueue, doorbell: int) -> None:
        """Have the thread serve the control queue, too; before :meth:`start`."""
        self._control = queue
        self._doorbells.append(doorbell)

    def start(self) -> None:
        """Start the thread, if it doesn't run."""
        if self._thread is None:
            self._stopping = False
            self._receives, self._sends = self._rx.ready, self._tx.ready
            if self._control is not None and not self._control.ready:
                self._control = None  # the driver has taken it back
            name = f"pyvmm-{self._device.name}.{self.index}"
            self._thread = NamedThread(target=self._work, name=name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Wait until the thread has ended; buffers that it holds go back to their queues."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping = True
        os.eventfd_write(self._doorbells[0], 1)
        thread.join()
        self._rx.unpop(len(self._held))
        self._held.clear()
        self._spilled = 0

    # The pair's own thread.

    def _work(self) -> None:
        try:
            with select.epoll() as epoll:
                # Edge-triggered: a doorbell needn't be read to be silent, nor does a tap wake us
                # again while the guest has no buffers for its packets.
                for doorbell in self._doorbells:
                    epoll.register(doorbell, select.EPOLLIN | select.EPOLLET)
                both = select.EPOLLIN | select.EPOLLOUT
                epoll.register(self._fd, both | select.EPOLLET)
                self._run(epoll)
        except VirtqueueError as error:
            self._device.fail(error)
        except BaseException as error:
            if self._device.on_error is None:
                raise
            self._device.on_error(error)

    def _run(self, epoll: select.epoll) -> None:
        self._readable = self._writable = True
        self._silence()
        timeout = 0
        lingering = False
        while not self._stopping:
            for fd, events in epoll.poll(timeout):
                if fd == self._fd:
                    self._readable |= bool(events & ~select.EPOLLOUT)
                    self._writable |= bool(events & ~select.EPOLLIN)
            busy = self._control is not None and self._device.control(self._control)
            if self._writable and self._sends:
                busy |= self._transmit()
            if self._readable and self._receives:
                busy |= self._receive()
            # A driver that has just been served may be about to answer: look once more before
            # sleeping, which costs it a doorbell and us a wake-up.
            timeout = 0 if busy or lingering or self._more_came() else -1
            lingering = busy

    def _silence(self) -> None:
        if self._sends:
            self._tx.disable_notifications()
        if self._receives:
            self._rx.disable_notifications()

    def _more_came(self) -> bool:
        """Ask the driver to ring, about to sleep; whether it has something for us already."""
        more = self._control is not None and self._control.enable_notifications()
        if self._sends and self._writable and self._tx.enable_notifications():
            self._tx.disable_notifications()
            more = True
        if self._starved and self._rx.enable_notifications():
            self._rx.disable_notifications()
            self._starved = False
            more = True
        return more

    # To the guest.

    def _receive(self) -> bool:
        """Move packets from the tap until it has no more, the guest has no buffers for them, or
        it is time that the guest hears of them; whether there were any."""
        if self._starved:
            self._starved = False
            self._rx.disable_notifications()
        if self._spilled:
            return self._finish_spilled()
        if not self._device.link_up:
            return bool(self._read(bytearray(), 1))  # and drop it
        held = self._held
        if not self._mergeable:
            held.refill(1 - len(held))
        elif len(held) <= self._rx.size // 2:  # rarely, and many at once
            held.refill(QUEUE_SIZE)
        if not len(held):
            self._starved = True
            return False
        if not held.single:
            return self._receive_one()
        results = self._read(held.parts, BATCH)
        first = 0
        for length, parts, rest in zip(results[::3], results[1::3], results[2::3], strict=True):
            if not parts:
                self._spill(first, length, rest)
            elif self._wanted(first, length):
                held.complete(first, first + parts, rest)
                first += parts
            else:
                held.recycle(first, first + parts)
        if first:
            self._rx.push_elements(held.take(first))
        return bool(results)

    def _receive_one(self) -> bool:
        """The same for one packet, if chains have several buffers."""
        held = self._held
        results = self._read(held.parts, 1)
        if results:
            length, parts, rest = results
            if not parts:
                self._spill(0, length, rest)
            elif self._wanted(0, length):
                self._rx.push_elements(held.take(held.complete_first(length)))
        return bool(results)

    def _read(self, parts: bytearray, limit: int) -> list[int]:
        """Read up to ``limit`` packets into these parts; three numbers for each, see
        :meth:`Packets.read <pyvmm.host.Packets.read>`."""
        results = self._packets.read(parts, limit, BATCH_BYTES)
        if results[-3] <= 0:
            self._readable = False
            error = -results[-3]
            del results[-3:]
            if error == errno.EFAULT:
                raise VirtqueueError("receive buffer outside memory")
            if error != errno.EAGAIN:
                self._device.tap_gone(os.strerror(error) if error else "end of file")
        return results

    def _wanted(self, first: int, length: int) -> bool:
        """Whether the packet that begins with that part is for the guest."""
        if length <= HEADER_SIZE:
            return False
        passing = self._device.filter
        return passing.passes_all or passing.passes(self._held.start(first, _LOOKED_AT))

    def _spill(self, first: int, length: int, room: int) -> None:
        """There is room for so much of the packet that begins with that part; if it is wanted, it
        has to wait for more."""
        if room < _LOOKED_AT or self._wanted(first, length):
            self._spilled, self._room = length, room

    def _finish_spilled(self) -> bool:
        """Move the packet that there was no room for, if there is now."""
        held, length = self._held, self._spilled
        if self._mergeable:
            held.refill(QUEUE_SIZE)
        room = held.room
        if room >= length:
            held.write(self._packets.spill[: length - self._room], self._room)
            if self._wanted(0, length):
                self._rx.push_elements(held.take(held.complete_first(length)))
        elif self._mergeable and len(held) < self._rx.size:
            self._starved = True
            return False
        else:
            self._device.faults.report(
                "network: receive buffers too small", "%d bytes for a packet of %d", room, length
            )
        self._spilled = 0
        return True

    # From the guest.

    def _transmit(self) -> bool:
        """Send what the guest has for us, a limited number of packets; whether there were any."""
        found = self._tx.pop_buffers(BATCH, 0)
        if found is None:
            return False
        if min(found.sizes) < SHORTEST_PACKET or max(found.sizes) > MAX_PACKET:
            found = self._right_lengths(found)
        number = sent = len(found.sizes)
        if self._device.link_up:
            results = self._packets.write(found.parts, found.counts)
            sent = len(results)
            if sent < number:
                self._writable = False
                self._tx.unpop(number - sent)
                if not sent:
                    return False
            if min(results) < 0:
                self._explain(results)
        self._tx.push_elements(found.elements[: 8 * sent])
        if number < BATCH:
            self._readable = True  # an answer may be there already
        return True

    def _explain(self, results: list[int]) -> None:
        """Report the packets that couldn't be sent."""
        for result in results:
            if result == -errno.EFAULT:
                raise VirtqueueError("packet outside memory")
            if result < 0:
                self._device.send_failed(OSError(-result, os.strerror(-result)))

    def _right_lengths(self, packets: Buffers) -> Buffers:
        """Packets of a wrong length are dropped: they are left with no buffers."""
        parts, counts, at = [], [], 0
        for size, count in zip(packets.sizes, packets.counts, strict=True):
            packet = packets.parts[at : at + 16 * count]
            at += 16 * count
            if SHORTEST_PACKET <= size <= MAX_PACKET:
                parts.append(packet)
                counts.append(count)
                continue
            for address, length, _ in _PART.iter_unpack(packet):
                if not self._tx.memory.contains(address, length):
                    raise VirtqueueError("packet outside memory")
            self._device.faults.report("network: packet of a wrong length", "%d bytes", size)
            counts.append(0)
        return Buffers(packets.elements, packets.sizes, counts, b"".join(parts))


def made_up_mac(seed: str, index: int) -> bytes:
    """A card's address if it is given none: locally administered, always the same for the same
    machine and tap, and another one for each card."""
    return (
        b"\x02"
        + binascii.crc32(seed.encode("utf-8", "replace")).to_bytes(4, "big")
        + bytes((index,))
    )


def _offered(tap: Backend, mtu: int) -> int:
    """The features that this tap makes possible."""
    features = NetFeature.MAC | NetFeature.STATUS | NetFeature.MRG_RXBUF
    features |= NetFeature.CTRL_VQ | NetFeature.CTRL_RX | NetFeature.CTRL_RX_EXTRA
    features |= NetFeature.CTRL_VLAN | NetFeature.CTRL_MAC_ADDR
    for guest, host, offload in _OFFLOADS:
        if tap.offloads & offload:
            features |= guest | host
    if tap.offloads:
        features |= NetFeature.CTRL_GUEST_OFFLOADS
    if mtu:
        features |= NetFeature.MTU
    if len(tap.fds) > 1:
        features |= NetFeature.MQ
    return features
