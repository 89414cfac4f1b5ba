"""The BIOS's calls, one by one: they return what Ralf Brown's list says, change nothing else, and
end on the stack and with the flags that they began with.

What disks, memory maps and screens are like after many calls is test_bios.py's.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from kvm import bios_calls as bios
from kvm.assembler import assemble
from kvm.bios_calls import BUFFER, CF, DF, IF, ZF, call, key, read, write
from kvm.command import PYVMM, TIMEOUT, Ended, run_to_end

PROJECT = Path(__file__).parent.parent.parent
DATA_AREA = 0x40
BIOS = 0xF000
FREE_VECTOR = 0x69


@pytest.fixture(scope="module", autouse=True)
def rom() -> None:
    subprocess.run([sys.executable, PROJECT / "firmware/build.py"], check=True)


def run(tmp_path: Path, steps: list[bytes]) -> Ended:
    words = [*PYVMM, "run", "-d", str(bios.disk(tmp_path / "disk", steps))]
    return run_to_end([*words, "--timeout", str(TIMEOUT)], b"", TIMEOUT)


def answers(tmp_path: Path, steps: list[bytes]) -> list[bytes]:
    ended = run(tmp_path, steps)
    assert ended.status == 0, ended
    found = bios.answers(ended.console)
    assert len(found) == len(steps)
    return found


def vector(number: int, segment: int, offset: int) -> bytes:
    """A step that points an interrupt to an address."""
    return write(0, 4 * number, offset.to_bytes(2, "little") + segment.to_bytes(2, "little"))


def program(source: str) -> list[bytes]:
    """Steps that put some code at BUFFER."""
    code = assemble(source, address=BUFFER)
    return [write(0, BUFFER + at, code[at : at + 32]) for at in range(0, len(code), 32)]


NO_SUCH_CALL = {"ah": 0x86, "cf": 1}
DONE = {"ah": 0, "cf": 0}
SMAP = 0x534D4150

CALLS = {
    "15h 2400h": (call(0x15, ax=0x2400), NO_SUCH_CALL),
    "15h 2401h": (call(0x15, ax=0x2401), DONE),
    "15h 2402h": (call(0x15, ax=0x2402), {"ax": 1, "cf": 0}),
    "15h 2403h": (call(0x15, ax=0x2403), {"ah": 0, "bx": 3, "cf": 0}),
    "15h 4Fh": (call(0x15, ax=0x4F1E), {"cf": 1}),
    "15h 5300h": (call(0x15, ax=0x5300, bx=0), {"ax": 0x0102, "bx": 0x504D, "cx": 0, "cf": 0}),
    "15h 5300h, of a device": (call(0x15, ax=0x5300, bx=1), {"ah": 9, "cf": 1}),
    "15h 5301h": (call(0x15, ax=0x5301, bx=0), DONE),
    "15h 5302h": (call(0x15, ax=0x5302, bx=0), {"ah": 6, "cf": 1}),
    "15h 5303h": (call(0x15, ax=0x5303, bx=0), {"ah": 8, "cf": 1}),
    "15h 5307h, suspend": (call(0x15, ax=0x5307, bx=1, cx=2), {"ah": 0x60, "cf": 1}),
    "15h 5307h, no such state": (call(0x15, ax=0x5307, bx=1, cx=9), {"ah": 0x0A, "cf": 1}),
    "15h 5307h, one device": (call(0x15, ax=0x5307, bx=0x100, cx=3), {"ah": 9, "cf": 1}),
    "15h 530Ah": (
        call(0x15, ax=0x530A, bx=1),
        {"ah": 0, "bx": 0x01FF, "cx": 0x80FF, "dx": 0xFFFF, "cf": 0},
    ),
    "15h 530Bh": (call(0x15, ax=0x530B), {"ah": 0x80, "cf": 1}),
    "15h 530Eh": (call(0x15, ax=0x530E, bx=0, cx=0x0101), {"ax": 0x0101, "cf": 0}),
    "15h 5310h": (call(0x15, ax=0x5310), {"ah": 0x0C, "cf": 1}),
    "15h 80h": (call(0x15, ax=0x8000), DONE),
    "15h 83h": (call(0x15, ax=0x8300), NO_SUCH_CALL),
    "15h 85h": (call(0x15, ax=0x8500), DONE),
    "15h 86h": (call(0x15, ax=0x8600, cx=0, dx=100), DONE),
    "15h 86h, no time": (call(0x15, ax=0x8600, cx=0, dx=0), DONE),
    "15h 88h": (call(0x15, ax=0x8800), {"ax": 0xFC00, "cf": 0}),
    "15h 90h": (call(0x15, ax=0x9002), DONE),
    "15h 91h": (call(0x15, ax=0x9102), DONE),
    "15h C0h": (call(0x15, ax=0xC000), {"ah": 0, "bx": 0xE6F5, "es": BIOS, "cf": 0}),
    "15h C1h": (call(0x15, ax=0xC100), {"es": 0x9FC0, "cf": 0}),
    "15h C2h": (call(0x15, ax=0xC200), NO_SUCH_CALL),
    "15h E820h": (
        call(0x15, eax=0xE820, ebx=0, ecx=24, edx=SMAP, di=BUFFER),
        {"eax": SMAP, "ebx": 1, "ecx": 20, "cf": 0},
    ),
    "15h E820h, too little room": (
        call(0x15, eax=0xE820, ebx=0, ecx=19, edx=SMAP, di=BUFFER),
        NO_SUCH_CALL,
    ),
    "15h E820h, no such entry": (
        call(0x15, eax=0xE820, ebx=99, ecx=20, edx=SMAP, di=BUFFER),
        NO_SUCH_CALL,
    ),
    "15h E820h, and far from it": (
        call(0x15, eax=0xE820, ebx=0x100, ecx=20, edx=SMAP, di=BUFFER),
        NO_SUCH_CALL,
    ),
    "15h E801h": (
        call(0x15, ax=0xE801),
        {"ax": 0x3C00, "bx": 0x0F00, "cx": 0x3C00, "dx": 0x0F00, "cf": 0},
    ),
    "15h E881h": (
        call(0x15, eax=0xFFFFE881),
        {"eax": 0x3C00, "ebx": 0x0F00, "ecx": 0x3C00, "edx": 0x0F00, "cf": 0},
    ),
    "15h E8FFh": (call(0x15, ax=0xE8FF), NO_SUCH_CALL),
    "11h": (call(0x11), {"ax": 0x0226}),
    "12h": (call(0x12), {"ax": 639}),
    "14h 03h": (call(0x14, ax=0x0300, dx=0), {"ax": 0x60B0}),
    "14h 02h, nothing comes": (call(0x14, ax=0x0200, dx=0), {"ah": 0xE0}),
    "14h 03h, no COM2": (call(0x14, ax=0x0300, dx=1), {"ah": 0x80}),
    "14h 03h, no COM5": (call(0x14, ax=0x0300, dx=4), {}),
    "14h 0500h": (call(0x14, ax=0x0500, dx=0), {"ax": 0x60B0, "bl": 3}),
    "14h 06h": (call(0x14, ax=0x0600, dx=0), {}),
    "16h 01h": (call(0x16, ax=0x0100), {"zf": 1}),
    "16h 11h": (call(0x16, ax=0x1100), {"zf": 1}),
    "16h 02h": (call(0x16, ax=0x0255), {"al": 0}),
    "16h 12h": (call(0x16, ax=0x1255), {"ax": 0}),
    "16h 03h": (call(0x16, ax=0x0305), {}),
    "16h 09h": (call(0x16, ax=0x0900), {"al": 0x30}),
    "16h 0Ah": (call(0x16, ax=0x0A00), {"bx": 0x41AB}),
    "16h 92h": (call(0x16, ax=0x9200), {"ah": 0x80}),
    "16h A2h": (call(0x16, ax=0xA200), {}),
    "16h 20h": (call(0x16, ax=0x2000), {}),
    "17h 02h": (call(0x17, ax=0x0200, dx=0), {"ah": 0x29}),
    "1Ah 08h": (call(0x1A, ax=0x0800), {"cf": 1}),
    "1Ah BB00h": (call(0x1A, ax=0xBB00), {"cf": 1}),
    "1Ah B102h, no vendor": (call(0x1A, ax=0xB102, dx=0xFFFF), {"ah": 0x83, "cf": 1}),
    "1Ah B102h, no device": (
        call(0x1A, ax=0xB102, cx=0x1234, dx=0x5678, si=0),
        {"ah": 0x86, "cf": 1},
    ),
    "1Ah B103h": (
        call(0x1A, ax=0xB103, ecx=0x060000, si=0),
        {"ah": 0, "bx": 0, "cf": 0},
    ),
    "1Ah B106h": (call(0x1A, ax=0xB106), {"ah": 0x81, "cf": 1}),
    "1Ah B10Ah, where nothing is": (
        call(0x1A, ax=0xB10A, bx=0x0500, di=0),
        {"ah": 0, "ecx": 0xFFFFFFFF, "cf": 0},
    ),
    "1Ah B10Ah, a bad register": (
        call(0x1A, ax=0xB10A, bx=0, di=2),
        {"ah": 0x87, "cf": 1},
    ),
    "1Ah B10Eh": (call(0x1A, ax=0xB10E), {"ah": 0x81, "cf": 1}),
    "10h 04h": (call(0x10, ax=0x0400), {}),
    "10h 0Fh": (call(0x10, ax=0x0F00), {"ax": 0x5003, "bh": 0}),
    "10h 1130h": (call(0x10, ax=0x1130), {"cx": 16, "dl": 24}),
    "10h 12h": (call(0x10, ax=0x1200, bx=0x0010), {}),
    "10h 1A00h": (call(0x10, ax=0x1A00), {}),
    "10h 4F00h": (call(0x10, ax=0x4F00), {}),
    "10h FEh": (call(0x10, ax=0xFE00), {}),
    "13h 00h": (call(0x13, ax=0x0000, dx=0x80), DONE),
    "13h 01h": (call(0x13, ax=0x0100, dx=0x80), DONE),
    "13h 02h": (call(0x13, ax=0x0201, bx=BUFFER, cx=1, dx=0x80), DONE),
    "13h 02h, no sectors": (
        call(0x13, ax=0x0200, bx=BUFFER, cx=1, dx=0x80),
        {"ah": 1, "cf": 1},
    ),
    "13h 01h, after it": (call(0x13, ax=0x0100, dx=0x80), {"ah": 1, "cf": 1}),
    "13h 15h": (
        call(0x13, ax=0x1500, dx=0x80),
        {"ah": 3, "cx": 0, "dx": 2048, "cf": 0},
    ),
    "13h 41h": (
        call(0x13, ax=0x4100, bx=0x55AA, dx=0x80),
        {"ah": 0x30, "bx": 0xAA55, "cx": 1, "cf": 0},
    ),
    "13h 41h, not asked well": (
        call(0x13, ax=0x4100, bx=0x1234, dx=0x80),
        {"ah": 1, "cf": 1},
    ),
    "13h 46h": (call(0x13, ax=0x4600, dx=0x80), {"ah": 0xB2, "cf": 1}),
    "13h 49h": (call(0x13, ax=0x4900, dx=0x80), DONE),
    "13h 50h": (call(0x13, ax=0x5000, dx=0x80), {"ah": 1, "cf": 1}),
    "13h 02h, no such disk": (
        call(0x13, ax=0x0201, bx=BUFFER, cx=1, dx=0x85),
        {"ah": 1, "cf": 1},
    ),
    "13h 15h, no such disk": (call(0x13, ax=0x1500, dx=0x85), {"ax": 0, "cf": 0}),
    "nobody's": (call(0x68), {}),
}


@pytest.mark.parametrize(
    "flags", [IF, CF | ZF | DF | IF, 0, CF | DF], ids=["", "set", "off", "both"]
)
def test_calls(tmp_path: Path, flags: int) -> None:
    """Whatever the flags are at the call: those that mean nothing come back."""
    steps = [step[:2] + flags.to_bytes(2, "little") + step[4:] for step, _ in CALLS.values()]
    found = answers(tmp_path, steps)
    for name, step, (_, changes), dumped in zip(CALLS, steps, CALLS.values(), found, strict=True):
        assert (name, bios.returned(dumped)) == (name, bios.expected(step, changes))
        assert bios.answer(dumped).stack < 200, name


def test_moving_a_block(tmp_path: Path) -> None:
    """INT 15h 87h takes what two descriptors have for bases; the zero flag is an answer, too."""

    def table(source: int, target: int) -> list[bytes]:
        words = [
            (0xFFFF | (base & 0xFFFFFF) << 16 | 0x93 << 40 | base >> 24 << 56).to_bytes(8, "little")
            for base in (source, target)
        ]
        return [write(0, BUFFER + 0x10, b"".join(words))]

    move = call(0x15, ax=0x8700, cx=16, si=BUFFER, flags=IF | CF | ZF)
    steps = [
        write(0, BUFFER + 0x100, bytes(range(32))),
        *table(BUFFER + 0x100, 0x80_0000),
        move,
        *table(0x80_0000, BUFFER + 0x200),
        call(0x15, ax=0x8700, cx=16, si=BUFFER, flags=IF),
        *table(0xF000_0000, BUFFER + 0x200),
        move,
        read(0, BUFFER + 0x200),
    ]
    found = answers(tmp_path, steps)
    assert bios.returned(found[2]) == bios.expected(move, {"ah": 0, "cf": 0, "zf": 1})
    assert bios.returned(found[4]) == bios.expected(steps[4], {"ah": 0, "zf": 1})
    assert bios.returned(found[6]) == bios.expected(move, {"ah": 2, "zf": 0})
    assert found[7][:32] == bytes(range(32))


def test_the_data_area(tmp_path: Path) -> None:
    """What programs read at 40:0 and on; addresses and values as in the list's MEMORY.LST."""
    steps = [read(DATA_AREA, start) for start in range(0, 0x100, 32)]
    area = b"".join(dumped[:32] for dumped in answers(tmp_path, steps))

    def word(address: int) -> int:
        return int.from_bytes(area[address : address + 2], "little")

    assert [word(address) for address in range(0, 0x10, 2)] == [0x3F8, 0, 0, 0, 0, 0, 0, 0x9FC0]
    assert word(0x10) == 0x0226  # a serial port, a mouse port, 80 columns, an FPU
    assert word(0x13) == 639
    assert area[0x17:0x1A] == bytes(3)
    assert (word(0x1A), word(0x1C), word(0x80), word(0x82)) == (0x1E, 0x1E, 0x1E, 0x3E)
    assert (area[0x49], word(0x4A), word(0x4C), word(0x4E)) == (3, 80, 0x1000, 0)
    assert (word(0x60), area[0x62], word(0x63), area[0x65], area[0x66]) == (
        0x0607, 0, 0x3D4, 0x29, 0x30,
    )  # fmt: skip
    assert word(0x6E) < 24
    assert (area[0x70], area[0x71], word(0x72), area[0x74], area[0x75]) == (0, 0, 0, 0, 1)
    assert area[0x78:0x80] == bytes((0x14, 0x14, 0x14, 0, 1, 1, 1, 1))
    assert (area[0x84], word(0x85), area[0x87]) == (24, 16, 0)  # and no EGA
    assert area[0x96:0x98] == bytes((0x10, 0))


