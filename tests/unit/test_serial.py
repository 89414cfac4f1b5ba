"""The 16550A against its data sheet, and against what drivers do with it."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fakes import RecordingLine

from pyvmm.backends.character import CharacterDevice
from pyvmm.devices.serial import (
    FIFO_DEPTH,
    FifoControl,
    InterruptEnable,
    InterruptId,
    LineControl,
    LineStatus,
    ModemControl,
    ModemStatus,
    Register,
    Serial,
)

FIFOS_ON = FifoControl.ENABLE
TRIGGER_14 = 3 << FifoControl.TRIGGER_SHIFT
ERBFI, ETBEI = InterruptEnable.ERBFI, InterruptEnable.ETBEI
ELSI, EDSSI = InterruptEnable.ELSI, InterruptEnable.EDSSI
SOURCE = 0x0F  # of IIR


class FakeBackend:
    """Takes ``room`` characters, then refuses; feeds ``input`` as the device lets it."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.room = 1 << 30
        self.input = bytearray()
        self.resumed = 0
        self.device: CharacterDevice | None = None

    def connect(self, device: CharacterDevice) -> None:
        self.device = device

    def put(self, byte: int) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.output.append(byte)
        return True

    def resume_input(self) -> None:
        self.resumed += 1

    def type(self, data: bytes) -> None:
        """The user types; what the device doesn't take waits here."""
        self.input += data
        self.deliver()

    def deliver(self) -> None:
        assert self.device is not None
        self.resumed = 0
        if self.input:
            accepted = self.device.receive(self.input)
            del self.input[:accepted]

    def make_room(self, room: int) -> None:
        assert self.device is not None
        self.room = room
        self.device.output_ready()


class Port:
    """A UART with a driver's view of it."""

    def __init__(self) -> None:
        self.irq = RecordingLine()
        self.backend = FakeBackend()
        self.uart = Serial(self.irq, self.backend)

    def out(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)

    def inb(self, register: int) -> int:
        return self.uart.read(register, 1)

    def source(self) -> int:
        return self.inb(Register.IIR) & SOURCE

    def status(self) -> int:
        return self.inb(Register.LSR)

    def open(self, ier: int, fcr: int = FIFOS_ON) -> None:
        """As a driver does: FIFOs, modem lines with the interrupt gate, interrupts."""
        self.out(Register.FCR, fcr)
        self.out(Register.MCR, ModemControl.DTR | ModemControl.RTS | ModemControl.OUT2)
        self.out(Register.IER, ier)

    def poll(self) -> None:
        """As a driver without interrupts does, for a while."""
        for _ in range(100):
            self.status()
        if self.backend.resumed:
            self.backend.deliver()

    def read_all(self) -> bytes:
        """As a driver does: as long as data is ready; between, the I/O thread gets to run."""
        data = bytearray()
        while self.status() & LineStatus.DATA_READY:
            data.append(self.inb(Register.RBR))
            if self.backend.resumed:
                self.backend.deliver()
        return bytes(data)


@pytest.fixture
def port() -> Port:
    return Port()


