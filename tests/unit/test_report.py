"""The report: what it adds up, what it says, and that nothing in a trace becomes markup."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit import traces
from unit.traces import MS, US

from pyvmm.errors import ConfigError, HostError, PyvmmError
from pyvmm.report import queues, read_totals, summary, timebins, totals, write_report
from pyvmm.report.chart_data import chart_data
from pyvmm.report.of_run import RunReport
from pyvmm.report.page import make_page
from pyvmm.report.timebins import BINS, TimeBins
from pyvmm.report.totals import LAST_LINES, Totals, printable
from pyvmm.report.trace_file import MAX_LINE, TraceFile

Event = dict[str, Any]


def add_up(events: Iterable[Event], **header: Any) -> Totals:
    sums = Totals({**traces.HEADER, **header})
    sums.add_all(events)
    return sums


def exit_event(ns: int = MS, **more: Any) -> Event:
    return {"kind": "exit", "ns": ns, "vcpu": 0, "rip": 0x1000, "reason": "IO", "took": 10 * US,
            "device": "serial COM1", "register": "THR", "access": "write", "address": 0x3F8,
            "size": 1, "value": 65, "meaning": "'A'", **more}  # fmt: skip


def request(ns: int = MS, **more: Any) -> Event:
    return {"kind": "request", "ns": ns, "device": "virtio-blk vda", "queue": 0, "what": "read",
            "bytes": 512, "took": 50 * US, "depth": 1, "status": "ok", **more}  # fmt: skip


class Page(HTMLParser):
    """What a browser makes of a page: its elements, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.contents: dict[str, str] = {}
        self._in = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script" and ("type", "application/json") in attrs:
            self._in = "data"

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in in ("script", "style", "data", "title"):
            self.contents[self._in] = self.contents.get(self._in, "") + data
        else:
            self.words += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.contents["data"])
        return found


def expand(encoded: Iterable[int]) -> list[int]:
    """The scripts' way to read a series."""
    return [n for value in encoded for n in ([value] if value >= 0 else [0] * -value)]


# Reading a trace.


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path: Path) -> None:
    good = [exit_event(n * MS) for n in range(5)]
    wrong: list[Any] = [
        {**exit_event(), "ns": -1}, {**exit_event(), "ns": "soon"}, {**exit_event(), "took": None},
        {**exit_event(), "device": ["a"]}, {**exit_event(), "device": 7},
        {**exit_event(), "vcpu": 10**9}, {**exit_event(), "ns": 1 << 60}, {"kind": "exit"},
        {"kind": [], "ns": 1}, 17, None, ["kind", "ns"], "kind",
        {**request(), "depth": True}, {**request(), "queue": "0"}, {"kind": "console", "ns": 1},
        {"kind": "memory", "ns": 1, "resident": "all"}, {"kind": "phase", "ns": 1, "phase": 1},
        {"kind": "interrupt", "ns": 1, "device": "x"},
    ]  # fmt: skip
    path = tmp_path / "trace"
    lines = [json.dumps(each) for each in (traces.HEADER, *good, *wrong)]
    path.write_bytes("\n".join(lines).encode() + b'\n\xff\xfe\n\n{"kind":"exit","ns":12,"vcp')
    sums = read_totals(str(path))
    assert sums.exits == 5
    assert sums.damaged == len(wrong) + 3
    assert "couldn't be read" in Page(make_page(sums)).words


def test_an_overlong_line_is_one_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    after = json.dumps(exit_event())
    path.write_text(f"{json.dumps(traces.HEADER)}\n{'x' * (3 * MAX_LINE)}\n{after}\n")
    sums = read_totals(str(path))
    assert (sums.damaged, sums.exits) == (1, 1)


def test_deep_nesting_is_a_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(f"{json.dumps(traces.HEADER)}\n{'[' * 100_000}\n{json.dumps(exit_event())}\n")
    sums = read_totals(str(path))
    assert (sums.damaged, sums.exits) == (1, 1)


def test_a_compressed_trace_and_a_cut_one(tmp_path: Path) -> None:
    plain = traces.write(tmp_path / "boot.jsonl", traces.boot(500))
    whole, cut = tmp_path / "boot.jsonl.gz", tmp_path / "cut.gz"
    whole.write_bytes(gzip.compress(plain.read_bytes()))
    cut.write_bytes(whole.read_bytes()[:-2000])
    assert read_totals(str(whole)).exits == read_totals(str(plain)).exits == 500
    sums = read_totals(str(cut))
    assert 0 < sums.exits < 500
    assert sums.damaged == 1
    assert sums.end is None
    assert "stops before the run's end" in Page(make_page(sums)).words


