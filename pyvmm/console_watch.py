"""Reads along with a guest's console: the user's patterns, kernel panics and other reports of a
kernel's, the last lines.

A panic is recognised by the lines that Linux's panic() prints (kernel/panic.c)::

    [    1.234567][    T1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100
    [    1.345678][    T1] ---[ end Kernel panic - not syncing: Attempted to kill init! ... ]---

with or without the level, time and caller that printk puts before them. Only the beginning of a
line counts, so a program that talks about panics doesn't make one. Two more ends come so early in a
boot that they are printed with ``earlyprintk=`` only::

    PANIC: early exception 0x0d IP 10:ffffffff83a0c2b1 error 0 cr2 0x0      (arch/x86/mm/extable.c)
    Decoding failed

     -- System halted                                       (arch/x86/boot/compressed/error.c)

and one is the end of an initramfs, that of Debian and its relatives, which finds no root device and
is told by ``panic=`` not to offer a shell (initramfs-tools, scripts/functions, panic())::

    ALERT!  /dev/vdz does not exist.  Dropping to a shell!
    Rebooting automatically due to panic= boot argument

What is no panic is in :mod:`pyvmm.kernel_reports`. A kernel that stamps its lines with the time
stamps all, so once a console has shown such a line, only those count as reports.

The guest decides what comes here, so a line is cut at a bound, only the last lines are kept, and
what goes into reports has no escape sequences or other control characters in it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re

MAX_LINE = 4096
"""A longer line counts as several."""

KEPT_LINES = 50

_PANIC = b"Kernel panic - not syncing"
_END_OF_PANIC = b"---[ end " + _PANIC
_EARLY_PANIC = b"PANIC: early exception"
_HALTED = b" -- System halted"
_INITRAMFS_PANIC = b"Rebooting automatically due to panic= boot argument"

_ESCAPE = 0x1B
_BELL = 0x07
_CONTROL_CHARACTERS = bytes(byte for byte in range(0x20) if byte != ord("\t")) + b"\x7f"
_PREFIX_CHARACTERS = frozenset(b" 0123456789.TC")
"""What printk puts into brackets: seconds since boot, and the caller's thread or CPU."""


def _ignore(*arguments: object) -> None:
    pass


class ConsoleWatch:
    """Feed it a guest's output; it calls back.

    * ``on_match(pattern, line)``: the first match of each of ``patterns``, in a line or in what
      has come so far of one, such as a prompt. (So ``$`` can match where a line is not at its end
      but the guest paused.) Patterns see neither escape sequences nor control characters.
    * ``on_panic(message)``: once, with what the kernel says after "not syncing: ".
    * ``on_panic_end(message)``: once, when the kernel has printed its whole report and halts.
    * ``on_report(kind, line)``: the first line of each report that is no panic, without what
      printk puts before it; these are looked for only if it is given. ``on_report_end()``: the
      line that ends many of them.

    Callbacks run on the feeding thread. :meth:`tail` may be called from any.
    """

    pieces = 0
    """How many pieces of output there were: whether this changes tells whether the guest is
    silent."""

    def __init__(
        self,
        patterns: Sequence[re.Pattern[bytes]] = (),
        on_match: Callable[[re.Pattern[bytes], str], None] = _ignore,
        on_panic: Callable[[str], None] = _ignore,
        on_panic_end: Callable[[str], None] = _ignore,
        *,
        on_report: Callable[[str, str], None] | None = None,
        on_report_end: Callable[[], None] = _ignore,
        kept_lines: int = KEPT_LINES,
    ) -> None:
        self._unmatched = list(patterns)
        self._on_match = on_match
        self._on_panic = on_panic
        self._on_panic_end = on_panic_end
        self._on_report = on_report
        self._on_report_end = on_report_end
        self._stamps = False
        self._panicked = False
        self._panic_ended = False
        self._line = bytearray()
        self._cut = False
        self._last_lines: deque[bytes] = deque(maxlen=kept_lines)
        self._lock = threading.Lock()

    def feed(self, data: bytes) -> None:
        """Take the next piece of output, of any size."""
        self.pieces += 1
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._extend(end)
            self._finish_line(cut=False)
        self._extend(rest)
        if self._line.endswith(_HALTED):
            self._recognise_halt(self._line)
        if self._unmatched and self._line:
            self._match(bytes(self._line))

    def tail(self) -> list[str]:
        """The last lines, the unfinished one included."""
        with self._lock:
            lines = [*self._last_lines, bytes(self._line)]
        return [plain_text(line) for line in lines if line]

    def _extend(self, piece: bytes) -> None:
        while len(self._line) + len(piece) > MAX_LINE:
            room = MAX_LINE - len(self._line)
            with self._lock:
                self._line += piece[:room]
            self._finish_line(cut=True)
            piece = piece[room:]
        with self._lock:
            self._line += piece

    def _finish_line(self, *, cut: bool) -> None:
        line = bytes(self._line)
        if line.rstrip().endswith(_HALTED):
            self._recognise_halt(line)
        elif line.startswith(_INITRAMFS_PANIC) and not self._cut:
            self._tell_panic(self._last_words() or "the initramfs gave up", ended=False)
        with self._lock:
            self._last_lines.append(line)
            self._line.clear()
        if not self._cut:
            if _PANIC in line or _EARLY_PANIC in line:
                self._recognise_panic(line)
            if self._on_report is not None:
                self._recognise_report(line, self._on_report)
        self._cut = cut
        if self._unmatched:
            self._match(line)

    def _match(self, line: bytes) -> None:
        clean = _clean(line)
        for pattern in tuple(self._unmatched):
            if pattern.search(clean):
                self._unmatched.remove(pattern)
                self._on_match(pattern, _text(clean))

    def _recognise_panic(self, line: bytes) -> None:
        said, _ = _without_printk_prefix(_clean(line))
        if said.startswith(_EARLY_PANIC):
            message = said.removeprefix(b"PANIC: ")
        elif said.startswith(_PANIC):
            message = said[len(_PANIC) :]
        elif said.startswith(_END_OF_PANIC):
            message = said[len(_END_OF_PANIC) :].removesuffix(b"]---")
        else:
            return
        text = _text(message.removeprefix(b":").strip())
        # The first line can be lost or garbled by another CPU's; the last then stands for both.
        self._tell_panic(text, ended=said.startswith(_END_OF_PANIC))

    def _tell_panic(self, text: str, *, ended: bool) -> None:
        if not self._panicked:
            self._panicked = True
            self._on_panic(text)
        if ended and not self._panic_ended:
            self._panic_ended = True
            self._on_panic_end(text)

    def _recognise_halt(self, line: bytes | bytearray) -> None:
        """Of the decompressor, which says why in the line before, and is silent from then on."""
        stamped = any(_without_printk_prefix(_clean(each))[1] for each in self._last_lines)
        if _clean(line).strip() == _HALTED.strip() and not stamped:
            self._tell_panic(self._last_words() or "System halted", ended=True)

    def _last_words(self) -> str:
        """The last line that isn't empty, nor the kernel's with a time stamp."""
        for line in reversed(self._last_lines):
            said, stamped = _without_printk_prefix(_clean(line))
            if said.strip() and not stamped:
                return _text(said.strip())
        return ""

    def _recognise_report(self, line: bytes, on_report: Callable[[str, str], None]) -> None:
        from pyvmm.kernel_reports import END, recognise  # only with --fail-on-warnings

        said, stamped = _without_printk_prefix(_clean(line))
        self._stamps |= stamped
        if self._stamps and not stamped:
            return
        report = recognise(said, stamped=stamped)
        if report is not None:
            on_report(report.kind, _text(said))
        elif said.startswith(END):
            self._on_report_end()


