"""What the VMM does for PyVMM's own BIOS: one port, by which the BIOS hands over a request.

There is no document but this and firmware/README.md. The BIOS writes the guest-physical address of
a :data:`REQUEST` to the port, as 32 bits; when the instruction is over, the request is done, and
the status and the results stand in it.

Disks and floppies have the numbers that INT 13h has for them: :data:`FIRST_DISK` and on, 0 and 1.

A disk that a virtio driver is using (DRIVER_OK) is that driver's: the BIOS is refused until the
driver resets the device, or the BIOS starts anew (:attr:`Function.START`), which does it.

Left out: anything that a PC's hardware does as well.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pyvmm.backends.disk import SECTOR_SIZE, DiskImage
from pyvmm.bus import Device
from pyvmm.errors import GuestFaults, GuestMemoryError
from pyvmm.memory import MIB, GuestMemory

if TYPE_CHECKING:
    from pyvmm.backends.floppy import Floppy
    from pyvmm.boot.firmware import BiosFacts

REQUEST = struct.Struct("<BBBBIQQ")
"""function, status, unit, flags; amount; sector or start; buffer or size."""


class Function:
    START = 0
    """The BIOS starts: disks to rest. Results: unit, how many disks; flags, how many floppies;
    sector, where the SMBIOS entry points are."""
    DISK = 1
    """Disk ``unit``. Results: sector, its size in sectors; flags, 1 if it is read-only; and of a
    floppy: amount, its sectors on a track, its heads and, the upper half, its cylinders; buffer,
    its drive's type, as in the CMOS."""
    READ = 2
    """``amount`` sectors of disk ``unit`` from ``sector`` on, to the GPA ``buffer``. If it
    fails, amount is 0 afterwards. WRITE and VERIFY the same, but that VERIFY needs no buffer."""
    WRITE = 3
    VERIFY = 4
    FLUSH = 5
    """Make durable what was written to disk ``unit``."""
    MEMORY = 6
    """Entry ``unit`` of the memory map. Results: start, size; amount, its type; unit, the
    next one's number or 0."""
    COPY = 7
    """``amount`` bytes from the GPA ``start`` to the GPA ``buffer``."""
    BOOT = 8
    """Attempt ``unit`` at booting. Results: flags, one of :class:`Boot`; unit, the disk;
    amount, the kernel's segment and SP."""
    GIVE_UP = 9
    """Nothing boots."""
    FILL = 10
    """``amount`` sectors of disk ``unit`` from ``sector`` on, with the byte ``buffer``."""


class Boot:
    DISK = 0
    KERNEL = 1


class Status:
    """INT 13h's."""

    OK = 0x00
    BAD_REQUEST = 0x01
    WRITE_PROTECTED = 0x03
    SECTOR_NOT_FOUND = 0x04
    DMA_OUT_OF_RANGE = 0x09
    UNCORRECTABLE = 0x10
    DRIVE_NOT_READY = 0xAA
    WRITE_FAULT = 0xCC


FIRST_DISK = 0x80
READ_ONLY = 1
MAX_SECTORS = 0xFFFF
"""At once; INT 13h can't ask for more."""
_STEP = MIB


class Disk(Protocol):
    """A disk's image, and the virtio transport in front of it."""

    @property
    def image(self) -> DiskImage: ...

    @property
    def in_use(self) -> bool:
        """Whether a driver works with it."""

    def to_rest(self) -> None:
        """As if its driver had reset it."""


class Request(NamedTuple):
    """A request's fields, in their order. The answer is the same with some of them replaced."""

    function: int
    status: int
    unit: int
    flags: int
    amount: int
    sector: int
    buffer: int


