"""`pyvmm run` as a step of a CI job: the files it leaves, however the guest or the run ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from kvm.assembler import assemble
from kvm.command import AT_ONCE, PYVMM, TIMEOUT, Ended, command, last_line, run, run_to_end, start

ENDLESS = "print"
"""The ending that prints three lines and stands still."""


class Files:
    """Where a run leaves what."""

    def __init__(self, directory: Path) -> None:
        self.json, self.junit = directory / "boot.json", directory / "boot.xml"
        self.log = directory / "boot.log"

    @property
    def options(self) -> tuple[str, ...]:
        files = ("--json", self.json), ("--junit", self.junit), ("--log-console", self.log)
        return tuple(str(word) for pair in files for word in pair)

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.json.read_text())
        assert found["schema"] == 1
        return found

    def verdict(self) -> tuple[str, str]:
        """failure, error or passed, and the message."""
        (case,) = ElementTree.parse(self.junit).getroot().iter("testcase")
        for found in (*case.iter("failure"), *case.iter("error")):
            return found.tag, found.get("message") or ""
        return "passed", ""

    def lines(self) -> list[bytes]:
        """The log's, without their times."""
        lines = self.log.read_bytes().splitlines()
        assert all(re.match(rb" *\d+\.\d{6} ", line) for line in lines)
        return [line[13:] for line in lines]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_good_run(guests: Path, files: Files) -> None:
    ended = run(guests / "endings", *files.options, "--name", "good", append="power-off")
    assert ended.status == 0
    document = files.document()
    assert (document["name"], document["reason"], document["status"]) == ("good", "power_off", 0)
    assert document["machine"]["command_line"] == "power-off"
    assert document["versions"]["pyvmm"]
    assert files.verdict() == ("passed", "")
    assert files.lines() == []


POWER_OFF = "mov dx, 0x604; mov ax, 0x3400; out dx, ax; 9: hlt; jmp 9b"


@pytest.mark.parametrize("option", ["--flat", "--disk"])
def test_a_run_without_a_kernel(files: Files, tmp_path: Path, option: str) -> None:
    """It is named after what the guest starts from."""
    guest = tmp_path / "guest"
    guest.write_bytes(assemble(POWER_OFF, address=0x7C00).ljust(510, b"\0") + b"\x55\xaa")
    place = f"{guest}@0x7c00" if option == "--flat" else f"{guest},readonly=on"
    words = [*PYVMM, "run", option, place, *files.options, "--timeout", str(TIMEOUT)]
    assert run_to_end(words, b"", TIMEOUT).status == 0
    document = files.document()
    assert document["name"] == "guest"
    assert document["machine"]["kernel"] == (str(guest) if option == "--flat" else None)
    assert files.verdict() == ("passed", "")


@pytest.mark.parametrize("option", ["--flat", "--firmware"])
@pytest.mark.parametrize("output", ["--json", "--log-console", "--serial"])
def test_what_the_guest_starts_from_is_not_overwritten(
    tmp_path: Path, option: str, output: str
) -> None:
    guest = tmp_path / "guest"
    content = assemble(POWER_OFF, address=0x7C00).ljust(1 << 16, b"\0")
    guest.write_bytes(content)
    to = f"file:{guest}" if output == "--serial" else str(guest)
    words = [*PYVMM, "run", option, str(guest), output, to, "--timeout", str(TIMEOUT)]
    ended = run_to_end(words, b"", TIMEOUT)
    assert ended.status == 2
    assert ended.stderr.count("\n") == 1
    assert output in ended.stderr
    assert guest.read_bytes() == content


class TestPanic:
    def test_in_words(self, guests: Path, files: Files) -> None:
        ended = run(guests / "endings", *files.options, append="panic")
        assert ended.status == 3
        assert files.document()["panic"] == "the test wants it"
        tag, message = files.verdict()
        assert (tag, f"pyvmm: {message}") == ("failure", last_line(ended.stderr))
        assert b"not syncing: the test wants it" in files.lines()[0]

    def test_told_by_the_device_before_the_words_come(self, guests: Path, files: Files) -> None:
        ended = run(guests / "endings", *files.options, append="pvpanic-first")
        assert ended.status == 3
        assert 'panicked: "the test wants it"' in last_line(ended.stderr)

    def test_by_the_device_alone(self, guests: Path, files: Files) -> None:
        assert run(guests / "endings", *files.options, append="pvpanic").status == 3
        document = files.document()
        assert (document["reason"], document["panic"]) == ("panic", "")

    def test_on_com1_while_the_terminal_is_elsewhere(self, guests: Path, files: Files) -> None:
        ended = run(guests / "endings", "--console", "stdio", *files.options, append="panic")
        assert ended.status == 3
        assert 'panicked: "the test wants it"' in last_line(ended.stderr)
        assert files.lines()[0].startswith(b"COM1 [")
        assert set(files.document()["consoles"]) == {"COM1", "hvc0"}