def test_the_vectors(tmp_path: Path) -> None:
    """What nobody serves leads to IBM's IRET; 60h to 67h are programs', who look for zeros."""
    found = b"".join(
        dumped[:32] for dumped in answers(tmp_path, [read(0, at) for at in range(0, 1024, 32)])
    )
    vectors = struct.unpack("<256I", found)
    zero = {*range(0x60, 0x68), 0x1D, 0x1F, 0x41, 0x46}
    assert {number for number, value in enumerate(vectors) if not value} == zero
    assert {value >> 16 for value in vectors if value} == {BIOS}
    unserved = {0x05, 0x1B, 0x1C, 0x4A, *range(0x80, 0x100)}
    assert {vectors[number] & 0xFFFF for number in unserved} == {0xFF53}


ENTRIES = {
    0xE2C3: call(0x02),
    0xE3FE: call(0x13, ax=0x4100, bx=0x55AA, dx=0x80),
    0xE739: call(0x14, ax=0x0300, dx=0),
    0xE82E: call(0x16, ax=0x0900),
    0xEC59: call(0x40, ax=0x4100, bx=0x55AA, dx=0x80),
    0xEFD2: call(0x17, ax=0x0200, dx=0),
    0xF065: call(0x10, ax=0x0F00),
    0xF841: call(0x12),
    0xF84D: call(0x11),
    0xF859: call(0x15, ax=0x8800),
    0xFE6E: call(0x1A, ax=0xB101),
    0xFF53: call(0x1C),
    0xFF54: call(0x05),
}
"""Where IBM's ROM has its services, and a call of each that may be made twice."""