class BiosServices(Device):
    """The port: a write of 32 bits has the request at that address done.

    ``facts`` tells what the BIOS wants to know of the machine; ``boot_order`` are the numbers of
    disks and floppies. The callbacks are called with the lock held, on a vCPU's thread, and must
    only post a request: ``give_up`` when nothing boots, ``reset`` when the kernel is to be started
    for a second time.
    """

    def __init__(
        self,
        memory: GuestMemory,
        faults: GuestFaults,
        disks: Sequence[Disk],
        boot_order: Sequence[int],
        facts: Callable[[], BiosFacts],
        *,
        give_up: Callable[[], None],
        reset: Callable[[], None],
        floppies: Sequence[Floppy] = (),
    ) -> None:
        super().__init__()
        self._memory = memory
        self._faults = faults
        self._disks = disks
        self._floppies = floppies
        self._boot_order = boot_order
        self._facts = facts
        self._give_up = give_up
        self._ask_for_reset = reset
        self._kernel_entered = False
        self._functions = {
            Function.START: self._start,
            Function.DISK: self._describe_disk,
            Function.READ: self._transfer,
            Function.WRITE: self._transfer,
            Function.VERIFY: self._transfer,
            Function.FLUSH: self._flush,
            Function.MEMORY: self._memory_entry,
            Function.COPY: self._copy,
            Function.BOOT: self._boot,
            Function.GIVE_UP: self._end,
            Function.FILL: self._transfer,
        }

    def reset(self) -> None:
        self._kernel_entered = False

    def save(self) -> dict[str, Any]:
        return {"kernel_entered": self._kernel_entered}

    def restore(self, state: dict[str, Any]) -> None:
        self._kernel_entered = state["kernel_entered"]

    def read(self, offset: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 4:
            self._faults.report("BIOS services: not a 32-bit access")
            return
        try:
            block = self._memory.view(value, REQUEST.size)
        except GuestMemoryError as error:
            self._faults.report("BIOS services: no request", "%s", error)
            return
        request = Request._make(REQUEST.unpack(block))._replace(status=Status.OK)
        serve = self._functions.get(request.function)
        if serve is None:
            self._faults.report("BIOS services: no such function", "%#x", request.function)
            answer = _failed(request, Status.BAD_REQUEST)
        else:
            answer = serve(request)
        REQUEST.pack_into(block, 0, *answer)

    def _start(self, request: Request) -> Request:
        for disk in self._disks:
            disk.to_rest()
        return request._replace(
            unit=len(self._disks), flags=len(self._floppies), sector=self._facts().smbios
        )

    def _disk(self, request: Request) -> Disk | None:
        is_disk = request.unit >= FIRST_DISK
        drives: Sequence[Disk] = self._disks if is_disk else self._floppies
        number = request.unit - FIRST_DISK if is_disk else request.unit
        return drives[number] if number < len(drives) else None

    def _describe_disk(self, request: Request) -> Request:
        disk = self._disk(request)
        if disk is None:
            return _failed(request, Status.BAD_REQUEST)
        flags = READ_ONLY if disk.image.readonly else 0
        request = request._replace(flags=flags, sector=disk.image.size // SECTOR_SIZE)
        if request.unit >= FIRST_DISK:
            return request
        floppy = self._floppies[request.unit]
        cylinders, heads, sectors = floppy.geometry
        return request._replace(
            amount=cylinders << 16 | heads << 8 | sectors, buffer=floppy.drive_type
        )

    def _transfer(self, request: Request) -> Request:
        disk = self._disk(request)
        if disk is None or request.amount > MAX_SECTORS:
            return _failed(request, Status.BAD_REQUEST)
        if disk.in_use:
            self._faults.report("BIOS services: a virtio driver has the disk")
            return _failed(request, Status.DRIVE_NOT_READY)
        image, writes = disk.image, request.function in (Function.WRITE, Function.FILL)
        offset, length = request.sector * SECTOR_SIZE, request.amount * SECTOR_SIZE
        if offset + length > image.size or (not length and offset >= image.size):
            return _failed(request, Status.SECTOR_NOT_FOUND)
        if writes and image.readonly:
            return _failed(request, Status.WRITE_PROTECTED)
        try:
            if request.function == Function.VERIFY:
                _verify(image, offset, length)
            elif request.function == Function.FILL:
                _fill(image, offset, length, request.buffer & 0xFF)
            elif length:
                data = self._memory.view(request.buffer, length)
                (image.write if writes else image.read)([data], offset, length)
        except GuestMemoryError:
            return _failed(request, Status.DMA_OUT_OF_RANGE)
        except OSError as error:
            self._faults.report_host("disk I/O failed", "%s: %s", image.path, error.strerror)
            return _failed(request, Status.WRITE_FAULT if writes else Status.UNCORRECTABLE)
        return request

    def _flush(self, request: Request) -> Request:
        disk = self._disk(request)
        if disk is None:
            return _failed(request, Status.BAD_REQUEST)
        try:
            if not disk.image.readonly:
                disk.image.flush()
        except OSError as error:
            self._faults.report_host("disk I/O failed", "%s: %s", disk.image.path, error.strerror)
            return _failed(request, Status.WRITE_FAULT)
        return request

    def _memory_entry(self, request: Request) -> Request:
        entries = self._facts().memory_map
        if request.unit >= len(entries):
            return _failed(request, Status.BAD_REQUEST)
        start, size, kind = entries[request.unit]
        return request._replace(
            unit=(request.unit + 1) % len(entries), amount=kind, sector=start, buffer=size
        )

    def _copy(self, request: Request) -> Request:
        try:
            self._memory.write(
                request.buffer, self._memory.read(request.sector, min(request.amount, MIB))
            )
        except GuestMemoryError:
            return _failed(request, Status.DMA_OUT_OF_RANGE)
        return request

    def _boot(self, request: Request) -> Request:
        kernel = self._facts().kernel
        if kernel is not None:
            if self._kernel_entered:
                self._ask_for_reset()  # it has overwritten itself: only a reset loads it again
                return _failed(request, Status.DRIVE_NOT_READY)
            self._kernel_entered = True
            return request._replace(flags=Boot.KERNEL, amount=kernel.segment << 16 | kernel.sp)
        if request.unit >= len(self._boot_order):
            return _failed(request, Status.BAD_REQUEST)
        return request._replace(flags=Boot.DISK, unit=self._boot_order[request.unit])

    def _end(self, request: Request) -> Request:
        self._give_up()
        return request


def _failed(request: Request, status: int) -> Request:
    return request._replace(status=status, amount=0)


def _verify(image: DiskImage, offset: int, length: int) -> None:
    """Read the sectors, for the host's errors."""
    scratch = memoryview(bytearray(min(length, _STEP)))
    for start in range(0, length, _STEP):
        size = min(_STEP, length - start)
        image.read([scratch[:size]], offset + start, size)


def _fill(image: DiskImage, offset: int, length: int, value: int) -> None:
    """Have each byte of the range be ``value``."""
    data = memoryview(bytes((value,)) * min(length, _STEP))
    for start in range(0, length, _STEP):
        size = min(_STEP, length - start)
        image.write([data[:size]], offset + start, size)
