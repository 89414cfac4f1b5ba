"""The ACPI tables: what hardware there is that can't be found by probing.

Document: ACPI specification 6.5, chapter 5 (tables), chapter 4 (fixed hardware), section 6
(devices); the PCI Firmware Specification 3.3 for MCFG, _OSC and the host bridge. RSDP, XSDT, FADT
with FACS, MADT, MCFG and a DSDT, built here and placed below 1 MiB, where an operating system
that isn't told the address looks for them. There is an RSDT, too: boot loaders (GRUB's `halt`) know
no other root.

The machine is always in ACPI mode (there is no SMM to switch it), sleeps only for good (S5), and
has interrupt lines for PCI that are hard-wired to the IOAPIC. Left out: GPEs, HPET, thermal
and battery devices, hot-plug, NUMA tables, x2APIC entries (they are for APIC IDs from 255 up).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pyvmm import layout
from pyvmm.boot import aml
from pyvmm.errors import ConfigError, PyvmmError
from pyvmm.layout import MmioSlot

OEM_ID = b"PYVMM "
OEM_TABLE_ID = b"PYVMMPC "
CREATOR_ID = b"PYVM"

TABLE_ALIGNMENT = 64
"""FACS needs it; the others need none."""

MAX_CPUS = 255

_ECAM_BUS_SIZE = 1 << 20


class FadtFlags:
    """Fixed feature flags (table 5.10)."""

    WBINVD = 1 << 0
    PROC_C1 = 1 << 2
    SLP_BUTTON = 1 << 5
    """No sleep button in the fixed registers."""
    FIX_RTC = 1 << 6
    """No RTC wake status in the fixed registers."""
    TMR_VAL_EXT = 1 << 8
    """The PM timer has 32 bits, not 24."""
    RESET_REG_SUP = 1 << 10


class BootArchitecture:
    """IAPC_BOOT_ARCH (table 5.11)."""

    LEGACY_DEVICES = 1 << 0
    HAS_8042 = 1 << 1
    VGA_NOT_PRESENT = 1 << 2
    PCIE_ASPM_CONTROLS = 1 << 4
    """Don't use ASPM: there are no links."""


class MadtType:
    LOCAL_APIC = 0
    IO_APIC = 1
    INTERRUPT_SOURCE_OVERRIDE = 2
    LOCAL_APIC_NMI = 4


_PCAT_COMPAT = 1
"""MADT flag: there is a pair of 8259s too."""
_LAPIC_ENABLED = 1
_CONFORMING = 0
_ACTIVE_HIGH_LEVEL = 0b1101
_ALL_CPUS = 0xFF
_LINT1 = 1

_PROFILE_UNSPECIFIED = 0
_LATENCY_UNSUPPORTED = 0xFFFF
_SYSTEM_IO = 1
_PCI_OSC_UUID = "33db4d5b-1ff7-401c-9657-7441c03dd766"
_OSC_UNRECOGNIZED_UUID = 1 << 2

_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_OFFSET = 9
_RSDP = struct.Struct("<8sB6sBIIQB3x")
_RSDP_V1_SIZE = 20
_RSDP_V1_CHECKSUM_OFFSET = 8
_RSDP_CHECKSUM_OFFSET = 32
_FACS = struct.Struct("<4sIIIIIQB31x")
_LOCAL_APIC = struct.Struct("<BBBBI")
_IO_APIC = struct.Struct("<BBBBII")
_OVERRIDE = struct.Struct("<BBBBIH")
_LOCAL_APIC_NMI = struct.Struct("<BBBHB")
_MCFG_ENTRY = struct.Struct("<QHBB4x")


class AcpiTables(NamedTuple):
    """Finished tables: ``blob`` goes to GPA ``rsdp``, where it has the root.
    ``tables`` has each table by itself under its signature."""

    rsdp: int
    blob: bytes
    tables: dict[str, bytes]

    def write_tables(self, directory: str | os.PathLike[str]) -> None:
        """Write each table into a file ``signature.dat``, as acpidump does and iasl reads."""
        for signature, table in self.tables.items():
            target = os.path.join(directory, f"{signature.lower()}.dat")
            try:
                with open(target, "wb") as file:
                    file.write(table)
            except OSError as error:
                raise PyvmmError(f"can't write {target}: {error.strerror}") from error