def test_entry_points_do_what_the_interrupts_do(tmp_path: Path) -> None:
    steps = []
    for address, step in ENTRIES.items():
        by_address = step[:1] + bytes((FREE_VECTOR,)) + step[2:]
        steps += [step, vector(FREE_VECTOR, BIOS, address), by_address]
    found = answers(tmp_path, steps)
    for number, address in enumerate(ENTRIES):
        by_interrupt, by_address = (bios.returned(found[3 * number + at]) for at in (0, 2))
        assert (hex(address), by_address) == (hex(address), by_interrupt)


def test_the_rom_has_tables_where_ibms_has_them(tmp_path: Path) -> None:
    steps = [read(BIOS, address) for address in (0xE6F5, 0xEFC7, 0xFFF0)]
    system, floppy, end = answers(tmp_path, steps)
    assert system[:10] == bytes((8, 0, 0xFC, 1, 0, 0x74, 0x40, 0, 0, 0))
    assert floppy[:11] == bytes((0xDF, 2, 0x25, 2, 18, 0x1B, 0xFF, 0x6C, 0xF6, 0x0F, 8))
    assert end[0] == 0xEA
    assert end[5:13].count(b"/") == 2
    assert end[14] == 0xFC


@pytest.mark.parametrize("how", ["ljmp 0xf000, 0xe05b", "int 0x69"])
def test_starting_again_by_an_entry_point(tmp_path: Path, how: str) -> None:
    """POST, and INT 19h's: the CMOS, which a battery keeps, tells the second time."""
    source = f"""
        mov word ptr [0x69 * 4], 0xe6f2
        mov word ptr [0x69 * 4 + 2], 0xf000
        mov al, 0x50
        out 0x70, al
        in al, 0x71
        inc al
        out 0x71, al
        cmp al, 2
        je 1f
        {how}
        1: mov dx, 0x604
        mov ax, 5 << 10 | 1 << 13
        out dx, ax
        hlt
    """
    path = tmp_path / "disk"
    path.write_bytes(assemble(source, address=0x7C00).ljust(510, b"\0") + b"\x55\xaa" + bytes(4096))
    words = [*PYVMM, "run", "-d", str(path), "--on-reboot", "restart", "--timeout", str(TIMEOUT)]
    ended = run_to_end(words, b"", TIMEOUT)
    assert ended.status == 0
    assert ended.lines == ["Booting from disk 1"] * 2


