"""Real taps, in a network namespace of their own: what can be opened, and what is said if not."""

from __future__ import annotations

import errno
import os
import select
import socket
from pathlib import Path

import pytest
from kvm.namespace import shell

from pyvmm.backends import tap as tap_module
from pyvmm.backends.tap import Offload, Tap
from pyvmm.errors import HostError

pytestmark = pytest.mark.usefixtures("namespace")


def opened(name: str, **options: int) -> Tap:
    return Tap.open(name, **options)


def exists(name: str) -> bool:
    return name in [entry for _, entry in socket.if_nameindex()]


def frame(to: bytes) -> bytes:
    return bytes(12) + to + b"\2\0\0\0\0\2" + b"\x88\xb5" + bytes(50)


def test_an_interface_is_made_brought_up_and_goes() -> None:
    tap = opened("tap5", mtu=9000)
    assert "mtu 9000" in (state := shell("ip -o link show tap5"))
    assert ",UP" in state
    assert tap.offloads & Offload.CSUM
    tap.close()
    tap.close()
    assert not exists("tap5")


def test_a_persistent_interface_stays_as_it_is() -> None:
    shell("ip tuntap add dev tap5 mode tap")
    tap = opened("tap5", mtu=9000)
    assert "mtu 1500" in (state := shell("ip -o link show tap5"))
    assert ",UP" not in state
    tap.close()
    assert exists("tap5")


def test_packets_both_ways() -> None:
    tap = opened("tap5")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as host:
        host.settimeout(10)
        host.bind(("tap5", 0x88B5))
        packet = frame(b"\xff" * 6)
        os.write(tap.fds[0], packet)
        assert host.recv(4096) == packet[12:]
        host.send(packet[12:])
        while True:
            select.select(tap.fds, [], [], 10)
            got = os.read(tap.fds[0], 4096)
            if got[24:26] == b"\x88\xb5":  # there is IPv6's chatter as well
                break
        assert got[12:] == packet[12:]
    with pytest.raises(OSError) as error:
        os.write(tap.fds[0], b"\1\xff" + bytes(100))  # gso_type is none
    assert error.value.errno == errno.EINVAL
    tap.close()


def test_several_queues() -> None:
    tap = opened("tap5", queues=3)
    assert len(set(tap.fds)) == 3
    tap.enable_queue(1, False)
    tap.enable_queue(1, False)
    tap.enable_queue(1, True)
    tap.enable_queue(1, True)
    tap.close()
    shell("ip tuntap add dev tap6 mode tap multi_queue")
    opened("tap6").close()
    opened("tap6", queues=2).close()


def test_inherited_descriptors() -> None:
    parent = opened("tap5", queues=2)
    for fd in parent.fds:
        os.set_inheritable(fd, True)
    tap = Tap.inherit(parent.fds)
    assert tap.name == "tap5"
    assert not any(os.get_inheritable(fd) for fd in tap.fds)
    assert tap.offloads & Offload.TSO4
    tap.close()


def test_descriptors_that_are_no_taps(tmp_path: Path) -> None:
    other, second = opened("tap5"), opened("tap6")
    with open(tmp_path / "file", "w") as file:
        with pytest.raises(HostError, match=rf"--net fd={file.fileno()}: not a tap"):
            Tap.inherit([file.fileno()])
        with pytest.raises(HostError, match="not an open descriptor"):
            Tap.inherit([1 << 19])
        with pytest.raises(HostError, match="tap5 and tap6"):
            Tap.inherit([other.fds[0], second.fds[0]])
    other.close()
    second.close()


def test_what_can_not_be_opened() -> None:
    shell("ip link add dummy5 type veth peer name dummy6; ip tuntap add dev tap5 mode tap")
    shell("ip tuntap add dev tun5 mode tun")
    for name in ("dummy5", "tun5"):
        with pytest.raises(HostError, match=f"{name} is not a tap"):
            opened(name)
    with pytest.raises(HostError, match=r"tap5 is not a tap with several queues.*multi_queue"):
        opened("tap5", queues=2)
    tap = opened("tap5")
    with pytest.raises(HostError, match="tap5 is in use by another program"):
        opened("tap5")
    tap.close()


def test_without_the_right_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shell("ip tuntap add dev tap5 mode tap user 1000")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(tap_module, "_set_interface", refuse)
    with pytest.raises(HostError, match=r"there is no tap tap6, and no right to make one.*ip tun"):
        opened("tap6")
    with pytest.raises(HostError, match="no permission for tap5"):
        opened("tap5")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOENT, r"there are no taps \("),
        (errno.EACCES, "no permission for /dev/net/tun"),
        (errno.EMFILE, "can't open /dev/net/tun: Too many open files"),
    ],
)
def test_without_the_device(monkeypatch: pytest.MonkeyPatch, number: int, message: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match=message):
        opened("tap5")


def test_what_makes_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a container the module may be loaded, and its device not there."""
    monkeypatch.setattr(tap_module, "LOADED", str(tmp_path / "missing"))
    assert tap_module.node_fix() == "sudo modprobe tun"
    monkeypatch.setattr(tap_module, "LOADED", str(tmp_path))
    assert "sudo mknod -m 666 /dev/net/tun c 10 200" in tap_module.node_fix()
