"""The registers of virtio devices, by PCI and by MMIO (:mod:`pyvmm.virtio.pci_transport`,
:mod:`pyvmm.virtio.mmio_transport`).

Virtual I/O Device (VIRTIO) Version 1.2, sections 4.1.4, 4.2.2 and, for the fields of the device
configuration, 5.1.4 to 5.10.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.trace.names import Bits, constants, flags, single_bits
from pyvmm.virtio.device import DeviceId, DeviceStatus, Feature

if TYPE_CHECKING:
    from pyvmm.virtio.device import VirtioDevice

_STATUS = single_bits(DeviceStatus)

NO_VECTOR = 0xFFFF

_CONFIG_FIELDS: dict[int, tuple[tuple[int, str], ...]] = {
    DeviceId.BLOCK: (
        *((0, "capacity"), (8, "size_max"), (12, "seg_max"), (16, "geometry"), (20, "blk_size")),
        *((24, "topology"), (32, "writeback"), (34, "num_queues"), (36, "max_discard_sectors")),
        *((40, "max_discard_seg"), (44, "discard_sector_alignment")),
        *((48, "max_write_zeroes_sectors"), (52, "max_write_zeroes_seg")),
        (56, "write_zeroes_may_unmap"),
    ),
    DeviceId.NETWORK: ((0, "mac"), (6, "status"), (8, "max_virtqueue_pairs"), (10, "mtu")),
    DeviceId.CONSOLE: ((0, "cols"), (2, "rows"), (4, "max_nr_ports"), (8, "emerg_wr")),
    DeviceId.BALLOON: ((0, "num_pages"), (4, "actual")),
    DeviceId.SOCKET: ((0, "guest_cid"),),
}


def features(device: VirtioDevice) -> dict[int, str]:
    """The names of the feature bits that a driver of this device may see."""
    own: tuple[type, ...] = ()
    match device.device_id:
        case DeviceId.BLOCK:
            from pyvmm.virtio.blk import BlockFeature

            own = (BlockFeature,)
        case DeviceId.NETWORK:
            from pyvmm.virtio.net import NetFeature

            own = (NetFeature,)
        case DeviceId.CONSOLE:
            from pyvmm.virtio.console import ConsoleFeature

            own = (ConsoleFeature,)
        case DeviceId.BALLOON:
            from pyvmm.virtio.balloon import BalloonFeature

            own = (BalloonFeature,)
    return single_bits(Feature, *own)


class _Registers:
    """What both transports have: selectors, and registers whose meaning they decide."""

    def __init__(self, name: str, device: VirtioDevice) -> None:
        self._name = name
        self._device = device
        self._features = features(device)
        self._selected = {"device": 0, "driver": 0}
        self._queue = 0

    def select(self, which: str, value: int, write: bool) -> str:
        if write:
            self._selected[which] = value
        return f"bits {32 * value} to {32 * value + 31}" if value < 4 else ""

    def select_queue(self, value: int, write: bool) -> str:
        if write:
            self._queue = value
        return "" if value < len(self._device.queue_sizes) else "there is no such queue"

    def feature_words(self, which: str, value: int) -> str:
        shift = 32 * self._selected[which]
        names = {bit >> shift: name for bit, name in self._features.items() if bit >> shift}
        return flags(Bits({bit: name for bit, name in names.items() if bit < 1 << 32}), value)

    def status(self, value: int, write: bool) -> str:
        return "reset" if write and not value else flags(_STATUS, value)

    def queue(self, text: str = "") -> str:
        return f"queue {self._queue}: {text}" if text else f"queue {self._queue}"

    def config(self, offset: int) -> str:
        """The name of a field of the device configuration."""
        fields = _CONFIG_FIELDS.get(self._device.device_id, ())
        start, name = max((f for f in fields if f[0] <= offset), default=(offset, ""))
        if not name:
            return f"config+{offset:#x}"
        return f"config {name}" + (f"+{offset - start}" if offset > start else "")


class VirtioPciDecoder(_Registers):
    """BAR 4 of a virtio device: common configuration, ISR, device configuration and doorbells."""

    def __init__(self, name: str, device: VirtioDevice) -> None:
        from pyvmm.virtio import pci_transport

        super().__init__(name, device)
        self._transport = pci_transport
        self._names = {
            offset: register.lower()
            for offset, register in constants(pci_transport.CommonCfg).items()
            if offset < pci_transport.CommonCfg.LENGTH
        }
        self._isr = single_bits(pci_transport.Isr)

    def __call__(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        transport = self._transport
        within = offset % transport.STRUCTURE_SIZE
        match offset - within:
            case transport.COMMON_OFFSET:
                return self._name, self._register(within), self._meaning(within, value, write)
            case transport.ISR_OFFSET:
                return self._name, "ISR status", flags(self._isr, value)
            case transport.DEVICE_OFFSET:
                return self._name, self.config(within), ""
        return self._name, "doorbell", f"queue {within // transport.NOTIFY_MULTIPLIER}"

    def _register(self, offset: int) -> str:
        name = self._names.get(offset)
        if name is not None:
            return name
        start = max((each for each in self._names if each <= offset), default=0)
        if offset - start == 4 and self._names[start] in _ADDRESSES:
            return f"{self._names[start]} high"
        return f"common configuration+{offset:#x}"

    def _meaning(self, offset: int, value: int, write: bool) -> str:
        register = self._transport.CommonCfg
        match offset:
            case register.DEVICE_FEATURE_SELECT:
                return self.select("device", value, write)
            case register.DRIVER_FEATURE_SELECT:
                return self.select("driver", value, write)
            case register.DEVICE_FEATURE:
                return self.feature_words("device", value)
            case register.DRIVER_FEATURE:
                return self.feature_words("driver", value)
            case register.DEVICE_STATUS:
                return self.status(value, write)
            case register.QUEUE_SELECT:
                return self.select_queue(value, write)
            case register.CONFIG_MSIX_VECTOR:
                return _vector(value)
            case register.QUEUE_MSIX_VECTOR:
                return self.queue(_vector(value))
            case register.QUEUE_SIZE:
                return self.queue(f"{value} entries")
            case register.QUEUE_ENABLE:
                return self.queue("on" if value else "off")
        return self.queue() if offset > register.QUEUE_ENABLE else ""


_ADDRESSES = ("queue_desc", "queue_driver", "queue_device")


def _vector(value: int) -> str:
    return "no vector" if value == NO_VECTOR else f"vector {value}"


class VirtioMmioDecoder(_Registers):
    """The registers of a virtio device that isn't behind PCI."""

    def __init__(self, name: str, device: VirtioDevice) -> None:
        from pyvmm.virtio import mmio_transport

        super().__init__(name, device)
        self._transport = mmio_transport
        registers = constants(mmio_transport.Register)
        self._names = {offset: _camel_case(name) for offset, name in registers.items()}
        self._interrupts = single_bits(mmio_transport.Interrupt)

    def __call__(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        register = self._transport.Register
        if offset >= register.CONFIG:
            return self._name, self.config(offset - register.CONFIG), ""
        name = self._names.get(offset, f"register {offset:#x}")
        return self._name, name, self._meaning(offset, value, write)

    def _meaning(self, offset: int, value: int, write: bool) -> str:
        register = self._transport.Register
        match offset:
            case register.MAGIC_VALUE:
                return repr(value.to_bytes(8, "little").rstrip(b"\0").decode("latin-1"))
            case register.DEVICE_ID:
                return self._name if value == self._device.device_id else ""
            case register.DEVICE_FEATURES_SEL:
                return self.select("device", value, write)
            case register.DRIVER_FEATURES_SEL:
                return self.select("driver", value, write)
            case register.DEVICE_FEATURES:
                return self.feature_words("device", value)
            case register.DRIVER_FEATURES:
                return self.feature_words("driver", value)
            case register.STATUS:
                return self.status(value, write)
            case register.QUEUE_SEL:
                return self.select_queue(value, write)
            case register.QUEUE_NUM | register.QUEUE_NUM_MAX:
                return self.queue(f"{value} entries")
            case register.QUEUE_READY:
                return self.queue("on" if value else "off")
            case register.QUEUE_NOTIFY:
                return f"queue {value}"
            case register.INTERRUPT_STATUS | register.INTERRUPT_ACK:
                return flags(self._interrupts, value)
        in_queue = register.QUEUE_DESC_LOW <= offset <= register.QUEUE_DEVICE_HIGH
        return self.queue() if in_queue else ""


def _camel_case(name: str) -> str:
    """As the standard writes it: ``QueueNumMax``, ``DeviceID``."""
    return "".join(
        word if word in ("ACK", "ID", "SHM") else word.capitalize() for word in name.split("_")
    )
