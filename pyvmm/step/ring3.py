"""Single steps in ring 3, and into it, where KVM is a software one.

There the guest's ring 3 runs natively, and the debug exception (#DB) that ends a single step is
delivered to the guest instead of leaving it. So for the length of a step the guest's #DB leads to
an address at which a breakpoint waits, in ring 0, where this KVM minds breakpoints. What the
delivery did is then undone: the frame that it pushed says where ring 3 was. Nor does this KVM stop
behind an ``iretq`` that leads to ring 3, so that is carried out here.

Documents: Intel SDM volume 3, sections "IDT Descriptors", "64-Bit Mode IDT" and "Stack Switching in
IA-32e Mode"; AMD APM volume 2, section 8.9. The guest's memory is patched at two places and put
back: its gate for #DB (or, without an interrupt descriptor table, an own one below the kernel's
stack, which is empty while ring 3 runs), and the frame.
"""

from __future__ import annotations

import struct
from typing import Any

from pyvmm.errors import GuestMemoryError
from pyvmm.kvm import Vcpu
from pyvmm.memory import GuestMemory
from pyvmm.step.cpu_state import CpuState
from pyvmm.step.linear import LinearMemory
from pyvmm.step.trap_flag import RFLAGS_TF

RFLAGS_RESERVED = 1 << 1
IRET_FLAGS = 0x25_7FD5
"""What ``iretq`` in ring 0 takes from the stack: not VM, VIF and VIP."""

DEBUG_VECTOR = 1
GATE_SIZE = 16
INTERRUPT_GATE = 0x8E  # present, for ring 0
TSS_RSP0 = 4
FRAME = struct.Struct("<5Q")
"""RIP, CS, RFLAGS, RSP, SS."""

TYPE_CODE = 1 << 3
ACCESS_MASK, ACCESS_RING_3 = 0xF0, 0xF0
"""Of a descriptor's access byte: P, DPL, S."""

OWN_TABLE = 0x200
"""How far below the kernel's stack pointer an interrupt descriptor table of ours lies."""

DESCRIPTOR_CODE_64 = 0x0020_9800_0000_0000
DESCRIPTOR_MASK = 0x0020_F800_0000_0000
"""Of a segment descriptor: L, P, DPL, S, and that it is code."""


class CannotStep(Exception):
    """The guest has not what an exception needs; the sentence says what is missing."""


def return_to_ring_3(vcpu: Vcpu, memory: GuestMemory, before: CpuState) -> bool:
    """Do what an ``iretq`` in the state ``before`` would, if it leads to 64-bit code in ring 3;
    False if it doesn't, or if anything about it is unusual, and nothing is done then."""
    guest = LinearMemory(vcpu, memory)
    try:
        raw = guest.read(before.registers["rsp"], FRAME.size)
        rip, code, rflags, rsp, stack = FRAME.unpack(raw)
        segments = {
            "cs": _segment(guest, before, code & 0xFFFF),
            "ss": _segment(guest, before, stack & 0xFFFF),
        }
    except (GuestMemoryError, ValueError):
        return False
    if not segments["cs"]["l"] or not segments["cs"]["type"] & TYPE_CODE:
        return False
    vcpu.set_sregs({**vcpu.get_sregs(), **segments})
    rflags = rflags & IRET_FLAGS | RFLAGS_RESERVED
    vcpu.set_regs({**vcpu.get_regs(), "rip": rip, "rflags": rflags, "rsp": rsp})
    events = vcpu.get_vcpu_events()
    events["nmi"]["masked"] = 0
    vcpu.set_vcpu_events(events)
    return True


