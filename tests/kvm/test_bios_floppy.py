"""PyVMM's own BIOS and floppies: they boot, and INT 13h has them as drives A: and B:."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from kvm import bios_calls
from kvm.assembler import assemble
from kvm.bios_calls import BUFFER, CF, Answer, answer, answers, call, read, write
from kvm.command import PYVMM, TIMEOUT, Ended, run_to_end

from pyvmm.backends.floppy import KNOWN, Geometry

SECTOR = 512
BOOT_SECTOR = 0x7C00
DATA_AREA = 0x40
A, B, NONE, FIRST_DISK = 0, 1, 2, 0x80

CHANGE_LINE, FIXED_DISK = 2, 3
BAD_REQUEST, WRITE_PROTECTED, NOT_FOUND, BAD_FORMAT = 0x01, 0x03, 0x04, 0x0C

K360, K720, M1200, M1440 = (Geometry(40, 2, 9), Geometry(80, 2, 9), Geometry(80, 2, 15), KNOWN[9])
DMF, M2880 = Geometry(80, 2, 21), Geometry(80, 2, 36)


def run(*options: str | Path) -> Ended:
    words = [*PYVMM, "run", *map(str, options), "--timeout", str(TIMEOUT)]
    return run_to_end(words, b"", TIMEOUT)


def numbered(path: Path, geometry: Geometry) -> Path:
    """An image whose sectors hold their numbers."""
    count = geometry.size // SECTOR
    path.write_bytes(b"".join(struct.pack("<I", number) * 128 for number in range(count)))
    return path


def bootable(path: Path, name: str, rest: str = "", *, marked: bool = True) -> Path:
    """A floppy that prints its name and DL, then does the rest, by default powering off."""
    rest = rest or SWITCH_OFF
    code = assemble(
        f"""
        jmp 1f
        name: .ascii "{name} "
        1: mov si, offset name
        mov cx, {len(name) + 1}
        mov ah, 0x0e
        2: lodsb
        int 0x10
        loop 2b
        mov al, dl
        add al, '0'
        int 0x10
        mov al, 13
        int 0x10
        mov al, 10
        int 0x10
        {rest}
        """,
        address=BOOT_SECTOR,
    )
    image = bytearray(M1440.size)
    image[: len(code)] = code
    if marked:
        image[510:512] = b"\x55\xaa"
    path.write_bytes(image)
    return path


class Calls:
    """The drives, and calls with them."""

    def __init__(self, directory: Path, *floppies: str | Path) -> None:
        self._disk = directory / "calls"
        self._options: list[str | Path] = ["-d", f"{self._disk},bootindex=0"]
        for floppy in floppies:
            self._options += ["--floppy", floppy]

    def make(self, steps: Sequence[bytes]) -> list[bytes]:
        bios_calls.disk(self._disk, steps)
        ended = run(*self._options)
        assert ended.status == 0, ended.stderr
        return answers(ended.console)

    def each(self, *steps: bytes) -> list[Answer]:
        return [answer(dumped) for dumped in self.make(steps)]

    def one(self, step: bytes) -> Answer:
        return self.each(step)[0]


def disk_call(ax: int, drive: int, *, cx: int = 1, head: int = 0, bx: int = BUFFER) -> bytes:
    return call(0x13, ax=ax, bx=bx, cx=cx, dx=head << 8 | drive)


def register(done: Answer, name: str) -> int:
    """One by its 8-bit or 16-bit name, or CF."""
    if name == "cf":
        return int(bool(done.flags & CF))
    value = int(getattr(done, f"e{name[0]}x" if name[1] in "hl" else f"e{name}"))
    return value >> 8 & 0xFF if name[1] == "h" else value & (0xFF if name[1] == "l" else 0xFFFF)


def refused(status: int) -> tuple[int, int]:
    return status, 1


def outcome(done: Answer) -> tuple[int, int]:
    return register(done, "ah"), register(done, "cf")


DONE = (0, 0)
SWITCH_OFF = "mov dx, 0x604\nmov ax, 5 << 10 | 1 << 13\nout dx, ax\nhlt"


class TestBooting:
    def test_the_floppy_comes_first(self, tmp_path: Path) -> None:
        floppy = bootable(tmp_path / "floppy", "floppy")
        disk = bootable(tmp_path / "disk", "disk")
        ended = run("-d", disk, "--floppy", floppy)
        assert (ended.status, ended.lines) == (0, ["Booting from floppy A", "floppy 0"])
        ended = run("-d", f"{disk},bootindex=1", "--floppy", floppy)
        assert ended.lines[0] == "Booting from disk 1"
        ended = run("-d", f"{disk},bootindex=1", "--floppy", f"{floppy},bootindex=0")
        assert ended.lines[0] == "Booting from floppy A"

    def test_the_second_drive_is_booted_only_if_asked(self, tmp_path: Path) -> None:
        blank = tmp_path / "blank"
        blank.write_bytes(b"\xf6" * M1440.size)
        floppy = bootable(tmp_path / "floppy", "floppy")
        ended = run("--floppy", blank, "--floppy", floppy)
        assert ended.status == 1
        assert ended.lines == ["No bootable disk or floppy"]
        assert ended.stderr.startswith("pyvmm: no bootable disk or floppy after")
        ended = run("--floppy", blank, "--floppy", f"{floppy},bootindex=3")
        assert (ended.status, ended.lines) == (0, ["Booting from floppy B", "floppy 1"])

    def test_a_floppy_that_gives_up(self, tmp_path: Path) -> None:
        floppy = bootable(tmp_path / "floppy", "floppy", "int 0x18")
        disk = bootable(tmp_path / "disk", "disk")
        ended = run("-d", disk, "--floppy", floppy)
        wanted = ["Booting from floppy A", "floppy 0", "Booting from disk 1"]
        assert (ended.status, ended.lines[:3]) == (0, wanted)

    def test_a_floppy_without_a_mark_from_before_there_were_any(self, tmp_path: Path) -> None:
        ended = run("--floppy", bootable(tmp_path / "floppy", "floppy", marked=False))
        assert ended.lines == ["Booting from floppy A", "floppy 0"]
        ended = run("-d", bootable(tmp_path / "disk", "disk", marked=False))
        assert ended.status == 1


@pytest.mark.parametrize("geometry", [KNOWN[0], K360, M1200, M1440, DMF, M2880], ids=str)
def test_a_floppy_s_geometry(tmp_path: Path, geometry: Geometry) -> None:
    """Call 08h's, and the one by which sectors are found; the sector behind a track's last isn't
    there, by which boot sectors tell one kind from another."""
    cylinders, heads, sectors = geometry
    calls = Calls(tmp_path, numbered(tmp_path / "floppy", geometry))
    last = (cylinders - 1) << 8 | sectors
    parameters, found, beyond, no_head, no_cylinder, data = calls.make(
        [
            disk_call(0x0800, A),
            disk_call(0x0201, A, cx=last, head=heads - 1),
            disk_call(0x0201, A, cx=sectors + 1),
            disk_call(0x0201, A, cx=1, head=heads),
            disk_call(0x0201, A, cx=cylinders << 8 | 1),
            read(0, BUFFER),
        ]
    )
    described = answer(parameters)
    assert outcome(described) == DONE
    assert register(described, "cx") == last
    assert register(described, "dx") == (heads - 1) << 8 | 1
    assert outcome(answer(found)) == DONE
    assert data == struct.pack("<I", geometry.size // SECTOR - 1) * 10
    for failed in (beyond, no_head, no_cylinder):
        assert outcome(answer(failed)) == refused(NOT_FOUND)


@pytest.mark.parametrize(
    ("geometry", "kind"),
    [(KNOWN[0], 1), (K360, 1), (M1200, 2), (K720, 3), (M1440, 4), (M2880, 6)],
    ids=str,
)
def test_a_drive_s_type_and_parameters(tmp_path: Path, geometry: Geometry, kind: int) -> None:
    calls = Calls(tmp_path, numbered(tmp_path / "floppy", geometry))
    described = calls.one(disk_call(0x0800, A))
    assert register(described, "bl") == kind
    vector, parameters = calls.make([read(0, 0x1E * 4), read(described.es, described.edi & 0xFFFF)])
    assert struct.unpack_from("<HH", vector) == (described.edi & 0xFFFF, described.es)
    assert parameters[3:5] == bytes((2, geometry.sectors))
    assert parameters[8] == 0xF6


def test_what_programs_find_without_a_call(tmp_path: Path) -> None:
    """Equipment and data area of a machine with none, one and two."""
    first = numbered(tmp_path / "first", M1440)
    second = numbered(tmp_path / "second", K360)
    for floppies, equipment in (([], 0), ([first], 0x01), ([first, second], 0x41)):
        calls = Calls(tmp_path, *floppies)
        count = len(floppies)
        listed, data, media = calls.make([call(0x11), read(DATA_AREA, 0x3E), read(DATA_AREA, 0x8F)])
        assert register(answer(listed), "al") & 0xC1 == equipment
        assert data[0] == (1 << count) - 1  # calibrated
        assert data[3] == 0
        assert media[0] == (0x00, 0x07, 0x77)[count]
        assert media[1:3] == (b"\0\0", b"\x17\0", b"\x17\x93")[count]


def test_reading_writing_and_verifying(tmp_path: Path) -> None:
    image = numbered(tmp_path / "floppy", M1440)
    before = image.read_bytes()
    calls = Calls(tmp_path, image, numbered(tmp_path / "other", K360))
    results = calls.make(
        [
            disk_call(0x0212, A, cx=0x0101, head=1, bx=0xD000),  # a whole track
            read(0, 0xD000 + 17 * SECTOR),
            write(0, BUFFER, b"written!"),
            disk_call(0x0301, A, cx=0x4F12, head=1),
            disk_call(0x0401, A, cx=0x4F12, head=1),
            disk_call(0x0201, B, cx=0x2709, head=1),
            read(0, BUFFER),
            disk_call(0x0100, B),
            disk_call(0x0000, A),
        ]
    )
    track, end, _, written, verified, other, number, status, reset = results
    assert (outcome(answer(track)), register(answer(track), "al")) == (DONE, 18)
    assert end[:4] == struct.pack("<I", (1 * 2 + 1) * 18 + 17)
    for done in (written, verified, other, status, reset):
        assert outcome(answer(done)) == DONE
    assert number[:4] == struct.pack("<I", 719)
    after = image.read_bytes()
    assert after[-SECTOR : -SECTOR + 8] == b"written!"
    assert after[:-SECTOR] == before[:-SECTOR]


def test_a_read_only_floppy_is_not_written(tmp_path: Path) -> None:
    image = numbered(tmp_path / "floppy", K720)
    before = image.read_bytes()
    calls = Calls(tmp_path, f"{image},readonly=on")
    address = b"".join(bytes((0, 0, number, 2)) for number in range(1, 9))
    done, _, formatted, status = calls.each(
        disk_call(0x0301, A),
        write(0, BUFFER, address),
        disk_call(0x0508, A),
        disk_call(0x0100, A),
    )
    for answered in (done, formatted, status):
        assert outcome(answered) == refused(WRITE_PROTECTED)
    assert image.read_bytes() == before


def test_formatting_a_track(tmp_path: Path) -> None:
    image = numbered(tmp_path / "floppy", K720)
    before = image.read_bytes()
    calls = Calls(tmp_path, image)
    fields = [bytes((5, 1, number, 2)) for number in (1, 6, 2, 7, 3, 8, 4, 9, 5)]
    described = calls.one(disk_call(0x0800, A))
    results = calls.each(
        write(0, BUFFER, b"".join(fields[:8])),
        write(0, BUFFER + 32, fields[8]),
        write(0, BUFFER + 64, bytes((5, 1, 10, 2))),
        write(0, BUFFER + 68, bytes((5, 1, 1, 3))),
        disk_call(0x1704, A),
        call(0x13, ax=0x1800, cx=0x4F09, dx=A),
        disk_call(0x0509, A, cx=0x0501, head=1),
        disk_call(0x0501, A, cx=0x0501, head=1, bx=BUFFER + 64),  # sector 10
        disk_call(0x0501, A, cx=0x0501, head=1, bx=BUFFER + 68),  # sectors of 1 KiB
        disk_call(0x0509, A, cx=0x5001, head=1),  # cylinder 80
        disk_call(0x1703, A),
        disk_call(0x1706, A),
        call(0x13, ax=0x1800, cx=0x4F12, dx=A),
    )
    set_type, set_medium, formatted = results[4:7]
    assert [outcome(done) for done in (set_type, set_medium, formatted)] == [DONE] * 3
    assert (set_medium.es, set_medium.edi & 0xFFFF) == (described.es, described.edi & 0xFFFF)
    wanted = [BAD_FORMAT, BAD_FORMAT, NOT_FOUND, BAD_FORMAT, BAD_REQUEST, BAD_FORMAT]
    assert [outcome(done) for done in results[7:]] == [refused(status) for status in wanted]
    start, size = (5 * 2 + 1) * 9 * SECTOR, 9 * SECTOR
    after = image.read_bytes()
    assert after[start : start + size] == b"\xf6" * size
    assert (after[:start], after[start + size :]) == (before[:start], before[start + size :])


def test_the_fill_byte_is_the_one_of_the_table_that_int_1e_points_to(tmp_path: Path) -> None:
    image = numbered(tmp_path / "floppy", K360)
    calls = Calls(tmp_path, image)
    table = bytes((0xDF, 2, 0x25, 2, 9, 0x2A, 0xFF, 0x50, 0xE5, 0x0F, 8))
    *_, formatted = calls.each(
        write(0, BUFFER, bytes((0, 0, 1, 2))),
        write(0, BUFFER + 0x100, table),
        write(0, 0x1E * 4, struct.pack("<HH", BUFFER + 0x100, 0)),
        disk_call(0x0501, A),
    )
    assert outcome(formatted) == DONE
    assert image.read_bytes()[: 9 * SECTOR] == b"\xe5" * 9 * SECTOR


def test_the_kinds_of_drives_and_whether_they_have_changed(tmp_path: Path) -> None:
    calls = Calls(tmp_path, numbered(tmp_path / "floppy", M1440))
    kinds = calls.each(*(disk_call(0x1500, drive) for drive in (A, B, FIRST_DISK)))
    assert [outcome(kind) for kind in kinds] == [(CHANGE_LINE, 0), (0, 0), (FIXED_DISK, 0)]
    changed = calls.each(*(disk_call(0x1600, drive) for drive in (A, B)))
    assert [outcome(done) for done in changed] == [DONE, refused(BAD_REQUEST)]


def test_calls_that_floppies_have_not(tmp_path: Path) -> None:
    """Those of fixed disks, EDD among them; and every call to a drive that isn't there."""
    calls = Calls(tmp_path, numbered(tmp_path / "floppy", M1440))
    absent = [6, 7, *range(9, 0x15), 0x19, 0x41, 0x42, 0x43, 0x48, 0xFF]
    answered = calls.each(*(call(0x13, ax=n << 8 | 1, bx=0x55AA, dx=A) for n in absent))
    assert [outcome(done) for done in answered] == [refused(BAD_REQUEST)] * len(absent)
    for drive in (B, NONE, 0x7F):
        answered = calls.each(*(disk_call(n << 8 | 1, drive) for n in (0, 2, 3, 5, 8, 0x16, 0x18)))
        assert {outcome(done) for done in answered} == {refused(BAD_REQUEST)}


