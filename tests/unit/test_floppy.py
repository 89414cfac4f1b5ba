"""Floppy images: which geometry each has, what is refused; and --floppy."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.backends.floppy import KNOWN, DriveType, Floppy, Geometry, file_system_geometry
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError, ImageError
from pyvmm.floppy_config import FloppyConfig


def boot_sector(
    total: int, sectors: int, heads: int, *, media: int = 0xF0, large: bool = False, fat: int = 9
) -> bytes:
    """With a BIOS parameter block."""
    small, many = (0, total) if large else (total, 0)
    block = struct.pack(
        "<HBHBHHBHHHII", 512, 1, 1, 2, 224, small, media, fat, sectors, heads, 0, many
    )
    return (b"\xeb\x3c\x90PYVMM   " + block).ljust(512, b"\0")


def image(path: Path, size: int, start: bytes = b"") -> str:
    path.write_bytes(start.ljust(size, b"\0"))
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "floppy.img"


class TestGeometry:
    def test_no_two_kinds_have_the_same_size(self) -> None:
        assert len({geometry.size for geometry in KNOWN}) == len(KNOWN)

    @pytest.mark.parametrize(
        ("kib", "geometry", "kind"),
        [
            (160, (40, 1, 8), DriveType.DD_5),
            (180, (40, 1, 9), DriveType.DD_5),
            (320, (40, 2, 8), DriveType.DD_5),
            (360, (40, 2, 9), DriveType.DD_5),
            (720, (80, 2, 9), DriveType.DD_3),
            (1200, (80, 2, 15), DriveType.HD_5),
            (1440, (80, 2, 18), DriveType.HD_3),
            (1680, (80, 2, 21), DriveType.HD_3),
            (1722, (82, 2, 21), DriveType.HD_3),
            (2880, (80, 2, 36), DriveType.ED_3),
        ],
    )
    def test_by_size(self, path: Path, kib: int, geometry: tuple[int, ...], kind: int) -> None:
        floppy = Floppy.open(image(path, kib << 10))
        assert (floppy.geometry, floppy.drive_type) == (geometry, kind)
        assert not floppy.image.readonly
        floppy.image.close()

    @pytest.mark.parametrize(
        ("start", "geometry"),
        [
            (boot_sector(1440, 18, 1), (80, 1, 18)),
            (boot_sector(1440, 9, 2), (80, 2, 9)),
            (boot_sector(1440, 9, 2, large=True), (80, 2, 9)),
            (boot_sector(1440, 18, 2), (40, 2, 18)),
            (boot_sector(1439, 18, 1), (80, 2, 9)),
            (boot_sector(1440, 7, 2), (80, 2, 9)),
            (boot_sector(1440, 0, 0), (80, 2, 9)),
            (boot_sector(1440, 18, 1, media=0x29), (80, 2, 9)),
            (boot_sector(1440, 18, 1, fat=0), (80, 2, 9)),
        ],
    )
    def test_by_the_file_system(self, path: Path, start: bytes, geometry: tuple[int, ...]) -> None:
        """As far as it agrees with the image's size, and there is such a floppy."""
        floppy = Floppy.open(image(path, 720 << 10, start), readonly=True)
        assert floppy.geometry == geometry
        floppy.image.close()

    def test_a_size_that_only_the_file_system_knows(self, path: Path) -> None:
        size = 81 * 2 * 18 * 512
        with pytest.raises(ImageError, match="as no floppy has"):
            Floppy.open(image(path, size))
        floppy = Floppy.open(image(path, size, boot_sector(81 * 2 * 18, 18, 2)))
        assert floppy.geometry == (81, 2, 18)
        floppy.image.close()

    @given(st.binary(min_size=512, max_size=512), st.sampled_from([k.size for k in KNOWN]))
    def test_what_a_first_sector_says_is_no_more_than_the_image(
        self, sector: bytes, size: int
    ) -> None:
        geometry = file_system_geometry(sector, size)
        assert geometry is None or geometry.size == size

    @given(
        st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 255), st.sampled_from(KNOWN)
    )
    def test_any_parameters(self, sectors: int, heads: int, media: int, known: Geometry) -> None:
        sector = boot_sector(known.size // 512, sectors, heads, media=media)
        geometry = file_system_geometry(sector, known.size)
        assert geometry is None or (geometry.size, geometry.sectors) == (known.size, sectors)


class TestRefusals:
    @pytest.mark.parametrize("size", [0, 511, 512, 1474560 - 512, 1474560 + 512, 10 << 20])
    def test_a_size_that_is_no_floppy_s(self, path: Path, size: int) -> None:
        with pytest.raises(ImageError, match=f"{size} bytes, as no floppy has") as error:
            Floppy.open(image(path, size))
        assert ("truncate" in error.value.hint) == (size < 1474560)
        Floppy.open(image(path, 1474560)).image.close()  # it isn't locked any more

    def test_a_missing_one(self, path: Path) -> None:
        with pytest.raises(ImageError, match="doesn't exist") as error:
            Floppy.open(str(path))
        assert "truncate -s 1440K" in error.value.hint

    def test_one_in_two_drives(self, path: Path) -> None:
        floppy = Floppy.open(image(path, 1474560))
        with pytest.raises(ImageError, match="locked"):
            Floppy.open(str(path))
        floppy.image.close()


class TestOptions:
    def test_what_is_parsed(self) -> None:
        assert FloppyConfig.parse("a.img") == ("a.img", False, None)
        assert FloppyConfig.parse("a.img,readonly=on,bootindex=3") == ("a.img", True, 3)

    @pytest.mark.parametrize("text", ["", ",readonly=on", "a,readonly=x", "a,bootindex=x", "a,b=c"])
    def test_what_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--floppy"):
            FloppyConfig.parse(text)

    def test_a_machine_with_floppies(self) -> None:
        config = MachineConfig.parse({"floppies": ("a.img", "b.img")})
        assert [floppy.path for floppy in config.floppies] == ["a.img", "b.img"]
        assert config.boots == "a.img"
        assert config.images == ("a.img", "b.img")
        with pytest.raises(ConfigError, match="3 drives are more than 2"):
            MachineConfig.parse({"floppies": ("a", "b", "c")})

    @pytest.mark.parametrize(
        ("floppies", "disks", "order"),
        [
            (("a",), (), [0]),
            (("a", "b"), (), [0]),
            (("a", "b"), ("c", "d"), [0, 0x80, 0x81]),
            (("a", "b,bootindex=9"), ("c",), [1, 0, 0x80]),
            (("a",), ("c", "d,bootindex=2"), [0x81, 0, 0x80]),
            (("a,bootindex=3",), ("c", "d,bootindex=2"), [0x81, 0, 0x80]),
            (("a,bootindex=2",), ("c", "d,bootindex=2"), [0, 0x81, 0x80]),
        ],
    )
    def test_the_boot_order(
        self, floppies: tuple[str, ...], disks: tuple[str, ...], order: list[int]
    ) -> None:
        config = MachineConfig.parse({"floppies": floppies, "disks": disks})
        assert config.boot_order == order

    def test_another_firmware_has_no_floppies(self) -> None:
        with pytest.raises(ConfigError, match="only PyVMM's own BIOS"):
            MachineConfig.parse({"floppies": ("a",), "firmware": "rom"})
