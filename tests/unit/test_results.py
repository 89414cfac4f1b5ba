"""--json and --junit: what is in the files, and that they are there, whole, and nobody else's."""

from __future__ import annotations

import json
import os
import socket
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.fakes import FakeClock

from pyvmm import results
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError, HostError, ImageError
from pyvmm.junit import render
from pyvmm.outcome import Outcome, Reason
from pyvmm.record import Record
from pyvmm.results import SCHEMA, Results
from pyvmm.verdict import Expectations, Verdict

MEMBERS = {
    *("schema", "name", "reason", "status", "sentence", "value", "started", "seconds", "reboots"),
    *("panic", "match", "report", "vcpus", "consoles", "guest_faults", "machine", "host"),
    "versions",
}
"""The members of schema 1, as docs/ci.md has them."""


class Run:
    """Result files in a directory, for a run with one console."""

    def __init__(
        self, directory: Path, *options: str, name: str = "test", inputs: Any = ()
    ) -> None:
        self.files = {option: str(directory / option.strip("-")) for option in options}
        self.begun = False
        self.record = Record()
        expectations = Expectations(fail_on_warnings=True)
        self.verdict = Verdict(expectations, FakeClock(), lambda reason, detail: None)
        self.prints = self.record.watch("COM1", self.verdict.watch())
        self.results = Results(self.files, name, self.record, inputs)

    def end(self, reason: Reason, **more: Any) -> dict[str, Any]:
        """Begin, end with this, and what the JSON file says."""
        if not self.begun:
            self.results.begin()
            self.begun = True
        outcome = self.verdict.on(Outcome(reason, **more))
        assert self.results.end(outcome, self.verdict, {"bad thing": 3}) == []
        return self.document()

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(self.files["--json"]).read_text())
        return found

    def junit(self) -> ElementTree.Element:
        return ElementTree.parse(self.files["--junit"]).getroot()


@pytest.mark.parametrize("reason", list(Reason))
def test_every_end_has_a_document(tmp_path: Path, reason: Reason) -> None:
    run = Run(tmp_path, "--json")
    document = run.end(reason, seconds=1.5)
    assert set(document) == MEMBERS
    assert document["schema"] == SCHEMA
    assert document["reason"] == reason.name.lower()
    assert document["status"] == Outcome(reason).status
    assert document["sentence"].endswith("after 1.50 s")
    assert document["guest_faults"] == {"bad thing": 3}


def test_reasons_are_the_documented_ones() -> None:
    """A reader depends on them: a new one is added to docs/ci.md, an old one stays."""
    assert {reason.name.lower() for reason in Reason} == {
        *("power_off", "reboot", "expected", "debug_exit", "panic", "crash", "missed", "failed"),
        *("warned", "timeout", "interrupted", "error", "not_bootable"),
    }


def test_a_panic(tmp_path: Path) -> None:
    run = Run(tmp_path, "--json")
    run.prints(b"[    0.1] hello\r\n[    0.2] Kernel panic - not syncing: ouch\n")
    document = run.end(Reason.PANIC)
    assert document["panic"] == "ouch"
    assert document["match"] is None
    assert document["consoles"]["COM1"][0] == "[    0.1] hello"


def test_a_warning(tmp_path: Path) -> None:
    run = Run(tmp_path, "--json")
    run.prints(b"[    0.1] BUG: KASAN: use-after-free in f+0x1\n")
    document = run.end(Reason.WARNED)
    assert document["match"] == {
        "option": "--fail-on-warnings",
        "pattern": "kasan",
        "line": "BUG: KASAN: use-after-free in f+0x1",
    }


def test_values_that_belong_to_the_reason(tmp_path: Path) -> None:
    assert Run(tmp_path, "--json").end(Reason.DEBUG_EXIT, value=21)["value"] == 21
    assert Run(tmp_path, "--json").end(Reason.POWER_OFF)["value"] is None


def test_the_phases(tmp_path: Path) -> None:
    run = Run(tmp_path, "--json")
    assert run.end(Reason.ERROR)["seconds"]["run"] is None
    run.record.start()
    run.prints(b"\r\n[    0.1] Lin")
    assert run.end(Reason.POWER_OFF)["seconds"]["first_line"] is None
    run.prints(b"ux\n[    0.2] Run /sb")
    run.prints(b"in/init as init process\n")
    seconds = run.end(Reason.POWER_OFF, seconds=2.0)["seconds"]
    assert 0 <= seconds["first_line"] <= seconds["init"]
    assert seconds["run"] == 2.0
    assert 0 < seconds["setup"] <= seconds["total"]


