"""The guest `hostile_virtio`, which does to a disk and a network card what no driver should; and
hosts that fail them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from kvm.command import Running, start
from kvm.namespace import shell

MIB = 1 << 20
MEMORY = ("--memory", "64M")
MAGIC = (0x600DF00D).to_bytes(4, "little")
IMAGE_SIZE = MIB
SMALL = 256 << 10
"""A file system with no room for all of it."""

transports = pytest.mark.parametrize("transport", ["pci", "mmio"])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.raw")


def make_image(path: Path) -> Path:
    path.write_bytes(MAGIC)
    os.truncate(path, IMAGE_SIZE)
    return path


@pytest.fixture
def tap(namespace: None) -> str:
    shell("ip tuntap add dev tap0 mode tap; ip link set tap0 up")
    return "tap0"


def survives(guest: Running, kind: str) -> None:
    """Every refusal is followed by a reset that puts things right, memory doesn't grow, and not
    much is said."""
    guest.read_until(b"warm\n")
    before = guest.peak_memory()
    output = guest.read_until(b"done\n")
    assert guest.peak_memory() - before < 6 * MIB
    assert b"FAIL" not in output
    assert output.count(b"ok: ") == 22
    status, _, stderr = guest.finish()
    assert status == 0
    assert stderr.count(f"guest: virtio: broken queue: {kind}: ") == 1
    assert len(stderr.splitlines()) <= 3
    assert "Traceback" not in stderr


@transports
def test_a_disk(guests: Path, image: Path, transport: str) -> None:
    disk = ("--disk", f"{image},transport={transport}")
    with start(guests / "hostile_virtio", *MEMORY, *disk, append="ram=64") as guest:
        survives(guest, "BLOCK")
    assert image.read_bytes() == MAGIC + bytes(IMAGE_SIZE - len(MAGIC))


@transports
def test_a_network_card(guests: Path, tap: str, transport: str) -> None:
    net = ("--net", f"{tap},transport={transport}")
    with start(guests / "hostile_virtio", *MEMORY, *net, append="ram=64 net") as guest:
        survives(guest, "NETWORK")


def check_broken(guest: Running, complaint: str, passed: list[bytes]) -> None:
    """The guest has noticed, and PyVMM has said it once."""
    status, output, stderr = guest.finish()
    assert status == 0, stderr
    assert re.findall(rb"(?:ok|FAIL): .*", output.replace(b"\r", b"")) == passed
    said = [line for line in stderr.splitlines() if "tap is down" not in line]  # on its way out
    assert complaint in said[0]
    assert len(said) == 2


DISK_PASSED = [b"ok: I/O errors", b"ok: what is there can still be read"]


@transports
def test_a_full_file_system(guests: Path, tmp_path: Path, transport: str) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root")
    try:
        image = make_image(tmp_path / "disk.raw")
        disk = ("--disk", f"{image},transport={transport}")
        with start(guests / "hostile_virtio", *MEMORY, *disk, append="broken") as guest:
            guest.read_until(b"ready\n")
            check_broken(guest, "No space left on device", DISK_PASSED)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_image_that_shrinks(guests: Path, image: Path) -> None:
    """The host's own error comes from reading: writing would make the file grow again."""
    disk = ("--disk", str(image))
    with start(guests / "hostile_virtio", *MEMORY, *disk, append="broken reading") as guest:
        guest.read_until(b"ready\n")
        os.truncate(image, 4096)
        check_broken(guest, "the image has become shorter", DISK_PASSED)


@transports
def test_a_tap_that_goes_away(guests: Path, tap: str, transport: str) -> None:
    net = ("--net", f"{tap},transport={transport}")
    with start(guests / "hostile_virtio", *MEMORY, *net, append="broken net") as guest:
        guest.read_until(b"ready\n")
        shell(f"ip link delete {tap}")
        check_broken(guest, "tap is gone", [b"ok: packets are still used"])
