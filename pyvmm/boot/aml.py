"""ACPI Machine Language: as much of an encoder as describing this machine takes.

Document: ACPI specification 6.5, chapter 20 (AML), section 6.4 (resource descriptors), section
19.3.4 for EISA IDs and UUIDs.

Every function returns encoded AML as ``bytes``, and takes encoded AML where ASL has a term. A
Python ``int`` or ``str`` stands for the constant, so ``name("_UID", 1)`` is ASL's
``Name (_UID, 1)``. Names are written as in ASL: ``\\_SB.PCI0``, ``COM1``.
"""

from __future__ import annotations

import struct

Term = int | str | bytes


class Op:
    """Opcodes (section 20.3)."""

    NAME = 0x08
    BYTE_PREFIX = 0x0A
    WORD_PREFIX = 0x0B
    DWORD_PREFIX = 0x0C
    STRING_PREFIX = 0x0D
    QWORD_PREFIX = 0x0E
    SCOPE = 0x10
    BUFFER = 0x11
    PACKAGE = 0x12
    METHOD = 0x14
    DUAL_NAME_PREFIX = 0x2E
    MULTI_NAME_PREFIX = 0x2F
    ARG0 = 0x68
    OR = 0x7D
    CREATE_DWORD_FIELD = 0x8A
    LEQUAL = 0x93
    IF = 0xA0
    RETURN = 0xA4


_EXT_DEVICE = b"\x5b\x82"

_METHOD_SERIALIZED = 1 << 3


def package_length(content_length: int) -> bytes:
    """PkgLength (section 20.2.4) for content of that length; it counts its own bytes too."""
    if content_length + 1 < 1 << 6:
        return bytes((content_length + 1,))
    for extra in (1, 2, 3):
        total = content_length + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes((extra << 6 | total & 0xF,)) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"{content_length} bytes are too many for an AML package")


def path(text: str) -> bytes:
    """A NameString."""
    relative = text.lstrip("\\^")
    segments = b"".join(segment.ljust(4, "_").encode() for segment in relative.split("."))
    count = len(segments) // 4
    if len(segments) != 4 * relative.count(".") + 4:
        raise ValueError(f"{text!r} is not an ACPI name")
    if count == 1:
        marker = b""
    elif count == 2:
        marker = bytes((Op.DUAL_NAME_PREFIX,))
    else:
        marker = bytes((Op.MULTI_NAME_PREFIX, count))
    return text[: len(text) - len(relative)].encode() + marker + segments


def term(value: Term) -> bytes:
    """A constant as AML; what is AML already stays as it is."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return bytes((Op.STRING_PREFIX,)) + value.encode("ascii") + b"\0"
    if value in (0, 1):
        return bytes((value,))
    if value < 1 << 8:
        return struct.pack("<BB", Op.BYTE_PREFIX, value)
    if value < 1 << 16:
        return struct.pack("<BH", Op.WORD_PREFIX, value)
    if value < 1 << 32:
        return struct.pack("<BI", Op.DWORD_PREFIX, value)
    return struct.pack("<BQ", Op.QWORD_PREFIX, value)


def _sized(opcode: bytes, content: bytes) -> bytes:
    return opcode + package_length(len(content)) + content


def name(where: str, value: Term) -> bytes:
    return bytes((Op.NAME,)) + path(where) + term(value)


def scope(where: str, *content: bytes) -> bytes:
    return _sized(bytes((Op.SCOPE,)), path(where) + b"".join(content))


def device(where: str, *content: bytes) -> bytes:
    return _sized(_EXT_DEVICE, path(where) + b"".join(content))


def package(*elements: Term) -> bytes:
    content = bytes((len(elements),)) + b"".join(map(term, elements))
    return _sized(bytes((Op.PACKAGE,)), content)


def buffer(data: bytes) -> bytes:
    return _sized(bytes((Op.BUFFER,)), term(len(data)) + data)


def method(where: str, arguments: int, *content: bytes) -> bytes:
    """A serialized method."""
    flags = bytes((arguments | _METHOD_SERIALIZED,))
    return _sized(bytes((Op.METHOD,)), path(where) + flags + b"".join(content))


def arg(number: int) -> bytes:
    return bytes((Op.ARG0 + number,))


def if_(condition: bytes, *content: bytes) -> bytes:
    return _sized(bytes((Op.IF,)), condition + b"".join(content))


def equal(left: Term, right: Term) -> bytes:
    return bytes((Op.LEQUAL,)) + term(left) + term(right)


def or_(left: Term, right: Term, target: bytes) -> bytes:
    return bytes((Op.OR,)) + term(left) + term(right) + target


def return_(value: Term) -> bytes:
    return bytes((Op.RETURN,)) + term(value)


def create_dword_field(source: bytes, byte_index: int, where: str) -> bytes:
    return bytes((Op.CREATE_DWORD_FIELD,)) + source + term(byte_index) + path(where)


def eisa_id(text: str) -> int:
    """The number that stands for an ID such as PNP0A03."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | ord(letter) - ord("@")
    return int.from_bytes((letters << 16 | int(text[3:], 16)).to_bytes(4, "big"), "little")


