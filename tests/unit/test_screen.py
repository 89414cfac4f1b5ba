"""The text screen on the host's side: on a terminal, as a log of lines, and its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvm.screen import Colours, Screen
from unit.fakes import FakeClock

from pyvmm.backends.screen import LOOK_NS, MAX_UNWRITTEN, SETTING_UP_NS, TYPE_AHEAD, ScreenBackend
from pyvmm.backends.screen_display import ENTER, LEAVE, Display
from pyvmm.backends.screen_keys import KeyDecoder
from pyvmm.backends.screen_text import SETTLED_NS, Transcript
from pyvmm.devices.ps2 import CTRL_ALT_DELETE, Translator
from pyvmm.devices.text_screen import BLANK, GLYPHS, Picture

COLUMNS, ROWS = 80, 25


def picture(
    *lines: str,
    cursor: tuple[int, int] | None = (0, 0),
    attribute: int = 0x07,
    rows: int = ROWS,
    blinks: bool = True,
) -> Picture:
    codes = {glyph: code for code, glyph in reversed(list(enumerate(GLYPHS)))} | {" ": 0x20}
    padded = [line.ljust(COLUMNS) for line in (*lines, *[""] * (rows - len(lines)))]
    cells = b"".join(bytes((codes[letter], attribute)) for line in padded for letter in line)
    return Picture(COLUMNS, rows, cells, cursor, blinks)


class TestDisplay:
    """The terminal model, fed with what the display says, shows the picture."""

    def test_first_everything_then_what_changed(self) -> None:
        display, screen = Display(80, 25), Screen()
        screen.feed(ENTER + display.frame(picture("Hello", "", "world")))
        assert screen.lines[:3] == ["Hello", "", "world"]
        assert display.frame(picture("Hello", "", "world")) == b""
        change = display.frame(picture("Hello", "", "word", cursor=(2, 4)))
        assert len(change) < 30
        screen.feed(change)
        assert screen.lines[2] == "word"
        assert (screen.row, screen.column) == (2, 4)

    @pytest.mark.parametrize(
        ("attribute", "blinks", "colours"),
        [
            (0x07, True, (37, 40, False)),
            (0x1E, True, (93, 44, False)),
            (0x4F, True, (97, 41, False)),
            (0x8C, True, (91, 40, True)),
            (0xB1, False, (34, 106, False)),
            (0x20, True, (30, 42, False)),
        ],
    )
    def test_colours(self, attribute: int, blinks: bool, colours: Colours) -> None:
        screen = Screen()
        shown = picture("x", attribute=attribute, blinks=blinks)
        screen.feed(ENTER + Display(80, 25).frame(shown))
        assert screen.colours[0][0] == colours

    def test_the_cursor_is_where_the_guests_is_or_hidden(self) -> None:
        display, screen = Display(80, 25), Screen()
        screen.feed(ENTER + display.frame(picture(cursor=None)))
        assert 25 not in screen.modes
        screen.feed(display.frame(picture(cursor=(24, 79))))
        assert 25 in screen.modes
        assert (screen.row, screen.column) == (24, 79)

    def test_a_small_terminal_shows_the_line_with_the_cursor(self) -> None:
        lines = [f"line {number}" for number in range(25)]
        display, screen = Display(6, 10), Screen(10, 6)
        screen.feed(ENTER + display.frame(picture(*lines)))
        assert screen.lines[:2] == ["line 0", "line 1"]
        screen.feed(display.frame(picture(*lines, cursor=(20, 3))))
        assert (screen.lines[0][-1], screen.lines[9]) == ("1", "line 2")
        assert (screen.row, screen.column) == (9, 3)
        screen.feed(display.frame(picture(*lines, cursor=(20, 60))))
        assert 25 not in screen.modes, "it is outside"

    def test_a_terminal_of_another_size(self) -> None:
        display = Display(80, 25)
        display.frame(picture("text"))
        display.resize(100, 40)
        screen = Screen(40, 100)
        screen.feed(display.frame(picture("text")))
        assert screen.lines[0] == "text"

    def test_a_notice_and_the_picture_again(self) -> None:
        display, screen = Display(80, 25), Screen()
        screen.feed(ENTER + display.frame(picture("one", "two")))
        display.notice(["keys:"])
        screen.feed(display.frame(picture("one", "two")))
        assert screen.lines[:2] == ["keys:", "two"]
        display.notice([])
        screen.feed(display.frame(picture("one", "two")))
        assert screen.lines[:2] == ["one", "two"]

    @given(
        st.lists(
            st.builds(
                Picture,
                columns=st.just(12),
                rows=st.integers(1, 6),
                cells=st.binary(min_size=144, max_size=144),
                cursor=st.none() | st.tuples(st.integers(0, 0), st.integers(0, 11)),
                blinks=st.booleans(),
            ),
            max_size=5,
        ),
        st.integers(1, 14),
        st.integers(1, 7),
    )
    def test_any_pictures_one_after_the_other(
        self, pictures: list[Picture], columns: int, rows: int
    ) -> None:
        display, screen = Display(columns, rows), Screen(rows, columns)
        screen.feed(ENTER)
        for shown in pictures:
            screen.feed(display.frame(shown))
            for row in range(min(rows, shown.rows)):
                codes = shown.cells[24 * row : 24 * row + 24 : 2]
                wide = min(columns, 12)
                expected = "".join(GLYPHS[code] for code in codes)[:wide]
                assert "".join(screen.cells[row][:wide]) == expected
                for attribute, (character, background, blinking) in zip(
                    shown.cells[24 * row + 1 : 24 * row + 24 : 2],
                    screen.colours[row][:wide],
                    strict=False,
                ):
                    assert (character >= 90) == bool(attribute & 8)
                    assert blinking == (shown.blinks and attribute >= 0x80)
                    assert (background >= 100) == (not shown.blinks and attribute >= 0x80)
            if shown.cursor is not None and shown.cursor[1] < columns:
                assert (screen.row, screen.column) == shown.cursor


class Log:
    """A transcript, and a clock that goes on between looks."""

    def __init__(self) -> None:
        self.text = ""
        self.transcript = Transcript(self.put)
        self.now = 0

    def put(self, data: bytes) -> None:
        self.text += data.decode()

    def look(self, shown: Picture, times: int = 1) -> None:
        for _ in range(times):
            self.now += LOOK_NS
            self.transcript.look(shown, self.now)

    def settle(self, shown: Picture) -> None:
        self.look(shown, 1 + SETTLED_NS // LOOK_NS + 1)

    def finish(self, shown: Picture) -> None:
        self.transcript.finish(shown, self.now)


@pytest.fixture
def log() -> Log:
    return Log()


class TestTranscript:
    def test_a_line_is_printed_when_it_has_settled(self, log: Log) -> None:
        log.look(picture("Hel", cursor=None))
        log.look(picture("Hello", cursor=None))
        assert log.text == ""
        log.settle(picture("Hello", cursor=None))
        assert log.text == "Hello\n"
        log.settle(picture("Hello", cursor=None))
        assert log.text == "Hello\n"

    def test_lines_come_in_their_order(self, log: Log) -> None:
        log.settle(picture("one", "", "three", cursor=(3, 0)))
        assert log.text == "one\nthree\n"

    def test_a_prompt_and_what_is_typed_behind_it(self, log: Log) -> None:
        log.settle(picture("boot", "$ ", cursor=(1, 2)))
        assert log.text == "boot\n$ "
        log.settle(picture("boot", "$ ls", cursor=(1, 4)))
        assert log.text == "boot\n$ ls"
        log.settle(picture("boot", "$ ls", "README", "$ ", cursor=(3, 2)))
        assert log.text == "boot\n$ ls\nREADME\n$ "
        log.finish(picture("boot", "$ ls", "README", "$ ", cursor=(3, 2)))
        assert log.text == "boot\n$ ls\nREADME\n$ \n"

    def test_a_line_that_is_rewritten_is_printed_again(self, log: Log) -> None:
        log.settle(picture("10 %", cursor=None))
        log.settle(picture("20 %", cursor=None))
        assert log.text == "10 %\n20 %\n"

    def test_a_line_that_never_settles_is_printed_at_the_end(self, log: Log) -> None:
        for number in range(100):
            log.look(picture("fixed", f"{number} ticks", cursor=None))
        assert log.text == "fixed\n"
        log.finish(picture("fixed", "99 ticks", cursor=None))
        assert log.text == "fixed\n99 ticks\n"

    def test_a_cleared_screen_prints_nothing(self, log: Log) -> None:
        log.settle(picture("one", cursor=None))
        log.settle(picture(cursor=None))
        assert log.text == "one\n"
        log.settle(picture("one", cursor=None))
        assert log.text == "one\none\n"

    def test_what_was_seen_once_is_not_lost_when_the_screen_is_replaced(self, log: Log) -> None:
        log.look(picture("Loading", "stage 2", cursor=None))
        log.settle(picture("Welcome", cursor=None))
        assert log.text == "Loading\nstage 2\nWelcome\n"

    def test_a_line_above_a_part_that_scrolls_stays(self, log: Log) -> None:
        body = [f"message {number}" for number in range(100)]
        log.settle(picture("== kernel 1.0 ==", *body[:24], cursor=None))
        for number in range(1, 76):
            log.look(picture("== kernel 1.0 ==", *body[number : number + 24], cursor=None))
        log.finish(picture("== kernel 1.0 ==", *body[76:], cursor=None))
        assert log.text == "".join(f"{line}\n" for line in ("== kernel 1.0 ==", *body))

    @pytest.mark.parametrize("step", [1, 3, 24])
    def test_a_screen_that_scrolls_between_looks(self, log: Log, step: int) -> None:
        body = [f"message {number}" for number in range(121)]
        for number in range(0, 97, step):
            log.look(picture(*body[number : number + 25], cursor=None))
        log.finish(picture(*body[-25:], cursor=None))
        assert log.text == "".join(f"{line}\n" for line in body)

    def test_a_line_that_is_too_long_is_one(self, log: Log) -> None:
        long = "Kernel panic - not syncing: " + "x" * 100
        lines = ["first", long[:80], long[80:], "last"]
        log.settle(picture(*lines, cursor=None))
        log.finish(picture(*lines, cursor=None))
        assert log.text == f"first\n{long}\nlast\n"

    def test_and_one_that_scrolls_away(self, log: Log) -> None:
        long = [f"{number:03}" * 50 for number in range(60)]
        rows = [piece for line in long for piece in (line[:80], line[80:])]
        for end in range(25, len(rows) + 1):
            log.look(picture(*rows[end - 25 : end], cursor=None))
        log.finish(picture(*rows[-25:], cursor=None))
        assert log.text == "".join(f"{line}\n" for line in long)

    @pytest.mark.parametrize(
        ("first", "second"), [("═" * 80, "x"), ("x" * 80, "│"), ("x" * 79, "y")]
    )
    def test_frames_are_lines_of_their_own(self, log: Log, first: str, second: str) -> None:
        log.finish(picture(first, second, cursor=None))
        assert log.text == f"{first}\n{second}\n"

    def test_a_screen_of_more_lines(self, log: Log) -> None:
        log.settle(picture("one", cursor=None))
        lines = ["one", *[""] * 40, "two"]
        log.settle(picture(*lines, rows=50, cursor=None))
        assert log.text == "one\ntwo\n"

    @given(
        st.lists(
            st.text(st.sampled_from("ab ☺é"), min_size=1, max_size=6).map(lambda t: f"{t}."),
            unique=True,
            max_size=60,
        )
    )
    def test_of_a_guest_that_moves_its_cursor_no_line_is_lost(self, printed: list[str]) -> None:
        """It is looked at when a line ends, and at no other time."""
        log, screen = Log(), [""]
        for number, line in enumerate(printed):
            screen[-1] = line
            screen.append("")
            screen = screen[-25:]
            log.transcript.look(picture(*screen, cursor=(len(screen) - 1, 0)), number)
        log.finish(picture(*screen, cursor=(len(screen) - 1, 0)))
        assert log.text == "".join(f"{line.rstrip()}\n" for line in printed)

    @given(
        st.lists(
            st.tuples(st.binary(min_size=48, max_size=48), st.integers(0, 3), st.integers(0, 5)),
            max_size=8,
        )
    )
    def test_any_screens(self, cells: list[tuple[bytes, int, int]]) -> None:
        log = Log()
        for content, row, column in cells:
            log.look(Picture(6, 4, content, (row, column), True), 2)
        if cells:
            log.settle(Picture(6, 4, BLANK * 24, None, True))
        assert all(line.isprintable() for line in log.text.split("\n"))


# The main keys in scan code set 1, where they are numbered by rows.
_ROWS = {0x02: "1234567890-=", 0x10: "qwertyuiop[]", 0x1E: "asdfghjkl;'`", 0x2B: "\\zxcvbnm,./"}
_UPPER = dict(zip("1234567890-=[];'`\\,./", '!@#$%^&*()_+{}:"~|<>?', strict=True))
KEYS = {0x1C: "\n", 0x0F: "\t", 0x39: " ", 0x0E: "\x7f", 0x01: "\x1b"} | {
    start + number: letter for start, row in _ROWS.items() for number, letter in enumerate(row)
}


def typed(codes: bytes) -> Iterator[str]:
    """What a guest's driver for a US keyboard makes of scan codes in set 2: characters; other keys
    as their code in set 1, with what is held."""
    translator, held, extended = Translator(), set[str](), False
    names = {0x2A: "shift", 0x1D: "ctrl", 0x38: "alt"}
    for byte in codes:
        code = translator.feed(byte)
        if code is None:
            continue
        if code == 0xE0:
            extended = True
            continue
        name = names.get(code & 0x7F)
        if name is not None and not extended:
            (held.remove if code & 0x80 else held.add)(name)
        elif not code & 0x80:
            letter = "" if extended else KEYS.get(code, "")
            if held == {"shift"} and letter and letter.isprintable():
                letter = _UPPER.get(letter, letter.upper())
            elif held == {"ctrl"} and letter:
                letter = f"^{letter.upper()}"
            elif held or not letter:
                letter = "-".join(
                    [*sorted(held), letter or f"{'e0' if extended else ''}{code:02x}"]
                )
            yield letter
        extended = False
    assert not held


def decode(data: bytes) -> list[str]:
    decoder = KeyDecoder()
    pieces = [decoder.feed(byte) for byte in data]
    return list(typed(b"".join([*pieces, decoder.flush()])))


class TestKeys:
    def test_every_character_of_ascii(self) -> None:
        text = bytes(range(0x20, 0x7F)).decode()
        assert "".join(decode(text.encode())) == text

    @pytest.mark.parametrize(
        ("sent", "keys"),
        [
            (b"\r", ["\n"]),
            (b"\n", ["\n"]),
            (b"\t", ["\t"]),
            (b"\x7f", ["\x7f"]),
            (b"\x08", ["\x7f"]),
            (b"\x03\x1a", ["^C", "^Z"]),
            (b"\x1c\x1d", ["^\\", "^]"]),
            (b"\x1b", ["\x1b"]),
            (b"\x1b\x1b", ["\x1b", "\x1b"]),
            (b"\x1bx", ["alt-x"]),
            (b"\x1bX", ["alt-shift-x"]),
            (b"\x1b[A\x1b[B\x1b[C\x1b[D", ["e048", "e050", "e04d", "e04b"]),
            (b"\x1bOA\x1bOH\x1bOF", ["e048", "e047", "e04f"]),
            (b"\x1b[1~\x1b[2~\x1b[3~\x1b[4~\x1b[5~\x1b[6~",
             ["e047", "e052", "e053", "e04f", "e049", "e051"]),
            (b"\x1bOP\x1bOS\x1b[15~\x1b[17~\x1b[21~\x1b[23~\x1b[24~",
             ["3b", "3e", "3f", "40", "44", "57", "58"]),
            (b"\x1b[[A\x1b[[E", ["3b", "3f"]),
            (b"\x1b[1;5C", ["ctrl-e04d"]),
            (b"\x1b[1;8A", ["alt-ctrl-shift-e048"]),
            (b"\x1b[3;3~", ["alt-e053"]),
            (b"\x1b[Z", ["shift-\t"]),
            (b"\x1b[", ["alt-["]),
            (b"\x1b[?1;2c", []),
            (b"\x1b[99~", []),
            ("é".encode(), []),
            (b"\x1b[1\x1b[A", ["e048"]),
        ],
    )  # fmt: skip
    def test_keys(self, sent: bytes, keys: list[str]) -> None:
        assert decode(sent) == keys

    def test_f7(self) -> None:
        assert KeyDecoder().feed(ord("a")) == b"\x1c\xf0\x1c"
        decoder = KeyDecoder()
        assert b"".join(map(decoder.feed, b"\x1b[18~")) == b"\x83\xf0\x83"

    @given(st.binary(max_size=200))
    def test_anything_is_keys_that_are_released_again_and_fit(self, data: bytes) -> None:
        decoder = KeyDecoder()
        for byte in data:
            keys = decoder.feed(byte)
            assert len(keys) <= 16
            list(typed(keys))
        list(typed(decoder.flush()))
        assert not decoder.waits


class FakeStream:
    """A stream whose reader takes ``room`` bytes."""

    def __init__(self) -> None:
        self.output = b""
        self.room = 1 << 30
        self.resumed = 0
        self.device: Any = None

    def connect(self, device: Any) -> None:
        self.device = device

    def start(self) -> None:
        pass

    def write(self, data: memoryview) -> int:
        taken = min(self.room, len(data))
        self.output += bytes(data[:taken])
        self.room -= taken
        return taken

    def resume_input(self) -> None:
        self.resumed += 1

    def flush(self, timeout: float) -> bool:
        return True

    def close(self, timeout: float) -> None:
        self.closed = True


class FakeLoop(FakeClock):
    def call(self, function: Callable[[], None]) -> None:
        function()


class Rig:
    """A backend with a guest, whose screen is ``shown`` and who takes ``hungry`` keys."""

    def __init__(self, *, live: bool = False) -> None:
        self.loop, self.stream = FakeLoop(), FakeStream()
        self.log, self.keys = b"", b""
        self.hungry = 1 << 30
        self.shown = picture(cursor=None)
        self.backend = ScreenBackend(
            self.loop,  # type: ignore[arg-type]
            self.stream,  # type: ignore[arg-type]
            self.feed if live else None,
            Display(80, 25) if live else None,
        )
        self.backend.connect(lambda: self.shown, self.press)
        self.backend.start()

    def feed(self, data: bytes) -> None:
        self.log += data

    def press(self, keys: bytes) -> bool:
        if not self.hungry:
            return False
        self.hungry -= 1
        self.keys += keys
        return True

    def show(self, *lines: str) -> None:
        self.shown = picture(*lines, cursor=None)
        self.loop.advance(5 * LOOK_NS)

    @property
    def typed(self) -> str:
        return "".join(typed(self.keys))


class TestBackend:
    def test_the_log_goes_to_the_stream(self) -> None:
        rig = Rig()
        rig.show("Hello")
        assert rig.stream.output == b"Hello\n"
        rig.shown = picture("Hello", "Bye", cursor=None)
        rig.backend.close(1)
        assert rig.stream.output == b"Hello\nBye\n"
        assert rig.stream.closed
        assert rig.loop.armed == []

    def test_live_the_screen_goes_to_the_stream_and_the_log_elsewhere(self) -> None:
        rig = Rig(live=True)
        assert rig.backend.live
        rig.show("Hello")
        assert rig.log == b"Hello\n"
        screen = Screen()
        screen.feed(rig.stream.output)
        assert (screen.lines[0], 1049 in screen.modes) == ("Hello", True)
        rig.backend.close(1)
        assert not rig.backend.live
        assert rig.stream.output.endswith(LEAVE + b"Hello\n")

    def test_a_machine_that_never_started_leaves_no_trace(self) -> None:
        stream = FakeStream()
        backend = ScreenBackend(FakeLoop(), stream, None, Display(80, 25))  # type: ignore[arg-type]
        backend.close(0)
        assert stream.output == b""
        assert backend.lines == []

    def test_the_end_of_a_line_is_a_look(self) -> None:
        rig = Rig()
        for number in range(60):
            lines = [f"line {n}" for n in range(max(0, number - 23), number + 1)]
            rig.shown = picture(*lines, cursor=(len(lines), 0))
            rig.backend.line_ended()
        rig.backend.close(1)
        assert rig.stream.output == b"".join(b"line %d\n" % n for n in range(60))

    def test_a_reader_that_is_slow_loses_nothing_that_was_seen(self) -> None:
        rig = Rig()
        rig.stream.room = 3
        rig.show("Hello")
        assert rig.stream.output == b"Hel"
        rig.stream.room = 100
        rig.stream.device.output_ready()
        assert rig.stream.output == b"Hello\n"

    def test_a_reader_that_stands_still_costs_no_more_than_so_much(self) -> None:
        rig = Rig()
        rig.stream.room = 0
        for number in range(200):
            rig.shown = picture(*[f"{number} {row} {'x' * 60}" for row in range(25)], cursor=None)
            rig.loop.advance(LOOK_NS)
        rig.stream.room = 1 << 30
        rig.stream.device.output_ready()
        assert MAX_UNWRITTEN <= len(rig.stream.output) < 2 * MAX_UNWRITTEN

    def test_keys_wait_until_the_guest_has_printed_something(self) -> None:
        rig = Rig()
        assert rig.backend.receive(b"ls\n") == 3
        rig.loop.advance(2 * LOOK_NS)
        assert rig.keys == b""
        rig.show("$")
        assert rig.typed == "ls\n"

    def test_or_for_a_second(self) -> None:
        rig = Rig()
        rig.backend.receive(b"ls\n")
        rig.loop.advance(SETTING_UP_NS + LOOK_NS)
        assert rig.typed == "ls\n"

    def test_a_guest_takes_keys_at_its_own_pace(self) -> None:
        rig = Rig()
        rig.show("$")
        rig.hungry = 0
        taken = rig.backend.receive(b"x" * (TYPE_AHEAD + 10))
        assert taken == TYPE_AHEAD
        assert rig.stream.resumed == 0
        for _ in range(200):
            rig.hungry = 5
            rig.loop.advance(LOOK_NS)
        assert rig.typed == "x" * taken
        assert rig.stream.resumed == 1

    def test_an_escape_is_a_key_when_nothing_follows(self) -> None:
        rig = Rig()
        rig.show("$")
        rig.backend.receive(b"\x1b")
        assert rig.keys == b""
        rig.loop.advance(5 * LOOK_NS)
        assert rig.typed == "\x1b"

    def test_a_notice_stays_until_a_key_that_the_guest_does_not_get(self) -> None:
        rig = Rig(live=True)
        rig.show("text")
        rig.backend.notice("\nCtrl-A x  quit")
        rig.loop.advance(LOOK_NS)
        screen = Screen()
        screen.feed(rig.stream.output)
        assert "quit" in screen.lines[0]
        rig.backend.receive(b"q")
        rig.loop.advance(LOOK_NS)
        screen.feed(rig.stream.output)
        assert screen.lines[0] == "text"
        assert rig.keys == b""

    def test_ctrl_alt_del(self) -> None:
        rig = Rig()
        rig.show("$")
        rig.backend.press(CTRL_ALT_DELETE)
        assert rig.keys == CTRL_ALT_DELETE

    def test_a_terminal_that_somebody_wrote_to_is_drawn_anew(self) -> None:
        rig = Rig(live=True)
        rig.show("text")
        rig.stream.output = b""
        rig.backend.show_again()
        rig.backend.resize(90, 30)
        rig.loop.advance(LOOK_NS)
        screen = Screen(30, 90)
        screen.feed(rig.stream.output)
        assert (screen.lines[0], 1049 in screen.modes) == ("text", True)
