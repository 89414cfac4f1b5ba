"""Guests moved by hand: what a step tells, in every mode; and the prompt of `pyvmm run --step`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from kvm.assembler import assemble
from kvm.command import PYVMM, TIMEOUT, Ended, command, run_to_end
from kvm.terminal import CTRL_C, CTRL_D, terminal

from pyvmm.backends.character import NullBackend
from pyvmm.config import MachineConfig
from pyvmm.errors import GuestMemoryError
from pyvmm.kvm.system import host_has_hardware_kvm
from pyvmm.machine import Machine
from pyvmm.outcome import Reason
from pyvmm.step import breakpoints
from pyvmm.step import stop as steps
from pyvmm.step.stepper import Stepper
from pyvmm.step.stop import Stop
from pyvmm.symbols import Symbols

Make = Callable[..., AbstractContextManager[Stepper]]

PROJECT = Path(__file__).parent.parent.parent
ENTRY = 0x7C00
MASK_LINES = "mov al, 0xFF; out 0x21, al; out 0xA1, al"
POWER_OFF = "mov dx, 0x604; mov ax, 0x3400; out dx, ax; 9: hlt; jmp 9b"


@contextmanager
def stepping(kernel: Path, entry: str = "auto", **options: Any) -> Iterator[Stepper]:
    config = MachineConfig(kernel=str(kernel), command_line="", entry=entry, **options)
    machine = Machine(config, [NullBackend()])
    try:
        with Stepper(machine) as stepper:
            yield stepper
        assert machine.failure is None
    finally:
        machine.close()


@pytest.fixture
def real_mode(tmp_path: Path) -> Make:
    """Makes a stepper for a few instructions of real mode."""

    def make(source: str, **options: Any) -> AbstractContextManager[Stepper]:
        guest = tmp_path / "guest"
        guest.write_bytes(assemble(source, address=ENTRY))
        return stepping(guest, "real", **options)

    return make


@pytest.fixture(params=["by the CPU", "step by step"])
def breakpoints_found(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breakpoints work in both ways."""
    if request.param == "step by step":
        monkeypatch.setattr(breakpoints, "they_work", lambda: False)
    elif not breakpoints.they_work():
        pytest.skip("this CPU's breakpoints have no effect in a guest")


@pytest.fixture
def cpu_breakpoints() -> None:
    """For what is too far to go step by step."""
    if not breakpoints.they_work():
        pytest.skip("this CPU's breakpoints have no effect in a guest")


def texts(stops: list[Stop]) -> list[str]:
    return [stop.instruction.text if stop.instruction else "" for stop in stops]


