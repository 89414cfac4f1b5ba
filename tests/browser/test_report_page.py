"""The report's page, as Chromium shows it and as hands touch it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser.chromium import Browser
from unit import traces
from unit.test_report import HOSTILE, hostile_trace
from unit.traces import MS

from pyvmm.report import write_report
from pyvmm.report.queues import bucket_value

END = 4_000 * MS
CHARTS = ("timeline", "reasons", "devices", "took", "interrupts", "memory")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a boot of four seconds."""
    folder = tmp_path_factory.mktemp("report")
    trace = traces.write(folder / "boot.jsonl", traces.boot(4000, END))
    write_report(str(trace), str(folder / "boot.html"))
    return folder / "boot.html"


@pytest.fixture
def boot(browser: Browser, page: Path) -> Browser:
    """The browser, with that page in a window."""
    browser.open(page)
    return browser


def window(browser: Browser) -> tuple[float, float]:
    """The seconds that the charts show."""
    browser.settle()
    words = browser.evaluate("document.getElementById('window').textContent")
    first, last = re.findall(r"([0-9.]+)\xa0s", words)
    return float(first), float(last)


def box(browser: Browser, chart: str) -> dict[str, float]:
    """Where a chart is in the window; it is scrolled into it."""
    found: dict[str, float] = browser.evaluate(
        f"""(() => {{
          const svg = document.querySelector('[data-chart={chart}] > svg');
          svg.scrollIntoView({{ block: "center" }});
          const {{ left, top, width, height }} = svg.getBoundingClientRect();
          return {{ left, top, width, height }};
        }})()"""
    )
    return found


def at(browser: Browser, chart: str, share: float) -> tuple[float, float]:
    """The point of a chart's plot, so far from its left edge."""
    place = box(browser, chart)
    x = place["left"] + 54 + share * (place["width"] - 64)
    return x, place["top"] + place["height"] / 2


def focus(browser: Browser, chart: str) -> None:
    browser.evaluate(f"document.querySelector('[data-chart={chart}] > svg').focus()")


def paths(browser: Browser, chart: str) -> list[str]:
    found: list[str] = browser.evaluate(
        f"[...document.querySelectorAll('[data-chart={chart}] > svg path')].map(p => p.outerHTML)"
    )
    return found


def tip(browser: Browser) -> str:
    """What the tooltip says; empty if there is none."""
    words: str = browser.evaluate(
        "(t => t.hidden ? '' : t.innerText)(document.getElementById('tip'))"
    )
    return words.replace("\n", " ").replace("\xa0", " ")


def test_nothing_is_fetched_and_nothing_complains(boot: Browser, page: Path) -> None:
    assert boot.complaints() == []
    assert boot.requests() == [page.as_uri()]


def test_every_chart_is_drawn(boot: Browser) -> None:
    for chart in CHARTS:
        drawn = [p for p in paths(boot, chart) if 'd=""' not in p]
        assert drawn, chart
    assert boot.evaluate("document.querySelectorAll('#queues svg[role=application]').length") == 4
    assert boot.evaluate("document.querySelectorAll('#console li').length") > 100
    for phase in ("setup", "entry", "console", "init", "shutdown"):
        assert boot.evaluate(
            f"document.querySelectorAll('[data-chart=timeline] .phase-{phase}').length"
        )


def test_a_drag_zooms_all_charts_and_a_double_click_shows_all(boot: Browser) -> None:
    before = {chart: paths(boot, chart) for chart in CHARTS}
    boot.drag(at(boot, "devices", 0.25), at(boot, "devices", 0.5))
    first, last = window(boot)
    assert (first, last) == (pytest.approx(1.0, abs=0.02), pytest.approx(2.0, abs=0.02))
    for chart in CHARTS:
        assert paths(boot, chart) != before[chart], chart
    shown = boot.evaluate("document.querySelectorAll('#console li:not([hidden])').length")
    assert 0 < shown < boot.evaluate("document.querySelectorAll('#console li').length")
    point = at(boot, "took", 0.5)
    for clicks in (1, 2):
        boot.mouse("pressed", *point, button="left", clickCount=clicks)
        boot.mouse("released", *point, button="left", clickCount=clicks)
    assert window(boot) == (0, 4)
    assert {chart: paths(boot, chart) for chart in CHARTS} == before


