"""Debian's stock kernel by every entry, with few and many vCPUs, with little and much memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from linux.boot import Images, boot, job

GIB = 1 << 20  # in the KiB of /proc/meminfo

LAB_COMPLAINTS = ("XSAVE consistency problem", "xstate.c", "cut here")
"""What Linux says of the lab's emulated CPU, under any VMM; the trace behind it has no message."""


@pytest.mark.parametrize(
    ("image", "entry", "cpus", "memory"),
    [
        ("bzimage", "64", 2, "5G"),
        ("bzimage", "32", 1, "256M"),
        ("vmlinux", "64", 2, "128M"),
        ("vmlinux", "pvh", 1, "128M"),
    ],
)
def test_boots(images: Images, image: str, entry: str, cpus: int, memory: str) -> None:
    ended = boot(
        getattr(images, image),
        *("--initrd", str(images.initrd), "--entry", entry),
        *("--cpus", str(cpus), "--memory", memory),
        *job("echo cpus: $(nproc); grep MemTotal /proc/meminfo"),
    )
    assert ended.status == 0, ended
    assert ended.value("cpus") == str(cpus)
    size = int(memory[:-1]) * (GIB if memory.endswith("G") else 1 << 10)
    seen = int(ended.value("MemTotal").split()[0])
    assert 0.6 * size < seen <= size


def test_without_initrd_the_kernel_looks_for_its_root(images: Images) -> None:
    ended = boot(images.bzimage)
    assert ended.status == 3
    assert "Unable to mount root fs" in ended.stderr


@pytest.mark.parametrize("image", ["bzimage", "vmlinux"])
def test_a_command_line_of_1_kib_arrives(images: Images, image: str) -> None:
    word = "padding=" + "x" * 1000
    ended = boot(
        getattr(images, image),
        *("--initrd", str(images.initrd), "--append", word),
        *job("cat /proc/cmdline"),
    )
    assert ended.status == 0
    assert any(word in line.split() for line in ended.lines)


@pytest.mark.parametrize("image", ["bzimage", "vmlinux"])
def test_a_command_line_of_4_kib_is_refused(images: Images, image: str) -> None:
    ended = boot(getattr(images, image), "--append", "x" * 4096)
    assert ended.status == 1
    assert re.fullmatch(r"pyvmm: .*command line.*2047.*\n", ended.stderr)


def test_too_little_memory_is_refused(images: Images) -> None:
    ended = boot(images.bzimage, "--memory", "32M")
    assert ended.status == 1
    assert re.fullmatch(r"pyvmm: .*--memory .*\n", ended.stderr)


def text_on(image: Path) -> str:
    """What a guest has written to a disk of zeros: a log is there sooner than on a serial port."""
    return image.read_bytes().rstrip(b"\0").decode(errors="replace")


def test_linux_has_no_complaint(images: Images, tmp_path: Path) -> None:
    """Nothing about ACPI, PCI, timers, interrupts, the keyboard controller or the clock."""
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    ended = boot(
        images.bzimage,
        *("--initrd", str(images.initrd), "--cpus", "2", "--disk", str(image)),
        *("--append", "stay=1"),
        *job("dmesg -r > /dev/vda; sync"),
    )
    assert ended.status == 0, ended
    lines = text_on(image).splitlines()
    messages = [m for m in (re.match(r"<(\d+)>\[ *[\d.]+\] (.*)", x) for x in lines) if m]
    assert len(messages) > 100
    bad = [
        m[2]
        for m in messages
        if int(m[1]) & 7 <= 3 or re.search(r"(?i)\b(bug|warning|error|fail(ed|ure)?)\b", m[2])
    ]
    excused = ("alg: self-tests", "RAS: Correctable Errors", "and report a bug", *LAB_COMPLAINTS)
    assert [line for line in bad if not any(text in line for text in excused)] == []


def test_the_pc_is_complete(images: Images, tmp_path: Path) -> None:
    """Serial ports, keyboard controller, clock, power button, PCI with MSI-X: all found."""
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    ended = boot(
        images.bzimage,
        *("--initrd", str(images.initrd), "--disk", str(image), "--append", "stay=1"),
        *("--serial", "stdio", "--serial", f"file:{tmp_path}/com2"),
        *job(
            "{ dmesg; cat /proc/interrupts; date -u +utc:%s; echo to COM2 >/dev/ttyS1;"
            " cat /sys/bus/acpi/devices/*/hid | sort | tr '\\n' ' '; } > /dev/vda; sync"
        ),
    )
    text = text_on(image)
    assert ended.status == 0, ended
    for wanted in (
        r"ttyS0 at I/O 0x3f8 \(irq = 4, .*\) is a 16550A",
        r"ttyS1 at I/O 0x2f8 \(irq = 3, .*\) is a 16550A",
        r"serio: i8042 KBD port at 0x60,0x64 irq 1",
        r"serio: i8042 AUX port at 0x60,0x64 irq 12",
        r"input: AT Translated Set 2 keyboard",
        r"rtc_cmos .*: setting system clock to 20\d\d-",
        r"input: Power Button",
        r"PCI: MMCONFIG for domain 0000",
        r"virtio_blk virtio0: ",
        r"PCI-MSI.*virtio0-req",
        r"IO-APIC +4-edge +ttyS0",
        r"PNP0501",
    ):
        assert re.search(wanted, text), wanted
    assert (tmp_path / "com2").read_text().strip() == "to COM2"


def test_the_clock_is_the_hosts(images: Images) -> None:
    import time

    ended = boot(images.bzimage, "--initrd", str(images.initrd), *job("date -u +utc:' '%s"))
    assert abs(int(ended.value("utc")) - time.time()) < 60


@pytest.mark.parametrize("bits", [64, 32])
def test_memtest86_runs(images: Images, bits: int) -> None:
    """A bzImage that isn't Linux, by its 64-bit and by its 32-bit entry."""
    ended = boot(
        getattr(images, f"memtest_{bits}"),
        *("--no-default-append", "--append", "console=ttyS0,115200", "--memory", "64M"),
        *("--expect", r"Memtest86\+ v"),
    )
    assert ended.status == 0, ended