PAUSE = (0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5)
SHIFT, CONTROL, ALT = 0x2A, 0x1D, 0x38
GREY = 0xE0


def press(*codes: int, held: int | None = None) -> tuple[int, ...]:
    """A key, or one with its prefix, pressed and let go while another one is held."""
    *prefix, code = codes
    pressed = (*codes, *prefix, code | 0x80)
    return pressed if held is None else (held, *pressed, held | 0x80)


KEYS = {
    "a": (press(0x1E), 0x1E61),
    "A": (press(0x1E, held=SHIFT), 0x1E41),
    "Ctrl-A": (press(0x1E, held=CONTROL), 0x1E01),
    "Alt-A": (press(0x1E, held=ALT), 0x1E00),
    "m": (press(0x32), 0x326D),
    "Ctrl-Z": (press(0x2C, held=CONTROL), 0x2C1A),
    "1": (press(0x02), 0x0231),
    "@": (press(0x03, held=SHIFT), 0x0340),
    "Ctrl-1": (press(0x02, held=CONTROL), None),
    "Ctrl-2": (press(0x03, held=CONTROL), 0x0300),
    "Ctrl-6": (press(0x07, held=CONTROL), 0x071E),
    "Ctrl-minus": (press(0x0C, held=CONTROL), 0x0C1F),
    "Alt-0": (press(0x0B, held=ALT), 0x8100),
    "Esc": (press(0x01), 0x011B),
    "Alt-Esc": (press(0x01, held=ALT), 0x0100),
    "Backspace": (press(0x0E), 0x0E08),
    "Ctrl-Backspace": (press(0x0E, held=CONTROL), 0x0E7F),
    "Shift-Tab": (press(0x0F, held=SHIFT), 0x0F00),
    "Ctrl-Tab": (press(0x0F, held=CONTROL), 0x9400),
    "Alt-Tab": (press(0x0F, held=ALT), 0xA500),
    "Ctrl-[": (press(0x1A, held=CONTROL), 0x1A1B),
    "Ctrl-Enter": (press(0x1C, held=CONTROL), 0x1C0A),
    "Alt-space": (press(0x39, held=ALT), 0x3920),
    "F1": (press(0x3B), 0x3B00),
    "Shift-F10": (press(0x44, held=SHIFT), 0x5D00),
    "Ctrl-F1": (press(0x3B, held=CONTROL), 0x5E00),
    "Alt-F4": (press(0x3E, held=ALT), 0x6B00),
    "F11": (press(0x57), 0x8500),
    "Shift-F12": (press(0x58, held=SHIFT), 0x8800),
    "Ctrl-F11": (press(0x57, held=CONTROL), 0x8900),
    "Alt-F12": (press(0x58, held=ALT), 0x8C00),
    "keypad 7, as Home": (press(0x47), 0x4700),
    "Shift-keypad 7": (press(0x47, held=SHIFT), 0x4737),
    "Ctrl-keypad 7": (press(0x47, held=CONTROL), 0x7700),
    "keypad 7 with NumLock": (press(0x45) + press(0x47) + press(0x45), 0x4737),
    "keypad Enter": (press(GREY, 0x1C), 0xE00D),
    "keypad slash": (press(GREY, 0x35, held=SHIFT), 0xE02F),
    "Up": (press(GREY, 0x48), 0x48E0),
    "Up, among shifts that aren't": ((GREY, 0x2A, *press(GREY, 0x48), GREY, 0xAA), 0x48E0),
    "Ctrl-Home": (press(GREY, 0x47, held=CONTROL), 0x77E0),
    "Alt-Del": (press(GREY, 0x53, held=ALT), 0xA300),
    "q with CapsLock": (press(0x3A) + press(0x10) + press(0x3A), 0x1051),
    "Q with CapsLock": (press(0x3A) + press(0x10, held=SHIFT) + press(0x3A), 0x1071),
    "1 with CapsLock": (press(0x3A) + press(0x02) + press(0x3A), 0x0231),
    "CapsLock, repeated": ((0x3A, 0x3A, 0x3A, 0xBA) + press(0x10) + press(0x3A), 0x1051),
    "the key left of Z": (press(0x56), 0x565C),
    "Alt and 225": ((ALT, *press(0x50), *press(0x50), *press(0x4C), ALT | 0x80), 0x00E1),
    "Ctrl-PrtSc": (press(GREY, 0x37, held=CONTROL), 0x7200),
    "Pause": (PAUSE, None),
    "a multimedia key": (press(GREY, 0x20), None),
    "a key that no keyboard has": (press(0x7F), None),
    "the keyboard's self-test": ((0xAA,), None),
}
"""What a keyboard sends for a key, and what INT 16h returns then."""
NO_KEY = 0x1234


