"""Off, reset and the power button: ACPI's fixed hardware and the PC's reset ports.

* :class:`PowerManagement` has the registers of the ACPI Specification 6.5, section 4.8.3: the PM1a
  event block, the PM1a control register and the power management timer. ACPI mode is the only mode
  (SCI_EN is always set, there is no SMI command port), and S5 is the only sleep state. No general
  purpose events, no PM1b block, no bus master or global lock events, no real-time clock wake-up.
* :class:`ResetControl` is the chipset's RST_CNT register at port 0xCF9 (Intel PIIX3, section
  2.5.4), which the ACPI FADT names as its RESET_REG.
* :class:`SystemControlPortA` is the PS/2's port 0x92: fast A20 and fast reset. KVM's A20 line is
  always on, so that bit is recorded and has no effect.

The callbacks are called with the device's lock held, on a vCPU's thread; they must only post a
request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvmm.bus import Device, Window
from pyvmm.errors import GuestFaults
from pyvmm.eventloop import NS_PER_SECOND, Clock, ticks_to_ns
from pyvmm.interrupts import IrqLine
from pyvmm.layout import SLP_TYP_S5

PM_TIMER_HZ = 3_579_545

PM_TIMER_BITS = 32
"""The timer's width; the FADT says so with its flag TMR_VAL_EXT."""


class Pm1Event:
    """Bits of the PM1 status register, and of the PM1 enable register in the same places."""

    TMR = 1 << 0
    GBL = 1 << 5
    PWRBTN = 1 << 8
    SLPBTN = 1 << 9
    RTC = 1 << 10


class Pm1Control:
    """Bits of the PM1 control register."""

    SCI_EN = 1 << 0
    BM_RLD = 1 << 1
    GBL_RLS = 1 << 2
    SLP_TYP = 0b111 << 10
    SLP_EN = 1 << 13


SOFT_OFF = (SLP_TYP_S5, 0)
"""The sleep types that mean it. Kernels too small for ACPI write 0x2000 to the port, SLP_EN alone,
for that is QEMU's."""

_SLP_TYP_SHIFT = 10
_EVENTS = Pm1Event.TMR | Pm1Event.GBL | Pm1Event.PWRBTN | Pm1Event.SLPBTN | Pm1Event.RTC
_CONTROL_KEPT = Pm1Control.BM_RLD | Pm1Control.SLP_TYP

_TIMER_MASK = (1 << PM_TIMER_BITS) - 1
_HALF_ROUND = 1 << PM_TIMER_BITS - 1
"""Ticks between two changes of the timer's highest bit, each of which sets TMR_STS."""


