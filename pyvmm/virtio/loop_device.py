"""What device types have in common that are served on the I/O thread.

Devices whose host side never blocks (entropy, console, balloon, socket) need no thread of their
own: the event loop waits for their doorbells along with everything else. A device type whose
system calls may block (a disk), or that moves so much that it would keep the others waiting (a
network card), has threads of its own instead.

The I/O thread is shared, so a device does a limited piece of work at a time (:meth:`LoopDevice
.serve`) and comes to the end of the line again if there is more.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from pyvmm.eventloop import Reactor
from pyvmm.virtio.device import DeviceId, VirtioDevice
from pyvmm.virtio.queue import Virtqueue, VirtqueueError


class LoopDevice(VirtioDevice):
    """A device type served by ``loop``.

    A subclass implements :meth:`serve`, and :meth:`started` and :meth:`stopped` if it cares. They
    are called with ``self.serving`` held, a reentrant lock; a subclass takes it too wherever
    else it touches a queue, and then asks :attr:`running` first.
    """

    def __init__(
        self,
        loop: Reactor,
        device_id: DeviceId,
        features: int,
        queue_sizes: Sequence[int],
        config: bytes = b"",
    ) -> None:
        super().__init__(device_id, features, queue_sizes, config)
        for doorbell in self.doorbells:
            os.set_blocking(doorbell, False)
        self.serving = threading.RLock()
        self.queues: tuple[Virtqueue, ...] = ()
        self.negotiated = 0
        self.running = False
        self._loop = loop

    def serve(self, index: int, queue: Virtqueue) -> bool:
        """The driver has rung for ``queue``, or might have: do a piece of the work that is there.
        True if there is more; the next piece follows when others have had their turn."""
        raise NotImplementedError

    def started(self) -> None:
        """The driver is ready; ``queues`` and ``negotiated`` (its features) are set."""

    def stopped(self) -> None:
        """The driver has gone, or the device is paused; the queues must not be touched."""

    def ring(self, index: int) -> None:
        """Have queue ``index`` served soon, as if the driver had rung. From any thread."""
        os.eventfd_write(self.doorbells[index], 1)

    def activate(self, queues: Sequence[Virtqueue], features: int) -> None:
        with self.serving:
            self.queues = tuple(queues)
            self.negotiated = features
            self.resume()

    def reset(self) -> None:
        with self.serving:
            self.pause()
            self.queues = ()
            self.negotiated = 0

    def pause(self) -> None:
        with self.serving:
            if self.running:
                self._rest()

    def resume(self) -> None:
        with self.serving:
            if self.running or not self.queues:
                return
            self.running = True
            self.started()
            for index, queue in enumerate(self.queues):
                if queue.ready:
                    self.ring(index)  # what came before we listened
                    self._loop.watch(self.doorbells[index], self._rung(index, queue))

    def guarded(self, action: Callable[[], bool]) -> bool:
        """Do something to a queue outside :meth:`serve`, if the device is running. What the driver
        breaks is dealt with as there; False then, and if it isn't running."""
        with self.serving:
            if not self.running:
                return False
            try:
                return action()
            except VirtqueueError as error:
                self._rest()
                self.queues = ()
                self.fail(error)
                return False

    def _rest(self) -> None:
        self.running = False
        for doorbell in self.doorbells:
            self._loop.unwatch(doorbell)
        self.stopped()

    def _rung(self, index: int, queue: Virtqueue) -> Callable[[], None]:
        doorbell = self.doorbells[index]

        def serve() -> None:
            with self.serving:
                if not self.running:
                    return  # reset since the loop saw the doorbell, which may be closed by now
                try:
                    os.eventfd_read(doorbell)
                except BlockingIOError:
                    return
                if self.guarded(lambda: self.serve(index, queue)):
                    self.ring(index)

        return serve
