"""The guests' initramfs: busybox, and a kernel's modules for the disk and the power button.

``python3 -m guests.initramfs [FLAVOUR]`` makes ``build/initramfs/FLAVOUR.cpio.gz`` (the default:
cloud) and prints its path. It also starts kernels without those modules; it then uses what they
have built in. The flavour ``none`` has no modules at all. ``--module`` and ``--program`` add to it.
"""

import argparse
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path

from guests import artefacts, busybox, cpio, debian, kernel, programs

INIT = artefacts.PROJECT / "guests/init"
ROOT = artefacts.PROJECT / "guests/root"
MODULES = ["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "ext4", "button", "evdev"]


def build(
    flavour: str = "cloud",
    modules: list[str] = MODULES,
    name: str | None = None,
    extra: Sequence[str] = (),
) -> Path:
    """Make the initramfs for a kernel flavour unless it is fresh; return its path."""
    program = busybox.build()
    files = []
    if flavour != "none":
        kernel.build(flavour)
        files = kernel.module_files(flavour, modules)
    target = artefacts.BUILD / "initramfs" / f"{name or flavour}.cpio.gz"
    extras = [programs.build(each) for each in extra]
    sources = [Path(__file__), Path(cpio.__file__), INIT, ROOT, program, *files, *extras]
    inputs = artefacts.digest(sources, flavour)
    with artefacts.lock():
        if not artefacts.is_fresh(target, inputs):
            with artefacts.making(target, inputs) as unfinished:
                archive = cpio.Archive()
                archive.file("init", INIT.read_bytes(), 0o755)
                archive.tree(ROOT)
                add_busybox(archive, program)
                for each in extras:
                    archive.file(f"usr/bin/{each.name}", each.read_bytes(), 0o755)
                if files:
                    add_modules(archive, files, kernel.release(flavour))
                unfinished.write_bytes(gzip.compress(bytes(archive), mtime=0))
    return target


def add_busybox(archive: cpio.Archive, program: Path) -> None:
    """Add busybox with all its commands, and what a root needs to mount and to start with."""
    archive.file("bin/busybox", program.read_bytes(), 0o755)
    for applet in busybox.applets(program):
        archive.symlink(applet, "/bin/busybox")
    for directory in ("dev", "proc", "sys", "run", "tmp", "mnt", "root", "var/log"):
        archive.directory(directory)
    archive.character_device("dev/console", 5, 1)


def add_modules(archive: cpio.Archive, files: list[Path], release: str) -> None:
    """Add modules, and ``lib/modules/RELEASE/order``, which names them as they are to be loaded."""
    directory = f"lib/modules/{release}"
    for file in files:
        archive.file(f"{directory}/{file.name}", file.read_bytes())
    order = "".join(f"{file.name}\n" for file in files)
    archive.file(f"{directory}/order", order.encode())


def main() -> None:
    """Build the initramfs that the command line asks for."""
    parser = argparse.ArgumentParser(description="Make the guests' initramfs.")
    parser.add_argument(
        "flavour", nargs="?", default="cloud", choices=[*kernel.METAPACKAGES, "none"]
    )
    parser.add_argument("--module", action="append", default=[], help="one more; repeatable")
    parser.add_argument("--program", action="append", default=[], help="of guests/programs, too")
    parser.add_argument("--name", help="of the file, if not the flavour's")
    options = parser.parse_args()
    try:
        modules = MODULES + options.module
        print(build(options.flavour, modules, options.name, options.program))
    except debian.PackageError as error:
        sys.exit(f"guests: {error}")


if __name__ == "__main__":
    main()
