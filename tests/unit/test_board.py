"""The board: everything in its place, and what devices ask of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
from unit.fakes import FakeClock, FakeMsi, FakeReactor
from unit.virtio_echo import Echo

from pyvmm import layout
from pyvmm.backends.character import NullBackend
from pyvmm.board import Board, Requests, Wiring
from pyvmm.config import MachineConfig
from pyvmm.device_config import BalloonConfig, DiskConfig, RngConfig
from pyvmm.devices.pci import PciBus
from pyvmm.errors import ConfigError, GuestFaults
from pyvmm.interrupts import IrqLine
from pyvmm.memory import MIB, GuestMemory
from pyvmm.peripherals import ConsoleBackends, Peripherals
from pyvmm.virtio.queue import VirtqueueError


class NoDoorbells:
    """A host without ioeventfds that could be attached: the bus takes the writes."""

    def attach(self, address: int, length: int, eventfd: int, match: int | None = None) -> None:
        pass

    def detach(self, address: int, length: int, eventfd: int, match: int | None = None) -> None:
        pass


class Bench:
    """A board, and what it did to its surroundings."""

    def __init__(self) -> None:
        self.levels: dict[int, bool] = {}
        self.wishes: list[str] = []
        self.said: list[str] = []
        memory = GuestMemory(4 * MIB)
        wiring = Wiring(
            memory=memory,
            line=self.line,
            msi=FakeMsi(),
            doorbells=NoDoorbells(),
            clock=FakeClock(),
            reactor=FakeReactor(),
            faults=GuestFaults(self.said.append),
        )
        requests = Requests(
            power_off=lambda: self.wishes.append("power off"),
            reset=lambda: self.wishes.append("reset"),
            panicked=lambda: self.wishes.append("panicked"),
            debug_exit=lambda value: self.wishes.append(f"exit {value}"),
            failed=lambda error: self.wishes.append(f"failed {error!r}"),
        )
        self.board = Board(wiring, requests)

    def line(self, gsi: int) -> IrqLine:
        def drive(level: bool) -> None:
            self.levels[gsi] = level

        return IrqLine(drive)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.board.close()


def test_the_ports_of_a_pc(bench: Bench) -> None:
    """The places that QEMU, kernels and firmware agree on."""
    for _ in range(4):
        bench.board.add_serial_port(NullBackend())
    places = {found.base: found.name for found in bench.board.pio.ranges()}
    for port in (0x40, 0x60, 0x61, 0x64, 0x70, 0x80, 0x3F8, 0x2F8, 0x3E8, 0x2E8, 0x505, 0xCF8):
        assert port in places
    assert {0x600, 0x604, 0x608} <= set(places)
    assert not {0xE9, 0xF4} & set(places)  # only on request
    assert [found.base for found in bench.board.mmio.ranges()] == [layout.ECAM]


@pytest.mark.parametrize(
    ("port", "size", "value", "wish"),
    [
        (0x604, 2, layout.SLP_TYP_S5 << 10 | 1 << 13, "power off"),
        (0xCF9, 1, 0x06, "reset"),
        (0x64, 1, 0xFE, "reset"),
        (0x92, 1, 0x01, "reset"),
        (0x505, 1, 0x01, "panicked"),
    ],
)
def test_wishes(bench: Bench, port: int, size: int, value: int, wish: str) -> None:
    if port == 0xCF9:
        bench.board.pio.write(port, 1, 0x02)
    bench.board.pio.write(port, size, value)
    assert bench.wishes == [wish]


def test_a_loaded_crash_kernel_is_no_end(bench: Bench) -> None:
    bench.board.pio.write(layout.PVPANIC, 1, 2)
    assert bench.wishes == []


def test_virtio_mmio_devices_have_slots_and_share_interrupts(bench: Bench) -> None:
    """Eight devices have seven interrupts: the first and the last share one."""
    for _ in range(8):
        bench.board.plug(Echo(), "mmio")
    assert bench.board.mmio_slots == [layout.virtio_mmio_slot(number) for number in range(8)]
    isa_irqs = [slot.gsi for slot in bench.board.mmio_slots]
    assert isa_irqs[0] == isa_irqs[7]
    assert len(set(isa_irqs)) == 7
    first, last = bench.board.mmio_slots[0].base, bench.board.mmio_slots[7].base
    read, write = bench.board.mmio.read, bench.board.mmio.write
    for base in (first, last):
        assert read(base, 4) == 0x7472_6976
        assert read(base + 0x200 - 4, 4) == 0
        write(base + 0x24, 4, 1)
        write(base + 0x20, 4, 1)  # VERSION_1
        for status in (1, 3, 11, 15):
            write(base + 0x70, 4, status)
    for device in (bench.board.virtio[0].device, bench.board.virtio[7].device):
        device.config_changed()
    assert bench.levels[isa_irqs[0]] is True
    write(first + 0x64, 4, 2)
    assert bench.levels[isa_irqs[0]] is True
    write(last + 0x64, 4, 2)
    assert bench.levels[isa_irqs[0]] is False


def test_transports_can_be_mixed(bench: Bench) -> None:
    bench.board.plug(Echo())
    bench.board.plug(Echo(), "mmio")
    bench.board.plug(Echo(), "pci")
    assert [type(transport).__name__ for transport in bench.board.virtio] == [
        *("VirtioPci", "VirtioMmio", "VirtioPci")
    ]
    bench.board.virtio[1].session.write_status(1)
    bench.board.reset()
    assert bench.board.virtio[1].session.status == 0


def test_virtio_mmio_can_be_full(bench: Bench) -> None:
    for _ in range(layout.VIRTIO_MMIO_SLOTS):
        bench.board.plug(Echo(), "mmio")
    too_many = Echo()
    with pytest.raises(ConfigError, match="no room"):
        bench.board.plug(too_many, "mmio")
    too_many.close()


def test_com1_and_com3_share_irq_4(bench: Bench) -> None:
    for _ in range(4):
        bench.board.add_serial_port(NullBackend())
    for base in (0x3F8, 0x3E8):
        bench.board.pio.write(base + 4, 1, 0x08)  # MCR.OUT2 lets the interrupt out
        bench.board.pio.write(base + 1, 1, 0x02)  # IER.ETBEI: the transmitter is empty
    assert bench.levels[4] is True
    bench.board.pio.write(0x3F8 + 1, 1, 0)
    assert bench.levels[4] is True  # COM3 still wants it
    bench.board.pio.write(0x3E8 + 1, 1, 0)
    assert bench.levels[4] is False


SURVIVES = {
    "cmos": {"ram", "index", "offset_ns", "divider_age_ns"},  # it has a battery
    "com1": {"scratch"},  # the chip's reset spares it
    "com2": {"scratch"},
}


@pytest.fixture
def full_bench(bench: Bench, tmp_path: Path) -> Iterator[Bench]:
    """With everything that can be plugged in."""
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 16))
    for _ in range(2):
        bench.board.add_serial_port(NullBackend())
    bench.board.add_debug_console(NullBackend())
    bench.board.add_debug_exit()
    config = MachineConfig(
        kernel="vmlinuz",
        disks=(DiskConfig(str(path)),),
        rng=RngConfig(transport="mmio"),
        balloon=BalloonConfig(),
    )
    with ExitStack() as resources:
        peripherals = Peripherals(config, resources)
        peripherals.plug(bench.board, ConsoleBackends())
        bench.board.assign_pci_addresses()
        yield bench
        bench.board.quiesce()


def state(board: Board) -> dict[str, dict[str, Any]]:
    """Of each device, without what a reset leaves as it is."""
    virtio = {
        f"virtio {number}": {"config": bytes(transport.device.config)}
        for number, transport in enumerate(board.virtio)
    }
    return virtio | {
        name: {
            key: value
            for key, value in device.save().items()
            if key not in SURVIVES.get(name, set())
        }
        for name, device in board.devices.items()
    }


def places(board: Board) -> list[tuple[int, str]]:
    return [(found.base, found.name) for found in (*board.pio.ranges(), *board.mmio.ranges())]


def test_a_reset_leaves_no_trace(full_bench: Bench) -> None:
    """Whatever was written anywhere: all devices are as they were at first, where they were."""
    board = full_bench.board
    before = state(board), places(board)
    touched: set[str] = set()
    for seed in range(20):
        numbers = Random(seed)
        balloon = board.virtio[2].device
        balloon.write_config(4, 4, seed + 1)  # how much it has; chance doesn't get there
        for _ in range(2000):
            bus = numbers.choice((board.pio, board.mmio))
            found = numbers.choice(bus.ranges())
            size = numbers.choice((1, 2, 4))
            offset = numbers.randrange(min(found.length, 1 << 16)) & -size
            if numbers.random() < 0.5:
                bus.write(found.base + offset, size, numbers.getrandbits(8 * size))
            else:
                bus.read(found.base + offset, size)
        after = state(board)
        touched |= {name for name in after if after[name] != before[0][name]}
        board.reset()
        assert (state(board), places(board)) == before
        assert not any(full_bench.levels.values())
    # What has a state was in another one, or this tests nothing.
    stateless = {"pvpanic", "debug-console", "debug-exit"}
    assert touched >= set(board.devices) - stateless
    assert "virtio 2" in touched  # the balloon's configuration


def test_a_reset_reaches_whatever_is_on_a_bus(full_bench: Bench) -> None:
    """A device is known by its lock, which all its windows share."""
    board = full_bench.board
    pci = board.devices["pci"]
    assert isinstance(pci, PciBus)
    known = [device.lock for device in board.devices.values()]
    known += [transport.lock for transport in board.virtio]
    for found in (*board.pio.ranges(), *board.mmio.ranges()):
        assert any(found.handler.lock is lock for lock in known), found.name


def test_the_battery_keeps_the_cmos_ram(full_bench: Bench) -> None:
    def cmos(index: int) -> int:
        full_bench.board.pio.write(0x70, 1, index)
        return full_bench.board.pio.read(0x71, 1)

    assert cmos(0x40) == 0
    full_bench.board.pio.write(0x71, 1, 0x5A)
    full_bench.board.pio.write(0x70, 1, 0x0B)
    full_bench.board.pio.write(0x71, 1, 0x42)  # periodic interrupts
    full_bench.board.reset()
    assert cmos(0x40) == 0x5A
    assert cmos(0x0B) == 0x02


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_only_a_reset_wakes_a_broken_device(bench: Bench, transport: str) -> None:
    echo = Echo()
    bench.board.plug(echo, transport)
    session = bench.board.virtio[0].session

    def pause_and_resume(*, broken: bool) -> bool:
        session.write_status(0)
        session.write_driver_word(1, 1)
        session.write_status(0xF)
        if broken:
            session.fail(VirtqueueError("loop"))
        bench.board.pause()
        bench.board.resume()
        return not echo.paused

    assert not pause_and_resume(broken=True)
    assert pause_and_resume(broken=False)
