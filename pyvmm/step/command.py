"""What is typed at the prompt, understood: ``x/16xb rsp+8``.

Nothing here knows a machine: an expression is evaluated with the help of whoever knows the values
of names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple


class CommandError(Exception):
    """A line that isn't understood; the sentence says why, and what would be."""


class Kind(NamedTuple):
    """A command: its names, the shortest of them first; what follows it; what it does."""

    names: tuple[str, ...]
    arguments: str
    summary: str
    details: str = ""

    @property
    def name(self) -> str:
        """The one that identifies it."""
        return self.names[-1]


KINDS = (
    Kind(("s", "step"), "[N]", "execute an instruction, or N of them",
         "Interrupts wait meanwhile ('irq on' lets them in), and the other vCPUs stand\n"
         "still. Of a repeated string instruction it does what the CPU does at once."),
    Kind(("o", "over"), "", "the same, but all of a call, an int or a rep"),
    Kind(("n", "e", "exit"), "", "run to the next exit: an access to a device",
         "It stops behind the instruction that made the access. Accesses to the interrupt\n"
         "controllers (PIC, IOAPIC, local APIC) are no exits: KVM answers them itself."),
    Kind(("u", "until"), "ADDR", "run until ADDR is reached"),
    Kind(("c", "continue"), "[SECONDS]", "run to a breakpoint; Ctrl-C stops, too"),
    Kind(("b", "break"), "[ADDR]", "set a breakpoint at ADDR, or remove it; or list all",
         "There are four, the CPU's debug registers, and they count on every vCPU. The\n"
         "guest's own breakpoints have no effect meanwhile."),
    Kind(("r", "registers"), "[all]", "registers, * before what changed; all of them"),
    Kind(("x", "examine"), "[/NFU] ADDR", "memory, such as x/4g rsp, x/16b 0x7c00",
         "N units. F: x hexadecimal, d decimal, s text, i instructions. Unit U: b, h, w, g\n"
         "for 1, 2, 4, 8 bytes. The address is linear; xp takes a guest-physical one."),
    Kind(("xp",), "[/NFU] ADDR", "the same at a guest-physical address"),
    Kind(("d", "disassemble"), "[ADDR] [N]", "N instructions at ADDR, by default the next 8"),
    Kind(("p", "print"), "ADDR", "what an expression comes to, and its symbol"),
    Kind(("i", "input"), "TEXT", "type TEXT and Enter at the guest's console",
         r"\n, \r, \t, \e, \\ and \xHH are characters; \c at the end leaves out Enter."),
    Kind(("v", "vcpu"), "[N]", "let the commands be for vCPU N; or list all"),
    Kind(("irq",), "[on|off]", "let interrupts in while stepping, or make them wait"),
    Kind(("h", "?", "help"), "[COMMAND]", "this list, or what there is to know of a command"),
    Kind(("q", "quit"), "", "end the guest"),
)  # fmt: skip

BY_NAME = {name: kind for kind in KINDS for name in kind.names}

ADDRESSES = """\
ADDR is a number (0x7c00, 31744), a register (rsp, eax, cs), a symbol, or a
segment and offset (ds:si, 0000:7c00); + and - go between them. Instruction
and stack pointer are with their segments: rip is cs:rip, but for p and xp."""

MAX_STEPS = 1_000_000
MAX_UNITS = 1024
MAX_SECONDS = 86_400.0
UNITS = {"b": 1, "h": 2, "w": 4, "g": 8}
FORMATS = "xdsi"
MAX_ADDRESS = (1 << 64) - 1


class Command(NamedTuple):
    """``kind`` is a Kind's name; the rest is what it takes. ``address`` is an expression, ``text``
    what isn't."""

    kind: str
    number: int | None = None
    address: str = ""
    text: str = ""
    format: str = "x"
    unit: int = 0
    seconds: float | None = None


