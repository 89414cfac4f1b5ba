"""Rows of measurements, and the table that they become.

Every VMM is measured once a round, one after the other, so what else the host does meets all of
them alike. A ratio is therefore formed within each round; the table shows the median of these, and
how far they spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

PYVMM = "pyvmm"
"""The one that all others are compared with."""

MORE, LESS = "more", "less"


class Row(NamedTuple):
    """One thing that was measured: a value a round for each VMM. ``better`` is MORE or LESS."""

    name: str
    unit: str
    better: str
    samples: dict[str, list[float]]


class Ratio(NamedTuple):
    """PyVMM's value over another's, round by round."""

    median: float
    least: float
    greatest: float


def ratio(row: Row, other: str) -> Ratio | None:
    """How PyVMM compares with ``other``; None if one of them wasn't measured."""
    ours, theirs = row.samples.get(PYVMM, []), row.samples.get(other, [])
    ratios = [mine / its for mine, its in zip(ours, theirs, strict=False) if its]
    if not ratios:
        return None
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def number(value: float) -> str:
    """Three digits that count, and no more."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def columns(rows: Iterable[Row]) -> list[str]:
    """The others, in the order of their first appearance."""
    names = dict.fromkeys(name for row in rows for name in row.samples)
    return [name for name in names if name != PYVMM]


def cells(row: Row, others: Sequence[str]) -> list[str]:
    """A line of the table, as texts."""
    line = [row.name, number(statistics.median(row.samples[PYVMM])), row.unit]
    for other in others:
        found = ratio(row, other)
        line.append(
            f"{found.median:.2f} ({found.least:.2f}–{found.greatest:.2f})" if found else "–"
        )
    return [*line, row.better]


def render(rows: Sequence[Row]) -> str:
    """The table, in Markdown that can be read as it is."""
    measured = [row for row in rows if row.samples.get(PYVMM)]
    others = columns(measured)
    head = ["what", PYVMM, "", *(f"÷ {name}" for name in others), "better"]
    lines = [head, *(cells(row, others) for row in measured)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"

    def text(line: list[str]) -> str:
        return "| " + " | ".join(map(str.ljust, line, widths)) + " |"

    return "\n".join([text(head), rule, *map(text, lines[1:])])


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with every sample, as plain values."""
    return [row._asdict() for row in rows]


def from_json(rows: Sequence[dict[str, Any]]) -> list[Row]:
    """What :func:`to_json` returned."""
    return [Row(**row) for row in rows]


def transpose(rounds: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """A list a name, from a value a name in each round."""
    return {name: [each[name] for each in rounds] for name in rounds[0]} if rounds else {}
