"""ELF kernels: vmlinux, PVH kernels, and guests of our own.

Documents: the System V ABI, "Object Files" (gabi), with the x86-64 and i386 supplements. The
program headers are parsed here in a page of code: importing pyelftools takes 30 ms, half of what
`pyvmm run` may need to reach the guest.

Segments are loaded at their physical addresses (p_paddr). How the kernel is entered:

* "pvh": 32-bit, at the address in its XEN_ELFNOTE_PHYS32_ENTRY note (:mod:`pyvmm.boot.pvh`);
  preferred where the note is there, as other VMMs do;
* "64": an ELF64 file at its entry point in long mode, RSI holding the zero page: what startup_64
  of Linux expects, and what a guest without Linux finds convenient. The stack pointer is valid;
* "32": an ELF32 file at its entry point in protected mode, likewise.

Left out: relocation, symbols. Multiboot kernels are ELF files as a rule, but have a way of their
own (:mod:`pyvmm.boot.multiboot`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from pyvmm import layout
from pyvmm.boot import command_line as command_lines
from pyvmm.boot import initrd as initrds
from pyvmm.boot import modules, pvh, zero_page
from pyvmm.boot.entry import (
    GDT_SIZE,
    IDENTITY_MAP_SIZE,
    PAGE_TABLES_SIZE,
    EntryState,
    entry_name,
)
from pyvmm.boot.image import Image
from pyvmm.boot.kind import ELF_MAGIC
from pyvmm.boot.memory_map import memory_map, memory_option
from pyvmm.errors import ImageError
from pyvmm.memory import MIB, MMIO_HOLE_END, MMIO_HOLE_START, PAGE_SIZE, GuestMemory, align_up

EI_CLASS = 4
EI_DATA = 5
ELFCLASS32 = 1
ELFCLASS64 = 2
ELFDATA2LSB = 1
ET_EXEC = 2
ET_DYN = 3
EM_386 = 3
EM_X86_64 = 62
_X86 = {EM_386: "i386", EM_X86_64: "x86-64"}
PT_LOAD = 1
PT_DYNAMIC = 2
PT_INTERP = 3
PT_NOTE = 4
NT_GNU_ABI_TAG = 1
"""Of notes named "GNU" (Linux Standard Base, "Note Sections"): programs for an OS have one."""

_TYPES = {
    1: "a relocatable object (.o, .ko), not linked into a kernel",
    4: "a core dump, not a kernel",
}
_MACHINES = {
    2: "SPARC", 4: "68000", 8: "MIPS", 15: "PA-RISC", 20: "PowerPC", 21: "64-bit PowerPC",
    22: "S/390", 40: "32-bit Arm", 42: "SuperH", 43: "64-bit SPARC", 50: "Itanium",
    183: "AArch64", 243: "RISC-V", 247: "BPF", 258: "LoongArch", 0x9026: "Alpha",
}  # fmt: skip

MAX_PROGRAM_HEADERS = 128
MAX_NOTES_SIZE = 1 * MIB
"""Of all together. Bounds on what is read into memory before it is known to be sensible."""

PLAUSIBLE_RAM_END = 1 << 40
"""Nobody has RAM up there, so there is no use in asking for it."""

STACK_SIZE = PAGE_SIZE - 16

LOW_MEMORY_IN_USE = (
    ("the boot GDT", layout.BOOT_GDT, layout.BOOT_GDT + GDT_SIZE),
    ("the PVH start info", layout.PVH_START_INFO, layout.PVH_START_INFO + pvh.START_INFO_SIZE),
    ("the zero page", layout.ZERO_PAGE, layout.ZERO_PAGE + PAGE_SIZE),
    ("the boot stack", layout.BOOT_STACK_TOP - STACK_SIZE, layout.BOOT_STACK_TOP),
    ("the boot page tables", layout.BOOT_PAGE_TABLES, layout.BOOT_PAGE_TABLES + PAGE_TABLES_SIZE),
    ("the EBDA, video memory, ACPI or MP tables", layout.EBDA, layout.MP_TABLE_END),
)
"""Where a segment below 1 MiB must not go, besides the command line."""

LINUX_KERNEL_ALIGNMENT = 0x100_0000
"""What a vmlinux, which has no setup header to say so, is aligned to."""


class _Header(NamedTuple):
    """Elf32_Ehdr or Elf64_Ehdr behind e_ident."""

    e_type: int
    e_machine: int
    e_version: int
    e_entry: int
    e_phoff: int
    e_shoff: int
    e_flags: int
    e_ehsize: int
    e_phentsize: int
    e_phnum: int
    e_shentsize: int
    e_shnum: int
    e_shstrndx: int


class ProgramHeader(NamedTuple):
    """Elf64_Phdr; Elf32_Phdr has the same fields in another order."""

    p_type: int
    p_flags: int
    p_offset: int
    p_vaddr: int
    p_paddr: int
    p_filesz: int
    p_memsz: int
    p_align: int

    @property
    def end(self) -> int:
        """The first physical address behind the segment."""
        return self.p_paddr + self.p_memsz


class Note(NamedTuple):
    name: bytes
    type: int
    description: bytes


_IDENT_SIZE = 16
_E_MACHINE = 18
_EHDR = {ELFCLASS32: struct.Struct("<2H5I6H"), ELFCLASS64: struct.Struct("<2HI3QI6H")}
_PHDR = {ELFCLASS32: struct.Struct("<8I"), ELFCLASS64: struct.Struct("<2I6Q")}
_NHDR = struct.Struct("<3I")


class ElfImage:
    """An ELF file for x86 whose headers are read and found consistent with the file."""

    def __init__(self, image: Image) -> None:
        self.image = image
        ident = image.read(0, _IDENT_SIZE)
        if len(ident) < _IDENT_SIZE or not ident.startswith(ELF_MAGIC):
            raise self._error("has no ELF header")
        self.elf_class = ident[EI_CLASS]
        if self.elf_class not in _EHDR:
            raise self._error(f"has the unknown ELF class {self.elf_class}")
        if ident[EI_DATA] != ELFDATA2LSB:
            machine = _machine(int.from_bytes(image.read(_E_MACHINE, 2), "big"))
            raise self._error(f"is a big-endian ELF for {machine}; PyVMM runs x86 kernels")
        self.header = self._read_header()
        self._program_headers = self._read_program_headers()
        self.segments = [p for p in self._program_headers if p.p_type == PT_LOAD and p.p_memsz]
        self._check_segments()
        self.notes = self._read_notes()
        self.entry = self._physical(self.header.e_entry)
        self.pvh_entry = self._find_pvh_entry()
        if self.pvh_entry is None:
            self._refuse_programs()

    def _error(self, problem: str, hint: str = "") -> ImageError:
        return ImageError(f"kernel {self.image.name} {problem}", hint)

    def _read_header(self) -> _Header:
        layout_ = _EHDR[self.elf_class]
        raw = self.image.read(_IDENT_SIZE, layout_.size)
        if len(raw) < layout_.size:
            raise self._truncated(_IDENT_SIZE + layout_.size)
        header = _Header._make(layout_.unpack(raw))
        if header.e_machine not in (EM_386, EM_X86_64):
            machine = _machine(header.e_machine)
            raise self._error(f"is an ELF for {machine}; PyVMM runs x86 kernels")
        if (header.e_machine == EM_X86_64) != (self.elf_class == ELFCLASS64):
            bits = 64 if self.elf_class == ELFCLASS64 else 32
            raise self._error(f"is an ELF{bits} for {_X86[header.e_machine]}; no kernel is that")
        if header.e_type not in (ET_EXEC, ET_DYN):
            raise self._error(f"is {_TYPES.get(header.e_type, f'ELF type {header.e_type}')}")
        return header

    def _read_program_headers(self) -> list[ProgramHeader]:
        layout_ = _PHDR[self.elf_class]
        offset, count = self.header.e_phoff, self.header.e_phnum
        if not count:
            raise self._error("has no program headers, so nothing to load")
        if self.header.e_phentsize != layout_.size or count > MAX_PROGRAM_HEADERS:
            raise self._error(
                f"has {count} program headers of {self.header.e_phentsize} bytes; expected up to "
                f"{MAX_PROGRAM_HEADERS} of {layout_.size}"
            )
        raw = self.image.read(offset, count * layout_.size)
        if len(raw) < count * layout_.size:
            raise self._truncated(offset + count * layout_.size)
        headers = []
        for fields in layout_.iter_unpack(raw):
            if self.elf_class == ELFCLASS32:
                p_type, *middle, p_flags, p_align = fields
                fields = (p_type, p_flags, *middle, p_align)
            headers.append(ProgramHeader._make(fields))
        return headers

    def _check_segments(self) -> None:
        if not self.segments:
            raise self._error("has no loadable segment")
        for p in self.segments:
            if p.p_filesz > p.p_memsz:
                raise self._error(
                    f"has a segment at {p.p_paddr:#x} with more bytes in the file ({p.p_filesz}) "
                    f"than in memory ({p.p_memsz})"
                )
            if p.p_offset + p.p_filesz > self.image.size:
                raise self._truncated(p.p_offset + p.p_filesz)
        by_address = sorted(self.segments, key=lambda p: p.p_paddr)
        for low, high in pairwise(by_address):
            if low.end > high.p_paddr:
                raise self._error(
                    f"has segments that overlap: {low.p_paddr:#x}-{low.end - 1:#x} and "
                    f"{high.p_paddr:#x}-{high.end - 1:#x}"
                )

    def _refuse_programs(self) -> None:
        """Refuse what is made for an operating system. (FreeBSD's kernel has PT_INTERP, too, with
        nonsense in it; it is known by its PVH note.)"""
        types = {p.p_type for p in self._program_headers}
        if PT_INTERP in types:
            raise self._error("is a program for an operating system (it has PT_INTERP)")
        if self.header.e_type == ET_DYN and PT_DYNAMIC in types and not self.header.e_entry:
            raise self._error("is a shared library, not a kernel")
        if any((note.name, note.type) == (b"GNU", NT_GNU_ABI_TAG) for note in self.notes):
            raise self._error("is a program for an operating system (it has a GNU ABI tag)")

    def _truncated(self, expected: int) -> ImageError:
        return self._error(f"is truncated: {self.image.size} of {expected} bytes")

    def _read_notes(self) -> list[Note]:
        notes: list[Note] = []
        segments = [p for p in self._program_headers if p.p_type == PT_NOTE]
        size = sum(p.p_filesz for p in segments)
        if size > MAX_NOTES_SIZE:
            raise self._error(f"has {size} bytes of notes; more than makes sense")
        for p in segments:
            raw = self.image.read(p.p_offset, p.p_filesz)
            if len(raw) < p.p_filesz:
                raise self._truncated(p.p_offset + p.p_filesz)
            notes += _parse_notes(raw, 8 if p.p_align == 8 else 4)
        return notes

    def _physical(self, address: int) -> int:
        """An entry point as a physical address. vmlinux's e_entry is one already; elsewhere it
        may be virtual, as the specification has it."""
        for p in self.segments:
            if p.p_paddr <= address < p.end:
                return address
        for p in self.segments:
            if p.p_vaddr <= address < p.p_vaddr + p.p_memsz:
                return p.p_paddr + address - p.p_vaddr
        raise self._error(f"has its entry point {address:#x} outside all of its segments")

    def _find_pvh_entry(self) -> int | None:
        for note in self.notes:
            if (note.name, note.type) == (pvh.NOTE_NAME, pvh.XEN_ELFNOTE_PHYS32_ENTRY):
                entry = int.from_bytes(note.description[:8], "little")
                if not any(p.p_paddr <= entry < p.end for p in self.segments):
                    raise self._error(f"has its PVH entry {entry:#x} outside all of its segments")
                return entry
        return None

    @property
    def is_linux(self) -> bool:
        """Whether its notes say that it is Linux."""
        return any(
            note.name == b"Linux"
            or (note.name == pvh.NOTE_NAME and note.type == pvh.XEN_ELFNOTE_GUEST_OS
                and note.description.startswith(b"linux"))
            for note in self.notes
        )  # fmt: skip

    @property
    def entry_points(self) -> dict[str, int]:
        """The entries and their physical addresses, best first."""
        entries = {} if self.pvh_entry is None else {"pvh": self.pvh_entry}
        entries["64" if self.elf_class == ELFCLASS64 else "32"] = self.entry
        return entries

    def choose_entry(self, requested: str) -> str:
        """The entry for ``requested``, which may be "auto"; an error if there is none or it
        can't be reached."""
        entries = self.entry_points
        entry = next(iter(entries)) if requested == "auto" else requested
        if entry not in entries:
            bits = 64 if self.elf_class == ELFCLASS64 else 32
            raise self._error(
                f"is an ELF{bits} without a {entry_name(entry)} entry",
                f"it has: {', '.join(entries)}",
            )
        if entries[entry] >= IDENTITY_MAP_SIZE:
            raise self._error(f"has its entry point {entries[entry]:#x} above 4 GiB")
        return entry

    def check_fits(self, memory: GuestMemory, command_line_size: int) -> None:
        """Raise an error unless every segment lies in RAM that boot leaves free."""
        line = layout.COMMAND_LINE, layout.COMMAND_LINE + command_line_size
        in_use = (*LOW_MEMORY_IN_USE, ("the command line", *line))
        for p in self.segments:
            check_fits(self.image, memory, p.p_paddr, p.end, in_use)


