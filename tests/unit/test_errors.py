"""Errors for users have a sentence and a hint; guests' faults are counted and said once."""

from __future__ import annotations

import errno

import pytest
from unit.fakes import RecordingFaults

from pyvmm.errors import GuestFaults, HostError, KvmError, PyvmmError


def test_a_hint_stands_behind_the_sentence() -> None:
    assert str(PyvmmError("disk d is empty")) == "disk d is empty"
    assert str(PyvmmError("disk d is empty", "fill it")) == "disk d is empty (fill it)"


def test_a_kvm_error_names_the_ioctl_and_the_errno() -> None:
    error = KvmError("KVM_CREATE_VM", errno.ENOMEM)
    assert isinstance(error, HostError)
    assert str(error) == "KVM_CREATE_VM failed: Cannot allocate memory (errno 12)"


def test_a_fault_is_said_once_a_kind() -> None:
    faults = RecordingFaults()
    for index in range(1000):
        faults.report("bad descriptor", "index %d", index)
    faults.report("bad sector")
    assert faults.lines == ["guest: bad descriptor: index 0", "guest: bad sector"]
    assert faults.counts == {"bad descriptor": 1000, "bad sector": 1}


def test_what_the_host_fails_to_do_is_said_as_the_hosts() -> None:
    faults = RecordingFaults()
    faults.report_host("disk I/O failed", "%s: %s", "disk.raw", "No space left on device")
    faults.report_host("disk I/O failed", "%s: %s", "disk.raw", "Input/output error")
    assert faults.lines == ["host: disk I/O failed: disk.raw: No space left on device"]


def test_counting_says_nothing() -> None:
    faults = RecordingFaults()
    faults.count("probe")
    faults.count("probe")
    assert faults.lines == []
    assert faults.counts == {"probe": 2}


def test_without_another_place_faults_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    GuestFaults().report("bad descriptor")
    assert capsys.readouterr().err == "pyvmm: guest: bad descriptor\n"
