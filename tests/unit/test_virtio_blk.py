"""The disk as a guest's driver uses it: through a transport, rings and interrupts, onto a file."""

from __future__ import annotations

import errno
import itertools
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.virtio_driver import (
    DRIVER_OK,
    EVENT_IDX,
    INDIRECT_DESC,
    NEEDS_RESET,
    TIMEOUT,
    VERSION_1,
    Buffer,
    DriverQueue,
    Pc,
    Scratch,
    VirtioDriver,
)

from pyvmm.backends.disk import DiskImage
from pyvmm.errors import ConfigError
from pyvmm.virtio.blk import BlockDevice

SECTORS = 2048
SECTOR = 512
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
SEG_MAX, RO, BLK_SIZE, F_FLUSH, TOPOLOGY = 1 << 2, 1 << 5, 1 << 6, 1 << 9, 1 << 10
F_DISCARD, F_WRITE_ZEROES = 1 << 13, 1 << 14


class Disk(Scratch):
    """A VM with one disk, and a driver that sends requests to it."""

    def __init__(
        self,
        path: Path,
        *,
        readonly: bool = False,
        doorbells: bool = True,
        transport: str = "pci",
    ) -> None:
        self.path = path
        self.image = DiskImage.open(str(path), readonly=readonly)
        self.io_errors: list[OSError] = []
        self.device = BlockDevice(self.image, "SER-1234", on_io_error=self.io_errors.append)
        self.transport = transport
        self.pc = Pc(self.device, doorbells=doorbells, transport=transport)
        self.driver = self.pc.driver()
        self.memory = self.pc.memory
        self.buffers = 0x80_0000

    def start(self, features: int | None = None, **options: bool) -> DriverQueue:
        self.ring = self.driver.start(features, **options)
        return self.ring

    def header(self, kind: int, sector: int = 0) -> Buffer:
        return self.filled(struct.pack("<IIQ", kind, 0, sector))

    def status(self) -> Buffer:
        return self.filled(b"\xee")

    def send(
        self, kind: int, sector: int = 0, out: bytes = b"", room: int = 0
    ) -> tuple[int, bytes, int]:
        """One request; its status, what was read, and the number of bytes written."""
        data_out = [self.filled(out)] if out else []
        data_in = [self.buffer(room)] if room else []
        status = self.status()
        head = self.ring.add([self.header(kind, sector), *data_out], [*data_in, status])
        self.ring.kick()
        ((used, written),) = self.ring.wait()
        assert used == head
        data = b"".join(self.memory.read(*b) for b in data_in)
        return self.memory.read_u8(status[0]), data, written

    def content(self) -> bytes:
        return self.path.read_bytes()

    def close(self) -> None:
        self.pc.close()
        self.image.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "disk.raw"
    image.write_bytes(os.urandom(SECTORS * SECTOR))
    return image


@pytest.fixture(params=["pci", "mmio"])
def disk(request: pytest.FixtureRequest, path: Path) -> Iterator[Disk]:
    disk = Disk(path, transport=request.param)
    disk.start()
    yield disk
    disk.close()


@pytest.fixture
def readonly_disk(path: Path) -> Iterator[Disk]:
    disk = Disk(path, readonly=True)
    disk.start()
    yield disk
    disk.close()


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "pyvmm-vda"]


# What the driver finds.


def test_features_and_configuration(disk: Disk) -> None:
    assert disk.driver.features == (
        SEG_MAX | BLK_SIZE | F_FLUSH | TOPOLOGY | F_DISCARD | F_WRITE_ZEROES
    ) | (EVENT_IDX | INDIRECT_DESC | VERSION_1)
    config = disk.driver.config
    assert config(0, 8) == SECTORS
    assert config(12, 4) == disk.ring.size - 2
    assert config(20, 4) == SECTOR
    assert (config(24, 1), config(25, 1), config(26, 2), config(28, 4)) == (3, 0, 8, 0)
    assert config(36, 4) * SECTOR == 2 << 30
    assert (config(40, 4), config(44, 4)) == (32, 8)
    assert config(48, 4) * SECTOR == 64 << 20
    assert (config(52, 4), config(56, 1)) == (32, 1)


def test_a_readonly_disk_says_so(readonly_disk: Disk) -> None:
    assert readonly_disk.driver.features & RO
    assert not readonly_disk.driver.features & (F_DISCARD | F_WRITE_ZEROES)
    assert readonly_disk.driver.config(36, 4) == 0


