"""What a terminal shows of the bytes that it gets: as much of ECMA-48 as the BIOS uses."""

from __future__ import annotations

import re

_PIECE = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|(.)", re.DOTALL)


class Screen:
    """A terminal of ``rows`` by ``columns``, its cursor in row ``row`` at first. ``onlcr`` is what
    a terminal driver may do: every line feed brings a carriage return."""

    def __init__(
        self, rows: int = 25, columns: int = 80, *, row: int = 0, onlcr: bool = False
    ) -> None:
        self.rows, self.columns, self.onlcr = rows, columns, onlcr
        self.cells = [[" "] * columns for _ in range(rows)]
        self.row, self.column = row, 0

    def feed(self, data: bytes) -> None:
        for parameters, final, character in _PIECE.findall(data.decode()):
            if final:
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
            self.column = 0
            self._line_feed()
        self.cells[self.row][self.column] = character
        self.column += 1

    def _line_feed(self) -> None:
        if self.onlcr:
            self.column = 0
        if self.row == self.rows - 1:
            del self.cells[0]
            self.cells.append([" "] * self.columns)
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
            self.row = self.column = 0
        elif final == "K":
            self.cells[self.row][self.column :] = [" "] * (self.columns - self.column)
        elif final == "J":
            self.cells = [[" "] * self.columns for _ in range(self.rows)]
        elif final != "m":
            raise ValueError(f"CSI {final}")