class TestInstructions:
    def test_registers_and_flags(self, real_mode: Make) -> None:
        with real_mode("mov ax, 0x1234; mov bx, ax; sub ax, bx; hlt") as stepper:
            stops = [stepper.step() for _ in range(3)]
        assert texts(stops) == ["mov ax, 0x1234", "mov bx, ax", "sub ax, bx"]
        assert stops[0].changes == {"rip": (ENTRY, ENTRY + 3), "rax": (0, 0x1234)}
        assert stops[1].changes["rbx"] == (0, 0x1234)
        assert "ZF" not in stops[1].after.flags
        assert "ZF" in stops[2].after.flags
        assert [stop.why for stop in stops] == [steps.STEPPED] * 3

    def test_memory_writes(self, real_mode: Make) -> None:
        source = "mov sp, 0x7000; push 0x1234; mov word ptr [0x5000], 7; call 1f; 1: nop"
        with real_mode(source) as stepper:
            stepper.step()
            pushed, stored, called = (stepper.step().writes for _ in range(3))
            assert stepper.read(0x5000, 2) == b"\x07\x00"
        assert [(w.address, w.after) for w in pushed] == [(0x6FFE, b"\x34\x12")]
        assert [(w.address, w.before, w.after) for w in stored] == [(0x5000, b"\0\0", b"\x07\0")]
        assert called[0].address == 0x6FFC

    def test_port_access_completes_within_the_step(self, real_mode: Make) -> None:
        source = "mov dx, 0x3FF; mov al, 0x5A; out dx, al; xor al, al; in al, dx; nop"
        with real_mode(source) as stepper:
            stops = [stepper.step() for _ in range(5)]
        out, in_ = stops[2], stops[4]
        assert out.after.rip == out.instruction.next_address
        (access,) = out.accesses
        assert (access.write, access.address, access.values) == (True, 0x3FF, (0x5A,))
        assert (access.device, access.register) == ("serial COM1", "SCR")
        assert in_.after.registers["rax"] & 0xFF == 0x5A
        assert in_.accesses[0].values == (0x5A,)

    def test_mmio_access_completes_within_the_step(self, real_mode: Make) -> None:
        """A load and a store of one instruction are one step with two accesses."""
        source = """
                lgdt    [pointer]
                mov     eax, cr0
                or      al, 1
                mov     cr0, eax
                ljmp    8, offset protected
                .code32
        protected:
                mov     eax, 16
                mov     ds, eax
                mov     al, [0xD0000008]
                and     byte ptr [0xD0000008], 0x0F
                mov     ebx, 7
        gdt:    .quad   0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF
        pointer:
                .word   23
                .long   gdt
        """
        with real_mode(source) as stepper:
            for _ in range(7):
                stepper.step()
            assert stepper.state().mode == "32-bit protected mode without paging, ring 0"
            load, both, after = (stepper.step() for _ in range(3))
        assert [(a.write, a.address, a.values) for a in load.accesses] == [
            (False, 0xD000_0008, (0xFF,))
        ]
        assert load.after.registers["rax"] & 0xFF == 0xFF
        assert both.instruction.mnemonic == "and"
        assert [(a.write, a.values) for a in both.accesses] == [(False, (0xFF,)), (True, (0x0F,))]
        assert after.changes["rbx"] == (0, 7)

    def test_rep_string_io_is_one_exit_at_a_time(self, real_mode: Make) -> None:
        source = f"cld; mov cx, 3; mov si, {ENTRY}; mov dx, 0x80; rep outsb; nop; hlt"
        with real_mode(source) as stepper:
            for _ in range(4):
                stepper.step()
            written = []
            while stepper.state().registers["rcx"]:
                stop = stepper.step()
                written += [value for access in stop.accesses for value in access.values]
            assert len(written) == 3
            assert bytes(written) == stepper.read(ENTRY, 3)
            while stepper.disassemble(stepper.state().address)[0].mnemonic != "nop":
                stepper.step()

    @pytest.mark.usefixtures("breakpoints_found")
    def test_rep_movs_is_stepped_over(self, real_mode: Make) -> None:
        source = f"cld; mov cx, 8; mov si, {ENTRY}; mov di, 0x5000; rep movsb; nop; hlt"
        with real_mode(source) as stepper:
            for _ in range(4):
                stepper.step()
            stop = stepper.over(TIMEOUT)
            assert stop.why == steps.STEPPED
            assert stop.after.registers["rcx"] == 0
            assert stepper.disassemble(stop.after.address)[0].mnemonic == "nop"
            assert stepper.read(0x5000, 8) == stepper.read(ENTRY, 8)

    @pytest.mark.usefixtures("breakpoints_found")
    def test_a_call_is_stepped_over_even_if_it_recurses(self, real_mode: Make) -> None:
        source = """
            mov sp, 0x7000; mov cx, 3
            call 1f
            hlt
        1:  dec cx; jz 2f
            call 1b
        2:  inc bx
            ret
        """
        with real_mode(source) as stepper:
            stepper.step()
            stepper.step()
            stop = stepper.over(TIMEOUT)
        assert stop.why == steps.STEPPED
        assert stop.after.registers["rbx"] == 3
        assert stop.after.registers["rsp"] == 0x7000
        assert stepper.breakpoints == []

    @pytest.mark.usefixtures("cpu_breakpoints")
    def test_software_interrupt(self, real_mode: Make) -> None:
        source = "mov sp, 0x7000; mov word ptr [0x60 * 4], 0x7D00; int 0x60"
        with real_mode(source) as stepper:
            stops = [stepper.step() for _ in range(3)]
        assert stops[2].after.address == 0x7D00
        (frame,) = stops[2].writes
        assert (frame.address, len(frame.after)) == (0x6FFA, 6)


