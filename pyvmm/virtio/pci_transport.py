"""virtio over PCI: a PCI function through which a driver reaches a virtio device.

Virtual I/O Device (VIRTIO) Version 1.2, section 4.1. BAR 4 holds the four structures, a page
each: common configuration, ISR status, device configuration and doorbells; BAR 1 holds the MSI-X
table. Capabilities in configuration space say so, and a fifth, VIRTIO_PCI_CAP_PCI_CFG, lets a
driver reach the BARs through configuration space alone.

A doorbell is an address of its own for each queue. Where the host can make a write there signal
an eventfd (a :class:`~pyvmm.bus.DoorbellController`), the write never reaches this file.

Left out: the legacy and transitional interfaces, VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_RESET,
shared memory regions.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

from pyvmm.bus import DoorbellController, Window
from pyvmm.devices.pci import (
    INTA,
    Bar,
    BarKind,
    CapabilityId,
    PciFunction,
    PciIdentity,
)
from pyvmm.errors import GuestFaults
from pyvmm.interrupts import MsiController
from pyvmm.memory import GuestMemory
from pyvmm.virtio.device import DeviceId, DriverSession, VirtioDevice
from pyvmm.virtio.registers import SelectedRegisters

VIRTIO_VENDOR = 0x1AF4
FIRST_DEVICE_ID = 0x1040
SUBSYSTEM_ID = 0x1100
REVISION = 1
"""Distinguishes a device that has the 1.0 interface (4.1.2.1)."""

CLASS_CODES = {
    DeviceId.NETWORK: 0x02_00_00,
    DeviceId.BLOCK: 0x01_00_00,
    DeviceId.CONSOLE: 0x07_80_00,
    DeviceId.SOCKET: 0x02_80_00,
}
OTHER_CLASS = 0x00_FF_00

MSIX_BAR = 1
STRUCTURES_BAR = 4
STRUCTURE_SIZE = 0x1000
COMMON_OFFSET, ISR_OFFSET, DEVICE_OFFSET, NOTIFY_OFFSET = 0x0000, 0x1000, 0x2000, 0x3000
STRUCTURES_BAR_SIZE = 0x4000
NOTIFY_MULTIPLIER = 4
"""Bytes from one queue's doorbell to the next (notify_off_multiplier)."""

NO_VECTOR = 0xFFFF
ANY_LENGTH = 0
"""A doorbell may be rung with a write of any width; KVM finds that fastest."""


class PciCapability(IntEnum):
    """cfg_type of a virtio PCI capability (4.1.4)."""

    COMMON_CFG = 1
    NOTIFY_CFG = 2
    ISR_CFG = 3
    DEVICE_CFG = 4
    PCI_CFG = 5


class CommonCfg:
    """Offsets in the common configuration, struct virtio_pci_common_cfg (4.1.4.3)."""

    DEVICE_FEATURE_SELECT = 0x00
    DEVICE_FEATURE = 0x04
    DRIVER_FEATURE_SELECT = 0x08
    DRIVER_FEATURE = 0x0C
    CONFIG_MSIX_VECTOR = 0x10
    NUM_QUEUES = 0x12
    DEVICE_STATUS = 0x14
    CONFIG_GENERATION = 0x15
    QUEUE_SELECT = 0x16
    QUEUE_SIZE = 0x18
    QUEUE_MSIX_VECTOR = 0x1A
    QUEUE_ENABLE = 0x1C
    QUEUE_NOTIFY_OFF = 0x1E
    QUEUE_DESC = 0x20
    QUEUE_DRIVER = 0x28
    QUEUE_DEVICE = 0x30
    QUEUE_NOTIFY_DATA = 0x38
    QUEUE_RESET = 0x3A
    LENGTH = 0x3C


class Isr:
    """Bits of the ISR status (4.1.4.5)."""

    QUEUE = 1
    CONFIG = 2


# struct virtio_pci_cap behind its ID and next pointer: cap_len, cfg_type, bar, id, padding[2],
# offset, length.
_CAPABILITY = struct.Struct("<BBBB2xII")
_PCI_CFG_BAR, _PCI_CFG_OFFSET, _PCI_CFG_LENGTH, _PCI_CFG_DATA = 4, 8, 12, 16


class CommonRegister(NamedTuple):
    """What a field of the common configuration does; ``mask`` is its width."""

    mask: int
    read: Callable[[], int]
    write: Callable[[int], None]


