"""pvpanic: one port through which a guest says that it panicked.

QEMU's docs/specs/pvpanic.rst, "ISA Interface". Linux finds the port through the ACPI device
QEMU0001 and writes to it from its panic notifier. The PCI variant of the device is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvmm.bus import Device
from pyvmm.errors import GuestFaults


class PanicEvent:
    """A bit of the port, to read (supported) and to write (happened)."""

    PANICKED = 1 << 0
    CRASH_LOADED = 1 << 1
    """A panic that the guest handles itself, by a crash kernel."""
    SHUTDOWN = 1 << 2


_SUPPORTED = PanicEvent.PANICKED | PanicEvent.CRASH_LOADED | PanicEvent.SHUTDOWN


class Pvpanic(Device):
    """One 8-bit port. ``report`` gets what the guest wrote: a mask of :class:`PanicEvent`, never
    0; it is called with the lock held and must only post a request."""

    def __init__(self, report: Callable[[int], None], faults: GuestFaults) -> None:
        super().__init__()
        self._report = report
        self._faults = faults

    def read(self, offset: int, size: int) -> int:
        return _SUPPORTED

    def write(self, offset: int, size: int, value: int) -> None:
        events = value & _SUPPORTED
        if value != events:
            self._faults.report("pvpanic event that doesn't exist", "%#x", value)
        if events:
            self._report(events)

    def reset(self) -> None:
        """The device has no state."""

    def save(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The device has no state."""
