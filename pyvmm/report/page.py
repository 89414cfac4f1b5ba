"""Puts the page together and writes it: words and tables as HTML, and the charts' data as JSON,
which the scripts beside this file draw from.

Text that comes from a trace is escaped in the HTML, and the JSON has neither ``<`` nor ``&`` in it;
the scripts only ever make text nodes of it. Should that fail, the page's Content-Security-Policy
runs no script but the one whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
from contextlib import suppress
from importlib.resources import files

from pyvmm.errors import PyvmmError
from pyvmm.report import summary, tables
from pyvmm.report.chart_data import chart_data
from pyvmm.report.totals import Totals

SCRIPTS = ("scale.js", "charts.js", "console.js", "report.js")


def write_page(totals: Totals, output: str) -> int:
    """Write the page to the file ``output`` (``-``: stdout) and return its size."""
    page = make_page(totals).encode("utf-8")
    try:
        if output == "-":
            sys.stdout.buffer.write(page)
        else:
            _write_at_once(page, output)
    except OSError as error:
        raise PyvmmError(f"can't write {output}: {error.strerror}") from error
    return len(page)


def _write_at_once(page: bytes, output: str) -> None:
    """An old report stays whole until the new one is; what is no regular file is just written."""
    if os.path.exists(output) and not os.path.isfile(output):
        with open(output, "wb") as file:
            file.write(page)
        return
    target = os.path.realpath(output)
    part = f"{target}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            file.write(page)
        os.replace(part, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def make_page(totals: Totals) -> str:
    """The page as text."""
    style = _own_file("report.css")
    script = "\n".join(_own_file(name) for name in SCRIPTS)
    time_answer, exits_answer = summary.answers(totals)
    kernel = os.path.basename(totals.kernel) or "a run"
    parts = {
        "TITLE": tables.text(f"PyVMM report: {kernel}"),
        "STYLE": style,
        "STYLE_HASH": _hash(style),
        "SCRIPT": script,
        "SCRIPT_HASH": _hash(script),
        "KERNEL": tables.text(kernel),
        "FACTS": tables.facts(totals),
        "TIME_ANSWER": tables.text(time_answer),
        "EXITS_ANSWER": tables.text(exits_answer),
        "NOTES": tables.notes(totals),
        "TILES": tables.tiles(totals),
        "PHASES": tables.phases(totals),
        "SILENCES": tables.silences(totals),
        "REASONS": tables.reasons(totals),
        "DEVICES": tables.devices(totals) + tables.vcpus(totals),
        "REGISTERS": tables.registers(totals),
        "ADDRESSES": tables.addresses(totals),
        "INTERRUPTS": tables.interrupts(totals),
        "QUEUES": tables.queues(totals),
        "MEMORY": tables.memory(totals),
        "ABOUT": tables.about(totals),
        "DATA": _json(chart_data(totals)),
    }
    return re.sub(r"\{\{([A-Z_]+)\}\}", lambda match: parts[match[1]], _own_file("page.html"))


def _own_file(name: str) -> str:
    return files("pyvmm.report").joinpath(name).read_text("utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode()


def _json(data: object) -> str:
    """JSON that ends no script element, begins no comment, and is ASCII."""
    dumped = json.dumps(data, separators=(",", ":"))
    return dumped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
