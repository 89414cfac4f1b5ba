"""Where everything lies: guest-physical addresses, ports and interrupt numbers.

Where QEMU has a well-known place for something, ours is the same, because kernels, firmware and
test suites already look there. Guest-physical memory, lowest first::

    0x0000_0000  low RAM: boot GDT, zero page, boot page tables, command line
    0x0009_FC00  EBDA, VGA hole (the text screen at 0x000B_8000), option ROMs
    0x000E_0000  ACPI tables; MP tables at 0x000F_0000
    0x0010_0000  RAM, up to 3 GiB
    0xC000_0000  PCI memory window
    0xE000_0000  ECAM (PCI configuration space of bus 0)
    0xE800_0000  virtio-mmio
    0xF000_0000  nothing of ours: for devices that the user writes
    0xFEC0_0000  IOAPIC; LAPIC at 0xFEE0_0000
    0xFFFB_C000  KVM's identity-map page and TSS
    0xFFFC_0000  firmware, up to 4 GiB; its end appears in RAM below 1 MiB as well
    0x1_0000_0000  RAM beyond 3 GiB
"""

from __future__ import annotations

from typing import NamedTuple

# Low RAM: what the VMM prepares for a kernel's entry.
BOOT_GDT = 0x0500
PVH_START_INFO = 0x6000
ZERO_PAGE = 0x7000
BOOT_STACK_TOP = 0x8FF0
BOOT_PAGE_TABLES = 0x9000
MULTIBOOT_INFO = 0x1_0000
MULTIBOOT_INFO_SIZE = 0x1_0000
COMMAND_LINE = 0x2_0000
EBDA = 0x9_FC00
TEXT_SCREEN, TEXT_SCREEN_SIZE = 0xB_8000, 0x8000
ACPI_TABLES = 0xE_0000
ACPI_TABLES_END = 0xF_0000
MP_TABLE = 0xF_0000
MP_TABLE_END = 0xF_1000
HIGH_RAM = 0x10_0000

# The MMIO hole below 4 GiB.
PCI_WINDOW = 0xC000_0000
PCI_WINDOW_END = 0xE000_0000
ECAM = 0xE000_0000
ECAM_SIZE = 0x10_0000
VIRTIO_MMIO = 0xE800_0000
VIRTIO_MMIO_SIZE = 0x200
VIRTIO_MMIO_SLOTS = 32
IOAPIC = 0xFEC0_0000
LOCAL_APIC = 0xFEE0_0000
KVM_IDENTITY_MAP = 0xFFFB_C000
KVM_TSS = 0xFFFB_D000
ROM_END = 0x1_0000_0000
ROM_MAX_SIZE = 0x4_0000
ROM_SHADOW_SIZE = 0x4_0000
"""How much of a ROM real-mode code can see, from 0xC0000 on."""

# Ports.
PIT_PORTS = 0x40
KEYBOARD_DATA = 0x60
PIT_GATE = 0x61
KEYBOARD_COMMAND = 0x64
CMOS_PORTS = 0x70
IDE_CHANNELS = ((0x1F0, 0x3F6, 14), (0x170, 0x376, 15))
"""Command block, device control register and IRQ."""
CMOS_CENTURY = 0x32
"""Where CMOS RAM has the century; the FADT tells the guest."""
FW_CFG, FW_CFG_PORTS = 0x510, 12
POST_PORT = 0x80
SYSTEM_CONTROL_A = 0x92
VIDEO_PORTS = 0x3C0
CRTC_PORTS = 0x3D4
VIDEO_STATUS = 0x3D8
TEXT_SCREEN_PORTS = (VIDEO_PORTS, VIDEO_STATUS + 3 - VIDEO_PORTS)
"""The first, and how many from there on are the text screen's."""
DEBUG_CONSOLE = 0xE9
DELAY_PORT = 0xED
DEBUG_EXIT = 0xF4
SERIAL_PORTS = (0x3F8, 0x2F8, 0x3E8, 0x2E8)
PVPANIC = 0x505
BIOS_SERVICES = 0x5A0
PM1A_EVENT = 0x600
PM1A_CONTROL = 0x604
PM_TIMER = 0x608
SLP_TYP_S5 = 5
"""The sleep type in PM1a control that means soft-off; the DSDT's ``\\_S5`` tells the guest."""
PCI_CONFIG = 0xCF8
RESET_CONTROL = 0xCF9
RESET_VALUE = 0x06
"""What a guest writes to RESET_CONTROL for a full reset; the FADT tells it so."""
PCI_IO_WINDOW = 0xC000
PCI_IO_WINDOW_END = 0x1_0000

# Interrupts (GSIs; below 16 they are the ISA IRQs).
PIT_IRQ = 0
KEYBOARD_IRQ = 1
SERIAL_IRQS = (4, 3, 4, 3)
RTC_IRQ = 8
SCI_IRQ = 9
MOUSE_IRQ = 12
VIRTIO_MMIO_IRQS = (5, 6, 7, 10, 11, 14, 15)
"""The ISA interrupts that nothing else uses, as levels; with more devices than these they are
shared. PCI's wires won't do: Linux doesn't set up a GSI above 15 for a device that only its
command line names, and takes PCI's for active low."""
PIT_IOAPIC_PIN = 2
"""IRQ 0 arrives at pin 2 of the IOAPIC, as on every PC; the MADT says so."""
PCI_INTX_GSI = 16
PCI_INTX_LINES = 8
PCI_DEVICES, PCI_PINS = 32, 4
"""GSIs 16 to 23 are the wires that all functions' interrupt pins share: INTA of device 0 is the
first, and the others follow as ``(device + pin) % 8``."""
FIRST_MSI_GSI = 24
IOAPIC_ID = 0
"""Its APIC ID in the MADT; IOAPIC and LAPIC IDs are separate spaces on an xAPIC bus."""


class MmioSlot(NamedTuple):
    """The place of a virtio-mmio device."""

    base: int
    size: int
    gsi: int


def pci_gsi(device: int, pin: int) -> int:
    """The GSI of a PCI device's interrupt pin; INTA is 0."""
    return PCI_INTX_GSI + (device + pin) % PCI_INTX_LINES


def virtio_mmio_slot(number: int) -> MmioSlot:
    """Where the virtio-mmio device of that number is."""
    return MmioSlot(
        VIRTIO_MMIO + VIRTIO_MMIO_SIZE * number,
        VIRTIO_MMIO_SIZE,
        VIRTIO_MMIO_IRQS[number % len(VIRTIO_MMIO_IRQS)],
    )
