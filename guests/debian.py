"""Debian's packages: install the tools that are missing, or unpack a package below ``build/``.

``python3 -m guests.debian NEED…`` makes sure of tools and headers on this machine (``NEEDS`` has
their names). As root it installs what is missing; otherwise it says which command does.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

from guests import artefacts

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")


class PackageError(Exception):
    """Something is missing here, and this is the sentence about it."""


def which(command: str) -> str | None:
    """Find a command, also where Debian keeps root's."""
    return shutil.which(command, path=SEARCH_PATH)


def _command(name: str) -> Callable[[], bool]:
    return lambda: which(name) is not None


def _has_python_headers() -> bool:
    return Path(sysconfig.get_path("include"), "Python.h").is_file()


def _has_venv() -> bool:
    return all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))


# What can be needed: how to see that it is there, and Debian's packages for it.
NEEDS: dict[str, tuple[Callable[[], bool], list[str]]] = {
    "gcc": (_command("gcc"), ["gcc", "libc6-dev"]),
    "ld": (_command("ld"), ["binutils"]),
    "libc headers": (Path("/usr/include/stdio.h").is_file, ["libc6-dev"]),
    "kernel headers": (Path("/usr/include/linux/kvm.h").is_file, ["linux-libc-dev"]),
    "Python headers": (_has_python_headers, ["python3-dev"]),
    "venv": (_has_venv, ["python3-venv"]),
    "dpkg-deb": (_command("dpkg-deb"), ["dpkg"]),
    "depmod": (_command("depmod"), ["kmod"]),
    "mke2fs": (_command("mke2fs"), ["e2fsprogs"]),
    "debugfs": (_command("debugfs"), ["e2fsprogs"]),
    "mmdebstrap": (_command("mmdebstrap"), ["mmdebstrap"]),
    "grub-mkimage": (_command("grub-mkimage"), ["grub-common"]),
    "fakeroot": (_command("fakeroot"), ["fakeroot"]),
    "ssh": (_command("ssh"), ["openssh-client"]),
    "ip": (_command("ip"), ["iproute2"]),
    "nft": (_command("nft"), ["nftables"]),
    "iperf3": (_command("iperf3"), ["iperf3"]),
    "iasl": (_command("iasl"), ["acpica-tools"]),
    "chromium": (_command("chromium"), ["chromium", "fonts-dejavu-core"]),
    "qemu-system-x86_64": (_command("qemu-system-x86_64"), ["qemu-system-x86"]),
    "virtiofsd": (VIRTIOFSD.is_file, ["qemu-system-common"]),
}


def ensure(*needs: str) -> None:
    """Install what is missing of ``needs``, saying what, or raise PackageError."""
    missing = _missing(needs)
    if not missing:
        return
    packages = sorted({package for need in missing for package in NEEDS[need][1]})
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    what = f"{' '.join(packages)} (for {', '.join(missing)})"
    if which("apt-get") is None:
        raise PackageError(f"missing here, under Debian's names: {what}")
    if os.geteuid() != 0:
        raise PackageError(f"missing: {what}; run: sudo {' '.join(install)}")
    say(f"setup: installing Debian packages: {what}")
    apt(install)
    if missing := _missing(needs):
        hint = f" ({platform.python_implementation()} at {sys.prefix} isn't Debian's)"
        raise PackageError(
            f"still missing after installing {' '.join(packages)}: {', '.join(missing)}"
            + (hint if sys.prefix != "/usr" else "")
        )


def dependency(metapackage: str) -> str:
    """Resolve a metapackage to the first package that it depends on."""
    for line in apt(["apt-cache", "depends", metapackage]).splitlines():
        relation, _, package = line.strip().partition(": ")
        if relation == "Depends":
            return package
    raise PackageError(f"Debian's package {metapackage} depends on nothing")


def unpack(package: str, target: Path) -> None:
    """Download a package and unpack its files below ``target``; nothing is installed."""
    ensure("dpkg-deb")
    target.mkdir(parents=True)
    say(f"setup: downloading Debian package: {package} (unpacked below build/, not installed)")
    apt(["apt-get", "download", "-o", "APT::Sandbox::User=root", package], cwd=target)
    (archive,) = target.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
    archive.unlink()


def fetch(package: str, directory: Path) -> Path:
    """Have a package's files below ``directory``, which is returned; downloaded unless they are
    there."""
    inputs = artefacts.digest([], package)
    with artefacts.lock():
        if not artefacts.is_fresh(directory, inputs):
            with artefacts.making(directory, inputs) as unfinished:
                unpack(package, unfinished)
    return directory


def apt(command: Sequence[str], cwd: Path | None = None) -> str:
    """Run an apt command; if it fails, once more with fresh package lists. Return its output."""
    result = _quietly(command, cwd)
    if result.returncode != 0 and os.geteuid() == 0:
        say("setup: refreshing the package lists: apt-get update")
        _quietly(["apt-get", "update"], None)
        result = _quietly(command, cwd)
    if result.returncode != 0:
        reason = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        hint = "" if os.geteuid() == 0 else "; try: sudo apt-get update"
        raise PackageError(f"{' '.join(command)} failed: {' '.join(reason)}{hint}")
    return result.stdout


def say(line: str) -> None:
    """Tell the user what happens, one line, at once."""
    print(line, file=sys.stderr, flush=True)


def _missing(needs: Sequence[str]) -> list[str]:
    importlib.invalidate_caches()
    return [need for need in needs if not NEEDS[need][0]()]


def _quietly(command: Sequence[str], cwd: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise PackageError(f"{command[0]} isn't here: this needs Debian's package tools") from None


def main() -> None:
    """Make sure of the needs named on the command line."""
    try:
        ensure(*sys.argv[1:])
    except PackageError as error:
        sys.exit(f"setup: {error}")


if __name__ == "__main__":
    main()
