"""A virtio disk whose requests take longer: what ``-d disk.raw,latency=10ms`` plugs in.

A request is carried out when the disk's thread takes it, as always, but the guest hears of it only
a while later. Meanwhile the thread takes others, so requests that are under way at the same time
wait at the same time: what is delayed is each request, not the disk. That is how a distant disk
behaves; a slow one would also do fewer at a time, which is left out.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from pyvmm import host
from pyvmm.backends.disk import DiskImage
from pyvmm.virtio.blk import BlockDevice, Request
from pyvmm.virtio.queue import Chain, Virtqueue, VirtqueueError


class Held(NamedTuple):
    """A request that is done, and that the guest is to hear of at ``due_ns``."""

    due_ns: int
    request: Request
    status: int
    head: int
    written: int


class SlowBlockDevice(BlockDevice):
    """As :class:`BlockDevice`; each request takes ``latency_ns`` more."""

    def __init__(
        self,
        image: DiskImage,
        serial: str = "",
        *,
        latency_ns: int,
        name: str = "vda",
        on_io_error: Callable[[OSError], None] | None = None,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        super().__init__(image, serial, name=name, on_io_error=on_io_error, on_error=on_error)
        self._latency_ns = latency_ns
        self._held: deque[Held] = deque()

    def _work(self, queue: Virtqueue) -> None:
        timer = host.timerfd_create()
        try:
            with select.epoll() as epoll:
                epoll.register(self.doorbells[0], select.EPOLLIN)
                epoll.register(timer, select.EPOLLIN)
                self._serve(queue, epoll, timer)
        except VirtqueueError as error:
            self._held.clear()
            self.fail(error)
        except BaseException as error:
            if self._on_error is None:
                raise
            self._on_error(error)
        finally:
            os.close(timer)

    def _serve(self, queue: Virtqueue, epoll: select.epoll, timer: int) -> None:
        doorbell, held = self.doorbells[0], self._held
        while not self._stopping:
            self._drain(queue)
            self._return(queue, time.monotonic_ns())
            if self._stopping:
                break
            host.timerfd_settime(timer, held[0].due_ns if held else 0)
            for fd, _ in epoll.poll():
                if fd == doorbell:
                    os.read(doorbell, 8)
        if self._dropping:
            held.clear()
        else:  # paused: what has been begun is finished, if early
            self._return(queue, held[-1].due_ns if held else 0)

    def _serve_batch(self, queue: Virtqueue, chains: list[Chain]) -> None:
        for chain in chains:
            if self._dropping:
                return
            request = Request(chain)
            status, written = self._execute(request)
            due = time.monotonic_ns() + self._latency_ns
            self._held.append(Held(due, request, status, chain.head, written + 1))
        self._return(queue, time.monotonic_ns())

    def _return(self, queue: Virtqueue, now_ns: int) -> None:
        """Give the guest what is due."""
        used: list[tuple[int, int]] = []
        while self._held and self._held[0].due_ns <= now_ns:
            done = self._held.popleft()
            done.request.status[0] = done.status
            used.append((done.head, done.written))
        if used:
            queue.push_batch(used)
