"""Time in bins: how often, how long, how much, over a run whose length isn't known beforehand.

There are always :data:`BINS` of them, and each is a power of two nanoseconds wide. When an event
comes that lies beyond the last one, neighbours are merged in pairs, everywhere, and all are twice
as wide. So memory is bounded, and at the end between half and all of them are in use.
"""

from __future__ import annotations

from collections.abc import Callable

BINS = 8192

FIRST_SHIFT = 14
"""The first width, 16 us: little enough to see single exits."""

HISTOGRAM_BINS = 512
"""A bin with a histogram is bigger, so there are fewer."""

_HISTOGRAM_SHIFT = (BINS // HISTOGRAM_BINS).bit_length() - 1

Series = list[int]
Histogram = dict[int, int]


class TimeBins:
    """The width of the bins, and all series that are binned by it."""

    def __init__(self) -> None:
        self.shift = FIRST_SHIFT
        self.top = BINS << FIRST_SHIFT
        self._folds: list[Callable[[], None]] = []

    @property
    def width(self) -> int:
        """Of a bin, in nanoseconds."""
        return 1 << self.shift

    def sums(self) -> Series:
        """A series whose bins are added up."""
        series = [0] * BINS

        def fold() -> None:
            pairs = zip(series[::2], series[1::2], strict=True)
            series[:] = [a + b for a, b in pairs] + [0] * (BINS // 2)

        self._folds.append(fold)
        return series

    def maxima(self) -> Series:
        """A series whose bins have the greatest value."""
        series = [0] * BINS

        def fold() -> None:
            series[:] = [*map(max, series[::2], series[1::2])] + [0] * (BINS // 2)

        self._folds.append(fold)
        return series

    def histograms(self) -> list[Histogram]:
        """A series whose bins are histograms (:data:`HISTOGRAM_BINS` of them)."""
        series: list[Histogram] = [{} for _ in range(HISTOGRAM_BINS)]

        def fold() -> None:
            for first, second in zip(series[::2], series[1::2], strict=True):
                for value, count in second.items():
                    first[value] = first.get(value, 0) + count
            series[:] = series[::2] + [{} for _ in range(HISTOGRAM_BINS // 2)]

        self._folds.append(fold)
        return series

    def reach(self, ns: int) -> None:
        """Make the bins so wide that ``ns`` is in one."""
        while ns >= self.top:
            for fold in self._folds:
                fold()
            self.shift += 1
            self.top <<= 1

    def histogram_index(self, ns: int) -> int:
        """Which of a series of histograms ``ns`` is in."""
        return ns >> self.shift >> _HISTOGRAM_SHIFT

    def spread(self, series: Series, start: int, took: int) -> None:
        """Add a span of time to a series of sums, to each bin what lies in it."""
        end = start + took
        self.reach(end)
        shift = self.shift
        first, last = start >> shift, end >> shift
        if first == last:
            series[first] += took
            return
        series[first] += ((first + 1) << shift) - start
        for index in range(first + 1, last):
            series[index] += 1 << shift
        series[last] += end - (last << shift)
