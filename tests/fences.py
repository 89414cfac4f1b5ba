"""The code blocks of a page of docs/, run as its reader would, in order and in one directory.

What stands behind the three backticks says what is done with a block:

    python, sh                  it is run (sh by bash -e); it has to end with status 0
    python file=sensor.py       it is written to that file; any language
    python linux, sh linux      it needs a kernel: the Linux tier runs it
    text, console and others    it shows something
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parent.parent
DOCS = PROJECT / "docs"

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.M | re.S)

TIMEOUT = 300
"""Seconds that a block may take; most take one."""


class Block(NamedTuple):
    """A code block: where it begins, its language, the words behind that, and its text."""

    place: str
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def file(self) -> str:
        """What it is to be saved as, if it is."""
        return next((w.removeprefix("file=") for w in self.words if w.startswith("file=")), "")

    @property
    def is_run(self) -> bool:
        return self.language in ("python", "sh") and not self.file

    @property
    def needs_linux(self) -> bool:
        return "linux" in self.words


def pages() -> list[Path]:
    """All pages of docs/."""
    return sorted(DOCS.glob("*.md"))


def blocks(page: Path) -> Iterator[Block]:
    """The code blocks of ``page``."""
    content = page.read_text()
    for match in FENCE.finditer(content):
        language, *words = match["info"].split() or [""]
        line = content[: match.start()].count("\n") + 1
        yield Block(f"{page.name}:{line}", language, tuple(words), match["text"])


def run_page(page: Path, directory: Path, *, linux: bool) -> int:
    """Write the files of ``page`` to ``directory`` and run its blocks there, those for the Linux
    tier or the others; how many that were."""
    count = 0
    for block in blocks(page):
        if block.file:
            path = directory / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.is_run and block.needs_linux == linux:
            run_block(block, directory)
            count += 1
    return count


def run_block(block: Block, directory: Path) -> None:
    """Run one, and show what it printed if it failed."""
    command = {
        "python": [sys.executable, "-c", block.text],
        "sh": ["bash", "-e", "-o", "pipefail", "-c", block.text],
    }[block.language]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    ended = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PATH": path, "PYTHONPATH": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT,
    )
    said = ended.stdout.decode(errors="replace")
    assert ended.returncode == 0, f"{block.place} ended with status {ended.returncode}:\n{said}"
