"""A crash report, whatever the registers hold: they are the guest's."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import RecordingFaults

from pyvmm.bus import MMIO_SPACE, PIO_SPACE, Bus
from pyvmm.crash import explain, state
from pyvmm.kvm import Vcpu
from pyvmm.kvm.vcpu import ExitRecord
from pyvmm.memory import MIB, GuestMemory
from pyvmm.vcpu import GuestCrash

GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt")
CR0_PE, EFER_LMA = 1 << 0, 1 << 10

words = st.integers(0, (1 << 64) - 1)


class FakeVcpu:
    """Paging is off: a linear address is the GPA."""

    id = 3
    exits = 0

    def __init__(self) -> None:
        self.regs = dict.fromkeys(GENERAL, 0)
        self.sregs: dict[str, Any] = {
            name: {"selector": 0, "base": 0, "l": 0, "db": 0} for name in SEGMENTS
        }
        self.sregs |= {name: {"base": 0, "limit": 0} for name in ("gdt", "idt")}
        self.sregs |= dict.fromkeys(("cr0", "cr2", "cr3", "cr4", "cr8", "efer"), 0)
        self.records: list[ExitRecord] = []

    def get_regs(self) -> dict[str, int]:
        return self.regs

    def get_sregs(self) -> dict[str, Any]:
        return self.sregs

    def get_mp_state(self) -> int:
        return 0

    def translate(self, linear_address: int) -> int | None:
        assert 0 <= linear_address < 1 << 64
        return linear_address

    def recent_exits(self) -> list[ExitRecord]:
        return self.records


@pytest.fixture(scope="module")
def memory() -> GuestMemory:
    memory = GuestMemory(MIB)
    memory.write(0x1234, b"\x0f\x0b")
    return memory


def report(vcpu: FakeVcpu, memory: GuestMemory) -> list[str]:
    pio = Bus("port", PIO_SPACE, RecordingFaults(), flat=True)
    mmio = Bus("MMIO", MMIO_SPACE, RecordingFaults())
    return list(explain(cast("Vcpu", vcpu), GuestCrash("triple fault"), memory, pio, mmio))


def code(vcpu: FakeVcpu, memory: GuestMemory) -> str:
    return next(line for line in report(vcpu, memory) if line.startswith("code: "))


def test_real_mode_code_is_at_the_segment_and_rip(memory: GuestMemory) -> None:
    vcpu = FakeVcpu()
    vcpu.sregs["cs"]["base"], vcpu.regs["rip"] = 0x1200, 0x34
    assert "<0f> 0b" in code(vcpu, memory)


def test_segments_wrap_at_4_gib(memory: GuestMemory) -> None:
    vcpu = FakeVcpu()
    vcpu.sregs["cr0"] = CR0_PE
    vcpu.sregs["cs"]["base"], vcpu.regs["rip"] = 0xFFFF_F000, 0x2234
    assert "<0f> 0b" in code(vcpu, memory)


def test_64_bit_code_ignores_the_segment(memory: GuestMemory) -> None:
    vcpu = FakeVcpu()
    vcpu.sregs["efer"], vcpu.sregs["cs"]["l"] = EFER_LMA, 1
    vcpu.sregs["cs"]["base"], vcpu.regs["rip"] = 0xFFFF_F000, 0x1234
    assert "<0f> 0b" in code(vcpu, memory)


@given(
    rip=words,
    base=words,
    control=st.integers(0, 0xFFFF_FFFF),
    efer=words,
    long=st.integers(0, 1),
    reason=st.integers(0, 0xFFFF_FFFF),
    detail=st.binary(min_size=32, max_size=32),
)
def test_any_state_can_be_reported(
    memory: GuestMemory,
    rip: int,
    base: int,
    control: int,
    efer: int,
    long: int,
    reason: int,
    detail: bytes,
) -> None:
    vcpu = FakeVcpu()
    vcpu.regs["rip"] = rip
    vcpu.sregs["cs"] |= {"base": base, "l": long}
    vcpu.sregs |= {"cr0": control, "efer": efer}
    vcpu.records = [ExitRecord(reason, rip, detail, 0), ExitRecord(2, rip, detail, 0)]
    assert report(vcpu, memory)[0] == "vCPU 3: triple fault"


def values(vcpu: FakeVcpu, memory: GuestMemory, crash: GuestCrash | None) -> dict[str, Any]:
    pio = Bus("port", PIO_SPACE, RecordingFaults(), flat=True)
    mmio = Bus("MMIO", MMIO_SPACE, RecordingFaults())
    return state(cast("Vcpu", vcpu), memory, pio, mmio, crash)


def test_plain_values_of_a_crash(memory: GuestMemory) -> None:
    vcpu = FakeVcpu()
    vcpu.regs["rip"] = 0x1234
    found = values(vcpu, memory, GuestCrash("can't", b"\x0f\x0b"))
    assert (found["id"], found["state"], found["mode"]) == (3, "running", "real mode")
    assert (found["crash"], found["instruction"]) == ("can't", "0f0b")
    assert found["registers"]["rip"] == 0x1234
    assert found["code"]["at_rip"].startswith("0f0b")


@given(rip=words, base=words, cr0=words, efer=words)
def test_plain_values_whatever_the_registers_hold(
    memory: GuestMemory, rip: int, base: int, cr0: int, efer: int
) -> None:
    vcpu = FakeVcpu()
    vcpu.regs["rip"], vcpu.sregs["cs"]["base"] = rip, base
    vcpu.sregs["cr0"], vcpu.sregs["efer"] = cr0, efer
    found = json.loads(json.dumps(values(vcpu, memory, None)))
    assert found["crash"] is None
    assert found["registers"]["rip"] == rip