def test_no_phase_is_longer_than_the_run(tmp_path: Path) -> None:
    """The guest's last words are read when it has already ended."""
    run = Run(tmp_path, "--json")
    run.record.start()
    run.record.first_line, run.record.init = 1.25, 2.5
    seconds = run.end(Reason.POWER_OFF, seconds=1.5)["seconds"]
    assert (seconds["first_line"], seconds["init"], seconds["run"]) == (1.25, 1.5, 1.5)


def test_the_machine(tmp_path: Path) -> None:
    run = Run(tmp_path, "--json", "--junit")
    run.results.config = MachineConfig(kernel=os.fsdecode(b"/k\xff"), cpus=2)
    machine = run.end(Reason.POWER_OFF)["machine"]
    assert machine["cpus"] == 2
    assert machine["kernel"].startswith("/k")
    machine["kernel"].encode()
    properties = {p.get("name"): p.get("value") for p in run.junit().iter("property")}
    assert properties["machine.cpus"] == "2"
    assert properties["machine.memory"] == str(256 << 20)


FAILURES = [
    *(Reason.PANIC, Reason.CRASH, Reason.MISSED, Reason.FAILED, Reason.WARNED, Reason.TIMEOUT),
    *(Reason.DEBUG_EXIT, Reason.NOT_BOOTABLE),
]
ERRORS = [Reason.ERROR, Reason.INTERRUPTED]


@pytest.mark.parametrize("reason", list(Reason))
def test_the_guest_s_fault_is_a_failure_and_ours_an_error(tmp_path: Path, reason: Reason) -> None:
    run = Run(tmp_path, "--json", "--junit")
    run.end(reason)
    root = run.junit()
    assert root.tag == "testsuites"
    (case,) = root.iter("testcase")
    assert len(list(case.iter("failure"))) == (reason in FAILURES)
    assert len(list(case.iter("error"))) == (reason in ERRORS)
    for suite in (root, root[0]):
        assert suite.get("tests") == "1"
        assert suite.get("failures") == str(int(reason in FAILURES))
        assert suite.get("errors") == str(int(reason in ERRORS))
    for found in (*case.iter("failure"), *case.iter("error")):
        assert found.get("type") == reason.name.lower()
        assert found.get("message") == run.document()["sentence"]


def test_the_explanation(tmp_path: Path) -> None:
    run = Run(tmp_path, "--json", "--junit")
    run.prints(b"some line\n")
    run.end(Reason.CRASH, report=("RIP 0000", "code: <0f> 0b"))
    (failure,) = run.junit().iter("failure")
    assert failure.text is not None
    assert "RIP 0000\ncode: <0f> 0b\n" in failure.text
    (output,) = run.junit().iter("system-out")
    assert output.text == "some line"


@given(text=st.text(), name=st.text(), raw=st.binary(max_size=200))
@example(text="", name="", raw=b"BUG: KASAN: ")
@example(text="", name="", raw=b"\nBUG: KASAN: x in y\nKernel panic - not syncing: x")
def test_any_text_gives_xml_and_json(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str, raw: bytes
) -> None:
    run = Run(tmp_path_factory.getbasetemp(), "--json", "--junit", name=name)
    run.prints(raw + b"\n\xed\xa0\x80 ]]> \xff\xfe \x00\x1b[31m &amp; <b> \xef\xbf\xbe\n")
    document = run.end(Reason.FAILED, detail=text, report=(text, "\x00\udcff\ufffe"))
    (case,) = run.junit().iter("testcase")
    assert case.find("system-out") is not None
    assert document["status"] in (3, 5)  # the text may be a panic


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=50))
def test_what_xml_allows_comes_back_as_it_was(text: str) -> None:
    allowed = "".join(c for c in text if c in "\t\n\r" or " " <= c <= "\ufffd" or c > "\uffff")
    document = {
        **dict.fromkeys(MEMBERS),
        "name": allowed,
        "reason": "panic",
        "status": 3,
        "sentence": allowed,
        "started": 0,
        "seconds": {"total": 1.0},
        "report": [allowed],
        "consoles": {"COM1": [allowed]},
    }
    root = ElementTree.fromstring(render(document).encode())
    (case,) = root.iter("testcase")
    assert case.get("name") == allowed
    assert case.findtext("system-out") == allowed
    (failure,) = case.iter("failure")
    assert failure.get("message") == allowed