def build(
    *,
    cpus: int,
    serial_ports: int = 1,
    ide_channels: int = 0,
    virtio_mmio: Sequence[MmioSlot] = (),
    virtio_mmio_named: bool = True,
    pci_window_64: tuple[int, int] | None = None,
    address: int = layout.ACPI_TABLES,
) -> AcpiTables:
    """The tables of a machine with ``cpus`` vCPUs, COM1 to COM``serial_ports`` and the first
    ``ide_channels`` of the IDE channels.

    Of virtio-mmio devices they tell where they are, unless something else does
    (``virtio_mmio_named``), and that their interrupts are levels.
    ``pci_window_64`` is a (start, end) above 4 GiB for PCI BARs, if there is one. They are made to
    lie at ``address``.
    """
    if not 1 <= cpus <= MAX_CPUS:
        raise ConfigError(f"ACPI tables for {cpus} CPUs: 1 to {MAX_CPUS} are possible")
    if not 0 <= serial_ports <= len(layout.SERIAL_PORTS):
        raise ConfigError(f"{serial_ports} serial ports: at most 4 are possible")

    blob = _Blob(address)
    blob.reserve(_RSDP.size)
    facs = blob.add("FACS", _facs())
    named = virtio_mmio if virtio_mmio_named else ()
    dsdt = blob.add("DSDT", _dsdt(cpus, serial_ports, ide_channels, named, pci_window_64))
    listed = [
        blob.add("FACP", _fadt(facs, dsdt)),
        blob.add("APIC", _madt(cpus, sorted({mmio.gsi for mmio in virtio_mmio}))),
        blob.add("MCFG", _mcfg()),
    ]
    rsdt = blob.add("RSDT", _table(b"RSDT", 1, struct.pack(f"<{len(listed)}I", *listed)))
    xsdt = blob.add("XSDT", _table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)))
    return blob.finish(_rsdp(rsdt, xsdt))


class _Blob:
    """Tables one behind the other, from GPA ``base`` on."""

    def __init__(self, base: int) -> None:
        self._base = base
        self._bytes = bytearray()
        self._tables: dict[str, bytes] = {}

    def reserve(self, size: int) -> None:
        self._bytes += bytes(size)

    def add(self, signature: str, table: bytes) -> int:
        """Append a table; its GPA."""
        self._bytes += bytes(-len(self._bytes) % TABLE_ALIGNMENT)
        gpa = self._base + len(self._bytes)
        self._bytes += table
        self._tables[signature] = table
        return gpa

    def finish(self, rsdp: bytes) -> AcpiTables:
        """Put the root pointer in front."""
        self._bytes[: len(rsdp)] = rsdp
        if len(self._bytes) > layout.ACPI_TABLES_END - layout.ACPI_TABLES:
            raise ConfigError(f"the ACPI tables have {len(self._bytes)} bytes; that is too many")
        return AcpiTables(self._base, bytes(self._bytes), self._tables)


