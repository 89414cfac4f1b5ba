"""Devices of a user's own: the examples, each with the guest that drives it; and what a user hears
of a mistake."""

from __future__ import annotations

import textwrap
import threading
from pathlib import Path

import pytest
from kvm.command import Ended, run
from kvm.conftest import PROJECT

from pyvmm import DeviceError, Machine, PioDevice

DEVICES = PROJECT / "guests/devices"


def drive(guests: Path, guest: str, device: str, *options: str, append: str = "") -> Ended:
    ended = run(guests / guest, "--device", f"{DEVICES}/{device}", *options, append=append)
    ended.check()
    return ended


def test_thermometer(guests: Path) -> None:
    """Ports, and an ISA interrupt from a timer."""
    ended = drive(guests, "thermometer", "thermometer.py:Thermometer")
    assert ended.passed.count("it is warmer now") == 3


def test_options(guests: Path) -> None:
    options = "thermometer.py:Thermometer,base=0x700,start=40"
    drive(guests, "thermometer", options, append="base=1792 start=40")


def test_stopwatch(guests: Path) -> None:
    """Memory addresses; accesses of a wrong size are the guest's fault."""
    ended = drive(guests, "stopwatch", "stopwatch.py:Stopwatch")
    assert "the alarm comes after 20 ms" in ended.passed
    assert "guest: Stopwatch: read of a wrong size or alignment: 1 bytes at offset 0x0" in (
        ended.stderr
    )


@pytest.mark.parametrize("interrupts", ["msix", "intx"])
def test_checksum(guests: Path, interrupts: str) -> None:
    """PCI, DMA and both kinds of interrupt."""
    ended = drive(guests, "checksum", "checksum.py:Checksum", append=interrupts)
    assert ("MSI-X capability" in ended.passed) == (interrupts == "msix")
    assert ended.passed[-1] == "one interrupt each"
    assert "Checksum: ADDRESS is outside memory: 16 bytes at 0x1000000000000000" in ended.stderr


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_mirror(guests: Path, transport: str) -> None:
    options = f"mirror.py:Mirror,longest=100,transport={transport}"
    ended = drive(guests, "mirror", options)
    assert ended.value("transport") == transport
    assert ended.value("longest") == "100"
    assert "counts the requests" in ended.passed


def test_two_of_a_kind_on_one_wire(guests: Path) -> None:
    device = f"{DEVICES}/thermometer.py:Thermometer"
    drive(guests, "thermometer", "thermometer.py:Thermometer", "--device", f"{device},base=0x700")


def test_reset(guests: Path) -> None:
    """The device is as at power-on when the guest boots again."""
    reboot = ("--on-reboot", "restart")
    ended = drive(guests, "thermometer", "thermometer.py:Thermometer", *reboot, append="reboot")
    assert ended.passed.count("start") == 2
    assert "after 1 reboot" in ended.stderr


def test_a_guest_that_means_no_good(guests: Path) -> None:
    """It can't make a device fail that keeps to the rules."""
    devices = [
        "thermometer.py:Thermometer",
        "stopwatch.py:Stopwatch",
        "checksum.py:Checksum",
        "mirror.py:Mirror",
        "mirror.py:Mirror,transport=mmio",
    ]
    options = [word for device in devices for word in ("--device", f"{DEVICES}/{device}")]
    ended = run(guests / "hostile", *options, append="seed=9 accesses=5000")
    assert ended.status == 0, ended.stderr
    assert "survived" in ended.lines


BROKEN = """
    from pyvmm import PioDevice

    class Broken(PioDevice):
        length, default_base = 3, 0x510

        def read(self, offset, size):
            return self.temperature(offset)

        def temperature(self, offset):
            return [][offset]

    class Forgetful(Broken):
        def read(self, offset, size):
            print

    class Endless(Broken):
        def read(self, offset, size):
            while True:
                pass

    class EndlessTimer(Broken):
        def read(self, offset, size):
            return 0

        def reset(self):
            self.after(0.01, self.tick)

        def tick(self):
            while True:
                pass
"""


def broken(guests: Path, tmp_path: Path, name: str, *options: str) -> Ended:
    (tmp_path / "mine.py").write_text(textwrap.dedent(BROKEN))
    return run(guests / "thermometer", "--device", f"{tmp_path}/mine.py:{name}", *options)


def test_an_exception_while_the_guest_runs(guests: Path, tmp_path: Path) -> None:
    """The traceback, of the user's code alone and once; and the device's name in the last line."""
    ended = broken(guests, tmp_path, "Broken")
    assert ended.status == 1
    assert ended.stderr.count("Traceback") == 1
    assert "return [][offset]" in ended.stderr
    assert "attachment.py" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("pyvmm: device Broken failed: IndexError: list index out of range (")
    assert last.endswith("mine.py:11)")


def test_a_read_that_returns_nothing(guests: Path, tmp_path: Path) -> None:
    ended = broken(guests, tmp_path, "Forgetful")
    assert ended.status == 1
    assert "device Forgetful failed: read(0x0, 1) returned None, which is no" in ended.stderr


@pytest.mark.parametrize(("name", "method"), [("Endless", "read"), ("EndlessTimer", "tick")])
def test_a_method_that_does_not_return(
    guests: Path, tmp_path: Path, name: str, method: str
) -> None:
    """The run ends nevertheless, and says why."""
    ended = broken(guests, tmp_path, name, "--timeout", "0.5")
    assert ended.status == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"pyvmm: device {name} failed: {method}() doesn't return (")


def test_a_pause_meets_a_method_that_does_not_return(guests: Path) -> None:
    begun = threading.Event()

    class Endless(PioDevice):
        length, default_base = 3, 0x510

        def read(self, offset: int, size: int) -> int:
            begun.set()
            while True:
                pass

    def pause() -> None:
        with Machine(guests / "thermometer", command_line="", devices=[Endless()]) as vm:
            assert begun.wait(60)
            vm.pause()

    with pytest.raises(DeviceError, match=r"read\(\) doesn't return"):
        pause()


@pytest.mark.parametrize(
    ("device", "status", "message"),
    [
        ("nowhere.py:Mine", 1, "nowhere.py doesn't exist"),
        ("thermometer.py:Barometer", 1, "Barometer isn't there in"),
        ("thermometer.py:Thermometer,base=0x3f8", 2, "base 0x3f8 overlaps serial COM1 at 0x3f8"),
        ("thermometer.py:Thermometer,colour=1", 2, "'colour=1' is not understood (it takes start"),
        ("thermometer.py:Thermometer,start=hot", 2, "start: 'hot' is not understood (it takes NU"),
    ],
)
def test_mistakes(guests: Path, device: str, status: int, message: str) -> None:
    ended = run(guests / "thermometer", "--device", f"{DEVICES}/{device}")
    assert ended.status == status
    (line,) = ended.stderr.splitlines()
    assert line.startswith("pyvmm: --device ")
    assert message in line