def _segment(guest: LinearMemory, state: CpuState, selector: int) -> dict[str, int]:
    """What is loaded with ``selector``: a segment for ring 3, in the global table. ValueError if it
    is none."""
    table = state.system["gdt"]
    if selector & 7 != 3 or selector > table["limit"] - 4:
        raise ValueError(selector)
    (descriptor,) = struct.unpack("<Q", guest.read(table["base"] + (selector & ~7), 8))
    access = descriptor >> 40
    if access & ACCESS_MASK != ACCESS_RING_3:
        raise ValueError(selector)
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000
    return {
        "selector": selector,
        "base": descriptor >> 16 & 0xFF_FFFF | descriptor >> 32 & 0xFF00_0000,
        "limit": limit << 12 | 0xFFF if access >> 15 & 1 else limit,
        "type": access & 15 | 1,  # accessed
        "s": 1,
        "dpl": 3,
        "present": 1,
        "avl": access >> 12 & 1,
        "l": access >> 13 & 1,
        "db": access >> 14 & 1,
        "g": access >> 15 & 1,
        "unusable": 0,
    }


class DebugTrap:
    """The patch, for a vCPU in the state ``before``: in place from :meth:`set` to :meth:`undo`.

    ``address`` is where the breakpoint must be. Raises CannotStep if the guest couldn't take any
    exception.
    """

    def __init__(self, vcpu: Vcpu, memory: GuestMemory, before: CpuState) -> None:
        self._vcpu = vcpu
        self._guest = LinearMemory(vcpu, memory)
        self._before = before
        self._saved: list[tuple[int, bytes]] = []
        system = before.system
        self.address: int = system["gdt"]["base"]  # mapped, and nobody executes it
        try:
            (stack,) = struct.unpack("<Q", self._guest.read(system["tr"]["base"] + TSS_RSP0, 8))
            self._frame = (stack & ~15) - FRAME.size
            self._save(self._frame, FRAME.size)
            self._selector = self._kernel_code()
            table = system["idt"]
            self._own_table = table["limit"] < (DEBUG_VECTOR + 1) * GATE_SIZE - 1
            self._table = self._frame - OWN_TABLE if self._own_table else table["base"]
            self._save(self._table + DEBUG_VECTOR * GATE_SIZE, GATE_SIZE)
        except GuestMemoryError:
            raise CannotStep(
                "ring 3 can't be stepped here: the guest has no task state segment with a stack"
                " for ring 0, so it can't take an exception"
            ) from None

    def _kernel_code(self) -> int:
        """The selector of a 64-bit code segment for ring 0."""
        table = self._before.system["gdt"]
        raw = self._guest.read(table["base"], table["limit"] + 1 & ~7)
        for index, (descriptor,) in enumerate(struct.iter_unpack("<Q", raw)):
            if descriptor & DESCRIPTOR_MASK == DESCRIPTOR_CODE_64:
                return 8 * index
        raise CannotStep("ring 3 can't be stepped here: the guest has no 64-bit code for ring 0")

    def set(self) -> None:
        target = self.address
        gate = struct.pack(
            "<3HH2I",
            *(target & 0xFFFF, self._selector, INTERRUPT_GATE << 8),
            *(target >> 16 & 0xFFFF, target >> 32, 0),
        )
        self._guest.write(self._table + DEBUG_VECTOR * GATE_SIZE, gate)
        if self._own_table:
            self._set_table({"base": self._table, "limit": 2 * GATE_SIZE - 1})

    def undo(self) -> None:
        """Put all back. If the trap was sprung, the vCPU is in ring 3 again."""
        regs, system = self._vcpu.get_regs(), self._vcpu.get_sregs()
        sprung = regs["rip"] == self.address and not system["cs"]["selector"] & 3
        if sprung:
            before = self._before
            rip, _, rflags, rsp, _ = FRAME.unpack(self._guest.read(regs["rsp"], FRAME.size))
            rflags = rflags & ~RFLAGS_TF | before.registers["rflags"] & RFLAGS_TF
            self._vcpu.set_regs({**regs, "rip": rip, "rflags": rflags, "rsp": rsp})
            self._vcpu.set_sregs({**system, "cs": before.system["cs"], "ss": before.system["ss"]})
        if self._own_table:
            self._set_table(self._before.system["idt"])
        for address, data in self._saved:
            if sprung or address != self._frame:
                self._guest.write(address, data)

    def _set_table(self, table: dict[str, Any]) -> None:
        self._vcpu.set_sregs({**self._vcpu.get_sregs(), "idt": table})

    def _save(self, address: int, size: int) -> None:
        self._saved.append((address, self._guest.read(address, size)))
