"""The vmlinux inside a bzImage: found, unpacked.

Since boot protocol 2.08 the setup header says where the compressed payload is
(Documentation/arch/x86/boot.rst, payload_offset); what it is compressed with shows in its first
bytes (:mod:`pyvmm.boot.compression`).
"""

from __future__ import annotations

import os

from pyvmm.boot import compression, kind
from pyvmm.boot.bzimage import BzImage
from pyvmm.boot.image import ImageFile
from pyvmm.errors import ImageError
from pyvmm.memory import MIB

UNPACKED_LIMIT = 256 * MIB
"""No vmlinux is that large; a file that claims to be is a bomb."""

_MAGIC_SIZE = 8


def compression_of(kernel: BzImage) -> compression.Compression | None:
    """What the payload is compressed with; None if there is none or it isn't known."""
    return compression.compression_of(kernel.image.read(_payload(kernel)[0], _MAGIC_SIZE))


def unpack(kernel: BzImage) -> bytes:
    """The vmlinux in a bzImage.

    Raises :class:`~pyvmm.errors.ImageError` if there is none or it is damaged, and
    :class:`~pyvmm.errors.PyvmmError` if unpacking it needs what isn't installed.
    """
    name = kernel.image.name
    offset, length = _payload(kernel)
    if not length:
        raise ImageError(f"{name} does not say where its vmlinux is")
    found = compression_of(kernel)
    if found is None:
        raise ImageError(f"the payload of {name} is in no known compression")
    if length > UNPACKED_LIMIT:
        raise ImageError(f"the payload of {name} has {length // MIB} MiB, more than makes sense")
    # Linux unpacks itself inside init_size bytes.
    limit = min(kernel.header.init_size or UNPACKED_LIMIT, UNPACKED_LIMIT)
    data = kernel.image.read(offset, length)
    try:
        vmlinux = compression.unpack(name, found, data, limit + 1)
    except ValueError as error:
        raise ImageError(f"the {found.name} payload of {error}") from error
    if len(vmlinux) > limit:
        raise ImageError(f"the payload of {name} unpacks to more than {limit // MIB} MiB")
    if not vmlinux.startswith(kind.ELF_MAGIC):
        raise ImageError(f"the payload of {name} is not an ELF file")
    return vmlinux


def extract_vmlinux(path: str | os.PathLike[str]) -> bytes:
    """The vmlinux in the bzImage at ``path``."""
    with ImageFile(path) as image:
        if kind.require_kernel(image) is not kind.BZIMAGE:
            raise ImageError(f"{image.name} is not a bzImage, so there is no vmlinux in it")
        return unpack(BzImage(image))


def _payload(kernel: BzImage) -> tuple[int, int]:
    """The payload's offset in the file and its length; an error if they can't be true."""
    header = kernel.header
    if header.payload_offset + header.payload_length > kernel.kernel_size:
        raise ImageError(f"the setup header of {kernel.image.name} is damaged: payload_length")
    return kernel.setup_size + header.payload_offset, header.payload_length
