"""The other ends of the devices' wires: lines, messages and doorbells in the kernel.

KVM has one table from GSIs to interrupt controller pins and messages (api.rst, section 4.52). The
first 24 GSIs are the wires of a PC; those above are handed out to MSI vectors, each with an
irqfd, so that a device's thread interrupts the guest by a write to an eventfd.
"""

from __future__ import annotations

import os
import threading

from pyvmm import layout
from pyvmm.errors import HostError
from pyvmm.interrupts import IrqLine
from pyvmm.kvm.vm import IOAPIC, PIC_MASTER, PIC_SLAVE, ChipRoute, MsiRoute, Vm


def pc_routes() -> list[ChipRoute]:
    """The wiring of a PC: ISA interrupts reach both the PICs and the IOAPIC, IRQ 0 pin 2 of it;
    GSIs 16 to 23 reach the IOAPIC only."""
    routes = []
    for irq in range(16):
        if irq != layout.PIT_IOAPIC_PIN:  # the cascade: no device drives IRQ 2
            chip = PIC_MASTER if irq < 8 else PIC_SLAVE
            routes.append(ChipRoute(irq, chip, irq % 8))
            pin = layout.PIT_IOAPIC_PIN if irq == layout.PIT_IRQ else irq
            routes.append(ChipRoute(irq, IOAPIC, pin))
    routes += [
        ChipRoute(gsi, IOAPIC, gsi) for gsi in range(layout.PCI_INTX_GSI, layout.FIRST_MSI_GSI)
    ]
    return routes


class InterruptRouter:
    """Gives devices their lines and MSI vectors (:class:`~pyvmm.interrupts.MsiController`)."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._lock = threading.Lock()
        self._chip_routes = pc_routes()
        self._messages: dict[int, MsiRoute] = {}
        gsis = range(layout.FIRST_MSI_GSI, vm.check_extension("KVM_CAP_IRQ_ROUTING"))
        self._free = list(reversed(gsis))  # so that the lowest is taken first
        self._vectors: set[KvmMsiVector] = set()
        vm.set_gsi_routing(self._chip_routes)

    def line(self, gsi: int) -> IrqLine:
        """The wire to ``gsi``."""
        return IrqLine(lambda level: self._vm.irq_line(gsi, level))

    def vector(self) -> KvmMsiVector:
        with self._lock:
            if not self._free:
                raise HostError("KVM has no GSI left for another MSI vector", "use fewer devices")
            vector = KvmMsiVector(self._vm, self, self._free.pop())
            self._vectors.add(vector)
            return vector

    def move(self, vm: Vm) -> None:
        """The machine goes on with another VM: what devices hold leads there from now on. All
        lines must be low, and nobody may use them or a vector meanwhile."""
        with self._lock:
            vm.set_gsi_routing([*self._chip_routes, *self._messages.values()])
            for vector in self._vectors:
                vector.move(vm)
            self._vm = vm

    def set_message(self, gsi: int, message: MsiRoute | None) -> None:
        """Route ``gsi`` to ``message``, or nowhere."""
        with self._lock:
            if self._messages.get(gsi) == message:
                return
            if message is None:
                del self._messages[gsi]
            else:
                self._messages[gsi] = message
            self._vm.set_gsi_routing([*self._chip_routes, *self._messages.values()])

    def release(self, vector: KvmMsiVector) -> None:
        """Take back a vector with its GSI."""
        self.set_message(vector.gsi, None)
        with self._lock:
            self._vectors.discard(vector)
            self._free.append(vector.gsi)


class KvmMsiVector:
    """An eventfd that KVM turns into a message (:class:`~pyvmm.interrupts.MsiVector`)."""

    def __init__(self, vm: Vm, router: InterruptRouter, gsi: int) -> None:
        self._vm = vm
        self._router = router
        self.gsi = gsi
        self._eventfd = -1

    def route(self, address: int, data: int) -> None:
        self._router.set_message(self.gsi, MsiRoute(self.gsi, address, data))
        if self._eventfd < 0:
            self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._vm.irqfd(self._eventfd, self.gsi)

    def fire(self) -> None:
        if self._eventfd >= 0:
            os.eventfd_write(self._eventfd, 1)

    def move(self, vm: Vm) -> None:
        """See :meth:`InterruptRouter.move`. An eventfd can't serve two VMs."""
        if self._eventfd >= 0:
            self._vm.irqfd(self._eventfd, self.gsi, assign=False)
            vm.irqfd(self._eventfd, self.gsi)
        self._vm = vm

    def close(self) -> None:
        if self._eventfd >= 0:
            self._vm.irqfd(self._eventfd, self.gsi, assign=False)
            os.close(self._eventfd)
            self._eventfd = -1
        self._router.release(self)


class KvmDoorbells:
    """ioeventfds for MMIO doorbells (:class:`~pyvmm.bus.DoorbellController`)."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def move(self, vm: Vm) -> None:
        """The machine goes on with another VM; no doorbell may be attached."""
        self._vm = vm

    def attach(self, address: int, length: int, eventfd: int, match: int | None = None) -> None:
        self._vm.ioeventfd(eventfd, address, length, datamatch=match)

    def detach(self, address: int, length: int, eventfd: int, match: int | None = None) -> None:
        self._vm.ioeventfd(eventfd, address, length, datamatch=match, assign=False)
