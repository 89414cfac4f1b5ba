"""The buffers that a network card's driver has offered for received packets, and we hold.

Virtual I/O Device (VIRTIO) Version 1.2, sections 5.1.6.3 and 5.1.6.4. They are chains, most of
which are a single buffer; a packet begins with a chain and takes as many as it needs. A packet of
64 KiB takes 16 buffers of 4 KiB, so nothing is done here for each buffer: they are kept in arrays
of bytes, which are cut and joined.
"""

from __future__ import annotations

import struct

from pyvmm.backends.tap import VNET_HEADER_SIZE
from pyvmm.memory import GuestMemory
from pyvmm.virtio.buffers import gather, scatter
from pyvmm.virtio.queue import VIRTQ_DESC_F_WRITE, Virtqueue, VirtqueueError

NUM_BUFFERS = 10
"""Where num_buffers is in struct virtio_net_hdr (5.1.6)."""

_PART = struct.Struct("<QII")
_ELEMENT = struct.Struct("<II")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")


class ReceiveBuffers:
    """What we hold of ``queue``. ``parts`` are the buffers as :class:`~pyvmm.host.Packets` takes
    them."""

    def __init__(self, queue: Virtqueue, memory: GuestMemory) -> None:
        self._queue = queue
        self._memory = memory
        self.clear()

    def clear(self) -> None:
        """Hold nothing."""
        self._elements = bytearray()  # of the used ring, for each chain if it gets full
        self._counts: list[int] = []  # how many parts each chain has
        self.parts = bytearray()

    def __len__(self) -> int:
        """How many chains there are."""
        return len(self._counts)

    @property
    def room(self) -> int:
        """How many bytes there are."""
        return sum(length for _, length, _ in _PART.iter_unpack(self.parts))

    @property
    def single(self) -> bool:
        """Whether each chain is one part, so that several packets can be read at once."""
        return len(self.parts) == _PART.size * len(self._counts)

    def refill(self, limit: int) -> None:
        """Take more, if the driver has offered more."""
        found = self._queue.pop_buffers(limit, VIRTQ_DESC_F_WRITE)
        if found is None:
            return
        if min(found.sizes) < VNET_HEADER_SIZE:
            raise VirtqueueError("receive buffer without room for a header")
        self._elements += found.elements
        self._counts += found.counts
        self.parts += found.parts

    def start(self, first: int, length: int) -> bytes:
        """A copy of the first bytes from that part on."""
        address, size, _ = _PART.unpack_from(self.parts, _PART.size * first)
        if size >= length:
            return self._memory.read(address, length)
        return gather(self._views(first), length)

    def write(self, data: memoryview, offset: int) -> None:
        """Store ``data`` from there on."""
        scatter(data, self._views(0), offset)

    def complete(self, first: int, end: int, rest: int) -> None:
        """There is a packet in these chains, with ``rest`` bytes in the last."""
        _U32.pack_into(self._elements, _ELEMENT.size * end - 4, rest)
        address, size, _ = _PART.unpack_from(self.parts, _PART.size * first)
        if size >= VNET_HEADER_SIZE:
            self._memory.write_u16(address + NUM_BUFFERS, end - first)
        else:
            scatter(_U16.pack(end - first), self._views(first), NUM_BUFFERS)

    def complete_first(self, length: int) -> int:
        """The same for a packet in the first chains, whatever these are made of; how many they
        are."""
        number = 1
        for _, size in _ELEMENT.iter_unpack(self._elements):
            if length <= size or not size:  # 0 stands for 4 GiB
                break
            length -= size
            number += 1
        self.complete(0, number, length)
        return number

    def take(self, number: int) -> bytes:
        """Give the first chains back: their elements of the used ring."""
        elements = bytes(self._elements[: _ELEMENT.size * number])
        parts = sum(self._counts[:number])
        del self._elements[: _ELEMENT.size * number], self._counts[:number]
        del self.parts[: _PART.size * parts]
        return elements

    def recycle(self, first: int, end: int) -> None:
        """Put these chains, a part each, behind the others, to be used for another packet."""
        for field, size in ((self._elements, _ELEMENT.size), (self.parts, _PART.size)):
            chains = slice(size * first, size * end)
            field += field[chains]
            del field[chains]

    def _views(self, first: int) -> list[memoryview]:
        """The buffers from that part on, as memory."""
        parts = _PART.iter_unpack(self.parts[_PART.size * first :])
        return [self._memory.view(address, size) for address, size, _ in parts]