class TestRegisters:
    def test_power_on_state(self, port: Port) -> None:
        assert port.inb(Register.IER) == 0
        assert port.inb(Register.IIR) == InterruptId.NONE
        assert port.inb(Register.LCR) == 0
        assert port.inb(Register.MCR) == 0
        assert port.inb(Register.LSR) == LineStatus.THR_EMPTY | LineStatus.TRANSMITTER_EMPTY
        assert port.inb(Register.MSR) == ModemStatus.CTS | ModemStatus.DSR | ModemStatus.DCD
        assert port.irq.edges == []

    def test_divisor_latch(self, port: Port) -> None:
        port.out(Register.LCR, LineControl.DLAB | 0x03)
        port.out(Register.DLL, 0x34)
        port.out(Register.DLM, 0x12)
        assert (port.inb(Register.DLL), port.inb(Register.DLM)) == (0x34, 0x12)
        assert port.backend.output == b""
        port.out(Register.LCR, 0x03)
        assert port.inb(Register.IER) == 0
        port.out(Register.THR, ord("A"))
        assert port.backend.output == b"A"

    def test_divisor_is_never_zero_before_anyone_sets_it(self, port: Port) -> None:
        port.out(Register.LCR, LineControl.DLAB)
        assert port.inb(Register.DLL) | port.inb(Register.DLM)

    @pytest.mark.parametrize("value", [0x00, 0x55, 0xAA, 0xFF])
    def test_what_reads_back(self, port: Port, value: int) -> None:
        port.out(Register.SCR, value)
        assert port.inb(Register.SCR) == value
        port.out(Register.MCR, value)
        assert port.inb(Register.MCR) == value & 0x1F
        port.out(Register.IER, value)
        assert port.inb(Register.IER) == value & 0x0F
        port.out(Register.LCR, value)
        assert port.inb(Register.LCR) == value

    def test_status_registers_are_read_only(self, port: Port) -> None:
        port.out(Register.LSR, 0x1F)
        port.out(Register.MSR, 0x00)
        assert port.inb(Register.LSR) == 0x60
        assert port.inb(Register.MSR) == 0xB0

    def test_fifo_bits_of_iir_tell_a_16550a(self, port: Port) -> None:
        port.out(Register.FCR, FIFOS_ON)
        assert port.inb(Register.IIR) >> 6 == 3
        port.out(Register.FCR, 0)
        assert port.inb(Register.IIR) >> 6 == 0

    def test_reset_spares_scratch_register(self, port: Port) -> None:
        port.open(ERBFI | ETBEI)
        port.out(Register.SCR, 0x5A)
        port.backend.type(b"x")
        port.uart.reset()
        assert port.inb(Register.SCR) == 0x5A
        assert port.inb(Register.IER) == 0
        assert port.status() == LineStatus.IDLE
        assert not port.irq.level


class TestTransmission:
    def test_enabling_the_interrupt_with_thr_empty_raises_it_at_once(self, port: Port) -> None:
        port.open(0)
        port.out(Register.IER, ETBEI)
        assert port.irq.level
        assert port.source() == InterruptId.THR_EMPTY

    def test_reading_iir_clears_it(self, port: Port) -> None:
        port.open(ETBEI)
        assert port.source() == InterruptId.THR_EMPTY
        assert not port.irq.level
        assert port.source() == InterruptId.NONE
        port.out(Register.IER, ETBEI)  # was enabled: no news
        assert not port.irq.level
        port.out(Register.IER, 0)
        port.out(Register.IER, ETBEI)
        assert port.irq.level

    def test_reading_iir_for_another_source_does_not_clear_it(self, port: Port) -> None:
        port.open(ERBFI | ETBEI)
        port.backend.type(b"x")
        assert port.source() == InterruptId.RECEIVED_DATA
        assert port.source() == InterruptId.RECEIVED_DATA
        port.inb(Register.RBR)
        assert port.source() == InterruptId.THR_EMPTY

    def test_a_character_that_left_raises_it(self, port: Port) -> None:
        port.open(ETBEI)
        port.inb(Register.IIR)
        port.irq.clear()
        port.out(Register.THR, ord("x"))
        assert port.irq.edges == [True]

    def test_a_driver_that_never_reads_iir_gets_an_edge_for_each_character(
        self, port: Port
    ) -> None:
        port.open(ETBEI)
        for character in b"abc":
            port.irq.clear()
            assert port.status() & LineStatus.THR_EMPTY
            port.out(Register.THR, character)
            assert port.irq.edges == [False, True]

    def test_filling_the_fifo_is_one_interrupt(self, port: Port) -> None:
        port.open(ETBEI)
        port.inb(Register.IIR)
        port.irq.clear()
        for character in b"0123456789abcdef":
            port.out(Register.THR, character)
        assert port.irq.edges == [True]
        assert port.backend.output == b"0123456789abcdef"

    def test_without_the_interrupt_the_line_stays_quiet(self, port: Port) -> None:
        port.open(0)
        for character in b"hello":
            port.out(Register.THR, character)
        assert port.irq.edges == []

    def test_a_full_backend_holds_the_guest_back(self, port: Port) -> None:
        port.open(ETBEI)
        port.backend.room = 3
        for character in b"abcd":
            port.out(Register.THR, character)
        assert port.backend.output == b"abc"
        assert not port.status() & LineStatus.IDLE
        assert not port.irq.level
        port.backend.make_room(100)
        assert port.backend.output == b"abcd"
        assert port.status() & LineStatus.IDLE == LineStatus.IDLE
        assert port.irq.level
        assert port.source() == InterruptId.THR_EMPTY

    def test_a_driver_that_fills_the_fifo_loses_nothing(self, port: Port) -> None:
        """Backend with little room, given now and then; the driver writes 16 at a time."""
        port.open(ETBEI)
        message = bytes(range(256)) * 8
        to_send = deque(message)
        while to_send or len(port.backend.output) < len(message):
            if port.source() == InterruptId.THR_EMPTY and to_send:
                for _ in range(min(FIFO_DEPTH, len(to_send))):
                    port.out(Register.THR, to_send.popleft())
            else:
                port.backend.make_room(7)
        assert port.backend.output == message

    def test_polling_driver_loses_nothing_without_fifos(self, port: Port) -> None:
        port.backend.room = 0
        message = b"polled output, one character at a time"
        for character in message:
            while not port.status() & LineStatus.THR_EMPTY:
                port.backend.make_room(1)
            port.out(Register.THR, character)
        port.backend.make_room(1)
        assert port.backend.output == message

    @pytest.mark.parametrize(("fcr", "kept"), [(0, b"9"), (FIFOS_ON, b"0123456789" + b"012345")])
    def test_ignoring_thre_loses_characters_but_takes_no_memory(
        self, port: Port, fcr: int, kept: bytes
    ) -> None:
        port.open(0, fcr)
        port.backend.room = 0
        for character in b"0123456789" * 1000:
            port.out(Register.THR, character)
        port.backend.make_room(1 << 30)
        assert port.backend.output == kept

    def test_clearing_the_transmit_fifo(self, port: Port) -> None:
        port.open(ETBEI)
        port.backend.room = 0
        port.out(Register.THR, ord("x"))
        port.out(Register.FCR, FIFOS_ON | FifoControl.CLEAR_TRANSMITTER)
        assert port.status() & LineStatus.IDLE == LineStatus.IDLE
        assert port.source() == InterruptId.THR_EMPTY
        port.backend.make_room(10)
        assert port.backend.output == b""

    def test_break_sent_by_the_guest_is_noted(self, port: Port) -> None:
        assert not port.uart.sending_break
        port.out(Register.LCR, LineControl.SET_BREAK | 0x03)
        assert port.uart.sending_break


