"""Multiboot: the boot protocol of GRUB Legacy, and of most small kernels.

Document: Multiboot Specification, version 0.6.96. A kernel has a header in its first 8 KiB that
says what it wants; it is an ELF file, or (with MULTIBOOT_AOUT_KLUDGE) anything, and the header says
where it goes. It is entered in flat 32-bit protected mode without paging, EAX holding a magic
number and EBX the address of the information structure (sections 3.2 and 3.3).

What the kernel is told lies in low memory, where the kernel is not; the stack is only there for
kernels that use one before they have made theirs.

Left out: the boot device, drives, the BIOS's configuration table, APM, and video: this machine has
no screen. A kernel that asks for a video mode is started, with a line to the user, and is told of
none: few can't do without.
"""

from __future__ import annotations

import os
import struct
from enum import IntFlag
from typing import NamedTuple

from pyvmm import layout
from pyvmm.boot import command_line as command_lines
from pyvmm.boot import elf_sections, modules
from pyvmm.boot.elf import ElfImage, check_fits
from pyvmm.boot.entry import GDT_SIZE, IDENTITY_MAP_SIZE, EntryState
from pyvmm.boot.image import Image
from pyvmm.boot.kind import ELF_MAGIC
from pyvmm.boot.memory_map import MapEntry, memory_map
from pyvmm.errors import ImageError
from pyvmm.memory import KIB, PAGE_SIZE, GuestMemory, align_up

HEADER_MAGIC = 0x1BADB002
BOOTLOADER_MAGIC = 0x2BADB002
SEARCH = 8 * KIB
ALIGNMENT = 4

BOOT_LOADER_NAME = b"PyVMM\0"


class HeaderFlags(IntFlag):
    """Section 3.1.2. A loader that doesn't know one of the first sixteen must refuse."""

    PAGE_ALIGN = 1 << 0
    MEMORY_INFO = 1 << 1
    VIDEO_MODE = 1 << 2
    AOUT_KLUDGE = 1 << 16


MUST_BE_KNOWN = 0xFFFF
ALL_FLAGS = sum(HeaderFlags)
KNOWN = HeaderFlags.PAGE_ALIGN | HeaderFlags.MEMORY_INFO | HeaderFlags.VIDEO_MODE


class InfoFlags(IntFlag):
    """Section 3.3: what of the information structure is valid."""

    MEMORY = 1 << 0
    CMDLINE = 1 << 2
    MODS = 1 << 3
    ELF_SHDR = 1 << 5
    MEM_MAP = 1 << 6
    BOOT_LOADER_NAME = 1 << 9


class Header(NamedTuple):
    """The header's fields; those behind ``checksum`` are zero without AOUT_KLUDGE. ``offset`` is
    where in the file it is."""

    offset: int
    flags: int
    header_addr: int = 0
    load_addr: int = 0
    load_end_addr: int = 0
    bss_end_addr: int = 0
    entry_addr: int = 0


class Placement(NamedTuple):
    """A piece of the file and where it goes: ``length`` bytes from ``offset`` on to ``address``,
    and zeros behind them up to ``size`` bytes."""

    offset: int
    length: int
    address: int
    size: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.size


class Plan(NamedTuple):
    """What of the file goes where, and the entry point; ``elf`` is the file if it was loaded by its
    segments."""

    pieces: list[Placement]
    entry: int
    elf: ElfImage | None = None


class Loaded(NamedTuple):
    """What is in memory besides the kernel: ``occupied`` is all of it (start, end)."""

    modules: list[modules.Module]
    sections: elf_sections.Sections | None
    stack_top: int
    occupied: list[tuple[int, int]]


_IN_USE = (
    ("the boot GDT", layout.BOOT_GDT, layout.BOOT_GDT + GDT_SIZE),
    ("the EBDA, video memory, ACPI or MP tables", layout.EBDA, layout.MP_TABLE_END),
)
"""Where a kernel must not go."""

_LOWEST_PAGE = PAGE_SIZE
"""Below are the places of the real mode's interrupt table and the BIOS's data, and our GDT."""

_STACK_SIZE = PAGE_SIZE

QEMU_SELECTORS = (0x08, 0x10)
"""Code and data. The specifications leave them open, but xv6 loads a GDT of its own in which they
must be these, and doesn't load CS."""

_MAGIC_AND_FLAGS = struct.Struct("<3I")
_ADDRESSES = struct.Struct("<5I")
_INFO = struct.Struct("<17I 48x")
"""flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms (4), mmap_length,
mmap_addr, drives (2), config_table, boot_loader_name; APM, VBE and frame buffer are all zero."""
_MODULE = struct.Struct("<4I")
_MAP_ENTRY = struct.Struct("<IQQI")


