"""Faults to inject: as options, in front of an image, in a slow disk, and beside a tap."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fake_tap import FakeTap
from unit.test_virtio_blk import FLUSH, IN, IOERR, OK, OUT, SECTOR, SECTORS, Disk
from unit.virtio_driver import TIMEOUT, Pc

from pyvmm.backends.disk import DiskImage
from pyvmm.backends.faulty_disk import FaultyImage
from pyvmm.backends.faulty_tap import MAX_HELD, Direction, FaultyTap
from pyvmm.backends.tap import Tap
from pyvmm.device_config import DiskConfig, NetConfig
from pyvmm.errors import ConfigError
from pyvmm.fault_config import (
    MAX_SECTOR,
    Chances,
    DiskFaults,
    DiskRule,
    NetFaults,
    parse_duration,
    parse_rate,
)
from pyvmm.virtio.slow_blk import SlowBlockDevice

MS = 10**6

# The options.


def disk_faults(options: str) -> DiskFaults | None:
    return DiskConfig.parse(f"disk.raw,{options}").faults


def test_a_disk_without_faults() -> None:
    assert DiskConfig.parse("disk.raw,readonly=on").faults is None
    assert NetConfig.parse("tap0,mtu=1400").faults is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("eio", DiskRule("eio", ("read", "write", "flush", "discard"))),
        ("eio@sector=2048..4096", DiskRule("eio", ("read", "write", "discard"), 2048, 4096)),
        ("eio@write@flush", DiskRule("eio", ("write", "flush"))),
        ("eio@read@sector=7@5%", DiskRule("eio", ("read",), 7, 7, 0.05)),
        ("enospc@0.1%", DiskRule("enospc", ("write",), 0, MAX_SECTOR, 0.001)),
    ],
)
def test_disk_rules(text: str, rule: DiskRule) -> None:
    assert disk_faults(f"error={text}") == DiskFaults((rule,))


def test_several_rules_and_the_disks_other_options() -> None:
    config = DiskConfig.parse(
        "d.raw,error=eio@read,serial=x,error=enospc,latency=10ms,seed=3,readonly=on"
    )
    assert (config.path, config.serial, config.readonly) == ("d.raw", "x", True)
    rules = (DiskRule("eio", ("read",)), DiskRule("enospc", ("write",)))
    assert config.faults == DiskFaults(rules, 10 * MS, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("error=", "'' is neither eio nor enospc"),
        ("error=eio@", "'' is not understood"),
        ("error=eio@sometimes", r"'sometimes' is not understood \(it takes @read"),
        ("error=eio@sector=", "are no sectors"),
        ("error=eio@sector=1..", "are no sectors"),
        ("error=eio@sector=2..1", "there are no sectors 2..1"),
        ("error=eio@sector=0x10", "are no sectors"),
        ("error=eio@sector=99999999999999999", "there are no sectors"),
        ("error=eio@0%", "not between 0% and 100%"),
        ("error=eio@101%", "not between 0% and 100%"),
        ("error=eio@-1%", "is not a percentage"),
        ("error=eio@²%", "is not a percentage"),
        ("error=enospc@read", "only a write runs out of space"),
        ("error=eio@flush@sector=1", "a flush has no sector"),
        ("latency=10", r"is not a time \(such as 10ms"),
        ("latency=0ms", "is not a time up to 60 s"),
        ("latency=61s", "is not a time up to 60 s"),
        ("error=eio,seed=-1", "seed: '-1' is not a number"),
        ("seed=1", "seed: goes with error="),
        ("latency=1ms,drop=1%", "'drop=1%' is not understood"),
    ],
)
def test_disk_options_that_can_not_be(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        disk_faults(options)
    assert str(caught.value).startswith("--disk disk.raw,")


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        ("drop=1%,seed=7", NetFaults(Chances(drop=0.01), Chances(drop=0.01), 7)),
        ("drop=1%@rx", NetFaults(Chances(drop=0.01), Chances())),
        ("drop=50%@rx,drop=2%@tx", NetFaults(Chances(drop=0.5), Chances(drop=0.02))),
        (
            "duplicate=10%@tx,corrupt=100%,delay=5ms@rx",
            NetFaults(Chances(corrupt=1.0, delay=5 * MS), Chances(duplicate=0.1, corrupt=1.0)),
        ),
    ],
)
def test_net_faults(options: str, faults: NetFaults) -> None:
    config = NetConfig.parse(f"tap0,mtu=1400,{options}")
    assert (config.ifname, config.mtu, config.faults) == ("tap0", 1400, faults)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("drop=1", "drop: '1' is not a percentage"),
        ("drop=1%@up", "drop: 'up' is neither rx nor tx"),
        ("delay=1", "delay: '1' is not a time"),
        ("seed=1", "seed: goes with drop=, duplicate= or corrupt="),
        ("drop=1%,seed=x", "seed: 'x' is not a number"),
        ("drop=1%,latency=1ms", "'latency=1ms' is not understood"),
    ],
)
def test_net_options_that_can_not_be(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        NetConfig.parse(f"tap0,{options}")
    assert str(caught.value).startswith("--net tap0,")


OPTION = st.text(alphabet="errolatncy=iospdwf@,%.0123456789msxu-", max_size=40)


@given(OPTION)
def test_any_disk_options(text: str) -> None:
    with suppress(ConfigError):
        DiskConfig.parse(f"disk.raw,error={text}")
    with suppress(ConfigError):
        DiskConfig.parse(f"disk.raw,latency={text}")


@given(OPTION)
def test_any_net_options(text: str) -> None:
    with suppress(ConfigError):
        NetConfig.parse(f"tap0,drop={text}")


@given(st.text())
def test_any_numbers(text: str) -> None:
    for parse in (parse_rate, parse_duration):
        with suppress(ConfigError):
            assert parse(text, "--option") > 0


# The image.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(SECTORS * SECTOR))
    return image


@pytest.fixture
def image(path: Path) -> Iterator[DiskImage]:
    image = DiskImage.open(str(path))
    yield image
    image.close()


def faulty(image: DiskImage, options: str) -> FaultyImage:
    faults = disk_faults(options)
    assert faults is not None
    return FaultyImage(image, faults)


def fails(image: DiskImage, operation: str, sector: int, sectors: int = 1) -> int:
    """The errno of a request, 0 if it succeeds."""
    length = sectors * SECTOR
    data = [memoryview(bytearray(b"x" * length))]
    offset = sector * SECTOR
    request = {
        "read": lambda: image.read(data, offset, length),
        "write": lambda: image.write(data, offset, length),
        "zero": lambda: image.write_zeroes(offset, length, unmap=False),
        "discard": lambda: image.discard(offset, length),
        "flush": image.flush,
    }[operation]
    try:
        request()
    except OSError as error:
        return error.errno if "(injected)" in error.strerror else -1
    return 0


@pytest.mark.parametrize("operation", ["read", "write", "zero", "discard"])
def test_requests_that_touch_the_range(image: DiskImage, operation: str) -> None:
    bad = faulty(image, "error=eio@sector=10..12")
    touching = [fails(bad, operation, sector, 2) for sector in range(8, 15)]
    assert touching == [0, errno.EIO, errno.EIO, errno.EIO, errno.EIO, 0, 0]
    assert fails(bad, "flush", 0) == 0


def test_what_fails_moves_no_data(path: Path, image: DiskImage) -> None:
    bad = faulty(image, "error=eio@sector=1")
    assert fails(bad, "write", 0, 2) == errno.EIO
    assert path.read_bytes() == bytes(SECTORS * SECTOR)
    assert fails(bad, "write", 2) == 0
    assert path.read_bytes()[2 * SECTOR : 3 * SECTOR] == b"x" * SECTOR


def test_no_space(image: DiskImage) -> None:
    bad = faulty(image, "error=enospc")
    assert [fails(bad, each, 0) for each in ("read", "write", "zero", "discard", "flush")] == [
        0,
        errno.ENOSPC,
        errno.ENOSPC,
        0,
        0,
    ]
    assert bad.summary() == f"{image.path}: 2 of 5 requests failed on purpose (2 writes)"


def test_chance_begins_with_the_seed(image: DiskImage) -> None:
    def pattern(seed: int) -> list[int]:
        bad = faulty(image, f"error=eio@read@30%,seed={seed}")
        found = []
        for sector in range(200):
            found.append(fails(bad, "read", sector))
            fails(bad, "write", sector)  # takes nothing of the reads' chances
        assert f"{found.count(errno.EIO)} of 400" in bad.summary()
        assert bad.summary().endswith(f", seed {seed}")
        return found

    assert pattern(1) == pattern(1) != pattern(2)
    assert 30 < pattern(1).count(errno.EIO) < 90


def test_sectors_that_are_not_there(image: DiskImage) -> None:
    faulty(image, f"error=eio@sector={SECTORS - 1}")
    for text in (f"{SECTORS}", f"0..{SECTORS}"):
        with pytest.raises(ConfigError, match=f"the last sector is {SECTORS - 1}"):
            faulty(image, f"error=eio@sector={text}")


# The slow disk.


class SlowDisk(Disk):
    """The disk of test_virtio_blk, with latency."""

    def __init__(self, path: Path, latency_ns: int) -> None:
        self.path = path
        self.image = DiskImage.open(str(path))
        self.io_errors = []
        self.device = SlowBlockDevice(
            self.image, "SER-1234", latency_ns=latency_ns, on_io_error=self.io_errors.append
        )
        self.pc = Pc(self.device)
        self.driver = self.pc.driver()
        self.memory = self.pc.memory
        self.buffers = 0x80_0000


def test_a_slow_disk_does_what_a_disk_does(path: Path) -> None:
    disk = SlowDisk(path, 2 * MS)
    disk.start()
    start = time.monotonic_ns()
    assert disk.send(OUT, 3, b"y" * SECTOR) == (OK, b"", 1)
    assert disk.send(FLUSH)[0] == OK
    assert disk.send(IN, 3, room=SECTOR) == (OK, b"y" * SECTOR, SECTOR + 1)
    assert disk.send(IN, SECTORS, room=SECTOR)[0] == IOERR
    assert time.monotonic_ns() - start >= 4 * 2 * MS
    disk.close()


def test_a_reset_does_not_wait_for_it(path: Path) -> None:
    disk = SlowDisk(path, 60_000 * MS)
    ring = disk.start()
    ring.add([disk.header(IN)], [disk.buffer(SECTOR), disk.status()])
    ring.kick()
    disk.driver.reset()
    disk.close()
    assert not [t for t in threading.enumerate() if t.name == "pyvmm-vda"]


def test_a_pause_finishes_what_has_been_begun(path: Path) -> None:
    disk = SlowDisk(path, 60_000 * MS)
    ring = disk.start()
    data, status = disk.buffer(SECTOR), disk.status()
    ring.add([disk.header(OUT, 5), disk.filled(b"z" * SECTOR)], [status])
    ring.add([disk.header(IN, 5)], [data, disk.status()])
    ring.kick()
    deadline = time.monotonic() + TIMEOUT
    while disk.memory.read(*data) != b"z" * SECTOR and time.monotonic() < deadline:
        time.sleep(0.001)
    assert ring.take() == []  # done, but the driver doesn't hear of it
    disk.device.pause()
    assert len(ring.take()) == 2
    assert disk.memory.read_u8(status[0]) == OK
    disk.device.resume()
    disk.close()


# The tap.


class Net:
    """A faulty tap between a card, of which the tests have the descriptor, and a network."""

    def __init__(self, faults: NetFaults) -> None:
        self.inner = FakeTap()
        self.tap = FaultyTap(cast(Tap, self.inner), faults)
        self.errors: list[BaseException] = []
        self.refused: list[OSError] = []
        self.tap.start(self.refused.append, self.errors.append)
        self.wire = self.inner.wires[0]
        self.card = socket.socket(fileno=os.dup(self.tap.fds[0]))
        self.card.settimeout(TIMEOUT)

    def close(self) -> None:
        self.card.close()
        self.tap.close()
        assert self.errors == []


def packet(number: int) -> bytes:
    return bytes(26) + number.to_bytes(4, "big") * 10


def number_of(data: bytes) -> int:
    return int.from_bytes(data[26:30], "big")


def through(net: Net, source: socket.socket, sink: socket.socket, count: int) -> list[int]:
    """What arrives of ``count`` packets; the one that is sent behind them tells that all have."""
    found: list[int] = []

    def receive() -> None:
        while True:
            number = number_of(sink.recv(1 << 16))
            if number >= count:
                return
            found.append(number)

    receiver = threading.Thread(target=receive)
    receiver.start()
    number = 0
    while receiver.is_alive():
        source.send(packet(number))
        number += 1
        if number > count:
            receiver.join(0.01)
    return found


@pytest.fixture
def nets() -> Iterator[list[Net]]:
    nets: list[Net] = []
    yield nets
    for net in nets:
        net.close()


def test_lost_ones_are_the_same_each_time(nets: list[Net]) -> None:
    faults = NetFaults(Chances(drop=0.3), Chances(drop=0.1), seed=5)
    nets += [Net(faults), Net(faults), Net(faults._replace(seed=6))]
    rx = [through(net, net.wire, net.card, 200) for net in nets]
    tx = [through(net, net.card, net.wire, 200) for net in nets]
    assert rx[0] == rx[1] != rx[2]
    assert tx[0] == tx[1] != tx[2]
    assert 100 < len(rx[0]) < 180 < len(tx[0]) < 199
    assert "packets to the guest, " in nets[0].tap.summary()
    assert nets[0].tap.summary().endswith(" dropped; seed 5")


def test_double_ones(nets: list[Net]) -> None:
    nets.append(Net(NetFaults(Chances(duplicate=1.0), Chances())))
    assert through(nets[0], nets[0].wire, nets[0].card, 5) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert through(nets[0], nets[0].card, nets[0].wire, 5) == [0, 1, 2, 3, 4]


def test_damaged_ones(nets: list[Net]) -> None:
    """One bit, behind the Ethernet header."""
    nets.append(Net(NetFaults(Chances(), Chances(corrupt=1.0))))
    nets[0].card.send(packet(1))
    sent, got = packet(1), nets[0].wire.recv(1 << 16)
    different = [a ^ b for a, b in zip(sent, got, strict=True)]
    assert not any(different[:26])
    assert sum(each.bit_count() for each in different) == 1
    nets[0].card.send(bytes(26))  # nothing behind it
    assert nets[0].wire.recv(1 << 16) == bytes(26)


def test_late_ones(nets: list[Net]) -> None:
    nets.append(Net(NetFaults(Chances(delay=20 * MS), Chances())))
    start = time.monotonic_ns()
    for number in range(3):
        nets[0].wire.send(packet(number))
    assert [number_of(nets[0].card.recv(1 << 16)) for _ in range(3)] == [0, 1, 2]
    assert time.monotonic_ns() - start >= 20 * MS


def test_a_tap_that_is_deleted(nets: list[Net]) -> None:
    """The card sees the end of file that it knows from a tap."""
    nets.append(Net(NetFaults()))
    nets[0].wire.close()
    assert nets[0].card.recv(1 << 16) == b""


def test_it_stands_in_for_the_tap() -> None:
    net = Net(NetFaults())
    assert (net.tap.name, net.tap.offloads) == ("tap7", 0)
    net.tap.set_offloads(0)
    net.tap.enable_queue(0, True)
    assert (net.inner.offloads_set, net.inner.enabled) == ([0], {0: True})
    assert not net.tap.used
    net.close()
    net.tap.close()


def test_a_card_that_takes_nothing_makes_the_tap_wait() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    source, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    direction = Direction("to the guest", ours.fileno(), end.fileno(), Chances(), "0")
    failures: list[Any] = []
    for number in range(20 * MAX_HELD):
        with suppress(BlockingIOError):
            theirs.send(packet(number))
        direction.readable = True
        direction.read(0)
        direction.write(0, failures.append)
    assert not direction.writable
    assert not direction.eager
    assert number_of(source.recv(1 << 16)) == 0
    assert failures == []
    for each in (ours, theirs, source, end):
        each.close()
