"""The 8254: its counters against a model that ticks, its registers against the data sheet, its
interrupt against the clock."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import FakeClock, RecordingFaults, RecordingLine

from pyvmm.bus import Bus
from pyvmm.devices.pit import MIN_PERIOD_NS, PIT_HZ, Counter, Pit

SECOND = 1_000_000_000
LSB, MSB, BOTH = 1, 2, 3


class TickingCounter:
    """The data sheet's mode definitions, one clock pulse at a time."""

    def __init__(self, mode: int, bcd: bool, gate: bool) -> None:
        self.mode, self.gate = mode, gate
        self.modulus = 10_000 if bcd else 65_536
        self.cr = self.ce = 0
        self.out = mode != 0
        self.null = True
        self.load = self.running = self.waiting = self.odd = False

    def write_count(self, value: int) -> None:
        self.cr = value or self.modulus
        self.null = True
        if self.mode == 0:
            self.out = False
        if self.mode in (0, 4) or (self.mode in (2, 3) and not self.running):
            self.load = True

    def set_gate(self, gate: bool) -> None:
        if gate and not self.gate and self.mode in (1, 2, 3, 5) and self.cr:
            self.load = True
        if not gate and self.mode in (2, 3):
            self.out = True
        self.gate = gate

    def _reload(self) -> None:
        self.null = False
        self.ce = self.cr
        self.odd = self.cr % 2 == 1
        if self.mode == 3 and self.odd:
            self.ce -= 1

    def pulse(self) -> None:
        if self.mode in (4, 5):
            self.out = True
        if self.load:
            self.load, self.running, self.waiting = False, True, True
            self._reload()
            if self.mode == 1:
                self.out = False
        elif not self.running or (not self.gate and self.mode not in (1, 5)):
            return
        elif self.mode == 2:
            if self.ce == 1:
                self._reload()
            else:
                self.ce -= 1
        elif self.mode == 3:
            self._square_wave_pulse()
        else:
            self.ce = (self.ce or self.modulus) - 1
            if self.ce == 0 and self.waiting:
                self.waiting = False
                self.out = self.mode in (0, 1)
        if self.mode == 2 and self.gate:
            self.out = self.ce != 1

    def _square_wave_pulse(self) -> None:
        last = 0 if self.odd and self.out else 2
        if self.ce != last:
            self.ce -= 2
            return
        self._reload()
        self.out = not self.out or self.cr == 1  # 1 is illegal; its low half has no pulse


def configured(mode: int, bcd: bool, gate: bool) -> Counter:
    counter = Counter(gate)
    counter.configure(BOTH << 4 | mode << 1 | bcd)
    return counter


def write_count(counter: Counter, value: int, bcd: bool = False) -> None:
    coded = int(str(value), 16) if bcd else value
    counter.write(coded & 0xFF)
    counter.write(coded >> 8)


small_counts = st.one_of(st.integers(1, 9), st.sampled_from((0, 10, 99, 100)))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("pulses"), st.integers(1, 40)),
        st.tuples(st.just("gate"), st.integers(0, 1)),
        st.tuples(st.just("count"), small_counts),
    ),
    max_size=25,
)


@pytest.mark.parametrize("mode", range(6))
@given(bcd=st.booleans(), gate=st.booleans(), script=operations)
def test_counter_equals_the_ticking_model(
    mode: int, bcd: bool, gate: bool, script: list[tuple[str, int]]
) -> None:
    counter, model = configured(mode, bcd, gate), TickingCounter(mode, bcd, gate)
    for operation, argument in script:
        if operation == "pulses":
            for _ in range(argument):
                model.pulse()
            counter.advance_to(counter.pulse + argument)
        elif operation == "gate":
            counter.set_gate(bool(argument))
            model.set_gate(bool(argument))
        else:
            write_count(counter, argument, bcd)
            model.write_count(argument)
        assert counter.out == model.out
        assert counter.null_count == model.null
        if model.running:
            assert counter.element % model.modulus == model.ce % model.modulus
        predicted = counter.pulses_to_rising_out()
        assert (predicted if predicted and predicted < 250 else None) == rise_of(model, 250)


