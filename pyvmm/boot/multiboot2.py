"""Multiboot 2: the boot protocol of GRUB 2.

Document: Multiboot2 Specification, version 2.0. The header, in the first 32 KiB of the file, is a
list of tags (section 3.1); the kernel is entered in flat 32-bit protected mode without paging, EAX
holding a magic number and EBX the address of the boot information, another list of tags (sections
3.3 and 3.6). An ELF64 file is entered in the same way.

A kernel that can be loaded anywhere (RELOCATABLE) is loaded where it was linked for, if that is
RAM and it doesn't ask for the lowest address.

Left out: EFI, network, APM and video information, which this machine doesn't have. A header tag
that nobody knows, and isn't marked optional, is an error, as the specification wants it; so is a
request for information of a type that it doesn't have. Known information that there is none of is
not given: the specification has the example of a machine without a screen. For the same reason a
kernel that asks for a frame buffer or a console is started, with a line to the user.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from pyvmm import layout
from pyvmm.boot import command_line as command_lines
from pyvmm.boot.entry import EntryState
from pyvmm.boot.image import Image
from pyvmm.boot.memory_map import memory_map
from pyvmm.boot.multiboot import (
    BOOT_LOADER_NAME,
    Loaded,
    Plan,
    entry_state,
    find_room,
    load_pieces,
    lower_and_upper,
    no_screen,
    plan_by_addresses,
    plan_elf,
)
from pyvmm.boot.multiboot import Header as Addresses
from pyvmm.errors import GuestMemoryError, ImageError
from pyvmm.memory import KIB, GuestMemory, align_up

HEADER_MAGIC = 0xE85250D6
BOOTLOADER_MAGIC = 0x36D76289
SEARCH = 32 * KIB
ALIGNMENT = 8
ARCHITECTURE_I386 = 0

OPTIONAL = 1 << 0
"""In a header tag's flags: the loader may ignore it."""


class HeaderTag(IntEnum):
    """Section 3.1.4 and on. Some need nothing done: modules are aligned to pages anyway, and EFI's
    tags are for a machine with EFI."""

    END = 0
    INFORMATION_REQUEST = 1
    ADDRESS = 2
    ENTRY_ADDRESS = 3
    CONSOLE_FLAGS = 4
    FRAMEBUFFER = 5
    MODULE_ALIGN = 6
    EFI_BS = 7
    ENTRY_ADDRESS_EFI32 = 8
    ENTRY_ADDRESS_EFI64 = 9
    RELOCATABLE = 10


class InfoTag(IntEnum):
    """Section 3.6: what the boot information can have, as far as it does here."""

    END = 0
    CMDLINE = 1
    BOOT_LOADER_NAME = 2
    MODULE = 3
    BASIC_MEMINFO = 4
    MMAP = 6
    ELF_SECTIONS = 9
    ACPI_OLD = 14
    ACPI_NEW = 15
    LOAD_BASE_ADDR = 21


LAST_INFO_TAG = InfoTag.LOAD_BASE_ADDR
"""The types up to this one are the specification's."""


class Preference(IntEnum):
    """In RELOCATABLE: where the kernel would like to be."""

    NONE = 0
    LOWEST = 1
    HIGHEST = 2


CONSOLE_REQUIRED = 1 << 0
"""In CONSOLE_FLAGS: there has to be a console that the information describes."""

_HEADER = struct.Struct("<4I")
_TAG = struct.Struct("<HHI")
_ADDRESSES = struct.Struct("<4I")
_RELOCATABLE = struct.Struct("<4I")
"""min_addr, max_addr, align, preference"""
_INFO_TAG = struct.Struct("<II")
_ELF_SECTIONS = struct.Struct("<3I")
"""num, entsize, shndx, as in the specification's multiboot2.h, and then the headers; its text draws
them half as wide, which no loader has followed."""
_MAP_ENTRY = struct.Struct("<QQII")
_OLD_RSDP_SIZE, _NEW_RSDP_SIZE = 20, 36


class Header(NamedTuple):
    """The header: where it is in the file, and its tags' bodies by type. ``required`` are those
    that are not optional."""

    offset: int
    architecture: int
    tags: dict[int, bytes]
    required: frozenset[int]


