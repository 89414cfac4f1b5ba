"""The text screen: a colour text adapter, whose picture is the RAM at B8000h.

IBM's PS/2 Hardware Interface Technical Reference, "Video Subsystem": "CRT Controller Registers",
"Sequencer Registers", "Graphics Controller Registers", "Attribute Controller Registers", "General
Registers", "Video Digital-to-Analog Converter". Ports 3D8h and 3D9h are the mode and the colour
register of IBM's Color/Graphics Monitor Adapter (Technical Reference, Options and Adapters). The
characters are those of code page 437.

A cell is two bytes, the character and its attribute. A guest writes them to RAM, without an exit;
who shows the screen looks there from time to time, see :meth:`TextScreen.picture`. Of the registers
those count that say where the picture begins, how many cells it has, and where the cursor is. The
others keep what is written to them, and a guest that waits for a retrace goes on.

Left out: graphics modes (the picture then only says that there is one), fonts, palettes, the
planes of memory, the monochrome adapter's ports and memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from pyvmm.bus import Device, Window
from pyvmm.eventloop import NS_PER_SECOND, Clock
from pyvmm.layout import TEXT_SCREEN, TEXT_SCREEN_SIZE
from pyvmm.memory import GuestMemory

CELLS = TEXT_SCREEN_SIZE // 2
BLANK = b" \x07"

MAX_COLUMNS = 132
MAX_ROWS = 60

GENERAL_PORTS = 0x10
"""How many there are from 3C0h on."""


class General:
    """Offsets from port 3C0h."""

    ATTRIBUTE = 0x0
    ATTRIBUTE_READ = 0x1
    MISCELLANEOUS = INPUT_STATUS_0 = 0x2
    ENABLE = 0x3
    SEQUENCER_INDEX = 0x4
    SEQUENCER_DATA = 0x5
    DAC_MASK = 0x6
    DAC_READ_INDEX = DAC_STATE = 0x7
    DAC_WRITE_INDEX = 0x8
    DAC_DATA = 0x9
    FEATURE_READ = 0xA
    MISCELLANEOUS_READ = 0xC
    GRAPHICS_INDEX = 0xE
    GRAPHICS_DATA = 0xF


class Crtc:
    """The CRT controller's registers."""

    HORIZONTAL_DISPLAY_END = 0x01
    OVERFLOW = 0x07
    MAXIMUM_SCAN_LINE = 0x09
    CURSOR_START = 0x0A
    CURSOR_END = 0x0B
    START_HIGH = 0x0C
    START_LOW = 0x0D
    CURSOR_HIGH = 0x0E
    CURSOR_LOW = 0x0F
    VERTICAL_RETRACE_END = 0x11
    VERTICAL_DISPLAY_END = 0x12
    OFFSET = 0x13

    CURSOR_OFF = 0x20  # of CURSOR_START
    DOUBLE_SCAN = 0x80  # of MAXIMUM_SCAN_LINE
    PROTECT = 0x80  # of VERTICAL_RETRACE_END: 00h to 07h can't be written
    SCAN_LINE = 0x1F


class Status:
    """Port 3DAh, read."""

    BLANK = 0x01  # neither characters nor border are shown at this moment
    VERTICAL_RETRACE = 0x08


_ATTRIBUTE_MODE = 0x10
_ATTRIBUTE_BLINK = 0x08
_GRAPHICS_MISCELLANEOUS = 0x06
_GRAPHICS_MODE = 0x01

# What a BIOS sets for mode 3, text of 80 by 25 characters of 9 by 16.
_CRTC_MODE_3 = bytes.fromhex(
    "5f 4f 50 82 55 81 bf 1f 00 4f 0d 0e 00 00 00 00 9c 8e 8f 28 1f 96 b9 a3 ff"
)
_SEQUENCER_MODE_3 = bytes.fromhex("03 00 03 00 02")
_GRAPHICS_MODE_3 = bytes.fromhex("00 00 00 00 00 10 0e 00 ff")
_ATTRIBUTE_MODE_3 = bytes.fromhex("00 01 02 03 04 05 14 07 38 39 3a 3b 3c 3d 3e 3f 0c 00 0f 08 00")
_MISCELLANEOUS_MODE_3 = 0x67
_MODE_CONTROL_MODE_3 = 0x29
_COLOUR_SELECT_MODE_3 = 0x30

