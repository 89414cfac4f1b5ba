"""A guest's memory by linear addresses, as a vCPU's page tables have it now."""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm.errors import GuestMemoryError
from pyvmm.kvm import Vcpu
from pyvmm.memory import PAGE_SIZE, GuestMemory


class LinearMemory:
    """For a vCPU that isn't running. GuestMemoryError where nothing is mapped, or no RAM. Who may
    read and write there doesn't matter."""

    def __init__(self, vcpu: Vcpu, memory: GuestMemory) -> None:
        self._vcpu = vcpu
        self._memory = memory

    def read(self, address: int, size: int) -> bytes:
        pieces = self._pieces(address, size)
        return b"".join(self._memory.read(gpa, length) for gpa, length in pieces)

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
