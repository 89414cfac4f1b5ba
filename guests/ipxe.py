"""Debian's iPXE: a boot loader for networks, in the form of a Linux kernel.

``python3 -m guests.ipxe`` makes ``build/ipxe/`` with ``boot/ipxe.lkrn``, and prints its path.
"""

import sys

from guests import artefacts, debian

PACKAGE = "ipxe"
DIRECTORY = artefacts.BUILD / "ipxe"
KERNEL = DIRECTORY / "boot/ipxe.lkrn"

if __name__ == "__main__":
    try:
        print(debian.fetch(PACKAGE, DIRECTORY))
    except debian.PackageError as error:
        sys.exit(f"guests: {error}")
