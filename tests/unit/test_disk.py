"""Disk images: what is refused and how it is said, locks, and data in and out."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import host
from pyvmm.backends import disk
from pyvmm.backends.disk import DiskImage
from pyvmm.errors import ImageError

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "disk.raw"
    image.write_bytes(os.urandom(SIZE))
    return image


@pytest.fixture
def image(path: Path) -> DiskImage:
    return DiskImage.open(str(path))


def buffers(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


def test_an_image_opens_without_being_written(path: Path) -> None:
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    image = DiskImage.open(str(path))
    assert (image.size, image.readonly) == (SIZE, False)
    image.close()
    image.close()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def refusal(path: Path, *, readonly: bool = False) -> ImageError:
    with pytest.raises(ImageError) as caught:
        DiskImage.open(str(path), readonly=readonly)
    assert str(path) in caught.value.message
    return caught.value


def test_a_missing_image(tmp_path: Path) -> None:
    error = refusal(tmp_path / "none.raw")
    assert "doesn't exist" in error.message
    assert "truncate" in error.hint
    assert not (tmp_path / "none.raw").exists()


@pytest.mark.parametrize("readonly", [False, True])
def test_a_directory(tmp_path: Path, readonly: bool) -> None:
    assert "is a directory" in refusal(tmp_path, readonly=readonly).message


def test_neither_a_file_nor_a_block_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/null")):
        assert "neither a file nor a block device" in refusal(path).message


def test_an_empty_image(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert "is empty" in refusal(tmp_path / "empty").message


def test_a_size_that_is_no_multiple_of_512(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(bytes(513))
    error = refusal(tmp_path / "odd")
    assert "513 bytes" in error.message
    assert "truncate -s %512" in error.hint


@pytest.mark.parametrize(
    ("name", "offset", "magic"),
    [
        ("qcow", 0, b"QFI\xfb\0\0\0\1"), ("qcow2", 0, b"QFI\xfb\0\0\0\3"), ("VMDK", 0, b"KDMV"),
        ("VMDK", 0, b"COWD"), ("VMDK", 0, b"# Disk DescriptorFile"), ("VHDX", 0, b"vhdxfile"),
        ("VHD", 0, b"conectix"), ("VDI", 64, b"\x7f\x10\xda\xbe"), ("QED", 0, b"QED\0"),
        ("Parallels", 0, b"WithoutFreeSpace"), ("Parallels", 0, b"WithouFreSpacExt"),
    ],
)  # fmt: skip
def test_an_image_in_another_format(tmp_path: Path, name: str, offset: int, magic: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes((bytes(offset) + magic).ljust(4096, b"\0"))
    error = refusal(path)
    assert f"is a {name} image" in error.message
    assert "qemu-img convert" in error.hint


@pytest.mark.parametrize(
    ("name", "magic", "hint"),
    [
        ("gzip", b"\x1f\x8b", "gunzip it"),
        ("xz", b"\xfd7zXZ\0", "unxz it"),
        ("zstd", b"\x28\xb5\x2f\xfd", "unzstd it"),
        ("bzip2", b"BZh9", "bunzip2 it"),
        ("zip", b"PK\3\4", "unzip it"),
    ],
)
def test_a_compressed_image(tmp_path: Path, name: str, magic: bytes, hint: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(magic.ljust(999, b"\0"))
    error = refusal(path)
    assert f"is compressed with {name}" in error.message
    assert hint in error.hint
    path.write_bytes(magic.ljust(1024, b"\0"))  # a guest may want just that
    DiskImage.open(str(path)).close()


def test_a_file_without_write_permission_wants_readonly(path: Path) -> None:
    path.chmod(0o444)
    error = refusal(path)
    assert "is not writable" in error.message
    assert "readonly=on" in error.hint
    assert DiskImage.open(str(path), readonly=True).readonly


@pytest.mark.parametrize(
    ("number", "readonly", "says"),
    [
        (errno.EACCES, True, "is not readable"),
        (errno.EROFS, False, "is not writable"),
        (errno.ELOOP, False, os.strerror(errno.ELOOP)),
    ],
)
def test_what_the_host_refuses(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, readonly: bool, says: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    assert says in refusal(path, readonly=readonly).message


def test_one_writer_excludes_everybody(path: Path) -> None:
    writer = DiskImage.open(str(path))
    for readonly in (False, True):
        assert "is locked" in refusal(path, readonly=readonly).message
    writer.close()
    DiskImage.open(str(path)).close()


def test_readers_share_and_exclude_writers(path: Path) -> None:
    readers = [DiskImage.open(str(path), readonly=True) for _ in range(3)]
    assert "readonly=on" in refusal(path).hint
    for reader in readers:
        reader.close()
    DiskImage.open(str(path)).close()


def test_a_refused_image_isnt_left_open(path: Path) -> None:
    writer = DiskImage.open(str(path))
    before = len(os.listdir("/proc/self/fd"))
    refusal(path)
    assert len(os.listdir("/proc/self/fd")) == before
    writer.close()


def test_data_go_in_and_out_in_pieces(image: DiskImage, path: Path) -> None:
    pieces = [memoryview(os.urandom(n)) for n in (1, 511, 1024)]
    image.write(pieces, 4096, 1536)
    image.flush()
    whole = b"".join(pieces)
    assert path.read_bytes()[4096:5632] == whole
    into = buffers(700, 836)
    image.read(into, 4096, 1536)
    assert b"".join(into) == whole


def test_nothing_to_transfer_is_fine(image: DiskImage) -> None:
    image.read([], 0, 0)
    image.write([], 0, 0)


def test_more_pieces_than_a_system_call_takes(image: DiskImage, path: Path) -> None:
    count = 3 * os.sysconf("SC_IOV_MAX") + 5
    data = os.urandom(count * 3)
    image.write([memoryview(data)[3 * n : 3 * n + 3] for n in range(count)], 512, len(data))
    assert path.read_bytes()[512 : 512 + len(data)] == data
    into = buffers(*[3] * count)
    image.read(into, 512, len(data))
    assert b"".join(into) == data


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=20), step=st.integers(1, 50))
def test_short_transfers_are_continued(sizes: list[int], step: int) -> None:
    store = bytearray(2000)

    def short_read(_: int, into: Sequence[memoryview], offset: int) -> int:
        piece = into[0][:step]
        piece[:] = store[offset : offset + len(piece)]
        return len(piece)

    def short_write(_: int, pieces: Sequence[memoryview], offset: int) -> int:
        piece = pieces[0][:step]
        store[offset : offset + len(piece)] = piece
        return len(piece)

    total = sum(sizes)
    data = os.urandom(total)
    image = DiskImage("test", -1, 2000, readonly=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", short_read)
        patch.setattr(os, "pwritev", short_write)
        image.write([memoryview(data)], 100, total)
        into = buffers(*sizes)
        image.read(into, 100, total)
    assert b"".join(into) == data


def test_an_image_that_has_become_shorter_is_an_io_error(image: DiskImage, path: Path) -> None:
    os.truncate(path, 1024)
    with pytest.raises(OSError) as caught:
        image.read(buffers(2048), 0, 2048)
    assert caught.value.errno == errno.EIO


def test_the_hosts_io_errors_come_out() -> None:
    image = DiskImage("test", 1 << 20, SIZE, readonly=False)  # no such descriptor
    for call in (
        lambda: image.read(buffers(1), 0, 1),
        lambda: image.write(buffers(1), 0, 1),
        image.flush,
        lambda: image.discard(0, 512),
        lambda: image.write_zeroes(0, 512, unmap=True),
    ):
        with pytest.raises(OSError):
            call()


def refusing(*modes: int) -> Callable[[int, int, int, int], None]:
    """fallocate(2) of a file system that doesn't know ``modes``."""
    real = host.fallocate

    def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
        if mode in modes:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        real(fd, mode, offset, length)

    return fallocate


