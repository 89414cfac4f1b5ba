"""The verdict on a run: when it ends, and what of all that was printed it names."""

from __future__ import annotations

import re

import pytest
from unit.fakes import FakeClock

from pyvmm.outcome import Outcome, Reason
from pyvmm.verdict import MOST_REPORT_NS, QUIET_NS, Expectations, Match, Verdict

PANIC = b"[    1.2] Kernel panic - not syncing: no init found\n"
END_OF_PANIC = b"[    1.3] ---[ end Kernel panic - not syncing: no init found ]---\n"
WARNING = b"[    1.2] WARNING: CPU: 0 PID: 1 at kernel/foo.c:1 foo+0x1/0x2\n"
END_OF_TRACE = b"[    1.3] ---[ end trace 0000000000000000 ]---\n"
MS = 1_000_000


class Run:
    """A verdict, with a clock in our hands; ``ends`` are the reasons that ended the machine."""

    def __init__(self, **wanted: object) -> None:
        self.clock = FakeClock()
        self.ends: list[Reason] = []
        expectations = Expectations(**wanted)  # type: ignore[arg-type]
        self.verdict = Verdict(expectations, self.clock, lambda reason, _: self.ends.append(reason))
        self.console = self.verdict.watch()

    def prints(self, text: bytes) -> None:
        self.console.feed(text)

    def on(self, reason: Reason, **more: object) -> Outcome:
        return self.verdict.on(Outcome(reason, **more))  # type: ignore[arg-type]


