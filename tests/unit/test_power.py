"""ACPI fixed hardware and the reset ports: what an ACPI driver relies on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import FakeClock, RecordingFaults, RecordingLine

from pyvmm.bus import Bus
from pyvmm.devices.power import (
    PM_TIMER_BITS,
    PM_TIMER_HZ,
    Pm1Control,
    Pm1Event,
    PowerManagement,
    ResetControl,
    SystemControlPortA,
)
from pyvmm.layout import RESET_VALUE, SLP_TYP_S5

EVENT, CONTROL, TIMER = 0x600, 0x604, 0x608
SECOND = 1_000_000_000


class Rig:
    """The device on a bus, as the machine wires it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.sci = RecordingLine()
        self.faults = RecordingFaults()
        self.offs = 0
        self.power = PowerManagement(self.sci, self.clock, self._off, self.faults)
        self.bus = Bus("port", 1 << 16, self.faults, flat=True)
        self.bus.add(EVENT, 4, self.power.event_window, "PM1a event")
        self.bus.add(CONTROL, 2, self.power.control_window, "PM1a control")
        self.bus.add(TIMER, 4, self.power.timer_window, "PM timer")

    def _off(self) -> None:
        self.offs += 1

    def status(self) -> int:
        return self.bus.read(EVENT, 2)

    def enable(self, events: int) -> None:
        self.bus.write(EVENT + 2, 2, events)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_acpi_mode_is_always_on(rig: Rig) -> None:
    rig.bus.write(CONTROL, 2, 0)
    assert rig.bus.read(CONTROL, 2) & Pm1Control.SCI_EN


@pytest.mark.parametrize("in_bytes", [False, True])
def test_s5_turns_the_machine_off(rig: Rig, in_bytes: bool) -> None:
    value = SLP_TYP_S5 << 10 | Pm1Control.SLP_EN | Pm1Control.SCI_EN
    if in_bytes:
        rig.bus.write(CONTROL, 1, value & 0xFF)
        assert rig.offs == 0
        rig.bus.write(CONTROL + 1, 1, value >> 8)
    else:
        rig.bus.write(CONTROL, 2, value)
    assert rig.offs == 1
    assert not rig.bus.read(CONTROL, 2) & Pm1Control.SLP_EN, "write-only"


def test_sleep_type_alone_does_nothing(rig: Rig) -> None:
    """ACPI drivers write SLP_TYP first and SLP_EN in a second write."""
    rig.bus.write(CONTROL, 2, SLP_TYP_S5 << 10)
    assert rig.offs == 0
    assert rig.bus.read(CONTROL, 2) >> 10 & 7 == SLP_TYP_S5


def test_what_turns_qemu_off_does_here(rig: Rig) -> None:
    rig.bus.write(CONTROL, 2, 0x2000)
    assert rig.offs == 1


def test_other_sleep_states_are_refused(rig: Rig) -> None:
    for sleep_type in set(range(8)) - {SLP_TYP_S5, 0}:
        rig.bus.write(CONTROL, 2, sleep_type << 10 | Pm1Control.SLP_EN)
    assert rig.offs == 0
    assert rig.faults.counts == {"ACPI sleep state that doesn't exist": 6}


def test_power_button_raises_sci_until_acknowledged(rig: Rig) -> None:
    rig.enable(Pm1Event.PWRBTN)
    rig.power.press_power_button()
    assert rig.sci.level
    assert rig.status() == Pm1Event.PWRBTN
    rig.bus.write(EVENT, 2, Pm1Event.TMR)
    assert rig.sci.level, "another bit's acknowledgement"
    rig.bus.write(EVENT, 2, Pm1Event.PWRBTN)
    assert not rig.sci.level
    assert rig.status() == 0


def test_power_button_waits_for_the_enable_bit(rig: Rig) -> None:
    rig.power.press_power_button()
    assert not rig.sci.level
    rig.enable(Pm1Event.PWRBTN)
    assert rig.sci.level


