"""A run's result as a JUnit file, which CI systems show: ``--junit``.

There is no standard but what Jenkins, GitLab and GitHub's actions read (the schema of Jenkins's
xUnit plugin, junit-10.xsd, has all that is used here): a suite of one test case. What the guest did
wrong is a *failure*; that it couldn't be run, or was interrupted, is an *error*.

The text is a guest's, so what XML 1.0 doesn't allow (section 2.2, "Char") is replaced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from time import gmtime, strftime
from typing import Any

_NOT_ALLOWED = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
_IN_ATTRIBUTES = {**_ESCAPES, ord('"'): "&quot;", ord("\t"): "&#9;", ord("\n"): "&#10;"}

EXCERPT = 40
"""How many of the console's last lines explain a failure that has no report of ours: some viewers
show nothing else."""

ERRORS = frozenset(("error", "usage", "interrupted", "unfinished"))
"""The reasons that say nothing about the guest."""


def render(result: dict[str, Any]) -> str:
    """The file's content, from the document of :mod:`pyvmm.results`."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: dict[str, Any]) -> Iterator[str]:
    kind = None
    if result["status"] != 0:
        kind = "error" if result["reason"] in ERRORS else "failure"
    seconds = result["seconds"]["total"]
    counts = _attributes(
        tests="1",
        failures=str(int(kind == "failure")),
        errors=str(int(kind == "error")),
        time=f"{seconds:.3f}",
    )
    started = strftime("%Y-%m-%dT%H:%M:%S", gmtime(result["started"]))
    about = _attributes(timestamp=started, hostname=os.uname().nodename)
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield f'<testsuites name="pyvmm"{counts}>'
    yield f'<testsuite name="pyvmm"{counts} skipped="0"{about}>'
    yield "<properties>"
    for name, value in _properties(result):
        yield f"<property{_attributes(name=name, value=value)}/>"
    yield "</properties>"
    yield f'<testcase classname="pyvmm"{_attributes(name=result["name"], time=f"{seconds:.3f}")}>'
    if kind is not None:
        what = _attributes(type=result["reason"], message=result["sentence"])
        console = _console(result).splitlines()[-EXCERPT:]
        explanation = "\n".join((*(result["report"] or console), result["sentence"]))
        yield f"<{kind}{what}>{_escape(explanation)}</{kind}>"
    yield f"<system-out>{_escape(_console(result))}</system-out>"
    yield "</testcase>"
    yield "</testsuite>"
    yield "</testsuites>"


def _properties(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The plain values of the document, with dots in their names."""
    for group in ("machine", "host", "versions", "seconds"):
        for name, value in (result[group] or {}).items():
            if value not in (None, []):
                text = " ".join(value) if isinstance(value, list) else str(value)
                yield f"{group}.{name}", text
    yield "reason", result["reason"]
    if result["status"] is not None:
        yield "status", str(result["status"])


def _console(result: dict[str, Any]) -> str:
    consoles: dict[str, list[str]] = {
        name: lines for name, lines in (result["consoles"]).items() if lines
    }
    pieces = []
    for name, lines in consoles.items():
        if len(consoles) > 1:
            pieces.append(f"--- {name} ---")
        pieces += lines
    return "\n".join(pieces)


def _attributes(**values: str) -> str:
    return "".join(f' {name}="{_escape(text, _IN_ATTRIBUTES)}"' for name, text in values.items())


def _escape(text: str, escapes: dict[int, str] = _ESCAPES) -> str:
    allowed = _NOT_ALLOWED.sub("\ufffd", text)
    return allowed.translate(escapes)
