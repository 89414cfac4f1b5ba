"""From what the hooks note to a trace's events: which device and which register, whose interrupt,
which phase; on a board as a machine has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import RLock
from typing import Any

import pytest
from unit.test_board import Bench

from pyvmm import layout
from pyvmm.backends.character import NullBackend
from pyvmm.board import Board
from pyvmm.config import MachineConfig
from pyvmm.device_config import DiskConfig, RngConfig
from pyvmm.peripherals import ConsoleBackends, Peripherals
from pyvmm.symbols import Symbol, Symbols
from pyvmm.trace import hooks
from pyvmm.trace.decode import EventDecoder
from pyvmm.trace.parts import wire_names
from pyvmm.vcpu import EXIT_REASONS

Event = dict[str, Any]

START = 1_000_000
REASONS = {name: number for number, name in EXIT_REASONS.items()}


class Scene:
    """A board with a disk by PCI, an entropy device by MMIO, two serial ports, and a decoder."""

    def __init__(self, directory: Path, symbols: Symbols | None = None) -> None:
        image = directory / "disk.raw"
        image.write_bytes(bytes(4096))
        config = MachineConfig(
            kernel="kernel",
            disks=(DiskConfig(str(image)),),
            rng=RngConfig(transport="mmio"),
        )
        self.resources = ExitStack()
        self.board: Board = Bench().board
        self.resources.callback(self.board.close)
        for _ in range(3):
            self.board.add_serial_port(NullBackend())
        self.board.add_debug_exit()
        Peripherals(config, self.resources).plug(self.board, ConsoleBackends())
        self.board.assign_pci_addresses()
        self.decoder = EventDecoder(START, symbols)
        self.decoder.attach(self.board)

    def events(self, *record: Any) -> list[Event]:
        return list(self.decoder.events(record))

    def port(
        self, port: int, value: int | bytes, *, write: bool = True, size: int = 1, count: int = 1
    ) -> Event:
        """An exit for port I/O."""
        found = self.board.pio.find(port)
        record = (START + 5, 7, 0, 0x1000, found, int(write), size, port, count, value)
        (event,) = self.events(hooks.PIO, *record)
        return event

    def memory(self, address: int, value: int, *, write: bool = True, size: int = 4) -> Event:
        """An exit for MMIO."""
        found = self.board.mmio.find(address)
        record = (START + 5, 7, 1, 0x1000, found, int(write), size, address, 1, value)
        (event,) = self.events(hooks.MMIO, *record)
        return event


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.resources.close()


def words(event: Event) -> tuple[str, str, str]:
    return event["device"], event["register"], event["meaning"]


class TestExits:
    def test_an_event_has_all_that_the_schema_says(self, scene: Scene) -> None:
        assert scene.port(0x3FB, 0x83) == {
            "ns": 5,
            "kind": "exit",
            "vcpu": 0,
            "rip": 0x1000,
            "reason": "IO",
            "device": "serial COM1",
            "register": "LCR",
            "access": "write",
            "address": 0x3FB,
            "size": 1,
            "value": 0x83,
            "meaning": "8 bits, no parity, DLAB",
            "took": 7,
        }

    @pytest.mark.parametrize(
        ("port", "value", "expected"),
        [
            (0x2F8, 0x41, ("serial COM2", "THR", "'A'")),
            (0x43, 0x34,
             ("PIT", "control word", "counter 0: rate generator, low, then high byte")),
            (0x61, 0x01, ("PIT gate", "port B", "GATE_2")),
            (0x60, 0xF4, ("i8042", "data", "to the keyboard: ENABLE")),
            (0x64, 0xAD, ("i8042", "command", "DISABLE_KEYBOARD")),
            (0x70, 0x0A, ("RTC", "index", "register A")),
            (0x80, 0x42, ("POST", "code", "")),
            (0x92, 0x02, ("system control", "port A", "A20")),
            (0xED, 0x00, ("delay", "port", "")),
            (0xF4, 0x00, ("debug exit", "code", "ends the run with status 1")),
            (0x505, 0x01, ("pvpanic", "events", "PANICKED")),
            (0xCF9, 0x06, ("reset control", "RST_CNT", "SYS_RST, RST_CPU, reset")),
        ],
    )  # fmt: skip
    def test_the_ports_of_a_pc(
        self, scene: Scene, port: int, value: int, expected: tuple[str, str, str]
    ) -> None:
        assert words(scene.port(port, value)) == expected

    def test_wide_ports(self, scene: Scene) -> None:
        power_off = scene.port(layout.PM1A_CONTROL, 0x3400, size=2)
        assert words(power_off) == ("ACPI", "PM1a_CNT", "SLP_EN, SLP_TYP 5, power off")
        timer = scene.port(layout.PM_TIMER, 0, size=4, write=False)
        assert words(timer) == ("ACPI", "PM_TMR", "0.000000 s")
        event = scene.port(layout.PM1A_EVENT, 0x100, size=2, write=False)
        assert words(event) == ("ACPI", "PM1a_STS", "PWRBTN")

    def test_virtio_by_pci(self, scene: Scene) -> None:
        base = layout.ECAM + (1 << 15)
        found = scene.memory(base, 0x1042_1AF4, write=False)
        assert words(found) == ("pci 00:01.0", "VENDOR_ID", "1af4:1042 virtio-blk vda")
        bars = scene.board.pci.functions()[8].bars
        structures, table = bars[4].mapped_at, bars[1].mapped_at
        assert structures is not None
        assert table is not None
        status = scene.memory(structures + 0x14, 3, size=1)
        assert words(status) == ("virtio-blk vda", "device_status", "ACKNOWLEDGE, DRIVER")
        entry = scene.memory(table + 12, 0)
        assert words(entry) == ("virtio-blk vda MSI-X", "vector 0 control", "on")

    def test_virtio_by_mmio(self, scene: Scene) -> None:
        event = scene.memory(layout.VIRTIO_MMIO + 0x70, 1)
        assert words(event) == ("virtio-rng", "Status", "ACKNOWLEDGE")

    def test_where_nobody_is(self, scene: Scene) -> None:
        assert words(scene.port(0x1F7, 0xFF, write=False)) == (
            *("", "port"),
            "nobody answers (a PC's first IDE controller)",
        )
        assert words(scene.port(0xE9, 0x41)) == (
            *("", "port"),
            "nobody answers (without --debug-console)",
        )
        assert words(scene.memory(0xD000_0000, 1)) == ("", "memory", "nobody answers")

    def test_an_access_that_the_bus_splits(self, scene: Scene) -> None:
        """A 16-bit write to an 8-bit device is two."""
        assert words(scene.port(0x3F9, 0x0700, size=2)) == (
            *("serial COM1", "IER and FCR"),
            "interrupts: none; FIFOs on, clear receiver, clear transmitter, interrupt at 1 byte",
        )
        over_the_end = scene.port(0x3FF, 0x1234, size=2)
        assert words(over_the_end) == ("serial COM1", "SCR", "")

    def test_string_instructions(self, scene: Scene) -> None:
        text = scene.port(0x3F8, b"hello\n", count=6)
        assert words(text) == ("serial COM1", "THR", r"'hello\n'")
        assert (text["value"], text["count"], text["data"]) == (0x68, 6, b"hello\n".hex())
        levels = scene.port(0x3F9, bytes(range(6)), count=6)
        assert levels["meaning"].count(";") == 4
        assert levels["meaning"].endswith("; … and 2 more")

    def test_exits_that_are_no_access(self, scene: Scene) -> None:
        record = START + 9, 3, 1, 0xFFF0, REASONS["SHUTDOWN"], "triple fault"
        assert scene.events(hooks.OTHER, *record) == [
            {
                "ns": 9,
                "kind": "exit",
                "vcpu": 1,
                "rip": 0xFFF0,
                "reason": "SHUTDOWN",
                "device": "",
                "register": "",
                "meaning": "triple fault",
                "took": 3,
            }
        ]

    def test_symbols(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path, Symbols([Symbol(0xFFE, 16, "start")]))
        assert scene.port(0x80, 0)["symbol"] == "start+0x2"
        scene.resources.close()

    def test_a_device_of_the_users(self, scene: Scene) -> None:
        class Thermometer(NullDevice):
            registers = {0: "TEMP"}  # noqa: RUF012

        scene.board.pio.add(0x510, 4, Thermometer(), "Thermometer")
        assert words(scene.port(0x510, 20, write=False)) == ("Thermometer", "TEMP", "")
        assert words(scene.port(0x511, 20, write=False)) == ("Thermometer", "+0x1", "")

    def test_after_a_reset_the_registers_are_back(self, scene: Scene) -> None:
        scene.port(0x3FB, 0x83)
        assert scene.port(0x3F8, 1)["register"] == "DLL"
        scene.events(hooks.PHASE, START, "reset", "")
        assert scene.port(0x3F8, 1)["register"] == "THR"


class NullDevice:
    """What the bus wants of a device."""

    def __init__(self) -> None:
        self.lock = RLock()

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class TestInterruptsAndQueues:
    def test_whose_wire_it_is(self, scene: Scene) -> None:
        assert wire_names(scene.board) == {
            0: "PIT",
            1: "i8042 keyboard",
            3: "serial COM2",
            4: "serial COM1, serial COM3",
            5: "virtio-rng",
            8: "RTC",
            9: "ACPI",
            12: "i8042 mouse",
            17: "virtio-blk vda",
        }

    def test_interrupts_and_doorbells(self, scene: Scene) -> None:
        assert scene.events(hooks.LINE, START + 1, 8, True) == [
            {"ns": 1, "kind": "interrupt", "device": "RTC", "gsi": 8, "level": 1}
        ]
        assert scene.events(hooks.MSI, START + 2, "virtio-blk vda", 1, 0x26) == [
            {"ns": 2, "kind": "interrupt", "device": "virtio-blk vda", "msi": 1, "vector": 0x26}
        ]
        assert scene.events(hooks.DOORBELL, START + 3, "virtio-blk vda", 0) == [
            {"ns": 3, "kind": "doorbell", "device": "virtio-blk vda", "queue": 0}
        ]


def phases(events: list[Event]) -> list[tuple[str, str]]:
    return [(e["phase"], e["detail"]) for e in events if e["kind"] == "phase"]


class TestConsolesAndPhases:
    def test_a_boot(self, scene: Scene) -> None:
        def line(text: bytes) -> list[Event]:
            return scene.events(hooks.CONSOLE, START + 1, "COM1", text)

        first = line(b"[    0.000000] Linux\x1b[0m version 6.1\r")
        assert phases(first) == [("console", "COM1")]
        assert first[1] == {
            "ns": 1,
            "kind": "console",
            "console": "COM1",
            "text": "[    0.000000] Linux version 6.1",
        }
        assert phases(line(b"[    0.1] more")) == []
        assert phases(line(b"[    0.5] Freeing unused kernel image (initmem) memory: 2K"))[0][
            0
        ] == ("init")
        assert phases(line(b"[    0.6] Run /init as init process")) == []
        assert phases(line(b"[    2.0] reboot: Power down"))[0][0] == "shutdown"

    def test_a_line_with_nothing_in_it(self, scene: Scene) -> None:
        assert scene.events(hooks.CONSOLE, START, "COM1", b"\x1b[2J\r") == []

    def test_a_second_boot_has_phases_too(self, scene: Scene) -> None:
        scene.events(hooks.CONSOLE, START, "COM1", b"first")
        scene.events(hooks.PHASE, START, "reset", "")
        again = scene.events(hooks.CONSOLE, START, "COM1", b"second")
        assert phases(again) == [("console", "COM1")]

    def test_a_power_button_is_the_shutdown(self, scene: Scene) -> None:
        scene.events(hooks.PHASE, START, "shutdown", "power button")
        last = scene.events(hooks.CONSOLE, START, "COM1", b"reboot: Power down")
        assert "shutdown" not in dict(phases(last))
