"""The guest that the benchmarks use: it gets something done of everything that it measures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kvm.command import run

MIB = 1 << 20
SERIES = {
    "port", "mmio", "doorbell",
    "read-1m", "write-1m", "read-4k-1", "write-4k-1", "read-4k-32", "write-4k-32",
    "busy-50", "busy-99", "busy-100",
}  # fmt: skip


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_every_series(guests: Path, tmp_path: Path, transport: str) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(b"\xa5" * (8 * MIB))
    disk = f"{image},transport={transport}"
    ended = run(
        guests / "bench", "--debug-exit", "--disk", disk, append="ticks=1000000 exits disk busy"
    )
    assert ended.failures == []
    assert ended.status == 1, ended  # the guest wrote 0 to the debug exit port
    found = re.findall(r"^([\w-]+): ([0-9a-f]+) [0-9a-f]+$", "\n".join(ended.lines), re.MULTILINE)
    assert {name for name, count in found if int(count, 16)} == SERIES
