"""What is on a board: the decoder of each window that a bus may find, and each device's name.

A decoder explains accesses: it is a function from offset, size, value and direction to the device's
name, the register's and what the value means. It sees all accesses in their order, because what one
means may depend on another before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pyvmm import layout
from pyvmm.devices.pci import Register
from pyvmm.trace.names import sentence
from pyvmm.trace.requests import device_names

if TYPE_CHECKING:
    from pyvmm.board import Board

Decoder = Callable[[int, int, int, bool], tuple[str, str, str]]


def board_decoders(board: Board) -> Iterator[tuple[object, Decoder]]:
    """The decoder of each window that a bus may find, with the object that answers there."""
    from pyvmm.trace import cmos, debug, i8042, pit, power, serial

    keyboard, acpi = i8042.I8042Decoder("i8042"), power.PowerDecoder("ACPI")
    known: dict[str, Decoder] = {
        "PIT": pit.PitDecoder("PIT"),
        "PIT gate": pit.PortBDecoder("PIT gate"),
        "CMOS": cmos.CmosDecoder("RTC"),
        "i8042 data": keyboard.data,
        "i8042 command": keyboard.command,
        "system control port A": power.PortADecoder("system control"),
        "PM1a event": acpi.event,
        "PM1a control": acpi.control,
        "PM timer": acpi.timer,
        "pvpanic": debug.pvpanic,
        "POST": debug.post,
        "delay": debug.delay,
        "debug console": debug.debug_console,
        "debug exit": debug.debug_exit,
    }
    for found in board.pio.ranges():
        if found.name.startswith("serial COM"):
            yield found.handler, serial.SerialDecoder(found.name)
        elif found.name in known:
            yield found.handler, known[found.name]
        elif found.name.startswith("ide"):
            from pyvmm.trace.ata import AtaDecoder

            name, _, window = found.name.partition(" ")
            decoder = AtaDecoder(name)
            yield found.handler, decoder.control if window == "control" else decoder.command
    yield from _pci_decoders(board)
    yield from _mmio_decoders(board)


def _pci_decoders(board: Board) -> Iterator[tuple[object, Decoder]]:
    from pyvmm.trace import pci

    functions, names = board.pci.functions(), pci_names(board)
    space = pci.ConfigSpaceDecoder(functions, names)
    ports, ecam = pci.ConfigPortsDecoder(space), pci.EcamDecoder(space)
    for found in board.pio.ranges():
        if found.base == layout.PCI_CONFIG:
            yield found.handler, ports
    yield board.pci.ecam, ecam
    virtio = {id(transport): transport for transport in board.virtio}
    for devfn, function in functions.items():
        for bar in function.bars.values():
            if bar.handler is function.msix:
                yield bar.handler, pci.MsixDecoder(names[devfn])
            elif id(function) in virtio:
                from pyvmm.trace.virtio import VirtioPciDecoder

                yield bar.handler, VirtioPciDecoder(names[devfn], virtio[id(function)].device)


def _mmio_decoders(board: Board) -> Iterator[tuple[object, Decoder]]:
    behind_pci = {id(function) for function in board.pci.functions().values()}
    names = virtio_names(board)
    for transport in board.virtio:
        if id(transport) not in behind_pci:
            from pyvmm.trace.virtio import VirtioMmioDecoder

            yield transport, VirtioMmioDecoder(names[id(transport)], transport.device)


def virtio_names(board: Board) -> dict[int, str]:
    """The names of the virtio devices, by the id of their transports."""
    names = device_names([transport.device for transport in board.virtio])
    return {id(transport): name for transport, name in zip(board.virtio, names, strict=True)}


def pci_names(board: Board) -> dict[int, str]:
    """The names of the PCI functions, by devfn."""
    names = virtio_names(board)
    for attachment in board.user_devices:
        names[id(getattr(attachment, "function", None))] = attachment.name
    functions = board.pci.functions().items()
    return {devfn: names.get(id(function), "host bridge") for devfn, function in functions}


def wire_names(board: Board) -> dict[int, str]:
    """Whose interrupts arrive at each GSI."""
    owners: dict[int, list[str]] = {
        layout.PIT_IRQ: ["PIT"],
        layout.KEYBOARD_IRQ: ["i8042 keyboard"],
        layout.MOUSE_IRQ: ["i8042 mouse"],
        layout.RTC_IRQ: ["RTC"],
        layout.SCI_IRQ: ["ACPI"],
    }
    for number, gsi in zip(range(len(board.serial_ports)), layout.SERIAL_IRQS, strict=False):
        owners.setdefault(gsi, []).append(f"serial COM{number + 1}")
    names, functions = pci_names(board), board.pci.functions()
    for devfn, function in functions.items():
        if function.config[Register.INTERRUPT_PIN]:
            gsi = function.config[Register.INTERRUPT_LINE]  # by the bus, as firmware would
            owners.setdefault(gsi, []).append(names[devfn])
    for attachment in board.user_devices:
        irq = getattr(attachment.device, "irq_number", None)
        if irq is not None:
            owners.setdefault(irq, []).append(attachment.name)
    for name, (_, _, irq) in zip(("ide0", "ide1"), layout.IDE_CHANNELS, strict=True):
        if name in board.devices:
            owners.setdefault(irq, []).append(name)
    behind_pci = {id(function) for function in functions.values()}
    in_slots = [name for key, name in virtio_names(board).items() if key not in behind_pci]
    for slot, name in zip(board.mmio_slots, in_slots, strict=True):
        owners.setdefault(slot.gsi, []).append(name)
    return {gsi: sentence(names) for gsi, names in owners.items()}
