"""An ELF kernel's section headers, which a Multiboot loader hands to the kernel: by them it finds
its own symbols and debug information.

Documents: the System V ABI, "Object Files" (gabi), chapter "Sections"; Multiboot Specification
0.6.96, section 3.3, ``syms``; Multiboot2 Specification 2.0, section 3.6.7.

A section that is part of the program has its address already. The others, such as symbol tables,
are loaded, too, and get one. A kernel boots without them: what is damaged or does not fit is
left out, without an error.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pyvmm.boot.elf import ELFCLASS64, ElfImage
from pyvmm.memory import PAGE_SIZE, GuestMemory, align_up

SHT_NULL = 0
SHT_NOBITS = 8

MAX_SECTIONS = 4096
"""More than a linked kernel has."""

_SHDR_32 = struct.Struct("<10I")
_SHDR_64 = struct.Struct("<2I4Q2I2Q")
"""sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_addralign,
sh_entsize"""


class Sections(NamedTuple):
    """The table: ``number`` headers of ``entry_size`` bytes in ``headers``. The section number
    ``names`` has their names; ``end`` is the first address behind all that was loaded."""

    number: int
    entry_size: int
    names: int
    headers: bytes
    end: int


def load(kernel: ElfImage, memory: GuestMemory, start: int) -> Sections | None:
    """Load what is not part of the program into RAM from ``start`` on; the headers with the
    addresses. None if the file has no such table, or a damaged one."""
    header = kernel.header
    layout = _SHDR_64 if kernel.elf_class == ELFCLASS64 else _SHDR_32
    count = header.e_shnum
    if header.e_shentsize != layout.size or not 0 < count <= MAX_SECTIONS:
        return None
    table = kernel.image.read(header.e_shoff, count * layout.size)
    if len(table) < count * layout.size:
        return None
    headers = []
    for fields in layout.iter_unpack(table):
        name, kind, flags, address, offset, size, *rest = fields
        inside = 0 < size <= kernel.image.size - offset
        if not address and inside and kind not in (SHT_NULL, SHT_NOBITS):
            place = align_up(start, _alignment(rest[2]))
            if place + size <= memory.regions[0].end:
                kernel.image.read_into(memory.view(place, size), offset)
                address, start = place, place + size
        headers.append(layout.pack(name, kind, flags, address, offset, size, *rest))
    return Sections(count, layout.size, header.e_shstrndx, b"".join(headers), start)


def _alignment(wanted: int) -> int:
    """sh_addralign, if it makes sense."""
    return wanted if wanted in (1, 2, 4, 8, 16, 32, 64, PAGE_SIZE) else 16
