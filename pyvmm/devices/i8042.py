"""The keyboard controller: an 8042 at ports 0x60 and 0x64.

IBM's PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller". The
keyboard and the mouse that are plugged into it are in ps2.py. Where the console is serial nobody
types or points here: this is what drivers probe, a way to reset the machine, and the way of the
keys that the host injects, such as Ctrl-Alt-Del, which asks a guest to reboot. With --screen it is
the way of all keys.

* A controller command or a byte for a device is executed at once, so the input buffer is never
  full and a guest never waits.
* The controller starts as a PC's firmware leaves it: keyboard on, IRQ 1 enabled, translation to
  scan code set 1.
* A20 is recorded and has no effect, because KVM's A20 line is always on.

Left out: the keyboard lock and password, the diagnostic dump, multiplexing (four mice).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvmm.bus import Device, Window
from pyvmm.devices.ps2 import CTRL_ALT_DELETE, Keyboard, Mouse, Translator
from pyvmm.errors import GuestFaults
from pyvmm.interrupts import IrqLine


class Status:
    """Port 0x64, read."""

    OUTPUT_FULL = 0x01
    SYSTEM_FLAG = 0x04
    LAST_WAS_COMMAND = 0x08
    NOT_LOCKED = 0x10
    FROM_MOUSE = 0x20


class CommandByte:
    """Byte 0 of the controller's RAM."""

    KEYBOARD_INTERRUPT = 0x01
    MOUSE_INTERRUPT = 0x02
    SYSTEM_FLAG = 0x04
    KEYBOARD_DISABLED = 0x10
    MOUSE_DISABLED = 0x20
    TRANSLATE = 0x40


class Command:
    """Port 0x64, written. The first two and the last are ranges."""

    READ_RAM = 0x20
    WRITE_RAM = 0x60
    TEST_PASSWORD = 0xA4
    DISABLE_MOUSE = 0xA7
    ENABLE_MOUSE = 0xA8
    TEST_MOUSE_PORT = 0xA9
    SELF_TEST = 0xAA
    TEST_KEYBOARD_PORT = 0xAB
    DISABLE_KEYBOARD = 0xAD
    ENABLE_KEYBOARD = 0xAE
    READ_INPUT_PORT = 0xC0
    READ_OUTPUT_PORT = 0xD0
    WRITE_OUTPUT_PORT = 0xD1
    WRITE_KEYBOARD_OUTPUT = 0xD2
    WRITE_MOUSE_OUTPUT = 0xD3
    WRITE_TO_MOUSE = 0xD4
    DISABLE_A20 = 0xDD
    ENABLE_A20 = 0xDF
    READ_TEST_INPUTS = 0xE0
    PULSE_OUTPUT = 0xF0


class OutputPort:
    """The controller's pins."""

    NOT_RESET = 0x01
    A20 = 0x02
    KEYBOARD_OUTPUT_FULL = 0x10
    MOUSE_OUTPUT_FULL = 0x20
    CLOCK_AND_DATA = 0xC0
    """The lines to the keyboard, which idle high."""


_POWER_ON_COMMAND_BYTE = (
    CommandByte.KEYBOARD_INTERRUPT | CommandByte.SYSTEM_FLAG | CommandByte.TRANSLATE
)
_SELF_TEST_PASSED = 0x55
_PORT_TEST_PASSED = 0x00
_NO_PASSWORD = 0xF1
_INPUT_PORT_NOT_LOCKED = 0x80

_RAM_SIZE = 32
_FROM_MOUSE = 0x100
"""Marks a byte in the output buffer."""


