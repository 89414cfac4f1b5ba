"""A floppy's host side: a raw image, whose size says what kind of floppy it is.

The sizes are those of PC floppies with sectors of 512 bytes, and of some that were formatted with
more tracks or sectors than the drive's makers promised. Where the BIOS parameter block in a FAT
file system's first sector (Microsoft's FAT specification, section 3.1) accounts for exactly the
image's size, the geometry is the one that it says.

Left out: other sizes of sectors, and formats that keep marks and gaps (XDF, IMD, TD0).
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from pyvmm.backends.disk import SECTOR_SIZE, DiskImage
from pyvmm.errors import ImageError


class Geometry(NamedTuple):
    """How many cylinders, heads, and sectors on a track."""

    cylinders: int
    heads: int
    sectors: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.cylinders * self.heads * self.sectors * SECTOR_SIZE


class DriveType:
    """As the CMOS's byte 10h and INT 13h's call 08h have it (Ralf Brown's Interrupt List)."""

    DD_5 = 1
    """5¼ inches, 40 tracks: 360 KiB."""
    HD_5 = 2
    """1.2 MB."""
    DD_3 = 3
    """3½ inches, 720 KiB."""
    HD_3 = 4
    """1.44 MB."""
    ED_3 = 6
    """2.88 MB."""


KNOWN = (
    Geometry(40, 1, 8),
    Geometry(40, 1, 9),
    Geometry(40, 2, 8),
    Geometry(40, 2, 9),
    Geometry(80, 2, 8),
    Geometry(80, 2, 9),
    Geometry(80, 2, 10),
    Geometry(82, 2, 10),
    Geometry(80, 2, 15),
    Geometry(80, 2, 18),
    Geometry(82, 2, 18),
    Geometry(83, 2, 18),
    Geometry(80, 2, 20),
    Geometry(80, 2, 21),
    Geometry(82, 2, 21),
    Geometry(83, 2, 21),
    Geometry(80, 2, 22),
    Geometry(80, 2, 24),
    Geometry(80, 2, 36),
)
"""No two have the same size."""

_BY_SIZE = {geometry.size: geometry for geometry in KNOWN}
_MAX_CYLINDERS, _MAX_HEADS, _MAX_SECTORS = 86, 2, 48
_DD_CYLINDERS = 43
"""A drive with 40 tracks gets no further than that."""

_BPB = struct.Struct("<H 6x H B H HH 4x I")
"""From offset 11 on: bytes in a sector; sectors in all; media; sectors of a FAT, on a track; heads;
sectors in all if 16 bits are too few."""
_BPB_OFFSET = 11
_FIRST_MEDIA = 0xF0


class Floppy:
    """An image in a drive, as the BIOS has it."""

    def __init__(self, image: DiskImage, geometry: Geometry) -> None:
        self.image = image
        self.geometry = geometry

    @classmethod
    def open(cls, path: str, *, readonly: bool = False) -> Floppy:
        """Open and lock the image at ``path``. ImageError if it can't be or is no floppy's."""
        if not os.path.exists(path):
            raise ImageError(
                f"floppy image {path} doesn't exist", f"make one: truncate -s 1440K '{path}'"
            )
        if os.path.isfile(path) and os.path.getsize(path) < KNOWN[0].size:
            raise _no_floppy(path, os.path.getsize(path))
        image = DiskImage.open(path, readonly=readonly)
        geometry = geometry_of(image)
        if geometry is None:
            image.close()
            raise _no_floppy(path, image.size)
        return cls(image, geometry)

    in_use = False
    """No driver but the BIOS ever has it."""

    def to_rest(self) -> None:
        """It is."""

    @property
    def drive_type(self) -> int:
        """The drive that such a floppy goes into, one of :class:`DriveType`."""
        if self.geometry.cylinders <= _DD_CYLINDERS:
            return DriveType.DD_5
        if self.geometry.sectors > 24:
            return DriveType.ED_3
        if self.geometry.sectors > 15:
            return DriveType.HD_3
        return DriveType.HD_5 if self.geometry.sectors == 15 else DriveType.DD_3


def _no_floppy(path: str, size: int) -> ImageError:
    return ImageError(
        f"floppy image {path} has {size} bytes, as no floppy has",
        f"make it larger: truncate -s 1440K '{path}'" if size < 1440 << 10 else "is it a disk's?",
    )


def geometry_of(image: DiskImage) -> Geometry | None:
    """What the file system on it says, or else what its size does; None if it is no floppy's."""
    return file_system_geometry(_first_sector(image), image.size) or _BY_SIZE.get(image.size)


def has_floppy_file_system(image: DiskImage) -> bool:
    """Whether its first sector says that it is a floppy's."""
    return file_system_geometry(_first_sector(image), image.size) is not None


def _first_sector(image: DiskImage) -> bytes:
    sector = bytearray(SECTOR_SIZE)
    try:
        image.read([memoryview(sector)], 0, SECTOR_SIZE)
    except OSError as error:
        raise ImageError(f"can't read {image.path}: {error.strerror}") from error
    return bytes(sector)


def file_system_geometry(sector: bytes, size: int) -> Geometry | None:
    """What the first sector of an image of ``size`` bytes says, if it is a FAT floppy's."""
    bytes_per_sector, small, media, fat, sectors, heads, large = _BPB.unpack_from(
        sector, _BPB_OFFSET
    )
    if bytes_per_sector != SECTOR_SIZE or media < _FIRST_MEDIA or not fat:
        return None
    if (small or large) * SECTOR_SIZE != size:
        return None
    if not (1 <= heads <= _MAX_HEADS and 8 <= sectors <= _MAX_SECTORS):
        return None
    cylinders, rest = divmod(size, heads * sectors * SECTOR_SIZE)
    if rest or not 40 <= cylinders <= _MAX_CYLINDERS:
        return None
    return Geometry(cylinders, heads, sectors)