NO_TRACES = {
    "text": b"   0.001 vcpu0 serial COM1 THR <- 0x41\n",
    "perfetto": b'{"traceEvents":[\n{"ph":"X"}]}\n',
    "list": b"[1, 2]\n",
    "binary": bytes(range(256)) * 20,
    "deep": b"[" * 500_000,
    "zeros without an end": bytes(4 * MAX_LINE),
    "broken gzip": b"\x1f\x8b\x08garbage",
}


@pytest.mark.parametrize("name", NO_TRACES)
def test_what_is_no_trace_is_refused_with_a_hint(tmp_path: Path, name: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(NO_TRACES[name])
    with pytest.raises(PyvmmError, match=r"trace.*--trace x\.jsonl"):
        TraceFile(str(path))


def test_an_empty_file_a_directory_and_a_later_version(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "later").write_text(json.dumps({**traces.HEADER, "version": 2}))
    for name, said in (("empty", "is empty"), ("later", "version 2"), ("none", "No such file")):
        with pytest.raises(PyvmmError, match=said):
            TraceFile(str(tmp_path / name))
    with pytest.raises(PyvmmError, match="directory"):
        TraceFile(str(tmp_path))


# Adding up.


def test_exits_are_counted_by_all_that_they_have() -> None:
    events = [exit_event(n * MS, took=n) for n in range(10)]
    events += [exit_event(20 * MS, vcpu=1, rip=0x2000, reason="HLT", device="", register="",
                          access="", address=0, symbol="halt+0x3")]  # fmt: skip
    sums = add_up(events)
    assert (sums.exits, sums.took) == (11, 45 + 10 * US)
    assert sums.vcpus == {0: [10, 45], 1: [1, 10 * US]}
    assert {name: sum(bins) for name, bins in sums.reasons.items()} == {"IO": 10, "HLT": 1}
    serial, nobody = sums.devices["serial COM1"], sums.devices[totals.NOBODY]
    assert (serial.exits, serial.took, serial.slowest) == (10, 45, 9)
    assert (nobody.exits, sum(nobody.took_bins)) == (1, 10 * US)
    assert sums.symbols == {0x2000: "halt+0x3"}
    page = Page(make_page(sums)).words
    assert "halt+0x3" in page
    assert "THR" in page


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**11)), min_size=1))
def test_bins_lose_nothing_however_long_the_run_gets(spans: list[tuple[int, int]]) -> None:
    bins = TimeBins()
    counts, took, most = bins.sums(), bins.sums(), bins.maxima()
    histograms = bins.histograms()
    for start, length in spans:
        bins.spread(took, start, length)
        index = start >> bins.shift
        counts[index] += 1
        most[index] = max(most[index], length)
        histogram = histograms[bins.histogram_index(start)]
        histogram[length] = histogram.get(length, 0) + 1
    assert sum(took) == sum(length for _, length in spans)
    assert sum(counts) == len(spans) == sum(sum(h.values()) for h in histograms)
    assert max(most) == max(length for _, length in spans)
    assert all(count <= bins.width for count in took) or len(spans) > 1
    assert len(took) == BINS
    for start, _ in spans:
        assert counts[start >> bins.shift]


@given(st.integers(0, 1 << 50))
def test_a_latency_is_known_to_a_tenth(ns: int) -> None:
    number = queues.bucket(ns)
    assert abs(queues.bucket_value(number) - ns) <= ns / 8 + 1
    assert queues.bucket(queues.bucket_value(number)) == number
    assert queues.bucket(ns + 1) in (number, number + 1)


def test_percentiles_of_a_queue() -> None:
    sums = add_up([request(n * MS, took=n * US) for n in range(1, 1001)])
    (queue,) = sums.queues.values()
    for percent, wanted in ((50, 500), (90, 900), (99, 990)):
        assert queue.percentile(percent) == pytest.approx(wanted * US, rel=0.12)
    assert queue.percentile(100) <= queue.slowest == 1000 * US
    assert (queue.requests, queue.bytes, queue.failed) == (1000, 512_000, 0)


