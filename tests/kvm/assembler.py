"""A few instructions as machine code, for tests that want a guest of one line."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path


def assemble(source: str, *, address: int = 0x1000, bits: int = 16) -> bytes:
    """``source`` in GNU as's Intel syntax, to run at ``address``."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "code"
        subprocess.run(
            ["gcc", "-x", "assembler", "-", "-nostdlib", "-static", "-no-pie", "-o", target,
             f"-Wl,-Ttext={address:#x},--oformat=binary,--build-id=none,-e,{address:#x}"],
            input=f".intel_syntax noprefix\n.code{bits}\n{source}\n",
            text=True,
            check=True,
        )  # fmt: skip
        return target.read_bytes()
