"""The page's words and tables, as HTML.

All text that comes from a trace goes through :func:`text`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pyvmm.report import summary
from pyvmm.report.chart_data import CHARTED_QUEUES
from pyvmm.report.queues import Queue
from pyvmm.report.summary import duration, percent, plural, size
from pyvmm.report.timebins import BINS, HISTOGRAM_BINS, TimeBins
from pyvmm.report.totals import (
    MAX_DEVICES,
    MAX_PHASES,
    MAX_QUEUES,
    MAX_REASONS,
    NOBODY,
    OTHERS,
    Device,
    Totals,
    printable,
)

HOTTEST = 20
LISTED_QUEUES = 24
LISTED_DEVICES = 12
LISTED_VECTORS = 32
LISTED_PHASES = 30


class Column(NamedTuple):
    """A table's column: its heading, and how its cells look (``number``, ``wide``, ``mono``)."""

    heading: str
    style: str = ""


class Cell(NamedTuple):
    """Markup that is safe already."""

    markup: str


def text(value: object) -> str:
    """Any text as it may stand in HTML."""
    return html.escape(printable(value, 2048))


def facts(totals: Totals) -> str:
    facts = [totals.started.replace("T", " ")] if totals.started else []
    facts += [plural(totals.cpus, "vCPU")]
    if totals.memory:
        facts.append(f"{size(totals.memory)} of memory")
    if totals.host:
        facts.append(f"on {totals.host}")
    words = text(" · ".join(facts))
    if totals.kernel:
        words += f"<br>Kernel: <code>{text(totals.kernel)}</code>"
    if totals.command_line:
        words += f"<br>Command line: <code>{text(totals.command_line)}</code>"
    return words


def notes(totals: Totals) -> str:
    notes = []
    if totals.damaged:
        lines = plural(totals.damaged, "line")
        notes.append(f"{lines} of the trace couldn't be read and {_are(totals.damaged)} left out.")
    if totals.end is None:
        notes.append(
            "The trace stops before the run's end: PyVMM was killed, or the file is cut. What"
            " came later isn't here."
        )
    elif dropped := totals.end.get("dropped"):
        notes.append(f"The tracer dropped {dropped} events, which aren't here.")
    if totals.unknown:
        events = plural(totals.unknown, "event")
        notes.append(f"{events} of a kind unknown to this PyVMM {_are(totals.unknown)} left out.")
    return "".join(f'<p class="note">{text(note)}</p>' for note in notes)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def tiles(totals: Totals) -> str:
    requests = sum(queue.requests for queue in totals.queues.values())
    interrupts = sum(device.interrupts for device in totals.devices.values())
    tiles = [
        (duration(totals.end_ns), "run time"),
        (f"{totals.exits:,}", "exits"),
        (duration(totals.took), "in PyVMM, for exits"),
        (f"{interrupts:,}", "interrupts"),
        (f"{requests:,}", "virtqueue requests"),
        (size(totals.resident) if totals.resident else "not known", "memory touched"),
    ]
    return "".join(f"<li><b>{text(value)}</b><span>{name}</span></li>" for value, name in tiles)


def _table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> str:
    """A table that scrolls sideways where it must. The first cell of a row is its heading."""
    heads = "".join(
        f'<th scope="col" class="{column.style}">{text(column.heading)}</th>' for column in columns
    )
    body = []
    for row in rows:
        cells = []
        for number, (cell, column) in enumerate(zip(row, columns, strict=True)):
            markup = cell.markup if isinstance(cell, Cell) else text(cell)
            tag = "td" if number else 'th scope="row"'
            cells.append(f'<{tag} class="{column.style}">{markup}</{tag[:2]}>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    if not body:
        return ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}">'
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _nothing(sentence: str) -> str:
    return f'<p class="empty">{html.escape(sentence)}</p>'


def _share(part: int, whole: int) -> Cell:
    """A percentage, with a bar."""
    width = round(60 * part / whole, 1) if whole else 0
    return Cell(
        f'{text(percent(part, whole))}<svg class="bar" viewBox="0 0 60 8" aria-hidden="true"'
        f' preserveAspectRatio="none"><rect width="60" height="8"/><rect class="f1" width="{width}"'
        ' height="8"/></svg>'
    )


def _rate(a_second: float) -> str:
    return f"{a_second:,.0f}" if a_second >= 10 else f"{a_second:.2g}"


def _who(name: str) -> str:
    return f"({name})" if name in (NOBODY, OTHERS) else name


def phases(totals: Totals) -> str:
    columns = (
        Column("Phase"), Column("Took", "number"), Column("Share", "number"),
        Column("Began at", "number"), Column("With", "wide aside"),
    )  # fmt: skip
    parts = summary.segments(totals)
    rows = [
        (part.title, duration(part.took), _share(part.took, totals.end_ns), duration(part.start),
         part.detail)
        for part in parts[:LISTED_PHASES]
    ]  # fmt: skip
    return _table("Phases", columns, rows) or _nothing("The trace has no phases in it.")


