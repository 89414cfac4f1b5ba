"""`import pyvmm`: machines in a program's hands."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from traceback import walk_stack
from typing import Any

import pytest
from kvm.assembler import assemble
from kvm.machines import open_descriptors

import pyvmm
from pyvmm.device_config import DiskConfig
from pyvmm.record import Record
from pyvmm.results import Results

LONG = 60.0

TALKER = """
    mov al, '>'
    call put
next:
    mov dx, 0x3fd        # wait for a character
    in al, dx
    test al, 1
    jz next
    mov dx, 0x3f8
    in al, dx
    call put             # say it again
    cmp al, 'q'
    jne next
    mov ax, 0x3400       # S5: the guest powers off
    mov dx, 0x604
    out dx, ax
    hlt
put:
    mov ah, al
    mov dx, 0x3fd
full:
    in al, dx
    test al, 0x20
    jz full
    mov al, ah
    mov dx, 0x3f8
    out dx, al
    ret
"""
"""Prints ">", then what it is sent; powers off after a "q"."""

MARK = 0x5AFE
SPINNER = f"""
    mov ax, {MARK}
    mov [0x600], ax
    mov bx, 0x1234
again:
    jmp again
"""


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """A real-mode guest as a machine's arguments."""
    directory = tmp_path_factory.mktemp("flat")

    def build(source: str) -> dict[str, str]:
        path = directory / f"{abs(hash(source))}.bin"
        path.write_bytes(assemble(source, address=0x7C00))
        return {"kernel": str(path), "entry": "real", "command_line": "", "memory": "16M"}

    return build


@pytest.fixture
def talker(flat: Callable[[str], dict[str, str]]) -> dict[str, str]:
    return flat(TALKER)


@pytest.fixture
def spinner(flat: Callable[[str], dict[str, str]]) -> dict[str, str]:
    return flat(SPINNER)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_conversation(talker: dict[str, str]) -> None:
    with pyvmm.Machine(**talker, timeout=LONG) as vm:
        vm.console.expect(">", LONG)
        vm.console.send("hello")
        assert vm.console.expect("h(.*)o", LONG)[1] == "ell"
        assert vm.outcome is None
        vm.console.send("q")
        outcome = vm.wait(LONG)
        assert outcome.reason is pyvmm.Reason.POWER_OFF
        assert outcome.status == 0
        assert vm.outcome == outcome
        assert vm.console.output == ">helloq"
    assert vm.outcome == outcome


def test_more_than_a_pipe_holds_is_sent_as_the_guest_reads(talker: dict[str, str]) -> None:
    with pyvmm.Machine(**talker, timeout=LONG) as vm:
        text = "".join(f"{n:05d} " for n in range(1500))
        vm.console.send(text, LONG)
        vm.console.expect("01499 ", LONG)
        assert vm.console.output == ">" + text


def test_a_guest_that_reads_nothing(spinner: dict[str, str]) -> None:
    with (
        pyvmm.Machine(**spinner) as vm,
        pytest.raises(pyvmm.ExpectError, match=r"read \d+ of 1000000 bytes that were sent"),
    ):
        vm.console.send(b"x" * 1_000_000, timeout=0.2)


def test_a_failed_expect_tells_of_the_end(guests: Path) -> None:
    with pyvmm.Machine(guests / "endings", command_line="panic") as vm:
        with pytest.raises(pyvmm.ExpectError) as caught:
            vm.console.expect("login: ", LONG)
        assert "expected 'login: ': guest panicked: \"the test wants it\"" in str(caught.value)
        assert "Kernel panic - not syncing" in caught.value.lines[0]
        assert caught.value.outcome is not None
        assert caught.value.outcome.status == 3


def test_a_crash_is_explained(guests: Path) -> None:
    with pyvmm.Machine(guests / "endings", command_line="triple-fault") as vm:
        outcome = vm.wait(LONG)
        assert outcome.reason is pyvmm.Reason.CRASH
        assert any(line.startswith("RIP ") for line in outcome.report)
        # What is left of it can be looked at until the machine is closed.
        assert vm.vcpus[0].registers()["cr0"] & 1
        assert vm.memory.read(0x10_0000, 4)


def test_a_timeout_ends_the_guest(spinner: dict[str, str]) -> None:
    with pyvmm.Machine(**spinner, timeout=0.2) as vm:
        outcome = vm.wait(LONG)
        assert outcome.reason is pyvmm.Reason.TIMEOUT
        assert any("vCPU 0: running at" in line for line in outcome.report)


def test_waiting_for_a_guest_that_goes_on(spinner: dict[str, str]) -> None:
    with pyvmm.Machine(**spinner) as vm:
        with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
            vm.wait(0.05)
        assert vm.outcome is None
        assert vm.end().sentence.startswith("interrupted by the program after")


