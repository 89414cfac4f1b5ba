"""Adds up a trace: all that the page shows, in memory that doesn't grow with the trace.

Every table has a bound. A hot register or address that isn't in the hotter half when its table is
full is forgotten, and how many exits went that way is said on the page, like all that was cut.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pyvmm.report.queues import Queue
from pyvmm.report.timebins import Series, TimeBins

if TYPE_CHECKING:
    from pyvmm.report.trace_file import TraceFile

MAX_NS = 1 << 53
"""A hundred days, and the greatest integer that JavaScript counts right."""

MAX_TABLE = 1 << 16
MAX_DEVICES = 64
MAX_REASONS = 32
MAX_VCPUS = 256
MAX_QUEUES = 64
MAX_PHASES = 200
MAX_NAME = 200
FIRST_LINES, LAST_LINES = 3000, 1000
MAX_LINE = 300

OTHERS = "others"
NOBODY = "no device"

_UNPRINTABLE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # terminal escape sequences: colours and such
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # a window's title
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f]"
    r"|[\u200b-\u200f\u2028-\u202e\u2060-\u206f]"  # invisible, or turns text about
    r"|[\ufeff\ufff9-\ufffb\ufffe\uffff]"
    r"|[\ud800-\udfff]"
)


def printable(text: object, limit: int = MAX_NAME) -> str:
    """Text without what would steer a terminal or a browser's layout, and not too long."""
    cut = str(text)[: 8 * limit]
    clean = _UNPRINTABLE.sub(lambda m: "" if m[0][0] in "\x1b\r" else "\ufffd", cut)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


class Site:
    """A kind of exit: reason, device, register, direction. Its counts, and the series it is in."""

    __slots__ = ("count", "device", "device_bins", "reason_bins", "slowest", "took", "took_bins")

    def __init__(self, device: Device, reason_bins: Series) -> None:
        self.count = 0
        self.took = 0
        self.slowest = 0
        self.device = device
        self.reason_bins = reason_bins
        self.device_bins = device.exit_bins
        self.took_bins = device.took_bins


class Device:
    """What is known of one device."""

    def __init__(self, name: str, bins: TimeBins) -> None:
        self.name = name
        self.exits = 0
        self.took = 0
        self.slowest = 0
        self.interrupts = 0
        self.vectors: dict[str, int] = {}
        self.exit_bins = bins.sums()
        self.took_bins = bins.sums()
        self.interrupt_bins = bins.sums()

    def add(self, site: Site) -> None:
        """Count a kind of exit that was this device's."""
        self.exits += site.count
        self.took += site.took
        self.slowest = max(self.slowest, site.slowest)


class Phase:
    """Something that happened once, and begins a part of the run."""

    def __init__(self, ns: int, phase: str, detail: str) -> None:
        self.ns = ns
        self.phase = phase
        self.detail = detail


class ConsoleLine:
    """What the guest said, and when."""

    __slots__ = ("console", "ns", "text")

    def __init__(self, ns: int, console: str, text: str) -> None:
        self.ns = ns
        self.console = console
        self.text = text


class Silence:
    """How long the console said nothing after a line."""

    __slots__ = ("after", "ns", "took")

    def __init__(self, took: int, ns: int, after: str) -> None:
        self.took = took
        self.ns = ns
        self.after = after