def test_the_wheel_zooms_on_the_timeline_only(boot: Browser) -> None:
    boot.mouse("wheel", *at(boot, "timeline", 0.5), deltaX=0, deltaY=-100)
    first, last = window(boot)
    assert first > 0.3
    assert last < 3.7
    assert (first + last) / 2 == pytest.approx(2, abs=0.05)
    boot.mouse("wheel", *at(boot, "reasons", 0.5), deltaX=0, deltaY=-100)
    assert window(boot) == (first, last)


def test_a_page_is_scrolled_past_the_timeline(boot: Browser) -> None:
    point = at(boot, "timeline", 0.5)
    before = boot.evaluate("scrollY")
    boot.mouse("wheel", *point, deltaX=0, deltaY=100)
    scrolled = f"scrollY > {before} ? r() : addEventListener('scroll', r, {{ once: true }})"
    boot.evaluate(f"new Promise(r => {scrolled})")
    assert window(boot) == (0, 4)


def test_two_fingers_zoom(browser: Browser, page: Path) -> None:
    browser.open(page, width=360, height=800)
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    try:
        middle, y = at(browser, "timeline", 0.5)
        browser.touch("Start", (middle - 20, y), (middle + 20, y))
        for spread in (30, 50, 80):
            browser.touch("Move", (middle - spread, y), (middle + spread, y))
        browser.touch("End")
        first, last = window(browser)
    finally:
        browser.call("Emulation.setTouchEmulationEnabled", enabled=False)
    assert last - first == pytest.approx(1.0, abs=0.1)
    assert (first + last) / 2 == pytest.approx(2, abs=0.1)


def test_the_buttons(boot: Browser) -> None:
    def click(name: str) -> tuple[float, float]:
        boot.evaluate(f"document.querySelector('[data-do={name}]').click()")
        return window(boot)

    assert boot.evaluate("document.querySelector('[data-do=out]').disabled")
    assert click("in") == (1, 3)
    assert click("left") == (0.5, 2.5)
    assert click("right") == (1, 3)
    assert click("out") == (0, 4)
    click("in")
    assert click("reset") == (0, 4)


def test_zoom_has_an_end(boot: Browser) -> None:
    for _ in range(40):
        boot.evaluate("document.querySelector('[data-do=in]').click()")
    first, last = window(boot)
    assert 0 < last - first < 0.1
    assert boot.evaluate("document.querySelector('[data-do=in]').disabled")
    assert boot.complaints() == []


def test_values_are_shown_where_the_pointer_is(boot: Browser) -> None:
    boot.mouse("moved", *at(boot, "devices", 0.3))
    assert re.search(r"s – .* s.*serial COM1 \d+ \(.*/s\)", tip(boot))
    boot.mouse("moved", *at(boot, "took", 0.3))
    assert re.search(r"serial COM1 .*µs|ms.*%", tip(boot))
    boot.mouse("moved", *at(boot, "memory", 0.9))
    assert re.search(r"at most \d+ MiB", tip(boot))
    boot.mouse("moved", *at(boot, "timeline", 0.3))
    assert "kernel boots" in tip(boot)
    assert "probing the bus" in tip(boot)
    lines = boot.evaluate("document.querySelectorAll('#console li.now').length")
    cursors = boot.evaluate("document.querySelectorAll('svg .cursor').length")
    assert (lines, cursors) == (1, 10)
    boot.mouse("moved", 5, 5)
    assert tip(boot) == ""


def test_the_values_are_those_of_the_trace(boot: Browser) -> None:
    """Sums over the whole window, from what the page itself would say of its columns."""
    data: dict[str, Any] = json.loads(boot.evaluate("document.getElementById('data').textContent"))
    for row in data["devices"]:
        total = boot.evaluate(f"prefixSums(expand({row['bins']})).at(-1)")
        assert total == sum(n for n in row["bins"] if n > 0)
    for bucket in (0, 3, 4, 7, 8, 11, 40, 123):
        assert boot.evaluate(f"bucketValue({bucket})") == bucket_value(bucket)


def test_all_can_be_done_with_the_keyboard(boot: Browser) -> None:
    reached = set()
    for _ in range(40):
        boot.press("Tab")
        reached.add(
            boot.evaluate(
                "(e => e.closest('[data-chart]')?.dataset.chart || e.dataset.do || e.id)"
                "(document.activeElement)"
            )
        )
    assert reached >= {*CHARTS[:4], "in", "console"}
    focus(boot, "devices")
    for _ in range(3):
        boot.press("ArrowRight")
    assert "serial COM1" in tip(boot)
    assert "serial COM1" in boot.evaluate("document.getElementById('live').textContent")
    boot.press("+")
    first, last = window(boot)
    assert last - first == pytest.approx(2, abs=0.02)
    boot.press("ArrowRight", shift=True)
    assert window(boot)[0] == pytest.approx(first + 0.5, abs=0.03)
    boot.press("-")
    boot.press("0")
    assert window(boot) == (0, 4)
    boot.press("Escape")
    assert tip(boot) == ""


