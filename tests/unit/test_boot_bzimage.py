"""Loading a bzImage: what the kernel finds in memory, and every way an image can be wrong."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.images import DEFAULT_HEADER, HEADER_OFFSET, SETUP_SIZE, bzimage

from pyvmm import boot, layout
from pyvmm.boot import initrd as initrds
from pyvmm.boot import zero_page
from pyvmm.boot.command_line import virtio_mmio_words
from pyvmm.boot.zero_page import LoadFlags, SetupHeader, XLoadFlags
from pyvmm.errors import ConfigError, ImageError
from pyvmm.memory import GIB, MIB, PAGE_SIZE, GuestMemory

KERNEL = bytes(range(256)) * 64


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(64 * MIB)


@pytest.fixture
def image(tmp_path: Path):
    """Write a bzImage with these header fields; its path."""

    def write(data: bytes | None = None, **fields: int) -> Path:
        path = tmp_path / "bzImage"
        path.write_bytes(bzimage(KERNEL, **fields) if data is None else data)
        return path

    return write


def zero_page_header(memory: GuestMemory) -> SetupHeader:
    return SetupHeader.parse(memory.read(layout.ZERO_PAGE, PAGE_SIZE))


def e820(memory: GuestMemory) -> list[tuple[int, int, int]]:
    count = memory.read_u8(layout.ZERO_PAGE + 0x1E8)
    table = memory.read(layout.ZERO_PAGE + 0x2D0, 20 * count)
    return list(struct.iter_unpack("<QQI", table))


def test_the_64_bit_entry_is_preferred(memory: GuestMemory, image) -> None:
    state = boot.load(image(), memory)
    assert state.registers["rip"] == 0x100_0200
    assert state.registers["rsi"] == layout.ZERO_PAGE
    assert state.cs.l == 1
    assert memory.read(0x100_0000, len(KERNEL)) == KERNEL


@pytest.mark.parametrize(("entry", "xloadflags"), [("32", 1), ("auto", 0)])
def test_the_32_bit_entry_when_asked_for_or_the_only_one(
    memory: GuestMemory, image, entry: str, xloadflags: int
) -> None:
    state = boot.load(image(xloadflags=xloadflags), memory, entry=entry)
    assert state.registers["rip"] == 0x100_0000
    assert state.registers["rsi"] == layout.ZERO_PAGE
    assert state.cs.l == 0


@pytest.mark.parametrize(("entry", "says"), [("64", "64-bit"), ("pvh", "PVH")])
def test_an_entry_that_the_image_lacks(memory: GuestMemory, image, entry: str, says: str) -> None:
    with pytest.raises(ImageError, match=f"without a {says} entry"):
        boot.load(image(xloadflags=0), memory, entry=entry)


def test_an_unknown_entry_is_a_configuration_error(memory: GuestMemory, image) -> None:
    with pytest.raises(ConfigError, match="no such entry point"):
        boot.load(image(), memory, entry="8086")


def test_the_zero_page_tells_of_a_text_screen_if_there_is_one(memory: GuestMemory, image) -> None:
    boot.load(image(), memory)
    screen_info = memory.view(layout.ZERO_PAGE, 0x40)
    ext_mem_k = bytes(screen_info[2:4])
    assert bytes(screen_info[4:]) == bytes(0x3C)
    zero_page.add_text_screen(memory)
    assert (screen_info[6], screen_info[7], screen_info[0xE]) == (3, 80, 25)
    assert screen_info[0xF] == 1  # VIDEO_TYPE_VGAC
    assert screen_info[0x10] == 16
    assert bytes(screen_info[2:4]) == ext_mem_k


def test_the_zero_page_tells_what_the_loader_did(memory: GuestMemory, image, tmp_path) -> None:
    (tmp_path / "initrd").write_bytes(b"initrd!" * 1000)
    boot.load(
        image(), memory, command_line="console=ttyS0", initrd=tmp_path / "initrd", rsdp=0xE_0000
    )
    header = zero_page_header(memory)
    assert header.boot_flag == 0xAA55
    assert header.header == int.from_bytes(b"HdrS", "little")
    assert header.type_of_loader == 0xFF
    assert header.code32_start == 0x100_0000
    assert memory.read(header.cmd_line_ptr, 14) == b"console=ttyS0\0"
    assert memory.read(header.ramdisk_image, header.ramdisk_size) == b"initrd!" * 1000
    assert memory.read_u64(layout.ZERO_PAGE + 0x70) == 0xE_0000
    assert memory.read_u32(layout.ZERO_PAGE + 0x1E0) == 63 * 1024
    assert memory.read_u8(layout.ZERO_PAGE + 0x1EF) == 0, "the sentinel"
    assert header._replace(
        type_of_loader=0, code32_start=0x10_0000, cmd_line_ptr=0, ramdisk_image=0, ramdisk_size=0
    ) == DEFAULT_HEADER._replace(syssize=len(KERNEL) // 16), "the rest is the image's"


def test_the_e820_table_in_the_zero_page(memory: GuestMemory, image) -> None:
    boot.load(image(), memory)
    assert e820(memory) == [
        (0, 0x9_FC00, 1),
        (0x9_FC00, 0x6_0400, 2),
        (0x10_0000, 63 * MIB, 1),
        (layout.ECAM, layout.ECAM_SIZE, 2),
    ]


def test_without_an_initrd_the_zero_page_has_none(memory: GuestMemory, image) -> None:
    boot.load(image(ramdisk_image=0x1234, ramdisk_size=0x5678), memory)
    header = zero_page_header(memory)
    assert (header.ramdisk_image, header.ramdisk_size) == (0, 0)


def test_loading_again_replaces_everything(memory: GuestMemory, image) -> None:
    boot.load(image(), memory, command_line="a long command line")
    memory.fill(layout.ZERO_PAGE, PAGE_SIZE, 0xFF)
    boot.load(image(), memory, command_line="short")
    assert memory.read(layout.COMMAND_LINE, 6) == b"short\0"
    assert memory.read_u8(layout.ZERO_PAGE + 0x1EF) == 0


# Placement.


def test_a_kernel_that_is_not_relocatable_is_loaded_where_it_says(
    memory: GuestMemory, image
) -> None:
    state = boot.load(image(relocatable_kernel=0, pref_address=0x200_0000), memory)
    assert state.registers["rip"] == 0x10_0200
    assert memory.read(0x10_0000, len(KERNEL)) == KERNEL


def test_an_old_relocatable_kernel_goes_to_an_aligned_address(memory: GuestMemory, image) -> None:
    state = boot.load(image(version=0x205, kernel_alignment=0x40_0000), memory)
    assert state.registers["rip"] == 0x40_0000, "protocol 2.05 has no 64-bit entry"


def test_a_machine_too_small_for_init_size(image) -> None:
    # boot.rst: a relocatable kernel still unpacks at its preferred address, so that its being
    # relocatable doesn't help.
    memory = GuestMemory(23 * MIB)
    with pytest.raises(ImageError, match=r"needs 8\.0 MiB of RAM at 0x1000000.*--memory 24M"):
        boot.load(image(), memory)
    boot.load(image(), GuestMemory(24 * MIB))


@pytest.mark.parametrize(
    "fields",
    [
        {"pref_address": 1 << 63},
        {"pref_address": (1 << 64) - 1},
        {"pref_address": 4 * GIB},
        {"pref_address": 0xFFFF_F000, "kernel_alignment": 1},
        {"init_size": 0xFFFF_FFFF},
    ],
)
def test_addresses_out_of_the_world(image, fields: dict[str, int]) -> None:
    with pytest.raises(ImageError, match="of RAM at"):
        boot.load(image(**fields), GuestMemory(5 * GIB))


def test_a_kernel_that_would_overwrite_low_memory(memory: GuestMemory, image) -> None:
    with pytest.raises(ImageError, match="below 1 MiB"):
        boot.load(image(relocatable_kernel=0, code32_start=0x7000), memory)


def test_an_alignment_that_is_no_power_of_two(memory: GuestMemory, image) -> None:
    for alignment in (0, 3, 0x30_0000):
        with pytest.raises(ImageError, match="is no power of two"):
            boot.load(image(kernel_alignment=alignment), memory)


# The file.


def test_bytes_behind_the_kernel_are_not_loaded(memory: GuestMemory, image) -> None:
    boot.load(image(bzimage(KERNEL) + b"signature"), memory)
    assert memory.read(0x100_0000 + len(KERNEL), 9) == bytes(9)


def test_syssize_is_rounded_up_from_the_files_size(memory: GuestMemory, image) -> None:
    boot.load(image(bzimage(KERNEL[:-7])), memory)
    assert memory.read(0x100_0000, len(KERNEL)) == KERNEL[:-7] + bytes(7)


@pytest.mark.parametrize("keep", [0x206, 0x26B, 0x300, 600, SETUP_SIZE - 1, SETUP_SIZE])
def test_a_truncated_image(memory: GuestMemory, image, keep: int) -> None:
    with pytest.raises(ImageError, match=f"bzImage is truncated: {keep} of"):
        boot.load(image(bzimage(KERNEL)[:keep]), memory)


def test_a_truncated_image_says_how_much_is_missing(memory: GuestMemory, image) -> None:
    whole = bzimage(KERNEL)
    with pytest.raises(ImageError, match=f"truncated: {len(whole) - 16} of {len(whole)} bytes"):
        boot.load(image(whole[:-16]), memory)


def test_a_protocol_too_old(memory: GuestMemory, image) -> None:
    with pytest.raises(ImageError, match=r"boot protocol 2\.01; 2\.02 is the oldest"):
        boot.load(image(version=0x201), memory)


@pytest.mark.parametrize(
    "fields",
    [
        {"loadflags": 0},  # a zImage
        {"syssize": 0, "version": 0x203},  # memdisk, GRUB's lnxboot
        {"code32_start": 0, "version": 0x207, "relocatable_kernel": 0},  # iPXE
    ],
)
def test_images_with_nothing_but_a_16_bit_entry(
    memory: GuestMemory, image, fields: dict[str, int]
) -> None:
    assert boot.load(image(**fields), memory).kernel is not None
    with pytest.raises(ImageError, match="without a 64-bit entry"):
        boot.load(image(**fields), memory, entry="64")


def test_fields_newer_than_the_protocol_are_not_believed(memory: GuestMemory, image) -> None:
    # memdisk, for one, has code where later protocols have fields.
    boot.load(image(version=0x203, pref_address=1 << 60, init_size=0xFFFF_FFFF), memory)
    assert memory.read(0x10_0000, len(KERNEL)) == KERNEL


def test_fields_behind_the_headers_end_are_not_believed(memory: GuestMemory, image) -> None:
    boot.load(image(jump=0x36EB, pref_address=1 << 60), memory)  # the header ends at 0x238
    assert zero_page_header(memory).pref_address == 0


# The command line.


def test_virtio_mmio_devices_are_named_as_linux_reads_them() -> None:
    """Size, base and interrupt, as Documentation/admin-guide/kernel-parameters.txt has it."""
    slots = [layout.virtio_mmio_slot(number) for number in (0, 1, 31)]
    assert virtio_mmio_words(slots) == [
        "virtio_mmio.device=512@0xe8000000:5",
        "virtio_mmio.device=512@0xe8000200:6",
        "virtio_mmio.device=512@0xe8003e00:10",
    ]
    all_slots = [layout.virtio_mmio_slot(number) for number in range(layout.VIRTIO_MMIO_SLOTS)]
    assert len(" ".join(virtio_mmio_words(all_slots))) < 1200, "there is room for other words"


def test_the_longest_command_line(memory: GuestMemory, image) -> None:
    boot.load(image(), memory, command_line="x" * 2047)
    assert memory.read(layout.COMMAND_LINE, 2048) == b"x" * 2047 + b"\0"


def test_a_command_line_that_is_too_long(memory: GuestMemory, image) -> None:
    with pytest.raises(ImageError, match=r"the command line has 2048 bytes; .* at most 2047"):
        boot.load(image(), memory, command_line="x" * 2048)
    with pytest.raises(ImageError, match=r"has 256 bytes; .* at most 255"):
        boot.load(image(version=0x205), memory, command_line="x" * 256)


def test_a_command_line_that_low_memory_cannot_hold(memory: GuestMemory, image) -> None:
    with pytest.raises(ImageError, match="at most"):
        boot.load(image(cmdline_size=0xFFFF_FFFF), memory, command_line="x" * 0x9_0000)


def test_a_command_line_with_a_nul(memory: GuestMemory, image) -> None:
    with pytest.raises(ConfigError, match="NUL"):
        boot.load(image(), memory, command_line="a\0b")


def test_a_command_line_is_bytes_as_typed(memory: GuestMemory, image) -> None:
    boot.load(image(), memory, command_line=os.fsdecode(b"motd=\xff\xc3\xa4"))
    assert memory.read(layout.COMMAND_LINE, 9) == b"motd=\xff\xc3\xa4\0"


# The initrd.


@given(
    size=st.integers(1, 64 * MIB),
    limit=st.integers(1 * MIB, 64 * MIB),
    kernel=st.tuples(st.integers(1 * MIB, 32 * MIB), st.integers(0, 32 * MIB)),
)
def test_an_initrd_is_placed_within_all_limits(
    size: int, limit: int, kernel: tuple[int, int]
) -> None:
    occupied = [(kernel[0], kernel[0] + kernel[1])]
    start = initrds.place(size, limit, occupied)
    if start is None:
        # Then neither gap is wide enough, give or take the rounding to pages.
        above, below = limit - occupied[0][1], min(limit, occupied[0][0]) - MIB
        assert max(above, below) < size + PAGE_SIZE
    else:
        assert start % PAGE_SIZE == 0
        assert start >= MIB
        assert start + size <= limit
        assert start + size <= occupied[0][0] or start >= occupied[0][1] or not kernel[1]


def test_the_initrd_lies_at_the_top_of_ram(memory: GuestMemory, image, tmp_path) -> None:
    (tmp_path / "initrd").write_bytes(b"i" * 5000)
    boot.load(image(), memory, initrd=tmp_path / "initrd")
    assert zero_page_header(memory).ramdisk_image == 64 * MIB - 2 * PAGE_SIZE


def test_the_initrd_obeys_initrd_addr_max(memory: GuestMemory, image, tmp_path) -> None:
    (tmp_path / "initrd").write_bytes(b"i" * 5000)
    boot.load(image(initrd_addr_max=0x2FF_FFFF), memory, initrd=tmp_path / "initrd")
    assert zero_page_header(memory).ramdisk_image == 48 * MIB - 2 * PAGE_SIZE


def test_the_initrd_stays_clear_of_what_the_kernel_unpacks(image, tmp_path) -> None:
    memory = GuestMemory(32 * MIB)
    (tmp_path / "initrd").write_bytes(b"i" * (12 * MIB))
    boot.load(image(init_size=8 * MIB), memory, initrd=tmp_path / "initrd")
    header = zero_page_header(memory)
    assert header.ramdisk_image + header.ramdisk_size <= 16 * MIB


def test_an_initrd_that_does_not_fit(image, tmp_path) -> None:
    memory = GuestMemory(32 * MIB)
    with (tmp_path / "initrd").open("wb") as file:
        file.truncate(20 * MIB)
    with pytest.raises(ImageError, match=r"initrd .*20\.0 MiB\) does not fit.*--memory 45M"):
        boot.load(image(), memory, initrd=tmp_path / "initrd")


def test_more_memory_is_not_advised_where_the_kernel_is_the_limit(image, tmp_path) -> None:
    memory = GuestMemory(256 * MIB)
    with (tmp_path / "initrd").open("wb") as file:
        file.truncate(30 * MIB)
    with pytest.raises(ImageError) as error:
        boot.load(image(initrd_addr_max=0x1FF_FFFF), memory, initrd=tmp_path / "initrd")
    assert "does not fit" in str(error.value)
    assert "--memory" not in str(error.value)


def test_bad_initrd_files(memory: GuestMemory, image, tmp_path) -> None:
    (tmp_path / "empty").touch()
    for name, says in (("empty", "is empty"), ("missing", "does not exist"), (".", "directory")):
        with pytest.raises(ImageError, match=f"(?s)initrd.*{says}|{says}.*initrd"):
            boot.load(image(), memory, initrd=tmp_path / name)


# Anything at all.


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    edits=st.lists(st.tuples(st.integers(0, 0x90), st.binary(min_size=1, max_size=8)), max_size=6),
    keep=st.one_of(st.none(), st.integers(0, SETUP_SIZE + len(KERNEL))),
    entry=st.sampled_from(["auto", "64", "32"]),
)
def test_no_header_breaks_the_loader(
    tmp_path: Path, edits: list[tuple[int, bytes]], keep: int | None, entry: str
) -> None:
    data = bytearray(bzimage(KERNEL))
    for offset, change in edits:
        data[HEADER_OFFSET + offset : HEADER_OFFSET + offset + len(change)] = change
    path = tmp_path / "bzImage"
    path.write_bytes(data[:keep])
    memory = GuestMemory(32 * MIB)
    refusal = ""
    try:
        state = boot.load(path, memory, command_line="console=ttyS0", entry=entry)
    except (ImageError, ConfigError) as error:
        refusal = str(error)
    assert "bzImage" in refusal or memory.contains(state.registers["rip"], 1)
    memory.close()


def test_flags_have_the_values_of_the_document() -> None:
    assert LoadFlags.CAN_USE_HEAP == 0x80
    assert XLoadFlags.XLF_5LEVEL == 0x20
