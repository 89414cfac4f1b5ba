"""The split virtqueue: how a driver hands buffers to a device and gets them back.

Virtual I/O Device (VIRTIO) Version 1.2, section 2.7, with indirect descriptors (2.7.5.3) and
notification suppression by flags and by event index (2.7.7, 2.7.10). Packed virtqueues (2.8)
are left out.

Three tables in guest memory, each written by one side only:

* the descriptor table: buffers (address, length), linked into chains;
* the available ring: heads of chains that the driver hands over;
* the used ring: heads that the device hands back, with the number of bytes it wrote.

The driver is not trusted. Each descriptor is read into our memory and checked there, because the
guest can change it at any moment. What breaks the rules raises :class:`VirtqueueError`, and the
device that catches it asks for a reset.

Memory ordering: x86 keeps loads in order and stores in order, which is all that reading an index
before an entry and writing an entry before an index need. Only a store followed by a load of the
other side's word may change places; the two spots where that matters take a lock, whose atomic
instruction is a full barrier.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Callable
from typing import Any

from pyvmm.errors import GuestMemoryError
from pyvmm.memory import GuestMemory
from pyvmm.virtio.queue_buffers import (
    MANY_HEADS,
    Buffers,
    SteadyTable,
    single_buffers,
    used_elements,
)

MAX_QUEUE_SIZE = 32768
MAX_CHAIN_BYTES = 1 << 32
MAX_SEEN_BATCHES = 64
"""Batches of chains that are remembered as long as the descriptor table doesn't change: nothing
else can come of the same heads. 16 packets of three buffers take 1 us then instead of 18."""
MAX_SEEN = 4096
"""And how many bytes of descriptors such a batch may have."""
MANY_USED = 4
"""From so many on, one call that writes all used elements takes less time than one for each."""

# Descriptor flags (2.7.5), plain integers because they are tested for each descriptor.
VIRTQ_DESC_F_NEXT = 1
VIRTQ_DESC_F_WRITE = 2
VIRTQ_DESC_F_INDIRECT = 4
# Flags of the available ring (2.7.6) and of the used ring (2.7.8).
VIRTQ_AVAIL_F_NO_INTERRUPT = 1
VIRTQ_USED_F_NO_NOTIFY = 1

_DESCRIPTOR = struct.Struct("<QIHH")
_USED_ELEMENT = struct.Struct("<II")

# Both rings begin with two 16-bit words and go on with the entries; these index such words.
_FLAGS, _INDEX, _ENTRIES = 0, 1, 2
_NONE = memoryview(b"").cast("H")


class VirtqueueError(Exception):
    """The driver broke the rules of the queue; nothing in it can be relied on any more."""


class Chain:
    """A buffer from the driver: what the device may read, then what it may write.

    The views are the guest's own memory, so what was read from them once may change. The lists
    belong to whoever popped the chain.
    """

    __slots__ = ("head", "readable", "readable_bytes", "writable", "writable_bytes")

    def __init__(
        self,
        head: int,
        readable: list[memoryview],
        readable_bytes: int,
        writable: list[memoryview],
        writable_bytes: int,
    ) -> None:
        self.head = head
        self.readable = readable
        self.readable_bytes = readable_bytes
        self.writable = writable
        self.writable_bytes = writable_bytes


class Virtqueue:
    """One queue, as the device sees it.

    A transport writes ``size``, the three areas' addresses and ``ready`` as the driver tells it,
    then calls :meth:`start`. From there on the queue belongs to one thread of the device, which
    pops and pushes; ``interrupt`` is called when a push has to be signalled.
    """

    def __init__(self, memory: GuestMemory, max_size: int, interrupt: Callable[[], None]) -> None:
        if not 0 < max_size <= MAX_QUEUE_SIZE or max_size & (max_size - 1):
            raise ValueError(f"queue size {max_size} is not a power of two up to {MAX_QUEUE_SIZE}")
        self.max_size = max_size
        self.memory = memory
        # Most buffers are in the region at GPA 0, where an index into the view is the GPA.
        self._low = memory.regions[0].view
        self._low_end = memory.regions[0].end
        self._interrupt = interrupt
        self._barrier = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """As after the device's reset: not ready, no addresses, the largest size."""
        self.size = self.max_size
        self.descriptor_area = 0
        self.driver_area = 0
        self.device_area = 0
        self.ready = False
        self._event_idx = False
        self._indirect = False
        self._next_avail = 0
        self._next_used = 0
        self._table = b""
        self._steady: SteadyTable | None = None
        self._seen: dict[bytes, Buffers] = {}  # batches of the same table, by their heads
        self._looked_beyond = False  # it, for the latest batch
        self._descriptors = self._avail = self._used = self._used_words = memoryview(b"")

    def start(self, *, event_idx: bool, indirect: bool) -> None:
        """Map the rings at the addresses that the driver gave. VirtqueueError if they can't be."""
        size = self.size
        self._event_idx, self._indirect = event_idx, indirect
        self._descriptors = self._area(self.descriptor_area, 16 * size, 16)
        self._avail = self._area(self.driver_area, 6 + 2 * size, 2).cast("H")
        self._used = self._area(self.device_area, 6 + 8 * size, 4)
        self._used_words = self._used.cast("H")

    def _area(self, address: int, length: int, alignment: int) -> memoryview:
        if address % alignment:
            raise VirtqueueError(f"ring at {address:#x} is not aligned to {alignment}")
        try:
            return self.memory.view(address, length)
        except GuestMemoryError as error:
            raise VirtqueueError(f"ring outside memory: {error}") from error

    def pop_batch(self, limit: int) -> list[Chain]:
        """Up to ``limit`` chains that the driver has made available, oldest first."""
        heads = self._offered(limit).tolist()
        try:
            chains = [self._chain(head) for head in heads]
        except GuestMemoryError as error:
            raise VirtqueueError(f"descriptor outside memory: {error}") from error
        self._next_avail = (self._next_avail + len(chains)) & 0xFFFF
        return chains

    def pop(self) -> Chain | None:
        """The next chain; None if there is none, and then the driver will ring for it."""
        while True:
            chains = self.pop_batch(1)
            if chains:
                return chains[0]
            if not self.enable_notifications():
                return None

    def pop_buffers(self, limit: int, flag: int) -> Buffers | None:
        """The same for many packets at once: of each chain what the device may write (``flag`` is
        VIRTQ_DESC_F_WRITE), or what it may read (0), always the same for a queue. None if the
        driver has made none available."""
        offered = self._offered(limit)
        number = len(offered)
        if not number:
            return None
        heads, table = offered.tobytes(), bytes(self._descriptors)
        if table != self._table:
            self._table, self._steady = table, None
            self._seen.clear()
        elif self._steady is None and number >= MANY_HEADS:
            self._steady = SteadyTable(table, flag)
        found = self._seen.get(heads)
        if found is None and self._steady is not None and number >= MANY_HEADS:
            found = self._steady.buffers(heads)
        if found is None:
            found = self._changing_buffers(table, heads, flag)
        self._next_avail = (self._next_avail + number) & 0xFFFF
        return found

    def _changing_buffers(self, table: bytes, offered: bytes, flag: int) -> Buffers:
        """Of any table, and any chains."""
        heads = memoryview(offered).cast("H").tolist()
        if max(heads) >= self.size:
            raise VirtqueueError(f"descriptor {max(heads)} in a table of {self.size}")
        if len(heads) >= MANY_HEADS:
            found = single_buffers(table, heads, flag)
            if found is not None:
                return found
        self._looked_beyond = False
        try:
            chains = [self._buffers(table, head, flag) for head in heads]
        except GuestMemoryError as error:
            raise VirtqueueError(f"descriptor outside memory: {error}") from error
        parts, sizes, counts = zip(*chains, strict=True)
        written = [size & 0xFFFF_FFFF if flag else 0 for size in sizes]  # 4 GiB never are
        elements = used_elements(heads, written)
        found = Buffers(elements, list(sizes), list(counts), b"".join(parts))
        if not self._looked_beyond and len(found.parts) <= MAX_SEEN:
            if len(self._seen) >= MAX_SEEN_BATCHES:
                self._seen.clear()
            self._seen[offered] = found
        return found

    def _buffers(self, table: bytes, head: int, flag: int) -> tuple[bytes, int, int]:
        """A chain of any kind: its parts, its bytes, and how many parts these are."""
        entries = budget = self.size
        source: bytes | memoryview = table
        address, length, flags, following = _DESCRIPTOR.unpack_from(table, head << 4)
        if flags == VIRTQ_DESC_F_INDIRECT and self._indirect and length and not length & 15:
            self._looked_beyond = True
            source, entries = self.memory.view(address, length), length >> 4
            budget = self.max_size
            address, length, flags, following = _DESCRIPTOR.unpack_from(source)
        lengths, buffers = [length], [address, length]
        while flags == flag | VIRTQ_DESC_F_NEXT and following < entries and len(lengths) < budget:
            address, length, flags, following = _DESCRIPTOR.unpack_from(source, following << 4)
            lengths.append(length)
            buffers += address, length
        size = sum(lengths)
        if flags != flag or not all(lengths) or size > MAX_CHAIN_BYTES:
            self._looked_beyond = True
            return self._unusual_buffers(head, flag)
        return struct.pack(f"<{len(buffers)}Q", *buffers), size, len(lengths)

    def _unusual_buffers(self, head: int, flag: int) -> tuple[bytes, int, int]:
        """The same if the chain has buffers of both kinds, or an indirect table behind others; or
        if something is wrong with it, which :meth:`_chain` finds."""
        chain = self._chain(head)
        views = chain.writable if flag else chain.readable
        pairs = [(self.memory.gpa_of(view), len(view)) for view in views]
        parts = b"".join(_DESCRIPTOR.pack(address, length, 0, 0) for address, length in pairs)
        return parts, sum(length for _, length in pairs), len(pairs)

    def _offered(self, limit: int) -> memoryview:
        """What the available ring holds for us: heads, at most ``limit``. It is the guest's memory,
        to be read once."""
        avail = self._avail
        position = self._next_avail
        waiting = (avail[_INDEX] - position) & 0xFFFF
        if not waiting:
            return _NONE
        size = self.size
        if waiting > size:
            raise VirtqueueError(f"{waiting} chains available in a queue of {size}")
        first = _ENTRIES + (position & (size - 1))
        last, end = first + min(waiting, limit), _ENTRIES + size
        if last <= end:
            return avail[first:last]
        both = avail[first:end].tobytes() + avail[_ENTRIES : last - size].tobytes()
        return memoryview(both).cast("H")

    def unpop(self, count: int) -> None:
        """Have the last ``count`` chains that were popped, and not pushed, popped again."""
        self._next_avail = (self._next_avail - count) & 0xFFFF

    def _chain(self, head: int) -> Chain:
        """Follow the descriptors from ``head``; at most one indirect table, at the end."""
        view = self.memory.view
        low, low_end = self._low, self._low_end
        unpack = _DESCRIPTOR.unpack_from
        table, entries = self._descriptors, self.size
        if head >= entries:
            raise VirtqueueError(f"descriptor {head} in a table of {entries}")
        address, length, flags, following = unpack(table, head << 4)
        if length and not flags & ~VIRTQ_DESC_F_WRITE:
            # A single buffer, as nearly all that network drivers offer for receiving.
            end = address + length
            buffer = low[address:end] if end <= low_end else view(address, length)
            if flags:
                return Chain(head, [], 0, [buffer], length)
            return Chain(head, [buffer], length, [], 0)
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        readable_bytes = writable_bytes = 0
        budget = entries
        while True:
            if flags & VIRTQ_DESC_F_INDIRECT:
                if table is not self._descriptors or not self._indirect:
                    raise VirtqueueError("indirect descriptor where none is allowed")
                if flags & VIRTQ_DESC_F_NEXT or length & 15:
                    raise VirtqueueError(f"bad indirect table: {length} bytes, flags {flags:#x}")
                table, entries = view(address, length), length >> 4
                # A device's queue size bounds its chains, whatever size the driver has chosen.
                budget, following = self.max_size, 0
            else:
                if not length:
                    raise VirtqueueError("descriptor of length 0")
                end = address + length
                buffer = low[address:end] if end <= low_end else view(address, length)
                if flags & VIRTQ_DESC_F_WRITE:
                    writable.append(buffer)
                    writable_bytes += length
                elif writable:
                    raise VirtqueueError("readable descriptor behind a writable one")
                else:
                    readable.append(buffer)
                    readable_bytes += length
                if not flags & VIRTQ_DESC_F_NEXT:
                    if readable_bytes + writable_bytes > MAX_CHAIN_BYTES:
                        raise VirtqueueError("chain of more than 4 GiB")
                    return Chain(head, readable, readable_bytes, writable, writable_bytes)
                budget -= 1
                if not budget:
                    raise VirtqueueError("chain is longer than the queue, or a loop")
            if following >= entries:
                raise VirtqueueError(f"descriptor {following} in a table of {entries}")
            address, length, flags, following = unpack(table, following << 4)

    @property
    def waiting(self) -> bool:
        """Whether the driver has made a chain available that wasn't popped yet."""
        return bool(self._avail[_INDEX] != self._next_avail)

    def push_batch(self, used: list[tuple[int, int]]) -> None:
        """Hand chains back: (head, number of bytes written) each. One store makes all of them
        visible, and at most one interrupt announces them."""
        ring = self._used
        mask = self.size - 1
        position = self._next_used
        if len(used) >= MANY_USED and (position & mask) + len(used) <= self.size:
            words = itertools.chain.from_iterable(used)
            struct.pack_into(f"<{2 * len(used)}I", ring, 4 + ((position & mask) << 3), *words)
            position += len(used)
        else:
            for head, written in used:
                _USED_ELEMENT.pack_into(ring, 4 + ((position & mask) << 3), head, written)
                position += 1
        self._publish(position)

    def push_elements(self, elements: bytes | bytearray) -> None:
        """The same for elements of the used ring, made by :func:`used_elements`."""
        ring, size, position = self._used, self.size, self._next_used
        start = 4 + ((position & (size - 1)) << 3)
        end, wrap = start + len(elements), 4 + (size << 3)
        if end <= wrap:
            ring[start:end] = elements
        elif len(elements) <= size << 3:
            ring[start:wrap] = elements[: wrap - start]
            ring[4 : 4 + end - wrap] = elements[wrap - start :]
        else:  # it has offered chains again that it hadn't got back
            raise VirtqueueError(f"{len(elements) >> 3} chains used in a queue of {size}")
        self._publish(position + (len(elements) >> 3))

    def _publish(self, position: int) -> None:
        """Show the driver the used elements before ``position``, and interrupt it if it wants."""
        old = self._next_used
        new = position & 0xFFFF
        self._next_used = new
        self._used_words[_INDEX] = new
        with self._barrier:  # the driver's wish is read after the index is visible
            pass
        avail = self._avail
        if self._event_idx:
            used_event = avail[_ENTRIES + self.size]
            if (new - used_event - 1) & 0xFFFF >= (new - old) & 0xFFFF:
                return
        elif avail[_FLAGS] & VIRTQ_AVAIL_F_NO_INTERRUPT:
            return
        self._interrupt()

    def disable_notifications(self) -> None:
        """Tell the driver not to ring: the device will look at the ring by itself."""
        # With event indices an avail_event that has been passed is silence enough.
        if not self._event_idx:
            self._used_words[_FLAGS] = VIRTQ_USED_F_NO_NOTIFY

    def enable_notifications(self) -> bool:
        """Ask the driver to ring for the next chain. True if one has arrived already, for which
        it may not ring: pop again then."""
        if self._event_idx:
            self._used_words[_ENTRIES + 4 * self.size] = self._next_avail
        else:
            self._used_words[_FLAGS] = 0
        with self._barrier:  # the index is read after the wish is visible
            pass
        return self.waiting

    def save(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "descriptor_area": self.descriptor_area,
            "driver_area": self.driver_area,
            "device_area": self.device_area,
            "ready": self.ready,
            "next_avail": self._next_avail,
            "next_used": self._next_used,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`save` returned; :meth:`start` maps the rings again."""
        self.reset()
        self.size = state["size"]
        self.descriptor_area = state["descriptor_area"]
        self.driver_area = state["driver_area"]
        self.device_area = state["device_area"]
        self.ready = state["ready"]
        self._next_avail = state["next_avail"]
        self._next_used = state["next_used"]
