"""A vCPU whose guest is a script of exits, and a device for it to find."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

from pyvmm.kvm._kvm import lib

from pyvmm.bus import Device
from pyvmm.vcpu import MMIO_DETAIL, PIO_DETAIL

PORT = 0x100
ADDRESS = 0x1_0000_0000
IN, OUT = lib.KVM_EXIT_IO_IN, lib.KVM_EXIT_IO_OUT
NOTHING_MORE = -errno.ENOEXEC
"""How a script ends that doesn't stop the thread otherwise."""

Exit = Callable[[memoryview], int]
"""Does to the shared page what KVM would, and is what KVM_RUN returns."""


class FakeVcpu:
    """Its guest is a script of exits."""

    id = 0

    def __init__(self) -> None:
        self.run_page = memoryview(bytearray(2 * 4096))
        self.script: list[Exit] = []

    def runner(self) -> tuple[Callable[[Any], int], Any]:
        return self.run, None

    def run(self, _: Any) -> int:
        if self.run_page[lib.RUN_IMMEDIATE_EXIT]:
            return -errno.EINTR
        reason = self.script.pop(0)(self.run_page) if self.script else NOTHING_MORE
        if reason >= 0:
            struct.pack_into("<I", self.run_page, lib.RUN_EXIT_REASON, reason)
        return reason

    def set_immediate_exit(self, on: bool) -> None:
        self.run_page[lib.RUN_IMMEDIATE_EXIT] = on


class Registers(Device):
    """Remembers what was written; reads count up."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[int, int, int]] = []
        self.reads = 0

    def read(self, offset: int, size: int) -> int:
        self.reads += 1
        return self.reads

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


def io(direction: int, size: int, data: bytes, *, port: int = PORT) -> Exit:
    def fill(page: memoryview) -> int:
        offset = lib.PIO_DATA_PAGE
        PIO_DETAIL.pack_into(page, lib.RUN_DETAIL, direction, size, port, len(data) // size)
        page[offset : offset + len(data)] = data
        return int(lib.KVM_EXIT_IO)

    return fill


def mmio(address: int, length: int, *, value: int | None = None) -> Exit:
    def fill(page: memoryview) -> int:
        MMIO_DETAIL.pack_into(page, lib.RUN_DETAIL, address, length, value is not None)
        data = lib.RUN_DETAIL + 8
        page[data : data + 8] = (value or 0).to_bytes(8, "little")
        return int(lib.KVM_EXIT_MMIO)

    return fill


def plain(reason: int) -> Exit:
    return lambda page: reason


def detailed(reason: int, detail: bytes) -> Exit:
    def fill(page: memoryview) -> int:
        page[lib.RUN_DETAIL : lib.RUN_DETAIL + len(detail)] = detail
        return reason

    return fill
