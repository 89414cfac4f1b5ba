"""Injected faults, as guests of ours meet them."""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvm.command import Ended, run, start
from kvm.namespace import shell

SECTOR, SECTORS = 512, 64


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "disk.raw"
    image.write_bytes(b"\xee" * SECTOR * SECTORS)
    return image


def sectors(guests: Path, image: Path, options: str) -> Ended:
    ended = run(guests / "sectors", "--disk", f"{image},{options}")
    ended.check()
    return ended


def test_errors_at_just_these_sectors(guests: Path, image: Path) -> None:
    ended = sectors(guests, image, "error=eio@sector=8..15")
    expected = "." * 8 + "x" * 8 + "." * (SECTORS - 16)
    assert ended.value("read") == ended.value("write") == expected
    assert ended.value("flush") == "."
    assert "disk.raw: 16 of 129 requests failed on purpose (8 reads, 8 writes)" in ended.stderr
    data = image.read_bytes()  # the guest writes zeros, where it can
    assert data == bytes(8 * SECTOR) + b"\xee" * 8 * SECTOR + bytes((SECTORS - 16) * SECTOR)


def test_only_writes_and_flushes(guests: Path, image: Path) -> None:
    ended = sectors(guests, image, "error=enospc@sector=60..63,error=eio@flush")
    assert ended.value("read") == "." * SECTORS
    assert ended.value("write") == "." * 60 + "xxxx"
    assert ended.value("flush") == "x"


def test_chance_is_the_same_each_time(guests: Path, image: Path) -> None:
    first, again = (sectors(guests, image, "error=eio@20%,seed=1") for _ in range(2))
    other = sectors(guests, image, "error=eio@20%,seed=2")
    assert first.value("read") == again.value("read") != other.value("read")
    assert first.value("write") == again.value("write") != other.value("write")
    assert 0 < first.value("read").count("x") < SECTORS // 2
    assert "seed 1" in first.stderr


def test_latency_is_each_requests_own(guests: Path, image: Path) -> None:
    """One after another, these would take 12.8 s."""
    ended = run(guests / "sectors", "--disk", f"{image},latency=200ms", append="at-once=64")
    ended.check()
    assert 200_000 <= int(ended.value("microseconds")) < 6_400_000
    assert "each took 200 ms more" in ended.stderr


def test_a_sector_that_is_not_there(guests: Path, image: Path) -> None:
    ended = run(guests / "sectors", "--disk", f"{image},error=eio@sector=64")
    assert ended.status == 2
    assert ended.stderr.endswith("disk.raw,error: the last sector is 63, not 64\n")


HOST_MAC, GUEST_MAC = bytes.fromhex("525400000001"), bytes.fromhex("525400123456")
HOST, GUEST = bytes((10, 0, 5, 1)), bytes((10, 0, 5, 2))
MARKER = 10_000


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ping(number: int) -> bytes:
    icmp = struct.pack(">BBHHH", 8, 0, 0, 0, number)
    icmp = icmp[:2] + struct.pack(">H", checksum(icmp)) + icmp[4:]
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(icmp), 0, 0, 64, 1, 0, HOST, GUEST)
    ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
    return (GUEST_MAC + HOST_MAC + b"\x08\x00" + ip + icmp).ljust(60, b"\0")


def answers(card: socket.socket) -> Iterator[int]:
    """The numbers of the pings that the guest answers, as they come; None after a silence."""
    while True:
        packet, (_, _, kind, *_) = card.recvfrom(2048)
        if kind != socket.PACKET_OUTGOING and packet[12:14] == b"\x08\x00" and packet[34] == 0:
            yield int.from_bytes(packet[40:42], "big")


def pinged(guests: Path, options: str, count: int) -> tuple[list[int], str]:
    """Which of ``count`` pings are answered, and what is said at the end."""
    shell("""
        ip tuntap add dev tap0 mode tap
        echo 1 >/proc/sys/net/ipv6/conf/tap0/disable_ipv6
        ip link set tap0 up
    """)
    net = f"tap0,mac=52:54:00:12:34:56,{options}"
    append = f"pings={MARKER}"
    with (
        start(guests / "net", "--net", net, append=append) as guest,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as card,
    ):
        card.bind(("tap0", 3))
        guest.read_until(b"listening\n")
        for number in range(count):
            card.send(ping(number))
        found = []
        for marker in range(MARKER, MARKER + 1000):  # all before it have come when one does
            card.send(ping(marker))
            card.settimeout(0.5)
            try:
                for number in answers(card):
                    if number >= MARKER:
                        break
                    found.append(number)
                break
            except TimeoutError:
                continue
        guest.process.send_signal(signal.SIGINT)
        status, _, stderr = guest.finish()
        assert status == 130, stderr
    shell("ip link delete tap0")
    return found, stderr


@pytest.mark.usefixtures("namespace")
def test_lost_packets(guests: Path) -> None:
    """The same ones each time, with the same seed."""
    first, said = pinged(guests, "drop=20%,seed=7", 100)
    again, _ = pinged(guests, "drop=20%,seed=7", 100)
    assert first == again
    assert 30 < len(first) < 95
    assert len(set(first)) == len(first)
    assert "tap0: " in said
    assert "dropped" in said


@pytest.mark.usefixtures("namespace")
def test_packets_that_come_twice(guests: Path) -> None:
    found, said = pinged(guests, "duplicate=100%@rx,delay=5ms@tx", 20)
    assert found == [number for number in range(20) for _ in range(2)]
    assert "duplicated; " in said


@pytest.mark.usefixtures("namespace")
def test_no_fault_befalls_the_other_direction(guests: Path) -> None:
    found, said = pinged(guests, "corrupt=0.0001%@tx", 20)
    assert found == list(range(20))
    assert "packets to the guest; " in said