def test_keys(tmp_path: Path) -> None:
    """Each returns its code and leaves the flags as they were. A mark is put behind each, so that
    there is always something to read."""
    steps, readings = [], []
    for codes, _ in KEYS.values():
        steps += [key(code) for code in codes]
        steps += [call(0x16, ax=0x0500, cx=NO_KEY), call(0x16, ax=0x1000)]
        readings.append(len(steps) - 1)
        steps += [read(DATA_AREA, 0x17), write(DATA_AREA, 0x1A, b"\x1e\0\x1e\0")]
    found = answers(tmp_path, steps)
    for index, (name, (_, wanted)) in zip(readings, KEYS.items(), strict=True):
        code = bios.answer(found[index]).eax
        assert (name, hex(code)) == (name, hex(NO_KEY if wanted is None else wanted))
        assert (name, found[index + 1][:3]) == (name, bytes(3))


def test_keys_for_old_programs(tmp_path: Path) -> None:
    """Calls 00h and 01h give the grey keys as the first keyboard's."""
    codes = {press(GREY, 0x48): 0x4800, press(GREY, 0x1C): 0x1C0D, press(GREY, 0x35): 0x352F}
    steps = []
    for sent in codes:
        steps += [*map(key, sent), call(0x16, ax=0x0100), call(0x16, ax=0x0000)]
    found = answers(tmp_path, steps)
    read_keys = [
        bios.answer(found[at]).eax for at, step in enumerate(steps) if step[:2] == b"\0\x16"
    ]
    assert read_keys == [code for code in codes.values() for _ in range(2)]


