"""A virtio disk, driven by the guest `blk`: what it says, and what is in the image afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvm.command import run, start

SECTOR = 512
SECTORS = 64
WRITTEN = range(5, 8)
"""The sectors that the guest fills with the complement of what was there."""


def sector(number: int) -> bytes:
    return bytes((number ^ index) & 0xFF for index in range(SECTOR))


def complement(data: bytes) -> bytes:
    return bytes(0xFF ^ byte for byte in data)


BEFORE = b"".join(sector(number) for number in range(SECTORS))
AFTER = b"".join(
    complement(sector(number)) if number in WRITTEN else sector(number) for number in range(SECTORS)
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "disk.raw"
    image.write_bytes(BEFORE)
    return image


@pytest.mark.parametrize("interrupts", ["msix", "intx"])
def test_reads_and_writes(guests: Path, image: Path, interrupts: str) -> None:
    ended = run(guests / "blk", "--disk", f"{image},serial=spindle 7", append=interrupts)
    ended.check()
    assert int(ended.value("capacity"), 16) == SECTORS
    assert ended.value("serial") == "spindle 7"
    assert "two requests at once" in ended.passed
    assert "indirect descriptors" in ended.passed
    assert "read behind the end" in ended.passed
    assert ended.passed[-1] == "what was written reads back"
    assert image.read_bytes() == AFTER


@pytest.mark.parametrize("trigger", ["level", "edge"])
def test_virtio_mmio(guests: Path, image: Path, trigger: str) -> None:
    ended = run(
        guests / "blk",
        *("--transport", "mmio", "--mmio-cmdline", "--disk", f"{image},serial=spindle 8"),
        append=trigger,
    )
    ended.check()
    assert ended.value("serial") == "spindle 8"
    assert "registers are 32 bits wide" in ended.passed
    assert ended.passed[-1] == "what was written reads back"
    assert image.read_bytes() == AFTER
    assert "bad virtio-mmio read" in ended.stderr


def test_each_disk_can_have_its_transport(guests: Path, image: Path, tmp_path: Path) -> None:
    """The guest takes the disk behind mmio, and leaves the other alone."""
    other = tmp_path / "other.raw"
    other.write_bytes(BEFORE)
    options = ["--disk", str(other), "--disk", f"{image},transport=mmio", "--mmio-cmdline"]
    run(guests / "blk", *options).check()
    assert image.read_bytes() == AFTER
    assert other.read_bytes() == BEFORE


def test_read_only(guests: Path, image: Path) -> None:
    ended = run(guests / "blk", "--disk", f"{image},readonly=on", append="readonly")
    ended.check()
    assert ended.passed[-1] == "write to a read-only disk"
    assert image.read_bytes() == BEFORE


def test_flushed_data_outlive_the_vmm(guests: Path, image: Path) -> None:
    with start(guests / "blk", "--disk", str(image), append="hold") as guest:
        guest.read_until(b"flushed\n")
        guest.process.kill()
        guest.process.wait()
    assert image.read_bytes() == AFTER


def test_four_processors(guests: Path, image: Path) -> None:
    ended = run(guests / "blk", "--disk", str(image), "--cpus", "4")
    ended.check()
    assert image.read_bytes() == AFTER
