"""The files that a guest boots from: opened, measured, read straight into guest memory.

Whatever is wrong with a file becomes one :class:`~pyvmm.errors.ImageError` that names it. The
parsers of image formats read through the :class:`Image` interface, which a kernel that was
unpacked in memory (:mod:`pyvmm.boot.payload`) has too.
"""

from __future__ import annotations

import os
import stat
from types import TracebackType

from pyvmm.errors import ImageError

_FILE_TYPES = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)


class Image:
    """The interface: bytes with a name."""

    name: str
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on, at most ``length`` and none beyond ``size``."""
        raise NotImplementedError

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` with the bytes from ``offset`` on; an error if there are too few."""
        raise NotImplementedError


class ImageFile(Image):
    """A regular file, open for reading. ``role`` is what it should be ("kernel", "initrd")."""

    def __init__(self, path: str | os.PathLike[str], role: str = "kernel") -> None:
        self.name = os.fsdecode(path)
        self.role = role
        try:
            # Before it is opened, which a device may take for a command; and again afterwards.
            # Without O_NONBLOCK, opening a pipe would wait for a writer.
            self._require_file(os.stat(path))
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise ImageError(f"{role} {self.name} does not exist") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ImageError(f"can't open {role} {self.name}: {reason}") from None
        try:
            status = os.fstat(self._fd)
            self._require_file(status)
            if not status.st_size:
                raise ImageError(f"{role} {self.name} is empty")
        except ImageError:
            self.close()
            raise
        self.size = status.st_size

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        try:
            return os.pread(self._fd, length, offset) if length else b""
        except OSError as error:
            raise self._unreadable(error) from error

    def read_into(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise self._unreadable(error) from error
            if not count:
                raise ImageError(
                    f"{self.role} {self.name} is truncated: "
                    f"{offset + done} of {offset + len(view)} bytes"
                )
            done += count

    def _require_file(self, status: os.stat_result) -> None:
        for is_type, noun in _FILE_TYPES:
            if is_type(status.st_mode):
                hint = "--disk takes it" if is_type is stat.S_ISBLK else ""
                raise ImageError(f"{self.name} is {noun}; the {self.role} must be a file", hint)

    def _unreadable(self, error: OSError) -> ImageError:
        return ImageError(f"can't read {self.role} {self.name}: {error.strerror}")


class ImageBytes(Image):
    """An image in memory, such as the vmlinux unpacked from a bzImage."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def read_into(self, view: memoryview, offset: int) -> None:
        piece = self.data[offset : offset + len(view)]
        if len(piece) < len(view):
            raise ImageError(f"{self.name} is truncated: {self.size} of {offset + len(view)} bytes")
        view[:] = piece