def test_shift_flags(tmp_path: Path) -> None:
    """Call 12h tells the left and right ones apart, and a lock from its key."""
    moments = [
        ((CONTROL,), 0x0104),
        ((GREY, CONTROL), 0x0504),
        ((CONTROL | 0x80,), 0x0404),
        ((GREY, ALT), 0x0C0C),
        ((GREY, ALT | 0x80, GREY, CONTROL | 0x80), 0x0000),
        ((0x36,), 0x0001),
        ((0x45,), 0x2021),
        ((0x45, 0xC5, 0xB6), 0x0020),
        (press(0x46), 0x0030),
        ((GREY, 0x52), 0x00B0),
        ((GREY, 0x52, GREY, 0xD2), 0x00B0),
        (press(GREY, 0x52), 0x0030),
    ]
    steps = []
    for codes, _ in moments:
        steps += [*map(key, codes), call(0x16, ax=0x1200)]
    found = answers(tmp_path, steps)
    flags = [bios.answer(found[at]).eax for at, step in enumerate(steps) if step[0] == 0]
    assert [hex(value) for value in flags] == [hex(value) for _, value in moments]


HOOKS = """
    cmp ah, 0x4f                # INT 15h: y for z, and nothing for x
    jne 3f
    cmp al, 0x2d
    je 2f
    cmp al, 0x2c
    jne 1f
    mov al, 0x15
    1: stc
    retf 2
    2: clc
    retf 2
    3: iret
    .org 40                     # INT 05h and 1Bh: count
    inc byte ptr cs:[counted]
    iret
    .org 60
    counted: .byte 0
"""


