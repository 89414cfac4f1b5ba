"""The programmable interval timer: an Intel 8254, and port 0x61, which holds channel 2's gate.

Intel's 82C54 data sheet ("Programming the 82C54", "Read Operations", "Mode Definitions"), and for
port 0x61 the PC/AT Technical Reference. Channel 0's OUT pin is IRQ 0; channel 1 once refreshed the
memory; channel 2's OUT pin drives the speaker and can be read in port 0x61.

Nothing ticks. A :class:`Counter` computes in one step where any number of clock pulses would have
brought it, and is brought up to date when the guest looks at it or changes it. One timer waits for
channel 0's next rising OUT edge. Its deadlines come from the number of the pulse, so a periodic
interrupt doesn't drift. Edges that were missed because the host was busy arrive as one.

A guest may ask for a million interrupts a second. Periodic ones are held to one per 200 us, as in
KVM's own PIT, whatever the counter says; what the guest reads back stays exact.

Left out: sound, and the parity and channel check errors of port 0x61.
"""

from __future__ import annotations

from typing import Any

from pyvmm.bus import Device, Window
from pyvmm.eventloop import NS_PER_SECOND, Clock, ticks_to_ns
from pyvmm.interrupts import IrqLine

PIT_HZ = 1_193_182

MIN_PERIOD_NS = 200_000
"""Periodic interrupts are no closer than this."""


class Mode:
    """Control word bits 3:1."""

    TERMINAL_COUNT = 0
    ONE_SHOT = 1
    RATE_GENERATOR = 2
    SQUARE_WAVE = 3
    SOFTWARE_STROBE = 4
    HARDWARE_STROBE = 5


class Access:
    """Control word bits 5:4: which bytes of a count are read and written."""

    LATCH = 0
    LSB = 1
    MSB = 2
    LSB_MSB = 3


class Status:
    """Bits of a status byte; below them are the control word's bits 5:0."""

    NULL_COUNT = 1 << 6
    OUT = 1 << 7


class ReadBack:
    """Bits of a read-back command; bits 3:1 select the counters."""

    DONT_LATCH_STATUS = 1 << 4
    DONT_LATCH_COUNT = 1 << 5


class SystemControlPortB:
    """Bits of port 0x61."""

    GATE_2 = 1 << 0
    SPEAKER = 1 << 1
    PARITY_CHECK = 1 << 2
    CHANNEL_CHECK = 1 << 3
    REFRESH = 1 << 4
    OUT_2 = 1 << 5


_CONTROL = 3
"""The control word register's offset; before it are the counters."""
_READ_BACK = 3
"""The counter number that makes a control word a read-back command."""

_PORT_B_KEPT = (
    SystemControlPortB.GATE_2
    | SystemControlPortB.SPEAKER
    | SystemControlPortB.PARITY_CHECK
    | SystemControlPortB.CHANNEL_CHECK
)
_REFRESH_PULSES = 18
"""A memory refresh each 15 us, as the BIOS programs channel 1; software times delays with it."""

_PERIODIC = (Mode.RATE_GENERATOR, Mode.SQUARE_WAVE)
_STROBES = (Mode.SOFTWARE_STROBE, Mode.HARDWARE_STROBE)
_ONCE_PER_WRITE = (Mode.TERMINAL_COUNT, Mode.SOFTWARE_STROBE)
"""A written count is loaded at the next pulse, even in the middle of another."""
_ONCE_PER_TRIGGER = (Mode.ONE_SHOT, Mode.HARDWARE_STROBE)
"""A count is loaded at the pulse after GATE's rising edge; GATE's level has no effect."""


