"""Debian's memtest86+: a bzImage that isn't Linux, in a 64-bit and a 32-bit form.

``python3 -m guests.memtest`` makes ``build/memtest/`` with ``boot/memtest86+x64.bin`` and
``boot/memtest86+ia32.bin``, and prints its path.
"""

import sys
from pathlib import Path

from guests import artefacts, debian

PACKAGE = "memtest86+"
DIRECTORY = artefacts.BUILD / "memtest"
KERNEL_64 = DIRECTORY / "boot/memtest86+x64.bin"
KERNEL_32 = DIRECTORY / "boot/memtest86+ia32.bin"


def build() -> Path:
    """Fetch the package unless it is there; return the directory."""
    return debian.fetch(PACKAGE, DIRECTORY)


if __name__ == "__main__":
    try:
        print(build())
    except debian.PackageError as error:
        sys.exit(f"guests: {error}")
