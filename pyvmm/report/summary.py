"""Answers "where did the time go?" and "who made those exits?" in a few sentences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pyvmm.report.totals import NOBODY, Device, Totals, printable

NBSP = "\u00a0"
"""Keeps a number and its unit in one line."""

PHASE_TITLES = {
    "setup": "PyVMM sets up",
    "entry": "guest, silent",
    "console": "kernel boots",
    "init": "user space",
    "shutdown": "shutdown",
    "reset": "reset",
    "end": "PyVMM tears down",
}
"""What follows an event of that kind."""

IN_A_SENTENCE = {
    "setup": "PyVMM's set-up",
    "entry": "the guest before its first console line",
    "console": "the kernel from its first line to user space",
    "init": "user space",
    "shutdown": "the shutdown",
    "reset": "resets",
    "end": "PyVMM's tearing down",
}


class Segment(NamedTuple):
    """A part of the run: from one phase event to the next."""

    phase: str
    title: str
    start: int
    end: int
    detail: str

    @property
    def took(self) -> int:
        return self.end - self.start


def segments(totals: Totals) -> list[Segment]:
    """The run's parts, in order."""
    boots_linux = any(phase.phase == "init" for phase in totals.phases)
    ends = [*(phase.ns for phase in totals.phases[1:]), totals.end_ns]
    found = []
    for phase, end in zip(totals.phases, ends, strict=False):
        if phase.phase == "end" and phase.ns >= end:
            continue
        title = PHASE_TITLES.get(phase.phase, phase.phase)
        if phase.phase == "console" and not boots_linux:
            title = "guest, from its first line"
        found.append(Segment(phase.phase, title, phase.ns, max(end, phase.ns), phase.detail))
    return found


def answers(totals: Totals) -> tuple[str, str]:
    """Where the time went, and who made the exits."""
    time = [*_time(totals), *_share(totals), *_silence(totals)]
    return " ".join(time), _exits(totals)


def _ending(totals: Totals) -> str:
    """How long the run took, and how it ended."""
    took = duration(totals.end_ns)
    if totals.end is None:
        return f"The trace stops after {took}, before the run's end."
    reason, detail = (printable(totals.end.get(name) or "") for name in ("reason", "detail"))
    how = ": ".join(filter(None, (reason, detail))) or "for no known reason"
    return f"The run took {took} and ended so: {how}."


def _time(totals: Totals) -> list[str]:
    total = totals.end_ns
    took: dict[str, int] = {}
    for segment in segments(totals):
        took[segment.phase] = took.get(segment.phase, 0) + segment.took
    found = [_ending(totals)]
    if not took or not total:
        return found
    names = dict(IN_A_SENTENCE)
    if "init" not in took:
        names["console"] = "the guest after its first console line"
    longest = max(took, key=lambda phase: took[phase])
    rest = [
        f"{names.get(phase, phase)} {duration(ns)}"
        for phase, ns in took.items()
        if phase != longest and ns * 200 >= total
    ][:5]
    most = f"{names.get(longest, longest)}: {duration(took[longest])}"
    sentence = f"Most of it went to {most} ({percent(took[longest], total)})"
    return [*found, f"{sentence}; {listed(rest)}." if rest else f"{sentence}."]


def _share(totals: Totals) -> list[str]:
    if not totals.exits:
        return []
    vcpus = max(len(totals.vcpus), 1)
    whose = "the vCPU's time" if vcpus == 1 else f"the {vcpus} vCPUs' time"
    available = max(totals.end_ns * vcpus, 1)
    busiest = max(totals.devices.values(), key=lambda device: device.took)
    name = printable(busiest.name)
    most = f"{percent(busiest.took, totals.took)} of that for {name}"
    return [
        f"PyVMM took {duration(totals.took)}, {percent(totals.took, available)} of {whose}, to"
        f" answer {plural(totals.exits, 'exit')}, {most}; for the rest the guest ran or was idle."
    ]


def _exits(totals: Totals) -> str:
    devices = sorted(totals.devices.values(), key=lambda device: -device.exits)
    top = [device for device in devices if device.exits * 20 >= totals.exits > 0][:3]
    if not top:
        return "The trace has no exits in it."
    parts = []
    for device in top:
        who = "no device" if device.name == NOBODY else printable(device.name)
        share = percent(device.exits, totals.exits)
        parts.append(f"{who} ({share}, {_main_register(totals, device)})")
    return f"The exits were for {listed(parts)}. {_main_address(totals)}"


def _main_register(totals: Totals, device: Device) -> str:
    """What made most of the device's exits."""
    own = [(site.count, key) for key, site in totals.sites.items() if site.device is device]
    if not own:
        return "at many registers"
    reason, _, register, access = max(own)[1]
    what = f"{access}s of {register}" if register and access else register or reason
    return f"mostly {printable(what)}"


def _main_address(totals: Totals) -> str:
    counts: dict[int, int] = {}
    for (rip, _), (count, _) in totals.addresses.items():
        counts[rip] = counts.get(rip, 0) + count
    if not counts:
        return ""
    rip = max(counts, key=lambda rip: counts[rip])
    where = printable(totals.symbols.get(rip) or f"{rip:#x}")
    return (
        f"The guest's code that made the most is at {where} ({percent(counts[rip], totals.exits)})."
    )


def _silence(totals: Totals) -> list[str]:
    if not totals.silences or totals.silences[0].took * 20 < totals.end_ns:
        return []
    silence = totals.silences[0]
    line = " ".join(silence.after.split())
    quote = line if len(line) <= 80 else line[:79] + "…"
    return [f"The console's longest silence, {duration(silence.took)}, came after “{quote}”."]


def listed(parts: Iterable[str]) -> str:
    """``a, b and c``."""
    *head, last = parts
    return f"{', '.join(head)} and {last}" if head else last


def plural(number: int, noun: str) -> str:
    """``1 exit``, ``12,000 exits``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(part: float, whole: float) -> str:
    """``12 %``, with a digit more for little."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.1:
        return f"<{NBSP}0.1{NBSP}%"
    return f"{share:.{1 if 0 < share < 9.95 else 0}f}{NBSP}%"


def duration(ns: float) -> str:
    """``812 ns``, ``12.3 µs``, ``41 ms``, ``3.02 s``."""
    for scale, unit in ((1, "ns"), (1e3, "µs"), (1e6, "ms")):
        value = ns / scale
        if value < 999.5:
            return f"{value:.{0 if scale == 1 or value >= 99.5 else 1}f}{NBSP}{unit}"
    return f"{ns / 1e9:.2f}{NBSP}s"


def size(count: float) -> str:
    """Bytes as ``412 KiB``, ``1.5 MiB``."""
    for scale, unit in ((1, "bytes"), (1 << 10, "KiB"), (1 << 20, "MiB")):
        value = count / scale
        if value < 1023.5:
            return f"{value:.{0 if scale == 1 or value >= 99.5 else 1}f}{NBSP}{unit}"
    return f"{count / (1 << 30):.1f}{NBSP}GiB"