def test_a_line_that_must_not_come(talker: dict[str, str]) -> None:
    with pyvmm.Machine(**talker, fail_on=["oops", r"b\dm"]) as vm:
        vm.console.send("a b7m")
        outcome = vm.wait(LONG)
        assert outcome.reason is pyvmm.Reason.FAILED
        assert "b7m" in outcome.detail
        assert outcome.status == 5


def test_registers_and_memory_of_a_running_guest(spinner: dict[str, str]) -> None:
    with pyvmm.Machine(**spinner) as vm:
        wait_until(lambda: vm.memory.read_u16(0x600) == MARK)
        wait_until(lambda: vm.vcpus[0].registers()["rbx"] & 0xFFFF == 0x1234)
        registers = vm.vcpus[0].registers()
        assert 0x7C00 <= registers["rip"] < 0x7C20
        assert registers["cs_base"] == 0
        assert not registers["cr0"] & 1
        assert vm.vcpus[0].translate(0x600) == 0x600
        before = vm.vcpus[0].registers()
        assert set(before) == set(registers)


def test_pause_and_resume(talker: dict[str, str]) -> None:
    with pyvmm.Machine(**talker) as vm:
        vm.console.expect(">", LONG)
        vm.pause()
        exits = vm.stats().exits
        vm.console.send("a")
        with pytest.raises(pyvmm.ExpectError):
            vm.console.expect("a", 0.1)
        assert vm.stats().exits == exits
        assert vm.vcpus[0].registers()["rip"]
        assert vm.stats().exits == exits, "a look at a paused guest doesn't let it go on"
        vm.resume()
        vm.console.expect("a", LONG)


def test_a_machine_that_is_made_paused(talker: dict[str, str]) -> None:
    with pyvmm.Machine(**talker, paused=True) as vm:
        assert vm.vcpus[0].registers()["rip"] == 0x7C00
        assert vm.stats().exits == (0,)
        vm.resume()
        vm.console.expect(">", LONG)


def test_reset(talker: dict[str, str]) -> None:
    with pyvmm.Machine(**talker) as vm:
        vm.console.expect(">", LONG)
        vm.reset()
        vm.console.expect(">", LONG)
        assert vm.stats().reboots == 1


def test_the_power_button(guests: Path) -> None:
    with pyvmm.Machine(guests / "endings", command_line="power-button") as vm:
        vm.console.expect("waiting", LONG)
        vm.power_button()
        assert vm.wait(LONG).reason is pyvmm.Reason.POWER_OFF


def test_stats(talker: dict[str, str]) -> None:
    with pyvmm.Machine(**talker) as vm:
        vm.console.expect(">", LONG)
        stats = vm.stats()
        assert stats.exits[0] > 2
        assert 0 < stats.memory <= 16 << 20
        assert stats.seconds > 0
        vm.end()
        assert vm.stats().seconds == vm.outcome.seconds if vm.outcome else False


