"""PCI: functions with their configuration space and BARs, the bus, and the two ways to reach it.

PCI Local Bus Specification 3.0: configuration mechanism 1 (3.2.2.3.2), configuration space (6.1,
6.2), INTx (2.2.6); PCI Express Base Specification, section 7.2.2: ECAM. MSI-X is in msix.py.

There is one bus, 0, and no firmware: the bus itself places the BARs, as firmware would.

Left out: bridges, expansion ROMs, plain MSI, power management, PCI Express capabilities, error
reporting. The bus master bit can be set and read, but a function doesn't wait for it.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from pyvmm import layout
from pyvmm.bus import Bus, Device, Handler, Window
from pyvmm.devices.msix import MSIX_BAR_SIZE, PBA_OFFSET, MessageControl, Msix
from pyvmm.errors import ConfigError, GuestFaults
from pyvmm.interrupts import IrqLine, MsiController, SharedIrq
from pyvmm.memory import align_up

DEVICES = 32
FUNCTIONS = 8

CONFIG_SPACE_SIZE = 256


class Register:
    """Offsets in configuration space, header type 0 (6.1)."""

    VENDOR_ID = 0x00
    DEVICE_ID = 0x02
    COMMAND = 0x04
    STATUS = 0x06
    REVISION_ID = 0x08
    CLASS_CODE = 0x09
    HEADER_TYPE = 0x0E
    BAR0 = 0x10
    BAR_END = 0x28
    SUBSYSTEM_VENDOR_ID = 0x2C
    SUBSYSTEM_ID = 0x2E
    CAPABILITIES_POINTER = 0x34
    INTERRUPT_LINE = 0x3C
    INTERRUPT_PIN = 0x3D
    DEVICE_SPECIFIC = 0x40


class Command:
    """Bits of the command register (6.2.2)."""

    IO_SPACE = 1 << 0
    MEMORY_SPACE = 1 << 1
    BUS_MASTER = 1 << 2
    INTERRUPT_DISABLE = 1 << 10


class Status:
    """Bits of the status register (6.2.3)."""

    INTERRUPT = 1 << 3
    CAPABILITIES_LIST = 1 << 4


class CapabilityId(IntEnum):
    """Appendix H."""

    VENDOR_SPECIFIC = 0x09
    MSI_X = 0x11


class BarKind(IntEnum):
    """The low bits of a BAR (6.2.5.1)."""

    MEMORY32 = 0x0
    IO = 0x1
    MEMORY64 = 0x4
    MEMORY64_PREFETCHABLE = 0xC


HOST_BRIDGE_VENDOR, HOST_BRIDGE_DEVICE = 0x1B36, 0x0008
"""The "generic PCIe host bridge", for which no kernel has a work-around."""
CLASS_HOST_BRIDGE = 0x060000
MULTI_FUNCTION = 0x80
INTA = 1

_WRITABLE_COMMAND = (
    Command.IO_SPACE | Command.MEMORY_SPACE | Command.BUS_MASTER | Command.INTERRUPT_DISABLE
)


# The MSI-X capability behind its ID and next pointer: message control, table, pending-bit array.
_MSIX_CAPABILITY = struct.Struct("<HII")
_MSIX_WRITABLE = _MSIX_CAPABILITY.pack(MessageControl.ENABLE | MessageControl.FUNCTION_MASK, 0, 0)


class PciIdentity(NamedTuple):
    """What a function says it is; ``class_code`` is base class, sub-class, interface."""

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


class Bar:
    """A base address register and what answers behind it; ``mapped_at`` is None while nothing
    does."""

    def __init__(
        self, index: int, size: int, kind: BarKind, handler: Handler, name: str, max_size: int
    ) -> None:
        self.index = index
        self.size = size
        self.kind = kind
        self.handler = handler
        self.name = name
        self.max_size = max_size
        self.mapped_at: int | None = None

    @property
    def register(self) -> int:
        """Its offset in configuration space."""
        return Register.BAR0 + 4 * self.index

    @property
    def is_io(self) -> bool:
        return self.kind == BarKind.IO

    @property
    def width(self) -> int:
        """Bytes of configuration space that it takes."""
        return 8 if self.kind & BarKind.MEMORY64 else 4


class PciFunction(Device):
    """One function: its configuration space, BARs and interrupts.

    Configuration space is an array of bytes, and a second array says which bits the guest may
    change. All such bits are 0 at power-on, which is also how reset works.
    """

    def __init__(self, identity: PciIdentity, *, interrupt_pin: int = 0) -> None:
        super().__init__()
        self.config = bytearray(CONFIG_SPACE_SIZE)
        self.writable = bytearray(CONFIG_SPACE_SIZE)
        self.bars: dict[int, Bar] = {}
        self.msix: Msix | None = None
        self._msix_control = 0
        self._last_pointer = Register.CAPABILITIES_POINTER
        self._free = Register.DEVICE_SPECIFIC
        self._irq: IrqLine | None = None
        self._intx_update = threading.Lock()
        self._intx = False
        self._put(Register.VENDOR_ID, 2, identity.vendor)
        self._put(Register.DEVICE_ID, 2, identity.device)
        self._put(Register.REVISION_ID, 1, identity.revision)
        self._put(Register.CLASS_CODE, 3, identity.class_code)
        self._put(Register.SUBSYSTEM_VENDOR_ID, 2, identity.subsystem_vendor)
        self._put(Register.SUBSYSTEM_ID, 2, identity.subsystem)
        self._put(Register.INTERRUPT_PIN, 1, interrupt_pin)
        self._allow(Register.COMMAND, 2, _WRITABLE_COMMAND)
        self._allow(Register.INTERRUPT_LINE, 1, 0xFF)

    def _get(self, offset: int, size: int) -> int:
        return int.from_bytes(self.config[offset : offset + size], "little")

    def _put(self, offset: int, size: int, value: int) -> None:
        self.config[offset : offset + size] = value.to_bytes(size, "little")

    def _allow(self, offset: int, size: int, mask: int) -> None:
        """Let the guest change the bits of ``mask``."""
        self.writable[offset : offset + size] = mask.to_bytes(size, "little")

    # What a function is built from.

    def add_bar(
        self,
        index: int,
        size: int,
        kind: BarKind,
        handler: Handler,
        name: str,
        *,
        max_size: int = 8,
    ) -> None:
        """Give the function BAR ``index``, ``size`` bytes (a power of two) of ``handler``."""
        smallest = 4 if kind == BarKind.IO else 16
        if size < smallest or size & (size - 1):
            raise ValueError(f"{name}: a BAR of {size} bytes")
        bar = Bar(index, size, kind, handler, name, max_size)
        self._put(bar.register, 4, kind)
        self._allow(bar.register, bar.width, (1 << 8 * bar.width) - size)
        self.bars[index] = bar

    def add_capability(self, capability: CapabilityId, body: bytes, writable: bytes = b"") -> int:
        """Append a capability whose bytes behind ID and next pointer are ``body``; the guest may
        change the bits set in ``writable``. Returns its offset."""
        offset = self._free
        end = offset + 2 + len(body)
        if end > CONFIG_SPACE_SIZE:
            raise ValueError("no room for another capability")
        self.config[offset] = capability
        self.config[offset + 2 : end] = body
        self.writable[offset + 2 : offset + 2 + len(writable)] = writable
        self.config[self._last_pointer] = offset
        self.config[Register.STATUS] |= Status.CAPABILITIES_LIST
        self._last_pointer = offset + 1
        self._free = (end + 3) & ~3
        return offset

    def add_msix(self, bar: int, vectors: int, controller: MsiController, name: str) -> Msix:
        """Give the function ``vectors`` MSI-X vectors, their table in BAR ``bar``."""
        msix = Msix(controller, vectors, self.lock)
        self.add_bar(bar, MSIX_BAR_SIZE, BarKind.MEMORY32, msix, f"{name} MSI-X")
        body = _MSIX_CAPABILITY.pack(vectors - 1, bar, PBA_OFFSET | bar)
        capability = self.add_capability(CapabilityId.MSI_X, body, _MSIX_WRITABLE)
        self._msix_control = capability + 2
        self.msix = msix
        return msix

    # Configuration space.

    def config_read(self, offset: int, size: int) -> int:
        """The guest reads ``size`` bytes at ``offset`` of configuration space."""
        return self._get(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The guest writes ``size`` bytes at ``offset``: store what it may change of them."""
        for at, byte in enumerate(value.to_bytes(size, "little"), offset):
            mask = self.writable[at]
            if mask:
                self.config[at] = self.config[at] & ~mask | byte & mask
        msix = self.msix
        if msix is not None and offset - 2 < self._msix_control < offset + size:
            msix.set_control(self._get(self._msix_control, 2))
        with self._intx_update:
            self._drive_intx()

    def decodes(self, bar: Bar) -> int | None:
        """The address at which the guest wants ``bar``, or None if it wants it nowhere."""
        enable = Command.IO_SPACE if bar.is_io else Command.MEMORY_SPACE
        if not self._get(Register.COMMAND, 2) & enable:
            return None
        address = self._get(bar.register, bar.width) & -bar.size
        sizing = (1 << 32) - bar.size
        # All ones is how the guest asks for the size; it isn't an address.
        return None if address & 0xFFFF_FFFF == sizing else address

    def bar_mapped(self, bar: Bar) -> None:
        """``bar`` now answers at ``bar.mapped_at``."""

    def bar_unmapped(self, bar: Bar) -> None:
        """``bar`` no longer answers at ``bar.mapped_at``."""

    # Interrupts.

    def connect_intx(self, irq: IrqLine) -> None:
        """Wire the function's interrupt pin."""
        self._irq = irq

    def set_intx(self, level: bool) -> None:
        """Assert or de-assert the interrupt pin; from any thread, lock or not."""
        with self._intx_update:
            self._intx = level
            status = self.config[Register.STATUS] & ~Status.INTERRUPT
            self.config[Register.STATUS] = status | (Status.INTERRUPT if level else 0)
            self._drive_intx()

    def _drive_intx(self) -> None:
        if self._irq is not None:
            silent = self._get(Register.COMMAND, 2) & Command.INTERRUPT_DISABLE or (
                self.msix is not None and self.msix.enabled
            )
            self._irq.set(self._intx and not silent)

    # State.

    def reset(self) -> None:
        for at, mask in enumerate(self.writable):
            if mask:
                self.config[at] &= ~mask
        if self.msix is not None:
            self.msix.reset()
        self.set_intx(False)

    def save(self) -> dict[str, Any]:
        state: dict[str, Any] = {"config": bytes(self.config), "intx": self._intx}
        if self.msix is not None:
            state["msix"] = self.msix.save()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`save` returned; the bus maps the BARs afterwards."""
        self.config[:] = state["config"]
        if self.msix is not None:
            self.msix.restore(state["msix"])
            self.msix.set_control(self._get(self._msix_control, 2))
        self.set_intx(state["intx"])


class PciBus(Device):
    """Bus 0 with its host bridge at 00:00.0.

    Gives the functions' BARs addresses in the windows ``[start, end)`` of the two address spaces,
    and maps them to where the guest moves them: ports in the same window, memory anywhere between
    the end of RAM and the IOAPIC, where nothing else is; firmware has windows of its own. ``intx``
    are the shared wires: device d's pin p drives number (d + p) % 8.
    Locks are taken in the order bus, function.
    """

    def __init__(
        self,
        mmio: Bus,
        pio: Bus,
        intx: Sequence[SharedIrq],
        faults: GuestFaults,
        *,
        memory_window: tuple[int, int] = (layout.PCI_WINDOW, layout.PCI_WINDOW_END),
        io_window: tuple[int, int] = (layout.PCI_IO_WINDOW, layout.PCI_IO_WINDOW_END),
    ) -> None:
        super().__init__()
        if len(intx) != layout.PCI_INTX_LINES:
            raise ValueError(f"{len(intx)} INTx wires instead of {layout.PCI_INTX_LINES}")
        self._mmio = mmio
        self._pio = pio
        self._intx = intx
        self._faults = faults
        self._memory_window = memory_window
        self._io_window = io_window
        self._functions: dict[int, PciFunction] = {}
        self.ecam = Window(self.lock, self._ecam_read, self._ecam_write)
        bridge = PciIdentity(HOST_BRIDGE_VENDOR, HOST_BRIDGE_DEVICE, CLASS_HOST_BRIDGE)
        self.add(PciFunction(bridge), 0)

    def add(self, function: PciFunction, device: int | None = None, number: int = 0) -> int:
        """Plug ``function`` in as ``device`` (the first free one), function ``number``.

        Returns the device number. ConfigError if the bus is full.
        """
        if device is None:
            free = (d for d in range(DEVICES) if not any(self._slot(d)))
            device = next(free, DEVICES)
        if not (device < DEVICES and number < FUNCTIONS):
            raise ConfigError(f"no room for another PCI device: a bus has {DEVICES} slots")
        devfn = device * FUNCTIONS + number
        if devfn in self._functions:
            raise ValueError(f"PCI device {device:02x}.{number} is there already")
        self._functions[devfn] = function
        if len(self._slot(device)) > 1:
            for sibling in self._slot(device):
                sibling.config[Register.HEADER_TYPE] |= MULTI_FUNCTION
        pin = function.config[Register.INTERRUPT_PIN]
        if pin:
            function.connect_intx(self._intx[_intx_wire(device, pin)].input())
        return device

    def functions(self) -> dict[int, PciFunction]:
        """What is plugged in, by device * 8 + function number."""
        return dict(self._functions)

    def _slot(self, device: int) -> list[PciFunction]:
        devfns = range(device * FUNCTIONS, (device + 1) * FUNCTIONS)
        return [self._functions[devfn] for devfn in devfns if devfn in self._functions]

    def assign_bars(self) -> None:
        """What firmware would do: place every BAR, fill in the interrupt line, enable decoding.

        ConfigError if the windows are too small.
        """
        with self.lock:
            self._place(self._memory_window, is_io=False)
            self._place(self._io_window, is_io=True)
            for devfn, function in self._functions.items():
                command = 0
                for bar in function.bars.values():
                    command |= Command.IO_SPACE if bar.is_io else Command.MEMORY_SPACE
                function.config_write(Register.COMMAND, 2, command)
                pin = function.config[Register.INTERRUPT_PIN]
                if pin:
                    wire = _intx_wire(devfn // FUNCTIONS, pin)
                    function.config_write(Register.INTERRUPT_LINE, 1, layout.PCI_INTX_GSI + wire)
            self._remap()

    def _place(self, window: tuple[int, int], *, is_io: bool) -> None:
        """Largest first, so that the natural alignment wastes nothing."""
        bars = [
            (bar, function)
            for function in self._functions.values()
            for bar in function.bars.values()
            if bar.is_io == is_io
        ]
        bars.sort(key=lambda placed: -placed[0].size)
        address, end = window
        for bar, function in bars:
            address = align_up(address, bar.size)
            if address + bar.size > end:
                raise ConfigError(
                    f"{bar.name} doesn't fit into the PCI window", "use fewer devices"
                )
            for at in range(0, bar.width, 4):
                function.config_write(bar.register + at, 4, address >> 8 * at & 0xFFFF_FFFF)
            address += bar.size

    def _remap(self) -> None:
        """Bring the address spaces in line with all BARs.

        First what is to go, then what is to come: a BAR that was refused because another lay
        there is mapped as soon as that has moved.
        """
        bars = [(f, bar) for f in self._functions.values() for bar in f.bars.values()]
        for function, bar in bars:
            if bar.mapped_at is not None and bar.mapped_at != function.decodes(bar):
                with function.lock:
                    function.bar_unmapped(bar)
                    self._space(bar).remove(bar.mapped_at, bar.handler)
                    bar.mapped_at = None
        for function, bar in bars:
            address = function.decodes(bar)
            if address is not None and bar.mapped_at is None:
                self._map(function, bar, address)

    def _map(self, function: PciFunction, bar: Bar, address: int) -> None:
        start, end = self._io_window if bar.is_io else (layout.PCI_WINDOW, layout.IOAPIC)
        if not start <= address <= end - bar.size:
            # No fault: while its size is asked for, a BAR that decodes holds all ones.
            self._faults.count("PCI BAR outside its window")
            return
        with function.lock:
            try:
                space = self._space(bar)
                space.add(address, bar.size, bar.handler, bar.name, max_size=bar.max_size)
            except ValueError as overlap:
                self._faults.report("PCI BAR where there is something", "%s", overlap)
                return
            bar.mapped_at = address
            function.bar_mapped(bar)

    def _space(self, bar: Bar) -> Bus:
        return self._pio if bar.is_io else self._mmio

    def config_read(self, bus: int, devfn: int, offset: int, size: int) -> int:
        """Configuration read of ``size`` bytes; ``devfn`` is device * 8 + function number.

        All ones where there is no function.
        """
        found = self._functions.get(devfn) if bus == 0 else None
        if found is None:
            return (1 << 8 * size) - 1
        if offset + size > CONFIG_SPACE_SIZE:
            return 0
        with self.lock, found.lock:
            return found.config_read(offset, size)

    def config_write(self, bus: int, devfn: int, offset: int, size: int, value: int) -> None:
        """Configuration write; nothing happens where there is no function."""
        found = self._functions.get(devfn) if bus == 0 else None
        if found is None or offset + size > CONFIG_SPACE_SIZE:
            return
        with self.lock:
            with found.lock:
                found.config_write(offset, size, value)
            if offset < Register.BAR_END and offset + size > Register.COMMAND:
                self._remap()

    def _ecam_read(self, offset: int, size: int) -> int:
        return self.config_read(*_ecam_target(offset), size)

    def _ecam_write(self, offset: int, size: int, value: int) -> None:
        self.config_write(*_ecam_target(offset), size, value)

    def reset(self) -> None:
        """A platform reset, and then again what firmware would do."""
        with self.lock:
            for function in self._functions.values():
                with function.lock:
                    function.reset()
            self.assign_bars()

    def save(self) -> dict[str, Any]:
        with self.lock:
            return {"functions": {n: f.save() for n, f in self._functions.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        with self.lock:
            for number, function in self._functions.items():
                with function.lock:
                    function.restore(state["functions"][number])
            self._remap()


def _intx_wire(device: int, pin: int) -> int:
    """Which of the shared wires a device's pin drives."""
    return (device + pin - INTA) % layout.PCI_INTX_LINES