def _machine(number: int) -> str:
    return _MACHINES.get(number, f"machine {number}")


def check_fits(
    image: Image,
    memory: GuestMemory,
    start: int,
    end: int,
    in_use: Sequence[tuple[str, int, int]],
) -> None:
    """Raise an error unless a kernel's segment from ``start`` to ``end`` lies in RAM, and not on
    what is ``in_use`` (owner, start, end)."""
    where = f"kernel {image.name} has a segment at {start:#x}-{end - 1:#x}"
    if not memory.contains(start, end - start):
        hint = ""
        if end <= MMIO_HOLE_START:
            hint = memory_option(end)
        elif start >= MMIO_HOLE_END and end < PLAUSIBLE_RAM_END:
            hint = memory_option(end - MMIO_HOLE_END + MMIO_HOLE_START)
        size = memory.size // MIB
        raise ImageError(f"{where}, which is not all RAM in a machine with {size} MiB", hint)
    for owner, first, last in in_use:
        if start < last and first < end:
            raise ImageError(f"{where}, where {owner} ({first:#x}-{last - 1:#x}) must go")


def _parse_notes(raw: bytes, alignment: int) -> list[Note]:
    """The notes in a PT_NOTE segment, up to the first that isn't whole."""
    notes = []
    offset = 0
    while offset + _NHDR.size <= len(raw):
        name_size, description_size, kind = _NHDR.unpack_from(raw, offset)
        name_start = offset + _NHDR.size
        description_start = align_up(name_start + name_size, alignment)
        end = description_start + description_size
        if end > len(raw):
            break
        name = raw[name_start : name_start + name_size].rstrip(b"\0")
        notes.append(Note(name, kind, raw[description_start:end]))
        offset = align_up(end, alignment)
    return notes


