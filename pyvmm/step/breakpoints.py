"""The CPU's breakpoints, and whether they work in a guest here. They do on hardware. An emulated
CPU that has guests of its own may ignore their debug registers (QEMU's TCG does, with AMD-V), and a
breakpoint would be run over without a word. So it is tried, with two instructions.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from functools import cache

from pyvmm import layout
from pyvmm.boot.entry import EntryState
from pyvmm.errors import GuestMemoryError
from pyvmm.kvm import Kvm
from pyvmm.kvm._kvm import lib
from pyvmm.memory import PAGE_SIZE, GuestMemory
from pyvmm.step.cpu_state import EFER_LMA, CpuState
from pyvmm.step.linear import LinearMemory
from pyvmm.vcpu import enter

MAX_BREAKPOINTS = 4
DR7_FIXED = 1 << 10

CODE = 0x400
NOP_NOP_OUT = bytes([0x90, 0x90, 0xE6, 0x80])


def debug_registers(addresses: list[int]) -> list[int]:
    """DR0 to DR7 for breakpoints at linear addresses, on every task (SDM volume 3, section
    "Debug Registers")."""
    enabled = sum(1 << 2 * index for index in range(len(addresses)))
    return [*addresses, *[0] * (MAX_BREAKPOINTS - len(addresses)), 0, 0, 0, DR7_FIXED | enabled]


def handler_of(guest: LinearMemory, state: CpuState, vector: int) -> int | None:
    """The linear address of an interrupt's handler: where a breakpoint stops an ``int``, by which
    the CPU clears the trap flag. None if it has none, or one that is hard to find."""
    table = state.system["idt"]
    size = 4 if state.real_mode else 16 if state.system["efer"] & EFER_LMA else 8
    if (vector + 1) * size - 1 > table["limit"]:
        return None
    try:
        gate = guest.read(table["base"] + vector * size, size)
        if state.real_mode:
            offset, segment = struct.unpack("<HH", gate)
            return int(segment * 16 + offset)
        low: int
        high: int
        low, selector, _, high = struct.unpack_from("<4H", gate)
        if size == 16:
            return int.from_bytes(gate[8:12], "little") << 32 | high << 16 | low
        if selector & 4:
            return None  # in a local table
        descriptor = guest.read(state.system["gdt"]["base"] + (selector & ~7), 8)
    except GuestMemoryError:
        return None
    base: int = int.from_bytes(descriptor[2:5], "little") | descriptor[7] << 24
    return base + (high << 16 | low) & 0xFFFF_FFFF


@cache
def they_work() -> bool:
    """Whether a breakpoint stops a guest."""
    with ExitStack() as resources:
        memory = GuestMemory(PAGE_SIZE)
        resources.callback(memory.close)
        memory.write(CODE, NOP_NOP_OUT)
        kvm = Kvm()
        resources.callback(kvm.close)
        vm = kvm.create_vm()
        resources.callback(vm.close)
        vm.set_user_memory_region(0, 0, memory.regions[0].view)
        vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP)
        vm.set_tss_addr(layout.KVM_TSS)
        vm.create_irqchip()
        vcpu = vm.create_vcpu(0)
        resources.callback(vcpu.close)
        enter(vcpu, EntryState.real_mode(0, CODE))
        control = lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_USE_HW_BP
        vcpu.set_guest_debug(control, debug_registers([CODE + 1]))
        while (reason := vcpu.run()) in (-4, lib.KVM_EXIT_INTR):
            pass
        return bool(reason == lib.KVM_EXIT_DEBUG)
