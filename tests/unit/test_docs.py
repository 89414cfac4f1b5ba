"""docs/: the reference is what the docstrings say, links lead somewhere, nothing is left unrun."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from fences import DOCS, PROJECT, blocks, pages

SHOWN = {"text", "console", "yaml", "json", "xml", "ini", "toml"}
"""Languages of blocks that only show something."""


def test_the_reference_is_up_to_date() -> None:
    check = subprocess.run(
        [sys.executable, DOCS / "reference.py", "--check"], stderr=subprocess.PIPE, text=True
    )
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize("page", [*pages(), PROJECT / "README.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_every_block_is_run_or_shown_on_purpose(page: Path) -> None:
    for block in blocks(page):
        assert block.is_run or block.file or block.language in SHOWN, block.place
