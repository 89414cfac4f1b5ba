"""docs/: the reference is what the docstrings say, links lead somewhere, nothing is left unrun."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from fences import DOCS, PROJECT, blocks, pages

import pyvmm

SHOWN = {"text", "console", "yaml", "json", "xml", "ini", "toml"}
"""Languages of blocks that only show something."""


def test_the_reference_is_up_to_date() -> None:
    check = subprocess.run(
        [sys.executable, DOCS / "reference.py", "--check"], stderr=subprocess.PIPE, text=True
    )
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize("kind", ["PioDevice", "MmioDevice", "PciDevice", "VirtioDevice"])
def test_the_reference_has_all_of_a_device(kind: str) -> None:
    """What it inherits, too."""
    devices = (DOCS / "api.md").read_text().partition("### Devices\n")[2].partition("### Errors")[0]
    for name in dir(getattr(pyvmm, kind)):
        if not name.startswith("_"):
            assert re.search(rf"^{name}\b|`{name}`", devices, re.M), name
    assert f"\n{kind}(" in devices


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    for page in pages():
        assert page.name == "README.md" or f"({page.name})" in index, page.name


@pytest.mark.parametrize("page", [page for page in pages() if "guests/" in page.read_text()])
def test_who_uses_our_guests_says_where_they_are(page: Path) -> None:
    assert page.name == "README.md" or "(README.md#before-you-begin)" in page.read_text()


@pytest.mark.parametrize("page", [*pages(), PROJECT / "README.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_every_block_is_run_or_shown_on_purpose(page: Path) -> None:
    for block in blocks(page):
        assert block.is_run or block.file or block.language in SHOWN, block.place
