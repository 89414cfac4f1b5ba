"""Machine as a library: many in one process, and nothing left behind."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from kvm.machines import config, open_descriptors

from pyvmm.backends.character import NullBackend
from pyvmm.errors import ImageError
from pyvmm.machine import Machine
from pyvmm.outcome import Reason


def test_machines_one_after_the_other_leave_nothing(guests: Path, tmp_path: Path) -> None:
    gc.collect()
    before = open_descriptors()
    for _ in range(3):
        machine = Machine(config(guests / "at_once", tmp_path / "disk"), [NullBackend()])
        machine.start()
        assert machine.wait(60)
        outcome = machine.close()
        assert (outcome.reason, outcome.value) == (Reason.DEBUG_EXIT, 21)
    del machine
    gc.collect()  # mappings go with the last view of them
    assert open_descriptors() == before


def test_machines_side_by_side(guests: Path, tmp_path: Path) -> None:
    machines = [
        Machine(config(guests / "at_once", tmp_path / f"disk{number}"), [NullBackend()])
        for number in range(3)
    ]
    for machine in machines:
        machine.start()
    assert all(machine.wait(60) for machine in machines)
    assert {machine.close().reason for machine in machines} == {Reason.DEBUG_EXIT}


def test_an_end_that_a_signal_interrupts_can_be_had_again(
    guests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor's signal handler raises in the main thread, wherever that is."""
    wanted = config(guests / "endings", tmp_path / "disk")._replace(command_line="halt")
    machine = Machine(wanted, [NullBackend()])
    machine.start()

    def interrupted() -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(machine.vcpus[0], "stop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        machine.end(Reason.TIMEOUT)
    machine.end(Reason.INTERRUPTED)
    assert machine.wait(60)
    assert machine.close().reason is Reason.TIMEOUT


def test_a_machine_that_can_not_be_built_leaves_nothing(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_text("no kernel\n" * 100)
    wanted = config(kernel, tmp_path / "disk")
    gc.collect()
    before = open_descriptors()
    for _ in range(2):  # the second time the disk must not be locked still
        with pytest.raises(ImageError, match="kernel"):
            Machine(wanted, [NullBackend()])
    gc.collect()
    assert open_descriptors() == before
