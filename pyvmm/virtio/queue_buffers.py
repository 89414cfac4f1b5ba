"""Many chains of a virtqueue as arrays, which is how one system call takes many packets.

Virtual I/O Device (VIRTIO) Version 1.2, section 2.7. A :class:`~pyvmm.virtio.queue.Chain` is an
object with a view for each buffer. With 16 buffers a packet and 100,000 packets a second there is
no time for that; here are ways to look at many descriptors with few steps of Python.
"""

from __future__ import annotations

import struct

MANY_HEADS = 4
"""From so many on, reading a column of the table takes less time than each for itself."""


def used_elements(heads: list[int], written: list[int]) -> bytes:
    """What the used ring says of chains: the head, and the number of bytes written, of each."""
    words = [0] * (2 * len(heads))
    words[::2], words[1::2] = heads, written
    return struct.pack(f"<{len(words)}I", *words)


class Buffers:
    """What several chains consist of, one way.

    Of each chain ``sizes`` has the bytes, ``counts`` the number of buffers, and ``elements`` its
    element of the used ring, if all is written that can be. ``parts`` are all their buffers as
    :class:`~pyvmm.host.Packets` takes them, and checks that they are in memory: descriptors, of
    which only the address and the length count.
    """

    __slots__ = ("counts", "elements", "parts", "sizes")

    def __init__(self, elements: bytes, sizes: list[int], counts: list[int], parts: bytes) -> None:
        self.elements = elements
        self.sizes = sizes
        self.counts = counts
        self.parts = parts

    @property
    def heads(self) -> list[int]:
        """The chains' heads."""
        return [head for head, _ in struct.iter_unpack("<II", self.elements)]


def single_buffers(table: bytes, heads: list[int], flag: int) -> Buffers | None:
    """If each of these chains is one buffer, as nearly all that drivers offer for receiving: they
    are looked at by columns."""
    number, first = len(heads), heads[0]
    if heads == list(range(first, first + number)):
        parts = table[first << 4 : first + number << 4]
    else:
        parts = b"".join([table[at : at + 16] for at in [head << 4 for head in heads]])
    lengths, flags = _columns(parts)
    if flags.count(flag) != number or not all(lengths):
        return None
    elements = used_elements(heads, lengths if flag else [0] * number)
    return Buffers(elements, lengths, [1] * number, parts)


class SteadyTable:
    """A descriptor table that hasn't changed since it was last looked at; ``flag`` are the flags of
    a descriptor that is a chain by itself.

    Small drivers leave their buffers where they are, and offer them in their order (Linux gives
    each packet new ones). Then nothing is left to do but to copy what was found out: 0.02 us a
    buffer where :func:`single_buffers` takes 0.06, and up to four times that when the processor's
    caches are full of packets.
    """

    def __init__(self, table: bytes, flag: int) -> None:
        lengths, flags = _columns(table)
        size = len(flags)
        same: dict[int, int] = {}  # one object for all lengths that are equal
        sizes = [same.setdefault(length, length) for length in lengths]
        self._table = table
        self._sizes = [
            length if each == flag else 0 for length, each in zip(sizes, flags, strict=True)
        ]
        written = self._sizes if flag else [0] * size
        self._elements = used_elements(list(range(size)), written)
        self._heads = struct.pack(f"<{size}H", *range(size))

    def buffers(self, heads: bytes) -> Buffers | None:
        """These chains, a head is 16 bits, if they are single buffers behind each other."""
        first, number = int.from_bytes(heads[:2], "little"), len(heads) >> 1
        end = first + number
        sizes = self._sizes[first:end]
        if heads != self._heads[2 * first : 2 * end] or not all(sizes):
            return None
        elements = self._elements[8 * first : 8 * end]
        return Buffers(elements, sizes, [1] * number, self._table[16 * first : 16 * end])


def _columns(table: bytes) -> tuple[list[int], list[int]]:
    """The lengths and the flags of descriptors."""
    view = memoryview(table)
    return view.cast("I")[2::4].tolist(), view.cast("H")[6::8].tolist()