class Counter:
    """One of the chip's three counters, as a function of clock pulses; it knows no time.

    ``out`` and ``gate`` are its pins, ``pulse`` is the clock pulse up to which it has been
    computed. Callers bring it up to date with :meth:`advance_to` before anything else.
    """

    def __init__(self, gate: bool) -> None:
        # The data sheet leaves the state at power-on undefined: idle, with OUT high.
        self.mode = Mode.SQUARE_WAVE
        self.access = Access.LSB_MSB
        self.bcd = False
        self.gate = gate
        self.out = True
        self.pulse = 0
        self.count = 0  # count register: 1 to 65536 (BCD: 10000); 0 before the first write
        self.element = 0  # counting element
        self.null_count = True  # the count register is not yet in the counting element
        self.load_pending = False  # the next pulse loads the counting element
        self.counting = False  # the counting element has been loaded since the control word
        self.armed = False  # not periodic modes: the end of the count is still to come
        self.odd = False  # square wave: the count in the counting element was odd
        self.written_lsb: int | None = None
        self.read_msb_next = False
        self.latched_count: int | None = None
        self.latched_status: int | None = None

    def save(self) -> dict[str, Any]:
        return dict(vars(self))

    def restore(self, state: dict[str, Any]) -> None:
        for name in vars(self):
            setattr(self, name, state[name])

    def configure(self, control: int) -> None:
        """Take a control word (other than the latch and read-back commands)."""
        mode = control >> 1 & 7
        self.mode = mode if mode <= Mode.HARDWARE_STROBE else mode & 3
        self.access = control >> 4 & 3
        self.bcd = bool(control & 1)
        self.out = self.mode != Mode.TERMINAL_COUNT
        self.null_count = True
        self.count = 0
        self.load_pending = self.counting = self.armed = False
        self.written_lsb = self.latched_count = self.latched_status = None
        self.read_msb_next = False

    def write(self, value: int) -> None:
        """Take a byte of the count."""
        if self.access == Access.LSB:
            self._set_count(value)
        elif self.access == Access.MSB:
            self._set_count(value << 8)
        elif self.written_lsb is None:
            self.written_lsb = value
            if self.mode == Mode.TERMINAL_COUNT:
                self.load_pending = self.counting = self.out = False
        else:
            self._set_count(self.written_lsb | value << 8)
            self.written_lsb = None

    def _set_count(self, value: int) -> None:
        modulus = self._modulus
        if self.bcd:
            value = sum((value >> 4 * digit & 15) * 10**digit for digit in range(4))
        self.count = value % modulus or modulus
        self.null_count = True
        if self.mode == Mode.TERMINAL_COUNT:
            self.out = False
        if self.mode in _ONCE_PER_WRITE or (self.mode in _PERIODIC and not self.counting):
            self.load_pending = True

    @property
    def _modulus(self) -> int:
        return 10_000 if self.bcd else 0x1_0000

    def set_gate(self, gate: bool) -> None:
        """Drive the GATE pin."""
        rising = gate and not self.gate
        self.gate = gate
        if self.mode in _PERIODIC and not gate:
            self.out = True
        if rising and self.count and self.mode not in _ONCE_PER_WRITE:
            self.load_pending = True

    def latch_count(self) -> None:
        """Keep the count for the next reads; ignored while an earlier one is kept."""
        if self.latched_count is None:
            self.latched_count = self._visible_count()
            self.read_msb_next = False

    def latch_status(self) -> None:
        """Keep the status for the next read; ignored while an earlier one is kept."""
        if self.latched_status is None:
            status = self.access << 4 | self.mode << 1 | self.bcd
            if self.out:
                status |= Status.OUT
            if self.null_count:
                status |= Status.NULL_COUNT
            self.latched_status = status

    def read(self) -> int:
        """A byte of the status or count: what is latched, or else of the count as it is now."""
        if self.latched_status is not None:
            status, self.latched_status = self.latched_status, None
            return status
        count = self.latched_count
        if count is None:
            count = self._visible_count()
        if self.access == Access.LSB_MSB and not self.read_msb_next:
            self.read_msb_next = True
            return count & 0xFF
        self.read_msb_next = False
        self.latched_count = None
        return count & 0xFF if self.access == Access.LSB else count >> 8

    def _visible_count(self) -> int:
        value = self.element % self._modulus
        if self.bcd:
            return int(str(value), 16)
        return value

    def advance_to(self, pulse: int) -> None:
        """Do all that happens up to and including clock pulse number ``pulse``."""
        pulses = pulse - self.pulse
        if pulses <= 0:
            return
        self.pulse = pulse
        mode = self.mode
        if mode in _STROBES:
            self.out = True  # a strobe is one pulse long
        if self.load_pending:
            self.load_pending = False
            self.counting = self.armed = True
            self._load()
            if mode == Mode.ONE_SHOT:
                self.out = False
            pulses -= 1
        if not self.counting or not (self.gate or mode in _ONCE_PER_TRIGGER):
            return
        if mode == Mode.RATE_GENERATOR:
            self._generate_rate(pulses)
        elif mode == Mode.SQUARE_WAVE:
            self._generate_square_wave(pulses)
        else:
            self._count_down(pulses)

    def _load(self) -> None:
        """The count register goes into the counting element."""
        self.element = self.count
        self.null_count = False
        if self.mode == Mode.SQUARE_WAVE:
            self.odd = bool(self.count & 1)
            self.element -= self.odd

    def _count_down(self, pulses: int) -> None:
        if self.armed and pulses >= self.element:
            self.armed = False
            self.out = self.mode not in _STROBES or pulses > self.element
        self.element -= pulses
        if not self.armed:
            self.element %= self._modulus

    def _generate_rate(self, pulses: int) -> None:
        """Count down from N to 1; OUT is low at 1."""
        if pulses < self.element:
            self.element -= pulses
        else:
            pulses -= self.element
            self._load()
            self.element -= pulses % self.count
        self.out = self.element != 1

    def _generate_square_wave(self, pulses: int) -> None:
        """Count down in steps of 2, once with OUT high and once with OUT low; of an odd count's
        pulses, the high half has one more."""
        if pulses >= self._half_wave():
            pulses -= self._half_wave()
            self._toggle()
            pulses %= self.count
            if pulses >= self._half_wave():
                pulses -= self._half_wave()
                self._toggle()
        self.element -= 2 * pulses

    def _half_wave(self) -> int:
        """Pulses until OUT changes."""
        return self.element // 2 + (self.out and self.odd)

    def _toggle(self) -> None:
        self._load()
        # A count of 1 is illegal: its low half has no length.
        self.out = not self.out or self.count == 1

    def pulses_to_rising_out(self) -> int | None:
        """After how many pulses OUT will next go from low to high if nobody interferes."""
        mode = self.mode
        if mode in _STROBES and not self.out:
            return 1
        loading = int(self.load_pending)
        left = self.count if loading else self.element
        if mode in _ONCE_PER_TRIGGER or self.gate:
            if mode in _PERIODIC:
                return self._pulses_to_next_period(loading)
            if loading or (self.counting and self.armed):
                return loading + left + (mode in _STROBES)
        return None

    def _pulses_to_next_period(self, loading: int) -> int | None:
        if loading:
            return 1 + self.count if self.count > 1 else None
        if not self.counting:
            return None
        if self.mode == Mode.RATE_GENERATOR:
            return self.element if self.count > 1 else None
        if not self.out:
            return self._half_wave()
        return self._half_wave() + self.count // 2 if self.count > 1 else None