def silences(totals: Totals) -> str:
    columns = Column("Silent for", "number"), Column("From", "number"), Column("After", "wide mono")
    rows = [(duration(s.took), duration(s.ns), s.after) for s in totals.silences]
    return _table("The console's longest silences", columns, rows)


def reasons(totals: Totals) -> str:
    counted = sorted(((sum(bins), name) for name, bins in totals.reasons.items()), reverse=True)
    columns = Column("Reason"), Column("Exits", "number"), Column("Share", "number")
    rows = [(name, f"{count:,}", _share(count, totals.exits)) for count, name in counted]
    return _table("Exit reasons", columns, rows) or _nothing("The trace has no exits in it.")


def devices(totals: Totals) -> str:
    columns = (
        Column("Device"), Column("Exits", "number"), Column("Share", "number"),
        Column("Time in PyVMM", "number"), Column("Share", "number"), Column("An exit", "number"),
        Column("Slowest", "number"),
    )  # fmt: skip
    found = sorted((d for d in totals.devices.values() if d.exits), key=lambda d: -d.took)
    devices = [*found[:LISTED_DEVICES], *_rest(found[LISTED_DEVICES:])]
    rows = [
        (_who(d.name), f"{d.exits:,}", _share(d.exits, totals.exits), duration(d.took),
         _share(d.took, totals.took), duration(d.took / d.exits), duration(d.slowest))
        for d in devices
    ]  # fmt: skip
    return _table("Exits and time in PyVMM by device", columns, rows)


def _rest(devices: Sequence[Device]) -> list[Device]:
    """Those that are left, as one."""
    if len(devices) < 2:
        return list(devices)
    rest = Device(f"{len(devices)} others", TimeBins())
    for device in devices:
        rest.exits += device.exits
        rest.took += device.took
        rest.slowest = max(rest.slowest, device.slowest)
    return [rest]


def vcpus(totals: Totals) -> str:
    if len(totals.vcpus) < 2:
        return ""
    columns = (
        Column("vCPU"), Column("Exits", "number"), Column("Time in PyVMM", "number"),
        Column("Share of its time", "number"),
    )  # fmt: skip
    rows = [
        (number, f"{exits:,}", duration(took), _share(min(took, totals.end_ns), totals.end_ns))
        for number, (exits, took) in sorted(totals.vcpus.items())[:64]
    ]
    return _table("vCPUs", columns, rows)


def registers(totals: Totals) -> str:
    columns = (
        Column("Register"), Column("Exits", "number"), Column("Share", "number"), Column("Access"),
        Column("Time in PyVMM", "number"), Column("An exit", "number"), Column("Slowest", "number"),
    )  # fmt: skip
    hottest = sorted(totals.sites.items(), key=lambda item: -item[1].count)[:HOTTEST]
    rows = [
        (_register(site.device, register or reason), f"{site.count:,}",
         _share(site.count, totals.exits), f"{reason} {access}", duration(site.took),
         duration(site.took / site.count), duration(site.slowest))
        for (reason, _, register, access), site in hottest
    ]  # fmt: skip
    return _table(_hottest("registers", rows), columns, rows) or _nothing(
        "The trace has no exits in it."
    )


def _register(device: Device, register: str) -> Cell:
    """Its name, and whose it is."""
    return Cell(f'{text(register)} <span class="soft">{text(_who(device.name))}</span>')


def addresses(totals: Totals) -> str:
    found: dict[int, list[Any]] = {}
    for (rip, device), (count, took) in totals.addresses.items():
        row = found.setdefault(rip, [0, 0, []])
        row[0] += count
        row[1] += took
        row[2].append((count, device))
    columns = (
        Column("Symbol" if totals.symbols else "Address", "mono"), Column("Exits", "number"),
        Column("Share", "number"), Column("For"), Column("Time in PyVMM", "number"),
        Column("Address", "mono"),
    )  # fmt: skip
    hottest = sorted(found.items(), key=lambda item: -item[1][0])[:HOTTEST]
    rows = [
        (totals.symbols.get(rip) or f"{rip:#x}", f"{count:,}", _share(count, totals.exits),
         _for_devices(devices), duration(took), f"{rip:#x}")
        for rip, (count, took, devices) in hottest
    ]  # fmt: skip
    if not rows:
        return _nothing("The trace has no exits in it.")
    caption = _hottest("guest addresses", rows)
    if totals.symbols:
        return _table(caption, columns, rows)
    hint = "With --symbols vmlinux, when the run is traced, they have names."
    return _table(caption, columns[:-1], [row[:-1] for row in rows]) + _nothing(hint)


def _hottest(what: str, rows: Sequence[object]) -> str:
    return f"The {len(rows)} hottest {what}" if len(rows) == HOTTEST else f"All {what} with exits"


