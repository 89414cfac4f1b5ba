"""One machine, one trial: what is done to it, and what must come of it.

Every function does one thing over ssh, prints a line about it, and raises SoakError if the outcome
isn't what it must be. ``python -m tests.soak.trial`` runs here, so where KVM runs Linux.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from guests import debian, debian_disk
from tests.soak.server import CARDS, SECOND_DISK, Card, Server, SoakError, running

MIB = 1 << 20
PORT = 5201
"""The first card's iperf3; the second has the next."""

GRACE_SECONDS = 120
"""For what iperf3 does besides measuring, on a busy machine."""

JSON = ("--json", "--get-server-output")
LAB_PATIENCE = 2
"""Seconds without a byte that don't count in the lab. On a busy host whole guests stand still there
for a second now and then, see what pulse.py finds."""

# What the guest's kernel may not have to say about its devices.
COMPLAINTS = re.compile(
    r"I/O error|EXT4-fs (error|warning)|NETDEV WATCHDOG|transmit queue .* timed out"
    r"|blocked for more than|nobody cared|virtio.*(broken|not a head|failed)|kernel BUG|Oops"
)


class Amounts(NamedTuple):
    """How much is done."""

    seconds: int
    pings: int
    copy_mib: int
    disk_mib: int


REDUCED = Amounts(seconds=6, pings=300, copy_mib=16, disk_mib=32)
FULL = Amounts(seconds=60, pings=5000, copy_mib=200, disk_mib=256)


def iperf(server: Server, card: Card, seconds: int, *options: str) -> dict[str, float]:
    """TCP through one card; MB/s by direction, as the guest sees it."""
    port = PORT + CARDS.index(card)
    words = ["iperf3", "--client", card.guest, "--port", str(port), *JSON, *options]
    said = server.run([*words, "--time", str(seconds)], seconds + GRACE_SECONDS)
    try:
        return iperf_rates(said, seconds, LAB_PATIENCE if "PYVMM_LAB" in os.environ else 0)
    except SoakError as error:
        raise SoakError(f"iperf3, {card.tap}: {error}{server.gaps()}") from None


def iperf_rates(said: str, seconds: int, patience: int = 0) -> dict[str, float]:
    """What iperf3 reports. There may be no more than ``patience`` seconds in a row in which nothing
    arrived. (A sender that fills a large buffer now and then is idle in between.)"""
    report = json.loads(said)
    if "error" in report:
        raise SoakError(report["error"])
    rates = {}
    for direction, end in (("in", report.get("server_output_json", {})), ("out", report)):
        sums = [each for i in end.get("intervals", []) for name, each in i.items() if "sum" in name]
        # The last one may be but a moment.
        flow = [each for each in sums if not each["sender"] and each["seconds"] > 0.5]
        if not flow:
            continue
        stalls = "".join("x" if each["bytes"] else " " for each in flow).split("x")
        if len(flow) < seconds - 1 or max(map(len, stalls)) > patience:
            seen = ", ".join(f"{each['bytes'] / 1e6:.1f}" for each in flow)
            raise SoakError(f"{direction}, MB in each of {seconds} s: {seen}")
        rates[direction] = sum(each["bytes"] for each in flow) / seconds / 1e6
    if not rates:
        raise SoakError("nothing has arrived")
    return rates


def shown(rates: dict[str, float]) -> str:
    """One card's."""
    return ", ".join(f"{direction} {rate:.1f}" for direction, rate in rates.items()) + " MB/s"


def throughput(server: Server, amounts: Amounts) -> str:
    """A card after the other, a direction after the other."""
    parts = []
    for card in CARDS:
        into = iperf(server, card, amounts.seconds)
        out = iperf(server, card, amounts.seconds, "--reverse")
        parts.append(f"{card.tap} {shown(into | out)}")
    return f"{amounts.seconds} s each: {'; '.join(parts)}"


def ping(server: Server, amounts: Amounts) -> str:
    """A flood of packets on both cards, small, full and in fragments. Each must come back."""
    floods = [
        f"ping -f -q -c {amounts.pings} -s {size} {card.host}"
        for card in CARDS
        for size in (56, 1472, 8000)
    ]
    said = server.ssh("; ".join(floods))
    losses = re.findall(r"([\d.]+)% packet loss", said)
    if losses != ["0"] * len(floods):
        raise SoakError(f"ping: {said.strip()}")
    return f"{len(floods) * amounts.pings} echoes, none lost"


