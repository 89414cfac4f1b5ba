"""What `pyvmm run --step` shows, what instructions are said to write, and where interrupts lead."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot.entry import DescriptorTable, EntryState
from pyvmm.memory import MIB, GuestMemory
from pyvmm.step.accesses import MMIO, PORT, Access
from pyvmm.step.breakpoints import handler_of
from pyvmm.step.cpu_state import CpuState, flag_names
from pyvmm.step.disassembly import Disassembler, Instruction, register_value
from pyvmm.step.screen import RESET, WIDTH, YELLOW, Screen, plain
from pyvmm.step.stop import MemoryWrite
from pyvmm.step.trap_flag import clear_saved
from pyvmm.symbols import Symbol, Symbols

GENERAL = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split()
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt")


def state_of(entry: EntryState, **registers: int) -> CpuState:
    system: dict[str, Any] = {name: getattr(entry, name)._asdict() for name in SEGMENTS}
    for name in ("gdt", "idt"):
        system[name] = getattr(entry, name)._asdict()
    system |= {"cr0": entry.cr0, "cr3": entry.cr3, "cr4": entry.cr4, "efer": entry.efer}
    system |= {"cr2": 0, "cr8": 0}
    return CpuState(dict.fromkeys(GENERAL, 0) | entry.registers | registers, system, 0)


@pytest.fixture(scope="module")
def memory() -> GuestMemory:
    return GuestMemory(2 * MIB)


@pytest.fixture(params=["real", "protected", "long"])
def state(request: pytest.FixtureRequest, memory: GuestMemory) -> CpuState:
    if request.param == "real":
        return state_of(EntryState.real_mode(0x100, 0x20))
    if request.param == "protected":
        return state_of(EntryState.protected_mode(memory, 0x10_0000))
    return state_of(EntryState.long_mode(memory, 0x10_0000))


def real(**registers: int) -> CpuState:
    return state_of(EntryState.real_mode(0, 0x7C00), **registers)


class TestState:
    def test_modes(self, memory: GuestMemory) -> None:
        found = [
            (state.bits, state.address, state.ring)
            for state in (
                state_of(EntryState.real_mode(0x100, 0x20)),
                state_of(EntryState.protected_mode(memory, 0x10_0000)),
                state_of(EntryState.long_mode(memory, 0x10_0000)),
            )
        ]
        assert found == [(16, 0x1020, 0), (32, 0x10_0000, 0), (64, 0x10_0000, 0)]

    def test_changes(self) -> None:
        before, after = real(rax=1), real(rax=2, rip=0x7C02, rflags=0x10002)
        assert before.changes(after) == {"rax": (1, 2), "rip": (0x7C00, 0x7C02)}

    def test_flags(self) -> None:
        assert flag_names(0x3246) == ("PF", "ZF", "IF", "IOPL=3")
        assert flag_names(2) == ()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("rax", 0x1122_3344_5566_7788),
            ("eax", 0x5566_7788),
            ("ax", 0x7788),
            ("al", 0x88),
            ("ah", 0x77),
            ("r8d", 0xFFFF_FFFF),
            ("r8b", 0xFF),
            ("sil", 0x34),
            ("eip", 0x7C00),
            ("cr0", 0x10),
            ("gdt", 0),
            ("xyz", None),
            ("", None),
        ],
    )
    def test_registers_by_all_their_names(self, name: str, value: int | None) -> None:
        state = real(rax=0x1122_3344_5566_7788, r8=(1 << 64) - 1, rsi=0x1234)
        assert register_value(name, state) == value

    @given(st.text())
    def test_any_name(self, name: str) -> None:
        register_value(name, real())


@pytest.fixture(scope="module")
def disassembler() -> Disassembler:
    return Disassembler()


class TestDisassembly:
    @pytest.mark.parametrize(
        ("code", "bits", "text"),
        [
            ("b8 34 12", 16, "mov ax, 0x1234"),
            ("b8 78 56 34 12", 32, "mov eax, 0x12345678"),
            ("48 89 f3", 64, "mov rbx, rsi"),
        ],
    )
    def test_modes(self, disassembler: Disassembler, code: str, bits: int, text: str) -> None:
        found = disassembler.decode(bytes.fromhex(code), 0x1000, 0x1000, bits)
        assert found is not None
        assert found.text == text
        assert found.next_address == 0x1000 + len(bytes.fromhex(code))

    def test_targets(self, disassembler: Disassembler) -> None:
        call = disassembler.decode(bytes.fromhex("e8 10 00"), 0x1_2340, 0x2340, 16)
        assert call is not None
        assert (call.target, call.calls, call.jumps) == (0x2353, True, True)

    @given(st.binary(max_size=15), st.sampled_from([16, 32, 64]))
    def test_any_bytes(self, code: bytes, bits: int) -> None:
        disassembler = Disassembler()
        found = disassembler.decode(code, 0, 0, bits)
        if found is not None:
            disassembler.writes(found, real())

    @pytest.mark.parametrize(
        ("code", "registers", "writes"),
        [
            ("88 07", {"rbx": 0x5000}, [(0x1_5000, 1)]),  # mov [bx], al
            ("89 46 fe", {"rbp": 0x100}, [(0x2_00FE, 2)]),  # mov [bp-2], ax: the stack's segment
            ("26 89 07", {"rbx": 0xFFFF}, [(0x3_FFFF, 2)]),  # mov es:[bx], ax
            ("f3 aa", {"rdi": 0x10, "rcx": 5}, [(0x3_0010, 5)]),  # rep stosb
            ("f3 aa", {"rdi": 0x10, "rcx": 0}, []),
            ("50", {"rsp": 0x8000}, [(0x2_8000, 0)]),  # push ax
            ("8a 07", {"rbx": 0x5000}, []),  # mov al, [bx]
        ],
    )
    def test_writes(
        self,
        disassembler: Disassembler,
        code: str,
        registers: dict[str, int],
        writes: list[tuple[int, int]],
    ) -> None:
        state = real(**registers)
        for name, base in (("ds", 0x1_0000), ("ss", 0x2_0000), ("es", 0x3_0000)):
            state.system[name] = {**state.system[name], "base": base}
        found = disassembler.decode(bytes.fromhex(code), 0x7C00, 0x7C00, 16)
        assert found is not None
        assert disassembler.writes(found, state) == writes


class FlatMemory:
    """Linear memory that is RAM, for what reads no more."""

    def __init__(self, memory: GuestMemory) -> None:
        self.read = memory.read
        self.write = memory.write


class TestHandlers:
    """Where an interrupt's handler is, in each mode's table."""

    def test_real_mode(self, memory: GuestMemory) -> None:
        memory.write(0x60 * 4, bytes.fromhex("34120020"))
        assert handler_of(FlatMemory(memory), real(), 0x60) == 0x2_1234  # type: ignore[arg-type]

    def test_protected_mode(self, memory: GuestMemory) -> None:
        entry = EntryState.protected_mode(memory, 0x10_0000)._replace(
            idt=DescriptorTable(0x5000, 0x81 * 8 - 1)
        )
        memory.write(0x5000 + 0x80 * 8, bytes.fromhex("7856 1000 008e 3412"))
        guest = FlatMemory(memory)
        assert handler_of(guest, state_of(entry), 0x80) == 0x1234_5678  # type: ignore[arg-type]
        assert handler_of(guest, state_of(entry), 0x81) is None  # type: ignore[arg-type]

    def test_long_mode(self, memory: GuestMemory) -> None:
        entry = EntryState.long_mode(memory, 0x10_0000)._replace(
            idt=DescriptorTable(0x5000, 0x1000 - 1)
        )
        memory.write(0x5000 + 0x80 * 16, bytes.fromhex("7856 1000 008e 3412 ffffffff 00000000"))
        found = handler_of(FlatMemory(memory), state_of(entry), 0x80)  # type: ignore[arg-type]
        assert found == 0xFFFF_FFFF_1234_5678

    def test_a_table_outside_memory(self, memory: GuestMemory) -> None:
        entry = EntryState.real_mode(0, 0)._replace(idt=DescriptorTable(1 << 31, 0x3FF))
        assert handler_of(FlatMemory(memory), state_of(entry), 0) is None  # type: ignore[arg-type]


class TestSavedTrapFlag:
    def saved(self, memory: GuestMemory, mnemonic: str, after: CpuState, at: int) -> int:
        """The word at ``at`` after a step from 0x7C00 by ``mnemonic``; TF was set in it."""
        memory.write_u16(at, 0x0302)
        instruction = Instruction(0x7C00, 0x7C00, b"\x90\x90", mnemonic, "")
        guest: Any = FlatMemory(memory)
        vcpu: Any = None
        clear_saved(vcpu, guest, instruction, real(rsp=0x7000), after)
        return memory.read_u16(at)

    def test_pushf(self, memory: GuestMemory) -> None:
        assert self.saved(memory, "pushf", real(rsp=0x6FFE, rip=0x7C02), 0x6FFE) == 0x0202

    def test_an_interrupts_frame(self, memory: GuestMemory) -> None:
        memory.write(0x6FFA, bytes.fromhex("027c 0000"))
        assert self.saved(memory, "int", real(rsp=0x6FFA, rip=0x1000), 0x6FFE) == 0x0202

    def test_below_what_the_handler_has_pushed(self, memory: GuestMemory) -> None:
        memory.write(0x6FF0, bytes(10) + bytes.fromhex("007c 0000"))
        assert self.saved(memory, "mov", real(rsp=0x6FF0, rip=0x1000), 0x6FFE) == 0x0202

    def test_what_a_call_pushes_is_left_alone(self, memory: GuestMemory) -> None:
        memory.write(0x6FFA, bytes.fromhex("027c 0000"))
        guest: Any = FlatMemory(memory)
        vcpu: Any = None
        memory.write_u16(0x6FFE, 0x0302)
        call = Instruction(0x7C00, 0x7C00, b"\xff\xd0", "call", "ax", jumps=True)
        clear_saved(vcpu, guest, call, real(rsp=0x7000), real(rsp=0x6FFA, rip=0x1000))
        assert memory.read_u16(0x6FFE) == 0x0302


class TestScreen:
    def test_changed_registers_are_marked_without_colours(self, state: CpuState) -> None:
        lines = Screen(Symbols([])).registers(state, {"rax"})
        marked = [word for line in lines for word in line.split("  ") if "*" in word]
        assert len(marked) == 1
        assert "AX" in "".join(lines).split("*")[1][:4]
        assert all(len(line) <= WIDTH for line in lines)
        assert lines[-1] == f" mode: {state.mode}"

    def test_and_with_them(self, state: CpuState) -> None:
        lines = Screen(Symbols([]), colour=True).registers(state, {"rax"})
        assert sum(line.count(YELLOW) for line in lines) == 1
        assert sum(line.count(RESET) for line in lines) == 1

    def test_system_registers(self, state: CpuState) -> None:
        lines = Screen(Symbols([])).system_registers(state, {"cr0"})
        assert [line for line in lines if line.startswith("*")] == [
            line for line in lines if "CR0" in line
        ]
        assert all(len(line) <= WIDTH for line in lines)

    def test_an_instruction_of_another_function_has_a_label(self, state: CpuState) -> None:
        screen = Screen(Symbols([Symbol(state.address, 8, "main"), Symbol(0x9000, 0, "other")]))
        there = Instruction(state.address, state.rip, b"\x90", "nop", "")
        call = Instruction(state.address, state.rip, b"\xe8\0\0", "call", "0x9000", 0x9000)
        assert screen.instruction(there, state)[0] == "main:"
        (line,) = screen.instruction(call, state, current=True)
        assert line.startswith("→")
        assert line.endswith("call 0x9000 <other>")

    def test_changes_wrap(self, state: CpuState) -> None:
        changes = dict.fromkeys(GENERAL, (0, (1 << 64) - 1))
        lines = Screen(Symbols([]), colour=True).changes(changes, state)
        assert len(lines) > 3
        assert sum(line.count("→") for line in lines) == len(GENERAL) - 1  # RIP shows elsewhere

    def test_accesses(self) -> None:
        screen = Screen(Symbols([]))
        out = Access(PORT, True, 0x3F8, 1, (0x41,), "serial COM1", "THR", "'A'")
        load = Access(MMIO, False, 0xD000_0000, 4, (7,), "", "memory", "nobody answers")
        burst = Access(PORT, True, 0x80, 1, (1, 2, 3, 4, 5), "POST", "code", "")
        assert screen.access(out).strip() == "out 0x3f8 ← 0x41  serial COM1 THR: 'A'"
        assert screen.access(load).strip() == "load 0xd0000000 → 0x7 (32 bits)  nobody answers"
        assert "(5 in all)" in screen.access(burst)

    def test_memory_writes(self) -> None:
        screen = Screen(Symbols([]))
        assert "memory 7ffe: 1 → 1234 (16 bits)" in screen.write(
            MemoryWrite(0x7FFE, b"\1\0", b"\x34\x12")
        )
        long = screen.write(MemoryWrite((1 << 64) - 64, bytes(64), bytes(64)))
        assert long.endswith("… (64 bytes)")
        assert len(long) <= WIDTH

    @given(st.binary(max_size=64), st.sampled_from([1, 2, 4, 8]), st.sampled_from("xd"))
    def test_memory(self, data: bytes, unit: int, form: str) -> None:
        lines = Screen(Symbols([])).memory(0x1000, data, unit, form)
        assert len(lines) == -(-len(data) // 16)
        assert all(len(line) <= WIDTH for line in lines)

    @given(st.binary())
    def test_what_a_guest_prints_moves_no_cursor(self, data: bytes) -> None:
        text = plain(data)
        assert text.isprintable()
