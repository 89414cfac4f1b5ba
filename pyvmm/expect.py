"""A guest's console as a program uses it: wait for text, type, run a shell's command.

The text is what a reader would see, more or less: UTF-8 with what isn't replaced, lines that end
in a newline alone, and neither escape sequences (ECMA-48) nor other control characters but tabs.
What no ``expect`` has passed yet is kept, the last :data:`KEPT` characters of it, and the last
:data:`KEPT` of all.
"""

from __future__ import annotations

import codecs
import os
import re
import shlex
import threading
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from pyvmm.outcome import Outcome

KEPT = 1 << 20

TAIL_LINES = 12
"""How many of the guest's last lines an error shows."""

SEARCH_SECONDS = 0.01
"""How often a text that grows is searched, at most: a kernel prints hundreds of pieces a second."""

MAX_COMMAND = 3000
"""A terminal in Linux takes 4095 characters in a line (N_TTY_BUF_SIZE), quoting included."""

_STRING = r"[\]PX^_][^\x00-\x1f]{0,256}"  # OSC, DCS, SOS, PM, APC
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]{0,256}[ -/]{0,16}[@-~]"  # CSI: parameters, intermediates, a final byte
    rf"|{_STRING}(?:\x07|\x1b\\)"
    r"|[ -/]{0,16}[0-OQ-WYZ`-~])"  # others, with intermediates
)
_UNFINISHED = re.compile(rf"\x1b(?:\[[0-?]{{0,256}}[ -/]{{0,16}}|{_STRING}\x1b?|[ -/]{{0,16}})\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class ExpectError(Exception):
    """The guest didn't print what was expected, in time or before its end.

    ``lines`` are its last ones; ``outcome`` is how it ended, None if it hasn't.
    """

    def __init__(self, problem: str, lines: list[str], outcome: Outcome | None) -> None:
        ended = f": {outcome.sentence}" if outcome is not None else ""
        shown = "".join(f"\n  | {line}" for line in lines) or " nothing"
        super().__init__(f"{problem}{ended}; the console's last lines:{shown}")
        self.lines = lines
        self.outcome = outcome


class CommandError(Exception):
    """A command that had to succeed ended with another status; ``result`` has it."""

    def __init__(self, command: str, result: CommandResult) -> None:
        super().__init__(f"{command!r} ended with status {result.status}:\n{result.output}")
        self.result = result


class CommandResult(NamedTuple):
    """What a command printed, without the newlines at the end, and its exit status."""

    output: str
    status: int


class Console:
    """A machine's console, ``vm.console``.

    Any thread may call; those that expect something at the same time share what comes.
    """

    def __init__(
        self, send_bytes: Callable[[bytes, float], int], outcome: Callable[[], Outcome | None]
    ) -> None:
        """``send_bytes(data, deadline)`` gives input to the guest and returns how much it took
        until then; ``outcome`` tells how the guest ended, or None."""
        self._send_bytes = send_bytes
        self._outcome = outcome
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._raw = ""  # the beginning of an escape sequence
        self._changed = threading.Condition()
        self._new: list[str] = []
        self._text = ""  # all that is kept
        self._passed = 0  # how much of it an expect has passed
        self._ended = False

    def feed(self, data: bytes) -> None:
        """For the machine: the guest has written ``data``."""
        text = self._readable(self._decoder.decode(data))
        if text:
            with self._changed:
                self._new.append(text)
                self._changed.notify_all()

    def end(self) -> None:
        """For the machine: the guest will write no more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        """All that the guest has printed so far (the last :data:`KEPT` characters)."""
        with self._changed:
            self._take()
            return self._text

    def expect(self, pattern: str | re.Pattern[str], timeout: float = 60.0) -> re.Match[str]:
        """Wait until the guest prints what ``pattern`` matches, behind the match before;
        ``^`` and ``$`` match at lines if it is a text.

        Raises :class:`ExpectError` after ``timeout`` seconds, or as soon as the guest has ended.
        """
        __tracebackhide__ = True  # in pytest's report: the caller's line is what matters
        compiled = re.compile(pattern, re.MULTILINE) if isinstance(pattern, str) else pattern
        _, found = self._wait_for(compiled, monotonic() + timeout)
        if found is None:
            raise self._disappointed(f"expected {compiled.pattern!r}", timeout)
        return found

    def send(self, text: str | bytes, timeout: float = 60.0) -> None:
        """Type ``text``; a newline is the Enter key.

        Raises :class:`ExpectError` if the guest doesn't take all of it in ``timeout`` seconds, or
        has ended.
        """
        __tracebackhide__ = True
        data = text.encode() if isinstance(text, str) else text
        taken = self._send_bytes(data, monotonic() + timeout)
        if taken < len(data):
            problem = f"the guest read {taken} of {len(data)} bytes that were sent"
            raise ExpectError(problem, self.tail(TAIL_LINES), self._outcome())

    def run(self, command: str, timeout: float = 60.0, *, check: bool = False) -> CommandResult:
        """Have the shell that waits at its prompt run ``command``, and wait for its end. With
        ``check`` a status other than 0 raises :class:`CommandError`.

        What else is printed at that time, such as the kernel's messages, counts as its output.
        Raises ValueError if the command can't be typed at a terminal, and :class:`ExpectError` if
        it doesn't end in ``timeout`` seconds.
        """
        __tracebackhide__ = True
        quoted = shlex.quote(command)
        if len(quoted) > MAX_COMMAND or _CONTROL.search(command) or "\t" in command:
            raise ValueError(
                f"a terminal can't take this command: at most {MAX_COMMAND} characters, and no"
                " control characters or tabs"
            )
        # The terminal's echo has the quotes between the two halves of a mark, the output hasn't.
        mark = os.urandom(4).hex()
        self.send(f"echo pyvmm-''begin-{mark}; eval {quoted}; echo pyvmm-''end-{mark}-$?\n")
        deadline = monotonic() + timeout
        _, begin = self._wait_for(re.compile(rf"pyvmm-begin-{mark}\n"), deadline)
        output, end = self._wait_for(re.compile(rf"pyvmm-end-{mark}-(\d+)\n"), deadline)
        if begin is None or end is None:
            raise self._disappointed(f"{command!r} did not end", timeout)
        result = CommandResult(output.rstrip("\n"), int(end[1]))
        if check and result.status:
            raise CommandError(command, result)
        return result

    def tail(self, lines: int) -> list[str]:
        """The last lines that aren't empty."""
        return [line for line in self.output.split("\n") if line.strip()][-lines:]

    def _wait_for(
        self, pattern: re.Pattern[str], deadline: float
    ) -> tuple[str, re.Match[str] | None]:
        """The next match, and what came before it; None if there is none by the deadline, or none
        to come."""
        with self._changed:
            while True:
                ended = self._ended  # first: what the guest printed last has come then
                self._take()
                found = pattern.search(self._text, self._passed)
                if found is not None:
                    before = self._text[self._passed : found.start()]
                    self._passed = found.end()
                    return before, found
                remaining = deadline - monotonic()
                if ended or remaining <= 0:
                    return "", None
                if self._changed.wait(remaining):
                    self._changed.wait_for(lambda: self._ended, min(SEARCH_SECONDS, remaining))

    def _disappointed(self, problem: str, timeout: float) -> ExpectError:
        outcome = self._outcome()
        within = f" within {timeout:g} s" if outcome is None else ""
        return ExpectError(problem + within, self.tail(TAIL_LINES), outcome)

    def _take(self) -> None:
        """Add what is new to the text, and drop what is too much."""
        if not self._new:
            return
        self._text += "".join(self._new)
        self._new.clear()
        excess = len(self._text) - KEPT
        if excess > 0:
            self._text = self._text[excess:]
            self._passed = max(0, self._passed - excess)

    def _readable(self, text: str) -> str:
        """``text`` without what a reader doesn't see; what may be the beginning of such stays for
        the next time."""
        text = self._raw + text
        unfinished = _UNFINISHED.search(text)
        end = len(text) if unfinished is None else unfinished.start()
        self._raw = text[end:]
        return _CONTROL.sub("", _ESCAPE.sub("", text[:end]))
