"""Disks on the IDE channels: driven by the guest `ide`, seen by the BIOS, and reset."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from kvm.assembler import assemble
from kvm.command import PYVMM, TIMEOUT, Ended, Running, run, run_to_end, start

from pyvmm import layout
from pyvmm.backends.character import NullBackend
from pyvmm.config import MachineConfig
from pyvmm.machine import Machine
from pyvmm.memory import MIB

PROJECT = Path(__file__).parent.parent.parent
SECTOR = 512
SECTORS = 64
WRITTEN = range(5, 8)
"""The sectors that the guest fills with the complement of what was there."""
BOOT_SECTOR = 0x7C00

PRINT_AL = "mov ah, 0x0e; mov bx, 7; int 0x10;"
POWER_OFF = "mov dx, 0x604; mov ax, 5 << 10 | 1 << 13; out dx, ax; hlt"


def sector(number: int) -> bytes:
    return bytes((number ^ index) & 0xFF for index in range(SECTOR))


BEFORE = b"".join(map(sector, range(SECTORS)))
AFTER = b"".join(
    bytes(0xFF ^ byte for byte in sector(number)) if number in WRITTEN else sector(number)
    for number in range(SECTORS)
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "disk.raw"
    image.write_bytes(BEFORE)
    return image


@pytest.fixture(scope="module")
def rom() -> None:
    subprocess.run([sys.executable, PROJECT / "firmware/build.py"], check=True)


def boot(*options: str) -> Ended:
    return run_to_end([*PYVMM, "run", *options, "--timeout", str(TIMEOUT)], b"", TIMEOUT)


def boot_disk(path: Path, source: str) -> Path:
    code = assemble(source, address=BOOT_SECTOR)
    assert len(code) <= 510
    path.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(64 * SECTOR, b"\0"))
    return path


@pytest.mark.parametrize("options", ["interface=ide", "if=ide", "if=ide,latency=2ms"])
def test_reads_and_writes(guests: Path, image: Path, options: str) -> None:
    ended = run(guests / "ide", "--disk", f"{image},{options},serial=spindle 7")
    ended.check()
    assert int(ended.value("sectors")) == SECTORS
    assert ended.value("serial").rstrip() == "spindle 7"
    assert ended.value("drive 1") == "0"
    assert "READ MULTIPLE" in ended.passed
    assert "a reset ends a transfer" in ended.passed
    assert ended.passed[-1] == "what was written reads back"
    assert image.read_bytes() == AFTER


def test_read_only(guests: Path, image: Path) -> None:
    ended = run(guests / "ide", "--disk", f"{image},if=ide,readonly=on", append="readonly")
    ended.check()
    assert ended.passed[-1] == "write to a read-only disk"
    assert image.read_bytes() == BEFORE


def test_injected_errors(guests: Path, image: Path) -> None:
    ended = run(guests / "ide", "-d", f"{image},if=ide,error=eio@read@sector=5..7", append="errors")
    ended.check()
    assert ended.passed[-1] == "is found by READ VERIFY"
    assert "2 of 3 requests failed on purpose" in ended.stderr


def test_written_data_outlive_the_vmm(guests: Path, image: Path) -> None:
    with start(guests / "ide", "--disk", f"{image},if=ide", append="hold") as guest:
        guest.read_until(b"flushed\n")
        guest.process.kill()
        guest.process.wait()
    assert image.read_bytes() == AFTER


def test_two_disks_on_a_channel(guests: Path, image: Path, tmp_path: Path) -> None:
    """The guest writes the first; a virtio disk between them takes no place."""
    others = [tmp_path / "virtio.raw", tmp_path / "second.raw"]
    for other in others:
        other.write_bytes(BEFORE)
    virtio, second = others
    options = ["-d", f"{virtio}", "-d", f"{image},if=ide", "-d", f"{second},if=ide"]
    ended = run(guests / "ide", *options)
    ended.check()
    assert ended.value("drive 1") == "50"  # ready
    assert image.read_bytes() == AFTER
    assert [other.read_bytes() for other in others] == [BEFORE, BEFORE]


def test_without_such_a_disk_there_are_no_ports(guests: Path, image: Path) -> None:
    ended = run(guests / "ide", "--disk", str(image), "--timeout", "1")
    assert ended.failures[0] == "FAIL: there is a drive"


def test_an_old_boot_sector(rom: None, tmp_path: Path) -> None:
    """Loaded by the BIOS from the IDE disk that is to be tried first, it reads on by the ports
    itself, from drive 1."""
    code = f"""
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov al, dl                  # the BIOS's number of the disk: 81h
        sub al, 0x40
        {PRINT_AL}
        mov dx, 0x1f6
        mov al, 0xf0
        out dx, al
        mov dx, 0x1f2
        mov al, 1
        out dx, al
        inc dx
        mov al, 3
        out dx, al
        inc dx
        xor al, al
        out dx, al
        inc dx
        out dx, al
        mov dx, 0x1f7
        mov al, 0x20
        out dx, al
    1:  in al, dx
        and al, 0xc8
        cmp al, 0x48
        jne 1b
        mov dx, 0x1f0
        mov cx, 256
        mov di, 0x8000
        cld
        rep insw
        mov al, [0x8000]
        {PRINT_AL}
        mov ax, 0x0301              # and the BIOS writes it to the first disk, the virtio one
        mov bx, 0x8000
        mov cx, 2
        mov dx, 0x80
        int 0x13
        {POWER_OFF}
    """
    virtio, first, second = (tmp_path / name for name in ("virtio", "first", "second"))
    virtio.write_bytes(bytes(64 * SECTOR))
    boot_disk(first, code)
    second.write_bytes(bytes(3 * SECTOR) + b"Q" * SECTOR)
    disks = [str(virtio), f"{first},if=ide,bootindex=1", f"{second},if=ide"]
    ended = boot(*(word for disk in disks for word in ("-d", disk)))
    assert ended.status == 0, ended
    assert ended.console.endswith(b"AQ")
    assert virtio.read_bytes()[SECTOR : 2 * SECTOR] == b"Q" * SECTOR


def test_a_reboot_resets_the_drives(rom: None, tmp_path: Path) -> None:
    """The second time the registers are as after power-on."""
    code = f"""
        mov dx, 0x1f2
        in al, dx
        add al, 0x40                # the signature's 1: A
        {PRINT_AL}
        mov dx, 0x1f2
        mov al, 7
        out dx, al
        mov dx, 0x1f7
        mov al, 0x20                # data that nobody fetches
        out dx, al
        mov dx, 0x3f6
        mov al, 2
        out dx, al
        mov dx, 0x1f7
        in al, dx
        shr al, 3
        and al, 1
        add al, 0x30                # DRQ: 1
        {PRINT_AL}
        mov al, 0xfe
        out 0x64, al
        hlt
    """
    disk = boot_disk(tmp_path / "disk", code)
    arguments = [*PYVMM, "run", "-d", f"{disk},if=ide", "--on-reboot", "restart"]
    guest = Running([*arguments, "--timeout", str(TIMEOUT)])
    try:
        for _ in range(3):
            booted = guest.read_until(b"1\r\n")  # of "disk 1"
            assert booted.endswith(b"Booting from disk 1\r\n")
            assert guest.read_until(b"1") == b"A1"
    finally:
        guest.process.kill()
        guest.process.communicate()


def test_the_mp_tables_are_where_kernels_look(guests: Path) -> None:
    config = MachineConfig(kernel=str(guests / "at_once"), memory_size=32 * MIB, cpus=3)
    machine = Machine(config, [NullBackend()])
    try:
        memory = machine.memory
        assert struct.unpack("<H", memory.read(0x40E, 2))[0] << 4 == layout.EBDA
        assert struct.unpack("<H", memory.read(0x413, 2))[0] == 639
        segment = bytes(memory.read(0xF0000, 0x1_0000))
        at = next(at for at in range(0, 0x1_0000, 16) if segment[at : at + 4] == b"_MP_")
        (table,) = struct.unpack_from("<I", segment, at + 4)
        assert memory.read(table, 4) == b"PCMP"
    finally:
        machine.close()
