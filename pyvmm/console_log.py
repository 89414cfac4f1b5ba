"""A log of what the guest's consoles print, each line with the host's time: ``--log-console``.

    0.118623 [    0.000000] Linux version 6.1.0 …
    2.310442 login:

The figure is how many seconds after the guest's start the line began, by the host's clock; with
``wall=on`` the time of day (UTC) follows, and with more than one console its name. A line is
written when it is complete, and what is left at the end, such as a prompt, then. The bytes are the
guest's, whatever they are, but for the carriage return before a newline. A line of more than
:data:`MAX_LINE` bytes counts as several.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from time import gmtime, monotonic_ns, strftime, time_ns
from typing import NamedTuple

from pyvmm.errors import ConfigError, HostError
from pyvmm.options import parse_sub_options, parse_switch

MAX_LINE = 4096


class LogConfig(NamedTuple):
    """Which file, and whether with the time of day."""

    path: str
    wall: bool = False

    @classmethod
    def parse(cls, text: str) -> LogConfig:
        """From ``FILE[,wall=on]``."""
        path, given = parse_sub_options(text, "--log-console", {"wall": "on or off"})
        if not path:
            raise ConfigError("--log-console: the path is empty")
        return cls(path, parse_switch(given.get("wall", "off"), "--log-console wall"))


class ConsoleLog:
    """Writes the file that ``config`` names. It is made, if there is none, and emptied by
    :meth:`start`: a machine that can't be built costs nobody a log. If no more can be written,
    ``on_lost`` is called, once.

    Raises :class:`~pyvmm.errors.HostError` if the file can't be opened. Any thread may feed.
    """

    def __init__(self, config: LogConfig) -> None:
        self.path = config.path
        self._wall = config.wall
        self.on_lost: Callable[[OSError], None] = lambda error: None
        self._started_ns = monotonic_ns()
        self._to_wall_ns = time_ns() - self._started_ns
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        try:
            self._fd = os.open(config.path, flags, 0o666)
        except OSError as error:
            raise HostError(
                f"--log-console: can't write {config.path}: {error.strerror}"
            ) from error

    def console(self, name: str) -> Callable[[bytes], None]:
        """What to feed the output of another console to."""
        line = self._lines[name] = _Line()
        return lambda data: self._feed(name, line, data)

    def start(self, started_ns: int) -> None:
        """The guest starts, at this time of the monotonic clock."""
        self._started_ns = started_ns
        if stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Write the lines that aren't complete. Idempotent."""
        with self._lock:
            left = b"".join(self._stamped(n, line) for n, line in self._lines.items() if line.text)
            self._write(left)
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _feed(self, name: str, line: _Line, data: bytes) -> None:
        now = monotonic_ns()
        *ends, rest = data.split(b"\n")
        with self._lock:
            complete = bytearray()
            for end in ends:
                complete += self._extend(name, line, end, now)
                line.begin(now)
                complete += self._stamped(name, line)
            complete += self._extend(name, line, rest, now)
            self._write(complete)

    def _extend(self, name: str, line: _Line, piece: bytes, now: int) -> bytearray:
        """Add to the line; what is too long for one is returned as complete ones."""
        complete = bytearray()
        if piece:
            line.begin(now)
        while len(line.text) + len(piece) > MAX_LINE:
            room = MAX_LINE - len(line.text)
            line.text += piece[:room]
            piece = piece[room:]
            complete += self._stamped(name, line)
            line.begin(now)
        line.text += piece
        return complete

    def _stamped(self, name: str, line: _Line) -> bytes:
        """The line as it goes into the file; the next one is empty."""
        began = monotonic_ns() if line.began is None else line.began
        text = bytes(line.text).rstrip(b"\r")
        line.text.clear()
        line.began = None
        words = [b"%12.6f" % ((began - self._started_ns) / 1e9)]
        if self._wall:
            words.append(_time_of_day(began + self._to_wall_ns))
        if len(self._lines) > 1:
            words.append(name.encode())
        return b" ".join((*words, text)) + b"\n"

    def _write(self, data: bytes | bytearray) -> None:
        if self._fd < 0:
            return
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            os.close(self._fd)
            self._fd = -1
            self.on_lost(error)


class _Line:
    """What a console has printed since its last newline, and when that began."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.began: int | None = None

    def begin(self, now: int) -> None:
        if self.began is None:
            self.began = now


def _time_of_day(ns: int) -> bytes:
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(seconds))}.{rest // 1000:06}Z".encode()
