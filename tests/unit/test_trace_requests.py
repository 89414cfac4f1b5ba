"""What a trace says of requests on virtqueues: by device type, and of any that a driver makes."""

from __future__ import annotations

import struct
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.virtio_echo import Echo

from pyvmm.trace.requests import Describe, Meaning, describer, device_names
from pyvmm.virtio.device import DeviceId
from pyvmm.virtio.queue import Chain

EVERY_TYPE = (
    *(DeviceId.BLOCK, DeviceId.NETWORK, DeviceId.CONSOLE),
    *(DeviceId.ENTROPY, DeviceId.BALLOON, DeviceId.SOCKET),
)


def describe(device_id: int) -> Describe:
    echo = Echo()
    echo.device_id = cast(DeviceId, device_id)
    echo.close()
    return describer(echo)


def chain(out: bytes, room: int, cut: int = 0) -> Chain:
    """A request with ``out`` to read, its first ``cut`` bytes in a buffer of their own."""
    readable = [memoryview(piece) for piece in (out[:cut], out[cut:]) if piece]
    writable = [memoryview(bytearray(room))] if room else []
    return Chain(0, readable, len(out), writable, room)


def meaning(
    device_id: int,
    queue: int,
    out: bytes = b"",
    answer: bytes = b"",
    *,
    room: int | None = None,
    written: int | None = None,
    cut: int = 0,
) -> Meaning:
    """What is said of a request: ``answer`` is what the device writes, from the beginning."""
    type_ = describe(device_id)
    request = chain(out, len(answer) if room is None else room, cut)
    buffers = list(request.writable)
    fields, views = type_.popped(request)
    del request.readable[:], request.writable[:]  # they are the device's to take apart
    if buffers:
        buffers[0][: len(answer)] = answer
    result = type_.pushed(views)
    return type_.meaning(queue, len(answer) if written is None else written, fields, result)


def blk(kind: int, sector: int = 0, data: bytes = b"") -> bytes:
    return struct.pack("<I4xQ", kind, sector) + data


OK, ERROR, UNSUPPORTED = b"\0", b"\1", b"\2"


class TestBlock:
    @pytest.mark.parametrize(
        ("out", "answer", "expected"),
        [
            (blk(0, 2048), bytes(4096) + OK, Meaning("read 8 sectors at 2048", 4096)),
            (blk(0, 5), bytes(512) + OK, Meaning("read 1 sector at 5", 512)),
            (blk(0, 99), bytes(512) + ERROR, Meaning("read 1 sector at 99", 512, "I/O error")),
            (blk(1, 7, bytes(1024)), OK, Meaning("write 2 sectors at 7", 1024)),
            (blk(4), OK, Meaning("flush", 0)),
            (blk(8), bytes(20) + OK, Meaning("get the serial number", 0)),
            (blk(11, 0, struct.pack("<QII", 16, 8, 0)), OK,
             Meaning("discard 8 sectors at 16", 0)),
            (blk(13, 0, 3 * struct.pack("<QII", 16, 8, 0)), OK,
             Meaning("write zeroes 8 sectors at 16 and 2 more", 0)),
            (blk(11), OK, Meaning("discard", 0)),
            (blk(77), UNSUPPORTED, Meaning("request type 77", 0, "unsupported")),
            (blk(0), bytes(512) + b"\7", Meaning("read 1 sector at 0", 512, "status 7")),
            (b"short", OK, Meaning("a request that is cut short", 0, "?")),
            (blk(4), b"", Meaning("a request that is cut short", 0, "?")),
        ],
    )  # fmt: skip
    def test_requests(self, out: bytes, answer: bytes, expected: Meaning) -> None:
        assert meaning(DeviceId.BLOCK, 0, out, answer) == expected
        assert meaning(DeviceId.BLOCK, 0, out, answer, cut=9) == expected


class TestNet:
    @pytest.mark.parametrize(
        ("queue", "out", "answer", "expected"),
        [
            (1, bytes(12 + 60), b"", Meaning("send 60 bytes", 60)),
            (1, bytes(5), b"", Meaning("send 0 bytes", 0)),
            (0, b"", bytes(72), Meaning("receive 72 bytes", 72, waits=True)),
            (2, b"\x00\x00\x01", OK, Meaning("RX_PROMISC", 3)),
            (2, b"\x04\x00\x02\x00", ERROR, Meaning("MQ_VQ_PAIRS_SET", 4, "error")),
            (2, b"\x09\x09", ERROR, Meaning("command 0x0909", 2, "error")),
        ],
    )
    def test_packets_and_commands(
        self, queue: int, out: bytes, answer: bytes, expected: Meaning
    ) -> None:
        assert meaning(DeviceId.NETWORK, queue, out, answer) == expected


