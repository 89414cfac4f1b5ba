"""Stand-ins for the machine around a device: a clock moved by hand, wires and MSI vectors that
remember what was done to them, and a fault counter that doesn't print."""

from __future__ import annotations

import select
from collections.abc import Callable

from pyvmm.errors import GuestFaults
from pyvmm.eventloop import READABLE
from pyvmm.interrupts import IrqLine

WALL_START_NS = 1_700_000_000_000_000_000
"""2023-11-14 22:13:20 UTC."""


class FakeTimer:
    """A timer of a :class:`FakeClock`."""

    def __init__(self, clock: FakeClock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._callback = callback
        self.deadline: int | None = None
        self.period = 0
        self.expiries = 0

    @property
    def armed(self) -> bool:
        return self.deadline is not None

    def arm(self, deadline_ns: int, period_ns: int = 0) -> None:
        self.deadline = max(deadline_ns, 1)
        self.period = period_ns

    def cancel(self) -> None:
        self.deadline = None

    def expire(self) -> None:
        assert self.deadline is not None
        if self.period:
            # Expiries that were missed count as one.
            self.deadline += ((self._clock.now - self.deadline) // self.period + 1) * self.period
        else:
            self.deadline = None
        self.expiries += 1
        self._callback()


class FakeClock:
    """A clock that stands still until :meth:`advance`; implements ``eventloop.Clock``."""

    def __init__(self, now: int = 1_000_000_000, wall: int = WALL_START_NS) -> None:
        self.now = now
        self._wall_offset = wall - now
        self.timers: list[FakeTimer] = []

    def now_ns(self) -> int:
        return self.now

    def wall_ns(self) -> int:
        return self.now + self._wall_offset

    def timer(self, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self, callback)
        self.timers.append(timer)
        return timer

    @property
    def armed(self) -> list[FakeTimer]:
        return [timer for timer in self.timers if timer.armed]

    def advance(self, ns: int) -> None:
        """Let ``ns`` pass; due timers fire in order, each at its own deadline."""
        end = self.now + ns
        at_once = 0
        while due := [t for t in self.timers if t.deadline is not None and t.deadline <= end]:
            timer = min(due, key=lambda t: t.deadline or 0)
            assert timer.deadline is not None
            at_once = 0 if timer.deadline > self.now else at_once + 1
            assert at_once < 1000, "timers keep firing without time passing"
            self.now = max(self.now, timer.deadline)
            timer.expire()
        self.now = end

    def stall(self, ns: int) -> None:
        """Let ``ns`` pass on a host too busy to run any timer; the next :meth:`advance`, even of
        0, runs those that are overdue."""
        self.now += ns

    def set_wall(self, wall_ns: int) -> None:
        """Somebody sets the host's time of day."""
        self._wall_offset = wall_ns - self.now


class FakeReactor:
    """Implements ``eventloop.Reactor``: nothing is called until :meth:`turn`."""

    def __init__(self) -> None:
        self.watched: dict[int, tuple[Callable[[], None], int]] = {}
        self.calls: list[Callable[[], None]] = []

    def watch(self, fd: int, callback: Callable[[], None], events: int = READABLE) -> None:
        self.watched[fd] = callback, events

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def call(self, function: Callable[[], None]) -> None:
        self.calls.append(function)

    def turn(self) -> bool:
        """Call back for everything that is ready now; whether there was anything."""
        calls, self.calls = self.calls, []
        for function in calls:
            function()
        poll = select.poll()
        for fd, (_, events) in self.watched.items():
            poll.register(fd, events)
        ready = [fd for fd, _ in poll.poll(0)]
        for fd in ready:
            if fd in self.watched:
                self.watched[fd][0]()
        return bool(calls or ready)

    def settle(self, turns: int = 1000) -> None:
        """Take turns until nothing is ready."""
        for _ in range(turns):
            if not self.turn():
                return
        raise AssertionError(f"still not at rest after {turns} turns")


class RecordingLine(IrqLine):
    """A wire that remembers each change of its level."""

    __slots__ = ("edges",)

    def __init__(self) -> None:
        self.edges: list[bool] = []
        super().__init__(self.edges.append)

    @property
    def pulses(self) -> int:
        """Rising edges so far."""
        return self.edges.count(True)

    def clear(self) -> None:
        """Forget the past; the level stays."""
        self.edges.clear()


class FakeMsiVector:
    """Implements ``interrupts.MsiVector``."""

    def __init__(self) -> None:
        self.message: tuple[int, int] | None = None
        self.routes: list[tuple[int, int]] = []
        self.fired: list[tuple[int, int]] = []
        self.closed = False

    def route(self, address: int, data: int) -> None:
        assert not self.closed
        self.message = (address, data)
        self.routes.append(self.message)

    def fire(self) -> None:
        assert not self.closed
        if self.message is not None:
            self.fired.append(self.message)

    def close(self) -> None:
        self.closed = True


class FakeMsi:
    """Implements ``interrupts.MsiController``; ``vectors`` are those handed out, in order."""

    def __init__(self) -> None:
        self.vectors: list[FakeMsiVector] = []

    def vector(self) -> FakeMsiVector:
        vector = FakeMsiVector()
        self.vectors.append(vector)
        return vector

    @property
    def fired(self) -> list[tuple[int, int]]:
        """Every message sent, grouped by vector."""
        return [message for vector in self.vectors for message in vector.fired]


class RecordingFaults(GuestFaults):
    """Counts the guest's faults and keeps the lines that would have been printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(self.lines.append)