def rise_of(model: TickingCounter, horizon: int) -> int | None:
    """After how many pulses the model's OUT rises."""
    model = copy.copy(model)
    for number in range(1, horizon):
        was_out = model.out
        model.pulse()
        if model.out and not was_out:
            return number
    return None


@pytest.mark.parametrize("mode", range(6))
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 0])
def test_whole_rounds_equal_the_ticking_model(mode: int, count: int) -> None:
    """Through the wrap of 16 bits, in steps that don't divide anything."""
    counter, model = configured(mode, False, True), TickingCounter(mode, False, True)
    write_count(counter, count)
    model.write_count(count)
    counter.set_gate(False)
    model.set_gate(False)
    counter.set_gate(True)
    model.set_gate(True)
    for step in range(1, 140_000):
        model.pulse()
        if step % 997 == 0 or step < 12:
            counter.advance_to(step)
            assert (counter.out, counter.element % 65_536) == (model.out, model.ce % 65_536)


# Waveforms of the data sheet's figures: OUT after each pulse from the write (or trigger) on.
@pytest.mark.parametrize(
    ("mode", "count", "wave", "elements"),
    [
        (0, 4, "00001111", [4, 3, 2, 1, 0, 0xFFFF, 0xFFFE, 0xFFFD]),
        (1, 3, "00011111", [3, 2, 1, 0, 0xFFFF, 0xFFFE, 0xFFFD, 0xFFFC]),
        (2, 3, "11011011", [3, 2, 1, 3, 2, 1, 3, 2]),
        (3, 4, "11001100", [4, 2, 4, 2, 4, 2, 4, 2]),
        (3, 5, "11100111", [4, 2, 0, 4, 2, 4, 2, 0]),
        (4, 3, "11101111", [3, 2, 1, 0, 0xFFFF, 0xFFFE, 0xFFFD, 0xFFFC]),
        (5, 3, "11101111", [3, 2, 1, 0, 0xFFFF, 0xFFFE, 0xFFFD, 0xFFFC]),
    ],
)
def test_data_sheet_waveforms(mode: int, count: int, wave: str, elements: list[int]) -> None:
    counter = configured(mode, False, gate=mode not in (1, 5))
    write_count(counter, count)
    counter.set_gate(True)
    seen = []
    for pulse in range(1, 9):
        counter.advance_to(pulse)
        seen.append((str(int(counter.out)), counter.element % 65_536))
    assert seen == list(zip(wave, elements, strict=True))


class Rig:
    """The chip on a bus, as the machine wires it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.irq = RecordingLine()
        self.pit = Pit(self.irq, self.clock)
        self.bus = Bus("port", 1 << 16, RecordingFaults(), flat=True)
        self.bus.add(0x40, 4, self.pit, "PIT", max_size=1)
        self.bus.add(0x61, 1, self.pit.gate_window, "port B", max_size=1)

    def program(self, channel: int, mode: int, count: int, bcd: int = 0) -> None:
        self.bus.write(0x43, 1, channel << 6 | BOTH << 4 | mode << 1 | bcd)
        self.bus.write(0x40 + channel, 1, count & 0xFF)
        self.bus.write(0x40 + channel, 1, count >> 8)

    def count(self, channel: int) -> int:
        self.bus.write(0x43, 1, channel << 6)
        return self.word(channel)

    def word(self, channel: int) -> int:
        port = 0x40 + channel
        return self.bus.read(port, 1) | self.bus.read(port, 1) << 8

    def status(self, channel: int) -> int:
        self.bus.write(0x43, 1, 0xE0 | 2 << channel)
        return self.bus.read(0x40 + channel, 1)

    def advance_pulses(self, pulses: int) -> None:
        pulse = (self.clock.now - 1_000_000_000) * PIT_HZ // SECOND
        self.clock.advance(1_000_000_000 - (-(pulse + pulses) * SECOND // PIT_HZ) - self.clock.now)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_power_on_is_silent(rig: Rig) -> None:
    rig.clock.advance(10 * SECOND)
    assert rig.irq.edges == []
    assert not rig.clock.armed


@pytest.mark.parametrize("mode", [2, 3])
def test_periodic_interrupts_do_not_drift(rig: Rig, mode: int) -> None:
    """1000 s of Linux' 250 Hz tick: as many interrupts as periods, none late by a pulse."""
    rig.program(0, mode, 4772)
    rig.clock.advance(1000 * SECOND)
    assert rig.irq.pulses == 1000 * PIT_HZ // 4772
    rig.irq.clear()
    left = -(1000 * PIT_HZ) % 4772
    rig.advance_pulses(left)
    assert rig.irq.pulses == 0, "the count is loaded one pulse after the write"
    rig.advance_pulses(1)
    assert rig.irq.pulses == 1