class VirtioPci(PciFunction):
    """``device`` as a PCI function.

    ``doorbells`` is None where the host has no ioeventfd; doorbells then arrive as writes.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        msi: MsiController,
        faults: GuestFaults,
        doorbells: DoorbellController | None = None,
    ) -> None:
        super().__init__(
            PciIdentity(
                vendor=VIRTIO_VENDOR,
                device=FIRST_DEVICE_ID + device.device_id,
                class_code=CLASS_CODES.get(device.device_id, OTHER_CLASS),
                revision=REVISION,
                subsystem_vendor=VIRTIO_VENDOR,
                subsystem=SUBSYSTEM_ID,
            ),
            interrupt_pin=INTA,
        )
        self.device = device
        self.session = DriverSession(
            device, memory, faults, self._queue_interrupt, self._config_interrupt
        )
        name = f"virtio-{device.device_id.name.lower()}"
        self._doorbells = doorbells
        self._doorbells_at: int | None = None
        self._vectors = self.add_msix(MSIX_BAR, len(self.session.queues) + 1, msi, name)
        self._isr = 0
        self._isr_update = threading.Lock()
        self._selected = SelectedRegisters(self.session)
        self._reset_registers()
        self._common = self._common_registers()
        self.add_bar(
            STRUCTURES_BAR,
            STRUCTURES_BAR_SIZE,
            BarKind.MEMORY64_PREFETCHABLE,
            Window(self.lock, self._read_structure, self._write_structure),
            name,
            max_size=4,
        )
        self._pci_cfg = self._add_capabilities()

    def _add_capabilities(self) -> int:
        """Point at the structures; returns where VIRTIO_PCI_CAP_PCI_CFG is."""
        notify_length = NOTIFY_MULTIPLIER * len(self.session.queues)
        multiplier = NOTIFY_MULTIPLIER.to_bytes(4, "little")
        self._capability(PciCapability.COMMON_CFG, COMMON_OFFSET, CommonCfg.LENGTH)
        self._capability(PciCapability.NOTIFY_CFG, NOTIFY_OFFSET, notify_length, multiplier)
        self._capability(PciCapability.ISR_CFG, ISR_OFFSET, 1)
        if self.device.config:
            self._capability(PciCapability.DEVICE_CFG, DEVICE_OFFSET, len(self.device.config))
        body = _CAPABILITY.pack(_PCI_CFG_DATA + 4, PciCapability.PCI_CFG, 0, 0, 0, 0) + bytes(4)
        # The driver chooses BAR, offset and length, and then accesses pci_cfg_data.
        writable = _CAPABILITY.pack(0, 0, 0xFF, 0, 0xFFFF_FFFF, 0xFFFF_FFFF) + b"\xff" * 4
        return self.add_capability(CapabilityId.VENDOR_SPECIFIC, body, writable)

    def _capability(self, kind: PciCapability, offset: int, length: int, more: bytes = b"") -> None:
        size = 2 + _CAPABILITY.size + len(more)
        body = _CAPABILITY.pack(size, kind, STRUCTURES_BAR, 0, offset, length) + more
        self.add_capability(CapabilityId.VENDOR_SPECIFIC, body)

    # The common configuration structure.

    def _reset_registers(self) -> None:
        self._selected.reset()
        self._config_vector = NO_VECTOR
        self._queue_vectors = [NO_VECTOR] * len(self.session.queues)
        with self._isr_update:
            self._isr = 0

    def _common_registers(self) -> dict[int, CommonRegister]:
        """The structure's fields, by offset."""
        session, selected = self.session, self._selected
        return {
            CommonCfg.DEVICE_FEATURE_SELECT: self._selector("device_feature_select", 0xFFFF_FFFF),
            CommonCfg.DEVICE_FEATURE: _read_only(selected.device_features),
            CommonCfg.DRIVER_FEATURE_SELECT: self._selector("driver_feature_select", 0xFFFF_FFFF),
            CommonCfg.DRIVER_FEATURE: CommonRegister(
                0xFFFF_FFFF, selected.driver_features, selected.set_driver_features
            ),
            CommonCfg.CONFIG_MSIX_VECTOR: CommonRegister(
                0xFFFF, lambda: self._config_vector, self._set_config_vector
            ),
            CommonCfg.NUM_QUEUES: _read_only(lambda: len(session.queues)),
            CommonCfg.DEVICE_STATUS: CommonRegister(0xFF, lambda: session.status, self._set_status),
            CommonCfg.CONFIG_GENERATION: _read_only(lambda: self.device.config_generation),
            CommonCfg.QUEUE_SELECT: self._selector("queue_select", 0xFFFF),
            CommonCfg.QUEUE_SIZE: CommonRegister(
                0xFFFF, selected.queue_size, selected.set_queue_size
            ),
            CommonCfg.QUEUE_MSIX_VECTOR: CommonRegister(
                0xFFFF, self._queue_vector, self._set_queue_vector
            ),
            CommonCfg.QUEUE_ENABLE: CommonRegister(
                0xFFFF, selected.queue_ready, self._set_queue_enable
            ),
            CommonCfg.QUEUE_NOTIFY_OFF: _read_only(
                lambda: selected.queue_select if selected.queue else 0
            ),
            CommonCfg.QUEUE_DESC: self._area_register("descriptor_area", 0),
            CommonCfg.QUEUE_DESC + 4: self._area_register("descriptor_area", 32),
            CommonCfg.QUEUE_DRIVER: self._area_register("driver_area", 0),
            CommonCfg.QUEUE_DRIVER + 4: self._area_register("driver_area", 32),
            CommonCfg.QUEUE_DEVICE: self._area_register("device_area", 0),
            CommonCfg.QUEUE_DEVICE + 4: self._area_register("device_area", 32),
            # These two belong to features that aren't offered.
            CommonCfg.QUEUE_NOTIFY_DATA: _read_only(lambda: 0),
            CommonCfg.QUEUE_RESET: _read_only(lambda: 0),
        }

    def _selector(self, name: str, mask: int) -> CommonRegister:
        """A register that only selects what others mean."""
        selected = self._selected
        return CommonRegister(
            mask, lambda: int(getattr(selected, name)), partial(setattr, selected, name)
        )

    def _area_register(self, name: str, shift: int) -> CommonRegister:
        """Half of the address of one of the selected queue's areas."""
        selected = self._selected
        return CommonRegister(
            0xFFFF_FFFF,
            partial(selected.area, name, shift),
            partial(selected.set_area, name, shift),
        )

    def _set_queue_enable(self, value: int) -> None:
        if value == 1:
            self._selected.set_queue_ready()

    def _existing_vector(self, value: int) -> int:
        """What the register reads after a write: NO_VECTOR says that it failed (4.1.5.1.2)."""
        return value if value < self._vectors.size else NO_VECTOR

    def _set_config_vector(self, value: int) -> None:
        self._config_vector = self._existing_vector(value)

    def _queue_vector(self) -> int:
        selected = self._selected
        return self._queue_vectors[selected.queue_select] if selected.queue else NO_VECTOR

    def _set_queue_vector(self, value: int) -> None:
        if self._selected.queue is not None:
            self._queue_vectors[self._selected.queue_select] = self._existing_vector(value)

    def _set_status(self, value: int) -> None:
        self.session.write_status(value)
        if not value:
            self._reset_registers()
            self.set_intx(False)
        self._place_doorbells()

    def dismiss_driver(self) -> None:
        """As if the driver had reset the device; its place and interrupts stay configured."""
        with self.lock:
            self._set_status(0)

    # BAR 4.

    def _read_structure(self, offset: int, size: int) -> int:
        structure, within = offset & ~(STRUCTURE_SIZE - 1), offset & (STRUCTURE_SIZE - 1)
        if structure == COMMON_OFFSET:
            register = self._common.get(within)
            return register.read() & ((1 << 8 * size) - 1) if register is not None else 0
        if structure == DEVICE_OFFSET:
            return self.device.read_config(within, size)
        if structure == ISR_OFFSET and within == 0:
            return self._acknowledge_interrupt()
        return 0

    def _write_structure(self, offset: int, size: int, value: int) -> None:
        structure, within = offset & ~(STRUCTURE_SIZE - 1), offset & (STRUCTURE_SIZE - 1)
        if structure == NOTIFY_OFFSET:
            queue = within // NOTIFY_MULTIPLIER
            if queue < len(self.session.queues) and self.session.running:
                self.device.queue_notified(queue)
        elif structure == COMMON_OFFSET:
            register = self._common.get(within)
            if register is not None:
                register.write(value & register.mask)
        elif structure == DEVICE_OFFSET:
            self.device.write_config(within, size, value)

    # Doorbells.

    def bar_mapped(self, bar: Bar) -> None:
        self._place_doorbells()

    def bar_unmapped(self, bar: Bar) -> None:
        if bar.index == STRUCTURES_BAR:
            self._remove_doorbells()

    def _place_doorbells(self) -> None:
        """Have them exactly while the driver runs and the BAR is somewhere."""
        base = self.bars[STRUCTURES_BAR].mapped_at
        if not self.session.running:
            self._remove_doorbells()
        elif self._doorbells is not None and self._doorbells_at is None and base is not None:
            self._doorbells_at = base + NOTIFY_OFFSET
            for index, eventfd in enumerate(self.device.doorbells):
                address = self._doorbells_at + NOTIFY_MULTIPLIER * index
                self._doorbells.attach(address, ANY_LENGTH, eventfd)

    def _remove_doorbells(self) -> None:
        if self._doorbells is not None and self._doorbells_at is not None:
            for index, eventfd in enumerate(self.device.doorbells):
                address = self._doorbells_at + NOTIFY_MULTIPLIER * index
                self._doorbells.detach(address, ANY_LENGTH, eventfd)
            self._doorbells_at = None

    # Interrupts; called from any thread, without the function's lock.

    def _queue_interrupt(self, index: int) -> None:
        self._interrupt(self._queue_vectors[index], Isr.QUEUE)

    def _config_interrupt(self) -> None:
        self._interrupt(self._config_vector, Isr.CONFIG)

    def _interrupt(self, vector: int, cause: int) -> None:
        if not self._vectors.enabled:
            with self._isr_update:
                if self.session.running:  # or else nobody is there who would acknowledge it
                    self._isr |= cause
                    self.set_intx(True)
        elif vector != NO_VECTOR:
            self._vectors.fire(vector)

    def _acknowledge_interrupt(self) -> int:
        """Reading the ISR status clears it and lets go of the interrupt pin."""
        with self._isr_update:
            isr, self._isr = self._isr, 0
            self.set_intx(False)
        return isr

    # VIRTIO_PCI_CAP_PCI_CFG.

    def config_read(self, offset: int, size: int) -> int:
        data = self._pci_cfg + _PCI_CFG_DATA
        if data <= offset < data + 4:
            bar, at, length = self._pci_cfg_target()
            if bar is not None:
                self._put(data, length, bar.handler.read(at, length))
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        super().config_write(offset, size, value)
        data = self._pci_cfg + _PCI_CFG_DATA
        if data <= offset < data + 4:
            bar, at, length = self._pci_cfg_target()
            if bar is not None:
                bar.handler.write(at, length, self._get(data, length))

    def _pci_cfg_target(self) -> tuple[Bar | None, int, int]:
        """The BAR, offset and width that the driver has chosen; no BAR if it can't be accessed."""
        capability = self._pci_cfg
        bar = self.bars.get(self._get(capability + _PCI_CFG_BAR, 1))
        offset = self._get(capability + _PCI_CFG_OFFSET, 4)
        length = self._get(capability + _PCI_CFG_LENGTH, 4)
        if bar is None or length not in (1, 2, 4) or offset % length or offset >= bar.size:
            return None, 0, 0
        return bar, offset, length

    # State.

    def reset(self) -> None:
        """A platform reset; when it returns the device no longer touches guest memory."""
        with self.lock:
            self._remove_doorbells()
            self.session.reset()
            self._reset_registers()
            super().reset()

    def close(self) -> None:
        """Bring the device to rest and release what the host gave."""
        self.reset()
        self.device.close()
        self._vectors.close()

    def save(self) -> dict[str, Any]:
        return {
            **super().save(),
            "session": self.session.save(),
            **self._selected.save(),
            "config_vector": self._config_vector,
            "queue_vectors": list(self._queue_vectors),
            "isr": self._isr,
        }

    def restore(self, state: dict[str, Any]) -> None:
        with self.lock:
            self._remove_doorbells()
            super().restore(state)
            self._selected.restore(state)
            self._config_vector = state["config_vector"]
            self._queue_vectors = list(state["queue_vectors"])
            self._isr = state["isr"]
            self.session.restore(state["session"])
            self._place_doorbells()


def _read_only(read: Callable[[], int]) -> CommonRegister:
    return CommonRegister(0, read, lambda value: None)
