"""PyVMM's own BIOS: disks boot through it, and its services do what they should."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from kvm.assembler import assemble
from kvm.command import PYVMM, TIMEOUT, Ended, Running, run_to_end
from kvm.screen import Screen
from unit.images import HEADER_OFFSET, bzimage

PROJECT = Path(__file__).parent.parent.parent
SECTORS = 16384
SECOND_DISK = b"2dis"
BOOT_SECTOR = 0x7C00

POWER_OFF = """
    mov dx, 0x604
    mov ax, 5 << 10 | 1 << 13
    out dx, ax
    hlt
"""
PRINT = """
    print:                      # what follows the call, up to a zero byte
    pop si
    1: cs lodsb
    test al, al
    jz 2f
    mov ah, 0x0e
    mov bx, 7
    int 0x10
    jmp 1b
    2: jmp si
"""


@pytest.fixture(scope="module", autouse=True)
def rom() -> None:
    subprocess.run([sys.executable, PROJECT / "firmware/build.py"], check=True)


def command(*options: str | Path) -> list[str]:
    return [*PYVMM, "run", *map(str, options), "--timeout", str(TIMEOUT)]


def run(*options: str | Path, stdin: bytes = b"") -> Ended:
    return run_to_end(command(*options), stdin, TIMEOUT)


def disk(path: Path, source: str, size: int = 1 << 20) -> Path:
    """A disk with a boot sector, and more of the code in the sectors behind it."""
    code = assemble(source, address=BOOT_SECTOR)
    image = bytearray(size)
    image[: len(code)] = code
    image[510:512] = b"\x55\xaa"
    path.write_bytes(image)
    return path


@pytest.fixture
def disks(guests: Path, tmp_path: Path) -> list[Path]:
    """The guest's disk with its numbered sectors, and another one."""
    code = (guests / "bios").read_bytes()
    code += bytes(-len(code) % 512)
    assert len(code) <= 16 * 512
    numbers = b"".join(struct.pack("<I", number) * 128 for number in range(SECTORS))
    first, second = tmp_path / "first.raw", tmp_path / "second.raw"
    first.write_bytes(code + numbers[len(code) :])
    second.write_bytes(SECOND_DISK.ljust(4096, b"\0"))
    return [first, second]


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_the_services(disks: list[Path], transport: str) -> None:
    first, second = disks
    options = ["-d", first, "-d", f"{second},readonly=on", "--transport", transport]
    ended = run(*options)
    if transport == "mmio":  # where nothing on PCI is a disk
        failures = [line for line in ended.failures if "INT 1Ah B1" not in line]
        assert (ended.status, failures) == (0, [])
        return
    ended.check()
    assert len(ended.passed) > 90
    image = first.read_bytes()
    assert image[5000 * 512 : 5000 * 512 + 4] == struct.pack("<I", 0x11223344)
    assert image[-512:-508] == struct.pack("<I", 0x55667788)
    assert image[5001 * 512 : -512] == b"".join(
        struct.pack("<I", number) * 128 for number in range(5001, SECTORS - 1)
    )


@pytest.mark.parametrize(
    ("memory", "ram", "e801", "kib"),
    [
        ("2M", [(0x10_0000, 0x10_0000)], (0x400, 0), 0x400),
        ("16M", [(0x10_0000, 0xF0_0000)], (0x3C00, 0), 0x3C00),
        ("64M", [(0x10_0000, 0x3F0_0000)], (0x3C00, 0x300), 0xFC00),
        (
            "5G",
            [(0x10_0000, 0xBFF0_0000), (0x1_0000_0000, 0x8000_0000)],
            (0x3C00, 0xBF00),
            0xFC00,
        ),
    ],
)
def test_the_memory_map(
    disks: list[Path], memory: str, ram: list[tuple[int, int]], e801: tuple[int, int], kib: int
) -> None:
    ended = run("-d", disks[0], "-m", memory)
    entries = [
        tuple(int(word, 16) for word in line.split()[1:])
        for line in ended.lines
        if line.startswith("e820: ")
    ]
    assert [(start, size) for start, size, kind in entries if kind == 1] == [(0, 0x9FC00), *ram]
    assert (0x9FC00, 0x60400, 2) in entries
    assert sorted(entries) == entries
    low, high = e801
    assert ended.value("e801").split() == [f"{value:08x}" for value in (low, high, low, high)]
    assert ended.value("88") == f"{kib:08x}"


def test_no_disk_is_bootable(tmp_path: Path) -> None:
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(8192))
    ended = run("-d", empty)
    assert ended.status == 1
    assert "No bootable disk" in ended.lines
    assert ended.stderr.startswith("pyvmm: no bootable disk after")


