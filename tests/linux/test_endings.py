"""How a Linux guest's end is reported: exit status and last line. What doesn't depend on the kernel
(time-outs, patterns, signals) is tested in the kvm tier, with a guest that is up at once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from kvm.command import Running
from linux.boot import Images, boot, boot_command, job


def options(images: Images, *more: str) -> tuple[str, ...]:
    return ("--initrd", str(images.initrd), *more)


def test_power_off(images: Images) -> None:
    ended = boot(images.bzimage, *options(images, *job("true")))
    assert ended.status == 0
    assert re.fullmatch(r"pyvmm: guest powered off after \d+\.\d\d s\n", ended.stderr)


@pytest.mark.parametrize("how", ["a", "p"])
def test_reboot(images: Images, how: str) -> None:
    """By ACPI's reset register, by port 0xCF9; by the keyboard controller in test_reboot.py."""
    ended = boot(
        images.bzimage, *options(images, "--append", f"reboot={how}", *job("true", "reboot"))
    )
    assert ended.status == 0
    assert "guest rebooted" in ended.stderr


def test_a_panic_ends_the_run_with_its_message(images: Images) -> None:
    ended = boot(images.bzimage, *options(images, *job("true", "panic")))
    assert ended.status == 3
    assert ended.stderr.startswith('pyvmm: guest panicked: "sysrq triggered crash" after')
    assert any("panic+0x" in line for line in ended.lines)  # the trace was still printed


def test_a_panic_that_hangs_ends_the_run_too(images: Images) -> None:
    """With panic=0 Linux stops for ever; nobody should wait for the timeout."""
    ended = boot(images.bzimage, *options(images, "--append", "panic=0", *job("true", "panic")))
    assert ended.status == 3


def test_a_dead_init_is_a_panic(images: Images) -> None:
    ended = boot(images.bzimage, *options(images, "--append", "quiet rdinit=/bin/true"))
    assert ended.status == 3
    assert "Attempted to kill init" in ended.stderr


def test_a_warning_of_a_kernel_that_goes_on(images: Images, tmp_path: Path) -> None:
    """And nothing that a boot prints before counts as one."""
    say = "echo WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2 > /dev/kmsg; sleep 1000"
    files = ("--junit", str(tmp_path / "junit.xml"), "--json", str(tmp_path / "result.json"))
    warnings = ("--append", "loglevel=7", "--fail-on-warnings")
    ended = boot(images.bzimage, *options(images, *job(say), *warnings, *files))
    assert ended.status == 5
    assert 'reported a problem: "WARNING: CPU: 0 PID: 1 at kernel/x.c:1' in ended.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["match"]["pattern"] == "warning"
    assert 0 < result["seconds"]["first_line"] < result["seconds"]["init"]
    assert "<failure" in (tmp_path / "junit.xml").read_text()


def test_expect_ends_the_run(images: Images) -> None:
    ended = boot(
        images.bzimage,
        *options(images, *job("echo found: it; sleep 1000"), "--expect", "^found: .t"),
    )
    assert ended.status == 0
    assert "found: it" in ended.stderr


def test_a_shell_on_a_pipe(images: Images) -> None:
    """Commands typed ahead of the boot reach the shell."""
    ended = boot(
        images.bzimage,
        *options(images, "--append", "quiet"),
        stdin=b"echo six times seven: $((6*7))\npoweroff -f\n",
    )
    assert ended.status == 0
    assert ended.value("six times seven") == "42"


def test_sigterm_shuts_the_guest_down(images: Images) -> None:
    """By the power button, to which the guest's init listens."""
    running = Running(boot_command(images.bzimage, *options(images, *job("echo up:", "shell"))))
    running.read_until(b"# ")
    running.process.terminate()
    status, console, stderr = running.finish()
    assert b"power button" in console
    assert status == 0
    assert "guest powered off" in stderr
