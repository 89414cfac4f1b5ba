"""Debian's SeaBIOS: firmware that is not ours.

``python3 -m guests.seabios`` makes ``build/seabios/`` with the ROM, and prints its path.
"""

import sys
from pathlib import Path

from guests import artefacts, debian

PACKAGE = "seabios"
DIRECTORY = artefacts.BUILD / "seabios"
ROM = DIRECTORY / "usr/share/seabios/bios-256k.bin"


def build() -> Path:
    """Fetch the package unless it is there; return the directory."""
    return debian.fetch(PACKAGE, DIRECTORY)


if __name__ == "__main__":
    try:
        print(build())
    except debian.PackageError as error:
        sys.exit(f"guests: {error}")
