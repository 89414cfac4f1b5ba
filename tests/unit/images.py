"""Kernel images made to order: bzImages and ELF files with any field right or wrong."""

from __future__ import annotations

import struct

from pyvmm.boot.zero_page import LoadFlags, SetupHeader, XLoadFlags
from pyvmm.memory import MIB

VERSION = b"6.1.0-test (someone@example.org) #1 SMP"
SETUP_SECTS = 4
SETUP_SIZE = (SETUP_SECTS + 1) * 512
HEADER_OFFSET = 0x1F1

DEFAULT_HEADER = SetupHeader(
    setup_sects=SETUP_SECTS,
    jump=0x6AEB,
    version=0x20F,
    kernel_version=0x400,
    loadflags=LoadFlags.LOADED_HIGH,
    code32_start=0x10_0000,
    initrd_addr_max=0x7FFF_FFFF,
    kernel_alignment=0x20_0000,
    relocatable_kernel=1,
    min_alignment=21,
    xloadflags=XLoadFlags.XLF_KERNEL_64,
    cmdline_size=2047,
    pref_address=0x100_0000,
    init_size=8 * MIB,
)


def bzimage(kernel: bytes = b"\xf4" * 4096, **fields: int) -> bytes:
    """A bzImage with ``kernel`` as its protected-mode part; header fields by their names."""
    header = DEFAULT_HEADER._replace(**{"syssize": -(-len(kernel) // 16), **fields})
    setup = bytearray(SETUP_SIZE)
    packed = header.pack()
    setup[HEADER_OFFSET : HEADER_OFFSET + len(packed)] = packed
    setup[0x600 : 0x600 + len(VERSION)] = VERSION
    return bytes(setup) + kernel


PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4


class Segment:
    """A program header and what it has in the file."""

    def __init__(
        self,
        paddr: int,
        data: bytes = b"\xf4",
        *,
        memsz: int | None = None,
        vaddr: int | None = None,
        kind: int = PT_LOAD,
        filesz: int | None = None,
    ) -> None:
        self.paddr = paddr
        self.data = data
        self.filesz = len(data) if filesz is None else filesz
        self.memsz = self.filesz if memsz is None else memsz
        self.vaddr = paddr if vaddr is None else vaddr
        self.kind = kind


def note(name: bytes, kind: int, description: bytes) -> bytes:
    """One ELF note, padded."""
    name += b"\0"
    padded = [part + bytes(-len(part) % 4) for part in (name, description)]
    return struct.pack("<3I", len(name), len(description), kind) + b"".join(padded)


def pvh_note(entry: int) -> Segment:
    """The note that makes a kernel bootable by PVH."""
    return Segment(0, note(b"Xen", 18, struct.pack("<Q", entry)), kind=PT_NOTE)


def elf(
    *segments: Segment,
    entry: int | None = None,
    machine: int | None = None,
    elf_type: int = 2,
    bits: int = 64,
    data_encoding: int = 1,
) -> bytes:
    """An ELF file with these segments."""
    wide = bits == 64
    ehdr_size, phdr_size = (64, 56) if wide else (52, 32)
    if entry is None:
        entry = segments[0].paddr if segments else 0
    if machine is None:
        machine = 62 if wide else 3
    ident = b"\x7fELF" + bytes((2 if wide else 1, data_encoding, 1)) + bytes(9)
    phoff = ehdr_size if segments else 0
    header = struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH",
        elf_type, machine, 1, entry, phoff, 0, 0, ehdr_size, phdr_size, len(segments), 0, 0, 0,
    )  # fmt: skip
    table = b""
    offset = ehdr_size + phdr_size * len(segments)
    for s in segments:
        if wide:
            table += struct.pack(
                "<IIQQQQQQ", s.kind, 7, offset, s.vaddr, s.paddr, s.filesz, s.memsz, 4
            )
        else:
            table += struct.pack(
                "<IIIIIIII", s.kind, offset, s.vaddr, s.paddr, s.filesz, s.memsz, 7, 4
            )
        offset += len(s.data)
    return ident + header + table + b"".join(s.data for s in segments)


class Section:
    """A section header and what it has in the file."""

    def __init__(
        self,
        kind: int = 0,
        address: int = 0,
        data: bytes = b"",
        *,
        size: int | None = None,
        offset: int | None = None,
        alignment: int = 1,
    ) -> None:
        self.kind = kind
        self.address = address
        self.data = data
        self.size = len(data) if size is None else size
        self.offset = offset
        self.alignment = alignment


def add_sections(image: bytes, *sections: Section, **header: int) -> bytes:
    """An ELF file with these sections behind the rest, the last of which has the names; fields of
    its header by their names."""
    wide = image[4] == 2
    layout = struct.Struct("<2I4Q2I2Q" if wide else "<10I")
    table = texts = b""
    start = len(image) + layout.size * len(sections)
    for s in sections:
        offset = start + len(texts) if s.offset is None else s.offset
        table += layout.pack(0, s.kind, 0, s.address, offset, s.size, 0, 0, s.alignment, 0)
        texts += s.data
    numbers = {
        "e_shentsize": layout.size,
        "e_shnum": len(sections),
        "e_shstrndx": len(sections) - 1,
    }
    numbers |= {"e_shoff": len(image)} | header
    patched = bytearray(image)
    struct.pack_into("<Q" if wide else "<I", patched, 0x28 if wide else 0x20, numbers["e_shoff"])
    fields = (numbers[name] for name in ("e_shentsize", "e_shnum", "e_shstrndx"))
    struct.pack_into("<3H", patched, 0x3A if wide else 0x2E, *fields)
    return bytes(patched) + table + texts
