"""A disk's host side: a raw image file or a block device.

Data move between guest memory and the file without a copy of ours (preadv(2), pwritev(2)) through
the host's page cache; :meth:`DiskImage.flush` makes them durable. Other image formats are left
out.

An image is locked while it is open: many may read it, one may write it. The lock is an open file
description lock (fcntl(2), F_OFD_SETLK), which QEMU's own locks conflict with as well, and a
flock(2), which scripts can take.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Sequence

from pyvmm import host
from pyvmm.errors import ImageError

SECTOR_SIZE = 512

_IOV_MAX = os.sysconf("SC_IOV_MAX")
_FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid
_ZEROES = bytes(1 << 20)
_OTHER_FORMATS = (
    (0x00, b"QFI\xfb\0\0\0\1", "qcow"),
    (0x00, b"QFI\xfb", "qcow2"),
    (0x00, b"KDMV", "VMDK"),
    (0x00, b"COWD", "VMDK"),
    (0x00, b"# Disk Descriptor", "VMDK"),
    (0x00, b"vhdxfile", "VHDX"),
    (0x00, b"conectix", "VHD"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
    (0x00, b"QED\0", "QED"),
    (0x00, b"WithoutFreeSpace", "Parallels"),
    (0x00, b"WithouFreSpacExt", "Parallels"),
)
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"PK\3\4", "zip", "unzip"),
)
"""What their data begin with, and what undoes it. Raw data may begin so, too, but such files have
any size."""
_CANT_DEALLOCATE = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV))
"""fallocate's ways to say that this file or this range isn't for it; EINVAL comes from block
devices for what isn't aligned to their blocks."""


class DiskImage:
    """An open image. ``size`` is in bytes, a multiple of 512, and stays what it was at opening.

    Offsets and lengths are the caller's to check. The host's errors come out as OSError.
    """

    def __init__(self, path: str, fd: int, size: int, *, readonly: bool) -> None:
        self.path = path
        self.size = size
        self.readonly = readonly
        self._fd = fd

    @classmethod
    def open(cls, path: str, *, readonly: bool = False) -> DiskImage:
        """Open and lock the image at ``path``; nothing is written. ImageError if it can't be."""
        flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC
        try:
            status = os.stat(path)
            _check_kind(path, status, readonly)
            if stat.S_ISBLK(status.st_mode) and not readonly:
                flags |= os.O_EXCL  # for a block device: EBUSY if it is mounted (open(2))
            fd = os.open(path, flags | os.O_NONBLOCK)  # in case it has become a FIFO meanwhile
        except OSError as error:
            raise _open_error(path, error, readonly) from error
        try:
            _check_kind(path, os.fstat(fd), readonly)
            _lock(path, fd, readonly)
            _check_format(path, fd)
            size = os.lseek(fd, 0, os.SEEK_END)
            _check_size(path, fd, size)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, size, readonly=readonly)

    def close(self) -> None:
        """Close the image and so unlock it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        """Fill ``buffers``, ``length`` bytes in all, from ``offset`` on."""
        if len(buffers) > _IOV_MAX or os.preadv(self._fd, buffers, offset) != length:
            self._transfer(os.preadv, buffers, offset, length)

    def write(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        """Store ``buffers``, ``length`` bytes in all, from ``offset`` on."""
        if len(buffers) > _IOV_MAX or os.pwritev(self._fd, buffers, offset) != length:
            self._transfer(os.pwritev, buffers, offset, length)

    def _transfer(
        self,
        call: Callable[[int, Sequence[memoryview], int], int],
        buffers: Sequence[memoryview],
        offset: int,
        length: int,
    ) -> None:
        """From the start again, with as many calls as it takes."""
        done = 0
        rest = buffers if len(buffers) <= _IOV_MAX else _rest(buffers, 0)
        while True:
            moved = call(self._fd, rest, offset + done)
            done += moved
            if done == length:
                return
            if not moved:
                raise OSError(errno.EIO, "the image has become shorter", self.path)
            rest = _rest(buffers, done)

    def flush(self) -> None:
        """Return when everything written so far is on stable storage."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """Give the space of a range back to the host where it can; the content is then zeros or
        what it was."""
        self._deallocate(offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeros; ``unmap`` allows the host to free its space."""
        if unmap and self._deallocate(offset, length):
            return
        if self._fallocate(host.FALLOC_FL_ZERO_RANGE, offset, length):
            return
        zeroes = memoryview(_ZEROES)
        for at in range(0, length, len(zeroes)):
            piece = min(len(zeroes), length - at)
            self.write([zeroes[:piece]], offset + at, piece)

    def _deallocate(self, offset: int, length: int) -> bool:
        return self._fallocate(host.FALLOC_FL_PUNCH_HOLE | host.FALLOC_FL_KEEP_SIZE, offset, length)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """Whether the host could do it."""
        try:
            host.fallocate(self._fd, mode, offset, length)
        except OSError as error:
            if error.errno not in _CANT_DEALLOCATE:
                raise
            return False
        return True