def test_a_serial_number_has_20_bytes_at_most(path: Path) -> None:
    image = DiskImage.open(str(path))
    BlockDevice(image, "x" * 20)
    with pytest.raises(ConfigError):
        BlockDevice(image, "x" * 21)
    image.close()


# Requests.


def test_read(disk: Disk) -> None:
    status, data, written = disk.send(IN, 7, room=4096)
    assert (status, written) == (OK, 4097)
    assert data == disk.content()[7 * SECTOR : 7 * SECTOR + 4096]


def test_write_and_flush(disk: Disk) -> None:
    before = disk.content()
    data = os.urandom(1024)
    assert disk.send(OUT, 5, data) == (OK, b"", 1)
    assert disk.send(FLUSH) == (OK, b"", 1)
    assert disk.content() == before[: 5 * SECTOR] + data + before[7 * SECTOR :]


def test_first_and_last_sector(disk: Disk) -> None:
    for sector in (0, SECTORS - 1):
        data = os.urandom(SECTOR)
        assert disk.send(OUT, sector, data)[0] == OK
        assert disk.send(IN, sector, room=SECTOR)[:2] == (OK, data)
    assert len(disk.content()) == SECTORS * SECTOR


@pytest.mark.parametrize(
    ("sector", "length"),
    [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        ((1 << 64) - 1, 512),
        ((1 << 55) - 1, 1024),
        (1 << 55, 512),
        (0, 513),
        (0, 1),
        (0, (SECTORS + 1) * SECTOR),
    ],
)
def test_what_lies_beyond_the_end_or_is_no_whole_sector_is_refused(
    disk: Disk, sector: int, length: int
) -> None:
    before = disk.content()
    assert disk.send(IN, sector, room=length)[0::2] == (IOERR, 1)
    assert disk.send(OUT, sector, bytes(length))[0] == IOERR
    assert disk.content() == before


def test_the_serial_number(disk: Disk) -> None:
    assert disk.send(GET_ID, room=20) == (OK, b"SER-1234".ljust(20, b"\0"), 21)
    assert disk.send(GET_ID, room=4) == (OK, b"SER-", 5)
    status, data, written = disk.send(GET_ID, room=64)
    assert (status, data[:20], written) == (OK, b"SER-1234".ljust(20, b"\0"), 21)


@pytest.mark.parametrize("kind", [2, 3, 5, 6, 10, 12, 14, 0x8000_0000, 0xFFFF_FFFF])
def test_other_request_types_are_unsupported(disk: Disk, kind: int) -> None:
    assert disk.send(kind, room=512)[0] == UNSUPP
    assert disk.send(kind, 0, bytes(512))[0] == UNSUPP


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, sectors, flags)


@pytest.mark.parametrize("unmap", [0, 1])
def test_write_zeroes(disk: Disk, unmap: int) -> None:
    expected = bytearray(disk.content())
    expected[3 * SECTOR : 20 * SECTOR] = bytes(17 * SECTOR)
    expected[100 * SECTOR : 101 * SECTOR] = bytes(SECTOR)
    segments = segment(3, 17, unmap) + segment(100, 1, unmap) + segment(5, 0, unmap)
    assert disk.send(WRITE_ZEROES, 0, segments)[0] == OK
    assert disk.content() == expected


def test_discard(disk: Disk) -> None:
    before = disk.content()
    assert disk.send(DISCARD, 0, segment(1024, 1024))[0] == OK
    assert disk.content()[: 1024 * SECTOR] == before[: 1024 * SECTOR]
    assert len(disk.content()) == len(before)


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        (b"", IOERR),
        (bytes(15), IOERR),
        (segment(0, 1) + bytes(8), IOERR),
        (segment(0, 1) * 33, IOERR),
        (segment(SECTORS, 1), IOERR),
        (segment(SECTORS - 1, 2), IOERR),
        (segment((1 << 64) - 1, 2), IOERR),
        (segment(0, 0xFFFF_FFFF), IOERR),
        (segment(0, 1, 2), UNSUPP),
        (segment(0, 1, 0x8000_0000), UNSUPP),
        (segment(0, 1) + segment(SECTORS, 1), IOERR),
    ],
)
def test_bad_ranges_are_refused_before_anything_is_done(
    disk: Disk, kind: int, segments: bytes, expected: int
) -> None:
    before = disk.content()
    assert disk.send(kind, 0, segments)[0] == expected
    assert disk.content() == before