class TestReception:
    def test_one_character_without_fifos(self, port: Port) -> None:
        port.open(ERBFI, fcr=0)
        port.backend.type(b"ab")
        assert port.backend.input == b"b"
        assert port.irq.level
        assert port.source() == InterruptId.RECEIVED_DATA
        assert port.inb(Register.RBR) == ord("a")
        assert not port.irq.level
        assert port.backend.resumed

    @pytest.mark.parametrize(("bits", "level"), [(0, 1), (1, 4), (2, 8), (3, 14)])
    def test_trigger_level_and_time_out(self, port: Port, bits: int, level: int) -> None:
        port.open(ERBFI, FIFOS_ON | bits << FifoControl.TRIGGER_SHIFT)
        for count in range(1, FIFO_DEPTH + 1):
            port.backend.type(b"x")
            expected = InterruptId.RECEIVED_DATA
            if count < level:
                expected = InterruptId.CHARACTER_TIMEOUT
            assert port.source() == expected
            assert port.irq.level

    def test_a_driver_that_reads_one_character_per_edge_gets_all(self, port: Port) -> None:
        port.open(ERBFI, FIFOS_ON | TRIGGER_14)
        port.backend.type(b"hello")
        got = bytearray()
        while port.irq.pulses:
            port.irq.clear()
            got.append(port.inb(Register.RBR))
        assert got == b"hello"
        assert not port.irq.level

    @pytest.mark.parametrize("fcr", [0, FIFOS_ON, FIFOS_ON | TRIGGER_14])
    def test_pasting_ten_thousand_characters_loses_nothing(self, port: Port, fcr: int) -> None:
        port.open(ERBFI, fcr)
        text = bytes(n * 7 & 0xFF for n in range(10_000))
        port.backend.type(text)
        assert port.read_all() == text
        assert not port.backend.input
        assert not port.irq.level

    def test_reading_an_empty_receiver(self, port: Port) -> None:
        assert port.inb(Register.RBR) == 0
        assert not port.status() & LineStatus.DATA_READY

    def test_break(self, port: Port) -> None:
        port.open(ERBFI | ELSI)
        port.uart.receive_break()
        assert port.source() == InterruptId.LINE_STATUS
        status = port.status()
        assert status & LineStatus.BREAK_INTERRUPT
        assert status & LineStatus.DATA_READY
        assert status & LineStatus.FIFO_ERROR
        assert port.source() == InterruptId.RECEIVED_DATA
        assert port.inb(Register.RBR) == 0
        assert port.status() == LineStatus.IDLE

    def test_break_shows_when_its_character_is_next(self, port: Port) -> None:
        port.open(ERBFI | ELSI)
        port.backend.type(b"ab")
        port.uart.receive_break()
        port.backend.type(b"h")
        seen = []
        while (status := port.status()) & LineStatus.DATA_READY:
            seen.append((bool(status & LineStatus.BREAK_INTERRUPT), port.inb(Register.RBR)))
        assert seen == [(False, ord("a")), (False, ord("b")), (True, 0), (False, ord("h"))]

    def test_fifo_error_bit_as_long_as_a_break_is_in_the_fifo(self, port: Port) -> None:
        port.open(0)
        port.poll()
        port.backend.type(b"a")
        port.uart.receive_break()
        assert port.status() & LineStatus.FIFO_ERROR
        assert port.status() & LineStatus.FIFO_ERROR
        port.inb(Register.RBR)
        assert port.status() & (LineStatus.FIFO_ERROR | LineStatus.BREAK_INTERRUPT) == 0x90
        assert not port.status() & LineStatus.FIFO_ERROR

    def test_break_into_a_full_fifo_is_an_overrun(self, port: Port) -> None:
        port.open(ELSI)
        port.poll()
        port.backend.type(b"0123456789abcdef")
        port.uart.receive_break()
        assert port.source() == InterruptId.LINE_STATUS
        assert port.status() & LineStatus.OVERRUN_ERROR
        assert not port.irq.level
        assert port.read_all() == b"0123456789abcdef"


