"""The "zero page", struct boot_params: what Linux is told at its 32- and 64-bit entries.

Documents: Documentation/arch/x86/zero-page.rst for the page, Documentation/arch/x86/boot.rst
("The Real-Mode Kernel Header") for the setup header inside it, which a bzImage brings along and
the loader completes. Fields appear here with their names there.

Left out: what only the 16-bit entry uses (heap, video mode, real-mode hooks), BIOS tables (EDD,
APM, disk geometry), EFI, and setup_data. screen_info stays zero unless there is a text screen: then
there is no display.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import NamedTuple

from pyvmm import layout
from pyvmm.boot.initrd import Initrd
from pyvmm.boot.memory_map import MapEntry
from pyvmm.memory import KIB, MIB, PAGE_SIZE, GuestMemory

SETUP_HEADER = 0x1F1
"""Where the setup header begins, in a bzImage and in the zero page alike."""
JUMP_TARGET = 0x201
HEADER_MAGIC = 0x202
VERSION = 0x206
BOOT_FLAG = 0xAA55
HDRS = int.from_bytes(b"HdrS", "little")

# Zero page fields outside the setup header.
_EXT_MEM_K = 0x002
_ACPI_RSDP_ADDR = 0x070
_ALT_MEM_K = 0x1E0
_E820_ENTRIES = 0x1E8
_E820_TABLE = 0x2D0
_E820_MAX = 128
_E820_ENTRY = struct.Struct("<QQI")
_SCREEN_INFO = struct.Struct("<2B H H 2B 2x H 2x 2B H")
"""What begins the zero page (include/uapi/linux/screen_info.h): orig_x, orig_y, ext_mem_k (which
isn't about the screen), orig_video_page, orig_video_mode, orig_video_cols, orig_video_ega_bx,
orig_video_lines, orig_video_isVGA, orig_video_points."""

TYPE_OF_LOADER_UNDEFINED = 0xFF


class LoadFlags(IntFlag):
    LOADED_HIGH = 1 << 0
    KASLR_FLAG = 1 << 1
    QUIET_FLAG = 1 << 5
    KEEP_SEGMENTS = 1 << 6
    CAN_USE_HEAP = 1 << 7


class XLoadFlags(IntFlag):
    XLF_KERNEL_64 = 1 << 0
    XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1
    XLF_EFI_HANDOVER_32 = 1 << 2
    XLF_EFI_HANDOVER_64 = 1 << 3
    XLF_EFI_KEXEC = 1 << 4
    XLF_5LEVEL = 1 << 5
    XLF_5LEVEL_ENABLED = 1 << 6
    XLF_MEM_ENCRYPTION = 1 << 7


class SetupHeader(NamedTuple):
    """struct setup_header, all fields of protocol 2.15 in their order."""

    setup_sects: int = 0
    root_flags: int = 0
    syssize: int = 0
    ram_size: int = 0
    vid_mode: int = 0
    root_dev: int = 0
    boot_flag: int = BOOT_FLAG
    jump: int = 0
    header: int = HDRS
    version: int = 0x20F
    realmode_swtch: int = 0
    start_sys_seg: int = 0
    kernel_version: int = 0
    type_of_loader: int = 0
    loadflags: int = 0
    setup_move_size: int = 0
    code32_start: int = 0
    ramdisk_image: int = 0
    ramdisk_size: int = 0
    bootsect_kludge: int = 0
    heap_end_ptr: int = 0
    ext_loader_ver: int = 0
    ext_loader_type: int = 0
    cmd_line_ptr: int = 0
    initrd_addr_max: int = 0
    kernel_alignment: int = 0
    relocatable_kernel: int = 0
    min_alignment: int = 0
    xloadflags: int = 0
    cmdline_size: int = 0
    hardware_subarch: int = 0
    hardware_subarch_data: int = 0
    payload_offset: int = 0
    payload_length: int = 0
    setup_data: int = 0
    pref_address: int = 0
    init_size: int = 0
    handover_offset: int = 0
    kernel_info: int = 0

    @classmethod
    def parse(cls, page: bytes) -> SetupHeader:
        """Read the header from a bzImage's first bytes. Fields that its protocol version doesn't
        have yet, and those behind its end (which the jump at its start leaps over), are zero."""
        version = int.from_bytes(page[VERSION : VERSION + 2], "little")
        end = min(HEADER_MAGIC + page[JUMP_TARGET], _end_in_version(version))
        raw = page[SETUP_HEADER:end].ljust(_LAYOUT.size, b"\0")
        return cls._make(_LAYOUT.unpack(raw))

    def pack(self) -> bytes:
        """The header as bytes, for the zero page at SETUP_HEADER."""
        return _LAYOUT.pack(*self)


_LAYOUT = struct.Struct("<B H I 4H H I H I 2H 2B H 4I H 2B 3I 2B H 2I Q 2I 2Q 3I")

_ENDS = (
    (0x20F, 0x26C),
    (0x20B, 0x268),
    (0x20A, 0x264),
    (0x209, 0x258),
    (0x208, 0x250),
    (0x207, 0x248),
    (0x206, 0x23C),
    (0x205, 0x235),
    (0x203, 0x230),
    (0x202, 0x22C),
    (0x201, 0x226),
    (0x200, 0x224),
)
"""Protocol versions that made the header longer, and where it ends in them."""


def _end_in_version(version: int) -> int:
    return next((end for since, end in _ENDS if version >= since), _ENDS[-1][1])


def complete(header: SetupHeader, initrd: Initrd) -> SetupHeader:
    """``header`` with the fields that any loader has to fill in."""
    return header._replace(
        type_of_loader=TYPE_OF_LOADER_UNDEFINED,
        ext_loader_type=0,
        ext_loader_ver=0,
        cmd_line_ptr=layout.COMMAND_LINE,
        ramdisk_image=initrd.start,
        ramdisk_size=initrd.size,
    )


def write(memory: GuestMemory, header: SetupHeader, entries: list[MapEntry], rsdp: int) -> None:
    """Write the zero page to its place."""
    page = bytearray(PAGE_SIZE)
    above_1_mib = (memory.regions[0].end - MIB) // KIB
    struct.pack_into("<H", page, _EXT_MEM_K, min(above_1_mib, 0xFFFF))
    struct.pack_into("<Q", page, _ACPI_RSDP_ADDR, rsdp)
    struct.pack_into("<I", page, _ALT_MEM_K, above_1_mib)
    packed = header.pack()
    page[SETUP_HEADER : SETUP_HEADER + len(packed)] = packed
    if len(entries) > _E820_MAX:
        raise ValueError(f"{len(entries)} e820 entries; the zero page has room for {_E820_MAX}")
    page[_E820_ENTRIES] = len(entries)
    for index, entry in enumerate(entries):
        _E820_ENTRY.pack_into(page, _E820_TABLE + index * _E820_ENTRY.size, *entry)
    memory.write(layout.ZERO_PAGE, page)


def add_text_screen(memory: GuestMemory) -> None:
    """Say in the zero page that there is a VGA in mode 3, its cursor in the first column of the
    first row."""
    page = memory.view(layout.ZERO_PAGE, PAGE_SIZE)
    (ext_mem_k,) = struct.unpack_from("<H", page, _EXT_MEM_K)
    _SCREEN_INFO.pack_into(page, 0, 0, 0, ext_mem_k, 0, 3, 80, 0, 25, 1, 16)
