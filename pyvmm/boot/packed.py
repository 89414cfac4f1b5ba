"""A kernel whose whole file is compressed (xen.gz, vmlinux.zst): unpacked in memory, as GRUB does.

Only what has a kernel in it is unpacked. A compressed disk image or archive stays what it is, and
is refused as such.
"""

from __future__ import annotations

from pyvmm.boot import compression, kind
from pyvmm.boot.image import Image, ImageBytes
from pyvmm.errors import ImageError
from pyvmm.memory import MIB

LIMIT = 256 * MIB
"""No kernel is that large; a file that claims to be is a bomb."""

_MAGIC_SIZE = 8
_KERNELS = (kind.BZIMAGE.name, kind.ELF.name)


def compression_of(image: Image) -> compression.Compression | None:
    """What the kernel in ``image`` is compressed with; None if there is none, or if it can't be
    unpacked here."""
    found = compression.compression_of(image.read(0, _MAGIC_SIZE))
    return found if found is not None and kind.kind_of(image).contains in _KERNELS else None


def unpack(image: Image, found: compression.Compression) -> Image:
    """The kernel in ``image``. Raises :class:`~pyvmm.errors.ImageError` if it is damaged or too
    large."""
    try:
        data = compression.unpack(image.name, found, image.read(0, LIMIT), LIMIT + 1)
    except ValueError as error:
        raise ImageError(f"kernel {error} ({found.name})") from error
    if len(data) > LIMIT:
        raise ImageError(f"kernel {image.name} unpacks to more than {LIMIT // MIB} MiB")
    return ImageBytes(image.name, data)
