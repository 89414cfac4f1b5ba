"""What is typed at a terminal, as the keys of a PC's keyboard, in scan code set 2.

IBM's PS/2 Hardware Interface Technical Reference, "Keyboard (101- and 102-Key)", "Scan Code Set 2",
for the US layout; and the sequences of ECMA-48 and xterm's control sequences ("PC-Style Function
Keys") that terminals send for keys without a character.

Each key is pressed and released at once, with Shift, Ctrl and Alt around it as it needs them. ESC
before a key is Alt. Characters that the US layout lacks are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator

_SHIFT, _CTRL, _ALT = 0x12, 0x14, 0x11
_RELEASE, _EXTENDED = 0xF0, 0xE0
_ESC = 0x1B

_PLAIN = "`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./ "
_SHIFTED = '~!@#$%^&*()_+QWERTYUIOP{}|ASDFGHJKL:"ZXCVBNM<>? '
_CODES = bytes.fromhex(
    "0e 16 1e 26 25 2e 36 3d 3e 46 45 4e 55"
    "15 1d 24 2d 2c 35 3c 43 44 4d 54 5b 5d"
    "1c 1b 23 2b 34 33 3b 42 4b 4c 52"
    "1a 22 21 2a 32 31 3a 41 49 4a 29"
)
_ESCAPE_KEY, _TAB, _ENTER, _BACKSPACE = 0x76, 0x0D, 0x5A, 0x66

# Keys without a character; those above 0xFF come with the prefix E0.
_UP, _DOWN, _LEFT, _RIGHT = 0xE075, 0xE072, 0xE06B, 0xE074
_HOME, _END, _PAGE_UP, _PAGE_DOWN, _INSERT, _DELETE = (
    *(0xE06C, 0xE069, 0xE07D, 0xE07A),
    *(0xE070, 0xE071),
)
_F = (0x05, 0x06, 0x04, 0x0C, 0x03, 0x0B, 0x83, 0x0A, 0x01, 0x09, 0x78, 0x07)

_BY_LETTER = dict(zip("ABCDHFPQRS", (_UP, _DOWN, _RIGHT, _LEFT, _HOME, _END, *_F[:4]), strict=True))
_BY_NUMBER = dict(enumerate((_HOME, _INSERT, _DELETE, _END, _PAGE_UP, _PAGE_DOWN, _HOME, _END), 1))
_BY_NUMBER |= zip((11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 23, 24), _F, strict=True)

_LONGEST = 16
"""Bytes of a sequence; what is longer is none."""

_SHIFT_BIT, _ALT_BIT, _CTRL_BIT = 1, 2, 4
"""Of the second parameter of a sequence, less 1."""


def key(code: int, *modifiers: int) -> bytes:
    """Pressed, with ``modifiers`` around it, and released."""
    prefix = bytes((_EXTENDED,)) if code > 0xFF else b""
    return (
        bytes(modifiers)
        + prefix
        + bytes((code & 0xFF,))
        + prefix
        + bytes((_RELEASE, code & 0xFF))
        + b"".join(bytes((_RELEASE, modifier)) for modifier in reversed(modifiers))
    )


def _characters() -> Iterator[tuple[int, bytes]]:
    for plain, shifted, code in zip(_PLAIN, _SHIFTED, _CODES, strict=True):
        yield ord(shifted), key(code, _SHIFT)
        yield ord(plain), key(code)
        if "a" <= plain <= "z" or plain in "[\\]":
            yield ord(plain) & 0x1F, key(code, _CTRL)
    yield 0x00, key(0x1E, _CTRL, _SHIFT)  # Ctrl-@
    yield 0x1E, key(0x36, _CTRL, _SHIFT)  # Ctrl-^
    yield 0x1F, key(0x4E, _CTRL, _SHIFT)  # Ctrl-_
    for character in b"\r\n":
        yield character, key(_ENTER)
    for character in b"\x08\x7f":
        yield character, key(_BACKSPACE)
    yield ord("\t"), key(_TAB)
    yield _ESC, key(_ESCAPE_KEY)


_BY_CHARACTER = dict(_characters())


class KeyDecoder:
    """Feed it what a terminal sends, a byte at a time."""

    def __init__(self) -> None:
        self._sequence = bytearray()

    @property
    def waits(self) -> bool:
        """Whether there is an ESC that may be a key of its own, or begin a sequence."""
        return bool(self._sequence)

    def feed(self, byte: int) -> bytes:
        """The keys that ``byte`` completes, perhaps none."""
        sequence = self._sequence
        if not sequence:
            if byte == _ESC:
                sequence.append(byte)
                return b""
            return _BY_CHARACTER.get(byte, b"")
        if byte == _ESC:
            keys = self.flush()
            sequence.append(byte)
            return keys
        if len(sequence) == 1:
            if byte in b"[O":
                sequence.append(byte)
                return b""
            sequence.clear()
            return _with_alt(_BY_CHARACTER.get(byte, b""))
        sequence.append(byte)
        first = len(sequence) == 3
        if not (0x20 <= byte <= 0x3F or (first and byte == ord("["))):
            keys = _key_of(sequence[2:].decode("latin-1"))
            sequence.clear()
            return keys
        if len(sequence) > _LONGEST:
            sequence.clear()
        return b""

    def flush(self) -> bytes:
        """No more comes for a while: what was an ESC is the key, and what was ESC [ is Alt-[."""
        sequence = bytes(self._sequence)
        self._sequence.clear()
        if len(sequence) == 2:
            return _with_alt(_BY_CHARACTER[sequence[1]])
        return _BY_CHARACTER[_ESC] if len(sequence) == 1 else b""


def _with_alt(keys: bytes) -> bytes:
    return bytes((_ALT,)) + keys + bytes((_RELEASE, _ALT)) if keys else b""


def _key_of(text: str) -> bytes:
    """The key of a sequence, which is given without its ESC [ or ESC O."""
    body, final = text[:-1], text[-1]
    if body == "[":  # Linux's own terminal
        return key(_F[ord(final) - ord("A")]) if "A" <= final <= "E" else b""
    if final == "Z":
        return key(_TAB, _SHIFT)
    words = body.split(";")
    if not all(word.isdecimal() and len(word) < 4 for word in words if word):
        return b""
    numbers = [int(word) if word else 1 for word in words]
    code = _BY_NUMBER.get(numbers[0]) if final == "~" else _BY_LETTER.get(final)
    if code is None:
        return b""
    bits = numbers[1] - 1 if len(numbers) > 1 else 0
    pairs = ((_CTRL_BIT, _CTRL), (_ALT_BIT, _ALT), (_SHIFT_BIT, _SHIFT))
    return key(code, *(modifier for bit, modifier in pairs if bits & bit))
