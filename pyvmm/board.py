"""The board: both buses, the devices on them, and which wire goes where.

Knows every device and its place (:mod:`pyvmm.layout`), and nothing of KVM: lines, vectors,
doorbells and the clock come from outside, so a board can be built and poked in a unit test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pyvmm import layout
from pyvmm.backends.character import CharacterBackend
from pyvmm.bus import MMIO_SPACE, PIO_SPACE, Bus, Device, DoorbellController
from pyvmm.devices.cmos import Cmos
from pyvmm.devices.debug import DebugConsole, DebugExit, PostPort
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.pci import ConfigPorts, PciBus
from pyvmm.devices.pit import Pit
from pyvmm.devices.power import PowerManagement, ResetControl, SystemControlPortA
from pyvmm.devices.pvpanic import PanicEvent, Pvpanic
from pyvmm.devices.serial import Serial
from pyvmm.errors import ConfigError, GuestFaults
from pyvmm.eventloop import Clock, Reactor
from pyvmm.interrupts import IrqLine, MsiController, SharedIrq
from pyvmm.layout import MmioSlot
from pyvmm.memory import GuestMemory

if TYPE_CHECKING:
    from pyvmm.backends.floppy import Floppy
    from pyvmm.boot.firmware import BiosFacts
    from pyvmm.devices.ata import AtaChannel, Drive
    from pyvmm.devices.text_screen import ScreenView, TextScreen
    from pyvmm.user_devices.attachment import Attachment
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.mmio_transport import VirtioMmio
    from pyvmm.virtio.pci_transport import VirtioPci


class Wiring(NamedTuple):
    """What the board's devices are connected to on the CPUs' side.

    ``line`` gives the wire to an interrupt controller's input, by GSI; ``memory`` is what devices
    with DMA reach; ``faults`` hears of what the guest does wrong; ``reactor`` waits for file
    descriptors on the I/O thread.
    """

    memory: GuestMemory
    line: Callable[[int], IrqLine]
    msi: MsiController
    doorbells: DoorbellController
    clock: Clock
    reactor: Reactor
    faults: GuestFaults


class Requests(NamedTuple):
    """What a device asks of the machine; each only notes the wish and returns. ``failed`` is for
    an exception on a device's own thread, which is a bug of ours."""

    power_off: Callable[[], None]
    reset: Callable[[], None]
    panicked: Callable[[], None]
    debug_exit: Callable[[int], None]
    failed: Callable[[BaseException], None]


