"""The network card as a guest's driver uses it: through PCI, rings and interrupts, onto a pair of
sockets that stands for the tap."""

from __future__ import annotations

import errno
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.fake_tap import ALL_TUN, HEADER, OTHER_MAC, OUR_MAC, FakeTap, frame
from unit.fakes import RecordingFaults
from unit.virtio_driver import (
    EVENT_IDX,
    INDIRECT_DESC,
    NEEDS_RESET,
    TIMEOUT,
    VERSION_1,
    Buffer,
    DriverQueue,
    Pc,
    Scratch,
    VirtioDriver,
)

from pyvmm.host import Packets
from pyvmm.virtio import net
from pyvmm.virtio.net import NetDevice, made_up_mac

CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU, MAC = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO = 1 << 7, 1 << 8, 1 << 9, 1 << 10
HOST_TSO4, HOST_TSO6, HOST_ECN, HOST_UFO = 1 << 11, 1 << 12, 1 << 13, 1 << 14
MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, CTRL_VLAN = 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 19
CTRL_RX_EXTRA, MQ, CTRL_MAC_ADDR = 1 << 20, 1 << 22, 1 << 23
TUN_CSUM, TUN_TSO4, TUN_TSO6, TUN_ECN, TUN_UFO = 1, 2, 4, 8, 16

GROUP_MAC = bytes.fromhex("01005e000001")
BROADCAST = b"\xff" * 6


class Card(Scratch):
    """A VM with one network card, and a driver that sends and receives with it."""

    def __init__(self, *, queues: int = 1, offloads: int = ALL_TUN, mtu: int = 0) -> None:
        self.tap = FakeTap(queues, offloads)
        self.wire = self.tap.wires[0]
        self.errors: list[BaseException] = []
        self.faults = RecordingFaults()
        self.device = NetDevice(
            self.tap, OUR_MAC, self.faults, mtu=mtu, on_error=self.errors.append
        )
        self.pc = Pc(self.device, doorbells=True)
        self.pairs = queues
        self.driver = VirtioDriver(self.pc)
        self.memory = self.pc.memory
        self.buffers = 0x60_0000

    def start(self, without: int = 0, *, features: int | None = None, size: int = 256) -> None:
        """All queues; MSI-X vector 0 for the configuration, 1 + n for queue n."""
        driver = self.driver
        driver.reset()
        wanted = driver.offered() & ~without if features is None else features
        driver.negotiate(wanted)
        pairs = self.pairs if wanted & MQ else 1
        driver.enable_msix(2 + 2 * pairs)
        driver.set("config_msix_vector", 0)
        rings = [driver.add_queue(index, size, 1 + index) for index in range(2 * pairs)]
        self.rx, self.tx = rings[0::2], rings[1::2]
        self.offered: dict[tuple[int, int], Buffer] = {}
        self.arrived = [deque[bytes]() for _ in self.rx]
        self.ctrl = driver.add_queue(2 * pairs, 64, 1 + 2 * pairs)
        driver.run()

    def send(self, *pieces: bytes, pair: int = 0) -> None:
        """One packet, header included, in as many buffers as pieces; wait until it is used."""
        ring = self.tx[pair]
        ring.add([self.filled(piece) for piece in pieces], [])
        ring.kick()
        ring.wait()

    def offer(self, *sizes: int, pair: int = 0) -> None:
        """Give the device receive buffers."""
        ring = self.rx[pair]
        for size in sizes:
            buffer = self.buffer(size)
            self.offered[pair, ring.add([], [buffer])] = buffer
        ring.kick()

    def receive(self, count: int = 1, pair: int = 0) -> list[bytes]:
        """The next ``count`` buffers as they were filled."""
        arrived = self.arrived[pair]
        while len(arrived) < count:
            for head, written in self.rx[pair].wait():
                arrived.append(self.memory.read(self.offered[pair, head][0], written))
        return [arrived.popleft() for _ in range(count)]

    def command(self, kind: int, command: int, data: bytes = b"") -> int:
        """What the device answers."""
        answer = self.filled(b"\xee")
        self.ctrl.add([self.filled(bytes((kind, command)) + data)], [answer])
        self.ctrl.kick()
        self.ctrl.wait()
        return self.memory.read_u8(answer[0])

    def passes(self, packet: bytes) -> bool:
        """Whether a packet from the network reaches the guest."""
        self.offer(2048, 2048)
        self.wire.send(HEADER + packet)
        sentinel = frame(b"end", BROADCAST)
        self.wire.send(HEADER + sentinel)
        first = self.receive()[0][12:]
        if first == sentinel:
            return False
        assert first == packet
        assert self.receive()[0][12:] == sentinel
        return True

    def close(self) -> None:
        self.pc.close()
        self.tap.close()
        assert self.errors == []


