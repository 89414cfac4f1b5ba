"""Debian's memdisk, of SYSLINUX: a "kernel" whose initrd is the image of a disk or floppy to boot.

``python3 -m guests.memdisk`` makes ``build/syslinux/`` with ``usr/lib/syslinux/memdisk``, and
prints its path.
"""

import sys

from guests import artefacts, debian

PACKAGE = "syslinux-common"
DIRECTORY = artefacts.BUILD / "syslinux"
KERNEL = DIRECTORY / "usr/lib/syslinux/memdisk"

if __name__ == "__main__":
    try:
        print(debian.fetch(PACKAGE, DIRECTORY))
    except debian.PackageError as error:
        sys.exit(f"guests: {error}")
