"""By which boot protocol a kernel is started, when it doesn't say or several fit.

A bzImage is started as Linux, even if there is a Multiboot header in it. An ELF file with a PVH
note expects a VMM. Then comes Multiboot, the older one first, as other VMMs have it; and an ELF
file without any of these is entered at its entry point. What is neither may be for Multiboot if
its header says where it goes: else it is something else that has a kernel in it.
"""

from __future__ import annotations

from pyvmm.boot import kind
from pyvmm.boot.entry import entry_name
from pyvmm.boot.image import Image
from pyvmm.errors import ImageError

MULTIBOOT_MAGIC = b"\x02\xb0\xad\x1b"
MULTIBOOT2_MAGIC = b"\xd6\x50\x52\xe8"
_SEARCH = 32 << 10

MULTIBOOT = ("multiboot", "multiboot2")


def choose(image: Image, entry: str) -> str:
    """ "bzImage", "ELF", "multiboot" or "multiboot2": how ``image`` is loaded for ``entry``, which
    may be "auto". An error if it is no kernel, or has no such header."""
    if entry in MULTIBOOT:
        if not _has_header(image, entry):
            raise ImageError(f"kernel {image.name} has no {entry_name(entry)} header")
        return entry
    found = kind.kernel_kind(image)
    if entry == "auto" and found is not kind.BZIMAGE:
        for name in MULTIBOOT:
            # The file is looked into only if there is a choice: loading it does so again.
            if _has_header(image, name) and _is_for_loaders(image, found, name):
                return name
    return kind.require_kernel(image).name


def _has_header(image: Image, name: str) -> bool:
    start = image.read(0, _SEARCH)
    # The modules are imported only if there is something to look at.
    if name == "multiboot" and MULTIBOOT_MAGIC in start:
        from pyvmm.boot import multiboot

        return multiboot.find(image) is not None
    if name == "multiboot2" and MULTIBOOT2_MAGIC in start:
        from pyvmm.boot import multiboot2

        return multiboot2.find(image) is not None
    return False


def _is_for_loaders(image: Image, found: kind.Kind | None, name: str) -> bool:
    """Whether the Multiboot header ``name`` in an image of the kind ``found`` is what to go by."""
    if found is kind.ELF:
        return not _expects_vmm(image)
    return _has_addresses(image, name) or kind.kind_of(image).name == "data"


def _has_addresses(image: Image, name: str) -> bool:
    from pyvmm.boot import multiboot, multiboot2

    if name == "multiboot":
        header = multiboot.find(image)
        return header is not None and bool(header.flags & multiboot.HeaderFlags.AOUT_KLUDGE)
    header2 = multiboot2.find(image)
    return header2 is not None and multiboot2.HeaderTag.ADDRESS in header2.tags


def _expects_vmm(image: Image) -> bool:
    from pyvmm.boot.elf import ElfImage

    return ElfImage(image).pvh_entry is not None