def test_disks_are_tried_in_their_order(tmp_path: Path) -> None:
    """The first that has a boot sector, unless bootindex says otherwise; INT 18h goes on."""
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(8192))
    source = PRINT.join(["jmp 9f\n", '9: call print\n.asciz "{name} {next}\\r\\n"\n'])
    gives_up = disk(tmp_path / "a", source.format(name="a", next="gives up") + "int 0x18")
    boots = disk(tmp_path / "b", source.format(name="b", next="boots") + POWER_OFF)
    ended = run("-d", empty, "-d", gives_up, "-d", boots)
    assert ended.status == 0
    assert ended.lines == ["Booting from disk 2", "a gives up", "Booting from disk 3", "b boots"]
    ended = run("-d", empty, "-d", gives_up, "-d", f"{boots},bootindex=1")
    assert ended.lines == ["Booting from disk 3", "b boots"]
    ended = run("-d", f"{empty},bootindex=2", "-d", f"{gives_up},bootindex=1")
    assert ended.status == 1
    assert ended.lines == ["Booting from disk 2", "a gives up", "No bootable disk"]


def test_a_disk_error(tmp_path: Path) -> None:
    """An error of the host's is one of INT 13h's."""
    source = """
        mov ax, 0x0201
        mov cx, 3
        mov bx, 0x8000
        int 0x13
        setc al
        mov al, ah
        mov dx, 0xf4
        out dx, al
    """
    image = disk(tmp_path / "disk", source)
    ended = run("-d", f"{image},error=eio@sector=2..3", "--debug-exit")
    assert ended.status == 0x10 << 1 | 1
    assert "disk I/O failed" in ended.stderr


@pytest.mark.parametrize(
    "how",
    [
        "int 0x19",
        "ljmp 0xf000, 0xfff0",
        "mov dx, 0xcf9\nmov al, 6\nout dx, al\n1: jmp 1b",
        "mov al, 0xfe\nout 0x64, al\n1: jmp 1b",
    ],
)
def test_reboots(tmp_path: Path, how: str) -> None:
    """The CMOS, which a battery keeps, counts three of them."""
    source = f"""
        jmp start
        {PRINT}
        start: call print
        .asciz "started\\r\\n"
        mov al, 0x50
        out 0x70, al
        in al, 0x71
        inc al
        out 0x71, al
        cmp al, 3
        je 3f
        {how}
        3: {POWER_OFF}
    """
    ended = run("-d", disk(tmp_path / "disk", source), "--on-reboot", "restart")
    assert ended.status == 0
    assert ended.lines == ["Booting from disk 1", "started"] * 3


def test_a_jump_to_the_beginning_is_a_reboot(tmp_path: Path) -> None:
    """GRUB's `reboot`, and DOS programs': it ends a run as every other reboot does."""
    ended = run("-d", disk(tmp_path / "disk", "ljmp 0xffff, 0"))
    assert (ended.status, ended.lines) == (0, ["Booting from disk 1"])
    assert "guest rebooted" in ended.stderr


def test_a_virtio_driver_keeps_its_disk_from_the_bios(tmp_path: Path) -> None:
    """Once DRIVER_OK is set, until the BIOS starts again."""
    source = """
        mov ax, 0xb102          # where the disk is
        mov dx, 0x1af4
        mov cx, 0x1042
        xor si, si
        int 0x1a
        mov ax, 0xb10a          # BAR 4 has the common configuration first
        mov di, 0x20
        int 0x1a
        and cl, 0xf0
        mov ebp, ecx
        cli                     # 32-bit segments for MMIO
        lgdt gdt_pointer
        mov eax, cr0
        or al, 1
        mov cr0, eax
        mov bx, 8
        mov fs, bx
        and al, 0xfe
        mov cr0, eax
        sti
        mov al, 1
        call status
        mov al, 3
        call status
        mov dword ptr fs:[ebp + 8], 1   # VIRTIO_F_VERSION_1
        mov dword ptr fs:[ebp + 12], 1
        mov al, 11
        call status
        mov al, 15
        call status
        mov ax, 0x0201
        mov cx, 1
        mov dx, 0x80
        mov bx, 0x8000
        int 0x13
        mov al, 0x50            # the first time again, by a warm start
        out 0x70, al
        in al, 0x71
        test al, al
        mov al, 1
        out 0x71, al
        jnz 1f
        cmp ah, 0xaa
        jne 1f
        ljmp 0xf000, 0xfff0
        1: mov al, ah
        sub al, 0x80
        mov dx, 0xf4
        out dx, al
        status: mov fs:[ebp + 20], al
        ret
        .balign 8
        gdt: .quad 0, 0x00cf93000000ffff
        gdt_pointer: .word 15
        .long gdt
    """
    options = ["--debug-exit", "--on-reboot", "restart"]
    ended = run("-d", disk(tmp_path / "disk", source), *options)
    assert ended.status == 0x2A << 1 | 1
    assert ended.lines == ["Booting from disk 1"] * 2