@pytest.fixture
def card() -> Iterator[Card]:
    card = Card()
    card.start()
    yield card
    card.close()


def idle_card(**options: Any) -> Iterator[Card]:
    card = Card(**options)
    yield card
    card.close()


@pytest.fixture
def unstarted() -> Iterator[Card]:
    yield from idle_card()


@pytest.fixture
def two_queues() -> Iterator[Card]:
    yield from idle_card(queues=2)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what the card's thread does by itself."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def workers() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("pyvmm-net0"))


# What the driver finds.


def test_features_and_configuration(card: Card) -> None:
    assert card.driver.features == (
        (CSUM | GUEST_CSUM | CTRL_GUEST_OFFLOADS | MAC | MRG_RXBUF | STATUS)
        | (GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO)
        | (HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO)
        | (CTRL_VQ | CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA | CTRL_MAC_ADDR)
        | (EVENT_IDX | INDIRECT_DESC | VERSION_1)
    )
    assert bytes(card.driver.config(i, 1) for i in range(6)) == OUR_MAC
    assert card.driver.config(6, 2) == 1
    assert card.driver.config(8, 2) == 1


@pytest.mark.parametrize(
    ("options", "expected", "absent"),
    [
        ({"mtu": 9000}, MTU, MQ),
        ({"queues": 3}, MQ, MTU),
        ({"offloads": TUN_CSUM}, CSUM | GUEST_CSUM, GUEST_TSO4 | HOST_TSO4 | HOST_UFO),
        ({"offloads": 0}, MRG_RXBUF, CSUM | GUEST_CSUM | CTRL_GUEST_OFFLOADS),
    ],
)
def test_features_are_what_the_tap_can_do(
    options: dict[str, int], expected: int, absent: int
) -> None:
    for card in idle_card(**options):
        offered = card.driver.offered()
        assert offered & expected == expected
        assert not offered & absent
        assert card.driver.config(8, 2) == options.get("queues", 1)
        assert card.driver.config(10, 2) == options.get("mtu", 0)
        assert card.driver.get("num_queues") == 2 * options.get("queues", 1) + 1


def test_made_up_addresses() -> None:
    """Local, unicast, stable, and different from card to card and from machine to machine."""
    names = ["a/tap0", "a/tap1", "b/tap0"]
    addresses = [made_up_mac(name, index) for name in names for index in range(8)]
    assert len(set(addresses)) == len(addresses)
    assert all(len(mac) == 6 and mac[0] & 3 == 2 for mac in addresses)
    assert made_up_mac("vmlinuz/tap0", 1) == bytes.fromhex("02264eeeb401")


# Sending.


def test_a_packet_goes_out_as_it_is(card: Card) -> None:
    header = struct.pack("<BBHHHHH", 1, 1, 54, 1448, 34, 16, 0)
    card.send(header + frame())
    assert card.wire.recv(4096) == header + frame()


def test_a_packet_in_pieces(card: Card) -> None:
    packet = frame(os.urandom(3000))
    card.send(HEADER[:5], HEADER[5:], packet[:1], packet[1:100], packet[100:])
    assert card.wire.recv(4096) == HEADER + packet


def test_the_largest_packet_and_one_more(card: Card) -> None:
    largest = frame(os.urandom(0xFFFF), vlan=7)
    card.send(HEADER, largest)
    assert card.wire.recv(1 << 17) == HEADER + largest
    card.send(HEADER, largest + b"x")
    card.send(HEADER + frame(b"next"))
    assert card.wire.recv(1 << 17) == HEADER + frame(b"next")
    assert card.faults.counts == {"network: packet of a wrong length": 1}


