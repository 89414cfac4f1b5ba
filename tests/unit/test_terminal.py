"""The user's terminal: raw mode comes and goes, and our keys stay ours."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.backends.terminal import EscapeKeys, Key, RawMode


@pytest.fixture
def terminal() -> Iterator[int]:
    master, slave = os.openpty()
    yield slave
    os.close(slave)
    os.close(master)


def local_modes(fd: int) -> int:
    modes = termios.tcgetattr(fd)[3]
    assert isinstance(modes, int)
    return modes


class TestRawMode:
    def test_characters_come_as_they_are_typed(self) -> None:
        master, slave = os.openpty()
        with RawMode(slave):
            os.write(master, b"\x03\r\x11\x13\x1a")  # Ctrl-C, Enter, Ctrl-Q, Ctrl-S, Ctrl-Z
            assert os.read(slave, 16) == b"\x03\r\x11\x13\x1a"
        os.close(slave)
        os.close(master)

    def test_line_feeds_do_not_make_a_staircase(self) -> None:
        master, slave = os.openpty()
        with RawMode(slave):
            os.write(slave, b"a\nb\n")
            assert os.read(master, 16) == b"a\r\nb\r\n"
        os.close(slave)
        os.close(master)

    def test_restored_at_the_end(self, terminal: int) -> None:
        before = termios.tcgetattr(terminal)
        with RawMode(terminal):
            assert not local_modes(terminal) & (termios.ICANON | termios.ECHO | termios.ISIG)
        assert termios.tcgetattr(terminal) == before

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_restored_after_an_exception(self, terminal: int, error: type[BaseException]) -> None:
        before = termios.tcgetattr(terminal)
        with pytest.raises(error), RawMode(terminal):
            raise error
        assert termios.tcgetattr(terminal) == before

    def test_restore_is_idempotent(self, terminal: int) -> None:
        before = termios.tcgetattr(terminal)
        mode = RawMode(terminal)
        mode.restore()
        with mode:
            mode.restore()
            assert termios.tcgetattr(terminal) == before
            changed = termios.tcgetattr(terminal)
            changed[3] = local_modes(terminal) & ~termios.ECHO
            termios.tcsetattr(terminal, termios.TCSANOW, changed)
        # What somebody else set since isn't undone by a second restore.
        assert termios.tcgetattr(terminal) == changed

    def test_resumed_after_a_shell_had_the_terminal(self, terminal: int) -> None:
        before = termios.tcgetattr(terminal)
        mode = RawMode(terminal)
        mode.resume()
        assert termios.tcgetattr(terminal) == before
        with mode:
            raw = termios.tcgetattr(terminal)
            termios.tcsetattr(terminal, termios.TCSANOW, before)
            mode.resume()
            assert termios.tcgetattr(terminal) == raw
        assert termios.tcgetattr(terminal) == before

    def test_a_terminal_that_is_gone(self) -> None:
        master, slave = os.openpty()
        with RawMode(slave):
            os.close(slave)
        os.close(master)

    def test_a_pipe_is_left_alone(self) -> None:
        reader, writer = os.pipe()
        with RawMode(reader) as mode:
            assert not mode.available
        os.close(reader)
        os.close(writer)

    def test_a_background_job_leaves_the_terminal_alone(
        self, terminal: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp() + 1)
        before = termios.tcgetattr(terminal)
        with RawMode(terminal) as mode:
            assert not mode.available
            assert termios.tcgetattr(terminal) == before


class Recorder:
    """Escape keys whose actions leave a trace."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.shown: list[str] = []
        self.keys = EscapeKeys(
            {
                "x": Key("quit", lambda: self.done.append("quit")),
                "b": Key("send a break", lambda: self.done.append("break")),
            },
            self.shown.append,
        )


class TestEscapeKeys:
    def test_other_keys_pass(self) -> None:
        typed = Recorder()
        assert typed.keys.feed(b"ls -l\r\x03xbh") == b"ls -l\r\x03xbh"
        assert typed.done == []

    def test_actions(self) -> None:
        typed = Recorder()
        assert typed.keys.feed(b"a\x01bc\x01x") == b"ac"
        assert typed.done == ["break", "quit"]

    @pytest.mark.parametrize("second", [b"a", b"\x01"])
    def test_literal_prefix(self, second: bytes) -> None:
        assert Recorder().keys.feed(b"\x01" + second + b"x") == b"\x01x"

    def test_unknown_key_is_swallowed(self) -> None:
        typed = Recorder()
        assert typed.keys.feed(b"\x01?x") == b"x"
        assert typed.done == []

    def test_help_names_every_key(self) -> None:
        typed = Recorder()
        assert typed.keys.feed(b"\x01h") == b""
        (text,) = typed.shown
        for line in ("Ctrl-A x  quit", "Ctrl-A b  send a break", "Ctrl-A a  ", "Ctrl-A h  "):
            assert line in text

    @given(st.lists(st.sampled_from([b"\x01", b"a", b"b", b"x", b"h", b"z", b"\r"])), st.data())
    def test_the_same_however_typed(self, keys: list[bytes], data: st.DataObject) -> None:
        text = b"".join(keys)
        whole, pieces = Recorder(), Recorder()
        expected = whole.keys.feed(text)
        got = b""
        position = 0
        while position < len(text):
            step = data.draw(st.integers(1, len(text) - position))
            got += pieces.keys.feed(text[position : position + step])
            position += step
        assert got == expected
        assert (pieces.done, pieces.shown) == (whole.done, whole.shown)
