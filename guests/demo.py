"""The demonstration: Debian's kernel, busybox on a disk image, and the result on the host.

``python -m guests.demo`` boots a fresh copy of the root disk, has the guest's own ``demo`` command
write a file there, and afterwards looks for that file in the image. ``--shell`` boots the copy
that is there, for use by hand, and ``--debian`` a copy of the disk with all of Debian, with a
network if we are root; with ``--grub`` its boot loader starts it. All run ``pyvmm`` where KVM can
run Linux: here, or else in the lab.
"""

import argparse
import os
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

from guests import artefacts, debian, debian_disk, disk, grub_disk, initramfs, kernel, network
from pyvmm.kvm.system import host_has_hardware_kvm

LAB = artefacts.PROJECT / "tests/lab/lab.py"
IMAGE = artefacts.BUILD / "lab-out/demo.raw"  # Where the lab's writes reach the host's disk.
DEBIAN_IMAGE = IMAGE.with_name("debian.raw")
GRUB_IMAGE = IMAGE.with_name("grub.raw")
LOG_IN = "log in as root; `poweroff` or Ctrl-A x ends it. In the lab, it needs a minute"
FILE = "/demo.txt"
TIMEOUT_SECONDS = 120  # In the lab it needs a tenth of that.
STATUS_QUIT = 130  # pyvmm's, after Ctrl-A x: here the ordinary end.


class DemoError(Exception):
    """The demonstration has failed, and this is the sentence about it."""


def demonstrate() -> None:
    """Boot, let the guest write, power off, and read what it has written."""
    copy_image(disk.build(), IMAGE)
    nonce = secrets.token_hex(8)
    command = [*machine(), "--append", f'job="demo {nonce}"']
    lab_options = ["--timeout", str(TIMEOUT_SECONDS)]
    status = run(lab_options, command)
    if status != 0 and not host_has_hardware_kvm():
        print(f"demo: status {status}; the lab's CPU isn't faultless, so once more", flush=True)
        copy_image(disk.build(), IMAGE)
        status = run(lab_options, command)
    if status != 0:
        raise DemoError(f"pyvmm ended with status {status}")
    print(f"\n$ debugfs -R 'cat {FILE}' {shown(IMAGE)}", flush=True)
    content = disk.read_file(IMAGE, FILE)
    print(content, end="", flush=True)
    if not content.startswith(nonce):
        raise DemoError(f"the guest's {FILE} isn't in the image")
    print("demo: the guest's file is in the image, and pyvmm's exit status was 0")


def interact() -> int:
    """Boot for use by hand; return pyvmm's exit status."""
    if not IMAGE.exists():
        copy_image(disk.build(), IMAGE)
    return run_by_hand([*machine(), "--append", "quiet"], "shell: `poweroff` or Ctrl-A x ends it")


def interact_with_debian() -> int:
    """Boot all of Debian for use by hand; return pyvmm's exit status."""
    pristine = debian_disk.build()
    if not DEBIAN_IMAGE.exists():
        copy_image(pristine, DEBIAN_IMAGE)
    paths = {
        "--kernel": debian_disk.KERNEL,
        "--initrd": debian_disk.INITRD,
        "--disk": DEBIAN_IMAGE,
    }
    command = pyvmm(paths, "--memory", "1G", "--cpus", "2", "--append", "root=/dev/vda quiet")
    return run_by_hand(with_network(command), f"debian: {LOG_IN}")


def interact_with_grub() -> int:
    """Let Debian's own boot loader start it, for use by hand; return pyvmm's exit status."""
    pristine = grub_disk.build()
    if not GRUB_IMAGE.exists():
        copy_image(pristine, GRUB_IMAGE)
    command = pyvmm({"--disk": GRUB_IMAGE}, "--memory", "1G", "--cpus", "2")
    return run_by_hand(with_network(command), f"grub: {LOG_IN}")


def with_network(command: list[str]) -> list[str]:
    """The command with a network for its guest, if we may make one."""
    if os.geteuid() == 0:
        prefix = [".venv/bin/python", "-m", "guests.network", "--tap", network.TAP, "--"]
        command = [*prefix, *command, "--net", network.TAP, "--on-reboot", "restart"]
    return command


def run_by_hand(command: list[str], hint: str) -> int:
    """Run a machine on this terminal, which may be quit at any time; return the exit status."""
    print(hint, file=sys.stderr)
    status = run(["--tty"], command)
    return 0 if status == STATUS_QUIT else status


def machine() -> list[str]:
    """The command that starts the demonstration's machine."""
    image, initrd = kernel.build("cloud"), initramfs.build("cloud")
    return pyvmm({"--kernel": image, "--initrd": initrd, "--disk": IMAGE}, "--memory", "256M")


def pyvmm(paths: dict[str, Path], *more: str) -> list[str]:
    """A ``pyvmm run`` command, from options that take a path, and others."""
    options = [word for option, path in paths.items() for word in (option, shown(path))]
    return [".venv/bin/pyvmm", "run", *options, *more]


def copy_image(pristine: Path, target: Path) -> None:
    """Put a fresh copy of a root disk, holes and all, where the machine shall find it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "--sparse=always", pristine, target], check=True)


def run(lab_options: list[str], command: list[str]) -> int:
    """Run a command where KVM can run Linux, saying what is run; return its exit status."""
    print(f"$ {shlex.join(command)}", flush=True)
    return subprocess.run([sys.executable, LAB, *lab_options, "--", *command]).returncode


def shown(path: Path) -> str:
    """Name a path as seen from the checkout, where all commands run."""
    return str(path.relative_to(artefacts.PROJECT))


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="Boot Debian's kernel with busybox on a disk.")
    parser.add_argument("--shell", action="store_true", help="interactive")
    parser.add_argument("--debian", action="store_true", help="interactive, with all of Debian")
    parser.add_argument("--grub", action="store_true", help="the same, by its own boot loader")
    options = parser.parse_args()
    try:
        if options.shell:
            return interact()
        if options.debian:
            return interact_with_debian()
        if options.grub:
            return interact_with_grub()
        demonstrate()
    except (DemoError, debian.PackageError) as error:
        print(f"demo: FAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