@pytest.mark.parametrize("length", [1, 11, 12, 25])
def test_a_packet_too_short_is_dropped(card: Card, length: int) -> None:
    card.send(bytes(length))
    card.send(HEADER + frame())
    assert card.wire.recv(4096) == HEADER + frame()
    assert card.faults.counts == {"network: packet of a wrong length": 1}


def test_many_packets_keep_their_order(card: Card) -> None:
    packets = [HEADER + frame(index.to_bytes(4, "big")) for index in range(200)]
    for packet in packets:
        card.tx[0].add([card.filled(packet)], [])
    card.tx[0].kick()
    assert [card.wire.recv(4096) for _ in packets] == packets
    assert len(card.tx[0].wait(200)) == 200


def test_a_full_tap_is_waited_for(card: Card) -> None:
    """Nothing is lost, and the thread sleeps meanwhile."""
    packets = [HEADER + frame(index.to_bytes(4, "big") + bytes(60_000)) for index in range(12)]
    for packet in packets:
        card.tx[0].add([card.filled(packet)], [])
    card.tx[0].kick()
    (worker,) = card.device._pairs
    until(lambda: not worker._writable)
    assert len(card.tx[0].take()) < len(packets)
    assert [card.wire.recv(1 << 17) for _ in packets] == packets


# Receiving.


def test_a_packet_comes_in(card: Card) -> None:
    card.offer(2048)
    header = struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 16) + b"\xaa\xaa"
    card.wire.send(header + frame())
    assert card.receive() == [header[:10] + b"\1\0" + frame()]


def test_a_packet_over_several_buffers(card: Card) -> None:
    payload = os.urandom(9000)
    card.offer(*[1536] * 10)
    card.wire.send(HEADER + frame(payload))
    pieces = card.receive(6)
    assert [len(piece) for piece in pieces] == [1536] * 5 + [9026 - 5 * 1536]
    whole = b"".join(pieces)
    assert whole[10:12] == b"\6\0"
    assert whole[12:] == frame(payload)
    card.wire.send(HEADER + frame(b"next"))
    assert card.receive()[0][12:] == frame(b"next")


