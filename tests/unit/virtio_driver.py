"""A virtio driver and the PC around it, for tests: it finds a device on the PCI bus or behind
virtio-mmio, drives it through its registers and keeps the driver's side of the rings, as a guest
would."""

from __future__ import annotations

import os
import queue
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unit.fakes import FakeMsi, FakeMsiVector, RecordingFaults

from pyvmm import layout
from pyvmm.bus import MMIO_SPACE, PIO_SPACE, Bus, Device
from pyvmm.devices.pci import ConfigPorts, PciBus
from pyvmm.interrupts import IrqLine, SharedIrq
from pyvmm.memory import GuestMemory
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.mmio_transport import VirtioMmio
from pyvmm.virtio.pci_transport import VirtioPci

MEMORY_SIZE = 16 << 20
FIRST_FREE, FREE_SIZE = 0x10_0000, 0x20_0000
"""Guest memory for the first driver's own use; the next one's is behind it."""
TIMEOUT = 10.0
"""Seconds to wait for the device; only a bug lets it pass."""

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
INDIRECT_DESC, EVENT_IDX, VERSION_1 = 1 << 28, 1 << 29, 1 << 32
NEXT, WRITE, INDIRECT = 1, 2, 4
NO_VECTOR = 0xFFFF

# The common configuration structure: offset and size of each field (virtio 1.2, 4.1.4.3).
COMMON = {
    "device_feature_select": (0x00, 4),
    "device_feature": (0x04, 4),
    "driver_feature_select": (0x08, 4),
    "driver_feature": (0x0C, 4),
    "config_msix_vector": (0x10, 2),
    "num_queues": (0x12, 2),
    "device_status": (0x14, 1),
    "config_generation": (0x15, 1),
    "queue_select": (0x16, 2),
    "queue_size": (0x18, 2),
    "queue_msix_vector": (0x1A, 2),
    "queue_enable": (0x1C, 2),
    "queue_notify_off": (0x1E, 2),
    "queue_desc": (0x20, 8),
    "queue_driver": (0x28, 8),
    "queue_device": (0x30, 8),
    "queue_notify_data": (0x38, 2),
    "queue_reset": (0x3A, 2),
}
# The registers of virtio-mmio (virtio 1.2, table 4.1).
MMIO = {
    "magic_value": 0x000,
    "version": 0x004,
    "device_id": 0x008,
    "vendor_id": 0x00C,
    "device_feature": 0x010,
    "device_feature_select": 0x014,
    "driver_feature": 0x020,
    "driver_feature_select": 0x024,
    "queue_select": 0x030,
    "queue_num_max": 0x034,
    "queue_size": 0x038,
    "queue_enable": 0x044,
    "queue_notify": 0x050,
    "interrupt_status": 0x060,
    "interrupt_ack": 0x064,
    "device_status": 0x070,
    "queue_desc": 0x080,
    "queue_desc_high": 0x084,
    "queue_driver": 0x090,
    "queue_driver_high": 0x094,
    "queue_device": 0x0A0,
    "queue_device_high": 0x0A4,
    "shm_select": 0x0AC,
    "shm_len": 0x0B0,
    "shm_len_high": 0x0B4,
    "shm_base": 0x0B8,
    "shm_base_high": 0x0BC,
    "config_generation": 0x0FC,
}
MMIO_CONFIG = 0x100

COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG = 1, 2, 3, 4, 5

DESCRIPTOR = struct.Struct("<QIHH")


class SignallingVector(FakeMsiVector):
    """An MSI vector that a test can wait for."""

    def __init__(self, sent: queue.SimpleQueue[tuple[int, int]]) -> None:
        super().__init__()
        self._sent = sent

    def fire(self) -> None:
        super().fire()
        if self.message is not None:
            self._sent.put(self.message)


