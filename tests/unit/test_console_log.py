"""--log-console: every byte of the consoles, a line at a time, with the host's time."""

from __future__ import annotations

import re
from pathlib import Path
from time import monotonic_ns

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import console_log
from pyvmm.console_log import MAX_LINE, ConsoleLog, LogConfig
from pyvmm.errors import ConfigError, HostError

STAMP = rb" *\d+\.\d{6} "


def logged(path: Path, *pieces: bytes, consoles: int = 1, wall: bool = False) -> bytes:
    """The file after these pieces came, to each console in turn."""
    log = ConsoleLog(LogConfig(str(path), wall))
    feeds = [log.console(f"COM{number}") for number in range(1, consoles + 1)]
    log.start(monotonic_ns())
    for number, piece in enumerate(pieces):
        feeds[number % consoles](piece)
    log.close()
    return path.read_bytes()


def lines(log: bytes) -> list[bytes]:
    """Without the stamps, which must be there."""
    found = [re.fullmatch(STAMP + b"(.*)", line, re.DOTALL) for line in log.split(b"\n")[:-1]]
    assert all(found)
    return [match[1] for match in found if match]


def test_lines_and_a_prompt(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", b"one\r\nt", b"wo\n\nlogin: ")
    assert lines(log) == [b"one", b"two", b"", b"login: "]


def test_a_line_is_there_as_soon_as_it_is_complete(tmp_path: Path) -> None:
    log = ConsoleLog(LogConfig(str(tmp_path / "log")))
    feed = log.console("COM1")
    log.start(monotonic_ns())
    feed(b"complete\nnot yet")
    assert lines((tmp_path / "log").read_bytes()) == [b"complete"]
    log.close()


def test_the_time_is_the_line_s_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    now = [0]
    monkeypatch.setattr(console_log, "monotonic_ns", lambda: now[0])
    log = ConsoleLog(LogConfig(str(path)))
    feed = log.console("COM1")
    log.start(0)
    for seconds, piece in ((1, b"vm "), (2, b"login: "), (9, b"root\r"), (10, b"\nPassword: ")):
        now[0] = seconds * 1_000_000_000
        feed(piece)
    now[0] = 12_000_000_000
    log.close()
    assert path.read_bytes() == b"    1.000000 vm login: root\n   10.000000 Password: \n"


def test_two_consoles_have_names(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", b"a", b"b\n", b"c\n", consoles=2)
    assert lines(log) == [b"COM2 b", b"COM1 ac"]


def test_the_time_of_day(tmp_path: Path) -> None:
    (line,) = lines(logged(tmp_path / "log", b"x\n", wall=True))
    assert re.fullmatch(rb"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z x", line)


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", *[b"x" * 1000] * 10, b"\n")
    assert [len(line) for line in lines(log)] == [MAX_LINE, MAX_LINE, 10_000 - 2 * MAX_LINE]


@given(data=st.data(), text=st.binary(max_size=300))
def test_no_byte_is_lost(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, text: bytes
) -> None:
    text = text.replace(b"\r", b"")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    log = logged(tmp_path_factory.getbasetemp() / "log", *pieces)
    assert b"\n".join(lines(log)) == text.removesuffix(b"\n")


def test_an_old_log_is_there_until_the_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("yesterday's")
    log = ConsoleLog(LogConfig(str(path)))
    assert path.read_text() == "yesterday's"
    log.start(monotonic_ns())
    assert path.read_text() == ""
    log.close()


def test_a_full_file_system_is_told_once() -> None:
    lost: list[OSError] = []
    log = ConsoleLog(LogConfig("/dev/full"))
    log.on_lost = lost.append
    feed = log.console("COM1")
    log.start(monotonic_ns())
    feed(b"one\n")
    feed(b"two\n")
    log.close()
    assert [error.strerror for error in lost] == ["No space left on device"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"--log-console: can't write .*missing/log: No such file"):
        ConsoleLog(LogConfig(str(tmp_path / "missing/log")))


def test_sub_options() -> None:
    assert LogConfig.parse("boot.log") == LogConfig("boot.log", False)
    assert LogConfig.parse("boot.log,wall=on") == LogConfig("boot.log", True)


@pytest.mark.parametrize("text", ["", ",wall=on", "log,wall=yes", "log,walls=on"])
def test_bad_sub_options(text: str) -> None:
    with pytest.raises(ConfigError, match="--log-console"):
        LogConfig.parse(text)
