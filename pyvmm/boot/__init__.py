"""From an image file to bytes in guest memory and the first vCPU's state; one file a protocol.

:func:`load` looks what a file holds and does as its boot protocol says.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyvmm.boot import kind, protocol
from pyvmm.boot.entry import EntryState
from pyvmm.boot.image import Image, ImageFile
from pyvmm.boot.memory_map import memory_option
from pyvmm.errors import ConfigError
from pyvmm.memory import MIB, GuestMemory

if TYPE_CHECKING:
    from pyvmm.config import FlatConfig

ENTRIES = ("auto", "64", "32", "16", "pvh", "multiboot", "multiboot2", "real")
"""The entry points that can be asked for. "real" takes the file for a flat binary."""

MIN_MEMORY = 2 * MIB
"""Less holds no kernel above what lies below 1 MiB."""


def load(
    path: str | os.PathLike[str],
    memory: GuestMemory,
    *,
    command_line: str = "",
    words: str | None = None,
    initrd: str | os.PathLike[str] | None = None,
    entry: str = "auto",
    flat: FlatConfig | None = None,
    rsdp: int = 0,
) -> EntryState:
    """Load the kernel at ``path`` and return the state to enter it in.

    ``words`` is the part of the command line that the user gave, for kernels that have no use for
    what Linux wants to be told; by default, all of it. ``rsdp`` is the GPA of the ACPI root
    pointer, 0 if there are no ACPI tables. With ``flat`` the file is a flat binary. Everything
    about the files and their fit into ``memory`` that is wrong raises
    :class:`~pyvmm.errors.ImageError`; a bad option, :class:`~pyvmm.errors.ConfigError`.
    """
    if entry not in ENTRIES:
        raise ConfigError(f"no such entry point: {entry}", f"choose from {', '.join(ENTRIES)}")
    with ImageFile(path) as image:
        if entry == "real" or flat is not None:
            from pyvmm.boot.flat import load as load_flat

            if initrd is not None:
                raise ConfigError("a flat binary takes no initrd")
            if flat is None:
                return load_flat(image, memory)
            return load_flat(image, memory, mode=flat.mode, address=flat.address)
        return load_kernel(
            _unpacked(image),
            memory,
            command_line=command_line,
            words=words,
            initrd=initrd,
            entry=entry,
            rsdp=rsdp,
        )


def _unpacked(image: ImageFile) -> Image:
    """The image, or what is in it if that is a compressed kernel."""
    if kind.kernel_kind(image) is not None:
        return image
    from pyvmm.boot import packed  # most kernels are compressed inside, if at all

    found = packed.compression_of(image)
    return image if found is None else packed.unpack(image, found)


def load_kernel(
    image: Image,
    memory: GuestMemory,
    *,
    command_line: str = "",
    words: str | None = None,
    initrd: str | os.PathLike[str] | None = None,
    entry: str = "auto",
    rsdp: int = 0,
) -> EntryState:
    """Load a kernel that is no flat binary, as :func:`load` does."""
    # One protocol is imported, not all: start-up time is a budget.
    chosen = protocol.choose(image, entry)
    if memory.size < MIN_MEMORY:
        raise ConfigError(
            f"{memory.size // MIB} MiB of memory is too little for a kernel",
            memory_option(MIN_MEMORY),
        )
    if chosen == "multiboot":
        from pyvmm.boot.multiboot import load as load_by_protocol
    elif chosen == "multiboot2":
        from pyvmm.boot.multiboot2 import load as load_by_protocol
    elif chosen == "bzImage":
        from pyvmm.boot.bzimage import load as load_bzimage

        return load_bzimage(
            image,
            memory,
            command_line=command_line,
            words=words,
            initrd=initrd,
            entry=entry,
            rsdp=rsdp,
        )
    else:
        from pyvmm.boot.elf import load as load_by_protocol
    if chosen in protocol.MULTIBOOT and words is not None:
        command_line = words
    return load_by_protocol(
        image, memory, command_line=command_line, initrd=initrd, entry=entry, rsdp=rsdp
    )
