"""Gives the verdict on a run: what its consoles printed outranks how the machine ended.

A machine only knows how it ended, and that can be beside the point: a kernel that panics reboots
afterwards, and one that printed what somebody waits for may go on for ever. So a :class:`Verdict`
reads along with the consoles, ends the machine when a line decides the matter, and afterwards
says what the run came to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pyvmm.console_watch import ConsoleWatch
from pyvmm.errors import ConfigError
from pyvmm.eventloop import Clock
from pyvmm.outcome import Outcome, Reason

PANIC_GRACE_NS = 500_000_000
"""From a panic's first line to the end of the run, so that the register dump and stack trace that
follow it are printed; its last line ends the run at once."""

MAX_QUOTE = 160
"""How much of a guest's line the last line quotes."""


class Expectations(NamedTuple):
    """What a run must and must not do.

    ``timeout`` is in seconds; ``expect`` and ``fail_on`` are searched in each line of the guest's
    consoles, and in a line that isn't finished yet (a prompt).
    """

    timeout: float | None = None
    expect: re.Pattern[bytes] | None = None
    fail_on: tuple[re.Pattern[bytes], ...] = ()


class Verdict:
    """On one run. ``end(reason, detail)`` ends its machine; it is called on the thread that feeds
    a console, or the clock's."""

    def __init__(
        self, expectations: Expectations, clock: Clock, end: Callable[[Reason, str], None]
    ) -> None:
        self._expectations = expectations
        self._clock = clock
        self._end = end
        self._panic: str | None = None
        self._panic_timer = clock.timer(self.panic_over)
        self._matched: tuple[Reason, str] | None = None
        self.watches: list[ConsoleWatch] = []
        """One for each console, in the order of :meth:`watch`."""

    def watch(self) -> ConsoleWatch:
        """For another console: feed it the guest's output."""
        wanted = self._expectations
        patterns = [p for p in (wanted.expect, *wanted.fail_on) if p is not None]
        watch = ConsoleWatch(patterns, self._match, self._panicked, lambda _: self.panic_over())
        self.watches.append(watch)
        return watch

    @property
    def silent(self) -> bool:
        """Whether no console has printed anything."""
        return not any(watch.tail() for watch in self.watches)

    @property
    def panicked(self) -> bool:
        """Whether a console has printed a kernel's panic."""
        return self._panic is not None

    def _match(self, pattern: re.Pattern[bytes], line: str) -> None:
        expected = pattern is self._expectations.expect
        reason = Reason.EXPECTED if expected else Reason.FAILED
        if self._matched is None:
            self._matched = reason, line
        self._end(reason, line)

    def _panicked(self, message: str) -> None:
        if self._matched is None:
            self._panic = message
        self._panic_timer.arm(self._clock.now_ns() + PANIC_GRACE_NS)

    def panic_over(self) -> None:
        """The kernel has said all that it had to say, or it has no more time to."""
        self._end(Reason.PANIC, "")

    def on(self, outcome: Outcome) -> Outcome:
        """What the run came to: ``outcome``, which is the machine's, unless a console said
        something of more weight."""
        if self._panic is not None:
            detail = _quote(self._panic)
            return outcome._replace(reason=Reason.PANIC, detail=detail, report=())
        if self._matched is not None:
            reason, line = self._matched
            return outcome._replace(reason=reason, detail=_quote(line), report=())
        ended_by_itself = outcome.reason in (Reason.POWER_OFF, Reason.REBOOT)
        expect = self._expectations.expect
        if ended_by_itself and expect is not None:
            detail = f"guest {outcome.reason.value} without {os.fsdecode(expect.pattern)!r}"
            return outcome._replace(reason=Reason.MISSED, detail=detail)
        gave_up = outcome.reason in (Reason.TIMEOUT, Reason.INTERRUPTED)
        return _explain_silence(outcome) if gave_up and self.silent else outcome


def _explain_silence(outcome: Outcome) -> Outcome:
    """A stock kernel on software KVM doesn't always crash: it may stand still before its first
    word, and leave its user to wonder."""
    from pyvmm.crash import SOFTWARE_KVM_ADVICE
    from pyvmm.kvm.system import host_has_hardware_kvm

    if host_has_hardware_kvm():
        return outcome
    return outcome._replace(report=(*outcome.report, *SOFTWARE_KVM_ADVICE))


def _quote(line: str) -> str:
    """A line of the guest's as part of one of ours: without its padding, and not too long."""
    text = " ".join(line.split())
    return f'"{text if len(text) <= MAX_QUOTE else text[:MAX_QUOTE] + "…"}"'


def compile_patterns(option: str, texts: Sequence[str]) -> tuple[re.Pattern[bytes], ...]:
    """Regular expressions over the console's bytes. ConfigError names the option."""
    if "" in texts:  # a script's variable that isn't set
        raise ConfigError(f"{option}: the pattern is empty")
    try:
        return tuple(re.compile(os.fsencode(text)) for text in texts)
    except re.error as error:
        raise ConfigError(f"{option}: not a regular expression: {error}") from error