def _ecam_target(offset: int) -> tuple[int, int, int]:
    """The bus, devfn and register at an offset in ECAM."""
    return offset >> 20, offset >> 12 & 0xFF, offset & 0xFFF


_CONFIG_ADDRESS, _RESET_CONTROL, _CONFIG_DATA = 0, 1, 4
_ADDRESS_ENABLE = 1 << 31
_ADDRESS_BITS = 0x80FF_FFFC


class ConfigPorts(Device):
    """Configuration mechanism 1: CONFIG_ADDRESS at port 0xCF8, CONFIG_DATA at 0xCFC.

    Only a 32-bit access reaches CONFIG_ADDRESS. The chipset's reset control register shares its
    second byte, 0xCF9, so byte accesses there are handed on to ``reset_control``.
    """

    def __init__(self, bus: PciBus, reset_control: Handler) -> None:
        super().__init__()
        self._bus = bus
        self._reset_control = reset_control
        self._address = 0

    def read(self, offset: int, size: int) -> int:
        if offset >= _CONFIG_DATA:
            if self._address & _ADDRESS_ENABLE:
                return self._bus.config_read(*self._target(offset), size)
        elif offset == _CONFIG_ADDRESS and size == 4:
            return self._address
        elif offset == _RESET_CONTROL and size == 1:
            with self._reset_control.lock:
                return self._reset_control.read(0, 1)
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= _CONFIG_DATA:
            if self._address & _ADDRESS_ENABLE:
                self._bus.config_write(*self._target(offset), size, value)
        elif offset == _CONFIG_ADDRESS and size == 4:
            self._address = value & _ADDRESS_BITS
        elif offset == _RESET_CONTROL and size == 1:
            with self._reset_control.lock:
                self._reset_control.write(0, 1, value)

    def _target(self, offset: int) -> tuple[int, int, int]:
        """The bus, devfn and register that an access to CONFIG_DATA means."""
        address = self._address
        return address >> 16 & 0xFF, address >> 8 & 0xFF, address & 0xFC | offset - _CONFIG_DATA

    def reset(self) -> None:
        self._address = 0

    def save(self) -> dict[str, Any]:
        return {"address": self._address}

    def restore(self, state: dict[str, Any]) -> None:
        self._address = state["address"]
