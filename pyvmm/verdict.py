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
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.console_watch import KEPT_LINES, ConsoleWatch
from pyvmm.errors import ConfigError
from pyvmm.eventloop import Clock
from pyvmm.outcome import Outcome, Reason

if TYPE_CHECKING:
    from pyvmm.record import Record

QUIET_NS = 250_000_000
"""A panic's first line, or another report's, doesn't end the run at once, so that the register dump
and stack trace behind it are printed, and what may follow from it: after an oops often a panic.
That is over when the consoles have been silent for so long; a panic's last line ends the run at
once."""

MOST_REPORT_NS = 3_000_000_000
"""How long that takes at most, if the guest goes on talking."""

MOST_AFTER_END_NS = 500_000_000
"""The same from a line on that ends a report."""

EXPECT, FAIL_ON, FAIL_ON_WARNINGS = "--expect", "--fail-on", "--fail-on-warnings"

MAX_QUOTE = 160
"""How much of a guest's line the last line quotes."""


class Expectations(NamedTuple):
    """What a run must and must not do.

    ``timeout`` is in seconds; ``expect`` and ``fail_on`` are searched in each line of the guest's
    consoles, and in a line that isn't finished yet (a prompt). With ``fail_on_warnings`` a line
    must not be the beginning of a kernel's report of a problem either (an oops, a warning, a
    lockdep or sanitizer report …): see :mod:`pyvmm.kernel_reports`. ``talkative`` says that the
    kernel prints something before it reboots, so that a reboot without a word is no good end.
    """

    timeout: float | None = None
    expect: re.Pattern[bytes] | None = None
    fail_on: tuple[re.Pattern[bytes], ...] = ()
    fail_on_warnings: bool = False
    talkative: bool = False


def is_talkative(command_line: str) -> bool:
    """Whether a kernel with this command line prints something before it reboots: it has a console,
    and reboots after a panic only."""
    words = command_line.split()
    return all(any(w.startswith(each) for w in words) for each in ("console=", "panic=-"))


class Match(NamedTuple):
    """What decided a run: the option that looked for it, its pattern (a regular expression, or the
    kind of the kernel's report), and the line."""

    option: str
    pattern: str
    line: str


SILENT_REBOOT = (
    "guest rebooted without printing anything, as a kernel does that panics before its console is"
    " up (--append earlyprintk=ttyS0 shows more),"
)
EARLY_CONSOLE_ADVICE = (
    "the guest printed nothing; with --append earlyprintk=ttyS0 Linux does from its first step on"
)

