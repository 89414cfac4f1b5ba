"""Ports for developers, and :mod:`pyvmm.devices.pvpanic`'s (:mod:`pyvmm.devices.debug`)."""

from __future__ import annotations

from pyvmm.devices.debug import DEBUG_CONSOLE_PRESENT
from pyvmm.devices.pvpanic import PanicEvent
from pyvmm.trace.names import character, flags, single_bits

_EVENTS = single_bits(PanicEvent)


def pvpanic(offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
    return "pvpanic", "events", ("" if write else "knows ") + flags(_EVENTS, value)


def post(offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
    return "POST", "code", ""


def delay(offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
    return "delay", "port", ""


def debug_console(offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
    if write:
        return "debug console", "output", character(value)
    return "debug console", "presence", "there" if value == DEBUG_CONSOLE_PRESENT else ""


def debug_exit(offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
    status = f"ends the run with status {(value << 1 | 1) & 0xFF}" if write else ""
    return "debug exit", "code", status
