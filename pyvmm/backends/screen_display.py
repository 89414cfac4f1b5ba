"""The text screen on a terminal: what has changed, as control sequences.

ECMA-48 (cursor position, colours, blinking) and what xterm and its relatives add to it: the
alternate screen, a hidden cursor, bright colours. Text is UTF-8.
"""

from __future__ import annotations

from pyvmm.devices.text_screen import GLYPHS, Picture

ENTER = b"\x1b[?1049h\x1b[?7l\x1b[0m\x1b[2J"
"""The terminal's other screen, without automatic line breaks, empty."""

LEAVE = b"\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
"""And back."""

_CLEAR = "\x1b[0m\x1b[2J"
_COLOURS = "04261537"
"""The terminal's colours, which count red as 1 and blue as 4, by the adapter's."""
_BRIGHT = 0x08
_BLINK = 0x80
_REVERSE = 0x70

_WIDE_HERE_AND_THERE = 0x20
"""Characters below are pictures, which some terminals show in two columns."""


class Display:
    """A terminal of ``columns`` by ``rows``, whose other screen we have. It shows as much of the
    picture as fits: the upper left corner, but always the line with the cursor."""

    def __init__(self, columns: int, rows: int) -> None:
        self.resize(columns, rows)
        self._notice: list[bytes] = []

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has a new size."""
        self._columns, self._rows = max(columns, 1), max(rows, 1)
        self.forget()

    def forget(self) -> None:
        """Somebody else has written to the terminal: draw everything anew."""
        self._shape: tuple[int, int, bool] | None = None
        self._shown: list[bytes] = []
        self._attribute: int | None = None
        self._position: tuple[int, int] | None = None
        self._cursor: tuple[int, int] | None = None
        self._cursor_known = False

    def notice(self, lines: list[str]) -> None:
        """Show these lines, plain ASCII, on top of the picture; none: the picture again."""
        self._notice = [line.encode("ascii", "replace") for line in lines]

    @property
    def has_notice(self) -> bool:
        return bool(self._notice)

    def frame(self, picture: Picture) -> bytes:
        """What makes the terminal show ``picture``; empty if it does."""
        out: list[str] = []
        shape = picture.columns, picture.rows, picture.blinks
        columns = min(picture.columns, self._columns)
        rows = min(picture.rows, self._rows)
        if shape != self._shape:
            out.append(_CLEAR)
            self._attribute = None
            self._shape, self._shown = shape, [b""] * rows
        first = 0
        if picture.cursor is not None:
            first = max(0, picture.cursor[0] - rows + 1)
        for row in range(rows):
            start = 2 * (first + row) * picture.columns
            cells = picture.cells[start : start + 2 * columns]
            if row < len(self._notice):
                text = self._notice[row][:columns].ljust(columns)
                cells = b"".join(bytes((code, _REVERSE)) for code in text)
            if cells != self._shown[row]:
                self._draw(out, row, cells, picture.blinks)
                self._shown[row] = cells
        self._place_cursor(out, picture.cursor, first, columns)
        return "".join(out).encode()

    def _draw(self, out: list[str], row: int, cells: bytes, blinks: bool) -> None:
        shown = self._shown[row]
        for column in range(len(cells) // 2):
            cell = cells[2 * column : 2 * column + 2]
            if cell == shown[2 * column : 2 * column + 2]:
                continue
            self._move(out, row, column)
            if cell[1] != self._attribute:
                out.append(_colours(cell[1], blinks))
                self._attribute = cell[1]
            out.append(GLYPHS[cell[0]])
            at_the_end = column + 1 >= self._columns
            known = cell[0] >= _WIDE_HERE_AND_THERE or cell[0] == 0
            self._position = (row, column + 1) if known and not at_the_end else None

    def _move(self, out: list[str], row: int, column: int) -> None:
        if self._position != (row, column):
            out.append(f"\x1b[{row + 1};{column + 1}H")
            self._position = row, column

    def _place_cursor(
        self, out: list[str], cursor: tuple[int, int] | None, first: int, columns: int
    ) -> None:
        if cursor is not None:
            cursor = (cursor[0] - first, cursor[1]) if cursor[1] < columns else None
        if cursor is not None:
            self._move(out, *cursor)
        if not self._cursor_known or (cursor is None) != (self._cursor is None):
            out.append("\x1b[?25l" if cursor is None else "\x1b[?25h")
            self._cursor_known = True
        self._cursor = cursor


def _colours(attribute: int, blinks: bool) -> str:
    """The sequence for the colours of an attribute."""
    words = ["0"]
    if blinks and attribute & _BLINK:
        words.append("5")
    words.append(("9" if attribute & _BRIGHT else "3") + _COLOURS[attribute & 7])
    bright = attribute & _BLINK and not blinks
    words.append(("10" if bright else "4") + _COLOURS[attribute >> 4 & 7])
    return f"\x1b[{';'.join(words)}m"
