"""The PS/2 keyboard and mouse that are plugged into the keyboard controller (i8042.py).

IBM's PS/2 Hardware Interface Technical Reference, "Keyboard (101- and 102-Key)" and "Mouse".
Nobody points here. Keys come from the host: those that it injects, and with --screen those that are
typed at the terminal.

Left out: scan code set 3 (the keyboard answers "resend", as those do that lack it), mouse wheels
and movement.
"""

from __future__ import annotations

from collections import deque
from typing import Any


class Reply:
    """What the keyboard and the mouse say."""

    SELF_TEST_PASSED = 0xAA
    ECHO = 0xEE
    ACK = 0xFA
    ERROR = 0xFC
    RESEND = 0xFE


class KeyboardCommand:
    SET_LEDS = 0xED
    ECHO = 0xEE
    SCAN_CODE_SET = 0xF0
    IDENTIFY = 0xF2
    SET_TYPEMATIC = 0xF3
    ENABLE = 0xF4
    DISABLE = 0xF5
    SET_DEFAULTS = 0xF6
    RESEND = 0xFE
    RESET = 0xFF


class MouseCommand:
    SCALING_1_1 = 0xE6
    SCALING_2_1 = 0xE7
    SET_RESOLUTION = 0xE8
    STATUS_REQUEST = 0xE9
    STREAM_MODE = 0xEA
    READ_DATA = 0xEB
    RESET_WRAP_MODE = 0xEC
    WRAP_MODE = 0xEE
    REMOTE_MODE = 0xF0
    IDENTIFY = 0xF2
    SET_SAMPLE_RATE = 0xF3
    ENABLE = 0xF4
    DISABLE = 0xF5
    SET_DEFAULTS = 0xF6
    RESEND = 0xFE
    RESET = 0xFF


class MouseStatus:
    SCALING_2_1 = 0x10
    ENABLED = 0x20
    REMOTE = 0x40


CTRL_ALT_DELETE = bytes.fromhex("14 11 e071 e0f071 f011 f014")
"""Down and up again, in scan code set 2."""

_KEYBOARD_ID = (0xAB, 0x83)
_MOUSE_ID = 0x00
_DEFAULT_TYPEMATIC = 0x2B
_DEFAULT_RATE = 100
_DEFAULT_RESOLUTION = 2
_SAMPLE_RATES = (10, 20, 40, 60, 80, 100, 200)
_RESOLUTIONS = (0, 1, 2, 3)
_NO_MOVEMENT = (0x08, 0x00, 0x00)

_KEY_BUFFER = 16
"""Bytes of keys that the keyboard holds back while nobody takes them."""
_QUEUE_LENGTH = 32
"""And with answers to commands, which have room even if there were many keys."""

_BREAK = 0xF0
_RELEASED = 0x80
# The 8042's own table for the codes below 0x80; those above stay, except for two.
_SET_1_FROM_2 = bytes.fromhex(
    "ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59"
    "65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b"
    "67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d"
    "69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f"
    "6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61"
    "6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76"
    "55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f"
    "52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54"
)
_SET_1_FROM_2_ABOVE = {0x83: 0x41, 0x84: 0x54}


class Translator:
    """Scan code set 2 to set 1, a byte at a time; passes replies as they are.

    The controller has one, and a keyboard that was told to speak set 1.
    """

    def __init__(self) -> None:
        self.released = False

    def feed(self, byte: int) -> int | None:
        """The translated byte; None for the prefix that will be a bit of the next one."""
        if byte == _BREAK:
            self.released = True
            return None
        if byte < len(_SET_1_FROM_2):
            code = _SET_1_FROM_2[byte]
        else:
            code = _SET_1_FROM_2_ABOVE.get(byte, byte)
        if self.released:
            self.released = False
            code |= _RELEASED
        return code


class Ps2Device:
    """What keyboard and mouse have in common: a queue of bytes to send, and commands of which some
    are followed by a parameter."""

    def __init__(self) -> None:
        self.queue: deque[int] = deque()
        self.last_sent = 0
        self.command: int | None = None  # waits for its parameter

    def send(self, *values: int) -> None:
        """Queue an answer. A guest that asks and never listens loses the answers."""
        if len(self.queue) + len(values) <= _QUEUE_LENGTH:
            self.queue.extend(values)

    def resend(self) -> None:
        """Repeat the latest byte."""
        if len(self.queue) < _QUEUE_LENGTH:
            self.queue.appendleft(self.last_sent)

    def take(self) -> int:
        """The next byte; there is one."""
        self.last_sent = self.queue.popleft()
        return self.last_sent

    def receive(self, value: int) -> None:
        """A byte from the host."""
        command, self.command = self.command, None
        if command is None or not self.accept_parameter(command, value):
            self.execute(value)

    def accept_parameter(self, command: int, value: int) -> bool:
        """Take the parameter of ``command``; False if it isn't one, but perhaps a command."""
        raise NotImplementedError

    def execute(self, command: int) -> None:
        """Execute a command, or await its parameter."""
        raise NotImplementedError

    def save(self) -> dict[str, Any]:
        return {**vars(self), "queue": list(self.queue)}

    def restore(self, state: dict[str, Any]) -> None:
        for name in vars(self):
            setattr(self, name, state[name])
        self.queue = deque(state["queue"])