class TestHalt:
    def test_halted_for_good(self, real_mode: Make) -> None:
        with real_mode("cli; hlt; nop") as stepper:
            stepper.step()
            stop = stepper.step()
            assert (stop.why, stop.after.halted) == (steps.HALTED, True)
            assert stepper.step().why == steps.HALTED  # it doesn't hang
            assert stepper.cont(0.2).why == steps.TIMEOUT

    @pytest.mark.usefixtures("cpu_breakpoints")
    def test_an_interrupt_wakes_it(self, real_mode: Make) -> None:
        """The PIT's, which waits while the guest is stepped up to its `hlt`."""
        source = """
            mov sp, 0x7000
            mov word ptr [8 * 4], offset handler
            mov word ptr [8 * 4 + 2], 0
            mov al, 0x11; out 0x20, al; mov al, 8; out 0x21, al
            mov al, 4; out 0x21, al; mov al, 1; out 0x21, al; mov al, 0xFE; out 0x21, al
            mov al, 0x34; out 0x43, al; mov al, 0; out 0x40, al; mov al, 4; out 0x40, al
            sti
            nop
            hlt
            mov bx, 7
            hlt
        handler:
            inc cx
            mov al, 0x20; out 0x20, al
            iret
        """
        with real_mode(source) as stepper:
            while (stop := stepper.step()).why == steps.STEPPED:
                assert stop.after.registers["rcx"] == 0  # interrupts wait
            assert stop.why == steps.HALTED
            stop = stepper.step()
            assert (stop.why, stop.woken) == (steps.STEPPED, True)
            assert stop.after.registers["rcx"] == 1
            if not host_has_hardware_kvm():
                stack = stop.before.registers["rsp"] - stop.after.registers["rsp"]
                assert stack == 6
            while (stop := stepper.step()).why == steps.STEPPED:
                pass
            # Back from the handler, and on to the next halt: the first one left nothing behind.
            assert stop.after.registers["rbx"] == 7

    @pytest.mark.usefixtures("cpu_breakpoints")
    def test_a_stepped_halt_leaves_nothing_behind(self, real_mode: Make) -> None:
        """KVM, had it single-stepped the `hlt`, would halt the vCPU when it runs freely again."""
        source = f"""
            mov sp, 0x7000
            mov word ptr [2 * 4], offset handler
            {MASK_LINES}
            sti
            hlt
            {POWER_OFF}
        handler:
            nop
            iret
        """
        with real_mode(source) as stepper:
            while stepper.step().why != steps.HALTED:
                pass
            stepper.machine.vcpus[0].vcpu.nmi()
            assert stepper.step().woken
            assert stepper.cont(TIMEOUT).why == steps.ENDED
            assert stepper.machine.outcome.reason is Reason.POWER_OFF


