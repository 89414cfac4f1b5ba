"""The real-time clock and its battery-backed RAM: a Motorola MC146818 at ports 0x70 and 0x71.

Motorola's MC146818A data sheet for registers 0x00 to 0x0D; the PC/AT Technical Reference for the
RAM from 0x0E on; QEMU and Bochs for the bytes that describe more memory than an AT could have.

The time of day is the host's (UTC), plus an offset once the guest has set it. Nothing ticks: the
registers are computed when they are read, and so are the flags of register C. A timer is armed
only while an interrupt is enabled and not yet asserted; since the guest has to read register C
before the next one, interrupts that were missed arrive as one.

Departures from the chip, each of which keeps a guest from noticing that there is no chip:

* An update takes no time. UIP is set during the 244 us before it, as software expects, and the
  registers are valid throughout.
* The day of the week follows from the date; what a guest writes there is kept only while the
  clock is stopped. Dates that don't exist run over into the next month.
* Periodic interrupts at 8192 Hz come at 4096 Hz: more would only heat the host.

Left out: the square wave output, and daylight saving (register B's DSE is kept, without effect).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pyvmm.bus import Device
from pyvmm.eventloop import NS_PER_SECOND, Clock, ticks_to_ns
from pyvmm.interrupts import IrqLine
from pyvmm.layout import CMOS_CENTURY
from pyvmm.memory import MMIO_HOLE_START


class Register:
    """Indices into the chip's 128 bytes: the clock's registers, and the RAM bytes by which a PC's
    firmware tells the rest of the software about the machine (words are low byte first)."""

    SECONDS = 0x00
    SECONDS_ALARM = 0x01
    MINUTES = 0x02
    MINUTES_ALARM = 0x03
    HOURS = 0x04
    HOURS_ALARM = 0x05
    DAY_OF_WEEK = 0x06
    DAY_OF_MONTH = 0x07
    MONTH = 0x08
    YEAR = 0x09
    A = 0x0A
    B = 0x0B
    C = 0x0C
    D = 0x0D
    SHUTDOWN_STATUS = 0x0F
    FLOPPY_TYPES = 0x10
    EQUIPMENT = 0x14
    BASE_MEMORY_KIB = 0x15
    EXTENDED_MEMORY_KIB = 0x17
    CHECKSUM = 0x2E
    ACTUAL_EXTENDED_MEMORY_KIB = 0x30
    CENTURY = CMOS_CENTURY
    MEMORY_ABOVE_16M = 0x34
    BOOT_ORDER = 0x3D
    MEMORY_ABOVE_4G = 0x5B


class RegisterA:
    RS = 0x0F
    """Rate of the periodic interrupt; 0: none."""
    DV = 0x70
    """Divider chain: 0x20 and below run it, above hold it in reset."""
    UIP = 0x80


class RegisterB:
    DSE = 0x01
    HOURS_24 = 0x02
    DM = 0x04
    """Binary rather than BCD."""
    SQWE = 0x08
    UIE = 0x10
    AIE = 0x20
    PIE = 0x40
    SET = 0x80
    """The time stands still, to be set."""


class RegisterC:
    """The enable bits of these flags are in the same places of register B."""

    UF = 0x10
    AF = 0x20
    PF = 0x40
    IRQF = 0x80


class RegisterD:
    VRT = 0x80
    """The battery is good."""


class Equipment:
    """Bits of the equipment byte."""

    FLOPPIES = 0x01
    FPU = 0x02
    POINTING_DEVICE = 0x04


_RAM_SIZE = 128
_NMI_MASK = 0x80
"""In the index port, beside the index."""

_DV_RUNNING = 0x20
_TIME_REGISTERS = frozenset(
    (
        Register.SECONDS,
        Register.MINUTES,
        Register.HOURS,
        Register.DAY_OF_WEEK,
        Register.DAY_OF_MONTH,
        Register.MONTH,
        Register.YEAR,
        Register.CENTURY,
    )
)
_ALARM_REGISTERS = frozenset((Register.SECONDS_ALARM, Register.MINUTES_ALARM, Register.HOURS_ALARM))
_ALARM_ANY = 0xC0
"""An alarm register from here up matches every value."""
_PM = 0x80
"""In the hours of the 12-hour clock."""

_BOOT_FROM_DISK = 0x02
_BASE_MEMORY_KIB = 640

_FLAGS = RegisterC.UF | RegisterC.AF | RegisterC.PF

_DAY = 86_400
_UIP_NS = 244_000
_FIRST_UPDATE_NS = NS_PER_SECOND // 2
"""From the release of the divider chain to the first update."""

_CRYSTAL_HZ = 32_768
_FASTEST_RATE = 4

_RECHECK_NS = 60 * NS_PER_SECOND
"""The alarm's timer follows the monotonic clock and the time of day follows the host's, which may
be set; so look again this often."""

_DAYS_BEFORE_MONTH = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)


def _leap_days(year: int) -> int:
    """In all years up to and including ``year``."""
    return year // 4 - year // 100 + year // 400


def _days_since_epoch(year: int, month: int, day: int) -> int:
    """Gregorian, from 1970-01-01; a ``day`` that the month doesn't have counts on from its end."""
    days = 365 * (year - 1970) + _leap_days(year - 1) - _leap_days(1969)
    if month > 2:
        days += _leap_days(year) - _leap_days(year - 1)
    return days + _DAYS_BEFORE_MONTH[month - 1] + day - 1


