"""Rebooting in place: each way to reset, a machine that is as new after each, and nothing that
piles up. Pausing, which works alike."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kvm.command import TIMEOUT, command, run, start
from kvm.machines import config
from kvm.terminal import CTRL_A, terminal

from pyvmm.backends.character import NullBackend
from pyvmm.config import MachineConfig
from pyvmm.errors import ImageError
from pyvmm.machine import Machine
from pyvmm.memory import MIB
from pyvmm.outcome import Outcome, Reason

RESTART = ("--on-reboot", "restart")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 16))
    return disk


@pytest.mark.parametrize("cpus", [1, 2])
def test_every_way_twice(guests: Path, disk: Path, cpus: int) -> None:
    """The guest leaves traces in memory, devices and CPUs, and finds none in the next boot. With
    two CPUs the other one is running at each reset."""
    append = "reboots=12" + (" smp" if cpus > 1 else "")
    options = (*RESTART, "--cpus", str(cpus), "--disk", str(disk), "--memory", "64M")
    ended = run(guests / "reboots", *options, append=append)
    ended.check()
    assert [line for line in ended.lines if line.startswith("boot: ")] == [
        f"boot: {boot}" for boot in range(13)
    ]
    assert "guest powered off after 12 reboots and " in ended.stderr
    assert ended.stderr.count("triple fault, which resets the machine") == 1


def test_a_triple_fault_is_a_crash_without_restart(guests: Path) -> None:
    assert run(guests / "endings", append="triple-fault").status == 4


def test_expect_sees_all_boots(guests: Path, disk: Path) -> None:
    options = (*RESTART, "--disk", str(disk), "--memory", "64M", "--expect", "^boot: 3")
    ended = run(guests / "reboots", *options, append="hurry")
    assert ended.status == 0
    assert '"boot: 3" after ' in ended.stderr


def test_the_timeout_is_for_all_boots(guests: Path, disk: Path) -> None:
    options = (*RESTART, "--disk", str(disk), "--memory", "64M", "--timeout", "2")
    ended = run(guests / "reboots", *options, append="hurry reboots=1000")
    assert ended.status == 124
    assert " reboots and 2." in ended.stderr


def test_the_reset_key(guests: Path) -> None:
    """On a terminal Ctrl-A r does what a reboot does: here, the guest boots again."""
    with terminal(command(guests / "endings", *RESTART, append="print")) as tty:
        for key in (b"r", b"x"):
            tty.read_until(b"prompt> ")
            tty.type(CTRL_A + key)
        tty.read_until(b"after 1 reboot and ")
        assert tty.finish() == 130


def test_a_signal_at_any_moment(guests: Path, disk: Path) -> None:
    """Also in the middle of a reset."""
    options = (*RESTART, "--disk", str(disk), "--memory", "64M")
    for number in range(5):
        with start(guests / "reboots", *options, append="hurry reboots=1000") as guest:
            guest.read_until(b"boot: 2\n")
            time.sleep(0.004 * number)  # whatever it is doing then
            guest.process.send_signal(signal.SIGINT)
            status, _, stderr = guest.finish()
            assert status == 130
            assert "Traceback" not in stderr


class Recorder(NullBackend):
    """Keeps what a guest prints, and how it ended."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.output = bytearray()
        self._came = threading.Condition()

    def put(self, byte: int) -> bool:
        with self._came:
            self.output.append(byte)
            self._came.notify_all()
        return True

    def wait_for(self, condition: Callable[[bytes], bool]) -> None:
        with self._came:
            assert self._came.wait_for(lambda: condition(bytes(self.output)), TIMEOUT)


@contextmanager
def running(wanted: MachineConfig, console: Recorder) -> Iterator[Machine]:
    machine = Machine(wanted, [console])
    try:
        machine.start()
        yield machine
    finally:
        console.outcome = machine.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_200_reboots_cost_nothing(guests: Path, disk: Path) -> None:
    """Neither descriptors nor memory nor threads, without the collector of cyclic garbage."""
    used: list[tuple[int, int, int]] = []
    wanted = config(guests / "reboots", disk)._replace(
        command_line="hurry reboots=200",
        on_reboot="restart",
        cpus=2,
    )
    machine = Machine(wanted, [NullBackend()])

    def look() -> None:
        descriptors = len(os.listdir("/proc/self/fd"))
        used.append((descriptors, threading.active_count(), resident_bytes()))

    machine.before_reset = look
    gc.disable()
    try:
        machine.start()
        assert machine.wait(5 * TIMEOUT)  # in the lab a boot takes half a second
    finally:
        gc.enable()
        outcome = machine.close()
    assert (outcome.reason, outcome.reboots, len(used)) == (Reason.POWER_OFF, 200, 200)
    descriptors, threads, memory = zip(*used[20:], strict=True)
    assert len(set(descriptors)) == 1
    assert len(set(threads)) == 1
    assert max(memory[-10:]) - max(memory[:10]) < 4 * MIB


