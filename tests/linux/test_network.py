"""Network cards as Linux uses them, on taps of this host."""

from __future__ import annotations

import hashlib
import os
import socket
import threading

import pytest
from kvm.command import Running
from kvm.namespace import shell
from linux.boot import TIMEOUT, Images, boot, boot_command, built, job

from guests import artefacts

MIB = 1 << 20
SIZE = 20 * MIB
HOST, GUEST = "10.0.5.1", "10.0.5.2"
PORT = 5000


@pytest.fixture(autouse=True)
def loopback(namespace: None) -> None:
    shell("ip link set lo up")


@pytest.fixture
def initrd() -> str:
    return str(built(artefacts.BUILD / "initramfs/net.cpio.gz"))


class Peer:
    """The host's side of the transfers: gives data on the first connection and takes them on the
    second."""

    def __init__(self) -> None:
        self.data = os.urandom(SIZE)
        self.got = b""
        self._listener = socket.create_server((HOST, PORT))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.sendall(self.data)
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as stream:
            self.got = stream.read()

    def finish(self) -> None:
        """Wait until both are done."""
        self._thread.join(TIMEOUT)
        self._listener.close()


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def test_pings_and_transfers_with_two_queues(images: Images, initrd: str) -> None:
    """20 MiB each way arrive as they were sent, over a persistent tap."""
    shell(f"""
        ip tuntap add dev tap0 mode tap multi_queue
        ip address add {HOST}/24 dev tap0
        ip link set tap0 up
    """)
    peer = Peer()
    ended = boot(
        images.bzimage,
        *("--initrd", initrd, "--cpus", "2"),
        *("--net", "tap0,queues=2,mac=52:54:00:12:34:56,mtu=1400"),
        *job(
            f"ip a add {GUEST}/24 dev eth0; ip l set eth0 up; cd /sys/class/net/eth0;"
            " echo mac: $(cat address); echo mtu: $(cat mtu); echo queues: $(ls -d queues/rx-*);"
            f" ping -q -A -c 300 {HOST} | grep loss;"
            f" nc {HOST} {PORT} </dev/null >/tmp/f; echo got: $(md5sum </tmp/f);"
            f" nc {HOST} {PORT} </tmp/f"
        ),
    )
    peer.finish()
    assert ended.status == 0, ended
    assert ended.value("mac") == "52:54:00:12:34:56"
    assert ended.value("mtu") == "1400"
    assert ended.value("queues") == "queues/rx-0 queues/rx-1"
    assert any("300 packets received, 0% packet loss" in line for line in ended.lines), ended
    assert ended.value("got").split()[0] == md5(peer.data)
    assert md5(peer.got) == md5(peer.data)


def test_two_cards_and_a_tap_that_is_deleted(images: Images, initrd: str) -> None:
    """One tap is made by PyVMM itself; the guest outlives the loss of its link."""
    shell("ip tuntap add dev tap1 mode tap; ip link set tap1 up")
    running = Running(
        boot_command(
            images.bzimage,
            *("--initrd", initrd, "--net", "tap0", "--net", "tap1"),
            *job(
                f"ip a add {GUEST}/24 dev eth0; ip l set eth0 up; ip l set eth1 up;"
                " cd /sys/class/net; echo carriers: $(cat eth0/carrier eth1/carrier); read line;"
                " while [ $(cat eth1/carrier) = 1 ]; do usleep 10000; done;"
                f" echo carriers: $(cat eth0/carrier eth1/carrier); ping -q -c 2 {HOST} | grep loss"
            ),
        )
    )
    running.read_until(b"carriers: 1 1")
    shell(f"ip address add {HOST}/24 dev tap0; ip link delete tap1")
    running.write(b"\n")
    running.read_until(b"carriers: 1 0")
    running.read_until(b"2 packets received")
    status, _, stderr = running.finish()
    assert status == 0
    assert stderr.count("tap is gone, so the link is down: tap1") == 1
