"""Build the BIOS: ``python3 firmware/build.py [TARGET]``.

Needs gcc and the binutils. setup.py runs it, and the tests do; the target is ``pyvmm/bios.rom``
unless another is given. It is written only when it is older than a source.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
TARGET = SOURCES.parent / "pyvmm/bios.rom"

COMPILER = """
    gcc -m32 -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-T,bios.ld -Wl,--oformat=binary
    -Wl,--fatal-warnings -Wa,--fatal-warnings
""".split()


def build(target: Path = TARGET) -> Path:
    """Make the ROM unless it is fresh; where it is."""
    sources = [path for path in SOURCES.iterdir() if path.suffix in (".S", ".h", ".ld", ".py")]
    newest = max(path.stat().st_mtime_ns for path in sources)
    if not target.exists() or target.stat().st_mtime_ns < newest:
        target = target.absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        files = sorted(path.name for path in sources if path.suffix == ".S")
        try:
            subprocess.run([*COMPILER, *files, "-o", unfinished], cwd=SOURCES, check=True)
            unfinished.chmod(0o644)
            unfinished.rename(target)
        finally:
            unfinished.unlink(missing_ok=True)
    return target


def main() -> None:
    try:
        print(build(*map(Path, sys.argv[1:2])))
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"firmware: {error}")


if __name__ == "__main__":
    main()
