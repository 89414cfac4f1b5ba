"""The machine as a guest sees it: exits, doorbells and disk requests, measured by our own guest.

guests/asm/bench.c is the same binary under every VMM. It counts what it gets done in a fixed time
by the time-stamp counter, in ring 3, which runs at full speed even where KVM is a software one. It
polls for completions, so one of the host's cores is its own. The disk's image is in memory
(/dev/shm) and has been written once, so that VMMs are compared and not disks.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from guests.asm.build import build
from tests.bench.table import LESS, MORE, Row
from tests.bench.vmm import BenchError, Guest, Line, Vmm, installed, started, until

ROUNDS = 7
SERIES_SECONDS = 0.15
DISK_MIB = 512
SHARED_MEMORY = Path("/dev/shm")


class Series(NamedTuple):
    """What one series of the guest is called in the table, and a count's worth in its unit."""

    title: str
    unit: str
    worth: float = 1


EXITS = {
    "port": Series("exits: write to a port, ring 3", "k/s", 1e-3),
    "mmio": Series("exits: read of a virtio register, ring 3", "k/s", 1e-3),
    "doorbell": Series("doorbells of an idle queue (ioeventfd)", "k/s", 1e-3),
}
DISK = {
    "read-1m": Series("disk: sequential read, 1 MiB", "MB/s", 1.048576),
    "write-1m": Series("disk: sequential write, 1 MiB", "MB/s", 1.048576),
    "read-4k-1": Series("disk: random read, 4 KiB, depth 1", "k/s", 1e-3),
    "write-4k-1": Series("disk: random write, 4 KiB, depth 1", "k/s", 1e-3),
    "read-4k-32": Series("disk: random read, 4 KiB, depth 32", "k/s", 1e-3),
    "write-4k-32": Series("disk: random write, 4 KiB, depth 32", "k/s", 1e-3),
}
BUSY = {
    "busy-50": Series("exit while the disk is busy, median", "us", 1e6),
    "busy-99": Series("exit while the disk is busy, 99th percentile", "us", 1e6),
    "busy-100": Series("exit while the disk is busy, the slowest", "us", 1e6),
}


class Report(NamedTuple):
    """What a run of the guest said: counts and ticks by series, and ticks a second."""

    series: dict[str, tuple[int, int]]
    frequency: float

    def rate(self, name: str) -> float:
        """Of the series' counts, a second."""
        count, ticks = self.series[name]
        return count / ticks * self.frequency

    def seconds(self, name: str) -> float:
        """What a series says that counts ticks."""
        return self.series[name][0] / self.frequency


def nominal_frequency() -> float:
    """About how fast the time-stamp counter goes; the guest's clock is measured, see below."""
    found = re.search(r"cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text())
    return float(found[1]) * 1e6 if found else 2e9


def parse(lines: Sequence[Line]) -> Report:
    """Make sense of the guest's lines."""
    series, marks = {}, {}
    for at, text in lines:
        if text.startswith("FAIL"):
            raise BenchError(text)
        if found := re.fullmatch(r"([\w-]+): ([0-9a-f]+) ([0-9a-f]+)", text):
            series[found[1]] = int(found[2], 16), int(found[3], 16)
        elif found := re.fullmatch(r"(began|ended): ([0-9a-f]+)", text):
            marks[found[1]] = at, int(found[2], 16)
    (began, first), (ended, last) = marks["began"], marks["ended"]
    return Report(series, (last - first) / (ended - began))


def run(vmm: Vmm, guest: Guest) -> Report:
    """One run, to its end."""
    with started(vmm, guest) as (_, lines):
        return parse(until(lines, "^ended: "))


@contextlib.contextmanager
def disk_image(mib: int = DISK_MIB) -> Iterator[Path]:
    """An image in memory, written once."""
    directory = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.NamedTemporaryFile(dir=directory, prefix="pyvmm-bench-") as file:
        for _ in range(mib):
            file.write(b"\xa5" * (1 << 20))
        file.flush()
        yield Path(file.name)


def rows(reports: dict[str, list[Report]], series: dict[str, Series], better: str) -> list[Row]:
    """The table's rows for these series. One clock for all: it is the same counter."""
    frequency = statistics.median(report.frequency for runs in reports.values() for report in runs)

    def value(report: Report, name: str, worth: float) -> float:
        report = report._replace(frequency=frequency)
        return worth * (report.rate(name) if better == MORE else report.seconds(name))

    return [
        Row(
            each.title,
            each.unit,
            better,
            {vmm: [value(r, name, each.worth) for r in runs] for vmm, runs in reports.items()},
        )
        for name, each in series.items()
    ]


def measure(words: str, rounds: int) -> dict[str, list[Report]]:
    """Run the guest with these words in each VMM, in turns."""
    ticks = int(nominal_frequency() * SERIES_SECONDS)
    vmms = installed(elf=True)
    reports: dict[str, list[Report]] = {vmm.name: [] for vmm in vmms}
    with disk_image() as image:
        guest = Guest(build() / "bench", f"ticks={ticks} {words}", disks=(image,))
        for _ in range(rounds):
            for vmm in vmms:
                reports[vmm.name].append(run(vmm, guest))
    return reports


def exits(rounds: int = ROUNDS) -> list[Row]:
    """Exits and doorbells."""
    return rows(measure("exits", rounds), EXITS, MORE)


def disk(rounds: int = ROUNDS) -> list[Row]:
    """Disk requests, and what they do to the exits of a CPU."""
    reports = measure("disk busy", rounds)
    return rows(reports, DISK, MORE) + rows(reports, BUSY, LESS)
