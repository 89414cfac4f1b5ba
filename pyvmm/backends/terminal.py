"""The user's terminal while a guest has it: raw mode (termios(3)), and the keys that stay ours."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Callable, Mapping
from typing import NamedTuple

TerminalAttributes = list[int | list[bytes | int]]
"""What termios.tcgetattr returns: iflag, oflag, cflag, lflag, ispeed, ospeed, cc."""


def raw_attributes(attributes: TerminalAttributes) -> TerminalAttributes:
    """A copy of ``attributes`` in which every character, Ctrl-C included, is passed on as it comes.

    Output processing stays as it is: a bare line feed, from us or a small guest, then starts at
    the left margin, and the carriage returns that other guests add do no harm.
    """
    iflag, oflag, cflag, lflag, ispeed, ospeed, control = attributes
    assert isinstance(iflag, int)
    assert isinstance(cflag, int)
    assert isinstance(lflag, int)
    assert isinstance(control, list)
    iflag &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    control = list(control)
    control[termios.VMIN], control[termios.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, control]


class RawMode:
    """Raw mode on the terminal ``fd``, as a context manager; does nothing on what is no terminal.

    A background job is stopped by the kernel when it touches its terminal's settings (SIGTTOU) or
    reads it (SIGTTIN), so there ``available`` is false too.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._original: TerminalAttributes | None = None

    @property
    def available(self) -> bool:
        """Whether ``fd`` is a terminal that we may read."""
        if not os.isatty(self._fd):
            return False
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True  # not our controlling terminal, so no job control on it

    def __enter__(self) -> RawMode:
        if self._original is None and self.available:
            original = termios.tcgetattr(self._fd)
            # Kept first, so that a signal between here and the change finds what to restore.
            self._original = original
            termios.tcsetattr(self._fd, termios.TCSANOW, raw_attributes(original))
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def resume(self) -> None:
        """Raw mode again, after a shell that had stopped us took it away. For a signal handler."""
        if self._original is not None and self.available:
            try:
                attributes = raw_attributes(self._original)
                termios.tcsetattr(self._fd, termios.TCSANOW, attributes)
            except termios.error:
                pass  # the terminal is gone

    def restore(self) -> None:
        """Put the terminal back as it was. Idempotent; may be called by a signal handler."""
        original, self._original = self._original, None
        if original is not None:
            try:
                # Not TCSADRAIN: that waits for output, for ever if Ctrl-S has stopped it.
                termios.tcsetattr(self._fd, termios.TCSANOW, original)
            except termios.error:
                pass  # the terminal is gone


class Key(NamedTuple):
    """What an escape key does."""

    description: str
    action: Callable[[], None]


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class EscapeKeys:
    """Takes Ctrl-A and the key behind it out of what the user types.

    ``keys`` says what a key does. Two are always there: h lists them, and a (or Ctrl-A again)
    sends the guest a Ctrl-A. A key that means nothing is swallowed. Actions run on the thread that
    feeds.
    """

    PREFIX = 0x01  # Ctrl-A

    def __init__(
        self, keys: Mapping[str, Key], show: Callable[[str], None] = _print_to_stderr
    ) -> None:
        self._keys = {ord(name): key for name, key in keys.items()}
        self._show = show
        self._prefixed = False

    def feed(self, data: bytes) -> bytes:
        """The part of ``data`` that is for the guest; the actions asked for are done."""
        if not self._prefixed and self.PREFIX not in data:
            return data
        for_guest = bytearray()
        for byte in data:
            if not self._prefixed:
                if byte == self.PREFIX:
                    self._prefixed = True
                else:
                    for_guest.append(byte)
                continue
            self._prefixed = False
            if byte in (self.PREFIX, ord("a")):
                for_guest.append(self.PREFIX)
            elif byte == ord("h"):
                self._show(self.help())
            elif byte in self._keys:
                self._keys[byte].action()
        return bytes(for_guest)

    def help(self) -> str:
        """The list of keys."""
        lines = [f"Ctrl-A {chr(byte)}  {key.description}" for byte, key in self._keys.items()]
        lines += ["Ctrl-A a  send Ctrl-A to the guest", "Ctrl-A h  list these keys"]
        return "\n" + "\n".join(lines)