def plain_text(line: bytes) -> str:
    """A console's line for a person: no escape sequences, no control characters."""
    return _text(_clean(line))


def _text(line: bytes) -> str:
    """For a report: nothing in it that a terminal would act on."""
    text = line.decode(errors="replace")
    return "".join(character for character in text if character.isprintable() or character == "\t")


def _clean(line: bytes | bytearray) -> bytes:
    """``line`` without escape sequences (ECMA-48, sections 5.3 to 5.6) and control characters."""
    if _ESCAPE in line:
        kept = bytearray()
        position = 0
        while (escape := line.find(_ESCAPE, position)) >= 0:
            kept += line[position:escape]
            position = _end_of_escape(line, escape)
        line = bytes(kept + line[position:])
    return bytes(line.translate(None, _CONTROL_CHARACTERS))


def _end_of_escape(line: bytes | bytearray, start: int) -> int:
    """Where the text goes on behind the escape sequence at ``start``, which may be unfinished."""
    position = start + 1
    if position == len(line):
        return position
    kind = line[position]
    if kind == ord("["):  # CSI: parameters and intermediates, then a final byte
        position += 1
        while position < len(line) and 0x20 <= line[position] <= 0x3F:
            position += 1
        return min(position + 1, len(line))
    if kind in b"]PX^_":  # OSC, DCS, SOS, PM, APC: a string up to BEL or ESC \
        position += 1
        while position < len(line):
            if line[position] == _BELL:
                return position + 1
            if line[position] == _ESCAPE:
                return position + 2 if line[position + 1 : position + 2] == b"\\" else position
            position += 1
        return position
    while position < len(line) and 0x20 <= line[position] <= 0x2F:
        position += 1
    return min(position + 1, len(line))


def _without_printk_prefix(line: bytes) -> tuple[bytes, bool]:
    """``line`` without level (``<0>``), time (``[    1.234567]``) and caller (``[    T1]``), and
    whether it had any of them."""
    line = line.lstrip()
    whole = len(line)
    if line.startswith(b"<"):
        level, separator, _ = line[1:5].partition(b">")
        if separator and level.isdigit():
            line = line[len(level) + 2 :]
    for _ in range(2):
        line = line.lstrip()
        inside, separator, rest = line.partition(b"]")
        if separator and inside[:1] == b"[" and _PREFIX_CHARACTERS.issuperset(inside[1:]):
            line = rest
    return line.lstrip(), len(line) < whole