class Cmos(Device):
    """The index port and the data port, 8 bits each (``max_size=1``).

    ``irq`` is high from an enabled event until register C is read. ``memory_size`` is the guest's
    RAM in bytes, which firmware finds in the CMOS.
    """

    def __init__(self, irq: IrqLine, clock: Clock, memory_size: int) -> None:
        super().__init__()
        self._irq = irq
        self._clock = clock
        self._timer = clock.timer(self._expired)
        self._index = Register.D
        self._nmi_masked = False
        self._offset_ns = 0  # the guest's time of day minus the host's
        self._divider_start_ns = clock.now_ns()
        self._seen_ns = self._time_ns()  # time of day up to which the flags are right
        self._seen_periodic = 0  # and periods of the crystal
        self._ram = bytearray(_RAM_SIZE)
        self._ram[Register.A] = 0x26
        self._ram[Register.B] = RegisterB.HOURS_24
        self._ram[Register.D] = RegisterD.VRT
        self._describe_machine(memory_size)

    def _describe_machine(self, memory_size: int) -> None:
        below_4g = min(memory_size, MMIO_HOLE_START)
        above_4g = memory_size - below_4g
        extended = min(max((below_4g >> 10) - 1024, 0), 0xFFFF)
        self._ram[Register.EQUIPMENT] = Equipment.FPU | Equipment.POINTING_DEVICE
        self._ram[Register.BOOT_ORDER] = _BOOT_FROM_DISK
        for register, size, value in (
            (Register.BASE_MEMORY_KIB, 2, _BASE_MEMORY_KIB),
            (Register.EXTENDED_MEMORY_KIB, 2, extended),
            (Register.ACTUAL_EXTENDED_MEMORY_KIB, 2, extended),
            (Register.MEMORY_ABOVE_16M, 2, min(max((below_4g >> 16) - 256, 0), 0xFFFF)),
            (Register.MEMORY_ABOVE_4G, 3, min(above_4g >> 16, 0xFF_FFFF)),
        ):
            self._ram[register : register + size] = value.to_bytes(size, "little")
        self._sum_up()

    def describe_floppies(self, types: Sequence[int]) -> None:
        """Drive A: is of the first type, B: of the second."""
        self._ram[Register.FLOPPY_TYPES] = sum(
            kind << shift for kind, shift in zip(types, (4, 0), strict=False)
        )
        if types:
            self._ram[Register.EQUIPMENT] |= Equipment.FLOPPIES | len(types) - 1 << 6
        self._sum_up()

    def _sum_up(self) -> None:
        # The only word with its high byte first.
        checksum = sum(self._ram[Register.FLOPPY_TYPES : Register.CHECKSUM])
        self._ram[Register.CHECKSUM : Register.CHECKSUM + 2] = checksum.to_bytes(2, "big")

    # Ports.

    def read(self, offset: int, size: int) -> int:
        if offset == 0:
            return self._index | (_NMI_MASK if self._nmi_masked else 0)
        index = self._index
        if index in _TIME_REGISTERS:
            if self._running:
                self._store_time()
        elif index == Register.A:
            return self._ram[Register.A] | (RegisterA.UIP if self._update_is_near() else 0)
        elif index == Register.C:
            return self._take_flags()
        return self._ram[index]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._index = value & _RAM_SIZE - 1
            self._nmi_masked = bool(value & _NMI_MASK)
            return
        index = self._index
        if index in _TIME_REGISTERS:
            self._write_time(index, value)
        elif index == Register.A:
            self._write_a(value)
        elif index == Register.B:
            self._write_b(value)
        elif index in _ALARM_REGISTERS:
            self._update_flags()
            self._ram[index] = value
            self._signal()
        elif index not in (Register.C, Register.D):
            self._ram[index] = value

    # Time of day.

    def _time_ns(self) -> int:
        """The guest's time of day, as nanoseconds since the epoch."""
        return self._clock.wall_ns() + self._offset_ns

    @property
    def _dividing(self) -> bool:
        return self._ram[Register.A] & RegisterA.DV <= _DV_RUNNING

    @property
    def _running(self) -> bool:
        """Whether the time advances. If not, the time registers are plain RAM."""
        return self._dividing and not self._ram[Register.B] & RegisterB.SET

    def _update_is_near(self) -> bool:
        return self._running and self._time_ns() % NS_PER_SECOND >= NS_PER_SECOND - _UIP_NS

    def _store_time(self) -> None:
        """Put the time of day into the time registers."""
        now = time.gmtime(self._time_ns() // NS_PER_SECOND)
        hours = now.tm_hour
        afternoon = 0
        if not self._ram[Register.B] & RegisterB.HOURS_24:
            afternoon = _PM if hours >= 12 else 0
            hours = hours % 12 or 12
        for register, value in (
            (Register.SECONDS, now.tm_sec),
            (Register.MINUTES, now.tm_min),
            (Register.HOURS, hours),
            (Register.DAY_OF_WEEK, (now.tm_wday + 1) % 7 + 1),
            (Register.DAY_OF_MONTH, now.tm_mday),
            (Register.MONTH, now.tm_mon),
            (Register.YEAR, now.tm_year % 100),
            (Register.CENTURY, now.tm_year // 100 % 100),
        ):
            self._ram[register] = self._encoded(value)
        self._ram[Register.HOURS] |= afternoon

    def _load_time(self) -> None:
        """Make what is in the time registers the time of day; the fraction of the second stays."""
        ram = self._ram
        year = self._decoded(ram[Register.CENTURY]) % 100 * 100
        year += self._decoded(ram[Register.YEAR]) % 100
        month = (self._decoded(ram[Register.MONTH]) - 1) % 12 + 1
        days = _days_since_epoch(year, month, self._decoded(ram[Register.DAY_OF_MONTH]))
        seconds = days * _DAY + self._decoded_hours(ram[Register.HOURS]) * 3600
        seconds += self._decoded(ram[Register.MINUTES]) * 60 + self._decoded(ram[Register.SECONDS])
        self._offset_ns += (seconds - self._time_ns() // NS_PER_SECOND) * NS_PER_SECOND
        self._seen_ns = self._time_ns()

    def _encoded(self, value: int) -> int:
        if self._ram[Register.B] & RegisterB.DM:
            return value
        return value // 10 << 4 | value % 10

    def _decoded(self, value: int) -> int:
        if self._ram[Register.B] & RegisterB.DM:
            return value
        return (value >> 4) * 10 + (value & 15)

    def _decoded_hours(self, value: int) -> int:
        if self._ram[Register.B] & RegisterB.HOURS_24:
            return self._decoded(value)
        return self._decoded(value & ~_PM) % 12 + (12 if value & _PM else 0)

    def _write_time(self, index: int, value: int) -> None:
        if not self._running:
            self._ram[index] = value
            return
        self._update_flags()
        self._store_time()
        self._ram[index] = value
        self._load_time()
        self._signal()

    # Control.

    def _write_a(self, value: int) -> None:
        was_dividing, was_running = self._dividing, self._running
        self._update_flags()
        if was_running:
            self._store_time()
        self._ram[Register.A] = value & ~RegisterA.UIP
        if self._dividing and not was_dividing:
            self._divider_start_ns = self._clock.now_ns()
            self._offset_ns += NS_PER_SECOND - _FIRST_UPDATE_NS - self._time_ns() % NS_PER_SECOND
        self._resume(was_running)

    def _write_b(self, value: int) -> None:
        was_running = self._running
        self._update_flags()
        if was_running:
            self._store_time()
        if value & RegisterB.SET:
            value &= ~RegisterB.UIE
        self._ram[Register.B] = value
        self._resume(was_running)

    def _resume(self, was_running: bool) -> None:
        if self._running and not was_running:
            self._load_time()
        self._seen_periodic = self._crystal_periods()
        self._signal()

    # Interrupts.

    def _period(self) -> int:
        """Crystal periods between two periodic interrupts; 0: none."""
        rate = self._ram[Register.A] & RegisterA.RS
        if not rate or not self._dividing:
            return 0
        if rate <= 2:
            rate += 7  # the two fastest taps aren't there with this crystal
        return 1 << max(rate, _FASTEST_RATE) - 1

    def _crystal_periods(self) -> int:
        """Since the divider chain started."""
        return (self._clock.now_ns() - self._divider_start_ns) * _CRYSTAL_HZ // NS_PER_SECOND

    def _update_flags(self) -> None:
        """Set the flags of what has happened since the last call."""
        ram = self._ram
        if self._running:
            now = self._time_ns()
            before, seconds = self._seen_ns // NS_PER_SECOND, now // NS_PER_SECOND
            self._seen_ns = now
            if seconds > before:
                ram[Register.C] |= RegisterC.UF
                alarm = self._seconds_to_alarm(before)
                if alarm is not None and before + alarm <= seconds:
                    ram[Register.C] |= RegisterC.AF
        period = self._period()
        if period:
            periods = self._crystal_periods()
            if periods // period != self._seen_periodic // period:
                ram[Register.C] |= RegisterC.PF
            self._seen_periodic = periods

    def _seconds_to_alarm(self, now: int) -> int | None:
        """From second ``now`` to the next one that the alarm registers match; None if none can."""
        ram = self._ram
        hour, minute, second = (
            None if raw >= _ALARM_ANY else decode(raw)
            for raw, decode in (
                (ram[Register.HOURS_ALARM], self._decoded_hours),
                (ram[Register.MINUTES_ALARM], self._decoded),
                (ram[Register.SECONDS_ALARM], self._decoded),
            )
        )
        if (hour or 0) > 23 or (minute or 0) > 59 or (second or 0) > 59:
            return None
        at = now + 1
        while True:
            at_hour, rest = divmod(at % _DAY, 3600)
            at_minute, at_second = divmod(rest, 60)
            if hour is not None and at_hour != hour:
                at += 3600 - rest
            elif minute is not None and at_minute != minute:
                at += 60 - at_second
            elif second is not None and at_second != second:
                at += 1
            else:
                return at - now

    def _signal(self) -> None:
        """Drive the interrupt line, and set the timer to the next event that will."""
        enabled = self._ram[Register.B] & _FLAGS
        asserted = bool(self._ram[Register.C] & enabled)
        if asserted:
            self._ram[Register.C] |= RegisterC.IRQF
        else:
            self._ram[Register.C] &= ~RegisterC.IRQF
        self._irq.set(asserted)
        delay = None if asserted else self._next_event(enabled)
        if delay is None:
            self._timer.cancel()
        else:
            self._timer.arm(self._clock.now_ns() + delay)

    def _next_event(self, enabled: int) -> int | None:
        """Nanoseconds to the first event that is enabled."""
        delays = []
        period = self._period()
        if enabled & RegisterC.PF and period:
            periods = (self._crystal_periods() // period + 1) * period
            at = self._divider_start_ns + ticks_to_ns(periods, _CRYSTAL_HZ)
            delays.append(at - self._clock.now_ns())
        if self._running:
            seconds, fraction = divmod(self._time_ns(), NS_PER_SECOND)
            if enabled & RegisterC.UF:
                delays.append(NS_PER_SECOND - fraction)
            if enabled & RegisterC.AF:
                alarm = self._seconds_to_alarm(seconds)
                if alarm is not None:
                    delays.append(min(alarm * NS_PER_SECOND - fraction, _RECHECK_NS))
        return min(delays, default=None)

    def _expired(self) -> None:
        with self.lock:
            self._update_flags()
            self._signal()

    def _take_flags(self) -> int:
        """Read register C, which clears it."""
        self._update_flags()
        flags = self._ram[Register.C]
        if flags & self._ram[Register.B] & _FLAGS:
            flags |= RegisterC.IRQF
        self._ram[Register.C] = 0
        self._signal()
        return flags

    # State.

    def reset(self) -> None:
        """The chip's RESET pin: interrupts off; the battery keeps the time and the RAM."""
        self._ram[Register.B] &= ~(_FLAGS | RegisterB.SQWE)
        self._ram[Register.C] = 0
        self._nmi_masked = False
        self._signal()

    def save(self) -> dict[str, Any]:
        self._update_flags()
        return {
            "ram": bytes(self._ram),
            "index": self._index,
            "nmi_masked": self._nmi_masked,
            "offset_ns": self._offset_ns,
            "divider_age_ns": self._clock.now_ns() - self._divider_start_ns,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The time of day goes on with the host's, as if the guest had been off meanwhile."""
        self._ram[:] = state["ram"]
        self._index = state["index"]
        self._nmi_masked = state["nmi_masked"]
        self._offset_ns = state["offset_ns"]
        self._divider_start_ns = self._clock.now_ns() - state["divider_age_ns"]
        self._seen_ns = self._time_ns()
        self._seen_periodic = self._crystal_periods()
        self._signal()