class Keyboard(Ps2Device):
    """101 keys, scan code sets 1 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.scanning = True
        self._set_defaults()

    def _set_defaults(self) -> None:
        self.queue.clear()
        self.scan_code_set = 2
        self.typematic = _DEFAULT_TYPEMATIC
        self.leds = 0

    def key(self, codes: bytes) -> bool:
        """Somebody presses and releases keys: ``codes`` in set 2. Either all fit or none; whether
        they did."""
        if not self.scanning or len(self.queue) + len(codes) > _KEY_BUFFER:
            return False
        values: list[int | None] = list(codes)
        if self.scan_code_set == 1:
            translator = Translator()
            values = [translator.feed(code) for code in codes]
        self.send(*(value for value in values if value is not None))
        return True

    def accept_parameter(self, command: int, value: int) -> bool:
        if value >= KeyboardCommand.SET_LEDS:
            return False
        if command == KeyboardCommand.SET_LEDS:
            self.leds = value
        elif command == KeyboardCommand.SET_TYPEMATIC:
            self.typematic = value
        elif value == 0:
            self.send(Reply.ACK, self.scan_code_set)
            return True
        elif value <= 2:
            self.scan_code_set = value
        else:
            self.send(Reply.RESEND)
            return True
        self.send(Reply.ACK)
        return True

    def execute(self, command: int) -> None:
        match command:
            case KeyboardCommand.RESET:
                self._set_defaults()
                self.scanning = True
                self.send(Reply.ACK, Reply.SELF_TEST_PASSED)
            case KeyboardCommand.RESEND:
                self.resend()
            case KeyboardCommand.SET_DEFAULTS:
                self._set_defaults()
                self.send(Reply.ACK)
            case KeyboardCommand.DISABLE:
                self._set_defaults()
                self.scanning = False
                self.send(Reply.ACK)
            case KeyboardCommand.ENABLE:
                self.queue.clear()
                self.scanning = True
                self.send(Reply.ACK)
            case KeyboardCommand.IDENTIFY:
                self.send(Reply.ACK, *_KEYBOARD_ID)
            case KeyboardCommand.ECHO:
                self.send(Reply.ECHO)
            case (
                KeyboardCommand.SET_LEDS
                | KeyboardCommand.SET_TYPEMATIC
                | KeyboardCommand.SCAN_CODE_SET
            ):
                self.command = command
                self.send(Reply.ACK)
            case _:
                self.send(Reply.RESEND)


class Mouse(Ps2Device):
    """Two buttons, no wheel, and it never moves."""

    def __init__(self) -> None:
        super().__init__()
        self._set_defaults()

    def _set_defaults(self) -> None:
        self.rate = _DEFAULT_RATE
        self.resolution = _DEFAULT_RESOLUTION
        self.double_scaling = False
        self.remote = False
        self.enabled = False
        self.wrap = False
        self.error = False  # the last byte wasn't understood

    def accept_parameter(self, command: int, value: int) -> bool:
        if command == MouseCommand.SET_SAMPLE_RATE and value in _SAMPLE_RATES:
            self.rate = value
        elif command == MouseCommand.SET_RESOLUTION and value in _RESOLUTIONS:
            self.resolution = value
        else:
            return False
        self.send(Reply.ACK)
        return True

    def execute(self, command: int) -> None:
        if self.wrap and command not in (MouseCommand.RESET, MouseCommand.RESET_WRAP_MODE):
            self.send(command)
            return
        if command == MouseCommand.RESEND:
            self.resend()
            return
        if not self._understand(command):
            # The second time in a row, resending can't help.
            self.send(Reply.ERROR if self.error else Reply.RESEND)
            self.error = not self.error
            return
        self.error = False

    def _understand(self, command: int) -> bool:
        answer: tuple[int, ...] = ()
        match command:
            case MouseCommand.RESET:
                self.queue.clear()
                self._set_defaults()
                answer = (Reply.SELF_TEST_PASSED, _MOUSE_ID)
            case MouseCommand.SET_DEFAULTS:
                self._set_defaults()
            case MouseCommand.ENABLE | MouseCommand.DISABLE:
                self.enabled = command == MouseCommand.ENABLE
            case MouseCommand.SET_SAMPLE_RATE | MouseCommand.SET_RESOLUTION:
                self.command = command
            case MouseCommand.SCALING_1_1 | MouseCommand.SCALING_2_1:
                self.double_scaling = command == MouseCommand.SCALING_2_1
            case MouseCommand.REMOTE_MODE | MouseCommand.STREAM_MODE:
                self.remote = command == MouseCommand.REMOTE_MODE
            case MouseCommand.WRAP_MODE | MouseCommand.RESET_WRAP_MODE:
                self.wrap = command == MouseCommand.WRAP_MODE
            case MouseCommand.IDENTIFY:
                answer = (_MOUSE_ID,)
            case MouseCommand.READ_DATA:
                answer = _NO_MOVEMENT
            case MouseCommand.STATUS_REQUEST:
                answer = (self._status(), self.resolution, self.rate)
            case _:
                return False
        self.send(Reply.ACK, *answer)
        return True

    def _status(self) -> int:
        return (
            (MouseStatus.REMOTE if self.remote else 0)
            | (MouseStatus.ENABLED if self.enabled else 0)
            | (MouseStatus.SCALING_2_1 if self.double_scaling else 0)
        )
