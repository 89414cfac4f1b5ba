"""The virtio console as Linux uses it: hvc0 on a terminal, and named ports on Unix sockets."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from kvm.command import Running
from kvm.terminal import CTRL_A, terminal
from linux.boot import TIMEOUT, Images, boot_command, job

MIB = 1 << 20

FIND_PORTS = (
    "port() { for p in /sys/class/virtio-ports/*; do"
    " if [ $(cat $p/name) = $1 ]; then echo /dev/${p##*/}; fi; done; }; "
)
ECHO = "exec 3<>$(port echo); while :; do cat <&3 >&3; usleep 50000; done"
"""A read at a port where nobody is connected is the end of the file."""


def test_hvc0_on_a_terminal(images: Images) -> None:
    """A shell, the window's size and its changes, the escape keys."""
    command = boot_command(
        images.bzimage,
        *("--initrd", str(images.sockets_initrd), "--console", "stdio", "--append", "quiet"),
    )
    with terminal(command, TIMEOUT) as tty:
        tty.resize(43, 117)
        tty.read_until(b"# ")
        assert tty.is_raw
        tty.type(b"tty; cat /proc/cmdline\r")
        tty.read_until(b"/dev/hvc0")
        tty.read_until(b"console=ttyS0 reboot=k panic=-1 console=hvc0")
        tty.type(b"until stty size 2>&- | grep 43; do usleep 50000; done\r")
        tty.read_until(b"43 117")
        tty.resize(37, 91)
        tty.type(b"until stty size | grep 37; do usleep 50000; done\r")
        tty.read_until(b"37 91")
        tty.type(b"seq 1 2000 | md5sum\r")
        expected = hashlib.md5(b"".join(b"%d\n" % n for n in range(1, 2001))).hexdigest()
        tty.read_until(expected.encode())
        tty.type(CTRL_A + b"h")
        tty.read_until(b"Ctrl-A x")
        tty.type(b"echo 1 >/proc/sys/kernel/sysrq; echo rea''dy\r")
        tty.read_until(b"ready")
        tty.type(CTRL_A + b"b")
        tty.type(b"c")
        tty.read_until(b"guest panicked")
        assert tty.finish() == 3


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    deadline = time.monotonic() + TIMEOUT
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        while True:
            try:
                client.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield client


def exchange(client: socket.socket, data: bytes) -> bytes:
    """Send ``data`` and read as much, at the same time."""
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    received = bytearray()
    while len(received) < len(data):
        piece = client.recv(1 << 16)
        assert piece, f"the end after {len(received)} of {len(data)} bytes"
        received += piece
    sender.join(TIMEOUT)
    return bytes(received)


def test_named_ports(images: Images, tmp_path: Path) -> None:
    """5 MB there and back, a client that goes and one that comes, and the path gone at the end."""
    echo, control = tmp_path / "echo", tmp_path / "control"
    running = Running(
        boot_command(
            images.bzimage,
            *("--initrd", str(images.sockets_initrd)),
            *("--port", f"echo=unix:{echo}", "--port", f"control=unix:{control}"),
            *job(
                f"{FIND_PORTS} ({ECHO}) & exec 4<>$(port control);"
                " until read -r word <&4; do usleep 50000; done; echo word: $word"
            ),
        )
    )
    try:
        data = random.Random(1).randbytes(5 * MIB)
        with connected(echo) as client:
            assert exchange(client, data) == data
        with connected(echo) as client:
            assert exchange(client, b"again\n") == b"again\n"
        with connected(control) as client:
            client.sendall(b"enough\n")
            assert b"word: enough" in running.read_until(b"word: enough")
        status, _, stderr = running.finish()
        assert status == 0, stderr
        assert not echo.exists()
        assert not control.exists()
    finally:
        running.process.kill()
