"""Ports for the developers of kernels, firmware and tests.

* Port 0x80, where firmware has written its progress ("POST codes") since the PC/AT, and which
  kernels write to as a short delay; port 0xED is its stand-in for machines on which 0x80 hangs.
* Port 0xE9, Bochs' and QEMU's debug console: a byte written is a byte printed.
* Port 0xF4, QEMU's isa-debug-exit: a value written ends the VM with a status made from it.

The latter two are not parts of a PC: the machine adds them only when asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvmm.bus import Device, Window

DEBUG_CONSOLE_PRESENT = 0xE9
"""What the debug console's port reads as, so that software can find it."""


class PostPort(Device):
    """Keeps the last POST code in :attr:`code`. ``delay_window`` takes the port for delays only,
    whose writes are no codes."""

    def __init__(self) -> None:
        super().__init__()
        self.code = 0
        self.delay_window = Window(self.lock, self._read_delay, self._write_delay)

    def read(self, offset: int, size: int) -> int:
        return self.code

    def write(self, offset: int, size: int, value: int) -> None:
        self.code = value

    def _read_delay(self, offset: int, size: int) -> int:
        return 0xFF

    def _write_delay(self, offset: int, size: int, value: int) -> None:
        """Nobody listens; the time that the exit takes was the point."""

    def reset(self) -> None:
        self.code = 0

    def save(self) -> dict[str, Any]:
        return {"code": self.code}

    def restore(self, state: dict[str, Any]) -> None:
        self.code = state["code"]


class DebugConsole(Device):
    """One 8-bit port. Each byte goes to ``sink`` at once: nothing is kept that a guest could let
    grow, and nothing is missing when it crashes."""

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        super().__init__()
        self._sink = sink

    def read(self, offset: int, size: int) -> int:
        return DEBUG_CONSOLE_PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        self._sink(bytes((value,)))

    def reset(self) -> None:
        """The device has no state."""

    def save(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The device has no state."""


class DebugExit(Device):
    """Four ports that take a value of 1, 2 or 4 bytes. ``exit`` gets the value, with the lock
    held, and must only post a request; the exit status ``(value << 1) | 1`` is its business."""

    def __init__(self, exit: Callable[[int], None]) -> None:
        super().__init__()
        self._exit = exit

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._exit(value)

    def reset(self) -> None:
        """The device has no state."""

    def save(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The device has no state."""