def test_hooks_of_the_keyboard(tmp_path: Path) -> None:
    """INT 15h 4Fh sees each byte; PrtSc calls INT 05h, and Ctrl-Break INT 1Bh."""
    steps = [
        *program(HOOKS),
        vector(0x15, 0, BUFFER),
        vector(0x05, 0, BUFFER + 40),
        vector(0x1B, 0, BUFFER + 40),
        *map(key, (0x2D, 0xAD, 0x2C, 0xAC)),
        call(0x16, ax=0x1000),
        *map(key, press(GREY, 0x37)),
        *map(key, press(0x1E)),
        *map(key, press(GREY, 0x46, held=CONTROL)),
        call(0x16, ax=0x1000),
        call(0x16, ax=0x1100),
        read(0, BUFFER + 60),
        read(DATA_AREA, 0x71),
    ]
    found = answers(tmp_path, steps)
    calls = [bios.returned(found[at]) for at, step in enumerate(steps) if step[0] == 0]
    assert hex(calls[0]["eax"]) == "0x1579"
    assert calls[1]["eax"] == 0  # what Break leaves in the buffer, in the place of the a
    assert calls[2]["zf"] == 1
    assert found[-2][0] == 2
    assert found[-1][0] == 0x80


def test_control_alt_delete(tmp_path: Path) -> None:
    ended = run(tmp_path, [*map(key, (CONTROL, ALT, GREY, 0x53)), call(0x16, ax=0x1000)])
    assert ended.status == 0
    assert "guest rebooted" in ended.stderr


INTERRUPTED = """
    push ds
    push 0x40
    pop ds
    cli
    1: mov al, 0x0a             # until the timer's interrupt is pending
    out 0x20, al
    in al, 0x20
    test al, 1
    jz 1b
    mov si, [0x6c]
    mov ax, {ax}
    xor bx, bx
    xor di, di
    int {vector}
    mov ax, [0x6c]
    sub ax, si
    pop ds
    iret
"""


@pytest.mark.parametrize(
    ("number", "ax", "let_through"), [(0x1A, 0xB108, 0), (0x16, 0x0100, 1), (0x13, 0x0100, 0)]
)
def test_interrupts_that_are_off(tmp_path: Path, number: int, ax: int, let_through: int) -> None:
    """The PCI specification wants them off. INT 16h 01h, asked in a loop, must let keys come."""
    source = INTERRUPTED.format(vector=number, ax=ax)
    steps = [*program(source), vector(FREE_VECTOR, 0, BUFFER), call(FREE_VECTOR, flags=0)]
    assert bios.answer(answers(tmp_path, steps)[-1]).eax == let_through


AT_TICKS = """
    push ax                     # INT 1Ch: a key with the second tick, and looking for it
    push cx
    inc byte ptr cs:[ticks]
    cmp byte ptr cs:[ticks], 2
    jne 1f
    mov ah, 5
    mov cx, 0x1234
    int 0x16
    mov ah, 1
    int 0x16
    1: pop cx
    pop ax
    iret
    .org 60
    ticks: .byte 0
"""


def test_apm_idles_and_switches_the_machine_off(tmp_path: Path) -> None:
    steps = [
        read(DATA_AREA, 0x6C),
        *(call(0x15, ax=0x5305) for _ in range(4)),
        read(DATA_AREA, 0x6C),
        call(0x15, ax=0x5307, bx=1, cx=2),
    ]
    before, *_, after, _ = answers(tmp_path, steps)
    assert after[0] != before[0]
    ended = run(tmp_path, [call(0x15, ax=0x5307, bx=1, cx=3), read(0, 0)])
    assert ended.status == 0
    assert bios.DUMP not in ended.console