@pytest.mark.parametrize(("mode", "delay"), [(0, 101), (4, 102)])
def test_one_shot_interrupts_once(rig: Rig, mode: int, delay: int) -> None:
    rig.program(0, mode, 100)
    rig.advance_pulses(delay - 1)
    assert rig.irq.pulses == 0
    rig.advance_pulses(1)
    assert rig.irq.pulses == 1
    rig.clock.advance(SECOND)
    assert rig.irq.pulses == 1
    assert not rig.clock.armed


def test_one_shot_can_be_set_again_and_replaced(rig: Rig) -> None:
    for _ in range(5):
        rig.program(0, 0, 1000)
        rig.advance_pulses(500)
    assert rig.irq.pulses == 0
    rig.advance_pulses(501)
    assert rig.irq.pulses == 1


def test_periodic_after_a_long_one_shot_starts_at_once(rig: Rig) -> None:
    rig.program(0, 4, 0)
    rig.program(0, 2, 1193)
    rig.clock.advance(10_100_000)
    assert rig.irq.pulses == 10


def test_missed_edges_arrive_as_one_and_later_ones_in_time(rig: Rig) -> None:
    rig.program(0, 2, 1193)
    rig.clock.stall(50_500_000)
    rig.clock.advance(0)
    assert rig.irq.pulses == 1
    rig.clock.advance(10_000_000)
    assert rig.irq.pulses == 11


def test_an_edge_is_not_lost_when_the_guest_is_faster_than_the_timer(rig: Rig) -> None:
    rig.program(0, 0, 100)
    rig.clock.stall(SECOND)
    assert rig.status(0) & 0x80, "OUT is high"
    rig.program(0, 0, 100)
    assert rig.irq.pulses == 1
    rig.clock.advance(SECOND)
    assert rig.irq.pulses == 2


