"""The bounded queue between a machine's threads and the thread that writes the trace.

A thread that records something appends a tuple to a deque, which takes no lock, and looks at its
length. The writer looks at the deque a hundred times a second and doesn't have to be woken, so a
record costs no system call. When :data:`CAPACITY` records wait, whoever adds one is held until half
of them are written: a trace is complete, and the guest runs as fast as it can be written.

Once the machine's end has come (:meth:`Recorder.release`) nobody is held for longer than
:data:`PATIENCE` without anything being written: a pipe's reader may have stopped to read.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pyvmm.threads import NamedThread

CAPACITY = 1 << 14
"""Records that may wait; with their values some 4 MB."""
PERIOD = 0.01
"""Seconds between two looks of the writer at an idle machine's records."""
BATCH = 256
"""Records that are decoded and written together."""
PATIENCE = 1.0
"""Seconds without progress in which the writer is given up, at a machine's end."""

Record = tuple[Any, ...]


class Recorder:
    """Records go in by :attr:`append` and then :meth:`throttle`, from any thread; ``write`` gets
    them in batches on the writer's thread, and is called with none a few times a second. ``finish``
    is called there at the end.

    An exception in one of these is our bug: from then on records are thrown away, and ``on_error``
    is told.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Record]], None],
        finish: Callable[[], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.records: deque[Record] = deque()
        self.append = self.records.append
        self._write = write
        self._finish = finish
        self._on_error = on_error
        self._written = 0
        self._room = threading.Condition()
        self._waiting = 0
        self._released = False
        self._broken = False
        self._stopping = False
        self._wake = threading.Event()
        self._thread = NamedThread(target=self._run, name="pyvmm-trace", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, record: Record) -> None:
        """Record something, and wait if there is no room."""
        self.append(record)
        if len(self.records) > CAPACITY:
            self.throttle()

    def throttle(self) -> None:
        """Wait until there is room. For who has found more than CAPACITY records."""
        with self._room:
            self._waiting += 1
            try:
                while len(self.records) > CAPACITY // 2:
                    self._wake.set()
                    before = self._written
                    self._room.wait(PATIENCE)
                    if self._released and self._written == before:
                        return
            finally:
                self._waiting -= 1

    def release(self) -> None:
        """The machine ends: nobody is held any more if nothing is written."""
        self._released = True
        with self._room:
            self._room.notify_all()

    def stop(self) -> bool:
        """Write what is there and end the thread; False if it is stuck."""
        self.release()
        self._stopping = True
        self._wake.set()
        while self._thread.is_alive():
            before = self._written
            self._thread.join(PATIENCE)
            if self._written == before and self._thread.is_alive():
                return False
        return True

    def _run(self) -> None:
        while True:
            self._wake.wait(PERIOD)
            self._wake.clear()
            stopping = self._stopping  # before the records: what came earlier is written
            self._drain()
            if stopping:
                self._guard(self._finish)
                return

    def _drain(self) -> None:
        records = self.records
        while records:
            batch = [records.popleft() for _ in range(min(len(records), BATCH))]
            self._guard(self._write, batch)
            self._written += len(batch)
            if self._waiting and len(records) <= CAPACITY // 2:
                with self._room:
                    self._room.notify_all()
        self._guard(self._write, [])

    def _guard(self, function: Callable[..., None], *arguments: list[Record]) -> None:
        if self._broken:
            return
        try:
            function(*arguments)
        except Exception as error:
            self._broken = True
            self._on_error(error)
