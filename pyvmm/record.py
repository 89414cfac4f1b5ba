"""What is noted of a run for those who want more than its last line: ``--json``, ``--junit``,
``--log-console``.

It reads along with the consoles: when the first line came and when Linux started its init, the
last lines, and with a log every one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from time import CLOCK_BOOTTIME, clock_gettime, monotonic_ns, time
from typing import TYPE_CHECKING

from pyvmm.console_watch import ConsoleWatch

if TYPE_CHECKING:
    from pyvmm.console_log import ConsoleLog

LAST_LINES = 200
"""How much of each console is kept: a panic's report has 40 to 100 lines."""

INIT = re.compile(rb"(?:^|\n)[^\n]{0,60}Run \S+ as init process")
"""Linux, init/main.c; not with ``quiet``."""

LONGEST_INIT = 300
"""What of a line may have to be kept until the rest of it comes."""


class Record:
    """Of one run, which begins with the process; or now, where it isn't the process's only one
    (``whole_process=False``)."""

    def __init__(self, *, whole_process: bool = True) -> None:
        self.log: ConsoleLog | None = None
        """Where every line goes; it is closed with the record."""
        self._watches: dict[str, ConsoleWatch] = {}
        self._started_ns: int | None = None
        age = _process_age() if whole_process else 0.0
        self._began_ns = monotonic_ns() - int(age * 1e9)
        self.began = time() - age
        """When it began, in seconds since the epoch."""
        self.setup: float | None = None
        """How long it took from there to the guest's start; None if it didn't start."""
        self.first_line: float | None = None
        """From the guest's start to its first line that isn't empty."""
        self.init: float | None = None
        """From the guest's start to its init's."""

    def watch(self, name: str, watch: ConsoleWatch) -> Callable[[bytes], None]:
        """What to feed the output of the console ``name`` to, ``watch`` among it."""
        self._watches[name] = watch
        feeds: list[Callable[[bytes], None]] = [_Milestones(self).feed, watch.feed]
        if self.log is not None:
            feeds.insert(0, self.log.console(name))

        def feed(data: bytes) -> None:
            for each in feeds:
                each(data)

        return feed

    def start(self) -> None:
        """The guest starts now."""
        self._started_ns = monotonic_ns()
        self.setup = self.age
        if self.log is not None:
            self.log.start(self._started_ns)

    def close(self) -> None:
        """The consoles are closed. Idempotent."""
        if self.log is not None:
            self.log.close()

    @property
    def seconds(self) -> float:
        """The time since the guest's start."""
        return 0.0 if self._started_ns is None else (monotonic_ns() - self._started_ns) / 1e9

    @property
    def age(self) -> float:
        """The time since it began."""
        return (monotonic_ns() - self._began_ns) / 1e9

    @property
    def lines(self) -> dict[str, list[str]]:
        """The last lines of each console."""
        return {name: watch.tail() for name, watch in self._watches.items()}


class _Milestones:
    """Looks for the first line and the init's start in one console's output."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._rest = b""

    def feed(self, data: bytes) -> None:
        record = self._record
        if record.first_line is not None and record.init is not None:
            return
        text = self._rest + data
        if record.first_line is None and text.lstrip().find(b"\n") >= 0:
            record.first_line = record.seconds
        if record.init is None and INIT.search(text):
            record.init = record.seconds
        self._rest = text[text.rfind(b"\n") + 1 :][:LONGEST_INIT]


def _process_age() -> float:
    """How long ago this process was started, to 10 ms (proc(5), /proc/PID/stat: starttime)."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return clock_gettime(CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
