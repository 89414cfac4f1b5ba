"""A vCPU's state at one moment: registers, and what they say in words."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyvmm.crash import instruction_address, mode_in_words
from pyvmm.kvm import Vcpu
from pyvmm.kvm._kvm import lib

CR0_PE = 1 << 0
EFER_LMA = 1 << 10

RFLAGS_IF = 1 << 9
RFLAGS_RF = 1 << 16
RFLAGS_VM = 1 << 17
FLAGS = {
    0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF",
    14: "NT", 16: "RF", 17: "VM", 18: "AC", 19: "VIF", 20: "VIP", 21: "ID",
}  # fmt: skip
"""The flags by their bit in RFLAGS (SDM volume 1, section 3.4.3)."""
IOPL_SHIFT = 12

SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")

GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
)


class CpuState(NamedTuple):
    """General registers, RIP and RFLAGS; segments, descriptor tables and control registers as KVM
    has them; and whether it runs (a KVM_MP_STATE)."""

    registers: dict[str, int]
    system: dict[str, Any]
    mp_state: int

    @classmethod
    def of(cls, vcpu: Vcpu) -> CpuState:
        """That of a vCPU which isn't running."""
        return cls(vcpu.get_regs(), vcpu.get_sregs(), vcpu.get_mp_state())

    @property
    def rip(self) -> int:
        return self.registers["rip"]

    @property
    def address(self) -> int:
        """The linear address of the next instruction."""
        return instruction_address(self.registers, self.system)

    @property
    def real_mode(self) -> bool:
        return not self.system["cr0"] & CR0_PE

    @property
    def bits(self) -> int:
        """The size of the code segment's operands and addresses: 16, 32 or 64."""
        if self.real_mode or self.registers["rflags"] & RFLAGS_VM:
            return 16
        code = self.system["cs"]
        if self.system["efer"] & EFER_LMA and code["l"]:
            return 64
        return 32 if code["db"] else 16

    @property
    def ring(self) -> int:
        """The current privilege level."""
        if self.real_mode:
            return 0
        if self.registers["rflags"] & RFLAGS_VM:
            return 3
        return int(self.system["cs"]["selector"] & 3)

    @property
    def halted(self) -> bool:
        """Whether it waits for an interrupt, after ``hlt``."""
        return self.mp_state == int(lib.KVM_MP_STATE_HALTED)

    @property
    def running(self) -> bool:
        return self.mp_state == int(lib.KVM_MP_STATE_RUNNABLE)

    @property
    def interrupts_on(self) -> bool:
        return bool(self.registers["rflags"] & RFLAGS_IF)

    @property
    def mode(self) -> str:
        """Such as ``64-bit long mode, ring 0``."""
        return mode_in_words(self.system)

    @property
    def flags(self) -> tuple[str, ...]:
        """The names of the flags that are set, from bit 0 up."""
        return flag_names(self.registers["rflags"])

    @property
    def values(self) -> dict[str, int]:
        """All registers as plain numbers, under their names: a segment's is its selector, and
        ``gdt`` and ``idt`` are the tables' addresses."""
        system = self.system
        return {
            **self.registers,
            **{name: system[name]["selector"] for name in (*SEGMENTS, "tr", "ldt")},
            **{name: system[name]["base"] for name in ("gdt", "idt")},
            **{name: system[name] for name in CONTROL},
        }

    def changes(self, after: CpuState) -> dict[str, tuple[int, int]]:
        """Which of :attr:`values` differ in ``after``: the value here, and there. Not
        the resume flag, which is KVM's doing."""
        old, new = self.values, after.values
        for values in (old, new):
            values["rflags"] &= ~RFLAGS_RF
        return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


def flag_names(rflags: int) -> tuple[str, ...]:
    """The names of the flags that are set in ``rflags``, from bit 0 up; IOPL if it isn't 0."""
    names = [name for bit, name in FLAGS.items() if rflags >> bit & 1]
    iopl = rflags >> IOPL_SHIFT & 3
    return (*names, *([f"IOPL={iopl}"] if iopl else []))
