"""A crash, explained: what the vCPU was doing when it could not go on.

Registers and control registers as a kernel developer knows them from an oops, the bytes at RIP,
and the last exits from the vCPU's ring, oldest first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from pyvmm.bus import Bus
from pyvmm.errors import GuestMemoryError, KvmError
from pyvmm.kvm._kvm import lib
from pyvmm.kvm.system import host_has_hardware_kvm
from pyvmm.kvm.vcpu import ExitRecord, Vcpu
from pyvmm.memory import GuestMemory
from pyvmm.vcpu import EXIT_REASONS, MMIO_DETAIL, PIO_DETAIL, RESET_VECTOR, GuestCrash

LAST_EXITS = 3
"""How many exits are shown of a vCPU that merely was stopped."""

CODE_BEFORE, CODE_AFTER = 16, 24
"""How many bytes around RIP are shown."""

RFLAGS_IF = 1 << 9  # interrupts are let in
MP_STATES = {
    lib.KVM_MP_STATE_RUNNABLE: "running",
    lib.KVM_MP_STATE_UNINITIALIZED: "not started yet",
    lib.KVM_MP_STATE_INIT_RECEIVED: "waiting for its start-up IPI",
    lib.KVM_MP_STATE_HALTED: "halted",
}
EFER_LMA = 1 << 10  # long mode is active
LOST_REGISTERS = (
    "these are the registers after a reset: AMD-V doesn't keep those of a triple fault, so only the"
    " last exits tell where it was"
)

SOFTWARE_KVM_ADVICE = (
    "this host's KVM is a software one (no vmx or svm in /proc/cpuinfo): it interprets the guest's"
    " kernel, lacks many instructions and can't run Linux",
    "a machine with hardware virtualisation can, and so can an emulated one that offers KVM to"
    " its guest: 'pyvmm check' says more",
)


def explain(
    vcpu: Vcpu, crash: GuestCrash, memory: GuestMemory, pio: Bus, mmio: Bus
) -> tuple[str, ...]:
    """The lines of a crash report; taken on the vCPU's own thread, after its last exit."""
    lines = [f"vCPU {vcpu.id}: {crash.summary}"]
    if crash.instruction:
        lines.append(f"the instruction: {crash.instruction.hex(' ')}")
    try:
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    except KvmError as error:
        return (*lines, f"its registers can't be read: {error.message}")
    lines += _registers(regs)
    lines += _system_registers(sregs)
    address = instruction_address(regs, sregs)
    lines.append(LOST_REGISTERS if address == RESET_VECTOR else _code_at(vcpu, memory, address))
    exits = vcpu.recent_exits()
    lines.append(f"the last {len(exits)} of {vcpu.exits} exits, oldest first:")
    lines += [f"  {_exit_line(record, pio, mmio)}" for record in exits]
    if not host_has_hardware_kvm():
        lines += SOFTWARE_KVM_ADVICE
    return tuple(lines)


def whereabouts(vcpu: Vcpu, pio: Bus, mmio: Bus) -> tuple[str, ...]:
    """Where a vCPU was when the run was given up: at which instruction, whether halted, whether
    it would have taken interrupts, and what it had last asked of a device. After its thread has
    ended."""
    try:
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        state = MP_STATES.get(vcpu.get_mp_state(), "in an unknown state")
    except KvmError as error:
        return (f"vCPU {vcpu.id}: its registers can't be read: {error.message}",)
    interrupts = "on" if regs["rflags"] & RFLAGS_IF else "off"
    where = f"{state} at {regs['rip']:016x}, interrupts {interrupts}, {mode_in_words(sregs)}"
    exits = vcpu.recent_exits()[-LAST_EXITS:]
    return (
        f"vCPU {vcpu.id}: {where}; the last of {vcpu.exits} exits:",
        *(f"  {_exit_line(record, pio, mmio)}" for record in exits),
    )


def state(
    vcpu: Vcpu, memory: GuestMemory, pio: Bus, mmio: Bus, crash: GuestCrash | None = None
) -> dict[str, Any]:
    """The same as plain values, for programs: what ``pyvmm run --json`` tells of a vCPU that was
    stopped, or that had ``crash``. After its thread has ended, or on it."""
    exits = list(exit_lines(vcpu, pio, mmio))
    found: dict[str, Any] = {
        "id": vcpu.id,
        "crash": None if crash is None else crash.summary,
        "instruction": crash.instruction.hex() if crash is not None and crash.instruction else None,
        "exits": vcpu.exits,
        "last_exits": exits,
    }
    try:
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        found["state"] = MP_STATES.get(vcpu.get_mp_state(), "in an unknown state")
    except KvmError:
        return {**found, "state": None, "mode": None, "registers": None, "code": None}
    names = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
    address = instruction_address(regs, sregs)
    lost = crash is not None and address == RESET_VECTOR  # see LOST_REGISTERS
    code = None if lost else _bytes_around(vcpu, memory, address)
    return {
        **found,
        "mode": mode_in_words(sregs),
        "registers": None if lost else regs | {name: sregs[name] for name in names},
        "code": code and {"before": code[0].hex(), "at_rip": code[1].hex()},
    }


