"""What to trace, and where to: the records behind ``--trace`` and ``--trace-filter``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pyvmm.config import MAX_CPUS
from pyvmm.errors import ConfigError
from pyvmm.options import parse_number, parse_only_sub_options, parse_sub_options

FORMATS = ("text", "jsonl", "perfetto")
SUFFIXES = {".jsonl": "jsonl", ".json": "perfetto"}
"""By which a file's name chooses the format; it is text otherwise."""
STDOUT = "-"

KINDS = ("exit", "request", "interrupt", "doorbell", "console", "phase", "memory")
"""The kinds of events, but for the first and the last line of a trace."""

MAX_ADDRESS = (1 << 64) - 1


class TraceConfig(NamedTuple):
    """One trace: the file's path, or ``-`` for standard output, and one of :data:`FORMATS`."""

    path: str
    format: str = "text"

    @classmethod
    def parse(cls, text: str) -> TraceConfig:
        """From ``FILE[,format=text|jsonl|perfetto]``."""
        path, options = parse_sub_options(text, "--trace", {"format": "|".join(FORMATS)})
        if not path:
            raise ConfigError("--trace: the path is empty", "a file, or - for standard output")
        suffix = next((each for each in SUFFIXES if path.endswith(each)), "")
        wanted = options.get("format", SUFFIXES.get(suffix, "text"))
        if wanted not in FORMATS:
            raise ConfigError(f"--trace {path}: format={wanted} is none of {', '.join(FORMATS)}")
        return cls(path, wanted)


class TraceFilter(NamedTuple):
    """Which events are wanted: those for which all that isn't None holds.

    ``device`` is part of a device's name, in lower case.
    """

    device: str | None = None
    kind: str | None = None
    vcpu: int | None = None
    addresses: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str) -> TraceFilter:
        """From ``device=TEXT,kind=KIND,vcpu=N,address=FROM[-TO]``, each of them optional."""
        known = {
            "device": "TEXT",
            "kind": "|".join(KINDS),
            "vcpu": "N",
            "address": "FROM[-TO]",
        }
        found = parse_only_sub_options(text, "--trace-filter", known)
        if not found:
            raise ConfigError("--trace-filter is empty", "such as device=serial,kind=exit")
        device, kind, vcpu, address = (found.get(key) for key in known)
        if device == "":
            raise ConfigError(f"--trace-filter {text}: the device has no name")
        if kind is not None and kind not in KINDS:
            raise ConfigError(f"--trace-filter: kind={kind} is none of {', '.join(KINDS)}")
        return cls(
            None if device is None else device.lower(),
            kind,
            None if vcpu is None else parse_number(vcpu, 0, MAX_CPUS - 1, "--trace-filter vcpu"),
            None if address is None else _parse_addresses(address),
        )

    def passes(self, event: Mapping[str, Any]) -> bool:
        """Whether ``event`` is wanted. What an event doesn't have isn't what was asked for."""
        if self.kind is not None and event["kind"] != self.kind:
            return False
        if self.vcpu is not None and event.get("vcpu") != self.vcpu:
            return False
        if self.device is not None:
            name = event.get("device") or event.get("console") or ""
            if self.device not in name.lower():
                return False
        if self.addresses is not None:
            first, last = self.addresses
            start = event.get("address")
            return start is not None and start <= last and first < start + max(1, event["size"])
        return True


def _parse_addresses(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    try:
        start = int(first, 0)
        end = int(last, 0) if dash else start
    except ValueError:
        start, end = 1, 0
    if not 0 <= start <= end <= MAX_ADDRESS:
        raise ConfigError(
            f"--trace-filter: address={text} is no address and no range",
            "such as 0x3f8 or 0x3f8-0x3ff",
        )
    return start, end
