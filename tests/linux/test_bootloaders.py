"""Boot loaders as Debian has them: on a disk, from a network, and one that makes a disk."""

from __future__ import annotations

import http.server
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kvm.assembler import assemble
from kvm.command import PYVMM, Running
from linux.boot import Images, boot, built

from guests import artefacts, grub_disk, ipxe, memdisk, network, seabios

TIMEOUT = 600
"""Seconds for one test. In the lab the longest, from GRUB to a login and off again, takes 60."""

MENU = b"executed automatically in"
DOWN, END_OF_LINE, BOOT, CTRL_B = b"\x1b[B", b"\x05", b"\x18", b"\x02"


@contextmanager
def running(*options: str) -> Iterator[Running]:
    guest = Running([*PYVMM, "run", *options, "--timeout", str(TIMEOUT)])
    try:
        yield guest
    finally:
        guest.process.kill()
        guest.process.communicate()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A fresh copy of the disk with GRUB; it takes half a gigabyte, so not for longer than the
    test."""
    copy = tmp_path / "grub.raw"
    subprocess.run(["cp", "--sparse=always", str(built(grub_disk.IMAGE)), str(copy)], check=True)
    yield copy
    copy.unlink()


def test_grub_boots_debian_from_its_disk(disk: Path) -> None:
    """From the menu, with an entry that is edited there, to a login, and off."""
    options = ("--disk", str(disk), "--memory", "1G")
    with running(*options) as guest:
        guest.read_until(MENU)
        guest.write(b"e")
        guest.read_until(b"Ctrl-x")
        # The third line is Linux's. getty.target is what a login needs, and little else.
        guest.write(2 * DOWN + END_OF_LINE + b" edited systemd.unit=getty.target" + BOOT)
        guest.read_until(b"debian login: ")
        guest.write(b"root\n")
        guest.read_until(b"root@debian:~# ")
        guest.write(b"cat /proc/cmdline; findmnt -no SOURCE /; poweroff\n")
        guest.read_until(b"BOOT_IMAGE=/vmlinuz")
        assert b" edited " in guest.read_until(b"/dev/vda1")
        status, _, stderr = guest.finish()
    assert status == 0, stderr
    assert "guest powered off" in stderr


def test_seabios_boots_the_same_disk() -> None:
    options = ("--firmware", str(built(seabios.ROM)))
    with running(*options, "--disk", f"{built(grub_disk.IMAGE)},readonly=on") as guest:
        assert b"SeaBIOS (version" in guest.read_until(b"GRUB loading.")
        assert b"*Debian" in guest.read_until(MENU)


class Server(http.server.ThreadingHTTPServer):
    """A web server for what is below build/, which remembers what it gave."""

    def __init__(self) -> None:
        super().__init__((network.HOST, 0), Handler)
        self.given: list[str] = []


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments, directory=str(artefacts.BUILD))  # type: ignore[arg-type]

    def log_request(self, code: object = "-", size: object = "-") -> None:
        self.server.given.append(f"{self.path} {int(str(code))}")


@pytest.fixture
def server(tap: str) -> Iterator[Server]:
    with Server() as opened:
        threading.Thread(target=opened.serve_forever, daemon=True).start()
        yield opened
        opened.shutdown()


def test_ipxe_boots_linux_by_http(images: Images, tap: str, server: Server) -> None:
    """From its prompt, where a long line is typed."""
    paths = [f"/{path.relative_to(artefacts.BUILD)}" for path in (images.bzimage, images.initrd)]
    kernel, initrd = (f"http://{network.HOST}:{server.server_port}{path}" for path in paths)
    words = "console=ttyS0 quiet nokaslr cryptomgr.notests end=poweroff"
    line = f"dhcp && kernel {kernel} {words} && initrd {initrd} && boot"
    with running("--kernel", str(built(ipxe.KERNEL)), "--memory", "512M", "--net", tap) as guest:
        guest.read_until(b"Ctrl-B")
        guest.write(CTRL_B + line.encode() + b"\r")
        console = guest.read_until(b"Power down")
        status, _, stderr = guest.finish()
    # It shows each character twice, in the same place: by the BIOS, and by its own serial driver.
    text = re.sub(rb".\x08", b"", console).decode(errors="replace")
    assert "iPXE> dhcp && " in text
    assert server.given == [f"{path} 200" for path in paths], text
    assert status == 0, stderr
    assert "guest powered off" in stderr


FLOPPY = """
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ax, 0x0201              # the last sector: cylinder 79, head 1, sector 18
    mov bx, 0x8000
    mov cx, 0x4f12
    mov dh, 1
    int 0x13
    jc failed
    mov si, bx
1:  lodsb
    test al, al
    jz off
    mov ah, 0x0e
    mov bx, 7
    int 0x10
    jmp 1b
off:
    mov dx, 0x604
    mov ax, 5 << 10 | 1 << 13
    out dx, ax
failed:
    hlt
    jmp failed
"""


def test_memdisk_boots_a_floppy(tmp_path: Path) -> None:
    image = bytearray(1440 << 10)
    code = assemble(FLOPPY, address=0x7C00)
    image[: len(code)] = code
    image[510:512] = b"\x55\xaa"
    text = b"the floppy's last sector\r\n"
    image[-512 : -512 + len(text)] = text
    floppy = tmp_path / "floppy.img"
    floppy.write_bytes(image)
    ended = boot(built(memdisk.KERNEL), "--initrd", str(floppy), "--memory", "16M")
    assert ended.status == 0, ended
    assert ended.lines[-1] == "the floppy's last sector"