class PowerManagement(Device):
    """ACPI's fixed registers, in three windows: ``event_window`` (4 bytes), ``control_window`` (2)
    and ``timer_window`` (4), each accessible in whole or in parts.

    ``sci`` is the system control interrupt, level-triggered. ``power_off`` is called when the
    guest enters S5.
    """

    def __init__(
        self, sci: IrqLine, clock: Clock, power_off: Callable[[], None], faults: GuestFaults
    ) -> None:
        super().__init__()
        self._sci = sci
        self._clock = clock
        self._power_off = power_off
        self._faults = faults
        self._overflow = clock.timer(self._overflowed)
        self._start_ns = clock.now_ns()
        self._status = 0
        self._enable = 0
        self._control = 0
        self._half_rounds = 0
        self.event_window = Window(self.lock, self._read_event, self._write_event)
        self.control_window = Window(self.lock, self._read_control, self._write_control)
        self.timer_window = Window(self.lock, self._read_timer, self._write_timer)

    def press_power_button(self) -> None:
        """What the guest's ACPI driver takes as the wish to shut down. Any thread may call."""
        with self.lock:
            self._status |= Pm1Event.PWRBTN
            self._update()

    def _ticks(self) -> int:
        return (self._clock.now_ns() - self._start_ns) * PM_TIMER_HZ // NS_PER_SECOND

    def _read_timer(self, offset: int, size: int) -> int:
        return (self._ticks() & _TIMER_MASK) >> 8 * offset & (1 << 8 * size) - 1

    def _write_timer(self, offset: int, size: int, value: int) -> None:
        """The timer is read-only."""

    def _read_event(self, offset: int, size: int) -> int:
        self._update()
        block = self._status | self._enable << 16
        return block >> 8 * offset & (1 << 8 * size) - 1

    def _write_event(self, offset: int, size: int, value: int) -> None:
        self._update()
        mask = (1 << 8 * size) - 1 << 8 * offset
        value <<= 8 * offset
        self._status &= ~(value & 0xFFFF)
        enable = self._enable << 16 & ~mask | value & mask
        self._enable = enable >> 16 & _EVENTS
        self._update()

    def _read_control(self, offset: int, size: int) -> int:
        return (self._control | Pm1Control.SCI_EN) >> 8 * offset & (1 << 8 * size) - 1

    def _write_control(self, offset: int, size: int, value: int) -> None:
        mask = (1 << 8 * size) - 1 << 8 * offset
        control = self._control & ~mask | value << 8 * offset
        self._control = control & _CONTROL_KEPT
        if control & Pm1Control.SLP_EN:
            sleep_type = self._control >> _SLP_TYP_SHIFT
            if sleep_type in SOFT_OFF:
                self._power_off()
            else:
                self._faults.report("ACPI sleep state that doesn't exist", "type %d", sleep_type)

    def _update(self) -> None:
        """Bring the status, the interrupt and the overflow timer in line with time and enables."""
        half_rounds = self._ticks() // _HALF_ROUND
        if half_rounds != self._half_rounds:
            self._half_rounds = half_rounds
            self._status |= Pm1Event.TMR
        self._sci.set(bool(self._status & self._enable))
        if self._enable & ~self._status & Pm1Event.TMR:
            ticks = (half_rounds + 1) * _HALF_ROUND
            self._overflow.arm(self._start_ns + ticks_to_ns(ticks, PM_TIMER_HZ))
        else:
            self._overflow.cancel()

    def _overflowed(self) -> None:
        with self.lock:
            self._update()

    def reset(self) -> None:
        """The timer starts again at 0."""
        self._start_ns = self._clock.now_ns()
        self._status = self._enable = self._control = self._half_rounds = 0
        self._update()

    def save(self) -> dict[str, Any]:
        self._update()
        return {
            "status": self._status,
            "enable": self._enable,
            "control": self._control,
            "ticks": self._ticks(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._status = state["status"]
        self._enable = state["enable"]
        self._control = state["control"]
        ticks = state["ticks"]
        self._half_rounds = ticks // _HALF_ROUND
        self._start_ns = self._clock.now_ns() - ticks_to_ns(ticks, PM_TIMER_HZ)
        self._update()


class ResetBits:
    """Bits of RST_CNT."""

    SYS_RST = 1 << 1
    """Hard rather than soft reset; here both reset the platform."""
    RST_CPU = 1 << 2
    FULL_RST = 1 << 3
    """As if the power had been cycled."""


class ResetControl(Device):
    """One 8-bit port; writing RST_CPU calls ``reset``."""

    def __init__(self, reset: Callable[[], None]) -> None:
        super().__init__()
        self._reset = reset
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        self._value = value & (ResetBits.SYS_RST | ResetBits.FULL_RST)
        if value & ResetBits.RST_CPU:
            self._reset()

    def reset(self) -> None:
        self._value = 0

    def save(self) -> dict[str, Any]:
        return {"value": self._value}

    def restore(self, state: dict[str, Any]) -> None:
        self._value = state["value"]


class PortA:
    """Bits of system control port A."""

    FAST_RESET = 1 << 0
    A20 = 1 << 1


class SystemControlPortA(Device):
    """One 8-bit port; a rising FAST_RESET calls ``reset``."""

    def __init__(self, reset: Callable[[], None]) -> None:
        super().__init__()
        self._reset = reset
        self._value = PortA.A20

    def read(self, offset: int, size: int) -> int:
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        rising = value & ~self._value
        self._value = value & (PortA.FAST_RESET | PortA.A20)
        if rising & PortA.FAST_RESET:
            self._reset()

    def reset(self) -> None:
        self._value = PortA.A20

    def save(self) -> dict[str, Any]:
        return {"value": self._value}

    def restore(self, state: dict[str, Any]) -> None:
        self._value = state["value"]
