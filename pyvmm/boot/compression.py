"""Compressed data: recognised by the first bytes, and unpacked as far as is wanted.

gzip, bzip2, LZMA and XZ are in Python's standard library; LZ4 and Zstandard need the packages of
the project's extra ``inspect``. LZO can be recognised only. What is unpacked may be hostile, so
nothing here makes more of a file than it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pyvmm.errors import PyvmmError
from pyvmm.memory import MIB

_MEMORY_LIMIT = 256 * MIB
"""What a dictionary may take. Kernels are packed with 128 MiB at most (zstd -22)."""

_LZ4_BLOCK_SIZE = 8 * MIB
_LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"


class Compression(NamedTuple):
    """``tool`` undoes it; ``unpack`` makes at most so many bytes of the first argument."""

    name: str
    magic: bytes
    tool: str
    unpack: Callable[[bytes, int], bytes] | None


def _gunzip(data: bytes, limit: int) -> bytes:
    import zlib

    gzip_format = 16 + zlib.MAX_WBITS
    return zlib.decompressobj(gzip_format).decompress(data, limit)


def _bunzip2(data: bytes, limit: int) -> bytes:
    import bz2

    return bz2.BZ2Decompressor().decompress(data, limit)


def _unxz(data: bytes, limit: int) -> bytes:
    import lzma

    return lzma.LZMADecompressor(memlimit=_MEMORY_LIMIT).decompress(data, limit)


def _unzstd(data: bytes, limit: int) -> bytes:
    import io

    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=_MEMORY_LIMIT)
    return unpacker.stream_reader(io.BytesIO(data)).read(limit)


def _unlz4(data: bytes, limit: int) -> bytes:
    import lz4.frame

    unpacked: bytes = lz4.frame.LZ4FrameDecompressor().decompress(data, limit)
    return unpacked


def _unlz4_legacy(data: bytes, limit: int) -> bytes:
    """The legacy frame format: blocks of up to 8 MiB, each behind its compressed size. The four
    bytes that Linux's build appends to the frame are no block: nothing follows them."""
    import lz4.block

    blocks: list[bytes] = []
    offset = len(_LZ4_LEGACY_MAGIC)
    room = limit
    while offset + 4 < len(data) and room > 0:
        size = int.from_bytes(data[offset : offset + 4], "little")
        offset += 4
        block = data[offset : offset + size]
        blocks.append(lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK_SIZE))
        offset += size
        room -= len(blocks[-1])
    return b"".join(blocks)[:limit]


COMPRESSIONS = (
    Compression("gzip", b"\x1f\x8b", "gunzip", _gunzip),  # RFC 1952
    Compression("bzip2", b"BZh", "bunzip2", _bunzip2),
    Compression("lzma", b"\x5d\0\0", "unlzma", _unxz),  # the properties of any common encoder
    Compression("xz", b"\xfd7zXZ\0", "unxz", _unxz),
    Compression("lzo", b"\x89LZO\0", "lzop -d", None),
    Compression("lz4", _LZ4_LEGACY_MAGIC, "unlz4", _unlz4_legacy),
    Compression("lz4", b"\x04\x22\x4d\x18", "unlz4", _unlz4),
    Compression("zstd", b"\x28\xb5\x2f\xfd", "unzstd", _unzstd),  # RFC 8878
)


def compression_of(start: bytes) -> Compression | None:
    """What data that begin with ``start`` are compressed with; None if with nothing known."""
    return next((c for c in COMPRESSIONS if start.startswith(c.magic)), None)


def unpack(name: str, compression: Compression, data: bytes, limit: int) -> bytes:
    """At most ``limit`` bytes of what is in ``data``. Raises ValueError if they are damaged, and
    :class:`~pyvmm.errors.PyvmmError` if they can't be unpacked here; both name ``name``."""
    if compression.unpack is None:
        raise PyvmmError(f"{name} is compressed with {compression.name}, which PyVMM can't unpack")
    try:
        return compression.unpack(data, limit)
    except ImportError:
        raise PyvmmError(
            f"unpacking {name} needs a Python package for {compression.name}",
            "pip install lz4 zstandard",
        ) from None
    except Exception as error:
        # Each library has exceptions of its own; all of them mean bad data.
        raise ValueError(f"{name} is damaged: {error}") from error