def _checksum(data: bytes | bytearray) -> int:
    """What makes the sum of all bytes zero."""
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with the standard header (section 5.2.6)."""
    header = _HEADER.pack(
        signature,
        _HEADER.size + len(body),
        revision,
        0,
        OEM_ID,
        OEM_TABLE_ID,
        1,
        CREATOR_ID,
        1,
    )
    table = bytearray(header + body)
    table[_CHECKSUM_OFFSET] = _checksum(table)
    return bytes(table)


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    revision = 2
    rsdp = bytearray(_RSDP.pack(b"RSD PTR ", 0, OEM_ID, revision, rsdt, _RSDP.size, xsdt, 0))
    rsdp[_RSDP_V1_CHECKSUM_OFFSET] = _checksum(rsdp[:_RSDP_V1_SIZE])
    rsdp[_RSDP_CHECKSUM_OFFSET] = _checksum(rsdp)
    return bytes(rsdp)


def _facs() -> bytes:
    hardware_signature = waking_vector = global_lock = flags = x_waking_vector = 0
    version = 2
    return _FACS.pack(
        b"FACS",
        _FACS.size,
        hardware_signature,
        waking_vector,
        global_lock,
        flags,
        x_waking_vector,
        version,
    )


class _AccessSize:
    BYTE = 1
    WORD = 2
    DWORD = 3


_NO_ADDRESS = bytes(12)


def _port(port: int, bits: int, access: int) -> bytes:
    """A Generic Address Structure (section 5.2.3.2) for I/O ports."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, bits, 0, access, port)


def _pack(**fields: tuple[str, int | bytes]) -> bytes:
    """Fields of a table by their names in the specification: (struct format, value)."""
    formats, values = zip(*fields.values(), strict=True)
    return struct.pack("<" + "".join(formats), *values)


def _fadt(facs: int, dsdt: int) -> bytes:
    flags = (
        FadtFlags.WBINVD
        | FadtFlags.PROC_C1
        | FadtFlags.SLP_BUTTON
        | FadtFlags.FIX_RTC
        | FadtFlags.TMR_VAL_EXT
        | FadtFlags.RESET_REG_SUP
    )
    boot_architecture = (
        BootArchitecture.LEGACY_DEVICES
        | BootArchitecture.HAS_8042
        | BootArchitecture.VGA_NOT_PRESENT
        | BootArchitecture.PCIE_ASPM_CONTROLS
    )
    body = _pack(
        FIRMWARE_CTRL=("I", facs),
        DSDT=("I", dsdt),
        reserved_1=("B", 0),
        Preferred_PM_Profile=("B", _PROFILE_UNSPECIFIED),
        SCI_INT=("H", layout.SCI_IRQ),
        SMI_CMD=("I", 0),
        ACPI_ENABLE=("B", 0),
        ACPI_DISABLE=("B", 0),
        S4BIOS_REQ=("B", 0),
        PSTATE_CNT=("B", 0),
        PM1a_EVT_BLK=("I", layout.PM1A_EVENT),
        PM1b_EVT_BLK=("I", 0),
        PM1a_CNT_BLK=("I", layout.PM1A_CONTROL),
        PM1b_CNT_BLK=("I", 0),
        PM2_CNT_BLK=("I", 0),
        PM_TMR_BLK=("I", layout.PM_TIMER),
        GPE0_BLK=("I", 0),
        GPE1_BLK=("I", 0),
        PM1_EVT_LEN=("B", 4),
        PM1_CNT_LEN=("B", 2),
        PM2_CNT_LEN=("B", 0),
        PM_TMR_LEN=("B", 4),
        GPE0_BLK_LEN=("B", 0),
        GPE1_BLK_LEN=("B", 0),
        GPE1_BASE=("B", 0),
        CST_CNT=("B", 0),
        P_LVL2_LAT=("H", _LATENCY_UNSUPPORTED),
        P_LVL3_LAT=("H", _LATENCY_UNSUPPORTED),
        FLUSH_SIZE=("H", 0),
        FLUSH_STRIDE=("H", 0),
        DUTY_OFFSET=("B", 0),
        DUTY_WIDTH=("B", 0),
        DAY_ALRM=("B", 0),
        MON_ALRM=("B", 0),
        CENTURY=("B", layout.CMOS_CENTURY),
        IAPC_BOOT_ARCH=("H", boot_architecture),
        reserved_2=("B", 0),
        Flags=("I", flags),
        RESET_REG=("12s", _port(layout.RESET_CONTROL, 8, _AccessSize.BYTE)),
        RESET_VALUE=("B", layout.RESET_VALUE),
        ARM_BOOT_ARCH=("H", 0),
        FADT_Minor_Version=("B", 5),
        # The 64-bit address is for a FACS above 4 GiB only.
        X_FIRMWARE_CTRL=("Q", 0),
        X_DSDT=("Q", dsdt),
        X_PM1a_EVT_BLK=("12s", _port(layout.PM1A_EVENT, 32, _AccessSize.WORD)),
        X_PM1b_EVT_BLK=("12s", _NO_ADDRESS),
        X_PM1a_CNT_BLK=("12s", _port(layout.PM1A_CONTROL, 16, _AccessSize.WORD)),
        X_PM1b_CNT_BLK=("12s", _NO_ADDRESS),
        X_PM2_CNT_BLK=("12s", _NO_ADDRESS),
        X_PM_TMR_BLK=("12s", _port(layout.PM_TIMER, 32, _AccessSize.DWORD)),
        X_GPE0_BLK=("12s", _NO_ADDRESS),
        X_GPE1_BLK=("12s", _NO_ADDRESS),
        SLEEP_CONTROL_REG=("12s", _NO_ADDRESS),
        SLEEP_STATUS_REG=("12s", _NO_ADDRESS),
        Hypervisor_Vendor_Identity=("8s", b"PyVMM"),
    )
    return _table(b"FACP", 6, body)