def test_event_block_by_bytes_and_as_a_whole(rig: Rig) -> None:
    rig.bus.write(EVENT + 3, 1, Pm1Event.PWRBTN >> 8)
    rig.power.press_power_button()
    assert rig.bus.read(EVENT + 1, 1) == Pm1Event.PWRBTN >> 8
    assert rig.bus.read(EVENT, 4) == Pm1Event.PWRBTN | Pm1Event.PWRBTN << 16
    rig.bus.write(EVENT + 1, 1, Pm1Event.PWRBTN >> 8)
    assert rig.bus.read(EVENT, 4) == Pm1Event.PWRBTN << 16, "the enable register is untouched"


def test_timer_counts_at_its_rate(rig: Rig) -> None:
    start = rig.bus.read(TIMER, 4)
    rig.clock.advance(10 * SECOND)
    assert rig.bus.read(TIMER, 4) - start == 10 * PM_TIMER_HZ


def test_timer_wraps_and_sets_its_status(rig: Rig) -> None:
    half_round = (1 << PM_TIMER_BITS - 1) * SECOND // PM_TIMER_HZ + 1
    assert rig.status() == 0
    rig.clock.advance(half_round)
    assert rig.status() == Pm1Event.TMR
    assert not rig.sci.level
    rig.clock.advance(half_round)
    assert rig.bus.read(TIMER, 4) < 16


def test_timer_interrupts_only_when_enabled(rig: Rig) -> None:
    half_round = (1 << PM_TIMER_BITS - 1) * SECOND // PM_TIMER_HZ + 1
    assert not rig.clock.armed
    rig.enable(Pm1Event.TMR)
    rig.clock.advance(half_round)
    assert rig.sci.level
    assert not rig.clock.armed, "nothing more to say before the guest acknowledges"
    rig.bus.write(EVENT, 2, Pm1Event.TMR)
    assert not rig.sci.level
    rig.clock.advance(half_round)
    assert rig.sci.edges == [True, False, True]


def test_state_survives_save_and_restore(rig: Rig) -> None:
    rig.enable(Pm1Event.PWRBTN)
    rig.power.press_power_button()
    rig.clock.advance(1234 * SECOND)
    other = Rig()
    other.power.restore(rig.power.save())
    assert other.sci.level
    assert other.power.save() == rig.power.save()
    assert other.bus.read(TIMER, 4) == rig.bus.read(TIMER, 4)
    other.power.reset()
    assert not other.sci.level
    assert other.bus.read(EVENT, 4) == 0


@given(
    st.lists(
        st.tuples(
            st.integers(EVENT, TIMER + 3),
            st.sampled_from((1, 2, 4, 8)),
            st.integers(0, 2**64 - 1),
            st.integers(0, 2000 * SECOND),
        ),
        max_size=30,
    )
)
def test_any_access_is_answered(accesses: list[tuple[int, int, int, int]]) -> None:
    rig = Rig()
    for port, size, value, wait in accesses:
        rig.bus.write(port, size, value & (1 << 8 * size) - 1)
        assert 0 <= rig.bus.read(port, size) < 1 << 8 * size
        rig.clock.advance(wait)


@pytest.mark.parametrize("value", [RESET_VALUE, 0x0E, 0x04])
def test_reset_control_resets(value: int) -> None:
    resets: list[int] = []
    control = ResetControl(lambda: resets.append(1))
    control.write(0, 1, value & ~0x04)
    assert not resets
    assert control.read(0, 1) == value & ~0x04
    control.write(0, 1, value)
    assert len(resets) == 1


def test_port_a_resets_on_a_rising_bit() -> None:
    resets: list[int] = []
    port = SystemControlPortA(lambda: resets.append(1))
    assert port.read(0, 1) == 0x02, "A20 is on from the start"
    port.write(0, 1, 0x00)
    port.write(0, 1, 0x02)
    assert port.read(0, 1) == 0x02
    assert not resets
    port.write(0, 1, 0x03)
    port.write(0, 1, 0x03)
    assert len(resets) == 1
