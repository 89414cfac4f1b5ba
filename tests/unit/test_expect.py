"""A console as a program uses it: against what a guest may print, and against real shells."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import threading
from collections.abc import Iterator
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.expect import KEPT, CommandError, Console, ExpectError
from pyvmm.outcome import Outcome, Reason

LONG = 60.0


class Guest:
    """What a test plays; ``takes`` is how much of its input it reads."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.read = b""
        self.takes = 1 << 30
        self.console = Console(self._send, lambda: self.outcome)

    def _send(self, data: bytes, deadline: float) -> int:
        taken = data[: self.takes]
        self.read += taken
        return len(taken)

    def end(self, reason: Reason) -> None:
        self.outcome = Outcome(reason, seconds=1.5)
        self.console.end()


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_expect_goes_on_behind_the_match_before(guest: Guest) -> None:
    guest.console.feed(b"one=1 one=2\none=3\n")
    assert [guest.console.expect(r"one=(\d)", 0)[1] for _ in range(3)] == ["1", "2", "3"]
    with pytest.raises(ExpectError):
        guest.console.expect("one", 0)


def test_what_comes_later_is_found(guest: Guest) -> None:
    threading.Thread(target=guest.console.feed, args=(b"login: ",)).start()
    assert guest.console.expect("^login: $", LONG)[0] == "login: "


def test_a_match_can_come_in_pieces(guest: Guest) -> None:
    for byte in "größe: 5 µm\r\n".encode():
        guest.console.feed(bytes([byte]))
    assert guest.console.expect(r"größe: (\d) µm$", 0)[1] == "5"


def test_lines_are_what_the_anchors_mean(guest: Guest) -> None:
    guest.console.feed(b"first\r\nsecond\r\n")
    assert guest.console.expect("^second$", 0)


def test_a_compiled_pattern_keeps_its_flags(guest: Guest) -> None:
    guest.console.feed(b"one\nTWO\n")
    assert guest.console.expect(re.compile("one.two", re.IGNORECASE | re.DOTALL), 0)


def test_disappointment_shows_the_last_lines(guest: Guest) -> None:
    guest.console.feed(b"".join(b"line %d\r\n" % n for n in range(100)))
    with pytest.raises(ExpectError) as caught:
        guest.console.expect("login: ", 0.01)
    assert "expected 'login: ' within 0.01 s" in str(caught.value)
    assert str(caught.value).endswith("| line 98\n  | line 99")
    assert caught.value.lines[-1] == "line 99"
    assert caught.value.outcome is None


def test_the_guests_end_is_told_at_once(guest: Guest) -> None:
    threading.Timer(0.05, guest.end, (Reason.PANIC,)).start()
    with pytest.raises(ExpectError, match=r"expected 'x': guest panicked after 1.50 s") as caught:
        guest.console.expect("x", LONG)
    assert caught.value.outcome is guest.outcome


def test_last_words_are_found_after_the_end(guest: Guest) -> None:
    guest.console.feed(b"bye\n")
    guest.end(Reason.POWER_OFF)
    assert guest.console.expect("bye", 0)


def test_send(guest: Guest) -> None:
    guest.console.send("grüße\n")
    guest.console.send(b"\x03")
    assert guest.read == "grüße\n\x03".encode()
    guest.takes = 3
    with pytest.raises(ExpectError, match="read 3 of 5 bytes"):
        guest.console.send("12345", 0)


def test_what_a_reader_does_not_see_is_left_out(guest: Guest) -> None:
    guest.console.feed(
        b"\x1b[2J\x1b[1;31mred\x1b[0m \x1b]0;title\x07\x1bPdata\x1b\\a\x00b\tc\x1b(B\x7f\r\n"
    )
    assert guest.console.output == "red ab\tc\n"


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [b"\x1b", b"\x1b[", b"\x1b]0;t", b"\x1b\\", b"\x07", b"\r\n", b"m", b"\xe2\x82"]
            ),
            st.binary(max_size=20),
        )
    ),
    st.data(),
)
def test_pieces_make_no_difference(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts) + b"\x1b[0m.\n"
    at_once, in_pieces = Guest(), Guest()
    at_once.console.feed(whole)
    position = 0
    while position < len(whole):
        size = data.draw(st.integers(1, len(whole) - position))
        in_pieces.console.feed(whole[position : position + size])
        position += size
    assert in_pieces.console.output == at_once.console.output
    assert not set(at_once.console.output) & {"\x1b", "\r", "\x00"}


