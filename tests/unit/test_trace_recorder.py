"""The queue between a machine's threads and the trace's writer: complete, in order, bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from pyvmm.trace import recorder as module
from pyvmm.trace.recorder import BATCH, CAPACITY, Record, Recorder

TIMEOUT = 20.0
END: Record = ("end",)


class Paper:
    """What is written, and a gate that holds the writer up."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.batches: list[int] = []
        self.errors: list[BaseException] = []
        self.open = threading.Event()
        self.open.set()
        self.held = threading.Event()
        self.recorder = Recorder(self.write, lambda: self.records.append(END), self.errors.append)

    def write(self, batch: Sequence[Record]) -> None:
        if not self.open.is_set():
            self.held.set()
            self.open.wait(TIMEOUT)
        self.records += batch
        self.batches.append(len(batch))


@pytest.fixture
def paper() -> Iterator[Paper]:
    paper = Paper()
    yield paper
    paper.open.set()
    paper.recorder.stop()


def test_all_is_written_in_order(paper: Paper) -> None:
    paper.recorder.start()
    for number in range(3 * BATCH + 1):
        paper.recorder.add((number,))
    assert paper.recorder.stop()
    assert paper.records == [*((number,) for number in range(3 * BATCH + 1)), END]
    assert max(paper.batches) <= BATCH


def test_what_is_recorded_before_the_start_is_not_lost(paper: Paper) -> None:
    paper.recorder.add(("early",))
    paper.recorder.start()
    assert paper.recorder.stop()
    assert paper.records == [("early",), END]


def test_a_full_queue_holds_the_guest_and_loses_nothing(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CAPACITY", 100)
    paper.open.clear()
    paper.recorder.start()
    recorder, total, threads = paper.recorder, 1000, 4
    most = 0

    def guest(who: int) -> None:
        nonlocal most
        for number in range(total):
            recorder.add((who, number))
            most = max(most, len(recorder.records))

    guests = [threading.Thread(target=guest, args=(who,)) for who in range(threads)]
    for each in guests:
        each.start()
    assert paper.held.wait(TIMEOUT)
    paper.open.set()
    for each in guests:
        each.join(TIMEOUT)
    assert recorder.stop()
    assert most <= 100 + threads
    for who in range(threads):
        assert [r[1] for r in paper.records if r[0] == who] == list(range(total))


def test_at_the_end_nobody_waits_for_a_reader_that_has_stopped(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's threads come free, and so does who ends it."""
    monkeypatch.setattr(module, "CAPACITY", 10)
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    paper.open.clear()
    paper.recorder.start()
    paper.recorder.add((0,))
    assert paper.held.wait(TIMEOUT)

    def guest() -> None:
        for number in range(20):
            paper.recorder.add((number,))

    thread = threading.Thread(target=guest, daemon=True)
    thread.start()
    paper.recorder.release()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert not paper.recorder.stop()


def test_a_bug_of_the_writers_is_told_once_and_holds_nobody(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CAPACITY", 10)

    def fail(batch: Sequence[Record]) -> None:
        raise KeyError("a bug")

    recorder = Recorder(fail, lambda: fail(()), paper.errors.append)
    recorder.start()
    for number in range(100):
        recorder.add((number,))
    assert recorder.stop()
    assert [type(error) for error in paper.errors] == [KeyError]


def test_the_bound_is_what_the_documentation_says() -> None:
    assert CAPACITY == 16384
