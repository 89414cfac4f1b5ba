"""How a device interrupts the guest, without knowing KVM.

A device is given one of these:

* an :class:`IrqLine`, a wire to the interrupt controllers (PIC and IOAPIC), driven by level or
  pulsed by an edge;
* an :class:`MsiController`, from which it takes message-signalled vectors (PCI 3.0, section 6.8).

The wires' other ends are in :mod:`pyvmm.kvm.irqchip`; tests put a list there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol


class IrqLine:
    """One wire. ``drive(level)`` is called on each change of level, and only then."""

    __slots__ = ("_drive", "level")

    def __init__(self, drive: Callable[[bool], None]) -> None:
        self._drive = drive
        self.level = False

    def set(self, level: bool) -> None:
        """Assert or de-assert the line."""
        if level != self.level:
            self.level = level
            self._drive(level)

    def pulse(self) -> None:
        """A rising edge, then low again: for edge-triggered ISA interrupts."""
        self.set(True)
        self.set(False)


class SharedIrq:
    """A wire with several drivers, as PCI's INTx lines are: high while any of them is."""

    def __init__(self, line: IrqLine) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._asserted = 0

    def input(self) -> IrqLine:
        """A further driver of the shared wire."""
        return IrqLine(self._drive)

    def _drive(self, level: bool) -> None:
        with self._lock:
            self._asserted += 1 if level else -1
            self._line.set(self._asserted > 0)


class MsiVector(Protocol):
    """One message-signalled interrupt; its message can change while the guest runs."""

    def route(self, address: int, data: int) -> None:
        """From now on, firing writes ``data`` to ``address``. Any guest-supplied value is safe."""

    def fire(self) -> None:
        """Send the message; nothing happens before the first :meth:`route`."""

    def close(self) -> None:
        """Give the vector back."""


class MsiController(Protocol):
    """Where PCI functions get their MSI and MSI-X vectors."""

    def vector(self) -> MsiVector:
        """A new vector, not yet routed."""
