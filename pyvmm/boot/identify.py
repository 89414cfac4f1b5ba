"""What a kernel image is and how it would be booted: what `pyvmm inspect` shows.

:func:`describe` gathers the facts, in JSON's types; :func:`format_description` prints them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from enum import IntFlag
from functools import partial
from typing import Any, NamedTuple

from pyvmm import boot
from pyvmm.boot import kind, multiboot, multiboot2, packed, payload, protocol, real_mode
from pyvmm.boot.bzimage import DEFAULT_CMDLINE_SIZE, DEFAULT_INITRD_ADDR_MAX, BzImage
from pyvmm.boot.elf import ELFCLASS64, EM_X86_64, PLAUSIBLE_RAM_END, ElfImage
from pyvmm.boot.entry import entry_name
from pyvmm.boot.image import Image, ImageBytes, ImageFile
from pyvmm.boot.zero_page import LoadFlags, XLoadFlags
from pyvmm.errors import ImageError, PyvmmError
from pyvmm.memory import KIB, MIB, MMIO_HOLE_END, MMIO_HOLE_START, GuestMemory, align_up

Description = dict[str, Any]

_BANNER = b"Linux version "
_BANNER_LIMIT = 256
_PIECE = 1 * MIB
_SEARCHED = 256 * MIB
"""How much of a file is searched for the banner."""


def describe(path: str | os.PathLike[str]) -> Description:
    """Facts about the file at ``path``. Always there:

    * ``file``, ``size`` (bytes) and ``kind`` ("bzImage", "ELF", "text", "gzip", …);
    * ``boots``: whether `run` can boot it, given enough memory;
    * ``how``: by which entry point, with ``why`` if there are several, and ``boot_options``: what
      `run --boot` would take, the default first; or ``problem``: why not.

    The others depend on the kind; addresses and sizes are numbers. A kernel whose whole file is
    compressed has the facts of what is in it, and ``packed``: with what.
    """
    with ImageFile(path) as image:
        packing = packed.compression_of(image)
        if packing is None:
            return _describe(image)
        facts: Description = {"file": image.name, "size": image.size, "kind": packing.name}
        try:
            kernel = packed.unpack(image, packing)
        except ImageError as error:
            return facts | {"boots": False, "problem": str(error)}
        return _describe(kernel) | {"size": image.size, "packed": packing.name}


def _describe(image: Image) -> Description:
    image_kind = kind.kind_of(image)
    facts: Description = {"file": image.name, "size": image.size, "kind": image_kind.name}
    if image_kind.contains:
        facts["contains"] = image_kind.contains
    try:
        chosen = protocol.choose(image, "auto")
        if image_kind.verdict:  # and yet it is chosen
            facts["kind"] = "Multiboot"
        ways = _Ways({}, {})
        if image_kind is kind.BZIMAGE:
            _describe_bzimage(BzImage(image), facts, ways)
        elif image_kind is kind.ELF:
            _describe_elf(ElfImage(image), facts, ways)
        _describe_multiboot(image, chosen, facts, ways)
        _describe_boot(image, chosen, facts, ways)
    except PyvmmError as error:
        facts |= {"boots": False, "problem": str(error)}
    return facts


def is_linux(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a Linux kernel: any bzImage (a few other programs come in its clothes),
    or an ELF file with Linux's banner. ImageError if it can't be read."""
    with ImageFile(path) as file:
        packing = packed.compression_of(file)
        image = file if packing is None else packed.unpack(file, packing)
        image_kind = kind.kernel_kind(image)
        if image_kind is kind.ELF:
            return bool(_linux_version(ElfImage(image)))
        return image_kind is kind.BZIMAGE


class _Ways(NamedTuple):
    """The entries that the file has, as --boot names them: addresses, and what RAM each takes."""

    entries: dict[str, int]
    ranges: dict[str, list[tuple[int, int]]]


