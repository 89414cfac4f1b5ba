"""The networks that README.md shows how to make: each is made as it says, with a tap opened by us
and a guest's part played here."""

from __future__ import annotations

import os
import re
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvm.namespace import network_namespace, shell

from guests import debian
from pyvmm.backends.tap import Tap

README = Path(__file__).parent.parent.parent / "README.md"
GUEST, HOST, OUTSIDE = "10.0.5.2", "10.0.5.1", "10.0.9.9"
GUEST_MAC = bytes.fromhex("020000000005")
BROADCAST = b"\xff" * 6
IPV4, ARP = 0x0800, 0x0806
ATTEMPTS, PATIENCE = 20, 0.5


pytestmark = pytest.mark.usefixtures("namespace")


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    """Before a test has a network of its own, by which nothing could be installed."""
    debian.ensure("ip", "nft")


def script(name: str) -> str:
    """The commands of the README's example."""
    (text,) = re.findall(rf"^```sh network {name}\n(.*?)^```", README.read_text(), re.M | re.S)
    return str(text)


class Guest:
    """A guest's network stack, as much as a ping needs of it."""

    def __init__(self, name: str, address: str = GUEST, mac: bytes = GUEST_MAC) -> None:
        self.tap = Tap.open(name)
        self.address = socket.inet_aton(address)
        self.mac = mac

    def send(self, to: bytes, kind: int, payload: bytes) -> None:
        frame = bytes(12) + to + self.mac + struct.pack(">H", kind) + payload
        os.write(self.tap.fds[0], frame)

    def frames(self, ask: Callable[[], None]) -> Iterator[tuple[int, bytes]]:
        """Type and payload of what is for us. We ask more than once: a bridge loses what comes
        before it has noticed that its ports are up."""
        for _ in range(ATTEMPTS):
            ask()
            while select.select(self.tap.fds, [], [], PATIENCE)[0]:
                frame = os.read(self.tap.fds[0], 1 << 16)[12:]
                if frame[:6] in (self.mac, BROADCAST):
                    yield struct.unpack(">H", frame[12:14])[0], frame[14:]
        raise TimeoutError

    def who_has(self, address: bytes) -> None:
        """Ask for it by ARP (RFC 826)."""
        request = struct.pack(">HHBBH", 1, IPV4, 6, 4, 1) + self.mac + self.address
        self.send(BROADCAST, ARP, request + bytes(6) + address)

    def resolve(self, address: str) -> bytes:
        """The hardware address behind ``address``."""
        wanted = socket.inet_aton(address)
        for kind, payload in self.frames(lambda: self.who_has(wanted)):
            if kind == ARP and payload[6:8] == b"\0\2" and payload[14:18] == wanted:
                return payload[8:14]
        raise AssertionError

    def ping(self, address: str, gateway: str) -> None:
        """Until the answer is here (RFC 792)."""
        to = self.resolve(gateway)
        echo = struct.pack(">BBHHH", 8, 0, 0, 5, 1)
        echo = echo[:2] + checksum(echo) + echo[4:]
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(echo), 0, 0, 64, 1, 0)
        header += self.address + socket.inet_aton(address)
        header = header[:10] + checksum(header) + header[12:]
        for kind, payload in self.frames(lambda: self.send(to, IPV4, header + echo)):
            if kind == IPV4 and payload[9] == 1 and payload[20] == 0:
                assert payload[12:16] == socket.inet_aton(address)
                return
            self.answer(kind, payload)

    def answer(self, kind: int, payload: bytes) -> None:
        """Say who we are."""
        if kind == ARP and payload[6:8] == b"\0\1" and payload[24:28] == self.address:
            reply = payload[:6] + b"\0\2" + self.mac + self.address + payload[8:18]
            self.send(payload[8:14], ARP, reply)

    def close(self) -> None:
        self.tap.close()


def checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", total ^ 0xFFFF)


def test_isolated() -> None:
    shell(script("isolated"))
    guest = Guest("tap0")
    guest.ping(HOST, HOST)
    guest.close()


def test_nat() -> None:
    """To a host outside that knows nothing of the guest's address."""
    shell("""
        ip link add wan0 type veth peer name wan1
        ip address add 10.0.9.1/24 dev wan0
        ip link set wan0 up
    """)
    shell(script("nat"))
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    guest = Guest("tap0")
    with network_namespace():
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        shell(f"ip link set lo up; nsenter --net=/proc/{os.getpid()}/fd/{before}"
              f" ip link set wan1 netns /proc/{os.getpid()}/fd/{outside}")  # fmt: skip
        shell(f"ip address add {OUTSIDE}/24 dev wan1; ip link set wan1 up")
    guest.ping(OUTSIDE, HOST)
    guest.close()
    os.close(before)
    os.close(outside)


def test_bridge() -> None:
    """The host answers, and so does another guest."""
    shell(script("bridge"))
    first = Guest("tap0")
    second = Guest("tap1", "10.0.5.3", bytes.fromhex("020000000006"))
    first.ping(HOST, HOST)
    for kind, payload in second.frames(lambda: first.who_has(second.address)):
        second.answer(kind, payload)
        if kind == ARP and payload[24:28] == second.address:
            break
    for kind, payload in first.frames(lambda: None):
        if kind == ARP and payload[14:18] == second.address:
            assert payload[8:14] == second.mac
            break
    first.close()
    second.close()
