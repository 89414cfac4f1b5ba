"""A virtio network card on a real tap, driven by the guest `net`, which answers pings; and by
`pyvmm run` without any."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest
from kvm.command import PYVMM, run_to_end, start
from kvm.namespace import shell

from pyvmm.backends.tap import Tap

pytestmark = pytest.mark.usefixtures("namespace")

HOST, GUEST = "10.0.5.1", "10.0.5.2"


def ping(size: int) -> None:
    """The guest answers, and the host's kernel finds the answer to be good."""
    request = struct.pack(">BBHHH", 8, 0, 0, 0, 1) + os.urandom(size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as icmp:
        icmp.settimeout(20)
        icmp.connect((GUEST, 0))
        icmp.send(request)
        answer = icmp.recv(4096)
    assert answer[0] == 0
    assert answer[8:] == request[8:]


def set_up(tap: str) -> None:
    shell(f"""
        ip address add {HOST}/24 dev {tap}
        ip link set {tap} up
        echo 0 1000 >/proc/sys/net/ipv4/ping_group_range
    """)


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_pings(guests: Path, transport: str) -> None:
    """Small ones, and those of several receive buffers."""
    shell("ip tuntap add dev tap0 mode tap")
    set_up("tap0")
    sizes = [8, 56, 1400, 1472, 500, 1, 1000]
    options = ("--net", f"tap0,mac=52:54:00:12:34:56,transport={transport}")
    with start(guests / "net", *options, append=f"pings={len(sizes)}") as guest:
        assert b"mac: 52543456" in guest.read_until(b"listening\n")
        for size in sizes:
            ping(size)
        status, rest, stderr = guest.finish()
    assert status == 0, stderr
    assert rest.endswith(b"ok: all pings are answered\n")


def test_an_inherited_descriptor(guests: Path) -> None:
    tap = Tap.open("tap0")
    set_up("tap0")
    (fd,) = tap.fds
    os.set_inheritable(fd, True)
    with start(guests / "net", "--net", f"fd={fd}", inherit=(fd,)) as guest:
        guest.read_until(b"listening\n")
        tap.close()
        ping(56)
        assert guest.finish()[0] == 0


@pytest.mark.parametrize(
    ("option", "status", "message"),
    [
        ("tap0,speed=1", 2, "--net tap0,speed=1: 'speed=1' is not understood"),
        ("dummy0", 1, "dummy0 is not a tap"),
        ("fd=0", 1, "--net fd=0: not a tap"),
    ],
)
def test_what_can_not_be(guests: Path, option: str, status: int, message: str) -> None:
    shell("ip link add dummy0 type veth peer name dummy1")
    command = [*PYVMM, "run", "-k", str(guests / "net"), "-n", option]
    ended = run_to_end(command, b"", 60)
    assert ended.status == status
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1 or status == 2