def test_what_came_by_itself_has_no_latency() -> None:
    """Received packets and console input: nobody knows how long they took."""
    sums = add_up([request(n * MS, queue=1, took=0, depth=0, bytes=60) for n in range(9)])
    (queue,) = sums.queues.values()
    assert (queue.requests, queue.bytes, queue.timed) == (9, 540, 0)
    assert chart_data(sums)["queues"] == []
    assert "no latency" in Page(make_page(sums)).words


def test_only_an_interrupt_that_is_raised_counts() -> None:
    line = {"kind": "interrupt", "ns": 5, "device": "serial COM1", "gsi": 4}
    message = {"kind": "interrupt", "ns": 6, "device": "virtio-blk vda", "msi": 1, "vector": 0x25}
    sums = add_up([{**line, "level": 1}, {**line, "level": 0}, message, message])
    found = {device.name: device.vectors for device in sums.devices.values()}
    assert found == {"serial COM1": {"GSI 4": 1}, "virtio-blk vda": {"MSI 1": 2}}


def test_an_exit_that_takes_long_is_spread_over_its_time() -> None:
    sums = add_up([exit_event(0, took=100 * MS)])
    (device,) = sums.devices.values()
    assert max(device.took_bins) <= sums.bins.width
    assert sum(device.took_bins) == 100 * MS


def test_memory_is_bounded_and_what_was_cut_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "MAX_TABLE", 4096)

    def many() -> Iterator[Event]:
        for n in range(10_000):
            yield exit_event(
                n * 1000, rip=n, register=f"r{n}", device=f"d{n % 500}", reason=f"e{n % 90}"
            )
        for n in range(8000):
            yield {"kind": "console", "ns": n * 1000, "console": "COM1", "text": f"line {n}" * 200}
            yield {"kind": "phase", "ns": n, "phase": f"p{n}", "detail": ""}
            yield request(n * 1000, queue=n, device=f"q{n}")

    tracemalloc.start()
    sums = add_up(many())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 << 20
    assert sums.exits == 10_000
    assert sums.exits == sum(device.exits for device in sums.devices.values())
    assert sums.console_lines[-1].text.startswith("line 7999")
    assert len(sums.last_lines) == LAST_LINES
    page = make_page(sums)
    assert len(page) < 8 << 20
    words = Page(page).words
    for said in ("console lines the first", "rare registers", "rare addresses", "Devices after",
                 "Exit reasons after", "Queues after", "busiest have charts",
                 "Phases after"):  # fmt: skip
        assert said in words


def test_a_hot_register_stays_hot_among_many_rare_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "MAX_TABLE", 4096)

    def events() -> Iterator[Event]:
        for n in range(totals.MAX_TABLE + 1000):
            yield exit_event(n * 1000, rip=n, register=f"r{n}")
            if n % 100 == 0:
                yield exit_event(n * 1000, rip=1 << 63, register="hot")

    sums = add_up(events())
    hottest = max(sums.sites.items(), key=lambda item: item[1].count)
    assert hottest[0][2] == "hot"
    assert hottest[1].count == 51
    assert sums.exits == totals.MAX_TABLE + 1000 + 51
    assert sums.forgotten_sites
    assert sums.forgotten_addresses


