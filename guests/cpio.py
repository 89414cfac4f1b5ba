"""Write cpio archives in the "newc" format, of which Linux makes its first root file system.

The format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Only what an
initramfs needs: directories, files, symbolic links and character devices, all owned by root, dated
1970, so that the same input gives the same bytes.
"""

import stat
from pathlib import Path

TRAILER = "TRAILER!!!"


class Archive:
    """An archive in the making; ``bytes(archive)`` ends it."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0
        self._directories: set[Path] = set()

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file, and the directories that lead to it."""
        self._parents(path)
        self._entry(path, stat.S_IFREG | mode, content)

    def directory(self, path: str) -> None:
        """Add a directory, and those that lead to it."""
        self._parents(f"{path}/entry")

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link, and the directories that lead to it."""
        self._parents(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device's node, and the directories that lead to it."""
        self._parents(path)
        self._entry(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def tree(self, root: Path) -> None:
        """Add all files and symbolic links below a directory of the host's."""
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if path.is_symlink():
                self.symlink(name, str(path.readlink()))
            elif path.is_file():
                self.file(name, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))

    def __bytes__(self) -> bytes:
        return bytes(self._data + self._encode(TRAILER, 0, 0, b"", (0, 0)))

    def _parents(self, path: str) -> None:
        for parent in reversed(Path(path).parents[:-1]):
            if parent not in self._directories:
                self._directories.add(parent)
                self._entry(str(parent), stat.S_IFDIR | 0o755, b"")

    def _entry(
        self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        self._data += self._encode(path, self._inode, mode, content, device)

    @staticmethod
    def _encode(path: str, inode: int, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
        name = path.encode() + b"\0"
        uid = gid = mtime = device_major = device_minor = check = 0
        links = 1
        fields = (inode, mode, uid, gid, links, mtime, len(content), device_major, device_minor)
        header = "070701" + "".join(f"{f:08x}" for f in (*fields, *device, len(name), check))
        return _padded(header.encode() + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
