"""Loading an ELF kernel by each of its entries, and every way such a file can be wrong."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.images import PT_INTERP, PT_NOTE, Segment, elf, note, pvh_note

from pyvmm import boot, layout
from pyvmm.boot.elf import ElfImage
from pyvmm.boot.image import ImageBytes
from pyvmm.boot.zero_page import SetupHeader
from pyvmm.errors import ConfigError, ImageError
from pyvmm.memory import GIB, MIB, PAGE_SIZE, GuestMemory

BASE = 0x100_0000
CODE = b"\x90" * 100 + b"\xf4"


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(64 * MIB)


@pytest.fixture
def write(tmp_path: Path):
    """Write a file named vmlinux; its path."""

    def write(data: bytes) -> Path:
        path = tmp_path / "vmlinux"
        path.write_bytes(data)
        return path

    return write


def test_the_64_bit_entry(memory: GuestMemory, write) -> None:
    state = boot.load(write(elf(Segment(BASE, CODE), entry=BASE + 4)), memory)
    assert state.registers["rip"] == BASE + 4
    assert state.registers["rsi"] == layout.ZERO_PAGE
    assert state.cs.l == 1
    assert memory.read(BASE, len(CODE)) == CODE


def test_the_stack_of_a_guest_without_linux_is_usable(memory: GuestMemory, write) -> None:
    rsp = boot.load(write(elf(Segment(BASE, CODE))), memory).registers["rsp"]
    assert memory.contains(rsp - 8, 8)
    assert not rsp % 16


def test_bss_is_zero_even_in_memory_that_was_used(memory: GuestMemory, write) -> None:
    memory.fill(BASE, 3 * PAGE_SIZE, 0xFF)
    boot.load(write(elf(Segment(BASE, CODE, memsz=2 * PAGE_SIZE + 5))), memory)
    assert memory.read(BASE + len(CODE), 2 * PAGE_SIZE + 5 - len(CODE)).strip(b"\0") == b""
    assert memory.read_u8(BASE + 2 * PAGE_SIZE + 5) == 0xFF


def test_a_virtual_entry_point_becomes_physical(memory: GuestMemory, write) -> None:
    high = 0xFFFF_FFFF_8100_0000
    image = elf(Segment(BASE, CODE, vaddr=high), entry=high + 8)
    assert boot.load(write(image), memory).registers["rip"] == BASE + 8


def test_pvh_is_preferred_where_the_note_is(memory: GuestMemory, write) -> None:
    path = write(elf(Segment(BASE, CODE), pvh_note(BASE + 16)))
    state = boot.load(path, memory)
    assert state.registers["rip"] == BASE + 16
    assert state.registers["rbx"] == layout.PVH_START_INFO
    assert (state.cs.l, state.cr0 >> 31) == (0, 0)
    assert boot.load(path, memory, entry="64").registers["rip"] == BASE


def test_pvh_start_info(memory: GuestMemory, write, tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"ramdisk" * 999)
    boot.load(
        write(elf(Segment(BASE, CODE), pvh_note(BASE))),
        memory,
        command_line="console=ttyS0",
        initrd=tmp_path / "initrd",
        rsdp=0xE_0000,
    )
    raw = memory.read(layout.PVH_START_INFO, 56)
    magic, version, _, modules, modlist, cmdline, rsdp, memmap, entries, _ = struct.unpack(
        "<4I4Q2I", raw
    )
    assert (magic, version, modules, rsdp) == (0x336EC578, 1, 1, 0xE_0000)
    assert memory.read(cmdline, 14) == b"console=ttyS0\0"
    start, size = struct.unpack("<2Q", memory.read(modlist, 16))
    assert memory.read(start, size) == b"ramdisk" * 999
    table = list(struct.iter_unpack("<QQII", memory.read(memmap, 24 * entries)))
    assert table[0] == (0, layout.EBDA, 1, 0)
    assert (layout.HIGH_RAM, 63 * MIB, 1, 0) in table


def test_pvh_without_an_initrd_has_no_modules(memory: GuestMemory, write) -> None:
    boot.load(write(elf(Segment(BASE, CODE), pvh_note(BASE))), memory)
    assert memory.read_u32(layout.PVH_START_INFO + 12) == 0


def test_a_32_bit_elf_is_entered_in_protected_mode(memory: GuestMemory, write) -> None:
    state = boot.load(write(elf(Segment(BASE, CODE), bits=32, entry=BASE + 1)), memory)
    assert (state.registers["rip"], state.cs.l, state.cs.db) == (BASE + 1, 0, 1)
    assert memory.read(BASE, len(CODE)) == CODE


def test_the_zero_page_of_a_vmlinux_passes_for_one(memory: GuestMemory, write, tmp_path) -> None:
    (tmp_path / "initrd").write_bytes(b"r" * 100)
    boot.load(
        write(elf(Segment(BASE, CODE))), memory, command_line="ro", initrd=tmp_path / "initrd"
    )
    header = SetupHeader.parse(memory.read(layout.ZERO_PAGE, PAGE_SIZE)[:0x201] + b"\x6a" + memory
                               .read(layout.ZERO_PAGE + 0x202, 0x100))  # fmt: skip
    assert header.boot_flag == 0xAA55
    assert header.header == int.from_bytes(b"HdrS", "little")
    assert header.type_of_loader == 0xFF
    assert header.kernel_alignment == 0x100_0000
    assert memory.read(header.cmd_line_ptr, 3) == b"ro\0"
    assert memory.read(header.ramdisk_image, header.ramdisk_size) == b"r" * 100


@pytest.mark.parametrize(
    ("bits", "note_there", "entry", "says"),
    [
        (64, False, "pvh", "an ELF64 without a PVH entry"),
        (64, False, "32", "an ELF64 without a 32-bit entry"),
        (32, False, "64", "an ELF32 without a 64-bit entry"),
    ],
)
def test_an_entry_that_the_image_lacks(
    memory: GuestMemory, write, bits: int, note_there: bool, entry: str, says: str
) -> None:
    with pytest.raises(ImageError, match=says):
        boot.load(write(elf(Segment(BASE, CODE), bits=bits)), memory, entry=entry)


# What is wrong with the file.


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (elf(Segment(BASE), machine=183), "an ELF for AArch64"),
        (elf(Segment(BASE), machine=243), "an ELF for RISC-V"),
        (elf(Segment(BASE), machine=9999), "an ELF for machine 9999"),
        (elf(Segment(BASE), machine=3), "no kernel is that"),
        (elf(Segment(BASE), data_encoding=2), "big-endian"),
        (elf(Segment(BASE), elf_type=1), "a relocatable object"),
        (elf(Segment(BASE), elf_type=4), "a core dump"),
        (elf(), "no program headers"),
        (elf(Segment(0, b"note", kind=PT_NOTE)), "no loadable segment"),
        (elf(Segment(BASE), Segment(0, b"/lib/ld.so", kind=PT_INTERP)), "for an operating system"),
        (elf(Segment(BASE), entry=BASE + 1), "entry point 0x1000001 outside"),
        (elf(Segment(BASE), pvh_note(0x1234)), "PVH entry 0x1234 outside"),
        (elf(Segment(BASE, b"xx", memsz=1)), "more bytes in the file"),
        (elf(Segment(BASE, CODE), Segment(BASE + 50, CODE)), "segments that overlap"),
        (elf(Segment(BASE, CODE, memsz=1 << 20), Segment(BASE + 5000)), "segments that overlap"),
        (elf(Segment(BASE))[:50], "truncated: 50 of 64 bytes"),
        (elf(Segment(BASE))[:100], "truncated: 100 of 120 bytes"),
        (elf(Segment(BASE, CODE))[:-1], "truncated: 220 of 221 bytes"),
        (b"\x7fELF", "no ELF header"),
        (b"\x7fELF\x07" + bytes(100), "unknown ELF class 7"),
    ],
)
def test_bad_files(memory: GuestMemory, write, image: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says) as error:
        boot.load(write(image), memory)
    assert "vmlinux" in str(error.value)


@pytest.mark.parametrize(
    ("paddr", "memsz", "says"),
    [
        (63 * MIB, 2 * MIB, "--memory 65M"),
        (64 * MIB, 1, "--memory 65M"),
        (4 * GIB, 1, "--memory 3073M"),
        (3 * GIB, 1, "not all RAM"),
        ((1 << 64) - 1, 1, "not all RAM"),
        (BASE, 1 << 63, "not all RAM"),
    ],
)
def test_segments_outside_ram(
    memory: GuestMemory, write, paddr: int, memsz: int, says: str
) -> None:
    with pytest.raises(ImageError, match=says):
        boot.load(write(elf(Segment(8 * MIB), Segment(paddr, b"x", memsz=memsz))), memory)


@pytest.mark.parametrize(
    ("paddr", "says"),
    [
        (layout.BOOT_GDT + 16, "the boot GDT"),
        (layout.ZERO_PAGE, "the zero page"),
        (layout.PVH_START_INFO + 100, "the PVH start info"),
        (layout.BOOT_STACK_TOP - 8, "the boot stack"),
        (layout.BOOT_PAGE_TABLES + 0x5FFF, "the boot page tables"),
        (layout.COMMAND_LINE, "the command line"),
        (layout.EBDA, "EBDA"),
        (layout.ACPI_TABLES, "ACPI or MP tables"),
    ],
)
def test_segments_over_what_boot_needs(memory: GuestMemory, write, paddr: int, says: str) -> None:
    with pytest.raises(ImageError, match=f"where .*{says}"):
        boot.load(write(elf(Segment(paddr))), memory)


def test_low_memory_that_is_free_can_be_used(memory: GuestMemory, write) -> None:
    boot.load(write(elf(Segment(0x1_0000, CODE), Segment(layout.COMMAND_LINE + 1))), memory)
    assert memory.read(0x1_0000, len(CODE)) == CODE


def test_an_entry_point_that_page_tables_do_not_reach(write) -> None:
    with pytest.raises(ImageError, match="above 4 GiB"):
        boot.load(write(elf(Segment(4 * GIB))), GuestMemory(4 * GIB))


def test_the_command_line_of_a_linux_elf_is_limited_as_linux_is(memory, write) -> None:
    linux = elf(Segment(BASE), Segment(0, note(b"Linux", 0x100, b"salt"), kind=PT_NOTE))
    boot.load(write(linux), memory, command_line="x" * 2047)
    with pytest.raises(ImageError, match=r"has 2048 bytes; .* at most 2047"):
        boot.load(write(linux), memory, command_line="x" * 2048)
    boot.load(write(elf(Segment(BASE))), memory, command_line="x" * 4096)
    assert memory.read(layout.COMMAND_LINE, 4097) == b"x" * 4096 + b"\0"


def test_notes_that_are_cut_off_are_ignored(memory: GuestMemory, write) -> None:
    cut = Segment(0, struct.pack("<3I", 4, 1 << 31, 18) + b"Xen\0", kind=PT_NOTE)
    assert boot.load(write(elf(Segment(BASE), cut)), memory).cs.l == 1


# Anything at all.


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 64 + 3 * 56 + 20), st.binary(min_size=1, max_size=8)), max_size=6
    ),
    keep=st.one_of(st.none(), st.integers(0, 500)),
    bits=st.sampled_from([32, 64]),
    entry=st.sampled_from(["auto", "64", "32", "pvh"]),
)
def test_no_header_breaks_the_loader(
    tmp_path: Path, edits: list[tuple[int, bytes]], keep: int | None, bits: int, entry: str
) -> None:
    data = bytearray(
        elf(Segment(BASE, CODE), Segment(BASE * 2, CODE, memsz=9999), pvh_note(BASE), bits=bits)
    )
    for offset, change in edits:
        data[offset : offset + len(change)] = change
    path = tmp_path / "vmlinux"
    path.write_bytes(data[:keep])
    memory = GuestMemory(48 * MIB)
    refusal = ""
    try:
        state = boot.load(path, memory, command_line="quiet", entry=entry)
    except (ImageError, ConfigError) as error:
        refusal = str(error)
    assert "vmlinux" in refusal or memory.contains(state.registers["rip"], 1)
    memory.close()


@pytest.mark.parametrize("bits", [32, 64])
def test_the_parser_agrees_with_pyelftools(bits: int) -> None:
    data = elf(Segment(BASE, CODE, memsz=999, vaddr=0x8000_0000), pvh_note(BASE + 1), bits=bits)
    ours = ElfImage(ImageBytes("vmlinux", data))
    theirs = ELFFile(io.BytesIO(data))
    assert ours.header.e_entry == theirs.header.e_entry
    loads = [s.header for s in theirs.iter_segments("PT_LOAD")]
    assert [
        (p.p_offset, p.p_vaddr, p.p_paddr, p.p_filesz, p.p_memsz, p.p_flags) for p in ours.segments
    ] == [(h.p_offset, h.p_vaddr, h.p_paddr, h.p_filesz, h.p_memsz, h.p_flags) for h in loads]
    notes = [n for s in theirs.iter_segments("PT_NOTE") for n in s.iter_notes()]
    assert [(n.name.decode(), n.description) for n in ours.notes] == [
        (n.n_name, n.n_descdata) for n in notes
    ]
    assert ours.pvh_entry == BASE + 1
