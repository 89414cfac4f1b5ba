"""What a virtio device type implements, and what every transport shares.

Virtual I/O Device (VIRTIO) Version 1.2: device status (2.1), feature bits (2.2), configuration
space (2.5), initialisation (3.1) and reset (2.4).

A :class:`VirtioDevice` is a disk, a network card and so on. A transport (PCI, MMIO) shows it to
the guest through registers and keeps a :class:`DriverSession`, the part that is the same
whatever the registers look like: feature negotiation, the queues and the device status. The
legacy interface (pre-1.0) is left out.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

from pyvmm.errors import GuestFaults
from pyvmm.memory import GuestMemory
from pyvmm.virtio.queue import Virtqueue, VirtqueueError


class DeviceId(IntEnum):
    """Device types (5)."""

    NETWORK = 1
    BLOCK = 2
    CONSOLE = 3
    ENTROPY = 4
    BALLOON = 5
    SOCKET = 19


class DeviceStatus:
    """Bits of the device status field (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Feature:
    """Feature bits that don't depend on the device type (6)."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32


FEATURE_WORDS = 4
"""How many 32-bit words of feature bits the driver can write; the standard uses two."""

_SETTABLE = (
    DeviceStatus.ACKNOWLEDGE
    | DeviceStatus.DRIVER
    | DeviceStatus.DRIVER_OK
    | DeviceStatus.FEATURES_OK
    | DeviceStatus.FAILED
)


class VirtioDevice:
    """A device type: features, configuration space, queues and what happens on them.

    ``doorbells`` holds an eventfd for each queue. It is signalled when the driver has made
    buffers available, by KVM without any of our code or by :meth:`queue_notified`, and is waited
    for by whichever thread serves the queue.
    """

    def __init__(
        self,
        device_id: DeviceId,
        features: int,
        queue_sizes: Sequence[int],
        config: bytes = b"",
    ) -> None:
        self.device_id = device_id
        self.features = features
        self.queue_sizes = tuple(queue_sizes)
        self.config = bytearray(config)
        self.config_generation = 0
        self.doorbells: tuple[int, ...] = tuple(
            os.eventfd(0, os.EFD_CLOEXEC) for _ in self.queue_sizes
        )
        self._session: DriverSession | None = None

    def attach(self, session: DriverSession) -> None:
        """The transport's part, called once."""
        self._session = session

    def read_config(self, offset: int, size: int) -> int:
        """Read the device configuration space; zeros behind its end."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """The driver wrote the configuration space; most device types have nothing writable."""

    def activate(self, queues: Sequence[Virtqueue], features: int) -> None:
        """The driver is ready (DRIVER_OK): serve those of ``queues`` that are ``ready``, under
        the negotiated ``features``."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the driver. When this returns nothing touches guest memory any more.

        Called with the transport's lock held, so a thread that is waited for here must not
        need it; interrupting the guest and :meth:`fail` don't.
        """
        raise NotImplementedError

    def pause(self) -> None:
        """Finish what has been begun and touch guest memory no more until :meth:`resume`."""
        raise NotImplementedError

    def resume(self) -> None:
        """Go on after :meth:`pause`, with those queues that are still ``ready``."""
        raise NotImplementedError

    def save(self) -> dict[str, Any]:
        """What the device type has to remember besides its queues, as plain values; while it is
        paused."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`save` returned; before :meth:`activate`."""

    def queue_notified(self, index: int) -> None:
        """The driver rang for queue ``index``, and no ioeventfd took it."""
        os.eventfd_write(self.doorbells[index], 1)

    def config_changed(self) -> None:
        """Tell the driver that ``config`` is no longer what it was."""
        self.config_generation = (self.config_generation + 1) & 0xFF
        if self._session is not None:
            self._session.config_changed()

    def fail(self, error: VirtqueueError) -> None:
        """The driver broke a queue: ask it to reset the device. From any thread."""
        if self._session is not None:
            self._session.fail(error)

    def close(self) -> None:
        """Reset, and release what the host gave. Idempotent."""
        self.reset()
        doorbells, self.doorbells = self.doorbells, ()
        for doorbell in doorbells:
            os.close(doorbell)


class DriverSession:
    """A driver's dealings with a device, from reset to reset.

    ``queue_interrupt`` is called with a queue's index when its used buffers are to be signalled,
    ``config_interrupt`` when the configuration or the status has changed; both from any thread.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        faults: GuestFaults,
        queue_interrupt: Callable[[int], None],
        config_interrupt: Callable[[], None],
    ) -> None:
        self.device = device
        self._faults = faults
        self._config_interrupt = config_interrupt
        self.offered = (
            device.features | Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC
        )
        self.queues = tuple(
            Virtqueue(memory, size, _interrupt_of(queue_interrupt, index))
            for index, size in enumerate(device.queue_sizes)
        )
        # The status is changed by a vCPU and, when a queue breaks, by the device's own thread.
        self._status_lock = threading.Lock()
        self.status = 0
        self.driver_features = 0
        device.attach(self)

    @property
    def running(self) -> bool:
        """Whether the driver has set DRIVER_OK."""
        return bool(self.status & DeviceStatus.DRIVER_OK)

    def offered_word(self, select: int) -> int:
        """The offered feature bits ``32 * select`` and up."""
        return self.offered >> 32 * select & 0xFFFF_FFFF if select < FEATURE_WORDS else 0

    def driver_word(self, select: int) -> int:
        """What the driver wrote for the feature bits ``32 * select`` and up."""
        return self.driver_features >> 32 * select & 0xFFFF_FFFF if select < FEATURE_WORDS else 0

    def write_driver_word(self, select: int, value: int) -> None:
        """The driver accepts these feature bits; it can't any more once FEATURES_OK is set."""
        if select < FEATURE_WORDS and not self.status & DeviceStatus.FEATURES_OK:
            kept = self.driver_features & ~(0xFFFF_FFFF << 32 * select)
            self.driver_features = kept | value << 32 * select

    def write_status(self, value: int) -> None:
        """The driver wrote the device status: 0 resets, bits are only ever added."""
        if not value:
            self.reset()
            return
        added = value & _SETTABLE & ~self.status
        if added & DeviceStatus.FEATURES_OK and not self._features_acceptable():
            added &= ~DeviceStatus.FEATURES_OK
        if added & DeviceStatus.DRIVER_OK and not (
            (self.status | added) & DeviceStatus.FEATURES_OK
        ):
            self._faults.report("virtio: DRIVER_OK without FEATURES_OK")
            added &= ~DeviceStatus.DRIVER_OK
        with self._status_lock:
            self.status |= added
        if added & DeviceStatus.DRIVER_OK:
            self._start()

    def _features_acceptable(self) -> bool:
        wanted = self.driver_features
        if wanted & ~self.offered or not wanted & Feature.VERSION_1:
            self._faults.report("virtio: features that were not offered", "%#x", wanted)
            return False
        return True

    def _start(self) -> None:
        try:
            self._start_queues()
        except VirtqueueError as error:
            self.fail(error)
            return
        self.device.activate(self.queues, self.driver_features)

    def _start_queues(self) -> None:
        event_idx = bool(self.driver_features & Feature.EVENT_IDX)
        indirect = bool(self.driver_features & Feature.INDIRECT_DESC)
        for queue in self.queues:
            if queue.ready:
                queue.start(event_idx=event_idx, indirect=indirect)

    def stop_queue(self, queue: Virtqueue) -> None:
        """The driver takes ``queue`` back; the device has let go of it when this returns."""
        if not queue.ready:
            return
        if self.running:
            self.device.pause()
        queue.ready = False
        self.resume()

    def resume(self) -> None:
        """Have the device go on after it was paused, unless it waits for a driver or a reset."""
        if self.running and not self.status & DeviceStatus.DEVICE_NEEDS_RESET:
            self.device.resume()

    def fail(self, error: VirtqueueError) -> None:
        """Set DEVICE_NEEDS_RESET and tell the driver, once."""
        with self._status_lock:
            if self.status & DeviceStatus.DEVICE_NEEDS_RESET:
                return
            self.status |= DeviceStatus.DEVICE_NEEDS_RESET
            running = self.running
        self._faults.report("virtio: broken queue", "%s: %s", self.device.device_id.name, error)
        if running:
            self._config_interrupt()

    def config_changed(self) -> None:
        """Tell the driver, if there is one."""
        if self.running:
            self._config_interrupt()

    def reset(self) -> None:
        """End the session; the device is at rest when this returns."""
        self.device.reset()
        with self._status_lock:
            self.status = 0
        self.driver_features = 0
        for queue in self.queues:
            queue.reset()

    def save(self) -> dict[str, Any]:
        """While the device is paused."""
        return {
            "status": self.status,
            "driver_features": self.driver_features,
            "queues": [queue.save() for queue in self.queues],
            "device": self.device.save(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`save` returned, and go on serving the queues."""
        self.reset()
        self.status = state["status"]
        self.driver_features = state["driver_features"]
        for queue, saved in zip(self.queues, state["queues"], strict=True):
            queue.restore(saved)
        self.device.restore(state["device"])
        if self.running and not self.status & DeviceStatus.DEVICE_NEEDS_RESET:
            self._start()


def _interrupt_of(queue_interrupt: Callable[[int], None], index: int) -> Callable[[], None]:
    return lambda: queue_interrupt(index)
