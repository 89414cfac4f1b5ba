"""virtio over MMIO: 512 bytes of registers and one interrupt line for each device.

Virtual I/O Device (VIRTIO) Version 1.2, section 4.2, register layout version 2. There is no way
to discover such a device; ACPI or the kernel's command line has to name it.

The doorbell is one register for all queues, and the value written says which. Where the host can
make a write of that value signal an eventfd (a :class:`~pyvmm.bus.DoorbellController`), it never
reaches this file.

Left out: the legacy layout (version 1), VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_RESET and with
it the register QueueReset, shared memory regions (their registers say that there are none).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from pyvmm.bus import Device, DoorbellController
from pyvmm.errors import GuestFaults
from pyvmm.interrupts import IrqLine
from pyvmm.memory import GuestMemory
from pyvmm.virtio.device import DriverSession, VirtioDevice
from pyvmm.virtio.registers import SelectedRegisters

MAGIC = int.from_bytes(b"virt", "little")
VERSION = 2
VENDOR = int.from_bytes(b"PYVM", "little")
NO_REGION = 0xFFFF_FFFF
"""Either half of the length and the base of a shared memory region that doesn't exist."""

REGISTER_SIZE = 4


class Register:
    """Offsets (table 4.1)."""

    MAGIC_VALUE = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    VENDOR_ID = 0x00C
    DEVICE_FEATURES = 0x010
    DEVICE_FEATURES_SEL = 0x014
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    QUEUE_SEL = 0x030
    QUEUE_NUM_MAX = 0x034
    QUEUE_NUM = 0x038
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC_LOW, QUEUE_DESC_HIGH = 0x080, 0x084
    QUEUE_DRIVER_LOW, QUEUE_DRIVER_HIGH = 0x090, 0x094
    QUEUE_DEVICE_LOW, QUEUE_DEVICE_HIGH = 0x0A0, 0x0A4
    SHM_SEL = 0x0AC
    SHM_LEN_LOW, SHM_LEN_HIGH = 0x0B0, 0x0B4
    SHM_BASE_LOW, SHM_BASE_HIGH = 0x0B8, 0x0BC
    CONFIG_GENERATION = 0x0FC
    CONFIG = 0x100


class Interrupt:
    """Bits of InterruptStatus."""

    USED_BUFFER = 1
    CONFIGURATION_CHANGE = 2


