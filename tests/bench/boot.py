"""How long Debian's kernel takes from the VMM's start to its first process.

Where this host can't run Linux it is measured in the lab: everything is slower there by more than
an order of magnitude, code in Python more than code in C, so PyVMM looks worse than it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from guests import artefacts, initramfs, kernel
from tests.bench.table import LESS, Row, from_json
from tests.bench.vmm import BenchError, Guest, Vmm, installed, started, until
from tests.lab.lab import host_runs_linux

ROUNDS = 3
LAB = artefacts.PROJECT / "tests/lab/lab.py"
RESULTS = artefacts.BUILD / "lab-out/bench.json"
INIT_RUNS = "Run /init as init process"


def seconds(vmm: Vmm, guest: Guest) -> float:
    """One boot, up to the kernel's message that it starts init."""
    start = time.perf_counter()
    with started(vmm, guest) as (_, lines):
        return until(lines, INIT_RUNS)[-1].at - start


def measure(guest: Guest, rounds: int) -> list[Row]:
    """Here."""
    vmms = installed(elf=False)
    samples: dict[str, list[float]] = {vmm.name: [] for vmm in vmms}
    for _ in range(rounds):
        for vmm in vmms:
            samples[vmm.name].append(seconds(vmm, guest))
    return [Row(f"Debian's kernel, start to init{where()}", "s", LESS, samples)]


def in_lab() -> bool:
    """Whether this is the lab."""
    return "PYVMM_LAB" in os.environ


def where() -> str:
    """What a row's name ends in."""
    return " (in the lab)" if in_lab() else ""


def runs_linux() -> bool:
    """Whether KVM here runs Linux."""
    return in_lab() or host_runs_linux()


def from_lab(name: str, rounds: int) -> list[Row]:
    """A benchmark's rows, measured in the lab."""
    bench = [sys.executable, "-m", "tests.bench", name, "--rounds", str(rounds)]
    command = [sys.executable, str(LAB), "--", *bench, "--json", str(RESULTS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(result.stderr.strip())
    return from_json(json.loads(RESULTS.read_text()))


def boot(rounds: int = ROUNDS) -> list[Row]:
    """Here or in the lab."""
    append = "console=ttyS0 reboot=t panic=-1"
    guest = Guest(kernel.build("cloud"), append, initrd=initramfs.build("cloud"))
    return measure(guest, rounds) if runs_linux() else from_lab("boot", rounds)
