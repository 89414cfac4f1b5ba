"""Multiboot 1 and 2: the headers, what they ask for, and every way in which they can be wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.images import Section, Segment, add_sections, bzimage, elf, pvh_note

from pyvmm import boot, layout
from pyvmm.boot import identify, multiboot, multiboot2
from pyvmm.boot.image import ImageBytes
from pyvmm.errors import ConfigError, ImageError, PyvmmError
from pyvmm.memory import MIB, PAGE_SIZE, GuestMemory

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


SYMBOLS = (
    Section(),
    Section(1, BASE, b"code"),
    Section(8, BASE + 64, size=5000),
    Section(2, 0, b"table"),
    Section(3, 0, b"names", alignment=PAGE_SIZE),
)
"""None, what is in segments already, and two that nobody loads but for Multiboot."""


def unpack_sections(headers: bytes, entry_size: int) -> list[tuple[int, int]]:
    """(sh_addr, sh_size) of each."""
    fields = struct.iter_unpack("<10I" if entry_size == 40 else "<2I4Q2I2Q", headers)
    return [(address, size) for _, _, _, address, _, size, *_ in fields]


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


def tags_of(memory: GuestMemory, base: int = layout.MULTIBOOT_INFO) -> dict[int, bytes]:
    """The boot information's tags."""
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
        assert (state.cs.selector, state.ds.selector, state.ss.selector) == (0x08, 0x10, 0x10)
        for segment in (state.cs, state.ds):
            place = state.gdt.base + segment.selector
            assert memory.read_u64(place) == segment.descriptor()
        info = state.registers["rbx"]
        assert memory.read_u32(info) == 0x24D
        line = memory.read(memory.read_u32(info + 16), 200).split(b"\0")[0]
        assert line == f"{kernel} a b".encode(), "the name comes first, Linux's words not at all"
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
            ((BASE, BASE, BASE + 40, BASE + 36, BASE), "bss would end before its text"),
            ((0x8000_0000, 0x8000_0000, 0, 0, 0x8000_0000), "not all RAM"),
            ((BASE, BASE, 0, 0xFFFF_FFFF, BASE), "not all RAM"),
            ((0xA_0000, 0xA_0000, 0, 0, 0xA_0000), "video memory"),
            ((0x1000, 0x1000, 0, layout.EBDA + 1, 0x1000), "where the EBDA"),
            ((0x400, 0x400, 0, 0x600, 0x400), "boot GDT"),
        ],
    )
    def test_addresses_that_do_not_fit(
        self, memory: GuestMemory, write, addresses: tuple[int, ...], problem: str
    ) -> None:
        with pytest.raises(ImageError, match=problem):
            boot.load(write(header_1(1 << 16, *addresses) + CODE), memory)

    @pytest.mark.parametrize("base", [0x2000, 0x8000, 0x1_0000, 0x2_0000, 0x9_F000])
    def test_low_memory_is_the_kernels(self, memory: GuestMemory, write, base: int) -> None:
        """What it is told, and its stack, are where it isn't."""
        end = min(base + 0x1_2000, layout.EBDA)
        kernel = write(header_1(1 << 16, base, base, 0, end, base) + CODE)
        state = boot.load(kernel, memory, command_line="a b")
        info, stack = state.registers["rbx"], state.registers["rsp"]
        line = memory.read_u32(info + 16)
        assert memory.read(line, 200).split(b"\0")[0] == f"{kernel} a b".encode()
        for start, size in ((info, 120), (line, 200), (stack - 2048, 2048)):
            assert start >= PAGE_SIZE
            assert start + size <= base or end <= start
        assert abs(info - stack) >= 16
        assert memory.read(base, 4) == words(M1)
        assert memory.read(end - 64, 64) == bytes(64), "the rest of the kernel is its bss"

    def test_a_kernel_in_all_of_low_memory(self, memory: GuestMemory, write) -> None:
        kernel = write(header_1(1 << 16, 0x1000, 0x1000, 0, layout.EBDA, 0x1000) + CODE)
        module = write(b"module", "module")
        state = boot.load(kernel, memory, command_line="a", initrd=module)
        info = state.registers["rbx"]
        module_start = memory.read_u32(memory.read_u32(info + 24))
        assert min(module_start, info) >= layout.HIGH_RAM
        assert memory.read(module_start, 6) == b"module"

    def test_no_room_at_all(self, write) -> None:
        low = Segment(PAGE_SIZE, header_1() + CODE, memsz=layout.EBDA - PAGE_SIZE)
        kernel = write(elf(low, Segment(BASE, CODE, memsz=MIB)))
        with pytest.raises(ImageError, match="fit neither below 640 KiB nor behind it"):
            boot.load(kernel, GuestMemory(2 * MIB))

    @pytest.mark.parametrize("bits", [32, 64])
    def test_symbols(self, memory: GuestMemory, write, bits: int) -> None:
        image = elf(Segment(BASE, header_1() + CODE, memsz=5000), bits=bits)
        kernel, module = write(add_sections(image, *SYMBOLS)), write(b"module", "module")
        info = boot.load(kernel, memory, initrd=module).registers["rbx"]
        assert memory.read_u32(info) & 0x30 == 0x20
        count, entry_size, table, names = struct.unpack("<4I", memory.read(info + 28, 16))
        assert (count, names) == (5, 4)
        found = unpack_sections(memory.read(table, count * entry_size), entry_size)
        assert found[:3] == [(0, 0), (BASE, 4), (BASE + 64, 5000)]
        texts = [memory.read(address, size) for address, size in found[3:]]
        assert texts == [b"table", b"names"]
        module_end = memory.read_u32(memory.read_u32(info + 24) + 4)
        assert found[3][0] >= module_end
        assert found[4][0] % PAGE_SIZE == 0

    @pytest.mark.parametrize(
        "damage", [{"e_shnum": 0}, {"e_shnum": 5000}, {"e_shnum": 6}, {"e_shentsize": 1},
                   {"e_shoff": 1 << 62}],
    )  # fmt: skip
    def test_damaged_symbols_are_none(
        self, memory: GuestMemory, write, damage: dict[str, int]
    ) -> None:
        kernel = write(add_sections(elf(Segment(BASE, header_1() + CODE)), *SYMBOLS, **damage))
        info = boot.load(kernel, memory).registers["rbx"]
        assert memory.read_u32(info) & 0x30 == 0

    @pytest.mark.parametrize(
        "section", [Section(2, 0, b"x", offset=1 << 40), Section(2, 0, b"x", size=1 << 40)]
    )
    def test_a_damaged_section_has_no_address(
        self, memory: GuestMemory, write, section: Section
    ) -> None:
        image = elf(Segment(BASE, header_1() + CODE))
        info = boot.load(write(add_sections(image, section)), memory).registers["rbx"]
        table = memory.read_u32(info + 36)
        ((address, _),) = unpack_sections(memory.read(table, 64), 64)
        assert address == 0

    def test_symbols_that_do_not_fit_have_no_address(self, write) -> None:
        image = elf(Segment(BASE, header_1() + CODE))
        kernel = write(add_sections(image, Section(1, 0, bytes(MIB)), Section(2, 0, b"small")))
        memory = GuestMemory(2 * MIB)
        info = boot.load(kernel, memory).registers["rbx"]
        count, size, table, _ = struct.unpack("<4I", memory.read(info + 28, 16))
        big, small = unpack_sections(memory.read(table, count * size), size)
        assert big[0] == 0
        assert memory.read(*small) == b"small"

    def test_a_file_loaded_by_its_addresses_has_no_symbols(
        self, memory: GuestMemory, write
    ) -> None:
        header = header_1(1 << 16, BASE + 0x78, BASE, 0, 0, BASE + 0x98)
        kernel = write(add_sections(elf(Segment(BASE, header + CODE)), *SYMBOLS))
        info = boot.load(kernel, memory).registers["rbx"]
        assert memory.read_u32(info) & 0x30 == 0

    def test_a_video_mode_is_asked_for_in_vain(self, memory: GuestMemory, write) -> None:
        kernel = write(elf(Segment(BASE, header_1(4) + CODE)))
        state = boot.load(kernel, memory)
        assert state.remark.endswith(
            "kernel asks for a video mode: there is no screen, and it is told of none"
        )
        assert memory.read_u32(state.registers["rbx"]) & ~0x26D == 0, "neither VBE nor frame buffer"
        assert boot.load(write(elf(Segment(BASE, header_1(3) + CODE))), memory).remark == ""

    def test_there_is_fw_cfg(self, memory: GuestMemory, write) -> None:
        """Test suites for KVM ask QEMU's device for the number of CPUs."""
        assert boot.load(write(elf(Segment(BASE, header_1() + CODE))), memory).fw_cfg
        assert not boot.load(write(elf(Segment(BASE, CODE))), memory).fw_cfg

    def test_an_entry_out_of_reach(self, write) -> None:
        high = Segment(1 << 32, CODE)
        kernel = write(elf(Segment(BASE, header_1() + CODE), high, entry=1 << 32))
        with pytest.raises(ImageError, match="entry point 0x100000000 above 4 GiB"):
            boot.load(kernel, GuestMemory(3 * 1024 * MIB + 2 * MIB))

    def test_commas_in_a_modules_text(self, memory: GuestMemory, write) -> None:
        kernel, one = write(elf(Segment(BASE, header_1() + CODE))), write(b"one", "o,n,e")
        given = f"{one} with words, and commas".replace(",", ",,")
        info = boot.load(kernel, memory, initrd=f"{given},{kernel}").registers["rbx"]
        table = memory.read_u32(info + 24)
        text = memory.read(memory.read_u32(table + 8), 300).split(b"\0")[0].decode()
        assert text == f"{one} with words, and commas"
        assert memory.read_u32(info + 20) == 2

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
            boot.load(kernel, memory, initrd=f"{kernel}, ,{kernel}")
        with pytest.raises(ConfigError, match="65 modules are more than 64"):
            boot.load(kernel, memory, initrd=",".join([str(kernel)] * 65))
        with pytest.raises(ImageError, match="fit neither below 640 KiB nor behind"):
            boot.load(
                kernel, GuestMemory(2 * MIB), initrd=",".join([f"{kernel} {'x' * 40000}"] * 30)
            )
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
        assert found[0] == b""
        assert set(found) == {0, 1, 2, 4, 6}

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

    @pytest.mark.parametrize("bits", [32, 64])
    def test_symbols(self, memory: GuestMemory, write, bits: int) -> None:
        data = bytes(-84 % 8 if bits == 32 else 0) + header_2() + CODE  # on 8 bytes of the file
        image = elf(Segment(BASE, data), bits=bits)
        boot.load(write(add_sections(image, *SYMBOLS)), memory)
        body = tags_of(memory)[9]
        count, entry_size, names = struct.unpack_from("<3I", body)
        assert (count, names, len(body)) == (5, 4, 12 + 5 * entry_size)
        found = unpack_sections(body[12:], entry_size)
        assert [memory.read(*section) for section in found[3:]] == [b"table", b"names"]

    def test_low_memory_is_the_kernels(self, memory: GuestMemory, write) -> None:
        base = layout.MULTIBOOT_INFO
        tags = tag(2, words(base, base, 0, 0x2_0000)), tag(3, words(base + 64))
        state = boot.load(write(header_2(*tags) + CODE), memory)
        assert memory.read(base, 4) == words(M2)
        assert tags_of(memory, state.registers["rbx"])[2] == b"PyVMM\0"

    @pytest.mark.parametrize(
        ("low", "high", "alignment", "preference", "base"),
        [
            (0, 0xFFFF_FFFF, 4096, 0, 0x20_0000),  # where it was linked for
            (0, 0xFFFF_FFFF, 4096, 2, 0x20_0000),
            (0, 0xFFFF_FFFF, 4096, 1, BASE),
            (0, 0xFFFF_FFFF, 0, 1, BASE),
            (0x12_3456, 0xFFFF_FFFF, 4096, 1, 0x12_4000),
            (0, 0xFFFF_FFFF, 4 * MIB, 0, 4 * MIB),
            (0x30_0000, 0xFFFF_FFFF, 1, 0, 0x30_0000),
            (0, 0x1F_FFFF, 1, 0, BASE),
            (0x30_0000, 0x30_0004, 1, 0, 0x20_0000),  # can't be: as if there were no tag
            (0x3FF_FFFF, 0xFFFF_FFFF, 1, 0, 0x20_0000),
        ],
    )
    def test_relocation(
        self, memory: GuestMemory, write, low: int, high: int, alignment: int, preference: int,
        base: int,
    ) -> None:  # fmt: skip
        header = header_2(tag(10, words(low, high, alignment, preference)))
        kernel = elf(Segment(0x20_0000, header), Segment(0x20_1000, CODE), entry=0x20_1004)
        state = boot.load(write(kernel), memory)
        assert state.registers["rip"] == base + 0x1004
        assert memory.read(base, 4) == words(M2)
        assert memory.read(base + 0x1000, len(CODE)) == CODE
        assert tags_of(memory)[21] == words(base)

    def test_a_kernel_linked_for_no_ram(self, memory: GuestMemory, write) -> None:
        header = header_2(tag(10, words(0, 0xFFFF_FFFF, 4096, 0)))
        state = boot.load(write(elf(Segment(0, header), entry=16)), memory)
        assert state.registers["rip"] == BASE + 16

    @pytest.mark.parametrize(
        "wish", [tag(4, words(1)), tag(5, words(800, 600, 32)), tag(4, words(3))]
    )
    def test_a_screen_is_asked_for_in_vain(self, memory: GuestMemory, write, wish: bytes) -> None:
        state = boot.load(write(elf(Segment(BASE, header_2(wish) + CODE))), memory)
        assert "there is no screen" in state.remark
        assert 8 not in tags_of(memory)

    def test_there_is_fw_cfg(self, memory: GuestMemory, write) -> None:
        assert boot.load(write(elf(Segment(BASE, header_2() + CODE))), memory).fw_cfg

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
            ((tag(1, words(1, 22)),), "wants information of type 22, which nobody knows"),
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
        [tag(1, words(*range(1, 22))), tag(1, words(99), 1), tag(4, words(1), 1), tag(4),
         tag(5, words(0, 0, 0), 1), tag(77, flags=1), tag(4, words(2)), tag(6), tag(7),
         tag(9, words(0)), tag(10, words(0, 0, 0, 0)), tag(10)],
    )  # fmt: skip
    def test_what_may_be_ignored_is(self, memory: GuestMemory, write, optional: bytes) -> None:
        kernel = write(elf(Segment(BASE, header_2(optional) + CODE)))
        assert boot.load(kernel, memory).remark == ""

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
        header_2(tag(10, words(0, 0xFFFF_FFFF, 4096, 1)), tag(5, words(0, 0, 0))),
    ]),
    edits=st.lists(st.tuples(st.integers(12, 60), st.binary(min_size=1, max_size=8)), max_size=3),
    cut=st.integers(0, 100),
    in_elf=st.booleans(),
    section=st.builds(
        Section, st.integers(0, 9), st.sampled_from([0, BASE]), st.binary(max_size=9),
        size=st.none() | st.integers(0, (1 << 64) - 1), offset=st.none() | st.integers(0, 1 << 62),
        alignment=st.integers(0, 1 << 63),
    ),
)  # fmt: skip
def test_any_header_loads_or_is_refused(
    write, header: bytes, edits: list[tuple[int, bytes]], cut: int, in_elf: bool, section: Section
) -> None:
    data = bytearray(header + CODE)
    for offset, change in edits:
        data[offset : offset + len(change)] = change
    image = bytes(data[: max(len(data) - cut, 1)])
    if in_elf:
        image = add_sections(elf(Segment(BASE, bytes(data))), section)
    kernel = write(image)
    facts = identify.describe(kernel)
    try:
        boot.load(kernel, GuestMemory(4 * MIB))
    except PyvmmError:
        return
    assert facts["boots"]
