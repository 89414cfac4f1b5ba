"""virtio-blk: a disk.

Virtual I/O Device (VIRTIO) Version 1.2, section 5.2. One queue; read, write, flush, discard,
write zeroes and the serial number.

Each disk has a thread, because reading and writing a file may block. It sleeps on the queue's
doorbell itself, so that no other thread stands between the guest's kick and the system call, and
it serves requests in the order in which they come. A flush therefore finds all earlier writes
done.

Left out: more than one queue, a cache mode that the driver can change (VIRTIO_BLK_F_CONFIG_WCE),
lifetime, secure erase, zones, and the features that only the legacy interface has.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence

from pyvmm.backends.disk import SECTOR_SIZE, DiskImage
from pyvmm.errors import ConfigError
from pyvmm.threads import NamedThread
from pyvmm.virtio.buffers import behind, gather, scatter
from pyvmm.virtio.device import DeviceId, VirtioDevice
from pyvmm.virtio.queue import Chain, Virtqueue, VirtqueueError

QUEUE_SIZE = 256
BATCH = 16
BATCH_BYTES = 256 << 10
"""How many requests, and with how many bytes, are completed together. More would save interrupts,
but the guest would wait idle for the first of them."""
SERIAL_LENGTH = 20

PHYSICAL_BLOCK_EXPONENT = 3
"""Physical blocks of 2**3 sectors: what the host's file systems and disks work with."""
MAX_SEGMENTS = 32
MAX_DISCARD_SECTORS = (2 << 30) // SECTOR_SIZE
MAX_WRITE_ZEROES_SECTORS = (64 << 20) // SECTOR_SIZE
"""Small enough for a file system that can't zero a range, where we write the zeros."""