class TestWarnings:
    def test_an_oops_that_goes_on(self, guests: Path, files: Files) -> None:
        ended = run(guests / "endings", "--fail-on-warnings", *files.options, append="oops")
        assert ended.status == 5
        assert "kernel NULL pointer dereference" in last_line(ended.stderr)
        document = files.document()
        assert (document["reason"], document["match"]["pattern"]) == ("warned", "oops")
        assert files.verdict()[0] == "failure"
        assert b"end trace" in ended.console  # the whole report

    def test_it_ends_the_run_at_once(self, guests: Path) -> None:
        with start(guests / "endings", "--fail-on-warnings", append="oops") as guest:
            guest.read_until(b"end trace")
            before = time.monotonic()
            assert guest.finish()[0] == 5
            assert time.monotonic() - before < AT_ONCE

    def test_an_oops_that_becomes_a_panic(self, guests: Path, files: Files) -> None:
        ended = run(guests / "endings", "--fail-on-warnings", *files.options, append="oops-panic")
        assert ended.status == 3
        assert files.document()["panic"] == "the test wants it"

    def test_without_the_option(self, guests: Path) -> None:
        ended = run(guests / "endings", "--timeout", "1", append="oops")
        assert ended.status == 124
        assert "and yet it runs" in last_line(ended.stderr)


def test_a_reboot_without_a_word_is_no_good_end(guests: Path, files: Files) -> None:
    """So ends a Linux that panics before its console is up, because of panic=-1."""
    append = "console=ttyS0 panic=-1 i8042-reset"
    ended = run(guests / "endings", *files.options, append=append)
    assert ended.status == 5
    assert "guest rebooted without printing anything" in last_line(ended.stderr)
    assert files.verdict()[0] == "failure"


@pytest.mark.parametrize(("ending", "state"), [("halt", "halted"), ("circles", "running")])
def test_a_hang(guests: Path, files: Files, ending: str, state: str) -> None:
    ended = run(guests / "endings", "--timeout", "1", *files.options, append=ending)
    assert ended.status == 124
    assert re.search(rf"timeout: vCPU 0 {state} at 0x10[0-9a-f]+, ", last_line(ended.stderr))
    (vcpu,) = files.document()["vcpus"]
    assert vcpu["state"] == state
    assert vcpu["registers"]["rip"] > 0x100000
    assert vcpu["last_exits"]
    assert files.verdict()[0] == "failure"


def test_a_crash(guests: Path, files: Files) -> None:
    assert run(guests / "endings", *files.options, append="triple-fault").status == 4
    document = files.document()
    (vcpu,) = document["vcpus"]
    assert vcpu["crash"] == "triple fault"
    if vcpu["registers"] is not None:  # AMD-V loses those of a triple fault
        assert vcpu["registers"]["cr0"] & 1
        assert vcpu["code"]["at_rip"].startswith("0f0b")
    assert document["report"][0] == "vCPU 0: triple fault"
    assert files.verdict()[0] == "failure"


def test_what_the_guest_prints_breaks_no_file(guests: Path, files: Files) -> None:
    assert run(guests / "endings", *files.options, append="poison").status == 0
    assert files.document()["consoles"]["COM1"][1] == "\tend"
    assert files.lines()[0].startswith(b"\x1b[31mred\x1b[0m ]]> <b>&amp;")
    (case,) = ElementTree.parse(files.junit).getroot().iter("testcase")
    assert 'red ]]> <b>&amp; "quoted"' in (case.findtext("system-out") or "")


