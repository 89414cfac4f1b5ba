"""The ELF kernel inside a Debian bzImage.

``python3 -m guests.vmlinux [FLAVOUR]`` makes ``build/vmlinux/FLAVOUR`` (the default: cloud) and
prints its path. Needs PyVMM itself, which knows how to unpack one.
"""

import argparse
import sys
from pathlib import Path

from guests import artefacts, debian, kernel


def path(flavour: str = "cloud") -> Path:
    """Where a flavour's vmlinux lies once it is built."""
    return artefacts.BUILD / "vmlinux" / flavour


def build(flavour: str = "cloud") -> Path:
    """Unpack a flavour's vmlinux unless it is fresh; return its path."""
    from pyvmm.boot.payload import extract_vmlinux

    image = kernel.build(flavour)
    inputs = artefacts.digest([image])
    with artefacts.lock():
        if not artefacts.is_fresh(path(flavour), inputs):
            with artefacts.making(path(flavour), inputs) as unfinished:
                unfinished.write_bytes(extract_vmlinux(image))
    return path(flavour)


def main() -> None:
    """Build the one that the command line names."""
    parser = argparse.ArgumentParser(description="Unpack the ELF kernel in Debian's bzImage.")
    parser.add_argument("flavour", nargs="?", default="cloud", choices=list(kernel.METAPACKAGES))
    try:
        print(build(parser.parse_args().flavour))
    except debian.PackageError as error:
        sys.exit(f"guests: {error}")


if __name__ == "__main__":
    main()