def _rest(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is left of ``buffers`` behind the first ``done`` bytes, as much as one call takes."""
    rest = []
    for buffer in buffers:
        if done >= len(buffer):
            done -= len(buffer)
            continue
        rest.append(buffer[done:])
        done = 0
        if len(rest) == _IOV_MAX:
            break
    return rest


def _open_error(path: str, error: OSError, readonly: bool) -> ImageError:
    if error.errno == errno.ENOENT:
        return ImageError(f"disk image {path} doesn't exist", f"make one: truncate -s 1G '{path}'")
    if error.errno == errno.EBUSY:
        return ImageError(
            f"block device {path} is in use by the host or another disk",
            "unmount it, or stop what uses it",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        if not readonly and os.access(path, os.R_OK):
            return _not_writable(path)
        return ImageError(f"disk image {path} is not readable", "check its permissions")
    return ImageError(f"can't open disk image {path}: {error.strerror}")


def _not_writable(path: str) -> ImageError:
    return ImageError(
        f"disk image {path} is not writable", "give readonly=on, or change its permissions"
    )


def _check_kind(path: str, status: os.stat_result, readonly: bool) -> None:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise ImageError(f"disk image {path} is a directory", "give a raw image file")
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ImageError(f"disk image {path} is neither a file nor a block device")
    # Root could write it nevertheless, but whoever took away the permission meant it.
    if not readonly and not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise _not_writable(path)


def _check_format(path: str, fd: int) -> None:
    """Refuse what is plainly in a format of its own: as raw data it would only puzzle the guest."""
    start = os.pread(fd, 4096, 0)
    for offset, magic, name in _OTHER_FORMATS:
        if start.startswith(magic, offset):
            raise ImageError(
                f"disk image {path} is a {name} image, not a raw one",
                f"convert it: qemu-img convert -O raw '{path}' '{path}.raw'",
            )


def _check_size(path: str, fd: int, size: int) -> None:
    if not size:
        raise ImageError(f"disk image {path} is empty", f"give it a size: truncate -s 1G '{path}'")
    if size % SECTOR_SIZE:
        start = os.pread(fd, 16, 0)
        for magic, name, tool in _COMPRESSED:
            if start.startswith(magic):
                raise ImageError(f"disk image {path} is compressed with {name}", f"{tool} it first")
        raise ImageError(
            f"disk image {path} has {size} bytes, which is not a multiple of {SECTOR_SIZE}",
            f"is it a raw image? If so, round it up: truncate -s %{SECTOR_SIZE} '{path}'",
        )


def _lock(path: str, fd: int, readonly: bool) -> None:
    kind = fcntl.F_RDLCK if readonly else fcntl.F_WRLCK
    operation = fcntl.LOCK_SH if readonly else fcntl.LOCK_EX
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except OSError as error:
        # Any other error means a file system without locks, where there is nothing to ask.
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise ImageError(
                f"disk image {path} is locked: it is in use by another process or disk",
                "stop the other one, or give all of them readonly=on",
            ) from error
