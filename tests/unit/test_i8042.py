"""The keyboard controller, the keyboard and the mouse, as firmware and drivers talk to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import RecordingFaults, RecordingLine

from pyvmm.bus import Bus
from pyvmm.devices.i8042 import I8042, Status
from pyvmm.devices.ps2 import CTRL_ALT_DELETE

DATA, COMMAND = 0x60, 0x64
ACK, RESEND, ERROR, BAT = 0xFA, 0xFE, 0xFC, 0xAA
UNTRANSLATED = 0x05


class Rig:
    def __init__(self) -> None:
        self.keyboard_irq = RecordingLine()
        self.mouse_irq = RecordingLine()
        self.faults = RecordingFaults()
        self.resets = 0
        self.device = I8042(self.keyboard_irq, self.mouse_irq, self._reset, self.faults)
        self.bus = Bus("port", 1 << 16, self.faults, flat=True)
        self.bus.add(DATA, 1, self.device.data_window, "i8042 data", max_size=1)
        self.bus.add(COMMAND, 1, self.device.command_window, "i8042 command", max_size=1)

    def _reset(self) -> None:
        self.resets += 1

    def status(self) -> int:
        return self.bus.read(COMMAND, 1)

    def command(self, command: int, *parameter: int) -> None:
        self.bus.write(COMMAND, 1, command)
        for value in parameter:
            self.bus.write(DATA, 1, value)

    def drain(self) -> list[int]:
        """Every byte that waits."""
        seen = []
        while self.status() & Status.OUTPUT_FULL:
            seen.append(self.bus.read(DATA, 1))
            assert len(seen) < 100
        return seen

    def ask(self, command: int, *parameter: int) -> list[int]:
        """A controller command's answer."""
        self.command(command, *parameter)
        return self.drain()

    def keyboard(self, *values: int) -> list[int]:
        answer = []
        for value in values:
            self.bus.write(DATA, 1, value)
            answer += self.drain()
        return answer

    def mouse(self, *values: int) -> list[int]:
        answer = []
        for value in values:
            self.command(0xD4, value)
            answer += self.drain()
        return answer


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_nothing_waits_at_power_on(rig: Rig) -> None:
    assert rig.status() == Status.NOT_LOCKED | Status.SYSTEM_FLAG
    assert rig.keyboard_irq.edges == rig.mouse_irq.edges == []


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (0xAA, 0x55),  # self-test
        (0xAB, 0x00),  # keyboard interface
        (0xA9, 0x00),  # mouse interface
        (0xA4, 0xF1),  # no password
        (0xC0, 0x80),  # not locked
        (0xD0, 0xC3),  # output port: not in reset, A20 on
        (0xE0, 0x00),
        (0x20, 0x45),  # command byte
    ],
)
def test_controller_answers(rig: Rig, command: int, answer: int) -> None:
    assert rig.ask(command) == [answer]
    assert rig.status() & Status.LAST_WAS_COMMAND


def test_controller_ram_keeps_what_is_written(rig: Rig) -> None:
    for index in range(1, 32):
        rig.command(0x60 + index, 0xA0 ^ index)
    assert [rig.ask(0x20 + index) for index in range(1, 32)] == [
        [0xA0 ^ index] for index in range(1, 32)
    ]


def test_output_port_tells_what_waits(rig: Rig) -> None:
    rig.command(0xD3, 0x11)
    rig.command(0xD0)
    assert rig.drain() == [0x11, 0xE3]
    rig.command(0xD2, 0x11)
    rig.command(0xD0)
    assert rig.drain() == [0x11, 0xD3]


def test_a20_is_recorded(rig: Rig) -> None:
    rig.command(0xDD)
    assert not rig.ask(0xD0)[0] & 2
    rig.command(0xDF)
    assert rig.ask(0xD0)[0] & 2
    rig.command(0xD1, 0xDD)
    assert not rig.ask(0xD0)[0] & 2
    assert rig.resets == 0