def _madt(cpus: int, levels: Sequence[int]) -> bytes:
    """The interrupt controllers. CPU n has APIC ID n and is \\_SB.Cn's _UID n; the ISA interrupts
    ``levels`` are no edges, as ISA's are otherwise."""
    isa_bus = 0
    parts = [struct.pack("<II", layout.LOCAL_APIC, _PCAT_COMPAT)]
    parts += [
        _LOCAL_APIC.pack(MadtType.LOCAL_APIC, _LOCAL_APIC.size, cpu, cpu, _LAPIC_ENABLED)
        for cpu in range(cpus)
    ]
    parts.append(
        _IO_APIC.pack(MadtType.IO_APIC, _IO_APIC.size, layout.IOAPIC_ID, 0, layout.IOAPIC, 0)
    )
    for source, gsi, flags in (
        (layout.PIT_IRQ, layout.PIT_IOAPIC_PIN, _CONFORMING),
        (layout.SCI_IRQ, layout.SCI_IRQ, _ACTIVE_HIGH_LEVEL),
        *((irq, irq, _ACTIVE_HIGH_LEVEL) for irq in levels),
    ):
        parts.append(
            _OVERRIDE.pack(
                MadtType.INTERRUPT_SOURCE_OVERRIDE, _OVERRIDE.size, isa_bus, source, gsi, flags
            )
        )
    parts.append(
        _LOCAL_APIC_NMI.pack(
            MadtType.LOCAL_APIC_NMI, _LOCAL_APIC_NMI.size, _ALL_CPUS, _CONFORMING, _LINT1
        )
    )
    return _table(b"APIC", 5, b"".join(parts))


def _mcfg() -> bytes:
    segment = first_bus = 0
    last_bus = layout.ECAM_SIZE // _ECAM_BUS_SIZE - 1
    return _table(
        b"MCFG", 1, bytes(8) + _MCFG_ENTRY.pack(layout.ECAM, segment, first_bus, last_bus)
    )


