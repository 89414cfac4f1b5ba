"""Reaching into the guest's buffers, wherever the driver has cut them.

Virtual I/O Device (VIRTIO) Version 1.2, section 2.7.4: a device must not rely on how a message is
framed, so a header may be spread over several descriptors, or share one with data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def gather(buffers: Iterable[memoryview], limit: int) -> bytes:
    """A copy of the first ``limit`` bytes, or of all if there aren't as many."""
    return b"".join(first(buffers, limit))


def scatter(data: bytes | memoryview, buffers: Iterable[memoryview], offset: int = 0) -> int:
    """Copy ``data`` into the buffers from ``offset`` on, as much as they have room for; how much
    that was."""
    done = 0
    for buffer in buffers:
        if done == len(data):
            break
        if offset >= len(buffer):
            offset -= len(buffer)
            continue
        piece = data[done : done + len(buffer) - offset]
        buffer[offset : offset + len(piece)] = piece
        done += len(piece)
        offset = 0
    return done


def first(buffers: Iterable[memoryview], length: int) -> list[memoryview]:
    """The first ``length`` bytes, where they lie; all if there aren't as many."""
    found = []
    for buffer in buffers:
        if length <= 0:
            break
        found.append(buffer[:length])
        length -= len(buffer)
    return found


def behind(buffers: Sequence[memoryview], length: int) -> list[memoryview]:
    """What follows the first ``length`` bytes, where it lies."""
    for index, buffer in enumerate(buffers):
        if length < len(buffer):
            return [buffer[length:], *buffers[index + 1 :]]
        length -= len(buffer)
    return []
