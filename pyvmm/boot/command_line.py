"""The kernel's command line, in low memory where every boot protocol can point at it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pyvmm import layout
from pyvmm.errors import ConfigError, ImageError
from pyvmm.layout import MmioSlot
from pyvmm.memory import GuestMemory

LINUX_LIMIT = 2047
"""COMMAND_LINE_SIZE of Linux on x86 without its final NUL; a vmlinux doesn't say its limit."""

ROOM = layout.EBDA - layout.COMMAND_LINE - 1


def encode(text: str, limit: int, kernel: str) -> bytes:
    """``text`` as ``kernel`` reads it, checked against the most that this kernel takes."""
    line = os.fsencode(text)
    if 0 in line:
        raise ConfigError("the kernel's command line contains a NUL character")
    limit = min(limit, ROOM)
    if len(line) > limit:
        raise ImageError(f"the command line has {len(line)} bytes; {kernel} takes at most {limit}")
    return line + b"\0"


def virtio_mmio_words(slots: Iterable[MmioSlot]) -> list[str]:
    """What tells a kernel where virtio-mmio devices are, in QEMU's form of it (Linux:
    Documentation/admin-guide/kernel-parameters.txt, virtio_mmio.device)."""
    return [f"virtio_mmio.device={slot.size}@{slot.base:#x}:{slot.gsi}" for slot in slots]


def write(memory: GuestMemory, line: bytes) -> None:
    """Store what :func:`encode` made."""
    memory.write(layout.COMMAND_LINE, line)
