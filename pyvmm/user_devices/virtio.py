"""A user's virtio device: its queues, served on the I/O thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from pyvmm.board import Requests, Wiring
from pyvmm.user_devices.attachment import Attachment
from pyvmm.user_devices.interface import VirtioDevice
from pyvmm.virtio.buffers import scatter
from pyvmm.virtio.device import DeviceId
from pyvmm.virtio.loop_device import LoopDevice
from pyvmm.virtio.queue import Virtqueue, VirtqueueError

BATCH = 16
"""Requests before other devices have their turn."""
MAX_REQUEST = 1 << 20
"""Bytes of one request; what is longer breaks the queue."""


class TypeNumber(int):
    """The number of a device type that the standard may not know, and what it is called here."""

    name: str


class UserLoopDevice(LoopDevice):
    """The virtio device that the guest sees of ``attachment``."""

    def __init__(self, attachment: VirtioAttachment, device: VirtioDevice, wiring: Wiring) -> None:
        number = TypeNumber(device.device_id)
        number.name = attachment.name
        super().__init__(
            wiring.reactor,
            cast(DeviceId, number),  # for which it passes: a number with a name
            device.features,
            device.queues,
            device.config,
        )
        self.serving = device.lock
        self._attachment = attachment
        self._device = device

    def serve(self, index: int, queue: Virtqueue) -> bool:
        if index in self._device.event_queues:
            self._attachment.call(None, self._device.buffers_added, index)
            queue.enable_notifications()
            return False
        queue.disable_notifications()
        chains = queue.pop_batch(BATCH)
        used = []
        for chain in chains:
            if chain.readable_bytes > MAX_REQUEST:
                raise VirtqueueError(f"request of {chain.readable_bytes} bytes")
            data, room = b"".join(chain.readable), min(chain.writable_bytes, MAX_REQUEST)
            answer = self._attachment.call(b"", self._answer, index, data, room)
            used.append((chain.head, scatter(answer[:room], chain.writable)))
        if used:
            queue.push_batch(used)
        return len(chains) == BATCH or queue.enable_notifications()

    def _answer(self, index: int, data: bytes, room: int) -> bytes:
        """In the user's code as far as errors go: an answer that is none is the user's, too."""
        return bytes(memoryview(self._device.request(index, data, room)))

    def send(self, index: int, data: bytes) -> bool:
        """Fill a buffer of an event queue."""
        return self.guarded(lambda: self._send(self.queues[index], data))

    def _send(self, queue: Virtqueue, data: bytes) -> bool:
        if not queue.ready:
            return False
        chains = queue.pop_batch(1)
        queue.enable_notifications()
        if not chains:
            return False
        queue.push_batch([(chains[0].head, scatter(data, chains[0].writable))])
        return True

    def save(self) -> dict[str, Any]:
        return self._attachment.save()

    def restore(self, state: dict[str, Any]) -> None:
        self._attachment.restore(state)

    def started(self) -> None:
        self._device.negotiated = self.negotiated

    def reset(self) -> None:
        super().reset()
        self._device.negotiated = 0
        self._attachment.reset()


class VirtioAttachment(Attachment):
    """As every attachment, and the virtio device ``virtio``, whose reset by the driver is the
    user's device's, too."""

    def __init__(self, device: VirtioDevice, name: str, wiring: Wiring, requests: Requests) -> None:
        super().__init__(device, name, wiring, requests)
        self._user_device = device
        self.virtio = UserLoopDevice(self, device, wiring)

    def send(self, queue: int, data: bytes) -> bool:
        events: Sequence[int] = self._user_device.event_queues
        if queue not in events:
            raise ValueError(f"queue {queue} is none of the event queues {list(events)}")
        return self.virtio.send(queue, data)

    def config_changed(self) -> None:
        if len(self._user_device.config) != len(self.virtio.config):
            raise ValueError("the configuration space has another length than at the start")
        self.virtio.config[:] = self._user_device.config
        self.virtio.config_changed()
