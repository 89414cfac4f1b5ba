"""Boot modules: files that a kernel finds in memory, each with a line of text (Multiboot, PVH).

They are given as ``--initrd "FILE [WORDS],FILE [WORDS]…"``, as QEMU has it, and ``,,`` is a comma
that parts nothing; a module's text is all of its part, with the file's name as the first word,
which is how boot loaders pass it, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import NamedTuple

from pyvmm import layout
from pyvmm.boot.image import ImageFile
from pyvmm.boot.memory_map import memory_option
from pyvmm.errors import ConfigError, ImageError
from pyvmm.memory import MIB, PAGE_SIZE, GuestMemory, align_up

MAX_MODULES = 64


class Module(NamedTuple):
    """A module in memory: ``size`` bytes from ``start`` on, which is on a page's beginning."""

    start: int
    size: int
    text: bytes

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.size


def load(
    given: str | os.PathLike[str] | None, memory: GuestMemory, occupied: Iterable[tuple[int, int]]
) -> list[Module]:
    """Read the modules into RAM below 4 GiB, one behind the other above all that is ``occupied``
    (start, end), and above 1 MiB: where kernels that map little memory find them."""
    if given is None:
        return []
    parts = os.fspath(given).replace(",,", "\0").split(",")
    texts = [text.replace("\0", ",").strip() for text in parts]
    if "" in texts:
        raise ConfigError(f"--initrd: a module has no name in {os.fspath(given)!r}")
    if len(texts) > MAX_MODULES:
        raise ConfigError(f"--initrd: {len(texts)} modules are more than {MAX_MODULES}")
    start = max(layout.HIGH_RAM, *(end for _, end in occupied))
    ram_end = memory.regions[0].end
    found = []
    with ExitStack() as files:
        for text in texts:
            image = files.enter_context(ImageFile(text.split(" ", 1)[0], "module"))
            start = align_up(start, PAGE_SIZE)
            if start + image.size > ram_end:
                raise ImageError(
                    f"module {image.name} ({image.size / MIB:.1f} MiB) does not fit behind the"
                    f" kernel in {ram_end // MIB} MiB",
                    memory_option(start + image.size),
                )
            image.read_into(memory.view(start, image.size), 0)
            found.append(Module(start, image.size, os.fsencode(text)))
            start = found[-1].end
    return found