class TestRunning:
    def test_to_the_next_exit(self, real_mode: Make) -> None:
        with real_mode(
            "mov cx, 1000; 1: loop 1b; mov al, 3; out 0x80, al; out 0xED, al"
        ) as stepper:
            first, second = stepper.next_exit(TIMEOUT), stepper.next_exit(TIMEOUT)
        assert first.why == second.why == steps.EXIT
        assert (first.accesses[0].address, first.accesses[0].values) == (0x80, (3,))
        assert first.changes["rax"] == (0, 3)
        assert second.accesses[0].address == 0xED

    @pytest.mark.usefixtures("breakpoints_found")
    def test_breakpoints(self, real_mode: Make) -> None:
        with real_mode("mov cx, 5; 1: inc bx; loop 1b; hlt") as stepper:
            loop = ENTRY + 3
            stepper.add_breakpoint(loop)
            for round in range(5):
                stop = stepper.cont(TIMEOUT)
                assert (stop.why, stop.after.address) == (steps.BREAKPOINT, loop)
                assert stop.after.registers["rbx"] == round
            stepper.breakpoints.clear()
            assert stepper.cont(0.2).why == steps.TIMEOUT
            assert stepper.state().halted

    @pytest.mark.usefixtures("breakpoints_found")
    def test_a_breakpoint_right_behind_another(self, real_mode: Make) -> None:
        with real_mode("nop; nop; nop; hlt") as stepper:
            stepper.breakpoints = [ENTRY, ENTRY + 1, ENTRY + 3]
            found = [stepper.cont(TIMEOUT).after.address for _ in range(2)]
        assert found == [ENTRY + 1, ENTRY + 3]

    @pytest.mark.usefixtures("breakpoints_found")
    def test_there_are_four(self, real_mode: Make) -> None:
        with real_mode("nop; nop; nop; nop; nop; hlt") as stepper:
            for offset in range(1, 5):
                stepper.add_breakpoint(ENTRY + offset)
            with pytest.raises(ValueError, match="only 4"):
                stepper.add_breakpoint(ENTRY + 5)
            with pytest.raises(ValueError, match="only 4"):
                stepper.until(ENTRY + 5)
            assert [stepper.cont(TIMEOUT).after.address for _ in range(4)] == stepper.breakpoints

    @pytest.mark.usefixtures("breakpoints_found")
    def test_until(self, real_mode: Make) -> None:
        with real_mode("mov cx, 5; 1: inc bx; loop 1b; inc dx; hlt") as stepper:
            stop = stepper.until(ENTRY + 6, TIMEOUT)
            assert (stop.why, stop.after.registers["rbx"]) == (steps.REACHED, 5)
            assert stepper.breakpoints == []

    def test_the_guests_end(self, real_mode: Make) -> None:
        with real_mode(POWER_OFF) as stepper:
            stop = stepper.step()
            while stop.why == steps.STEPPED:
                stop = stepper.step()
            assert stop.why == steps.ENDED
            assert stop.accesses[0].address == 0x604
            assert stepper.machine.outcome.reason is Reason.POWER_OFF
            assert stepper.step().why == steps.ENDED

    def test_a_reset(self, real_mode: Make) -> None:
        source = "inc bx; mov dx, 0xCF9; mov al, 6; out dx, al; hlt"
        with real_mode(source, on_reboot="restart") as stepper:
            for _ in range(3):
                stop = stepper.cont(TIMEOUT)
                assert stop.why == steps.RESET
                assert stepper.state().address == ENTRY
                assert stepper.step().changes["rbx"] == (0, 1)

    def test_handing_the_machine_back(self, real_mode: Make) -> None:
        with real_mode(f"nop; nop; {POWER_OFF}") as stepper:
            stepper.add_breakpoint(ENTRY + 1)
            stepper.cont(TIMEOUT)
            stepper.close()
            stepper.machine.resume()
            assert stepper.machine.wait(TIMEOUT)
            assert stepper.machine.outcome.reason is Reason.POWER_OFF

    def test_somebody_else_resets_the_machine(self, real_mode: Make) -> None:
        with real_mode("1: inc bx; jmp 1b", on_reboot="restart") as stepper:
            timer = stepper.machine.loop.timer(stepper.machine.reset)
            timer.arm(stepper.machine.loop.now_ns() + 50_000_000)
            assert stepper.cont(TIMEOUT).why == steps.RESET
            assert stepper.state().address == ENTRY