def parse(line: str) -> Command:
    """A line that isn't blank. Raises CommandError."""
    match = re.fullmatch(r"\s*(\S+)(?:\s(.*?))?\n?", line, re.DOTALL)
    if match is None:
        raise CommandError("there is no command")
    word, rest = match[1], match[2] or ""
    word, slash, layout = word.partition("/")
    kind = BY_NAME.get(word)
    if kind is None:
        raise CommandError(f"there is no command {word!r}; h lists them")
    rest = rest if kind.name == "input" else rest.strip()
    if slash and kind.name not in ("examine", "xp"):
        raise CommandError(f"{word} takes no /{layout}; only x and xp do")
    parser = _PARSERS.get(kind.name, _takes_nothing)
    return parser(kind, rest, layout)


def _takes_nothing(kind: Kind, rest: str, _: str) -> Command:
    if rest:
        raise CommandError(f"{kind.names[0]} takes nothing behind it")
    return Command(kind.name)


def _takes_count(kind: Kind, rest: str, _: str) -> Command:
    if not rest:
        return Command(kind.name)
    return Command(kind.name, number=_count(rest, MAX_STEPS, kind.names[0]))


def _takes_seconds(kind: Kind, rest: str, _: str) -> Command:
    if not rest:
        return Command(kind.name)
    try:
        seconds = float(rest)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= MAX_SECONDS:
        raise CommandError(f"{kind.names[0]} takes a number of seconds, which {rest!r} isn't")
    return Command(kind.name, seconds=seconds)


def _takes_address(kind: Kind, rest: str, _: str) -> Command:
    if not rest and not kind.arguments.startswith("["):
        raise CommandError(f"{kind.names[0]} takes an address, such as {kind.names[0]} 0x7c00")
    return Command(kind.name, address=rest)


def _takes_address_and_count(kind: Kind, rest: str, _: str) -> Command:
    words = rest.split()
    if len(words) > 1 and words[-1].isdecimal():
        count = _count(words.pop(), MAX_UNITS, kind.names[0])
        return Command(kind.name, count, " ".join(words))
    return Command(kind.name, address=rest)


def _takes_layout(kind: Kind, rest: str, layout: str) -> Command:
    """gdb's ``x/NFU``: a count, a format and a unit, all optional."""
    match = re.fullmatch(r"([0-9]*)([a-z]*)", layout)
    letters = match[2] if match else "?"
    if match is None or any(letter not in FORMATS and letter not in UNITS for letter in letters):
        raise CommandError(f"/{layout} is not a count, one of {FORMATS} and one of bhwg: x/16xb")
    if not rest:
        raise CommandError(f"{kind.names[0]} takes an address, such as {kind.names[0]}/4g rsp")
    count = _count(match[1], MAX_UNITS, kind.names[0]) if match[1] else None
    form = next((letter for letter in letters if letter in FORMATS), "x")
    unit = next((UNITS[letter] for letter in letters if letter in UNITS), 0)
    return Command(kind.name, count, rest, format=form, unit=unit)


def _takes_word(*words: str) -> Callable[[Kind, str, str], Command]:
    def parse_word(kind: Kind, rest: str, _: str) -> Command:
        if rest and rest not in words:
            raise CommandError(f"{kind.names[0]} takes {' or '.join(words)}, not {rest!r}")
        return Command(kind.name, text=rest)

    return parse_word


def _takes_text(kind: Kind, rest: str, _: str) -> Command:
    return Command(kind.name, text=rest)


_PARSERS: dict[str, Callable[[Kind, str, str], Command]] = {
    "step": _takes_count,
    "vcpu": _takes_count,
    "continue": _takes_seconds,
    "until": _takes_address,
    "break": _takes_address,
    "print": _takes_address,
    "disassemble": _takes_address_and_count,
    "examine": _takes_layout,
    "xp": _takes_layout,
    "registers": _takes_word("all"),
    "irq": _takes_word("on", "off"),
    "input": _takes_text,
    "help": _takes_text,
}


