"""What has come of a step or a run: why it stopped, the registers before and after, the devices
that were accessed, the memory that was written."""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.step.accesses import Access
from pyvmm.step.cpu_state import CpuState
from pyvmm.step.disassembly import Instruction

# Why something came to its stop.
STEPPED = "stepped"
EXIT = "exit"
BREAKPOINT = "breakpoint"
REACHED = "reached"
HALTED = "halted"
WAITING = "not started"
TIMEOUT = "timeout"
PAUSED = "paused"
RESET = "reset"
ENDED = "ended"


class MemoryWrite(NamedTuple):
    """An instruction's store to RAM at a linear address: what was there, and what is."""

    address: int
    before: bytes
    after: bytes


class Stop(NamedTuple):
    """What happened, and why it stopped there.

    ``why`` is one of the constants above; ``vcpu`` stopped. ``before`` and ``after`` are its state
    at the start and now. ``instruction`` is the one that was executed, if it was just one.
    ``accesses`` are those of an exit, ``writes`` the stores of one instruction, as far as its
    operands tell. ``woken``: an interrupt ended a halt. A software KVM has executed the first
    instruction of its handler then; hardware, the whole handler and one instruction behind it.
    """

    why: str
    vcpu: int
    before: CpuState
    after: CpuState
    instruction: Instruction | None = None
    accesses: tuple[Access, ...] = ()
    writes: tuple[MemoryWrite, ...] = ()
    woken: bool = False

    @property
    def changes(self) -> dict[str, tuple[int, int]]:
        """The registers that changed: the value before, and after."""
        return self.before.changes(self.after)