def test_large_and_small_packets_alternate(card: Card) -> None:
    """However the room that is offered to the tap changes, every byte arrives."""
    lengths = [60, 65_000, 60, 60, 1500, 65_535, 3000, 100, 30_000] + [60] * 30 + [65_535]
    packets = [frame(os.urandom(length)) for length in lengths]
    for packet in packets:
        card.buffers = 0x60_0000
        needed = -(-(len(packet) + 12) // 4096)
        card.offer(*[4096] * needed)
        card.wire.send(HEADER + packet)
        assert b"".join(card.receive(needed))[12:] == packet


def test_without_mergeable_buffers(unstarted: Card) -> None:
    card = unstarted
    card.start(without=MRG_RXBUF)
    payload = os.urandom(60_000)
    header, data = card.buffer(12), card.buffer(65_550)
    head = card.rx[0].add([], [header, data])
    card.rx[0].kick()
    card.wire.send(HEADER + frame(payload))
    assert card.rx[0].wait() == [(head, 12 + len(frame(payload)))]
    assert card.memory.read(*header) == bytes(10) + b"\1\0"
    assert card.memory.read(data[0], len(frame(payload))) == frame(payload)


def test_receive_buffers_that_lie_together_and_apart(card: Card) -> None:
    """Where the buffers lie and what the packets' lengths are has nothing to do with each other."""
    sizes = [512, 1536, 64, 4096] * 16
    for number, size in enumerate(sizes):
        if number % 5 == 0:
            card.buffers += 64
        card.offer(size)
    packets = [frame(os.urandom(length)) for length in (60, 9000, 486, 487, 20_000, 485, 3000)]
    for packet in packets:
        card.wire.send(HEADER + packet)
    for packet in packets:
        whole = card.receive()[0]
        for _ in range(int.from_bytes(whole[10:12], "little") - 1):
            whole += card.receive()[0]
        assert whole[12:] == packet


def test_without_mergeable_buffers_that_lie_together(unstarted: Card) -> None:
    """A packet ends with its chain, even if the next buffer lies right behind it."""
    card = unstarted
    card.start(without=MRG_RXBUF)
    card.offer(1536, 1536, 1536)
    packets = [frame(os.urandom(length)) for length in (1510, 1511, 60)]
    for packet in packets:
        card.wire.send(HEADER + packet)
    assert [data[12:] for data in card.receive(2)] == [packets[0], packets[2]]
    assert card.faults.counts == {"network: receive buffers too small": 1}
    assert card.memory.read(card.buffers - 1536, 1536) == bytes(1536)


def test_a_receive_buffer_of_4_gib(card: Card) -> None:
    """The longest that a chain may be doesn't fit into 32 bits."""
    head = card.rx[0].add([], [(0, 16 << 20)] * 256)
    card.rx[0].kick()
    card.wire.send(HEADER + frame())
    assert card.rx[0].wait() == [(head, 12 + len(frame()))]


def test_mergeable_chains_of_several_buffers(card: Card) -> None:
    """A packet takes whole chains, wherever their buffers' borders are, the header's too."""
    card.command(RX, PROMISC, b"\0")
    ring = card.rx[0]
    chains = {}
    for sizes in [(5, 7, 500), (1500,), (12, 1000, 1000), (11, 1)] * 8:
        buffers = [card.buffer(size) for size in sizes]
        chains[ring.add([], buffers)] = buffers
    packets = [frame(os.urandom(length), to) for length in (60, 20, 9000, 0, 485, 486, 487, 1, 2000)
               for to in (OTHER_MAC, OUR_MAC)]  # fmt: skip
    for packet in packets:
        card.wire.send(HEADER + packet)
    ring.kick()
    used: deque[tuple[int, int]] = deque()

    def chain() -> bytes:
        if not used:
            used.extend(ring.wait())
        head, written = used.popleft()
        return b"".join(card.memory.read(*buffer) for buffer in chains[head])[:written]

    for packet in packets[1::2]:
        whole = chain()
        for _ in range(int.from_bytes(whole[10:12], "little") - 1):
            whole += chain()
        assert whole[12:] == packet


def test_packets_that_are_not_wanted_leave_their_buffers_to_others(card: Card) -> None:
    """In the midst of others, of several buffers each, and more of them than there is room for."""
    card.command(RX, PROMISC, b"\0")
    for _ in range(3):
        wanted = [frame(os.urandom(700)) for _ in range(9)]
        for number, packet in enumerate(wanted):
            if number % 3 != 1:
                card.wire.send(HEADER + frame(bytes(3000), OTHER_MAC))
            card.wire.send(HEADER + packet)
        card.offer(*[512] * 18)
        received = card.receive(18)
        assert [a[12:] + b for a, b in zip(received[::2], received[1::2], strict=True)] == wanted
    assert card.faults.counts == {}


@pytest.mark.parametrize("queue", [0, 1])
@pytest.mark.parametrize("address", [16 << 20, (16 << 20) - 100, 1 << 63])
def test_buffers_outside_memory(card: Card, queue: int, address: int) -> None:
    """The device asks for a reset, and nothing has been moved that is behind them."""
    ring = (card.rx[0], card.tx[0])[queue]
    flags = 0 if queue else 2
    good = card.filled(HEADER + frame())
    for index in range(8):
        ring.put(ring.descriptors, index, *(good if index < 7 else (address, 1000)), flags, 0)
        ring.offer(index)
    for _ in range(8):
        card.wire.send(HEADER + frame(b"x" * 12))
    ring.kick()
    while not card.driver.status & NEEDS_RESET:
        card.pc.msi.sent.get(timeout=TIMEOUT)
    card.start()
    card.offer(2048)
    assert card.receive()


def test_a_packet_that_fits_no_buffer_is_dropped(unstarted: Card) -> None:
    card = unstarted
    card.start(without=MRG_RXBUF)
    card.offer(1526, 1526)
    card.wire.send(HEADER + frame(bytes(1515 - 14)))
    card.wire.send(HEADER + frame(bytes(1514 - 14)))
    assert len(card.receive()[0]) == 1526
    assert card.faults.counts == {"network: receive buffers too small": 1}


def test_a_ring_too_small_for_a_packet(unstarted: Card) -> None:
    """The packet can never be received; the next one can."""
    card = unstarted
    card.start(size=4)
    card.offer(1536, 1536, 1536, 1536)
    card.wire.send(HEADER + frame(bytes(9000)))
    card.wire.send(HEADER + frame(b"next"))
    assert card.receive()[0][12:] == frame(b"next")
    assert card.faults.counts == {"network: receive buffers too small": 1}


def test_without_buffers_packets_wait_in_the_tap(card: Card) -> None:
    packets = [frame(index.to_bytes(4, "big")) for index in range(40)]
    for packet in packets[:20]:
        card.wire.send(HEADER + packet)
    card.offer(*[2048] * 5)
    received = card.receive(5)
    for packet in packets[20:]:
        card.wire.send(HEADER + packet)
    card.offer(*[2048] * 35)
    received += card.receive(35)
    assert [data[12:] for data in received] == packets


def test_a_packet_waits_for_the_rest_of_its_buffers(card: Card) -> None:
    payload = os.urandom(9000)
    card.offer(1536)
    card.wire.send(HEADER + frame(payload))
    (worker,) = card.device._pairs
    until(lambda: bool(worker._spilled))
    for _ in range(5):
        card.offer(1536)
    assert b"".join(card.receive(6))[12:] == frame(payload)


def test_the_rx_doorbell_is_wanted_only_without_buffers(card: Card) -> None:
    ring = card.rx[0]
    assert ring.avail_event == 0
    card.offer(*[2048] * 4)
    card.wire.send(HEADER + frame())
    card.receive()
    assert ring.avail_event == 0
    for _ in range(4):
        card.wire.send(HEADER + frame())
    card.receive(3)
    until(lambda: ring.avail_event == 4)
    card.offer(2048)
    card.receive()


def test_a_receive_buffer_without_room_for_a_header(card: Card) -> None:
    card.offer(11)
    card.wire.send(HEADER + frame())
    while not card.driver.status & NEEDS_RESET:
        card.pc.msi.sent.get(timeout=TIMEOUT)
    card.start()
    card.offer(2048)
    assert card.receive()[0][12:] == frame()


# Filters (5.1.6.5).

RX, MAC_CLASS, VLAN_CLASS, MQ_CLASS, OFFLOADS_CLASS = 0, 1, 2, 4, 5
PROMISC, ALLMULTI, ALLUNI, NOMULTI, NOUNI, NOBCAST = range(6)
OK, ERR = 0, 1


def test_all_packets_pass_until_the_driver_says_otherwise(card: Card) -> None:
    assert card.passes(frame(to=OTHER_MAC))
    assert card.passes(frame(to=GROUP_MAC))


def test_unicast_and_multicast(card: Card) -> None:
    assert card.command(RX, PROMISC, b"\0") == OK
    assert card.passes(frame())
    assert not card.passes(frame(to=OTHER_MAC))
    assert not card.passes(frame(to=GROUP_MAC))
    assert card.command(RX, ALLMULTI, b"\1") == OK
    assert card.passes(frame(to=GROUP_MAC))
    assert not card.passes(frame(to=OTHER_MAC))
    assert card.command(RX, ALLMULTI, b"\0") == OK
    assert card.command(RX, ALLUNI, b"\1") == OK
    assert card.passes(frame(to=OTHER_MAC))
    assert not card.passes(frame(to=GROUP_MAC))


def test_modes_that_keep_packets_out(card: Card) -> None:
    card.command(RX, PROMISC, b"\0")
    tables = struct.pack("<I", 0) + struct.pack("<I", 1) + GROUP_MAC
    assert card.command(MAC_CLASS, 0, tables) == OK
    assert card.passes(frame(to=GROUP_MAC))
    assert card.command(RX, NOMULTI, b"\1") == OK
    assert not card.passes(frame(to=GROUP_MAC))
    assert card.command(RX, NOUNI, b"\1") == OK
    assert not card.passes(frame())
    assert card.command(RX, NOUNI, b"\0") == OK
    assert card.command(RX, NOBCAST, b"\1") == OK
    card.offer(2048)
    card.wire.send(HEADER + frame(b"to all", BROADCAST))
    card.wire.send(HEADER + frame(b"to me"))
    assert card.receive()[0][12:] == frame(b"to me")


def test_address_tables(card: Card) -> None:
    card.command(RX, PROMISC, b"\0")
    tables = struct.pack("<I", 1) + OTHER_MAC + struct.pack("<I", 1) + GROUP_MAC
    assert card.command(MAC_CLASS, 0, tables) == OK
    assert card.passes(frame(to=OTHER_MAC))
    assert card.passes(frame(to=GROUP_MAC))
    assert not card.passes(frame(to=bytes.fromhex("01005e000002")))
    assert card.command(MAC_CLASS, 0, bytes(8)) == OK
    assert not card.passes(frame(to=OTHER_MAC))
    assert card.passes(frame())


def test_more_addresses_than_are_kept_let_all_of_their_kind_pass(card: Card) -> None:
    card.command(RX, PROMISC, b"\0")
    many = b"".join(b"\2\0\0\0\1" + bytes((n,)) for n in range(100))
    tables = struct.pack("<I", 100) + many + struct.pack("<I", 0)
    assert card.command(MAC_CLASS, 0, tables) == OK
    assert card.passes(frame(to=OTHER_MAC))
    assert not card.passes(frame(to=GROUP_MAC))


def test_a_new_address(card: Card) -> None:
    card.command(RX, PROMISC, b"\0")
    assert card.command(MAC_CLASS, 1, OTHER_MAC) == OK
    assert card.passes(frame(to=OTHER_MAC))
    assert not card.passes(frame())
    assert bytes(card.driver.config(i, 1) for i in range(6)) == OTHER_MAC
    card.start()
    assert bytes(card.driver.config(i, 1) for i in range(6)) == OUR_MAC


def test_vlans(card: Card) -> None:
    card.command(RX, PROMISC, b"\0")
    assert not card.passes(frame(vlan=5))
    assert card.command(VLAN_CLASS, 0, struct.pack("<H", 5)) == OK
    assert card.passes(frame(vlan=5))
    assert card.passes(frame(vlan=0xE005))
    assert not card.passes(frame(vlan=6))
    assert card.command(VLAN_CLASS, 1, struct.pack("<H", 5)) == OK
    assert not card.passes(frame(vlan=5))


def test_vlans_are_not_filtered_for_a_driver_that_does_it(unstarted: Card) -> None:
    unstarted.start(without=CTRL_VLAN)
    unstarted.command(RX, PROMISC, b"\0")
    assert unstarted.passes(frame(vlan=6))
    assert unstarted.command(VLAN_CLASS, 0, struct.pack("<H", 5)) == ERR


def test_filters_look_into_any_layout_of_buffers(unstarted: Card) -> None:
    unstarted.start(without=MRG_RXBUF)
    unstarted.command(RX, PROMISC, b"\0")
    pieces = [unstarted.buffer(size) for size in (12, 3, 3, 5, 2000)]
    head = unstarted.rx[0].add([], pieces)
    unstarted.rx[0].kick()
    unstarted.wire.send(HEADER + frame(to=OTHER_MAC))
    unstarted.wire.send(HEADER + frame())
    assert unstarted.rx[0].wait() == [(head, 12 + len(frame()))]
    assert b"".join(unstarted.memory.read(*p) for p in pieces)[12:].startswith(frame())


@pytest.mark.parametrize(
    ("kind", "command", "data"),
    [
        (RX, PROMISC, b""),
        (RX, PROMISC, b"\2"),
        (RX, PROMISC, b"\0\0"),
        (RX, 6, b"\1"),
        (MAC_CLASS, 0, b""),
        (MAC_CLASS, 0, bytes(4)),
        (MAC_CLASS, 0, bytes(9)),
        (MAC_CLASS, 0, b"\1" + bytes(7)),
        (MAC_CLASS, 0, b"\xff" * 8),
        (MAC_CLASS, 1, bytes(5)),
        (MAC_CLASS, 1, bytes(7)),
        (MAC_CLASS, 2, bytes(6)),
        (VLAN_CLASS, 0, b"\0"),
        (VLAN_CLASS, 0, b"\0\x10"),
        (VLAN_CLASS, 2, b"\0\0"),
        (3, 0, b""),
        (MQ_CLASS, 0, b"\1\0"),
        (OFFLOADS_CLASS, 0, bytes(7)),
        (OFFLOADS_CLASS, 0, struct.pack("<Q", CSUM)),
        (OFFLOADS_CLASS, 1, bytes(8)),
        (255, 255, b""),
        (MAC_CLASS, 0, bytes(70_000)),
    ],
)
def test_bad_commands(card: Card, kind: int, command: int, data: bytes) -> None:
    assert card.command(kind, command, data) == ERR
    assert card.command(RX, ALLMULTI, b"\1") == OK


def test_a_command_without_room_for_an_answer(card: Card) -> None:
    card.ctrl.add([card.filled(b"\0\0\0")], [])
    card.ctrl.kick()
    while not card.driver.status & NEEDS_RESET:
        card.pc.msi.sent.get(timeout=TIMEOUT)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=st.lists(st.binary(max_size=40), min_size=1, max_size=10))