@pytest.mark.parametrize("script", [(0xFE,), (0xF0,), (0xD1, 0xFE), (0xD1, 0x00)])
def test_reset_lines(rig: Rig, script: tuple[int, ...]) -> None:
    rig.command(*script)
    assert rig.resets == 1


@pytest.mark.parametrize("script", [(0xFF,), (0xF1,), (0xFD,), (0xD1, 0x03)])
def test_other_pulses_do_not_reset(rig: Rig, script: tuple[int, ...]) -> None:
    rig.command(*script)
    assert rig.resets == 0


def test_unknown_controller_command_is_ignored_and_reported(rig: Rig) -> None:
    assert rig.ask(0x13) == []
    assert rig.faults.counts == {"i8042 command that doesn't exist": 1}


def test_a_new_command_replaces_one_that_waits_for_its_parameter(rig: Rig) -> None:
    rig.command(0x60)
    assert rig.ask(0xAA) == [0x55]
    assert rig.keyboard(0xEE) == [0xEE]
    assert rig.ask(0x20) == [0x45]


def test_the_last_byte_can_be_read_again(rig: Rig) -> None:
    assert rig.ask(0xAA) == [0x55]
    assert rig.bus.read(DATA, 1) == 0x55
    assert not rig.status() & Status.OUTPUT_FULL


def test_mouse_loopback_tells_its_source_and_interrupts(rig: Rig) -> None:
    """Linux tests the mouse's interrupt with it (i8042_check_aux)."""
    rig.command(0x60, 0x47)
    rig.command(0xD3, 0xA5)
    assert rig.mouse_irq.level
    assert not rig.keyboard_irq.level
    assert rig.status() & (Status.OUTPUT_FULL | Status.FROM_MOUSE) == 0x21
    assert rig.bus.read(DATA, 1) == 0xA5
    assert rig.mouse_irq.edges == [True, False]


def test_disabling_the_mouse_shows_in_the_command_byte(rig: Rig) -> None:
    rig.command(0xA7)
    assert rig.ask(0x20)[0] & 0x20
    rig.command(0xA8)
    assert not rig.ask(0x20)[0] & 0x20


def test_each_byte_is_an_edge(rig: Rig) -> None:
    rig.bus.write(DATA, 1, 0xF2)
    assert rig.drain() == [ACK, 0xAB, 0x41], "the second byte of the ID, translated"
    assert rig.keyboard_irq.edges == [True, False] * 3


def test_interrupts_follow_their_enable_bits(rig: Rig) -> None:
    rig.command(0x60, 0x44)
    rig.bus.write(DATA, 1, 0xEE)
    assert not rig.keyboard_irq.level
    rig.command(0x60, 0x45)
    assert rig.keyboard_irq.level
    rig.command(0x60, 0x44)
    assert not rig.keyboard_irq.level
    rig.command(0xD4, 0xF4)
    assert rig.bus.read(DATA, 1) == 0xEE
    assert rig.status() & Status.FROM_MOUSE
    assert rig.bus.read(DATA, 1) == ACK
    assert rig.mouse_irq.edges == []


def test_disabled_interfaces_hold_their_bytes_back(rig: Rig) -> None:
    rig.command(0xAD)
    rig.device.key(b"\x1c")
    assert rig.drain() == []
    rig.command(0xAE)
    assert rig.drain() == [0x1E]


def test_controller_answers_go_before_keys(rig: Rig) -> None:
    rig.device.key(b"\x1c\x1b\x23")
    rig.command(0x20)
    assert rig.drain() == [0x1E, 0x45, 0x1F, 0x20]


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ([0xFF], [ACK, BAT]),
        ([0xF2], [ACK, 0xAB, 0x83]),
        ([0xEE], [0xEE]),
        ([0xED, 0x07], [ACK, ACK]),
        ([0xF3, 0x20], [ACK, ACK]),
        ([0xF4], [ACK]),
        ([0xF5], [ACK]),
        ([0xF6], [ACK]),
        ([0xF0, 0x00], [ACK, ACK, 0x02]),
        ([0xF0, 0x01, 0xF0, 0x00], [ACK, ACK, ACK, ACK, 0x01]),
        ([0xF0, 0x03], [ACK, RESEND]),
        ([0xED, 0xF4], [ACK, ACK]),  # a command in a parameter's place is a command
        ([0xEE, 0xFE], [0xEE, 0xEE]),
        ([0xEF], [RESEND]),
        ([0x12], [RESEND]),
        ([0xF8], [RESEND]),  # set 3 only
    ],
)
def test_keyboard_commands(rig: Rig, sent: list[int], answer: list[int]) -> None:
    rig.command(0x60, UNTRANSLATED)
    assert rig.keyboard(*sent) == answer


