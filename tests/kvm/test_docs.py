"""Every command and snippet in docs/ works; those that need Linux are the Linux tier's."""

from __future__ import annotations

from pathlib import Path

import pytest
from fences import blocks, pages, run_page


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_a_page(page: Path, guests: Path, lessons: Path, tmp_path: Path) -> None:
    (tmp_path / "guests").symlink_to(guests)
    (tmp_path / "lessons").symlink_to(lessons)
    assert run_page(page, tmp_path, linux=False) or any(b.needs_linux for b in blocks(page))
