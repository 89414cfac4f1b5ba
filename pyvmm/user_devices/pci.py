"""A user's PCI device: a function with BAR 0 for the registers, and INTA or MSI-X."""

from __future__ import annotations

from typing import Any

from pyvmm.board import Requests, Wiring
from pyvmm.devices.pci import INTA, BarKind, PciFunction, PciIdentity
from pyvmm.interrupts import IrqLine
from pyvmm.user_devices.attachment import Attachment
from pyvmm.user_devices.interface import PciDevice

REGISTERS_BAR, MSIX_BAR = 0, 1


class PciAttachment(Attachment):
    """As every attachment, and the PCI ``function`` that it is reached by."""

    def __init__(self, device: PciDevice, name: str, wiring: Wiring, requests: Requests) -> None:
        super().__init__(device, name, wiring, requests)
        identity = PciIdentity(
            device.vendor_id, device.device_id, device.class_code, device.revision
        )
        self.function = PciFunction(identity, interrupt_pin=INTA)
        kind = BarKind.IO if device.io else BarKind.MEMORY32
        self.function.add_bar(
            REGISTERS_BAR, device.length, kind, self, name, max_size=device.max_size
        )
        if device.msix_vectors:
            self.function.add_msix(MSIX_BAR, device.msix_vectors, wiring.msi, name)
        device.irq = IrqLine(self.function.set_intx)

    def fire(self, vector: int) -> None:
        msix = self.function.msix
        if msix is None or not 0 <= vector < msix.size:
            raise ValueError(f"there is no MSI-X vector {vector}: see msix_vectors")
        msix.fire(vector)

    def msix_enabled(self) -> bool:
        return self.function.msix is not None and self.function.msix.enabled

    def close(self) -> None:
        super().close()
        if self.function.msix is not None:
            self.function.msix.close()

    def save(self) -> dict[str, Any]:
        return {**super().save(), "irq": False}  # the wire's level is the function's to remember