@pytest.mark.parametrize("mode", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 12, 237])
def test_absurd_rates_are_held_down(rig: Rig, mode: int, count: int) -> None:
    rig.program(0, mode, count)
    rig.clock.advance(SECOND // 10)
    assert rig.irq.pulses <= SECOND // 10 // MIN_PERIOD_NS
    assert sum(timer.expiries for timer in rig.clock.timers) <= SECOND // 10 // MIN_PERIOD_NS
    if count > 1:
        assert rig.irq.pulses > 400
    else:
        assert rig.irq.pulses == 0, "illegal; OUT never rises"
    assert 0 <= rig.count(0) <= count


def test_reprogramming_from_low_to_high_is_an_edge(rig: Rig) -> None:
    rig.program(0, 0, 5000)
    rig.bus.write(0x43, 1, 0x34)
    assert rig.irq.pulses == 1


def test_count_reads_down_and_takes_effect_at_the_period(rig: Rig) -> None:
    rig.program(0, 2, 1000)
    rig.advance_pulses(1)
    assert rig.count(0) == 1000
    rig.advance_pulses(300)
    assert rig.count(0) == 700
    rig.bus.write(0x40, 1, 500 & 0xFF)
    rig.bus.write(0x40, 1, 500 >> 8)
    assert rig.status(0) & 0x40, "null count: not yet loaded"
    rig.advance_pulses(699)
    assert rig.count(0) == 1
    assert not rig.status(0) & 0x80
    rig.advance_pulses(1)
    assert rig.count(0) == 500
    assert rig.status(0) == 0x80 | BOTH << 4 | 2 << 1


def test_second_latch_is_ignored_until_read(rig: Rig) -> None:
    rig.program(2, 0, 0xFFFF)
    rig.bus.write(0x61, 1, 1)
    rig.advance_pulses(1)
    rig.bus.write(0x43, 1, 0x80)
    rig.advance_pulses(256)
    rig.bus.write(0x43, 1, 0x80)
    assert rig.word(2) == 0xFFFF
    assert rig.count(2) == 0xFFFF - 256


def test_read_back_latches_status_before_count(rig: Rig) -> None:
    rig.program(0, 2, 1000)
    rig.advance_pulses(1)
    rig.bus.write(0x43, 1, 0xC0 | 2)  # count and status of counter 0
    rig.advance_pulses(100)
    rig.bus.write(0x43, 1, 0xC0 | 2)
    assert rig.bus.read(0x40, 1) == 0x80 | 0x34
    assert rig.word(0) == 1000
    assert rig.word(0) == 900, "and then the live count"


def test_read_back_of_several_counters(rig: Rig) -> None:
    rig.program(0, 2, 1000)
    rig.program(1, 3, 18)
    rig.program(2, 0, 50)
    rig.bus.write(0x43, 1, 0xEE)  # status of all three
    assert [rig.bus.read(0x40 + n, 1) for n in range(3)] == [0xF4, 0xF6, 0x70]


def test_control_word_drops_what_was_latched(rig: Rig) -> None:
    rig.program(0, 2, 1000)
    rig.bus.write(0x43, 1, 0xC0 | 2)
    rig.program(0, 2, 2000)
    rig.advance_pulses(1)
    assert rig.word(0) == 2000


def test_reads_and_writes_of_two_bytes_may_interleave(rig: Rig) -> None:
    rig.program(0, 4, 0x1234)
    rig.advance_pulses(1)
    rig.bus.write(0x43, 1, 0)
    assert rig.bus.read(0x40, 1) == 0x34
    rig.bus.write(0x40, 1, 0x78)
    assert rig.bus.read(0x40, 1) == 0x12
    rig.bus.write(0x40, 1, 0x56)
    rig.advance_pulses(1)
    assert rig.count(0) == 0x5678


@pytest.mark.parametrize(
    ("access", "written", "count", "read"),
    [(LSB, 0x12, 0x0012, 0x12), (MSB, 0x12, 0x1200, 0x12), (LSB, 0, 0x10000, 0)],
)
def test_one_byte_counts(rig: Rig, access: int, written: int, count: int, read: int) -> None:
    rig.bus.write(0x43, 1, access << 4 | 2 << 1)
    rig.bus.write(0x40, 1, written)
    rig.advance_pulses(1)
    assert rig.bus.read(0x40, 1) == read
    rig.advance_pulses(count - 1)
    assert not rig.status(0) & 0x80
    rig.advance_pulses(1)
    assert rig.status(0) & 0x80


def test_bcd(rig: Rig) -> None:
    rig.program(0, 2, 0x1000, bcd=1)
    rig.advance_pulses(2)
    assert rig.count(0) == 0x0999
    rig.program(0, 0, 0x0001, bcd=1)
    rig.advance_pulses(3)
    assert rig.count(0) == 0x9999


def test_first_byte_of_mode_0_stops_the_count(rig: Rig) -> None:
    rig.program(0, 0, 1000)
    rig.advance_pulses(501)
    rig.bus.write(0x40, 1, 0xE8)
    rig.advance_pulses(2000)
    assert rig.irq.pulses == 0
    rig.bus.write(0x40, 1, 0x03)
    rig.advance_pulses(1001)
    assert rig.irq.pulses == 1


def test_channel_2_as_linux_calibrates_with_it(rig: Rig) -> None:
    """Gate on, speaker off, mode 0, poll OUT in port 0x61 (quick and slow TSC calibration)."""
    rig.bus.write(0x61, 1, rig.bus.read(0x61, 1) & ~2 | 1)
    rig.program(2, 0, 59659)
    assert not rig.bus.read(0x61, 1) & 0x20
    rig.advance_pulses(59659)
    assert not rig.bus.read(0x61, 1) & 0x20
    rig.advance_pulses(1)
    assert rig.bus.read(0x61, 1) & 0x20
    assert not rig.clock.armed, "channel 2 needs no timer"


def test_gate_stops_channel_2(rig: Rig) -> None:
    rig.bus.write(0x61, 1, 1)
    rig.program(2, 2, 1000)
    rig.advance_pulses(101)
    rig.bus.write(0x61, 1, 0)
    rig.advance_pulses(5000)
    assert rig.count(2) == 900
    rig.bus.write(0x61, 1, 1)
    rig.advance_pulses(1)
    assert rig.count(2) == 1000, "the gate's edge reloads"


def test_port_b_keeps_its_low_bits_and_toggles_refresh(rig: Rig) -> None:
    rig.bus.write(0x61, 1, 0xFF)
    assert rig.bus.read(0x61, 1) & 0xCF == 0x0F
    seen = set()
    for _ in range(8):
        seen.add(rig.bus.read(0x61, 1) & 0x10)
        rig.advance_pulses(9)
    assert seen == {0, 0x10}


def test_control_port_is_write_only(rig: Rig) -> None:
    assert rig.bus.read(0x43, 1) == 0xFF


def test_state_survives_save_and_restore(rig: Rig) -> None:
    rig.program(0, 2, 11932)
    rig.program(2, 3, 5000)
    rig.bus.write(0x61, 1, 3)
    rig.clock.advance(12_345_678)
    rig.bus.write(0x43, 1, 0x80)
    other = Rig()
    other.pit.restore(rig.pit.save())
    assert other.pit.save() == rig.pit.save()
    assert other.word(2) == rig.word(2)
    rig.irq.clear()
    for each in (rig, other):
        each.clock.advance(100_000_000)
    assert other.irq.pulses == rig.irq.pulses == 10
    other.pit.reset()
    assert not other.clock.armed


@given(
    count=st.integers(2, 65536),
    mode=st.sampled_from((0, 2, 4)),
    waits=st.lists(st.integers(0, 3_000_000), min_size=1, max_size=30),
)
def test_counts_fall_by_the_time_that_passes(count: int, mode: int, waits: list[int]) -> None:
    rig = Rig()
    rig.program(0, mode, count % 65536)
    rig.advance_pulses(1)
    period = count if mode == 2 else 65536
    before = rig.count(0)
    for wait in waits:
        start = (rig.clock.now - SECOND) * PIT_HZ // SECOND
        rig.clock.advance(wait)
        passed = (rig.clock.now - SECOND) * PIT_HZ // SECOND - start
        after = rig.count(0)
        assert (before - after - passed) % period == 0
        before = after


@given(
    st.lists(
        st.tuples(
            st.sampled_from((0x40, 0x41, 0x42, 0x43, 0x61)),
            st.booleans(),
            st.integers(0, 255),
            st.integers(0, 100_000),
        ),
        max_size=60,
    )
)
def test_any_access_is_answered(accesses: list[tuple[int, bool, int, int]]) -> None:
    rig = Rig()
    for port, write, value, wait in accesses:
        if write:
            rig.bus.write(port, 1, value)
        else:
            assert 0 <= rig.bus.read(port, 1) <= 0xFF
        rig.clock.advance(wait)
    expiries = sum(timer.expiries for timer in rig.clock.timers)
    writes = sum(write for _, write, _, _ in accesses)
    assert expiries <= writes + sum(wait for *_, wait in accesses) // MIN_PERIOD_NS + 1
