"""`pyvmm run --report` on guests of our own: the page is there however the run ends, and the exit
status is the run's."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kvm.command import Running, command, run, start
from kvm.test_disk import BEFORE


def data(page: Path) -> dict[str, Any]:
    """What a page's charts are drawn from."""
    (found,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text()
    )
    parsed: dict[str, Any] = json.loads(found)
    return parsed


def words(page: Path) -> str:
    """Its summary."""
    (summary,) = re.findall(r'class="summary">(.*?)</section>', page.read_text(), re.DOTALL)
    return re.sub(r"<[^>]*>", "", summary).replace("\u00a0", " ")


def exits(page: Path) -> int:
    return sum(n for row in data(page)["devices"] for n in row["bins"] if n > 0)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Where the report goes: to a directory where nothing else is."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "report.html"


def check(page: Path, ended: str) -> None:
    """The page is whole, says how the run ended, and its trace has gone."""
    assert page.read_text().endswith("</html>\n")
    assert f"ended so: {ended}" in words(page)
    assert [path.name for path in page.parent.iterdir()] == [page.name]


def test_a_disk_s_report(guests: Path, page: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(BEFORE)
    ended = run(guests / "blk", "-d", str(disk), "--report", str(page), append="msix")
    ended.check()
    check(page, "powered off")
    *_, said, last = ended.stderr.splitlines()
    assert said == f"pyvmm: the report is in {page}"
    assert "powered off" in last
    shown = data(page)
    assert [phase["phase"] for phase in shown["phases"]][:3] == ["setup", "entry", "console"]
    assert [text for _, text in shown["console"]] == [line.rstrip() for line in ended.lines]
    names = {row["name"] for row in shown["devices"]}
    assert "serial COM1" in names
    assert shown["queues"][0]["name"] == "virtio-blk vda queue 0"
    assert {row["name"] for row in shown["interrupts"]} == {"virtio-blk vda"}
    assert "The exits were for serial COM1" in words(page)


ENDINGS = {
    # the guest's word, options, status, what the page says
    "panic": ((), 3, "panicked: &quot;the test wants it&quot;"),
    "triple-fault": ((), 4, "crashed"),
    "print": (("--timeout", "1"), 124, "timed out"),
    "debug-exit": (("--debug-exit",), 43, "wrote to the debug exit port"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_report_is_there_however_the_run_ends(guests: Path, page: Path, ending: str) -> None:
    options, status, said = ENDINGS[ending]
    ended = run(guests / "endings", "--report", str(page), *options, append=ending)
    assert ended.status == status, ended
    check(page, said)
    assert exits(page)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_report_is_there_after_a_signal(guests: Path, page: Path, number: int) -> None:
    with start(guests / "endings", "--report", str(page), append="print") as guest:
        guest.read_until(b"\n")
        guest.process.send_signal(number)
        if number == signal.SIGTERM:
            wait_for_the_power_button(guest)
            guest.process.send_signal(signal.SIGINT)
        status, _, _ = guest.finish()
    assert status == 128 + signal.SIGINT
    check(page, "interrupted")


def wait_for_the_power_button(guest: Running) -> None:
    assert guest.process.stderr is not None
    assert b"SIGTERM" in guest.process.stderr.readline()


def test_after_a_kill_the_trace_is_there(guests: Path, page: Path) -> None:
    with start(guests / "endings", "--report", str(page), append="print") as guest:
        guest.read_until(b"\n")
        trace = wait_for_the_trace(page)
        guest.process.kill()
        guest.finish()
    assert not page.exists()
    made = subprocess.run(
        [*command(trace)[:3], "report", str(trace), "-o", str(page)],
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0
    assert re.search("The trace stops after .*, before the run&#x27;s end", words(page))


def wait_for_the_trace(page: Path) -> Path:
    """Until something is in it."""
    while True:
        (trace,) = page.parent.iterdir()
        if b'"exit"' in trace.read_bytes():
            return trace


def test_a_run_that_cannot_start_leaves_the_old_page(guests: Path, page: Path) -> None:
    page.write_text("old")
    ended = run(guests / "nothing", "--report", str(page))
    assert ended.status == 1
    assert page.read_text() == "old"
    assert [path.name for path in page.parent.iterdir()] == [page.name]


def test_a_page_that_cannot_be_written_does_not_change_the_status(guests: Path, page: Path) -> None:
    page.symlink_to(page.parent / "no directory" / "page")
    ended = run(guests / "endings", "--report", str(page), append="power-off")
    assert ended.status == 0
    (trace,) = (path for path in page.parent.iterdir() if path != page)
    said = rf"^pyvmm: --report: can't write .*No such file.*; the trace stays in {trace}$"
    assert re.search(said, ended.stderr, re.MULTILINE)
    assert "powered off" in ended.stderr.splitlines()[-1]
    assert '"kind":"end"' in trace.read_text()


def test_a_report_and_a_trace(guests: Path, page: Path, tmp_path: Path) -> None:
    """Of one run; the filter is for both."""
    trace = tmp_path / "trace.jsonl"
    ended = run(
        guests / "enumerate", "--report", str(page), "--trace", str(trace),
        "--trace-filter", "device=pci",
    )  # fmt: skip
    assert ended.status == 0
    check(page, "powered off")
    traced = [json.loads(line) for line in trace.read_text().splitlines()]
    assert exits(page) == sum(event.get("kind") == "exit" for event in traced) > 100
    assert all(
        row["name"].startswith("pci") or row["name"] == "others" for row in data(page)["devices"]
    )


def test_a_device_file_takes_a_report(guests: Path) -> None:
    ended = run(guests / "enumerate", "--report", os.devnull)
    assert ended.status == 0
    assert not list(Path("/dev").glob("null.*"))