class VirtioMmio(Device):
    """``device`` behind memory-mapped registers at ``base``, which only its doorbells need.

    ``doorbells`` is None where the host has no ioeventfd; doorbells then arrive as writes.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        line: IrqLine,
        faults: GuestFaults,
        doorbells: DoorbellController | None = None,
        base: int = 0,
    ) -> None:
        super().__init__()
        self.device = device
        self.session = DriverSession(
            device,
            memory,
            faults,
            lambda index: self._interrupt(Interrupt.USED_BUFFER),
            lambda: self._interrupt(Interrupt.CONFIGURATION_CHANGE),
        )
        self._line = line
        self._faults = faults
        self._doorbells = doorbells
        self._doorbells_placed = False
        self._notify_address = base + Register.QUEUE_NOTIFY
        self._interrupt_status = 0
        self._interrupt_update = threading.Lock()
        self._selected = SelectedRegisters(self.session)
        self._readable = self._readable_registers()
        self._writable = self._writable_registers()

    def _readable_registers(self) -> dict[int, Callable[[], int]]:
        """What reads each register, by offset; the others can only be written."""
        session, device, selected = self.session, self.device, self._selected
        no_region = (
            *(Register.SHM_LEN_LOW, Register.SHM_LEN_HIGH),
            *(Register.SHM_BASE_LOW, Register.SHM_BASE_HIGH),
        )
        return {
            Register.MAGIC_VALUE: lambda: MAGIC,
            Register.VERSION: lambda: VERSION,
            Register.DEVICE_ID: lambda: int(device.device_id),
            Register.VENDOR_ID: lambda: VENDOR,
            Register.DEVICE_FEATURES: selected.device_features,
            Register.QUEUE_NUM_MAX: lambda: selected.queue.max_size if selected.queue else 0,
            Register.QUEUE_READY: selected.queue_ready,
            Register.INTERRUPT_STATUS: lambda: self._interrupt_status,
            Register.STATUS: lambda: session.status,
            Register.CONFIG_GENERATION: lambda: device.config_generation,
            **dict.fromkeys(no_region, lambda: NO_REGION),
        }

    def _writable_registers(self) -> dict[int, Callable[[int], None]]:
        """What writes each register, by offset; the others can only be read."""
        selected = self._selected
        areas = {
            Register.QUEUE_DESC_LOW: "descriptor_area",
            Register.QUEUE_DRIVER_LOW: "driver_area",
            Register.QUEUE_DEVICE_LOW: "device_area",
        }
        return {
            Register.DEVICE_FEATURES_SEL: partial(setattr, selected, "device_feature_select"),
            Register.DRIVER_FEATURES: selected.set_driver_features,
            Register.DRIVER_FEATURES_SEL: partial(setattr, selected, "driver_feature_select"),
            Register.QUEUE_SEL: partial(setattr, selected, "queue_select"),
            Register.QUEUE_NUM: selected.set_queue_size,
            Register.QUEUE_READY: self._set_queue_ready,
            Register.QUEUE_NOTIFY: self._notify,
            Register.INTERRUPT_ACK: self._acknowledge,
            Register.STATUS: self._set_status,
            Register.SHM_SEL: lambda value: None,  # no region can be selected
            **{low: partial(selected.set_area, name, 0) for low, name in areas.items()},
            **{low + 4: partial(selected.set_area, name, 32) for low, name in areas.items()},
        }

    # Registers are accessed by aligned words only, configuration space as the driver likes.

    def read(self, offset: int, size: int) -> int:
        if offset >= Register.CONFIG:
            return self._read_config(offset - Register.CONFIG, size)
        register = self._readable.get(offset)
        if register is None or size != REGISTER_SIZE:
            self._faults.report("bad virtio-mmio read", "%d bytes at %#x", size, offset)
            return 0
        return register()

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= Register.CONFIG:
            self._write_config(offset - Register.CONFIG, size, value)
            return
        register = self._writable.get(offset)
        if register is None or size != REGISTER_SIZE:
            self._faults.report("bad virtio-mmio write", "%d bytes at %#x", size, offset)
            return
        register(value)

    # 64-bit fields are accessed in halves (4.2.2.2): device types know no wider access.

    def _read_config(self, offset: int, size: int) -> int:
        read = self.device.read_config
        if size <= REGISTER_SIZE:
            return read(offset, size)
        return read(offset, REGISTER_SIZE) | read(offset + REGISTER_SIZE, REGISTER_SIZE) << 32

    def _write_config(self, offset: int, size: int, value: int) -> None:
        write = self.device.write_config
        if size <= REGISTER_SIZE:
            write(offset, size, value)
        else:
            write(offset, REGISTER_SIZE, value & 0xFFFF_FFFF)
            write(offset + REGISTER_SIZE, REGISTER_SIZE, value >> 32)

    def _set_queue_ready(self, value: int) -> None:
        if value == 1:
            self._selected.set_queue_ready()
        elif value == 0 and self._selected.queue is not None:
            self.session.stop_queue(self._selected.queue)

    def _notify(self, value: int) -> None:
        if value < len(self.session.queues) and self.session.running:
            self.device.queue_notified(value)

    def _set_status(self, value: int) -> None:
        self.session.write_status(value)
        if not value:
            self._selected.reset()
            self._withdraw_interrupts()
        self._place_doorbells()

    def dismiss_driver(self) -> None:
        """As if the driver had reset the device; its place and interrupts stay configured."""
        with self.lock:
            self._set_status(0)

    # Doorbells.

    def _place_doorbells(self) -> None:
        """Have them exactly while the driver runs."""
        if not self.session.running:
            self._remove_doorbells()
        elif self._doorbells is not None and not self._doorbells_placed:
            self._doorbells_placed = True
            for index, eventfd in enumerate(self.device.doorbells):
                self._doorbells.attach(self._notify_address, REGISTER_SIZE, eventfd, index)

    def _remove_doorbells(self) -> None:
        if self._doorbells is not None and self._doorbells_placed:
            for index, eventfd in enumerate(self.device.doorbells):
                self._doorbells.detach(self._notify_address, REGISTER_SIZE, eventfd, index)
            self._doorbells_placed = False

    # The interrupt line is high while a bit of InterruptStatus is set.

    def _interrupt(self, cause: int) -> None:
        """From any thread, without the device's lock."""
        with self._interrupt_update:
            if self.session.running:  # or else nobody is there who would acknowledge it
                self._interrupt_status |= cause
                self._line.set(True)

    def _acknowledge(self, value: int) -> None:
        with self._interrupt_update:
            self._interrupt_status &= ~value
            # What is left needs a new edge if the interrupt controller has been set to edges, as
            # the 8259 is by a kernel without ACPI.
            self._line.set(False)
            self._line.set(self._interrupt_status != 0)

    def _withdraw_interrupts(self) -> None:
        with self._interrupt_update:
            self._interrupt_status = 0
            self._line.set(False)

    # State.

    def reset(self) -> None:
        """A platform reset; when it returns the device no longer touches guest memory."""
        with self.lock:
            self._remove_doorbells()
            self.session.reset()
            self._selected.reset()
            self._withdraw_interrupts()

    def close(self) -> None:
        """Bring the device to rest and release what the host gave."""
        self.reset()
        self.device.close()

    def save(self) -> dict[str, Any]:
        return {
            "session": self.session.save(),
            **self._selected.save(),
            "interrupt_status": self._interrupt_status,
        }

    def restore(self, state: dict[str, Any]) -> None:
        with self.lock:
            self._remove_doorbells()
            self._selected.restore(state)
            self._interrupt_status = state["interrupt_status"]
            self._line.set(self._interrupt_status != 0)
            self.session.restore(state["session"])
            self._place_doorbells()
