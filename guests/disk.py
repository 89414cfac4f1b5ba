"""The guests' root disk: busybox on ext4, with /sbin/init, in a raw image.

``python3 -m guests.disk`` makes ``build/disks/busybox.raw`` and prints its path. The image is for
copying: whoever boots it from there changes it. Nothing is mounted for making it, and root isn't
needed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from guests import artefacts, busybox, debian, initramfs

SIZE_MIB = 32

# No journal: what the guest has synced can be read from the image at once, by debugfs on the host,
# even if the machine was killed. The device nodes are for kernels that don't mount devtmpfs.
FEATURES = "^has_journal"
NODES = "cd /dev\nmknod console c 5 1\nmknod null c 1 3\n"


def build() -> Path:
    """Make the disk unless it is fresh; return its path."""
    debian.ensure("mke2fs", "debugfs")
    program = busybox.build()
    target = artefacts.BUILD / "disks/busybox.raw"
    inputs = artefacts.digest([Path(__file__), initramfs.ROOT, program])
    with artefacts.lock():
        if not artefacts.is_fresh(target, inputs):
            with tempfile.TemporaryDirectory() as root, artefacts.making(target, inputs) as image:
                _fill(Path(root), program)
                _format(image, Path(root))
    return target


def read_file(image: Path, path: str) -> str:
    """Read a text file of an ext4 image, without mounting it; empty if there is none."""
    command = [str(debian.which("debugfs")), "-R", f"cat {path}", str(image)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _fill(root: Path, program: Path) -> None:
    for directory in ("bin", "dev", "mnt", "proc", "root", "run", "sys", "tmp", "var/log"):
        (root / directory).mkdir(parents=True)
    subprocess.run(["cp", "-R", f"{initramfs.ROOT}/.", root], check=True)
    subprocess.run(["cp", program, root / "bin/busybox"], check=True)
    for applet in busybox.applets(program):
        link = root / applet
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/bin/busybox")


def _format(image: Path, root: Path) -> None:
    mke2fs = [str(debian.which("mke2fs")), "-q", "-t", "ext4", "-O", FEATURES, "-L", "pyvmm"]
    command = [*mke2fs, "-E", "root_owner=0:0", "-d", str(root), str(image), f"{SIZE_MIB}M"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    debugfs = [str(debian.which("debugfs")), "-w", "-f", "-", str(image)]
    subprocess.run(debugfs, input=NODES, text=True, check=True, capture_output=True)


def main() -> None:
    """Build the disk."""
    try:
        print(build())
    except debian.PackageError as error:
        sys.exit(f"guests: {error}")


if __name__ == "__main__":
    main()
