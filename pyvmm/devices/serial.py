"""The serial port: a 16550A UART.

Defined by National Semiconductor's (now Texas Instruments') PC16550D data sheet, section 8
"Registers" (8.1 line control, 8.2 baud generator, 8.3 line status, 8.4 FIFO control, 8.5 interrupt
identification, 8.6 interrupt enable, 8.7 modem control, 8.8 modem status, 8.9 scratchpad) and 8.10
"FIFO interrupt mode operation". On a PC the interrupt reaches the controller only while the UART's
OUT2 pin is active. Here it always does, because kernels that were written on QEMU, where it does
as well, may not know of that pin (xv6).

There is no wire, so there is no time either:

* A character leaves at once. THR is full only while the backend refuses characters; these then
  wait in the transmit FIFO with LSR.THRE clear, and the guest waits for them.
* The character time-out ("data below the trigger level, and nothing happened for four character
  times") is signalled at once: what the host offers comes in one piece, and what comes later comes
  at a human's pace. Reading RBR ends the time-out and the next one follows immediately, with an
  edge on the interrupt line between them, because the ISA's controllers are edge-triggered and
  some drivers read one character per interrupt.
* A driver that clears the receive FIFO while it sets up the port loses, on a real machine, what
  was typed before. Here it would regularly lose the beginning of piped input, so those characters
  count as not yet arrived: see :meth:`Serial._clear_receiver`.

Left out: word length, parity and baud rate are stored but have no effect, so there are no parity
or framing errors; DMA signalling (FCR bit 3); the modem inputs are always active (CTS, DSR, DCD)
outside loopback.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from pyvmm.backends.character import CharacterBackend
from pyvmm.bus import Device
from pyvmm.interrupts import IrqLine

FIFO_DEPTH = 16
TRIGGER_LEVELS = (1, 4, 8, 14)
"""The receive FIFO's trigger level by FCR bits 7:6."""


# Classes of plain integers, not enums: a guest's every character passes through here, and enum
# arithmetic costs as much as the exit.
class Register:
    """Offsets. DLL and DLM replace the first two while LCR.DLAB is set."""

    RBR = THR = DLL = 0
    IER = DLM = 1
    IIR = FCR = 2
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7


class InterruptEnable:
    ERBFI = 0x01  # received data available, and character time-out
    ETBEI = 0x02  # transmitter holding register empty
    ELSI = 0x04  # receiver line status
    EDSSI = 0x08  # modem status
    ALL = 0x0F


class InterruptId:
    """IIR bits 3:0, by falling priority."""

    LINE_STATUS = 0x06
    RECEIVED_DATA = 0x04
    CHARACTER_TIMEOUT = 0x0C
    THR_EMPTY = 0x02
    MODEM_STATUS = 0x00
    NONE = 0x01
    FIFOS_ENABLED = 0xC0


class FifoControl:
    ENABLE = 0x01
    CLEAR_RECEIVER = 0x02
    CLEAR_TRANSMITTER = 0x04
    TRIGGER_SHIFT = 6


class LineControl:
    SET_BREAK = 0x40
    DLAB = 0x80


class ModemControl:
    DTR = 0x01
    RTS = 0x02
    OUT1 = 0x04
    OUT2 = 0x08
    LOOP = 0x10
    ALL = 0x1F


class LineStatus:
    DATA_READY = 0x01
    OVERRUN_ERROR = 0x02
    PARITY_ERROR = 0x04
    FRAMING_ERROR = 0x08
    BREAK_INTERRUPT = 0x10
    THR_EMPTY = 0x20
    TRANSMITTER_EMPTY = 0x40
    FIFO_ERROR = 0x80
    ERRORS = OVERRUN_ERROR | PARITY_ERROR | FRAMING_ERROR | BREAK_INTERRUPT
    IDLE = THR_EMPTY | TRANSMITTER_EMPTY


class ModemStatus:
    DELTA_CTS = 0x01
    DELTA_DSR = 0x02
    TRAILING_EDGE_RI = 0x04
    DELTA_DCD = 0x08
    CTS = 0x10
    DSR = 0x20
    RI = 0x40
    DCD = 0x80
    DELTAS = 0x0F
    LINES = 0xF0
    CONNECTED = CTS | DSR | DCD


# A received character is its value and, above it, what came with it.
_BREAK = 0x100
_LOOPED = 0x200

_SETTLING_READS = 32
"""How many reads of LSR mean that a driver has finished its set-up and polls; see
:meth:`Serial._clear_receiver`."""

_DIVISOR_9600 = 12
"""What a PC's firmware leaves in the divisor latch. 0 would have early consoles divide by it."""