class TestPanic:
    def test_its_last_line_ends_the_run(self) -> None:
        run = Run()
        run.prints(PANIC)
        assert run.ends == []
        run.prints(END_OF_PANIC)
        assert run.ends == [Reason.PANIC]
        assert run.on(Reason.PANIC).sentence == 'guest panicked: "no init found" after 0.00 s'

    def test_silence_ends_it(self) -> None:
        run = Run()
        run.prints(PANIC)
        run.clock.advance(QUIET_NS)
        assert run.ends == [Reason.PANIC]

    def test_its_report_has_time(self) -> None:
        run = Run()
        run.prints(PANIC)
        for _ in range(5):
            run.clock.advance(QUIET_NS - MS)
            run.prints(b"[    1.2]  panic+0x118/0x2f4\n")
        assert run.ends == []
        run.clock.advance(2 * QUIET_NS)
        assert run.ends == [Reason.PANIC]

    def test_a_guest_that_goes_on_talking_is_ended(self) -> None:
        run = Run()
        run.prints(PANIC)
        for _ in range(MOST_REPORT_NS // (100 * MS)):
            run.clock.advance(100 * MS)
            run.prints(b"and another thing\n")
        assert run.ends == [Reason.PANIC]

    def test_it_outranks_the_reboot_that_follows(self) -> None:
        run = Run()
        run.prints(PANIC)
        assert run.on(Reason.REBOOT).reason is Reason.PANIC

    @pytest.mark.parametrize("first", ["text", "pvpanic"])
    def test_by_pvpanic_and_in_words(self, first: str) -> None:
        run = Run()
        steps = [lambda: run.prints(PANIC), run.verdict.pvpanic]
        for step in steps if first == "text" else reversed(steps):
            step()
            assert run.ends == []
        run.clock.advance(QUIET_NS)
        assert run.ends == [Reason.PANIC]
        assert run.verdict.panic == "no init found"
        assert "no init found" in run.on(Reason.PANIC).sentence

    def test_by_pvpanic_alone(self) -> None:
        run = Run()
        run.verdict.pvpanic()
        run.clock.advance(QUIET_NS)
        assert run.ends == [Reason.PANIC]
        assert run.on(Reason.PANIC).sentence == "guest panicked after 0.00 s"

    def test_by_pvpanic_and_then_a_reboot(self) -> None:
        run = Run()
        run.verdict.pvpanic()
        assert run.on(Reason.REBOOT).reason is Reason.PANIC

    def test_before_the_console_s_driver(self) -> None:
        run = Run()
        run.prints(b"PANIC: early exception 0x0d IP 10:ffffffff83a0 error 0 cr2 0x0\n")
        run.clock.advance(QUIET_NS)
        assert run.ends == [Reason.PANIC]
        assert "early exception 0x0d" in run.verdict.panic

    @pytest.mark.parametrize("end", [b"", b"\n"])
    def test_in_the_decompressor(self, end: bytes) -> None:
        run = Run()
        run.prints(b"\n\nDecoding failed\n\n -- System halted" + end)
        assert run.ends == [Reason.PANIC]
        assert run.verdict.panic == "Decoding failed"

    def test_in_an_initramfs_that_finds_no_root_device(self) -> None:
        run = Run()
        run.prints(
            b"ALERT!  /dev/vdz does not exist.  Dropping to a shell!\r\n"
            b"[   33.1] random: crng init done\r\n"
            b"Rebooting automatically due to panic= boot argument\r\n"
        )
        sentence = run.on(Reason.REBOOT).sentence
        assert 'panicked: "ALERT! /dev/vdz does not exist. Dropping to a shell!"' in sentence

    def test_a_system_that_was_halted_is_none(self) -> None:
        run = Run()
        run.prints(b"[    0.0] Linux version 6.1\n[    9.1] reboot: System halted\n")
        run.prints(b" -- System halted\n")  # a program's, because this kernel stamps its lines
        assert run.ends == []


class TestWarnings:
    def test_none_are_looked_for_without_the_option(self) -> None:
        run = Run()
        run.prints(WARNING)
        run.clock.advance(MOST_REPORT_NS)
        assert run.ends == []
        assert run.on(Reason.POWER_OFF).reason is Reason.POWER_OFF

    def test_the_run_ends_when_the_report_is_complete(self) -> None:
        run = Run(fail_on_warnings=True)
        run.prints(WARNING)
        run.clock.advance(QUIET_NS - MS)
        run.prints(b"[    1.2] Call Trace:\n" + END_OF_TRACE)
        assert run.ends == []
        run.clock.advance(QUIET_NS)
        assert run.ends == [Reason.WARNED]
        outcome = run.on(Reason.WARNED)
        assert outcome.status == 5
        assert "reported a problem" in outcome.sentence
        assert "foo+0x1" in outcome.sentence
        line = WARNING.decode().removeprefix("[    1.2] ").removesuffix("\n")
        assert run.verdict.match == Match("--fail-on-warnings", "warning", line)

    def test_behind_the_end_of_the_trace_there_is_little_time(self) -> None:
        run = Run(fail_on_warnings=True)
        run.prints(WARNING + END_OF_TRACE)
        for _ in range(6):
            run.clock.advance(100 * MS)
            run.prints(b"the guest goes on\n")
        assert run.ends == [Reason.WARNED]

    def test_a_panic_that_follows_is_the_verdict(self) -> None:
        run = Run(fail_on_warnings=True)
        run.prints(WARNING + END_OF_TRACE + PANIC + END_OF_PANIC)
        assert run.ends == [Reason.PANIC]
        assert run.on(Reason.PANIC).reason is Reason.PANIC

    def test_the_first_one_is_named(self) -> None:
        run = Run(fail_on_warnings=True)
        run.prints(WARNING + b"[    1.4] BUG: KASAN: use-after-free in bar+0x1\n")
        assert run.verdict.match is not None
        assert run.verdict.match.pattern == "warning"

    def test_what_is_expected_comes_too_late(self) -> None:
        run = Run(fail_on_warnings=True, expect=re.compile(b"login:"))
        run.prints(WARNING + b"login: ")
        assert run.ends == []
        run.clock.advance(QUIET_NS)
        assert run.on(Reason.WARNED).reason is Reason.WARNED

    def test_and_after_what_was_expected_it_comes_too_late(self) -> None:
        run = Run(fail_on_warnings=True, expect=re.compile(b"login:"))
        run.prints(b"login: \n" + WARNING)
        assert run.ends == [Reason.EXPECTED]
        assert run.on(Reason.EXPECTED).reason is Reason.EXPECTED

    def test_a_guest_that_powers_off_meanwhile(self) -> None:
        run = Run(fail_on_warnings=True)
        run.prints(WARNING)
        assert run.on(Reason.POWER_OFF).reason is Reason.WARNED

    def test_the_user_s_own_pattern_doesn_t_cut_the_report(self) -> None:
        run = Run(fail_on_warnings=True, fail_on=(re.compile(b"WARNING:"),))
        run.prints(WARNING)
        assert run.ends == []
        run.clock.advance(QUIET_NS)
        assert run.ends == [Reason.WARNED]


class TestSilence:
    def test_a_reboot_without_a_word(self) -> None:
        outcome = Run(talkative=True).on(Reason.REBOOT)
        assert (outcome.reason, outcome.status) == (Reason.MISSED, 5)
        assert "earlyprintk=ttyS0" in outcome.sentence

    def test_a_reboot_of_a_kernel_that_spoke(self) -> None:
        run = Run(talkative=True)
        run.prints(b"Linux version 6.1\n")
        assert run.on(Reason.REBOOT).status == 0

    def test_a_guest_that_is_moved_by_hand(self) -> None:
        """Who left the prompt isn't told why the guest has said nothing."""
        run = Run(talkative=True)
        assert run.on(Reason.INTERRUPTED).report
        run.verdict.by_hand = True
        assert not run.on(Reason.INTERRUPTED).report

    def test_a_reboot_of_a_kernel_that_need_not_speak(self) -> None:
        assert Run().on(Reason.REBOOT).status == 0


def vcpu(number: int, state: str, rip: int) -> dict[str, object]:
    return {"id": number, "state": state, "registers": {"rip": rip}}


class TestTimeout:
    def test_it_says_where_the_guest_stands(self) -> None:
        run = Run()
        run.prints(b"[    1.0] probing the flux capacitor\n\n")
        vcpus = (vcpu(0, "halted", 0x1000), vcpu(1, "running", 0xFFFFFFFF81E0B1EB))
        sentence = run.on(Reason.TIMEOUT, vcpus=vcpus, seconds=60.0).sentence
        assert sentence == (
            "guest ran into the timeout: vCPU 1 running at 0xffffffff81e0b1eb, last line"
            ' "[ 1.0] probing the flux capacitor", after 60.00 s'
        )

    def test_all_are_halted(self) -> None:
        outcome = Run().on(Reason.TIMEOUT, vcpus=(vcpu(0, "halted", 0x10),))
        assert "vCPU 0 halted at 0x10, nothing printed," in outcome.sentence

    def test_registers_that_cannot_be_read(self) -> None:
        broken = {"id": 0, "state": None, "registers": None}
        assert "timeout" in Run().on(Reason.TIMEOUT, vcpus=(broken,)).sentence
