"""PyVMM: a small PC on KVM, with everything but the CPU written in Python.

What a program uses is here; it is imported when it is first wanted, because the command line wants
less of it. What isn't named here may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.api import Machine, Stats, VirtualCpu
    from pyvmm.errors import ConfigError, HostError, ImageError, PyvmmError
    from pyvmm.expect import CommandError, CommandResult, Console, ExpectError
    from pyvmm.outcome import Outcome, Reason

_HOMES = {
    "Machine": "api",
    "Stats": "api",
    "VirtualCpu": "api",
    "ConfigError": "errors",
    "HostError": "errors",
    "ImageError": "errors",
    "PyvmmError": "errors",
    "CommandError": "expect",
    "CommandResult": "expect",
    "Console": "expect",
    "ExpectError": "expect",
    "Outcome": "outcome",
    "Reason": "outcome",
}

__all__ = [
    "CommandError",
    "CommandResult",
    "ConfigError",
    "Console",
    "ExpectError",
    "HostError",
    "ImageError",
    "Machine",
    "Outcome",
    "PyvmmError",
    "Reason",
    "Stats",
    "VirtualCpu",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"pyvmm.{home}"), name)
