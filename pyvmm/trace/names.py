"""Names of values and of bits, from the classes of constants that device modules have."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache


def constants(*classes: type) -> dict[int, str]:
    """The name of each value; the first of a class if several have the same."""
    found: dict[int, str] = {}
    for names in classes:
        members = getattr(names, "__members__", None) or vars(names)
        for name, value in members.items():
            if name[0].isupper() and isinstance(value, int):
                found.setdefault(int(value), name)
    return found


class Bits(dict[int, str]):
    """The names of bits. Its own kind of dict, because what is said of a value is remembered."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def single_bits(*classes: type) -> Bits:
    """The name of each bit; masks of several bits have none."""
    found = constants(*classes)
    return Bits({bit: found[bit] for bit in sorted(found) if bit and not bit & (bit - 1)})


@lru_cache(1 << 10)
def flags(bits: Bits, value: int, nothing: str = "none") -> str:
    """The names of the bits that are set, and as a number those that have none."""
    words = [name for bit, name in bits.items() if value & bit]
    rest = value & ~sum(bits)
    if rest:
        words.append(f"{rest:#x}")
    return sentence(words) or nothing


def sentence(words: Iterable[str]) -> str:
    """Those that aren't empty, with commas between."""
    return ", ".join(word for word in words if word)


def counted(number: int, what: str) -> str:
    """``1 byte``, ``14 bytes``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def character(value: int) -> str:
    """A byte that is a character, as Python would write it."""
    return repr(chr(value)) if value < 0x80 else f"{value:#04x}"
