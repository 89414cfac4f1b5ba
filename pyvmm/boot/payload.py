"""The vmlinux inside a bzImage: found, unpacked.

Since boot protocol 2.08 the setup header says where the compressed payload is
(Documentation/arch/x86/boot.rst, payload_offset); what it is compressed with shows in its first
bytes. gzip, bzip2, LZMA and XZ are in Python's standard library; LZ4 and Zstandard need the
packages of the project's extra ``inspect``. LZO can be recognised only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from pyvmm.boot import kind
from pyvmm.boot.bzimage import BzImage
from pyvmm.boot.image import ImageFile
from pyvmm.errors import ImageError, PyvmmError
from pyvmm.memory import MIB

UNPACKED_LIMIT = 512 * MIB
"""No vmlinux is that large; a file that claims to be is a bomb."""

_LZ4_BLOCK_SIZE = 8 * MIB


def _gunzip(data: bytes) -> bytes:
    import zlib

    gzip_format = 16 + zlib.MAX_WBITS
    return zlib.decompressobj(gzip_format).decompress(data, UNPACKED_LIMIT)


def _bunzip2(data: bytes) -> bytes:
    import bz2

    return bz2.BZ2Decompressor().decompress(data, UNPACKED_LIMIT)


def _unxz(data: bytes) -> bytes:
    import lzma

    return lzma.LZMADecompressor().decompress(data, UNPACKED_LIMIT)


def _unzstd(data: bytes) -> bytes:
    import io

    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read(UNPACKED_LIMIT)


def _unlz4(data: bytes) -> bytes:
    """The legacy frame format: blocks of up to 8 MiB, each behind its compressed size. The four
    bytes that Linux's build appends to the frame are no block: nothing follows them."""
    import lz4.block

    blocks: list[bytes] = []
    offset = len(kind.LZ4_LEGACY_MAGIC)
    while offset + 4 < len(data) and len(blocks) < UNPACKED_LIMIT // _LZ4_BLOCK_SIZE:
        size = int.from_bytes(data[offset : offset + 4], "little")
        offset += 4
        block = data[offset : offset + size]
        blocks.append(lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK_SIZE))
        offset += size
    return b"".join(blocks)


class Compression(NamedTuple):
    name: str
    magic: bytes
    unpack: Callable[[bytes], bytes] | None


COMPRESSIONS = (
    Compression("gzip", kind.GZIP_MAGIC, _gunzip),
    Compression("bzip2", kind.BZIP2_MAGIC, _bunzip2),
    Compression("lzma", kind.LZMA_MAGIC, _unxz),
    Compression("xz", kind.XZ_MAGIC, _unxz),
    Compression("lzo", kind.LZOP_MAGIC, None),
    Compression("lz4", kind.LZ4_LEGACY_MAGIC, _unlz4),
    Compression("zstd", kind.ZSTD_MAGIC, _unzstd),
)

_MAGIC_SIZE = max(len(compression.magic) for compression in COMPRESSIONS)


def compression_of(kernel: BzImage) -> Compression | None:
    """What the payload is compressed with; None if there is none or it isn't known."""
    start = kernel.image.read(_payload(kernel)[0], _MAGIC_SIZE)
    return next((c for c in COMPRESSIONS if start.startswith(c.magic)), None)


def unpack(kernel: BzImage) -> bytes:
    """The vmlinux in a bzImage.

    Raises :class:`~pyvmm.errors.ImageError` if there is none or it is damaged, and
    :class:`~pyvmm.errors.PyvmmError` if unpacking it needs what isn't installed.
    """
    name = kernel.image.name
    offset, length = _payload(kernel)
    if not length:
        raise ImageError(f"{name} does not say where its vmlinux is")
    compression = compression_of(kernel)
    if compression is None:
        raise ImageError(f"the payload of {name} is in no known compression")
    if compression.unpack is None:
        raise PyvmmError(f"{name} is compressed with {compression.name}, which PyVMM can't unpack")
    data = kernel.image.read(offset, length)
    try:
        vmlinux = compression.unpack(data)
    except ImportError:
        raise PyvmmError(
            f"unpacking {name} needs a Python package for {compression.name}",
            "pip install lz4 zstandard",
        ) from None
    except Exception as error:
        # Each library has exceptions of its own; all of them mean bad data.
        raise ImageError(f"the {compression.name} payload of {name} is damaged: {error}") from error
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
