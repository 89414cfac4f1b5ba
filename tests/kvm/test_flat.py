"""Flat binaries, in all three modes."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvm.assembler import assemble
from kvm.command import PYVMM, run_to_end

HERE = {16: "lea ax, [here]", 32: "mov eax, offset here", 64: "lea rax, here[rip]"}
EXIT = """
    here:
    {where}
    shr {ax}, {shift}           # which page we are on
    mov dx, 0xf4
    out dx, al
    hlt
"""


@pytest.mark.parametrize(
    ("place", "address", "bits"),
    [
        ("", 0x7C00, 16),
        ("@0x2000", 0x2000, 16),
        (",bits=32", 0x10_0000, 32),
        ("@0x123000,bits=32", 0x12_3000, 32),
        ("@2097152,bits=64", 0x20_0000, 64),
    ],
)
def test_a_flat_binary(tmp_path: Path, place: str, address: int, bits: int) -> None:
    ax = {16: "ax", 32: "eax", 64: "rax"}[bits]
    source = EXIT.format(where=HERE[bits], ax=ax, shift=8 if bits == 16 else 16)
    code = tmp_path / "code"
    code.write_bytes(assemble(source, address=address, bits=bits))
    words = [*PYVMM, "run", "--flat", f"{code}{place}", "--debug-exit", "--timeout", "60"]
    ended = run_to_end(words, b"", 60)
    page = address >> (8 if bits == 16 else 16) & 0x7F
    assert ended.status == page << 1 | 1, ended


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--flat", "FILE@here"], "'here' is not an address"),
        (["--flat", "FILE@-1"], "nothing can be loaded at -1"),
        (["--flat", "FILE,bits=8"], "'8' is none of 16, 32, 64"),
        (["--flat", "FILE", "--kernel", "FILE"], "--flat and --kernel"),
        (["--flat", "FILE@0x20000"], "above 64 KiB"),
        (["--flat", "FILE@0x500,bits=64"], "below 1 MiB"),
    ],
)
def test_what_can_not_be(tmp_path: Path, words: list[str], says: str) -> None:
    code = tmp_path / "code"
    code.write_bytes(b"\xf4")
    words = [word.replace("FILE", str(code)) for word in words]
    ended = run_to_end([*PYVMM, "run", *words], b"", 60)
    assert ended.status == 2
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1
