"""Linux kernels, and what has their form, entered by their real-mode code, as from a boot loader.

Document: Documentation/arch/x86/boot.rst ("The Linux/x86 Boot Protocol"): "Memory layout", "The
kernel command line", "Loading the rest of the kernel", "Running the kernel". The real-mode part
goes to 0x90000 and the rest to 1 MiB, or to 0x10000 if it wants to be low. The real-mode code calls
the BIOS, so that has to start first: it enters the code when it would boot a disk.

This is the entry that memdisk, iPXE's lkrn, memtest86+ and old kernels have in common with Linux.

Left out: protocols before 2.02, hooks (realmode_swtch), a real-mode part above 32 KiB.
"""

from __future__ import annotations

import os

from pyvmm import layout
from pyvmm.boot import command_line as command_lines
from pyvmm.boot import initrd as initrds
from pyvmm.boot.bzimage import (
    DEFAULT_CMDLINE_SIZE,
    DEFAULT_INITRD_ADDR_MAX,
    BzImage,
)
from pyvmm.boot.entry import EntryState, RealModeKernel
from pyvmm.boot.image import Image
from pyvmm.boot.memory_map import memory_option
from pyvmm.boot.zero_page import TYPE_OF_LOADER_UNDEFINED, LoadFlags
from pyvmm.errors import ImageError
from pyvmm.memory import KIB, MIB, MMIO_HOLE_START, GuestMemory

REAL_MODE_CODE = 0x9_0000
REAL_MODE_MAX_SIZE = 0x8000
HEAP_END = 0xE000
"""Where heap and stack end and the command line begins, from REAL_MODE_CODE on."""
HEAP_END_PTR = HEAP_END - 0x200
"""What the header is told: 0x200 bytes less."""
COMMAND_LINE = REAL_MODE_CODE + HEAP_END
COMMAND_LINE_ROOM = layout.EBDA - COMMAND_LINE - 1
LOW_CODE = 0x1_0000
ENTRY_PARAGRAPHS = 0x20
"""Code begins behind the boot sector."""

# Header fields, by their offsets in the real-mode part; all are in protocol 2.02.
_TYPE_OF_LOADER = 0x210
_LOADFLAGS = 0x211
_RAMDISK_IMAGE = 0x218
_RAMDISK_SIZE = 0x21C
_HEAP_END_PTR = 0x224
_CMD_LINE_PTR = 0x228


def load(
    image: Image,
    memory: GuestMemory,
    *,
    command_line: str = "",
    initrd: str | os.PathLike[str] | None = None,
) -> EntryState:
    """Load both parts, the command line and the initrd, and fill in the header."""
    kernel = BzImage(image)
    header = kernel.header
    if kernel.setup_size > REAL_MODE_MAX_SIZE:
        raise ImageError(
            f"kernel {image.name} has {kernel.setup_size // KIB} KiB of real-mode code; at most"
            f" {REAL_MODE_MAX_SIZE // KIB} KiB can be loaded"
        )
    ranges = occupied(kernel)
    _check_fits(kernel, memory)
    limit = min(header.cmdline_size or DEFAULT_CMDLINE_SIZE, COMMAND_LINE_ROOM)
    line = command_lines.encode(command_line, limit, f"kernel {image.name}")
    highest = header.initrd_addr_max or DEFAULT_INITRD_ADDR_MAX
    ramdisk = initrds.load(initrd, memory, highest, ranges)

    image.read_into(memory.view(REAL_MODE_CODE, kernel.setup_size), 0)
    start, end = load_range(kernel)
    image.read_into(memory.view(start, end - start), kernel.setup_size)
    memory.write(COMMAND_LINE, line)

    memory.write_u8(REAL_MODE_CODE + _TYPE_OF_LOADER, TYPE_OF_LOADER_UNDEFINED)
    memory.write_u8(REAL_MODE_CODE + _LOADFLAGS, header.loadflags | LoadFlags.CAN_USE_HEAP)
    memory.write_u32(REAL_MODE_CODE + _RAMDISK_IMAGE, ramdisk.start)
    memory.write_u32(REAL_MODE_CODE + _RAMDISK_SIZE, ramdisk.size)
    memory.write_u16(REAL_MODE_CODE + _HEAP_END_PTR, HEAP_END_PTR)
    memory.write_u32(REAL_MODE_CODE + _CMD_LINE_PTR, COMMAND_LINE)
    state = EntryState.reset_vector()
    return state._replace(kernel=RealModeKernel(REAL_MODE_CODE >> 4, HEAP_END))


def load_range(kernel: BzImage) -> tuple[int, int]:
    """Where the protected-mode part goes: (start, end). Programs that borrow the format may not
    know its size; then it is the rest of the file."""
    high = kernel.header.loadflags & LoadFlags.LOADED_HIGH
    start = layout.HIGH_RAM if high else LOW_CODE
    size = kernel.image.size - kernel.setup_size if kernel.needs_bios else kernel.kernel_size
    return start, start + size


def occupied(kernel: BzImage) -> list[tuple[int, int]]:
    """What the kernel's parts take above 1 MiB, from loading it to its running."""
    ranges = [load_range(kernel)]
    if not kernel.needs_bios:
        ranges.append(kernel.ranges[1])
    return ranges


def _check_fits(kernel: BzImage, memory: GuestMemory) -> None:
    name = kernel.image.name
    if load_range(kernel)[1] > REAL_MODE_CODE and load_range(kernel)[0] == LOW_CODE:
        raise ImageError(f"kernel {name} is too large to be loaded below 1 MiB")
    for start, end in occupied(kernel):
        if not memory.contains(start, end - start):
            raise ImageError(
                f"kernel {name} needs {(end - start) / MIB:.1f} MiB of RAM at {start:#x}; the"
                f" machine has {memory.size // MIB} MiB",
                memory_option(end) if end <= MMIO_HOLE_START else "",
            )