def test_any_commands(requests: list[bytes]) -> None:
    """Whatever is asked, there is an answer, and only what filters hold is kept."""
    tap = FakeTap(2)
    device = NetDevice(tap, OUR_MAC, RecordingFaults())
    device.negotiated = (1 << 34) - 1
    device.filter = net.ReceiveFilter(OUR_MAC, device.negotiated)
    for request in requests:
        assert device._execute(request) in (True, False)
        device.filter.passes(HEADER + frame(vlan=1)[:18])
    device.close()
    tap.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    chains=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.lists(
                st.tuples(
                    st.sampled_from([0, 0x60_0000, 0xFF_FFF0, 0xFFFF_FFFF_FFFF_FFF0]),
                    st.sampled_from([0, 1, 12, 26, 4096, 0x10_0000, 0xFFFF_FFFF]),
                    st.integers(0, 7),
                    st.integers(0, 9),
                ),
                min_size=1,
                max_size=5,
            ),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_descriptors(chains: list[tuple[int, list[tuple[int, int, int, int]]]]) -> None:
    """The worst is a device that asks for a reset, and works after it."""
    card = Card()
    card.start()
    for queue, descriptors in chains:
        ring: DriverQueue = (card.rx[0], card.tx[0], card.ctrl)[queue]
        for index, descriptor in enumerate(descriptors):
            ring.put(ring.descriptors, index, *descriptor)
        ring.offer(0)
        ring.kick()
        card.wire.send(HEADER + frame())
    card.start()
    while select.select([card.wire], [], [], 0)[0]:
        card.wire.recv(1 << 17)
    card.send(HEADER + frame())
    assert card.wire.recv(1 << 17) == HEADER + frame()
    card.close()


