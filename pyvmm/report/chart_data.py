"""What the scripts of the page draw from, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyvmm.report import summary
from pyvmm.report.queues import Queue
from pyvmm.report.timebins import Series
from pyvmm.report.totals import OTHERS, Device, Totals, printable

COLOURS = 6
"""As many devices or reasons have a colour of their own."""

CHARTED_QUEUES = 8


def chart_data(totals: Totals) -> dict[str, Any]:
    """What the scripts draw from."""
    used = (totals.end_ns >> totals.bins.shift) + 1
    ranked = [device for device in totals.ranked_devices() if device.name != OTHERS]
    colours = {device.name: number for number, device in enumerate(ranked[:COLOURS], 1)}
    reasons = sorted(totals.reasons.items(), key=lambda item: (-sum(item[1]), item[0]))
    own = [item for item in reasons if item[0] != OTHERS][:COLOURS]
    return {
        "end": max(totals.end_ns, 1),
        "width": totals.bins.width,
        "vcpus": max(len(totals.vcpus), 1),
        "phases": [
            {"phase": s.phase, "title": s.title, "start": s.start, "end": s.end, "detail": s.detail}
            for s in summary.segments(totals)
        ],
        "console": [[line.ns, line.text] for line in totals.console_lines],
        "consoleLines": totals.lines,
        "reasons": _stack(
            [(name, number, bins) for number, (name, bins) in enumerate(own, 1)]
            + [(OTHERS, 0, bins) for name, bins in reasons if (name, bins) not in own],
            used,
        ),
        "devices": _by_device(totals, colours, used, lambda device: device.exit_bins),
        "took": _by_device(totals, colours, used, lambda device: device.took_bins),
        "interrupts": _by_device(totals, colours, used, lambda device: device.interrupt_bins),
        "queues": [_queue_data(queue, used) for queue in charted_queues(totals)],
        "memory": _encoded([n >> 10 for n in totals.resident_over_time[:used]]),
        "memorySize": totals.memory,
    }


def _by_device(
    totals: Totals, colours: dict[str, int], used: int, bins_of: Callable[[Device], Series]
) -> list[Any]:
    rows = [
        (device.name, colours[device.name], bins_of(device))
        if device.name in colours
        else (OTHERS, 0, bins_of(device))
        for device in totals.devices.values()
    ]
    return _stack(sorted(rows, key=lambda row: row[1] or COLOURS + 1), used)


def _stack(rows: Sequence[tuple[str, int, Series]], used: int) -> list[Any]:
    """Series for a stacked chart; those without a colour are one."""
    merged: dict[int, tuple[str, list[int]]] = {}
    for name, colour, bins in rows:
        if not any(bins):
            continue
        if colour in merged:
            sums = merged[colour][1]
            sums[:] = map(sum, zip(sums, bins[:used], strict=True))
        else:
            merged[colour] = (name, bins[:used])
    return [
        {"name": printable(name), "colour": colour, "bins": _encoded(bins)}
        for colour, (name, bins) in merged.items()
    ]


def charted_queues(totals: Totals) -> list[Queue]:
    """The busiest of those whose requests take time."""
    return [queue for queue in totals.ranked_queues() if queue.timed][:CHARTED_QUEUES]


def _queue_data(queue: Queue, used: int) -> dict[str, Any]:
    histograms = [
        [index, *(n for pair in sorted(histogram.items()) for n in pair)]
        for index, histogram in enumerate(queue.latency_over_time)
        if histogram
    ]
    return {
        "name": printable(queue.name),
        "depth": _encoded(queue.depth_over_time[:used]),
        "latency": histograms,
    }


def _encoded(bins: Sequence[int]) -> list[int]:
    """Bins with each run of n zeros as -n."""
    encoded: list[int] = []
    for value in bins:
        if value:
            encoded.append(value)
        elif encoded and encoded[-1] < 0:
            encoded[-1] -= 1
        else:
            encoded.append(-1)
    return encoded