def test_expected_text(guests: Path, files: Files) -> None:
    options = ("--expect", "prompt> ", *files.options)
    assert run(guests / "endings", *options, append=ENDLESS).status == 0
    match = files.document()["match"]
    assert match == {"option": "--expect", "pattern": "prompt> ", "line": "prompt> "}
    assert files.lines() == [b"first line", b"second line, 42 sheep", b"prompt> "]


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
    def test_one(self, guests: Path, files: Files, number: signal.Signals) -> None:
        with start(guests / "endings", *files.options, append=ENDLESS) as guest:
            guest.read_until(b"prompt> ")
            assert files.document()["reason"] == "unfinished"
            guest.process.send_signal(number)
            assert guest.finish()[0] == 128 + number
        assert (files.document()["reason"], files.document()["value"]) == ("interrupted", number)
        assert files.verdict()[0] == "error"
        assert files.lines()[-1] == b"prompt> "

    def test_sigterm_to_which_the_guest_listens(self, guests: Path, files: Files) -> None:
        with start(guests / "endings", *files.options, append="power-button") as guest:
            guest.read_until(b"waiting\n")
            guest.process.terminate()
            assert guest.finish()[0] == 0
        assert files.verdict() == ("passed", "")

    def test_one_that_ends_the_process_on_the_spot(self, guests: Path, files: Files) -> None:
        """A full pipe that nobody reads delays the end; the second signal doesn't wait for it."""
        with start(guests / "endings", *files.options, append="babble") as guest:
            guest.read_until(b"dull guest\n")
            deadline = time.monotonic() + TIMEOUT
            while len(files.lines()) < 2000 and time.monotonic() < deadline:
                time.sleep(0.05)
            guest.process.send_signal(signal.SIGINT)
            time.sleep(0.3)  # it flushes the console for a second, and is interrupted at that
            guest.process.send_signal(signal.SIGINT)
            assert guest.process.wait(TIMEOUT) == 130
        assert files.document()["reason"] == "interrupted"
        assert files.verdict()[0] == "error"

    def test_sigkill(self, guests: Path, files: Files) -> None:
        with start(guests / "endings", *files.options, append=ENDLESS) as guest:
            guest.read_until(b"prompt> ")
            guest.process.kill()
            guest.process.wait(TIMEOUT)
        assert files.document()["reason"] == "unfinished"
        tag, message = files.verdict()
        assert (tag, message) == ("error", files.document()["sentence"])