class _Unread(Image):
    """An image whose bytes stay where they are when it is loaded: loading it is a rehearsal."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.name = image.name
        self.size = image.size

    def read(self, offset: int, length: int) -> bytes:
        return self.image.read(offset, length)

    def read_into(self, view: memoryview, offset: int) -> None:
        if offset + len(view) > self.size:
            raise ImageError(f"{self.name} is truncated")


def _describe_boot(image: Image, chosen: str, facts: Description, ways: _Ways) -> None:
    """How `run` would boot it: what it takes is found out by loading it."""
    order = list(ways.entries)
    if chosen in protocol.MULTIBOOT:
        order.sort(key=lambda entry: (entry != chosen, entry not in protocol.MULTIBOOT))
    facts["entry_points"] = {entry: ways.entries[entry] for entry in order}
    entry = order[0]
    memory = GuestMemory(_memory_needed(ways.ranges[entry]))
    try:
        boot.load_kernel(_Unread(image), memory)
        facts |= {"minimum_memory": memory.size, "boots": True, "boot_options": [entry]}
        for other in order[1:]:
            with suppress(PyvmmError):
                boot.load_kernel(_Unread(image), memory, entry=other)
                facts["boot_options"].append(other)
    finally:
        memory.close()
    if entry in protocol.MULTIBOOT:
        facts["how"] = f"{entry_name(entry)}, in 32-bit protected mode"
    elif chosen == "bzImage":
        facts["how"] = f"the {entry_name(entry)} entry of the Linux boot protocol"
    else:
        facts["how"] = f"the {entry_name(entry)} entry"
    facts["how"] += f" at {ways.entries[entry]:#x}"
    if entry == "16":
        facts["how"] += ", through the BIOS"
    if len(order) > 1:
        facts["why"] = _WHY["bzImage" if chosen == "bzImage" else entry]


_WHY = {
    "bzImage": "a bzImage is entered as Linux, in 64-bit mode if it can be",
    "pvh": "a kernel with a PVH note expects a VMM",
    "multiboot": "Multiboot comes first, before Multiboot 2 and the ELF entry point",
    "multiboot2": "Multiboot 2 comes before the ELF entry point",
}
"""What :func:`pyvmm.boot.protocol.choose` goes by, where there is a choice."""


def _memory_needed(ranges: list[tuple[int, int]]) -> int:
    """The size of a machine that has RAM up to the end of all ``ranges``, as far as any has."""
    end = min(max(end for _, end in ranges), PLAUSIBLE_RAM_END)
    if end > MMIO_HOLE_START:
        end = MMIO_HOLE_START + max(end - MMIO_HOLE_END, 0)
    return max(align_up(end, MIB), boot.MIN_MEMORY)


def _describe_multiboot(image: Image, chosen: str, facts: Description, ways: _Ways) -> None:
    """What its Multiboot headers say, if it has any."""
    first, second = multiboot.find(image), multiboot2.find(image)
    found: dict[str, Callable[[], multiboot.Plan]] = {}
    if first is not None:
        flags = multiboot.HeaderFlags(first.flags & multiboot.ALL_FLAGS)
        facts["multiboot"] = _flag_names(multiboot.HeaderFlags, flags)
        found["multiboot"] = partial(multiboot.plan, image, first)
    if second is not None:
        facts["multiboot2"] = [multiboot2.tag_name(kind) for kind in second.tags]
        found["multiboot2"] = partial(multiboot2.plan, image, second)
    for entry, plan_it in found.items():
        try:
            plan = plan_it()
        except ImageError:
            if entry == chosen:
                raise
            continue  # a header by chance, or of no use
        ways.entries[entry] = plan.entry
        ways.ranges[entry] = [(piece.address, piece.end) for piece in plan.pieces]
        if entry == chosen:
            facts["segments"] = [list(piece) for piece in ways.ranges[entry]]


def _describe_bzimage(kernel: BzImage, facts: Description, ways: _Ways) -> None:
    header = kernel.header
    for entry in kernel.entry_points:
        ways.entries[entry] = kernel.entry_address(entry)
        by_bios = entry == "16"
        ways.ranges[entry] = real_mode.occupied(kernel) if by_bios else list(kernel.ranges)
    facts |= {
        "version": kernel.version,
        "protocol": kernel.protocol,
        "entry_points": ways.entries,
        "load_address": ways.ranges[kernel.entry_points[0]][0][0],
        "pref_address": header.pref_address,
        "init_size": header.init_size,
        "relocatable": bool(header.relocatable_kernel),
        "kernel_alignment": header.kernel_alignment,
        "cmdline_size": header.cmdline_size or DEFAULT_CMDLINE_SIZE,
        "initrd_addr_max": header.initrd_addr_max or DEFAULT_INITRD_ADDR_MAX,
        "setup_size": kernel.setup_size,
        "kernel_size": kernel.kernel_size,
        "loadflags": _flag_names(LoadFlags, header.loadflags),
        "xloadflags": _flag_names(XLoadFlags, header.xloadflags),
        "five_level_paging": bool(header.xloadflags & XLoadFlags.XLF_5LEVEL),
        "efi_stub": kernel.image.read(0, 2) == b"MZ",
    }
    if header.payload_length:
        facts |= _payload(kernel)


def _payload(kernel: BzImage) -> Description:
    """How the vmlinux in a bzImage is compressed, and its PVH entry, or why that isn't known."""
    facts: Description = {}
    try:
        compression = payload.compression_of(kernel)
        facts["compression"] = compression.name if compression else "unknown"
        vmlinux = ElfImage(ImageBytes(f"vmlinux in {kernel.image.name}", payload.unpack(kernel)))
    except PyvmmError as error:
        return facts | {"vmlinux_problem": str(error)}
    return facts | {"vmlinux_pvh_entry": vmlinux.pvh_entry}


