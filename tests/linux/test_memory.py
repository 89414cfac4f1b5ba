"""Guest memory and what Linux does with it: entropy, the balloon, huge and mergeable pages."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvm.command import Running
from linux.boot import TIMEOUT, Images, boot, boot_command, job

from pyvmm.backends.character import NullBackend
from pyvmm.config import MachineConfig, MemoryBacking
from pyvmm.device_config import BalloonConfig, RngConfig
from pyvmm.machine import Machine
from pyvmm.memory import MIB
from pyvmm.outcome import Reason

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")


class Console(NullBackend):
    """Collects what the guest prints."""

    def __init__(self) -> None:
        self.output = bytearray()
        self._grown = threading.Condition()

    def put(self, byte: int) -> bool:
        with self._grown:
            self.output.append(byte)
            self._grown.notify_all()
        return True

    def wait_for(self, pattern: bytes) -> re.Match[bytes]:
        with self._grown:
            assert self._grown.wait_for(lambda: re.search(pattern, self.output), TIMEOUT), (
                f"{pattern!r} did not come: {bytes(self.output)!r}"
            )
            found = re.search(pattern, self.output)
            assert found is not None
            return found


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether it has become true before long."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


LEND_AND_TAKE_BACK = """
total() { while read -r name size unit; do case $name in MemTotal:) echo $size ;; esac; done
    < /proc/meminfo; };
echo rng: $(cat /sys/class/misc/hw_random/rng_current);
for n in 1 2; do echo random: $(dd if=/dev/hwrng bs=4096 count=1 iflag=fullblock 2>/dev/null |
    md5sum); done;
all=$(total); echo total: $all;
while [ $(total) -gt $((all - 60000)) ]; do sleep 0.2; done; echo lent: $((all - $(total)));
while [ $(total) -lt $all ]; do sleep 0.2; done; echo back:
"""


def test_entropy_and_a_balloon(images: Images) -> None:
    """All of the memory is allocated at first, so what the balloon takes can be seen."""
    console = Console()
    config = MachineConfig(
        kernel=str(images.bzimage),
        initrd=str(images.memory_initrd),
        command_line='console=ttyS0 reboot=k panic=-1 quiet job="'
        + LEND_AND_TAKE_BACK.replace("\n", " ")
        + '"',
        memory_backing=MemoryBacking(prealloc=True),
        rng=RngConfig(),
        balloon=BalloonConfig(stats_seconds=0.2),
    )
    machine = Machine(config, [console])
    balloon = machine.peripherals.balloon
    assert balloon is not None

    def allocated() -> int:
        return machine.memory.allocated

    assert allocated() == config.memory_size
    machine.start()
    try:
        console.wait_for(rb"rng: virtio_rng\.0")
        total = int(console.wait_for(rb"total: (\d+)\r")[1]) << 10
        sums = re.findall(rb"random: (\w{32})", console.output)
        assert len(set(sums)) == 2

        balloon.set_target(64 * MIB)
        assert int(console.wait_for(rb"lent: (\d+)\r")[1]) > 60000
        assert wait_until(lambda: balloon.actual == 64 * MIB)
        assert allocated() == config.memory_size - 64 * MIB
        assert wait_until(lambda: 0 < balloon.stats().get("total_memory", 0) <= total - 60 * MIB)
        assert 0 < balloon.stats()["free_memory"] < total

        balloon.set_target(0)
        console.wait_for(rb"back:")
        assert wait_until(lambda: balloon.actual == 0)
        assert machine.wait(TIMEOUT)
    finally:
        outcome = machine.close()
    assert outcome.reason is Reason.POWER_OFF
    assert not [kind for kind in machine.faults.counts if "balloon" in kind or "queue" in kind]


def test_free_memory_goes_back_by_itself(images: Images) -> None:
    """The guest fills 100 MB and frees them: the process shrinks."""
    running = Running(
        boot_command(
            images.bzimage,
            *("--initrd", str(images.memory_initrd), "--memory", "256M"),
            *("--balloon", "free-page-reporting=on", "--rng", "rate=64K"),
            *job(
                "dd if=/dev/zero of=/tmp/x bs=1M count=100 2>/dev/null; echo filled:;"
                " read go; rm /tmp/x; read go; echo random: $(dd if=/dev/hwrng bs=64 count=1"
                " 2>/dev/null | wc -c)"
            ),
        )
    )

    def resident() -> int:
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) << 10

    running.read_until(b"filled:")
    full = resident()
    assert full > 100 * MIB
    running.write(b"\n")
    shrunk = wait_until(lambda: resident() < full - 80 * MIB)
    running.write(b"\n")
    status, console, stderr = running.finish()
    assert shrunk, f"{resident()} of {full} bytes"
    assert b"random: 64" in console
    assert (status, "balloon" in stderr) == (0, False), stderr


@pytest.fixture
def huge_pages() -> Iterator[int]:
    """Room for a guest of 256 MiB in huge pages; how many there are."""
    before = HUGE_PAGES.read_text()
    HUGE_PAGES.write_text("140")
    count = int(HUGE_PAGES.read_text())
    if count < 128:
        HUGE_PAGES.write_text(before)
        pytest.skip(f"the host has room for {count} huge pages only")
    yield count
    HUGE_PAGES.write_text(before)


@pytest.mark.parametrize("options", ["hugepages=on", "hugepages=on,prealloc=on"])
def test_a_guest_in_huge_pages(images: Images, huge_pages: int, options: str) -> None:
    running = Running(
        boot_command(
            images.bzimage,
            *("--initrd", str(images.initrd), "--memory", f"256M,{options}"),
            *job("echo up:; read go"),
        )
    )
    running.read_until(b"up:")
    meminfo = Path("/proc/meminfo").read_text()
    reserved = int(re.findall(r"HugePages_Rsvd: +(\d+)", meminfo)[0])
    free = int(re.findall(r"HugePages_Free: +(\d+)", meminfo)[0])
    refused = boot(images.bzimage, "--memory", "256M,hugepages=on")
    running.write(b"\n")
    status, _, stderr = running.finish()
    assert status == 0, stderr
    assert free - reserved == huge_pages - 128
    assert (reserved == 0) == ("prealloc" in options)
    assert refused.status == 1
    assert re.fullmatch(r"pyvmm: .*huge pages.*sysctl vm\.nr_hugepages=128.*\n", refused.stderr)


def test_a_guest_in_mergeable_memory(images: Images) -> None:
    ended = boot(
        images.bzimage,
        *("--initrd", str(images.initrd), "--memory", "128M,mergeable=on"),
        *job("echo up: and running"),
    )
    if not Path("/sys/kernel/mm/ksm").exists():
        assert ended.status == 1
        assert "can't merge pages" in ended.stderr
        return
    assert ended.status == 0, ended
    assert ended.value("up") == "and running"
