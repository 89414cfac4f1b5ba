"""Debian on a disk: systemd, networking, ssh, and its stock kernel with the initrd that it made.

``python3 -m guests.debian_disk`` makes

    build/disks/debian.raw      the root disk: ext4 on the whole of it, so root=/dev/vda
    build/debian/vmlinuz        the kernel that is installed there
    build/debian/initrd.img     its initrd, by initramfs-tools
    build/debian/id_ed25519     the key that opens root's account, by ssh
    build/debian/known_hosts    the guest's own key, for ssh on the host

and prints the disk's path. On the serial console root has no password. mmdebstrap installs the
release of Debian that this machine has, from where its apt takes packages. The image is for
copying: whoever boots it from there changes it.
"""

import io
import os
import platform
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from guests import artefacts, debian

IMAGE = artefacts.BUILD / "disks/debian.raw"
DIRECTORY = artefacts.BUILD / "debian"
KERNEL = DIRECTORY / "vmlinuz"
INITRD = DIRECTORY / "initrd.img"
KEY = DIRECTORY / "id_ed25519"
KNOWN_HOSTS = DIRECTORY / "known_hosts"

ROOT = artefacts.PROJECT / "guests/debian_root"
SIZE_MIB = 2048  # A fifth of it is used; the rest takes no room in the image.

# Beyond what mmdebstrap's variant "apt" has: the essential packages and apt.
PACKAGES = """
    linux-image-cloud-amd64 initramfs-tools zstd
    systemd-sysv systemd-resolved udev dbus
    iproute2 iputils-ping openssh-server
    fio iperf3
""".split()

# Machines that start often, slowly and for minutes have no use for a daily or weekly duty, nor for
# a login prompt on a screen that they don't have.
MASKED = """
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer
    e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer
    systemd-networkd-wait-online.service getty@tty1.service
""".split()

LEFT_OUT = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"]

# In the root, $1, when all packages are in it. The first line is a file of mmdebstrap's, which has
# our apt's settings.
CUSTOMIZE = f"""set -eu
rm "$1/etc/apt/apt.conf.d/99mmdebstrap"
chroot "$1" passwd --quiet --delete root
chroot "$1" systemctl --quiet enable systemd-networkd
chroot "$1" systemctl --quiet mask {shlex.join(MASKED)}
"""

# The settings of this machine's apt that say how to reach an archive, and whether to believe it.
APT_SETTING = re.compile(r"Acquire::(https?|Check-|Retries|ForceIPv)", re.IGNORECASE)


def build() -> Path:
    """Make the disk, and what belongs to it, unless all is fresh; return the disk's path."""
    inputs = artefacts.digest([Path(__file__), ROOT])
    with artefacts.lock():
        if not all(artefacts.is_fresh(target, inputs) for target in (IMAGE, DIRECTORY)):
            debian.ensure("mmdebstrap", "mke2fs", "ssh", *([] if _is_root() else ["fakeroot"]))
            with (
                tempfile.TemporaryDirectory(dir=artefacts.BUILD) as scratch,
                artefacts.making(DIRECTORY, inputs) as directory,
                artefacts.making(IMAGE, inputs) as image,
            ):
                directory.mkdir()
                _make(Path(scratch), directory, image)
    return IMAGE


def ssh_options() -> list[str]:
    """How ssh and scp get in without a question."""
    options = ["BatchMode=yes", f"UserKnownHostsFile={KNOWN_HOSTS}", "LogLevel=ERROR"]
    return ["-F", "none", "-i", str(KEY), *(word for o in options for word in ("-o", o))]


