"""fw_cfg: how firmware learns from a VMM what a BIOS of a real PC knows of its board.

Document: QEMU, docs/specs/fw_cfg.rst. A list of items, each some bytes behind a number; those
from 0x20 on are files, and item 0x19 is their directory. Firmware writes a number to the selector
and reads the bytes one by one from the data port, or has them copied to memory ("DMA").

Left out: writing items, which only newer devices of QEMU's need; the items with a kernel, its
initrd and its command line, by which QEMU hands them to its firmware: here they are in memory
before the guest starts.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import Any

from pyvmm.bus import Device
from pyvmm.errors import GuestFaults, GuestMemoryError
from pyvmm.memory import GuestMemory

SELECTOR, DATA, DMA_HIGH, DMA_LOW = 0, 1, 4, 8
"""Registers, as offsets."""


class Item(IntEnum):
    """The items that are no files."""

    SIGNATURE = 0x00
    ID = 0x01
    RAM_SIZE = 0x03
    NB_CPUS = 0x05
    MAX_CPUS = 0x0F
    FILE_DIR = 0x19
    FILE_FIRST = 0x20


class Feature(IntFlag):
    """Item ID."""

    TRADITIONAL = 1 << 0
    DMA = 1 << 1


class DmaControl(IntFlag):
    """The first field of a DMA access; its upper half is the item to select."""

    ERROR = 1 << 0
    READ = 1 << 1
    SKIP = 1 << 2
    SELECT = 1 << 3
    WRITE = 1 << 4


SIGNATURE = b"QEMU"
DMA_SIGNATURE = b"QEMU CFG"
"""What the DMA address register reads as."""

MAX_NAME = 55

_ACCESS = struct.Struct(">IIQ")
"""control, length, address: big-endian, as all of the newer interface is."""
_DIRECTORY_ENTRY = struct.Struct(">IHH56s")


class FwCfg(Device):
    """The device, with ``files`` by name. ``memory`` is what DMA reaches."""

    def __init__(
        self, memory: GuestMemory, faults: GuestFaults, cpus: int, files: Mapping[str, bytes]
    ) -> None:
        super().__init__()
        self._memory = memory
        self._faults = faults
        self._items = {
            Item.SIGNATURE: SIGNATURE,
            Item.ID: struct.pack("<I", Feature.TRADITIONAL | Feature.DMA),
            Item.RAM_SIZE: struct.pack("<Q", memory.size),
            Item.NB_CPUS: struct.pack("<H", cpus),
            Item.MAX_CPUS: struct.pack("<H", cpus),
            Item.FILE_DIR: self._directory(files),
        } | {Item.FILE_FIRST + number: files[name] for number, name in enumerate(sorted(files))}
        self.reset()

    def _directory(self, files: Mapping[str, bytes]) -> bytes:
        entries = []
        for number, name in enumerate(sorted(files)):
            if len(name) > MAX_NAME:
                raise ValueError(f"fw_cfg: the name {name} is too long")
            size, select = len(files[name]), Item.FILE_FIRST + number
            entries.append(_DIRECTORY_ENTRY.pack(size, select, 0, name.encode()))
        return struct.pack(">I", len(entries)) + b"".join(entries)

    def reset(self) -> None:
        self._dma_address = 0
        self._select(0)

    def _select(self, item: int) -> None:
        self._selected = item
        self._data = self._items.get(item, b"")
        self._position = 0

    def read(self, offset: int, size: int) -> int:
        if offset == DATA and size == 1:
            return self._take(1)[0]
        if offset >= DMA_HIGH:
            start = offset - DMA_HIGH
            return int.from_bytes(DMA_SIGNATURE[start : start + size], "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == SELECTOR and size == 2:
            self._select(value)
        elif offset == DMA_HIGH and size == 4:
            self._dma_address = _swap(value) << 32
        elif offset == DMA_LOW and size == 4:
            address, self._dma_address = self._dma_address | _swap(value), 0
            self._access(address)

    def _take(self, length: int) -> bytes:
        """The next bytes of the selected item; zeros behind its end."""
        piece = self._data[self._position : self._position + length]
        self._position = min(self._position + length, len(self._data))
        return piece + bytes(length - len(piece))

    def _access(self, address: int) -> None:
        """Do what the structure at ``address`` says, and say there that it is done."""
        try:
            control, length, target = _ACCESS.unpack(self._memory.view(address, _ACCESS.size))
        except GuestMemoryError as error:
            self._faults.report("fw_cfg: DMA structure outside RAM", "%s", error)
            return
        if control & DmaControl.SELECT:
            self._select(control >> 16)
        result = 0
        if control & DmaControl.READ:
            result = self._copy(target, length)
        elif control & DmaControl.SKIP:
            self._position = min(self._position + length, len(self._data))
        elif control & DmaControl.WRITE:
            result = DmaControl.ERROR
        self._memory.write(address, struct.pack(">I", result))

    def _copy(self, target: int, length: int) -> int:
        """Fill guest memory with the item's next bytes, and zeros behind its end."""
        try:
            view = self._memory.view(target, length)
        except GuestMemoryError as error:
            self._faults.report("fw_cfg: DMA outside RAM", "%s", error)
            return DmaControl.ERROR
        piece = self._take(min(length, len(self._data) - self._position))
        view[: len(piece)] = piece
        if len(piece) < length:
            self._memory.clear(target + len(piece), length - len(piece))
        return 0

    def save(self) -> dict[str, Any]:
        return {
            "selected": self._selected,
            "position": self._position,
            "dma_address": self._dma_address,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._select(state["selected"])
        self._position = state["position"]
        self._dma_address = state["dma_address"]


def _swap(value: int) -> int:
    """A 32-bit register that the other end sees big-endian."""
    return int.from_bytes(value.to_bytes(4, "little"), "big")
