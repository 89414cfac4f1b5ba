"""What the recipes make: where it lies, when it is still fresh, and never half of it.

An artefact is a file or a directory below ``build/``. Beside it, ``NAME.inputs`` holds a digest of
all that went into it; the recipe runs again when that digest changes, or when the artefact is gone.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
BUILD = PROJECT / "build"


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Let one process build at a time; the others wait and then find everything fresh."""
    BUILD.mkdir(exist_ok=True)
    with open(BUILD / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest(files: Iterable[Path], *words: str) -> str:
    """Digest the names, modes and contents of ``files`` (directories with all below), and
    ``words``."""
    total = hashlib.sha256(repr(words).encode())
    for path in sorted(files):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_symlink() or not file.is_file():
                continue
            total.update(f"\0{file.name}\0{file.stat().st_mode:o}\0".encode())
            total.update(file.read_bytes())
    return total.hexdigest()


def is_fresh(target: Path, inputs: str) -> bool:
    """Whether ``target`` is there and was made from what ``inputs`` is the digest of."""
    record = _record(target)
    return target.exists() and record.is_file() and record.read_text() == inputs


@contextlib.contextmanager
def making(target: Path, inputs: str) -> Iterator[Path]:
    """Give a path to make ``target`` at; it gets its name when the block has ended without
    error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield unfinished
        _record(target).unlink(missing_ok=True)
        _remove(target)
        unfinished.rename(target)
        _record(target).write_text(inputs)
    finally:
        _remove(unfinished)


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".inputs")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
