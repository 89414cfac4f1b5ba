"""How it looks: lines of 80 columns, with colours on a terminal that wants them.

What changed is marked without colours, too. What comes from the guest is shown without its control
characters: they would be the guest's to use on the user's terminal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TextIO

from pyvmm.step.accesses import PORT, Access
from pyvmm.step.cpu_state import SEGMENTS, CpuState, flag_names
from pyvmm.step.disassembly import Instruction
from pyvmm.step.stop import MemoryWrite
from pyvmm.symbols import Symbols

WIDTH = 80
INDENT = " " * 6

CODE_BYTES = 8
"""How many bytes of an instruction are shown; most have fewer."""

BOLD, DIM, YELLOW, CYAN, RESET = "\33[1m", "\33[2m", "\33[33m", "\33[36m", "\33[0m"

CONTROL_FLAGS = {
    "cr0": {0: "PE", 1: "MP", 2: "EM", 3: "TS", 4: "ET", 5: "NE", 16: "WP", 18: "AM", 29: "NW",
            30: "CD", 31: "PG"},
    "cr4": {0: "VME", 1: "PVI", 2: "TSD", 3: "DE", 4: "PSE", 5: "PAE", 6: "MCE", 7: "PGE",
            8: "PCE", 9: "OSFXSR", 10: "OSXMMEXCPT", 11: "UMIP", 12: "LA57", 16: "FSGSBASE",
            17: "PCIDE", 18: "OSXSAVE", 20: "SMEP", 21: "SMAP", 22: "PKE"},
    "efer": {0: "SCE", 8: "LME", 10: "LMA", 11: "NXE", 12: "SVME"},
}  # fmt: skip
"""SDM volume 3, sections 2.2.1 and 2.5; AMD APM volume 2, section 3.1.7."""

NAMES_32 = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "rflags")


def wants_colour(stream: TextIO) -> bool:
    """A terminal, and nobody said otherwise (no-color.org)."""
    dumb = os.environ.get("TERM", "") in ("", "dumb")
    return stream.isatty() and not dumb and not os.environ.get("NO_COLOR")


def plain(data: bytes) -> str:
    """A guest's bytes as text that moves no cursor."""
    text = data.decode("utf-8", "replace").replace("\t", "    ")
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)


