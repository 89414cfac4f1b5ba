"""The README's and the help's examples of ``pyvmm run`` are command lines that it takes; its
picture of the house has all rooms."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pyvmm.cli.run import run
from pyvmm.config import MachineConfig

README = Path(__file__).parents[2] / "README.md"


def examples() -> list[str]:
    """Command lines from code blocks, without prompts, and without the columns of prose behind."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", README.read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += (run.help or "").splitlines()
    found = [re.fullmatch(r"\s*(?:\$ )?\S*pyvmm (run .*?)(?:   .*)?", line) for line in lines]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("example", examples())
def test_an_example_is_understood(example: str) -> None:
    words = shlex.split(example.replace("run …", "run -k bzImage"))
    context = run.make_context("pyvmm run", words[1:])
    MachineConfig.parse(context.params)


def test_there_are_examples() -> None:
    assert len(examples()) >= 24
    assert any("--vsock" in example for example in examples())


def test_the_house_is_complete() -> None:
    """Each module and package is named, and nothing that is no more."""
    match = re.search(
        r"^## How it is built\n\n```\npyvmm/\n(.*?)^firmware/", README.read_text(), re.M | re.S
    )
    assert match is not None
    named = set(re.findall(r"(?<!<)\b\w+(?:\.py\b|/)", match[1]))
    package = README.parent / "pyvmm"
    there = {path.name for path in package.glob("[a-z]*.py") if not path.stem.endswith("_build")}
    there |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert named == there