def _describe_elf(kernel: ElfImage, facts: Description, ways: _Ways) -> None:
    ways.entries.update(kernel.entry_points)
    segments = [(p.p_paddr, p.end) for p in kernel.segments]
    ways.ranges.update(dict.fromkeys(kernel.entry_points, segments))
    facts |= {
        "version": _linux_version(kernel),
        "elf_class": 64 if kernel.elf_class == ELFCLASS64 else 32,
        "machine": "x86-64" if kernel.header.e_machine == EM_X86_64 else "i386",
        "entry_points": ways.entries,
        "pvh_entry": kernel.pvh_entry,
        "segments": [list(segment) for segment in segments],
    }


def _linux_version(kernel: ElfImage) -> str:
    """The banner that Linux prints first; empty if there is none in the file."""
    left = _SEARCHED
    for p in kernel.segments:
        end = p.p_offset + min(p.p_filesz, left)
        left -= end - p.p_offset
        for offset in range(p.p_offset, end, _PIECE):
            # A bit more, as the banner may lie across the end of the piece.
            data = kernel.image.read(offset, min(_PIECE + _BANNER_LIMIT, end - offset))
            banner = _banner_in(data)
            if banner:
                return banner
    return ""


def _banner_in(data: bytes) -> str:
    start = data.find(_BANNER)
    while start >= 0:
        banner = data[start : start + _BANNER_LIMIT].split(b"\0", 1)[0]
        # The other string that begins like this is a format, with %s for the version.
        if banner[len(_BANNER) :][:1].isdigit():
            return banner.decode("utf-8", "replace").strip()
        start = data.find(_BANNER, start + 1)
    return ""


def _flag_names(flags: type[IntFlag], value: int) -> list[str]:
    return [str(flag.name) for flag in flags if value & flag]


def _size(value: int) -> str:
    if value < MIB:
        return f"{value} bytes" if value < KIB else f"{value / KIB:.1f} KiB"
    return f"{value / MIB:.1f} MiB"


def _unless_zero(show: Callable[[int], str]) -> Callable[[int], str]:
    """For a field that is zero where the protocol doesn't have it yet."""
    return lambda value: show(value) if value else ""


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _entries(value: dict[str, int]) -> str:
    return ", ".join(f"{entry_name(e)} at {address:#x}" for e, address in value.items()) or "none"


def _pvh(value: int | None) -> str:
    return "none" if value is None else f"{value:#x}"


def _segments(value: list[list[int]]) -> str:
    return ", ".join(f"{start:#x}-{end - 1:#x}" for start, end in value)


def _others(value: list[str]) -> str:
    return ", ".join(f"--boot {entry}" for entry in value[1:])


_LINES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("version", "version", str),
    ("protocol", "boot protocol", str),
    ("elf_class", "ELF class", str),
    ("machine", "machine", str),
    ("entry_points", "entry points", _entries),
    ("pvh_entry", "PVH note", _pvh),
    ("multiboot", "Multiboot header", ", ".join),
    ("multiboot2", "Multiboot 2 header", ", ".join),
    ("compression", "compression", str),
    ("vmlinux_pvh_entry", "PVH note inside", _pvh),
    ("vmlinux_problem", "vmlinux inside", str),
    ("efi_stub", "EFI stub", _yes_no),
    ("five_level_paging", "5-level paging", _yes_no),
    ("load_address", "load address", hex),
    ("pref_address", "preferred address", _unless_zero(hex)),
    ("relocatable", "relocatable", _yes_no),
    ("kernel_alignment", "alignment", _unless_zero(hex)),
    ("init_size", "needs to unpack", _unless_zero(_size)),
    ("segments", "segments", _segments),
    ("minimum_memory", "memory needed", _size),
    ("setup_size", "real-mode part", _size),
    ("kernel_size", "protected-mode part", _size),
    ("cmdline_size", "command line up to", _size),
    ("initrd_addr_max", "initrd up to", hex),
    ("loadflags", "load flags", ", ".join),
    ("xloadflags", "extended flags", ", ".join),
    ("how", "run would use", str),
    ("why", "because", str),
    ("boot_options", "others by", _others),
    ("problem", "run would refuse", str),
)
"""Key, label, and how the value is printed, in the order of the lines."""


def _printable(text: str) -> str:
    """``text`` without what a file could do to a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def format_description(facts: Description) -> str:
    """The facts as lines for people to read; what is empty is left out."""
    packing = f", compressed with {facts['packed']}" if "packed" in facts else ""
    lines = [f"{_printable(facts['file'])}: {facts['kind']}{packing}, {_size(facts['size'])}"]
    for key, label, show in _LINES:
        text = "" if facts.get(key, "") in ("", []) else show(facts[key])
        if text:
            lines.append(f"  {label:20} {_printable(text)}")
    return "\n".join(lines)
