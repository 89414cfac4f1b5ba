"""Start-up time is part of the product: a run imports what its machine needs, and no more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

STATUS = 21 << 1 | 1

SLOW = {
    "asyncio",
    "click",
    "inspect",
    "json",
    "logging",
    "pathlib",
    "socket",
    "subprocess",
    "tempfile",
    "typing_extensions",
}


def imported(kernel: Path, *options: str) -> set[str]:
    """The names of all modules that a run imports."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pyvmm"]
        + ["run", "--debug-exit", "-m", "32M", "-k", str(kernel), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == STATUS, ended.stderr[-1000:]
    return set(re.findall(r"^import time:.*\| +(\S+)$", ended.stderr, re.MULTILINE))


def optional(modules: set[str]) -> set[str]:
    """Those that not every machine has a use for."""
    backends = {"disk", "tap", "unix_socket"}
    found = {name for name in modules if name.startswith("pyvmm.virtio.")}
    found |= modules & {f"pyvmm.backends.{name}" for name in backends}
    return found | modules & {"pyvmm.device_config", "pyvmm.crash"}


def test_a_plain_run(guests: Path) -> None:
    modules = imported(guests / "at_once")
    assert "pyvmm.machine" in modules
    assert not optional(modules)
    assert not modules & SLOW
    assert not modules & {"pyvmm.boot.signatures", "pyvmm.boot.compression"}


def test_a_disk_brings_its_own_modules(guests: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4096))
    modules = imported(guests / "at_once", "--disk", str(disk))
    kinds = {name.rpartition(".")[2] for name in optional(modules)}
    assert {"blk", "disk", "pci_transport", "device_config"} <= kinds
    assert not kinds & {"balloon", "console", "mmio_transport", "net", "rng", "tap", "vsock"}
    assert not modules & SLOW