KEYS = {
    b"a": 0x1E61,
    b"A": 0x1E41,
    b"\r": 0x1C0D,
    b"\x7f": 0x0E08,
    b"\x1b[A": 0x48E0,
    b"\x1bOB": 0x50E0,
    b"\x1b[3~": 0x53E0,
    b"\x1b[15~": 0x3F00,
    b"\x1b[1;5C": 0x4DE0,
    b"\x1bOP": 0x3B00,
    b"\x1b[24~": 0x8600,
    b"\x1bx": 0x2D00,
    b"\x03": 0x2E03,
    b"/": 0x352F,
    "é".encode(): (0x00C3, 0x00A9),
    b"\x1b": 0x011B,
}
"""What is typed, and the keys that it is; ESC comes last because it waits for more."""


def test_keys_come_from_the_serial_port(tmp_path: Path) -> None:
    source = f"""
        1: mov ah, 0x10
        int 0x16
        mov cx, 4
        2: rol ax, 4
        push ax
        and al, 15
        add al, '0'
        cmp al, '9'
        jbe 3f
        add al, 'A' - '9' - 1
        3: mov ah, 0x0e
        int 0x10
        pop ax
        loop 2b
        push ax
        mov ax, 0x0e0d
        int 0x10
        mov ax, 0x0e0a
        int 0x10
        pop ax
        cmp ax, 0x011b
        jne 1b
        {POWER_OFF}
    """
    ended = run("-d", disk(tmp_path / "disk", source), stdin=b"".join(KEYS))
    wanted = []
    for key in KEYS.values():
        wanted += [key] if isinstance(key, int) else key
    assert ended.lines[1:] == [f"{key:04X}" for key in wanted]


def test_looking_for_a_key_takes_none(tmp_path: Path) -> None:
    """However often a program looks before it reads, and more is typed than the buffer holds."""
    text = "".join(chr(ord("a") + number % 26) for number in range(200)) + "\r"
    source = f"""
    again:
        mov cx, 3
    1:  mov ah, 1
        int 0x16
        jz 1b
        loop 1b
        mov ah, 0
        int 0x16
        mov ah, 0x0e
        int 0x10
        cmp al, 13
        jne again
    {POWER_OFF}
    """
    ended = run("-d", disk(tmp_path / "disk", source), stdin=text.encode())
    assert "".join(ended.lines[1:]) == text.strip()  # it wraps


def test_typing_while_nobody_asks_is_not_lost(tmp_path: Path) -> None:
    """INT 16h gives what was typed before it, and what comes while it waits."""
    source = f"""
        jmp start
        {PRINT}
        start: call print
        .asciz "type:"
        4: mov ah, 0
        int 0x16
        mov ah, 0x0e
        int 0x10
        cmp al, '.'
        jne 4b
        {POWER_OFF}
    """
    running = Running(command("-d", disk(tmp_path / "disk", source)))
    try:
        running.write(b"before ")
        running.read_until(b"type:")
        running.read_until(b"before ")
        running.write(b"and after.")
        status, console, _ = running.finish()
    finally:
        running.process.kill()
    assert (status, console) == (0, b"and after.")


SCREEN_OPS = 400
DUMP = b"\x00\x01dump"


def _operations(seed: int) -> list[tuple[int, int, int, int]]:
    """AX, BX, CX, DX of calls to INT 10h, many of them hard on the screen's edges."""
    rng = random.Random(seed)
    calls = []
    for _ in range(SCREEN_OPS):
        row, column = rng.choice((0, 12, 24, rng.randrange(25))), rng.choice((0, 79, 40, 78))
        character = rng.choice(b" xyz\xc9\xb3")
        attribute = rng.choice((0x07, 0x07, 0x1F, 0x70))
        top, bottom = sorted((rng.randrange(25), rng.randrange(25)))
        left, right = sorted((rng.randrange(80), rng.choice((79, rng.randrange(80)))))
        call = rng.randrange(10)
        if call < 3:
            calls.append((0x0E00 | rng.choice(b"abc\r\n\r\n\b\t"), 7, 0, 0))
        elif call < 5:
            calls.append((0x0200, 0, 0, row << 8 | column))
        elif call < 7:
            calls.append((0x0900 | character, attribute, rng.choice((1, 5, 100, 2500)), 0))
        elif call == 7:
            calls.append((0x0A00 | character, 0, rng.randrange(4), 0))
        elif call == 8:
            lines = rng.choice((0, 1, 2, 30))
            window = top << 8 | left, bottom << 8 | right
            calls.append((rng.choice((0x0600, 0x0700)) | lines, attribute << 8, *window))
        else:
            lines = rng.choice((0, 1, 3))
            calls.append((0x0600 | lines, 0x0700, 0, 24 << 8 | 79))
    return calls