def _dsdt(
    cpus: int,
    serial_ports: int,
    ide_channels: int,
    virtio_mmio: Sequence[MmioSlot],
    pci_window_64: tuple[int, int] | None,
) -> bytes:
    """The devices by name. Revision 2 makes AML's integers 64 bits wide."""
    devices = [
        _pci_host_bridge(pci_window_64),
        # Linux uses ECAM only where a motherboard resource reserves it.
        _device("MRES", "PNP0C02", aml.memory32_fixed(layout.ECAM, layout.ECAM_SIZE)),
        _device(
            "KBD",
            "PNP0303",
            aml.io(layout.KEYBOARD_DATA, 1),
            aml.io(layout.KEYBOARD_COMMAND, 1),
            aml.irq(layout.KEYBOARD_IRQ),
        ),
        _device("MOU", "PNP0F13", aml.irq(layout.MOUSE_IRQ)),
        _device("RTC", "PNP0B00", aml.io(layout.CMOS_PORTS, 2), aml.irq(layout.RTC_IRQ)),
        _device("PEVT", "QEMU0001", aml.io(layout.PVPANIC, 1)),
    ]
    for index in range(serial_ports):
        devices.append(
            _device(
                f"COM{index + 1}",
                "PNP0501",
                aml.io(layout.SERIAL_PORTS[index], 8),
                aml.irq(layout.SERIAL_IRQS[index]),
                uid=index + 1,
            )
        )
    for index, (command, control, irq) in enumerate(layout.IDE_CHANNELS[:ide_channels]):
        ports = aml.io(command, 8) + aml.io(control, 1)
        devices.append(_device(f"IDE{index}", "PNP0600", ports, aml.irq(irq), uid=index))
    for index, mmio in enumerate(virtio_mmio):
        devices.append(
            _device(
                f"VM{index:02X}",
                "LNRO0005",
                aml.memory32_fixed(mmio.base, mmio.size),
                aml.interrupt(mmio.gsi),
                uid=index,
            )
        )
    devices += [_device(f"C{cpu:03X}", "ACPI0007", uid=cpu) for cpu in range(cpus)]
    sleep_types = aml.package(layout.SLP_TYP_S5, layout.SLP_TYP_S5, 0, 0)
    body = aml.scope("\\_SB", *devices) + aml.name("\\_S5", sleep_types)
    return _table(b"DSDT", 2, body)


def _device(where: str, hid: str, *resources: bytes, uid: int | None = None) -> bytes:
    """A device with its hardware ID, an ID among those like it, and its resources."""
    content = [aml.name("_HID", aml.eisa_id(hid) if hid.startswith("PNP") else hid)]
    if uid is not None:
        content.append(aml.name("_UID", uid))
    if resources:
        content.append(aml.name("_CRS", aml.resource_template(*resources)))
    return aml.device(where, *content)


def _pci_host_bridge(window_64: tuple[int, int] | None) -> bytes:
    windows = [
        aml.word_bus_number(0, layout.ECAM_SIZE // _ECAM_BUS_SIZE - 1),
        aml.io(layout.PCI_CONFIG, 8),
        aml.word_io(layout.PCI_IO_WINDOW, layout.PCI_IO_WINDOW_END - 1),
        aml.dword_memory(layout.PCI_WINDOW, layout.PCI_WINDOW_END - 1),
    ]
    if window_64 is not None:
        windows.append(aml.qword_memory(window_64[0], window_64[1] - 1))
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_SEG", 0),
        aml.name("_BBN", 0),
        aml.name("_UID", 0),
        aml.name("_CRS", aml.resource_template(*windows)),
        aml.name("_PRT", aml.package(*_pci_routes())),
        _pci_osc(),
    )


def _pci_routes() -> Iterable[bytes]:
    """_PRT: interrupt pins hard-wired to IOAPIC inputs."""
    any_function = 0xFFFF
    hard_wired = 0
    for device in range(layout.PCI_DEVICES):
        for pin in range(layout.PCI_PINS):
            gsi = layout.pci_gsi(device, pin)
            yield aml.package(device << 16 | any_function, pin, hard_wired, gsi)


def _pci_osc() -> bytes:
    """_OSC: the operating system may control every PCI Express feature it asks for, since no
    firmware competes with it. Asked about anything else, the method doesn't know it."""
    uuid, capabilities = aml.arg(0), aml.arg(3)
    status = aml.path("CDW1")
    return aml.method(
        "_OSC",
        4,
        aml.if_(aml.equal(uuid, aml.uuid(_PCI_OSC_UUID)), aml.return_(capabilities)),
        aml.create_dword_field(capabilities, 0, "CDW1"),
        aml.or_(status, _OSC_UNRECOGNIZED_UUID, status),
        aml.return_(capabilities),
    )
