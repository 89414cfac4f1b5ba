"""A machine's virtio devices: from what the configuration says of each to the device on the board.

That takes two steps. First the host's side is opened (images, taps, a socket), so that what the
host lacks is said before a VM is built. The devices themselves are made when there is a board to
plug them into. Their modules are imported when there is one of a kind: few machines have all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.board import Board
from pyvmm.config import MachineConfig
from pyvmm.errors import GuestFaults

if TYPE_CHECKING:
    from pyvmm.backends.character import CharacterBackend
    from pyvmm.backends.disk import DiskImage
    from pyvmm.backends.faulty_disk import FaultyImage
    from pyvmm.backends.faulty_tap import FaultyTap
    from pyvmm.backends.floppy import Floppy
    from pyvmm.backends.tap import Tap
    from pyvmm.backends.unix_socket import UnixListener
    from pyvmm.device_config import (
        BalloonConfig,
        ConsoleConfig,
        DiskConfig,
        NetConfig,
        RngConfig,
        VsockConfig,
    )
    from pyvmm.devices.ata import Drive
    from pyvmm.floppy_config import FloppyConfig
    from pyvmm.virtio.balloon import BalloonDevice
    from pyvmm.virtio.console import ConsoleDevice
    from pyvmm.virtio.net import NetDevice


MAX_FLOPPY_SIZE = 4 << 20


class ConsoleBackends(NamedTuple):
    """Where the virtio console's console and ports go; ``size`` is the terminal's, columns and
    rows, if the console is on one."""

    console: CharacterBackend | None = None
    ports: Sequence[CharacterBackend] = ()
    size: tuple[int, int] | None = None


class Peripherals:
    """The virtio devices that ``config`` names, with their host's side open, and the ``floppies``
    for the BIOS; ``resources`` closes it. Raises :class:`~pyvmm.errors.PyvmmError` if something
    can't be opened.

    :meth:`plug` makes the devices. Those that can be asked for something afterwards are ``nets``,
    ``balloon`` and ``console``.
    """

    def __init__(self, config: MachineConfig, resources: ExitStack) -> None:
        self._config = config
        self._resources = resources
        self._images = [_open_image(disk, resources) for disk in config.disks]
        self.floppies = [_open_floppy(floppy, resources) for floppy in config.floppies]
        self._taps = [_open_tap(net, resources) for net in config.nets]
        self._listener = None if config.vsock is None else _open_vsock(config.vsock, resources)
        self.nets: list[NetDevice] = []
        self.balloon: BalloonDevice | None = None
        self.console: ConsoleDevice | None = None

    def floppies_among_disks(self) -> list[str]:
        """The disks' images that hold a floppy's file system. Its boot sector won't find its files
        on a disk, which has another geometry."""
        small = [image for image in self._images if image.size <= MAX_FLOPPY_SIZE]
        if not small:
            return []
        from pyvmm.backends.floppy import has_floppy_file_system

        return [image.path for image in small if has_floppy_file_system(image)]

    def plug(self, board: Board, console: ConsoleBackends) -> None:
        """Make the devices, and plug them into ``board``: always in the same order, by which the
        guest numbers them."""
        config = self._config
        drives = []
        for index, (disk, image) in enumerate(zip(config.disks, self._images, strict=True)):
            image = self._with_faults(disk, image, board)
            if disk.interface == "ide":
                drives.append(_ide_drive(disk, index, image))
            else:
                _plug_disk(disk, index - len(drives), image, board)
        if drives:
            board.add_ide(drives)
        for net, tap in zip(config.nets, self._taps, strict=True):
            self._plug_net(net, tap, board)
        if config.rng is not None:
            _plug_rng(config.rng, board)
        if config.balloon is not None:
            self._plug_balloon(config.balloon, board)
        if config.console is not None:
            self._plug_console(config.console, console, board)
        if config.vsock is not None and self._listener is not None:
            _plug_vsock(config.vsock, self._listener, board)

    def _with_faults(self, config: DiskConfig, image: DiskImage, board: Board) -> DiskImage:
        if config.faults is None:
            return image
        from pyvmm.backends.faulty_disk import FaultyImage

        faulty = FaultyImage(image, config.faults)
        self._resources.callback(_sum_up, faulty, board.wiring.faults)
        return faulty

    def _plug_net(self, config: NetConfig, tap: Tap | FaultyTap, board: Board) -> None:
        from pyvmm.virtio.net import NetDevice, made_up_mac

        index = len(self.nets)
        machine = self._config.name or self._config.boots
        if config.mac:
            mac = bytes.fromhex(config.mac.replace(":", ""))
        else:
            mac = made_up_mac(f"{machine}/{tap.name}", index)
        device = NetDevice(
            tap,
            mac,
            board.wiring.faults,
            mtu=config.mtu,
            name=f"net{index}",
            on_error=board.requests.failed,
        )
        if config.faults is not None:
            from pyvmm.backends.faulty_tap import FaultyTap

            assert isinstance(tap, FaultyTap)
            tap.start(device.send_failed, board.requests.failed)
            self._resources.callback(_sum_up, tap, board.wiring.faults)
        self.nets.append(device)
        board.plug(device, config.transport)

    def _plug_balloon(self, config: BalloonConfig, board: Board) -> None:
        from pyvmm.virtio.balloon import BalloonDevice

        wiring = board.wiring
        self.balloon = BalloonDevice(
            wiring.reactor,
            wiring.clock,
            wiring.memory,
            wiring.faults,
            target=config.size,
            stats_seconds=config.stats_seconds,
            free_page_reporting=config.free_page_reporting,
            deflate_on_oom=config.deflate_on_oom,
        )
        board.plug(self.balloon, config.transport)

    def _plug_console(self, config: ConsoleConfig, backends: ConsoleBackends, board: Board) -> None:
        from pyvmm.virtio.console import ConsoleDevice

        wiring = board.wiring
        names = [port.name for port in config.ports]
        self.console = ConsoleDevice(
            wiring.reactor,
            wiring.clock,
            wiring.faults,
            backends.console,
            list(zip(names, backends.ports, strict=True)),
            backends.size,
        )
        board.plug(self.console, config.transport)


def _open_image(config: DiskConfig, resources: ExitStack) -> DiskImage:
    from pyvmm.backends.disk import DiskImage

    image = DiskImage.open(config.path, readonly=config.readonly)
    resources.callback(image.close)
    return image


def _open_floppy(config: FloppyConfig, resources: ExitStack) -> Floppy:
    from pyvmm.backends.floppy import Floppy

    floppy = Floppy.open(config.path, readonly=config.readonly)
    resources.callback(floppy.image.close)
    return floppy


def _plug_disk(config: DiskConfig, index: int, image: DiskImage, board: Board) -> None:
    from pyvmm.virtio.blk import BlockDevice

    wiring, faults = board.wiring, config.faults

    def io_failed(error: OSError) -> None:
        wiring.faults.report_host("disk I/O failed", "%s: %s", config.path, error.strerror)

    name, failed = f"vd{chr(ord('a') + index)}", board.requests.failed
    device: BlockDevice
    if faults is not None and faults.latency_ns:
        from pyvmm.virtio.slow_blk import SlowBlockDevice

        device = SlowBlockDevice(
            image,
            config.serial,
            latency_ns=faults.latency_ns,
            name=name,
            on_io_error=io_failed,
            on_error=failed,
        )
    else:
        device = BlockDevice(
            image, config.serial, name=name, on_io_error=io_failed, on_error=failed
        )
    board.plug(device, config.transport)


def _ide_drive(config: DiskConfig, index: int, image: DiskImage) -> Drive:
    from pyvmm.devices.ata import Drive

    latency = config.faults.latency_ns if config.faults is not None else 0
    return Drive(image, config.serial, number=index, latency_ns=latency)


def _open_tap(config: NetConfig, resources: ExitStack) -> Tap | FaultyTap:
    from pyvmm.backends.tap import Tap

    tap: Tap | FaultyTap
    if config.fds:
        tap = Tap.inherit(config.fds)
    else:
        tap = Tap.open(config.ifname, queues=config.queues, mtu=config.mtu)
    resources.callback(tap.close)
    if config.faults is not None:
        from pyvmm.backends.faulty_tap import FaultyTap

        tap = FaultyTap(tap, config.faults)
        resources.callback(tap.close)
    return tap


def _sum_up(source: FaultyImage | FaultyTap, faults: GuestFaults) -> None:
    """Say at the end what was done on purpose."""
    if source.used:
        faults.tell(source.summary())


def _open_vsock(config: VsockConfig, resources: ExitStack) -> UnixListener:
    from pyvmm.backends.unix_socket import UnixListener

    listener = UnixListener(config.path, "--vsock", backlog=128)
    resources.callback(listener.close)
    return listener


def _plug_rng(config: RngConfig, board: Board) -> None:
    from pyvmm.virtio.rng import EntropyDevice

    wiring = board.wiring
    source = os.open("/dev/urandom", os.O_RDONLY | os.O_CLOEXEC)
    device = EntropyDevice(wiring.reactor, wiring.clock, source, config.rate)
    board.plug(device, config.transport)


def _plug_vsock(config: VsockConfig, listener: UnixListener, board: Board) -> None:
    from pyvmm.virtio.vsock import VsockDevice

    wiring = board.wiring
    device = VsockDevice(wiring.reactor, wiring.clock, wiring.faults, config.cid, listener)
    board.plug(device, config.transport)
