"""The keyboard controller's two ports (:mod:`pyvmm.devices.i8042`)."""

from __future__ import annotations

from pyvmm.devices.i8042 import Command, CommandByte, OutputPort, Status
from pyvmm.devices.ps2 import KeyboardCommand, MouseCommand, Reply
from pyvmm.trace.names import constants, flags, single_bits

RAM_SIZE = 32

_COMMANDS = constants(Command)
_STATUS = single_bits(Status)
_COMMAND_BYTE = single_bits(CommandByte)
_OUTPUT_PORT = single_bits(OutputPort)
_KEYBOARD = constants(KeyboardCommand)
_MOUSE = constants(MouseCommand)
_REPLIES = constants(Reply)
_SELF_TEST_PASSED = 0x55

_PARAMETERS = (
    Command.WRITE_OUTPUT_PORT,
    Command.WRITE_KEYBOARD_OUTPUT,
    Command.WRITE_MOUSE_OUTPUT,
    Command.WRITE_TO_MOUSE,
)
_ANSWERS = (
    Command.SELF_TEST,
    Command.TEST_KEYBOARD_PORT,
    Command.TEST_MOUSE_PORT,
    Command.TEST_PASSWORD,
    Command.READ_INPUT_PORT,
    Command.READ_OUTPUT_PORT,
    Command.READ_TEST_INPUTS,
)


class I8042Decoder:
    """Both ports: a byte of data belongs to the command before it, if that takes one."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._parameter: int | None = None
        self._answer: int | None = None

    def command(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        """Port 0x64."""
        if not write:
            return self._device, "status", flags(_STATUS, value)
        self._parameter = self._answer = None
        ram = value & (RAM_SIZE - 1)
        if value >= Command.PULSE_OUTPUT:
            reset = not value & OutputPort.NOT_RESET
            return self._device, "command", "PULSE_OUTPUT: reset" if reset else "PULSE_OUTPUT"
        if Command.WRITE_RAM <= value < Command.WRITE_RAM + RAM_SIZE:
            self._parameter = value
            return self._device, "command", f"WRITE_RAM {_ram(ram)}"
        if Command.READ_RAM <= value < Command.READ_RAM + RAM_SIZE:
            self._answer = value
            return self._device, "command", f"READ_RAM {_ram(ram)}"
        if value in _PARAMETERS:
            self._parameter = value
        if value in _ANSWERS:
            self._answer = value
        return self._device, "command", _COMMANDS.get(value, "no such command")

    def data(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        """Port 0x60."""
        if write:
            command, self._parameter = self._parameter, None
            return self._device, "data", _written(command, value)
        command, self._answer = self._answer, None
        return self._device, "data", _read(command, value)


def _ram(index: int) -> str:
    return "0 (command byte)" if index == 0 else str(index)


def _written(command: int | None, value: int) -> str:
    match command:
        case None:
            return f"to the keyboard: {_KEYBOARD.get(value, hex(value))}"
        case Command.WRITE_TO_MOUSE:
            return f"to the mouse: {_MOUSE.get(value, hex(value))}"
        case Command.WRITE_OUTPUT_PORT:
            return f"output port: {flags(_OUTPUT_PORT, value)}"
        case Command.WRITE_RAM:
            return f"command byte: {flags(_COMMAND_BYTE, value)}"
    return "as if from a device" if command in _PARAMETERS else "RAM"


def _read(command: int | None, value: int) -> str:
    match command:
        case None:
            return _REPLIES.get(value, "")
        case Command.SELF_TEST:
            return "self-test passed" if value == _SELF_TEST_PASSED else "self-test failed"
        case Command.READ_OUTPUT_PORT:
            return f"output port: {flags(_OUTPUT_PORT, value)}"
        case Command.READ_RAM:
            return f"command byte: {flags(_COMMAND_BYTE, value)}"
    return f"answer to {_COMMANDS.get(command, 'READ_RAM')}"