class Totals:
    """The sums over a trace. Feed it with :meth:`add_all`; then its attributes are the results."""

    def __init__(self, header: dict[str, Any]) -> None:
        self.kernel = printable(header.get("kernel") or "")
        self.command_line = printable(header.get("command_line") or "", 2048)
        self.started = printable(header.get("started") or "")
        self.host = printable(header.get("host") or "")
        self.cpus = _number(header.get("cpus"), 1)
        self.memory = _number(header.get("memory"), 0)
        self.bins = TimeBins()
        self.events = 0
        self.damaged = 0
        self.unknown = 0
        self.end_ns = 0
        self.end: dict[str, Any] | None = None
        self.exits = 0
        self.took = 0
        self.vcpus: dict[int, list[int]] = {}
        self.devices: dict[str, Device] = {}
        self.reasons: dict[str, Series] = {}
        self.queues: dict[tuple[str, int], Queue] = {}
        self.sites: dict[tuple[str, str, str, str], Site] = {}
        self.forgotten_sites = 0
        self.addresses: dict[tuple[int, Device], list[int]] = {}
        self.forgotten_addresses = 0
        self.symbols: dict[int, str] = {}
        self.phases: list[Phase] = []
        self.first_lines: list[ConsoleLine] = []
        self.last_lines: deque[ConsoleLine] = deque(maxlen=LAST_LINES)
        self.lines = 0
        self.silences: list[Silence] = []
        self.resident = 0
        self.resident_over_time = self.bins.maxima()
        self._last_line: ConsoleLine | None = None
        self._readers = {
            "exit": self._exit,
            "request": self._request,
            "interrupt": self._interrupt,
            "doorbell": self._doorbell,
            "console": self._console,
            "phase": self._phase,
            "memory": self._memory,
            "end": self._end,
        }

    def add_all(self, events: TraceFile | Iterable[dict[str, Any]]) -> None:
        """Count events. Those that make no sense count as damaged lines."""
        readers = self._readers
        for event in events:
            try:
                ns = event["ns"]
                reader = readers.get(event["kind"])
                if type(ns) is not int or not 0 <= ns < MAX_NS:
                    raise ValueError(ns)
                if reader is None:
                    self.unknown += 1
                    continue
                reader(ns, event)
            except (LookupError, TypeError, ValueError):
                self.damaged += 1
                continue
            self.events += 1
            if ns > self.end_ns:
                self.end_ns = ns
        self.damaged += getattr(events, "damaged", 0)
        self._close()

    @property
    def console_lines(self) -> list[ConsoleLine]:
        """Those that were kept, in the order of their times."""
        return sorted([*self.first_lines, *self.last_lines], key=lambda line: line.ns)

    def ranked_devices(self) -> list[Device]:
        """The devices, those first that have the greatest share in anything."""
        devices = self.devices.values()
        interrupts = sum(device.interrupts for device in devices)

        def weight(device: Device) -> float:
            return max(
                device.exits / (self.exits or 1),
                device.took / (self.took or 1),
                device.interrupts / (interrupts or 1),
            )

        return sorted(devices, key=lambda device: (-weight(device), device.name))

    def ranked_queues(self) -> list[Queue]:
        """The queues with requests, the busiest first."""
        queues = (queue for queue in self.queues.values() if queue.requests)
        return sorted(queues, key=lambda queue: -queue.requests)

    def _exit(self, ns: int, event: dict[str, Any]) -> None:
        took, rip = event["took"], event["rip"]
        if type(took) is not int or type(rip) is not int or not 0 <= took < MAX_NS:
            raise ValueError(took)
        register, device_name = event.get("register", ""), event.get("device", "")
        if not (register and device_name):
            address = event.get("address")
            if address:
                register = f"{register} {address:#x}".strip()
        key = (event["reason"], device_name, register, event.get("access", ""))
        site = self.sites.get(key)
        if site is None:
            site = self._new_site(key)
        vcpu = event["vcpu"]
        per_vcpu = self.vcpus.get(vcpu)
        if per_vcpu is None:
            per_vcpu = self._new_vcpu(vcpu)
        bins = self.bins
        end = ns + took
        if end >= bins.top:
            bins.reach(end)
        index = ns >> bins.shift
        if index == end >> bins.shift:
            site.took_bins[index] += took
        else:
            bins.spread(site.took_bins, ns, took)
        if end > self.end_ns:
            self.end_ns = end
        site.count += 1
        site.took += took
        if took > site.slowest:
            site.slowest = took
        site.reason_bins[index] += 1
        site.device_bins[index] += 1
        per_vcpu[0] += 1
        per_vcpu[1] += took
        device = site.device
        try:
            address_counts = self.addresses[rip, device]
        except KeyError:
            address_counts = self._new_address(rip, device, event.get("symbol"))
        address_counts[0] += 1
        address_counts[1] += took

    def _new_site(self, key: tuple[str, str, str, str]) -> Site:
        if not all(type(part) is str for part in key):
            raise TypeError(key)
        if len(self.sites) >= MAX_TABLE:
            self._forget_sites()
        reason, name = key[0][:MAX_NAME], key[1]
        if reason not in self.reasons and len(self.reasons) >= MAX_REASONS:
            reason = OTHERS
        if reason not in self.reasons:
            self.reasons[reason] = self.bins.sums()
        site = self.sites[key] = Site(self._device(name), self.reasons[reason])
        return site

    def _new_vcpu(self, number: int) -> list[int]:
        if type(number) is not int or not 0 <= number < MAX_VCPUS:
            raise ValueError(number)
        return self.vcpus.setdefault(number, [0, 0])

    def _new_address(self, rip: int, device: Device, symbol: object) -> list[int]:
        if len(self.addresses) >= MAX_TABLE:
            kept = sorted(self.addresses.items(), key=lambda item: item[1][0])
            self.forgotten_addresses += sum(counts[0] for _, counts in kept[: MAX_TABLE // 2])
            self.addresses = dict(kept[MAX_TABLE // 2 :])
            alive = {address for address, _ in self.addresses}
            self.symbols = {a: name for a, name in self.symbols.items() if a in alive}
        if symbol and isinstance(symbol, str):
            self.symbols[rip] = symbol[:MAX_NAME]
        counts = self.addresses[rip, device] = [0, 0]
        return counts

    def _forget_sites(self) -> None:
        kept = sorted(self.sites.items(), key=lambda item: item[1].count)
        for _, site in kept[: MAX_TABLE // 2]:
            self.forgotten_sites += site.count
            site.device.add(site)
        self.sites = dict(kept[MAX_TABLE // 2 :])

    def _device(self, name: str) -> Device:
        name = name[:MAX_NAME] or NOBODY
        if name not in self.devices and len(self.devices) >= MAX_DEVICES:
            name = OTHERS
        device = self.devices.get(name)
        if device is None:
            device = self.devices[name] = Device(name, self.bins)
        return device

    def _queue(self, event: dict[str, Any]) -> Queue:
        name, number = event["device"], event["queue"]
        if type(name) is not str or type(number) is not int:
            raise TypeError(name)
        queue = self.queues.get((name, number))
        if queue is None and len(self.queues) >= MAX_QUEUES:
            name, number = OTHERS, 0
            queue = self.queues.get((name, number))
        if queue is None:
            queue = self.queues[name, number] = Queue(self.bins, name[:MAX_NAME], number)
            self._device(name)
        return queue

    def _request(self, ns: int, event: dict[str, Any]) -> None:
        took, size, depth = event["took"], event["bytes"], event["depth"]
        if not all(type(n) is int and 0 <= n < MAX_NS for n in (took, size, depth)):
            raise ValueError(took)
        status, what = str(event["status"]), str(event.get("what", ""))[:MAX_NAME]
        self._queue(event).add(ns, size, took, depth, status, what)
        self.end_ns = max(self.end_ns, ns + took)

    def _doorbell(self, _: int, event: dict[str, Any]) -> None:
        self._queue(event).doorbells += 1

    def _interrupt(self, ns: int, event: dict[str, Any]) -> None:
        name = event["device"]
        if type(name) is not str:
            raise TypeError(name)
        if "msi" in event:
            vector = f"MSI {_number(event['msi'], -1)}"
        else:
            if event["level"] == 0:
                return  # a line that falls interrupts nobody
            vector = f"GSI {_number(event['gsi'], -1)}"
        device = self._device(name)
        device.interrupts += 1
        if vector in device.vectors or len(device.vectors) < MAX_VCPUS:
            device.vectors[vector] = device.vectors.get(vector, 0) + 1
        self.bins.reach(ns)
        device.interrupt_bins[ns >> self.bins.shift] += 1

    def _console(self, ns: int, event: dict[str, Any]) -> None:
        text = event["text"]
        if type(text) is not str:
            raise TypeError(text)
        line = ConsoleLine(ns, printable(event.get("console", "")), printable(text, MAX_LINE))
        self.lines += 1
        if len(self.first_lines) < FIRST_LINES:
            self.first_lines.append(line)
        else:
            self.last_lines.append(line)
        self._silence_until(ns)
        self._last_line = line

    def _silence_until(self, ns: int) -> None:
        """Keep the longest few of the times between lines."""
        last = self._last_line
        if last is not None and ns > last.ns:
            self.silences.append(Silence(ns - last.ns, last.ns, last.text))
            if len(self.silences) > 100:
                self._sort_silences()

    def _sort_silences(self) -> None:
        self.silences.sort(key=lambda silence: -silence.took)
        del self.silences[5:]

    def _phase(self, ns: int, event: dict[str, Any]) -> None:
        phase = event["phase"]
        if type(phase) is not str:
            raise TypeError(phase)
        if len(self.phases) < MAX_PHASES:
            detail = printable(event.get("detail") or "")
            self.phases.append(Phase(ns, printable(phase), detail))

    def _memory(self, ns: int, event: dict[str, Any]) -> None:
        resident = event["resident"]
        if type(resident) is not int or not 0 <= resident < MAX_NS:
            raise ValueError(resident)
        self.resident = max(self.resident, resident)
        self.bins.reach(ns)
        index = ns >> self.bins.shift
        self.resident_over_time[index] = max(self.resident_over_time[index], resident)

    def _end(self, _: int, event: dict[str, Any]) -> None:
        self.end = event

    def _close(self) -> None:
        self.bins.reach(self.end_ns)
        self._silence_until(self.end_ns)
        self._sort_silences()
        self.phases.sort(key=lambda phase: phase.ns)
        for site in self.sites.values():
            site.device.add(site)
        for exits, took in self.vcpus.values():
            self.exits += exits
            self.took += took


def _number(value: object, default: int) -> int:
    return value if type(value) is int and 0 <= value < 1 << 64 else default