def test_keyboard_that_does_not_scan_is_mute(rig: Rig) -> None:
    rig.keyboard(0xF5)
    rig.device.key(b"\x1c")
    assert rig.drain() == []
    rig.keyboard(0xF4)
    rig.device.key(b"\x1c")
    assert rig.drain() == [0x1E]


def test_whoever_types_learns_whether_the_keyboard_took_it(rig: Rig) -> None:
    taken = [rig.device.key(b"\x1c\xf0\x1c") for _ in range(7)]
    assert taken == [True] * 5 + [False] * 2, "one byte is in the controller, 16 fit the keyboard"
    assert bytes(rig.drain()) == b"\x1e\x9e" * 5
    assert rig.device.key(b"\x1c\xf0\x1c")
    rig.drain()
    rig.keyboard(0xF5)
    assert not rig.device.key(b"\x1c\xf0\x1c")


# Make and break, in set 2 and in set 1.
@pytest.mark.parametrize(
    ("set_2", "set_1"),
    [
        ("1c f01c", "1e 9e"),  # A
        ("76 f076", "01 81"),  # escape
        ("83 f083", "41 c1"),  # F7
        ("84 f084", "54 d4"),  # alt + system request
        ("e075 e0f075", "e048 e0c8"),  # up
        ("e114 77 e1 f014 f077", "e11d 45 e1 9d c5"),  # pause
    ],
)
def test_keys_are_translated_to_set_1(rig: Rig, set_2: str, set_1: str) -> None:
    rig.device.key(bytes.fromhex(set_2))
    assert bytes(rig.drain()) == bytes.fromhex(set_1)
    rig.command(0x60, UNTRANSLATED)
    rig.device.key(bytes.fromhex(set_2))
    assert bytes(rig.drain()) == bytes.fromhex(set_2)
    rig.keyboard(0xF0, 0x01)
    rig.device.key(bytes.fromhex(set_2))
    assert bytes(rig.drain()) == bytes.fromhex(set_1), "the keyboard can do it, too"


def test_ctrl_alt_delete(rig: Rig) -> None:
    rig.device.ctrl_alt_delete()
    assert bytes(rig.drain()) == bytes.fromhex("1d 38 e053 e0d3 b8 9d")


def test_keys_that_nobody_takes_are_dropped_whole(rig: Rig) -> None:
    rig.command(0xAD)
    for _ in range(1000):
        rig.device.ctrl_alt_delete()
    rig.command(0x60, UNTRANSLATED)
    assert bytes(rig.drain()) == CTRL_ALT_DELETE
    rig.command(0xAD)
    rig.device.ctrl_alt_delete()
    rig.device.key(b"\x1c\x1c\x1c\x1c\x1c")
    rig.bus.write(DATA, 1, 0xED)
    assert rig.drain()[-1] == ACK, "but answers have room"


