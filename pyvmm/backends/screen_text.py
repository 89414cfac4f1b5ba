"""The text screen as a log: a line of text for each line that comes to stand on it.

There is no stream of characters to be had, only the screen as it is when somebody looks. So a line
counts as printed when it hasn't changed for a moment, or when it is about to be gone because the
screen has scrolled. If more is added to the line with the cursor, as to a prompt, only that
follows; a line that changes otherwise is printed again. A line of the screen that is full goes on
in the next one, unless the two look like a drawing. What is on the screen for less time than
from one look to the next is missed.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.devices.text_screen import Picture

SETTLED_NS = 60_000_000
"""How long a line must be as it is."""


class _Row:
    """A line of the screen, and what was printed of it."""

    __slots__ = ("changed_ns", "said", "text")

    def __init__(self, text: str, changed_ns: int) -> None:
        self.text = text
        self.changed_ns = changed_ns
        self.said = ""


class Transcript:
    """Show it the screen from time to time; ``put`` gets the log, as UTF-8."""

    def __init__(self, put: Callable[[bytes], object]) -> None:
        self._put = put
        self.begun = False
        """Whether anything was printed."""
        self._picture: Picture | None = None
        self._rows: list[_Row] = []
        self._open: _Row | None = None  # printed without a newline so far
        self._above: _Row | None = None  # what went last at the upper end
        self._columns = 0
        self._cursor = (-1, 0)

    def look(self, picture: Picture, now_ns: int) -> None:
        """The screen is like this now."""
        out: list[str] = []
        self._take(out, picture, now_ns)
        previous = self._above
        for row in self._rows:
            if now_ns - row.changed_ns >= SETTLED_NS:
                self._say(out, row, previous)
            previous = row
        self._flush(out)

    def finish(self, picture: Picture, now_ns: int) -> None:
        """The screen is like this and stays so, or goes: print what hasn't been."""
        out: list[str] = []
        self._take(out, picture, now_ns)
        previous = self._above
        for row in self._rows:
            self._say(out, row, previous)
            previous = row
        self._end_line(out)
        self._flush(out)

    def restart(self) -> None:
        """What comes now has nothing to do with what was there, even if it looks the same."""
        out: list[str] = []
        self._end_line(out)
        self._flush(out)
        self._rows, self._picture, self._above = [], None, None

    def _flush(self, out: list[str]) -> None:
        if out:
            self.begun = True
            self._put("".join(out).encode())

    def _take(self, out: list[str], picture: Picture, now_ns: int) -> None:
        if picture == self._picture:
            return
        before, self._picture = self._picture, picture
        self._cursor = picture.cursor or (-1, 0)
        self._columns = picture.columns
        if before is None or before.cells != picture.cells or before.columns != picture.columns:
            self._follow(out, picture.lines, now_ns)
        going_on = self._row_with_cursor()
        if self._open not in (None, going_on) and not self._is_full(self._open):
            self._end_line(out)

    def _row_with_cursor(self) -> _Row | None:
        row = self._cursor[0]
        return self._rows[row] if 0 <= row < len(self._rows) else None

    def _follow(self, out: list[str], lines: list[str], now_ns: int) -> None:
        """Find each line among those of before."""
        old, shift = self._rows, self._scrolled_by(lines)
        kept: set[int] = set()
        rows = []
        for number, text in enumerate(lines):
            origin = self._origin(number, text, shift, kept)
            if origin is None:
                rows.append(_Row(text, now_ns))
                continue
            kept.add(origin)
            row = old[origin]
            if row.text != text:
                row.text, row.changed_ns = text, now_ns
            rows.append(row)
        previous = self._above
        for number, row in enumerate(old):
            if number not in kept:
                self._say(out, row, previous)
            previous = row
        if shift:
            self._above = old[shift - 1]
        self._rows = rows

    def _origin(self, number: int, text: str, shift: int, kept: set[int]) -> int | None:
        """Which line of before the ``number``-th is now; None if it is a new one."""
        old, moved = self._rows, number + shift
        if moved < len(old) and moved not in kept:
            before = old[moved].text
            if not shift or before == text or (before and text.startswith(before)):
                return moved
        stayed = number < len(old) and number not in kept and bool(text)
        return number if stayed and old[number].text == text else None

    def _scrolled_by(self, lines: list[str]) -> int:
        """By how many lines the screen went up: what makes most lines the same. If nothing of a
        full one is left, by all."""
        old = [row.text for row in self._rows]
        best, most = 0, 0
        for shift in range(len(old)):
            score = 0
            for text, before in zip(lines, old[shift:], strict=False):
                if before and text.startswith(before):
                    score += 2 if text == before else 1
            if score > most:
                best, most = shift, score
        return best if most or not any(old) else len(old)

    def _is_full(self, row: _Row | None) -> bool:
        """Whether its text goes on in the next row: not that of a drawing, such as a frame."""
        return row is not None and len(row.text) == self._columns and row.text[-1].isascii()

    def _say(self, out: list[str], row: _Row, previous: _Row | None) -> None:
        """Print what of ``row``, which is below ``previous``, hasn't been."""
        if row.text == row.said.rstrip():
            return
        at_cursor = row is self._row_with_cursor()
        text = row.text
        if at_cursor and text:
            text = text.ljust(self._cursor[1])  # the blank behind a prompt
        if self._open is row and text.startswith(row.said):
            out.append(text[len(row.said) :])
        elif (
            self._open is not None
            and self._open is previous
            and not row.said
            and self._is_full(previous)
            and text[0].isascii()
            and text[0] != " "
        ):
            out.append(text)
        else:
            self._end_line(out)
            out.append(text)
        row.said = text
        if text:
            self._open = row
            if not (at_cursor or self._is_full(row)):
                self._end_line(out)

    def _end_line(self, out: list[str]) -> None:
        if self._open is not None:
            self._open = None
            out.append("\n")