def test_the_charts_have_every_exit_in_them() -> None:
    sums = add_up(traces.boot(3000))
    data = chart_data(sums)
    for name in ("reasons", "devices"):
        assert sum(sum(expand(row["bins"])) for row in data[name]) == 3000
    assert sum(sum(expand(row["bins"])) for row in data["took"]) == sums.took
    used = {len(expand(row["bins"])) for row in data["devices"]}
    assert used == {sums.end_ns // sums.bins.width + 1}
    assert {row["colour"] for row in data["devices"]} == set(range(7))
    latency = data["queues"][0]["latency"]
    assert sum(sum(row[2::2]) for row in latency) == sums.ranked_queues()[0].requests


# The words.


def test_the_summary_answers_both_questions() -> None:
    time, exits = (
        answer.replace("\u00a0", " ") for answer in summary.answers(add_up(traces.boot()))
    )
    assert time.startswith(
        "The run took 4.00 s and ended so: powered off. "
        "Most of it went to user space: 2.04 s (51 %)"
    )
    assert "PyVMM's set-up 48.0 ms" in time
    assert "to answer 2,000 exits" in time
    assert "The console's longest silence" in time
    assert "serial COM1 (6" in exits
    assert "mostly writes of THR" in exits
    assert "io_serial_out+0x13" in exits


def test_a_trace_with_nothing_in_it(tmp_path: Path) -> None:
    path = traces.write(tmp_path / "trace", iter(()))
    write_report(str(path), str(tmp_path / "page"))
    words = Page((tmp_path / "page").read_text()).words
    for said in ("The trace has no exits", "no phases", "no virtqueue requests", "no interrupts",
                 "stops before the run's end"):  # fmt: skip
        assert said in words


def test_a_reset_makes_phases_come_again() -> None:
    phases = [
        ("setup", 0),
        ("entry", 10),
        ("console", 20),
        ("reset", 50),
        ("console", 60),
        ("end", 90),
    ]
    events: list[Event] = [
        {"kind": "phase", "ns": at * MS, "phase": name, "detail": ""} for name, at in phases
    ]
    events.append(
        {
            "kind": "end",
            "ns": 90 * MS,
            "reason": "powered off",
            "detail": "",
            "status": 0,
            "dropped": 3,
        }
    )
    sums = add_up(events)
    found = [(part.title, part.took // MS) for part in summary.segments(sums)]
    assert found == [("PyVMM sets up", 10), ("guest, silent", 10),
                     ("guest, from its first line", 30),
                     ("reset", 10), ("guest, from its first line", 30)]  # fmt: skip
    assert "the guest after its first console line: 60.0" in summary.answers(sums)[0]
    assert "dropped 3 events" in Page(make_page(sums)).words


@pytest.mark.parametrize(
    ("ns", "words"),
    [(0, "0 ns"), (999, "999 ns"), (1500, "1.5 µs"), (123_456, "123 µs"), (999_600, "1.0 ms"),
     (41_000_000, "41.0 ms"), (3_021_000_000, "3.02 s")],
)  # fmt: skip
def test_times_in_words(ns: int, words: str) -> None:
    assert summary.duration(ns) == words.replace(" ", "\u00a0")


# What the guest says stays text.

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "]]>--><!--<script>",
    "&lt;b&gt;\u2028\u2029\u202e{{SCRIPT}}{{DATA}}",
    "\"'><svg onload=alert(1)>",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07\x00\x08\ud800\udfff\ufeff",
    "javascript:alert(1)",
)

hostile_text = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(), max_size=60),
    st.text("<>&\"'/!-=scriptSTYLE\x00\ud800\u202e{}", max_size=60),
)


def hostile_trace(text: str) -> tuple[dict[str, Any], list[Event]]:
    header = {**traces.HEADER, "kernel": text, "command_line": text, "host": text, "started": text}
    return header, [
        {"kind": "phase", "ns": 0, "phase": "setup", "detail": text},
        {"kind": "phase", "ns": 5, "phase": text, "detail": text},
        exit_event(reason=text, device=text, register=text, access=text, symbol=text),
        request(device=text, what=text, status=text),
        {"kind": "interrupt", "ns": MS, "device": text, "gsi": 4, "level": 1},
        {"kind": "console", "ns": MS, "console": text, "text": text},
        {"kind": "end", "ns": 9 * MS, "reason": text, "detail": text, "status": 0, "dropped": text},
    ]


def tags_of_a_page(text: str) -> tuple[list[tuple[str, tuple[str, ...]]], Page]:
    header, events = hostile_trace(text)
    sums = Totals(header)
    sums.add_all(events)
    assert sums.damaged == 0
    page = make_page(sums)
    page.encode("utf-8")
    parsed = Page(page)
    return [(tag, tuple(attributes)) for tag, attributes in parsed.tags], parsed


HARMLESS_TAGS, _ = tags_of_a_page("word")


@given(hostile_text)
def test_nothing_in_a_trace_becomes_markup(text: str) -> None:
    tags, page = tags_of_a_page(text)
    if text.strip():
        # An empty name or a missing detail leaves nothing out but words.
        assert [t for t in tags if t[0] in ("script", "style", "img", "a", "meta", "iframe")] == [
            t for t in HARMLESS_TAGS if t[0] in ("script", "style", "img", "a", "meta", "iframe")
        ]
    assert {tag for tag, _ in tags} <= {tag for tag, _ in HARMLESS_TAGS}
    assert {a for _, attributes in tags for a in attributes} <= {
        a for _, attributes in HARMLESS_TAGS for a in attributes
    }
    assert page.data["console"] == [[MS, printable(text, totals.MAX_LINE)]]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_hostile_page_has_the_harmless_page_s_elements(text: str) -> None:
    tags, _ = tags_of_a_page(text)
    assert tags == HARMLESS_TAGS


