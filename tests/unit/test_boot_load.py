"""What `boot.load` says to files that are no kernels, and flat binaries."""

from __future__ import annotations

import errno
import gzip
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.images import bzimage

from pyvmm import boot, layout
from pyvmm.boot import flat
from pyvmm.boot.image import ImageBytes
from pyvmm.errors import ConfigError, ImageError
from pyvmm.memory import KIB, MIB, GuestMemory


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(32 * MIB)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello\n", "is a text file, not a kernel"),
        ("Bücher\n".encode() * 4000, "is a text file, not a kernel"),
        (b"", "is empty"),
        (bytes(5000), "is no kernel that PyVMM knows"),
        (b"\xff\xfe\x80" * 100, "is no kernel that PyVMM knows"),
        (gzip.compress(bytes(100), mtime=0), "is compressed with gzip; what is in it.*gunzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(99), "is compressed with zstd.*unzstd"),
        (b"MZ" + bytes(0x36) + b"ARM\x64" + bytes(500), "is a kernel for arm64"),
        (b"MZ\0\0zimg" + bytes(500), r"is a Linux kernel \(EFI zboot\)"),
        (b"MZ" + bytes(500), "is a DOS program, not a kernel"),
        (b"\x27\x05\x19\x56" + bytes(60), "is a U-Boot image"),
        (b"070701" + b"0" * 104, "is a cpio archive, not a kernel"),
        (bytes(510) + b"\x55\xaa", "is a boot sector, not a kernel.*--flat"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"is a Git LFS pointer.*git lfs pull"),
        (b"!<arch>\ndebian-binary   ", "is a Debian package, not a kernel"),
    ],
)
def test_other_files_are_named_for_what_they_are(
    tmp_path: Path, memory: GuestMemory, content: bytes, says: str
) -> None:
    path = tmp_path / "thing"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"{re.escape(str(path))}.*{says}|{says}.*thing"):
        boot.load(path, memory)


def test_a_missing_file(tmp_path: Path, memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match="nothing-here does not exist"):
        boot.load(tmp_path / "nothing-here", memory)


def test_a_directory(tmp_path: Path, memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match="is a directory; the kernel must be a file"):
        boot.load(tmp_path, memory)


def test_a_file_behind_a_file(tmp_path: Path, memory: GuestMemory) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="Not a directory"):
        boot.load(tmp_path / "file" / "kernel", memory)


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path, memory) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="is a pipe"):
        boot.load(tmp_path / "pipe", memory)


def test_an_unreadable_file(tmp_path: Path, memory: GuestMemory, monkeypatch) -> None:
    def refuse(path, flags):  # root, who may run these tests, may read everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    (tmp_path / "secret").touch()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match=r"can't open kernel .*secret: Permission denied"):
        boot.load(tmp_path / "secret", memory)


def test_an_open_file_for_each_load_is_closed_again(tmp_path: Path, memory: GuestMemory) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "bzImage").write_bytes(bzimage())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        boot.load(tmp_path / "bzImage", memory)
        with pytest.raises(ImageError):
            boot.load(tmp_path / "text", memory)
        with pytest.raises(ImageError):
            boot.load(tmp_path, memory)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [4 * KIB, 640 * KIB, 1 * MIB])
def test_a_machine_without_memory_above_1_mib(tmp_path: Path, size: int) -> None:
    (tmp_path / "bzImage").write_bytes(bzimage())
    with pytest.raises(ConfigError, match="too little"):
        boot.load(tmp_path / "bzImage", GuestMemory(size))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=2000))
def test_bytes_at_random_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "random"
    path.write_bytes(content)
    memory = GuestMemory(4 * MIB)
    with pytest.raises(ImageError, match="random"):
        boot.load(path, memory)
    memory.close()


# Flat binaries.


def test_a_real_mode_binary_starts_like_a_boot_sector(tmp_path: Path, memory: GuestMemory) -> None:
    (tmp_path / "flat").write_bytes(b"\xf4" * 100)
    state = boot.load(tmp_path / "flat", memory, entry="real")
    assert (state.cs.base, state.registers["rip"]) == (0, 0x7C00)
    assert memory.read(0x7C00, 100) == b"\xf4" * 100


@pytest.mark.parametrize(("mode", "long"), [("protected", 0), ("long", 1)])
def test_a_flat_binary_in_the_other_modes(memory: GuestMemory, mode: str, long: int) -> None:
    state = flat.load(ImageBytes("flat", b"\xf4"), memory, mode=mode)
    assert (state.registers["rip"], state.cs.l) == (layout.HIGH_RAM, long)
    state = flat.load(ImageBytes("flat", b"\xf4"), memory, mode=mode, address=0x20_0000)
    assert state.registers["rip"] == 0x20_0000


@pytest.mark.parametrize(
    ("mode", "address"),
    [("real", 32 * MIB), ("real", 0x1_0000), ("real", -1), ("long", 0x7000), ("virtual", 0)],
)
def test_a_flat_binary_in_the_wrong_place(memory: GuestMemory, mode: str, address: int) -> None:
    with pytest.raises((ConfigError, ImageError)):
        flat.load(ImageBytes("flat", b"\xf4"), memory, mode=mode, address=address)
