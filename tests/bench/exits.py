"""What an exit costs: a bare loop in C against PyVMM's own, with the same guest.

The guest (guests/asm/exits.S) repeats one kind of access 20,000 times and says so at a port, then
the next kind. Both loops answer with a device that does nothing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from guests.asm.build import build
from pyvmm import layout
from pyvmm.boot.entry import EntryState
from pyvmm.bus import MMIO_SPACE, PIO_SPACE, Bus, Device
from pyvmm.errors import GuestFaults
from pyvmm.kvm import Kvm, Vcpu
from pyvmm.kvm.cpuid import guest_cpuid
from pyvmm.machine import SWITCH_INTERVAL
from pyvmm.memory import MIB, GuestMemory
from pyvmm.vcpu import Handlers, VcpuThread, enter
from tests.bench.table import LESS, PYVMM, Row

ROUNDS = 7
TIMES = 20_000
ENTRY = 0x7C00
MARK_PORT, PORT, ADDRESS = 0x5E0, 0x5E4, 0xD000_0000
LAST_MARK = 0xFF

SERIES = (
    "ring 0, out",
    "ring 0, in",
    "ring 0, MMIO store",
    "ring 0, MMIO load",
    "ring 3, out",
    "ring 3, in",
    "ring 3, MMIO store",
    "ring 3, MMIO load",
)

Costs = dict[int, float]
"""Nanoseconds by the series' number."""


class Nothing(Device):
    """Answers, and no more."""

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class Marks(Nothing):
    """Takes the time at the beginning of each series."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: Costs = {}
        self.done = threading.Event()
        self._series = LAST_MARK
        self._start = 0

    def write(self, offset: int, size: int, value: int) -> None:
        now = time.perf_counter_ns()
        if self._series != LAST_MARK:
            self.costs[self._series] = (now - self._start) / TIMES
        self._series, self._start = value, now
        if value == LAST_MARK:
            self.done.set()


def run_pyvmm(
    kvm: Kvm, guest: bytes, trace: Callable[[Vcpu, Handlers, Bus, Bus], Handlers] | None = None
) -> Costs:
    """PyVMM's bus and vCPU thread, without the rest of a machine; ``trace`` makes of the table of
    exit handlers one that records."""
    memory = GuestMemory(16 * MIB)
    memory.write(ENTRY, guest)
    vm = kvm.create_vm()
    vm.set_user_memory_region(0, 0, memory.regions[0].view)
    vm.set_tss_addr(layout.KVM_TSS)
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    vcpu.set_cpuid2(guest_cpuid(kvm.supported_cpuid(), apic_id=0, cpus=1, tsc_deadline=False))
    enter(vcpu, EntryState.real_mode(0, ENTRY, rsp=ENTRY))

    faults, marks = GuestFaults(), Marks()
    pio = Bus("port", PIO_SPACE, faults, flat=True)
    mmio = Bus("MMIO", MMIO_SPACE, faults)
    pio.add(MARK_PORT, 1, marks, "marks")
    pio.add(PORT, 1, Nothing(), "nothing")
    mmio.add(ADDRESS, 4, Nothing(), "nothing")

    problems: list[BaseException] = []

    def give_up(problem: BaseException) -> None:
        problems.append(problem)
        marks.done.set()

    thread = VcpuThread(
        vcpu,
        pio,
        mmio,
        on_crash=lambda _, crash: give_up(crash),
        on_reset=lambda: None,
        on_error=give_up,
        trace=None if trace is None else lambda cpu, handlers: trace(cpu, handlers, pio, mmio),
    )
    thread.start()
    marks.done.wait()
    thread.stop()
    thread.join()
    vcpu.close()
    vm.close()
    memory.close()
    if problems:
        raise problems[0]
    return marks.costs


def run_c(program: Path, guest: Path) -> Costs:
    """The bare loop."""
    result = subprocess.run([program, guest], stdout=subprocess.PIPE, text=True, check=True)
    return {int(number): float(cost) for number, cost in map(str.split, result.stdout.splitlines())}


def compile_c(directory: str) -> Path:
    """The bare loop's program, new in ``directory``."""
    program = Path(directory) / "exit_loop"
    source = Path(__file__).with_name("exit_loop.c")
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, source], check=True)
    return program


def loop(rounds: int = ROUNDS) -> list[Row]:
    """One exit and back, in microseconds, by the kind of access."""
    guest = build() / "exits"
    costs: dict[str, list[Costs]] = {PYVMM: [], "C loop": []}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    kvm = Kvm()
    with tempfile.TemporaryDirectory() as directory:
        program = compile_c(directory)
        for _ in range(rounds):
            costs[PYVMM].append(run_pyvmm(kvm, guest.read_bytes()))
            costs["C loop"].append(run_c(program, guest))
    kvm.close()
    sys.setswitchinterval(interval)
    return [
        Row(
            f"one exit: {name}",
            "us",
            LESS,
            {who: [each[number] / 1000 for each in runs] for who, runs in costs.items()},
        )
        for number, name in enumerate(SERIES)
    ]
