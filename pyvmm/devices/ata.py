"""Hard disks on the two IDE channels of a PC, as every kernel with an ATA driver finds them.

Document: AT Attachment with Packet Interface - 6 (ATA/ATAPI-6, INCITS 361), chapters 7 (registers),
8 (commands) and 9 (protocols). CHS addresses, and commands that are only in earlier standards, are
those of ATA/ATAPI-5 and 4; ATA/ATAPI-7 changes nothing that there is here. Data move by PIO alone,
which is all that a channel without a bus master can do; a drive's IDENTIFY data say so.

The vCPU that accesses the data port moves a block of at most 16 sectors between the image and the
drive's buffer by itself: that is a system call of microseconds, less than it would take to wake a
thread. What can take longer (flushing, verifying, requests that are to be slow) is done by a thread
of its own while the drive is busy, one at a time: a reset, too, waits for it, as the standard
allows it to.

Where a block of several sectors can't be read or written, the address of its first sector is
reported. Both drives of a channel receive what is written to its registers, and here they share
them: what a command leaves there is seen whichever drive is selected, but for error and status.

Left out: DMA, packet devices, SMART, security, host protected area, power management that does
anything (a drive is always ready), and all that is optional.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any

from pyvmm.backends.disk import SECTOR_SIZE, DiskImage
from pyvmm.bus import Device, Window
from pyvmm.errors import GuestFaults
from pyvmm.interrupts import IrqLine
from pyvmm.memory import MIB
from pyvmm.threads import NamedThread

MAX_MULTIPLE = 16
"""Sectors in a block of READ MULTIPLE and WRITE MULTIPLE, at most."""
SERIAL_LENGTH = 20
MODEL, FIRMWARE_REVISION = "PyVMM disk", "1"
_LBA28_SECTORS = 1 << 28
_VERIFY_STEP = MIB


class Register:
    """Offsets in the command block. The second name is what a write goes to."""

    DATA = 0
    ERROR = FEATURES = 1
    COUNT = 2
    LOW = 3
    MID = 4
    HIGH = 5
    DEVICE = 6
    STATUS = COMMAND = 7


class Status:
    BSY = 0x80
    DRDY = 0x40
    DF = 0x20
    DSC = 0x10
    """Seek complete, in the standards up to ATA-3."""
    DRQ = 0x08
    ERR = 0x01


class Error:
    UNC = 0x40
    IDNF = 0x10
    ABRT = 0x04
    DIAGNOSTIC_PASSED = 0x01
    """No bit of an error: what resets and EXECUTE DEVICE DIAGNOSTIC leave."""


class DeviceBits:
    LBA = 0x40
    DEV = 0x10
    HEAD = 0x0F
    OBSOLETE = 0xA0
    """Always one, up to ATA-3; drivers look at them."""


class Control:
    """Of the device control register."""

    NIEN = 0x02
    SRST = 0x04
    HOB = 0x80


class Command:
    NOP = 0x00
    RECALIBRATE = 0x10
    READ_SECTORS = 0x20
    READ_SECTORS_EXT = 0x24
    READ_MULTIPLE_EXT = 0x29
    WRITE_SECTORS = 0x30
    WRITE_SECTORS_EXT = 0x34
    WRITE_MULTIPLE_EXT = 0x39
    READ_VERIFY = 0x40
    READ_VERIFY_EXT = 0x42
    SEEK = 0x70
    EXECUTE_DEVICE_DIAGNOSTIC = 0x90
    INITIALIZE_DEVICE_PARAMETERS = 0x91
    READ_MULTIPLE = 0xC4
    WRITE_MULTIPLE = 0xC5
    SET_MULTIPLE_MODE = 0xC6
    STANDBY_IMMEDIATE = 0xE0
    IDLE_IMMEDIATE = 0xE1
    STANDBY = 0xE2
    IDLE = 0xE3
    CHECK_POWER_MODE = 0xE5
    FLUSH_CACHE = 0xE7
    FLUSH_CACHE_EXT = 0xEA
    IDENTIFY_DEVICE = 0xEC
    SET_FEATURES = 0xEF


WITH_RETRIES = (Command.READ_SECTORS, Command.WRITE_SECTORS, Command.READ_VERIFY)
"""The opcodes behind these are the same without retries, up to ATA-4."""


class Feature:
    """What SET FEATURES takes (8.46)."""

    ENABLE_WRITE_CACHE, DISABLE_WRITE_CACHE = 0x02, 0x82
    TRANSFER_MODE = 0x03
    ENABLE_LOOK_AHEAD, DISABLE_LOOK_AHEAD = 0xAA, 0x55
    KEEP_SETTINGS, REVERT_SETTINGS = 0x66, 0xCC
    """What a software reset does to them."""


PIO_DEFAULT, PIO_FLOW_CONTROL = 0, 1
"""Transfer modes in bits 7:3; the others are DMA's."""
ACTIVE = 0xFF
"""CHECK POWER MODE's answer."""