def test_a_guest_that_talks_without_end_is_not_kept(guest: Guest) -> None:
    for _ in range(40):
        guest.console.feed(b"x" * (KEPT // 10))
    guest.console.feed(b"the end\n")
    assert len(guest.console.output) == KEPT
    assert guest.console.expect("x the end|xthe end", 0)


@pytest.mark.parametrize("start", [b"\x1b]0;", b"\x1b[", b"\x1bP", b"\x1b"])
def test_an_escape_sequence_without_end_swallows_little(guest: Guest, start: bytes) -> None:
    guest.console.feed(start)
    guest.console.feed(b"\n")
    guest.console.feed(b"0" * 300 + b"\n")
    guest.console.feed(b"still here\n")
    assert guest.console.expect("still here", 0)


class Shell:
    """A shell of this host at a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self._terminal, slave = pty.openpty()
        self._process = subprocess.Popen(
            ("setsid", "--ctty", "env", "--default-signal", *words),
            stdin=slave, stdout=slave, stderr=slave,
            env={"PATH": os.environ["PATH"], "PS1": "here# ", "TERM": "vt100"},
        )  # fmt: skip
        os.close(slave)
        self.console = Console(self._send, lambda: None)
        self._stopping = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _send(self, data: bytes, deadline: float) -> int:
        return os.write(self._terminal, data)

    def _read(self) -> None:
        while not self._stopping:
            if select.select([self._terminal], [], [], 0.1)[0]:
                try:
                    self.console.feed(os.read(self._terminal, 4096))
                except OSError:
                    break  # the shell has ended
        self.console.end()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stopping = True
        self._reader.join()
        os.close(self._terminal)


SHELLS = {
    "bash": ("bash", "--norc", "-i"),
    "dash": ("dash", "-i"),
}


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Iterator[Shell]:
    shell = Shell(*SHELLS[request.param])
    try:
        shell.console.expect("# $", LONG)
        yield shell
    finally:
        shell.close()


def test_commands_in_a_shell(shell: Shell) -> None:
    run = shell.console.run
    assert run("echo hello", LONG) == ("hello", 0)
    assert run("false", LONG) == ("", 1)
    assert run("printf 'no newline'; exit_status() { return 42; }; exit_status", LONG) == (
        "no newline",
        42,
    )
    assert run("echo one; echo; echo 'two  three'; echo", LONG) == ("one\n\ntwo  three", 0)
    assert run("x=5; cd /", LONG).status == 0
    assert run("echo $x $PWD '$x' \"quo'te\"", LONG).output == "5 / $x quo'te"
    assert run("for i in 1 2\ndo echo $i # a comment\ndone", LONG).output == "1\n2"
    assert run("sleep 0.01 &", LONG).status == 0
    assert run(f"echo {'y' * 2000}", LONG).output == "y" * 2000  # the echo wraps


def test_a_command_that_has_to_succeed(shell: Shell) -> None:
    assert shell.console.run("true", LONG, check=True).status == 0
    with pytest.raises(CommandError, match=r"(?s)'ls /no/such/file' ended with status.*/no/such"):
        shell.console.run("ls /no/such/file", LONG, check=True)


def test_a_command_that_does_not_end(shell: Shell) -> None:
    start = monotonic()
    with pytest.raises(ExpectError, match=r"'cat' did not end within 0.3 s"):
        shell.console.run("cat", 0.3)
    assert monotonic() - start < LONG
    shell.console.send("\x03")
    shell.console.expect("# $", LONG)
    assert shell.console.run("echo back", LONG).output == "back"


@pytest.mark.parametrize("command", ["a\tb", "\x03", "echo \x1b[A", "x" * 4000])
def test_what_a_terminal_would_act_on_is_refused(guest: Guest, command: str) -> None:
    with pytest.raises(ValueError, match="a terminal can't take this command"):
        guest.console.run(command)
    assert guest.read == b""


def test_a_command_whose_guest_dies(guest: Guest) -> None:
    guest.end(Reason.CRASH)
    with pytest.raises(ExpectError, match="'reboot -f' did not end: guest crashed"):
        guest.console.run("reboot -f")
