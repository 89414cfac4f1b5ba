"""PyVMM: a small PC on KVM, with everything but the CPU written in Python.

What a program uses is here; it is imported when it is first wanted, because the command line wants
less of it. What isn't named here may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.api import Machine, Stats, VirtualCpu
    from pyvmm.errors import ConfigError, DeviceError, HostError, ImageError, PyvmmError
    from pyvmm.expect import CommandError, CommandResult, Console, ExpectError
    from pyvmm.memory import GuestMemory
    from pyvmm.outcome import Outcome, Reason
    from pyvmm.user_devices.interface import MmioDevice, PciDevice, PioDevice, VirtioDevice

_HOMES = {
    "Machine": "api",
    "Stats": "api",
    "VirtualCpu": "api",
    "ConfigError": "errors",
    "DeviceError": "errors",
    "HostError": "errors",
    "ImageError": "errors",
    "PyvmmError": "errors",
    "CommandError": "expect",
    "CommandResult": "expect",
    "Console": "expect",
    "ExpectError": "expect",
    "GuestMemory": "memory",
    "Outcome": "outcome",
    "Reason": "outcome",
    "MmioDevice": "user_devices.interface",
    "PciDevice": "user_devices.interface",
    "PioDevice": "user_devices.interface",
    "VirtioDevice": "user_devices.interface",
}

__all__ = [
    "CommandError",
    "CommandResult",
    "ConfigError",
    "Console",
    "DeviceError",
    "ExpectError",
    "GuestMemory",
    "HostError",
    "ImageError",
    "Machine",
    "MmioDevice",
    "Outcome",
    "PciDevice",
    "PioDevice",
    "PyvmmError",
    "Reason",
    "Stats",
    "VirtioDevice",
    "VirtualCpu",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"pyvmm.{home}"), name)
