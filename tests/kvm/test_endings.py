"""How a guest's end becomes an exit status, and a crash a report."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest
from kvm.command import AT_ONCE, TIMEOUT, command, last_line, run, start
from kvm.terminal import CTRL_A, terminal

from pyvmm.kvm.system import host_has_hardware_kvm

MIB = 1 << 20


def test_power_off(guests: Path) -> None:
    ended = run(guests / "endings", append="power-off")
    assert ended.status == 0
    assert re.fullmatch(r"pyvmm: guest powered off after \d+\.\d\d s", last_line(ended.stderr))


@pytest.mark.parametrize("reset", ["i8042-reset", "chipset-reset", "acpi-reset", "init"])
def test_reset(guests: Path, reset: str) -> None:
    ended = run(guests / "endings", append=reset)
    assert ended.status == 0
    assert ended.failures == []
    assert "guest rebooted" in last_line(ended.stderr)


def test_debug_exit(guests: Path) -> None:
    ended = run(guests / "endings", "--debug-exit", append="debug-exit")
    assert ended.status == 21 << 1 | 1
    assert "0x15" in last_line(ended.stderr)


def test_debug_exit_is_there_only_on_request(guests: Path) -> None:
    assert run(guests / "endings", "--timeout", "1", append="debug-exit").status == 124


def test_panic_on_the_console(guests: Path) -> None:
    with start(guests / "endings", append="panic") as guest:
        guest.read_until(b"---[ end Kernel panic")
        before = time.monotonic()
        status, _, stderr = guest.finish()
        assert time.monotonic() - before < AT_ONCE
    assert status == 3
    assert 'panicked: "the test wants it"' in last_line(stderr)


def test_panic_by_pvpanic(guests: Path) -> None:
    ended = run(guests / "endings", append="pvpanic")
    assert ended.status == 3
    assert "guest panicked" in last_line(ended.stderr)


def test_halt_runs_into_the_timeout(guests: Path) -> None:
    ended = run(guests / "endings", "--timeout", "1", append="halt")
    assert ended.status == 124
    assert 1 <= ended.seconds < 1 + 2 * AT_ONCE
    assert "timeout" in last_line(ended.stderr)
    assert "vCPU 0: halted at 0000000000" in ended.stderr
    assert "interrupts off, 64-bit long mode, ring 0" in ended.stderr


@pytest.mark.parametrize(("append", "silent"), [("halt", True), ("print", False)])
def test_silence_is_explained_where_linux_cannot_run(
    guests: Path, append: str, silent: bool
) -> None:
    ended = run(guests / "endings", "--timeout", "1", append=append)
    advised = "software one" in ended.stderr
    assert advised == (silent and not host_has_hardware_kvm())


class TestCrash:
    def test_triple_fault(self, guests: Path) -> None:
        ended = run(guests / "endings", append="triple-fault")
        assert ended.status == 4
        assert "guest crashed: triple fault" in last_line(ended.stderr)
        report = ended.stderr
        assert "vCPU 0: triple fault" in report
        assert re.search(r"^RIP [0-9a-f]{16}  RFLAGS", report, re.MULTILINE)
        assert re.search(r"^RAX [0-9a-f]{16}", report, re.MULTILINE)
        assert re.search(r"CR0 [0-9a-f]+ .*CR3 [0-9a-f]+", report)
        assert re.search(r"out 0x3f[0-9a-f], .*serial COM1", report)
        if "AMD-V doesn't keep those of a triple fault" not in report:
            assert re.search(r"^IDT 0{16} limit 0000", report, re.MULTILINE)
            assert "mode: 64-bit long mode, ring 0" in report
            assert re.search(r"^code: [0-9a-f ]*<0f> 0b ", report, re.MULTILINE)  # ud2

    def test_instruction_that_software_kvm_lacks(self, guests: Path) -> None:
        """Hardware executes it; a software KVM's emulator doesn't know it."""
        ended = run(guests / "endings", append="popcnt")
        if host_has_hardware_kvm():
            ended.check()
            return
        assert ended.status == 4
        assert re.search(r"^the instruction: f3 48 0f b8", ended.stderr, re.MULTILINE)
        assert "can't run Linux" in ended.stderr


class TestExpectations:
    def test_expected_line(self, guests: Path) -> None:
        ended = run(guests / "endings", "--expect", r"\d+ sheep", append="print")
        assert ended.status == 0
        assert ended.seconds < 2 * AT_ONCE
        assert "second line, 42 sheep" in last_line(ended.stderr)

    def test_expected_prompt(self, guests: Path) -> None:
        assert run(guests / "endings", "--expect", "prompt> $", append="print").status == 0

    def test_expected_text_that_does_not_come(self, guests: Path) -> None:
        ended = run(guests / "endings", "--expect", "wolves", append="power-off")
        assert ended.status == 5
        assert "wolves" in last_line(ended.stderr)

    def test_expected_text_before_a_crash(self, guests: Path) -> None:
        assert run(guests / "endings", "--expect", "wolves", append="triple-fault").status == 4

    def test_text_that_must_not_come(self, guests: Path) -> None:
        ended = run(guests / "endings", "--fail-on", "wolves", "--fail-on", "sheep", append="print")
        assert ended.status == 5
        assert ended.seconds < 2 * AT_ONCE
        assert "42 sheep" in last_line(ended.stderr)


def test_reset_under_restart_after_a_panic(guests: Path) -> None:
    """The panic is the end, although the kernel means to recover from it."""
    ended = run(guests / "endings", "--on-reboot", "restart", append="panic-reboot")
    assert ended.status == 3
    assert len(ended.lines) == 1
    assert 'panicked: "the test wants it"' in last_line(ended.stderr)


class TestSigterm:
    def test_the_guest_shuts_down(self, guests: Path) -> None:
        with start(guests / "endings", append="power-button") as guest:
            guest.read_until(b"waiting\n")
            guest.process.terminate()
            status, console, stderr = guest.finish()
        assert (status, console) == (0, b"power button\n")
        assert "SIGTERM: the guest has 10 s to shut down" in stderr
        assert "guest powered off" in last_line(stderr)

    def test_a_guest_that_does_not_listen(self, guests: Path) -> None:
        with start(guests / "endings", append="print") as guest:
            guest.read_until(b"prompt> ")
            before = time.monotonic()
            guest.process.terminate()
            status, _, stderr = guest.finish()
            assert time.monotonic() - before >= 10
        assert status == 143
        assert re.search(
            "interrupted by SIGTERM: the guest did not shut down within 10 s", last_line(stderr)
        )

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_signal(self, guests: Path, number: signal.Signals) -> None:
        with start(guests / "endings", append="print") as guest:
            guest.read_until(b"prompt> ")
            guest.process.terminate()
            assert guest.process.stderr is not None
            assert b"SIGTERM" in guest.process.stderr.readline()
            before = time.monotonic()
            guest.process.send_signal(number)
            status, _, stderr = guest.finish()
            assert time.monotonic() - before < min(AT_ONCE, 9)
        assert status == 128 + number
        assert f"interrupted by {number.name}" in last_line(stderr)

    def test_a_timeout_that_comes_sooner(self, guests: Path) -> None:
        with start(guests / "endings", "--timeout", "3", append="print") as guest:
            guest.read_until(b"prompt> ")
            guest.process.terminate()
            status, _, stderr = guest.finish()
        assert status == 124
        assert "SIGTERM" in stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_signal(guests: Path, number: signal.Signals) -> None:
    with start(guests / "endings", append="print") as guest:
        guest.read_until(b"prompt> ")
        guest.process.send_signal(number)
        before = time.monotonic()
        status, _, stderr = guest.finish()
        assert time.monotonic() - before < AT_ONCE
    assert status == 128 + number
    assert "interrupted" in last_line(stderr)


def test_nohup(guests: Path) -> None:
    """A signal that was ignored at the start stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with start(guests / "endings", append="print") as guest:
            guest.read_until(b"prompt> ")
            guest.process.send_signal(signal.SIGHUP)
            guest.process.send_signal(signal.SIGINT)
            assert guest.finish()[0] == 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_full_file_system_changes_no_status(guests: Path) -> None:
    command_line = command(guests / "endings", append="triple-fault")
    with open("/dev/full", "w") as full:
        assert subprocess.run(command_line, stderr=full, check=False).returncode == 4


