"""Debian on a disk of its own: GRUB in the boot sector, and the kernel and initrd of its /boot.

``python3 -m guests.grub_disk`` makes ``build/disks/grub.raw`` and prints its path. It has one
partition, with the file system that ``guests.debian_disk`` makes; the gap before it has GRUB's
core. Nothing is mounted for making it, and root isn't needed. The image is for copying: whoever
boots it from there changes it.

Where GRUB keeps what an installation changes is in its include/grub/i386/pc/boot.h and
include/grub/offsets.h.
"""

import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from guests import artefacts, debian, debian_disk

PACKAGE = "grub-pc-bin"
DIRECTORY = artefacts.BUILD / "grub"
PLATFORM = DIRECTORY / "usr/lib/grub/i386-pc"
IMAGE = artefacts.BUILD / "disks/grub.raw"

SECTOR = 512
PARTITION = 2048  # The first sector, as all partitioning programs have it.
LINUX = 0x83
ACTIVE = 0x80
LBA_ONLY = b"\xfe\xff\xff"  # What an address in cylinders, heads and sectors says beyond its reach.
PARTITION_TABLE = 0x1BE
BOOT_SIGNATURE = 0x1FE

# In boot.img: a jump past a check of the drive's number. For floppies it stays.
DRIVE_CHECK = 0x66
NOPS = b"\x90\x90"
# In the core's first sector, at its end: which sectors have the rest, and the segment it goes to.
BLOCK_LIST = struct.Struct("<QHH")
CORE_SEGMENT = 0x820

# What GRUB needs for reading the others from the partition.
CORE_MODULES = ["biosdisk", "part_msdos", "ext2"]
PREFIX = "/boot/grub"

CONFIGURATION = """\
# The screen is the terminal at COM1: GRUB drives it itself.
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=5
menuentry "Debian" {
    linux /vmlinuz root=LABEL=debian console=ttyS0 quiet
    initrd /initrd.img
}
menuentry "Debian, with all messages" {
    linux /vmlinuz root=LABEL=debian console=ttyS0
    initrd /initrd.img
}
"""
FSTAB = "LABEL=debian / ext4 errors=remount-ro 0 1\n"


def build() -> Path:
    """Make the disk unless it is fresh; return its path."""
    debian.ensure("grub-mkimage", "debugfs")
    file_system = debian_disk.build()
    debian.fetch(PACKAGE, DIRECTORY)
    made = file_system.stat().st_mtime_ns  # It is too large for reading it each time.
    inputs = artefacts.digest([Path(__file__)], str(made))
    with artefacts.lock():
        if not artefacts.is_fresh(IMAGE, inputs):
            debian.say("setup: installing GRUB on a disk image")
            with (
                tempfile.TemporaryDirectory(dir=artefacts.BUILD) as scratch,
                artefacts.making(IMAGE, inputs) as image,
            ):
                _copy(file_system, image)
                _add_files(image, Path(scratch))
                _install(image, Path(scratch))
    return IMAGE


def _copy(file_system: Path, image: Path) -> None:
    """Make the disk with the file system where its partition is, holes and all."""
    offset = PARTITION * SECTOR
    with image.open("wb") as disk:
        disk.truncate(offset + file_system.stat().st_size)
    dd = ["dd", f"if={file_system}", f"of={image}", "status=none", "conv=sparse,notrunc"]
    subprocess.run([*dd, f"bs={offset}", "seek=1"], check=True)


def _add_files(image: Path, scratch: Path) -> None:
    """Give the file system GRUB's modules and menu, and say in it that it is a partition's."""
    files = {
        f"{PREFIX}/i386-pc/{module.name}": module
        for pattern in ("*.mod", "*.lst")
        for module in sorted(PLATFORM.glob(pattern))
    }
    for path, text in ((f"{PREFIX}/grub.cfg", CONFIGURATION), ("/etc/fstab", FSTAB)):
        files[path] = scratch / Path(path).name
        files[path].write_text(text)
    commands = [f"mkdir {PREFIX}", f"mkdir {PREFIX}/i386-pc", "rm /etc/fstab"]
    commands += [f"write {source} {path}" for path, source in files.items()]
    debugfs = [str(debian.which("debugfs")), "-w", "-f", "-", _partition(image)]
    script = "".join(f"{command}\n" for command in commands)
    subprocess.run(debugfs, input=script, text=True, check=True, capture_output=True)


def _partition(image: Path) -> str:
    """How the tools of e2fsprogs name a file system that begins within a file."""
    return f"{image}?offset={PARTITION * SECTOR}"


def _install(image: Path, scratch: Path) -> None:
    """Put GRUB into the boot sector and the gap, which is what grub-install does with a disk."""
    path = scratch / "core.img"
    mkimage = ["grub-mkimage", "-d", str(PLATFORM), "-O", "i386-pc", "-o", str(path)]
    subprocess.run([*mkimage, "-p", f"(,msdos1){PREFIX}", *CORE_MODULES], check=True)
    core = bytearray(path.read_bytes())
    core += bytes(-len(core) % SECTOR)
    sectors = len(core) // SECTOR
    assert sectors < PARTITION, "the gap is large enough"
    rest = (2, sectors - 1, CORE_SEGMENT)  # The core's first sector is 1, as boot.img has it.
    BLOCK_LIST.pack_into(core, SECTOR - BLOCK_LIST.size, *rest)

    boot = bytearray((PLATFORM / "boot.img").read_bytes())
    boot[DRIVE_CHECK : DRIVE_CHECK + len(NOPS)] = NOPS
    extent = (PARTITION, image.stat().st_size // SECTOR - PARTITION)
    boot[PARTITION_TABLE:BOOT_SIGNATURE] = struct.pack(
        "<B3sB3sII48x", ACTIVE, LBA_ONLY, LINUX, LBA_ONLY, *extent
    )
    with image.open("r+b") as disk:
        disk.write(boot + core)


def main() -> None:
    """Build the disk."""
    try:
        print(build())
    except debian.PackageError as error:
        sys.exit(f"guests: {error}")


if __name__ == "__main__":
    main()