@given(st.text(st.characters()))
def test_printable_text_steers_nothing(text: str) -> None:
    clean = printable(text)
    assert len(clean) <= totals.MAX_NAME
    assert not re.search(
        "[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", clean
    )


def test_colours_of_a_terminal_go_and_words_stay() -> None:
    assert printable("\x1b[1;31m[FAILED]\x1b[0m to start\r") == "[FAILED] to start"
    assert printable("Grüße, 世界 🐧") == "Grüße, 世界 🐧"


def test_the_policy_allows_this_script_and_style_only() -> None:
    page = Page(make_page(add_up(traces.boot(100))))
    (policy,) = (
        attributes["content"] or ""
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    for directive, element in (("script-src", "script"), ("style-src", "style")):
        digest = hashlib.sha256(page.contents[element].encode()).digest()
        assert f"{directive} 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") or name in ("style", "src") for name in attributes)
        if "href" in attributes:
            assert (tag, attributes["href"]) == ("link", "data:,")


def test_the_scripts_make_no_markup_of_strings_and_fetch_nothing() -> None:
    page = Page(make_page(add_up(traces.boot(100))))
    script = page.contents["script"].replace("http://www.w3.org/2000/svg", "")
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(",
                 "fetch(", "XMLHttp", "import(", "http:", "https:", "WebSocket"):  # fmt: skip
        assert word not in script
    assert "url(" not in page.contents["style"]
    assert "@import" not in page.contents["style"]


# Its colours.


def colours(scheme: str) -> dict[str, str]:
    style = Page(make_page(add_up(()))).contents["style"]
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    chosen = re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", light if scheme == "light" else dark)
    return dict(chosen)


def linear(colour: str) -> list[float]:
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def luminance(rgb: list[float]) -> float:
    return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]


def contrast(first: str, second: str) -> float:
    """WCAG 2.2, "contrast ratio"."""
    dark, light = sorted(luminance(linear(colour)) for colour in (first, second))
    return (light + 0.05) / (dark + 0.05)


# How much of each primary is seen with no red, green or blue cones (Machado, Oliveira and
# Fernandes 2009, severity 1), in linear RGB.
SIGHTS = {
    "full": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
                   (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
                     (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602),
                   (0.004733, 0.691367, 0.303900)),
}  # fmt: skip


def seen(colour: str, sight: str) -> tuple[float, float, float]:
    """CIE L*a*b* of what is seen."""
    rgb = linear(colour)
    r, g, b = (
        min(1.0, max(0.0, sum(k * c for k, c in zip(row, rgb, strict=True))))
        for row in SIGHTS[sight]
    )
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(scheme: str) -> None:
    has = colours(scheme)
    for text in ("text", "soft"):
        for ground in ("page", "panel", "warn", "p0", "p1", "p2", "p3", "p4"):
            if text == "soft" and ground not in ("page", "panel", "p1"):
                continue  # nothing soft stands there
            assert contrast(has[text], has[ground]) >= 4.5, (text, ground)
    for edge in ("edge", "warn-edge", "link", *(f"c{n}" for n in range(7))):
        assert contrast(has[edge], has["page"]) >= 3, edge


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_series_are_told_apart_by_everybody(scheme: str, sight: str) -> None:
    has = colours(scheme)
    points = [seen(has[f"c{n}"], sight) for n in range(7)]
    for n, first in enumerate(points):
        for second in points[:n]:
            distance = sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5
            assert distance > 12  # 2 or 3 can just be seen side by side


# The command.


def pyvmm(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pyvmm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, input=stdin, timeout=60, check=False)


def test_the_command_writes_a_page_and_says_what_is_on_it(tmp_path: Path) -> None:
    trace = traces.write(tmp_path / "boot.jsonl", traces.boot(300))
    ended = pyvmm("report", trace)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"The run took 4.00 s" in ended.stdout
    assert b"300" in ended.stdout
    page = Page((tmp_path / "boot.html").read_text())
    assert page.count("table") >= 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boot.html", "boot.jsonl"]