class TestLooking:
    def test_memory(self, real_mode: Make) -> None:
        with real_mode("nop", memory_size=2 << 20) as stepper:
            assert stepper.read(ENTRY, 1, physical=True) == b"\x90"
            with pytest.raises(GuestMemoryError):
                stepper.read(2 << 20, 1)
            with pytest.raises(GuestMemoryError):
                stepper.read((2 << 20) - 1, 2, physical=True)
            with pytest.raises(GuestMemoryError):
                stepper.read((1 << 64) - 1, 16)
            assert stepper.disassemble((2 << 20) - 2, 4)  # zeros up to the end of memory
            assert stepper.disassemble(1 << 40) == []

    def test_protected_mode(self, guests: Path) -> None:
        with stepping(guests / "pvh") as stepper:
            assert stepper.state().mode.startswith("32-bit protected mode without paging, ring 0")
            stop = stepper.step()
            assert stop.instruction.text.startswith("lgdt")
            assert "gdt" in stop.changes
            stop = stepper.step()
            assert stop.instruction.mnemonic == "ljmp"
            assert stop.changes["cs"] == (0x10, 0x08)

    def test_long_mode_with_symbols(self, guests: Path) -> None:
        symbols = Symbols.load(guests / "apic")
        with stepping(guests / "apic") as stepper:
            assert stepper.state().mode == "64-bit long mode, ring 0"
            assert symbols.name(stepper.state().address) == "_start"
            main = symbols.address("guest_main")
            assert main is not None
            stop = stepper.until(main, TIMEOUT)
            assert (stop.why, stop.after.address) == (steps.REACHED, main)
            found = stepper.disassemble(main, 5)
            assert found[0].address == main
            assert all(a.next_address == b.address for a, b in pairwise(found))

    @pytest.mark.usefixtures("cpu_breakpoints")
    def test_from_real_mode_to_ring_3(self, guests: Path) -> None:
        """Step by step through all modes; also where KVM doesn't single-step ring 3."""
        seen = []
        with stepping(guests / "ring3", "real") as stepper:
            stepper.breakpoints = []
            while not seen or seen[-1] != "64-bit long mode, ring 3":
                stop = stepper.over(TIMEOUT)
                assert stop.why == steps.STEPPED
                mode = stop.after.mode
                if mode not in seen:
                    seen.append(mode)
                if stop.instruction.mnemonic == "jne":  # the page tables' loops
                    stepper.until(stop.instruction.next_address, TIMEOUT)
            assert seen == [
                "real mode",
                "16-bit protected mode without paging, ring 0",
                "32-bit protected mode without paging, ring 0",
                "32-bit long mode, ring 0",
                "64-bit long mode, ring 0",
                "64-bit long mode, ring 3",
            ]
            for _ in range(20):
                before = stepper.state()
                stop = stepper.step()
                assert stop.why == steps.STEPPED
                assert stop.after.ring == 3
                straight = stop.instruction.next_address
                assert stop.after.address in (
                    straight,
                    stop.instruction.target,
                    before.address,
                ) or (stop.instruction.mnemonic == "ret")
            assert not stop.after.registers["rflags"] & 1 << 8  # no trap flag is left
            stop = stepper.over(TIMEOUT)
            stepper.add_breakpoint(stepper.disassemble(stop.after.address, 3)[2].address)
            assert stepper.cont(TIMEOUT).why in (steps.BREAKPOINT, steps.ENDED)

    @pytest.mark.usefixtures("cpu_breakpoints")
    def test_vcpus(self, guests: Path) -> None:
        symbols = Symbols.load(guests / "smp")
        with stepping(guests / "smp", cpus=2) as stepper:
            stepper.vcpu = 1
            assert stepper.step().why == steps.WAITING
            stepper.vcpu = 0
            stop = stepper.until(symbols.address("introduce") or 0, TIMEOUT)
            assert stop.why == steps.REACHED
            other = stepper.state(1 - stop.vcpu)
            stepper.step()
            assert stepper.state(1 - stop.vcpu) == other  # it stands still
            # The other one comes there, too.
            stop = stepper.until(symbols.address("introduce") or 0, TIMEOUT)
            assert (stop.why, stop.vcpu) == (steps.REACHED, 1)
            assert stepper.vcpu == 1
            assert stepper.cont(TIMEOUT).why == steps.ENDED


def script(kernel: Path, lines: str, *options: str, append: str | None = None) -> Ended:
    arguments = command(kernel, "--step", *options, append=append)
    return run_to_end(arguments, lines.encode(), TIMEOUT)