def test_guest_that_never_reads_fills_no_memory(rig: Rig) -> None:
    rig.command(0x60, 0x30)
    for value in (0xF2, 0xFE, 0xEE) * 1000:
        rig.bus.write(DATA, 1, value)
        rig.command(0xD4, 0xE9)
        rig.command(0xD4, 0xFE)
    state = rig.device.save()
    assert len(state["keyboard"]["queue"]) <= 32
    assert len(state["mouse"]["queue"]) <= 32


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ([0xFF], [ACK, BAT, 0x00]),
        ([0xF2], [ACK, 0x00]),
        ([0xF3, 200, 0xF3, 100, 0xF3, 80, 0xF2], [ACK] * 7 + [0x00]),  # not an IntelliMouse
        ([0xE9], [ACK, 0x00, 0x02, 100]),
        ([0xE8, 3, 0xF3, 40, 0xE7, 0xF4, 0xF0, 0xE9], [ACK] * 8 + [0x70, 0x03, 40]),
        ([0xE7, 0xE6, 0xF4, 0xF5, 0xF0, 0xEA, 0xE9], [ACK] * 7 + [0x00, 0x02, 100]),
        ([0xE7, 0xF4, 0xF6, 0xE9], [ACK] * 4 + [0x00, 0x02, 100]),
        ([0xEB], [ACK, 0x08, 0x00, 0x00]),
        ([0xEE, 0xF4, 0x55, 0xEC, 0xE9], [ACK, 0xF4, 0x55, ACK, ACK, 0x00, 0x02, 100]),
        ([0xEE, 0xFF], [ACK, ACK, BAT, 0x00]),
        ([0xE8, 7], [ACK, RESEND]),
        ([0xF3, 99], [ACK, RESEND]),
        ([0xF3, 0xFF], [ACK, ACK, BAT, 0x00]),
        ([0xE1, 0xE1, 0xF4], [RESEND, ERROR, ACK]),
        ([0xF4, 0xFE], [ACK, ACK]),
    ],
)
def test_mouse_commands(rig: Rig, sent: list[int], answer: list[int]) -> None:
    assert rig.mouse(*sent) == answer


def test_mouse_bytes_are_not_translated(rig: Rig) -> None:
    rig.mouse(0xEE)
    assert rig.mouse(0x1C) == [0x1C]


def test_sending_to_a_device_enables_it(rig: Rig) -> None:
    rig.command(0x60, 0x75)
    assert rig.keyboard(0xEE) == [0xEE]
    assert rig.mouse(0xF4) == [ACK]
    assert rig.ask(0x20) == [0x45]


def test_platform_reset(rig: Rig) -> None:
    rig.command(0x60, 0x07)
    rig.command(0xDD)
    rig.mouse(0xF4)
    rig.device.key(b"\x1c")
    assert rig.keyboard_irq.level
    rig.device.reset()
    assert not rig.keyboard_irq.level
    assert not rig.status() & Status.OUTPUT_FULL
    assert rig.ask(0x20) == [0x45]
    assert rig.mouse(0xE9) == [ACK, 0x00, 0x02, 100]


def test_state_survives_save_and_restore(rig: Rig) -> None:
    rig.mouse(0xF3, 40)
    rig.keyboard(0xED)
    rig.device.key(b"\xf0\x1c\xf0")
    rig.command(0xD4)
    other = Rig()
    other.device.restore(rig.device.save())
    assert other.device.save() == rig.device.save()
    assert other.keyboard_irq.level
    for each in (rig, other):
        each.bus.write(DATA, 1, 0xE9)
        assert each.drain() == [0x9E, ACK, 0x00, 0x02, 40]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just(DATA), st.integers(0, 255)),
            st.tuples(st.just(COMMAND), st.integers(0, 255)),
            st.tuples(st.just(0), st.sampled_from((DATA, COMMAND))),
            st.tuples(st.just(1), st.integers(0, 255)),
        ),
        max_size=80,
    )
)
def test_any_access_is_answered(accesses: list[tuple[int, int]]) -> None:
    rig = Rig()
    for port, value in accesses:
        if port == 0:
            assert 0 <= rig.bus.read(value, 1) <= 0xFF
        elif port == 1:
            rig.device.key(bytes((value,)))
        else:
            rig.bus.write(port, 1, value)
        assert not (rig.keyboard_irq.level and rig.mouse_irq.level)
        if not rig.status() & Status.OUTPUT_FULL:
            assert not rig.keyboard_irq.level
            assert not rig.mouse_irq.level
    rig.drain()
