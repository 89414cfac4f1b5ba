"""The commands and snippets in docs/ that need a real kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from fences import blocks, pages, run_page
from linux.boot import Images


def with_linux() -> list[Path]:
    return [page for page in pages() if any(block.needs_linux for block in blocks(page))]


@pytest.mark.parametrize("page", with_linux(), ids=lambda page: page.stem)
def test_a_page(page: Path, images: Images, tmp_path: Path) -> None:
    """In its reader's directory there are bzImage and initrd.img."""
    (tmp_path / "bzImage").symlink_to(images.bzimage)
    (tmp_path / "initrd.img").symlink_to(images.initrd)
    assert run_page(page, tmp_path, linux=True)