def test_a_full_log_is_told(guests: Path) -> None:
    ended = run(guests / "endings", "--serial", "file:/dev/full", "--timeout", "1", append="print")
    assert ended.status == 124
    assert "pyvmm: the console's output to /dev/full is lost: No space left" in ended.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(guests: Path, tmp_path: Path, closed: str) -> None:
    """The disk doesn't get the descriptor, and what is meant for the console."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    options = ("--disk", str(disk), "--expect", "prompt> ")
    command_line = command(guests / "endings", *options, append="print")
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command_line]
    assert subprocess.run(shell, capture_output=True, check=False).returncode == 0
    assert disk.read_bytes() == bytes(4096)


def test_a_job_that_was_stopped_gets_its_raw_terminal_back(guests: Path) -> None:
    with terminal(command(guests / "endings", append="print")) as tty:
        tty.read_until(b"prompt> ")
        raw = termios.tcgetattr(tty.slave)
        tty.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, tty.process.pid, os.WSTOPPED)
        termios.tcsetattr(tty.slave, termios.TCSANOW, tty.before)  # as a shell does
        tty.process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + TIMEOUT
        while termios.tcgetattr(tty.slave) != raw and time.monotonic() < deadline:
            time.sleep(0.01)
        tty.type(CTRL_A + b"x")
        assert tty.finish() == 130


def test_a_reader_that_goes_away(guests: Path) -> None:
    """`pyvmm run | head` ends when head does."""
    with start(guests / "endings", append="babble") as guest:
        guest.read_until(b"dull guest\n")
        assert guest.process.stdout is not None
        guest.process.stdout.close()
        assert guest.process.wait(TIMEOUT) == 128 + signal.SIGPIPE


def test_debug_console(guests: Path) -> None:
    ended = run(guests / "endings", "--debug-console", append="debug-console")
    ended.check()
    assert "by port 0xE9" in ended.lines + ended.stderr.splitlines()


def test_second_serial_port(guests: Path, tmp_path: Path) -> None:
    log = tmp_path / "com2"
    ended = run(guests / "endings", "--serial", "stdio", "--serial", f"file:{log}", append="com2")
    assert ended.status == 0
    assert log.read_text() == "by COM2\n"
    assert ended.console == b""


def test_a_slow_reader_slows_the_guest_down(guests: Path) -> None:
    """What nobody reads is not piled up."""
    with start(guests / "endings", append="babble") as guest:
        guest.read_until(b"dull guest\n")
        before = guest.peak_memory()
        time.sleep(3)  # more than it takes to fill the pipe, which holds 64 KiB
        assert guest.peak_memory() - before < 4 * MIB
        for _ in range(2_500):
            line = guest.read_until(b"\n")
            assert line == b"all work and no play makes a dull guest\n"


@pytest.mark.parametrize("seed", range(1, 7))
def test_hostile_guest(guests: Path, tmp_path: Path, seed: int) -> None:
    """Whatever it pokes at, the VMM lives on, and says little about it."""
    first, second = tmp_path / "first.raw", tmp_path / "second.raw"
    first.write_bytes(bytes(1 << 16))
    second.write_bytes(bytes(1 << 16))
    ended = run(
        guests / "hostile",
        *("--disk", str(first), "--disk", f"{second},transport=mmio"),
        *("--rng", "transport=mmio", "--balloon", "size=16M,stats=1,free-page-reporting=on"),
        *("--console", "null", "--port", f"port=unix:{tmp_path / 'port'}"),
        *("--vsock", f"cid=3,path={tmp_path / 'vsock'},transport=mmio"),
        *("--serial", "stdio", "--serial", "null"),
        append=f"seed={seed} accesses=10000",
    )
    assert b"survived" in ended.console, ended
    assert ended.status == 0
    complaints = re.findall(r"^pyvmm: guest: ((?:virtio: )?[^:\n]+)", ended.stderr, re.MULTILINE)
    assert len(complaints) == len(set(complaints)) < 20
    assert {"bad virtio-mmio read", "bad virtio-mmio write"} <= set(complaints)


def test_our_last_line_begins_a_line(guests: Path) -> None:
    """Where the console and stderr are one, an unfinished line of the guest's is ended first."""
    apart = run(guests / "endings", "--expect", "prompt>", append="print")
    assert apart.stderr.startswith("pyvmm: expected text came")
    words = command(guests / "endings", "--expect", "prompt>", append="print")
    together = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert re.search(rb"prompt> \npyvmm: expected text came", together.stdout)
