"""Calls to a BIOS, each with chosen registers and flags, and all that they return.

A program in a disk's first sectors takes a list of steps from the sectors behind it: make a call on
a stack of its own, write or read memory, let the keyboard's controller say something. When all are
done it sends what came of them to COM1. It runs under any BIOS.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kvm.assembler import assemble

BOOT_SECTOR = 0x7C00
STEPS = 0x9000
"""Where the steps are, in segment 0."""
BUFFER = 0xF000
"""Memory that steps may use, up to the end of segment 0."""
STACK = 0x1000
"""Size of the stack on which calls are made."""
DUMP = b"\0\1answers"
NO_SUCH_STEP = 0xFF

CF, ZF, IF, DF = 0x0001, 0x0040, 0x0200, 0x0400

_STEP = struct.Struct("<BBH7I2H")
_ANSWER = struct.Struct("<7I4H")
_FLAGS = {"cf": CF, "zf": ZF, "if": IF, "df": DF}
_REGISTERS = ("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp")
_SIZE = 40

_PROGRAM = f"""
    ljmp 0, offset 1f
    1: cli
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, {BOOT_SECTOR}
    sti
    mov ah, 0x42
    mov si, offset packet
    int 0x13
    jnc next
    hlt

    next: xor ax, ax
    mov ds, ax
    mov es, ax
    cld
    mov si, [step]
    mov di, offset current
    mov cx, {_SIZE}
    rep movsb
    mov [step], si
    mov al, [current]
    cmp al, 1
    jb call
    je write
    cmp al, 3
    jb read
    je key
    jmp finished

    call: mov al, [current + 1]         # the vector
    mov [vector], al
    mov ax, 0x3000
    mov es, ax
    xor di, di
    mov cx, {STACK // 2}
    mov ax, 0xCCCC
    rep stosw
    cli
    mov ax, 0x3000
    mov ss, ax
    mov sp, {STACK}
    mov eax, [current + 4]
    mov ebx, [current + 8]
    mov ecx, [current + 12]
    mov edx, [current + 16]
    mov esi, [current + 20]
    mov edi, [current + 24]
    mov ebp, [current + 28]
    mov es, [current + 34]
    push word ptr [current + 2]         # flags
    mov ds, [current + 32]
    popf
    .byte 0xCD
    vector: .byte 0
    pushf
    push ds
    push 0
    pop ds
    mov [answer], eax
    pop ax
    mov [answer + 28], ax
    pop ax
    mov [answer + 32], ax
    mov [answer + 4], ebx
    mov [answer + 8], ecx
    mov [answer + 12], edx
    mov [answer + 16], esi
    mov [answer + 20], edi
    mov [answer + 24], ebp
    mov [answer + 30], es
    cli
    cld
    mov ax, sp
    sub ax, {STACK}
    jnz 2f
    push ss                             # how much of the stack has been used
    pop es
    xor di, di
    mov cx, {STACK}
    mov al, 0xCC
    repe scasb
    inc cx
    mov ax, cx
    2: mov [answer + 34], ax
    xor ax, ax
    mov ss, ax
    mov sp, {BOOT_SECTOR}
    sti
    jmp store

    write: movzx cx, byte ptr [current + 1]
    les di, [current + 4]
    mov si, offset current + 8
    rep movsb
    jmp store

    read: lds si, [current + 4]
    push 0
    pop es
    mov di, offset answer
    mov cx, {_SIZE}
    rep movsb
    jmp store

    key: call controller
    mov al, 0xD2
    out 0x64, al
    call controller
    mov al, [current + 1]
    out 0x60, al
    3: in al, 0x64                      # until the BIOS has taken it
    test al, 1
    jnz 3b
    jmp store
    controller: in al, 0x64
    test al, 3
    jnz controller
    ret

    store: push 0
    pop ds
    mov si, offset answer
    push 0x2000
    pop es
    mov di, [stored]
    mov cx, {_SIZE}
    rep movsb
    mov [stored], di
    jmp next

    finished: cli
    mov si, offset mark
    mov cx, {len(DUMP)}
    call send
    mov cx, [stored]
    push 0x2000
    pop ds
    xor si, si
    call send
    mov dx, 0x604
    mov ax, 5 << 10 | 1 << 13
    out dx, ax
    hlt
    send: mov dx, 0x3FD
    4: in al, dx
    test al, 0x20
    jz 4b
    mov dl, 0xF8
    lodsb
    out dx, al
    loop send
    ret

    step: .word {STEPS}
    stored: .word 0
    mark: .ascii "\\0\\1answers"
    packet: .word 16, 48, {BOOT_SECTOR + 512}, 0
    .quad 1
    .org 510
    .word 0xAA55
    current: .fill {_SIZE}, 1, 0
    answer: .fill {_SIZE}, 1, 0
"""


class Answer(NamedTuple):
    """The registers after a call; ``stack`` is how many bytes of it were used, with the INT's."""

    eax: int
    ebx: int
    ecx: int
    edx: int
    esi: int
    edi: int
    ebp: int
    ds: int
    es: int
    flags: int
    stack: int


def expected(step: bytes, changes: dict[str, int]) -> dict[str, int]:
    """The registers and flags after a call that changes only what ``changes`` names: a register in
    any of its sizes, CF or ZF."""
    _, _, flags, *values, ds, es = _STEP.unpack_from(step)
    registers = dict(zip(_REGISTERS, values, strict=True)) | {"ds": ds, "es": es}
    registers |= {name: int(bool(flags & bit)) for name, bit in _FLAGS.items()}
    for name, value in changes.items():
        if name in registers:
            registers[name] = value
            continue
        whole = f"e{name[0]}x" if name[-1] in "hl" else f"e{name}"
        mask, shift = {"h": (0xFF, 8), "l": (0xFF, 0)}.get(name[-1], (0xFFFF, 0))
        registers[whole] = registers[whole] & ~(mask << shift) | value << shift
    return registers


def returned(dumped: bytes) -> dict[str, int]:
    """The same of what came of a call."""
    registers = answer(dumped)._asdict()
    flags = registers.pop("flags")
    del registers["stack"]
    return registers | {name: int(bool(flags & bit)) for name, bit in _FLAGS.items()}


def call(vector: int, flags: int = IF, ds: int = 0, es: int = 0, **registers: int) -> bytes:
    """A step that makes a call. Registers not named have values of their own, AX excepted."""
    values = {
        "eax": 0,
        "ebx": 0xB0B1B2B3,
        "ecx": 0xC0C1C2C3,
        "edx": 0xD0D1D2D3,
        "esi": 0x50515253,
        "edi": 0xE0E1E2E3,
        "ebp": 0x60616263,
    }
    for name, value in registers.items():
        if len(name) == 2:
            name = f"e{name}"
            value |= values[name] & 0xFFFF0000
        values[name] = value
    ordered = (values[name] for name in _REGISTERS)
    return _STEP.pack(0, vector, flags, *ordered, ds, es).ljust(_SIZE, b"\0")


def write(segment: int, offset: int, data: bytes) -> bytes:
    """A step that writes up to 32 bytes of memory."""
    return (struct.pack("<BBxxHH", 1, len(data), offset, segment) + data).ljust(_SIZE, b"\0")


def read(segment: int, offset: int) -> bytes:
    """A step that reads 40 bytes of memory."""
    return struct.pack("<BBxxHH", 2, 0, offset, segment).ljust(_SIZE, b"\0")


def key(code: int) -> bytes:
    """A step in which the keyboard controller passes on a byte."""
    return bytes((3, code)).ljust(_SIZE, b"\0")


def disk(path: Path, steps: Sequence[bytes], size: int = 1 << 20) -> Path:
    program = assemble(_PROGRAM, address=BOOT_SECTOR)
    listed = b"".join((*steps, bytes((NO_SUCH_STEP,))))
    assert STEPS + len(listed) < BUFFER
    image = bytearray(size)
    image[: len(program)] = program
    start = STEPS - BOOT_SECTOR
    image[start : start + len(listed)] = listed
    path.write_bytes(image)
    return path


def answers(console: bytes) -> list[bytes]:
    """What came of each step: 40 bytes."""
    dumped = console.split(DUMP)[1]
    return [dumped[start : start + _SIZE] for start in range(0, len(dumped), _SIZE)]


def answer(dumped: bytes) -> Answer:
    return Answer(*_ANSWER.unpack_from(dumped))
