"""A run on a terminal, with keys typed and what is shown read."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kvm.command import TIMEOUT

CTRL_A, CTRL_C, CTRL_D = b"\x01", b"\x03", b"\x04"

ROWS, COLUMNS = 40, 80


class Terminal:
    """A pseudo-terminal, ``timeout`` seconds patient, and in it a process, :attr:`process`, whose
    controlling terminal it is: Ctrl-C and a change of its size are signals to it.

    ``slave`` is the process's side of it, ``before`` its settings at first.
    """

    def __init__(self, arguments: Sequence[str], timeout: float) -> None:
        self._timeout = timeout
        self._master, self.slave = pty.openpty()
        self.resize(ROWS, COLUMNS)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            arguments,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**os.environ, "TERM": "xterm", "NO_COLOR": ""},
            start_new_session=True,
            preexec_fn=self._take,
        )
        self._seen = b""

    def _take(self) -> None:
        """In the new process."""
        os.close(self._master)
        fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)

    def read_until(self, text: bytes) -> bytes:
        """Wait until ``text`` comes; what came before it."""
        deadline = time.monotonic() + self._timeout
        while text not in self._seen:
            ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            assert ready, self._seen
            self._seen += os.read(self._master, 4096)
        head, _, self._seen = self._seen.partition(text)
        return head

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.slave, (rows, columns))

    @property
    def is_raw(self) -> bool:
        """Whether its settings are others than at first."""
        return termios.tcgetattr(self.slave) != self.before

    def finish(self) -> int:
        """The exit status; the terminal must be as it was."""
        status = self.process.wait(self._timeout)
        assert not self.is_raw
        return status

    def close(self) -> None:
        """The process is killed if it still runs."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self.slave)


@contextmanager
def terminal(arguments: Sequence[str], timeout: float = TIMEOUT) -> Iterator[Terminal]:
    """Run ``arguments`` on a terminal; what still runs at the end is killed."""
    opened = Terminal(arguments, timeout)
    try:
        yield opened
    finally:
        opened.close()