def test_a_call_during_another(tmp_path: Path) -> None:
    """INT 16h waits for a key, and from the timer's hook comes one."""
    wait = call(0x16, ax=0x1000, flags=0)
    steps = [*program(AT_TICKS), vector(0x1C, 0, BUFFER), wait, read(0, BUFFER + 60)]
    *_, waited, ticks = answers(tmp_path, steps)
    assert bios.returned(waited) == bios.expected(wait, {"ax": 0x1234})
    assert ticks[0] >= 2


def test_the_clock_is_set(tmp_path: Path) -> None:
    get_time, get_date = call(0x1A, ax=0x0200), call(0x1A, ax=0x0400)
    steps = [
        call(0x1A, ax=0x0500, cx=0x2024, dx=0x0229),
        call(0x1A, ax=0x0300, cx=0x1314, dx=0x1501),
        get_time,
        get_date,
        call(0x1A, ax=0x0300, cx=0x1314, dx=0x1500),
        get_time,
    ]
    found = [bios.returned(dumped) for dumped in answers(tmp_path, steps)]
    for at in (0, 1, 4):
        assert found[at] == bios.expected(steps[at], {"ah": 0})
    assert found[2]["ecx"] & 0xFFFF == 0x1314
    assert [found[at]["edx"] & 0xFF for at in (2, 5)] == [1, 0]
    assert found[3] == bios.expected(get_date, {"ah": 0, "cx": 0x2024, "dx": 0x0229})


def test_setting_the_mode(tmp_path: Path) -> None:
    """The cursor goes home, and with bit 7 the screen stays."""
    where = call(0x10, ax=0x0300, bx=0)
    write_x = call(0x10, ax=0x0958, bx=0x1E, cx=3)
    steps = []
    for mode in (0x83, 0x03):
        steps += [
            call(0x10, ax=0x0200, bx=0, dx=0),
            write_x,
            call(0x10, ax=0x0200, bx=0, dx=0x0505),
        ]
        steps += [call(0x10, ax=mode), where, read(0xB800, 0)]
    found = answers(tmp_path, steps)
    for at, shown in (5, b"X\x1eX\x1eX\x1e"), (11, b" \x07 \x07 \x07"):
        home = bios.expected(where, {"eax": 0, "cx": 0x0607, "dx": 0})
        assert bios.returned(found[at - 1]) == home
        assert found[at][:6] == shown


def test_what_edd_tells_of_a_disk(tmp_path: Path) -> None:
    """As much as there is room for, but no more than is known; and nothing if there isn't room."""
    found = []
    for room in (25, 26, 29, 30, 66):
        steps = [
            write(0, BUFFER, room.to_bytes(2, "little").ljust(32, b"\xee")),
            call(0x13, ax=0x4800, dx=0x80, si=BUFFER),
            read(0, BUFFER),
        ]
        found.append(answers(tmp_path, steps))
    told = struct.pack("<HIIIQHI", 3, 2, 16, 63, 2048, 512, 0xFFFFFFFF)
    for (_, dumped, memory), (error, size) in zip(
        found, ((1, 2), (0, 26), (0, 26), (0, 30), (0, 30)), strict=True
    ):
        assert bios.returned(dumped)["eax"] == error << 8
        if error:
            assert memory[2:32] == b"\xee" * 30
        else:
            assert memory[:32] == struct.pack("<H", size) + told[: size - 2] + b"\xee" * (32 - size)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("mov ecx, 0x12345678\nwrmsr", "protection fault"),
        ("cli\n1: int 0x0d\njmp 1b", "protection fault"),
        ("cli\n1: int 0x0c\njmp 1b", "stack fault"),
        ("int 0x0d\nint 0x0c\nint 0x0d\nmov dx, 0x604\nmov ax, 0x3400\nout dx, ax", None),
    ],
)
def test_faults_with_an_irqs_vector(tmp_path: Path, source: str, says: str | None) -> None:
    """Named, like the other faults, but not taken for the call of a program that has had an
    interrupt by the same vector. (Not every host checks operands against a segment's limit: what
    comes again and again from one place is a fault.)"""
    path = tmp_path / "disk"
    path.write_bytes(assemble(source, address=0x7C00).ljust(510, b"\0") + b"\x55\xaa" + bytes(4096))
    words = [*PYVMM, "run", "-d", str(path), "--timeout", str(TIMEOUT)]
    if says:
        words += ["--expect", f"BIOS: {says} at 0000:7C0"]
    ended = run_to_end(words, b"", TIMEOUT)
    assert ended.status == 0
    assert ("fault" in ended.console.decode()) == bool(says)