def find(image: Image) -> Header | None:
    """The Multiboot header of ``image``; None if it has none."""
    start = image.read(0, SEARCH)
    magic = HEADER_MAGIC.to_bytes(4, "little")
    offset = start.find(magic)
    while 0 <= offset <= len(start) - _MAGIC_AND_FLAGS.size:
        _, flags, checksum = _MAGIC_AND_FLAGS.unpack_from(start, offset)
        if offset % ALIGNMENT == 0 and (HEADER_MAGIC + flags + checksum) & 0xFFFF_FFFF == 0:
            addresses = offset + _MAGIC_AND_FLAGS.size
            if not flags & HeaderFlags.AOUT_KLUDGE:
                return Header(offset, flags)
            if addresses + _ADDRESSES.size <= len(start):
                return Header(offset, flags, *_ADDRESSES.unpack_from(start, addresses))
        offset = start.find(magic, offset + 1)
    return None


def load(
    image: Image,
    memory: GuestMemory,
    *,
    command_line: str = "",
    initrd: str | os.PathLike[str] | None = None,
    entry: str = "auto",
    rsdp: int = 0,
) -> EntryState:
    """Load the kernel and its modules, write the information structure, and enter it."""
    header = find(image)
    if header is None:
        raise ImageError(f"kernel {image.name} has no Multiboot header")
    unknown = header.flags & MUST_BE_KNOWN & ~KNOWN
    if unknown:
        raise ImageError(
            f"kernel {image.name} has a Multiboot header whose flags {unknown:#x} nobody knows"
        )
    kernel = plan(image, header)
    # The first word is the kernel's name, as it is with other loaders: kernels pass it over.
    words = f"{image.name} {command_line}".strip()
    line = command_lines.encode(words, command_lines.ROOM, f"kernel {image.name}")
    loaded = load_pieces(image, memory, kernel, initrd)
    size = len(_information(memory, 0, line, loaded))
    base = find_room(memory, size, loaded.occupied, layout.MULTIBOOT_INFO)
    memory.write(base, _information(memory, base, line, loaded))
    remark = no_screen(image) if header.flags & HeaderFlags.VIDEO_MODE else ""
    return entry_state(memory, kernel, loaded, rax=BOOTLOADER_MAGIC, rbx=base, remark=remark)


def plan(image: Image, header: Header) -> Plan:
    """What of the file goes where."""
    if header.flags & HeaderFlags.AOUT_KLUDGE:
        return Plan([plan_by_addresses(image, header)], header.entry_addr)
    return plan_elf(image)


def plan_elf(image: Image) -> Plan:
    """An ELF file's segments, and its entry point."""
    if not image.read(0, 4).startswith(ELF_MAGIC):
        raise ImageError(
            f"kernel {image.name} has a Multiboot header without addresses, but is no ELF file"
        )
    kernel = ElfImage(image)
    if kernel.entry >= IDENTITY_MAP_SIZE:
        raise ImageError(f"kernel {image.name} has its entry point {kernel.entry:#x} above 4 GiB")
    pieces = [Placement(p.p_offset, p.p_filesz, p.p_paddr, p.p_memsz) for p in kernel.segments]
    return Plan(pieces, kernel.entry, kernel)


def plan_by_addresses(image: Image, header: Header) -> Placement:
    """What the header's address fields say (section 3.1.3)."""
    offset = header.offset - (header.header_addr - header.load_addr)
    if header.load_addr > header.header_addr or offset < 0:
        raise _bad_addresses(image, "its beginning would lie before the file's")
    length = image.size - offset
    if header.load_end_addr:
        length = header.load_end_addr - header.load_addr
        if not 0 < length <= image.size - offset:
            raise _bad_addresses(image, f"{length} bytes of it are wanted, which it doesn't have")
    size = header.bss_end_addr - header.load_addr if header.bss_end_addr else length
    if size < length:
        raise _bad_addresses(image, "its bss would end before its text")
    if not header.load_addr <= header.entry_addr < header.load_addr + length:
        raise _bad_addresses(image, f"its entry point {header.entry_addr:#x} is not in it")
    return Placement(offset, length, header.load_addr, size)


def _bad_addresses(image: Image, problem: str) -> ImageError:
    return ImageError(f"kernel {image.name} has Multiboot addresses that don't fit: {problem}")


