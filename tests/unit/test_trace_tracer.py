"""The tracer's files: when they are emptied, what becomes of them when nothing can be written."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.test_board import Bench

from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError, HostError, ImageError
from pyvmm.outcome import Outcome, Reason
from pyvmm.trace import recorder
from pyvmm.trace.config import TraceConfig, TraceFilter
from pyvmm.trace.tracer import Output, Tracer

CONFIG = MachineConfig(kernel="kernel")


def run(tracer: Tracer, *lines: bytes, outcome: Outcome | None = None) -> None:
    """A run in which the guest prints some lines."""
    bench = Bench()
    tracer.attach(CONFIG, bench.board)
    (console,) = tracer.serial([NullSink()])
    tracer.start()
    for line in lines:
        for byte in line:
            console.put(byte)
    tracer.release()
    tracer.close(outcome)
    bench.board.close()


class NullSink:
    def connect(self, device: object) -> None:
        pass

    def put(self, byte: int) -> bool:
        return True

    def write(self, data: memoryview) -> int:
        return len(data)

    def resume_input(self) -> None:
        pass


def open_files(directory: Path) -> list[str]:
    """The files there that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists them is closed by now
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in found if path.startswith(f"{directory}/")]


def load(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_from_the_header_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    tracer = Tracer.open([TraceConfig(str(path), "jsonl")])
    run(tracer, b"hello\nworld", outcome=Outcome(Reason.PANIC, "oh", seconds=1.0))
    header, *events = load(path)
    assert (header["trace"], header["version"], header["kernel"]) == ("pyvmm", 1, "kernel")
    assert header["host"].endswith("KVM")
    assert [
        e.get("phase") or e.get("text") or e["kind"] for e in events if e["kind"] != "memory"
    ] == [
        *("setup", "entry", "console", "hello", "world", "end"),
        "end",
    ]
    assert events[0]["ns"] == 0
    assert events[-1] == {
        "ns": events[-1]["ns"],
        "kind": "end",
        "reason": "panicked",
        "detail": "oh",
        "status": 3,
        "dropped": 0,
    }


def test_a_run_that_fails_to_start_empties_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("of yesterday's run")
    tracer = Tracer.open([TraceConfig(str(path))])
    tracer.close()
    assert path.read_text() == "of yesterday's run"


def test_two_formats_at_once_and_filters(tmp_path: Path) -> None:
    text, lines = tmp_path / "trace.txt", tmp_path / "trace.jsonl"
    configs = [TraceConfig(str(text), "text"), TraceConfig(str(lines), "jsonl")]
    filters = [TraceFilter(kind="request"), TraceFilter(device="hvc")]
    run(Tracer.open(configs, filters), b"hello\n")
    assert {event["kind"] for event in load(lines)[1:]} == {"phase", "end"}
    assert "hello" not in text.read_text()


def test_an_older_trace_that_is_longer_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("x" * 100_000)
    run(Tracer.open([TraceConfig(str(path))]))
    assert "xxx" not in path.read_text()


@pytest.mark.parametrize(
    ("open_", "error", "says"),
    [
        (lambda d: [TraceConfig(f"{d}/no/trace")], HostError, "can't write the trace to"),
        (lambda d: [TraceConfig(str(d))], HostError, "Is a directory"),
        (lambda d: [TraceConfig(f"{d}/a"), TraceConfig(f"{d}/a", "jsonl")],
         ConfigError, "can't be two traces"),
        (lambda d: [TraceConfig("-"), TraceConfig("-", "jsonl")], ConfigError, "standard output"),
        (lambda d: [TraceConfig(f"{d}/disk.raw")], ConfigError, "is an image"),
    ],
)  # fmt: skip
def test_files_that_will_not_do(
    tmp_path: Path,
    open_: Callable[[Path], list[TraceConfig]],
    error: type[Exception],
    says: str,
) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"precious")
    with pytest.raises(error, match=says):
        Tracer.open(open_(tmp_path), inputs=[None, str(tmp_path / "missing"), str(disk)])
    assert not open_files(tmp_path)
    assert disk.read_bytes() == b"precious"


def test_symbols_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    path.write_text("not a map\n")
    with pytest.raises(ImageError, match="symbol file"):
        Tracer.open([TraceConfig("-")], symbols=str(path))


def test_a_full_disk_ends_the_trace_and_nothing_else(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "trace.jsonl"
    configs = [TraceConfig("/dev/full", "text"), TraceConfig(str(path), "jsonl")]
    run(Tracer.open(configs, say=said.append), b"one\n", b"two\n")
    assert said == ["the trace in /dev/full ends here: No space left on device"]
    assert load(path)[-1]["kind"] == "end"


def test_a_pipe_that_nobody_reads_any_more() -> None:
    said: list[str] = []
    reader, writer = os.pipe()
    os.close(reader)
    output = Output(TraceConfig("pipe"), writer, said.append)
    output.write("one\n")
    output.write("two\n")
    output.close()
    assert said == ["the trace in pipe ends here: Broken pipe"]


def test_a_pipe_that_does_not_wait_is_waited_for() -> None:
    """Whoever shares our standard output may have made it so."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text = "x" * (1 << 18)
    received: list[bytes] = []

    def drain() -> None:
        while piece := os.read(reader, 1 << 16):
            received.append(piece)

    thread = threading.Thread(target=drain)
    thread.start()
    output = Output(TraceConfig("pipe"), writer, print)
    output.write(text)
    output.close()
    thread.join()
    os.close(reader)
    assert b"".join(received) == text.encode()


def test_a_bug_in_the_writer_is_told(tmp_path: Path) -> None:
    """By a line about the trace, too: the verdict may have been reached before."""
    said: list[str] = []
    tracer = Tracer.open([TraceConfig(str(tmp_path / "trace"))], say=said.append)
    errors: list[BaseException] = []
    tracer.on_error = errors.append
    bench = Bench()
    tracer.attach(CONFIG, bench.board)
    tracer.start()
    tracer._recorder.add(("no such kind",))
    tracer.close()
    bench.board.close()
    assert [type(error) for error in errors] == [KeyError]
    assert said == [f"the trace in {tmp_path / 'trace'} ends here: KeyError: 'no such kind'"]


def test_a_reader_that_stops_before_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever closes the tracer doesn't wait for it."""
    monkeypatch.setattr(recorder, "PATIENCE", 0.01)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    said: list[str] = []
    tracer = Tracer.open([TraceConfig(f"/proc/self/fd/{writer}")], say=said.append)
    run(tracer, *[b"a line\n"] * 100)
    os.close(writer)
    os.close(reader)
    assert said[0].endswith("is not complete: nobody reads it")
