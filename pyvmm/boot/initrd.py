"""The initial ramdisk: as high in RAM as kernel and machine allow.

High, because kernels unpack and relocate themselves upwards from where they are loaded
(Documentation/arch/x86/boot.rst, "Details of Header Fields", initrd_addr_max).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import NamedTuple

from pyvmm import layout
from pyvmm.boot.image import ImageFile
from pyvmm.boot.memory_map import memory_option
from pyvmm.errors import ImageError
from pyvmm.memory import MIB, MMIO_HOLE_START, PAGE_SIZE, GuestMemory, align_up


class Initrd(NamedTuple):
    """Where the ramdisk was put; all zero if there is none."""

    start: int = 0
    size: int = 0


def load(
    path: str | os.PathLike[str] | None,
    memory: GuestMemory,
    highest: int,
    occupied: Iterable[tuple[int, int]],
) -> Initrd:
    """Read the file at ``path`` into RAM below 4 GiB, not above the address ``highest`` and not
    over any of the ``occupied`` ranges (start, end)."""
    if path is None:
        return Initrd()
    occupied = list(occupied)
    with ImageFile(path, "initrd") as image:
        ram_end = memory.regions[0].end
        start = place(image.size, min(ram_end, highest + 1), occupied)
        if start is None:
            raise _does_not_fit(image, ram_end, highest, occupied)
        image.read_into(memory.view(start, image.size), 0)
        return Initrd(start, image.size)


def place(size: int, limit: int, occupied: Collection[tuple[int, int]]) -> int | None:
    """The highest page from which ``size`` bytes end at or below ``limit``, lie above 1 MiB and
    touch nothing occupied; None if there is none."""
    tops = {limit, *(start for start, _ in occupied if start < limit)}
    for top in sorted(tops, reverse=True):
        start = (top - size) & -PAGE_SIZE
        if start >= layout.HIGH_RAM and all(
            start + size <= other_start or other_end <= start for other_start, other_end in occupied
        ):
            return start
    return None


def _does_not_fit(
    image: ImageFile, ram_end: int, highest: int, occupied: Collection[tuple[int, int]]
) -> ImageError:
    kernel_end = max((end for _, end in occupied), default=layout.HIGH_RAM)
    needed = align_up(kernel_end + image.size + PAGE_SIZE, MIB)
    more_ram_helps = ram_end < needed <= min(highest + 1, MMIO_HOLE_START)
    return ImageError(
        f"initrd {image.name} ({image.size / MIB:.1f} MiB) does not fit above the kernel's end at "
        f"{kernel_end / MIB:.1f} MiB and below {min(ram_end, highest + 1) / MIB:.0f} MiB",
        memory_option(needed) if more_ram_helps else "",
    )
