"""PVH: the Xen project's way to enter a kernel directly, without firmware or Xen.

Documents: "x86/HVM direct boot ABI" in Xen's docs/misc/pvh.pandoc for the state at entry, and
Xen's public/arch-x86/hvm/start_info.h for the structures. The kernel, an ELF file, names its
entry in a note (public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY) and finds hvm_start_info in EBX:
flat 32-bit protected mode, paging off.

Left out: command lines of modules.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pyvmm import layout
from pyvmm.boot.entry import EntryState
from pyvmm.boot.initrd import Initrd
from pyvmm.boot.memory_map import MapEntry
from pyvmm.memory import GuestMemory

NOTE_NAME = b"Xen"
XEN_ELFNOTE_GUEST_OS = 6
XEN_ELFNOTE_PHYS32_ENTRY = 18

START_INFO_SIZE = 0x1000
"""The room for hvm_start_info and the tables it points at."""

_MAGIC = 0x336E_C578
_VERSION = 1
_MODULE = struct.Struct("<4Q")
_MEMORY_MAP_ENTRY = struct.Struct("<QQII")


class StartInfo(NamedTuple):
    """struct hvm_start_info, version 1."""

    magic: int
    version: int
    flags: int
    nr_modules: int
    modlist_paddr: int
    cmdline_paddr: int
    rsdp_paddr: int
    memmap_paddr: int
    memmap_entries: int
    reserved: int


_START_INFO = struct.Struct("<4I4Q2I")


def write_start_info(
    memory: GuestMemory, entries: list[MapEntry], initrd: Initrd, rsdp: int
) -> None:
    """Write hvm_start_info, and behind it the list of modules and the memory map."""
    module = layout.PVH_START_INFO + _START_INFO.size
    memory_map = module + _MODULE.size
    info = StartInfo(
        magic=_MAGIC,
        version=_VERSION,
        flags=0,
        nr_modules=1 if initrd.size else 0,
        modlist_paddr=module if initrd.size else 0,
        cmdline_paddr=layout.COMMAND_LINE,
        rsdp_paddr=rsdp,
        memmap_paddr=memory_map,
        memmap_entries=len(entries),
        reserved=0,
    )
    blob = _START_INFO.pack(*info) + _MODULE.pack(initrd.start, initrd.size, 0, 0)
    blob += b"".join(_MEMORY_MAP_ENTRY.pack(*entry, 0) for entry in entries)
    if len(blob) > START_INFO_SIZE:
        raise ValueError(f"{len(entries)} memory map entries do not fit in the PVH start info")
    memory.write(layout.PVH_START_INFO, blob)


def entry_state(memory: GuestMemory, eip: int) -> EntryState:
    """The state that the ABI demands, at ``eip``."""
    return EntryState.protected_mode(memory, eip, rbx=layout.PVH_START_INFO)
