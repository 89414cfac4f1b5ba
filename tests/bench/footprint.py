"""What a machine with one CPU and a disk takes of the host while it runs: memory and threads."""

from __future__ import annotations

import re
from pathlib import Path

from guests.asm.build import build
from tests.bench.guest import disk_image
from tests.bench.table import LESS, Row
from tests.bench.vmm import MEMORY_MIB, Guest, Vmm, installed, started, until

ROUNDS = 3


def resident_beyond_ram(smaps: str) -> float:
    """MiB in memory, shared libraries included, without the mapping that is the guest's RAM."""
    sizes = [int(size) for size in re.findall(r"^Size: +(\d+) kB$", smaps, re.MULTILINE)]
    resident = [int(size) for size in re.findall(r"^Rss: +(\d+) kB$", smaps, re.MULTILINE)]
    ram = MEMORY_MIB << 10
    return sum(rss for size, rss in zip(sizes, resident, strict=True) if size != ram) / 1024


def look(vmm: Vmm, guest: Guest) -> tuple[float, float]:
    """Resident memory and threads, once the guest's driver has set up the disk."""
    with started(vmm, guest) as (process, lines):
        until(lines, "^holding$")
        directory = Path(f"/proc/{process.pid}")
        found = re.search(r"^Threads:\s+(\d+)$", (directory / "status").read_text(), re.MULTILINE)
        assert found
        return resident_beyond_ram((directory / "smaps").read_text()), float(found[1])


def footprint(rounds: int = ROUNDS) -> list[Row]:
    """Both."""
    vmms = installed(elf=True)
    memory: dict[str, list[float]] = {vmm.name: [] for vmm in vmms}
    threads: dict[str, list[float]] = {vmm.name: [] for vmm in vmms}
    with disk_image(1) as image:
        guest = Guest(build() / "bench", "hold", disks=(image,))
        for _ in range(rounds):
            for vmm in vmms:
                resident, count = look(vmm, guest)
                memory[vmm.name].append(resident)
                threads[vmm.name].append(count)
    return [
        Row("resident memory beyond the guest's", "MiB", LESS, memory),
        Row("threads, with a disk at rest", "", LESS, threads),
    ]
