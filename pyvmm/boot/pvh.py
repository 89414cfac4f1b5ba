"""PVH: the Xen project's way to enter a kernel directly, without firmware or Xen.

Documents: "x86/HVM direct boot ABI" in Xen's docs/misc/pvh.pandoc for the state at entry, and
Xen's public/arch-x86/hvm/start_info.h for the structures. The kernel, an ELF file, names its
entry in a note (public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY) and finds hvm_start_info in EBX:
flat 32-bit protected mode, paging off.

Linux takes its first module for the initial ramdisk; for other kernels there can be several, each
with a command line of its own (:mod:`pyvmm.boot.modules`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from pyvmm import layout
from pyvmm.boot.entry import EntryState
from pyvmm.boot.memory_map import MapEntry
from pyvmm.boot.modules import Module
from pyvmm.errors import ImageError
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
    memory: GuestMemory, entries: list[MapEntry], modules: Sequence[Module], rsdp: int
) -> None:
    """Write hvm_start_info, and behind it the list of modules, the memory map and the modules'
    texts."""
    module_list = layout.PVH_START_INFO + _START_INFO.size
    memory_map = module_list + _MODULE.size * len(modules)
    text = memory_map + _MEMORY_MAP_ENTRY.size * len(entries)
    table = texts = b""
    for module in modules:
        address = text + len(texts) if module.text else 0
        table += _MODULE.pack(module.start, module.size, address, 0)
        texts += module.text + b"\0"
    info = StartInfo(
        magic=_MAGIC,
        version=_VERSION,
        flags=0,
        nr_modules=len(modules),
        modlist_paddr=module_list if modules else 0,
        cmdline_paddr=layout.COMMAND_LINE,
        rsdp_paddr=rsdp,
        memmap_paddr=memory_map,
        memmap_entries=len(entries),
        reserved=0,
    )
    blob = _START_INFO.pack(*info) + table
    blob += b"".join(_MEMORY_MAP_ENTRY.pack(*entry, 0) for entry in entries) + texts
    if len(blob) > START_INFO_SIZE:
        raise ImageError(f"the texts of {len(modules)} modules are too long for PVH")
    memory.write(layout.PVH_START_INFO, blob)


def entry_state(memory: GuestMemory, eip: int) -> EntryState:
    """The state that the ABI demands, at ``eip``."""
    return EntryState.protected_mode(memory, eip, rbx=layout.PVH_START_INFO)