# Offloads.


def test_the_tap_leaves_undone_what_the_driver_takes(card: Card) -> None:
    assert card.tap.offloads_set == [ALL_TUN]
    card.driver.reset()
    assert card.tap.offloads_set == [ALL_TUN, 0]


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        (GUEST_TSO6 | GUEST_UFO, TUN_CSUM | TUN_TSO4 | TUN_ECN),
        (GUEST_TSO4 | GUEST_TSO6, TUN_CSUM),
        (GUEST_CSUM, 0),
    ],
)
def test_offloads_that_make_no_sense_alone(unstarted: Card, without: int, expected: int) -> None:
    unstarted.start(without)
    assert unstarted.tap.offloads_set == [expected]


def test_offloads_are_changed_by_command(card: Card) -> None:
    wanted = struct.pack("<Q", GUEST_CSUM | GUEST_TSO4)
    assert card.command(OFFLOADS_CLASS, 0, wanted) == OK
    assert card.tap.offloads_set[-1] == TUN_CSUM | TUN_TSO4


# Several queues.


def test_one_pair_is_used_until_the_driver_asks_for_more(two_queues: Card) -> None:
    card = two_queues
    card.start()
    assert card.tap.enabled == {1: False}
    assert workers() == ["pyvmm-net0.0"]
    assert card.command(MQ_CLASS, 0, b"\2\0") == OK
    assert card.tap.enabled == {1: True}
    assert workers() == ["pyvmm-net0.0", "pyvmm-net0.1"]
    card.send(HEADER + frame(), pair=1)
    assert card.tap.wires[1].recv(4096) == HEADER + frame()
    card.offer(2048, pair=1)
    card.tap.wires[1].send(HEADER + frame(b"second"))
    assert card.receive(pair=1)[0][12:] == frame(b"second")
    assert card.command(MQ_CLASS, 0, b"\1\0") == OK
    assert card.tap.enabled == {1: False}
    assert workers() == ["pyvmm-net0.0"]
    for pairs in (b"\0\0", b"\3\0", b"\1"):
        assert card.command(MQ_CLASS, 0, pairs) == ERR


