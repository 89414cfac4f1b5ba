"""What an exit costs: a bare loop in C against PyVMM's own, with the same guest.

The guest (guests/asm/exits.S) repeats one kind of access 20,000 times and says so at a port, then
the next kind. Both loops answer with a device that does nothing. They take turns, so that what
else the machine does hits both, and the medians are compared.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from guests.asm.build import build
from pyvmm import layout
from pyvmm.boot.entry import EntryState
from pyvmm.bus import MMIO_SPACE, PIO_SPACE, Bus, Device
from pyvmm.errors import GuestFaults
from pyvmm.kvm import Kvm
from pyvmm.kvm.cpuid import guest_cpuid
from pyvmm.memory import MIB, GuestMemory
from pyvmm.vcpu import VcpuThread, enter

ROUNDS = 7
TIMES = 20_000
ENTRY = 0x7C00
MARK_PORT, PORT, ADDRESS = 0x5E0, 0x5E4, 0xD000_0000
LAST_MARK = 0xFF

SERIES = (
    "ring 0  out",
    "ring 0  in",
    "ring 0  MMIO store",
    "ring 0  MMIO load",
    "ring 3  out",
    "ring 3  in",
    "ring 3  MMIO store",
    "ring 3  MMIO load",
)

BUDGET_US = 1.5

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


def run_pyvmm(kvm: Kvm, guest: bytes) -> Costs:
    """PyVMM's bus and vCPU thread, without the rest of a machine."""
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


def main() -> None:
    """Measure and print the table."""
    guest = build() / "exits"
    c_costs: list[Costs] = []
    pyvmm_costs: list[Costs] = []
    sys.setswitchinterval(1e-4)
    kvm = Kvm()
    with tempfile.TemporaryDirectory() as directory:
        program = compile_c(directory)
        for _ in range(ROUNDS):
            c_costs.append(run_c(program, guest))
            pyvmm_costs.append(run_pyvmm(kvm, guest.read_bytes()))
    kvm.close()

    print(f"One exit and back, {TIMES} times, median of {ROUNDS} rounds; microseconds")
    print(f"{'':20}{'C loop':>10}{'PyVMM':>10}{'more':>10}{'ratio':>8}")
    for number, name in enumerate(SERIES):
        c = statistics.median(costs[number] for costs in c_costs) / 1000
        pyvmm = statistics.median(costs[number] for costs in pyvmm_costs) / 1000
        print(f"{name:20}{c:10.2f}{pyvmm:10.2f}{pyvmm - c:+10.2f}{pyvmm / c:8.2f}")
    print(f"The budget: about {BUDGET_US} more.")


if __name__ == "__main__":
    main()
