"""The registers that both transports have, whatever their places and widths.

Virtual I/O Device (VIRTIO) Version 1.2, sections 4.1.4.3 (PCI) and 4.2.2 (MMIO): three selectors,
and behind them the words of feature bits and one queue's size and addresses.
"""

from __future__ import annotations

from typing import Any

from pyvmm.virtio.device import DriverSession
from pyvmm.virtio.queue import Virtqueue


class SelectedRegisters:
    """The selectors of a transport, and what they select of ``session``. The areas are named as
    in :class:`~pyvmm.virtio.queue.Virtqueue`; ``shift`` is 0 or 32, for either half of an address.
    """

    def __init__(self, session: DriverSession) -> None:
        self._session = session
        self.reset()

    def reset(self) -> None:
        """As after the device's reset."""
        self.device_feature_select = 0
        self.driver_feature_select = 0
        self.queue_select = 0

    @property
    def queue(self) -> Virtqueue | None:
        """The selected queue, if it exists."""
        queues = self._session.queues
        return queues[self.queue_select] if self.queue_select < len(queues) else None

    def device_features(self) -> int:
        return self._session.offered_word(self.device_feature_select)

    def driver_features(self) -> int:
        return self._session.driver_word(self.driver_feature_select)

    def set_driver_features(self, value: int) -> None:
        self._session.write_driver_word(self.driver_feature_select, value)

    def queue_size(self) -> int:
        queue = self.queue
        return queue.size if queue is not None else 0

    def set_queue_size(self, value: int) -> None:
        queue = self._settable_queue()
        power_of_two = value > 0 and not value & (value - 1)
        if queue is not None and power_of_two and value <= queue.max_size:
            queue.size = value

    def queue_ready(self) -> int:
        queue = self.queue
        return int(queue.ready) if queue is not None else 0

    def set_queue_ready(self) -> None:
        queue = self._settable_queue()
        if queue is not None:
            queue.ready = True

    def area(self, name: str, shift: int) -> int:
        queue = self.queue
        return int(getattr(queue, name)) >> shift & 0xFFFF_FFFF if queue is not None else 0

    def set_area(self, name: str, shift: int, value: int) -> None:
        queue = self._settable_queue()
        if queue is not None:
            kept = int(getattr(queue, name)) & ~(0xFFFF_FFFF << shift)
            setattr(queue, name, kept | value << shift)

    def _settable_queue(self) -> Virtqueue | None:
        """The selected queue if the driver may change it: neither in use, nor when the device
        has been told which queues there are."""
        queue = self.queue
        return None if queue is None or queue.ready or self._session.running else queue

    def save(self) -> dict[str, Any]:
        return {
            "device_feature_select": self.device_feature_select,
            "driver_feature_select": self.driver_feature_select,
            "queue_select": self.queue_select,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take these over from a transport's state, whatever else is in it."""
        self.device_feature_select = state["device_feature_select"]
        self.driver_feature_select = state["driver_feature_select"]
        self.queue_select = state["queue_select"]