class Screen:
    """Makes lines of what the stepper says. ``colour`` says whether they are coloured."""

    def __init__(self, symbols: Symbols, *, colour: bool = False) -> None:
        self._symbols = symbols
        self._colour = colour
        self._function = ""

    def paint(self, text: str, colour: str) -> str:
        return f"{colour}{text}{RESET}" if self._colour else text

    # Code.

    def instruction(
        self, instruction: Instruction, state: CpuState, *, current: bool = False
    ) -> list[str]:
        """A line for an instruction, and one above it if it belongs to another function than the
        one before it. ``current``: it is the next one."""
        lines = self._label(instruction.address)
        code = instruction.code.hex(" ")
        if len(instruction.code) > CODE_BYTES:
            code = instruction.code[: CODE_BYTES - 1].hex(" ") + " …"
        text = instruction.text
        if instruction.target is not None:
            target = self._symbols.name(instruction.target)
            text += f" <{target}>" if target else ""
        marker = "→" if current else " "
        place = self.place(instruction.address, state)
        line = f"{marker} {place}  {code:{3 * CODE_BYTES - 1}}  "
        lines.append(self.paint(line, BOLD if current else DIM) + self._bold(text, current))
        return lines

    def _bold(self, text: str, wanted: bool) -> str:
        return self.paint(text, BOLD) if wanted else text

    def unreadable(self, state: CpuState, data: bytes) -> list[str]:
        """The line for an address without an instruction."""
        found = f"{data[:CODE_BYTES].hex(' ')}  no instruction" if data else "no memory here"
        return [f"→ {self.place(state.address, state)}  {found}"]

    def place(self, address: int, state: CpuState) -> str:
        """A linear address of the current code, as ``segment:offset`` in real mode."""
        if state.bits == 16:
            code = state.system["cs"]
            return f"{code['selector']:04x}:{address - code['base'] & 0xFFFF:04x}"
        return f"{address:0{16 if address >> 32 else 8}x}"

    def where(self, address: int, state: CpuState) -> str:
        """An address with its symbol, in a sentence."""
        name = self._symbols.name(address)
        return self.place(address, state) + (f" <{name}>" if name else "")

    def _label(self, address: int) -> list[str]:
        symbol = self._symbols.find(address)
        name = "" if symbol is None else symbol.name
        if name == self._function:
            return []
        self._function = name
        return [self.paint(f"{self._symbols.name(address)}:", CYAN)] if name else []

    # What happened.

    def changes(self, changes: Mapping[str, tuple[int, int]], state: CpuState) -> list[str]:
        """The registers that changed, several a line; RIP's change shows in the next line."""
        words = []
        for name, (old, new) in changes.items():
            if name == "rip":
                continue
            word = f"{register_name(name, state.bits)} {old:x} → {self.paint(f'{new:x}', YELLOW)}"
            if name == "rflags":
                word += f" [{' '.join(flag_names(new & ~0x10002))}]"
            words.append(word)
        return self._wrap(words)

    def access(self, access: Access) -> str:
        """An exit: who was asked what, and answered what."""
        verb = {
            (True, True): "out",
            (True, False): "in",
            (False, True): "store",
            (False, False): "load",
        }[access.space == PORT, access.write]
        values = " ".join(f"{value:#x}" for value in access.values[:4])
        if len(access.values) > 4:
            values += f" … ({len(access.values)} in all)"
        arrow = "←" if access.write else "→"
        bits = f" ({8 * access.size} bits)" if access.size > 1 else ""
        owner = f"{access.device} {access.register}" if access.device else ""
        meaning = ": ".join(filter(None, (owner, access.meaning)))
        what = f"{verb} {access.address:#x} {arrow} {values}{bits}"
        return f"{INDENT}{self.paint(what, CYAN)}  {meaning}"

    def write(self, write: MemoryWrite) -> str:
        """A store to RAM."""
        where = f"memory {write.address:x}"
        size = len(write.after)
        if size in (1, 2, 4, 8):
            old, new = (int.from_bytes(data, "little") for data in (write.before, write.after))
            bits = f"({8 * size} bits)"
            return f"{INDENT}{where}: {old:x} → {self.paint(f'{new:x}', YELLOW)} {bits}"
        shown = write.after if size <= 16 else write.after[:12]
        more = f" … ({size} bytes)" if size > len(shown) else ""
        return f"{INDENT}{where}: {self.paint(shown.hex(' '), YELLOW)}{more}"

    # Registers and memory.

    def registers(self, state: CpuState, changed: Iterable[str]) -> list[str]:
        """General registers with a star before each that changed; the mode, and the flags."""
        marked = set(changed)
        if state.bits == 64:
            names, digits, columns = [n for n in state.registers if n != "rip"], 16, 3
            names = ["rip", *names]
        else:
            names, digits, columns = list(NAMES_32), 8, 5
        cells = []
        for name in names:
            value = state.registers[name] & (1 << 4 * digits) - 1
            label = register_name(name, state.bits)
            cell = f"{label:3} {value:0{digits}x}"
            star = name in marked
            cells.append(f"*{self.paint(cell, YELLOW)}" if star else f" {cell}")
        rows = [" ".join(cells[i : i + columns]) for i in range(0, len(cells), columns)]
        flags = " ".join(state.flags) or "none"
        return [*rows, f" flags: {flags}", f" mode: {state.mode}"]

    def system_registers(self, state: CpuState, changed: Iterable[str]) -> list[str]:
        """Segments, tables and control registers."""
        marked, system = set(changed), state.system
        lines = []
        for name in (*SEGMENTS, "tr", "ldt"):
            segment = system[name]
            kind = f"type {segment['type']:x} ring {segment['dpl']}"
            line = (
                f"{name.upper():4} {segment['selector']:04x}  base {segment['base']:<16x}"
                f" limit {segment['limit']:<8x} {kind}"
            )
            lines.append(self._marked(line, name in marked))
        for name in ("gdt", "idt"):
            table = system[name]
            line = f"{name.upper()}        base {table['base']:<16x} limit {table['limit']:x}"
            lines.append(self._marked(line, name in marked))
        for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
            bits = CONTROL_FLAGS.get(name, {})
            words = " ".join(text for bit, text in bits.items() if system[name] >> bit & 1)
            lines.append(
                self._marked(f"{name.upper():4} {system[name]:x}  {words}".rstrip(), name in marked)
            )
        return lines

    def _marked(self, line: str, marked: bool) -> str:
        return f"*{self.paint(line, YELLOW)}" if marked else f" {line}"

    def memory(self, address: int, data: bytes, unit: int, form: str) -> list[str]:
        """A dump: units of ``unit`` bytes, as hexadecimal or (``d``) signed decimal numbers."""
        lines = []
        for start in range(0, len(data), 16):
            row = data[start : start + 16]
            units = [row[at : at + unit] for at in range(0, len(row), unit)]
            if form == "d":
                cells = [f"{int.from_bytes(u, 'little', signed=True):>{3 * unit}}" for u in units]
            else:
                cells = [f"{int.from_bytes(u, 'little'):0{2 * unit}x}" for u in units]
            text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
            numbers = " ".join(cells)
            width = {1: 47, 2: 39, 4: 35, 8: 33}[unit]
            place = f"{address + start:08x}"
            lines.append(
                f"{place}  {numbers:{width}}  {text}" if form == "x" else f"{place}  {numbers}"
            )
        return lines

    def _wrap(self, words: Iterable[str]) -> list[str]:
        """The words, three spaces apart, on as few lines as they fit."""
        lines: list[str] = []
        room = 0
        for word in words:
            length = _visible(word) + 3
            if length > room:
                lines.append(INDENT + word)
                room = WIDTH - len(INDENT) + 3
            else:
                lines[-1] += "   " + word
            room -= length
        return lines


def _visible(text: str) -> int:
    for code in (BOLD, DIM, YELLOW, CYAN, RESET):
        text = text.replace(code, "")
    return len(text)


def register_name(name: str, bits: int) -> str:
    """As the mode calls it: RAX, EAX."""
    if bits != 64 and name in NAMES_32:
        return f"E{name[1:]}".upper()
    return name.upper()
