"""Firmware: the machine starts where a PC starts, at the reset vector in a ROM.

After RESET a CPU is in real mode and fetches its first instruction from 0xFFFF_FFF0 (SDM volume 3,
section 10.1.4): the last 16 bytes of a ROM that ends at 4 GiB. Chipsets show the end of that ROM
below 1 MiB, too, where real-mode code can reach it, and as firmware copies itself to RAM there
("shadowing") before it writes to its variables, this machine has RAM there from the start, with the
copy already made.

Left out: ROMs that want the chipset's shadowing registers (PAM), flash memory, EFI.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from pyvmm import layout
from pyvmm.boot.image import ImageFile
from pyvmm.errors import ImageError
from pyvmm.memory import KIB, PAGE_SIZE, GuestMemory


class Rom(NamedTuple):
    """What appears, read-only, at guest-physical ``gpa``: pages of the host's."""

    gpa: int
    view: memoryview


def own_bios() -> str:
    """Where PyVMM's own BIOS is."""
    return os.path.join(os.path.dirname(os.path.dirname(__file__)), "bios.rom")


def load(path: str | os.PathLike[str], memory: GuestMemory) -> Rom:
    """The ROM in the file at ``path``, its end copied to the end of the first MiB of RAM."""
    with ImageFile(path, "firmware") as image:
        if image.size % PAGE_SIZE or image.size > layout.ROM_MAX_SIZE:
            raise ImageError(
                f"firmware {image.name} has {image.size} bytes: a ROM has a multiple of 4 KiB and"
                f" at most {layout.ROM_MAX_SIZE // KIB} KiB"
            )
        rom = memoryview(mmap.mmap(-1, image.size))
        image.read_into(rom, 0)
    shadow = min(image.size, layout.ROM_SHADOW_SIZE)
    memory.write(layout.HIGH_RAM - shadow, rom[image.size - shadow :])
    return Rom(layout.ROM_END - image.size, rom)
