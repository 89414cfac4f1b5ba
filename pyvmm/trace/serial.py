"""The serial port's registers (:mod:`pyvmm.devices.serial`)."""

from __future__ import annotations

from pyvmm.devices.serial import (
    TRIGGER_LEVELS,
    FifoControl,
    InterruptEnable,
    InterruptId,
    LineControl,
    LineStatus,
    ModemControl,
    ModemStatus,
    Register,
)
from pyvmm.trace.names import Bits, character, constants, counted, flags, sentence, single_bits

MAX_BAUD = 115_200

_INTERRUPTS = Bits(
    {
        InterruptEnable.ERBFI: "received data",
        InterruptEnable.ETBEI: "transmitter empty",
        InterruptEnable.ELSI: "line status",
        InterruptEnable.EDSSI: "modem status",
    }
)
_PENDING = constants(InterruptId)
_LINE = single_bits(LineStatus)
_MODEM_CONTROL = single_bits(ModemControl)
_MODEM_STATUS = single_bits(ModemStatus)
_PARITIES = {1: "odd parity", 3: "even parity", 5: "parity bit 1", 7: "parity bit 0"}


class SerialDecoder:
    """One port. Which registers are at the first two offsets depends on LCR.DLAB."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._dlab = False
        self._divisor = [0, 0]

    def __call__(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        register, meaning = self._decode(offset, value, write)
        return self._device, register, meaning

    def _decode(self, offset: int, value: int, write: bool) -> tuple[str, str]:
        if offset in (Register.DLL, Register.DLM) and self._dlab:
            return ("DLM" if offset else "DLL"), self._divisor_latch(offset, value)
        match offset:
            case Register.RBR:
                return ("THR" if write else "RBR"), character(value)
            case Register.IER:
                return "IER", f"interrupts: {flags(_INTERRUPTS, value)}"
            case Register.FCR if write:
                return "FCR", _fifo_control(value)
            case Register.IIR:
                return "IIR", _interrupt_id(value)
            case Register.LCR:
                self._dlab = bool(value & LineControl.DLAB)
                return "LCR", _line_control(value)
            case Register.MCR:
                return "MCR", flags(_MODEM_CONTROL, value)
            case Register.LSR:
                return "LSR", flags(_LINE, value)
            case Register.MSR:
                return "MSR", flags(_MODEM_STATUS, value)
        return "SCR", ""

    def _divisor_latch(self, offset: int, value: int) -> str:
        self._divisor[offset] = value
        divisor = self._divisor[0] | self._divisor[1] << 8
        return f"divisor {divisor}: {MAX_BAUD // divisor} baud" if divisor else "divisor 0"


def _line_control(value: int) -> str:
    return sentence(
        (
            f"{5 + (value & 3)} bits",
            "2 stop bits" if value & 4 else "",
            _PARITIES.get(value >> 3 & 7, "no parity"),
            "break" if value & LineControl.SET_BREAK else "",
            "DLAB" if value & LineControl.DLAB else "",
        )
    )


def _fifo_control(value: int) -> str:
    if not value & FifoControl.ENABLE:
        return "FIFOs off"
    trigger = TRIGGER_LEVELS[value >> FifoControl.TRIGGER_SHIFT & 3]
    return sentence(
        (
            "FIFOs on",
            "clear receiver" if value & FifoControl.CLEAR_RECEIVER else "",
            "clear transmitter" if value & FifoControl.CLEAR_TRANSMITTER else "",
            f"interrupt at {counted(trigger, 'byte')}",
        )
    )


def _interrupt_id(value: int) -> str:
    cause = _PENDING.get(value & 0x0F, f"cause {value & 0x0F:#x}")
    return f"{cause}, FIFOs on" if value & InterruptId.FIFOS_ENABLED else cause
