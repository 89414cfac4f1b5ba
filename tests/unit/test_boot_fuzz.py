"""Damaged and hostile images: inspect and the loaders answer with facts or one error, soon and in
little memory, and they agree about what boots."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.images import Segment, bzimage, elf, pvh_note
from unit.test_boot_kinds import BASE, TABLE, lz4_legacy, multiboot, multiboot2

from pyvmm import boot
from pyvmm.boot import firmware, identify
from pyvmm.errors import PyvmmError
from pyvmm.memory import GIB, MIB, GuestMemory

NUMBERS = (
    *(0, 1, 7, 8, 0xFF, 0x7FFF, 0xFFFF, 0x9_FC00, 0xA_0000, BASE, 0x7FFF_FFFF, 0x8000_0000),
    *(0xC000_0000, 0xFFFF_F000, 0xFFFF_FFFF, 1 << 32, 1 << 63, (1 << 64) - 16, (1 << 64) - 1),
)
"""Values at which sums wrap, signs change and maps end."""

FIELDS = (
    *(4, 5, 16, 18, 24, 28, 32, 40, 42, 44, 52, 54, 56, 60, 64, 72, 80, 88, 96, 104),  # ELF
    *(0x1F1, 0x1F4, 0x201, 0x206, 0x20E, 0x211, 0x214, 0x22C, 0x230, 0x234, 0x236),  # setup header
    *(0x238, 0x248, 0x24C, 0x258, 0x260, 0x264, 0x268, 0x3C, 0x8C, 0x86, 0x94),  # and PE
)


def examine(path: Path) -> None:
    """What has to hold for any file."""
    facts = identify.describe(path)
    json.dumps(facts)
    assert "\x1b" not in identify.format_description(facts)
    assert ("how" in facts) == facts["boots"] != ("problem" in facts)
    assert "\n" not in facts.get("problem", "")
    size = facts.get("minimum_memory", 4 * MIB)
    if size > 8 * GIB:
        return
    memory = GuestMemory(size)
    loaded = {e for e in boot.ENTRIES if succeeds(lambda: boot.load(path, memory, entry=e))}  # noqa: B023
    assert facts["boots"] == ("auto" in loaded)
    assert loaded.issuperset(facts.get("boot_options", ()))
    succeeds(lambda: firmware.load(path, memory))
    succeeds(lambda: boot.load(path, memory, initrd=path))
    memory.close()


def succeeds(load: Callable[[], object]) -> bool:
    """Whether it does; else it has failed with one line for the user."""
    try:
        load()
    except PyvmmError as error:
        said = str(error)
    else:
        return True
    assert said
    assert "\n" not in said
    return False


def mutate(data: bytes, choice: random.Random) -> bytes:
    """``data`` with some fields overwritten, bits turned over, pieces cut out, moved or put in."""
    changed = bytearray(data)
    for _ in range(choice.choice((1, 1, 2, 3, 6))):
        size = max(len(changed), 1)
        at = choice.choice(FIELDS) if choice.random() < 0.7 else choice.randrange(size)
        width = choice.choice((1, 2, 4, 8))
        kind = choice.randrange(8)
        if kind < 4:
            number = choice.choice(NUMBERS) & (1 << 8 * width) - 1
            if at + width <= len(changed):
                changed[at : at + width] = number.to_bytes(width, "little")
        elif kind == 4:
            del changed[at:]
        elif kind == 5:
            changed[at:at] = choice.randbytes(width)
        elif kind == 6:
            del changed[at : at + width]
        else:
            changed += bytes(choice.randrange(4096))
    return bytes(changed) or b"\0"


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400, deadline=None
)
@given(name=st.sampled_from(sorted(TABLE)), seed=st.integers(0, 1 << 32))
def test_any_damage_is_survived(tmp_path: Path, name: str, seed: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(mutate(TABLE[name][0], random.Random(seed)))
    examine(path)


def many_notes() -> bytes:
    """Program headers that all point at the same MiB of notes."""
    image = bytearray(elf(Segment(BASE), *[Segment(0, b"", kind=4)] * 100) + bytes(MIB))
    for index in range(1, 101):
        struct.pack_into("<Q", image, 64 + 56 * index + 8, len(image) - MIB)
        struct.pack_into("<Q", image, 64 + 56 * index + 32, MIB)
    return bytes(image)


def wrapping_elf(field: int, value: int) -> bytes:
    """An ELF file with an eight-byte field of its header or second program header overwritten."""
    image = bytearray(elf(Segment(BASE), pvh_note(BASE)))
    struct.pack_into("<Q", image, field, value)
    return bytes(image)


def nested(depth: int) -> bytes:
    data = b"\xf4" * 99
    for _ in range(depth):
        data = gzip.compress(data)
    return data


MZ = b"MZ" + bytes(0x3A)
FOUND = {
    "shorter than a VHD's footer": b"\xcc" * 511,
    "notes, again and again": many_notes(),
    "program headers at the end of all": wrapping_elf(32, (1 << 64) - 56),
    "a segment at the end of all": wrapping_elf(64 + 56 + 8, (1 << 64) - 1),
    "65535 program headers": elf(Segment(BASE))[:56] + b"\xff\xff" + bytes(4096),
    "a payload outside": bzimage(payload_offset=1 << 31, payload_length=(1 << 31) + 9),
    "a kernel of 64 GiB": bzimage(syssize=0xFFFF_FFFF),
    "an alignment of 2 GiB": bzimage(kernel_alignment=1 << 31),
    "a preferred address at the end of all": bzimage(pref_address=(1 << 64) - (1 << 21)),
    "a version outside": bzimage(kernel_version=0xFFFF),
    "addresses that wrap": multiboot(1 << 16, 0xFFFF_FFFF, 0xFFFF_FFFF, 0, 16, 0xFFFF_FFFF)
    + bytes(64),
    "a bss that ends before it begins": multiboot(1 << 16, BASE, BASE, 0, 1, BASE) + bytes(64),
    "a tag that has no end": multiboot2(struct.pack("<HHI", 2, 0, 0xFFFF_FFF8)) + bytes(64),
    "a file in a file in a file": nested(50),
    "cpio with a giant name": b"070701" + b"f" * 104 + bytes(64),
    "PE sections without end": MZ + struct.pack("<I", 64) + b"PE\0\0" + b"\xff" * 99,
    "a PE header beyond the file": MZ + b"\xff" * 4,
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_fuzzing_has_found_or_looked_for(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(FOUND[name])
    examine(path)


def lzma_of_a_huge_dictionary() -> bytes:
    packed = bytearray(lzma.compress(b"\x7fELF" + bytes(9999), lzma.FORMAT_ALONE))
    packed[1:5] = b"\xff\xff\xff\xff"
    return bytes(packed)


def bomb(name: str) -> bytes:
    """64 MiB of zeros, compressed, behind what an ELF file begins with."""
    if name == "lz4":
        block = lz4_legacy(bytes(8 * MIB))
        return block + block[4:] * 7
    packer = {
        "gzip": lambda: zlib.compressobj(1, zlib.DEFLATED, 31),
        "bzip2": lambda: bz2.BZ2Compressor(1),
        "xz": lambda: lzma.LZMACompressor(preset=0),
        "zstd": lambda: zstandard.ZstdCompressor(1, write_content_size=False).compressobj(),
    }[name]()
    piece = bytes(MIB)
    packed = [packer.compress(b"\x7fELF"), *(packer.compress(piece) for _ in range(64))]
    return b"".join(packed) + packer.flush()


@contextmanager
def in_memory(limit: int) -> Iterator[None]:
    """What is done in here takes less memory than that."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "lz4", "zstd", "dictionary"])
def test_a_bomb_takes_no_more_than_the_kernel_says_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("pyvmm.boot.packed.LIMIT", 8 * MIB)
    packed = lzma_of_a_huge_dictionary() if name == "dictionary" else bomb(name)
    path = tmp_path / "image"
    path.write_bytes(packed)
    with in_memory(60 * MIB):
        assert identify.describe(path)["boots"] is False
    path.write_bytes(bzimage(packed, payload_offset=0, payload_length=len(packed)))
    with in_memory(60 * MIB):
        facts = identify.describe(path)
    said = "no known compression" if name == "dictionary" else "unpacks to more than 8 MiB"
    assert said in facts["vmlinux_problem"]


@pytest.mark.parametrize(
    "start",
    [
        elf(Segment(BASE)),
        wrapping_elf(64 + 32, 2 * GIB),
        bzimage(syssize=0xFFFF_FFFF, payload_offset=0, payload_length=0xFFFF_FFFF),
        bytes(512),
        bytes(510) + b"\x55\xaa",
        b"\x1f\x8b",
        b"hello\n",
    ],
)
def test_a_file_of_a_tebibyte_is_not_read(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(1 << 40)
    with in_memory(60 * MIB):
        identify.format_description(identify.describe(path))
