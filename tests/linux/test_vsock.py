"""Stream sockets between Linux and programs on the host, in both directions."""

from __future__ import annotations

import random
import socket
import threading
import time
from pathlib import Path

from kvm.command import Running
from linux.boot import TIMEOUT, Images, boot_command, job
from linux.test_console import MIB, exchange

HOST_PORT, GUEST_PORT = 99, 1234


class EchoServer(threading.Thread):
    """Serves one connection from the guest: all that comes goes back, up to its end."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.count = 0
        self.start()

    def run(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            while piece := connection.recv(1 << 16):
                connection.sendall(piece)
                self.count += len(piece)
        self.listener.close()


def connect(path: Path, port: int) -> socket.socket:
    """A connection to the guest's ``port``, as soon as somebody listens there."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(TIMEOUT)
        try:
            client.connect(str(path))
            client.sendall(b"CONNECT %d\n" % port)
            if (answer := client.recv(32)).startswith(b"OK "):
                assert answer.endswith(b"\n")
                return client
        except OSError:
            pass  # there is no socket yet
        client.close()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_both_directions(images: Images, tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    server = EchoServer(tmp_path / f"v.sock_{HOST_PORT}")
    running = Running(
        boot_command(
            images.bzimage,
            *("--initrd", str(images.sockets_initrd), "--vsock", f"cid=42,path={path}"),
            *job(
                f"vsock echo {GUEST_PORT} 2 & dd if=/dev/urandom of=/tmp/a bs=1M count=5 2>&-;"
                f" vsock connect {HOST_PORT} </tmp/a >/tmp/b; cmp /tmp/a /tmp/b && echo guest:"
                " good;"
                f" vsock connect 98 </tmp/a 2>&1 || echo refused: yes; wait"
            ),
        )
    )
    try:
        data = random.Random(2).randbytes(5 * MIB)
        with connect(path, GUEST_PORT) as client:
            assert exchange(client, data) == data
        with connect(path, GUEST_PORT) as client:
            assert exchange(client, b"again") == b"again"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        status, console, stderr = running.finish()
        assert status == 0, stderr
        assert b"guest: good" in console
        assert b"refused: yes" in console
        assert server.count == 5 * MIB
        assert not path.exists()
    finally:
        running.process.kill()
