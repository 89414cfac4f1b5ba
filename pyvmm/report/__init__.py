"""The report: a trace in JSON lines becomes one HTML page that needs nothing else.

``trace_file`` reads the trace, ``totals`` adds it up in bounded memory (``timebins`` and
``queues`` are its parts), ``summary`` says the main things in sentences, ``page`` writes the page.
The page's own parts are ``page.html``, ``report.css`` and the ``.js`` files beside this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.report.totals import Totals

__all__ = ["read_totals", "write_report"]


def read_totals(trace: str) -> Totals:
    """Add up the trace at the path ``trace``; PyvmmError if it isn't one."""
    from pyvmm.report.totals import Totals
    from pyvmm.report.trace_file import TraceFile

    with TraceFile(trace) as file:
        totals = Totals(file.header)
        totals.add_all(file)
    return totals


def write_report(trace: str, output: str) -> Totals:
    """Write the page about ``trace`` to ``output`` and return what it is made from."""
    from pyvmm.report.page import write_page

    totals = read_totals(trace)
    write_page(totals, output)
    return totals
