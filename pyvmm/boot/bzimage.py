"""Linux kernels in bzImage form, entered past their 16-bit part.

Document: Documentation/arch/x86/boot.rst ("The Linux/x86 Boot Protocol"), protocol versions 2.02
to 2.15. A bzImage is a real-mode part (boot sector and setup, with the setup header at 0x1F1)
followed by the protected-mode kernel: a decompressor with the compressed vmlinux in it. A loader
in a VMM plays the part of the first and enters the second, in 64-bit mode 0x200 bytes into it
where the kernel allows that, in 32-bit mode at its first byte otherwise.

The 16-bit entry, which calls the BIOS, is in :mod:`pyvmm.boot.real_mode`, and with it everything
that has the form of a bzImage but no other entry: memdisk, iPXE's lkrn, GRUB's lnxboot, zImages.
Left out: EFI handover.
"""

from __future__ import annotations

import os

from pyvmm import layout
from pyvmm.boot import command_line as command_lines
from pyvmm.boot import initrd as initrds
from pyvmm.boot import zero_page
from pyvmm.boot.entry import IDENTITY_MAP_SIZE, EntryState, entry_name
from pyvmm.boot.image import Image
from pyvmm.boot.memory_map import memory_map, memory_option
from pyvmm.boot.zero_page import SetupHeader
from pyvmm.errors import ImageError
from pyvmm.memory import MIB, MMIO_HOLE_START, GuestMemory, align_up

SECTOR_SIZE = 512
PARAGRAPH = 16
HEADER_END = 0x26C
MIN_FILE_SIZE = 2 * SECTOR_SIZE
DEFAULT_SETUP_SECTS = 4
ENTRY_64_OFFSET = 0x200
ENTRY_16 = 0x9_0200
"""Of the real-mode code, wherever the kernel is: see :mod:`pyvmm.boot.real_mode`."""
MIN_VERSION = 0x202
"""The first protocol with cmd_line_ptr, the command line as we pass it."""
VERSION_LIMIT = 256
"""How far to look for the end of the version string."""
DEFAULT_CMDLINE_SIZE = 255
DEFAULT_INITRD_ADDR_MAX = 0x37FF_FFFF
"""What holds for protocols without the field."""