class TestScript:
    def test_to_the_guests_end(self, guests: Path) -> None:
        ended = script(guests / "real", "s\ns\nc\n", "--entry", "real")
        assert ended.status == 0
        assert "pyvmm: guest powered off" in ended.stderr.splitlines()[-1]
        assert ended.lines.count("step> s") == 2
        assert "      EFLAGS 2 → 46 [PF ZF]" in ended.lines
        assert "| ok: POST port" in ended.lines

    def test_end_of_input_ends_the_guest(self, guests: Path) -> None:
        ended = script(guests / "apic", "s\n")
        assert ended.status == 130
        assert "interrupted from the prompt" in ended.stderr.splitlines()[-1]

    def test_quit(self, guests: Path) -> None:
        ended = script(guests / "apic", "q\ns\n")
        assert ended.status == 130
        assert len(ended.stderr.splitlines()) == 1

    @pytest.mark.usefixtures("cpu_breakpoints")
    def test_symbols_registers_and_memory(self, guests: Path) -> None:
        ended = script(
            guests / "apic", "b guest_main\nc\nb\nr all\nx/2g rsp\nx/s rip\nd 0x100000\np rsp+8\n"
        )
        assert "guest_main:" in ended.lines
        assert any(line.startswith("*RIP") for line in ended.lines)
        assert any("PE ET PG" in line for line in ended.lines)
        assert all(len(line) <= 80 for line in ended.lines), ended.lines

    def test_from_the_reset_vector_in_rom(self, tmp_path: Path) -> None:
        subprocess.run([sys.executable, PROJECT / "firmware/build.py"], check=True)
        disk = tmp_path / "disk.raw"
        disk.write_bytes(bytes(4096))
        words = [*PYVMM, "run", "--step", "-d", str(disk)]
        lines = "x/1i rip\nx/2b 0xfffffff0\nxp/1b 0xfffffff0\nx 0xfffeffff\ns\n"
        ended = run_to_end(words, lines.encode(), TIMEOUT)
        first = next(line for line in ended.lines if line.startswith("→"))
        assert "ljmp" in first
        listed = ended.lines[ended.lines.index("step> x/1i rip") + 1]
        assert "ljmp" in listed
        assert sum(line.startswith("fffffff0  ea") for line in ended.lines) == 2
        assert "not in RAM" in ended.lines[ended.lines.index("step> x 0xfffeffff") + 1]
        after = ended.lines[ended.lines.index("step> s") :]
        assert any(line.startswith("→ f000:") for line in after), after

    def test_pointers_are_with_their_segments(self, tmp_path: Path) -> None:
        source = """
            ljmp 0x7C0, 5
            mov ax, 0x1000
            mov ss, ax
            mov sp, 0x100
            push 0x1234
            nop
            nop
        """
        guest = tmp_path / "guest"
        guest.write_bytes(assemble(source, address=ENTRY))
        lines = "s 5\nx/2i rip\nx/1h sp\nu ip+1\nb rip+1\np rip\n"
        ended = script(guest, lines, "--entry", "real")

        def answer(line: str) -> list[str]:
            at = ended.lines.index(f"step> {line}") + 1
            return ended.lines[at : at + 2]

        assert [line[-3:] for line in answer("x/2i rip")] == ["nop", "nop"]
        assert answer("x/1h sp")[0].split()[:2] == ["000100fe", "1234"]
        assert answer("u ip+1")[0].startswith("→ 07c0:0011")
        assert answer("b rip+1")[0].endswith("07c0:0012")
        assert answer("p rip")[0].startswith("0x11 = 17")

    def test_what_is_not_understood_has_an_answer(self, guests: Path) -> None:
        lines = "bogus\nb 7c00\nx 0x90000000000\nv 7\nu\ni \\q\ns x\nx/99999x 0\n\ns\n"
        ended = script(guests / "apic", lines)
        answers = [line for line in ended.lines if not line.startswith(("step>", "→", "   "))]
        assert "there is no command 'bogus'; h lists them" in answers
        assert "'7c00' is no number, register or symbol; did you mean 0x7c00?" in answers
        assert any("not mapped" in answer for answer in answers)
        assert "Traceback" not in ended.stderr
        assert ended.status == 130

    def test_a_crash_is_explained(self, guests: Path) -> None:
        ended = script(guests / "endings", "c\n", append="triple-fault")
        assert ended.status == 4
        assert "guest crashed: triple fault" in ended.stderr.splitlines()[-1]

    def test_the_guest_reads_what_is_typed_for_it(self, tmp_path: Path) -> None:
        source = f"""
        1:  mov dx, 0x3FD
        2:  in al, dx
            test al, 1
            jz 2b
            mov dx, 0x3F8
            in al, dx
            cmp al, 'q'
            je 3f
            out dx, al
            jmp 1b
        3:  {POWER_OFF}
        """
        guest = tmp_path / "guest"
        guest.write_bytes(assemble(source, address=ENTRY))
        ended = script(guest, "i hel\\x6Co\ni \\tbye\\c\ni q\nc\n", "--entry", "real")
        assert ended.status == 0
        assert ended.lines[-2:] == ["| hello", "|     bye"]

    def test_timeout(self, guests: Path) -> None:
        ended = script(guests / "pvh", "c\n", "--timeout", "1")
        assert ended.status == 124

    def test_what_the_guest_prints_moves_no_cursor(self, tmp_path: Path) -> None:
        guest = tmp_path / "guest"
        guest.write_bytes(
            assemble(f"mov dx, 0x3F8; mov al, 27; out dx, al; mov al, 'c'; out dx, al; {POWER_OFF}")
        )
        ended = script(guest, "c\n", "--entry", "real")
        assert "| \\x1bc" in ended.lines
        assert b"\x1b" not in ended.console

    def test_without_the_disassembler(self, guests: Path, tmp_path: Path) -> None:
        (tmp_path / "capstone.py").write_text("raise ImportError")
        ended = subprocess.run(
            command(guests / "apic", "--step"),
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 1
        assert ended.stderr == (
            "pyvmm: --step needs the disassembler capstone, which is not installed"
            " (pip install 'pyvmm[step]')\n"
        )


PROMPT = b"step> "


class TestTerminal:
    def test_a_session(self, guests: Path) -> None:
        """Enter repeats, Ctrl-C comes back from the guest, Ctrl-D ends it."""
        with terminal(command(guests / "pvh", "--step")) as tty:
            tty.read_until(PROMPT)
            tty.type(b"s\r")
            assert b"GDT" in tty.read_until(PROMPT)
            tty.type(b"\r")
            assert b"CS" in tty.read_until(PROMPT)
            tty.type(b"c\r")
            tty.read_until(b"echo until Ctrl-D")
            tty.type(CTRL_C)
            tty.read_until(b"interrupted")
            tty.read_until(PROMPT)
            tty.type(b"r\r")
            assert b"EAX" in tty.read_until(PROMPT)
            tty.type(CTRL_D)
            tty.read_until(b"pyvmm: interrupted from the prompt")
            assert tty.finish() == 130

    def test_ctrl_c_at_the_prompt_is_a_new_prompt(self, guests: Path) -> None:
        with terminal(command(guests / "pvh", "--step")) as tty:
            tty.read_until(PROMPT)
            tty.type(b"garbage" + CTRL_C)
            tty.read_until(PROMPT)
            tty.type(b"q\r")
            assert tty.finish() == 130

    def test_sigterm_restores_the_terminal(self, guests: Path) -> None:
        with terminal(command(guests / "pvh", "--step")) as tty:
            tty.read_until(PROMPT)
            tty.process.send_signal(signal.SIGTERM)
            assert tty.finish() == 143

    def test_timeout_at_the_prompt(self, guests: Path) -> None:
        with terminal(command(guests / "pvh", "--step", "--timeout", "1")) as tty:
            tty.read_until(b"pyvmm: guest ran into the timeout")
            assert tty.finish() == 124
