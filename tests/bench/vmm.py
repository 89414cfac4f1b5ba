"""The VMMs that are compared: how each is told to run the same guest, and watched doing it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench.table import PYVMM

QEMU = "qemu-system-x86_64"
QEMU_OPTIONS = "-accel kvm -nodefaults -no-user-config -display none -no-reboot -serial stdio"
MEMORY_MIB = 256
TIMEOUT = 600
"""Seconds that one run may take, on a busy machine or in the lab."""


class Guest(NamedTuple):
    """What to run: a kernel, and what it is given."""

    kernel: Path
    append: str = ""
    initrd: Path | None = None
    disks: tuple[Path, ...] = ()
    tap: str = ""
    mac: str = ""
    cpus: int = 1


class Vmm(NamedTuple):
    """One contender. ``runs_elf``: whether it takes an ELF kernel with a PVH note."""

    name: str
    command: Callable[[Guest], list[str]]
    runs_elf: bool = True


def _pyvmm(guest: Guest) -> list[str]:
    script = Path(sys.executable).with_name("pyvmm")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "pyvmm"]
    words = [*start, "run", "--debug-exit", "--memory", f"{MEMORY_MIB}M"]
    words += ["--cpus", str(guest.cpus), "--kernel", str(guest.kernel)]
    words += ["--no-default-append", "--append", guest.append]
    if guest.initrd:
        words += ["--initrd", str(guest.initrd)]
    for disk in guest.disks:
        words += ["--disk", str(disk)]
    if guest.tap:
        words += ["--net", f"{guest.tap},mac={guest.mac}"]
    return words


def _qemu(machine: str, bus: str, more: str, guest: Guest) -> list[str]:
    words = [QEMU, "-M", machine, *QEMU_OPTIONS.split(), *more.split()]
    words += ["-m", f"{MEMORY_MIB}M", "-smp", str(guest.cpus)]
    words += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    words += ["-kernel", str(guest.kernel), "-append", guest.append]
    modern = ",disable-legacy=on" if bus == "pci" else ""
    no_rom = ",romfile=" if bus == "pci" else ""
    if guest.initrd:
        words += ["-initrd", str(guest.initrd)]
    for number, disk in enumerate(guest.disks):
        words += ["-drive", f"if=none,id=disk{number},file={disk},format=raw"]
        words += ["-device", f"virtio-blk-{bus},drive=disk{number}{modern}"]
    if guest.tap:
        words += ["-netdev", f"tap,id=net,ifname={guest.tap},script=no,downscript=no,vhost=off"]
        words += ["-device", f"virtio-net-{bus},netdev=net,mac={guest.mac}{modern}{no_rom}"]
    return words


def _microvm(guest: Guest) -> list[str]:
    return _qemu("microvm", "device", "-global virtio-mmio.force-legacy=false", guest)


def _pc(guest: Guest) -> list[str]:
    return _qemu("pc", "pci", "", guest)


def _kvmtool(guest: Guest) -> list[str]:
    words = ["lkvm", "run", "--kernel", str(guest.kernel), "--mem", str(MEMORY_MIB)]
    words += ["--cpus", str(guest.cpus), "--console", "serial", "--params", guest.append]
    if guest.initrd:
        words += ["--initrd", str(guest.initrd)]
    for disk in guest.disks:
        words += ["--disk", str(disk)]
    return words


def installed(*, elf: bool) -> list[Vmm]:
    """Who can take part here; ``elf`` if the guest is an ELF kernel."""
    vmms = [Vmm(PYVMM, _pyvmm)]
    if shutil.which(QEMU):
        vmms += [Vmm("qemu microvm", _microvm), Vmm("qemu pc", _pc)]
    if shutil.which("lkvm"):
        vmms.append(Vmm("kvmtool", _kvmtool, runs_elf=False))
    return [vmm for vmm in vmms if vmm.runs_elf or not elf]


class Line(NamedTuple):
    """What a guest printed, and when it arrived (``time.perf_counter``)."""

    at: float
    text: str


class BenchError(Exception):
    """A run didn't go as it must for its time to mean anything."""


@contextlib.contextmanager
def started(vmm: Vmm, guest: Guest) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[Line]]]:
    """The running process and the lines of its console; killed at the end."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            vmm.command(guest), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
        try:
            yield process, _lines(vmm, process)
        except BenchError as error:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            raise BenchError(f"{error}\n{said}") from error
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _lines(vmm: Vmm, process: subprocess.Popen[bytes]) -> Iterator[Line]:
    assert process.stdout is not None
    deadline = time.perf_counter() + TIMEOUT
    pending = b""
    output = process.stdout.fileno()
    while select.select([output], [], [], max(deadline - time.perf_counter(), 0))[0]:
        piece = os.read(output, 1 << 16)
        if not piece:
            raise BenchError(f"{vmm.name} ended too early")
        now = time.perf_counter()
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            yield Line(now, line.decode(errors="replace").strip())
    raise BenchError(f"{vmm.name} took more than {TIMEOUT} s")


def until(lines: Iterator[Line], pattern: str) -> list[Line]:
    """The lines up to the first that matches, inclusive."""
    passed = []
    for line in lines:
        passed.append(line)
        if re.search(pattern, line.text):
            return passed
    raise BenchError(f"no line with {pattern!r}")