class BzImage:
    """A bzImage whose header is read and found consistent with the file."""

    def __init__(self, image: Image) -> None:
        self.image = image
        page = image.read(0, HEADER_END)
        if len(page) < HEADER_END or image.size < MIN_FILE_SIZE:
            raise ImageError(
                f"kernel {image.name} is truncated: {image.size} of at least {MIN_FILE_SIZE} bytes"
            )
        self.header = header = SetupHeader.parse(page)
        if header.boot_flag != zero_page.BOOT_FLAG or header.header != zero_page.HDRS:
            raise ImageError(f"{image.name} has no Linux setup header")
        if header.version < MIN_VERSION:
            raise ImageError(
                f"kernel {image.name} has boot protocol {self.protocol}; 2.02 is the oldest that "
                "PyVMM can boot"
            )
        self.setup_size = ((header.setup_sects or DEFAULT_SETUP_SECTS) + 1) * SECTOR_SIZE
        self.kernel_size = self._measure_kernel()
        alignment = header.kernel_alignment
        if header.relocatable_kernel and (not alignment or alignment & (alignment - 1)):
            raise ImageError(
                f"kernel {image.name} is damaged: its alignment {alignment:#x} is no power of two"
            )

    def _measure_kernel(self) -> int:
        """The size of the protected-mode part; an error if the file ends before it does.

        What follows it in the file, a signature for instance, is not loaded.
        """
        rest = self.image.size - self.setup_size
        # The field has 16 bits only before 2.04, and rounds up: files end where they like.
        trusted = self.header.version >= 0x204 and self.header.syssize
        size = self.header.syssize * PARAGRAPH if trusted else rest
        if rest <= max(size - PARAGRAPH, 0):
            raise ImageError(
                f"kernel {self.image.name} is truncated: "
                f"{self.image.size} of {self.setup_size + max(size, 1)} bytes"
            )
        return min(size, rest)

    @property
    def protocol(self) -> str:
        """The boot protocol's version as it is usually written, for instance 2.15."""
        return f"{self.header.version >> 8}.{self.header.version & 0xFF:02}"

    @property
    def version(self) -> str:
        """The kernel's version string; empty if there is none."""
        if not self.header.kernel_version:
            return ""
        start = self.header.kernel_version + SECTOR_SIZE
        raw = self.image.read(start, max(0, min(VERSION_LIMIT, self.setup_size - start)))
        return raw.split(b"\0", 1)[0].decode("utf-8", "replace")

    @property
    def needs_bios(self) -> bool:
        """Whether the 16-bit entry, whose code calls the BIOS, is the only one.

        Programs that borrow the format (memdisk, iPXE, GRUB) say so by a protected-mode part of
        no size or without an address; a zImage, by its loading below 1 MiB.
        """
        header = self.header
        loaded_high = header.loadflags & zero_page.LoadFlags.LOADED_HIGH
        return not (loaded_high and header.syssize and header.code32_start)

    @property
    def entry_points(self) -> tuple[str, ...]:
        """The entries, best first: "64", "32" and "16", as far as they are there."""
        if self.needs_bios:
            return ("16",)
        if self.header.xloadflags & zero_page.XLoadFlags.XLF_KERNEL_64:
            return ("64", "32", "16")
        return ("32", "16")

    @property
    def load_address(self) -> int:
        """Where the protected-mode part goes.

        A relocatable kernel goes to its preferred address. It is no use to put it lower: it
        moves itself up there before it unpacks (boot.rst, init_size).
        """
        header = self.header
        if not header.relocatable_kernel:
            return header.code32_start
        wanted = header.pref_address or header.code32_start
        return align_up(wanted, header.kernel_alignment)

    @property
    def ranges(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where the kernel is loaded, and where it unpacks and runs, as (start, end)."""
        start = self.load_address
        run = start if self.header.relocatable_kernel else self.header.pref_address or start
        # Protocols before 2.10 don't say what unpacking needs; three times is GRUB's guess too.
        run_size = self.header.init_size or 3 * self.kernel_size
        return (start, start + self.kernel_size), (run, run + run_size)

    def entry_address(self, entry: str) -> int:
        """The address of an entry point for a kernel at its load address."""
        if entry == "16":
            return ENTRY_16
        return self.load_address + (ENTRY_64_OFFSET if entry == "64" else 0)

    def choose_entry(self, requested: str) -> str:
        """The entry for ``requested``, which may be "auto"; an error if there is none."""
        if requested == "auto":
            return self.entry_points[0]
        if requested not in self.entry_points:
            raise ImageError(
                f"kernel {self.image.name} is a bzImage without a {entry_name(requested)} entry",
                f"it has: {', '.join(self.entry_points)}",
            )
        return requested

    def check_fits(self, memory: GuestMemory) -> None:
        """Raise an error unless loading and running stay inside RAM that boot leaves free."""
        for start, end in self.ranges:
            if start < layout.HIGH_RAM:
                raise ImageError(
                    f"kernel {self.image.name} wants to be loaded at {start:#x}, below 1 MiB"
                )
            if end > IDENTITY_MAP_SIZE or not memory.contains(start, end - start):
                raise ImageError(
                    f"kernel {self.image.name} needs {(end - start) / MIB:.1f} MiB of RAM at "
                    f"{start:#x}; the machine has {memory.size // MIB} MiB",
                    memory_option(end) if end <= MMIO_HOLE_START else "",
                )


def load(
    image: Image,
    memory: GuestMemory,
    *,
    command_line: str = "",
    words: str | None = None,
    initrd: str | os.PathLike[str] | None = None,
    entry: str = "auto",
    rsdp: int = 0,
) -> EntryState:
    """Load the kernel, its command line and initrd, and write the zero page. ``words``, if given,
    are the command line of what only borrows the format."""
    kernel = BzImage(image)
    header = kernel.header
    entry = kernel.choose_entry(entry)
    if entry == "16":
        from pyvmm.boot import real_mode  # few kernels are started so

        if kernel.needs_bios and words is not None:
            command_line = words
        return real_mode.load(image, memory, command_line=command_line, initrd=initrd)
    kernel.check_fits(memory)
    limit = header.cmdline_size or DEFAULT_CMDLINE_SIZE
    line = command_lines.encode(command_line, limit, f"kernel {image.name}")

    highest = header.initrd_addr_max or DEFAULT_INITRD_ADDR_MAX
    ramdisk = initrds.load(initrd, memory, highest, kernel.ranges)
    image.read_into(memory.view(kernel.load_address, kernel.kernel_size), kernel.setup_size)
    command_lines.write(memory, line)
    header = zero_page.complete(header, ramdisk)._replace(code32_start=kernel.load_address)
    zero_page.write(memory, header, memory_map(memory), rsdp)

    rip = kernel.entry_address(entry)
    mode = EntryState.long_mode if entry == "64" else EntryState.protected_mode
    return mode(memory, rip, rsi=layout.ZERO_PAGE)