@pytest.mark.parametrize("seed", range(4))
def test_the_terminal_shows_the_screen(tmp_path: Path, seed: int) -> None:
    """Whatever calls are made, a terminal shows what the calls that read the screen return: one of
    that size, a larger one, and one that adds carriage returns."""
    calls = _operations(seed)
    source = f"""
        mov ah, 0x42
        mov si, offset packet
        int 0x13
        mov si, 0x7e00
        mov bp, {len(calls)}
        1: mov ax, [si]
        mov bx, [si + 2]
        mov cx, [si + 4]
        mov dx, [si + 6]
        int 0x10
        add si, 8
        dec bp
        jnz 1b
        mov si, offset mark
        mov cx, {len(DUMP)}
        2: lodsb
        call send
        loop 2b
        xor dx, dx
        3: mov ah, 2
        int 0x10
        mov ah, 8
        int 0x10
        call send
        inc dl
        cmp dl, 80
        jb 3b
        mov dl, 0
        inc dh
        cmp dh, 25
        jb 3b
        {POWER_OFF}
        send: push dx
        xor dx, dx
        mov ah, 1
        int 0x14
        pop dx
        ret
        packet: .word 16, {-(-len(calls) * 8 // 512)}, 0x7e00, 0
        .quad 1
        mark: .ascii "\\0\\1dump"
        .org 512
        """ + "".join(f".word {a}, {b}, {c}, {d}\n" for a, b, c, d in calls)
    ended = run("-d", disk(tmp_path / "disk", source))
    assert ended.status == 0
    shown, dump = ended.console.split(DUMP)
    cells = dump.decode("cp437")
    wanted = [cells[start : start + 80].rstrip() for start in range(0, 2000, 80)]
    same, large = Screen(), Screen(60, 132, row=50)
    carriage_returns = Screen(25, 80, row=24, onlcr=True)
    for screen in (same, large, carriage_returns):
        screen.feed(shown)
    assert same.lines == wanted
    assert carriage_returns.lines == wanted
    assert any(large.lines[row : row + 25] == wanted for row in range(60 - 25 + 1))


def test_a_kernel_by_its_real_mode_entry(tmp_path: Path) -> None:
    """The header is filled in, the BIOS is there, and the kernel at 1 MiB."""
    code = f"""
        mov ah, 0x88
        int 0x15
        call here
        here: pop si            # where we are: CS is the segment that boot.rst says
        mov bx, ss
        mov cx, ds
        cmp bx, 0x9000
        jne bad
        cmp cx, bx
        jne bad
        cmp sp, 0xe000
        jne bad
        test byte ptr [0x211], 0x80
        jz bad
        cmp byte ptr [0x210], 0xff
        jne bad
        cmp word ptr [0x224], 0xde00
        jne bad
        mov esi, [0x228]
        sub esi, 0x90000
        1: lodsb
        mov ah, 0x0e
        int 0x10
        test al, al
        jnz 1b
        mov eax, [0x21c]        # the initrd's size
        cmp eax, 5
        jne bad
        int 0x19                # once more: only a reset can do that
        bad: mov al, '!'
        mov ah, 0x0e
        int 0x10
        {POWER_OFF}
    """
    image = bytearray(bzimage())
    jump = 0x26C - 0x202
    assert image[HEADER_OFFSET + 0xF : HEADER_OFFSET + 0x11] == bytes((0xEB, jump))
    setup = assemble(code, address=0x6C)
    image[0x26C : 0x26C + len(setup)] = setup
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(image)
    initrd.write_bytes(b"12345")
    words = ["--no-default-append", "-a", "hello=there", "--boot", "16", "-i", initrd]
    ended = run("-k", kernel, *words)
    assert ended.console.replace(b"\0", b"").strip() == b"hello=there"
    assert ended.status == 0
    assert "guest rebooted" in ended.stderr


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("xor bl, bl\ndiv bl", "BIOS: divide error at 0000:7C02"),
        ("ud2", "BIOS: invalid opcode at 0000:7C00"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, source: str, says: str) -> None:
    ended = run("-d", disk(tmp_path / "disk", source), "--expect", says)
    assert ended.status == 0
    assert ended.lines.count(says) == 1


def test_the_rom(tmp_path: Path) -> None:
    """It is built anywhere, and has what old programs look for at its end."""
    target = tmp_path / "rom"
    subprocess.run([sys.executable, PROJECT / "firmware/build.py", target], check=True)
    rom = target.read_bytes()
    assert len(rom) <= 64 << 10
    assert len(rom) % 4096 == 0
    assert rom[-16] == 0xEA  # a far jump
    assert rom[-2] == 0xFC  # an AT
