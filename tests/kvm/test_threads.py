"""The threads of a running machine, as the host sees them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kvm.command import TIMEOUT, run

from pyvmm.backends.character import NullBackend
from pyvmm.config import CpuPin, MachineConfig
from pyvmm.errors import HostError
from pyvmm.machine import Machine
from pyvmm.memory import MIB


@contextmanager
def halted(guests: Path, *pins: CpuPin) -> Iterator[Machine]:
    """A machine whose guest has halted, with two vCPUs."""
    config = MachineConfig(
        kernel=str(guests / "endings"),
        command_line="halt",
        memory_size=32 * MIB,
        cpus=2,
        cpu_affinity=pins,
    )
    machine = Machine(config, [NullBackend()])
    machine.start()
    try:
        yield machine
    finally:
        machine.close()


def thread(name: str) -> int:
    """The ID of the thread called ``name``, once there is one."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        for path in Path("/proc/self/task").glob("*/comm"):
            if path.read_text().strip() == name:
                return int(path.parent.name)
        time.sleep(0.01)
    raise AssertionError(f"no thread is called {name}")


def test_top_shows_names(guests: Path) -> None:
    with halted(guests):
        assert len({thread(name) for name in ("pyvmm-io", "pyvmm-vcpu0", "pyvmm-vcpu1")}) == 3


def test_a_vcpu_stays_where_it_is_put(guests: Path) -> None:
    allowed = os.sched_getaffinity(0)
    only = max(allowed)
    with halted(guests, CpuPin(1, (only,))):
        pinned, free = thread("pyvmm-vcpu1"), thread("pyvmm-vcpu0")
        deadline = time.monotonic() + TIMEOUT
        while os.sched_getaffinity(pinned) != {only} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.sched_getaffinity(pinned) == {only}
        assert os.sched_getaffinity(free) == allowed
        assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("extra", [(), (0,)])
def test_a_host_cpu_that_there_is_not(guests: Path, extra: tuple[int, ...]) -> None:
    before = os.sched_getaffinity(0)
    with (
        pytest.raises(HostError, match="vCPU 1 can't run on host CPU 8000"),
        halted(guests, CpuPin(1, (*extra, 8000))),
    ):
        pass
    assert os.sched_getaffinity(0) == before


def test_what_the_user_reads(guests: Path) -> None:
    ended = run(guests / "endings", "--cpu-affinity", "0=8000")
    assert ended.status == 1
    assert ended.stderr.count("\n") == 1
    assert "--cpu-affinity: vCPU 0 can't run on host CPU 8000" in ended.stderr
