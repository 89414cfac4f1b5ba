"""Putting a user's device on the board: where it goes, and whether it may.

Everything wrong is found here, before the machine starts, and is a ConfigError that names the
device as the user did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyvmm import layout
from pyvmm.board import Board
from pyvmm.bus import Bus
from pyvmm.devices.msix import MAX_VECTORS
from pyvmm.errors import ConfigError
from pyvmm.user_devices.attachment import Attachment
from pyvmm.user_devices.interface import MmioDevice, PciDevice, PioDevice, UserDevice, VirtioDevice

FREE_IRQS = layout.VIRTIO_MMIO_IRQS

# What isn't on a bus of ours, or not yet: first, last, what it is.
_TAKEN_PORTS = (
    (0x20, 0x21, "the interrupt controllers"),
    (0xA0, 0xA1, "the interrupt controllers"),
    (0x4D0, 0x4D1, "the interrupt controllers"),
    (layout.PCI_IO_WINDOW, layout.PCI_IO_WINDOW_END - 1, "the window of PCI devices"),
)
_TAKEN_ADDRESSES = (
    (layout.PCI_WINDOW, layout.PCI_WINDOW_END - 1, "the window of PCI devices"),
    (layout.IOAPIC, layout.IOAPIC + 0xFFF, "the IOAPIC"),
    (layout.LOCAL_APIC, layout.LOCAL_APIC + 0xF_FFFF, "the local APICs"),
    (layout.KVM_IDENTITY_MAP, layout.KVM_TSS + 0x2FFF, "pages of KVM's"),
)


def plug(devices: Iterable[UserDevice], board: Board) -> None:
    """Put them on the board, and reset them. ConfigError if one can't be there; DeviceError if
    its own code fails."""
    names: dict[str, int] = {}
    for device in devices:
        kind = type(device).__name__
        names[kind] = names.get(kind, 0) + 1
        name = f"{kind} {names[kind]}" if names[kind] > 1 else kind
        _plug_one(device, name, device._label or f"device {name}", board)


def _plug_one(device: UserDevice, name: str, label: str, board: Board) -> None:
    wiring, requests = board.wiring, board.requests
    attachment: Attachment
    if isinstance(device, (PioDevice, MmioDevice)):
        _check_registers(device, label)
        base = _check_place(device, label, board)
        attachment = Attachment(device, name, wiring, requests)
        if device.irq_number is not None:
            device.irq = board.isa_irq(device.irq_number)
        bus = board.pio if isinstance(device, PioDevice) else board.mmio
        bus.add(base, device.length, attachment, name, max_size=device.max_size)
        board.devices[name] = attachment
    elif isinstance(device, PciDevice):
        from pyvmm.user_devices.pci import PciAttachment

        _check_pci(device, label)
        attachment = pci = PciAttachment(device, name, wiring, requests)
        board.pci.add(pci.function)
        board.devices[name] = attachment
    elif isinstance(device, VirtioDevice):
        from pyvmm.user_devices.virtio import VirtioAttachment

        _check_virtio(device, label)
        attachment = virtio = VirtioAttachment(device, name, wiring, requests)
        board.plug(virtio.virtio, device.transport)
    else:
        raise ConfigError(f"{label}: is no PioDevice, MmioDevice, PciDevice or VirtioDevice")
    board.user_devices.append(attachment)
    attachment.power_on()


def _check_registers(device: PioDevice | MmioDevice | PciDevice, label: str) -> None:
    widest = 4 if isinstance(device, PioDevice) else 8
    for name, size in (("min_size", device.min_size), ("max_size", device.max_size)):
        if size not in (1, 2, 4, 8) or size > widest:
            raise ConfigError(f"{label}: {name} is {size!r}, and has to be 1, 2, 4 or {widest}")
    if device.min_size > device.max_size:
        raise ConfigError(f"{label}: min_size is greater than max_size")
    if not isinstance(device.length, int) or device.length <= 0:
        raise ConfigError(
            f"{label}: length is {device.length!r}", "say how many bytes of registers there are"
        )
    registers: object = device.registers
    if not isinstance(registers, Mapping) or not all(
        isinstance(offset, int) and isinstance(text, str) for offset, text in registers.items()
    ):
        raise ConfigError(f"{label}: registers has to have names by offset", 'such as {0: "TEMP"}')


def _check_place(device: PioDevice | MmioDevice, label: str, board: Board) -> int:
    base, irq = device.base, device.irq_number
    if irq is not None and irq not in FREE_IRQS:
        free = ", ".join(map(str, FREE_IRQS))
        raise ConfigError(f"{label}: irq {irq} isn't free", f"{free} are")
    if base is None:
        raise ConfigError(f"{label}: base is missing", "such as base=0x510")
    if isinstance(device, PioDevice):
        bus, taken = board.pio, list(_TAKEN_PORTS)
    else:
        bus, taken = board.mmio, list(_TAKEN_ADDRESSES)
        taken += [(r.gpa, r.end - 1, "memory") for r in board.wiring.memory.regions]
        if base % device.max_size:
            raise ConfigError(f"{label}: base {base:#x} is no multiple of {device.max_size}")
    last = base + device.length - 1
    if not 0 <= base < bus.size:
        raise ConfigError(f"{label}: base {base:#x} is outside the {bus.name} space")
    if last >= bus.size:
        why = f"the {bus.name} space ends at {bus.size - 1:#x}"
        raise ConfigError(f"{label}: base {base:#x}, length {device.length:#x}: {why}")
    for start, end, what in [*taken, *_claimed(bus)]:
        if base <= end and start <= last:
            raise ConfigError(f"{label}: base {base:#x} overlaps {what} at {start:#x} to {end:#x}")
    return base


def _claimed(bus: Bus) -> list[tuple[int, int, str]]:
    return [(each.base, each.base + each.length - 1, each.name) for each in bus.ranges()]


def _check_pci(device: PciDevice, label: str) -> None:
    _check_registers(device, label)
    smallest, largest = (4, 256) if device.io else (16, 1 << 28)
    length = device.length
    if length & length - 1 or not smallest <= length <= largest:
        raise ConfigError(
            f"{label}: length {length} is no power of two from {smallest} to {largest}"
        )
    if not 0 <= device.msix_vectors <= MAX_VECTORS:
        raise ConfigError(
            f"{label}: msix_vectors {device.msix_vectors} is not from 0 to {MAX_VECTORS}"
        )
    for name, bits in (("vendor_id", 16), ("device_id", 16), ("class_code", 24), ("revision", 8)):
        if getattr(device, name) not in range(1 << bits):
            raise ConfigError(f"{label}: {name} is no number of {bits} bits")


def _check_virtio(device: VirtioDevice, label: str) -> None:
    if device.device_id not in range(1, 64):
        raise ConfigError(f"{label}: device_id {device.device_id} is not from 1 to 63")
    if not device.queues or any(
        size not in range(1, 32769) or size & size - 1 for size in device.queues
    ):
        raise ConfigError(f"{label}: queues {list(device.queues)} are no powers of two to 32768")
    if device.features not in range(1 << 24):
        raise ConfigError(f"{label}: features has bits that are not the device type's (0 to 23)")
    if any(queue not in range(len(device.queues)) for queue in device.event_queues):
        raise ConfigError(f"{label}: event_queues names a queue that isn't there")
