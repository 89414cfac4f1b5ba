"""How long a start takes.

The guest (guests/asm/at_once.S, a PVH kernel) ends by its second instruction, so the whole
process's wall time is the time to the first instruction and back.
"""

from __future__ import annotations

import compileall
import subprocess
import time
from pathlib import Path

import pyvmm
from guests.asm.build import build
from tests.bench.table import LESS, Row
from tests.bench.vmm import BenchError, Guest, Vmm, installed

ROUNDS = 7
STATUS = 21 << 1 | 1
"""What the guest makes all of them end with."""


def milliseconds(vmm: Vmm, guest: Guest) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    process = subprocess.run(
        vmm.command(guest),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    elapsed = time.perf_counter() - start
    if process.returncode != STATUS:
        raise BenchError(f"{vmm.name} ended with {process.returncode}, not {STATUS}")
    return elapsed * 1e3


def startup(rounds: int = ROUNDS) -> list[Row]:
    """From exec to the guest's first instruction, and exit."""
    # An installed PyVMM has its bytecode; a checkout that was edited may not.
    compileall.compile_dir(str(Path(pyvmm.__file__).parent), quiet=1)
    guest = Guest(build() / "at_once")
    vmms = installed(elf=True)
    samples: dict[str, list[float]] = {vmm.name: [] for vmm in vmms}
    for _ in range(rounds):
        for vmm in vmms:
            samples[vmm.name].append(milliseconds(vmm, guest))
    return [Row("start to the guest's first instruction, and exit", "ms", LESS, samples)]
