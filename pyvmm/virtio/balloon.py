"""virtio-balloon: memory that the guest lends back to the host.

Virtual I/O Device (VIRTIO) Version 1.2, section 5.5. The device asks for a number of pages
(:meth:`BalloonDevice.set_target`); the driver takes them from its kernel and names them on the
inflate queue, and the host has them from then on. It names them again on the deflate queue when it
takes them back; they come back as zeros, page by page as they are touched, so there is nothing to
do about that. A statistics queue (5.5.6.3) tells how the guest's memory is used, and with free
page reporting (5.5.6.7) the guest lets the host have its free memory without being asked.

Left out: free page hinting, which is for migration; page poison, without which a driver that wants
its free pages to keep a pattern doesn't report them; and VIRTIO_BALLOON_F_MUST_TELL_HOST, because a
guest may well use a page before it says so.

The queues are numbered as in 5.5.2, where those that a driver doesn't use leave gaps. Linux closes
the gaps, so the reporting queue may be one of three.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from pyvmm.errors import ConfigError, GuestFaults
from pyvmm.eventloop import NS_PER_SECOND, Clock, Reactor
from pyvmm.memory import KIB, MIB, GuestMemory, align_up
from pyvmm.options import format_size
from pyvmm.virtio.buffers import gather
from pyvmm.virtio.device import DeviceId
from pyvmm.virtio.loop_device import LoopDevice
from pyvmm.virtio.queue import Chain, Virtqueue

QUEUE_SIZE = 128
INFLATE_QUEUE, DEFLATE_QUEUE, STATS_QUEUE, FREE_PAGE_QUEUE, REPORTING_QUEUE = range(5)

PAGE_SHIFT = 12
"""Page numbers count 4 KiB whatever the guest's pages are (5.5.6)."""
MAX_PAGES = 16 * KIB
"""Page numbers in one buffer; Linux sends 256, others 1024."""
BATCH = 16
"""Buffers on the other queues before other devices have their turn."""

TURN = 64 * MIB
"""How much goes back to the host before other devices have their turn."""
MIN_COST = 256 * KIB
"""A range of a page takes as long as this much in one piece."""


class BalloonFeature:
    """Feature bits (5.5.3)."""

    STATS_VQ = 1 << 1
    DEFLATE_ON_OOM = 1 << 2
    PAGE_REPORTING = 1 << 5


STATISTICS = (
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
)
"""VIRTIO_BALLOON_S_SWAP_IN and the tags that follow it (5.5.6.4); sizes are in bytes."""

_CONFIG = struct.Struct("<II")  # struct virtio_balloon_config (5.5.4): num_pages, actual
_STATISTIC = struct.Struct("<HQ")  # struct virtio_balloon_stat: tag, val
_ACTUAL = 4
"""The offset of the one field that the driver writes."""


