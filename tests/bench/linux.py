"""What programs in Linux get of the disk and the network: fio and iperf3 under Debian's kernel.

The guest has our initramfs, one CPU, a disk to measure and a card. The programs are those of the
Debian disk (guests/debian_disk.py), its other disk. As in the other rows the image is in memory,
and QEMU has no help from vhost. Where this host can't run Linux all is measured in the lab, see
boot.py.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from guests import debian, debian_disk, initramfs, kernel
from tests.bench.boot import from_lab, in_lab, runs_linux, where
from tests.bench.guest import SHARED_MEMORY, disk_image
from tests.bench.net import GUEST_MAC, SET_UP, TAP
from tests.bench.table import MORE, Row, transpose
from tests.bench.vmm import BenchError, Guest, Line, Vmm, installed, started, until
from tests.kvm.namespace import network_namespace

ROUNDS = 3
LAB_ATTEMPTS = 3
"""For one run: the lab's emulated CPU isn't faultless (tests/linux/conftest.py)."""

SECONDS = 3
"""That a series takes, after one more of running in."""
DISK_MIB = 256
HOST = "10.0.0.1"

# fio's terse report, version 3: fields 7 and 8 are KiB and requests a second read, 48 and 49 those
# written; all but the first have a semicolon in front.
_READ_KIB, _READ_REQUESTS, _WRITTEN_KIB, _WRITE_REQUESTS = (
    rf"3(?:;[^;]*){{{number - 2}}};(\d+);" for number in (7, 8, 48, 49)
)
_RECEIVED = r"([\d.]+) Kbits/sec +receiver"


class Series(NamedTuple):
    """A program's options, where its report has the figure, what that is called in the table, and
    a count's worth in its unit."""

    options: str
    figure: str
    title: str
    unit: str
    worth: float


SEQUENTIAL, RANDOM = "--bs=1M --iodepth=4", "--bs=4k --iodepth=32"
FIO = {
    "read-1m": Series(
        f"--rw=read {SEQUENTIAL}", _READ_KIB, "fio: sequential read, 1 MiB", "MB/s", 1.024e-3
    ),
    "write-1m": Series(
        f"--rw=write {SEQUENTIAL}", _WRITTEN_KIB, "fio: sequential write, 1 MiB", "MB/s", 1.024e-3
    ),
    "read-4k": Series(
        f"--rw=randread {RANDOM}", _READ_REQUESTS, "fio: random read, 4 KiB, depth 32", "k/s", 1e-3
    ),
    "write-4k": Series(
        f"--rw=randwrite {RANDOM}", _WRITE_REQUESTS, "fio: random write, 4 KiB, depth 32", "k/s",
        1e-3,
    ),
}  # fmt: skip
IPERF = {
    "send": Series("", _RECEIVED, "iperf3: guest to host", "MB/s", 1.25e-4),
    "receive": Series("--reverse", _RECEIVED, "iperf3: host to guest", "MB/s", 1.25e-4),
}
SERIES = FIO | IPERF

# The order in which the guest finds its disks isn't the same under every VMM.
_PREPARE = (
    "m=vda; mount -t ext4 -o ro /dev/vdb /mnt || { m=vdb; mount -t ext4 -o ro /dev/vda /mnt; }",
    "cd /mnt",
    "mount -t tmpfs tmp tmp",
    "for each in dev proc sys; do mount -o bind /$each $each; done",
)


def script() -> str:
    """What the guest does; every series' report is a line, or some, that begin with its name."""
    fio = f"chroot . fio --name=bench --filename=/dev/$m --size={DISK_MIB}M --direct=1"
    fio += " --ioengine=libaio --thread --time_based --ramp_time=1"
    fio += f" --runtime={SECONDS} --output-format=terse"
    iperf = f"chroot . iperf3 --client {HOST} --time {SECONDS} --omit 1 --format k"
    lines = list(_PREPARE)
    for program, series in ((fio, FIO), (iperf, IPERF)):
        lines += [f"{program} {s.options} | sed s/^/{name}:/" for name, s in series.items()]
    return "; ".join(lines)


def append() -> str:
    """The kernel's command line."""
    return f'console=ttyS0 quiet reboot=t panic=-1 stay=1 net=10.0.0.2/24 job="{script()}"'


def figures(lines: Sequence[Line]) -> dict[str, float]:
    """What the guest printed, by the series' titles."""
    text = "\n".join(line.text for line in lines)
    found = {}
    for name, series in SERIES.items():
        figure = re.search(rf"^{name}:.*?{series.figure}", text, re.MULTILINE)
        if figure is None:
            raise BenchError(f"no figure for {series.title!r}:\n{text[-1000:]}")
        found[series.title] = float(figure[1]) * series.worth
    return found


def run(vmm: Vmm, guest: Guest) -> dict[str, float]:
    """One run, to its end."""
    attempts = LAB_ATTEMPTS if in_lab() else 1
    while True:
        attempts -= 1
        try:
            with started(vmm, guest) as (_, lines):
                return figures(until(lines, "^job: status"))
        except BenchError:
            if not attempts:
                raise


@contextlib.contextmanager
def tools() -> Iterator[Path]:
    """A copy of the Debian disk."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as directory:
        copy = Path(directory, "debian.raw")
        command = ["cp", "--sparse=always", str(debian_disk.IMAGE), str(copy)]
        subprocess.run(command, check=True)
        yield copy


def measure(rounds: int) -> list[Row]:
    """Here."""
    vmms = installed(elf=False)
    samples: dict[str, list[dict[str, float]]] = {vmm.name: [] for vmm in vmms}
    with network_namespace(), disk_image(DISK_MIB) as image, tools() as tools_disk:
        subprocess.run(["sh", "-ec", SET_UP], check=True)
        server = subprocess.Popen(["iperf3", "--server"], stdout=subprocess.DEVNULL)
        disks = (image, tools_disk)
        guest = Guest(kernel.build(), append(), initramfs.build(), disks, TAP, GUEST_MAC)
        try:
            for _ in range(rounds):
                for vmm in vmms:
                    samples[vmm.name].append(run(vmm, guest))
        finally:
            server.kill()
            server.wait()
    by_vmm = {name: transpose(runs) for name, runs in samples.items()}
    return [
        Row(s.title + where(), s.unit, MORE, {name: by_vmm[name][s.title] for name in by_vmm})
        for s in SERIES.values()
    ]


def linux(rounds: int = ROUNDS) -> list[Row]:
    """Here or in the lab."""
    if not runs_linux():
        debian.ensure("iperf3")
        debian_disk.build()
        return from_lab("linux", rounds)
    return measure(rounds)
