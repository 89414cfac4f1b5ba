"""The real-time clock and the CMOS RAM, through their two ports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import WALL_START_NS, FakeClock, RecordingFaults, RecordingLine

from pyvmm.bus import Bus
from pyvmm.devices.cmos import Cmos, Register, RegisterA, RegisterB, RegisterC
from pyvmm.memory import GIB, MIB

SECOND = 1_000_000_000
START = datetime.fromtimestamp(WALL_START_NS // SECOND, UTC)  # 2023-11-14 22:13:20, a Tuesday

BCD_24 = RegisterB.HOURS_24
ANY = 0xC0


def bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


class Rig:
    def __init__(self, memory_size: int = 512 * MIB) -> None:
        self.clock = FakeClock()
        self.irq = RecordingLine()
        self.cmos = Cmos(self.irq, self.clock, memory_size)
        self.bus = Bus("port", 1 << 16, RecordingFaults(), flat=True)
        self.bus.add(0x70, 2, self.cmos, "CMOS", max_size=1)

    def read(self, register: int) -> int:
        self.bus.write(0x70, 1, register)
        return self.bus.read(0x71, 1)

    def write(self, register: int, value: int) -> None:
        self.bus.write(0x70, 1, register)
        self.bus.write(0x71, 1, value)

    def time(self) -> datetime:
        """What a driver reads, in whatever format register B says."""
        control = self.read(Register.B)

        def field(register: int) -> int:
            value = self.read(register)
            afternoon = 0
            if register == Register.HOURS and not control & RegisterB.HOURS_24:
                afternoon = 12 if value & 0x80 else 0
                value &= 0x7F
            if not control & RegisterB.DM:
                value = int(f"{value:x}")
            if register == Register.HOURS and not control & RegisterB.HOURS_24:
                assert 1 <= value <= 12
                value = value % 12 + afternoon
            return value

        return datetime(
            field(Register.CENTURY) * 100 + field(Register.YEAR),
            field(Register.MONTH),
            field(Register.DAY_OF_MONTH),
            field(Register.HOURS),
            field(Register.MINUTES),
            field(Register.SECONDS),
            tzinfo=UTC,
        )

    def set_time(self, to: datetime, control: int = BCD_24) -> None:
        """As a driver does: with SET on."""
        code = int if control & RegisterB.DM else bcd
        hours = to.hour
        afternoon = 0
        if not control & RegisterB.HOURS_24:
            afternoon = 0x80 if hours >= 12 else 0
            hours = hours % 12 or 12
        self.write(Register.B, control | RegisterB.SET)
        self.write(Register.SECONDS, code(to.second))
        self.write(Register.MINUTES, code(to.minute))
        self.write(Register.HOURS, code(hours) | afternoon)
        self.write(Register.DAY_OF_MONTH, code(to.day))
        self.write(Register.MONTH, code(to.month))
        self.write(Register.YEAR, code(to.year % 100))
        self.write(Register.CENTURY, code(to.year // 100))
        self.write(Register.B, control)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_power_on_reads_as_a_firmware_leaves_it(rig: Rig) -> None:
    assert rig.time() == START
    assert rig.read(Register.HOURS) == 0x22, "BCD, 24 hours"
    assert rig.read(Register.DAY_OF_WEEK) == 3, "Tuesday, counted from Sunday = 1"
    assert rig.read(Register.A) == 0x26
    assert rig.read(Register.B) == 0x02
    assert rig.read(Register.D) == 0x80
    assert rig.read(Register.SHUTDOWN_STATUS) == 0


def test_index_port_reads_back_with_the_nmi_mask(rig: Rig) -> None:
    rig.bus.write(0x70, 1, 0x80 | Register.B)
    assert rig.bus.read(0x70, 1) == 0x80 | Register.B
    assert rig.bus.read(0x71, 1) == BCD_24, "the mask is no part of the index"


def test_index_and_data_in_one_16_bit_write(rig: Rig) -> None:
    rig.bus.write(0x70, 2, 0x5A << 8 | 0x40)
    assert rig.read(0x40) == 0x5A


@pytest.mark.parametrize("control", [0, RegisterB.DM, BCD_24, BCD_24 | RegisterB.DM])
@given(
    offset=st.integers(0, 10**10),
    to=st.datetimes(datetime(1970, 1, 1), datetime(9999, 11, 1)),
)
def test_times_are_those_of_datetime(control: int, offset: int, to: datetime) -> None:
    rig = Rig()
    rig.clock.set_wall(offset * SECOND)
    rig.write(Register.B, control)
    assert rig.time() == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=offset)
    to = to.replace(microsecond=0, tzinfo=UTC)
    rig.set_time(to, control)
    assert rig.time() == to
    assert rig.read(Register.DAY_OF_WEEK) == (to.isoweekday() % 7 + 1)
    rig.clock.advance(86_400 * 40 * SECOND)
    assert rig.time() == to + timedelta(days=40)


def test_the_clock_stands_still_while_set_and_keeps_what_is_written(rig: Rig) -> None:
    rig.write(Register.B, BCD_24 | RegisterB.SET)
    rig.clock.advance(5 * SECOND)
    assert rig.time() == START
    for register, value in ((Register.MINUTES, 0xFF), (Register.DAY_OF_WEEK, 0x55)):
        rig.write(register, value)
        assert rig.read(register) == value
    assert not rig.read(Register.A) & RegisterA.UIP


def test_impossible_dates_run_over(rig: Rig) -> None:
    rig.set_time(datetime(2023, 2, 1))
    rig.write(Register.DAY_OF_MONTH, 0x30)
    assert rig.time().date() == datetime(2023, 3, 2).date()
    rig.write(Register.SECONDS, 0x99)
    assert rig.time().second == 39


def test_registers_can_be_written_while_the_clock_runs(rig: Rig) -> None:
    rig.write(Register.HOURS, 0x05)
    assert rig.time() == START.replace(hour=5)


def test_the_guest_follows_a_step_of_the_hosts_clock(rig: Rig) -> None:
    rig.set_time(datetime(2000, 1, 1))
    rig.clock.set_wall(rig.clock.wall_ns() + 3600 * SECOND)
    assert rig.time() == datetime(2000, 1, 1, 1, tzinfo=UTC)


def test_update_in_progress_warns_before_the_second_ends(rig: Rig) -> None:
    rig.clock.advance(SECOND - 244_001)
    assert not rig.read(Register.A) & RegisterA.UIP
    rig.clock.advance(1)
    assert rig.read(Register.A) & RegisterA.UIP
    rig.clock.advance(243_999)
    assert rig.read(Register.A) & RegisterA.UIP
    assert rig.time() == START
    rig.clock.advance(1)
    assert not rig.read(Register.A) & RegisterA.UIP
    assert rig.time() == START + timedelta(seconds=1)


def test_releasing_the_divider_chain_gives_half_a_second(rig: Rig) -> None:
    """Linux' mc146818_set_time: SET, divider reset, the time, and both back again."""
    rig.clock.advance(123_456_789)
    rig.write(Register.B, BCD_24 | RegisterB.SET)
    rig.write(Register.A, 0x70 | 0x06)
    rig.clock.advance(3 * SECOND)
    rig.write(Register.SECONDS, 0x30)
    rig.write(Register.B, BCD_24)
    rig.clock.advance(3 * SECOND)
    assert rig.read(Register.SECONDS) == 0x30, "still in reset"
    rig.write(Register.A, 0x26)
    rig.clock.advance(SECOND // 2 - 1)
    assert rig.read(Register.SECONDS) == 0x30
    rig.clock.advance(1)
    assert rig.read(Register.SECONDS) == 0x31


def test_nothing_is_armed_without_interrupts(rig: Rig) -> None:
    rig.clock.advance(100 * SECOND)
    assert not rig.clock.armed
    assert rig.irq.edges == []


def test_flags_are_set_even_without_interrupts(rig: Rig) -> None:
    rig.clock.advance(2 * SECOND)
    assert rig.read(Register.C) == RegisterC.UF | RegisterC.PF
    assert rig.read(Register.C) == 0, "reading clears"


def test_update_ended_interrupt_comes_each_second(rig: Rig) -> None:
    rig.clock.advance(SECOND // 4)
    rig.write(Register.A, 0x20)
    rig.read(Register.C)
    rig.write(Register.B, BCD_24 | RegisterB.UIE)
    for second in range(1, 4):
        rig.clock.advance(SECOND * 3 // 4)
        assert rig.irq.level
        assert rig.irq.pulses == second
        assert rig.read(Register.C) == RegisterC.IRQF | RegisterC.UF
        assert not rig.irq.level
        rig.clock.advance(SECOND // 4)
    assert rig.irq.pulses == 3


def test_the_line_stays_high_until_register_c_is_read(rig: Rig) -> None:
    rig.write(Register.B, BCD_24 | RegisterB.UIE)
    rig.clock.advance(10 * SECOND)
    assert rig.irq.edges == [True]
    assert not rig.clock.armed, "nothing to add"


def test_enabling_an_interrupt_whose_flag_is_set_raises_it(rig: Rig) -> None:
    rig.clock.advance(SECOND)
    rig.write(Register.B, BCD_24 | RegisterB.UIE)
    assert rig.irq.level
    rig.write(Register.B, BCD_24)
    assert not rig.irq.level


@pytest.mark.parametrize(
    ("rate", "hertz"), [(1, 256), (2, 128), (3, 4096), (4, 4096), (6, 1024), (13, 8), (15, 2)]
)
def test_periodic_interrupt(rig: Rig, rate: int, hertz: int) -> None:
    rig.write(Register.A, 0x20 | rate)
    rig.write(Register.B, BCD_24 | RegisterB.PIE)
    rig.read(Register.C)
    rig.irq.clear()
    end = rig.clock.now + SECOND
    interrupts = 0
    while rig.clock.armed:
        (timer,) = rig.clock.armed
        assert timer.deadline is not None
        if timer.deadline > end:
            break
        rig.clock.advance(timer.deadline - rig.clock.now)
        assert rig.irq.level
        assert rig.read(Register.C) & RegisterC.PF
        interrupts += 1
    assert interrupts == hertz


def test_no_rate_no_periodic_interrupt(rig: Rig) -> None:
    rig.write(Register.A, 0x20)
    rig.write(Register.B, BCD_24 | RegisterB.PIE)
    rig.read(Register.C)
    rig.clock.advance(SECOND)
    assert not rig.read(Register.C) & RegisterC.PF


# START is 22:13:20.
@pytest.mark.parametrize(
    ("hour", "minute", "second", "delay"),
    [
        (0x22, 0x13, 0x21, 1),
        (0x22, 0x13, 0x20, 86_400),
        (0x06, 0x30, 0x00, 8 * 3600 + 16 * 60 + 40),
        (ANY, ANY, 0x05, 45),
        (ANY, 0x15, 0x00, 100),
        (ANY, ANY, 0xFF, 1),
        (0x22, ANY, 0x00, 40),
        (0x23, ANY, ANY, 46 * 60 + 40),
        (ANY, 0x00, ANY, 46 * 60 + 40),
    ],
)
def test_alarm(rig: Rig, hour: int, minute: int, second: int, delay: int) -> None:
    rig.write(Register.HOURS_ALARM, hour)
    rig.write(Register.MINUTES_ALARM, minute)
    rig.write(Register.SECONDS_ALARM, second)
    rig.write(Register.B, BCD_24 | RegisterB.AIE)
    rig.clock.advance(delay * SECOND - 1)
    assert not rig.irq.level
    rig.clock.advance(1)
    assert rig.irq.level
    assert rig.read(Register.C) & (RegisterC.IRQF | RegisterC.AF) == RegisterC.IRQF | RegisterC.AF


def test_alarm_on_the_12_hour_clock(rig: Rig) -> None:
    rig.write(Register.HOURS_ALARM, 0x80 | 0x11)
    rig.write(Register.MINUTES_ALARM, 0)
    rig.write(Register.SECONDS_ALARM, 0)
    rig.write(Register.B, RegisterB.AIE)
    rig.clock.advance((46 * 60 + 40) * SECOND)
    assert rig.irq.level


def test_alarm_that_nothing_matches_never_comes(rig: Rig) -> None:
    for register, value in (
        (Register.HOURS_ALARM, ANY),
        (Register.MINUTES_ALARM, ANY),
        (Register.SECONDS_ALARM, 0x75),
    ):
        rig.write(register, value)
    rig.write(Register.B, BCD_24 | RegisterB.AIE)
    assert not rig.clock.armed
    rig.clock.advance(86_400 * SECOND)
    assert not rig.read(Register.C) & RegisterC.AF


def test_alarm_comes_when_the_hosts_clock_steps_over_it(rig: Rig) -> None:
    for register, value in (
        (Register.HOURS_ALARM, 0x23),
        (Register.MINUTES_ALARM, 0),
        (Register.SECONDS_ALARM, 0),
    ):
        rig.write(register, value)
    rig.write(Register.B, BCD_24 | RegisterB.AIE)
    rig.clock.set_wall(rig.clock.wall_ns() + 3600 * SECOND)
    rig.clock.advance(60 * SECOND)
    assert rig.irq.level


def test_set_drops_the_update_ended_enable(rig: Rig) -> None:
    rig.write(Register.B, BCD_24 | RegisterB.SET | RegisterB.UIE)
    assert rig.read(Register.B) == BCD_24 | RegisterB.SET


def test_flag_registers_are_read_only(rig: Rig) -> None:
    rig.write(Register.C, 0xFF)
    rig.write(Register.D, 0)
    assert rig.read(Register.C) == 0
    assert rig.read(Register.D) == 0x80


@pytest.mark.parametrize(
    ("size", "extended", "above_16m", "above_4g"),
    [
        (16 * MIB, 15 * 1024, 0, 0),
        (64 * MIB, 63 * 1024, 48 * 16, 0),
        (512 * MIB, 0xFFFF, 496 * 16, 0),
        (5 * GIB, 0xFFFF, (3 * 1024 - 16) * 16, 2 * 1024 * 16),
        (64 * GIB, 0xFFFF, (3 * 1024 - 16) * 16, 61 * 1024 * 16),
    ],
)
def test_memory_size(size: int, extended: int, above_16m: int, above_4g: int) -> None:
    rig = Rig(size)

    def value(register: int, size: int) -> int:
        return int.from_bytes((rig.read(register + i) for i in range(size)), "little")

    assert value(0x15, 2) == 640
    assert value(0x17, 2) == value(0x30, 2) == extended
    assert value(0x34, 2) == above_16m
    assert value(0x5B, 3) == above_4g


def test_configuration_checksum_is_right(rig: Rig) -> None:
    total = sum(rig.read(index) for index in range(0x10, 0x2E))
    assert total == rig.read(0x2E) << 8 | rig.read(0x2F)


@pytest.mark.parametrize(
    ("types", "byte", "equipment"), [([], 0x00, 0x06), ([4], 0x40, 0x07), ([4, 1], 0x41, 0x47)]
)
def test_floppy_drives(rig: Rig, types: list[int], byte: int, equipment: int) -> None:
    rig.cmos.describe_floppies(types)
    assert (rig.read(0x10), rig.read(0x14)) == (byte, equipment)
    assert sum(rig.read(index) for index in range(0x10, 0x2E)) == rig.read(0x2E) << 8 | rig.read(
        0x2F
    )


def test_platform_reset_keeps_what_the_battery_keeps(rig: Rig) -> None:
    rig.set_time(datetime(2001, 2, 3, 4, 5, 6), BCD_24)
    rig.write(Register.SHUTDOWN_STATUS, 0x0A)
    rig.write(Register.B, BCD_24 | RegisterB.UIE)
    rig.clock.advance(SECOND)
    assert rig.irq.level
    rig.cmos.reset()
    assert not rig.irq.level
    assert rig.read(Register.B) == BCD_24
    assert rig.read(Register.SHUTDOWN_STATUS) == 0x0A
    assert rig.time() == datetime(2001, 2, 3, 4, 5, 7, tzinfo=UTC)


def test_state_survives_save_and_restore(rig: Rig) -> None:
    rig.set_time(datetime(2001, 2, 3, 4, 5, 6), BCD_24 | RegisterB.UIE)
    rig.write(0x40, 0x99)
    other = Rig()
    other.cmos.restore(rig.cmos.save())
    assert other.cmos.save() == rig.cmos.save()
    assert other.time() == rig.time()
    assert other.read(0x40) == 0x99
    other.clock.advance(SECOND)
    assert other.irq.level


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 0x0F), st.integers(0, 0xFF)),
            st.booleans(),
            st.integers(0, 255),
            st.integers(0, 3 * SECOND),
        ),
        max_size=50,
    )
)
def test_any_access_is_answered(accesses: list[tuple[int, bool, int, int]]) -> None:
    rig = Rig()
    for index, write, value, wait in accesses:
        if write:
            rig.write(index, value)
        assert 0 <= rig.read(index) <= 0xFF
        rig.clock.advance(wait)
        assert rig.irq.level == bool(rig.cmos.save()["ram"][Register.C] & RegisterC.IRQF)
