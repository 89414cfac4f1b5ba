"""What a file is, by its magic numbers: a kernel that we can boot, or what else.

People hand a VMM all sorts of things for a kernel. Each that is likely gets its own sentence, so
that they know what to do next. The magic numbers are those of file(1).
"""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.boot.image import Image
from pyvmm.errors import ImageError

_SNIFFED = 4096

ELF_MAGIC = b"\x7fELF"
GZIP_MAGIC = b"\x1f\x8b"
XZ_MAGIC = b"\xfd7zXZ\0"
BZIP2_MAGIC = b"BZh"
LZMA_MAGIC = b"\x5d\0\0"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LZ4_MAGIC = b"\x04\x22\x4d\x18"
LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
LZOP_MAGIC = b"\x89LZO\0"


class Kind(NamedTuple):
    """``name`` is for machines to read. ``refusal`` completes "FILE …" and is empty for what can
    be booted; ``hint`` says what to do instead."""

    name: str
    refusal: str = ""
    hint: str = ""


BZIMAGE = Kind("bzImage")
ELF = Kind("ELF")
TEXT = Kind("text", "is a text file, not a kernel")
DATA = Kind("data", "is no kernel that PyVMM knows", "it boots bzImage and ELF files")


def _archive(name: str, article: str, command: str) -> Kind:
    return Kind(name, f"is {article} {name} archive, not a kernel", command)


def _compressed(name: str, article: str, command: str) -> Kind:
    return _archive(name, article, f"{command} it first, or is it the initrd?")


def _not_a_kernel(name: str, noun: str, hint: str = "") -> Kind:
    return Kind(name, f"is {noun}, not a kernel", hint)


def _other_kernel(name: str, noun: str, hint: str = "") -> Kind:
    return Kind(name, f"is {noun}; PyVMM boots bzImage and ELF kernels for x86", hint)


_BOOTS_IT = "--disk boots it, --flat a lone sector"

_MAGIC_NUMBERS = (
    (0x000, ELF_MAGIC, ELF),
    (0x202, b"HdrS", BZIMAGE),
    (0x038, b"ARM\x64", _other_kernel("arm64 Image", "a Linux kernel for arm64")),
    (0x038, b"RSC\x05", _other_kernel("RISC-V Image", "a Linux kernel for RISC-V")),
    (0x024, b"\x18\x28\x6f\x01", _other_kernel("arm zImage", "a Linux kernel for 32-bit Arm")),
    (0x004, b"zimg", _other_kernel("EFI zboot", "an EFI zboot image", "it needs EFI firmware")),
    (0x000, b"\x27\x05\x19\x56", _other_kernel("uImage", "a U-Boot image (uImage)")),
    (0x000, b"\xd0\x0d\xfe\xed", _other_kernel("FIT", "a device tree or FIT image")),
    (0x000, b"ANDROID!", _other_kernel("Android boot image", "an Android boot image")),
    (0x000, b"MZ", Kind("EFI", "is an EFI program; PyVMM has no EFI firmware")),
    (0x000, GZIP_MAGIC, _compressed("gzip", "a", "gunzip")),
    (0x000, XZ_MAGIC, _compressed("xz", "an", "unxz")),
    (0x000, BZIP2_MAGIC, _compressed("bzip2", "a", "bunzip2")),
    (0x000, LZMA_MAGIC, _compressed("lzma", "an", "unlzma")),
    (0x000, ZSTD_MAGIC, _compressed("zstd", "a", "unzstd")),
    (0x000, LZ4_MAGIC, _compressed("lz4", "an", "unlz4")),
    (0x000, LZ4_LEGACY_MAGIC, _compressed("lz4", "an", "unlz4")),
    (0x000, LZOP_MAGIC, _compressed("lzop", "an", "lzop -d")),
    (0x000, b"PK\x03\x04", _archive("zip", "a", "unzip it first")),
    (0x101, b"ustar", _archive("tar", "a", "unpack it first: tar xf")),
    (0x000, b"!<arch>\ndebian", _not_a_kernel("deb", "a Debian package", "dpkg-deb -x unpacks it")),
    (0x000, b"\xed\xab\xee\xdb", _not_a_kernel("rpm", "an RPM package", "rpm2cpio unpacks it")),
    (0x000, b"070701", _not_a_kernel("cpio", "a cpio archive", "is it the initrd?")),
    (0x000, b"070702", _not_a_kernel("cpio", "a cpio archive", "is it the initrd?")),
    (0x000, b"version https://git-lfs", _not_a_kernel("LFS", "a Git LFS pointer", "git lfs pull")),
    (0x000, b"QFI\xfb", _not_a_kernel("qcow2", "a qcow2 disk image")),
    (0x438, b"\x53\xef", _not_a_kernel("ext4", "an ext2/3/4 file system", "is it the disk?")),
    (0x000, b"hsqs", _not_a_kernel("squashfs", "a squashfs file system", "is it the disk?")),
    (0x1FE, b"\x55\xaa", _not_a_kernel("boot sector", "a boot sector or disk image", _BOOTS_IT)),
)  # fmt: skip
"""Offset, bytes there, what that means; the first that fits counts."""


def kind_of(image: Image) -> Kind:
    """What ``image`` is."""
    start = image.read(0, _SNIFFED)
    for offset, magic, kind in _MAGIC_NUMBERS:
        if start.startswith(magic, offset):
            return kind
    return TEXT if _is_text(start) else DATA


def require_kernel(image: Image) -> Kind:
    """BZIMAGE or ELF; for anything else, an error that says what ``image`` is."""
    kind = kind_of(image)
    if kind.refusal:
        raise ImageError(f"{image.name} {kind.refusal}", kind.hint)
    return kind


def _is_text(start: bytes) -> bool:
    if any(byte < 0x20 and byte not in b"\t\n\f\r\x1b" for byte in start):
        return False
    try:
        # A character may be cut in two at the end of what was read.
        start[: max(len(start) - 3, 1)].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