class TestInterrupts:
    def test_priorities(self, port: Port) -> None:
        port.open(0, FIFOS_ON)
        # A modem delta can only come from loopback.
        port.out(Register.MCR, ModemControl.LOOP)
        port.out(Register.MCR, ModemControl.OUT2)
        port.out(Register.IER, InterruptEnable.ALL)
        port.backend.type(b"x")
        port.uart.receive_break()
        port.inb(Register.RBR)
        assert port.source() == InterruptId.LINE_STATUS
        port.inb(Register.LSR)
        assert port.source() == InterruptId.RECEIVED_DATA
        port.inb(Register.RBR)
        assert port.source() == InterruptId.THR_EMPTY
        assert port.source() == InterruptId.MODEM_STATUS
        assert port.inb(Register.MSR) & ModemStatus.DELTAS
        assert port.source() == InterruptId.NONE
        assert not port.irq.level

    def test_out2_does_not_matter(self, port: Port) -> None:
        port.out(Register.MCR, 0)
        port.out(Register.IER, ETBEI)
        assert port.irq.level
        port.out(Register.MCR, ModemControl.OUT2)
        assert port.irq.level
        assert port.source() == InterruptId.THR_EMPTY

    def test_disabling_lowers_the_line(self, port: Port) -> None:
        port.open(ERBFI)
        port.backend.type(b"x")
        port.out(Register.IER, 0)
        assert not port.irq.level
        port.out(Register.IER, ERBFI)
        assert port.irq.level