def test_whatever_takes_the_focus_has_a_name(boot: Browser) -> None:
    nameless = boot.evaluate(
        """[...document.querySelectorAll('[tabindex], button')].filter(e =>
          !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
            || e.textContent.trim())
        ).map(e => e.outerHTML.slice(0, 100))"""
    )
    assert nameless == []


def test_a_press_on_the_legend_shows_one_alone(boot: Browser) -> None:
    boot.evaluate("document.querySelector('[data-chart=devices] .legend button').click()")
    assert len([p for p in paths(boot, "devices") if 'class="f' in p]) == 1
    boot.evaluate("document.querySelector('[data-chart=devices] .legend button').click()")
    assert len([p for p in paths(boot, "devices") if 'class="f' in p]) == 7


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(browser: Browser, page: Path, dark: bool) -> None:
    browser.open(page, dark=dark)
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")


def test_a_phone_s_page_is_as_wide_as_the_phone(browser: Browser, page: Path) -> None:
    browser.open(page, width=360, height=800)
    assert browser.evaluate("document.documentElement.scrollWidth") == 360
    widest = browser.evaluate(
        "Math.max(...[...document.querySelectorAll("
        "'figure, .scroll, .console, .summary, li, #toolbar')]"
        ".map(e => e.getBoundingClientRect().right))"
    )
    assert widest <= 360
    sizes = browser.evaluate(
        """[...document.querySelectorAll('.chart text')].map(t => {
          const svg = t.closest('svg');
          return parseFloat(getComputedStyle(t).fontSize) * svg.getBoundingClientRect().width
            / svg.viewBox.baseVal.width;
        })"""
    )
    assert min(sizes) >= 10.5


def test_it_prints(boot: Browser) -> None:
    pdf = boot.pdf()
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8
    boot.evaluate("dispatchEvent(new Event('beforeprint'))")
    width = boot.evaluate("document.querySelector('[data-chart=took] > svg').viewBox.baseVal.width")
    assert width == 680
    assert boot.complaints() == []


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_guest_runs_no_script(browser: Browser, tmp_path: Path, text: str) -> None:
    header, events = hostile_trace(text)
    trace = traces.write(tmp_path / "trace", iter(events), **header)
    write_report(str(trace), str(tmp_path / "page.html"))
    browser.open(tmp_path / "page.html")
    for chart in ("timeline", "devices"):
        browser.mouse("moved", *at(browser, chart, 0.1))
        focus(browser, chart)
        browser.press("ArrowRight")
    assert browser.complaints() == []
    assert len(browser.requests()) == 1
    assert not any("Dialog" in event["method"] for event in browser.events)
    assert browser.evaluate("document.querySelectorAll('script').length") == 2
    strange = "img, iframe, a, [onload], [onerror]"
    assert browser.evaluate(f"document.querySelectorAll('{strange}').length") == 0
    assert browser.evaluate("document.querySelectorAll('#console li').length") == 1


def test_without_exits_there_are_words_instead(browser: Browser, tmp_path: Path) -> None:
    trace = traces.write(tmp_path / "trace", iter(()))
    write_report(str(trace), str(tmp_path / "page.html"))
    browser.open(tmp_path / "page.html")
    assert browser.complaints() == []
    chart = "document.querySelector('[data-chart=reasons] svg').textContent"
    assert "no exits in the trace" in browser.evaluate(chart)


def test_a_run_of_a_microsecond(browser: Browser, tmp_path: Path) -> None:
    """Windows that can't be zoomed, and no division by zero."""
    events = [{"kind": "console", "ns": 0, "console": "COM1", "text": "?"},
              {"kind": "end", "ns": 1, "reason": "timed out", "detail": ""}]  # fmt: skip
    trace = traces.write(tmp_path / "trace", iter(events))
    write_report(str(trace), str(tmp_path / "page.html"))
    browser.open(tmp_path / "page.html")
    for key in ("in", "out", "left", "right", "reset"):
        browser.evaluate(f"document.querySelector('[data-do={key}]').click()")
    browser.settle()
    assert browser.complaints() == []
    assert "NaN" not in browser.evaluate("document.body.outerHTML.split('id=\"data\"')[0]")
