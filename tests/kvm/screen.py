"""What a terminal shows of the bytes that it gets: as much of ECMA-48 as the BIOS uses, and of it
and of xterm's additions as the text screen's display does."""

from __future__ import annotations

import codecs
import re

_PIECE = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])|(.)", re.DOTALL)
_UNFINISHED = re.compile(r"\x1b(\[[?0-9;]*)?\Z")

Colours = tuple[int, int, bool]
"""Of the character and its background, by the number after which a terminal's sequence has them (31
is red, 91 is bright red); and whether it blinks."""
PLAIN: Colours = (39, 49, False)


class Screen:
    """A terminal of ``rows`` by ``columns``, its cursor in row ``row`` at first. ``onlcr`` is what
    a terminal driver may do: every line feed brings a carriage return. ``modes`` are those that
    are set of DEC's and xterm's."""

    def __init__(
        self, rows: int = 25, columns: int = 80, *, row: int = 0, onlcr: bool = False
    ) -> None:
        self.rows, self.columns, self.onlcr = rows, columns, onlcr
        self.cells = [[" "] * columns for _ in range(rows)]
        self.colours = [[PLAIN] * columns for _ in range(rows)]
        self.pen = PLAIN
        self.modes = {7, 25}
        self.row, self.column = row, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._rest = ""

    def feed(self, data: bytes) -> None:
        """Take output, in any pieces."""
        text = self._rest + self._decoder.decode(data)
        unfinished = _UNFINISHED.search(text)
        end = len(text) if unfinished is None else unfinished.start()
        self._rest = text[end:]
        for private, parameters, final, character in _PIECE.findall(text[:end]):
            if private:
                self._mode(final, int(parameters))
            elif final:
                self._control(final, [int(word) for word in parameters.split(";") if word])
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self._line_feed()
            elif character == "\b":
                self.column = max(min(self.column, self.columns - 1) - 1, 0)
            elif character >= " ":
                self._put(character)

    @property
    def lines(self) -> list[str]:
        return ["".join(line).rstrip() for line in self.cells]

    def _put(self, character: str) -> None:
        if self.column == self.columns:  # the last column was written: now it wraps
            if 7 not in self.modes:
                self.column -= 1
            else:
                self.column = 0
                self._line_feed()
        self.cells[self.row][self.column] = character
        self.colours[self.row][self.column] = self.pen
        self.column += 1

    def _line_feed(self) -> None:
        if self.onlcr:
            self.column = 0
        if self.row == self.rows - 1:
            del self.cells[0], self.colours[0]
            self.cells.append([" "] * self.columns)
            self.colours.append([self.pen] * self.columns)
        else:
            self.row += 1

    def _control(self, final: str, parameters: list[int]) -> None:
        first = parameters[0] if parameters else 1
        if final == "A":
            self.row = max(self.row - first, 0)
            self.column = min(self.column, self.columns - 1)
        elif final == "G":
            self.column = first - 1
        elif final == "H":
            row, column = parameters or (1, 1)
            if not (1 <= row <= self.rows and 1 <= column <= self.columns):
                raise ValueError(f"row {row}, column {column}")
            self.row, self.column = row - 1, column - 1
        elif final == "K":
            self.cells[self.row][self.column :] = [" "] * (self.columns - self.column)
        elif final == "J":
            self.cells = [[" "] * self.columns for _ in range(self.rows)]
            self.colours = [[self.pen] * self.columns for _ in range(self.rows)]
        elif final == "m":
            for parameter in parameters or [0]:
                self._paint(parameter)
        else:
            raise ValueError(f"CSI {final}")

    def _paint(self, parameter: int) -> None:
        character, background, blinks = self.pen
        if parameter == 0:
            self.pen = PLAIN
        elif parameter == 5:
            self.pen = character, background, True
        elif parameter // 10 in (3, 9):
            self.pen = parameter, background, blinks
        elif parameter // 10 in (4, 10):
            self.pen = character, parameter, blinks

    def _mode(self, final: str, number: int) -> None:
        if final == "h":
            self.modes.add(number)
        elif final == "l":
            self.modes.discard(number)
        else:
            raise ValueError(f"CSI ? {number} {final}")