class TestLoopback:
    def test_data(self, port: Port) -> None:
        port.out(Register.MCR, ModemControl.LOOP)
        port.out(Register.THR, 0xAE)
        assert port.status() & LineStatus.DATA_READY
        assert port.inb(Register.RBR) == 0xAE
        assert port.backend.output == b""

    def test_data_right_after_clearing_the_fifos(self, port: Port) -> None:
        """The self-test that most small kernels begin with, with type-ahead in the FIFO."""
        port.open(0)
        port.poll()
        port.backend.type(b"typed")
        port.out(Register.FCR, 0xC7)
        port.out(Register.MCR, 0x1E)
        port.out(Register.THR, 0xAE)
        assert port.inb(Register.RBR) == 0xAE
        port.out(Register.MCR, 0x0F)
        port.out(Register.IER, ERBFI)
        assert port.read_all() == b"typed"

    def test_looped_data_is_cleared_for_good(self, port: Port) -> None:
        port.open(0)
        port.out(Register.MCR, ModemControl.LOOP)
        port.out(Register.THR, ord("x"))
        port.out(Register.FCR, FIFOS_ON | FifoControl.CLEAR_RECEIVER)
        port.out(Register.MCR, ModemControl.OUT2)
        port.out(Register.IER, ERBFI)
        assert not port.status() & LineStatus.DATA_READY

    @pytest.mark.parametrize(
        ("mcr", "msr"),
        [
            (0, 0),
            (ModemControl.RTS, ModemStatus.CTS),
            (ModemControl.DTR, ModemStatus.DSR),
            (ModemControl.OUT1, ModemStatus.RI),
            (ModemControl.OUT2, ModemStatus.DCD),
            (ModemControl.RTS | ModemControl.OUT2, 0x90),
        ],
    )
    def test_modem_lines(self, port: Port, mcr: int, msr: int) -> None:
        port.out(Register.MCR, ModemControl.LOOP | mcr)
        assert port.inb(Register.MSR) & ModemStatus.LINES == msr

    def test_deltas(self, port: Port) -> None:
        loop = ModemControl.LOOP
        port.out(Register.MCR, loop | ModemControl.OUT1)
        port.inb(Register.MSR)
        assert port.inb(Register.MSR) == ModemStatus.RI
        port.out(Register.MCR, loop | ModemControl.RTS)
        assert port.inb(Register.MSR) == (
            ModemStatus.CTS | ModemStatus.DELTA_CTS | ModemStatus.TRAILING_EDGE_RI
        )
        assert port.inb(Register.MSR) == ModemStatus.CTS
        port.out(Register.MCR, loop | ModemControl.OUT1 | ModemControl.RTS)
        # Only RI's trailing edge counts.
        assert port.inb(Register.MSR) == ModemStatus.CTS | ModemStatus.RI

    def test_overrun_with_and_without_fifos(self, port: Port) -> None:
        port.out(Register.MCR, ModemControl.LOOP)
        port.out(Register.THR, ord("a"))
        port.out(Register.THR, ord("b"))
        assert port.status() & LineStatus.OVERRUN_ERROR
        assert not port.status() & LineStatus.OVERRUN_ERROR
        assert port.inb(Register.RBR) == ord("b")
        port.out(Register.FCR, FIFOS_ON)
        for character in range(FIFO_DEPTH + 1):
            port.out(Register.THR, character)
        assert port.status() & LineStatus.OVERRUN_ERROR
        assert port.read_all() == bytes(range(FIFO_DEPTH))

    def test_interrupts_are_identified_but_do_not_leave_the_uart(self, port: Port) -> None:
        port.open(ERBFI)
        port.out(Register.MCR, ModemControl.LOOP | ModemControl.OUT2)
        port.out(Register.THR, ord("x"))
        assert port.source() == InterruptId.RECEIVED_DATA
        assert not port.irq.level

    def test_break_is_looped(self, port: Port) -> None:
        port.out(Register.MCR, ModemControl.LOOP)
        port.out(Register.LCR, LineControl.SET_BREAK)
        assert port.status() & LineStatus.BREAK_INTERRUPT

    def test_input_waits_until_loopback_ends(self, port: Port) -> None:
        port.open(ERBFI)
        port.out(Register.MCR, ModemControl.LOOP)
        port.backend.type(b"hello")
        assert not port.status() & LineStatus.DATA_READY
        port.out(Register.MCR, ModemControl.OUT2)
        assert port.backend.resumed
        port.backend.deliver()
        assert port.read_all() == b"hello"