def find(image: Image) -> Header | None:
    """The Multiboot 2 header of ``image``; None if it has none."""
    start = image.read(0, SEARCH)
    magic = HEADER_MAGIC.to_bytes(4, "little")
    offset = start.find(magic)
    while 0 <= offset <= len(start) - _HEADER.size:
        _, architecture, length, checksum = _HEADER.unpack_from(start, offset)
        total = HEADER_MAGIC + architecture + length + checksum
        if offset % ALIGNMENT == 0 and total & 0xFFFF_FFFF == 0:
            body = start[offset + _HEADER.size : offset + length]
            tags = list(_tags(body))
            return Header(
                offset,
                architecture,
                {kind: text for kind, _, text in tags},
                frozenset(kind for kind, flags, _ in tags if not flags & OPTIONAL),
            )
        offset = start.find(magic, offset + 1)
    return None


def tag_name(kind: int) -> str:
    """A header tag's name in words."""
    known = kind in set(HeaderTag)
    return HeaderTag(kind).name.lower().replace("_", " ") if known else f"type {kind}"


def _tags(body: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, body) of each header tag, up to the end tag or the first that isn't whole."""
    offset = 0
    while offset + _TAG.size <= len(body):
        kind, flags, size = _TAG.unpack_from(body, offset)
        if kind == HeaderTag.END or size < _TAG.size or offset + size > len(body):
            return
        yield kind, flags, body[offset + _TAG.size : offset + size]
        offset = align_up(offset + size, ALIGNMENT)


def load(
    image: Image,
    memory: GuestMemory,
    *,
    command_line: str = "",
    initrd: str | os.PathLike[str] | None = None,
    entry: str = "auto",
    rsdp: int = 0,
) -> EntryState:
    """Load the kernel and its modules, write the boot information, and enter it."""
    header = find(image)
    if header is None:
        raise ImageError(f"kernel {image.name} has no Multiboot 2 header")
    refuse_what_is_not_there(image, header)
    kernel = plan(image, header)
    relocatable = header.tags.get(HeaderTag.RELOCATABLE)
    if relocatable is not None:
        kernel = _relocated(memory, kernel, relocatable)
    line = command_lines.encode(command_line, command_lines.ROOM, f"kernel {image.name}")
    loaded = load_pieces(image, memory, kernel, initrd)
    tags = [*_information(memory, line, loaded, rsdp)]
    if relocatable is not None:
        base = min(piece.address for piece in kernel.pieces)
        tags.append(_tag(InfoTag.LOAD_BASE_ADDR, struct.pack("<I", base)))
    blob = b"".join((*tags, _tag(InfoTag.END, b"")))
    blob = _INFO_TAG.pack(len(blob) + _INFO_TAG.size, 0) + blob
    address = find_room(memory, len(blob), loaded.occupied, layout.MULTIBOOT_INFO)
    memory.write(address, blob)
    remark = no_screen(image) if asks_for_screen(header) else ""
    return entry_state(memory, kernel, loaded, rax=BOOTLOADER_MAGIC, rbx=address, remark=remark)


def refuse_what_is_not_there(image: Image, header: Header) -> None:
    """ImageError if the kernel can't do without something that this machine doesn't have."""
    if header.architecture != ARCHITECTURE_I386:
        raise _cannot(image, f"is for architecture {header.architecture}, not x86")
    unknown = header.required - set(HeaderTag)
    if unknown:
        raise _cannot(image, f"has a tag of type {min(unknown)}, which nobody knows")
    if HeaderTag.INFORMATION_REQUEST in header.required:
        request = header.tags[HeaderTag.INFORMATION_REQUEST]
        wanted = {kind for (kind,) in struct.iter_unpack("<I", request[: len(request) & -4])}
        beyond = {kind for kind in wanted if kind > LAST_INFO_TAG}
        if beyond:
            raise _cannot(image, f"wants information of type {min(beyond)}, which nobody knows")


