"""What a kernel image is and how it would be booted: what `pyvmm inspect` shows.

:func:`describe` gathers the facts, in JSON's types; :func:`format_description` prints them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import IntFlag
from typing import Any

from pyvmm.boot import kind, multiboot, multiboot2, payload, protocol, real_mode
from pyvmm.boot.bzimage import BzImage
from pyvmm.boot.elf import ELFCLASS64, EM_X86_64, ElfImage
from pyvmm.boot.entry import entry_name
from pyvmm.boot.image import Image, ImageBytes, ImageFile
from pyvmm.boot.zero_page import LoadFlags, XLoadFlags
from pyvmm.errors import ImageError, PyvmmError
from pyvmm.memory import KIB, MIB, align_up

Description = dict[str, Any]

_BANNER = b"Linux version "
_BANNER_LIMIT = 256


def describe(path: str | os.PathLike[str]) -> Description:
    """Facts about the file at ``path``. Always there:

    * ``file``, ``size`` (bytes) and ``kind`` ("bzImage", "ELF", "text", "gzip", …);
    * ``boots``: whether `run` can boot it, given enough memory;
    * ``how``: by which entry point; or ``problem``: why not.

    The others depend on the kind; addresses and sizes are numbers.
    """
    with ImageFile(path) as image:
        image_kind = kind.kind_of(image)
        facts: Description = {"file": image.name, "size": image.size, "kind": image_kind.name}
        try:
            chosen = protocol.choose(image, "auto")
            if image_kind is kind.BZIMAGE:
                _describe_bzimage(BzImage(image), facts)
            elif image_kind is kind.ELF:
                _describe_elf(image, facts)
            _describe_multiboot(image, chosen, facts)
        except ImageError as error:
            facts |= {"boots": False, "problem": str(error)}
        return facts


def is_linux(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a Linux kernel: any bzImage (a few other programs come in its clothes),
    or an ELF file with Linux's banner. ImageError if it can't be read."""
    with ImageFile(path) as image:
        image_kind = kind.kind_of(image)
        if image_kind is kind.ELF:
            return bool(_linux_version(ElfImage(image)))
        return image_kind is kind.BZIMAGE


def _describe_multiboot(image: Image, chosen: str, facts: Description) -> None:
    """What its Multiboot headers say, if it has any."""
    first, second = multiboot.find(image), multiboot2.find(image)
    if first is not None:
        flags = multiboot.HeaderFlags(first.flags & multiboot.ALL_FLAGS)
        facts["multiboot"] = _flag_names(multiboot.HeaderFlags, flags)
    if second is not None:
        facts["multiboot2"] = [multiboot2.tag_name(kind) for kind in second.tags]
    if chosen not in protocol.MULTIBOOT:
        return
    if second is not None and chosen == "multiboot2":
        multiboot2.refuse_what_is_not_there(image, second)
        plan = multiboot2.plan(image, second)
    else:
        assert first is not None
        plan = multiboot.plan(image, first)
    facts |= {
        "segments": [[piece.address, piece.end] for piece in plan.pieces],
        "minimum_memory": align_up(max(piece.end for piece in plan.pieces), MIB),
        "boots": True,
        "how": f"{entry_name(chosen)}, in 32-bit protected mode at {plan.entry:#x}",
    }