def test_discard_has_no_unmap_flag(disk: Disk) -> None:
    assert disk.send(DISCARD, 0, segment(0, 8, 1))[0] == UNSUPP


@pytest.mark.parametrize(
    ("kind", "data"),
    [(OUT, bytes(512)), (DISCARD, segment(0, 8)), (WRITE_ZEROES, segment(0, 8))],
)
def test_a_readonly_disk_refuses_to_be_written(readonly_disk: Disk, kind: int, data: bytes) -> None:
    before = readonly_disk.content()
    assert readonly_disk.send(kind, 0, data)[0] == IOERR
    assert readonly_disk.content() == before
    assert readonly_disk.send(IN, 0, room=512)[:2] == (OK, before[:512])
    assert readonly_disk.send(FLUSH)[0] == OK


def test_the_hosts_errors_reach_the_guest_and_the_user(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "broken")

    for name in ("read", "write", "flush", "discard", "write_zeroes"):
        monkeypatch.setattr(disk.image, name, fail)
    assert disk.send(IN, 0, room=512)[0::2] == (IOERR, 1)
    assert disk.send(OUT, 0, bytes(512))[0] == IOERR
    assert disk.send(FLUSH)[0] == IOERR
    assert disk.send(DISCARD, 0, segment(0, 8))[0] == IOERR
    assert disk.send(WRITE_ZEROES, 0, segment(0, 8))[0] == IOERR
    assert [error.errno for error in disk.io_errors] == [errno.EIO] * 5
    monkeypatch.undo()
    assert disk.send(IN, 0, room=512)[0] == OK