class SignallingMsi(FakeMsi):
    """Hands out :class:`SignallingVector`."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()

    def vector(self) -> FakeMsiVector:
        vector = SignallingVector(self.sent)
        self.vectors.append(vector)
        return vector


class FakeDoorbells:
    """Implements ``bus.DoorbellController``; the test PC rings what is attached here."""

    def __init__(self) -> None:
        self.attached: dict[tuple[int, int | None], tuple[int, int]] = {}
        """(address, value) → (length, eventfd)"""

    def attach(self, address: int, length: int, eventfd: int, match: int | None = None) -> None:
        assert (address, match) not in self.attached
        self.attached[address, match] = (length, eventfd)

    def detach(self, address: int, length: int, eventfd: int, match: int | None = None) -> None:
        assert self.attached.pop((address, match)) == (length, eventfd)

    def write(self, address: int, size: int, value: int) -> bool:
        """A guest's store, if an eventfd is there to take it."""
        for match in (None, value):
            length, eventfd = self.attached.get((address, match), (-1, -1))
            if length in (0, size):
                os.eventfd_write(eventfd, 1)
                return True
        return False


class ResetRegister(Device):
    """Stands for port 0xCF9."""

    def __init__(self) -> None:
        super().__init__()
        self.value = 0

    def read(self, offset: int, size: int) -> int:
        assert (offset, size) == (0, 1)
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        assert (offset, size) == (0, 1)
        self.value = value


class Pc:
    """Memory, both buses and a PCI bus with ``devices`` on it, or behind virtio-mmio."""

    def __init__(
        self,
        *devices: VirtioDevice,
        doorbells: bool = False,
        transport: str = "pci",
        memory: GuestMemory | None = None,
    ) -> None:
        self.memory = memory or GuestMemory(MEMORY_SIZE)
        self.faults = RecordingFaults()
        self.mmio = Bus("MMIO", MMIO_SPACE, self.faults)
        self.pio = Bus("port", PIO_SPACE, self.faults, flat=True)
        self.msi = SignallingMsi()
        self.doorbells = FakeDoorbells() if doorbells else None
        self.intx_changes: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()
        self.intx = [self._wire(number) for number in range(8)]
        self.pci = PciBus(self.mmio, self.pio, [SharedIrq(w) for w in self.intx], self.faults)
        self.reset_register = ResetRegister()
        ports = ConfigPorts(self.pci, self.reset_register)
        self.pio.add(layout.PCI_CONFIG, 8, ports, "PCI configuration", max_size=4)
        self.mmio.add(layout.ECAM, layout.ECAM_SIZE, self.pci.ecam, "ECAM", max_size=4)
        self.transports: list[VirtioPci | VirtioMmio] = []
        self.mmio_changes: list[queue.SimpleQueue[bool]] = []
        for device in devices:
            if transport == "mmio":
                self._add_mmio(device)
            else:
                function = VirtioPci(device, self.memory, self.msi, self.faults, self.doorbells)
                self.transports.append(function)
                self.pci.add(function)
        self.pci.assign_bars()

    def _add_mmio(self, device: VirtioDevice) -> None:
        changes: queue.SimpleQueue[bool] = queue.SimpleQueue()
        base = layout.virtio_mmio_slot(len(self.mmio_changes)).base
        transport = VirtioMmio(
            device, self.memory, IrqLine(changes.put), self.faults, self.doorbells, base
        )
        self.mmio.add(base, layout.VIRTIO_MMIO_SIZE, transport, "virtio-mmio")
        self.mmio_changes.append(changes)
        self.transports.append(transport)

    def _wire(self, number: int) -> IrqLine:
        return IrqLine(lambda level: self.intx_changes.put((number, level)))

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's store: an ioeventfd takes it, or the bus."""
        if self.doorbells is None or not self.doorbells.write(address, size, value):
            self.mmio.write(address, size, value)

    def driver(self, slot: int = 1) -> VirtioDriver:
        """The driver of the device with that number, counted from 1."""
        return MmioDriver(self, slot) if self.mmio_changes else VirtioDriver(self, slot)

    def reset(self) -> None:
        """A platform reset, as far as the devices are concerned."""
        self.pci.reset()
        for transport in self.transports:
            transport.reset()

    def save(self) -> list[dict[str, Any]]:
        return [self.pci.save(), *(transport.save() for transport in self.transports)]

    def restore(self, state: list[dict[str, Any]]) -> None:
        self.pci.restore(state[0])
        for transport, saved in zip(self.transports, state[1:], strict=True):
            if isinstance(transport, VirtioMmio):
                transport.restore(saved)

    def close(self) -> None:
        for transport in self.transports:
            transport.close()
        self.memory.close()