def test_a_kernel_that_is_gone(guests: Path, disk: Path, tmp_path: Path) -> None:
    """The files are read again at each boot."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes((guests / "reboots").read_bytes())
    wanted = config(kernel, disk)._replace(command_line="hurry", on_reboot="restart")
    machine = Machine(wanted, [NullBackend()])
    machine.before_reset = kernel.unlink
    machine.start()
    assert machine.wait(TIMEOUT)
    outcome = machine.close()
    assert outcome.status == 1
    assert isinstance(machine.failure, ImageError)
    assert str(machine.failure) == f"can't boot again: kernel {kernel} does not exist"


def test_an_end_before_the_reset(guests: Path, disk: Path) -> None:
    wanted = config(guests / "reboots", disk)._replace(command_line="hurry", on_reboot="restart")
    machine = Machine(wanted, [NullBackend()])
    machine.before_reset = lambda: machine.end(Reason.PANIC)
    machine.start()
    assert machine.wait(TIMEOUT)
    assert machine.close().reboots == 0


class TestByTheHost:
    """Machine's methods, from another thread than its own."""

    def test_reset(self, guests: Path, disk: Path) -> None:
        """Whatever the configuration says about the guest's own reboots."""
        console = Recorder()
        with running(
            config(guests / "endings", disk)._replace(command_line="print"), console
        ) as machine:
            for boots in range(1, 5):
                console.wait_for(lambda output, n=boots: output.count(b"prompt> ") == n)  # type: ignore[misc]
                if boots < 4:
                    machine.reset()
        assert console.outcome is not None
        assert console.outcome.reboots == 3

    def test_pause(self, guests: Path, disk: Path) -> None:
        console = Recorder()
        with running(
            config(guests / "endings", disk)._replace(command_line="babble", cpus=2), console
        ) as machine:
            for _ in range(5):
                printed = len(console.output)
                console.wait_for(lambda output, n=printed: len(output) > n)  # type: ignore[misc]
                machine.pause()
                machine.pause()
                assert not [t for t in threading.enumerate() if t.name.startswith("pyvmm-vcpu")]
                assert machine.vcpus[0].vcpu.get_regs()["rip"]
                machine.resume()
                machine.resume()
        text = bytes(console.output)
        line = b"all work and no play makes a dull guest\n"
        assert text == (line * (len(text) // len(line) + 1))[: len(text)]  # nothing lost, or twice

    def test_a_reset_of_a_paused_machine(self, guests: Path, disk: Path) -> None:
        console = Recorder()
        with running(
            config(guests / "endings", disk)._replace(command_line="print"), console
        ) as machine:
            console.wait_for(lambda output: b"prompt> " in output)
            machine.pause()
            machine.reset()
            done = threading.Event()
            machine.loop.call(done.set)  # behind the reset
            assert done.wait(TIMEOUT)
            assert console.output.count(b"prompt> ") == 1
            machine.resume()
            console.wait_for(lambda output: output.count(b"prompt> ") == 2)

    def test_a_start_of_a_paused_machine(self, guests: Path, disk: Path) -> None:
        console = Recorder()
        machine = Machine(
            config(guests / "endings", disk)._replace(command_line="power-off"), [console]
        )
        machine.pause()
        machine.start()
        assert machine.vcpus[0].vcpu.exits == 0
        machine.resume()
        assert machine.wait(TIMEOUT)
        assert machine.close().reason is Reason.POWER_OFF

    def test_an_end_while_paused(self, guests: Path, disk: Path) -> None:
        console = Recorder()
        with running(
            config(guests / "endings", disk)._replace(command_line="babble"), console
        ) as machine:
            machine.pause()
            machine.end(Reason.TIMEOUT)
            machine.resume()
        assert console.outcome is not None
        assert console.outcome.reason is Reason.TIMEOUT