class BalloonDevice(LoopDevice):
    """Takes pages of ``memory`` from the guest, ``target`` bytes to begin with.

    The statistics are fetched every ``stats_seconds``, if that isn't 0. ``deflate_on_oom`` lets the
    driver take pages back when the guest would otherwise run out of memory.
    """

    def __init__(
        self,
        loop: Reactor,
        clock: Clock,
        memory: GuestMemory,
        faults: GuestFaults,
        *,
        target: int = 0,
        stats_seconds: float = 0.0,
        free_page_reporting: bool = False,
        deflate_on_oom: bool = False,
    ) -> None:
        features = BalloonFeature.STATS_VQ if stats_seconds else 0
        features |= BalloonFeature.PAGE_REPORTING if free_page_reporting else 0
        features |= BalloonFeature.DEFLATE_ON_OOM if deflate_on_oom else 0
        sizes = (QUEUE_SIZE,) * (REPORTING_QUEUE + 1)
        super().__init__(loop, DeviceId.BALLOON, features, sizes, _CONFIG.pack(0, 0))
        self._memory = memory
        self._faults = faults
        self._stats_queue = self._reporting_queue = -1
        self._jobs: dict[int, _Job] = {}
        self._stats: dict[str, int] = {}
        self._stats_head: int | None = None
        self._stats_period_ns = int(stats_seconds * NS_PER_SECOND)
        self._poll_timer = clock.timer(self._poll) if stats_seconds else None
        self._clock = clock
        self.set_target(target)

    # What the host's side asks and is told, from any thread.

    @property
    def target(self) -> int:
        """How many bytes the guest is to lend us."""
        return int(_CONFIG.unpack(self.config)[0]) << PAGE_SHIFT

    @property
    def actual(self) -> int:
        """How many bytes it says it has lent."""
        return int(_CONFIG.unpack(self.config)[1]) << PAGE_SHIFT

    def set_target(self, size: int) -> None:
        """Ask the guest for ``size`` bytes in all, rounded down to pages. It needn't comply, and
        takes its time."""
        if not 0 <= size <= self._memory.size:
            raise ConfigError(
                f"--balloon size: {format_size(size)} is not between 0 and the guest's"
                f" {format_size(self._memory.size)}"
            )
        struct.pack_into("<I", self.config, 0, size >> PAGE_SHIFT)
        self.config_changed()

    def stats(self) -> dict[str, int]:
        """What the guest said last of its memory, by the names in :data:`STATISTICS`."""
        with self.serving:
            return dict(self._stats)

    # The driver's side.

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset >= _ACTUAL and offset + size <= _CONFIG.size:
            self.config[offset : offset + size] = value.to_bytes(size, "little")

    def started(self) -> None:
        self._stats_queue = self._reporting_queue = -1
        gap = STATS_QUEUE
        if self.negotiated & BalloonFeature.STATS_VQ:
            self._stats_queue = STATS_QUEUE
            gap += 1
            if not self.queues[STATS_QUEUE].ready:
                self._stats_head = None  # the driver has taken it back
            if self._poll_timer is not None:
                period = self._stats_period_ns
                self._poll_timer.arm(self._clock.now_ns() + period, period)
        if self.negotiated & BalloonFeature.PAGE_REPORTING:
            as_specified = self.queues[REPORTING_QUEUE].ready
            self._reporting_queue = REPORTING_QUEUE if as_specified else gap

    def stopped(self) -> None:
        if self._poll_timer is not None:
            self._poll_timer.cancel()

    def pause(self) -> None:
        with self.serving:
            self.guarded(self._finish)
            super().pause()

    def reset(self) -> None:
        with self.serving:
            self._jobs.clear()
            self._stats.clear()
            super().reset()
            self._stats_head = None
            struct.pack_into("<I", self.config, _ACTUAL, 0)

    def save(self) -> dict[str, Any]:
        return {
            "config": self.config.hex(),
            "stats": dict(self._stats),
            "stats_head": self._stats_head,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.config[:] = bytes.fromhex(state["config"])
        self._stats = dict(state["stats"])
        self._stats_head = state["stats_head"]

    def serve(self, index: int, queue: Virtqueue) -> bool:
        if index in (INFLATE_QUEUE, self._reporting_queue):
            return self._take_pages(index, queue)
        if index == self._stats_queue:
            return self._read_stats(queue)
        if index == DEFLATE_QUEUE:
            chains = queue.pop_batch(BATCH)
            if chains:
                queue.push_batch([(chain.head, 0) for chain in chains])
            return bool(chains) or queue.enable_notifications()
        return False

    def _take_pages(self, index: int, queue: Virtqueue) -> bool:
        budget = TURN
        while budget > 0:
            job = self._jobs.get(index)
            if job is None:
                chain = queue.pop()
                if chain is None:
                    return False
                job = self._jobs[index] = self._job(index, chain)
            budget = self._work(job, budget - MIN_COST)
            if not job.ranges:
                del self._jobs[index]
                queue.push_batch([(job.head, 0)])
        return True

    def _job(self, index: int, chain: Chain) -> _Job:
        if index == INFLATE_QUEUE:
            return _Job(chain.head, self._inflated(chain))
        return _Job(chain.head, self._reported(chain))

    def _work(self, job: _Job, budget: int) -> int:
        """Give some of the job's ranges back to the host; what is left of ``budget``."""
        while job.ranges and budget > 0:
            gpa, length = job.ranges.pop()
            if length > budget:
                job.ranges.append((gpa + budget, length - budget))
                length = budget
            try:
                self._memory.discard(gpa, length)
            except OSError as error:
                self._faults.report_host("balloon: memory stays allocated", "%s", error.strerror)
            budget -= max(length, MIN_COST)
        return budget

    def _finish(self) -> bool:
        """Do at once what has been begun; a job isn't large."""
        for index, job in self._jobs.items():
            while job.ranges:
                self._work(job, TURN)
            self.queues[index].push_batch([(job.head, 0)])
        self._jobs.clear()
        return True

    def _inflated(self, chain: Chain) -> list[tuple[int, int]]:
        """The pages that an array of page numbers names, as (GPA, length) of RAM."""
        data = gather(chain.readable, 4 * MAX_PAGES)
        if chain.readable_bytes > len(data) or len(data) % 4:
            self._faults.report(
                "balloon: not an array of page numbers", "%d bytes", chain.readable_bytes
            )
        found = []
        for gpa, length in coalesce(memoryview(data)[: len(data) & -4].cast("I")):
            inside = 0
            for region in self._memory.regions:
                start, end = max(gpa, region.gpa), min(gpa + length, region.end)
                if start < end:
                    found.append((start, end - start))
                    inside += end - start
            if inside < length:
                self._faults.report("balloon: pages outside RAM", "%#x at %#x", length, gpa)
        return found

    def _reported(self, chain: Chain) -> list[tuple[int, int]]:
        """The whole pages of the reported buffers, as (GPA, length)."""
        found = []
        for view in chain.writable:
            gpa = self._memory.gpa_of(view)
            start = align_up(gpa, 1 << PAGE_SHIFT)
            end = (gpa + len(view)) & -1 << PAGE_SHIFT
            if start < end:
                found.append((start, end - start))
        return found

    def _read_stats(self, queue: Virtqueue) -> bool:
        """Read the buffer, and keep it: handing it back asks the driver for the next."""
        chains = queue.pop_batch(BATCH)
        for chain in chains:
            if self._stats_head is not None:
                queue.push_batch([(self._stats_head, 0)])  # there should be one at a time
            self._stats_head = chain.head
            data = gather(chain.readable, 64 * _STATISTIC.size)
            whole = len(data) // _STATISTIC.size * _STATISTIC.size
            for tag, value in _STATISTIC.iter_unpack(data[:whole]):
                if tag < len(STATISTICS):
                    self._stats[STATISTICS[tag]] = value
        return bool(chains) or queue.enable_notifications()

    def _poll(self) -> None:
        self.guarded(self._return_stats)

    def _return_stats(self) -> bool:
        head, self._stats_head = self._stats_head, None
        if head is not None:
            self.queues[STATS_QUEUE].push_batch([(head, 0)])
        return True


class _Job:
    """A buffer whose pages are being given back: what is left to do, last first."""

    __slots__ = ("head", "ranges")

    def __init__(self, head: int, ranges: list[tuple[int, int]]) -> None:
        self.head = head
        self.ranges = ranges


def coalesce(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Page numbers, in any order and perhaps more than once, as few (GPA, length)."""
    found: list[tuple[int, int]] = []
    start = end = -1
    for page in sorted(set(pages)):
        if page != end:
            if start < end:
                found.append((start << PAGE_SHIFT, (end - start) << PAGE_SHIFT))
            start = page
        end = page + 1
    if start < end:
        found.append((start << PAGE_SHIFT, (end - start) << PAGE_SHIFT))
    return found