Buffer = tuple[int, int]
"""Address and length."""


class Scratch:
    """What hands out pieces of ``memory`` for a test's own buffers, from ``buffers`` on."""

    memory: GuestMemory
    buffers: int

    def buffer(self, size: int) -> Buffer:
        """Guest memory of ``size`` bytes."""
        address = self.buffers
        self.buffers += (size + 63) & ~63
        return address, size

    def filled(self, data: bytes) -> Buffer:
        address, size = self.buffer(len(data))
        self.memory.write(address, data)
        return address, size


class PciDevice:
    """A PCI function as a driver sees it, by ECAM."""

    def __init__(self, pc: Pc, device: int) -> None:
        self.pc = pc
        self._ecam = layout.ECAM + (device << 15)

    def read(self, offset: int, size: int) -> int:
        return self.pc.mmio.read(self._ecam + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.pc.mmio.write(self._ecam + offset, size, value)

    def capabilities(self) -> list[tuple[int, int]]:
        """(ID, offset) of each."""
        found = []
        pointer = self.read(0x34, 1)
        while pointer:
            found.append((self.read(pointer, 1), pointer))
            assert len(found) < 48, "the list is a loop"
            pointer = self.read(pointer + 1, 1)
        return found

    def bar(self, index: int) -> int:
        """The address in a memory BAR."""
        value = self.read(0x10 + 4 * index, 4)
        if value & 0x4:
            value |= self.read(0x14 + 4 * index, 4) << 32
        return value & ~0xF


@dataclass
class Structure:
    """Where a virtio structure lies in guest-physical memory."""

    address: int
    length: int
    extra: int = 0


class VirtioDriver:
    """Drives the virtio device in PCI slot ``slot``."""

    def __init__(self, pc: Pc, slot: int = 1) -> None:
        self.pc = pc
        self.function = PciDevice(pc, slot)
        self.structures: dict[int, Structure] = {}
        self.pci_cfg = 0
        self.msix = 0
        for identity, offset in self.function.capabilities():
            if identity == 0x11:
                self.msix = offset
            elif identity == 0x09:
                self._add_structure(offset)
        self._free = FIRST_FREE + FREE_SIZE * (slot - 1)
        self.features = 0

    def _add_structure(self, offset: int) -> None:
        read = self.function.read
        kind = read(offset + 3, 1)
        if kind == PCI_CFG:
            self.pci_cfg = offset
            return
        bar, where, length = read(offset + 4, 1), read(offset + 8, 4), read(offset + 12, 4)
        extra = read(offset + 16, 4) if kind == NOTIFY_CFG else 0
        self.structures[kind] = Structure(self.function.bar(bar) + where, length, extra)

    def allocate(self, size: int, alignment: int = 16) -> int:
        """Guest memory for the driver's own use."""
        address = (self._free + alignment - 1) & -alignment
        self._free = address + size
        return address

    # Registers.

    def get(self, name: str) -> int:
        offset, size = COMMON[name]
        return self.pc.mmio.read(self.structures[COMMON_CFG].address + offset, size)

    def set(self, name: str, value: int) -> None:
        offset, size = COMMON[name]
        self.pc.mmio.write(self.structures[COMMON_CFG].address + offset, size, value)

    @property
    def status(self) -> int:
        return self.get("device_status")

    def isr(self) -> int:
        """The causes of interrupts so far, which takes them back."""
        return self.pc.mmio.read(self.structures[ISR_CFG].address, 1)

    def config(self, offset: int, size: int) -> int:
        return self.pc.mmio.read(self.structures[DEVICE_CFG].address + offset, size)

    def ring(self, index: int) -> None:
        """Write to the doorbell of queue ``index``."""
        self.pc.write(self.doorbell(index), 2, index)

    def doorbell(self, index: int) -> int:
        notify = self.structures[NOTIFY_CFG]
        self.set("queue_select", index)
        return notify.address + notify.extra * self.get("queue_notify_off")

    def wait_for_interrupt(self) -> bool:
        """Sleep until the device interrupts by MSI; whether it is for the configuration, as
        :meth:`enable_msix` has set it up."""
        return self.pc.msi.sent.get(timeout=TIMEOUT)[1] == 1

    def offered(self) -> int:
        features = 0
        for word in range(2):
            self.set("device_feature_select", word)
            features |= self.get("device_feature") << 32 * word
        return features

    # Initialisation (3.1.1).

    def reset(self) -> None:
        self.set("device_status", 0)
        assert self.status == 0

    def negotiate(self, features: int | None = None) -> None:
        """Up to FEATURES_OK, with ``features`` (all that are offered)."""
        self.reset()
        self.set("device_status", ACKNOWLEDGE)
        self.set("device_status", ACKNOWLEDGE | DRIVER)
        self.features = self.offered() if features is None else features
        for word in range(2):
            self.set("driver_feature_select", word)
            self.set("driver_feature", self.features >> 32 * word & 0xFFFF_FFFF)
        self.set("device_status", ACKNOWLEDGE | DRIVER | FEATURES_OK)

    def enable_msix(self, vectors: int = 2) -> None:
        """Vector n sends n + 1 to 0xFEE0_0000."""
        table = self.function.bar(1)
        for vector in range(vectors):
            self.pc.mmio.write(table + 16 * vector, 4, layout.LOCAL_APIC)
            self.pc.mmio.write(table + 16 * vector + 4, 4, 0)
            self.pc.mmio.write(table + 16 * vector + 8, 4, vector + 1)
            self.pc.mmio.write(table + 16 * vector + 12, 4, 0)
        self.function.write(self.msix + 2, 2, 0x8000)

    def add_queue(
        self,
        index: int = 0,
        size: int | None = None,
        vector: int = NO_VECTOR,
        places: tuple[int, int, int] | None = None,
    ) -> DriverQueue:
        """Set up a queue; before :meth:`run`. ``places`` is where its rings lie in the memory that
        they have, if they are to get in each other's way."""
        self.set("queue_select", index)
        if size is not None:
            self.set("queue_size", size)
        ring = DriverQueue(self, index, self.get("queue_size"))
        if places is not None:
            base = self.allocate(0x4000, 0x1000)
            ring.descriptors, ring.avail, ring.used = (base + place for place in places)
        self.set("queue_desc", ring.descriptors)
        self.set("queue_driver", ring.avail)
        self.set("queue_device", ring.used)
        self.set("queue_msix_vector", vector)
        self.set("queue_enable", 1)
        return ring

    def run(self) -> None:
        self.set("device_status", self.status | DRIVER_OK)

    def start(
        self, features: int | None = None, *, size: int | None = None, msix: bool = True
    ) -> DriverQueue:
        """All of it, with one queue; MSI-X vector 0 for the configuration, 1 for the queue."""
        self.negotiate(features)
        if msix:
            self.enable_msix()
            self.set("config_msix_vector", 0)
        ring = self.add_queue(size=size, vector=1 if msix else NO_VECTOR)
        self.run()
        return ring


class MmioDriver(VirtioDriver):
    """Drives the device in virtio-mmio slot ``slot``, counted from 1."""

    def __init__(self, pc: Pc, slot: int = 1) -> None:
        self.pc = pc
        self.base = layout.virtio_mmio_slot(slot - 1).base
        self._changes = pc.mmio_changes[slot - 1]
        self._free = FIRST_FREE + FREE_SIZE * (slot - 1)
        self.features = 0

    def get(self, name: str) -> int:
        value = 0
        if name in ("queue_size", "queue_msix_vector"):
            return self.get("queue_num_max") if name == "queue_size" else NO_VECTOR
        for shift, half in ((0, name), (32, f"{name}_high")):
            if half in MMIO:
                value |= self.pc.mmio.read(self.base + MMIO[half], 4) << shift
        return value

    def set(self, name: str, value: int) -> None:
        for shift, half in ((0, name), (32, f"{name}_high")):
            if half in MMIO:
                self.pc.mmio.write(self.base + MMIO[half], 4, value >> shift & 0xFFFF_FFFF)

    def isr(self) -> int:
        causes = self.get("interrupt_status")
        self.set("interrupt_ack", causes)
        return causes

    def config(self, offset: int, size: int) -> int:
        return self.pc.mmio.read(self.base + MMIO_CONFIG + offset, size)

    def ring(self, index: int) -> None:
        self.pc.write(self.doorbell(index), 4, index)

    def doorbell(self, index: int) -> int:
        return self.base + MMIO["queue_notify"]

    def wait_for_interrupt(self) -> bool:
        """Sleep until the line is high; whether it is for the configuration, too."""
        while not self._changes.get(timeout=TIMEOUT):
            pass
        return bool(self.isr() & 2)

    def enable_msix(self, vectors: int = 2) -> None:
        """There is but the line."""


class DriverQueue:
    """The driver's side of a split virtqueue."""

    def __init__(self, driver: VirtioDriver, index: int, size: int) -> None:
        self.driver = driver
        self.memory = driver.pc.memory
        self.index = index
        self.size = size
        self.descriptors = driver.allocate(16 * size)
        self.avail = driver.allocate(6 + 2 * size)
        self.used = driver.allocate(6 + 8 * size)
        for address, length in (
            (self.descriptors, 16 * size),
            (self.avail, 6 + 2 * size),
            (self.used, 6 + 8 * size),
        ):
            self.memory.fill(address, length)
        self.avail_index = 0
        self.used_index = 0
        self._free = list(range(size))
        self._chains: dict[int, list[int]] = {}

    def put(
        self, table: int, index: int, address: int, length: int, flags: int, following: int
    ) -> None:
        """Write a descriptor."""
        self.memory.write(table + 16 * index, DESCRIPTOR.pack(address, length, flags, following))

    def add(
        self,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]],
        *,
        indirect: bool = False,
    ) -> int:
        """Make a chain of (address, length) buffers available, without ringing; its head."""
        buffers = [(*b, 0) for b in readable] + [(*b, WRITE) for b in writable]
        if indirect:
            table = self.driver.allocate(16 * len(buffers))
            slots = list(range(len(buffers)))
            head = self._free.pop(0)
            self.put(self.descriptors, head, table, 16 * len(buffers), INDIRECT, 0)
            self._chains[head] = [head]
        else:
            table = self.descriptors
            slots = [self._free.pop(0) for _ in buffers]
            head = slots[0]
            self._chains[head] = slots
        for position, (address, length, flags) in enumerate(buffers):
            last = position == len(buffers) - 1
            following = 0 if last else slots[position + 1]
            flags |= 0 if last else NEXT
            self.put(table, slots[position], address, length, flags, following)
        self.offer(head)
        return head

    def offer(self, head: int) -> None:
        """Put ``head`` into the available ring."""
        self.memory.write_u16(self.avail + 4 + 2 * (self.avail_index % self.size), head)
        self.avail_index = (self.avail_index + 1) & 0xFFFF
        self.memory.write_u16(self.avail + 2, self.avail_index)

    @property
    def doorbell(self) -> int:
        return self.driver.doorbell(self.index)

    def kick(self) -> None:
        """Ring, whether the device wants it or not."""
        self.driver.ring(self.index)

    def wants_interrupts(self, after: int = 0) -> None:
        """Interrupt me once ``after`` more chains than I have seen are used."""
        event = (self.used_index + after) & 0xFFFF
        self.memory.write_u16(self.avail + 4 + 2 * self.size, event)

    @property
    def avail_event(self) -> int:
        return self.memory.read_u16(self.used + 4 + 8 * self.size)

    def take(self) -> list[tuple[int, int]]:
        """The (head, written) pairs that have come back."""
        taken = []
        while self.memory.read_u16(self.used + 2) != self.used_index:
            element = self.used + 4 + 8 * (self.used_index % self.size)
            head, written = self.memory.read_u32(element), self.memory.read_u32(element + 4)
            self._free += self._chains.pop(head, [])
            self.used_index = (self.used_index + 1) & 0xFFFF
            taken.append((head, written))
        return taken

    def wait(self, count: int = 1) -> list[tuple[int, int]]:
        """Wait for ``count`` chains, sleeping until the device interrupts as a driver would."""
        taken: list[tuple[int, int]] = []
        while len(taken) < count:
            self.wants_interrupts()
            new = self.take()
            taken += new
            if not new:
                self.driver.wait_for_interrupt()
        return taken
