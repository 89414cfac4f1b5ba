"""What stands between the machine and a user's device.

The bus, the board and the I/O thread call an :class:`Attachment`, which calls the device. It keeps
three kinds of error apart: a guest address outside RAM is a fault of the guest's; any other
exception is the user's, and ends the run with the device's name and the traceback
(:class:`~pyvmm.errors.DeviceError`); and what is wrong here is ours.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from types import CodeType, TracebackType
from typing import Any, TypeVar

from pyvmm.board import Requests, Wiring
from pyvmm.bus import Device
from pyvmm.errors import ConfigError, DeviceError, GuestMemoryError
from pyvmm.eventloop import READABLE
from pyvmm.interrupts import IrqLine
from pyvmm.user_devices.interface import UserDevice

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

MAX_TIMERS = 256
"""Callbacks that a device can wait for at a time: a lambda for each of the guest's requests would
be a way to use up the host's memory."""

T = TypeVar("T")


class Overdue(BaseException):
    """Ends a call of the user's that doesn't return (:mod:`pyvmm.user_devices.overdue`)."""


class Attachment(Device):
    """A user's device in a machine, where it is called ``name``; on a bus it is the handler.

    ``registers`` has the names of its registers by offset, for traces.
    """

    def __init__(self, device: UserDevice, name: str, wiring: Wiring, requests: Requests) -> None:
        if device._machinery is not None:
            raise ConfigError(
                f"device {name} is in a machine already", "make an instance for each machine"
            )
        # Not Device.__init__: the lock is the user's device's.
        self.lock = device.lock
        self.device = device
        self.name = name
        self.registers: Mapping[int, str] = device.registers
        self.broken = False
        self._wiring = wiring
        self._requests = requests
        self._in_place = self._said_so = False
        self._min_size: int = getattr(device, "min_size", 1)
        self._paused = self._resting = False
        self._pending: dict[Callable[[], None], tuple[int, int]] = {}  # deadline, period
        self._files: dict[int, tuple[Callable[[], None], int]] = {}
        self._timer = wiring.clock.timer(self._expired)
        device.irq = IrqLine(self._leads_nowhere)  # unless it gets one
        device.memory = wiring.memory
        device.clock = wiring.clock
        device._machinery = self

    def _leads_nowhere(self, level: bool) -> None:
        if level and not self._said_so:
            self._said_so = True
            what = "(a PioDevice or MmioDevice has irq= or default_irq)"
            self.log(f"it raises self.irq, which leads nowhere {what}")

    def power_on(self) -> None:
        """The device's first reset. DeviceError if that fails; a later failure ends the machine."""
        self.reset()
        self._in_place = True

    # Into the user's code.

    def call(self, otherwise: T, function: Callable[..., T], *arguments: object) -> T:
        """What ``function`` returns; ``otherwise`` if it fails, or something has failed before."""
        if self.broken:
            return otherwise
        try:
            return function(*arguments)
        except GuestMemoryError as error:
            self._wiring.faults.report(f"{self.name}: DMA outside memory", "%s", error)
        except (Exception, SystemExit) as error:
            self._fail(explain(error, f"device {self.name} failed", function))
        except Overdue as error:
            what = f"device {self.name} failed: {name_of(function)} doesn't return"
            self._fail(DeviceError(what, explain(error, what).hint))
        return otherwise

    def _fail(self, error: DeviceError) -> None:
        self.broken = True
        if not self._in_place:
            raise error
        self._requests.failed(error)

    def read(self, offset: int, size: int) -> int:
        every = (1 << 8 * size) - 1
        if size < self._min_size or offset % size:
            self._refuse("read", offset, size)
            return every
        value = self.call(every, self.device.read, offset, size)  # type: ignore[attr-defined]
        try:
            return operator.index(value) & every
        except TypeError:
            what = f"read({offset:#x}, {size}) returned {value!r}, which is no whole number"
            place = _definition(self.device.read)  # type: ignore[attr-defined]
            self._fail(DeviceError(f"device {self.name} failed: {what}", place))
            return every

    def write(self, offset: int, size: int, value: int) -> None:
        if size < self._min_size or offset % size:
            self._refuse("write", offset, size)
            return
        self.call(None, self.device.write, offset, size, value)  # type: ignore[attr-defined]

    def _refuse(self, access: str, offset: int, size: int) -> None:
        kind = f"{self.name}: {access} of a wrong size or alignment"
        self._wiring.faults.report(kind, "%d bytes at offset %#x", size, offset)

    # What a device asks for (Machinery).

    def set_timer(self, callback: Callable[[], None], ns: int, period_ns: int) -> None:
        with self.lock:
            if callback not in self._pending and len(self._pending) >= MAX_TIMERS:
                raise RuntimeError(f"the device waits for {MAX_TIMERS} callbacks already")
            self._pending[callback] = self._wiring.clock.now_ns() + ns, period_ns
            self._arm()

    def cancel_timer(self, callback: Callable[[], None]) -> None:
        with self.lock:
            self._pending.pop(callback, None)
            self._arm()

    def _arm(self) -> None:
        if self._pending and not self._paused and not self._resting:
            self._timer.arm(min(deadline for deadline, _ in self._pending.values()))
        else:
            self._timer.cancel()

    def _expired(self) -> None:
        with self.lock:
            if self._paused or self._resting:
                return
            now = self._wiring.clock.now_ns()
            due = [(at[0], callback) for callback, at in self._pending.items() if at[0] <= now]
            for deadline, callback in sorted(due, key=lambda each: each[0]):
                at = self._pending.get(callback)
                if at is None or at[0] != deadline:
                    continue  # cancelled, or set anew, by the one before
                period = at[1]
                if period:
                    missed = (now - deadline) // period
                    self._pending[callback] = deadline + (missed + 1) * period, period
                else:
                    del self._pending[callback]
                self.call(None, callback)
            self._arm()

    def watch(self, fd: int, callback: Callable[[], None], events: int = READABLE) -> None:
        with self.lock:
            self._files[fd] = callback, events
            if not self._paused and not self._resting:
                self._listen(fd)

    def unwatch(self, fd: int) -> None:
        with self.lock:
            if self._files.pop(fd, None) is not None:
                self._wiring.reactor.unwatch(fd)

    def _listen(self, fd: int) -> None:
        callback, events = self._files[fd]

        def ready() -> None:
            with self.lock:
                known = self._files.get(fd)
                if known is not None and known[0] is callback and not self._paused:
                    self.call(None, callback)

        self._wiring.reactor.watch(fd, ready, events)

    def log(self, text: str) -> None:
        self._wiring.faults.tell(f"{self.name}: {text}")

    def fault(self, what: str, detail: str, args: tuple[object, ...]) -> None:
        self._wiring.faults.report(f"{self.name}: {what}", detail, *args)

    def fire(self, vector: int) -> None:
        raise TypeError("only a PciDevice has MSI-X")

    def msix_enabled(self) -> bool:
        return False

    def send(self, queue: int, data: bytes) -> bool:
        raise TypeError("only a VirtioDevice has queues")

    def config_changed(self) -> None:
        raise TypeError("only a VirtioDevice has a configuration space")

    # Life.

    def reset(self) -> None:
        """As at power-on: no timers, the interrupt low, then what the device does."""
        with self.lock:
            self._pending.clear()
            self._arm()
            self.device.irq.set(False)
            self.call(None, self.device.reset)

    def pause(self) -> None:
        """Call the device no more until :meth:`resume`; timers are late then."""
        with self.lock:
            self._paused = True
            self._settle()

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        with self.lock:
            self._paused = False
            self._settle()

    def rest(self) -> None:
        """The machine is about to be reset, or has ended: no calls until :meth:`wake`."""
        with self.lock:
            self._resting = True
            self._settle()

    def wake(self) -> None:
        """Undo :meth:`rest`."""
        with self.lock:
            self._resting = False
            self._settle()

    def _settle(self) -> None:
        self._arm()
        for fd in self._files:
            if self._paused or self._resting:
                self._wiring.reactor.unwatch(fd)
            else:
                self._listen(fd)

    def close(self) -> None:
        """Have the device release what it has of the host's."""
        with self.lock:
            for fd in list(self._files):
                self.unwatch(fd)
            self._pending.clear()
            self._timer.cancel()
            failed, self.broken = self.broken, False
            self._in_place = False  # what goes wrong now is the caller's to tell
            try:
                self.call(None, self.device.close)
            except DeviceError:
                if not failed:  # one error is enough
                    raise

    def save(self) -> dict[str, Any]:
        with self.lock:
            now = self._wiring.clock.now_ns()
            timers = {
                callback.__name__: (deadline - now, period)
                for callback, (deadline, period) in self._pending.items()
                if getattr(callback, "__self__", None) is self.device
            }
            nothing: dict[str, Any] = {}
            state = self.call(nothing, self.device.save)
            return {"device": state, "irq": self.device.irq.level, "timers": timers}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`save` returned; timers go on that call a method of the device."""
        with self.lock:
            now = self._wiring.clock.now_ns()
            self._pending = {
                getattr(self.device, name): (now + rest, period)
                for name, (rest, period) in state["timers"].items()
            }
            self.call(None, self.device.restore, state["device"])
            self.device.irq.set(state["irq"])
            self._arm()


def explain(error: BaseException, what: str, function: object = None) -> DeviceError:
    """The user's error as one line, and the traceback as far as it is the user's: none if
    ``function``, which is the user's, couldn't even be called."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace):
        trace = trace.tb_next
    if trace is not None and _is_ours(trace):
        trace = None
    lines = "".join(traceback.format_exception(type(error), error, trace)).splitlines()
    only = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()
    text = only[-1] if isinstance(error, SyntaxError) else only[0]  # of several lines
    place = _place(trace) if trace is not None else _definition(function)
    explained = DeviceError(f"{what}: {text}", place, report=tuple(lines))
    explained.__cause__ = error
    return explained


def _is_ours(trace: TracebackType) -> bool:
    name = trace.tb_frame.f_code.co_filename
    return name.startswith((PACKAGE, "<frozen importlib"))


def name_of(function: object) -> str:
    """What the user calls it."""
    return f"{getattr(function, '__name__', 'a callback').lstrip('_')}()"


def _definition(function: object) -> str:
    """The file and line where the user's function or method begins; "" if that can't be said."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if not isinstance(code, CodeType) or code.co_filename.startswith(PACKAGE):
        return ""
    return f"{os.path.relpath(code.co_filename)}:{code.co_firstlineno}"


def _place(trace: TracebackType) -> str:
    """The file and line that failed: the last one that is in the file where it began."""
    found: TracebackType | None = trace
    name, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
    while found is not None:
        if found.tb_frame.f_code.co_filename == name:
            line = found.tb_lineno
        found = found.tb_next
    return f"{os.path.relpath(name)}:{line}"
