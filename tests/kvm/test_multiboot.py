"""Guests that a Multiboot loader starts, and what they are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvm.command import run

NAMES = ("multiboot", "multiboot2", "multiboot_flat")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_guest_is_told(guests: Path, tmp_path: Path, name: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"first")
    two.write_bytes(b"second")
    modules = f"{one} with words,{two}"
    ended = run(guests / name, "--memory", "64M", "--initrd", modules, append="some words")
    ended.check()
    words = "some words" if name == "multiboot2" else f"{name} some words"
    assert ended.value("command line") == words
    assert ended.value("loader") == "PyVMM"
    assert int(ended.value("lower")) == 639
    assert int(ended.value("upper")) == 63 * 1024
    assert int(ended.value("ram"), 16) == 639 * 1024 + 63 * 1024 * 1024
    assert f"module: {one} with words: first" in ended.lines
    assert f"module: {two}: second" in ended.lines
