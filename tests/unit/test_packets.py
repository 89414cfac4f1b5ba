"""Many packets with one call, on a pair of sockets that keeps packets apart as a tap does."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from pyvmm.host import Packets
from pyvmm.memory import GIB, MMIO_HOLE_END, GuestMemory

MEMORY = 1 << 20
LIMIT, LONGEST = 8, 3000
NO_LIMIT = 1 << 30


def parts(*buffers: tuple[int, int]) -> bytearray:
    """As a descriptor has it: what follows address and length isn't looked at."""
    return bytearray().join(struct.pack("<QII", *buffer, 0xFFFF_FFFF) for buffer in buffers)


class Wire:
    """``packets`` at this end, ``far`` at the other."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.packets = Packets(self.near.fileno(), memory.host_ranges(), LIMIT, LONGEST)

    def read(
        self, *buffers: tuple[int, int], limit: int = LIMIT, limit_bytes: int = NO_LIMIT
    ) -> list[tuple[int, ...]]:
        found = self.packets.read(parts(*buffers), limit, limit_bytes)
        return list(zip(found[::3], found[1::3], found[2::3], strict=True))

    def close(self) -> None:
        self.near.close()
        self.far.close()
        self.memory.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire(GuestMemory(MEMORY))
    yield wire
    wire.close()


def test_each_packet_begins_with_a_part_of_its_own(wire: Wire) -> None:
    for length, letter in ((100, b"a"), (64, b"b"), (65, b"c")):
        wire.far.send(letter * length)
    found = wire.read(*((0x1000 * n, 64) for n in range(1, 20)))
    assert found[:3] == [(100, 2, 36), (64, 1, 64), (65, 2, 1)]
    assert [result[:2] for result in found[3:]] == [(-errno.EAGAIN, 0)]
    starts = [wire.memory.read(0x1000 * n, 64).rstrip(b"\0") for n in range(1, 7)]
    assert starts == [b"a" * 64, b"a" * 36, b"b" * 64, b"c" * 64, b"c", b""]


def test_no_more_packets_than_wanted(wire: Wire) -> None:
    for _ in range(20):
        wire.far.send(bytes(50))
    many = [(0x1000, 64)] * 20
    assert len(wire.read(*many, limit=3)) == 3
    assert len(wire.read(*many, limit=100)) == LIMIT
    assert len(wire.read(*many, limit_bytes=101)) == 3
    assert wire.read(*many[:2]) == [(50, 1, 50)] * 2


def test_what_there_is_no_room_for_is_spilled(wire: Wire) -> None:
    data = bytes(range(250)) * 12
    wire.far.send(data[:10])
    wire.far.send(data)
    assert wire.read((0x1000, 64), (0x2000, 64), (0x3000, 36)) == [(10, 1, 10), (3000, 0, 100)]
    assert wire.memory.read(0x2000, 64) + wire.memory.read(0x3000, 36) == data[:100]
    assert wire.packets.spill[:2900] == data[100:]
    wire.far.send(b"none")
    assert wire.read() == [(4, 0, 0)]
    assert wire.packets.spill[:4] == b"none"


def test_more_parts_than_a_call_takes(wire: Wire) -> None:
    wire.far.send(bytes(3000))
    ((length, count, room),) = wire.read(*[(0x1000, 1)] * 2000)
    assert (length, count) == (3000, 0)
    assert 500 < room < 2000


def test_the_other_end_is_gone(wire: Wire) -> None:
    wire.far.close()
    assert [result[:2] for result in wire.read((0x1000, 64))] == [(0, 0)]


OUTSIDE = [
    (MEMORY, 1),
    (MEMORY - 16, 17),
    (MEMORY - 1, 0xFFFF_FFFF),
    (MMIO_HOLE_END, 1),
    (2**64 - 16, 16),
    (2**64 - 16, 32),
]


@pytest.mark.parametrize("bad", OUTSIDE)
def test_what_is_not_memory_is_not_touched(wire: Wire, bad: tuple[int, int]) -> None:
    wire.far.send(b"first")
    wire.far.send(b"second")
    good = (MEMORY - 16, 16)
    wire.memory.write(MEMORY - 16, bytes(16))
    found = wire.read((0x1000, LONGEST), good, bad)
    assert [result[:2] for result in found] == [(5, 1), (-errno.EFAULT, 0)]
    assert wire.memory.read(MEMORY - 16, 16) == bytes(16)
    assert wire.read(good)[0] == (6, 1, 6)
    sent = wire.packets.write(bytes(parts(good, good, bad, good)), [1, 2, 1])
    assert sent == [16, -errno.EFAULT, 16]
    assert wire.far.recv(100) == wire.far.recv(100) == wire.memory.read(*good)
    with pytest.raises(BlockingIOError):
        wire.far.recv(100)


def test_packets_are_sent_of_so_many_parts_each(wire: Wire) -> None:
    wire.memory.write(0x1000, b"abcdef")
    pieces = bytes(parts((0x1000, 1), (0x1001, 2), (0x1003, 3)))
    assert wire.packets.write(pieces, [2, 0, 1]) == [3, 0, 3]
    assert [wire.far.recv(100) for _ in range(2)] == [b"abc", b"def"]


def test_sending_ends_where_it_would_block(wire: Wire) -> None:
    pieces = bytes(parts(*[(0x1000, 60_000)] * LIMIT))
    results = []
    while len(sent := wire.packets.write(pieces, [1] * LIMIT)) == LIMIT:
        results += sent
    results += sent
    assert set(results) == {60_000}
    for _ in results:
        assert len(wire.far.recv(1 << 17)) == 60_000
    assert wire.packets.write(pieces[:16], [1]) == [60_000]


def test_a_packet_that_is_refused_is_the_only_one(wire: Wire) -> None:
    wire.far.shutdown(socket.SHUT_RD)
    pieces = bytes(parts((0x1000, 1), (0x1000, 1)))
    assert wire.packets.write(pieces, [1, 1]) == [-errno.EPIPE] * 2


def test_memory_on_both_sides_of_the_hole() -> None:
    wire = Wire(GuestMemory(4 * GIB))
    below, above = 3 * GIB - 16, MMIO_HOLE_END
    wire.far.send(b"0123456789abcdef--hi")
    assert wire.read((below, 16), (above, 16))[0] == (20, 2, 4)
    assert wire.memory.read(below, 16) == b"0123456789abcdef"
    assert wire.memory.read(above, 4) == b"--hi"
    assert wire.packets.write(bytes(parts((above, 4), (below, 2))), [2]) == [6]
    assert wire.far.recv(100) == b"--hi01"
    for bad in ((below, 17), (above - 1, 1), (5 * GIB, 1), (5 * GIB - 1, 2)):
        assert wire.read(bad)[0][:2] == (-errno.EFAULT, 0)
    wire.close()
