"""The interactive console, in a real terminal."""

from __future__ import annotations

import signal

from kvm.terminal import CTRL_A, CTRL_C, terminal
from linux.boot import TIMEOUT, Images, boot_command, job


def command(images: Images, *options: str) -> list[str]:
    return boot_command(images.bzimage, "--initrd", str(images.initrd), *options)


def test_a_session(images: Images) -> None:
    """A shell, Ctrl-C for the guest, a literal Ctrl-A, the list of keys, the power button."""
    with terminal(command(images, "--append", "quiet"), TIMEOUT) as tty:
        tty.read_until(b"# ")
        assert tty.is_raw
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
    with terminal(command(images, *job("echo u''p", "hang")), TIMEOUT) as tty:
        tty.read_until(b"up")
        tty.type(CTRL_A + b"x")
        tty.read_until(b"pyvmm: interrupted from the terminal")
        assert tty.finish() == 130


def test_the_terminal_is_restored_after_a_panic(images: Images) -> None:
    with terminal(command(images, *job("true", "panic")), TIMEOUT) as tty:
        tty.read_until(b"pyvmm: guest panicked")
        assert tty.finish() == 3


def test_the_terminal_is_restored_after_sigterm(images: Images) -> None:
    with terminal(command(images, *job("echo u''p", "hang")), TIMEOUT) as tty:
        tty.read_until(b"up")
        tty.process.send_signal(signal.SIGTERM)
        tty.read_until(b"to shut down")
        tty.process.send_signal(signal.SIGTERM)
        assert tty.finish() == 143


def test_a_break_is_sysrq(images: Images) -> None:
    with terminal(command(images, "--append", "quiet sysrq_always_enabled"), TIMEOUT) as tty:
        tty.read_until(b"# ")
        tty.type(CTRL_A + b"b")
        tty.type(b"c")
        tty.read_until(b"sysrq triggered crash")
        assert tty.finish() == 3
