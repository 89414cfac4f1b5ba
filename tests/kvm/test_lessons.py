"""The lessons of guests/lessons: each prints what its reader should see, and powers off."""

from __future__ import annotations

import os
import re
import socket
import struct
from pathlib import Path

import pytest
from kvm.command import PYVMM, TIMEOUT, run_to_end, start
from kvm.namespace import shell

HOST, GUEST = "10.0.5.1", "10.0.5.2"


def printed(*options: object) -> list[str]:
    """The lines on the console of a run that powered off."""
    words = [*PYVMM, "run", *map(str, options), "--timeout", str(TIMEOUT)]
    ended = run_to_end(words, b"", TIMEOUT)
    assert ended.status == 0, ended
    assert "guest:" not in ended.stderr, "it does nothing wrong"
    return ended.lines


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A MiB that begins with a text."""
    path = tmp_path / "disk.raw"
    path.write_bytes(b"sector 0 of the disk".ljust(1 << 20, b"\0"))
    return path


def test_01_hello(lessons: Path) -> None:
    assert printed("-d", lessons / "01_hello.img")[-1] == "hello from the boot sector"


def test_02_bios(lessons: Path) -> None:
    lines = printed("-d", lessons / "02_bios.img", "-m", "64M")
    assert lines[-3:] == ["tick"] * 3
    lines = lines[lines.index("the second sector is here") + 1 : -3]
    ranges = [re.fullmatch(r"([0-9A-F]{16}), long ([0-9A-F]{8}): (.*)", line) for line in lines]
    ram = [(int(r[1], 16), int(r[2], 16)) for r in ranges if r and r[3] == "RAM"]
    assert all(ranges)
    assert ram[0][0] == 0
    assert ram[-1][0] == 1 << 20
    assert 60 << 20 < sum(length for _, length in ram) <= 64 << 20


def test_03_protected(lessons: Path) -> None:
    assert printed("--flat", lessons / "03_protected.bin") == [
        "hello from protected mode",
        "2 MiB is within reach",
        "a segment can begin anywhere",
    ]


def test_04_long(lessons: Path) -> None:
    assert printed("--flat", lessons / "04_long.bin") == [
        "32 bits, no paging",
        "64 bits, and RAX holds 0123456789abcdef",
    ]


def test_05_pic(lessons: Path) -> None:
    ticks = [f"tick {n}" for n in range(1, 11)]
    lines = printed("-k", lessons / "05_pic.elf")
    assert lines == ["50 ticks a second", *ticks, "no more ticks"]


def test_06_apic(lessons: Path) -> None:
    first, rate, one_shot, *ticks = printed("-k", lessons / "06_apic.elf")
    assert first == "local APIC 0"
    match = re.fullmatch(r"its timer counts (\d+) million times a second", rate)
    assert match
    assert int(match[1]) > 0
    assert one_shot == "one shot, and it stands at 0"
    assert ticks == ["periodic tick"] * 5


def test_07_paging(lessons: Path) -> None:
    assert printed("-k", lessons / "07_paging.elf") == [
        "the first write",
        "  page fault: write to 8000000000, which is not mapped",
        "the second",
        "it is 43",
        "the next page, read",
        "  page fault: read of 8000001000, which is not mapped",
        "it is 0",
        "a write to the first, now read-only",
        "  page fault: write to 8000000000, which is read-only",
        "it is 44, after 5 frames",
    ]


def test_08_ring3(lessons: Path) -> None:
    hello, protection, page_fault, refused, back = printed("-k", lessons / "08_ring3.elf")
    assert hello == "hello from ring 3"
    assert re.fullmatch("ring 0: general protection fault at 4000[0-9a-f]{2}", protection)
    # The page is present, and the access was ring 3's.
    assert re.fullmatch("ring 0: page fault at 4000[0-9a-f]{2}, error code 5", page_fault)
    assert refused == "ring 0: 100000 is not yours to print"
    assert back == "ring 0 again"


@pytest.mark.parametrize("cpus", [1, 3])
def test_09_smp(lessons: Path, cpus: int) -> None:
    *running, total = printed("-c", cpus, "-k", lessons / "09_smp.elf")
    assert sorted(running) == [f"CPU {n} runs" for n in range(cpus)]
    assert total == f"{cpus} CPUs counted to {cpus * 1000}"


def test_10_pci(lessons: Path, disk: Path) -> None:
    lines = printed("-d", disk, "--rng", "-k", lessons / "10_pci.elf")
    heads = [line for line in lines if not line.startswith(" ")]
    assert heads[0].startswith("0:0.0: vendor ")
    assert heads[0].endswith(", class 60000")
    assert heads[1:] == [
        "0:1.0: vendor 1af4, device 1042, class 10000",
        "0:2.0: vendor 1af4, device 1044, class ff00",
    ]
    bars = [re.fullmatch(r" +BAR \d: memory ([0-9a-f]+) to ([0-9a-f]+)", line) for line in lines]
    sizes = [int(bar[2], 16) + 1 - int(bar[1], 16) for bar in bars if bar]
    assert len(sizes) >= 2
    assert all(size >= 0x1000 and size & (size - 1) == 0 for size in sizes)
    assert lines.count("    capability 11: MSI-X") == 2
    assert lines.count("    interrupt INTA") == 2


def test_11_blk(lessons: Path, disk: Path) -> None:
    assert printed("-d", disk, "-k", lessons / "11_blk.elf") == [
        "the disk has 2048 sectors",
        "read sector 0 by polling: status 0",
        "it begins: sector 0 of the disk",
        "write sector 1 by interrupt: status 0",
        "read sector 1 by interrupt: status 0",
        "it reads: written by lesson 11",
        "read sector 2048 by polling: status 1",
    ]
    assert disk.read_bytes()[512:1024] == b"written by lesson 11".ljust(512, b"\0")


@pytest.mark.usefixtures("namespace")
def test_12_net(lessons: Path) -> None:
    shell(f"""
        ip tuntap add dev tap0 mode tap
        ip address add {HOST}/24 dev tap0
        ip link set tap0 up
        echo 0 1000 >/proc/sys/net/ipv4/ping_group_range
    """)
    with start(lessons / "12_net.elf", "--net", "tap0,transport=mmio") as guest:
        guest.read_until(b"we are 10.0.5.2, at ")
        for number in range(1, 4):
            ping(number)
        status, rest, stderr = guest.finish()
    assert status == 0, stderr
    text = rest.decode().replace("\r", "")
    assert f"ARP request from {HOST}\n" in text
    assert [line for line in text.splitlines() if line.startswith("ping")] == [
        f"ping {number} from {HOST}" for number in range(1, 4)
    ]


def ping(number: int) -> None:
    """The guest answers, and the host's kernel finds the answer to be good."""
    request = struct.pack(">BBHHH", 8, 0, 0, 0, number) + os.urandom(56 + number)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as icmp:
        icmp.settimeout(20)
        icmp.connect((GUEST, 0))
        icmp.send(request)
        answer = icmp.recv(4096)
    assert answer[0] == 0
    assert answer[6:] == request[6:]


@pytest.mark.parametrize(
    ("lesson", "says"), [("11_blk", "there is no virtio disk"), ("12_net", "there is no such card")]
)
def test_without_the_device(lessons: Path, lesson: str, says: str) -> None:
    (line,) = printed("-k", lessons / f"{lesson}.elf")
    assert says in line
