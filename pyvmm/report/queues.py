"""One virtqueue's requests: how many, how deep, how long.

Latencies go into buckets, four to an octave, so a percentile is right to within a tenth or so.
"""

from __future__ import annotations

from pyvmm.report.timebins import Histogram, TimeBins

QUARTERS = 2
"""Bits after the leading one that tell buckets apart."""


def bucket(ns: int) -> int:
    """The number of the bucket for a latency."""
    if ns < 1 << QUARTERS:
        return ns
    octave = ns.bit_length() - 1 - QUARTERS
    return (octave << QUARTERS) + (ns >> octave)


def bucket_value(number: int) -> int:
    """The middle of a bucket, in nanoseconds."""
    if number < 1 << QUARTERS:
        return number
    octave = (number >> QUARTERS) - 1
    low = (number - (octave << QUARTERS)) << octave
    return low + (1 << octave >> 1)


class Queue:
    """What is known of one queue."""

    def __init__(self, bins: TimeBins, device: str, number: int) -> None:
        self.device = device
        self.number = number
        self.requests = 0
        self.timed = 0
        self.bytes = 0
        self.failed = 0
        self.doorbells = 0
        self.took = 0
        self.slowest = 0
        self.slowest_what = ""
        self.deepest = 0
        self.latencies: Histogram = {}
        self.latency_over_time = bins.histograms()
        self.depth_over_time = bins.maxima()
        self._bins = bins

    @property
    def name(self) -> str:
        return f"{self.device} queue {self.number}"

    def add(self, ns: int, size: int, took: int, depth: int, status: str, what: str) -> None:
        """Count a request. Buffers that were given for something to come, such as a packet, have
        no depth, and no latency: what came wasn't asked for."""
        self._bins.reach(ns)
        self.requests += 1
        self.bytes += size
        self.failed += status != "ok"
        if not depth:
            return
        self.timed += 1
        self.took += took
        if took >= self.slowest:
            self.slowest, self.slowest_what = took, what
        self.deepest = max(self.deepest, depth)
        index = ns >> self._bins.shift
        self.depth_over_time[index] = max(self.depth_over_time[index], depth)
        number = bucket(took)
        self.latencies[number] = self.latencies.get(number, 0) + 1
        histogram = self.latency_over_time[self._bins.histogram_index(ns)]
        histogram[number] = histogram.get(number, 0) + 1

    def percentile(self, percent: float) -> int:
        """The latency in nanoseconds that so many percent of the timed requests didn't exceed."""
        wanted = self.timed * percent / 100
        seen = 0
        for number, count in sorted(self.latencies.items()):
            seen += count
            if seen >= wanted:
                return min(bucket_value(number), self.slowest)
        return 0
