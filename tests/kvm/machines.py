"""Machines in the test's own process."""

from __future__ import annotations

import os
from pathlib import Path

from pyvmm.config import MachineConfig
from pyvmm.device_config import DiskConfig
from pyvmm.memory import MIB


def open_descriptors() -> set[str]:
    """What this process's descriptors refer to."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name}: {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            pass  # the directory's own
    return found


def config(kernel: Path, disk: Path) -> MachineConfig:
    """For a guest of ours, with a new disk."""
    disk.write_bytes(bytes(4096))
    return MachineConfig(
        kernel=str(kernel),
        command_line="",
        memory_size=32 * MIB,
        disks=(DiskConfig(str(disk)),),
        debug_exit=True,
    )