def _describe_bzimage(kernel: BzImage, facts: Description) -> None:
    header = kernel.header
    facts |= {
        "version": kernel.version,
        "protocol": kernel.protocol,
        "entry_points": {entry: kernel.entry_address(entry) for entry in kernel.entry_points},
        "pref_address": header.pref_address,
        "init_size": header.init_size,
        "relocatable": bool(header.relocatable_kernel),
        "kernel_alignment": header.kernel_alignment,
        "cmdline_size": header.cmdline_size,
        "initrd_addr_max": header.initrd_addr_max,
        "setup_size": kernel.setup_size,
        "kernel_size": kernel.kernel_size,
        "loadflags": _flag_names(LoadFlags, header.loadflags),
        "xloadflags": _flag_names(XLoadFlags, header.xloadflags),
        "five_level_paging": bool(header.xloadflags & XLoadFlags.XLF_5LEVEL),
        "efi_stub": kernel.image.read(0, 2) == b"MZ",
    }
    if header.payload_length:
        compression = payload.compression_of(kernel)
        facts["compression"] = compression.name if compression else "unknown"
        facts |= _pvh_entry_inside(kernel)
    entry = kernel.choose_entry("auto")
    address = kernel.entry_address(entry)
    ranges = kernel.ranges if entry != "16" else real_mode.occupied(kernel)
    facts |= {
        "load_address": ranges[0][0],
        "minimum_memory": align_up(max(end for _, end in ranges), MIB),
        "boots": True,
        "how": f"the {entry_name(entry)} entry of the Linux boot protocol at {address:#x}",
    }


def _pvh_entry_inside(kernel: BzImage) -> Description:
    """The PVH entry of the vmlinux in a bzImage, or why it isn't known."""
    try:
        vmlinux = ElfImage(ImageBytes(f"vmlinux in {kernel.image.name}", payload.unpack(kernel)))
    except PyvmmError as error:
        return {"vmlinux_problem": str(error)}
    return {"vmlinux_pvh_entry": vmlinux.pvh_entry}


def _describe_elf(image: Image, facts: Description) -> None:
    kernel = ElfImage(image)
    entry, address = next(iter(kernel.entry_points.items()))
    facts |= {
        "version": _linux_version(kernel),
        "elf_class": 64 if kernel.elf_class == ELFCLASS64 else 32,
        "machine": "x86-64" if kernel.header.e_machine == EM_X86_64 else "i386",
        "entry_points": kernel.entry_points,
        "pvh_entry": kernel.pvh_entry,
        "segments": [[p.p_paddr, p.end] for p in kernel.segments],
        "minimum_memory": align_up(max(p.end for p in kernel.segments), MIB),
    }
    kernel.choose_entry("auto")
    facts |= {"boots": True, "how": f"the {entry_name(entry)} entry at {address:#x}"}


def _linux_version(kernel: ElfImage) -> str:
    """The banner that Linux prints first; empty if there is none in the file."""
    for p in kernel.segments:
        data = kernel.image.read(p.p_offset, p.p_filesz)
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


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _entries(value: dict[str, int]) -> str:
    return ", ".join(f"{entry_name(e)} at {address:#x}" for e, address in value.items()) or "none"


def _pvh(value: int | None) -> str:
    return "none" if value is None else f"{value:#x}"


def _segments(value: list[list[int]]) -> str:
    return ", ".join(f"{start:#x}-{end - 1:#x}" for start, end in value)


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
    ("pref_address", "preferred address", hex),
    ("relocatable", "relocatable", _yes_no),
    ("kernel_alignment", "alignment", hex),
    ("init_size", "needs to unpack", _size),
    ("segments", "segments", _segments),
    ("minimum_memory", "memory needed", _size),
    ("setup_size", "real-mode part", _size),
    ("kernel_size", "protected-mode part", _size),
    ("cmdline_size", "command line up to", _size),
    ("initrd_addr_max", "initrd up to", hex),
    ("loadflags", "load flags", ", ".join),
    ("xloadflags", "extended flags", ", ".join),
    ("how", "run would use", str),
    ("problem", "run would refuse", str),
)
"""Key, label, and how the value is printed, in the order of the lines."""


def format_description(facts: Description) -> str:
    """The facts as lines for people to read; what is empty is left out."""
    lines = [f"{facts['file']}: {facts['kind']}, {_size(facts['size'])}"]
    for key, label, show in _LINES:
        if key in facts and facts[key] not in ("", []):
            lines.append(f"  {label:20} {show(facts[key])}")
    return "\n".join(lines)
