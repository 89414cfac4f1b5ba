"""Guests in each mode of the CPU, with the devices that belong to its time."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kvm.command import run, start

from pyvmm.kvm.system import host_has_hardware_kvm

MIB = 1 << 20
END_OF_TRANSMISSION = b"\x04"


def test_real_mode(guests: Path) -> None:
    ended = run(guests / "real", "--entry", "real", "--memory", "64M")
    ended.check()
    assert "int through the vector table" in ended.passed
    assert "PIT channel 2 took 10 ms" in ended.passed
    assert "i8042 self-test" in ended.passed
    assert ended.passed[-1] == "POST port"

    rtc = datetime.strptime(ended.value("rtc"), "%y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - rtc).total_seconds()) < 30
    assert int(ended.value("cmos memory above 16 MiB"), 16) * 0x10000 == (64 - 16) * MIB


class TestProtectedMode:
    def test_start_info_and_old_interrupt_controllers(self, guests: Path) -> None:
        ended = run(
            guests / "pvh", "--memory", "96M", append="one two=3", stdin=END_OF_TRANSMISSION
        )
        ended.check()
        assert "PIT ticks 100 times a second" in ended.passed
        assert "RTC ticks 64 times a second" in ended.passed
        assert ended.value("command line") == "one two=3"
        assert ended.value("modules") == "0"
        # All but the pieces of the first MiB that are kept for firmware.
        assert 95 * MIB < int(ended.value("ram"), 16) <= 96 * MIB

    def test_memory_above_4_gib_is_in_the_map(self, guests: Path) -> None:
        ended = run(guests / "pvh", "--memory", "5G", stdin=END_OF_TRANSMISSION)
        ended.check()
        assert 5 * 1024 - 1 < int(ended.value("ram"), 16) / MIB <= 5 * 1024

    def test_modules(self, guests: Path, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        one.write_bytes(b"1")
        two.write_bytes(b"2" * 5000)
        modules = f"{one} words,{two}"
        ended = run(guests / "pvh", "--initrd", modules, stdin=END_OF_TRANSMISSION)
        ended.check()
        assert ended.value("modules") == "2"
        found = [line for line in ended.lines if line.startswith("module: ")]
        assert found == [f"module: {one} words: 1", f"module: {two}: 2"]

    def test_serial_echo_by_interrupts(self, guests: Path) -> None:
        generator = random.Random(1)
        alphabet = bytes(range(256)).replace(END_OF_TRANSMISSION, b"")
        text = bytes(generator.choices(alphabet, k=10_000))
        with start(guests / "pvh") as guest:
            guest.read_until(b"echo until Ctrl-D\n")
            guest.write(text + END_OF_TRANSMISSION)
            status, output, _ = guest.finish()
        echo, _, report = output.rpartition(b"\nechoed ")
        assert echo == text
        assert report.startswith(b"10000 bytes")
        assert b"FAIL" not in report
        assert b"ok: no byte overran the receiver" in report
        assert status == 0


class TestLongMode:
    def test_interrupts_by_the_apics(self, guests: Path) -> None:
        ended = run(guests / "apic")
        ended.check()
        assert "PIT interrupts by the IOAPIC" in ended.passed
        assert "serial interrupt by the IOAPIC" in ended.passed
        assert ended.passed[-1] == "interrupt to oneself"

    def test_pci_without_a_device(self, guests: Path) -> None:
        ended = run(guests / "enumerate")
        ended.check()
        assert ended.value("functions") == "1"

    def test_pci_with_disks(self, guests: Path, tmp_path: Path) -> None:
        disks = []
        for number in range(3):
            disk = tmp_path / f"disk{number}"
            disk.write_bytes(bytes(4096))
            disks += ["--disk", str(disk)]
        ended = run(guests / "enumerate", *disks)
        ended.check()
        assert ended.value("functions") == "4"
        assert sum(line.endswith("1af4:1042") for line in ended.lines) == 3
        assert sum(line.startswith("bar: ") for line in ended.lines) >= 3

    def test_pci_with_entropy_and_a_balloon(self, guests: Path) -> None:
        ended = run(guests / "enumerate", "--rng", "--balloon", "--memory", "32M,prealloc=on")
        ended.check()
        assert [line[-9:] for line in ended.lines if "1af4:" in line] == ["1af4:1044", "1af4:1045"]

    @pytest.mark.parametrize("cpus", [1, 2, 4, 64])
    def test_processors(self, guests: Path, cpus: int) -> None:
        ended = run(guests / "smp", "--cpus", str(cpus))
        ended.check()
        introduced = [line for line in ended.lines if line.startswith("cpu: ")]
        assert sorted(introduced) == sorted(f"cpu: {number}" for number in range(cpus))
        assert "no count was lost" in ended.passed
        assert ended.passed[-1] == "all CPUs answer an interrupt"

    def test_ring_3(self, guests: Path) -> None:
        ended = run(guests / "ring3", "--entry", "real")
        assert ended.failures == []
        assert "page fault: store to the supervisor's page" in ended.passed
        assert "interrupts in ring 3" in ended.passed

    def test_what_kvm_can_not_emulate_is_ring_3s_own_trouble(self, guests: Path) -> None:
        """A guest's unprivileged program must not end the guest; on a software KVM it does."""
        ended = run(guests / "ring3", "--entry", "real")
        if host_has_hardware_kvm():
            ended.check()
            assert ended.passed[-1] == "invalid opcode: more than KVM can emulate"
        else:
            assert ended.status == 4
