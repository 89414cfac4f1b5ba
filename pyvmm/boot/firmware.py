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
from pyvmm.boot import smbios
from pyvmm.boot.entry import RealModeKernel
from pyvmm.boot.image import ImageFile
from pyvmm.boot.memory_map import MapEntry, MemoryType, memory_map
from pyvmm.errors import ImageError
from pyvmm.memory import KIB, PAGE_SIZE, GuestMemory, align_up

_SMBIOS_ALIGNMENT = 16


class Rom(NamedTuple):
    """What appears, read-only, at guest-physical ``gpa``: pages of the host's."""

    gpa: int
    view: memoryview


class BiosFacts(NamedTuple):
    """What PyVMM's own BIOS asks the VMM for: see :mod:`pyvmm.devices.bios_services`. ``smbios`` is
    where the SMBIOS entry points are; ``kernel`` is to be entered instead of a boot sector."""

    memory_map: list[MapEntry]
    smbios: int
    kernel: RealModeKernel | None = None


def own_bios() -> str:
    """Where PyVMM's own BIOS is; it is built with the package, from firmware/."""
    return os.path.join(os.path.dirname(os.path.dirname(__file__)), "bios.rom")


def load_own(
    memory: GuestMemory, *, cpus: int, tables: int, kernel: RealModeKernel | None = None
) -> tuple[Rom, BiosFacts]:
    """PyVMM's own BIOS, and what it is told; the SMBIOS tables go to ``tables`` or behind."""
    if not os.path.exists(own_bios()):
        raise ImageError(
            "PyVMM's own BIOS has not been built",
            "installing PyVMM builds it, and so does python3 firmware/build.py",
        )
    rom = load(own_bios(), memory)
    entries = memory_map(memory)
    entries.append(MapEntry(rom.gpa, len(rom.view), MemoryType.RESERVED))
    address = align_up(tables, _SMBIOS_ALIGNMENT)
    segment = (layout.HIGH_RAM - len(rom.view)) >> 4
    blob = smbios.build(address, cpus=cpus, bios_segment=segment, memory_map=entries)
    if address + len(blob) > layout.MP_TABLE or segment << 4 < layout.MP_TABLE_END:
        raise ImageError(f"ACPI, SMBIOS and MP tables of {cpus} CPUs leave no room for the BIOS")
    memory.write(address, blob)
    return rom, BiosFacts(sorted(entries), address, kernel)


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