class Pit(Device):
    """The chip, four 8-bit ports (``max_size=1``), and ``gate_window``, port 0x61. ``irq`` gets
    an edge for each of channel 0's."""

    def __init__(self, irq: IrqLine, clock: Clock) -> None:
        super().__init__()
        self._irq = irq
        self._clock = clock
        self._timer = clock.timer(self._expired)
        self.gate_window = Window(self.lock, self._read_port_b, self._write_port_b)
        self._power_on()

    def _power_on(self) -> None:
        self._start_ns = self._clock.now_ns()
        self._counters = (Counter(gate=True), Counter(gate=True), Counter(gate=False))
        self._port_b = 0
        self._edge: int | None = None  # the pulse of the next interrupt
        self._deadline_ns = 0  # of the next interrupt
        self._latest_ns = 0  # the latest interrupt

    def _pulse(self) -> int:
        """The number of the latest clock pulse."""
        return (self._clock.now_ns() - self._start_ns) * PIT_HZ // NS_PER_SECOND

    def _counter(self, number: int) -> Counter:
        """A counter, up to date."""
        counter = self._counters[number]
        counter.advance_to(self._pulse())
        return counter

    def read(self, offset: int, size: int) -> int:
        if offset == _CONTROL:
            return 0xFF  # write-only
        return self._counter(offset).read()

    def write(self, offset: int, size: int, value: int) -> None:
        if offset != _CONTROL:
            number = offset
        elif value >> 6 == _READ_BACK:
            self._read_back(value)
            return
        else:
            number = value >> 6
            if value >> 4 & 3 == Access.LATCH:
                self._counter(number).latch_count()
                return
        counter = self._counter(number)
        if number == 0:
            self._raise_due_interrupt()
        was_out = counter.out
        if offset == _CONTROL:
            counter.configure(value)
        else:
            counter.write(value)
        if number == 0:
            if counter.out and not was_out:
                self._irq.pulse()
            self._await_edge()

    def _read_back(self, command: int) -> None:
        for number in range(3):
            if command >> 1 + number & 1:
                counter = self._counter(number)
                if not command & ReadBack.DONT_LATCH_COUNT:
                    counter.latch_count()
                if not command & ReadBack.DONT_LATCH_STATUS:
                    counter.latch_status()

    def _raise_due_interrupt(self) -> None:
        if self._edge is not None and self._pulse() >= self._edge:
            self._edge = None
            # Not when it was noticed, or intervals close to the minimum would grow.
            self._latest_ns = min(self._deadline_ns, self._clock.now_ns())
            self._irq.pulse()

    def _await_edge(self) -> None:
        """Set the timer to channel 0's next rising edge."""
        counter = self._counter(0)
        pulses = counter.pulses_to_rising_out()
        if pulses is None:
            self._edge = None
            self._timer.cancel()
            return
        self._edge = counter.pulse + pulses
        deadline = self._start_ns + ticks_to_ns(self._edge, PIT_HZ)
        if counter.mode in _PERIODIC:
            deadline = max(deadline, self._latest_ns + MIN_PERIOD_NS)
        self._deadline_ns = deadline
        self._timer.arm(deadline)

    def _expired(self) -> None:
        with self.lock:
            self._raise_due_interrupt()
            if self._edge is None:
                self._await_edge()

    def _read_port_b(self, offset: int, size: int) -> int:
        value = self._port_b
        if self._counter(2).out:
            value |= SystemControlPortB.OUT_2
        if self._pulse() // _REFRESH_PULSES & 1:
            value |= SystemControlPortB.REFRESH
        return value

    def _write_port_b(self, offset: int, size: int, value: int) -> None:
        self._port_b = value & _PORT_B_KEPT
        self._counter(2).set_gate(bool(value & SystemControlPortB.GATE_2))

    def reset(self) -> None:
        self._timer.cancel()
        self._power_on()

    def save(self) -> dict[str, Any]:
        return {
            "counters": [self._counter(number).save() for number in range(3)],
            "pulse": self._pulse(),
            "port_b": self._port_b,
            "interrupt_due": self._edge is not None and self._pulse() >= self._edge,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on at the pulse at which :meth:`save` was called."""
        self._start_ns = self._clock.now_ns() - ticks_to_ns(state["pulse"], PIT_HZ)
        for counter, saved in zip(self._counters, state["counters"], strict=True):
            counter.restore(saved)
        self._port_b = state["port_b"]
        if state["interrupt_due"]:
            self._irq.pulse()
        self._latest_ns = 0
        self._await_edge()
