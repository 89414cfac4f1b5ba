"""`pyvmm inspect`: facts about images, and the vmlinux taken out of a bzImage."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
from pathlib import Path

import lz4.block
import pytest
import zstandard
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.images import HEADER_OFFSET, Segment, bzimage, elf, pvh_note

from pyvmm.boot import identify, payload
from pyvmm.cli.inspect import inspect
from pyvmm.errors import ImageError, PyvmmError

BANNER = b"%s\0Linux version %s (%s)\0Linux version 6.1.0-test (gcc) #1 SMP\0"
VMLINUX = elf(Segment(0x100_0000, BANNER + bytes(20_000)), pvh_note(0x100_0010))


def lz4_legacy(data: bytes) -> bytes:
    """As `lz4 -l` writes it: 8 MiB blocks, each behind its size."""
    out = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        out += len(block).to_bytes(4, "little") + block
    return out


COMPRESSORS = {
    "gzip": lambda data: gzip.compress(data, mtime=0),  # or its header tells the second
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32),
    "lz4": lz4_legacy,
    "zstd": zstandard.ZstdCompressor(write_content_size=False).compress,
}


def compressed_kernel(name: str, vmlinux: bytes = VMLINUX, **fields: int) -> bytes:
    """A bzImage with this payload, between code and with its size behind it, as Linux has it."""
    packed = COMPRESSORS[name](vmlinux)
    if name != "gzip":  # whose own trailer ends with the size
        packed += len(vmlinux).to_bytes(4, "little")
    code = b"\x90" * 0x300
    fields |= {"payload_offset": len(code), "payload_length": len(packed)}
    return bzimage(code + packed + code, **fields)


@pytest.fixture
def write(tmp_path: Path):
    """Write a file; its path."""

    def write(data: bytes, name: str = "image") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("name", COMPRESSORS)
def test_each_compression_is_recognised_and_unpacked(write, name: str) -> None:
    path = write(compressed_kernel(name))
    facts = identify.describe(path)
    assert facts["compression"] == name
    assert facts["vmlinux_pvh_entry"] == 0x100_0010
    assert payload.extract_vmlinux(path) == VMLINUX


def test_an_lz4_payload_of_several_blocks(write) -> None:
    vmlinux = VMLINUX + bytes(range(256)) * (9 << 12)
    image = compressed_kernel("lz4", vmlinux, init_size=16 << 20)
    assert payload.extract_vmlinux(write(image)) == vmlinux


def test_facts_of_a_bzimage(write) -> None:
    facts = identify.describe(write(compressed_kernel("gzip")))
    assert facts["kind"] == "bzImage"
    assert facts["version"].startswith("6.1.0-test")
    assert facts["protocol"] == "2.15"
    assert facts["entry_points"] == {"64": 0x100_0200, "32": 0x100_0000, "16": 0x9_0200}
    assert facts["how"] == "the 64-bit entry of the Linux boot protocol at 0x1000200"
    assert facts["minimum_memory"] == 24 << 20
    assert facts["loadflags"] == ["LOADED_HIGH"]
    assert facts["boots"] is True


def test_facts_of_a_vmlinux(write) -> None:
    facts = identify.describe(write(VMLINUX))
    assert facts["kind"] == "ELF"
    assert facts["version"] == "Linux version 6.1.0-test (gcc) #1 SMP"
    assert facts["entry_points"] == {"pvh": 0x100_0010, "64": 0x100_0000}
    assert facts["how"] == "the PVH entry at 0x1000010"


@pytest.mark.parametrize(
    ("image", "kind", "says"),
    [
        (b"hello\n", "text", "is a text file, not a kernel"),
        (bzimage()[:-100], "bzImage", "truncated"),
        (elf(Segment(0x100_0000), machine=183), "ELF", "AArch64"),
    ],
)
def test_what_cannot_be_booted_is_described_with_the_reason(
    write, image: bytes, kind: str, says: str
) -> None:
    facts = identify.describe(write(image))
    assert (facts["kind"], facts["boots"]) == (kind, False)
    assert says in facts["problem"]
    assert "run would refuse" in identify.format_description(facts)


@pytest.mark.parametrize(
    ("image", "linux"),
    [
        (VMLINUX, True),
        (bzimage(), True),
        (elf(Segment(0x100_0000, b"Linux version %s")), False),
        (elf(Segment(0x100_0000)), False),
        (b"\xf4" * 512, False),
    ],
)
def test_linux_is_told_from_other_guests(write, image: bytes, linux: bool) -> None:
    assert identify.is_linux(write(image)) is linux


def test_a_missing_package_is_named_and_the_rest_still_shown(write, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    path = write(compressed_kernel("lz4"))
    facts = identify.describe(path)
    assert facts["compression"] == "lz4"
    assert "pip install lz4" in facts["vmlinux_problem"]
    assert facts["boots"] is True
    with pytest.raises(PyvmmError, match="pip install lz4"):
        payload.extract_vmlinux(path)


def test_lzo_is_recognised_but_not_unpacked(write) -> None:
    packed = b"\x89LZO\0\r\n\x1a\n" + bytes(100)
    path = write(bzimage(packed, payload_offset=0, payload_length=len(packed)))
    assert identify.describe(path)["compression"] == "lzo"
    with pytest.raises(PyvmmError, match="lzo"):
        payload.extract_vmlinux(path)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_damaged_payload(write, name: str) -> None:
    image = bytearray(compressed_kernel(name))
    middle = image.index(COMPRESSORS[name](VMLINUX)[:8]) + 8
    image[middle : middle + 40] = b"\xff" * 40
    with pytest.raises(ImageError, match=r"damaged|not an ELF"):
        payload.extract_vmlinux(write(bytes(image)))


def test_a_payload_outside_the_kernel(write) -> None:
    facts = identify.describe(write(bzimage(payload_offset=1 << 31, payload_length=1 << 31)))
    assert "damaged" in facts["vmlinux_problem"]
    assert facts["boots"] is True  # loading it needs no payload


def test_there_is_no_vmlinux_in_a_vmlinux(write) -> None:
    with pytest.raises(ImageError, match="not a bzImage"):
        payload.extract_vmlinux(write(VMLINUX))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    edits=st.lists(st.tuples(st.integers(0, 0x90), st.binary(min_size=1, max_size=8)), max_size=4),
    source=st.sampled_from([compressed_kernel("gzip"), VMLINUX]),
)
def test_any_header_can_be_described(
    tmp_path: Path, edits: list[tuple[int, bytes]], source: bytes
) -> None:
    data = bytearray(source)
    base = HEADER_OFFSET if source is not VMLINUX else 0
    for offset, change in edits:
        data[base + offset : base + offset + len(change)] = change
    path = tmp_path / "image"
    path.write_bytes(data)
    facts = identify.describe(path)
    json.dumps(facts)
    identify.format_description(facts)
    assert ("how" in facts) == facts["boots"] != ("problem" in facts)


# The command.


def test_the_command_prints_facts(write) -> None:
    result = CliRunner().invoke(inspect, [str(write(compressed_kernel("xz")))])
    assert result.exit_code == 0
    assert "6.1.0-test" in result.output
    assert "64-bit at 0x1000200" in result.output
    assert "xz" in result.output


def test_the_command_prints_json(write) -> None:
    result = CliRunner().invoke(inspect, [str(write(VMLINUX)), "--json"])
    assert json.loads(result.output)["entry_points"] == {"pvh": 0x100_0010, "64": 0x100_0000}


def test_the_command_extracts_the_vmlinux(write, tmp_path: Path) -> None:
    image = write(compressed_kernel("gzip"))
    target = tmp_path / "vmlinux"
    assert (
        CliRunner().invoke(inspect, [str(image), "--extract-vmlinux", str(target)]).exit_code == 0
    )
    assert target.read_bytes() == VMLINUX


def test_the_command_writes_nothing_if_there_is_no_vmlinux(write, tmp_path: Path) -> None:
    target = tmp_path / "vmlinux"
    result = CliRunner().invoke(
        inspect, [str(write(b"text")), "--extract-vmlinux", str(target)], catch_exceptions=True
    )
    assert isinstance(result.exception, ImageError)
    assert not target.exists()