def copy(server: Server, amounts: Amounts) -> str:
    """A file to the guest and back; all three copies must be the same."""
    with tempfile.TemporaryDirectory() as scratch:
        original, returned = Path(scratch, "original"), Path(scratch, "returned")
        with original.open("wb") as file:
            for _ in range(amounts.copy_mib):
                file.write(os.urandom(MIB))
        digest = _digest(original)
        start = time.monotonic()
        remote = f"root@{CARDS[0].guest}:/root/copy"
        server.copy(str(original), remote)
        there = time.monotonic()
        # What is in the guest's page cache now isn't what the disk has.
        command = "sync; echo 3 >/proc/sys/vm/drop_caches; md5sum </root/copy"
        if server.ssh(command).split()[0] != digest:
            raise SoakError("copy: what arrived in the guest is something else")
        back = time.monotonic()
        server.copy(remote, str(returned))
        end = time.monotonic()
        if _digest(returned) != digest:
            raise SoakError("copy: what came back from the guest is something else")
    server.ssh("rm /root/copy")
    return f"{amounts.copy_mib} MiB in {there - start:.0f} s, and back in {end - back:.0f} s"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fio_command(mib: int, seconds: int = 0) -> str:
    """Writes of all sizes all over the second disk, each read back and compared by its CRC."""
    words = f"fio --name=soak --filename={SECOND_DISK} --size={mib}M --direct=1 --ioengine=libaio"
    words += " --rw=randwrite --bsrange=4k-1m --iodepth=32 --verify=crc32c --verify_fatal=1"
    words += " --verify_backlog=256 --output-format=json"
    return words + (f" --time_based --runtime={seconds}" if seconds else "")


def fio_outcome(said: str) -> str:
    """What fio's report says."""
    (job,) = json.loads(said[said.index("{") :])["jobs"]
    if job["error"]:
        raise SoakError(f"fio: error {job['error']}")
    read, written = (job[way]["io_bytes"] >> 20 for way in ("read", "write"))
    if not read:
        raise SoakError("fio: nothing was read back")
    return f"{written} MiB written, {read} MiB read back and right"


def disk(server: Server, amounts: Amounts) -> str:
    """The second disk by itself."""
    return fio_outcome(server.ssh(fio_command(amounts.disk_mib)))


def root_command(mib: int) -> str:
    """Files written to the root disk, and read back from there, not from the page cache."""
    write = f"a=$(head -c {mib}M /dev/urandom | tee /root/f | md5sum); sync"
    read = "echo 3 >/proc/sys/vm/drop_caches; b=$(md5sum </root/f)"
    return f'set -e; for i in 1 2; do {write}; {read}; [ "$a" = "$b" ]; done; rm /root/f'


def together(server: Server, amounts: Amounts) -> str:
    """Both disks and both cards, these in both directions, at once."""
    mib, seconds = amounts.disk_mib, amounts.seconds
    with concurrent.futures.ThreadPoolExecutor() as pool:
        flows = [pool.submit(iperf, server, card, seconds, "--bidir") for card in CARDS]
        verified = pool.submit(server.ssh, fio_command(mib, seconds))
        compared = pool.submit(server.ssh, root_command(mib))
        rates = [
            f"{card.tap} {shown(flow.result())}" for card, flow in zip(CARDS, flows, strict=True)
        ]
        compared.result()
        return f"{'; '.join(rates)}; {fio_outcome(verified.result())}"


STEPS: tuple[Callable[[Server, Amounts], str], ...] = (throughput, ping, copy, disk, together)


def trial(directory: Path, transport: str, cpus: int, amounts: Amounts) -> None:
    """Start the machine, do everything, switch it off, and look at what is left."""
    root, second = directory / "root.raw", directory / "second.raw"
    subprocess.run(["cp", "--sparse=always", str(debian_disk.IMAGE), str(root)], check=True)
    with second.open("wb") as file:
        file.truncate(amounts.disk_mib * MIB)
    start = time.monotonic()
    with running(root, second, transport, cpus) as server:
        say("boot", time.monotonic() - start, f"{server.ssh('uname -r; nproc').split()}")
        for card in CARDS:
            server.ssh(f"iperf3 --server --daemon --json --port {PORT + CARDS.index(card)}")
        for step in STEPS:
            start = time.monotonic()
            said = step(server, amounts)
            say(step.__name__, time.monotonic() - start, said + server.gaps())
        complaints = server.ssh("journalctl -k -q -o cat -p warning")
        for line in complaints.splitlines():
            print(f"  the guest's kernel: {line}", flush=True)
        ending = server.power_off()
    *more, last = ending.splitlines() or [""]
    print(f"  {last}", flush=True)
    if more or "guest powered off" not in last:
        raise SoakError(f"pyvmm said more than that the guest powered off:\n{ending}")
    if found := COMPLAINTS.search(complaints):
        raise SoakError(f"the guest's kernel complained: {found[0]}")
    fsck = [str(debian.which("e2fsck")), "-fn", str(root)]
    result = subprocess.run(fsck, capture_output=True, text=True)
    if result.returncode:
        raise SoakError(f"the root file system isn't clean:\n{result.stdout}")


def say(step: str, seconds: float, said: str) -> None:
    """A line about what went well."""
    print(f"  {step:12} {seconds:5.0f} s  {said}", flush=True)


def main() -> int:
    """The command line's trial."""
    parser = argparse.ArgumentParser(description="One machine, one trial.")
    parser.add_argument("--transport", default="pci")
    parser.add_argument("--cpus", type=int, default=2)
    for name, default in REDUCED._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    options = vars(parser.parse_args())
    transport, cpus = options.pop("transport"), options.pop("cpus")
    try:
        with tempfile.TemporaryDirectory(prefix="pyvmm-soak-") as directory:
            trial(Path(directory), transport, cpus, Amounts(**options))
    except (SoakError, debian.PackageError) as error:
        print(f"  FAILED: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
