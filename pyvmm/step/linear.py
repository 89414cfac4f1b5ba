"""A guest's memory by linear addresses, as a vCPU's page tables have it now; and what can be read
there besides RAM, the firmware's ROM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyvmm.errors import GuestMemoryError
from pyvmm.kvm import Vcpu
from pyvmm.memory import PAGE_SIZE, GuestMemory

if TYPE_CHECKING:
    from pyvmm.boot.firmware import Rom


class LinearMemory:
    """For a vCPU that isn't running. GuestMemoryError where nothing is mapped, or neither RAM nor
    ``rom``. Who may read and write there doesn't matter."""

    def __init__(self, vcpu: Vcpu, memory: GuestMemory, rom: Rom | None = None) -> None:
        self._vcpu = vcpu
        self._memory = memory
        self._rom = rom

    def read(self, address: int, size: int) -> bytes:
        pieces = self._pieces(address, size)
        return b"".join(
            read_physical(self._memory, self._rom, gpa, length) for gpa, length in pieces
        )

    def write(self, address: int, data: bytes) -> None:
        done = 0
        for gpa, length in self._pieces(address, len(data)):
            self._memory.write(gpa, data[done : done + length])
            done += length

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        """GPA and length of each part: pages that follow each other needn't be neighbours."""
        end = address + size
        while address < end:
            gpa = self._vcpu.translate(address & (1 << 64) - 1)
            if gpa is None:
                raise GuestMemoryError(f"the address {address:#x} is not mapped")
            length = min(end - address, PAGE_SIZE - address % PAGE_SIZE)
            yield gpa, length
            address += length


def read_physical(memory: GuestMemory, rom: Rom | None, gpa: int, size: int) -> bytes:
    """RAM or ROM at a guest-physical address. GuestMemoryError where there is neither."""
    if rom is not None and rom.gpa <= gpa and gpa + size <= rom.gpa + len(rom.view):
        return bytes(rom.view[gpa - rom.gpa : gpa - rom.gpa + size])
    return memory.read(gpa, size)