# The registers and bits of the path of each character that a guest prints.
_THR = Register.THR
_LSR = Register.LSR
_ERRORS = LineStatus.ERRORS


class Serial(Device):
    """A UART on ``irq`` whose wire ends in ``backend``.

    Eight registers of one byte: the bus must split wider accesses (``max_size=1``).
    """

    def __init__(self, irq: IrqLine, backend: CharacterBackend) -> None:
        super().__init__()
        self._irq = irq
        self._backend = backend
        self._put = backend.put
        self._scratch = 0
        self._divisor = _DIVISOR_9600
        self._received: deque[int] = deque()
        self._unsent: deque[int] = deque()
        self._held: deque[int] = deque()
        self._sender_waits = False
        self._power_on()
        backend.connect(self)

    def reset(self) -> None:
        with self.lock:
            self._power_on()
            self._divisor = _DIVISOR_9600
            self._update_irq()
            self._wake_sender()

    def _power_on(self) -> None:
        """What the master reset does (the data sheet's reset table). It spares SCR and divisor."""
        self._ier = 0
        self._lcr = 0
        self._mcr = 0
        self._lsr = LineStatus.IDLE
        self._msr = ModemStatus.CONNECTED
        self._fifos = False
        self._trigger = TRIGGER_LEVELS[0]
        self._thre_pending = False
        self._received.clear()
        self._unsent.clear()
        self._held.clear()
        self._settling = 0
        self._filling = False
        self._update_online()

    def save(self) -> dict[str, Any]:
        with self.lock:
            return {
                "ier": self._ier,
                "lcr": self._lcr,
                "mcr": self._mcr,
                "lsr": self._lsr,
                "msr": self._msr,
                "scratch": self._scratch,
                "divisor": self._divisor,
                "fifos": self._fifos,
                "trigger": self._trigger,
                "thre_pending": self._thre_pending,
                "settling": self._settling,
                "received": list(self._received),
                "unsent": list(self._unsent),
                "held": list(self._held),
            }

    def restore(self, state: dict[str, Any]) -> None:
        with self.lock:
            self._ier = state["ier"]
            self._lcr = state["lcr"]
            self._mcr = state["mcr"]
            self._lsr = state["lsr"]
            self._msr = state["msr"]
            self._scratch = state["scratch"]
            self._divisor = state["divisor"]
            self._fifos = state["fifos"]
            self._trigger = state["trigger"]
            self._thre_pending = state["thre_pending"]
            self._settling = state["settling"]
            self._received = deque(state["received"])
            self._unsent = deque(state["unsent"])
            self._held = deque(state["held"])
            self._filling = False
            self._update_online()
            self._send_waiting()
            self._update_irq()
            self._wake_sender()

    @property
    def sending_break(self) -> bool:
        """Whether the guest holds the line in the break condition."""
        return bool(self._lcr & LineControl.SET_BREAK)

    # The guest's side: registers.

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == _THR and self._online and self._put(value):
            if not self._filling:
                self._character_left()
            return
        self._filling = False
        match offset:
            case Register.THR if self._lcr & LineControl.DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            case Register.THR:
                self._write_thr(value)
            case Register.DLM if self._lcr & LineControl.DLAB:
                self._divisor = value << 8 | self._divisor & 0xFF
            case Register.IER:
                self._write_ier(value & InterruptEnable.ALL)
            case Register.FCR:
                self._write_fcr(value)
            case Register.LCR:
                self._write_lcr(value)
            case Register.MCR:
                self._write_mcr(value & ModemControl.ALL)
            case Register.SCR:
                self._scratch = value
            case _:
                pass  # LSR and MSR are read-only but for the factory's tests

    def read(self, offset: int, size: int) -> int:
        self._filling = False
        if offset == _LSR:
            status = self._lsr
            if status & _ERRORS or self._settling:
                self._line_status_was_read()
            return status
        match offset:
            case Register.RBR if self._lcr & LineControl.DLAB:
                return self._divisor & 0xFF
            case Register.RBR:
                return self._read_rbr()
            case Register.DLM if self._lcr & LineControl.DLAB:
                return self._divisor >> 8
            case Register.IER:
                return self._ier
            case Register.IIR:
                return self._read_iir()
            case Register.LCR:
                return self._lcr
            case Register.MCR:
                return self._mcr
            case Register.MSR:
                return self._read_msr()
            case _:
                return self._scratch

    def _write_ier(self, value: int) -> None:
        enabled = value & ~self._ier
        self._ier = value
        if enabled & InterruptEnable.ETBEI:
            self._thre_pending = bool(self._lsr & LineStatus.THR_EMPTY)
        if enabled & InterruptEnable.ERBFI:
            self._settled()
        self._update_irq()

    def _read_iir(self) -> int:
        source = self._interrupt_id()
        if source == InterruptId.THR_EMPTY:
            self._thre_pending = False
            self._update_irq()
        return source | (InterruptId.FIFOS_ENABLED if self._fifos else 0)

    def _write_fcr(self, value: int) -> None:
        fifos = bool(value & FifoControl.ENABLE)
        toggled = fifos != self._fifos
        self._fifos = fifos
        if fifos:
            self._trigger = TRIGGER_LEVELS[value >> FifoControl.TRIGGER_SHIFT & 3]
        if toggled or (fifos and value & FifoControl.CLEAR_TRANSMITTER):
            if toggled or self._unsent:
                self._thre_pending = True
            self._unsent.clear()
            self._lsr |= LineStatus.IDLE
            self._update_online()
        if toggled or (fifos and value & FifoControl.CLEAR_RECEIVER):
            self._clear_receiver()
        self._update_irq()
        self._wake_sender()

    def _write_lcr(self, value: int) -> None:
        break_begins = value & ~self._lcr & LineControl.SET_BREAK
        self._lcr = value
        self._update_online()
        if break_begins and self._mcr & ModemControl.LOOP:
            self._push(_BREAK | _LOOPED)
            self._update_irq()

    def _write_mcr(self, value: int) -> None:
        self._mcr = value
        self._update_online()
        self._update_modem_lines()
        self._fill_from_held()
        self._update_irq()
        self._wake_sender()

    def _read_msr(self) -> int:
        status = self._msr
        if status & ModemStatus.DELTAS:
            self._msr = status & ModemStatus.LINES
            self._update_irq()
        return status

    def _line_status_was_read(self) -> None:
        if self._settling:
            self._settling -= 1
            if not self._settling:
                self._settled()
        self._lsr &= ~_ERRORS
        self._show_oldest()
        self._update_irq()

    def _update_modem_lines(self) -> None:
        """In loopback the modem outputs are the modem inputs (section 8.7)."""
        before = self._msr & ModemStatus.LINES
        lines = ModemStatus.CONNECTED
        mcr = self._mcr
        if mcr & ModemControl.LOOP:
            lines = (
                (ModemStatus.CTS if mcr & ModemControl.RTS else 0)
                | (ModemStatus.DSR if mcr & ModemControl.DTR else 0)
                | (ModemStatus.RI if mcr & ModemControl.OUT1 else 0)
                | (ModemStatus.DCD if mcr & ModemControl.OUT2 else 0)
            )
        deltas = (before ^ lines) >> 4 & ~ModemStatus.TRAILING_EDGE_RI
        if before & ~lines & ModemStatus.RI:
            deltas |= ModemStatus.TRAILING_EDGE_RI
        self._msr = lines | self._msr & ModemStatus.DELTAS | deltas

    # Interrupts.

    def _interrupt_id(self) -> int:
        ier, lsr = self._ier, self._lsr
        if ier & InterruptEnable.ELSI and lsr & _ERRORS:
            return InterruptId.LINE_STATUS
        if ier & InterruptEnable.ERBFI and lsr & LineStatus.DATA_READY:
            if self._fifos and len(self._received) < self._trigger:
                return InterruptId.CHARACTER_TIMEOUT
            return InterruptId.RECEIVED_DATA
        if ier & InterruptEnable.ETBEI and self._thre_pending:
            return InterruptId.THR_EMPTY
        if ier & InterruptEnable.EDSSI and self._msr & ModemStatus.DELTAS:
            return InterruptId.MODEM_STATUS
        return InterruptId.NONE

    def _update_irq(self) -> None:
        looped = self._mcr & ModemControl.LOOP  # which forces OUT2 inactive
        self._irq.set(not looped and self._interrupt_id() != InterruptId.NONE)

    # Transmission.

    def _update_online(self) -> None:
        """Whether a write to THR goes straight to the backend."""
        self._online = not (
            self._lcr & LineControl.DLAB or self._mcr & ModemControl.LOOP or self._unsent
        )

    def _character_left(self) -> None:
        """The first of a row of writes to THR: it ends the THRE interrupt, and the character's
        leaving raises it again. What follows in the row fills the FIFO: the interrupt that is
        then pending stands for all of it."""
        self._filling = True
        if self._ier & InterruptEnable.ETBEI:
            self._thre_pending = False
            self._update_irq()
            self._thre_pending = True
            self._update_irq()

    def _write_thr(self, value: int) -> None:
        """What the backend didn't take, or wasn't offered."""
        if self._mcr & ModemControl.LOOP:
            self._push(value | _LOOPED)
            self._character_left()
            self._update_irq()
            return
        if self._fifos and len(self._unsent) >= FIFO_DEPTH:
            return  # a full FIFO drops it; only a driver that ignores THRE comes here
        if not self._fifos:
            self._unsent.clear()
        self._unsent.append(value)
        self._lsr &= ~LineStatus.IDLE
        self._thre_pending = False
        self._update_online()
        self._update_irq()

    def output_ready(self) -> None:
        with self.lock:
            self._send_waiting()
            self._update_irq()

    def _send_waiting(self) -> None:
        unsent = self._unsent
        if not unsent:
            return
        while unsent and self._put(unsent[0]):
            unsent.popleft()
        if not unsent:
            self._lsr |= LineStatus.IDLE
            self._thre_pending = True
            self._update_online()

    # Reception.

    def receive(self, data: bytes | bytearray) -> int:
        with self.lock:
            if self._listening() and not self._held:
                accepted = min(len(data), self._depth() - len(self._received))
            else:
                accepted = 0
            for character in data[:accepted]:
                self._push(character)
            if accepted < len(data):
                self._sender_waits = True
            if accepted:
                self._update_irq()
            return accepted

    def receive_break(self) -> None:
        with self.lock:
            if self._listening():
                self._push(_BREAK)
                self._update_irq()

    def carrier(self, present: bool) -> None:
        """The modem lines say "connected" whoever is there: a driver that saw them fall would hang
        up on a console."""

    def _listening(self) -> bool:
        """Whether the receiver is connected to the line, and its driver ready."""
        return not (self._settling or self._mcr & ModemControl.LOOP)

    def _depth(self) -> int:
        return FIFO_DEPTH if self._fifos else 1

    def _push(self, character: int) -> None:
        received = self._received
        if len(received) < self._depth():
            received.append(character)
        else:
            # Section 8.3: without FIFOs the new character replaces the old one; with them it is
            # the new one that is lost.
            self._lsr |= LineStatus.OVERRUN_ERROR
            if self._fifos:
                return
            received[0] = character
        if character & _BREAK and self._fifos:
            self._lsr |= LineStatus.FIFO_ERROR
        self._show_oldest()

    def _show_oldest(self) -> None:
        """LSR tells of the character that the next read of RBR gives: that there is one, and
        (once) that it is a break."""
        received = self._received
        if not received:
            self._lsr &= ~LineStatus.DATA_READY
        else:
            self._lsr |= LineStatus.DATA_READY
            if received[0] & _BREAK:
                received[0] &= ~_BREAK
                self._lsr |= LineStatus.BREAK_INTERRUPT
        if self._lsr & LineStatus.FIFO_ERROR and not (
            self._lsr & LineStatus.BREAK_INTERRUPT
            or any(character & _BREAK for character in received)
        ):
            self._lsr &= ~LineStatus.FIFO_ERROR

    def _read_rbr(self) -> int:
        received = self._received
        if not received:
            return 0
        character = received.popleft()
        self._fill_from_held()
        self._show_oldest()
        if self._interrupt_id() == InterruptId.CHARACTER_TIMEOUT:
            self._irq.set(False)
        self._update_irq()
        self._wake_sender()
        return character & 0xFF

    def _clear_receiver(self) -> None:
        """Empty the receive FIFO, but keep what came from the line and wasn't read.

        It comes (again) when the driver has finished its set-up. That is when it enables the
        receive interrupt or, as drivers that poll never do, has read LSR many times. Linux, for
        one, clears the FIFOs and reads RBR blindly several times before it enables the interrupt.
        """
        unread = [character for character in self._received if not character & _LOOPED]
        self._held.extendleft(reversed(unread))
        self._received.clear()
        self._show_oldest()
        if self._ier & InterruptEnable.ERBFI:
            self._fill_from_held()
        else:
            self._settling = _SETTLING_READS

    def _settled(self) -> None:
        self._settling = 0
        self._fill_from_held()
        self._wake_sender()

    def _fill_from_held(self) -> None:
        if self._held and self._listening():
            while self._held and len(self._received) < self._depth():
                self._push(self._held.popleft())

    def _wake_sender(self) -> None:
        """Ask for more once all is read, not for every character: it wakes the I/O thread."""
        if self._sender_waits and not self._received and self._listening():
            self._sender_waits = False
            self._backend.resume_input()
