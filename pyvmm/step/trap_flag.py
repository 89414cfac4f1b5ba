"""KVM's single step is the CPU's own, by the trap flag (RFLAGS.TF). What saves the flags during a
step saves that, too, and whoever restores them would be trapped, long afterwards, by a debug
exception that it never asked for. So the flag is cleared where it was saved.

Document: Intel SDM volume 3, sections "Single-Step Exception Condition" and "Exception- and
Interrupt-Handler Procedures".
"""

from __future__ import annotations

from pyvmm.errors import GuestMemoryError
from pyvmm.kvm import Vcpu
from pyvmm.step.cpu_state import CpuState
from pyvmm.step.disassembly import MAX_INSTRUCTION, Instruction, stack_top
from pyvmm.step.linear import LinearMemory

RFLAGS_TF = 1 << 8

FRAME_SEARCH = 24
"""In how many words from the stack's top an interrupt's frame is looked for: the first instruction
of its handler may have pushed all registers."""


def clear_saved(
    vcpu: Vcpu,
    guest: LinearMemory,
    instruction: Instruction | None,
    before: CpuState,
    after: CpuState,
) -> None:
    """After a step from ``before`` to ``after``, by ``instruction`` or by an interrupt."""
    mnemonic = "" if instruction is None else instruction.mnemonic
    if before.registers["rflags"] & RFLAGS_TF:
        return  # it is the guest's own
    try:
        if mnemonic == "syscall":
            regs = vcpu.get_regs()
            vcpu.set_regs({**regs, "r11": regs["r11"] & ~RFLAGS_TF})
        elif mnemonic.startswith("pushf"):
            _clear_at(guest, stack_top(after))
        elif after.registers["rsp"] >= before.registers["rsp"] and after.ring == before.ring:
            pass  # nothing is on the stack that wasn't
        elif instruction is None or _went_elsewhere(instruction, after):
            flags = _find_frame(guest, before, after)
            if flags is not None:
                _clear_at(guest, flags)
    except GuestMemoryError:
        pass  # a stack outside RAM: nothing was saved


def _went_elsewhere(instruction: Instruction, after: CpuState) -> bool:
    """Whether an exception or interrupt explains where the vCPU is, and its operation doesn't."""
    if instruction.mnemonic.startswith("int"):
        return True
    known = (instruction.address, instruction.next_address)
    return not instruction.jumps and after.address not in known


def _find_frame(guest: LinearMemory, before: CpuState, after: CpuState) -> int | None:
    """Where an interrupt that came at ``before`` has saved the flags: behind the instruction
    pointer and the code segment, near the top of the stack, in words of the handler's size."""
    top, size = stack_top(after), after.bits // 8
    stack = guest.read(top, FRAME_SEARCH * size)
    words = [int.from_bytes(stack[at : at + size], "little") for at in range(0, len(stack), size)]
    selector = before.system["cs"]["selector"]
    for index in range(FRAME_SEARCH - 2):
        came_from = 0 <= words[index] - before.rip <= MAX_INSTRUCTION
        if came_from and words[index + 1] & 0xFFFF == selector:
            return top + (index + 2) * size
    return None


def _clear_at(guest: LinearMemory, address: int) -> None:
    (byte,) = guest.read(address + 1, 1)
    guest.write(address + 1, bytes([byte & ~(RFLAGS_TF >> 8)]))