def asks_for_screen(header: Header) -> bool:
    """Whether it says that it can't do without one."""
    if HeaderTag.FRAMEBUFFER in header.required:
        return True
    flags = header.tags.get(HeaderTag.CONSOLE_FLAGS, b"")[:1]
    required = HeaderTag.CONSOLE_FLAGS in header.required
    return required and bool(flags) and bool(flags[0] & CONSOLE_REQUIRED)


def _cannot(image: Image, problem: str) -> ImageError:
    return ImageError(f"kernel {image.name} has a Multiboot 2 header that {problem}")


def plan(image: Image, header: Header) -> Plan:
    """What of the file goes where."""
    entry_tag = header.tags.get(HeaderTag.ENTRY_ADDRESS, b"")
    entry = int.from_bytes(entry_tag[:4], "little") if len(entry_tag) >= 4 else None
    addresses = header.tags.get(HeaderTag.ADDRESS)
    if addresses is not None:
        if len(addresses) < _ADDRESSES.size or entry is None:
            raise _cannot(image, "has addresses without an entry point")
        fields = _ADDRESSES.unpack_from(addresses)
        by_header = Addresses._make((header.offset, 0, *fields, entry))
        return Plan([plan_by_addresses(image, by_header)], entry)
    kernel = plan_elf(image)
    if entry is None:
        return kernel
    if not any(piece.address <= entry < piece.end for piece in kernel.pieces):
        raise _cannot(image, f"has its entry point {entry:#x} outside all segments")
    return kernel._replace(entry=entry)


def _relocated(memory: GuestMemory, kernel: Plan, tag: bytes) -> Plan:
    """The plan with the addresses that the kernel is loaded at by its tag RELOCATABLE; those that
    it was linked for, if there is no room where the tag wants it."""
    if len(tag) < _RELOCATABLE.size:
        return kernel
    low, high, alignment, preference = _RELOCATABLE.unpack_from(tag)
    alignment = max(alignment, 1)
    linked = min(piece.address for piece in kernel.pieces)
    size = max(piece.end for piece in kernel.pieces) - linked
    lowest = -(-max(low, layout.HIGH_RAM) // alignment) * alignment
    places = (lowest, linked) if preference == Preference.LOWEST else (linked, lowest)
    for base in places:
        in_ram = base >= layout.HIGH_RAM and memory.contains(base, size)
        if in_ram and low <= base <= high + 1 - size and base % alignment == 0:
            pieces = [p._replace(address=p.address - linked + base) for p in kernel.pieces]
            return kernel._replace(pieces=pieces, entry=kernel.entry - linked + base)
    return kernel


def _information(memory: GuestMemory, line: bytes, loaded: Loaded, rsdp: int) -> Iterator[bytes]:
    """The boot information's tags, each padded, up to those that a kernel may not have."""
    entries = memory_map(memory)
    yield _tag(InfoTag.CMDLINE, line)
    yield _tag(InfoTag.BOOT_LOADER_NAME, BOOT_LOADER_NAME)
    for module in loaded.modules:
        text = struct.pack("<II", module.start, module.end) + module.text + b"\0"
        yield _tag(InfoTag.MODULE, text)
    yield _tag(InfoTag.BASIC_MEMINFO, struct.pack("<II", *lower_and_upper(entries)))
    table = b"".join(_MAP_ENTRY.pack(e.start, e.size, e.type, 0) for e in entries)
    yield _tag(InfoTag.MMAP, struct.pack("<II", _MAP_ENTRY.size, 0) + table)
    if loaded.sections is not None:
        number, entry_size, names, headers, _ = loaded.sections
        yield _tag(InfoTag.ELF_SECTIONS, _ELF_SECTIONS.pack(number, entry_size, names) + headers)
    for kind, size in ((InfoTag.ACPI_OLD, _OLD_RSDP_SIZE), (InfoTag.ACPI_NEW, _NEW_RSDP_SIZE)):
        try:
            if rsdp:
                yield _tag(kind, memory.read(rsdp, size))
        except GuestMemoryError:
            pass  # no RAM where the tables lie: a very small machine


def _tag(kind: InfoTag, body: bytes) -> bytes:
    raw = _INFO_TAG.pack(kind, _INFO_TAG.size + len(body)) + body
    return raw + bytes(-len(raw) % ALIGNMENT)