class Phase:
    IDLE = 0
    DATA_IN = 1
    DATA_OUT = 2
    BUSY = 3


class Drive:
    """A drive: its image, and what the guest has chosen about it.

    ``number`` is the disk's among the machine's. Each request takes ``latency_ns`` more.
    """

    in_use = False
    """The BIOS may have it at any time: see :class:`pyvmm.devices.bios_services.Disk`."""

    def __init__(
        self, image: DiskImage, serial: str = "", *, number: int = 0, latency_ns: int = 0
    ) -> None:
        self.image = image
        self.number = number
        self.sectors = image.size // SECTOR_SIZE
        self.latency_ns = latency_ns
        self._serial = serial or f"PYVMM{number}"
        per_track = min(63, self.sectors)
        self._default_geometry = min(16, self.sectors // per_track), per_track
        self.power_on()

    def power_on(self) -> None:
        """As after power-on."""
        self.keeps_settings = False
        self.ready()
        self.default_settings()

    def ready(self) -> None:
        """As after any reset, but for the settings."""
        self.status = Status.DRDY | Status.DSC
        self.error = Error.DIAGNOSTIC_PASSED
        self.pending = False
        """Whether it would interrupt."""

    def default_settings(self) -> None:
        self.heads, self.per_track = self._default_geometry
        self.multiple = 0
        self.write_cache = self.look_ahead = True

    def to_rest(self) -> None:
        """The BIOS starts anew, and has no need of the drive's registers."""

    def cylinders(self, heads: int, per_track: int, most: int) -> int:
        return min(most, self.sectors // (heads * per_track))

    def identify(self) -> bytes:
        """The 512 bytes of IDENTIFY DEVICE (8.15)."""
        heads, per_track = self._default_geometry
        cylinders = self.cylinders(heads, per_track, 16383)
        current = self.cylinders(self.heads, self.per_track, 65535)
        words = {
            0: 0x0040,  # no packet device, not removable
            1: cylinders,
            3: heads,
            6: per_track,
            47: 0x8000 | MAX_MULTIPLE,
            48: 0x0001,  # 32-bit accesses to the data port, in ATA-1
            49: 0x0E00,  # LBA; IORDY, which can be disabled
            50: 0x4000,
            51: 0x0200,
            53: 0x0003,  # words 54 to 58, and 64 to 70, are valid
            54: current,
            55: self.heads,
            56: self.per_track,
            59: 0x0100 | self.multiple if self.multiple else 0,
            64: 0x0003,  # PIO modes 3 and 4
            67: 120,
            68: 120,
            80: 0x00F0,  # ATA/ATAPI-4 to 7
            82: 0x4068,  # NOP, look-ahead, write cache, power management
            83: 0x7400,  # FLUSH CACHE EXT, FLUSH CACHE, 48-bit addresses
            84: 0x4000,
            85: 0x4008 | 0x0020 * self.write_cache | 0x0040 * self.look_ahead,
            86: 0x3400,
            87: 0x4000,
            106: 0x6003,  # physical sectors of 2**3 logical ones, in ATA-7
        }
        data = bytearray(SECTOR_SIZE)
        for number, value in words.items():
            struct.pack_into("<H", data, 2 * number, value)
        data[20:40] = _text(self._serial, SERIAL_LENGTH)
        data[46:54] = _text(FIRMWARE_REVISION, 8)
        data[54:94] = _text(MODEL, 40)
        struct.pack_into("<I", data, 2 * 57, current * self.heads * self.per_track)
        struct.pack_into("<I", data, 2 * 60, min(self.sectors, _LBA28_SECTORS - 1))
        struct.pack_into("<Q", data, 2 * 100, self.sectors)
        data[510] = 0xA5
        data[511] = -sum(data) & 0xFF
        return bytes(data)

    _STATE = (
        *("status", "error", "pending", "heads", "per_track", "multiple"),
        *("write_cache", "look_ahead", "keeps_settings"),
    )

    def save(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._STATE}

    def restore(self, state: dict[str, Any]) -> None:
        for name in self._STATE:
            setattr(self, name, state[name])


class AtaChannel(Device):
    """A channel with drive 0 and perhaps drive 1; ``irq`` is its INTRQ.

    ``on_error`` is told of an exception on its thread, which is a bug of ours.
    """

    def __init__(
        self,
        irq: IrqLine,
        drives: Sequence[Drive],
        faults: GuestFaults,
        *,
        name: str = "ide0",
        on_error: Callable[[BaseException], None],
    ) -> None:
        super().__init__()
        self._irq = irq
        self._drives = drives
        self._faults = faults
        self._name = name
        self._on_error = on_error
        self.command_window = Window(self.lock, self.read, self.write, self.read_string)
        self.control_window = Window(self.lock, self._read_control, self._write_control)
        self._buffer = memoryview(bytearray(MAX_MULTIPLE * SECTOR_SIZE))
        self._job: NamedThread | None = None
        self._abandoned = Event()
        self._commands = self._command_table()
        self._power_on()

    def _command_table(self) -> dict[int, Callable[[Drive], None]]:
        def transfer(write: bool, ext: bool, multiple: bool) -> Callable[[Drive], None]:
            return lambda drive: self._transfer(drive, write, ext, multiple)

        table = {
            Command.READ_SECTORS: transfer(False, False, False),
            Command.READ_SECTORS_EXT: transfer(False, True, False),
            Command.READ_MULTIPLE: transfer(False, False, True),
            Command.READ_MULTIPLE_EXT: transfer(False, True, True),
            Command.WRITE_SECTORS: transfer(True, False, False),
            Command.WRITE_SECTORS_EXT: transfer(True, True, False),
            Command.WRITE_MULTIPLE: transfer(True, False, True),
            Command.WRITE_MULTIPLE_EXT: transfer(True, True, True),
            Command.READ_VERIFY: lambda drive: self._verify(drive, ext=False),
            Command.READ_VERIFY_EXT: lambda drive: self._verify(drive, ext=True),
            Command.SEEK: self._seek,
            Command.INITIALIZE_DEVICE_PARAMETERS: self._initialize_parameters,
            Command.SET_MULTIPLE_MODE: self._set_multiple,
            Command.SET_FEATURES: self._set_features,
            Command.CHECK_POWER_MODE: self._check_power,
            Command.FLUSH_CACHE: self._flush,
            Command.FLUSH_CACHE_EXT: self._flush,
            Command.IDENTIFY_DEVICE: self._identify,
            Command.STANDBY_IMMEDIATE: self._complete,
            Command.IDLE_IMMEDIATE: self._complete,
            Command.STANDBY: self._complete,
            Command.IDLE: self._complete,
        }
        table |= {Command.RECALIBRATE + low: self._complete for low in range(16)}
        for opcode in WITH_RETRIES:
            table[opcode + 1] = table[opcode]
        return table

    # Life.

    def _power_on(self) -> None:
        self._control = 0
        for drive in self._drives:
            drive.power_on()
        self._sign()

    def _sign(self) -> None:
        """The state after every reset: nothing under way, drive 0 selected, and the signature of a
        drive without the packet commands (9.12)."""
        self._phase = Phase.IDLE
        self._position = self._end = 0
        self._lba = self._left = self._block = 0
        self._ext = False
        self._device = DeviceBits.OBSOLETE
        self._file = [0, 0, 1, 1, 0, 0]
        self._previous = [0] * 6
        self._drive_irq()

    def rest(self) -> None:
        """Give up what is under way; nobody touches an image when this returns."""
        self._abandoned.set()
        self.settle()

    def settle(self) -> None:
        """Wait for what is under way."""
        job = self._job
        if job is not None:
            job.join()

    def reset(self) -> None:
        self._power_on()

    def save(self) -> dict[str, Any]:
        """While nothing is under way: see :meth:`settle`."""
        return {
            "drives": [drive.save() for drive in self._drives],
            "control": self._control,
            "device": self._device,
            "file": list(self._file),
            "previous": list(self._previous),
            "phase": self._phase,
            "transfer": [self._lba, self._left, self._block],
            "ext": self._ext,
            "position": self._position,
            "data": bytes(self._buffer),
        }

    def restore(self, state: dict[str, Any]) -> None:
        for drive, saved in zip(self._drives, state["drives"], strict=True):
            drive.restore(saved)
        self._control, self._device = state["control"], state["device"]
        self._file, self._previous = list(state["file"]), list(state["previous"])
        self._phase, self._position = state["phase"], state["position"]
        self._lba, self._left, self._block = state["transfer"]
        self._ext, self._end = state["ext"], self._block_length
        self._buffer[:] = state["data"]
        self._drive_irq()

    # Registers.

    @property
    def _selected(self) -> Drive | None:
        number = bool(self._device & DeviceBits.DEV)
        return self._drives[number] if number < len(self._drives) else None

    def read(self, offset: int, size: int) -> int:
        if offset == Register.DATA and size > 1:
            data = bytearray(size)
            self.read_string(offset, size, memoryview(data))
            return int.from_bytes(data, "little")
        value = 0
        for index in range(size):
            value |= self._read_register(offset + index) << 8 * index
        return value

    def _read_register(self, offset: int) -> int:
        drive = self._selected
        if offset == Register.STATUS:
            status = self._status()
            if drive is not None and drive.pending:
                drive.pending = False
                self._drive_irq()
            return status
        if offset == Register.DATA:
            return 0xFF  # there are no 8-bit data
        if offset == Register.ERROR:
            return (drive or self._drives[0]).error
        if offset == Register.DEVICE:
            return self._device
        return (self._previous if self._control & Control.HOB else self._file)[offset]

    def _status(self) -> int:
        """Drive 0 answers for a drive 1 that isn't there (9.16.1), and says 0."""
        drive = self._selected
        if drive is None:
            return 0
        if self._phase == Phase.BUSY or self._control & Control.SRST:
            return Status.BSY
        return drive.status

    def _read_control(self, offset: int, size: int) -> int:
        return self._status()

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == Register.DATA and size > 1:
            self._write_data(size, value)
            return
        for index in range(size):
            self._write_register(offset + index, value >> 8 * index & 0xFF)

    def _write_register(self, offset: int, value: int) -> None:
        if self._control & Control.SRST or self._phase != Phase.IDLE:
            self._faults.count("ATA register write to a drive that is busy")
            return
        self._control &= ~Control.HOB
        if offset == Register.COMMAND:
            self._execute(value)
        elif offset == Register.DEVICE:
            self._device = value | DeviceBits.OBSOLETE
            self._drive_irq()  # a drive that isn't selected lets go of the wire
        elif offset != Register.DATA:
            self._previous[offset], self._file[offset] = self._file[offset], value

    def _write_control(self, offset: int, size: int, value: int) -> None:
        was = self._control
        self._control = value & (Control.HOB | Control.SRST | Control.NIEN)
        if value & Control.SRST:
            self._abandoned.set()
            for drive in self._drives:
                drive.pending = False
            if self._job is None:
                self._phase = Phase.IDLE
        elif was & Control.SRST and self._job is None:
            self._soft_reset()
        self._drive_irq()

    def _soft_reset(self) -> None:
        for drive in self._drives:
            drive.ready()
            if not drive.keeps_settings:
                drive.default_settings()
        self._sign()

    def _drive_irq(self) -> None:
        drive = self._selected
        pending = drive is not None and drive.pending
        self._irq.set(pending and not self._control & Control.NIEN)

    # The data port.

    def read_string(self, offset: int, size: int, data: memoryview) -> None:
        """Fill ``data`` from the port, as ``ins`` does."""
        if offset != Register.DATA or size == 1:
            for start in range(0, len(data), size):
                data[start : start + size] = self.read(offset, size).to_bytes(size, "little")
            return
        done = 0
        while done < len(data):
            if self._phase != Phase.DATA_IN:
                self._faults.count("ATA data read that nobody asked for")
                data[done:] = b"\xff" * (len(data) - done)
                return
            piece = min(len(data) - done, self._end - self._position)
            data[done : done + piece] = self._buffer[self._position : self._position + piece]
            self._position += piece
            done += piece
            if self._position == self._end:
                self._block_read()

    def _write_data(self, size: int, value: int) -> None:
        if self._phase != Phase.DATA_OUT:
            self._faults.count("ATA data write that nobody asked for")
            return
        start = self._position
        piece = min(size, self._end - start)
        self._buffer[start : start + piece] = value.to_bytes(size, "little")[:piece]
        self._position += piece
        if self._position == self._end:
            self._block_written()

    # Commands.

    def _execute(self, opcode: int) -> None:
        if opcode == Command.EXECUTE_DEVICE_DIAGNOSTIC:  # which is for both, whoever is selected
            for each in self._drives:
                each.ready()
            self._sign()
            self._interrupt(self._drives[0])
            return
        drive = self._selected
        if drive is None:
            return
        drive.pending = False
        self._drive_irq()
        drive.error = 0
        drive.status = Status.DRDY | Status.DSC
        serve = self._commands.get(opcode)
        if serve is None:
            if opcode != Command.NOP:
                self._faults.count("ATA command that isn't supported")
            self._fail(drive, Error.ABRT)
        else:
            serve(drive)

    def _interrupt(self, drive: Drive) -> None:
        drive.pending = True
        self._drive_irq()

    def _complete(self, drive: Drive) -> None:
        self._phase = Phase.IDLE
        self._interrupt(drive)

    def _fail(self, drive: Drive, error: int, status: int = 0) -> None:
        drive.error = error
        drive.status = Status.DRDY | Status.DSC | Status.ERR | status
        self._complete(drive)

    def _address(self, drive: Drive, ext: bool) -> tuple[int, int] | None:
        """First sector and number of sectors that the registers ask for, if they exist."""
        _, _, count, low, mid, high = self._file
        sectors = count or 256
        if ext:
            _, _, count_2, low_2, mid_2, high_2 = self._previous
            sectors = count | count_2 << 8 or 65536
            lba = low | mid << 8 | high << 16 | low_2 << 24 | mid_2 << 32 | high_2 << 40
        elif self._device & DeviceBits.LBA:
            lba = low | mid << 8 | high << 16 | (self._device & DeviceBits.HEAD) << 24
        else:
            head, cylinder = self._device & DeviceBits.HEAD, mid | high << 8
            if head >= drive.heads or not 1 <= low <= drive.per_track:
                return None
            lba = (cylinder * drive.heads + head) * drive.per_track + low - 1
        return (lba, sectors) if lba + sectors <= drive.sectors else None

    def _show_address(self, drive: Drive, lba: int, ext: bool) -> None:
        """Leave the address of a sector that failed in the registers."""
        if not ext and not self._device & DeviceBits.LBA:
            track, sector = divmod(lba, drive.per_track)
            cylinder, head = divmod(track, drive.heads)
            lba = sector + 1 | (cylinder & 0xFFFF) << 8 | head << 24
        self._file[Register.LOW : Register.HIGH + 1] = lba.to_bytes(8, "little")[:3]
        if ext:
            self._previous[Register.LOW : Register.HIGH + 1] = lba.to_bytes(8, "little")[3:6]
        else:
            self._device = self._device & ~DeviceBits.HEAD | lba >> 24 & DeviceBits.HEAD

    def _transfer(self, drive: Drive, write: bool, ext: bool, multiple: bool) -> None:
        no_address = ext and not self._device & DeviceBits.LBA
        no_block = multiple and not drive.multiple
        if no_address or no_block or (write and drive.image.readonly):
            self._fail(drive, Error.ABRT)
            return
        found = self._address(drive, ext)
        if found is None:
            self._fail(drive, Error.IDNF)
            return
        self._lba, self._left = found
        self._block = drive.multiple if multiple else 1
        self._ext = ext
        if write:
            self._await_block(drive)
        else:
            self._fetch_block(drive)

    def _verify(self, drive: Drive, ext: bool) -> None:
        found = self._address(drive, ext)
        if found is None:
            self._fail(drive, Error.IDNF)
            return
        self._lba, sectors = found
        self._ext, image = ext, drive.image

        def work() -> None:
            scratch = memoryview(bytearray(min(sectors * SECTOR_SIZE, _VERIFY_STEP)))
            end = (found[0] + sectors) * SECTOR_SIZE
            for start in range(found[0] * SECTOR_SIZE, end, _VERIFY_STEP):
                if self._abandoned.is_set():
                    return
                size = min(_VERIFY_STEP, end - start)
                image.read([scratch[:size]], start, size)

        def done(failed: bool) -> None:
            if failed:
                self._show_address(drive, self._lba, ext)
                self._fail(drive, Error.UNC)
            else:
                self._complete(drive)

        self._do(drive, work, done, slow=True)

    def _flush(self, drive: Drive) -> None:
        def work() -> None:
            if not drive.image.readonly:
                drive.image.flush()

        def done(failed: bool) -> None:
            if failed:
                self._fail(drive, Error.ABRT, Status.DF)
            else:
                self._complete(drive)

        self._do(drive, work, done, slow=True)

    def _seek(self, drive: Drive) -> None:
        if self._address(drive, ext=False) is None:
            self._fail(drive, Error.IDNF)
        else:
            self._complete(drive)

    def _identify(self, drive: Drive) -> None:
        self._buffer[:SECTOR_SIZE] = drive.identify()
        self._left = self._block = 1
        self._offer_block(drive)

    def _initialize_parameters(self, drive: Drive) -> None:
        per_track = self._file[Register.COUNT]
        if not per_track:
            self._fail(drive, Error.ABRT)
            return
        drive.heads, drive.per_track = (self._device & DeviceBits.HEAD) + 1, per_track
        self._complete(drive)

    def _set_multiple(self, drive: Drive) -> None:
        count = self._file[Register.COUNT]
        if count > MAX_MULTIPLE or count & count - 1:
            drive.multiple = 0
            self._fail(drive, Error.ABRT)
        else:
            drive.multiple = count
            self._complete(drive)

    def _check_power(self, drive: Drive) -> None:
        self._file[Register.COUNT] = ACTIVE
        self._complete(drive)

    def _set_features(self, drive: Drive) -> None:
        feature = self._file[Register.FEATURES]
        if feature in (Feature.ENABLE_WRITE_CACHE, Feature.ENABLE_LOOK_AHEAD):
            name = "write_cache" if feature == Feature.ENABLE_WRITE_CACHE else "look_ahead"
            setattr(drive, name, True)
        elif feature == Feature.DISABLE_WRITE_CACHE:
            drive.write_cache = False
            self._flush(drive)  # which completes the command
            return
        elif feature == Feature.DISABLE_LOOK_AHEAD:
            drive.look_ahead = False
        elif feature in (Feature.KEEP_SETTINGS, Feature.REVERT_SETTINGS):
            drive.keeps_settings = feature == Feature.KEEP_SETTINGS
        elif feature != Feature.TRANSFER_MODE or (
            self._file[Register.COUNT] >> 3 not in (PIO_DEFAULT, PIO_FLOW_CONTROL)
        ):
            self._fail(drive, Error.ABRT)
            return
        self._complete(drive)

    # Blocks of data, and what is done with the image.

    @property
    def _busy_drive(self) -> Drive:
        """The drive that data are moved for: while they are, no other can be selected."""
        selected = self._selected
        assert selected is not None
        return selected

    @property
    def _block_length(self) -> int:
        return min(self._left, self._block) * SECTOR_SIZE

    def _fetch_block(self, drive: Drive) -> None:
        length = self._block_length
        data, offset = self._buffer[:length], self._lba * SECTOR_SIZE

        def done(failed: bool) -> None:
            if failed:
                self._show_address(drive, self._lba, self._ext)
                self._fail(drive, Error.UNC)
            else:
                self._offer_block(drive)

        self._do(drive, lambda: drive.image.read([data], offset, length), done)

    def _offer_block(self, drive: Drive) -> None:
        self._phase = Phase.DATA_IN
        self._position, self._end = 0, self._block_length
        drive.status |= Status.DRQ
        self._interrupt(drive)

    def _block_read(self) -> None:
        """The guest has fetched the block."""
        drive = self._busy_drive
        drive.status &= ~Status.DRQ
        self._advance()
        if self._left:
            self._fetch_block(drive)
        else:
            self._phase = Phase.IDLE

    def _await_block(self, drive: Drive) -> None:
        self._phase = Phase.DATA_OUT
        self._position, self._end = 0, self._block_length
        drive.status |= Status.DRQ

    def _block_written(self) -> None:
        """The guest has filled the block."""
        drive = self._busy_drive
        drive.status &= ~Status.DRQ
        length, offset = self._end, self._lba * SECTOR_SIZE
        data, through = self._buffer[:length], not drive.write_cache

        def work() -> None:
            drive.image.write([data], offset, length)
            if through:
                drive.image.flush()

        def done(failed: bool) -> None:
            if failed:
                self._show_address(drive, self._lba, self._ext)
                self._fail(drive, Error.ABRT, Status.DF)
                return
            self._advance()
            if self._left:
                self._await_block(drive)
                self._interrupt(drive)
            else:
                self._complete(drive)

        self._do(drive, work, done, slow=through)

    def _advance(self) -> None:
        moved = min(self._left, self._block)
        self._lba += moved
        self._left -= moved

    def _do(
        self,
        drive: Drive,
        work: Callable[[], None],
        done: Callable[[bool], None],
        *,
        slow: bool = False,
    ) -> None:
        """Have ``work`` done with the drive's image, then ``done``, which is told whether it
        failed; on a thread of its own if it takes long."""
        if not slow and not drive.latency_ns:
            done(self._try(drive, work))
            return
        self._phase = Phase.BUSY
        self._abandoned.clear()
        self._job = NamedThread(
            target=self._do_slowly,
            args=(drive, work, done),
            name=f"pyvmm-{self._name}",
            daemon=True,
        )
        self._job.start()

    def _do_slowly(
        self, drive: Drive, work: Callable[[], None], done: Callable[[bool], None]
    ) -> None:
        try:
            failed = False
            if not (drive.latency_ns and self._abandoned.wait(drive.latency_ns / 1e9)):
                failed = self._try(drive, work)
            with self.lock:
                self._job = None
                if not self._abandoned.is_set():
                    done(failed)
                elif not self._control & Control.SRST:
                    self._soft_reset()
        except BaseException as error:
            self._on_error(error)

    def _try(self, drive: Drive, work: Callable[[], None]) -> bool:
        """Do it; whether it failed."""
        try:
            work()
        except OSError as error:
            image = drive.image
            self._faults.report_host("disk I/O failed", "%s: %s", image.path, error.strerror)
            return True
        return False


def _text(text: str, length: int) -> bytes:
    """As IDENTIFY has it: padded with spaces, and the first of each two characters in the higher
    byte (8.15)."""
    data = text.encode("ascii", "replace")[:length].ljust(length)
    return b"".join(bytes((data[i + 1], data[i])) for i in range(0, length, 2))