def _for_devices(devices: list[tuple[int, Device]]) -> str:
    ranked = sorted(devices, key=lambda item: -item[0])
    names = [_who(device.name) for _, device in ranked[:2]]
    return ", ".join(names) + (f" and {len(ranked) - 2} more" if len(ranked) > 2 else "")


def interrupts(totals: Totals) -> str:
    total = sum(device.interrupts for device in totals.devices.values())
    counted = sorted(
        ((n, d.name, vector) for d in totals.devices.values() for vector, n in d.vectors.items()),
        reverse=True,
    )
    columns = (
        Column("Device"), Column("By"), Column("Interrupts", "number"), Column("Share", "number"),
        Column("A second", "number"),
    )  # fmt: skip
    seconds = max(totals.end_ns, 1) / 1e9
    rows = [
        (_who(name), vector, f"{count:,}", _share(count, total), _rate(count / seconds))
        for count, name, vector in counted[:LISTED_VECTORS]
    ]
    return _table("Interrupts by device and vector", columns, rows) or _nothing(
        "The trace has no interrupts in it."
    )


def queues(totals: Totals) -> str:
    columns = (
        Column("Queue"), Column("Requests", "number"), Column("Median", "number"),
        Column("90 %", "number"), Column("99 %", "number"), Column("Slowest", "number"),
        Column("which was"), Column("Data", "number"), Column("Deepest", "number"),
        Column("Doorbells", "number"), Column("Failed", "number"),
    )  # fmt: skip
    rows = [
        (queue.name, f"{queue.requests:,}", *_latencies(queue), size(queue.bytes),
         queue.deepest or "", f"{queue.doorbells:,}", f"{queue.failed:,}")
        for queue in totals.ranked_queues()[:LISTED_QUEUES]
    ]  # fmt: skip
    return _table("Requests and their latency, by queue", columns, rows) or _nothing(
        "The trace has no virtqueue requests in it."
    )


def _latencies(queue: Queue) -> Iterable[str]:
    if not queue.timed:
        return [""] * 4 + ["no latency: it came by itself"]
    shown = (*(queue.percentile(p) for p in (50, 90, 99)), queue.slowest)
    return [*map(duration, shown), queue.slowest_what]


def memory(totals: Totals) -> str:
    if not totals.resident:
        return _nothing("The trace has no samples of memory in it.")
    most = f"At most {size(totals.resident)}"
    of = f" of {size(totals.memory)} ({percent(totals.resident, totals.memory)})"
    return f"<p>{text(most + (of if totals.memory else ''))}.</p>"


def about(totals: Totals) -> str:
    notes = [
        f"{plural(totals.events, 'event')} in the trace. Time is in bins of "
        f"{duration(totals.bins.width)}; latencies over time in bins of "
        f"{duration(totals.bins.width * (BINS // HISTOGRAM_BINS))}. "
        "Percentiles are right to within a tenth.",
        "Time in PyVMM is from an exit to the guest's going on. What device threads do beside"
        " that is in the latency of the requests.",
        "Interrupts that KVM makes by itself in the host's kernel, those of the local timers and"
        " between vCPUs, aren't in a trace.",
        *_cuts(totals),
    ]
    return "<ul>" + "".join(f"<li>{text(note)}</li>" for note in notes) + "</ul>"


def _cuts(totals: Totals) -> list[str]:
    """What isn't on the page for want of room."""
    kept = len(totals.first_lines) + len(totals.last_lines)
    queues = sum(queue.timed > 0 for queue in totals.queues.values())
    parts = len(summary.segments(totals))
    cuts = (
        (totals.lines > kept, f"Of {totals.lines:,} console lines the first "
         f"{len(totals.first_lines):,} and the last {len(totals.last_lines):,} are here."),
        (totals.forgotten_sites, f"{plural(totals.forgotten_sites, 'exit')} at rare registers "
         "count in the charts, not in the table of registers."),
        (totals.forgotten_addresses, f"{plural(totals.forgotten_addresses, 'exit')} at rare "
         "addresses count in the charts, not in the table of addresses."),
        (len(totals.devices) > MAX_DEVICES, f"Devices after the first {MAX_DEVICES} count as "
         f"“{OTHERS}”."),
        (len(totals.reasons) > MAX_REASONS, f"Exit reasons after the first {MAX_REASONS} count as "
         f"“{OTHERS}”."),
        (len(totals.queues) > MAX_QUEUES, f"Queues after the first {MAX_QUEUES} count as "
         f"“{OTHERS}”."),
        (queues > CHARTED_QUEUES, f"Of {queues} queues the {CHARTED_QUEUES} busiest have charts."),
        (parts > LISTED_PHASES, f"Of {parts} phases the first {LISTED_PHASES} are in the table."),
        (len(totals.phases) >= MAX_PHASES, f"Phases after the first {MAX_PHASES} aren't here."),
    )  # fmt: skip
    return [sentence for cut, sentence in cuts if cut]
