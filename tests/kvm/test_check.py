"""`pyvmm check` on the host that there is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from kvm.command import PYVMM

from pyvmm import hostcheck
from pyvmm.kvm.system import host_has_hardware_kvm


def check(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYVMM, "check", *options], capture_output=True, text=True, check=False)


def test_a_host_with_kvm_runs_the_tiny_guest() -> None:
    ended = check()
    assert ended.returncode == 0
    assert "/dev/kvm" in ended.stdout
    assert "API version   12" in ended.stdout
    assert "a tiny guest ran" in ended.stdout
    assert "FAIL" not in ended.stdout


def test_a_container_without_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hostcheck, "DEVICE", str(tmp_path / "kvm"))
    device = hostcheck.examine()[0]
    assert device.level == "fail"
    assert "--device" in device.fix


def test_a_directory_in_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Docker makes one of `-v /dev/kvm:/dev/kvm` where there is no KVM."""
    monkeypatch.setattr(hostcheck, "DEVICE", str(tmp_path))
    device = hostcheck.examine()[0]
    assert (device.level, device.detail.endswith("not a device")) == ("fail", True)
    assert "mknod" in device.fix


def test_what_stands_in_the_way_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    good = hostcheck.Finding("API version", "ok", "12")
    bad = hostcheck.Finding("device", "fail", "no permission", "ask for it")
    worse = hostcheck.Finding("guest", "fail", "it said 41")
    note = hostcheck.Finding("network", "note", "no tap", "modprobe tun")
    monkeypatch.setattr(hostcheck, "host_has_hardware_kvm", lambda: True)
    assert hostcheck.obstacle([good, note], linux=True) == ""
    assert hostcheck.obstacle([good, bad, worse], linux=False) == (
        "no permission (ask for it); it said 41"
    )
    monkeypatch.setattr(hostcheck, "host_has_hardware_kvm", lambda: False)
    assert hostcheck.obstacle([good, note], linux=False) == ""
    assert "no vmx or svm" in hostcheck.obstacle([good], linux=True) or "small guests run" in (
        hostcheck.obstacle([good], linux=True)
    )
    assert hostcheck.obstacle([bad], linux=True) == "no permission (ask for it)"


def test_the_verdict_on_linux_is_that_of_the_cpu() -> None:
    hardware = host_has_hardware_kvm()
    assert check("--linux").returncode == (0 if hardware else 1)
    facts = json.loads(check("--json").stdout)
    assert facts["guests"] is True
    assert facts["linux"] is hardware
    kind = next(finding for finding in facts["findings"] if finding["name"] == "kind")
    assert ("hardware" in kind["detail"]) is hardware
