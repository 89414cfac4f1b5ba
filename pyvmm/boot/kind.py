"""What a file is: a kernel that we can boot, or what else.

The two forms that most kernels have are recognised here, on the way of every start; everything
else in :mod:`pyvmm.boot.signatures`, which is imported only if there is something to explain.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.boot.image import Image
from pyvmm.errors import ImageError

ELF_MAGIC = b"\x7fELF"
"""The System V ABI, "Object Files"."""
_HDRS_OFFSET, _HDRS = 0x202, b"HdrS"
"""Linux: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"."""


class Kind(NamedTuple):
    """``name`` is for machines to read, ``noun`` for people. ``verdict`` completes "FILE is NOUN…"
    with the reason why it isn't booted, and is empty for what may be; ``hint`` says what to do
    instead. ``contains`` is the name of the kind that is inside something compressed."""

    name: str
    noun: str
    verdict: str = ""
    hint: str = ""
    contains: str = ""


BZIMAGE = Kind("bzImage", "a bzImage")
ELF = Kind("ELF", "an ELF file")


def kernel_kind(image: Image) -> Kind | None:
    """BZIMAGE or ELF; None for anything else."""
    start = image.read(0, _HDRS_OFFSET + len(_HDRS))
    if start.startswith(ELF_MAGIC):
        return ELF
    return BZIMAGE if start.startswith(_HDRS, _HDRS_OFFSET) else None


def kind_of(image: Image) -> Kind:
    """What ``image`` is."""
    kind = kernel_kind(image)
    if kind is None:
        from pyvmm.boot import signatures

        kind = signatures.look(image)
    return kind


def require_kernel(image: Image) -> Kind:
    """BZIMAGE or ELF; for anything else, an error that says what ``image`` is."""
    kind = kind_of(image)
    if kind.verdict:
        raise ImageError(f"{image.name} is {kind.noun}{kind.verdict}", kind.hint)
    return kind
