"""The interactive console, in a real terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from linux.boot import TIMEOUT, Images, boot_command, job

CTRL_A, CTRL_C = b"\x01", b"\x03"


class Terminal:
    """A pseudo-terminal with a program in it."""

    def __init__(self, command: list[str]) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            command,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: os.close(self.master),
        )
        self.seen = b""

    def read_until(self, text: bytes) -> None:
        """Wait until ``text`` comes; what came before it is forgotten."""
        deadline = time.monotonic() + TIMEOUT
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, self.seen
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen.partition(text)[2]

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def finish(self) -> int:
        """The exit status; the terminal must be as it was."""
        status = self.process.wait(TIMEOUT)
        assert termios.tcgetattr(self.slave) == self.before
        return status


@contextmanager
def terminal(images: Images, *options: str) -> Iterator[Terminal]:
    command = boot_command(images.bzimage, "--initrd", str(images.initrd), *options)
    opened = Terminal(command)
    try:
        yield opened
    finally:
        opened.process.kill()
        opened.process.wait()
        os.close(opened.master)
        os.close(opened.slave)


def test_a_session(images: Images) -> None:
    """A shell, Ctrl-C for the guest, a literal Ctrl-A, the list of keys, the power button."""
    with terminal(images, "--append", "quiet") as tty:
        tty.read_until(b"# ")
        assert termios.tcgetattr(tty.slave) != tty.before  # raw
        tty.type(b"echo $((6*7))\r")
        tty.read_until(b"42\r")
        # Not the shell but its child must be in the foreground when Ctrl-C comes.
        tty.type(b"sh -c 'echo sta''rted; sleep 1000'\r")
        tty.read_until(b"started")
        tty.type(CTRL_C)
        tty.read_until(b"# ")
        tty.type(CTRL_A + b"h")
        tty.read_until(b"Ctrl-A x")
        tty.type(CTRL_A + b"p")
        tty.read_until(b"pyvmm: guest powered off")
        assert tty.finish() == 0


def test_ctrl_a_x_quits_a_guest_that_hangs(images: Images) -> None:
    with terminal(images, *job("echo u''p", "hang")) as tty:
        tty.read_until(b"up")
        tty.type(CTRL_A + b"x")
        tty.read_until(b"pyvmm: interrupted from the terminal")
        assert tty.finish() == 130


def test_the_terminal_is_restored_after_a_panic(images: Images) -> None:
    with terminal(images, *job("true", "panic")) as tty:
        tty.read_until(b"pyvmm: guest panicked")
        assert tty.finish() == 3


def test_the_terminal_is_restored_after_sigterm(images: Images) -> None:
    with terminal(images, *job("echo u''p", "hang")) as tty:
        tty.read_until(b"up")
        tty.process.send_signal(signal.SIGTERM)
        tty.read_until(b"to shut down")
        tty.process.send_signal(signal.SIGTERM)
        assert tty.finish() == 143


def test_a_break_is_sysrq(images: Images) -> None:
    with terminal(images, "--append", "quiet sysrq_always_enabled") as tty:
        tty.read_until(b"# ")
        tty.type(CTRL_A + b"b")
        tty.type(b"c")
        tty.read_until(b"sysrq triggered crash")
        assert tty.finish() == 3