def load(
    image: Image,
    memory: GuestMemory,
    *,
    command_line: str = "",
    initrd: str | os.PathLike[str] | None = None,
    entry: str = "auto",
    rsdp: int = 0,
) -> EntryState:
    """Load the segments, the command line and the initrd, and write what the entry needs."""
    kernel = ElfImage(image)
    entry = kernel.choose_entry(entry)
    limit = command_lines.LINUX_LIMIT if kernel.is_linux else command_lines.ROOM
    line = command_lines.encode(command_line, limit, f"kernel {image.name}")
    kernel.check_fits(memory, len(line))

    occupied = [(p.p_paddr, p.end) for p in kernel.segments]
    given = []
    ramdisk = initrds.Initrd()
    if entry == "pvh" and not kernel.is_linux:
        given = modules.load(initrd, memory, occupied)
    else:
        ramdisk = initrds.load(initrd, memory, MMIO_HOLE_START - 1, occupied)
        given = [modules.Module(*ramdisk, b"")] if ramdisk.size else []
    for p in kernel.segments:
        image.read_into(memory.view(p.p_paddr, p.p_filesz), p.p_offset)
        memory.clear(p.p_paddr + p.p_filesz, p.p_memsz - p.p_filesz)
    command_lines.write(memory, line)
    address = kernel.entry_points[entry]
    if entry == "pvh":
        pvh.write_start_info(memory, memory_map(memory), given, rsdp)
        return pvh.entry_state(memory, address)
    header = zero_page.SetupHeader(
        loadflags=zero_page.LoadFlags.LOADED_HIGH,
        kernel_alignment=LINUX_KERNEL_ALIGNMENT,
        cmdline_size=limit,
    )
    zero_page.write(memory, zero_page.complete(header, ramdisk), memory_map(memory), rsdp)
    mode = EntryState.long_mode if entry == "64" else EntryState.protected_mode
    return mode(memory, address, rsi=layout.ZERO_PAGE, rsp=layout.BOOT_STACK_TOP)
