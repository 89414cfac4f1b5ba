"""From a machine's configuration to its virtio devices."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from unit.fake_tap import OUR_MAC, FakeTap
from unit.test_board import Bench

from pyvmm import layout
from pyvmm.backends.character import NullBackend
from pyvmm.backends.tap import Tap
from pyvmm.config import MachineConfig
from pyvmm.device_config import (
    BalloonConfig,
    ConsoleConfig,
    DiskConfig,
    NetConfig,
    RngConfig,
    VsockConfig,
)
from pyvmm.devices.bios_services import FIRST_DISK, REQUEST, Function
from pyvmm.errors import HostError
from pyvmm.memory import MIB, PAGE_SIZE
from pyvmm.peripherals import ConsoleBackends, Peripherals
from pyvmm.virtio.device import DeviceId
from pyvmm.virtio.net import made_up_mac


def plugged(bench: Bench, resources: ExitStack, config: MachineConfig) -> Peripherals:
    peripherals = Peripherals(config, resources)
    peripherals.plug(bench.board, ConsoleBackends(NullBackend()))
    resources.callback(bench.board.close)
    return peripherals


def test_all_kinds_in_their_order(tmp_path: Path) -> None:
    """The guest numbers devices by their places on the bus, so those mustn't change."""
    image, path = tmp_path / "disk.raw", tmp_path / "v.sock"
    image.write_bytes(bytes(1 << 16))
    config = MachineConfig(
        kernel="vmlinuz",
        disks=(DiskConfig(str(image), transport="mmio"),),
        rng=RngConfig(),
        balloon=BalloonConfig(),
        console=ConsoleConfig("null"),
        vsock=VsockConfig(3, str(path)),
    )
    bench = Bench()
    with ExitStack() as resources:
        peripherals = plugged(bench, resources, config)
        assert [transport.device.device_id for transport in bench.board.virtio] == [
            DeviceId.BLOCK,
            DeviceId.ENTROPY,
            DeviceId.BALLOON,
            DeviceId.CONSOLE,
            DeviceId.SOCKET,
        ]
        assert len(bench.board.mmio_slots) == config.mmio_devices == 1
        assert peripherals.console is bench.board.virtio[3].device
        assert path.is_socket()
    assert not path.exists()


def test_nothing_stays_open_if_something_cant_be_opened(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 16))
    path = tmp_path / "v.sock"
    disks = (DiskConfig(str(image)),)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        config = MachineConfig(kernel="k", disks=disks, vsock=VsockConfig(3, str(path)))
        with pytest.raises(HostError, match=r"--vsock: .* is in use"), ExitStack() as resources:
            Peripherals(config, resources)
    with ExitStack() as resources:
        Peripherals(MachineConfig(kernel="k", disks=disks), resources)  # the image isn't locked


def test_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has an address of its own, or the one that it is given."""
    bench = Bench()
    monkeypatch.setattr(Tap, "open", lambda name, *, queues, mtu: FakeTap())
    nets = (NetConfig("tap7"), NetConfig("tap8"), NetConfig("tap9", mac="52:54:00:12:34:56"))
    with ExitStack() as resources:
        config = MachineConfig(kernel="/boot/vmlinuz", nets=nets)
        peripherals = plugged(bench, resources, config)
        first, second, third = peripherals.nets
        assert [card.name for card in peripherals.nets] == ["net0", "net1", "net2"]
        assert first.mac == made_up_mac("vmlinuz/tap7", 0)
        assert second.mac == made_up_mac("vmlinuz/tap7", 1)
        assert third.mac == OUR_MAC
        assert len(bench.board.virtio) == 3


def test_what_the_balloon_is_to_take() -> None:
    bench = Bench()
    with ExitStack() as resources:
        assert plugged(bench, resources, MachineConfig(kernel="k")).balloon is None
    bench = Bench()
    with ExitStack() as resources:
        config = MachineConfig(kernel="k", balloon=BalloonConfig(size=MIB))
        balloon = plugged(bench, resources, config).balloon
        assert balloon is not None
        assert balloon.target == MIB
        balloon.set_target(2 * MIB)
        assert bench.board.virtio[0].device.read_config(0, 4) == 2 * MIB // PAGE_SIZE


def test_ide_disks(tmp_path: Path) -> None:
    """They are no virtio devices; the BIOS has all disks in the order of the command line."""
    paths = [tmp_path / name for name in "abcd"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(512 * (number + 1)))
    texts = [f"{paths[0]},if=ide", f"{paths[1]}", f"{paths[2]},if=ide", f"{paths[3]},if=ide"]
    config = MachineConfig(kernel="k", disks=tuple(map(DiskConfig.parse, texts)))
    bench = Bench()
    with ExitStack() as resources:
        plugged(bench, resources, config)
        board = bench.board
        assert [transport.device.device_id for transport in board.virtio] == [DeviceId.BLOCK]
        assert [name for name in board.devices if name.startswith("ide")] == ["ide0", "ide1"]
        assert [board.pio.read(port, 1) for port in (0x1F7, 0x3F6, 0x177, 0x376)] == [0x50] * 4
        board.pio.write(0x176, 1, 0xF0)
        assert board.pio.read(0x177, 1) == 0  # the second channel's second drive
        board.add_bios_services([], lambda: None, lambda: None)  # type: ignore[arg-type,return-value]
        block = 0x500
        for unit in range(4):
            request = REQUEST.pack(Function.DISK, 0, FIRST_DISK + unit, 0, 0, 0, 0)
            board.wiring.memory.write(block, request)
            board.pio.write(layout.BIOS_SERVICES, 4, block)
            answer = REQUEST.unpack(board.wiring.memory.read(block, REQUEST.size))
            assert answer[5] == unit + 1  # sectors
        board.reset()
        assert board.pio.read(0x172, 1) == 1
