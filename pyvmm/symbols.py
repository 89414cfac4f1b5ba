"""The names of a guest's addresses: from an ELF file's symbol table, or from a System.map.

Document: the System V ABI, "Symbol Table" and "Sections". Only what has a place in memory counts:
functions, objects and the labels of assembly, not files, sections or what is undefined. Left out:
dynamic symbols, DWARF (so no lines of source), C++ names, modules.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from typing import NamedTuple

from pyvmm.boot.image import ImageFile
from pyvmm.boot.kind import ELF_MAGIC
from pyvmm.errors import ImageError

ELFCLASS64 = 2
SHT_SYMTAB, SHT_STRTAB = 2, 3
SHN_UNDEF, SHN_LORESERVE = 0, 0xFF00
STB_LOCAL = 0
STT_NOTYPE, STT_OBJECT, STT_FUNC = 0, 1, 2

MAX_FILE_TABLE = 256 << 20
"""More than the symbols of any kernel take."""

MAX_MAP_LINES = 4_000_000

PADDING = 16
"""How far behind a function's end an address still belongs to it: the gap up to the next one."""

UNSIZED = 0x1000
"""How far a label without a size and without a successor reaches."""


class Symbol(NamedTuple):
    """A name's place; ``size`` is 0 if nobody knows."""

    address: int
    size: int
    name: str


class _Section(NamedTuple):
    type: int
    offset: int
    size: int
    link: int
    entry_size: int


class Symbols:
    """Finds the symbol of an address, and the address of a symbol."""

    def __init__(self, symbols: list[Symbol]) -> None:
        """Of several symbols at one address the first is the one that is shown."""
        self._by_name = {symbol.name: symbol.address for symbol in reversed(symbols)}
        by_address: dict[int, Symbol] = {}
        for symbol in symbols:
            by_address.setdefault(symbol.address, symbol)
        self._symbols = sorted(by_address.values())
        self._addresses = [symbol.address for symbol in self._symbols]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Symbols:
        """From an ELF file or a System.map; ImageError if it is neither or has no symbols."""
        file = ImageFile(path, role="symbol file")
        try:
            is_elf = file.read(0, len(ELF_MAGIC)) == ELF_MAGIC
            symbols = _elf_symbols(file) if is_elf else _map_symbols(file)
        finally:
            file.close()
        if not symbols:
            raise ImageError(f"symbol file {file.name} has no symbols", "was it stripped?")
        return cls(symbols)

    @classmethod
    def of_kernel(cls, path: str | os.PathLike[str] | None) -> Symbols:
        """Those that a kernel's own file has: none if it isn't ELF, or was stripped, or if there
        is no kernel because a BIOS or a flat binary starts."""
        if path is None:
            return cls([])
        try:
            with ImageFile(path) as image:
                if image.read(0, len(ELF_MAGIC)) == ELF_MAGIC:
                    return cls.load(path)
        except ImageError:
            pass  # whoever boots from it says better what is wrong with it
        return cls([])

    def __len__(self) -> int:
        return len(self._symbols)

    def find(self, address: int) -> Symbol | None:
        """The symbol that ``address`` belongs to."""
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return None
        symbol = self._symbols[index]
        is_last = index + 1 == len(self._symbols)
        limit = symbol.size + PADDING if symbol.size else UNSIZED if is_last else 1 << 64
        return symbol if address - symbol.address < limit else None

    def name(self, address: int) -> str:
        """``address`` as ``symbol+0x12``, or ``symbol``; empty if it belongs to none."""
        symbol = self.find(address)
        if symbol is None:
            return ""
        offset = address - symbol.address
        return f"{symbol.name}+{offset:#x}" if offset else symbol.name

    def address(self, name: str) -> int | None:
        """Where the symbol ``name`` is; None if there is none of that name."""
        return self._by_name.get(name)


def _elf_symbols(file: ImageFile) -> list[Symbol]:
    """The symbols of an ELF file's symbol tables: functions first, global ones before local."""
    is_64 = file.read(4, 1) == bytes([ELFCLASS64])
    found: list[tuple[int, Symbol]] = []
    sections = _elf_sections(file, is_64)
    entry = struct.Struct("<IBBHQQ" if is_64 else "<IIIBBH")
    for section in sections:
        if section.type != SHT_SYMTAB or section.entry_size != entry.size:
            continue
        if section.link >= len(sections) or sections[section.link].type != SHT_STRTAB:
            continue
        names = _read(file, sections[section.link])
        table = _read(file, section)
        whole = len(table) - len(table) % entry.size
        for fields in entry.iter_unpack(memoryview(table)[:whole]):
            if is_64:
                name_at, info, _, index, address, size = fields
            else:
                name_at, address, size, info, _, index = fields
            kind, binding = info & 15, info >> 4
            if kind > STT_FUNC or index == SHN_UNDEF or index >= SHN_LORESERVE:
                continue
            end = names.find(b"\0", name_at)
            if name_at == 0 or end <= name_at:
                continue
            name = names[name_at:end].decode("utf-8", "replace")
            rank = (STT_FUNC, STT_OBJECT, STT_NOTYPE).index(kind) * 2 + (binding == STB_LOCAL)
            found.append((rank, Symbol(address, size, name)))
    return [symbol for _, symbol in sorted(found)]


def _elf_sections(file: ImageFile, is_64: bool) -> list[_Section]:
    header = file.read(0, 64)
    place = struct.Struct("<Q10xHH") if is_64 else struct.Struct("<I10xHH")
    at = 40 if is_64 else 32
    if len(header) < at + place.size:
        return []
    offset, entry_size, count = place.unpack_from(header, at)
    layout = struct.Struct("<IIQQQQIIQQ" if is_64 else "<10I")
    if entry_size != layout.size:
        return []
    raw = file.read(offset, count * entry_size)
    raw = raw[: len(raw) - len(raw) % entry_size]
    sections = []
    for _, kind, _, _, at, size, link, _, _, each in layout.iter_unpack(raw):
        sections.append(_Section(kind, at, size, link, each))
    return sections


def _read(file: ImageFile, section: _Section) -> bytes:
    return file.read(section.offset, min(section.size, MAX_FILE_TABLE))


def _map_symbols(file: ImageFile) -> list[Symbol]:
    """The lines ``ffffffff81000000 T _text`` of a System.map or of nm(1)."""
    symbols = []
    lines = file.read(0, min(file.size, MAX_FILE_TABLE)).splitlines()
    for line in lines[:MAX_MAP_LINES]:
        words = line.split()
        if len(words) < 3 or len(words[1]) != 1 or words[1] in b"aUw":
            continue
        try:
            address = int(words[0], 16)
        except ValueError:
            raise ImageError(
                f"symbol file {file.name} is neither an ELF file nor a System.map"
            ) from None
        symbols.append(Symbol(address, 0, words[2].decode("utf-8", "replace")))
    return symbols