class TestDriversProbes:
    def test_linux_identifies_a_16550a_and_loses_no_type_ahead(self, port: Port) -> None:
        """The steps of Linux's 8250_port.c: autoconfig, startup, set_termios."""
        text = bytes(range(32, 127))
        port.backend.type(text)

        def clear_fifos() -> None:
            port.out(Register.FCR, FIFOS_ON)
            port.out(Register.FCR, FIFOS_ON | 0x06)
            port.out(Register.FCR, 0)

        # autoconfig
        port.out(Register.IER, 0)
        assert port.inb(Register.IER) & 0x0F == 0
        port.out(Register.IER, 0x0F)
        assert port.inb(Register.IER) & 0x0F == 0x0F
        port.out(Register.IER, 0)
        port.out(Register.MCR, ModemControl.LOOP | 0x0A)
        assert port.inb(Register.MSR) & 0xF0 == 0x90
        port.out(Register.MCR, 0)
        port.out(Register.FCR, FIFOS_ON)
        assert port.inb(Register.IIR) >> 6 == 3
        port.out(Register.FCR, 0)
        clear_fifos()
        port.inb(Register.RBR)
        port.out(Register.IER, 0)
        # The console prints for a while.
        for character in b"Linux version " * 40:
            while not port.status() & LineStatus.THR_EMPTY:
                pass
            port.out(Register.THR, character)
        port.backend.deliver()
        # startup
        clear_fifos()
        for register in (Register.LSR, Register.RBR, Register.IIR, Register.MSR):
            port.inb(register)
        assert port.status() != 0xFF
        port.out(Register.LCR, 0x03)
        port.out(Register.IER, ETBEI)
        assert port.source() == InterruptId.THR_EMPTY
        port.out(Register.IER, 0)
        port.out(Register.IER, ETBEI)
        assert port.source() == InterruptId.THR_EMPTY
        port.out(Register.IER, 0)
        port.out(Register.MCR, ModemControl.OUT2)
        for register in (Register.LSR, Register.RBR, Register.IIR, Register.MSR):
            port.inb(register)
        # set_termios
        port.out(Register.IER, ERBFI | ELSI)
        port.out(Register.LCR, 0x03)
        port.out(Register.FCR, FIFOS_ON)
        port.out(Register.FCR, FIFOS_ON | 2 << FifoControl.TRIGGER_SHIFT)
        port.out(Register.MCR, 0x0B)
        assert port.irq.level
        assert port.read_all() == text

    def test_a_polling_driver_that_clears_the_fifos_gets_what_was_typed_before(
        self, port: Port
    ) -> None:
        port.backend.type(b"menu choice")
        port.out(Register.FCR, 0xC7)
        assert not port.status() & LineStatus.DATA_READY
        port.poll()
        assert port.read_all() == b"menu choice"

    def test_bios_probe(self, port: Port) -> None:
        """SeaBIOS takes a port for a UART if IER and IIR both read 2 after this."""
        port.out(Register.IER, 0x02)
        assert port.inb(Register.IER) == 0x02
        assert port.inb(Register.IIR) == 0x02


class TestState:
    def test_save_and_restore(self, port: Port) -> None:
        port.open(ERBFI | ETBEI, FIFOS_ON | TRIGGER_14)
        port.backend.type(b"abc")
        port.backend.room = 0
        port.out(Register.THR, ord("x"))
        state = port.uart.save()
        other = Port()
        other.uart.restore(state)
        assert other.uart.save()["received"] == state["received"]
        assert other.irq.level
        assert other.backend.output == b"x"
        assert other.read_all() == b"abc"
        assert other.source() == InterruptId.THR_EMPTY

    def test_state_is_plain(self, port: Port) -> None:
        port.backend.type(b"x")
        for value in port.uart.save().values():
            assert isinstance(value, int | list)


