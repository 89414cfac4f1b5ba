"""How long a start takes, and how much memory: `pyvmm run` against QEMU's microvm machine.

The guest (guests/asm/at_once.S, a PVH kernel) ends by its second instruction, so the whole
process's wall time is the time to the first instruction and back. Both take turns.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from guests.asm.build import build

ROUNDS = 15
STATUS = 21 << 1 | 1
"""What the guest makes both end with."""

BUDGET_RATIO = 1.5

QEMU = "qemu-system-x86_64"


def pyvmm_command(guest: Path) -> list[str]:
    """As a user would type it."""
    script = Path(sys.executable).with_name("pyvmm")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "pyvmm"]
    return [*start, "run", "--debug-exit", "--kernel", str(guest)]


def qemu_command(guest: Path) -> list[str]:
    """The leanest machine that QEMU has, with the same port."""
    options = "-M microvm -accel kvm -m 256M -nodefaults -no-user-config -display none -no-reboot"
    exit_port = "isa-debug-exit,iobase=0xf4,iosize=4"
    return [QEMU, *options.split(), "-device", exit_port, "-kernel", str(guest)]


def measure(command: list[str]) -> tuple[float, int]:
    """Wall time in milliseconds, and peak memory in KiB, of one run."""
    start = time.perf_counter_ns()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, wait_status, usage = os.wait4(process.pid, 0)
    elapsed = (time.perf_counter_ns() - start) / 1e6
    process.returncode = os.waitstatus_to_exitcode(wait_status)
    if process.returncode != STATUS:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}, not {STATUS}")
    return elapsed, usage.ru_maxrss


def main() -> None:
    """Measure and print the table."""
    guest = build() / "at_once"
    commands = {"pyvmm run": pyvmm_command(guest)}
    if shutil.which(QEMU):
        commands["qemu microvm"] = qemu_command(guest)
    else:
        print(f"No {QEMU} here to compare with.")
    runs: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            runs[name].append(measure(command))

    print(f"From exec to the guest's first instruction and exit; median (least) of {ROUNDS} runs")
    medians = {}
    for name, results in runs.items():
        times = [elapsed for elapsed, _ in results]
        medians[name] = statistics.median(times)
        memory = statistics.median(size for _, size in results) / 1024
        print(f"{name:16}{medians[name]:8.1f} ms ({min(times):.1f}){memory:8.1f} MiB")
    if len(medians) == 2:
        ratio = medians["pyvmm run"] / medians["qemu microvm"]
        print(f"ratio {ratio:.2f}; the budget: {BUDGET_RATIO}")


if __name__ == "__main__":
    main()
