"""The text adapter: what its registers make of the memory at B8000h."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import FakeClock, RecordingFaults

from pyvmm import layout
from pyvmm.bus import PIO_SPACE, Bus
from pyvmm.devices import text_screen
from pyvmm.devices.text_screen import (
    BLANK,
    GLYPHS,
    MAX_COLUMNS,
    MAX_ROWS,
    Crtc,
    Picture,
    Status,
    TextScreen,
)
from pyvmm.memory import MIB, GuestMemory

CRTC_INDEX, CRTC_DATA, STATUS = 0x3D4, 0x3D5, 0x3DA
RAM = GuestMemory(2 * MIB)


class View:
    """Counts the lines that ended."""

    def __init__(self) -> None:
        self.ended = 0

    def connect(self, picture: Callable[[], Picture], press: Callable[[bytes], bool], /) -> None:
        raise AssertionError("the board does that")

    def line_ended(self) -> None:
        self.ended += 1

    def restarted(self) -> None:
        self.ended = 0


class Rig:
    """The adapter on a bus, as on the board."""

    def __init__(self) -> None:
        RAM.write(layout.TEXT_SCREEN, BLANK * (layout.TEXT_SCREEN_SIZE // 2))
        self.clock, self.view, self.faults = FakeClock(), View(), RecordingFaults()
        self.device = device = TextScreen(RAM, self.clock, self.view)
        self.bus = bus = Bus("port", PIO_SPACE, self.faults, flat=True)
        bus.add(layout.VIDEO_PORTS, 16, device.general_window, "general", max_size=1)
        bus.add(layout.CRTC_PORTS, 2, device.crtc_window, "CRTC", max_size=1)
        bus.add(layout.VIDEO_STATUS, 3, device.status_window, "status", max_size=1)

    def crtc(self, index: int, value: int) -> None:
        self.bus.write(CRTC_INDEX, 2, value << 8 | index)

    def word(self, index: int, value: int) -> None:
        """A register of two, the high one at ``index``."""
        self.crtc(index, value >> 8)
        self.crtc(index + 1, value & 0xFF)

    def text(self, cell: int, text: bytes) -> None:
        for number, code in enumerate(text, cell):
            RAM.write(layout.TEXT_SCREEN + 2 * number, bytes((code, 7)))

    @property
    def picture(self) -> Picture:
        return self.device.picture()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_at_first_it_is_a_blank_screen_of_80_by_25(rig: Rig) -> None:
    assert rig.picture == Picture(80, 25, BLANK * 2000, (0, 0), True)


def test_lines_are_code_page_437(rig: Rig) -> None:
    rig.text(0, b"Gr\x81\xe1e")
    rig.text(80, b"\xc9\xcd\xbb \x01\x10\x7f\0.")
    assert rig.picture.lines[:3] == ["Grüße", "╔═╗ ☺►⌂ .", ""]


def test_every_code_has_one_printable_glyph() -> None:
    assert len(GLYPHS) == 256
    assert all(glyph.isprintable() for glyph in GLYPHS)
    assert len(set(GLYPHS)) == 254, "NUL and FFh are blanks, too"
    assert GLYPHS[0x20:0x7F] == bytes(range(0x20, 0x7F)).decode()


def test_the_cursor(rig: Rig) -> None:
    rig.word(Crtc.CURSOR_HIGH, 2 * 80 + 5)
    assert rig.picture.cursor == (2, 5)
    rig.word(Crtc.CURSOR_HIGH, 25 * 80)
    assert rig.picture.cursor is None, "below the screen"
    rig.word(Crtc.CURSOR_HIGH, 0)
    rig.crtc(Crtc.CURSOR_START, 0x2D)
    assert rig.picture.cursor is None
    rig.crtc(Crtc.CURSOR_START, 0x0D)
    assert rig.picture.cursor == (0, 0)
    rig.crtc(Crtc.CURSOR_END, 0x0C)
    assert rig.picture.cursor is None, "it ends above its start"


def test_registers_can_be_read_back(rig: Rig) -> None:
    rig.word(Crtc.CURSOR_HIGH, 0x0123)
    assert rig.bus.read(CRTC_INDEX, 1) == Crtc.CURSOR_LOW
    assert rig.bus.read(CRTC_DATA, 1) == 0x23
    rig.bus.write(CRTC_INDEX, 1, 0xFF)
    rig.bus.write(CRTC_DATA, 1, 0x55)
    assert rig.bus.read(CRTC_DATA, 1) == 0, "there is none"


def test_the_start_address_scrolls(rig: Rig) -> None:
    rig.text(80, b"second")
    rig.word(Crtc.START_HIGH, 80)
    assert rig.picture.lines[0] == "second"
    rig.word(Crtc.CURSOR_HIGH, 80)
    assert rig.picture.cursor == (0, 0)


def test_memory_goes_on_at_its_beginning(rig: Rig) -> None:
    rig.text(0, b"first")
    rig.word(Crtc.START_HIGH, 0x4000 - 80)
    assert rig.picture.lines[1] == "first"
    rig.word(Crtc.START_HIGH, 0x4000 - 3)
    assert rig.picture.lines[0] == "   first"
    assert len(rig.picture.cells) == 4000


def test_fifty_lines(rig: Rig) -> None:
    rig.text(49 * 80, b"the last")
    rig.crtc(Crtc.MAXIMUM_SCAN_LINE, 0x47)
    assert (rig.picture.rows, rig.picture.lines[49]) == (50, "the last")


def test_forty_columns(rig: Rig) -> None:
    rig.crtc(Crtc.HORIZONTAL_DISPLAY_END, 39)
    assert rig.picture.columns == 80, "protected"
    rig.crtc(Crtc.VERTICAL_RETRACE_END, 0x0E)
    rig.crtc(Crtc.HORIZONTAL_DISPLAY_END, 39)
    rig.text(80, b"second")
    assert (rig.picture.columns, rig.picture.lines[1]) == (40, "second")
    rig.crtc(Crtc.OFFSET, 20)
    assert rig.picture.lines[2] == "second", "lines follow each other now"


def test_bit_7_blinks_or_is_bright(rig: Rig) -> None:
    rig.bus.read(STATUS, 1)
    rig.bus.write(0x3C0, 1, 0x30)
    rig.bus.write(0x3C0, 1, 0x04)
    assert not rig.picture.blinks
    assert rig.bus.read(0x3C1, 1) == 0x04


def test_reading_the_status_makes_the_index_next(rig: Rig) -> None:
    rig.bus.write(0x3C0, 1, 0x11)
    rig.bus.read(STATUS, 1)
    rig.bus.write(0x3C0, 1, 0x30)
    assert rig.bus.read(0x3C0, 1) == 0x30


def test_graphics_modes_are_not_shown(rig: Rig) -> None:
    rig.text(0, b"pixels")
    rig.bus.write(0x3CE, 2, 0x0500 | 0x06)
    assert rig.picture.lines[:2] == ["[graphics mode]", ""]
    assert rig.picture.cursor is None


def test_a_guest_that_waits_for_a_retrace_goes_on(rig: Rig) -> None:
    """For its end, and its beginning, looking every 100 us."""
    for wanted in (0, Status.VERTICAL_RETRACE) * 3:
        for _ in range(200):
            if rig.bus.read(STATUS, 1) & Status.VERTICAL_RETRACE == wanted:
                break
            rig.clock.advance(100_000)
        else:
            pytest.fail("it never came")


def test_a_guest_that_waits_for_the_end_of_a_line_goes_on(rig: Rig) -> None:
    rig.clock.advance(5_000_000)
    assert {rig.bus.read(STATUS, 1) & Status.BLANK for _ in range(2)} == {0, 1}


def test_the_view_hears_of_ends_of_lines(rig: Rig) -> None:
    rig.word(Crtc.CURSOR_HIGH, 5)
    assert rig.view.ended == 1, "the first half alone is the beginning of a line"
    rig.word(Crtc.CURSOR_HIGH, 79)
    ended = rig.view.ended
    rig.word(Crtc.CURSOR_HIGH, 80)
    assert rig.view.ended > ended
    ended = rig.view.ended
    rig.crtc(Crtc.CURSOR_LOW, 81)
    rig.crtc(Crtc.CURSOR_START, 0)
    assert rig.view.ended == ended


def test_the_palette(rig: Rig) -> None:
    rig.bus.write(0x3C8, 1, 255)
    for value in (1, 2, 0xFF, 4):
        rig.bus.write(0x3C9, 1, value)
    rig.bus.write(0x3C7, 1, 255)
    assert [rig.bus.read(0x3C9, 1) for _ in range(4)] == [1, 2, 0x3F, 4]
    assert rig.bus.read(0x3C7, 1) == 3


def test_a_reset_returns_to_80_by_25(rig: Rig) -> None:
    rig.crtc(Crtc.MAXIMUM_SCAN_LINE, 0x47)
    rig.word(Crtc.START_HIGH, 80)
    rig.view.ended = 5
    rig.device.reset()
    assert rig.view.ended == 0
    assert rig.picture == Picture(80, 25, BLANK * 2000, (0, 0), True)


writes = st.lists(
    st.tuples(
        st.sampled_from([*range(0x3C0, 0x3D0), 0x3D4, 0x3D5, 0x3D8, 0x3D9, 0x3DA]),
        st.integers(0, 255),
    ),
    max_size=60,
)
registers = st.lists(st.tuples(st.integers(0, 0x18), st.integers(0, 255)), max_size=30)


@given(writes, registers)
def test_any_registers_make_a_picture_within_bounds(
    accesses: list[tuple[int, int]], crtc: list[tuple[int, int]]
) -> None:
    rig = Rig()
    for port, value in accesses:
        rig.bus.write(port, 1, value)
        assert 0 <= rig.bus.read(port, 1) <= 0xFF
    rig.crtc(Crtc.VERTICAL_RETRACE_END, 0)
    for index, value in crtc:
        rig.crtc(index, value)
    picture = rig.picture
    assert 1 <= picture.columns <= MAX_COLUMNS
    assert 1 <= picture.rows <= MAX_ROWS
    assert len(picture.cells) == 2 * picture.columns * picture.rows
    assert len(picture.lines) == picture.rows
    if picture.cursor is not None:
        row, column = picture.cursor
        assert 0 <= row < picture.rows
        assert 0 <= column < picture.columns
    state: dict[str, Any] = rig.device.save()
    other = TextScreen(RAM, rig.clock)
    other.restore(state)
    assert other.picture() == picture
    assert other.save() == state
    assert rig.faults.counts == {}


def test_text_that_nobody_saw() -> None:
    text_screen.clear(RAM)
    assert not text_screen.has_text(RAM)
    RAM.write(layout.TEXT_SCREEN, bytes(4000))
    assert not text_screen.has_text(RAM)
    RAM.write(layout.TEXT_SCREEN, b"H\x07i\x07")
    assert text_screen.has_text(RAM)
    RAM.write(layout.TEXT_SCREEN, bytes(range(256)))
    assert not text_screen.has_text(RAM), "that isn't text"