class BlockFeature:
    """Feature bits (5.2.3)."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


# Request types (5.2.6), plain integers because they are compared for each request.
VIRTIO_BLK_T_IN = 0
VIRTIO_BLK_T_OUT = 1
VIRTIO_BLK_T_FLUSH = 4
VIRTIO_BLK_T_GET_ID = 8
VIRTIO_BLK_T_DISCARD = 11
VIRTIO_BLK_T_WRITE_ZEROES = 13

VIRTIO_BLK_S_OK = 0
VIRTIO_BLK_S_IOERR = 1
VIRTIO_BLK_S_UNSUPP = 2

WRITE_ZEROES_UNMAP = 1

# struct virtio_blk_config (5.2.4) up to what our features need: capacity, size_max, seg_max,
# geometry (three fields), blk_size, topology (physical_block_exp, alignment_offset, min_io_size,
# opt_io_size), writeback, num_queues, max_discard_sectors, max_discard_seg,
# discard_sector_alignment, max_write_zeroes_sectors, max_write_zeroes_seg,
# write_zeroes_may_unmap.
_CONFIG = struct.Struct("<Q II HBB I BBHI BxH III IIB3x")
_HEADER = struct.Struct("<I4xQ")  # type, reserved, sector
_SEGMENT = struct.Struct("<QII")  # sector, num_sectors, flags


class BlockDevice(VirtioDevice):
    """A disk with the content of ``image``.

    ``name`` names its thread. ``on_io_error`` is told of each request that the host fails to carry
    out, such as a write to an image whose file system is full; the guest gets an I/O error.
    ``on_error`` is told of an exception that is our bug, after which the disk is dead; without it
    the thread prints a traceback.
    """

    def __init__(
        self,
        image: DiskImage,
        serial: str = "",
        *,
        name: str = "vda",
        on_io_error: Callable[[OSError], None] | None = None,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        features = BlockFeature.SEG_MAX | BlockFeature.BLK_SIZE | BlockFeature.TOPOLOGY
        features |= BlockFeature.FLUSH
        if image.readonly:
            features |= BlockFeature.RO
        else:
            features |= BlockFeature.DISCARD | BlockFeature.WRITE_ZEROES
        super().__init__(DeviceId.BLOCK, features, (QUEUE_SIZE,), _config_space(image))
        self.image = image
        self.name = name
        self._sectors = image.size // SECTOR_SIZE
        self._serial = serial.encode("utf-8", "replace")
        if len(self._serial) > SERIAL_LENGTH:
            raise ConfigError(f"disk serial {serial!r} is longer than {SERIAL_LENGTH} bytes")
        self._on_io_error = on_io_error
        self._on_error = on_error
        self._queue: Virtqueue | None = None
        self._write_through = False
        self._worker: NamedThread | None = None
        self._stopping = False
        self._dropping = False

    # Life, from the vCPUs' and the machine's threads.

    def activate(self, queues: Sequence[Virtqueue], features: int) -> None:
        # A driver that can't flush takes every completed write for durable (5.2.6.2).
        self._write_through = not features & BlockFeature.FLUSH
        self._queue = queues[0] if queues[0].ready else None
        self._start()

    def reset(self) -> None:
        self._dropping = True
        self._stop()
        self._dropping = False
        self._queue = None

    def pause(self) -> None:
        self._stop()

    def resume(self) -> None:
        self._start()

    def _start(self) -> None:
        if self._queue is not None and self._queue.ready and self._worker is None:
            self._stopping = False
            self._worker = NamedThread(
                target=self._work, args=(self._queue,), name=f"pyvmm-{self.name}", daemon=True
            )
            self._worker.start()

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            self._stopping = True
            os.eventfd_write(self.doorbells[0], 1)
            worker.join()

    # The disk's own thread.

    def _work(self, queue: Virtqueue) -> None:
        doorbell = self.doorbells[0]
        try:
            while not self._stopping:
                self._drain(queue)
                if not self._stopping:
                    os.read(doorbell, 8)
        except VirtqueueError as error:
            self.fail(error)
        except BaseException as error:
            if self._on_error is None:
                raise
            self._on_error(error)

    def _drain(self, queue: Virtqueue) -> None:
        """Serve requests until there are none and the driver will ring for the next."""
        queue.disable_notifications()
        while not self._stopping:
            chains = queue.pop_batch(BATCH)
            if chains:
                self._serve_batch(queue, chains)
            elif queue.enable_notifications():
                queue.disable_notifications()
            else:
                return

    def _serve_batch(self, queue: Virtqueue, chains: list[Chain]) -> None:
        used: list[tuple[int, int]] = []
        moved = 0
        for chain in chains:
            if self._dropping:
                return
            request = Request(chain)
            if used and (request.kind > VIRTIO_BLK_T_OUT or moved >= BATCH_BYTES):
                queue.push_batch(used)  # what is done needn't wait for something slow
                used = []
                moved = 0
            status, written = self._execute(request)
            request.status[0] = status
            used.append((chain.head, written + 1))
            moved += request.in_bytes + request.out_bytes
        queue.push_batch(used)

    def _execute(self, request: Request) -> tuple[int, int]:
        """The status, and how many bytes of data have been written to the guest."""
        kind = request.kind
        try:
            if kind == VIRTIO_BLK_T_IN:
                return self._read(request)
            if kind == VIRTIO_BLK_T_OUT:
                return self._write(request), 0
            if kind == VIRTIO_BLK_T_FLUSH:
                self.image.flush()
                return VIRTIO_BLK_S_OK, 0
            if kind == VIRTIO_BLK_T_GET_ID:
                identity = self._serial.ljust(SERIAL_LENGTH, b"\0")
                return VIRTIO_BLK_S_OK, scatter(identity, request.data_in)
            if kind in (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES):
                return self._write_segments(request), 0
        except OSError as error:
            if self._on_io_error is not None:
                self._on_io_error(error)
            return VIRTIO_BLK_S_IOERR, 0
        return VIRTIO_BLK_S_UNSUPP, 0

    def _read(self, request: Request) -> tuple[int, int]:
        length = request.in_bytes
        if not self._in_range(request.sector, length):
            return VIRTIO_BLK_S_IOERR, 0
        self.image.read(request.data_in, request.sector * SECTOR_SIZE, length)
        return VIRTIO_BLK_S_OK, length

    def _write(self, request: Request) -> int:
        length = request.out_bytes
        if self.image.readonly or not self._in_range(request.sector, length):
            return VIRTIO_BLK_S_IOERR
        self.image.write(request.data_out, request.sector * SECTOR_SIZE, length)
        if self._write_through:
            self.image.flush()
        return VIRTIO_BLK_S_OK

    def _in_range(self, sector: int, length: int) -> bool:
        return not length % SECTOR_SIZE and sector * SECTOR_SIZE + length <= self.image.size

    def _write_segments(self, request: Request) -> int:
        """Discard or zero a list of ranges; all of them are checked before the first is done."""
        count, rest = divmod(request.out_bytes, _SEGMENT.size)
        if self.image.readonly or rest or not 0 < count <= MAX_SEGMENTS:
            return VIRTIO_BLK_S_IOERR
        discard = request.kind == VIRTIO_BLK_T_DISCARD
        largest = MAX_DISCARD_SECTORS if discard else MAX_WRITE_ZEROES_SECTORS
        known_flags = 0 if discard else WRITE_ZEROES_UNMAP
        segments = list(_SEGMENT.iter_unpack(b"".join(request.data_out)))
        for sector, sectors, flags in segments:
            if flags & ~known_flags:
                return VIRTIO_BLK_S_UNSUPP
            if sectors > largest or sector + sectors > self._sectors:
                return VIRTIO_BLK_S_IOERR
        for sector, sectors, flags in segments:
            offset, length = sector * SECTOR_SIZE, sectors * SECTOR_SIZE
            if discard:
                self.image.discard(offset, length)
            else:
                unmap = bool(flags & WRITE_ZEROES_UNMAP)
                self.image.write_zeroes(offset, length, unmap=unmap)
        if self._write_through:
            self.image.flush()
        return VIRTIO_BLK_S_OK


class Request:
    """A request's parts (struct virtio_blk_req, 5.2.6), however the driver has cut it into
    buffers (2.7.4): header and data to the device, then data from the device and the status."""

    __slots__ = ("data_in", "data_out", "in_bytes", "kind", "out_bytes", "sector", "status")

    def __init__(self, chain: Chain) -> None:
        out, into = chain.readable, chain.writable
        self.out_bytes = chain.readable_bytes - _HEADER.size
        self.in_bytes = chain.writable_bytes - 1
        if self.out_bytes < 0 or self.in_bytes < 0:
            raise VirtqueueError("request without a header or a status byte")
        header: memoryview | bytes = out[0]
        if len(header) == _HEADER.size:
            del out[0]
            self.data_out = out
        else:
            header, self.data_out = gather(out, _HEADER.size), behind(out, _HEADER.size)
        self.kind, self.sector = _HEADER.unpack(header)
        self.data_in = into
        last = into.pop()
        if len(last) > 1:
            into.append(last[:-1])
            last = last[-1:]
        self.status = last


def _config_space(image: DiskImage) -> bytes:
    writable = not image.readonly
    physical_block = 1 << PHYSICAL_BLOCK_EXPONENT
    topology = (PHYSICAL_BLOCK_EXPONENT, 0, physical_block, 0)
    discard = (MAX_DISCARD_SECTORS, MAX_SEGMENTS, physical_block) if writable else (0, 0, 0)
    zeroes = (MAX_WRITE_ZEROES_SECTORS, MAX_SEGMENTS, 1) if writable else (0, 0, 0)
    return _CONFIG.pack(
        image.size // SECTOR_SIZE,
        *(0, QUEUE_SIZE - 2),
        *(0, 0, 0),
        SECTOR_SIZE,
        *topology,
        *(0, 1),
        *discard,
        *zeroes,
    )