_FRAME_NS = NS_PER_SECOND // 70
_RETRACE_NS = 1_300_000
"""Of a frame's time the part in which nothing is shown. A guest's look at the port takes 0.01 to
0.15 ms: it can't miss this for long."""

_LOW_GLYPHS = "\0☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"  # fmt: skip
GLYPHS = (
    " "
    + _LOW_GLYPHS[1:]
    + bytes(range(0x20, 0x7F)).decode()
    + "⌂"
    + bytes(range(0x80, 0xFF)).decode("cp437")
    + " "
)
"""The character of each code; the two that are empty are blanks."""

_GRAPHICS_NOTICE = b"[graphics mode]"


class Picture(NamedTuple):
    """What is on the screen: ``rows`` lines of ``columns`` cells of two bytes each. ``cursor`` is
    its row and column, None if it isn't seen. With ``blinks`` an attribute's bit 7 means that the
    character blinks, otherwise that its background is bright."""

    columns: int
    rows: int
    cells: bytes
    cursor: tuple[int, int] | None
    blinks: bool

    @property
    def lines(self) -> list[str]:
        """The text, without blanks at the ends of lines."""
        text = self.cells[::2].decode("latin-1").translate(_TO_GLYPHS)
        columns = self.columns
        return [text[n : n + columns].rstrip() for n in range(0, len(text), columns)]


_TO_GLYPHS = dict(enumerate(GLYPHS))


class ScreenView(Protocol):
    """Who shows the screen, and has its keyboard."""

    def connect(self, picture: Callable[[], Picture], press: Callable[[bytes], bool], /) -> None:
        """``picture`` gives what is on the screen now; ``press`` gives keys to the guest, in scan
        code set 2, and says whether they were taken. Any thread may call them, with locks held:
        neither calls back."""

    def line_ended(self) -> None:
        """The cursor is at the beginning of a line, so that one may just have been completed. On
        the thread of the vCPU that moved it."""

    def restarted(self) -> None:
        """The machine was reset, and the screen will be empty before the guest goes on."""


