"""A virtio device that does nothing by itself, for tests of what is around a device."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pyvmm.virtio.device import DeviceId, VirtioDevice
from pyvmm.virtio.queue import Virtqueue, VirtqueueError

TYPE_FEATURES = 1 << 3 | 1 << 5
CONFIG = bytes(range(0x10, 0x1C))


class Echo(VirtioDevice):
    """A device type for tests: two queues, served where the test says so."""

    def __init__(self) -> None:
        super().__init__(DeviceId.CONSOLE, TYPE_FEATURES, (16, 4), CONFIG)
        self.active: Sequence[Virtqueue] | None = None
        self.features_seen = 0
        self.resets = 0
        self.pauses = 0
        self.paused = False
        self.config_writes: list[tuple[int, int, int]] = []

    def activate(self, queues: Sequence[Virtqueue], features: int) -> None:
        assert self.active is None
        self.active, self.features_seen = queues, features

    def reset(self) -> None:
        self.active = None
        self.resets += 1

    def pause(self) -> None:
        self.pauses += 1
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def read_config(self, offset: int, size: int) -> int:
        assert size in (1, 2, 4)
        return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.config_writes.append((offset, size, value))

    def rung(self, index: int) -> int:
        """How often queue ``index``'s doorbell has been rung since the last call."""
        os.eventfd_write(self.doorbells[index], 1)
        return os.eventfd_read(self.doorbells[index]) - 1

    def serve(self, index: int = 0) -> int:
        """Hand back whatever is available; how much that was."""
        assert self.active is not None
        queue = self.active[index]
        try:
            chains = queue.pop_batch(16)
        except VirtqueueError as error:
            self.fail(error)
            return 0
        if chains:
            queue.push_batch([(chain.head, chain.writable_bytes) for chain in chains])
        return len(chains)
