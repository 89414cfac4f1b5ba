"""The tracer of a run: for its traces, and for its report if there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from pyvmm.config import MachineConfig
from pyvmm.trace.config import TraceConfig, TraceFilter
from pyvmm.trace.tracer import Tracer


def open_tracer(
    config: MachineConfig,
    traces: Sequence[TraceConfig],
    filters: Sequence[TraceFilter],
    *,
    symbols: str | None,
    report: str | None,
    outputs: Iterable[str | None],
    say: Callable[[str], None],
) -> Tracer:
    """A tracer that writes ``traces`` and, when it is closed, the page ``report``, which is not to
    be one of the run's other ``outputs``. The rest is as for :meth:`Tracer.open`."""
    inputs = config.images
    if report is None:
        return Tracer.open(traces, filters, symbols=symbols, inputs=inputs, say=say)
    from pyvmm.report.of_run import RunReport  # here, because few runs want one

    page = RunReport(report, (*inputs, *outputs, *(trace.path for trace in traces)))
    everything = [*traces, TraceConfig(page.trace, "jsonl")]
    tracer = Tracer.open(everything, filters, symbols=symbols, inputs=inputs, say=say)
    tracer.on_closed = partial(page.write, say)
    return tracer