def pyvmm(*arguments: str | Path) -> Ended:
    ended = subprocess.run(
        [*PYVMM, "run", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr.decode(), 0)


class TestRunsThatDoNotStart:
    def test_a_missing_kernel(self, files: Files, tmp_path: Path) -> None:
        ended = pyvmm("-k", tmp_path / "missing", *files.options)
        assert ended.status == 1
        assert files.document()["reason"] == "error"
        tag, message = files.verdict()
        assert (tag, f"pyvmm: {message}\n") == ("error", ended.stderr)
        assert files.log.read_bytes() == b""

    def test_a_wrong_option(self, guests: Path, files: Files) -> None:
        assert pyvmm("-k", guests / "endings", "-m", "much", *files.options).status == 2
        document = files.document()
        assert (document["reason"], document["status"]) == ("usage", 2)
        assert "--memory" in files.verdict()[1]

    @pytest.mark.parametrize(
        "wrong", [["--on-reboot=never"], ["--bogus"], ["--cpus=two"], ["more"], ["--kernel"]]
    )
    def test_a_command_line_that_cannot_be_read(
        self, guests: Path, files: Files, tmp_path: Path, wrong: list[str]
    ) -> None:
        """An earlier run's result doesn't stay; an image does."""
        assert run(guests / "endings", *files.options, append="power-off").status == 0
        ended = pyvmm("-k", guests / "endings", *files.options, *wrong)
        assert ended.status == 2
        document = files.document()
        assert (document["reason"], document["status"]) == ("usage", 2)
        assert ended.stderr == f"pyvmm: {document['sentence']}\n"
        assert files.verdict() == ("error", document["sentence"])
        disk = tmp_path / "disk"
        disk.write_bytes(b"data" * 1024)
        assert pyvmm("-d", disk, "--junit", disk, *wrong).status == 2
        assert disk.read_bytes() == b"data" * 1024

    @pytest.mark.parametrize("option", ["--json", "--junit", "--log-console"])
    def test_an_image_is_not_overwritten(self, guests: Path, tmp_path: Path, option: str) -> None:
        disk = tmp_path / "disk"
        disk.write_bytes(b"data" * 1024)
        os.link(disk, tmp_path / "link")
        ended = pyvmm("-k", guests / "endings", "-d", disk, option, tmp_path / "link")
        assert ended.status == 2
        assert re.fullmatch(rf"pyvmm: {option}: .*/link is a file [^\n]*\n", ended.stderr)
        assert disk.read_bytes() == b"data" * 1024

    @pytest.mark.parametrize("option", ["--json", "--junit", "--log-console"])
    def test_a_place_that_cannot_be_written(
        self, guests: Path, tmp_path: Path, option: str
    ) -> None:
        ended = pyvmm("-k", guests / "endings", option, tmp_path / "missing/file")
        assert ended.status == 1
        assert re.fullmatch(
            rf"pyvmm: {option}: can't write [^\n]*missing/file: [^\n]*\n", ended.stderr
        )

    @pytest.mark.parametrize("option", ["--junit", "--log-console"])
    def test_one_place_for_two_files(self, guests: Path, tmp_path: Path, option: str) -> None:
        for number, other in enumerate(("--json={}", "--serial=file:{}", "--trace={}")):
            both = f"{tmp_path}/both{number}"
            other = other.format(both)
            ended = pyvmm("-k", guests / "endings", other, option, f"{tmp_path}/./both{number}")
            assert ended.status == 2, other
            assert re.fullmatch(rf"pyvmm: {option}: [^\n]*/both. is [^\n]*\n", ended.stderr), other

    @pytest.mark.parametrize("console", ["--serial", "--console"])
    def test_stdout_for_two(self, guests: Path, console: str) -> None:
        ended = pyvmm("-k", guests / "endings", "--json", "-", console, "stdio")
        assert ended.status == 2
        assert json.loads(ended.console)["reason"] == "usage"


def test_json_on_stdout(guests: Path) -> None:
    ended = run(guests / "endings", "--json", "-", append="poison")
    assert ended.status == 0
    assert json.loads(ended.console)["consoles"]["COM1"][1] == "\tend"
    assert "powered off" in last_line(ended.stderr)


def test_junit_among_the_console_s_output(guests: Path, tmp_path: Path) -> None:
    """The file that stdout goes to isn't replaced."""
    words = command(guests / "endings", "--junit", "/dev/stdout", append="panic")
    with (tmp_path / "out").open("wb") as out:
        assert subprocess.run(words, stdin=subprocess.DEVNULL, stdout=out).returncode == 3
    output = (tmp_path / "out").read_text()
    assert output.index("Kernel panic") < output.index("<testsuites")
    assert os.listdir(tmp_path) == ["out"]


def test_results_through_a_pipe(guests: Path) -> None:
    ended = run(guests / "endings", "--junit", "/dev/stdout", append="panic")
    assert ended.status == 3
    assert b"<testsuites" in ended.console
    ended = run(guests / "endings", "--json", "/dev/stderr", append="panic")
    assert '"reason": "panic"' in ended.stderr


def test_json_whose_reader_is_gone(guests: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = command(guests / "endings", "--json", "-", append="power-off")
    ended = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, timeout=TIMEOUT
    )
    os.close(writer)
    assert ended.returncode == 1
    assert b"pyvmm: --json: can't write to stdout: Broken pipe\n" in ended.stderr


def test_a_console_s_log_that_has_no_room(guests: Path) -> None:
    """That is said; the verdict is on the guest."""
    log = ("--log-console", "/dev/full")
    ended = run(guests / "endings", *log, "--expect", "sheep", append="print")
    assert ended.status == 0
    said = "pyvmm: --log-console: /dev/full ends here: No space left on device\n"
    assert said in ended.stderr


def test_json_that_has_no_room(guests: Path) -> None:
    ended = run(guests / "endings", "--json", "/dev/full", append="power-off")
    assert ended.status == 1
    assert "pyvmm: --json: can't write /dev/full: No space left on device" in ended.stderr
    assert "powered off" in last_line(ended.stderr)


def test_a_plain_run_needs_nothing_of_this(guests: Path) -> None:
    words = command(guests / "endings", append="power-off")
    ended = subprocess.run(
        [words[0], "-X", "importtime", *words[1:]],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", ended.stderr, re.MULTILINE))
    names = ("results", "junit", "record", "console_log", "kernel_reports", "cli.files")
    assert not imported & {f"pyvmm.{name}" for name in names}
    assert "pyvmm.verdict" in imported
