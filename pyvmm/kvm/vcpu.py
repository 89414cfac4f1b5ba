"""A vCPU: its state, and the call that runs it.

State goes in and out as plain values (dicts with the C structures' field names), so that it can be
printed, compared and saved as it is.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pyvmm.errors import HostError
from pyvmm.kvm._kvm import ffi, lib
from pyvmm.kvm.cpuid import CpuidEntry, entries_from, new_table, table_from
from pyvmm.kvm.ioctl import check, from_plain, ioctl, ioctl_value, to_plain

State = dict[str, Any]

MIN_XSAVE_SIZE = 4096
"""The size of struct kvm_xsave, which is all there is without KVM_CAP_XSAVE2."""

_LAPIC_PAGE = "char[1024]"  # KVM_APIC_REG_SIZE


class ExitRecord(NamedTuple):
    """An exit from the ring: the reason, the guest's RIP (0 if KVM doesn't sync registers), the
    first bytes of kvm_run's union, and the first 8 bytes of a PIO exit's data."""

    reason: int
    rip: int
    detail: bytes
    pio_data: int


class Vcpu:
    """A vCPU's file descriptor, its shared ``kvm_run`` page and its ioctls.

    ``run_page`` is the mapping that KVM and user space share: struct kvm_run, and at
    ``PIO_DATA_PAGE`` the data of port I/O.
    """

    def __init__(
        self, fd: int, vcpu_id: int, run_size: int, *, sync_regs: bool, xsave_size: int
    ) -> None:
        self.fd = fd
        self.id = vcpu_id
        self._xsave_size = xsave_size
        try:
            self._mapping = mmap.mmap(fd, run_size)
        except OSError as error:
            os.close(fd)
            raise HostError(f"can't map the state of vCPU {vcpu_id}: {error.strerror}") from error
        self.run_page = memoryview(self._mapping)
        self._native = ffi.new("struct pyvmm_vcpu *", {"fd": fd})
        self._native.run = ffi.from_buffer(self._mapping)
        if sync_regs:  # each exit then leaves RIP in the shared page
            struct.pack_into("<Q", self.run_page, lib.RUN_VALID_REGS, lib.KVM_SYNC_X86_REGS)

    def close(self) -> None:
        os.close(self.fd)

    def runner(self) -> tuple[Callable[[Any], int], Any]:
        """What :meth:`run` does, as a bare C function and its argument, for the exit loop, which
        can't afford an attribute look-up."""
        return lib.pyvmm_run, self._native

    def run(self) -> int:
        """Run the guest until it exits: the exit reason, or a negative errno (-EINTR after a
        kick). The GIL is released meanwhile."""
        return lib.pyvmm_run(self._native)  # type: ignore[no-any-return]

    def set_immediate_exit(self, on: bool) -> None:
        """Make the next :meth:`run` return -EINTR at once; safe from any thread."""
        self.run_page[lib.RUN_IMMEDIATE_EXIT] = on

    @property
    def exits(self) -> int:
        """How many exits there were so far."""
        return int(self._native.exits)

    def recent_exits(self) -> list[ExitRecord]:
        """The last exits, oldest first; at most ``EXIT_RING_SLOTS``."""
        count, slots = self._native.exits, self._native.ring
        first = max(0, count - lib.EXIT_RING_SLOTS)
        return [
            ExitRecord(slot.reason, slot.rip, bytes(slot.detail), slot.pio_data)
            for slot in (slots[i % lib.EXIT_RING_SLOTS] for i in range(first, count))
        ]

    def get_regs(self) -> State:
        """General registers, RIP and RFLAGS."""
        return self._get("KVM_GET_REGS", "struct kvm_regs *")

    def set_regs(self, regs: State) -> None:
        self._set("KVM_SET_REGS", "struct kvm_regs *", regs)

    def get_sregs(self) -> State:
        """Segments, descriptor tables, control registers, EFER and the APIC base."""
        return self._get("KVM_GET_SREGS", "struct kvm_sregs *")

    def set_sregs(self, sregs: State) -> None:
        self._set("KVM_SET_SREGS", "struct kvm_sregs *", sregs)

    def get_fpu(self) -> State:
        """x87 and SSE registers."""
        return self._get("KVM_GET_FPU", "struct kvm_fpu *")

    def set_fpu(self, fpu: State) -> None:
        self._set("KVM_SET_FPU", "struct kvm_fpu *", fpu)

    def get_debugregs(self) -> State:
        return self._get("KVM_GET_DEBUGREGS", "struct kvm_debugregs *")

    def set_debugregs(self, debugregs: State) -> None:
        self._set("KVM_SET_DEBUGREGS", "struct kvm_debugregs *", debugregs)

    def get_mp_state(self) -> int:
        """A KVM_MP_STATE value: running, halted, waiting for INIT or SIPI."""
        return int(self._get("KVM_GET_MP_STATE", "struct kvm_mp_state *")["mp_state"])

    def set_mp_state(self, mp_state: int) -> None:
        self._set("KVM_SET_MP_STATE", "struct kvm_mp_state *", {"mp_state": mp_state})

    def get_xcrs(self) -> State:
        return self._get("KVM_GET_XCRS", "struct kvm_xcrs *")

    def set_xcrs(self, xcrs: State) -> None:
        self._set("KVM_SET_XCRS", "struct kvm_xcrs *", xcrs)

    def get_vcpu_events(self) -> State:
        """Pending and injected exceptions, interrupts, NMIs and SMIs."""
        events = ffi.new("struct pyvmm_events *")
        check("KVM_GET_VCPU_EVENTS", lib.pyvmm_get_events(self.fd, events))
        plain: State = to_plain(events)
        return plain

    def set_vcpu_events(self, events: State) -> None:
        structure = from_plain(ffi.new("struct pyvmm_events *"), events)
        check("KVM_SET_VCPU_EVENTS", lib.pyvmm_set_events(self.fd, structure))

    def get_lapic(self) -> bytes:
        """The local APIC's register page, 1 KiB."""
        page = ffi.new(_LAPIC_PAGE)
        ioctl(self.fd, "KVM_GET_LAPIC", page)
        return bytes(ffi.buffer(page))

    def set_lapic(self, page: bytes) -> None:
        ioctl(self.fd, "KVM_SET_LAPIC", ffi.new(_LAPIC_PAGE, page))

    def get_xsave(self) -> bytes:
        """The XSAVE area (SDM volume 1, chapter 13)."""
        area = ffi.new("char[]", self._xsave_size)
        name = "KVM_GET_XSAVE2" if self._xsave_size > MIN_XSAVE_SIZE else "KVM_GET_XSAVE"
        ioctl(self.fd, name, area)
        return bytes(ffi.buffer(area))

    def set_xsave(self, area: bytes) -> None:
        buffer = ffi.new("char[]", self._xsave_size)
        ffi.buffer(buffer)[0 : len(area)] = area
        ioctl(self.fd, "KVM_SET_XSAVE", buffer)

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """The values of those of ``indices`` that this vCPU has."""
        values: dict[int, int] = {}
        remaining = list(indices)
        while remaining:
            table = _msr_table((index, 0) for index in remaining)
            done = ioctl(self.fd, "KVM_GET_MSRS", table)
            for entry in table.entries[0:done]:
                values[entry.index] = entry.data
            remaining = remaining[done + 1 :]  # the one it stopped at doesn't exist
        return values

    def set_msrs(self, values: Mapping[int, int]) -> list[int]:
        """Set MSRs; the indices that this vCPU refused."""
        refused = []
        remaining = list(values.items())
        while remaining:
            table = _msr_table(remaining)
            done = ioctl(self.fd, "KVM_SET_MSRS", table)
            if done < len(remaining):
                refused.append(remaining[done][0])
            remaining = remaining[done + 1 :]
        return refused

    def get_cpuid2(self) -> list[CpuidEntry]:
        """What was set. Older kernels don't say how many entries that is, so those that are
        all zeros are left out."""
        table = new_table(256)
        ioctl(self.fd, "KVM_GET_CPUID2", table)
        return [entry for entry in entries_from(table) if any(entry)]

    def set_cpuid2(self, entries: Sequence[CpuidEntry]) -> None:
        """What the guest's CPUID returns; before the first run."""
        ioctl(self.fd, "KVM_SET_CPUID2", table_from(entries))

    def translate(self, linear_address: int) -> int | None:
        """The GPA of a linear address by the vCPU's page tables; None if it isn't mapped."""
        request = ffi.new("struct kvm_translation *", {"linear_address": linear_address})
        ioctl(self.fd, "KVM_TRANSLATE", request)
        return int(request.physical_address) if request.valid else None

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = (0,) * 8) -> None:
        """Single-stepping and breakpoints: a mask of KVM_GUESTDBG flags; 0 for none. ``debugreg``
        are DR0 to DR7 for KVM_GUESTDBG_USE_HW_BP; the guest's own stay what they are."""
        state = {"control": control, "arch": {"debugreg": list(debugreg)}}
        self._set("KVM_SET_GUEST_DEBUG", "struct kvm_guest_debug *", state)

    def nmi(self) -> None:
        """Raise a non-maskable interrupt."""
        ioctl_value(self.fd, "KVM_NMI")

    def _get(self, name: str, pointer_type: str) -> State:
        structure = ffi.new(pointer_type)
        ioctl(self.fd, name, structure)
        plain: State = to_plain(structure)
        return plain

    def _set(self, name: str, pointer_type: str, state: State) -> None:
        ioctl(self.fd, name, from_plain(ffi.new(pointer_type), state))


def _msr_table(values: Iterable[tuple[int, int]]) -> Any:
    pairs = list(values)
    table = ffi.new("struct kvm_msrs *", {"entries": len(pairs)})
    table.nmsrs = len(pairs)
    for entry, (index, data) in zip(table.entries, pairs, strict=True):
        entry.index, entry.data = index, data
    return table


def install_kick_handler() -> int:
    """Make the kick signal harmless in this process; its number, for pthread_kill."""
    check("sigaction", lib.pyvmm_install_kick_handler())
    return lib.pyvmm_kick_signal()  # type: ignore[no-any-return]
