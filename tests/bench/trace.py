"""What a trace costs: the exit loop of exits.py with and without one, by its format.

The guest does nothing but exits, one after the other, so this is the worst case: it waits for the
trace's writer all the time. The trace goes to a file on a tmpfs.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guests.asm.build import build
from pyvmm.bus import Bus
from pyvmm.kvm import Kvm, Vcpu
from pyvmm.machine import SWITCH_INTERVAL
from pyvmm.trace import hooks
from pyvmm.trace.config import FORMATS, TraceConfig
from pyvmm.trace.decode import EventDecoder
from pyvmm.trace.recorder import Record, Recorder
from pyvmm.trace.tracer import Output
from pyvmm.vcpu import Handlers
from tests.bench.exits import ROUNDS, SERIES, Costs, run_pyvmm
from tests.bench.table import LESS, PYVMM, Row

SHOWN = (0, 3)
"""Of the series: a port write and an MMIO load, in ring 0."""
WITHOUT = "no trace"
HEADER = {
    "trace": "pyvmm",
    "version": 1,
    "started": "",
    "kernel": "exits",
    "command_line": "",
    "cpus": 1,
    "memory": 1 << 20,
    "host": "",
}


class Trace:
    """What a tracer does for a vCPU, for buses without a board."""

    def __init__(self, format_name: str, path: Path) -> None:
        fd = path.open("wb", buffering=0)
        self._file = fd
        self._output = Output(TraceConfig(str(path), format_name), fd.fileno(), print)
        self._output.write(self._output.format.begin(dict(HEADER)))
        self._decoder = EventDecoder(time.monotonic_ns())
        self.recorder = Recorder(self._write, lambda: None, print)
        self.recorder.start()

    def _write(self, records: Sequence[Record]) -> None:
        events: list[dict[str, Any]] = []
        for record in records:
            events += self._decoder.events(record)
        self._output.write(self._output.format.events(events))

    def exits(self, vcpu: Vcpu, handlers: Handlers, pio: Bus, mmio: Bus) -> Handlers:
        return hooks.trace_exits(self.recorder, vcpu, handlers, pio, mmio)

    def close(self) -> None:
        self.recorder.stop()
        self._file.close()


def traced(kvm: Kvm, guest: bytes, format_name: str) -> Costs:
    """The costs with a trace in that format."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        trace = Trace(format_name, Path(directory) / "trace")
        with contextlib.closing(trace):
            return run_pyvmm(kvm, guest, trace.exits)


def trace(rounds: int = ROUNDS) -> list[Row]:
    """One exit and back, in microseconds, traced and not."""
    guest = (build() / "exits").read_bytes()
    costs: dict[str, list[Costs]] = {name: [] for name in (WITHOUT, *FORMATS)}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    kvm = Kvm()
    for _ in range(rounds):
        costs[WITHOUT].append(run_pyvmm(kvm, guest))
        for name in FORMATS:
            costs[name].append(traced(kvm, guest, name))
    kvm.close()
    sys.setswitchinterval(interval)
    return [
        Row(
            f"one exit, traced as {name}: {SERIES[number]}",
            "us",
            LESS,
            {
                PYVMM: [each[number] / 1000 for each in costs[name]],
                WITHOUT: [each[number] / 1000 for each in costs[WITHOUT]],
            },
        )
        for name in FORMATS
        for number in SHOWN
    ]