def test_floppies_and_disks_have_a_status_each(tmp_path: Path) -> None:
    calls = Calls(tmp_path, numbered(tmp_path / "floppy", M1440))
    results = calls.make(
        [
            disk_call(0x0201, A, cx=0x0013),
            disk_call(0x0201, FIRST_DISK),
            disk_call(0x0100, FIRST_DISK),
            disk_call(0x0100, A),
            read(DATA_AREA, 0x41),
        ]
    )
    assert outcome(answer(results[2])) == DONE
    assert outcome(answer(results[3])) == refused(NOT_FOUND)
    assert results[4][0] == NOT_FOUND


def test_a_floppy_s_image_as_a_disk(tmp_path: Path) -> None:
    """It is one, as in QEMU, but is pointed out: its boot sector would look in wrong places."""
    disk = tmp_path / "disk"
    image = bytearray(M1440.size)
    block = struct.pack("<HBHBHHBHHH", 512, 1, 1, 2, 224, 2880, 0xF0, 9, 18, 2)
    code = b"\xeb\x3c\x90PYVMM   " + block.ljust(0x3E - 11) + assemble(SWITCH_OFF)
    image[: len(code)] = code
    image[510:512] = b"\x55\xaa"
    disk.write_bytes(image)
    ended = run("-d", disk)
    assert f"pyvmm: disk {disk} is a floppy's image: --floppy boots it as one" in ended.stderr
    assert (ended.status, ended.lines) == (0, ["Booting from disk 1"])
    assert "is a floppy's" not in run("--floppy", disk).stderr


class TestRefusals:
    def test_a_size_that_is_no_floppy_s(self, tmp_path: Path) -> None:
        image = tmp_path / "odd"
        image.write_bytes(bytes(1024))
        ended = run("--floppy", image)
        assert ended.status == 1
        assert f"floppy image {image} has 1024 bytes, as no floppy has" in ended.stderr
        assert "truncate -s 1440K" in ended.stderr
        assert ended.stderr.count("\n") == 1

    def test_a_kernel_that_is_entered_without_a_bios(self, guests: Path, tmp_path: Path) -> None:
        image = numbered(tmp_path / "floppy", K360)
        ended = run("-k", guests / "endings", "--floppy", image)
        assert ended.status == 2
        assert "without a BIOS, which alone can read floppies" in ended.stderr
        ended = run("--firmware", image, "--floppy", image)
        assert ended.status == 2
        assert "only PyVMM's own BIOS can read floppies" in ended.stderr
