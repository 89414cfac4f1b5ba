"""A VM: its memory slots, interrupt controllers, event descriptors and vCPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from pyvmm.kvm._kvm import ffi, lib
from pyvmm.kvm.ioctl import check, ioctl, ioctl_value
from pyvmm.kvm.vcpu import MIN_XSAVE_SIZE, Vcpu

PIC_MASTER: int = lib.KVM_IRQCHIP_PIC_MASTER
PIC_SLAVE: int = lib.KVM_IRQCHIP_PIC_SLAVE
IOAPIC: int = lib.KVM_IRQCHIP_IOAPIC


class ChipRoute(NamedTuple):
    """GSI → an input pin of an in-kernel interrupt controller."""

    gsi: int
    irqchip: int
    pin: int


class MsiRoute(NamedTuple):
    """GSI → a message."""

    gsi: int
    address: int
    data: int


class Vm:
    """A VM's file descriptor and its ioctls; from :meth:`pyvmm.kvm.Kvm.create_vm`."""

    def __init__(self, fd: int, run_size: int) -> None:
        self.fd = fd
        self._run_size = run_size

    def close(self) -> None:
        """Close the descriptor; the VM goes when its last vCPU is closed too."""
        os.close(self.fd)

    def check_extension(self, capability: str) -> int:
        """As :meth:`Kvm.check_extension`, for this VM."""
        return ioctl_value(self.fd, "KVM_CHECK_EXTENSION", getattr(lib, capability))

    def enable_cap(self, capability: str, *arguments: int) -> None:
        """Switch on an optional behaviour (api.rst, section 4.37 and chapter 7)."""
        request = ffi.new("struct kvm_enable_cap *", {"cap": getattr(lib, capability)})
        for index, argument in enumerate(arguments):
            request.args[index] = argument
        ioctl(self.fd, "KVM_ENABLE_CAP", request)

    def set_user_memory_region(
        self, slot: int, gpa: int, memory: memoryview, *, readonly: bool = False
    ) -> None:
        """Let ``memory`` (host pages, kept alive by the caller) appear at ``gpa``."""
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
        ioctl(
            self.fd,
            "KVM_SET_USER_MEMORY_REGION",
            ffi.new(
                "struct kvm_userspace_memory_region *",
                {
                    "slot": slot,
                    "flags": lib.KVM_MEM_READONLY if readonly else 0,
                    "guest_phys_addr": gpa,
                    "memory_size": memory.nbytes,
                    "userspace_addr": address,
                },
            ),
        )

    def set_tss_addr(self, gpa: int) -> None:
        """Three pages that Intel's real-mode emulation needs, away from RAM."""
        ioctl_value(self.fd, "KVM_SET_TSS_ADDR", gpa)

    def set_identity_map_addr(self, gpa: int) -> None:
        """One page, as above."""
        ioctl(self.fd, "KVM_SET_IDENTITY_MAP_ADDR", ffi.new("uint64_t *", gpa))

    def create_irqchip(self) -> None:
        """PICs, IOAPIC and (with each vCPU) a local APIC in the kernel; before any vCPU."""
        ioctl_value(self.fd, "KVM_CREATE_IRQCHIP")

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """A new vCPU, whose number is its APIC ID."""
        fd = ioctl_value(self.fd, "KVM_CREATE_VCPU", vcpu_id)
        sync_regs = self.check_extension("KVM_CAP_SYNC_REGS") & lib.KVM_SYNC_X86_REGS
        xsave_size = max(MIN_XSAVE_SIZE, self.check_extension("KVM_CAP_XSAVE2"))
        return Vcpu(fd, vcpu_id, self._run_size, sync_regs=bool(sync_regs), xsave_size=xsave_size)

    def irq_line(self, gsi: int, level: bool) -> None:
        """Drive an input of the interrupt controllers."""
        ioctl(self.fd, "KVM_IRQ_LINE", ffi.new("struct kvm_irq_level *", (gsi, level)))

    def set_gsi_routing(self, routes: Sequence[ChipRoute | MsiRoute]) -> None:
        """Replace the whole table from GSIs to pins and messages."""
        table = ffi.new("struct pyvmm_route[]", len(routes))
        for slot, route in zip(table, routes, strict=True):
            slot.gsi = route.gsi
            if isinstance(route, MsiRoute):
                slot.is_msi, slot.address, slot.data = 1, route.address, route.data
            else:
                slot.irqchip, slot.pin = route.irqchip, route.pin
        check("KVM_SET_GSI_ROUTING", lib.pyvmm_set_routes(self.fd, table, len(routes)))

    def irqfd(self, eventfd: int, gsi: int, *, assign: bool = True) -> None:
        """A write to ``eventfd`` triggers ``gsi``."""
        request = ffi.new("struct kvm_irqfd *", {"fd": eventfd, "gsi": gsi})
        request.flags = 0 if assign else lib.KVM_IRQFD_FLAG_DEASSIGN
        ioctl(self.fd, "KVM_IRQFD", request)

    def ioeventfd(
        self,
        eventfd: int,
        address: int,
        length: int,
        *,
        datamatch: int | None = None,
        pio: bool = False,
        assign: bool = True,
    ) -> None:
        """A guest's write of ``length`` bytes (0: any) at ``address``, of the value ``datamatch``
        if given, signals ``eventfd`` instead of leaving the guest."""
        flags = 0
        if pio:
            flags |= lib.KVM_IOEVENTFD_FLAG_PIO
        if datamatch is not None:
            flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
        if not assign:
            flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN
        ioctl(
            self.fd,
            "KVM_IOEVENTFD",
            ffi.new(
                "struct kvm_ioeventfd *",
                {
                    "datamatch": datamatch or 0,
                    "addr": address,
                    "len": length,
                    "fd": eventfd,
                    "flags": flags,
                },
            ),
        )

    def signal_msi(self, address: int, data: int) -> bool:
        """Send a message to the local APICs; whether one accepted it."""
        message = ffi.new(
            "struct kvm_msi *",
            {"address_lo": address & 0xFFFF_FFFF, "address_hi": address >> 32, "data": data},
        )
        return ioctl(self.fd, "KVM_SIGNAL_MSI", message) > 0
