"""Multiboot 2: the boot protocol of GRUB 2.

Document: Multiboot2 Specification, version 2.0. The header, in the first 32 KiB of the file, is a
list of tags (section 3.1); the kernel is entered in flat 32-bit protected mode without paging, EAX
holding a magic number and EBX the address of the boot information, another list of tags (sections
3.3 and 3.6). An ELF64 file is entered in the same way.

Left out: EFI, network and video information, which this machine doesn't have, ELF symbols, and
relocation: a kernel that can be loaded anywhere is loaded where it was linked for. A header tag
that asks for something which isn't there, and isn't marked optional, is an error, as the
specification wants it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from pyvmm import layout
from pyvmm.boot import command_line as command_lines
from pyvmm.boot import modules
from pyvmm.boot.entry import EntryState
from pyvmm.boot.image import Image
from pyvmm.boot.memory_map import memory_map
from pyvmm.boot.multiboot import (
    BOOT_LOADER_NAME,
    Placement,
    entry_state,
    lower_and_upper,
    place,
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
    """Section 3.1.4 and on. Some need nothing done: modules are aligned to pages anyway, EFI's tags
    are for a machine with EFI, and where a relocatable kernel was linked for is a place for it,
    too."""

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
    ACPI_OLD = 14
    ACPI_NEW = 15
    LOAD_BASE_ADDR = 21


CONSOLE_REQUIRED = 1 << 0
"""In CONSOLE_FLAGS: there has to be a console that the information describes."""

_HEADER = struct.Struct("<4I")
_TAG = struct.Struct("<HHI")
_ADDRESSES = struct.Struct("<4I")
_INFO_TAG = struct.Struct("<II")
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
    pieces, address = plan(image, header)
    line = command_lines.encode(command_line, command_lines.ROOM, f"kernel {image.name}")
    place(image, memory, pieces, len(line))
    found = modules.load(initrd, memory, [(piece.address, piece.end) for piece in pieces])
    base = min(piece.address for piece in pieces)
    blob = b"".join(_information(memory, line, found, rsdp, base))
    blob = _INFO_TAG.pack(len(blob) + _INFO_TAG.size, 0) + blob
    if len(blob) > layout.MULTIBOOT_INFO_SIZE:
        raise ImageError(f"the command line and the texts of {len(found)} modules are too long")
    memory.write(layout.MULTIBOOT_INFO, blob)
    return entry_state(memory, address, BOOTLOADER_MAGIC)


def refuse_what_is_not_there(image: Image, header: Header) -> None:
    """ImageError if the kernel can't do without something that this machine doesn't have."""
    if header.architecture != ARCHITECTURE_I386:
        raise _cannot(image, f"is for architecture {header.architecture}, not x86")
    if HeaderTag.FRAMEBUFFER in header.required:
        raise _cannot(image, "wants a frame buffer, and this machine has no screen")
    unknown = header.required - set(HeaderTag)
    if unknown:
        raise _cannot(image, f"has a tag of type {min(unknown)}, which nobody knows")
    if HeaderTag.CONSOLE_FLAGS in header.required:
        flags = header.tags[HeaderTag.CONSOLE_FLAGS]
        if flags and flags[0] & CONSOLE_REQUIRED:
            raise _cannot(image, "wants a screen, and this machine has none")
    if HeaderTag.INFORMATION_REQUEST in header.required:
        request = header.tags[HeaderTag.INFORMATION_REQUEST]
        wanted = {kind for (kind,) in struct.iter_unpack("<I", request[: len(request) & -4])}
        missing = wanted - set(InfoTag)
        if missing:
            raise _cannot(image, f"wants information of type {min(missing)}, which there isn't")


def _cannot(image: Image, problem: str) -> ImageError:
    return ImageError(f"kernel {image.name} has a Multiboot 2 header that {problem}")


def plan(image: Image, header: Header) -> tuple[list[Placement], int]:
    """What of the file goes where, and the entry point."""
    entry_tag = header.tags.get(HeaderTag.ENTRY_ADDRESS, b"")
    entry = int.from_bytes(entry_tag[:4], "little") if len(entry_tag) >= 4 else None
    addresses = header.tags.get(HeaderTag.ADDRESS)
    if addresses is not None:
        if len(addresses) < _ADDRESSES.size or entry is None:
            raise _cannot(image, "has addresses without an entry point")
        fields = _ADDRESSES.unpack_from(addresses)
        by_header = Addresses._make((header.offset, 0, *fields, entry))
        return [plan_by_addresses(image, by_header)], entry
    pieces, elf_entry = plan_elf(image)
    if entry is None:
        return pieces, elf_entry
    if not any(piece.address <= entry < piece.end for piece in pieces):
        raise _cannot(image, f"has its entry point {entry:#x} outside all segments")
    return pieces, entry


def _information(
    memory: GuestMemory, line: bytes, found: list[modules.Module], rsdp: int, base: int
) -> Iterator[bytes]:
    """The boot information's tags, each padded."""
    entries = memory_map(memory)
    yield _tag(InfoTag.CMDLINE, line)
    yield _tag(InfoTag.BOOT_LOADER_NAME, BOOT_LOADER_NAME)
    for module in found:
        text = struct.pack("<II", module.start, module.end) + module.text + b"\0"
        yield _tag(InfoTag.MODULE, text)
    yield _tag(InfoTag.BASIC_MEMINFO, struct.pack("<II", *lower_and_upper(entries)))
    table = b"".join(_MAP_ENTRY.pack(e.start, e.size, e.type, 0) for e in entries)
    yield _tag(InfoTag.MMAP, struct.pack("<II", _MAP_ENTRY.size, 0) + table)
    for kind, size in ((InfoTag.ACPI_OLD, _OLD_RSDP_SIZE), (InfoTag.ACPI_NEW, _NEW_RSDP_SIZE)):
        try:
            if rsdp:
                yield _tag(kind, memory.read(rsdp, size))
        except GuestMemoryError:
            pass  # no RAM where the tables lie: a very small machine
    yield _tag(InfoTag.LOAD_BASE_ADDR, struct.pack("<I", base))
    yield _tag(InfoTag.END, b"")


def _tag(kind: InfoTag, body: bytes) -> bytes:
    raw = _INFO_TAG.pack(kind, _INFO_TAG.size + len(body)) + body
    return raw + bytes(-len(raw) % ALIGNMENT)