def _count(text: str, limit: int, name: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) > limit:
        raise CommandError(f"{name} takes a number up to {limit}, which {text!r} isn't")
    return int(text)


_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.?)", re.DOTALL)
_ESCAPES = {"n": b"\n", "r": b"\r", "t": b"\t", "e": b"\x1b", "\\": b"\\"}


def unescape(text: str) -> bytes:
    """What ``input`` sends: the text with its escapes resolved, and a line feed unless it ends
    with ``\\c``."""
    sent = bytearray()
    end, newline = 0, b"\n"
    for match in _ESCAPE.finditer(text):
        sent += text[end : match.start()].encode()
        end = match.end()
        escape = match[1]
        if escape == "c" and end == len(text):
            newline = b""
        elif escape in _ESCAPES:
            sent += _ESCAPES[escape]
        elif len(escape) == 3:
            sent.append(int(escape[1:], 16))
        else:
            raise CommandError(rf"\{escape} is none of \n \r \t \e \\ \xHH, and \c at the end")
    return bytes(sent + text[end:].encode() + newline)


_TERM = re.compile(r"\s*([+-]?)\s*(0[xX][0-9a-fA-F]+|[0-9]+(?![\w$.@])|[%$]?[A-Za-z_.][\w$.@]*)\s*")
_FAR = re.compile(r"\s*([0-9a-fA-F]{1,4}|[c-gs]s):([0-9a-fA-F]{1,8}|[a-z]{2,3})\s*")


def evaluate(
    text: str, value_of: Callable[[str], int | None], base_of: Callable[[str], int]
) -> int:
    """The linear address that an expression stands for. ``value_of`` knows registers and symbols,
    ``base_of`` the base of a segment register. Raises CommandError."""
    far = _FAR.fullmatch(text)
    if far is not None:
        return _far(far[1], far[2], value_of, base_of)
    total, position = 0, 0
    while position < len(text):
        match = _TERM.match(text, position)
        if match is None or (position and not match[1]):
            raise CommandError(_not_understood(text[position:].strip()))
        number = _value(match[2], value_of)
        total += -number if match[1] == "-" else number
        position = match.end()
    if not text.strip():
        raise CommandError("there is nothing to evaluate")
    return total & MAX_ADDRESS


def _value(word: str, value_of: Callable[[str], int | None]) -> int:
    if word[0].isdigit():
        number = int(word, 0) if word[:2] in ("0x", "0X") else _decimal(word)
        if number > MAX_ADDRESS:
            raise CommandError(f"{word} is more than 64 bits")
        return number
    name = word.lstrip("%$")
    found = value_of(name.lower())
    if found is None:
        found = value_of(name)
    if found is None:
        raise CommandError(_not_understood(word))
    return found


def _decimal(word: str) -> int:
    if len(word) > 20:
        raise CommandError(f"{word} is more than 64 bits")
    return int(word)


def _far(
    segment: str,
    offset: str,
    value_of: Callable[[str], int | None],
    base_of: Callable[[str], int],
) -> int:
    """Both numbers are hexadecimal, as such addresses are written."""
    base = base_of(segment) if segment in ("cs", "ds", "es", "fs", "gs", "ss") else None
    if base is None:
        try:
            base = int(segment, 16) << 4
        except ValueError:
            raise CommandError(_not_understood(segment)) from None
    found = value_of(offset)
    if found is None:
        try:
            found = int(offset, 16)
        except ValueError:
            raise CommandError(_not_understood(offset)) from None
    return base + found & MAX_ADDRESS


def _not_understood(word: str) -> str:
    hexadecimal = re.fullmatch(r"[0-9a-fA-F]+", word) is not None
    hint = f"; did you mean 0x{word}?" if hexadecimal else ""
    return f"{word!r} is no number, register or symbol{hint}"