def exit_lines(vcpu: Vcpu, pio: Bus, mmio: Bus) -> Iterator[str]:
    """The last exits, oldest first, a line each. While its thread is at rest, or after its end."""
    for record in vcpu.recent_exits():
        yield _exit_line(record, pio, mmio)


def _registers(regs: dict[str, int]) -> Iterator[str]:
    yield f"RIP {regs['rip']:016x}  RFLAGS {regs['rflags']:08x}"
    names = [name for name in regs if name not in ("rip", "rflags")]
    for start in range(0, len(names), 4):
        yield "  ".join(f"{n.upper():3} {regs[n]:016x}" for n in names[start : start + 4])


def _system_registers(sregs: dict[str, Any]) -> Iterator[str]:
    for names in (("cs", "ss", "ds", "es"), ("fs", "gs", "tr", "ldt")):
        yield "  ".join(
            f"{n.upper():3} {sregs[n]['selector']:04x} @{sregs[n]['base']:x}" for n in names
        )
    for name in ("gdt", "idt"):
        yield f"{name.upper()} {sregs[name]['base']:016x} limit {sregs[name]['limit']:04x}"
    yield "  ".join(f"{n.upper()} {sregs[n]:x}" for n in ("cr0", "cr2", "cr3", "cr4", "efer"))
    yield f"mode: {mode_in_words(sregs)}"


def instruction_address(regs: dict[str, int], sregs: dict[str, Any]) -> int:
    """RIP's linear address: 64-bit code ignores the segment's base, all other wraps at 4 GiB."""
    if sregs["efer"] & EFER_LMA and sregs["cs"]["l"]:
        return regs["rip"]
    return int(sregs["cs"]["base"] + regs["rip"] & 0xFFFF_FFFF)


def mode_in_words(sregs: dict[str, Any]) -> str:
    """The CPU's mode and ring."""
    if not sregs["cr0"] & 1:
        return "real mode"
    ring = f"ring {sregs['cs']['selector'] & 3}"
    if sregs["efer"] & EFER_LMA:
        return f"{'64' if sregs['cs']['l'] else '32'}-bit long mode, {ring}"
    paging = "with" if sregs["cr0"] >> 31 else "without"
    return f"{'32' if sregs['cs']['db'] else '16'}-bit protected mode {paging} paging, {ring}"


def _code_at(vcpu: Vcpu, memory: GuestMemory, address: int) -> str:
    """The bytes around ``address``, the one there in angle brackets as in an oops."""
    gpa = _translate(vcpu, address)
    if gpa is None:
        return "code: RIP is not mapped"
    code = _bytes_around(vcpu, memory, address)
    if code is None:
        return f"code: RIP is at GPA {gpa:#x}, outside RAM"
    before, after = code
    return f"code: {before.hex(' ')} <{after[0]:02x}> {after[1:].hex(' ')}".replace("  ", " ")


def _bytes_around(vcpu: Vcpu, memory: GuestMemory, address: int) -> tuple[bytes, bytes] | None:
    """What lies before ``address`` in its page, and what from there on; None if it isn't in RAM."""
    gpa = _translate(vcpu, address)
    if gpa is None:
        return None
    try:
        after = memory.read(gpa, min(CODE_AFTER, 4096 - gpa % 4096))
        before = memory.read(gpa - min(CODE_BEFORE, gpa % 4096), min(CODE_BEFORE, gpa % 4096))
    except GuestMemoryError:
        return None
    return before, after


def _translate(vcpu: Vcpu, address: int) -> int | None:
    try:
        return vcpu.translate(address)
    except KvmError:
        return None


def _exit_line(record: ExitRecord, pio: Bus, mmio: Bus) -> str:
    """One exit as a person reads it."""
    what = EXIT_REASONS.get(record.reason, f"exit {record.reason}")
    if record.reason == lib.KVM_EXIT_IO:
        direction, size, port, count = PIO_DETAIL.unpack_from(record.detail)
        value = record.pio_data & (1 << 8 * size) - 1
        action = f"out {port:#x}, {value:#x}" if direction else f"in {port:#x}"
        times = f" ×{count}" if count > 1 else ""
        what = f"{action} ({size * 8} bits){times}{_owner(pio, port)}"
    elif record.reason == lib.KVM_EXIT_MMIO:
        address, length, is_write = MMIO_DETAIL.unpack_from(record.detail)
        data = struct.unpack_from("<Q", record.detail, 8)[0] & (1 << 8 * min(length, 8)) - 1
        action = f"store {address:#x}, {data:#x}" if is_write else f"load {address:#x}"
        what = f"{action} ({length * 8} bits){_owner(mmio, address)}"
    return f"{record.rip:016x}  {what}"


def _owner(bus: Bus, address: int) -> str:
    found = bus.find(address)
    return f"  {found.name}+{address - found.base:#x}" if found else "  nobody"
