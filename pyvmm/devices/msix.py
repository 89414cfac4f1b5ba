"""MSI-X: a function's table of message-signalled interrupts.

PCI Local Bus Specification 3.0, section 6.8.2. The table and the pending-bit array lie in a BAR of
their own; the capability that points at them is in configuration space (pci.py). Plain MSI is
left out: whatever drives virtio prefers MSI-X.
"""

from __future__ import annotations

import struct
import threading
from typing import Any

from pyvmm.bus import Lock
from pyvmm.interrupts import MsiController

MSIX_BAR_SIZE = 0x1000
PBA_OFFSET = 0x800
"""Where the pending-bit array begins in the BAR; the table begins at 0."""

_ENTRY = struct.Struct("<QII")  # message address, message data, vector control
MAX_VECTORS = PBA_OFFSET // _ENTRY.size


class MessageControl:
    """Bits of the capability's message control register (6.8.2.3)."""

    FUNCTION_MASK = 1 << 14
    ENABLE = 1 << 15


class VectorControl:
    """Bits of a table entry's vector control (6.8.2.9)."""

    MASK = 1 << 0


class Msix:
    """The table, the pending bits and the vectors behind them.

    The bus calls it with the function's ``device_lock``. A device may :meth:`fire` from any
    thread without that lock, which a thread that waits for the device may be holding.
    """

    def __init__(self, controller: MsiController, vectors: int, device_lock: Lock) -> None:
        if not 0 < vectors <= MAX_VECTORS:
            raise ValueError(f"{vectors} MSI-X vectors; the table holds {MAX_VECTORS}")
        self.size = vectors
        self.lock = device_lock
        self.enabled = False
        self._update = threading.Lock()
        self.vectors = [controller.vector() for _ in range(vectors)]
        self._routes: list[tuple[int, int] | None] = [None] * vectors
        self._live = [False] * vectors
        self._table = bytearray(_ENTRY.size * vectors)
        self._pending = 0
        self.reset()

    def reset(self) -> None:
        """Disabled, every entry zero but masked."""
        with self._update:
            self.enabled = False
            self._function_mask = False
            self._pending = 0
            self._live = [False] * self.size
            self._table[:] = _ENTRY.pack(0, 0, VectorControl.MASK) * self.size

    def close(self) -> None:
        """Give the vectors back. Idempotent."""
        vectors, self.vectors = self.vectors, []
        for vector in vectors:
            vector.close()

    def set_control(self, control: int) -> None:
        """The guest wrote the message control register."""
        with self._update:
            self.enabled = bool(control & MessageControl.ENABLE)
            self._function_mask = bool(control & MessageControl.FUNCTION_MASK)
            for index in range(self.size):
                self._settle(index)

    def fire(self, index: int) -> None:
        """Send vector ``index``'s message, or remember it while it is masked."""
        with self._update:
            if self._live[index]:
                self.vectors[index].fire()
            elif self.enabled:
                self._pending |= 1 << index

    def read(self, offset: int, size: int) -> int:
        if offset < len(self._table):
            return int.from_bytes(self._table[offset : offset + size], "little")
        if offset >= PBA_OFFSET:
            return (self._pending >> 8 * (offset - PBA_OFFSET)) & ((1 << 8 * size) - 1)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset + size > len(self._table) or offset % size:
            return
        with self._update:
            self._table[offset : offset + size] = value.to_bytes(size, "little")
            self._settle(offset // _ENTRY.size)

    def _settle(self, index: int) -> None:
        """Bring a vector in line with its entry and the control register."""
        address, data, control = _ENTRY.unpack_from(self._table, _ENTRY.size * index)
        live = self.enabled and not self._function_mask and not control & VectorControl.MASK
        self._live[index] = live
        if not live:
            return
        vector = self.vectors[index]
        # A change of route costs the host a grace period and the guest unmasks far more often.
        if self._routes[index] != (address, data):
            vector.route(address, data)
            self._routes[index] = (address, data)
        if self._pending >> index & 1:
            self._pending &= ~(1 << index)
            vector.fire()

    def save(self) -> dict[str, Any]:
        return {"table": bytes(self._table), "pending": self._pending}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`save` returned; :meth:`set_control` follows."""
        with self._update:
            self._table[:] = state["table"]
            self._pending = state["pending"]