REASONS = {EXPECT: Reason.EXPECTED, FAIL_ON: Reason.FAILED, FAIL_ON_WARNINGS: Reason.WARNED}


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
        self._timer = clock.timer(self._report_due)
        self._report_deadline: int | None = None
        self._pieces = 0
        self.match: Match | None = None
        self.by_hand = False
        """The guest is moved by somebody who knows why it says nothing."""
        """What decided the run, if it was something on a console but no panic."""
        self.watches: list[ConsoleWatch] = []
        """One for each console, in the order of :meth:`watch`."""

    def watch(self, kept_lines: int = KEPT_LINES) -> ConsoleWatch:
        """For another console: feed it the guest's output. It keeps so many last lines."""
        wanted = self._expectations
        patterns = [p for p in (wanted.expect, *wanted.fail_on) if p is not None]
        watch = ConsoleWatch(
            patterns,
            self._match,
            self._panicked,
            lambda _: self.panic_over(),
            on_report=self._reported if wanted.fail_on_warnings else None,
            on_report_end=self._report_ended,
            kept_lines=kept_lines,
        )
        self.watches.append(watch)
        return watch

    def reader(self, name: str, record: Record | None) -> Callable[[bytes], None]:
        """What sees the output of the console ``name``: a watch, and ``record``, if there is
        one."""
        if record is None:
            return self.watch().feed
        from pyvmm.record import LAST_LINES

        return record.watch(name, self.watch(LAST_LINES))

    @property
    def silent(self) -> bool:
        """Whether no console has printed anything."""
        return not any(watch.tail() for watch in self.watches)

    def before_reset(self) -> None:
        """The guest is about to reboot. A panic is its end, even if it means to recover from it
        that way; and so is a report that it was only let run on to finish."""
        if self._panic is not None or self.decided:
            self.panic_over()

    @property
    def panic(self) -> str:
        """What the kernel said of its panic; empty if there was none, or it said nothing."""
        return self._panic or ""

    @property
    def decided(self) -> bool:
        """Whether the guest has only been let run on to finish its report."""
        return self._report_deadline is not None

    def pvpanic(self) -> None:
        """The guest has said by pvpanic that it panicked. As a rule its kernel has printed the
        message before, but a console that is slow, or in use by another CPU, has it later. From
        any thread."""
        self._panicked("")

    def _match(self, pattern: re.Pattern[bytes], line: str) -> None:
        expected = pattern is self._expectations.expect
        if self.match is None:
            option = EXPECT if expected else FAIL_ON
            self.match = Match(option, os.fsdecode(pattern.pattern), line)
        if not self.decided:
            self._end(Reason.EXPECTED if expected else Reason.FAILED, line)

    def _reported(self, kind: str, line: str) -> None:
        if self.match is None:
            self.match = Match(FAIL_ON_WARNINGS, kind, line)
            self._await_report(MOST_REPORT_NS)

    def _panicked(self, message: str) -> None:
        if self.match is None or self.match.option == FAIL_ON_WARNINGS:
            self._panic = self._panic or message
        self._await_report(MOST_REPORT_NS)

    def _report_ended(self) -> None:
        if self.decided:
            self._await_report(MOST_AFTER_END_NS)

    def _await_report(self, most_ns: int) -> None:
        """Let the guest finish its report; a shorter time than was given before counts."""
        now = self._clock.now_ns()
        deadline = now + most_ns
        if self._report_deadline is None or deadline < self._report_deadline:
            self._report_deadline = deadline
        self._pieces = self._total_pieces()
        self._timer.arm(min(now + QUIET_NS, self._report_deadline))

    def _report_due(self) -> None:
        now, pieces = self._clock.now_ns(), self._total_pieces()
        deadline = self._report_deadline
        if pieces != self._pieces and deadline is not None and now < deadline:
            self._pieces = pieces
            self._timer.arm(min(now + QUIET_NS, deadline))
        else:
            self.panic_over()

    def _total_pieces(self) -> int:
        return sum(watch.pieces for watch in self.watches)

    def panic_over(self) -> None:
        """The kernel has said all that it had to say, or it has no more time to."""
        self._end(Reason.WARNED if self._panic is None else Reason.PANIC, "")

    def on(self, outcome: Outcome) -> Outcome:
        """What the run came to: ``outcome``, which is the machine's, unless a console said
        something of more weight."""
        if self._panic is not None:
            detail = _quote(self._panic) if self._panic else ""
            return outcome._replace(reason=Reason.PANIC, detail=detail, report=(), vcpus=())
        if self.match is not None:
            reason, detail = REASONS[self.match.option], _quote(self.match.line)
            return outcome._replace(reason=reason, detail=detail, report=(), vcpus=())
        if outcome.reason is Reason.REBOOT and self._expectations.talkative and self.silent:
            return outcome._replace(reason=Reason.MISSED, detail=SILENT_REBOOT)
        ended_by_itself = outcome.reason in (Reason.POWER_OFF, Reason.REBOOT)
        expect = self._expectations.expect
        if ended_by_itself and expect is not None:
            detail = f"guest {outcome.reason.value} without {os.fsdecode(expect.pattern)!r}"
            return outcome._replace(reason=Reason.MISSED, detail=detail)
        if outcome.reason is Reason.TIMEOUT and not outcome.detail:
            outcome = outcome._replace(detail=self._standstill(outcome))
        gave_up = outcome.reason in (Reason.TIMEOUT, Reason.INTERRUPTED)
        if gave_up and self.silent and not self.by_hand:
            return _explain_silence(outcome, self._expectations.talkative)
        return outcome

    def _standstill(self, outcome: Outcome) -> str:
        """Where the guest hangs, in a few words: the vCPU that is at work, and the last line."""
        busy = [vcpu for vcpu in outcome.vcpus if vcpu["state"] == "running"]
        where = ""
        known = [vcpu for vcpu in outcome.vcpus if vcpu["registers"] is not None]
        for vcpu in (busy or known)[:1]:
            where = f"vCPU {vcpu['id']} {vcpu['state']} at {vcpu['registers']['rip']:#x}"
            if len(busy) > 1:
                where += f" and {len(busy) - 1} more running"
        lines = [
            line for watch in self.watches for line in watch.tail() if any(map(str.isalnum, line))
        ]
        said = f"last line {_quote(lines[-1])}" if lines else "nothing printed"
        return "".join(f"{words}, " for words in (where, said) if words).rstrip()


def _explain_silence(outcome: Outcome, talkative: bool) -> Outcome:
    """A stock kernel on software KVM doesn't always crash: it may stand still before its first
    word, and leave its user to wonder."""
    from pyvmm.crash import SOFTWARE_KVM_ADVICE
    from pyvmm.kvm.system import host_has_hardware_kvm

    if not host_has_hardware_kvm():
        outcome = outcome._replace(report=(*outcome.report, *SOFTWARE_KVM_ADVICE))
    elif talkative:
        outcome = outcome._replace(report=(*outcome.report, EARLY_CONSOLE_ADVICE))
    return outcome


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
