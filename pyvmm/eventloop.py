"""The I/O thread: one epoll over file descriptors, eventfds and timers; and the clock.

Devices don't see the loop. They get a :class:`Clock`, which tells the time and makes timers, and
backends get :meth:`EventLoop.watch`. Tests drive devices with a clock of their own that is
advanced by hand.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from pyvmm import host
from pyvmm.threads import NamedThread

NS_PER_SECOND = 1_000_000_000

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT


class Timer(Protocol):
    """Calls back once or periodically, on the I/O thread, without any lock held."""

    def arm(self, deadline_ns: int, period_ns: int = 0) -> None:
        """Expire when the clock reads ``deadline_ns`` (at once if that has passed), and then
        every ``period_ns`` if that isn't 0. Replaces an earlier arming. Expiries that were missed
        because the host was busy are delivered as one."""

    def cancel(self) -> None:
        """Don't expire. A call back that has already begun may still be running."""


class Clock(Protocol):
    """The time as devices see it."""

    def now_ns(self) -> int:
        """Nanoseconds of a monotonic clock."""

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch (UTC), from the host's real-time clock."""

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A new timer, not armed."""


class Reactor(Protocol):
    """What waits for file descriptors on behalf of backends and devices; the event loop, or what
    takes its place in a test. All methods may be called from any thread."""

    def watch(self, fd: int, callback: Callable[[], None], events: int = READABLE) -> None:
        """Call ``callback`` on the I/O thread whenever ``fd`` is ready, until :meth:`unwatch`."""

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``. A call back that has already begun may still be running."""

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` once on the I/O thread, soon."""


def ticks_to_ns(ticks: int, hz: int) -> int:
    """How long ``ticks`` at ``hz`` take: rounded up, so that the last one has happened."""
    return -(-ticks * NS_PER_SECOND // hz)


class EventLoop:
    """Runs callbacks on one thread; itself the machine's :class:`Clock`.

    All methods may be called from any thread. An exception in a callback is our bug: it ends the
    loop, and ``on_error`` is told so that the machine ends too instead of hanging.
    """

    def __init__(self, on_error: Callable[[BaseException], None] | None = None) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._timers: list[_FdTimer] = []
        self._stopping = False
        self.on_error = on_error
        self._thread = NamedThread(target=self._run, name="pyvmm-io", daemon=True)
        self.watch(self._wake, self._run_calls)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it (unless this is that thread). Idempotent."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def close(self) -> None:
        """Free the loop's own file descriptors, its timers' too; after :meth:`stop`. Idempotent."""
        if self._epoll.closed:
            return
        for timer in self._timers:
            timer.close()
        self._epoll.close()
        os.close(self._wake)

    def watch(self, fd: int, callback: Callable[[], None], events: int = READABLE) -> None:
        """Call ``callback`` whenever ``fd`` is ready (level-triggered), until :meth:`unwatch`.

        Watching a watched descriptor replaces its callback and events.
        """
        known = fd in self._callbacks
        self._callbacks[fd] = callback
        if known:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``; before it is closed. No error if it isn't watched."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` once on the I/O thread, soon."""
        self._calls.append(function)
        os.eventfd_write(self._wake, 1)

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()

    def timer(self, callback: Callable[[], None]) -> Timer:
        timer = _FdTimer(self, callback)
        self._timers.append(timer)
        return timer

    def _run_calls(self) -> None:
        os.eventfd_read(self._wake)
        while self._calls:
            self._calls.popleft()()

    def _run(self) -> None:
        try:
            while not self._stopping:
                for fd, _ in self._epoll.poll():
                    callback = self._callbacks.get(fd)
                    if callback is not None:
                        callback()
        except BaseException as error:
            if self.on_error is None:
                raise
            self.on_error(error)


class _FdTimer:
    """A timerfd, because epoll's own timeout has millisecond steps and the PIT doesn't."""

    def __init__(self, loop: EventLoop, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._fd = host.timerfd_create()
        loop.watch(self._fd, self._expired)

    def arm(self, deadline_ns: int, period_ns: int = 0) -> None:
        host.timerfd_settime(self._fd, max(deadline_ns, 1), period_ns)

    def cancel(self) -> None:
        host.timerfd_settime(self._fd, 0)

    def close(self) -> None:
        os.close(self._fd)

    def _expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # re-armed or cancelled since the poll
        self._callback()