def _make(scratch: Path, directory: Path, image: Path) -> None:
    key = directory / KEY.name
    _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "PyVMM's guest", "-f", str(key)])
    overlay, archive, root = scratch / "overlay.tar", scratch / "root.tar", scratch / "root"
    _pack_overlay(overlay, key.with_suffix(".pub"))
    debian.say("setup: installing Debian on a disk image, with mmdebstrap: a minute or two")
    _bootstrap(overlay, archive)
    root.mkdir()
    _format(archive, root, image)
    for path, name in (("vmlinuz-*", KERNEL.name), ("initrd.img-*", INITRD.name)):
        (file,) = root.glob(f"boot/{path}")
        (directory / name).write_bytes(file.read_bytes())
    host_key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    (directory / KNOWN_HOSTS.name).write_text(f"* {host_key}")


def _pack_overlay(target: Path, public_key: Path) -> None:
    """What the guest's root has before the packages come: all of it root's."""
    with tarfile.open(target, "w") as archive:
        for path in sorted(ROOT.rglob("*")):
            if path.is_file():
                _pack(archive, str(path.relative_to(ROOT)), path.read_bytes())
        _pack(archive, "root/.ssh/authorized_keys", public_key.read_bytes())


def _pack(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _bootstrap(overlay: Path, target: Path) -> None:
    release, sources = _sources()
    listing = overlay.with_name("sources.list")
    listing.write_text("".join(f"{line}\n" for line in sources))
    settings = [line for line in _lines(["apt-config", "dump"]) if APT_SETTING.match(line)]
    _run(
        [
            *("mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(PACKAGES)}"),
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
            *(f"--aptopt={setting}" for setting in settings),
            f"--essential-hook=tar-in {shlex.quote(str(overlay))} /",
            f"--customize-hook={CUSTOMIZE}",
            "--skip=cleanup/reproducible",  # The machine-id; without it, a start is a first one.
            *(release, str(target), str(listing)),
        ]
    )


def _sources() -> tuple[str, list[str]]:
    """This machine's release of Debian, and lines for sources.list: where its apt finds it."""
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    suites = {release, f"{release}-updates", f"{release}-security"}
    keyrings = sorted(Path("/usr/share/keyrings").glob("debian-archive-keyring.*"))
    signed = f"[signed-by={keyrings[0]}] " if keyrings else ""
    query = ["apt-get", "indextargets", "Created-By: Packages", "--format"]
    query.append("$(ORIGIN)|$(CODENAME)|$(COMPONENT)|deb " + signed + "$(REPO_URI) $(RELEASE) main")
    if not (targets := _lines(query)):  # This machine has never heard from its archives.
        debian.apt(["apt-get", "update"])
        targets = _lines(query)
    fields = [target.split("|") for target in targets]
    lines = [f[3] for f in fields if f[0] == "Debian" and f[1] in suites and f[2] == "main"]
    if not lines:
        raise debian.PackageError(f"apt here knows no archive of Debian's for {release!r}")
    return release, lines


def _lines(command: list[str]) -> list[str]:
    return debian.apt(command).splitlines()


def _format(archive: Path, root: Path, image: Path) -> None:
    """Unpack the root and make a file system of it, as root or as if."""
    tar = ["tar", "-xf", str(archive), "-C", str(root), "--exclude=./dev/*"]
    # Nothing is left for the guest's kernel to initialise in the background.
    features = "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    mke2fs = [str(debian.which("mke2fs")), "-q", "-t", "ext4", "-L", "debian", "-E", features]
    mke2fs += ["-J", "size=16", "-i", "32768", "-d", str(root), str(image), f"{SIZE_MIB}M"]
    script = f"{shlex.join(tar)} && {shlex.join(mke2fs)}"
    _run([*([] if _is_root() else ["fakeroot"]), "sh", "-c", script])


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        reason = [line for line in result.stderr.splitlines() if line.strip()][-1:]
        raise debian.PackageError(f"{command[0]} failed: {' '.join(reason)}")


def _is_root() -> bool:
    return os.geteuid() == 0


def main() -> None:
    """Build the disk."""
    try:
        print(build())
    except debian.PackageError as error:
        sys.exit(f"guests: {error}")


if __name__ == "__main__":
    main()