def load_pieces(
    image: Image, memory: GuestMemory, kernel: Plan, initrd: str | os.PathLike[str] | None
) -> Loaded:
    """Put the kernel where it wants to be, if all of that is free RAM, the modules behind it, and
    its symbols behind them."""
    for piece in kernel.pieces:
        check_fits(image, memory, piece.address, piece.end, _IN_USE)
    for piece in kernel.pieces:
        image.read_into(memory.view(piece.address, piece.length), piece.offset)
        memory.clear(piece.address + piece.length, piece.size - piece.length)
    occupied = [(piece.address, piece.end) for piece in kernel.pieces]
    found = modules.load(initrd, memory, occupied)
    occupied += [(module.start, module.end) for module in found]
    sections = None
    if kernel.elf is not None:
        start = _behind(occupied)
        sections = elf_sections.load(kernel.elf, memory, start)
        if sections is not None:
            occupied.append((start, sections.end))
    stack = find_room(memory, _STACK_SIZE, occupied, layout.BOOT_STACK_TOP & -PAGE_SIZE)
    occupied.append((stack, stack + _STACK_SIZE))
    return Loaded(found, sections, stack + layout.BOOT_STACK_TOP % PAGE_SIZE, occupied)


def find_room(
    memory: GuestMemory, size: int, occupied: list[tuple[int, int]], preferred: int
) -> int:
    """The beginning of a page from which ``size`` bytes are free: ``preferred``, or the first in
    low memory, or behind all that is occupied."""
    low: list[int] = [preferred, *range(_LOWEST_PAGE, layout.EBDA, PAGE_SIZE)]
    for start in low:
        end = start + size
        if end <= layout.EBDA and all(end <= first or last <= start for first, last in occupied):
            return start
    behind = align_up(_behind(occupied), PAGE_SIZE)
    if behind + size > memory.regions[0].end:
        raise ImageError(
            f"{size} bytes, which the kernel is to be told, fit neither below 640 KiB nor behind it"
        )
    return behind


def _behind(occupied: list[tuple[int, int]]) -> int:
    """The first address behind all that is occupied, and above 1 MiB."""
    return max(layout.HIGH_RAM, *(end for _, end in occupied))


def no_screen(image: Image) -> str:
    """What the user of a kernel that asks for a screen is told."""
    return f"kernel {image.name} asks for a video mode: there is no screen, and it is told of none"


def entry_state(
    memory: GuestMemory, kernel: Plan, loaded: Loaded, *, rax: int, rbx: int, remark: str
) -> EntryState:
    """The state at entry (section 3.2), which Multiboot 2 has in common: a magic number in EAX,
    and the address of the information in EBX."""
    state = EntryState.protected_mode(
        memory, kernel.entry, QEMU_SELECTORS, rax=rax, rbx=rbx, rsp=loaded.stack_top
    )
    # QEMU has the device for every kernel; test suites ask it for the number of CPUs.
    return state._replace(fw_cfg=True, remark=remark)


def lower_and_upper(entries: list[MapEntry]) -> tuple[int, int]:
    """The KiB of RAM from 0 on and from 1 MiB on, each up to the first hole."""
    return tuple(  # type: ignore[return-value]
        next((e.size // KIB for e in entries if e.start == start and e.type == 1), 0)
        for start in (0, layout.HIGH_RAM)
    )


def _information(memory: GuestMemory, base: int, line: bytes, loaded: Loaded) -> bytes:
    """The information structure for the address ``base``, and behind it what it points at."""
    entries = memory_map(memory)
    lower, upper = lower_and_upper(entries)
    flags = InfoFlags.MEMORY | InfoFlags.CMDLINE | InfoFlags.MODS
    flags |= InfoFlags.MEM_MAP | InfoFlags.BOOT_LOADER_NAME
    map_entries = b"".join(
        _MAP_ENTRY.pack(_MAP_ENTRY.size - 4, entry.start, entry.size, entry.type)
        for entry in entries
    )
    map_address = base + _INFO.size
    list_address = map_address + len(map_entries)
    headers_address = list_address + _MODULE.size * len(loaded.modules)
    symbols, headers = (0, 0, 0, 0), b""
    if loaded.sections is not None:
        flags |= InfoFlags.ELF_SHDR
        number, entry_size, names, headers, _ = loaded.sections
        symbols = number, entry_size, headers_address, names
    texts = BOOT_LOADER_NAME
    text_address = headers_address + len(headers)
    table = b""
    for module in loaded.modules:
        table += _MODULE.pack(module.start, module.end, text_address + len(texts), 0)
        texts += module.text + b"\0"
    info = _INFO.pack(
        *(flags, lower, upper, 0, text_address + len(texts), len(loaded.modules), list_address),
        *(*symbols, len(map_entries), map_address, 0, 0, 0, text_address),
    )
    return info + map_entries + table + headers + texts + line
