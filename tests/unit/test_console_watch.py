"""What --expect, --fail-on and the recognition of panics see of a guest's output."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyvmm.console_watch import KEPT_LINES, MAX_LINE, ConsoleWatch

PANIC = b"Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
MESSAGE = "VFS: Unable to mount root fs on unknown-block(0,0)"


class Watched:
    """A console watch whose callbacks leave a trace."""

    def __init__(self, *patterns: bytes) -> None:
        self.matches: list[tuple[bytes, str]] = []
        self.panics: list[str] = []
        self.ends: list[str] = []
        self.watch = ConsoleWatch(
            [re.compile(pattern) for pattern in patterns],
            on_match=lambda pattern, line: self.matches.append((pattern.pattern, line)),
            on_panic=self.panics.append,
            on_panic_end=self.ends.append,
        )


class TestPatterns:
    def test_match_in_a_line(self) -> None:
        console = Watched(rb"demo: (ok|done)")
        console.watch.feed(b"booting\r\nthe demo: ok, bye\r\nmore\r\n")
        assert console.matches == [(rb"demo: (ok|done)", "the demo: ok, bye")]

    def test_each_pattern_matches_once(self) -> None:
        console = Watched(b"a", b"b")
        console.watch.feed(b"a\na b\nb\n")
        assert [pattern for pattern, _ in console.matches] == [b"a", b"b"]

    def test_a_prompt_without_an_end_of_line(self) -> None:
        console = Watched(rb"login: $")
        console.watch.feed(b"Debian\r\n\r\nvm log")
        assert console.matches == []
        console.watch.feed(b"in: ")
        assert console.matches == [(rb"login: $", "vm login: ")]

    def test_anchors_are_the_lines(self) -> None:
        console = Watched(rb"^two$")
        console.watch.feed(b"one two\ntwo three\n")
        assert console.matches == []
        console.watch.feed(b"two\r\n")
        assert console.matches == [(rb"^two$", "two")]

    def test_no_match_across_lines(self) -> None:
        console = Watched(rb"one\s*two")
        console.watch.feed(b"one\ntwo\n")
        assert console.matches == []

    @pytest.mark.parametrize(
        "decorated",
        [
            b"\x1b[1;32mOK\x1b[0m done",
            b"\x1b]0;title\x07OK done",
            b"\x1b]0;title\x1b\\OK done",
            b"\x1b(BOK\x1b7 done\x1b8",
            b"\x1b[?25l\x1b[2JOK d\x1b[Kone",
            b"O\rK\x00 do\x08ne",
            b"\x1bP1$r\x1b\\OK done",
        ],
    )
    def test_escape_sequences_and_controls_are_not_there(self, decorated: bytes) -> None:
        console = Watched(rb"^OK done$")
        console.watch.feed(decorated + b"\n")
        assert console.matches == [(rb"^OK done$", "OK done")]

    def test_unfinished_escape_sequence_at_the_end(self) -> None:
        console = Watched(rb"login: $")
        console.watch.feed(b"login: \x1b")
        console.watch.feed(b"[0")
        assert len(console.matches) == 1


class TestPanic:
    @pytest.mark.parametrize(
        "prefix",
        [
            b"",
            b"[    1.234567] ",
            b"[   61.234567][    T1] ",
            b"[    1.234567][   C0] ",
            b"<0>[    1.234567] ",
            b"<0>",
            b"\r[12345.678901] ",
            b"\x1b[1m[    1.2] ",
        ],
    )
    def test_recognised_behind_printk_s_prefixes(self, prefix: bytes) -> None:
        console = Watched()
        console.watch.feed(b"before\r\n" + prefix + PANIC + b"\r\n")
        assert console.panics == [MESSAGE]
        assert console.ends == []

    @pytest.mark.parametrize(
        "line",
        [
            b"it said: " + PANIC,
            b"[    1.2] systemd[1]: " + PANIC,
            b"[foo] " + PANIC,
            b"echo '" + PANIC + b"'",
            b"Kernel panic is what we fear",
            b"kernel panic - not syncing: lower case",
        ],
    )
    def test_talk_of_a_panic_is_none(self, line: bytes) -> None:
        console = Watched()
        console.watch.feed(line + b"\n")
        assert console.panics == []

    def test_only_a_whole_line_is_quoted(self) -> None:
        console = Watched()
        console.watch.feed(b"[    1.0] Kernel panic - not syncing: Att")
        assert console.panics == []
        console.watch.feed(b"empted to kill init! exitcode=0x00000100\n")
        assert console.panics == ["Attempted to kill init! exitcode=0x00000100"]

    def test_end_of_panic(self) -> None:
        console = Watched()
        console.watch.feed(b"[ 1.0] " + PANIC + b"\n[ 1.1] Call Trace:\n")
        console.watch.feed(b"[ 1.2] ---[ end " + PANIC + b" ]---\n")
        assert console.panics == [MESSAGE]
        assert console.ends == [MESSAGE]

    def test_end_alone_stands_for_both(self) -> None:
        console = Watched()
        console.watch.feed(b"---[ end " + PANIC + b" ]---\n")
        assert console.panics == [MESSAGE]
        assert console.ends == [MESSAGE]

    def test_reported_once(self) -> None:
        console = Watched()
        console.watch.feed((PANIC + b"\n") * 3)
        assert console.panics == [MESSAGE]

    def test_not_at_the_cut_of_a_long_line(self) -> None:
        console = Watched()
        console.watch.feed(b"x" * MAX_LINE + PANIC + b"\n")
        assert console.panics == []
        console.watch.feed(PANIC + b"\n")
        assert console.panics == [MESSAGE]


class TestTail:
    def test_last_lines_and_the_unfinished_one(self) -> None:
        console = Watched()
        console.watch.feed(b"".join(b"line %d\r\n" % n for n in range(1000)) + b"prompt> ")
        tail = console.watch.tail()
        assert tail[-2:] == ["line 999", "prompt> "]
        assert len(tail) == KEPT_LINES + 1

    def test_nothing_that_upsets_the_user_s_terminal(self) -> None:
        console = Watched()
        console.watch.feed(b"\x1b[2J\x1b]0;gotcha\x07\x07\x9b2J\xff\xc2\x9b2J plain\ttext\n")
        (line,) = console.watch.tail()
        assert line.endswith("plain\ttext")
        assert not any(ord(character) < 0x20 and character != "\t" for character in line)
        assert "\x9b" not in line

    def test_endless_lines_take_no_memory(self) -> None:
        console = Watched(b"never")
        for _ in range(100):
            console.watch.feed(b"x" * 100_000)
        tail = console.watch.tail()
        assert len(tail) <= KEPT_LINES + 1
        assert max(map(len, tail)) <= MAX_LINE


_console_output = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"\n", b"\r\n", PANIC, b"---[ end " + PANIC + b" ]---", b"[    1.5] ", b"[ T1]",
                b"<0>", b"login: ", b"\x1b[1;31m", b"\x1b]0;t\x07", b"\x1b", b"ok", b"x" * 3000,
            ]
        ),
        st.binary(max_size=10),
    ),
    max_size=30,
).map(b"".join)  # fmt: skip


@given(_console_output, st.data())
@example(b"x" * MAX_LINE + b"\nlogin: \n" + PANIC + b"\n", None)
def test_the_same_however_the_output_is_cut(text: bytes, data: st.DataObject | None) -> None:
    patterns = (b"login: ", b"ok", rb"pan+ic")
    whole, pieces = Watched(*patterns), Watched(*patterns)
    whole.watch.feed(text)
    position = 0
    while position < len(text):
        step = 1
        if data is not None:
            step = data.draw(st.integers(1, min(len(text) - position, 5000)))
        pieces.watch.feed(text[position : position + step])
        position += step
    assert {pattern for pattern, _ in pieces.matches} == {pattern for pattern, _ in whole.matches}
    assert pieces.panics == whole.panics
    assert pieces.ends == whole.ends
    assert pieces.watch.tail() == whole.watch.tail()


@given(st.binary(max_size=200))
def test_any_output_is_survived(text: bytes) -> None:
    console = Watched(rb"\x1b", b"\r")
    console.watch.feed(text)
    assert console.matches == []
    console.watch.tail()
