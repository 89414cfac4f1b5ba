"""Names of addresses in the guest's kernel, from its vmlinux (or any ELF file with a symbol table)
or its System.map.

ELF's symbol tables: System V ABI, chapter 4, "Sections" and "Symbol Table". System.map is what
``nm`` prints, an address, a letter and a name a line.

The addresses are those that the kernel was linked at. One that moves itself at boot, as Linux does
with KASLR, has to be told not to (``nokaslr``), or no address will be found, or the wrong one.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable

from pyvmm.errors import ImageError

ELF_MAGIC = b"\x7fELF"
_CLASS, _DATA = 4, 5
_CLASS64, _LITTLE_ENDIAN = 2, 1
_SHT_SYMTAB = 2
_STT_NOTYPE, _STT_FUNC = 0, 2
_SHN_UNDEF, _SHN_ABS = 0, 0xFFF1

# By ELF class: where e_shoff, e_shentsize and e_shnum are; Elf_Shdr; Elf_Sym.
_SECTIONS_AT = {1: ("<I", 32, 46), 2: ("<Q", 40, 58)}
_SECTION = {1: struct.Struct("<10I"), 2: struct.Struct("<2I4Q2I2Q")}
_SYMBOL = {1: struct.Struct("<3I2BH"), 2: struct.Struct("<I2BH2Q")}

CODE = frozenset("tTwW")
"""The letters of System.map that stand for functions."""

MAX_DISTANCE = 1 << 20
"""An address farther than this behind a symbol isn't in that function."""


class Symbols:
    """Functions by their addresses."""

    def __init__(self, found: Iterable[tuple[int, str]]) -> None:
        unique: dict[int, str] = {}
        for address, name in found:
            if address:
                unique.setdefault(address, name)
        self._addresses = sorted(unique)
        self._names = [unique[address] for address in self._addresses]

    def __len__(self) -> int:
        return len(self._addresses)

    def find(self, address: int) -> str:
        """``start_kernel+0x12``; empty if there is no function there."""
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return ""
        distance = address - self._addresses[index]
        if distance >= MAX_DISTANCE:
            return ""
        name = self._names[index]
        return f"{name}+{distance:#x}" if distance else name

    @classmethod
    def open(cls, path: str) -> Symbols:
        """From a file of either kind. ImageError if it is neither, or has no symbols."""
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise ImageError(f"--symbols: can't read {path}: {error.strerror}") from error
        try:
            found = _elf_symbols(data) if data.startswith(ELF_MAGIC) else _system_map(data)
            symbols = cls(found)
        except (struct.error, ValueError, IndexError):
            raise ImageError(
                f"--symbols: {path} is neither an x86 ELF file nor a System.map"
            ) from None
        if not len(symbols):
            raise ImageError(
                f"--symbols: {path} has no symbols of functions",
                "distributions have them in a package of their own, such as linux-image-…-dbg",
            )
        return symbols


def _system_map(data: bytes) -> Iterable[tuple[int, str]]:
    for line in data.decode("ascii").splitlines():
        address, letter, name, *_ = line.split()
        if letter in CODE:
            yield int(address, 16), name


def _elf_symbols(data: bytes) -> Iterable[tuple[int, str]]:
    elf_class = data[_CLASS]
    if elf_class not in _SECTION or data[_DATA] != _LITTLE_ENDIAN:
        raise ValueError(elf_class)
    form, offset_at, size_at = _SECTIONS_AT[elf_class]
    (offset,) = struct.unpack_from(form, data, offset_at)
    entry_size, number = struct.unpack_from("<2H", data, size_at)
    layout = _SECTION[elf_class]
    sections = [layout.unpack_from(data, offset + entry_size * index) for index in range(number)]
    for section in sections:
        if section[1] == _SHT_SYMTAB:
            start, size, strings = section[4], section[5], sections[section[6]]
            names = data[strings[4] : strings[4] + strings[5]]
            yield from _symbol_table(data[start : start + size], names, elf_class)


def _symbol_table(table: bytes, names: bytes, elf_class: int) -> Iterable[tuple[int, str]]:
    layout = _SYMBOL[elf_class]
    whole = len(table) // layout.size * layout.size
    for fields in layout.iter_unpack(table[:whole]):
        if elf_class == _CLASS64:
            name, info, _, section, address, _ = fields
        else:
            name, address, _, info, _, section = fields
        kind = info & 0xF
        if kind == _STT_FUNC or (kind == _STT_NOTYPE and _SHN_UNDEF < section < _SHN_ABS):
            end = names.find(b"\0", name)
            text = names[name:end].decode("ascii", "replace")
            if text and text.isprintable():
                yield address, text