PUNCH = host.FALLOC_FL_PUNCH_HOLE | host.FALLOC_FL_KEEP_SIZE
ZERO = host.FALLOC_FL_ZERO_RANGE


@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize("unknown", [(), (PUNCH,), (ZERO,), (PUNCH, ZERO)])
@pytest.mark.parametrize(("offset", "length"), [(512, 1024), (0, SIZE), (4096, 8192), (512, 0)])
def test_write_zeroes_works_everywhere(
    image: DiskImage,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unmap: bool,
    unknown: tuple[int, ...],
    offset: int,
    length: int,
) -> None:
    expected = bytearray(path.read_bytes())
    expected[offset : offset + length] = bytes(length)
    monkeypatch.setattr(host, "fallocate", refusing(*unknown))
    monkeypatch.setattr(disk, "_ZEROES", bytes(4096))
    image.write_zeroes(offset, length, unmap=unmap)
    assert path.read_bytes() == expected


def test_discard_frees_the_space_or_does_nothing(
    image: DiskImage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(host, "fallocate", refusing(PUNCH))
        image.discard(0, 65536)
    assert path.read_bytes() == before
    image.flush()
    blocks = path.stat().st_blocks
    image.discard(65536, SIZE - 65536)
    assert path.stat().st_blocks < blocks
    assert path.stat().st_size == SIZE
    assert path.read_bytes()[:65536] == before[:65536]
