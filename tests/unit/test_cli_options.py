"""``pyvmm run``'s words are read by us if they are right, and by click if not: both must agree."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.cli.options import OPTIONS, read
from pyvmm.cli.run import run

NAMES = [name for option in OPTIONS for name in option.names]
VALUES = st.sampled_from(
    ["", "a", "-", "--", "-k", "--rng", "=", "a=b", "a,b=on", "2", "-1", "+1", "x y", "64", "pci"]
)
WORDS = st.one_of(
    st.sampled_from(NAMES),
    VALUES,
    st.builds("{}={}".format, st.sampled_from(NAMES), VALUES),
    st.builds("{}{}".format, st.sampled_from(NAMES), VALUES),
    st.sampled_from(["--help", "-h", "--kern", "--debug-exit", "--step", "--boot", "é", "\udcff"]),
)


def clicks(words: list[str]) -> dict[str, object] | None:
    """What click makes of them; None if it complains or has something else to do."""
    try:
        context = run.make_context("run", list(words), help_option_names=["-h", "--help"])
    except (click.ClickException, click.exceptions.Exit):
        return None
    return context.params


@given(st.lists(WORDS, max_size=8))
def test_what_we_read_click_reads_too(words: list[str]) -> None:
    ours = read(words)
    assert ours is None or ours == clicks(words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--kernel", "bzImage", "--disk", "a.raw", "--disk=b.raw,readonly=on", "-m1G", "-c", "2"],
        ["-k", "bzImage", "-a", "-x", "-a", "", "--debug-exit", "--boot", "pvh", "--memory="],
        ["--rng", "--balloon", "size=64M", "-k", "bzImage"],
        ["-k", "a", "-k", "b", "--balloon", "-", "--rng"],
        *([option.names[0], "64"] for option in OPTIONS if not option.flag and not option.choices),
        *([option.names[-1], option.choices[0]] for option in OPTIONS if option.choices),
        *([option.names[0]] for option in OPTIONS if option.flag or option.bare is not None),
    ],
)
def test_a_right_command_line_needs_no_click(words: list[str]) -> None:
    assert read(words) == clicks(words) is not None


@pytest.mark.parametrize(
    "words",
    [
        ["bzImage"],
        ["--kernel"],
        ["--kern", "bzImage"],
        ["-c", "two"],
        ["--boot", "48"],
        ["--step=1"],
        ["--help"],
        ["-h"],
        ["--", "-k"],
    ],
)
def test_every_other_one_is_clicks(words: list[str]) -> None:
    assert read(words) is None