def test_what_the_guest_does_wrong_is_logged_and_counted(
    flat: Callable[[str], dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    unknown_command = "mov al, 0x12\n out 0x64, al\n again: jmp again"
    with caplog.at_level(logging.WARNING, "pyvmm"), pyvmm.Machine(**flat(unknown_command)) as vm:
        wait_until(lambda: bool(vm.stats().faults))
    assert "i8042" in caplog.text


def test_several_machines_at_once(talker: dict[str, str]) -> None:
    machines = [pyvmm.Machine(**talker, timeout=LONG) for _ in range(3)]
    for vm in machines:
        vm.start()
    for number, vm in enumerate(machines):
        vm.console.send(f"{number}q")
    for number, vm in enumerate(machines):
        assert vm.wait(LONG).reason is pyvmm.Reason.POWER_OFF
        assert vm.console.output == f">{number}q"
        vm.close()


def test_nothing_is_left_behind(talker: dict[str, str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    gc.collect()
    before, threads = open_descriptors(), threading.active_count()
    for _ in range(2):
        with pyvmm.Machine(**talker, disks=[disk], rng=True) as vm:
            vm.console.expect(">", LONG)
        vm = pyvmm.Machine(**talker, disks=[DiskConfig(str(disk))])  # never started
        vm.close()
        vm.close()
    with pytest.raises(pyvmm.HostError):
        pyvmm.Machine(**talker, serial=["file:/no/such/directory/log"])
    with pytest.raises(pyvmm.ImageError):
        pyvmm.Machine("/no/such/kernel")
    del vm
    gc.collect()
    assert open_descriptors() == before
    assert threading.active_count() == threads


def test_arguments_that_will_not_do(talker: dict[str, str]) -> None:
    for wrong in (
        {"memory": "12X"},
        {"disks": ["x,nonsense=1"]},
        {"console": "tty"},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"memory": 512},
        {"cpus": "2"},
        {"disks": "disk.raw"},
        {"nets": "tap0"},
        {"serial": "null"},
        {"fail_on": "("},
        {"cpus": 0},
        {"cpus": 1, "cpu_affinity": "1=0"},
        {"trace": "t,format=xml"},
        {"trace_filters": "kind=exit"},
    ):
        with pytest.raises(pyvmm.ConfigError):
            pyvmm.Machine(**{**talker, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "unusable",
    [
        {"disks": ["missing/disk"]},
        {"initrd": "missing/initrd"},
        {"fail_on": "("},
        {"trace": "missing/trace.txt"},
        {"report": "missing/report.html"},
        {"console": "virtio", "serial": ["file:missing/com1"]},
        {"serial": ["unix:missing/com2"]},
    ],
)
def test_a_machine_that_cannot_be_made_leaves_nothing_open(
    talker: dict[str, str], unusable: dict[str, Any]
) -> None:
    for _ in range(2):  # what is imported for the first may open something, and keep it
        before = open_descriptors()
        with pytest.raises(pyvmm.PyvmmError):
            pyvmm.Machine(**talker, **unusable)
        gc.collect()
    assert open_descriptors() == before


def test_traces_and_a_report(talker: dict[str, str], tmp_path: Path) -> None:
    lines, text, page = tmp_path / "t.jsonl", tmp_path / "t.txt", tmp_path / "page.html"
    with pyvmm.Machine(
        **talker, trace=[str(lines), str(text)], trace_filters="device=serial", report=page
    ) as vm:
        vm.console.expect(">", LONG)
        vm.console.send("q")
        vm.wait(LONG)
    events = [json.loads(line) for line in lines.read_text().splitlines()]
    exits = [event for event in events if event.get("kind") == "exit"]
    assert any(e["register"] == "THR" and e["value"] == ord("q") for e in exits)
    assert {event["device"] for event in exits} == {"serial COM1"}
    assert events[-1]["reason"] == "powered off"
    assert "THR" in text.read_text()
    assert page.read_text().startswith("<!")
    assert {path.name for path in tmp_path.iterdir()} == {"t.jsonl", "t.txt", "page.html"}


def test_a_machine_that_cannot_be_made_leaves_a_trace_alone(
    talker: dict[str, str], tmp_path: Path
) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text("of another run")
    with pytest.raises(pyvmm.ImageError):
        pyvmm.Machine(**talker, trace=str(trace), disks=["/no/such/disk"])
    assert trace.read_text() == "of another run"


def test_a_machine_that_is_ended_before_it_starts(talker: dict[str, str]) -> None:
    vm = pyvmm.Machine(**talker)
    assert vm.end().reason is pyvmm.Reason.INTERRUPTED
    assert vm.end() is vm.wait(LONG)
    with pytest.raises(RuntimeError):
        vm.start()
    vm.close()


def test_a_closed_machine_is_not_touched(talker: dict[str, str]) -> None:
    """The numbers of its descriptors may be other files' by now."""
    with pyvmm.Machine(**talker) as vm:
        vm.console.expect(">", LONG)
    vcpu = vm.vcpus[0]
    for touch in (
        *(vm.reset, vm.power_button, vm.pause, vm.resume, vm.stepper),
        *(vcpu.registers, vcpu.whereabouts, lambda: vcpu.translate(0)),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            touch()
    assert vcpu.recent_exits()


def test_a_machine_starts_once(talker: dict[str, str]) -> None:
    with pyvmm.Machine(**talker) as vm, pytest.raises(RuntimeError):
        vm.start()


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("oops", pyvmm.Reason.WARNED),
        ("oops-panic", pyvmm.Reason.PANIC),
        ("pvpanic-first", pyvmm.Reason.PANIC),
    ],
)
def test_a_kernels_reports_end_it_if_wanted(guests: Path, word: str, reason: pyvmm.Reason) -> None:
    kernel = guests / "endings"
    with pyvmm.Machine(kernel, command_line=word, fail_on_warnings=True, timeout=LONG) as vm:
        outcome = vm.wait()
    assert outcome.reason is reason
    assert outcome.detail


def test_a_reboot_without_a_word_is_no_good_end(guests: Path) -> None:
    """As when Linux panics before it has a console, with the default command line."""
    with pyvmm.Machine(guests / "endings", append="i8042-reset", timeout=LONG) as vm:
        assert vm.wait().reason is pyvmm.Reason.MISSED


def test_with_starts_only_what_has_not_been_started(talker: dict[str, str]) -> None:
    vm = pyvmm.Machine(**talker)
    vm.start()
    with vm:
        vm.console.expect(">", LONG)
    with pytest.raises(RuntimeError), vm:
        pass


def test_where_a_vcpu_is_and_what_it_did(talker: dict[str, str]) -> None:
    with pyvmm.Machine(**talker) as vm:
        vm.console.expect(">", LONG)
        (vcpu,) = vm.vcpus
        where, *last = vcpu.whereabouts()
        assert where.startswith("vCPU 0: running at 0000")
        assert "serial COM1" in last[-1]
        vm.console.send("q")
        vm.wait(LONG)
    exits = vcpu.recent_exits()  # of a closed machine
    assert 8 < len(exits) <= 64
    assert exits[-1].endswith("out 0x604, 0x3400 (16 bits)  PM1a control+0x0")


def test_an_error_while_results_are_written_reaches_who_waits(
    talker: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results({"--json": str(tmp_path / "json")}, "a test", Record(whole_process=False))
    results.begin()
    monkeypatch.setattr(results, "end", lambda *_: 1 // 0)
    with pyvmm.Machine(**talker, results=results) as vm:
        vm.console.send("q")
        with pytest.raises(ZeroDivisionError):
            vm.wait(LONG)


def test_an_interrupted_program_gets_the_signal_while_it_waits(talker: dict[str, str]) -> None:
    """Ctrl-C in a test run: the main thread has to be the one that the kernel wakes."""
    main = threading.main_thread()
    assert threading.current_thread() is main

    def waits() -> bool:
        frame = sys._current_frames()[main.ident or 0]
        return any(each.f_code is pyvmm.Machine.wait.__code__ for each, _ in walk_stack(frame))

    def interrupt() -> None:
        wait_until(waits)  # or the signal would end the test run itself
        os.kill(os.getpid(), signal.SIGINT)

    # Python's own handler isn't there if whoever started the tests has the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pyvmm.Machine(**talker) as vm:
            vm.console.expect(">", LONG)
            threading.Thread(target=interrupt).start()
            with pytest.raises(KeyboardInterrupt):
                vm.wait(LONG)
    finally:
        signal.signal(signal.SIGINT, before)


def test_from_another_thread(talker: dict[str, str]) -> None:
    said: list[str] = []

    def work() -> None:
        with pyvmm.Machine(**talker, timeout=LONG) as vm:
            vm.console.send("q")
            vm.wait(LONG)
            said.append(vm.console.output)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(LONG)
    assert said == [">q"]


def test_the_import_costs_the_command_line_nothing() -> None:
    assert "Machine" in pyvmm.__all__
    with pytest.raises(AttributeError):
        pyvmm.no_such_name  # noqa: B018


class Doubler(pyvmm.PioDevice):
    """Reads as twice what was written."""

    length = 1

    def __init__(self, *, fails: bool = False, **place: int) -> None:
        super().__init__(**place)
        self.value, self.fails = 0, fails

    def write(self, offset: int, size: int, value: int) -> None:
        if self.fails:
            raise RuntimeError("no more")
        self.value = 2 * value

    def read(self, offset: int, size: int) -> int:
        return self.value


DOUBLES = """
    mov dx, 0x510
    mov al, 21
    out dx, al
    in al, dx
    mov dx, 0xf4
    out dx, al
    hlt
"""


def test_a_device_of_the_programs(flat: Callable[[str], dict[str, str]]) -> None:
    device = Doubler(base=0x510)
    with pyvmm.Machine(**flat(DOUBLES), devices=[device], debug_exit=True) as vm:
        assert vm.wait(LONG).value == 42
    assert device.value == 42


def test_a_device_that_fails(flat: Callable[[str], dict[str, str]]) -> None:
    device = Doubler(base=0x510, fails=True)
    with pyvmm.Machine(**flat(DOUBLES), devices=[device], debug_exit=True) as vm:
        with pytest.raises(pyvmm.DeviceError, match="no more"):
            vm.wait(LONG)
        assert vm.outcome is not None
        assert vm.outcome.reason is pyvmm.Reason.ERROR


def test_a_device_that_fails_while_nobody_waits(flat: Callable[[str], dict[str, str]]) -> None:
    """The end of the `with` tells it; but not instead of an error of the program's own."""

    def look(then: Callable[[], None]) -> None:
        device = Doubler(base=0x510, fails=True)
        with pyvmm.Machine(**flat(DOUBLES), devices=[device], debug_exit=True) as vm:
            while vm.outcome is None:
                time.sleep(0.01)
            then()

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(pyvmm.DeviceError, match="no more"):
        look(lambda: None)
    with pytest.raises(ZeroDivisionError):
        look(fail)
