"""A trace for reading: one event a line, in columns.

seconds    who    what      …                                                  took  where
0.012345   cpu 0  io        serial COM1 LCR ← 0x83: 8 bits, no parity, DLAB    4 µs  1000f3
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from pyvmm.options import format_size

WIDTH = 62
"""Columns for what happened; a longer text pushes the rest of its line to the right."""

Event = dict[str, Any]


class Text:
    """The format ``text``."""

    def begin(self, header: Event) -> str:
        cpus = header["cpus"]
        machine = f"{cpus} vCPU{'' if cpus == 1 else 's'}, {format_size(header['memory'])}"
        kernel, line = header["kernel"] or "no kernel", header["command_line"]
        return (
            f"# {kernel}: {machine}, on {header['host']}, {header['started']}\n"
            + (f"# {line}\n" if line else "")
            + f"# {'seconds':>9}  {'cpu':5} {'what':9} {'':{WIDTH}} {'took':>9}  at\n"
        )

    def events(self, events: Iterable[Event]) -> str:
        return "".join(f"{_line(event)}\n" for event in events)

    def end(self, event: Event) -> str:
        return f"# {event['ns'] / 1e9:.6f}: {_end(event)}\n"


def _line(event: Event) -> str:
    who = f"cpu {event['vcpu']}" if "vcpu" in event else ""
    what, text = _KINDS[event["kind"]](event)
    line = f"{event['ns'] / 1e9:11.6f}  {who:5} {what:9} {text:{WIDTH}}"
    if not event.get("took"):
        return line.rstrip()
    took = f"{line} {_duration(event['took']):>9}"
    return f"{took}  {event.get('symbol') or format(event['rip'], 'x')}" if who else took


def _end(event: Event) -> str:
    detail = f": {event['detail'].rstrip(',')}" if event["detail"] else ""
    return f"{event['reason']}{detail} (status {event['status']})"


def _duration(ns: int) -> str:
    return f"{ns / 1000:.1f} µs" if ns < 1_000_000 else f"{ns / 1_000_000:.1f} ms"


def number(value: int) -> str:
    """As a program would have it: small numbers with two digits."""
    return f"{value:#04x}"


def exit_text(event: Event) -> str:
    """An exit in a few words, without when and where."""
    if "access" not in event:
        return str(event["meaning"]) or "asks nothing"
    device, register = event["device"], event["register"]
    if not device:
        register = f"{register} {number(event['address'])}"
    return access_text(
        device, register, event["access"], event["value"], event["meaning"], event.get("count", 1)
    )


@lru_cache(1 << 12)
def access_text(
    device: str, register: str, access: str, value: int, meaning: str, count: int
) -> str:
    """``serial COM1 LCR ← 0x83: 8 bits, no parity, DLAB``; most of them come again and again."""
    arrow = "←" if access == "write" else "→"
    times = f" ×{count}" if count != 1 else ""
    text = f"{device} {register} {arrow} {number(value)}{times}".lstrip()
    return f"{text}: {meaning}" if meaning else text


def _exit(event: Event) -> tuple[str, str]:
    return event["reason"].lower().replace("_", " "), exit_text(event)


def interrupt_text(event: Event) -> str:
    """Which interrupt, without whose."""
    if "gsi" in event:
        return f"GSI {event['gsi']} {'↑' if event['level'] else '↓'}"
    return f"MSI-X {event['msi']} → vector {event['vector']:#04x}"


def _interrupt(event: Event) -> tuple[str, str]:
    return "interrupt", f"{event['device']} {interrupt_text(event)}".lstrip()


def _doorbell(event: Event) -> tuple[str, str]:
    return "doorbell", f"{event['device']} queue {event['queue']}"


def _request(event: Event) -> tuple[str, str]:
    status = "" if event["status"] == "ok" else f", {event['status']}"
    depth = f" ({event['depth']} in flight)" if event["depth"] > 1 else ""
    return "request", f"{event['device']} queue {event['queue']}: {event['what']}{status}{depth}"


def _console(event: Event) -> tuple[str, str]:
    return "console", f"{event['console']} │ {event['text']}"


def _phase(event: Event) -> tuple[str, str]:
    detail = f": {event['detail']}" if event["detail"] else ""
    return "phase", f"── {event['phase']}{detail}"


def _memory(event: Event) -> tuple[str, str]:
    used = event["resident"]
    size = f"{used / (1 << 20):.1f} MiB" if used >= 1 << 20 else f"{used >> 10} KiB"
    return "memory", f"{size} of RAM in use"


_KINDS: dict[str, Callable[[Event], tuple[str, str]]] = {
    "exit": _exit,
    "interrupt": _interrupt,
    "doorbell": _doorbell,
    "request": _request,
    "console": _console,
    "phase": _phase,
    "memory": _memory,
}