# Anything that a guest, the host's user and the backend can do, in any order.
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("out"), st.integers(0, 7), st.integers(0, 255)),
        st.tuples(st.just("in"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("type"), st.integers(1, 40), st.just(0)),
        st.tuples(st.just("break"), st.just(0), st.just(0)),
        st.tuples(st.just("room"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("refuse"), st.just(0), st.just(0)),
        st.tuples(st.just("reset"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


def _do(port: Port, step: tuple[str, int, int]) -> None:
    action, first, second = step
    match action:
        case "out":
            port.out(first, second)
        case "in":
            assert 0 <= port.inb(first) <= 0xFF
        case "type":
            port.backend.type(b"t" * first)
        case "break":
            port.uart.receive_break()
        case "room":
            port.backend.make_room(first)
        case "refuse":
            port.backend.room = 0
        case "reset":
            port.uart.reset()
    if port.backend.resumed:
        port.backend.deliver()


@settings(max_examples=400)
@given(_steps)
def test_any_sequence_keeps_the_invariants(steps: list[tuple[str, int, int]]) -> None:
    port = Port()
    for step in steps:
        _do(port, step)
        state = port.uart.save()
        lsr, ier, mcr = state["lsr"], state["ier"], state["mcr"]
        assert len(state["received"]) <= (FIFO_DEPTH if state["fifos"] else 1)
        assert len(state["unsent"]) <= (FIFO_DEPTH if state["fifos"] else 1)
        assert len(state["held"]) <= FIFO_DEPTH
        assert bool(lsr & LineStatus.DATA_READY) == bool(state["received"])
        assert lsr & LineStatus.IDLE == (0 if state["unsent"] else LineStatus.IDLE)
        assert state["fifos"] or not lsr & LineStatus.FIFO_ERROR
        # A copy, because reading IIR changes the state.
        copy = Port()
        copy.backend.room = 0
        copy.uart.restore(state)
        iir = copy.inb(Register.IIR)
        assert iir >> 6 == (3 if state["fifos"] else 0)
        match iir & SOURCE:
            case InterruptId.LINE_STATUS:
                assert ier & ELSI
                assert lsr & LineStatus.ERRORS
            case InterruptId.RECEIVED_DATA | InterruptId.CHARACTER_TIMEOUT:
                assert ier & ERBFI
                assert lsr & LineStatus.DATA_READY
            case InterruptId.THR_EMPTY:
                assert ier & ETBEI
                assert lsr & LineStatus.THR_EMPTY
            case InterruptId.MODEM_STATUS:
                assert ier & EDSSI
                assert state["msr"] & ModemStatus.DELTAS
            case source:
                assert source == InterruptId.NONE
        looped = mcr & ModemControl.LOOP
        assert port.irq.level == (not looped and iir & SOURCE != InterruptId.NONE)


@settings(max_examples=400)
@given(_steps)
def test_input_never_gets_stuck(steps: list[tuple[str, int, int]]) -> None:
    """Whatever happened before, a driver that then sets the port up gets what is typed."""
    port = Port()
    for step in steps:
        _do(port, step)
    port.out(Register.LCR, 0x03)
    port.open(ERBFI)
    port.backend.type(b"!" * 20)
    assert port.read_all().endswith(b"!" * 20)
    assert not port.backend.input


class _ModelOfInterrupts:
    """Received-data and THRE interrupts with FIFOs on, in the data sheet's own terms."""

    def __init__(self) -> None:
        self.fifo: deque[int] = deque()
        self.ier = 0
        self.thre = False

    def iir(self) -> int:
        if self.ier & ERBFI and self.fifo:
            return 0xC4 if len(self.fifo) >= 14 else 0xCC
        return 0xC2 if self.ier & ETBEI and self.thre else 0xC1


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ier"), st.integers(0, 3)),
            st.tuples(st.just("thr"), st.integers(0, 255)),
            st.tuples(st.just("rbr"), st.just(0)),
            st.tuples(st.just("iir"), st.just(0)),
            st.tuples(st.just("lsr"), st.just(0)),
            st.tuples(st.just("type"), st.integers(0, 255)),
        ),
        max_size=100,
    )
)
def test_interrupts_follow_the_model(steps: list[tuple[str, int]]) -> None:
    port, model = Port(), _ModelOfInterrupts()
    port.open(0, FIFOS_ON | TRIGGER_14)
    port.poll()
    for action, value in steps:
        match action:
            case "ier":
                if value & ~model.ier & ETBEI:
                    model.thre = True
                model.ier = value
                port.out(Register.IER, value)
            case "thr":
                model.thre = True
                port.out(Register.THR, value)
            case "rbr":
                expected = model.fifo.popleft() if model.fifo else 0
                assert port.inb(Register.RBR) == expected
            case "iir":
                expected = model.iir()
                assert port.inb(Register.IIR) == expected
                if expected == 0xC2:
                    model.thre = False
            case "lsr":
                assert port.status() == LineStatus.IDLE | bool(model.fifo)
            case "type" if len(model.fifo) < FIFO_DEPTH:
                model.fifo.append(value)
                port.backend.type(bytes((value,)))
        assert port.irq.level == (model.iir() != 0xC1)
