"""What the options of the command line have in common: how text becomes sizes, times, numbers,
switches and sub-options. The forms are QEMU's (``disk.raw,readonly=on``).

Everything wrong raises :class:`~pyvmm.errors.ConfigError`, which names the option.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyvmm.errors import ConfigError
from pyvmm.memory import GIB, KIB, MIB

MAX_TIMEOUT = 10**9
"""In seconds, thirty years: a little less than Python's threads can wait."""

TRANSPORTS = ("pci", "mmio")
"""How a guest reaches a virtio device."""

PLACES = ("stdio", "null", "pty", "file:", "unix:")
"""The host's side of a character device; a path follows a colon."""

_UNITS = {"": MIB, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40, "B": 1}


def parse_size(text: str, option: str) -> int:
    """Bytes from ``512M``, ``2G``, ``2GiB`` or plain ``512`` (MiB, as in QEMU)."""
    wanted = text.strip().upper().removesuffix("IB")
    digits = wanted.rstrip("BKMGT")
    unit = wanted[len(digits) :]
    if len(unit) > 1:
        unit = unit.removesuffix("B")
    try:
        size = float(digits) * _UNITS[unit]
        if size != int(size):
            raise ValueError(size)
        return int(size)
    except (ValueError, KeyError, OverflowError):
        raise ConfigError(f"{option}: {text!r} is not a size", "such as 512M or 2G") from None


def parse_seconds(text: str, option: str) -> float:
    """A time, such as ``60`` or ``0.5``."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT:
        raise ConfigError(f"{option}: {text!r} is not a time in seconds", "such as 60 or 0.5")
    return seconds


def parse_sub_options(
    text: str, option: str, known: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """``value,key=value,…`` as (value, {key: value}); ``known`` maps keys to what they take."""
    value, *pairs = text.split(",")
    return value, _parse_pairs(pairs, f"{option} {text}", known)


def parse_only_sub_options(text: str, option: str, known: Mapping[str, str]) -> dict[str, str]:
    """``key=value,…``, perhaps none, as {key: value}."""
    return _parse_pairs(text.split(","), f"{option} {text}", known) if text else {}


def _parse_pairs(pairs: Iterable[str], where: str, known: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, separator, argument = pair.partition("=")
        if key not in known or not separator:
            choices = ", ".join(f"{name}={what}" for name, what in known.items())
            raise ConfigError(f"{where}: {pair!r} is not understood", f"it takes {choices}")
        found[key] = argument
    return found


def parse_switch(text: str, option: str) -> bool:
    """``on`` or ``off``."""
    if text not in ("on", "off"):
        raise ConfigError(f"{option}: {text!r} is neither 'on' nor 'off'")
    return text == "on"


def parse_transport(text: str, option: str) -> str:
    """A device's ``transport=``: one of :data:`TRANSPORTS`, or nothing for the machine's."""
    if text and text not in TRANSPORTS:
        raise ConfigError(f"{option}: {text!r} is none of {', '.join(TRANSPORTS)}")
    return text


def parse_place(text: str, option: str, *, known: tuple[str, ...] = PLACES) -> str:
    """Where a character device goes: one of :data:`PLACES`, or as many of them as are ``known``."""
    kind, colon, path = text.partition(":")
    if kind + colon not in known or bool(colon) != bool(path):
        choices = ", ".join(f"{word}PATH" if word[-1] == ":" else word for word in known)
        raise ConfigError(f"{option}: {text!r} is not understood", f"use {choices}")
    return text


def parse_number(text: str, low: int, high: int, option: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        raise ConfigError(f"{option}: {text!r} is not a number from {low} to {high}")
    return int(text)


def format_size(size: int) -> str:
    """``512 MiB``, ``2 GiB``; bytes if it isn't a whole number of KiB."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"