def test_a_driver_without_several_queues(two_queues: Card) -> None:
    """Its control queue is the third one (5.1.2)."""
    two_queues.start(without=MQ)
    assert two_queues.command(RX, PROMISC, b"\0") == OK
    assert two_queues.tap.enabled == {1: False}
    assert two_queues.passes(frame())


def test_pause_and_resume_with_two_pairs(two_queues: Card) -> None:
    card = two_queues
    card.start()
    card.command(MQ_CLASS, 0, b"\2\0")
    card.device.pause()
    assert workers() == []
    card.device.resume()
    assert workers() == ["pyvmm-net0.0", "pyvmm-net0.1"]


# Life.


def test_a_pause_gives_buffers_back_to_the_queue(card: Card) -> None:
    card.offer(*[2048] * 4)
    card.wire.send(HEADER + frame(b"first"))
    card.receive()
    card.device.pause()
    assert card.pc.transports[0].session.queues[0].save()["next_avail"] == 1
    assert workers() == []
    card.wire.send(HEADER + frame(b"second"))
    card.device.resume()
    assert card.receive()[0][12:] == frame(b"second")


def test_a_reset_ends_everything(card: Card) -> None:
    card.offer(2048)
    card.command(RX, PROMISC, b"\0")
    card.driver.reset()
    assert workers() == []
    card.wire.send(HEADER + frame(b"old"))
    card.start()
    card.offer(2048)
    assert card.receive()[0][12:] == frame(b"old")
    assert card.passes(frame(to=OTHER_MAC))


