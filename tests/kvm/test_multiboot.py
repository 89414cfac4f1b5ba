"""Guests that a Multiboot loader starts, what they are told, and how they end."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from kvm.assembler import assemble
from kvm.command import PYVMM, TIMEOUT, Ended, run, run_to_end
from kvm.conftest import PROJECT

NAMES = ("multiboot", "multiboot2", "multiboot_flat")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_guest_is_told(guests: Path, tmp_path: Path, name: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"first")
    two.write_bytes(b"second")
    modules = f"{one} with words,,and more,{two}"
    options = ("--memory", "64M", "--cpus", "3", "--initrd", modules)
    ended = run(guests / name, *options, append="some words")
    ended.check()
    words = "some words" if name == "multiboot2" else f"{guests / name} some words"
    assert ended.value("command line") == words
    assert ended.value("loader") == "PyVMM"
    assert int(ended.value("lower")) == 639
    assert int(ended.value("upper")) == 63 * 1024
    assert int(ended.value("ram"), 16) == 639 * 1024 + 63 * 1024 * 1024
    assert f"module: {one} with words,and more: first" in ended.lines
    assert f"module: {two}: second" in ended.lines
    assert ended.value("cpus") == "3 of 3"
    assert int(ended.value("fw_cfg ram"), 16) == 64 << 20
    assert ("symbols are loaded" in ended.passed) == (name != "multiboot_flat")


def test_a_device_of_the_users_comes_before_fw_cfg(guests: Path) -> None:
    thermometer = f"{PROJECT}/guests/devices/thermometer.py:Thermometer,start=65"
    for base in (0x510, 0x50E, 0x51B):
        ended = run(guests / "multiboot", "--device", f"{thermometer},base={base:#x}", append="")
        ended.check()
        assert ended.value("fw_cfg ram") != f"{256 << 20:x}"


def test_firmware_comes_before_a_device_of_the_users(tmp_path: Path) -> None:
    rom = tmp_path / "rom"
    rom.write_bytes(bytes(0xFFF0) + b"\xf4".ljust(16, b"\0"))
    device = f"{PROJECT}/guests/devices/thermometer.py:Thermometer"
    ended = run_to_end([*PYVMM, "run", "--firmware", str(rom), "--device", device], b"", TIMEOUT)
    assert ended.status == 2, ended
    assert "base 0x510 overlaps fw_cfg" in ended.stderr


def start(tmp_path: Path, source: str, *options: str, flags: int = 0, address: int) -> Ended:
    """Run ``source`` as a Multiboot kernel at ``address``, without an option of the tests' own."""
    header = f"""
        .balign 4
        header: .long 0x1BADB002, {flags | 1 << 16}, -(0x1BADB002 + {flags | 1 << 16})
        .long header, {address}, 0, {address + 0x5000}, entry
        entry:
    """
    kernel = tmp_path / "kernel"
    kernel.write_bytes(assemble(header + source, address=address, bits=32))
    words = [*PYVMM, "run", "-k", str(kernel), *options, "--timeout", str(TIMEOUT)]
    return run_to_end(words, b"", TIMEOUT)


EXIT = """
        mov dx, 0xf4
        out dx, eax
        hlt
"""


@pytest.mark.parametrize(
    ("value", "status"), [(0, 1), (1, 3), (0x48, 145), (0x80, 1), (0x17F, 255)]
)
def test_a_value_for_the_debug_exit_port(tmp_path: Path, value: int, status: int) -> None:
    """As with QEMU's isa-debug-exit at iobase=0xf4: 2v + 1, of which the system keeps 8 bits."""
    ended = start(tmp_path, f"mov eax, {value}{EXIT}", "--debug-exit", address=0x10_0000)
    assert ended.status == status
    assert f"guest exited with value {value:#x}" in ended.stderr


def test_a_kernel_in_low_memory(tmp_path: Path) -> None:
    """It lies where the stack is as a rule; there is one elsewhere, and so is what it is told."""
    source = f"""
        call next
        next: pop ecx
        mov eax, [ebx + 48]         # mmap_addr
        mov eax, [eax]              # its first entry's size: 20
        {EXIT}
    """
    ended = start(tmp_path, source, "--debug-exit", address=0x8000)
    assert ended.status == 2 * 20 + 1, ended


def test_words_for_linux_are_not_for_others(tmp_path: Path) -> None:
    """The command line has the kernel's name and the user's words, but no console=ttyS0."""
    source = f"""
        mov esi, [ebx + 16]
        xor eax, eax
        next: inc eax
        cmp byte ptr [esi + eax], 0
        jne next
        {EXIT}
    """
    ended = start(tmp_path, source, "--debug-exit", "-a", "a b", "-a", "c", address=0x10_0000)
    length = len(f"{tmp_path}/kernel a b c")
    assert ended.status == (2 * length + 1) & 0xFF


def test_a_video_mode_is_asked_for_in_vain(tmp_path: Path) -> None:
    source = f"mov eax, [ebx]{EXIT}"
    ended = start(tmp_path, source, "--debug-exit", flags=4, address=0x10_0000)
    assert ended.status == (2 * 0x24D + 1) & 0xFF
    first = ended.stderr.splitlines()[0]
    assert first.endswith(
        "kernel asks for a video mode: there is no screen, and it is told of none"
    )


def test_a_reboot_says_nothing_twice(tmp_path: Path) -> None:
    source = f"""
        mov al, 0x40                # a byte that a battery keeps
        out 0x70, al
        in al, 0x71
        inc al
        mov bl, al
        out 0x71, al
        cmp al, 3
        je done
        mov dx, 0xcf9
        mov al, 6                   # reset
        out dx, al
        hlt
        done: movzx eax, bl
        {EXIT}
    """
    options = ("--debug-exit", "--on-reboot", "restart")
    ended = start(tmp_path, source, *options, flags=4, address=0x10_0000)
    assert ended.status == 2 * 3 + 1, ended
    assert ended.stderr.count("asks for a video mode") == 1


def test_what_turns_qemu_off(tmp_path: Path) -> None:
    source = "mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt"
    ended = start(tmp_path, source, address=0x10_0000)
    assert ended.status == 0, ended


def test_a_kernel_linked_without_a_script(tmp_path: Path) -> None:
    """As tutorials do it, ``ld -Ttext=0x100000``: the linker puts the ELF headers in front of the
    text, in a segment of their own at FF000h."""
    source, linked = tmp_path / "kernel.S", tmp_path / "kernel"
    magic = 0x1BADB002
    source.write_text(
        f".long {magic}, 0, -{magic}\n.globl _start\n_start: mov $0x21, %al; out %al, $0xf4; hlt\n"
    )
    ld = ("-Wl,-melf_i386", "-Wl,-Ttext=0x100000", "-Wl,-z,separate-code", "-Wl,--build-id=none")
    words = ["gcc", "-m32", "-nostdlib", "-static", "-no-pie", *ld, "-o", linked, source]
    subprocess.run(words, check=True)
    with linked.open("rb") as file:
        segments = [p["p_paddr"] for p in ELFFile(file).iter_segments("PT_LOAD")]
    assert segments[0] == 0xF_F000
    ended = run_to_end(
        [*PYVMM, "run", "-k", str(linked), "--debug-exit", "--timeout", str(TIMEOUT)], b"", TIMEOUT
    )
    assert ended.status == 2 * 0x21 + 1, ended
