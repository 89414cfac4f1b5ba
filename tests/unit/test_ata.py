"""The IDE channels against ATA/ATAPI-6, and against what drivers do with them."""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.fakes import RecordingFaults, RecordingLine

from pyvmm.backends.disk import DiskImage
from pyvmm.devices.ata import (
    ACTIVE,
    MAX_MULTIPLE,
    AtaChannel,
    Command,
    Control,
    DeviceBits,
    Drive,
    Error,
    Feature,
    Register,
    Status,
)
from pyvmm.devices.bios_services import Disk

SECTOR = 512
SECTORS = 5000
READY = Status.DRDY | Status.DSC
LBA = DeviceBits.OBSOLETE | DeviceBits.LBA
SIGNATURE = [1, 1, 0, 0]


def pattern(sector: int) -> bytes:
    return struct.pack("<I", sector) * (SECTOR // 4)


class Image(DiskImage):
    """In memory; fails where it is told to, and holds up flushes."""

    def __init__(self, sectors: int, *, readonly: bool = False) -> None:
        super().__init__("disk.raw", -1, sectors * SECTOR, readonly=readonly)
        self.data = bytearray(b"".join(pattern(sector) for sector in range(sectors)))
        self.bad: set[int] = set()
        self.bad_flush = False
        self.flushes = 0
        self.gate = threading.Event()
        self.gate.set()

    def _meet(self, offset: int, length: int) -> None:
        assert 0 <= offset <= self.size - length
        if self.bad & set(range(offset // SECTOR, (offset + length) // SECTOR)):
            raise OSError(errno.EIO, "Input/output error")

    def read(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        assert sum(len(buffer) for buffer in buffers) == length
        self._meet(offset, length)
        buffers[0][:] = self.data[offset : offset + length]

    def write(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        assert not self.readonly
        self._meet(offset, length)
        self.data[offset : offset + length] = buffers[0]

    def flush(self) -> None:
        assert not self.readonly
        assert self.gate.wait(60)
        if self.bad_flush:
            raise OSError(errno.EIO, "Input/output error")
        self.flushes += 1


class Channel:
    """A channel, with a driver's view of it."""

    def __init__(self, *images: Image, latency_ns: int = 0) -> None:
        self.irq = RecordingLine()
        self.faults = RecordingFaults()
        self.errors: list[BaseException] = []
        self.images = images
        self.drives = [
            Drive(image, f"serial {number}", number=number, latency_ns=latency_ns)
            for number, image in enumerate(images)
        ]
        self.device = AtaChannel(
            self.irq, self.drives, self.faults, name="ide0", on_error=self.errors.append
        )

    def inb(self, register: int) -> int:
        return self.device.command_window.read(register, 1)

    def outb(self, register: int, value: int) -> None:
        self.device.command_window.write(register, 1, value)

    @property
    def alternate_status(self) -> int:
        return self.device.control_window.read(0, 1)

    def control(self, value: int) -> None:
        self.device.control_window.write(0, 1, value)

    @property
    def file(self) -> list[int]:
        return [self.inb(register) for register in range(Register.COUNT, Register.DEVICE)]

    def select(self, lba: int = 0, count: int = 1, drive: int = 0) -> None:
        self.outb(Register.DEVICE, LBA | drive << 4 | lba >> 24)
        self.outb(Register.COUNT, count & 0xFF)
        for register in (Register.LOW, Register.MID, Register.HIGH):
            self.outb(register, lba & 0xFF)
            lba >>= 8

    def select_ext(self, lba: int, count: int) -> None:
        self.outb(Register.DEVICE, LBA)
        for part in (count >> 8, count & 0xFF):
            self.outb(Register.COUNT, part)
        for shift in (24, 32, 40):
            self.outb(Register.LOW + (shift - 24) // 8, lba >> shift & 0xFF)
        for shift in (0, 8, 16):
            self.outb(Register.LOW + shift // 8, lba >> shift & 0xFF)

    def command(self, opcode: int) -> int:
        """The status at the command's end or its first data."""
        self.outb(Register.COMMAND, opcode)
        self.device.settle()
        return self.alternate_status

    def read_data(self, length: int, size: int = 2) -> bytes:
        data = bytearray(length)
        self.device.command_window.read_string(Register.DATA, size, memoryview(data))
        return bytes(data)

    def write_data(self, data: bytes, size: int = 2) -> None:
        for start in range(0, len(data), size):
            value = int.from_bytes(data[start : start + size], "little")
            self.device.command_window.write(Register.DATA, size, value)
            self.device.settle()

    def identify(self, drive: int = 0) -> tuple[int, ...]:
        self.outb(Register.DEVICE, LBA | drive << 4)
        assert self.command(Command.IDENTIFY_DEVICE) == READY | Status.DRQ
        words = struct.unpack("<256H", self.read_data(SECTOR))
        assert self.alternate_status == READY
        return words


@pytest.fixture
def channel() -> Iterator[Channel]:
    channel = Channel(Image(SECTORS), Image(64))
    yield channel
    channel.device.rest()
    assert channel.errors == []


@pytest.fixture
def single() -> Channel:
    return Channel(Image(SECTORS))


class TestResets:
    def test_power_on(self, channel: Channel) -> None:
        assert channel.file == SIGNATURE
        assert channel.inb(Register.ERROR) == Error.DIAGNOSTIC_PASSED
        assert channel.inb(Register.STATUS) == READY
        assert not channel.irq.level

    def test_software_reset(self, channel: Channel) -> None:
        channel.select(7, 3, drive=1)
        channel.command(Command.READ_SECTORS)
        channel.control(Control.SRST)
        assert channel.inb(Register.STATUS) == Status.BSY
        assert not channel.irq.level
        channel.outb(Register.COUNT, 9)  # nobody listens
        channel.control(0)
        assert channel.file == SIGNATURE
        assert channel.inb(Register.DEVICE) == DeviceBits.OBSOLETE
        assert channel.inb(Register.STATUS) == READY
        assert channel.read_data(4) == b"\xff" * 4

    @pytest.mark.parametrize("keep", [True, False])
    def test_settings_outlive_it_if_they_are_to(self, channel: Channel, keep: bool) -> None:
        channel.outb(Register.FEATURES, Feature.KEEP_SETTINGS if keep else Feature.REVERT_SETTINGS)
        channel.command(Command.SET_FEATURES)
        channel.select(count=8)
        channel.command(Command.SET_MULTIPLE_MODE)
        channel.control(Control.SRST)
        channel.control(0)
        assert channel.identify()[59] == (0x0108 if keep else 0)

    def test_a_platform_reset_forgets_all(self, channel: Channel) -> None:
        channel.control(Control.NIEN)
        channel.select(count=8)
        channel.command(Command.SET_MULTIPLE_MODE)
        channel.device.rest()
        channel.device.reset()
        channel.command(Command.IDENTIFY_DEVICE)
        assert channel.irq.level

    def test_diagnostic(self, channel: Channel) -> None:
        channel.select(drive=1)
        channel.command(Command.EXECUTE_DEVICE_DIAGNOSTIC)
        assert channel.irq.level
        assert channel.file == SIGNATURE
        assert channel.inb(Register.DEVICE) == DeviceBits.OBSOLETE
        assert channel.inb(Register.ERROR) == Error.DIAGNOSTIC_PASSED


class TestAbsentDrive:
    def test_drive_0_answers_for_it(self, single: Channel) -> None:
        single.select(0x123456, 9, drive=1)
        assert single.inb(Register.STATUS) == 0
        assert single.alternate_status == 0
        assert single.file == [9, 0x56, 0x34, 0x12]
        assert single.inb(Register.ERROR) == Error.DIAGNOSTIC_PASSED

    def test_its_commands_are_ignored(self, single: Channel) -> None:
        single.select(drive=1)
        assert single.command(Command.IDENTIFY_DEVICE) == 0
        assert not single.irq.level
        assert single.command(Command.EXECUTE_DEVICE_DIAGNOSTIC) == READY
        assert single.irq.level


class TestIdentify:
    def test_words(self, channel: Channel) -> None:
        words = channel.identify()
        text = struct.pack(">256H", *words)
        assert text[20:40] == b"serial 0".ljust(20)
        assert text[54:94].rstrip() == b"PyVMM disk"
        assert words[0] & 0x8000 == 0
        assert (words[1], words[3], words[6]) == (4, 16, 63)
        assert words[47] & 0xFF == MAX_MULTIPLE
        assert words[49] & 0x0300 == 0x0200  # LBA, but no DMA
        assert (words[63], words[88]) == (0, 0)
        assert words[60] | words[61] << 16 == SECTORS
        assert words[100] | words[101] << 16 == SECTORS
        assert words[83] & 0x7400 == 0x7400
        assert sum(struct.pack("<256H", *words)) & 0xFF == 0
        assert words[255] & 0xFF == 0xA5

    def test_each_drive_has_its_own(self, channel: Channel) -> None:
        assert channel.identify(1)[60] == 64

    def test_small_disks_have_a_geometry(self) -> None:
        words = Channel(Image(1)).identify()
        assert (words[1], words[3], words[6]) == (1, 1, 1)

    def test_current_settings(self, channel: Channel) -> None:
        channel.outb(Register.DEVICE, 0x07)
        channel.outb(Register.COUNT, 17)
        assert channel.command(Command.INITIALIZE_DEVICE_PARAMETERS) == READY
        words = channel.identify()
        assert words[54:57] == (SECTORS // (8 * 17), 8, 17)
        assert words[57] | words[58] << 16 == words[54] * 8 * 17

    def test_packet_devices_there_are_none(self, channel: Channel) -> None:
        channel.select()
        assert channel.command(0xA1) == READY | Status.ERR
        assert channel.inb(Register.ERROR) == Error.ABRT


class TestReading:
    @pytest.mark.parametrize("size", [2, 4])
    def test_sector_by_sector(self, channel: Channel, size: int) -> None:
        channel.select(100, 3)
        channel.outb(Register.COMMAND, Command.READ_SECTORS)
        for sector in (100, 101, 102):
            assert channel.irq.level
            assert channel.inb(Register.STATUS) == READY | Status.DRQ
            assert not channel.irq.level
            assert channel.read_data(SECTOR, size) == pattern(sector)
        assert not channel.irq.level
        assert channel.inb(Register.STATUS) == READY

    def test_a_count_of_0_is_256(self, channel: Channel) -> None:
        channel.select(10, 0)
        channel.command(Command.READ_SECTORS)
        assert channel.read_data(256 * SECTOR) == b"".join(map(pattern, range(10, 266)))
        assert channel.alternate_status == READY

    def test_single_accesses(self, channel: Channel) -> None:
        channel.select(0x1234 % SECTORS)
        channel.command(Command.READ_SECTORS)
        assert channel.device.command_window.read(0, 4) == 0x1234
        assert channel.device.command_window.read(0, 2) == 0x1234
        assert channel.inb(Register.DATA) == 0xFF  # no 8-bit data; nothing moves
        assert channel.device.command_window.read(0, 2) == 0

    def test_chs(self, channel: Channel) -> None:
        channel.outb(Register.DEVICE, DeviceBits.OBSOLETE | 5)
        channel.outb(Register.COUNT, 1)
        channel.outb(Register.LOW, 3)
        channel.outb(Register.MID, 2)
        channel.outb(Register.HIGH, 0)
        channel.command(Command.READ_SECTORS)
        assert channel.read_data(SECTOR) == pattern((2 * 16 + 5) * 63 + 2)

    @pytest.mark.parametrize(("head", "sector"), [(8, 1), (0, 0), (0, 18)])
    def test_chs_that_there_is_not(self, channel: Channel, head: int, sector: int) -> None:
        channel.outb(Register.DEVICE, 7)
        channel.outb(Register.COUNT, 17)
        channel.command(Command.INITIALIZE_DEVICE_PARAMETERS)
        channel.outb(Register.DEVICE, head)
        channel.outb(Register.LOW, sector)
        for command in (Command.READ_SECTORS, Command.SEEK, Command.READ_VERIFY):
            assert channel.command(command) == READY | Status.ERR
            assert channel.inb(Register.ERROR) == Error.IDNF

    def test_multiple(self, channel: Channel) -> None:
        channel.select(count=4)
        assert channel.command(Command.SET_MULTIPLE_MODE) == READY
        channel.select(20, 6)
        channel.irq.clear()
        channel.outb(Register.COMMAND, Command.READ_MULTIPLE)
        assert channel.read_data(4 * SECTOR) == b"".join(map(pattern, range(20, 24)))
        assert channel.inb(Register.STATUS) & Status.DRQ
        assert channel.read_data(2 * SECTOR) == b"".join(map(pattern, range(24, 26)))
        assert channel.alternate_status == READY

    def test_multiple_is_off_at_first(self, channel: Channel) -> None:
        channel.select(20, 6)
        assert channel.command(Command.READ_MULTIPLE) & Status.ERR
        assert channel.command(Command.WRITE_MULTIPLE) & Status.ERR
        assert channel.inb(Register.ERROR) == Error.ABRT

    @pytest.mark.parametrize("count", [3, 17, 32])
    def test_blocks_that_there_are_not(self, channel: Channel, count: int) -> None:
        channel.select(count=8)
        channel.command(Command.SET_MULTIPLE_MODE)
        channel.select(count=count)
        assert channel.command(Command.SET_MULTIPLE_MODE) & Status.ERR
        assert channel.identify()[59] == 0

    def test_ext(self, channel: Channel) -> None:
        channel.select_ext(300, 257)
        channel.command(Command.READ_SECTORS_EXT)
        assert channel.read_data(257 * SECTOR) == b"".join(map(pattern, range(300, 557)))
        assert channel.alternate_status == READY

    def test_ext_takes_no_chs(self, channel: Channel) -> None:
        channel.outb(Register.DEVICE, 0)
        assert channel.command(Command.READ_SECTORS_EXT) & Status.ERR

    def test_the_previous_content_of_registers(self, channel: Channel) -> None:
        channel.select_ext(0x060504030201, 0x0807)
        assert channel.file == [7, 1, 2, 3]
        channel.control(Control.HOB)
        assert channel.file == [8, 4, 5, 6]
        channel.outb(Register.COUNT, 0)
        assert channel.file == [0, 1, 2, 3]

    @pytest.mark.parametrize("lba", [SECTORS - 1, SECTORS, (1 << 28) - 1])
    def test_behind_the_end(self, channel: Channel, lba: int) -> None:
        channel.select(lba, 2)
        assert channel.command(Command.READ_SECTORS) == READY | Status.ERR
        assert channel.inb(Register.ERROR) == Error.IDNF
        channel.select_ext(lba << 20 | lba, 2)
        assert channel.command(Command.READ_SECTORS_EXT) == READY | Status.ERR
        assert channel.irq.level

    def test_an_error_of_the_host(self, channel: Channel) -> None:
        channel.images[0].bad = {4000}
        channel.select(3999, 4)
        channel.command(Command.READ_SECTORS)
        channel.read_data(SECTOR)
        assert channel.alternate_status == READY | Status.ERR
        assert channel.inb(Register.ERROR) == Error.UNC
        assert channel.file[1:] == [4000 & 0xFF, 4000 >> 8, 0]
        assert "disk I/O failed" in channel.faults.lines[0]
        channel.select(3999, 4)
        assert channel.command(Command.READ_VERIFY) & Status.ERR
        channel.select_ext(4000, 1)
        assert channel.command(Command.READ_SECTORS_EXT) & Status.ERR
        assert channel.file[1:] == [4000 & 0xFF, 4000 >> 8, 0]

    def test_an_error_in_chs(self, channel: Channel) -> None:
        channel.images[0].bad = {(2 * 16 + 5) * 63 + 2}
        channel.outb(Register.DEVICE, 5)
        for register, value in ((2, 1), (3, 3), (4, 2), (5, 0)):
            channel.outb(register, value)
        channel.command(Command.READ_SECTORS)
        assert channel.file[1:] == [3, 2, 0]
        assert channel.inb(Register.DEVICE) & DeviceBits.HEAD == 5

    def test_verify(self, channel: Channel) -> None:
        channel.select(0, 0)
        assert channel.command(Command.READ_VERIFY) == READY
        assert channel.irq.level
        channel.select_ext(0, SECTORS)
        assert channel.command(Command.READ_VERIFY_EXT) == READY


class TestWriting:
    @pytest.mark.parametrize("size", [2, 4])
    def test_sector_by_sector(self, channel: Channel, size: int) -> None:
        channel.select(50, 2)
        channel.outb(Register.COMMAND, Command.WRITE_SECTORS)
        assert not channel.irq.level  # the first block is asked for by the status alone
        assert channel.alternate_status == READY | Status.DRQ
        channel.write_data(b"a" * SECTOR, size)
        assert channel.irq.level
        assert channel.inb(Register.STATUS) == READY | Status.DRQ
        channel.write_data(b"b" * SECTOR, size)
        assert channel.irq.level
        assert channel.inb(Register.STATUS) == READY
        written = channel.images[0].data[50 * SECTOR : 52 * SECTOR]
        assert written == b"a" * SECTOR + b"b" * SECTOR
        assert channel.images[0].data[52 * SECTOR : 53 * SECTOR] == pattern(52)

    def test_multiple_and_ext(self, channel: Channel) -> None:
        channel.select(count=2)
        channel.command(Command.SET_MULTIPLE_MODE)
        channel.select_ext(4990, 3)
        channel.command(Command.WRITE_MULTIPLE_EXT)
        channel.write_data(b"x" * 2 * SECTOR)
        assert channel.inb(Register.STATUS) & Status.DRQ
        channel.write_data(b"y" * SECTOR)
        assert channel.alternate_status == READY
        data = channel.images[0].data[4990 * SECTOR : 4993 * SECTOR]
        assert data == b"x" * 2 * SECTOR + b"y" * SECTOR

    def test_a_part_of_a_sector_is_not_written(self, channel: Channel) -> None:
        channel.select(50, 1)
        channel.command(Command.WRITE_SECTORS)
        channel.write_data(b"a" * (SECTOR - 2))
        channel.control(Control.SRST)
        channel.control(0)
        assert channel.images[0].data[50 * SECTOR : 51 * SECTOR] == pattern(50)

    def test_read_only(self) -> None:
        channel = Channel(Image(64, readonly=True))
        channel.select(1, 1)
        assert channel.command(Command.WRITE_SECTORS) == READY | Status.ERR
        assert channel.inb(Register.ERROR) == Error.ABRT
        assert channel.command(Command.FLUSH_CACHE) == READY

    def test_an_error_of_the_host(self, channel: Channel) -> None:
        channel.images[0].bad = {51}
        channel.select(50, 3)
        channel.command(Command.WRITE_SECTORS)
        channel.write_data(b"a" * 2 * SECTOR)
        assert channel.alternate_status == READY | Status.DF | Status.ERR
        assert channel.file[1] == 51
        assert channel.irq.level

    def test_flush(self, channel: Channel) -> None:
        channel.select()
        assert channel.command(Command.FLUSH_CACHE) == READY
        assert channel.irq.level
        assert channel.command(Command.FLUSH_CACHE_EXT) == READY
        assert channel.images[0].flushes == 2
        channel.images[0].bad_flush = True
        assert channel.command(Command.FLUSH_CACHE) & (Status.DF | Status.ERR)

    def test_without_the_write_cache_all_is_durable(self, channel: Channel) -> None:
        channel.outb(Register.FEATURES, Feature.DISABLE_WRITE_CACHE)
        assert channel.command(Command.SET_FEATURES) == READY
        assert channel.images[0].flushes == 1  # what was written before
        assert channel.identify()[85] & 0x0020 == 0
        channel.select(1, 2)
        channel.command(Command.WRITE_SECTORS)
        channel.write_data(b"a" * 2 * SECTOR)
        assert channel.images[0].flushes == 3
        channel.outb(Register.FEATURES, Feature.ENABLE_WRITE_CACHE)
        channel.command(Command.SET_FEATURES)
        assert channel.identify()[85] & 0x0020


class TestOtherCommands:
    @pytest.mark.parametrize(
        ("feature", "count", "good"),
        [
            (Feature.TRANSFER_MODE, 0x00, True),
            (Feature.TRANSFER_MODE, 0x0C, True),
            (Feature.TRANSFER_MODE, 0x22, False),
            (Feature.TRANSFER_MODE, 0x45, False),
            (Feature.DISABLE_LOOK_AHEAD, 0, True),
            (Feature.ENABLE_LOOK_AHEAD, 0, True),
            (0x05, 0, False),
        ],
    )
    def test_set_features(self, channel: Channel, feature: int, count: int, good: bool) -> None:
        channel.outb(Register.FEATURES, feature)
        channel.outb(Register.COUNT, count)
        assert channel.command(Command.SET_FEATURES) == (READY if good else READY | Status.ERR)

    def test_power(self, channel: Channel) -> None:
        for opcode in (Command.STANDBY_IMMEDIATE, Command.IDLE_IMMEDIATE, Command.STANDBY):
            assert channel.command(opcode) == READY
        assert channel.command(Command.IDLE) == READY
        assert channel.command(Command.CHECK_POWER_MODE) == READY
        assert channel.inb(Register.COUNT) == ACTIVE

    @pytest.mark.parametrize("opcode", [Command.RECALIBRATE, 0x1F, Command.SEEK])
    def test_moving_heads(self, channel: Channel, opcode: int) -> None:
        channel.select(5)
        assert channel.command(opcode) == READY
        assert channel.irq.level

    @pytest.mark.parametrize("opcode", [Command.NOP, 0x08, 0xA0, 0xB0, 0xC8, 0xF8])
    def test_what_there_is_not(self, channel: Channel, opcode: int) -> None:
        channel.select()
        assert channel.command(opcode) == READY | Status.ERR
        assert channel.inb(Register.ERROR) == Error.ABRT
        assert channel.faults.lines == []  # drivers try

    def test_no_sectors_on_a_track(self, channel: Channel) -> None:
        channel.select(count=0)
        assert channel.command(Command.INITIALIZE_DEVICE_PARAMETERS) & Status.ERR


class TestInterrupts:
    def test_nien(self, channel: Channel) -> None:
        channel.control(Control.NIEN)
        channel.select(1)
        channel.command(Command.READ_SECTORS)
        assert not channel.irq.level
        channel.control(0)
        assert channel.irq.level
        channel.inb(Register.STATUS)
        assert not channel.irq.level

    def test_the_alternate_status_leaves_it(self, channel: Channel) -> None:
        channel.command(Command.IDENTIFY_DEVICE)
        assert channel.alternate_status & Status.DRQ
        assert channel.irq.level

    def test_only_the_selected_drive_drives_the_wire(self, channel: Channel) -> None:
        channel.select(0)
        channel.command(Command.SEEK)
        channel.select(0, drive=1)
        assert not channel.irq.level
        channel.inb(Register.STATUS)
        channel.select(0, drive=0)
        assert channel.irq.level

    def test_a_command_takes_it_back(self, channel: Channel) -> None:
        channel.command(Command.SEEK)
        channel.irq.clear()
        channel.command(Command.SEEK)
        assert channel.irq.edges == [False, True]


class TestSlowRequests:
    def test_a_flush_leaves_the_vcpu_alone(self, channel: Channel) -> None:
        image = channel.images[0]
        image.gate.clear()
        channel.select()
        channel.outb(Register.COMMAND, Command.FLUSH_CACHE)
        assert channel.alternate_status == Status.BSY
        channel.outb(Register.COUNT, 99)  # a busy drive takes nothing
        channel.outb(Register.COMMAND, Command.IDENTIFY_DEVICE)
        assert not channel.irq.level
        image.gate.set()
        channel.device.settle()
        assert channel.inb(Register.STATUS) == READY
        assert channel.inb(Register.COUNT) == 1

    def test_a_reset_waits_for_it(self, channel: Channel) -> None:
        image = channel.images[0]
        image.gate.clear()
        channel.select(7)
        channel.outb(Register.COMMAND, Command.FLUSH_CACHE)
        threads = threading.active_count()
        for _ in range(50):
            channel.control(Control.SRST)
            channel.control(0)
            channel.outb(Register.COMMAND, Command.FLUSH_CACHE)
        assert channel.alternate_status == Status.BSY
        assert threading.active_count() == threads
        image.gate.set()
        channel.device.settle()
        assert channel.inb(Register.STATUS) == READY
        assert channel.file == SIGNATURE
        assert not channel.irq.level
        assert image.flushes == 1

    def test_it_ends_while_the_drive_is_in_reset(self, channel: Channel) -> None:
        channel.images[0].gate.clear()
        channel.outb(Register.COMMAND, Command.FLUSH_CACHE)
        channel.control(Control.SRST)
        channel.images[0].gate.set()
        channel.device.settle()
        assert channel.alternate_status == Status.BSY
        channel.control(0)
        assert channel.alternate_status == READY

    def test_every_request_is_slow(self) -> None:
        channel = Channel(Image(64), latency_ns=1_000_000)
        channel.select(3, 2)
        assert channel.command(Command.READ_SECTORS) & Status.DRQ
        assert channel.read_data(SECTOR) == pattern(3)
        channel.device.settle()
        assert channel.read_data(SECTOR) == pattern(4)
        channel.select(3, 1)
        channel.command(Command.WRITE_SECTORS)
        channel.write_data(b"z" * SECTOR)
        assert channel.images[0].data[3 * SECTOR : 4 * SECTOR] == b"z" * SECTOR

    def test_rest_waits_for_no_latency(self) -> None:
        channel = Channel(Image(64), latency_ns=3600 * 10**9)
        channel.select(3, 2)
        channel.outb(Register.COMMAND, Command.READ_SECTORS)
        assert channel.alternate_status == Status.BSY
        channel.device.rest()
        channel.device.reset()
        assert channel.alternate_status == READY

    def test_a_bug_is_told_of(self) -> None:
        channel = Channel(Image(64))
        channel.images[0].flush = lambda: 1 // 0  # type: ignore[method-assign,assignment]
        channel.command(Command.FLUSH_CACHE)
        assert isinstance(channel.errors[0], ZeroDivisionError)


def test_state_is_saved(channel: Channel) -> None:
    channel.select(count=4)
    channel.command(Command.SET_MULTIPLE_MODE)
    channel.select(20, 6, drive=0)
    channel.command(Command.READ_MULTIPLE)
    first = channel.read_data(700)
    other = Channel(Image(SECTORS), Image(64))
    other.device.restore(channel.device.save())
    assert other.irq.level
    assert other.device.save() == channel.device.save()
    rest = other.read_data(6 * SECTOR - 700)
    assert first + rest == b"".join(map(pattern, range(20, 26)))
    assert other.alternate_status == READY


def test_the_bios_may_have_a_drive(single: Channel) -> None:
    drive: Disk = single.drives[0]
    drive.to_rest()
    assert not drive.in_use
    assert drive.image is single.images[0]


def test_an_image_opened_as_usual(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(pattern(0) + pattern(1))
    image = DiskImage.open(str(path))
    channel = AtaChannel(
        RecordingLine(), [Drive(image)], RecordingFaults(), on_error=lambda error: None
    )
    channel.write(Register.DEVICE, 1, LBA)
    channel.write(Register.LOW, 1, 1)
    channel.write(Register.COMMAND, 1, Command.WRITE_SECTORS)
    for _ in range(SECTOR // 4):
        channel.write(Register.DATA, 4, 0x64636261)
    image.close()
    assert path.read_bytes() == pattern(0) + b"abcd" * (SECTOR // 4)


OPCODES = [getattr(Command, name) for name in dir(Command) if name.isupper()]
ACCESSES = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "string", "control", "status", "command"]),
        st.integers(0, 7),
        st.sampled_from([1, 2, 4]),
        st.integers(0, (1 << 32) - 1),
    ),
    max_size=60,
)


@given(ACCESSES)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_accesses(accesses: list[tuple[str, int, int, int]]) -> None:
    channel = Channel(Image(40), Image(33, readonly=True))
    window = channel.device.command_window
    assert window.read_string is not None
    for kind, offset, size, value in accesses:
        size = min(size, 8 - offset) if offset != 5 else 1  # as the bus does
        size = {3: 2}.get(size, size)
        if kind == "read":
            assert 0 <= window.read(offset, size) < 1 << 8 * size
        elif kind == "write":
            window.write(offset, size, value & (1 << 8 * size) - 1)
        elif kind == "string":
            window.read_string(offset, size, memoryview(bytearray(size * (value % 1024))))
        elif kind == "control":
            channel.control(value & 0xFF)
        elif kind == "status":
            assert 0 <= channel.alternate_status <= 0xFF
        else:
            channel.outb(Register.COMMAND, OPCODES[value % len(OPCODES)])
    channel.device.rest()
    assert channel.errors == []
    channel.device.reset()
    assert channel.file == SIGNATURE
    assert channel.identify()[60] == 40
