"""Firmware that isn't ours: SeaBIOS, with all that it asks fw_cfg for."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvm.assembler import assemble
from kvm.command import PYVMM, Ended, run_to_end

from guests import seabios

TIMEOUT = 300
"""Seconds; software KVM interprets it, and takes three on a quiet machine."""

BOOT_SECTOR = """
    xor ax, ax
    mov ds, ax
    mov es, ax
    lea si, [hello]
next:
    lodsb
    test al, al
    jz ask
    mov ah, 0x0e                # teletype: SeaBIOS has it on the serial port
    int 0x10
    jmp next
ask:
    mov ax, 0x0201              # read the second sector of the same disk
    mov cx, 0x0002
    xor dh, dh
    mov bx, 0x8000
    int 0x13
    jc failed
    xor ebx, ebx                # the memory map: look for what is reserved below 4 GiB
    mov di, 0x9000
    mov eax, 0xe820
    mov ecx, 20
    mov edx, 0x534d4150
    int 0x15
    jc failed
    mov al, [0x8000]
    mov dx, 0xf4
    out dx, al
failed:
    hlt
    jmp failed
hello:
    .asciz "hello from the boot sector\\r\\n"
"""


@pytest.fixture(scope="module")
def rom() -> Path:
    seabios.build()
    return seabios.ROM


def boot(rom: Path, *options: str) -> Ended:
    words = [*PYVMM, "run", "--firmware", str(rom), "--debug-exit", "--timeout", str(TIMEOUT)]
    return run_to_end([*words, *options], b"", TIMEOUT)


def test_it_boots_a_disk(rom: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    sector = assemble(BOOT_SECTOR, address=0x7C00)
    disk.write_bytes((sector.ljust(510, b"\0") + b"\x55\xaa" + b"\x15").ljust(1 << 20, b"\0"))
    ended = boot(rom, "--disk", str(disk))
    assert ended.status == 0x15 << 1 | 1, ended
    text = ended.console.decode(errors="replace")
    assert "SeaBIOS (version" in text
    assert "Booting from Hard Disk" in text
    assert "hello from the boot" in text  # it keeps back the last characters for a while
    assert "guest:" not in ended.stderr, "it does nothing wrong"


def test_a_rom_that_is_none(tmp_path: Path) -> None:
    rom = tmp_path / "rom"
    for size, says in ((1000, "has 1000 bytes"), (512 << 10, "at most 256 KiB"), (0, "is empty")):
        rom.write_bytes(bytes(size))
        ended = boot(rom)
        assert ended.status == 1
        assert says in ended.stderr
        assert ended.stderr.count("\n") == 1
