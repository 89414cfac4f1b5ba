"""virtio-rng: random bytes from the host.

Virtual I/O Device (VIRTIO) Version 1.2, section 5.4. One queue of buffers to fill; there are no
features and no configuration.

The bytes come from ``/dev/urandom``, the kernel's one generator, which never blocks once the host
has booted. It is read with readv(2) straight into the guest's buffers, which getrandom(2) can't do
from Python: ``os.getrandom`` returns a copy.

A guest that asks for more than its share waits: a token bucket fills at ``rate`` and each byte
takes a token. A buffer may be filled in part (5.4.6.2), so that however large it is, one request is
a small piece of work.
"""

from __future__ import annotations

import os

from pyvmm.eventloop import NS_PER_SECOND, Clock, Reactor
from pyvmm.virtio.buffers import first
from pyvmm.virtio.device import DeviceId
from pyvmm.virtio.loop_device import LoopDevice
from pyvmm.virtio.queue import Chain, Virtqueue, VirtqueueError

QUEUE_SIZE = 64
MAX_REQUEST = 4096
"""Bytes for one request; Linux asks for 64 at a time."""
TURN = 64 << 10
"""Bytes before other devices have their turn."""
QUANTUM = 64
"""Tokens below which nothing is handed out: nobody wants a byte at a time."""
WAKES_A_SECOND = 100
"""How often a guest that has used up its share is given some more."""


class TokenBucket:
    """Holds up to a second's worth of tokens; ``rate`` a second come in."""

    def __init__(self, clock: Clock, rate: int) -> None:
        self._clock = clock
        self._rate = rate
        self._level = rate
        self._counted_ns = clock.now_ns()

    @property
    def level(self) -> int:
        """How many tokens there are now."""
        now = self._clock.now_ns()
        fresh = (now - self._counted_ns) * self._rate // NS_PER_SECOND
        if self._level + fresh >= self._rate:
            self._level, self._counted_ns = self._rate, now
        elif fresh:
            self._level += fresh
            self._counted_ns += fresh * NS_PER_SECOND // self._rate  # the fraction isn't lost
        return self._level

    def take(self, tokens: int) -> None:
        """Take ``tokens``, which must be there."""
        self._level -= tokens

    def ready_ns(self, tokens: int) -> int:
        """When there will be ``tokens``, which are more than there are now."""
        return self._counted_ns + -(-(tokens - self._level) * NS_PER_SECOND // self._rate)


class EntropyDevice(LoopDevice):
    """Hands out what can be read from ``source``, a file descriptor, which it closes at its end;
    at most ``rate`` bytes a second, in the long run."""

    def __init__(self, loop: Reactor, clock: Clock, source: int, rate: int) -> None:
        super().__init__(loop, DeviceId.ENTROPY, 0, (QUEUE_SIZE,))
        self._source = source
        self._bucket = TokenBucket(clock, rate)
        self._refill = max(QUANTUM, rate // WAKES_A_SECOND)
        self._refilled = clock.timer(self._go_on)

    def serve(self, index: int, queue: Virtqueue) -> bool:
        queue.disable_notifications()
        used: list[tuple[int, int]] = []
        left = TURN
        while left > 0 and self._bucket.level >= QUANTUM:
            chains = queue.pop_batch(1)
            if not chains:
                break
            filled = self._fill(chains[0], min(MAX_REQUEST, self._bucket.level))
            self._bucket.take(filled)
            left -= max(filled, QUANTUM)
            used.append((chains[0].head, filled))
        if used:
            queue.push_batch(used)
        if self._bucket.level < QUANTUM:
            # What the driver adds meanwhile waits too, so it needn't ring.
            self._refilled.arm(self._bucket.ready_ns(self._refill))
            return False
        return left <= 0 or queue.enable_notifications()

    def _fill(self, chain: Chain, limit: int) -> int:
        """Random bytes for as much of ``chain`` as ``limit`` allows; how many those were."""
        buffers = first(chain.writable, limit)
        if not buffers:
            raise VirtqueueError("entropy request without a buffer to fill")
        return os.readv(self._source, buffers)

    def _go_on(self) -> None:
        with self.serving:
            if self.running:
                self.ring(0)

    def stopped(self) -> None:
        self._refilled.cancel()

    def close(self) -> None:
        super().close()
        source, self._source = self._source, -1
        if source >= 0:
            os.close(source)
