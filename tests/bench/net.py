"""A network card as a guest sees it: guests/asm/bench_net.c under every VMM, on a tap.

It all happens in a network namespace of its own, which ends with the process, so the host's
network never hears of it. What the guest receives is sent here, as packets of 64 KiB that the tap
need not cut up, at most WINDOW of them ahead of the VMM, as TCP would. Pings are answered by the
host's kernel. QEMU has no help from vhost, which is what PyVMM is compared with.
"""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from guests.asm.build import build
from tests.bench.guest import SERIES_SECONDS, Report, Series, nominal_frequency, parse, rows
from tests.bench.table import MORE, Row, from_json, to_json
from tests.bench.vmm import BenchError, Guest, Vmm, installed, started, until

ROUNDS = 7
SERIES = {
    "send": Series("network: guest to host, TCP packets of 64 KiB", "MB/s", 1e-6),
    "receive": Series("network: host to guest, the same", "MB/s", 1e-6),
    "ping": Series("network: round trips of 64 bytes", "k/s", 1e-3),
}

TAP = "tap0"
HOST_MAC, GUEST_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
SET_UP = f"""
ip tuntap add {TAP} mode tap vnet_hdr
ip link set {TAP} address {HOST_MAC}
sysctl -q net.ipv6.conf.{TAP}.disable_ipv6=1
ip link set {TAP} up
ip address add 10.0.0.1/24 dev {TAP}
ip neighbour add 10.0.0.2 lladdr {GUEST_MAC} dev {TAP}
"""

WINDOW = 64
PAYLOAD, MSS = 65160, 1448
SOL_PACKET, PACKET_VNET_HDR = 263, 15
NEEDS_CSUM, GSO_TCPV4 = 1, 1
TRANSMITTED = 9
"""The column of /proc/net/dev with the packets."""
_VIRTIO_HEADER = struct.Struct("<BBHHHH")
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_TCP = struct.Struct(">HHIIBBHHH")


def checksum(data: bytes) -> int:
    """The Internet's (RFC 1071), not inverted."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def big_packet() -> bytes:
    """A TCP packet for the guest, with what tells the kernel how it may be cut up."""
    host, guest = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    virtio = _VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_TCPV4, 54, MSS, 34, 16)
    ethernet = bytes.fromhex((GUEST_MAC + HOST_MAC).replace(":", "")) + b"\x08\x00"
    fields = [0x45, 0, 40 + PAYLOAD, 0, 0, 64, socket.IPPROTO_TCP, 0, host, guest]
    fields[7] = 0xFFFF ^ checksum(_IPV4.pack(*fields))
    pseudo = checksum(host + guest + struct.pack(">HH", socket.IPPROTO_TCP, 20 + PAYLOAD))
    tcp = _TCP.pack(9, 9, 0, 0, 5 << 4, 0x10, 0xFFFF, pseudo, 0)
    return virtio + ethernet + _IPV4.pack(*fields) + tcp + bytes(PAYLOAD)


class Sender(threading.Thread):
    """Sends big packets to the tap until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()

    def run(self) -> None:
        packet = big_packet()
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as tap:
            tap.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            tap.bind((TAP, 0))
            sent, before = 0, self.taken()
            while not self.stopping.is_set():
                room = WINDOW - (sent - (self.taken() - before))
                for _ in range(room):
                    tap.send(packet)
                sent += room
                if room < WINDOW // 4:
                    time.sleep(100e-6)

    def taken(self) -> int:
        """How many packets the VMM has read from the tap."""
        # /sys has the namespace that it was mounted in, /proc ours.
        (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if TAP in line)
        return int(line.partition(":")[2].split()[TRANSMITTED])


def run(vmm: Vmm, guest: Guest) -> Report:
    """One run, with the host's part in it."""
    sender = Sender()
    with started(vmm, guest) as (_, lines):
        passed = until(lines, "^receiving$")
        sender.start()
        passed += until(lines, "^received$")
        sender.stopping.set()
        return parse(passed + until(lines, "^ended: "))


def measure(rounds: int) -> list[Row]:
    """In the namespace: make the tap, and let each VMM have its turns."""
    subprocess.run(["sh", "-ec", SET_UP], check=True)
    ticks = int(nominal_frequency() * SERIES_SECONDS)
    guest = Guest(build() / "bench", f"ticks={ticks} net", tap=TAP, mac=GUEST_MAC)
    vmms = installed(elf=True)
    reports: dict[str, list[Report]] = {vmm.name: [] for vmm in vmms}
    for _ in range(rounds):
        for vmm in vmms:
            reports[vmm.name].append(run(vmm, guest))
    return rows(reports, SERIES, MORE)


def net(rounds: int = ROUNDS) -> list[Row]:
    """The network's rows."""
    if not Path("/dev/net/tun").exists() or not shutil.which("ip"):
        raise BenchError("needs /dev/net/tun and ip(8)")
    command = ["unshare", "--net", sys.executable, "-m", "tests.bench.net", str(rounds)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(result.stderr.strip())
    return from_json(json.loads(result.stdout))


if __name__ == "__main__":
    try:
        print(json.dumps(to_json(measure(int(sys.argv[1])))))
    except BenchError as error:
        sys.exit(str(error))