def test_from_stdin_to_stdout(tmp_path: Path) -> None:
    trace = traces.write(tmp_path / "boot.jsonl", traces.boot(300))
    ended = pyvmm("report", "-", "-o", "-", stdin=gzip.compress(trace.read_bytes()))
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.startswith(b"<!DOCTYPE html>")
    assert ended.stdout.endswith(b"</html>\n")


def test_damaged_lines_are_counted_on_stderr(tmp_path: Path) -> None:
    trace = traces.write(tmp_path / "boot.jsonl", traces.boot(300))
    trace.write_bytes(trace.read_bytes()[:-20] + b"\n{}\n")
    ended = pyvmm("report", trace, "-o", tmp_path / "page.html")
    assert ended.returncode == 0
    assert ended.stderr.decode() == f"pyvmm: {trace}: 2 damaged lines left out\n"


def test_what_the_command_refuses(tmp_path: Path) -> None:
    trace = traces.write(tmp_path / "boot.jsonl", traces.boot(100))
    text = tmp_path / "boot.txt"
    text.write_text("0.1 ms vcpu0\n")
    before = trace.read_bytes()
    for status, said, *arguments in (
        (1, rb"boot\.txt.*--trace x\.jsonl", text, "-o", tmp_path / "page"),
        (1, rb"nothing.*No such file", tmp_path / "nothing"),
        (1, rb"can't write /proc/x", trace, "-o", "/proc/x"),
        (1, rb"can't write .*directory", trace, "-o", tmp_path),
        (2, rb"--output.*trace itself", trace, "-o", trace),
        (2, rb"--output", "-"),
        (2, rb"TRACE"),
    ):  # fmt: skip
        ended = pyvmm("report", *arguments)
        assert ended.returncode == status, ended
        assert re.fullmatch(rb"pyvmm: [^\n]+\n", ended.stderr)
        assert re.search(said, ended.stderr), ended.stderr
    assert trace.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boot.jsonl", "boot.txt"]


def test_an_old_page_stays_when_the_new_one_cannot_be_made(tmp_path: Path) -> None:
    page, trace = tmp_path / "page.html", tmp_path / "trace"
    page.write_text("old")
    trace.write_text("no trace\n")
    assert pyvmm("report", trace, "-o", page).returncode == 1
    assert page.read_text() == "old"


# run --report, as far as it goes without a guest.


def test_a_report_of_a_run_needs_a_place_of_its_own(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.touch()
    for output, error in (
        (str(kernel), ConfigError), ("", ConfigError), ("-", ConfigError),
        (str(tmp_path), HostError), (str(tmp_path / "none" / "page"), HostError),
    ):  # fmt: skip
        with pytest.raises(error, match="--report"):
            RunReport(output, [None, str(kernel)])
    assert [path.name for path in tmp_path.iterdir()] == ["kernel"]


def test_a_run_s_trace_goes_when_the_page_is_there(tmp_path: Path) -> None:
    said: list[str] = []
    report = RunReport(str(tmp_path / "page.html"), [])
    traces.write(Path(report.trace), traces.boot(100))
    report.write(said.append)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert said == [f"the report is in {tmp_path / 'page.html'}"]


def test_a_run_that_did_not_start_leaves_the_old_page(tmp_path: Path) -> None:
    said: list[str] = []
    page = tmp_path / "page.html"
    page.write_text("old")
    report = RunReport(str(page), [])
    Path(report.trace).touch()
    report.write(said.append)
    assert (page.read_text(), said) == ("old", [])
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, MemoryError])
def test_a_bug_of_the_report_s_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*_: object) -> None:
        raise error

    said: list[str] = []
    report = RunReport(str(tmp_path / "page.html"), [])
    traces.write(Path(report.trace), traces.boot(100))
    monkeypatch.setattr("pyvmm.report.write_report", fail)
    report.write(said.append)
    assert [str(path) for path in tmp_path.iterdir()] == [report.trace]
    assert said[-1].endswith(f"the trace stays in {report.trace}")


def test_the_parts_of_the_page_are_in_the_package() -> None:
    """What setup.py would install."""
    folder = Path(timebins.__file__).parent
    project = (folder.parent.parent / "pyproject.toml").read_text()
    (patterns,) = re.findall(r'^"pyvmm.report" = \[(.*)\]', project, re.MULTILINE)
    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".py":
            assert f'"*{path.suffix}"' in patterns