class TestWhatFails:
    def test_a_bad_image(self, tmp_path: Path) -> None:
        run = Run(tmp_path, "--json", "--junit")
        run.results.begin()
        run.results.failed(ImageError("kernel x does not exist", "build it"))
        document = run.document()
        assert (document["reason"], document["status"]) == ("error", 1)
        assert document["sentence"] == "kernel x does not exist (build it)"
        assert set(document) == MEMBERS
        (error,) = run.junit().iter("error")
        assert error.get("message") == document["sentence"]

    def test_usage(self, tmp_path: Path) -> None:
        run = Run(tmp_path, "--json")
        run.results.begin()
        run.results.failed(ConfigError("--memory: 'x' is not a size"))
        assert (run.document()["reason"], run.document()["status"]) == ("usage", 2)

    def test_a_bug_of_ours(self, tmp_path: Path) -> None:
        run = Run(tmp_path, "--json")
        run.results.begin()
        run.results.failed(ZeroDivisionError("division\nby zero"))
        expected = "internal error: ZeroDivisionError: division by zero"
        assert run.document()["sentence"] == expected


class TestFiles:
    def test_before_the_end_they_say_that_there_was_none(self, tmp_path: Path) -> None:
        run = Run(tmp_path, "--json", "--junit")
        run.results.begin()
        assert (run.document()["reason"], run.document()["status"]) == ("unfinished", None)
        (error,) = run.junit().iter("error")
        assert "did not come to an end" in (error.get("message") or "")

    def test_nothing_else_is_left(self, tmp_path: Path) -> None:
        Run(tmp_path, "--json", "--junit").end(Reason.POWER_OFF)
        assert sorted(os.listdir(tmp_path)) == ["json", "junit"]

    def test_a_link_stays_one(self, tmp_path: Path) -> None:
        (tmp_path / "json").symlink_to("real")
        Run(tmp_path, "--json").end(Reason.POWER_OFF)
        assert (tmp_path / "json").is_symlink()
        assert (tmp_path / "real").is_file()

    def test_a_guest_s_image_is_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "kernel").write_text("precious")
        os.link(tmp_path / "kernel", tmp_path / "junit")
        run = Run(tmp_path, "--junit", inputs=[str(tmp_path / "kernel")])
        with pytest.raises(ConfigError, match=r"--junit: .*junit is a file that the run needs"):
            run.results.begin()
        run.results.failed(ConfigError("that"))
        assert (tmp_path / "kernel").read_text() == "precious"

    def test_two_in_one_place(self, tmp_path: Path) -> None:
        run = Run(tmp_path, "--json", "--junit")
        run.files["--junit"] = str(tmp_path / "." / "json")
        with pytest.raises(ConfigError, match="is --json's file"):
            run.results.begin()

    @pytest.mark.parametrize("path", ["missing/file", "", "."])
    def test_a_place_that_cannot_be_written(self, tmp_path: Path, path: str) -> None:
        run = Run(tmp_path, "--junit")
        run.files["--junit"] = str(tmp_path / path) if path else ""
        with pytest.raises((HostError, ConfigError), match=r"^--junit: "):
            run.results.begin()

    def test_one_that_can_has_the_error_of_one_that_cannot(self, tmp_path: Path) -> None:
        run = Run(tmp_path, "--json", "--junit")
        run.files["--junit"] = str(tmp_path / "missing/file")
        with pytest.raises(HostError) as raised:
            run.results.begin()
        run.results.failed(raised.value)
        assert "missing/file" in run.document()["sentence"]

    def test_what_is_no_file_is_written_as_it_is(self, tmp_path: Path) -> None:
        run = Run(tmp_path, "--junit")
        run.files["--junit"] = "/dev/null"
        run.results.begin()
        assert run.results.end(Outcome(Reason.POWER_OFF), run.verdict, {}) == []
        assert Path("/dev/null").is_char_device()

    def test_what_fits_through_no_door_is_written_to_the_open_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """/dev/stdout leads to a socket or a pipe; a socket can't be opened again."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            monkeypatch.setattr(results, "STREAMS", (ours.fileno(),))
            run = Run(tmp_path, "--junit")
            run.files["--junit"] = f"/proc/self/fd/{ours.fileno()}"
            run.results.begin()
            assert run.results.end(Outcome(Reason.POWER_OFF), run.verdict, {}) == []
            assert b"<testsuites" in theirs.recv(1 << 16)

    def test_a_working_directory_that_is_gone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        run = Run(tmp_path, "--json", "--junit", inputs=["kernel"])
        run.files["--junit"] = "junit"
        with pytest.raises(HostError, match="--junit: can't write junit: No such file"):
            run.results.begin()

    def test_what_cannot_be_written_at_the_end_is_said(self, tmp_path: Path) -> None:
        run = Run(tmp_path, "--junit")
        run.files["--junit"] = "/dev/full"
        run.results.begin()
        lost = run.results.end(Outcome(Reason.POWER_OFF), run.verdict, {})
        assert lost == ["--junit: can't write /dev/full: No space left on device"]
