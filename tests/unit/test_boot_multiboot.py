"""Multiboot 1 and 2: the headers, what they ask for, and every way in which they can be wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.images import Segment, bzimage, elf, pvh_note

from pyvmm import boot, layout
from pyvmm.boot import identify, multiboot, multiboot2
from pyvmm.boot.image import ImageBytes
from pyvmm.errors import ConfigError, ImageError, PyvmmError
from pyvmm.memory import MIB, GuestMemory

BASE = 0x10_0000
CODE = b"\x90" * 64

M1, M2 = multiboot.HEADER_MAGIC, multiboot2.HEADER_MAGIC


def header_1(flags: int = 0, *addresses: int, checksum: int | None = None) -> bytes:
    if checksum is None:
        checksum = -(M1 + flags) & 0xFFFF_FFFF
    return struct.pack(f"<{3 + len(addresses)}I", M1, flags, checksum, *addresses)


def tag(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    raw = struct.pack("<HHI", kind, flags, 8 + len(body)) + body
    return raw + bytes(-len(raw) % 8)


def header_2(*tags: bytes, architecture: int = 0) -> bytes:
    length = 16 + sum(map(len, tags)) + 8
    checksum = -(M2 + architecture + length) & 0xFFFF_FFFF
    return struct.pack("<4I", M2, architecture, length, checksum) + b"".join(tags) + tag(0)


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(64 * MIB)


@pytest.fixture
def write(tmp_path: Path):
    """Write a file; its path."""

    def write(data: bytes, name: str = "kernel") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def tags_of(memory: GuestMemory) -> dict[int, bytes]:
    """The boot information's tags."""
    base = layout.MULTIBOOT_INFO
    end = base + memory.read_u32(base)
    position, found = base + 8, {}
    while position < end:
        kind, size = memory.read_u32(position), memory.read_u32(position + 4)
        found[kind] = memory.read(position + 8, size - 8)
        position += -(-size // 8) * 8
    assert position == end
    return found


class TestTheFirst:
    def test_an_elf_kernel(self, memory: GuestMemory, write) -> None:
        kernel = write(elf(Segment(BASE, header_1(3) + CODE, memsz=8192), entry=BASE + 12))
        memory.fill(BASE, 8192, 0xFF)
        state = boot.load(kernel, memory, command_line="console=x a b", words="a b")
        assert state.registers["rip"] == BASE + 12
        assert state.registers["rax"] == 0x2BADB002
        assert (state.cr0 & 1, state.cr0 >> 31, state.cs.db, state.cs.l) == (1, 0, 1, 0)
        info = state.registers["rbx"]
        assert memory.read_u32(info) == 0x24D
        line = memory.read(memory.read_u32(info + 16), 20).split(b"\0")[0]
        assert line == b"kernel a b", "the kernel's name comes first, Linux's default not at all"
        assert memory.read(BASE + 76, 8192 - 76) == bytes(8192 - 76)

    def test_memory_is_described(self, write) -> None:
        memory = GuestMemory(3 * 1024 * MIB + 512 * MIB)
        kernel = write(elf(Segment(BASE, header_1() + CODE)))
        info = boot.load(kernel, memory).registers["rbx"]
        assert memory.read_u32(info + 4) == layout.EBDA // 1024
        assert memory.read_u32(info + 8) == 3 * 1024 * 1024 - 1024
        length, address = memory.read_u32(info + 44), memory.read_u32(info + 48)
        assert length % 24 == 0
        entries = [
            struct.unpack("<IQQI", memory.read(address + n, 24)) for n in range(0, length, 24)
        ]
        assert (20, 1 << 32, 512 * MIB, 1) in entries
        assert {size for size, *_ in entries} == {20}

    def test_modules(self, memory: GuestMemory, write) -> None:
        kernel = write(elf(Segment(BASE, header_1() + CODE, memsz=5000)))
        one, two = write(b"one", "one"), write(b"2" * 5000, "two")
        info = boot.load(kernel, memory, initrd=f"{one} x=1 y,{two}").registers["rbx"]
        count, table = memory.read_u32(info + 20), memory.read_u32(info + 24)
        found = [struct.unpack("<4I", memory.read(table + 16 * n, 16)) for n in range(count)]
        assert [memory.read(start, end - start) for start, end, _, _ in found] == [
            b"one",
            b"2" * 5000,
        ]
        assert [start for start, *_ in found] == [BASE + 0x2000, BASE + 0x3000]
        texts = [memory.read(text, 200).split(b"\0")[0].decode() for _, _, text, _ in found]
        assert texts == [f"{one} x=1 y", str(two)]

    def test_a_file_with_addresses(self, memory: GuestMemory, write) -> None:
        """The header is at 0x40 of the file, and the text begins 0x20 before it."""
        addresses = (0x20_0020, 0x20_0000, 0x20_0100, 0x20_2000, 0x20_0030)
        data = b"J" * 0x40 + header_1(1 << 16, *addresses) + CODE * 20
        memory.fill(0x20_0000, 0x3000, 0xFF)
        state = boot.load(write(data), memory)
        assert state.registers["rip"] == 0x20_0030
        assert memory.read(0x20_0000, 0x100) == data[0x20:0x120]
        assert memory.read(0x20_0100, 0x1F00) == bytes(0x1F00)
        assert memory.read_u8(0x20_2000) == 0xFF

    def test_without_an_end_all_of_the_file_is_loaded(self, memory: GuestMemory, write) -> None:
        data = header_1(1 << 16, BASE, BASE, 0, 0, BASE) + CODE
        boot.load(write(data), memory)
        assert memory.read(BASE, len(data)) == data

    @pytest.mark.parametrize(
        ("addresses", "problem"),
        [
            ((BASE, BASE + 4, 0, 0, BASE + 4), "beginning would lie before"),
            ((BASE + 64, BASE, 0, 0, BASE), "beginning would lie before"),
            ((BASE, BASE, BASE + 9999, 0, BASE), "which it doesn't have"),
            ((BASE, BASE, BASE - 1, 0, BASE), "which it doesn't have"),
            ((BASE, BASE, 0, 0, BASE - 1), "entry point"),
            ((BASE, BASE, 0, 0, BASE + 9999), "entry point"),
            ((0x8000_0000, 0x8000_0000, 0, 0, 0x8000_0000), "not all RAM"),
            ((BASE, BASE, 0, 0xFFFF_FFFF, BASE), "not all RAM"),
            ((0xA_0000, 0xA_0000, 0, 0, 0xA_0000), "video memory"),
            ((0x1_0000, 0x1_0000, 0, 0, 0x1_0000), "Multiboot information"),
            ((0x2_0000, 0x2_0000, 0, 0, 0x2_0000), "command line"),
        ],
    )
    def test_addresses_that_do_not_fit(
        self, memory: GuestMemory, write, addresses: tuple[int, ...], problem: str
    ) -> None:
        with pytest.raises(ImageError, match=problem):
            boot.load(write(header_1(1 << 16, *addresses) + CODE), memory)

    def test_a_flag_that_nobody_knows(self, memory: GuestMemory, write) -> None:
        with pytest.raises(ImageError, match="flags 0x80 nobody knows"):
            boot.load(write(elf(Segment(BASE, header_1(0x83) + CODE))), memory)

    def test_no_addresses_and_no_elf(self, memory: GuestMemory, write) -> None:
        with pytest.raises(ImageError, match="no ELF file"):
            boot.load(write(header_1(3) + CODE), memory)

    @pytest.mark.parametrize("offset", [0, 4, 8180])
    def test_where_the_header_may_be(self, offset: int) -> None:
        found = multiboot.find(ImageBytes("k", bytes(offset) + header_1(3) + CODE))
        assert found == multiboot.Header(offset, 3)

    @pytest.mark.parametrize(
        "data",
        [
            bytes(2) + header_1(3),  # not aligned
            bytes(8184) + header_1(3) + CODE,  # not whole in the first 8 KiB
            header_1(3, checksum=1) + CODE,
            bytes(8192 - 16) + header_1(1 << 16),  # the addresses are cut off
        ],
    )
    def test_where_there_is_none(self, data: bytes) -> None:
        assert multiboot.find(ImageBytes("k", data)) is None

    def test_a_damaged_header_before_a_good_one(self) -> None:
        data = header_1(3, checksum=0) + header_1(1)
        assert multiboot.find(ImageBytes("k", data)) == multiboot.Header(12, 1)

    def test_modules_that_can_not_be(self, memory: GuestMemory, write) -> None:
        kernel = write(elf(Segment(BASE, header_1() + CODE)))
        with pytest.raises(ImageError, match="module /no/such does not exist"):
            boot.load(kernel, memory, initrd="/no/such args")
        with pytest.raises(ConfigError, match="a module has no name"):
            boot.load(kernel, memory, initrd=f"{kernel},,{kernel}")
        with pytest.raises(ConfigError, match="65 modules are more than 64"):
            boot.load(kernel, memory, initrd=",".join([str(kernel)] * 65))
        with pytest.raises(ImageError, match="texts of 64 modules are too long"):
            boot.load(kernel, memory, initrd=",".join([f"{kernel} {'x' * 2000}"] * 64))
        big = write(bytes(80 * MIB), "big")
        with pytest.raises(ImageError, match=r"does not fit behind the kernel in 64 MiB.*--memory"):
            boot.load(kernel, memory, initrd=big)


class TestTheSecond:
    def test_an_elf_kernel(self, memory: GuestMemory, write) -> None:
        body = header_2(tag(1, words(1, 3, 6))) + CODE
        state = boot.load(
            write(elf(Segment(BASE, body))), memory, command_line="all of it", words="mine"
        )
        assert state.registers["rax"] == 0x36D76289
        assert state.registers["rip"] == BASE
        found = tags_of(memory)
        assert found[1] == b"mine\0"
        assert found[2] == b"PyVMM\0"
        assert struct.unpack("<II", found[4]) == (layout.EBDA // 1024, 63 * 1024)
        assert struct.unpack_from("<II", found[6]) == (24, 0)
        assert found[21] == words(BASE)
        assert found[0] == b""
        assert set(found) == {0, 1, 2, 4, 6, 21}

    def test_a_64_bit_elf_is_entered_in_protected_mode_too(
        self, memory: GuestMemory, write
    ) -> None:
        state = boot.load(write(elf(Segment(BASE, header_2() + CODE))), memory)
        assert (state.cs.l, state.cs.db, state.efer) == (0, 1, 0)

    def test_acpi(self, memory: GuestMemory, write) -> None:
        rsdp = b"RSD PTR " + bytes(range(28))
        memory.write(layout.ACPI_TABLES, rsdp)
        boot.load(
            write(elf(Segment(BASE, header_2(tag(1, words(15))) + CODE))),
            memory,
            rsdp=layout.ACPI_TABLES,
        )
        assert tags_of(memory)[14] == rsdp[:20]
        assert tags_of(memory)[15] == rsdp

    def test_modules(self, memory: GuestMemory, write) -> None:
        kernel = write(elf(Segment(BASE, header_2() + CODE)))
        one = write(b"one", "one")
        boot.load(kernel, memory, initrd=f"{one} args")
        start, end = struct.unpack_from("<II", tags_of(memory)[3])
        assert memory.read(start, end - start) == b"one"
        assert tags_of(memory)[3][8:] == f"{one} args".encode() + b"\0"

    def test_an_entry_of_its_own(self, memory: GuestMemory, write) -> None:
        kernel = write(elf(Segment(BASE, header_2(tag(3, words(BASE + 48))) + CODE)))
        assert boot.load(kernel, memory).registers["rip"] == BASE + 48

    def test_a_file_with_addresses(self, memory: GuestMemory, write) -> None:
        tags = tag(2, words(BASE, BASE, 0, BASE + 0x4000)), tag(3, words(BASE + 64))
        state = boot.load(write(header_2(*tags) + CODE), memory)
        assert state.registers["rip"] == BASE + 64
        assert memory.read(BASE, 4) == words(M2)

    @pytest.mark.parametrize(
        ("tags", "problem"),
        [
            ((tag(1, words(7)),), "wants information of type 7"),
            ((tag(4, words(1)),), "wants a screen"),
            ((tag(5, words(800, 600, 32)),), "wants a frame buffer"),
            ((tag(77),), "tag of type 77"),
            ((tag(2, words(BASE, BASE, 0, 0)),), "without an entry point"),
            ((tag(2, b"x"), tag(3, words(BASE))), "without an entry point"),
            ((tag(3, words(1)),), "outside all segments"),
        ],
    )
    def test_what_is_not_there_is_refused(
        self, memory: GuestMemory, write, tags: tuple[bytes, ...], problem: str
    ) -> None:
        kernel = write(elf(Segment(BASE, header_2(*tags) + CODE)))
        with pytest.raises(ImageError, match=problem):
            boot.load(kernel, memory)
        assert problem.split()[-1] in str(identify.describe(kernel)["problem"])

    @pytest.mark.parametrize(
        "optional",
        [tag(1, words(7), 1), tag(4, words(1), 1), tag(5, words(0, 0, 0), 1), tag(77, flags=1),
         tag(4, words(2)), tag(6), tag(7), tag(9, words(0)), tag(10, words(0, 0, 0, 0))],
    )  # fmt: skip
    def test_what_may_be_ignored_is(self, memory: GuestMemory, write, optional: bytes) -> None:
        boot.load(write(elf(Segment(BASE, header_2(optional) + CODE))), memory)

    def test_another_architecture(self, memory: GuestMemory, write) -> None:
        with pytest.raises(ImageError, match="architecture 4, not x86"):
            boot.load(write(elf(Segment(BASE, header_2(architecture=4) + CODE))), memory)

    def test_where_there_is_none(self) -> None:
        for data in (
            bytes(4) + header_2(),  # not aligned
            bytes(32 * 1024 - 8) + header_2(),
            words(M2, 0, 24, 0) + tag(0),
        ):
            assert multiboot2.find(ImageBytes("k", data)) is None


class TestTheChoice:
    BOTH = header_2() + header_1(3) + CODE

    def test_the_older_one_is_preferred(self, memory: GuestMemory, write) -> None:
        kernel = write(elf(Segment(BASE, self.BOTH)))
        assert boot.load(kernel, memory).registers["rax"] == 0x2BADB002
        state = boot.load(kernel, memory, entry="multiboot2")
        assert state.registers["rax"] == 0x36D76289

    def test_pvh_comes_first(self, memory: GuestMemory, write) -> None:
        kernel = write(elf(Segment(BASE, self.BOTH), pvh_note(BASE + 8)))
        assert boot.load(kernel, memory).registers["rbx"] == layout.PVH_START_INFO
        assert boot.load(kernel, memory, entry="multiboot").registers["rax"] == 0x2BADB002

    def test_a_bzimage_is_linux(self, memory: GuestMemory, write) -> None:
        kernel = write(bzimage(header_1(3) + CODE * 100))
        assert boot.load(kernel, memory).registers["rsi"] == layout.ZERO_PAGE

    def test_the_entry_point_alone_can_be_asked_for(self, memory: GuestMemory, write) -> None:
        kernel = write(elf(Segment(BASE, self.BOTH)))
        assert boot.load(kernel, memory, entry="64").cs.l == 1

    @pytest.mark.parametrize("entry", ["multiboot", "multiboot2"])
    def test_no_such_header(self, memory: GuestMemory, write, entry: str) -> None:
        with pytest.raises(ImageError, match="has no Multiboot"):
            boot.load(write(elf(Segment(BASE, CODE))), memory, entry=entry)

    def test_inspect_says_why(self, write) -> None:
        facts = identify.describe(write(elf(Segment(BASE, self.BOTH))))
        assert facts["multiboot"] == ["PAGE_ALIGN", "MEMORY_INFO"]
        assert facts["multiboot2"] == []
        assert facts["how"] == f"Multiboot, in 32-bit protected mode at {BASE:#x}"
        assert facts["boots"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    header=st.sampled_from([
        header_1(3), header_1(1 << 16, BASE, BASE, 0, 0, BASE),
        header_2(tag(1, words(1))),
        header_2(tag(2, words(BASE, BASE, 0, 0)), tag(3, words(BASE))),
    ]),
    edits=st.lists(st.tuples(st.integers(12, 60), st.binary(min_size=1, max_size=8)), max_size=3),
    cut=st.integers(0, 100),
    in_elf=st.booleans(),
)  # fmt: skip
def test_any_header_loads_or_is_refused(
    write, header: bytes, edits: list[tuple[int, bytes]], cut: int, in_elf: bool
) -> None:
    data = bytearray(header + CODE)
    for offset, change in edits:
        data[offset : offset + len(change)] = change
    kernel = write(elf(Segment(BASE, bytes(data))) if in_elf else bytes(data[: len(data) - cut]))
    facts = identify.describe(kernel)
    try:
        boot.load(kernel, GuestMemory(4 * MIB))
    except PyvmmError:
        return
    assert facts["boots"]
