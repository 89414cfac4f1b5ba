"""A trace for https://ui.perfetto.dev (and Chrome's about:tracing).

"Trace Event Format" (Google, 2016): the JSON array format, whose closing bracket may be missing, so
that a trace which was cut off opens, too. Times are in microseconds.

There is a track for each vCPU, on which its exits lie, one for each device, with the same exits and
the interrupts that it raises, and one for each virtqueue with its requests. Consoles and the run's
phases have tracks of their own; queue depth and memory are counters.

Slices on a track must not overlap. So a device has a track for each vCPU that accesses it, and a
queue as many as it has requests in flight at different times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from json.encoder import encode_basestring as _quote
from typing import Any

from pyvmm.trace.text import exit_text, interrupt_text

Event = dict[str, Any]

VCPUS, DEVICES, QUEUES, CONSOLES, RUN = range(1, 6)
"""The groups of tracks, which the format calls processes, from top to bottom."""
_GROUPS = {
    RUN: "run",
    VCPUS: "vCPUs: exits",
    DEVICES: "devices",
    QUEUES: "virtqueues",
    CONSOLES: "consoles",
}
_ORDER = (RUN, VCPUS, DEVICES, QUEUES, CONSOLES)

NOBODY = "nobody"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Perfetto:
    """The format ``perfetto``."""

    def __init__(self) -> None:
        self._tracks: dict[tuple[int, str], int] = {}
        self._new: list[Event] = []
        self._exit_tracks: dict[tuple[int, str], tuple[int, int, str]] = {}
        self._lanes: dict[str, list[tuple[int, int]]] = {}
        self._phase = ""
        self._kinds: dict[str, Callable[[Event], Iterator[Event]]] = {
            "interrupt": self._interrupt,
            "doorbell": self._doorbell,
            "request": self._request,
            "console": self._console,
            "phase": self._phase_begins,
            "memory": self._memory,
        }

    def begin(self, header: Event) -> str:
        for position, group in enumerate(_ORDER):
            self._describe("process_name", group, name=_GROUPS[group])
            self._describe("process_sort_index", group, sort_index=position)
        for number in range(header["cpus"]):
            self._track(VCPUS, f"vCPU {number}")
        about = {"name": "trace", "ph": "i", "s": "g", "ts": 0, "pid": RUN, "tid": 0}
        self._new.append(about | {"args": header})
        return "[\n" + self._flush()

    def events(self, events: Iterable[Event]) -> str:
        written = []
        for event in events:
            if event["kind"] == "exit":  # nearly all are, so this has to be fast
                written.append(self._exit(event))
            else:
                self._new += self._kinds[event["kind"]](event)
                written.append(self._flush())
        return "".join(written)

    def end(self, event: Event) -> str:
        if self._phase:
            self._new.append(self._slice(event, "E", RUN, "phases", self._phase))
        self._new.append(
            self._slice(event, "i", RUN, "phases", event["reason"]) | {"s": "g", "args": event}
        )
        return self._flush().removesuffix(",\n") + "\n]\n"

    def _flush(self) -> str:
        new, self._new = self._new, []
        return "".join(f"{_encode(event)},\n" for event in new)

    def _describe(self, what: str, pid: int, tid: int = 0, **args: Any) -> None:
        self._new.append({"name": what, "ph": "M", "pid": pid, "tid": tid, "args": args})

    def _track(self, group: int, name: str) -> int:
        """The number of a track, which is introduced when it is first used."""
        number = self._tracks.get((group, name))
        if number is None:
            number = self._tracks[group, name] = len(self._tracks) + 1
            self._describe("thread_name", group, number, name=name)
            self._describe("thread_sort_index", group, number, sort_index=number)
        return number

    def _slice(self, event: Event, phase: str, group: int, track: str, name: str) -> Event:
        number = self._track(group, track)
        return {"name": name, "ph": phase, "ts": event["ns"] / 1000, "pid": group, "tid": number}

    def _exit(self, event: Event) -> str:
        """Two slices, on the vCPU's track and on the device's, with the same time."""
        device, vcpu = event["device"], event["vcpu"]
        text = exit_text(event)
        where = event.get("symbol")
        at = _quote(where) if where else f'"{event["rip"]:#x}"'
        tracks = self._exit_tracks.get((vcpu, device))
        if tracks is None:
            tracks = self._exit_tracks[vcpu, device] = self._make_exit_tracks(vcpu, device)
        own, its, prefix = tracks
        new = self._flush()  # the tracks, if they are new
        rest = (
            f'"ph":"X","ts":{event["ns"] / 1000},"dur":{event["took"] / 1000},'
            f'"args":{{"at":{at}}}}},\n'
        )
        first = f'{{"name":{_quote(text)},"pid":{VCPUS},"tid":{own},{rest}'
        if "access" not in event:
            return new + first
        name = _quote(text.removeprefix(prefix))
        return f'{new}{first}{{"name":{name},"pid":{DEVICES},"tid":{its},{rest}'

    def _make_exit_tracks(self, vcpu: int, device: str) -> tuple[int, int, str]:
        """The tracks of a vCPU and of a device, and what of an exit's text says which device."""
        name = f"vCPU {vcpu}"
        track = f"{device or NOBODY} ({name})" if vcpu else device or NOBODY
        prefix = f"{device} " if device else ""
        return self._track(VCPUS, name), self._track(DEVICES, track), prefix

    def _interrupt(self, event: Event) -> Iterator[Event]:
        device = event["device"] or NOBODY
        yield self._slice(event, "i", DEVICES, device, interrupt_text(event)) | {"s": "t"}

    def _doorbell(self, event: Event) -> Iterator[Event]:
        track = f"{event['device']} queue {event['queue']}"
        yield self._slice(event, "i", QUEUES, track, "doorbell") | {"s": "t"}

    def _request(self, event: Event) -> Iterator[Event]:
        queue = f"{event['device']} queue {event['queue']}"
        start, end = event["ns"], event["ns"] + event["took"]
        track = self._lane(queue, start, end)
        args = {key: event[key] for key in ("bytes", "depth", "status")}
        more = {"dur": event["took"] / 1000, "args": args}
        yield self._slice(event, "X", QUEUES, track, event["what"]) | more
        if event["depth"]:
            yield self._counter(start, QUEUES, f"{queue}: depth", event["depth"])
            yield self._counter(end, QUEUES, f"{queue}: depth", event["depth"] - 1)

    def _lane(self, queue: str, start: int, end: int) -> str:
        """The track of a request that was in flight then: one on which it overlaps no other, or
        covers it exactly, as those do that were taken and completed together."""
        lanes = self._lanes.setdefault(queue, [])
        number = next(
            (n for n, last in enumerate(lanes) if start >= last[1] or (start, end) == last),
            len(lanes),
        )
        lanes[number : number + 1] = [(start, end)]
        return queue if not number else f"{queue} ({number + 1})"

    def _console(self, event: Event) -> Iterator[Event]:
        yield self._slice(event, "i", CONSOLES, event["console"], event["text"]) | {"s": "t"}

    def _phase_begins(self, event: Event) -> Iterator[Event]:
        if self._phase:
            yield self._slice(event, "E", RUN, "phases", self._phase)
        self._phase = event["phase"]
        begin = self._slice(event, "B", RUN, "phases", self._phase)
        yield begin | {"args": {"detail": event["detail"]}}

    def _memory(self, event: Event) -> Iterator[Event]:
        yield self._counter(event["ns"], RUN, "RAM in use (MiB)", event["resident"] / (1 << 20))

    def _counter(self, ns: int, group: int, name: str, value: float) -> Event:
        return {"name": name, "ph": "C", "ts": ns / 1000, "pid": group, "args": {"value": value}}
