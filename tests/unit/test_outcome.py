"""The exit-status contract, and the sentence that goes with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.outcome import Outcome, Reason


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.POWER_OFF, 0),
        (Reason.REBOOT, 0),
        (Reason.EXPECTED, 0),
        (Reason.ERROR, 1),
        (Reason.PANIC, 3),
        (Reason.CRASH, 4),
        (Reason.MISSED, 5),
        (Reason.FAILED, 5),
        (Reason.TIMEOUT, 124),
        (Reason.INTERRUPTED, 130),
    ],
)
def test_statuses(reason: Reason, status: int) -> None:
    assert Outcome(reason).status == status


def test_a_signal_has_its_own_status() -> None:
    assert Outcome(Reason.INTERRUPTED, value=15).status == 143


def test_a_failed_assertion_shows_what_happened() -> None:
    outcome = Outcome(Reason.PANIC, '"no init"', seconds=2, report=("RIP …",) * 99)
    assert repr(outcome) == '<Outcome PANIC: guest panicked: "no init" after 2.00 s>'


@given(st.integers(0, (1 << 32) - 1))
def test_a_debug_exit_is_odd_and_never_0(value: int) -> None:
    status = Outcome(Reason.DEBUG_EXIT, value=value).status
    assert 0 < status <= 255
    assert status == (value << 1 | 1) & 0xFF


@pytest.mark.parametrize("reason", list(Reason))
def test_every_end_has_a_sentence(reason: Reason) -> None:
    sentence = Outcome(reason, seconds=2.314).sentence
    assert sentence.endswith(" after 2.31 s")
    assert "\n" not in sentence


@pytest.mark.parametrize(("reboots", "text"), [(1, "1 reboot"), (2, "2 reboots")])
def test_reboots_are_counted(reboots: int, text: str) -> None:
    outcome = Outcome(Reason.POWER_OFF, seconds=2, reboots=reboots)
    assert outcome.sentence == f"guest powered off after {text} and 2.00 s"


def test_the_detail_is_in_it() -> None:
    outcome = Outcome(Reason.PANIC, '"no init found"', seconds=2)
    assert outcome.sentence == 'guest panicked: "no init found" after 2.00 s'