def control(port: int, event: int, value: int) -> bytes:
    return struct.pack("<IHH", port, event, value)


class TestConsole:
    @pytest.mark.parametrize(
        ("queue", "out", "answer", "expected"),
        [
            (1, b"hello\n", b"", Meaning("port 0: write 6 bytes", 6)),
            (0, b"", b"typed", Meaning("port 0: read 5 bytes", 5, waits=True)),
            (5, b"to the agent", b"", Meaning("port 1: write 12 bytes", 12)),
            (3, control(1, 3, 1), b"", Meaning("port 1: PORT_READY 1", 8)),
            (2, b"", control(0, 4, 1), Meaning("port 0: CONSOLE_PORT 1", 8, waits=True)),
            (3, control(0, 99, 0), b"", Meaning("port 0: event 99 0", 8)),
        ],
    )
    def test_text_and_messages(
        self, queue: int, out: bytes, answer: bytes, expected: Meaning
    ) -> None:
        assert meaning(DeviceId.CONSOLE, queue, out, answer) == expected


class TestOthers:
    def test_entropy(self) -> None:
        assert meaning(DeviceId.ENTROPY, 0, b"", bytes(64)) == Meaning("64 random bytes", 64)

    @pytest.mark.parametrize(
        ("queue", "out", "room", "expected"),
        [
            (0, bytes(1024), 0, Meaning("lend 256 pages", 1024)),
            (1, bytes(4), 0, Meaning("take back 1 page", 4)),
            (2, bytes(100), 0, Meaning("statistics", 100, waits=True)),
            (4, b"", 2 << 20, Meaning("2048 KiB of free memory", 2 << 20)),
        ],
    )
    def test_balloon(self, queue: int, out: bytes, room: int, expected: Meaning) -> None:
        assert meaning(DeviceId.BALLOON, queue, out, room=room, written=0) == expected

    def test_sockets(self) -> None:
        packet = struct.pack("<QQIIIHHIII", 3, 2, 1000, 22, 5, 1, 5, 0, 0, 0)
        words = "RW from port 1000 to 22, 5 bytes"
        assert meaning(DeviceId.SOCKET, 1, packet + b"hello") == Meaning(words, 5)
        received = meaning(DeviceId.SOCKET, 0, b"", packet + b"hello", room=4096)
        assert received == Meaning(words, 5, waits=True)
        short = meaning(DeviceId.SOCKET, 1, b"short")
        assert short == Meaning("5 bytes from the guest", 5)

    def test_a_type_of_the_users(self) -> None:
        assert meaning(99, 0, b"12345") == Meaning("5 bytes from the guest", 5)
        assert meaning(99, 0, b"123", b"4567") == Meaning("4 bytes to the guest", 4)


@given(
    device_id=st.sampled_from(EVERY_TYPE),
    queue=st.integers(0, 9),
    out=st.binary(max_size=120),
    answer=st.binary(max_size=120),
    written=st.integers(0, 1 << 32),
    cut=st.integers(0, 60),
)
def test_whatever_a_driver_asks_for_there_is_a_line(
    device_id: DeviceId, queue: int, out: bytes, answer: bytes, written: int, cut: int
) -> None:
    if not out and not answer:
        return  # a chain isn't empty
    said = meaning(device_id, queue, out, answer, written=written, cut=cut)
    assert said.what
    assert said.bytes >= 0
    assert said.status


def test_names() -> None:
    echoes = [Echo() for _ in range(3)]
    echoes[0].device_id = DeviceId.BLOCK
    echoes[0].name = "vda"  # type: ignore[attr-defined]
    echoes[1].device_id = DeviceId.ENTROPY

    class Number(int):
        name = "Checksum"

    echoes[2].device_id = cast(DeviceId, Number(42))
    assert device_names(echoes) == ["virtio-blk vda", "virtio-rng", "Checksum"]
    for echo in echoes:
        echo.close()