@given(
    cuts=st.lists(st.integers(1, 1040), max_size=4),
    cuts_in=st.lists(st.integers(1, 1025), max_size=4),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_buffers_may_be_cut_anywhere(disk: Disk, cuts: list[int], cuts_in: list[int]) -> None:
    def cut(whole: Buffer, places: list[int]) -> list[Buffer]:
        address, size = whole
        edges = sorted({0, size, *(p for p in places if p < size)})
        return [(address + a, b - a) for a, b in itertools.pairwise(edges)]

    data = os.urandom(1024)
    request = disk.filled(struct.pack("<IIQ", OUT, 0, 9) + data)
    status = disk.status()
    disk.ring.add(cut(request, cuts), [status])
    answer = disk.buffer(1025)
    disk.ring.add([disk.header(IN, 9)], cut(answer, cuts_in), indirect=True)
    disk.ring.kick()
    disk.ring.wait(2)
    assert disk.memory.read_u8(status[0]) == OK
    assert disk.memory.read(*answer) == data + bytes((OK,))
    disk.buffers = 0x80_0000


# Queueing.


@pytest.mark.parametrize("features", [0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC])
@pytest.mark.parametrize("doorbells", [False, True], ids=["by write", "by ioeventfd"])
def test_a_deep_queue_completes_everything(path: Path, features: int, doorbells: bool) -> None:
    disk = Disk(path, doorbells=doorbells)
    ring = disk.start(VERSION_1 | F_FLUSH | features)
    content = disk.content()
    for _ in range(10):
        expected = {}
        for number in range(48):
            sector = (number * 37) % SECTORS
            data, status = disk.buffer(SECTOR), disk.status()
            indirect = bool(features & INDIRECT_DESC)
            head = ring.add([disk.header(IN, sector)], [data, status], indirect=indirect)
            expected[head] = (sector, data, status)
            if number % 5 == 0:
                ring.kick()
        ring.kick()
        for head, written in ring.wait(len(expected)):
            sector, data, status = expected.pop(head)
            assert written == SECTOR + 1
            assert disk.memory.read_u8(status[0]) == OK
            assert disk.memory.read(*data) == content[sector * SECTOR : (sector + 1) * SECTOR]
        assert not expected
        disk.buffers = 0x80_0000
    disk.close()


def test_a_batch_costs_one_interrupt_and_suppression_holds(path: Path) -> None:
    disk = Disk(path)
    disk.driver.negotiate()
    disk.driver.enable_msix()
    ring = disk.ring = disk.driver.add_queue(vector=1)
    for _ in range(8):
        ring.add([disk.header(IN)], [disk.buffer(SECTOR), disk.status()])
    disk.driver.run()
    disk.pc.msi.sent.get(timeout=TIMEOUT)
    assert len(ring.take()) == 8
    assert len(disk.pc.msi.fired) == 1
    ring.wants_interrupts(after=3)
    for _ in range(4):
        ring.add([disk.header(FLUSH)], [disk.status()])
    ring.kick()
    disk.pc.msi.sent.get(timeout=TIMEOUT)
    assert len(ring.take()) == 4
    assert len(disk.pc.msi.fired) == 2
    disk.close()


def test_requests_made_before_driver_ok_are_served(path: Path) -> None:
    disk = Disk(path)
    disk.driver.negotiate()
    disk.driver.enable_msix()
    ring = disk.driver.add_queue(vector=1)
    status = disk.status()
    ring.add([disk.header(FLUSH)], [status])
    disk.driver.run()
    ring.wait()
    assert disk.memory.read_u8(status[0]) == OK
    disk.close()


def test_a_driver_that_cannot_flush_gets_durable_writes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(path)
    flushes: list[int] = []
    real = disk.image.flush

    def flush() -> None:
        flushes.append(1)
        real()

    monkeypatch.setattr(disk.image, "flush", flush)
    disk.start(VERSION_1)
    assert disk.send(OUT, 0, bytes(512))[0] == OK
    assert len(flushes) == 1
    disk.start(VERSION_1 | F_FLUSH)
    assert disk.send(OUT, 0, bytes(512))[0] == OK
    assert len(flushes) == 1
    disk.close()


def test_a_flush_comes_after_the_writes_before_it(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def recording(name: str) -> Callable[..., None]:
        real = getattr(disk.image, name)

        def call(*arguments: object) -> None:
            real(*arguments)
            order.append(name)

        return call

    monkeypatch.setattr(disk.image, "write", recording("write"))
    monkeypatch.setattr(disk.image, "flush", recording("flush"))
    for sector in range(5):
        disk.ring.add([disk.header(OUT, sector), disk.filled(bytes(512))], [disk.status()])
    disk.ring.add([disk.header(FLUSH)], [disk.status()])
    disk.ring.kick()
    disk.ring.wait(6)
    assert order == ["write"] * 5 + ["flush"]


def test_two_disks_are_independent(tmp_path: Path) -> None:
    images = []
    for number in range(2):
        (tmp_path / f"{number}").write_bytes(bytes((number + 1,)) * 4096)
        images.append(DiskImage.open(str(tmp_path / f"{number}")))
    devices = [BlockDevice(image, name=f"vd{n}") for n, image in enumerate(images)]
    pc = Pc(*devices)
    drivers = [VirtioDriver(pc, slot) for slot in (1, 2)]
    rings = [driver.start(msix=False) for driver in drivers]
    drivers[1].reset()
    for number, (driver, ring) in enumerate(zip(drivers, rings, strict=True)):
        if number == 1:
            ring = driver.start(msix=False)
        data = driver.allocate(513)
        header = driver.allocate(16)
        pc.memory.write(header, struct.pack("<IIQ", IN, 0, 0))
        ring.add([(header, 16)], [(data, 513)])
        ring.kick()
        assert pc.intx_changes.get(timeout=TIMEOUT) == (number + 1, True)
        assert ring.take()
        assert driver.isr() == 1
        assert pc.intx_changes.get(timeout=TIMEOUT) == (number + 1, False)
        assert pc.memory.read(data, 513) == bytes((number + 1,)) * 512 + b"\0"
    pc.close()
    for image in images:
        image.close()


# Life.


class Gate:
    """Holds the disk's thread inside a read until it is opened."""

    def __init__(self, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        real = disk.image.read

        def read(*arguments: object) -> None:
            self.entered.set()
            assert self.open.wait(TIMEOUT)
            real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(disk.image, "read", read)


def test_reset_waits_for_the_request_at_work_and_drops_the_rest(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(disk, monkeypatch)
    statuses = [disk.status() for _ in range(3)]
    for status in statuses:
        disk.ring.add([disk.header(IN)], [disk.buffer(512), status])
    disk.ring.kick()
    assert gate.entered.wait(TIMEOUT)
    resetting = threading.Thread(target=disk.driver.reset)
    resetting.start()
    assert resetting.is_alive()
    assert disk.driver.pc.transports[0].session.status & DRIVER_OK
    gate.open.set()
    resetting.join(TIMEOUT)
    assert not resetting.is_alive()
    assert not workers()
    assert disk.memory.read_u8(statuses[2][0]) == 0xEE
    assert disk.ring.take() == []
    assert disk.start()
    assert disk.send(IN, 0, room=512)[0] == OK


def test_pause_finishes_what_was_begun_and_resume_goes_on(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(disk, monkeypatch)
    for _ in range(2):
        disk.ring.add([disk.header(IN)], [disk.buffer(512), disk.status()])
    disk.ring.kick()
    assert gate.entered.wait(TIMEOUT)
    gate.open.set()
    disk.device.pause()
    assert not workers()
    done = len(disk.ring.take())
    status = disk.status()
    disk.ring.add([disk.header(IN)], [disk.buffer(512), status])
    disk.ring.kick()
    state = disk.pc.save()
    assert disk.memory.read_u8(status[0]) == 0xEE
    disk.device.resume()
    disk.ring.wait(3 - done)
    assert disk.memory.read_u8(status[0]) == OK
    assert state


def test_state_moves_to_another_machine(disk: Disk, path: Path) -> None:
    assert disk.send(OUT, 1, b"A" * 512)[0] == OK
    disk.device.pause()
    state = disk.pc.save()
    memory = disk.memory.read(0, disk.memory.size)
    disk.image.close()
    there = Disk(path, transport=disk.transport)
    there.memory.write(0, memory)
    there.pc.restore(state)
    there.ring = disk.ring
    there.ring.memory, there.ring.driver = there.memory, there.driver
    there.buffers = disk.buffers
    assert there.send(IN, 1, room=512)[:2] == (OK, b"A" * 512)
    there.close()


def test_there_is_no_thread_before_a_driver_and_none_after_it(path: Path) -> None:
    disk = Disk(path)
    assert not workers()
    disk.start()
    assert len(workers()) == 1
    disk.pc.pci.reset()
    assert not workers()
    disk.start()
    disk.close()
    assert not workers()


@pytest.mark.parametrize(
    ("readable", "writable"),
    [([], [1]), ([15], [1]), ([16], []), ([16, 512], [])],
    ids=["no header", "short header", "no status", "write without status"],
)
def test_a_request_that_is_none_needs_a_reset(
    disk: Disk, readable: list[int], writable: list[int]
) -> None:
    disk.ring.add([disk.buffer(n) for n in readable], [disk.buffer(n) for n in writable])
    disk.ring.kick()
    assert disk.driver.wait_for_interrupt()
    assert disk.driver.status & NEEDS_RESET
    disk.start()
    assert disk.send(IN, 0, room=512)[0] == OK


def test_our_own_error_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[BaseException] = []
    happened = threading.Event()

    def on_error(error: BaseException) -> None:
        told.append(error)
        happened.set()

    disk = Disk(path)
    disk.device = BlockDevice(disk.image, on_error=on_error)
    disk.pc = Pc(disk.device)
    disk.driver = VirtioDriver(disk.pc)
    disk.memory = disk.pc.memory
    ring = disk.start()
    monkeypatch.setattr(disk.device, "_execute", None)
    ring.add([disk.header(IN)], [disk.buffer(512), disk.status()])
    ring.kick()
    assert happened.wait(TIMEOUT)
    assert isinstance(told[0], TypeError)
    disk.close()


requests = st.lists(
    st.tuples(
        st.sampled_from([IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 99]),
        st.one_of(st.integers(0, SECTORS), st.integers(0, 2**64 - 1)),
        st.lists(st.integers(0, 1025), max_size=3),
        st.lists(st.integers(0, 1025), max_size=3),
        st.one_of(st.none(), st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 0xFFFF))),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@given(requests=requests)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_request_breaks_the_disk_for_good(
    disk: Disk,
    requests: list[tuple[int, int, list[int], list[int], tuple[int, int] | None, bool]],
) -> None:
    ring = disk.start()
    disk.buffers = 0x80_0000
    for kind, sector, out, into, spoil, indirect in requests:
        readable = [disk.header(kind, sector), *(disk.buffer(n) for n in out)]
        writable = [*(disk.buffer(n) for n in into), disk.status()]
        head = ring.add(readable, writable, indirect=indirect)
        if spoil is not None:
            address, flags = spoil
            ring.put(ring.descriptors, head, address, 16, flags, 0)
    ring.kick()
    disk.start()
    disk.buffers = 0x80_0000
    assert disk.send(IN, 0, room=512)[0] == OK
    assert len(disk.content()) == SECTORS * SECTOR
