"""Debian as it is installed: its kernel, its initrd, systemd, a disk and a network card."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvm.command import Running
from linux.boot import boot_command, built

from guests import debian, debian_disk
from guests.network import GUEST

TIMEOUT = 900
"""Seconds for two starts and what is done between. In the lab they take about 120."""

PROMPT = b"root@debian:~# "
MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """A fresh copy of the disk; it takes half a gigabyte, so not for longer than the test."""
    copy = tmp_path / "debian.raw"
    subprocess.run(["cp", str(built(debian_disk.IMAGE)), str(copy)], check=True)
    yield copy
    copy.unlink()


@pytest.fixture
def guest(image: Path, tap: str) -> Iterator[Running]:
    running = Running(
        boot_command(
            debian_disk.KERNEL,
            *("--initrd", str(debian_disk.INITRD), "--disk", str(image), "--net", tap),
            *("--memory", "1G", "--cpus", "2", "--append", "root=/dev/vda quiet"),
            *("--on-reboot", "restart", "--timeout", str(TIMEOUT)),
        )
    )
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def type_command(guest: Running, command: str) -> list[str]:
    """The lines that a shell command on the serial console prints."""
    guest.write(f"{command}\n".encode())
    guest.read_until(b"\r\n")  # The command itself, as it was typed.
    lines = guest.read_until(PROMPT).decode(errors="replace").replace("\r", "").split("\n")
    return lines[:-1]


def log_in(guest: Running) -> None:
    """Wait for the login prompt, answer it, and see that all of the system is up."""
    guest.read_until(b"debian login: ")
    guest.write(b"root\n")
    guest.read_until(PROMPT)
    type_command(guest, "bind 'set enable-bracketed-paste off'; unset PROMPT_COMMAND")
    assert type_command(guest, "systemctl is-system-running --wait")[-1] == "running"
    online = "/lib/systemd/systemd-networkd-wait-online --timeout=120; echo online: $?"
    assert type_command(guest, online)[-1] == "online: 0"


def ssh(command: str) -> str:
    """Run a shell command in the guest, over the network; its output."""
    words = ["ssh", *debian_disk.ssh_options(), f"root@{GUEST}", command]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=TIMEOUT).stdout


def copy(source: Path | str, target: Path | str) -> None:
    """Copy a file to the guest, or from it."""
    words = ["scp", "-q", *debian_disk.ssh_options(), str(source), str(target)]
    subprocess.run(words, check=True, timeout=TIMEOUT)


def test_a_server_is_used_restarted_and_switched_off(
    guest: Running, image: Path, tmp_path: Path
) -> None:
    log_in(guest)
    assert any(GUEST in line for line in type_command(guest, "ip -brief address"))
    assert ssh("uname -sn; nproc").split() == ["Linux", "debian", "2"]

    original, returned = tmp_path / "original", tmp_path / "returned"
    original.write_bytes(os.urandom(4 * MIB))
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    copy(original, f"root@{GUEST}:/root/kept")
    assert type_command(guest, "sha256sum < /root/kept")[-1].split()[0] == digest
    copy(f"root@{GUEST}:/root/kept", returned)
    assert returned.read_bytes() == original.read_bytes()

    ssh("systemctl reboot")
    log_in(guest)
    assert type_command(guest, "sha256sum < /root/kept")[-1].split()[0] == digest
    ssh("systemctl poweroff")
    status, _, stderr = guest.finish()
    assert status == 0, stderr
    assert "guest powered off" in stderr

    fsck = subprocess.run(
        [str(debian.which("e2fsck")), "-fn", str(image)], capture_output=True, text=True
    )
    assert fsck.returncode == 0, fsck.stdout
