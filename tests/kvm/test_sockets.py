"""A serial port on a Unix socket, and what becomes of sockets when the machine ends."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from kvm.command import TIMEOUT, Running, command, run


def connected(path: Path, running: Running) -> socket.socket:
    """A client, as soon as somebody listens at ``path``."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(TIMEOUT)
        try:
            client.connect(str(path))
            return client
        except (FileNotFoundError, ConnectionRefusedError):
            client.close()
            assert running.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_readers_come_and_go(guests: Path, tmp_path: Path) -> None:
    """A guest that prints for ever, one who listens for a while, the next one; then no socket."""
    path = tmp_path / "com1"
    others = ("--console", f"unix:{tmp_path / 'hvc0'}", "--vsock", f"cid=3,path={tmp_path / 'v'}")
    running = Running(
        command(guests / "endings", "--serial", f"unix:{path}", *others, append="babble")
    )
    try:
        for _ in range(2):
            with connected(path, running) as client:
                received = 0
                while received < 10_000:
                    piece = client.recv(1 << 16)
                    assert piece
                    received += len(piece)
        assert len(os.listdir(tmp_path)) == 3
        running.process.send_signal(signal.SIGINT)
        status, _, stderr = running.finish()
    finally:
        running.process.kill()
    assert status == 130, stderr
    assert os.listdir(tmp_path) == []


def test_a_pattern_is_found_though_nobody_is_connected(guests: Path, tmp_path: Path) -> None:
    place = f"unix:{tmp_path / 'com1'}"
    ended = run(guests / "endings", "--serial", place, "--expect", "...", append="babble")
    assert ended.status == 0, ended