def test_the_link_goes_down_and_up(card: Card) -> None:
    card.device.set_link(False)
    assert card.pc.msi.sent.get(timeout=TIMEOUT)[1] == 1
    assert card.driver.config(6, 2) == 0
    card.send(HEADER + frame(b"lost"))
    card.offer(2048)
    card.wire.send(HEADER + frame(b"lost too"))
    (worker,) = card.device._pairs
    until(lambda: not worker._readable and not select.select(card.tap.fds, [], [], 0)[0])
    card.device.set_link(True)
    assert card.driver.config(6, 2) == 1
    card.send(HEADER + frame(b"sent"))
    assert card.wire.recv(4096) == HEADER + frame(b"sent")
    card.wire.send(HEADER + frame(b"received"))
    assert card.receive()[0][12:] == frame(b"received")
    before = card.driver.get("config_generation")
    card.device.set_link(True)
    assert card.driver.get("config_generation") == before


def test_a_tap_that_goes_away(card: Card) -> None:
    card.offer(2048)
    card.wire.close()
    assert card.pc.msi.sent.get(timeout=TIMEOUT)[1] == 1
    assert card.driver.config(6, 2) == 0
    assert card.faults.lines == ["host: tap is gone, so the link is down: tap7: end of file"]
    card.send(HEADER + frame())
    card.device.set_link(True)
    assert card.driver.config(6, 2) == 0
    card.start()
    card.send(HEADER + frame())
    assert len(card.faults.lines) == 1


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EINVAL, "network: bad virtio_net_hdr"),
        (errno.EIO, "tap is down"),
        (errno.ENOBUFS, "packet not sent"),
    ],
)
def test_packets_that_the_host_refuses(
    card: Card, monkeypatch: pytest.MonkeyPatch, number: int, kind: str
) -> None:
    def refuse(_packets: Packets, _parts: bytes, counts: list[int]) -> list[int]:
        return [-number for _ in counts]

    with monkeypatch.context() as patch:
        patch.setattr(Packets, "write", refuse)
        card.send(HEADER + frame())
        card.send(HEADER + frame())
    assert card.faults.counts == {kind: 2}
    card.send(HEADER + frame())
    assert card.wire.recv(4096) == HEADER + frame()


def test_close_ends_the_thread_and_may_be_repeated(card: Card) -> None:
    card.device.close()
    card.device.close()
    assert workers() == []