def uuid(text: str) -> bytes:
    """A UUID as a buffer: the first three groups little-endian."""
    groups = [bytes.fromhex(group) for group in text.split("-")]
    return buffer(b"".join([group[::-1] for group in groups[:3]] + groups[3:]))


# Resource descriptors (section 6.4): small ones with a tag that includes their length, large
# ones with a length of their own. All memory here is read-write and not cached; all of I/O space
# is decoded in 16 bits.


class Descriptor:
    IRQ = 0x22
    IO_PORT = 0x47
    END_TAG = 0x79
    MEMORY32_FIXED = 0x86
    DWORD_ADDRESS_SPACE = 0x87
    WORD_ADDRESS_SPACE = 0x88
    EXTENDED_INTERRUPT = 0x89
    QWORD_ADDRESS_SPACE = 0x8A


class SpaceType:
    MEMORY = 0
    IO = 1
    BUS_NUMBER = 2


_DECODE_16 = 1
_READ_WRITE = 1
_ENTIRE_RANGE = 3
_MIN_FIXED_MAX_FIXED = 0b1100
_INTERRUPT_CONSUMER = 1 << 0
_INTERRUPT_SHARED = 1 << 3


def resource_template(*descriptors: bytes) -> bytes:
    """The buffer that _CRS is; the end tag's checksum 0 means that there is none."""
    return buffer(b"".join(descriptors) + bytes((Descriptor.END_TAG, 0)))


def io(port: int, length: int) -> bytes:
    """Ports that a device consumes."""
    return struct.pack("<BBHHBB", Descriptor.IO_PORT, _DECODE_16, port, port, 1, length)


def irq(number: int) -> bytes:
    """An ISA interrupt: edge-triggered, active high, not shared."""
    return struct.pack("<BH", Descriptor.IRQ, 1 << number)


def memory32_fixed(base: int, length: int) -> bytes:
    """Memory that a device consumes."""
    return _large(Descriptor.MEMORY32_FIXED, struct.pack("<BII", _READ_WRITE, base, length))


def interrupt(gsi: int) -> bytes:
    """A global system interrupt: level-triggered, active high, shared."""
    flags = _INTERRUPT_CONSUMER | _INTERRUPT_SHARED
    return _large(Descriptor.EXTENDED_INTERRUPT, struct.pack("<BBI", flags, 1, gsi))


def word_bus_number(first: int, last: int) -> bytes:
    """Bus numbers that a bridge passes on."""
    return _window(Descriptor.WORD_ADDRESS_SPACE, "H", SpaceType.BUS_NUMBER, 0, first, last)


def word_io(first: int, last: int) -> bytes:
    """Ports that a bridge passes on."""
    return _window(Descriptor.WORD_ADDRESS_SPACE, "H", SpaceType.IO, _ENTIRE_RANGE, first, last)


def dword_memory(first: int, last: int) -> bytes:
    """Memory below 4 GiB that a bridge passes on."""
    return _window(Descriptor.DWORD_ADDRESS_SPACE, "I", SpaceType.MEMORY, _READ_WRITE, first, last)


def qword_memory(first: int, last: int) -> bytes:
    """Memory anywhere that a bridge passes on."""
    return _window(Descriptor.QWORD_ADDRESS_SPACE, "Q", SpaceType.MEMORY, _READ_WRITE, first, last)


def _window(tag: int, width: str, space: int, type_flags: int, first: int, last: int) -> bytes:
    granularity = translation = 0
    return _large(
        tag,
        struct.pack("<BBB", space, _MIN_FIXED_MAX_FIXED, type_flags)
        + struct.pack(f"<5{width}", granularity, first, last, translation, last - first + 1),
    )


def _large(tag: int, content: bytes) -> bytes:
    return struct.pack("<BH", tag, len(content)) + content