class I8042(Device):
    """The controller: ``data_window`` (port 0x60) and ``command_window`` (port 0x64), 8 bits each
    (``max_size=1``).

    Each interrupt line is high while a byte of its device waits. ``reset`` is called with the
    lock held, on a vCPU's thread, and must only post a request.
    """

    def __init__(
        self,
        keyboard_irq: IrqLine,
        mouse_irq: IrqLine,
        reset: Callable[[], None],
        faults: GuestFaults,
    ) -> None:
        super().__init__()
        self._keyboard_irq = keyboard_irq
        self._mouse_irq = mouse_irq
        self._reset = reset
        self._faults = faults
        self.data_window = Window(self.lock, self._read_data, self._write_data)
        self.command_window = Window(self.lock, self._read_status, self._write_command)
        self._power_on()

    def _power_on(self) -> None:
        self._keyboard = Keyboard()
        self._mouse = Mouse()
        self._translator = Translator()
        self._ram = bytearray(_RAM_SIZE)
        self._ram[0] = _POWER_ON_COMMAND_BYTE
        self._a20 = True
        self._command: int | None = None  # waits for its parameter
        self._last_was_command = False
        self._reply: int | None = None  # waits for the output buffer
        self._output = 0  # the output buffer; a byte stays readable after it was taken
        self._output_full = False

    def key(self, codes: bytes) -> bool:
        """Press and release keys, in scan code set 2; whether the keyboard took them, or the guest
        isn't listening. Any thread may call."""
        with self.lock:
            taken = self._keyboard.key(codes)
            self._fill()
            return taken

    def ctrl_alt_delete(self) -> None:
        """Ask the guest to reboot. Any thread may call."""
        self.key(CTRL_ALT_DELETE)

    # Port 0x64.

    def _read_status(self, offset: int, size: int) -> int:
        status = Status.NOT_LOCKED | (self._ram[0] & CommandByte.SYSTEM_FLAG)
        if self._output_full:
            status |= Status.OUTPUT_FULL
        if self._output & _FROM_MOUSE:
            status |= Status.FROM_MOUSE
        if self._last_was_command:
            status |= Status.LAST_WAS_COMMAND
        return status

    def _write_command(self, offset: int, size: int, value: int) -> None:
        self._last_was_command = True
        self._command = None
        match value:
            case Command.SELF_TEST:
                self._ram[0] |= CommandByte.SYSTEM_FLAG
                self._answer(_SELF_TEST_PASSED)
            case Command.TEST_KEYBOARD_PORT | Command.TEST_MOUSE_PORT:
                self._answer(_PORT_TEST_PASSED)
            case Command.TEST_PASSWORD:
                self._answer(_NO_PASSWORD)
            case Command.DISABLE_KEYBOARD:
                self._ram[0] |= CommandByte.KEYBOARD_DISABLED
            case Command.ENABLE_KEYBOARD:
                self._ram[0] &= ~CommandByte.KEYBOARD_DISABLED
            case Command.DISABLE_MOUSE:
                self._ram[0] |= CommandByte.MOUSE_DISABLED
            case Command.ENABLE_MOUSE:
                self._ram[0] &= ~CommandByte.MOUSE_DISABLED
            case Command.READ_INPUT_PORT:
                self._answer(_INPUT_PORT_NOT_LOCKED)
            case Command.READ_OUTPUT_PORT:
                self._answer(self._output_port())
            case Command.READ_TEST_INPUTS:
                self._answer(0)
            case Command.DISABLE_A20 | Command.ENABLE_A20:
                self._a20 = value == Command.ENABLE_A20
            case (
                Command.WRITE_OUTPUT_PORT
                | Command.WRITE_KEYBOARD_OUTPUT
                | Command.WRITE_MOUSE_OUTPUT
                | Command.WRITE_TO_MOUSE
            ):
                self._command = value
            case _ if value >= Command.PULSE_OUTPUT:
                # Each clear bit pulls one of the output port's low pins down for a moment.
                if not value & OutputPort.NOT_RESET:
                    self._reset()
            case _ if Command.WRITE_RAM <= value < Command.WRITE_RAM + _RAM_SIZE:
                self._command = value
            case _ if Command.READ_RAM <= value < Command.READ_RAM + _RAM_SIZE:
                self._answer(self._ram[value - Command.READ_RAM])
            case _:
                self._faults.report("i8042 command that doesn't exist", "%#04x", value)
        self._fill()

    # Port 0x60.

    def _read_data(self, offset: int, size: int) -> int:
        value = self._output & 0xFF
        if self._output_full:
            self._output_full = False
            # Down before the next byte raises it: the interrupts are edge-triggered.
            self._drive_interrupts()
            self._fill()
        return value

    def _write_data(self, offset: int, size: int, value: int) -> None:
        self._last_was_command = False
        command, self._command = self._command, None
        match command:
            case None:
                # Sending to a device starts its clock.
                self._ram[0] &= ~CommandByte.KEYBOARD_DISABLED
                self._keyboard.receive(value)
            case Command.WRITE_TO_MOUSE:
                self._ram[0] &= ~CommandByte.MOUSE_DISABLED
                self._mouse.receive(value)
            case Command.WRITE_KEYBOARD_OUTPUT:
                self._answer(value)
            case Command.WRITE_MOUSE_OUTPUT:
                self._answer(value | _FROM_MOUSE)
            case Command.WRITE_OUTPUT_PORT:
                self._a20 = bool(value & OutputPort.A20)
                if not value & OutputPort.NOT_RESET:
                    self._reset()
            case _:
                self._ram[command - Command.WRITE_RAM] = value
        self._fill()

    def _output_port(self) -> int:
        port = OutputPort.NOT_RESET | OutputPort.CLOCK_AND_DATA
        if self._a20:
            port |= OutputPort.A20
        if self._output_full:
            if self._output & _FROM_MOUSE:
                port |= OutputPort.MOUSE_OUTPUT_FULL
            else:
                port |= OutputPort.KEYBOARD_OUTPUT_FULL
        return port

    # The output buffer.

    def _answer(self, value: int) -> None:
        """The controller's own answer goes before what the devices have to say."""
        self._reply = value

    def _fill(self) -> None:
        """Put the next byte into the output buffer, if it is empty and there is one."""
        if not self._output_full:
            value = self._next_byte()
            if value is not None:
                self._output = value
                self._output_full = True
        self._drive_interrupts()

    def _next_byte(self) -> int | None:
        control = self._ram[0]
        if self._reply is not None:
            value, self._reply = self._reply, None
            return value
        if not control & CommandByte.KEYBOARD_DISABLED:
            while self._keyboard.queue:
                code: int | None = self._keyboard.take()
                if control & CommandByte.TRANSLATE:
                    code = self._translator.feed(self._keyboard.last_sent)
                if code is not None:
                    return code
        if self._mouse.queue and not control & CommandByte.MOUSE_DISABLED:
            return self._mouse.take() | _FROM_MOUSE
        return None

    def _drive_interrupts(self) -> None:
        control = self._ram[0]
        full, mouse = self._output_full, bool(self._output & _FROM_MOUSE)
        self._keyboard_irq.set(
            full and not mouse and bool(control & CommandByte.KEYBOARD_INTERRUPT)
        )
        self._mouse_irq.set(full and mouse and bool(control & CommandByte.MOUSE_INTERRUPT))

    # State.

    def reset(self) -> None:
        self._power_on()
        self._drive_interrupts()

    def save(self) -> dict[str, Any]:
        return {
            "ram": bytes(self._ram),
            "a20": self._a20,
            "command": self._command,
            "last_was_command": self._last_was_command,
            "reply": self._reply,
            "output": self._output,
            "output_full": self._output_full,
            "released": self._translator.released,
            "keyboard": self._keyboard.save(),
            "mouse": self._mouse.save(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._ram[:] = state["ram"]
        self._a20 = state["a20"]
        self._command = state["command"]
        self._last_was_command = state["last_was_command"]
        self._reply = state["reply"]
        self._output = state["output"]
        self._output_full = state["output_full"]
        self._translator.released = state["released"]
        self._keyboard.restore(state["keyboard"])
        self._mouse.restore(state["mouse"])
        self._drive_interrupts()