class Board:
    """The buses with the devices of every PC on them. Serial and debug ports are put there by the
    ``add_`` methods and virtio devices by :meth:`plug`, then :meth:`assign_pci_addresses` does
    what firmware would. ``transport`` is that of virtio devices which don't name theirs."""

    def __init__(self, wiring: Wiring, requests: Requests, transport: str = "pci") -> None:
        self.wiring = wiring
        self._transport = transport
        self.requests = requests
        self.pio = Bus("port", PIO_SPACE, wiring.faults, flat=True)
        self.mmio = Bus("MMIO", MMIO_SPACE, wiring.faults)
        self.devices: dict[str, Device] = {}
        """All devices but those behind PCI, which the device "pci" sees to."""
        self.serial_ports: list[Serial] = []
        self.text_screen: TextScreen | None = None
        self._serial_irqs = {irq: SharedIrq(wiring.line(irq)) for irq in layout.SERIAL_IRQS}
        self.virtio: list[VirtioPci | VirtioMmio] = []
        self.mmio_slots: list[MmioSlot] = []
        self.user_devices: list[Attachment] = []
        """Those that the user has written, as far as they have to be told of more than a reset."""
        self._ide: list[AtaChannel] = []
        self._ide_drives: list[Drive] = []
        self._isa_irqs: dict[int, SharedIrq] = {}
        self._add_timekeeping()
        self._add_keyboard()
        self.power = self._add_power()
        self.pci = self._add_pci()
        self._add_pvpanic()
        self.post = self._add_post_port()

    def _add_timekeeping(self) -> None:
        line, clock = self.wiring.line, self.wiring.clock
        pit = Pit(line(layout.PIT_IRQ), clock)
        self.pio.add(layout.PIT_PORTS, 4, pit, "PIT", max_size=1)
        self.pio.add(layout.PIT_GATE, 1, pit.gate_window, "PIT gate", max_size=1)
        self.cmos = Cmos(line(layout.RTC_IRQ), clock, self.wiring.memory.size)
        self.pio.add(layout.CMOS_PORTS, 2, self.cmos, "CMOS", max_size=1)
        self.devices |= {"pit": pit, "cmos": self.cmos}

    def _add_keyboard(self) -> None:
        keyboard = I8042(
            self.wiring.line(layout.KEYBOARD_IRQ),
            self.wiring.line(layout.MOUSE_IRQ),
            self.requests.reset,
            self.wiring.faults,
        )
        self.pio.add(layout.KEYBOARD_DATA, 1, keyboard.data_window, "i8042 data", max_size=1)
        self.pio.add(
            layout.KEYBOARD_COMMAND, 1, keyboard.command_window, "i8042 command", max_size=1
        )
        port_a = SystemControlPortA(self.requests.reset)
        self.pio.add(layout.SYSTEM_CONTROL_A, 1, port_a, "system control port A", max_size=1)
        self.devices |= {"i8042": keyboard, "port-a": port_a}

    def _add_power(self) -> PowerManagement:
        wiring = self.wiring
        power = PowerManagement(
            wiring.line(layout.SCI_IRQ), wiring.clock, self.requests.power_off, wiring.faults
        )
        self.pio.add(layout.PM1A_EVENT, 4, power.event_window, "PM1a event", max_size=4)
        self.pio.add(layout.PM1A_CONTROL, 2, power.control_window, "PM1a control", max_size=2)
        self.pio.add(layout.PM_TIMER, 4, power.timer_window, "PM timer", max_size=4)
        self.devices["power"] = power
        return power

    def _add_pci(self) -> PciBus:
        intx = [
            SharedIrq(self.wiring.line(layout.PCI_INTX_GSI + number))
            for number in range(layout.PCI_INTX_LINES)
        ]
        pci = PciBus(self.mmio, self.pio, intx, self.wiring.faults)
        reset_control = ResetControl(self.requests.reset)
        ports = ConfigPorts(pci, reset_control)
        self.pio.add(layout.PCI_CONFIG, 8, ports, "PCI configuration", max_size=4)
        self.mmio.add(layout.ECAM, layout.ECAM_SIZE, pci.ecam, "ECAM", max_size=4)
        self.devices |= {"pci": pci, "pci-ports": ports, "reset-control": reset_control}
        return pci

    def _add_pvpanic(self) -> None:
        def report(events: int) -> None:
            # A crash kernel that was loaded goes on to save a dump: the guest isn't at its end.
            if events & PanicEvent.PANICKED:
                self.requests.panicked()

        pvpanic = Pvpanic(report, self.wiring.faults)
        self.pio.add(layout.PVPANIC, 1, pvpanic, "pvpanic", max_size=1)
        self.devices["pvpanic"] = pvpanic

    def _add_post_port(self) -> PostPort:
        post = PostPort()
        self.pio.add(layout.POST_PORT, 1, post, "POST", max_size=1)
        self.pio.add(layout.DELAY_PORT, 1, post.delay_window, "delay", max_size=1)
        self.devices["post"] = post
        return post

    def add_serial_port(self, backend: CharacterBackend) -> Serial:
        """The next of COM1 to COM4."""
        number = len(self.serial_ports)
        irq = self._serial_irqs[layout.SERIAL_IRQS[number]].input()
        port = Serial(irq, backend)
        self.serial_ports.append(port)
        base = layout.SERIAL_PORTS[number]
        self.pio.add(base, 8, port, f"serial COM{number + 1}", max_size=1)
        self.devices[f"com{number + 1}"] = port
        return port

    def plug(self, device: VirtioDevice, transport: str = "") -> None:
        """Put a virtio device behind ``transport`` (the machine's if empty), the next one of its
        bus."""
        if (transport or self._transport) == "mmio":
            self._plug_mmio(device)
        else:
            self._plug_pci(device)

    def _plug_pci(self, device: VirtioDevice) -> None:
        from pyvmm.virtio.pci_transport import VirtioPci

        wiring = self.wiring
        transport = VirtioPci(device, wiring.memory, wiring.msi, wiring.faults, wiring.doorbells)
        self.virtio.append(transport)
        self.pci.add(transport)

    def _plug_mmio(self, device: VirtioDevice) -> None:
        from pyvmm.virtio.mmio_transport import VirtioMmio

        number = len(self.mmio_slots)
        if number == layout.VIRTIO_MMIO_SLOTS:
            raise ConfigError(f"no room for another virtio-mmio device: there are {number} slots")
        wiring, slot = self.wiring, layout.virtio_mmio_slot(number)
        transport = VirtioMmio(
            device,
            wiring.memory,
            self.isa_irq(slot.gsi),
            wiring.faults,
            wiring.doorbells,
            slot.base,
        )
        self.virtio.append(transport)
        self.mmio_slots.append(slot)
        self.mmio.add(slot.base, slot.size, transport, f"virtio-mmio {number}")
        self.devices[f"virtio-mmio-{number}"] = transport

    def add_ide(self, drives: Sequence[Drive]) -> None:
        """The IDE channels, each with two of the ``drives``."""
        from pyvmm.devices.ata import AtaChannel

        self._ide_drives = list(drives)
        for first, (command, control, irq) in zip(
            range(0, len(drives), 2), layout.IDE_CHANNELS, strict=False
        ):
            name = f"ide{len(self._ide)}"
            channel = AtaChannel(
                self.isa_irq(irq),
                drives[first : first + 2],
                self.wiring.faults,
                name=name,
                on_error=self.requests.failed,
            )
            self.pio.add(command, 8, channel.command_window, f"{name} command block", max_size=4)
            self.pio.add(control, 1, channel.control_window, f"{name} control", max_size=1)
            self._ide.append(channel)
            self.devices[name] = channel

    def isa_irq(self, number: int) -> IrqLine:
        """A further driver of one of the ISA interrupts that the PC itself doesn't use."""
        if number not in self._isa_irqs:
            self._isa_irqs[number] = SharedIrq(self.wiring.line(number))
        return self._isa_irqs[number].input()

    def add_debug_console(self, backend: CharacterBackend) -> None:
        """Port 0xE9: what is written there comes out at ``backend``."""

        def put(data: bytes) -> None:
            for byte in data:
                backend.put(byte)  # there is no flow control: what doesn't fit is lost

        device = DebugConsole(put)
        self.pio.add(layout.DEBUG_CONSOLE, 1, device, "debug console", max_size=1)
        self.devices["debug-console"] = device

    def add_debug_exit(self) -> None:
        """Port 0xF4: a write ends the machine."""
        device = DebugExit(self.requests.debug_exit)
        self.pio.add(layout.DEBUG_EXIT, 4, device, "debug exit", max_size=4)
        self.devices["debug-exit"] = device

    def add_text_screen(self, view: ScreenView | None) -> None:
        """A colour text adapter; ``view`` shows it, and has the keyboard."""
        from pyvmm.devices.text_screen import GENERAL_PORTS, TextScreen

        screen = TextScreen(self.wiring.memory, self.wiring.clock, view)
        general, crtc = screen.general_window, screen.crtc_window
        self.pio.add(layout.VIDEO_PORTS, GENERAL_PORTS, general, "text screen", max_size=1)
        self.pio.add(layout.CRTC_PORTS, 2, crtc, "text screen CRTC", max_size=1)
        self.pio.add(layout.VIDEO_STATUS, 3, screen.status_window, "text screen mode", max_size=1)
        self.devices["text-screen"] = self.text_screen = screen
        keyboard = self.devices["i8042"]
        assert isinstance(keyboard, I8042)
        if view is not None:
            view.connect(screen.picture, keyboard.key)

    def is_free(self, port: int, length: int) -> bool:
        """Whether no device has any of these ports."""
        ranges = self.pio.ranges()
        return all(port + length <= r.base or r.base + r.length <= port for r in ranges)

    def add_fw_cfg(self, cpus: int, files: Mapping[str, bytes]) -> None:
        """What firmware asks for ``files``."""
        from pyvmm.devices.fw_cfg import FwCfg

        device = FwCfg(self.wiring.memory, self.wiring.faults, cpus, files)
        self.pio.add(layout.FW_CFG, layout.FW_CFG_PORTS, device, "fw_cfg", max_size=4)
        self.devices["fw-cfg"] = device

    def add_bios_services(
        self,
        boot_order: Sequence[int],
        facts: Callable[[], BiosFacts],
        give_up: Callable[[], None],
        floppies: Sequence[Floppy] = (),
    ) -> None:
        """What PyVMM's own BIOS needs of the VMM; after the last disk was plugged in."""
        from pyvmm.devices.bios_services import BiosServices, Disk
        from pyvmm.virtio.bios_disk import bios_disks

        disks: list[Disk] = [*bios_disks(self.virtio)]
        for drive in self._ide_drives:
            disks.insert(drive.number, drive)

        device = BiosServices(
            self.wiring.memory,
            self.wiring.faults,
            disks,
            boot_order,
            facts,
            give_up=give_up,
            reset=self.requests.reset,
            floppies=floppies,
        )
        self.cmos.describe_floppies([floppy.drive_type for floppy in floppies])
        self.pio.add(layout.BIOS_SERVICES, 4, device, "BIOS services", max_size=4)
        self.devices["bios-services"] = device

    def assign_pci_addresses(self) -> None:
        """Give every BAR its address; after the last PCI device was added."""
        self.pci.assign_bars()

    def quiesce(self) -> None:
        """Bring the devices to rest: nobody touches guest memory or an image any more."""
        for attachment in self.user_devices:
            attachment.rest()
        for transport in self.virtio:
            transport.reset()
        for channel in self._ide:
            channel.rest()

    def reset(self) -> None:
        """A platform reset, while no vCPU runs: every device as at power-on but for what a battery
        keeps, all lines low, and again what firmware would do."""
        self.quiesce()
        for device in self.devices.values():
            with device.lock:
                device.reset()
        for attachment in self.user_devices:
            attachment.wake()

    def pause(self) -> None:
        """Have the devices leave guest memory alone until :meth:`resume`."""
        for attachment in self.user_devices:
            attachment.pause()
        for transport in self.virtio:
            transport.device.pause()

    def resume(self) -> None:
        """Let the devices go on."""
        for transport in self.virtio:
            transport.session.resume()
        for attachment in self.user_devices:
            attachment.resume()

    def close(self) -> None:
        """Release what the devices have of the host's; the board is of no use afterwards."""
        for transport in self.virtio:
            transport.close()
        for attachment in self.user_devices:
            attachment.close()
