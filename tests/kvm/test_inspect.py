"""`pyvmm inspect` on real images: our own guests and lessons, and the BIOS."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.boot import firmware, identify

GUESTS = {
    "apic": ("ELF", "the 64-bit entry at 0x10"),
    "pvh": ("ELF", "the PVH entry at 0x10"),
    "multiboot": ("ELF", "Multiboot, in 32-bit protected mode at 0x10"),
    "multiboot2": ("ELF", "Multiboot 2, in 32-bit protected mode at 0x10"),
    "multiboot_flat": ("Multiboot", "Multiboot, in 32-bit protected mode at 0x10"),
    "bios": ("boot sector", "--disk boots it"),
    "real": ("data", "if it is a flat binary: --flat FILE"),
}

LESSONS = {
    "01_hello.img": ("boot sector", "--disk boots it"),
    "03_protected.bin": ("data", "--flat FILE"),
    "05_pic.elf": ("ELF", "the 64-bit entry at 0x10"),
    "12_net.elf": ("ELF", "the 64-bit entry at 0x10"),
}


def check(path: Path, kind: str, says: str) -> None:
    facts = identify.describe(path)
    assert facts["kind"] == kind
    assert says in facts.get("how", facts.get("problem"))


@pytest.mark.parametrize("name", GUESTS)
def test_a_guest(guests: Path, name: str) -> None:
    check(guests / name, *GUESTS[name])


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson(lessons: Path, name: str) -> None:
    check(lessons / name, *LESSONS[name])


def test_our_bios() -> None:
    check(Path(firmware.own_bios()), "ROM", "--firmware starts it")
