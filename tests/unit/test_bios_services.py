"""What the VMM does for PyVMM's own BIOS, and what it leaves alone."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.backends.disk import DiskImage
from pyvmm.backends.floppy import Floppy
from pyvmm.boot import firmware
from pyvmm.boot.entry import RealModeKernel
from pyvmm.boot.firmware import BiosFacts
from pyvmm.boot.memory_map import MapEntry, MemoryType
from pyvmm.devices.bios_services import (
    FIRST_DISK,
    REQUEST,
    BiosServices,
    Boot,
    Function,
    Request,
    Status,
)
from pyvmm.errors import GuestFaults, ImageError
from pyvmm.memory import MIB, GuestMemory

BLOCK = 0x500
BUFFER = 0x8000
SECTORS = 64
MAP = [
    MapEntry(0, 0x9FC00, MemoryType.RAM),
    MapEntry(0x10_0000, MIB, MemoryType.RAM),
]


class FakeDisk:
    """An image without a device."""

    def __init__(self, image: DiskImage) -> None:
        self.image = image
        self.in_use = False

    def to_rest(self) -> None:
        self.in_use = False


class Bench:
    """The device with two disks, the second one read-only, and a floppy of 360 KiB."""

    def __init__(self, directory: Path, kernel: RealModeKernel | None = None) -> None:
        self.memory = GuestMemory(2 * MIB)
        self.said: list[str] = []
        self.faults = GuestFaults(self.said.append)
        self.disks = []
        for number in range(2):
            path = directory / f"disk{number}"
            path.write_bytes(b"".join(bytes((sector,)) * 512 for sector in range(SECTORS)))
            self.disks.append(FakeDisk(DiskImage.open(str(path), readonly=number == 1)))
        path = directory / "floppy"
        path.write_bytes(bytes(360 << 10))
        self.floppy = Floppy.open(str(path))
        self.calls: list[str] = []
        self.device = BiosServices(
            self.memory,
            self.faults,
            self.disks,
            [FIRST_DISK + 1, 0, FIRST_DISK],
            lambda: BiosFacts(MAP, 0xE_1230, kernel),
            give_up=lambda: self.calls.append("give up"),
            reset=lambda: self.calls.append("reset"),
            floppies=[self.floppy],
        )

    def ask(
        self,
        function: int,
        unit: int = FIRST_DISK,
        *,
        amount: int = 0,
        sector: int = 0,
        buffer: int = 0,
    ) -> Request:
        request = REQUEST.pack(function, 0xEE, unit, 0, amount, sector, buffer)
        self.memory.write(BLOCK, request)
        self.device.write(0, 4, BLOCK)
        return Request._make(REQUEST.unpack(self.memory.view(BLOCK, REQUEST.size)))

    def close(self) -> None:
        for disk in self.disks:
            disk.image.close()
        self.floppy.image.close()
        self.memory.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def test_start_tells_of_the_disks_and_takes_them_from_their_drivers(bench: Bench) -> None:
    bench.disks[0].in_use = True
    answer = bench.ask(Function.START)
    assert (answer.status, answer.unit, answer.flags) == (Status.OK, 2, 1)
    assert answer.sector == 0xE_1230
    assert not bench.disks[0].in_use


def test_a_disk_is_described(bench: Bench) -> None:
    unit = FIRST_DISK + 1
    answer = bench.ask(Function.DISK, unit)
    assert (answer.status, answer.unit, answer.flags) == (Status.OK, unit, 1)
    assert answer.sector == SECTORS
    assert bench.ask(Function.DISK, unit + 1).status == Status.BAD_REQUEST


def test_a_floppy_is_described(bench: Bench) -> None:
    answer = bench.ask(Function.DISK, 0)
    assert (answer.status, answer.flags, answer.sector) == (Status.OK, 0, 720)
    assert (answer.amount, answer.buffer) == (40 << 16 | 2 << 8 | 9, 1)
    assert bench.ask(Function.DISK, 1).status == Status.BAD_REQUEST


def test_a_floppy_is_read_and_written(bench: Bench) -> None:
    bench.memory.fill(BUFFER, 512, 0xAB)
    assert bench.ask(Function.WRITE, 0, amount=1, sector=719, buffer=BUFFER).status == Status.OK
    bench.memory.fill(BUFFER, 1024, 0)
    assert bench.ask(Function.READ, 0, amount=2, sector=718, buffer=BUFFER).status == Status.OK
    assert bench.memory.read(BUFFER, 1024) == bytes(512) + b"\xab" * 512
    beyond = bench.ask(Function.READ, 0, amount=2, sector=719, buffer=BUFFER)
    assert beyond.status == Status.SECTOR_NOT_FOUND


def test_filling(bench: Bench) -> None:
    assert bench.ask(Function.FILL, 0, amount=9, sector=9, buffer=0x1F6).status == Status.OK
    data = Path(bench.floppy.image.path).read_bytes()
    assert data == bytes(9 * 512) + b"\xf6" * 9 * 512 + bytes(702 * 512)
    answer = bench.ask(Function.FILL, FIRST_DISK + 1, amount=1)
    assert answer.status == Status.WRITE_PROTECTED
    assert bench.ask(Function.FILL, amount=2, sector=SECTORS - 1).status == Status.SECTOR_NOT_FOUND


def test_reading(bench: Bench) -> None:
    answer = bench.ask(Function.READ, amount=2, sector=SECTORS - 2, buffer=BUFFER)
    assert (answer.status, answer.amount) == (Status.OK, 2)
    wanted = bytes((SECTORS - 2,)) * 512 + bytes((SECTORS - 1,)) * 512
    assert bench.memory.read(BUFFER, 1024) == wanted


def test_writing(bench: Bench) -> None:
    bench.memory.fill(BUFFER, 512, 0xAB)
    assert bench.ask(Function.WRITE, amount=1, sector=7, buffer=BUFFER).status == Status.OK
    assert bench.ask(Function.FLUSH).status == Status.OK
    data = Path(bench.disks[0].image.path).read_bytes()
    assert data[6 * 512 : 8 * 512 + 1] == bytes((6,)) * 512 + b"\xab" * 512 + b"\x08"


def test_a_read_only_disk_is_not_written(bench: Bench) -> None:
    answer = bench.ask(Function.WRITE, FIRST_DISK + 1, amount=1, sector=7, buffer=BUFFER)
    assert (answer.status, answer.amount) == (Status.WRITE_PROTECTED, 0)
    assert bench.ask(Function.FLUSH, FIRST_DISK + 1).status == Status.OK


@pytest.mark.parametrize(
    "function", [Function.READ, Function.WRITE, Function.VERIFY, Function.FILL]
)
@pytest.mark.parametrize(
    ("sector", "amount"),
    [(SECTORS, 1), (SECTORS - 1, 2), (SECTORS, 0), (2**64 - 1, 1), (0, 0xFFFF)],
)
def test_nothing_behind_the_end(bench: Bench, function: int, sector: int, amount: int) -> None:
    answer = bench.ask(function, amount=amount, sector=sector, buffer=BUFFER)
    assert (answer.status, answer.amount) == (Status.SECTOR_NOT_FOUND, 0)


def test_no_more_sectors_than_a_call_can_ask_for(bench: Bench) -> None:
    assert bench.ask(Function.VERIFY, amount=0x1_0000).status == Status.BAD_REQUEST


@pytest.mark.parametrize("buffer", [2 * MIB, 2 * MIB - 511, 2**64 - 512, 0xC000_0000])
def test_a_buffer_outside_ram(bench: Bench, buffer: int) -> None:
    answer = bench.ask(Function.READ, amount=1, buffer=buffer)
    assert (answer.status, answer.amount) == (Status.DMA_OUT_OF_RANGE, 0)


def test_a_disk_that_a_driver_uses_is_the_drivers(bench: Bench) -> None:
    bench.disks[0].in_use = True
    answer = bench.ask(Function.READ, amount=1, buffer=BUFFER)
    assert answer.status == Status.DRIVE_NOT_READY
    assert bench.memory.read(BUFFER, 512) == bytes(512)


@pytest.mark.parametrize(
    ("function", "status"),
    [
        (Function.READ, Status.UNCORRECTABLE),
        (Function.VERIFY, Status.UNCORRECTABLE),
        (Function.WRITE, Status.WRITE_FAULT),
        (Function.FILL, Status.WRITE_FAULT),
        (Function.FLUSH, Status.WRITE_FAULT),
    ],
)
def test_the_hosts_errors_are_the_disks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, function: int, status: int
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for name in ("read", "write", "flush"):
        monkeypatch.setattr(bench.disks[0].image, name, fail)
    assert bench.ask(function, amount=1, buffer=BUFFER).status == status
    assert "disk I/O failed" in bench.said[0]


def test_the_memory_map_entry_by_entry(bench: Bench) -> None:
    first = bench.ask(Function.MEMORY, 0)
    assert (first.sector, first.buffer, first.amount, first.unit) == (0, 0x9FC00, 1, 1)
    last = bench.ask(Function.MEMORY, first.unit)
    assert (last.sector, last.buffer, last.unit) == (0x10_0000, MIB, 0)
    assert bench.ask(Function.MEMORY, 2).status == Status.BAD_REQUEST


def test_moving_memory(bench: Bench) -> None:
    bench.memory.write(BUFFER, b"0123456789")
    answer = bench.ask(Function.COPY, amount=8, sector=BUFFER, buffer=BUFFER + 2)
    assert answer.status == Status.OK
    assert bench.memory.read(BUFFER, 10) == b"0101234567"
    beyond = bench.ask(Function.COPY, amount=8, sector=BUFFER, buffer=2 * MIB - 7)
    assert beyond.status == Status.DMA_OUT_OF_RANGE


def test_the_boot_order(bench: Bench) -> None:
    attempts = [bench.ask(Function.BOOT, number) for number in range(4)]
    assert [(a.status, a.flags) for a in attempts[:3]] == [(Status.OK, Boot.DISK)] * 3
    assert [a.unit for a in attempts[:3]] == [FIRST_DISK + 1, 0, FIRST_DISK]
    assert attempts[3].status == Status.BAD_REQUEST
    bench.ask(Function.GIVE_UP)
    assert bench.calls == ["give up"]


def test_a_kernel_is_entered_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, RealModeKernel(0x9000, 0xE000))
    answer = bench.ask(Function.BOOT, 0)
    assert (answer.status, answer.flags, answer.amount) == (Status.OK, Boot.KERNEL, 0x9000_E000)
    assert bench.device.save() == {"kernel_entered": True}
    assert bench.ask(Function.BOOT, 0).status != Status.OK
    assert bench.calls == ["reset"]
    bench.device.reset()
    assert bench.ask(Function.BOOT, 0).status == Status.OK
    bench.close()


def test_what_is_no_request(bench: Bench) -> None:
    bench.device.write(0, 2, BLOCK)
    bench.device.write(0, 4, 2 * MIB - 1)
    assert bench.device.read(0, 4) == 0xFFFF_FFFF
    assert bench.ask(0x77).status == Status.BAD_REQUEST
    assert len(bench.said) == 3


@settings(max_examples=200)
@given(
    st.binary(min_size=REQUEST.size, max_size=REQUEST.size), st.integers(min_value=0, max_value=255)
)
def test_any_request_is_answered(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, function: int
) -> None:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    bench.memory.write(BLOCK, bytes((function % 13,)) + data[1:])
    bench.device.write(0, 4, BLOCK)
    assert bench.memory.read_u8(BLOCK + 1) in vars(Status).values()
    bench.close()


def test_a_bios_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(firmware, "own_bios", lambda: str(tmp_path / "bios.rom"))
    memory = GuestMemory(2 * MIB)
    with pytest.raises(ImageError, match="BIOS has not been built"):
        firmware.load_own(memory, cpus=1, tables=0xE_0000)
    memory.close()
