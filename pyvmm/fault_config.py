"""Faults to inject into disks and network cards, as the user says them; docs/faults.md.

Sub-options of --disk and --net, apart from :mod:`pyvmm.device_config` because hardly any machine
has some. What decides by chance takes its numbers from a generator that starts from ``seed``, so
the same requests meet the same faults.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from pyvmm.errors import ConfigError
from pyvmm.options import parse_number

OPERATIONS = ("read", "write", "flush", "discard")
ERRORS = {"eio": errno.EIO, "enospc": errno.ENOSPC}
MAX_DELAY_NS = 60 * 10**9
MAX_SECTOR = 1 << 55
MAX_SEED = 0xFFFF_FFFF

_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}


class DiskRule(NamedTuple):
    """Which requests fail, and how: those that are one of ``operations`` and touch a sector from
    ``first`` to ``last``, ``rate`` of them (1: all)."""

    error: str
    operations: tuple[str, ...]
    first: int = 0
    last: int = MAX_SECTOR
    rate: float = 1.0

    @classmethod
    def parse(cls, text: str, option: str) -> DiskRule:
        """From ``ERROR[@OPERATION…][@sector=N..M][@PERCENT%]``."""
        error, *conditions = text.split("@")
        if error not in ERRORS:
            raise ConfigError(f"{option}: {error!r} is neither eio nor enospc")
        operations: list[str] = []
        first, last, rate, placed = 0, MAX_SECTOR, 1.0, False
        for condition in conditions:
            if condition in OPERATIONS:
                operations.append(condition)
            elif condition.startswith("sector="):
                first, last = _parse_sectors(condition.removeprefix("sector="), option)
                placed = True
            elif condition.endswith("%"):
                rate = parse_rate(condition, option)
            else:
                known = ", ".join(f"@{each}" for each in OPERATIONS)
                raise ConfigError(
                    f"{option}: {condition!r} is not understood",
                    f"it takes {known}, @sector=N..M and @PERCENT%",
                )
        possible: tuple[str, ...] = OPERATIONS
        if error == "enospc":
            possible = ("write",)
        elif placed:
            possible = tuple(each for each in OPERATIONS if each != "flush")
        if set(operations) - set(possible):
            reason = "a flush has no sector" if error == "eio" else "only a write runs out of space"
            raise ConfigError(f"{option}: {reason}")
        return cls(error, tuple(operations) or possible, first, last, rate)


class DiskFaults(NamedTuple):
    """What goes wrong with a disk: errors, and ``latency_ns`` more for each request."""

    rules: tuple[DiskRule, ...] = ()
    latency_ns: int = 0
    seed: int = 0

    @classmethod
    def parse(cls, text: str, option: str) -> DiskFaults | None:
        """From a disk's sub-options, of which those that are none of ours are passed over; None if
        they name no fault."""
        rules: list[DiskRule] = []
        latency, seed = 0, ""
        for key, value in _pairs(text):
            if key == "error":
                rules.append(DiskRule.parse(value, f"{option},error"))
            elif key == "latency":
                latency = parse_duration(value, f"{option},latency")
            elif key == "seed":
                seed = value
        if seed and not rules:
            raise ConfigError(f"{option},seed: goes with error=")
        if not rules and not latency:
            return None
        return cls(tuple(rules), latency, _parse_seed(seed, option))


class Chances(NamedTuple):
    """What happens to a packet in one direction."""

    drop: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    delay: int = 0
    """In nanoseconds."""


class NetFaults(NamedTuple):
    """What goes wrong with a network card's packets: those to the guest (``rx``), and those from
    it."""

    rx: Chances = Chances()
    tx: Chances = Chances()
    seed: int = 0

    @classmethod
    def parse(cls, text: str, option: str) -> NetFaults | None:
        """As :meth:`DiskFaults.parse`."""
        found: dict[str, dict[str, Any]] = {"rx": {}, "tx": {}}
        seed = ""
        for key, value in _pairs(text):
            if key == "seed":
                seed = value
            elif key in Chances._fields:
                amount, at, direction = value.partition("@")
                if at and direction not in found:
                    raise ConfigError(f"{option},{key}: {direction!r} is neither rx nor tx")
                parse = parse_duration if key == "delay" else parse_rate
                number = parse(amount, f"{option},{key}")
                for each in [direction] if at else found:
                    found[each][key] = number
        if not found["rx"] and not found["tx"]:
            if seed:
                raise ConfigError(f"{option},seed: goes with drop=, duplicate= or corrupt=")
            return None
        rx, tx = (Chances()._replace(**each) for each in found.values())
        return cls(rx, tx, _parse_seed(seed, option))


def parse_rate(text: str, option: str) -> float:
    """A part of 1, from ``5%`` or ``0.1%``."""
    digits = text.removesuffix("%")
    whole = digits.replace(".", "", 1)
    if digits == text or not (whole.isascii() and whole.isdigit()) or len(digits) > 20:
        raise ConfigError(f"{option}: {text!r} is not a percentage", "such as 5% or 0.1%")
    rate = float(digits) / 100
    if not 0 < rate <= 1:
        raise ConfigError(f"{option}: {text!r} is not between 0% and 100%")
    return rate


def parse_duration(text: str, option: str) -> int:
    """Nanoseconds, from ``10ms``, ``500us`` or ``0.5s``."""
    digits = text.rstrip("mnsu")
    unit = text[len(digits) :]
    whole = digits.replace(".", "", 1)
    if unit not in _UNITS or not (whole.isascii() and whole.isdigit()) or len(digits) > 20:
        raise ConfigError(f"{option}: {text!r} is not a time", "such as 10ms or 500us")
    duration = round(float(digits) * _UNITS[unit])
    if not 0 < duration <= MAX_DELAY_NS:
        raise ConfigError(f"{option}: {text!r} is not a time up to {MAX_DELAY_NS // 10**9} s")
    return duration


def _parse_sectors(text: str, option: str) -> tuple[int, int]:
    """``N..M``, both included, or ``N``."""
    first, dots, last = text.partition("..")
    numbers = []
    for number in (first, last if dots else first):
        if not (number.isascii() and number.isdigit()) or len(number) > 17:
            raise ConfigError(f"{option}: {text!r} are no sectors", "such as sector=2048..4096")
        numbers.append(int(number))
    if not numbers[0] <= numbers[1] <= MAX_SECTOR:
        raise ConfigError(f"{option}: there are no sectors {text}")
    return numbers[0], numbers[1]


def _parse_seed(text: str, option: str) -> int:
    return parse_number(text, 0, MAX_SEED, f"{option},seed") if text else 0


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = (item.partition("=") for item in text.split(","))
    return [(key, value) for key, _, value in pairs]