class TextScreen(Device):
    """The adapter; ``view`` is told where lines end. Ports are 8 bits each (``max_size=1``), in
    three windows: ``general_window`` from 3C0h, ``crtc_window`` from 3D4h, and ``status_window``
    from 3D8h on."""

    def __init__(self, memory: GuestMemory, clock: Clock, view: ScreenView | None = None) -> None:
        super().__init__()
        self._memory = memory.view(TEXT_SCREEN, TEXT_SCREEN_SIZE)
        self._clock = clock
        self._view = view
        self.general_window = Window(self.lock, self._read_general, self._write_general)
        self.crtc_window = Window(self.lock, self._read_crtc, self._write_crtc)
        self.status_window = Window(self.lock, self._read_status, self._write_mode)
        self._power_on()

    def _power_on(self) -> None:
        """As a BIOS leaves it: in mode 3."""
        self._crtc = bytearray(_CRTC_MODE_3)
        self._sequencer = bytearray(_SEQUENCER_MODE_3)
        self._graphics = bytearray(_GRAPHICS_MODE_3)
        self._attribute = bytearray(_ATTRIBUTE_MODE_3)
        self._dac = bytearray(3 * 256)
        self._crtc_index = self._sequencer_index = self._graphics_index = 0
        self._attribute_index = 0
        self._attribute_data_next = False
        self._dac_position = 0
        self._dac_mask = 0xFF
        self._dac_reading = False
        self._miscellaneous = _MISCELLANEOUS_MODE_3
        self._mode_control = _MODE_CONTROL_MODE_3
        self._colour_select = _COLOUR_SELECT_MODE_3
        self._enabled = 1
        self._between_lines = False

    # The picture.

    def picture(self) -> Picture:
        """What is on the screen now. Any thread may call; it takes no lock, because a guest that
        changes mode meanwhile changes what is shown anyway."""
        crtc = self._crtc
        columns = min(crtc[Crtc.HORIZONTAL_DISPLAY_END] + 1, MAX_COLUMNS)
        rows = self._rows()
        blinks = bool(self._attribute[_ATTRIBUTE_MODE] & _ATTRIBUTE_BLINK)
        if self._graphics[_GRAPHICS_MISCELLANEOUS] & _GRAPHICS_MODE:
            notice = b"".join(bytes((code, BLANK[1])) for code in _GRAPHICS_NOTICE[:columns])
            cells = notice + BLANK * (columns * rows - len(notice) // 2)
            return Picture(columns, rows, cells, None, blinks)
        start = (crtc[Crtc.START_HIGH] << 8 | crtc[Crtc.START_LOW]) % CELLS
        pitch = self._pitch()
        if pitch == columns and start + columns * rows <= CELLS:
            cells = bytes(self._memory[2 * start : 2 * (start + columns * rows)])
        else:
            lines = (self._cells(start + row * pitch, columns) for row in range(rows))
            cells = b"".join(lines)
        return Picture(columns, rows, cells, self._cursor(start, pitch, columns, rows), blinks)

    def _rows(self) -> int:
        crtc = self._crtc
        overflow = crtc[Crtc.OVERFLOW]
        scan_lines = crtc[Crtc.VERTICAL_DISPLAY_END] + 1
        scan_lines += (overflow >> 1 & 1) << 8 | (overflow >> 6 & 1) << 9
        height = (crtc[Crtc.MAXIMUM_SCAN_LINE] & Crtc.SCAN_LINE) + 1
        if crtc[Crtc.MAXIMUM_SCAN_LINE] & Crtc.DOUBLE_SCAN:
            height *= 2
        return min(max(scan_lines // height, 1), MAX_ROWS)

    def _pitch(self) -> int:
        """Cells from one line to the next."""
        return 2 * self._crtc[Crtc.OFFSET] or self._crtc[Crtc.HORIZONTAL_DISPLAY_END] + 1

    def _cells(self, start: int, count: int) -> bytes:
        """So many cells; memory goes on at its beginning."""
        start %= CELLS
        cells = bytes(self._memory[2 * start : 2 * (start + count)])
        return cells + bytes(self._memory[: 2 * count - len(cells)])

    def _cursor(self, start: int, pitch: int, columns: int, rows: int) -> tuple[int, int] | None:
        crtc = self._crtc
        first, last = crtc[Crtc.CURSOR_START], crtc[Crtc.CURSOR_END] & Crtc.SCAN_LINE
        if first & Crtc.CURSOR_OFF or first & Crtc.SCAN_LINE > last:
            return None
        row, column = divmod((self._cursor_location() - start) % CELLS, pitch)
        return (row, column) if row < rows and column < columns else None

    def _cursor_location(self) -> int:
        return self._crtc[Crtc.CURSOR_HIGH] << 8 | self._crtc[Crtc.CURSOR_LOW]

    # 3D4h and 3D5h.

    def _read_crtc(self, offset: int, size: int) -> int:
        if not offset:
            return self._crtc_index
        return self._crtc[self._crtc_index] if self._crtc_index < len(self._crtc) else 0

    def _write_crtc(self, offset: int, size: int, value: int) -> None:
        if not offset:
            self._crtc_index = value
            return
        index, crtc = self._crtc_index, self._crtc
        if index >= len(crtc):
            return
        if index <= Crtc.OVERFLOW and crtc[Crtc.VERTICAL_RETRACE_END] & Crtc.PROTECT:
            return
        crtc[index] = value
        if self._view is not None and index in (Crtc.CURSOR_HIGH, Crtc.CURSOR_LOW):
            start = crtc[Crtc.START_HIGH] << 8 | crtc[Crtc.START_LOW]
            if not (self._cursor_location() - start) % self._pitch():
                self._view.line_ended()

    # 3D8h to 3DAh.

    def _read_status(self, offset: int, size: int) -> int:
        if offset != 2:
            return 0xFF  # the two others can't be read
        self._attribute_data_next = False
        if self._clock.now_ns() % _FRAME_NS < _RETRACE_NS:
            return Status.BLANK | Status.VERTICAL_RETRACE
        # The end of a line takes 6 of its 32 us, less than an exit: every other look is at one.
        self._between_lines = not self._between_lines
        return Status.BLANK if self._between_lines else 0

    def _write_mode(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._mode_control = value
        elif offset == 1:
            self._colour_select = value

    # 3C0h to 3CFh.

    def _read_general(self, offset: int, size: int) -> int:
        match offset:
            case General.ATTRIBUTE:
                return self._attribute_index
            case General.ATTRIBUTE_READ:
                return _register(self._attribute, self._attribute_index & 0x1F)
            case General.INPUT_STATUS_0 | General.FEATURE_READ:
                return 0
            case General.ENABLE:
                return self._enabled
            case General.SEQUENCER_INDEX:
                return self._sequencer_index
            case General.SEQUENCER_DATA:
                return _register(self._sequencer, self._sequencer_index)
            case General.DAC_MASK:
                return self._dac_mask
            case General.DAC_STATE:
                return 3 if self._dac_reading else 0
            case General.DAC_WRITE_INDEX:
                return self._dac_position // 3
            case General.DAC_DATA:
                value = self._dac[self._dac_position]
                self._dac_position = (self._dac_position + 1) % len(self._dac)
                return value
            case General.MISCELLANEOUS_READ:
                return self._miscellaneous
            case General.GRAPHICS_INDEX:
                return self._graphics_index
            case General.GRAPHICS_DATA:
                return _register(self._graphics, self._graphics_index)
            case _:
                return 0xFF

    def _write_general(self, offset: int, size: int, value: int) -> None:
        match offset:
            case General.ATTRIBUTE:
                self._write_attribute(value)
            case General.MISCELLANEOUS:
                self._miscellaneous = value
            case General.ENABLE:
                self._enabled = value & 1
            case General.SEQUENCER_INDEX:
                self._sequencer_index = value
            case General.SEQUENCER_DATA:
                _set_register(self._sequencer, self._sequencer_index, value)
            case General.DAC_MASK:
                self._dac_mask = value
            case General.DAC_READ_INDEX | General.DAC_WRITE_INDEX:
                self._dac_reading = offset == General.DAC_READ_INDEX
                self._dac_position = 3 * value
            case General.DAC_DATA:
                self._dac[self._dac_position] = value & 0x3F
                self._dac_position = (self._dac_position + 1) % len(self._dac)
            case General.GRAPHICS_INDEX:
                self._graphics_index = value
            case General.GRAPHICS_DATA:
                _set_register(self._graphics, self._graphics_index, value)
            case _:
                pass  # read-only, or nothing

    def _write_attribute(self, value: int) -> None:
        """Index and data by turns; reading 3DAh makes the index the next."""
        if self._attribute_data_next:
            _set_register(self._attribute, self._attribute_index & 0x1F, value)
        else:
            self._attribute_index = value & 0x3F
        self._attribute_data_next = not self._attribute_data_next

    # State.

    def reset(self) -> None:
        self._power_on()
        if self._view is not None:
            self._view.restarted()

    def save(self) -> dict[str, Any]:
        with self.lock:
            return {name: _plain(getattr(self, f"_{name}")) for name in _STATE}

    def restore(self, state: dict[str, Any]) -> None:
        with self.lock:
            for name in _STATE:
                value = state[name]
                setattr(self, f"_{name}", bytearray(value) if isinstance(value, bytes) else value)


_STATE = (
    *("crtc", "sequencer", "graphics", "attribute", "dac"),
    *("crtc_index", "sequencer_index", "graphics_index", "attribute_index"),
    *("attribute_data_next", "dac_position", "dac_mask", "dac_reading"),
    *("miscellaneous", "mode_control", "colour_select", "enabled", "between_lines"),
)


def _plain(value: bytearray | int) -> bytes | int:
    return bytes(value) if isinstance(value, bytearray) else value


def _register(registers: bytearray, index: int) -> int:
    return registers[index] if index < len(registers) else 0


def _set_register(registers: bytearray, index: int, value: int) -> None:
    if index < len(registers):
        registers[index] = value


def clear(memory: GuestMemory) -> None:
    """Blanks in grey on black everywhere, as a BIOS leaves the screen: a guest may write
    characters without attributes."""
    memory.write(TEXT_SCREEN, BLANK * CELLS)


def has_text(memory: GuestMemory) -> bool:
    """Whether a guest seems to have written to the screen, which may not be there."""
    codes = memory.read(TEXT_SCREEN, 2 * 80 * 25)[::2].translate(None, b"\0 ")
    letters = sum(0x20 < code < 0x7F for code in codes)
    return letters >= 2 and 2 * letters >= len(codes)
