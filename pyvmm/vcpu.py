"""One thread a vCPU: run the guest, dispatch its exits, until told to stop.

The loop is the hottest code that we have, so its handlers are closures over what they need and
are looked up by exit reason in a list. It checks no flag: whoever wants the thread's attention
sets kvm_run's ``immediate_exit`` and sends a signal, and KVM_RUN returns -EINTR (api.rst,
section 5, "immediate_exit").
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
from collections.abc import Callable, Collection
from typing import Any

from pyvmm.boot.entry import EntryState
from pyvmm.bus import Bus
from pyvmm.errors import KvmError
from pyvmm.kvm._kvm import lib
from pyvmm.kvm.ioctl import check
from pyvmm.kvm.vcpu import Vcpu, install_kick_handler
from pyvmm.threads import NamedThread

PIO_DETAIL = struct.Struct("<BBHI")
"""kvm_run.io: direction, size, port, count; the data lie at PIO_DATA_PAGE."""

MMIO_DETAIL = struct.Struct("<Q8xIB")
"""kvm_run.mmio: phys_addr, data[8] (read through a view), len, is_write."""

INTERNAL_DETAIL = struct.Struct("<II")
"""kvm_run.internal: suberror, ndata; data follow."""

FAIL_ENTRY_DETAIL = struct.Struct("<QI")
"""kvm_run.fail_entry: hardware_entry_failure_reason, cpu."""

SYSTEM_EVENT_RESET = 2

EXIT_REASONS: dict[int, str] = {
    getattr(lib, name): name.removeprefix("KVM_EXIT_")
    for name in dir(lib)
    if name.startswith("KVM_EXIT_") and not name.startswith("KVM_EXIT_IO_")
}


class GuestCrash(Exception):
    """The guest can't go on: a triple fault, a KVM internal error or a failed entry."""

    def __init__(self, summary: str, instruction: bytes = b"") -> None:
        super().__init__(summary)
        self.summary = summary
        self.instruction = instruction


class TripleFault(GuestCrash):
    """An exception while handling a double fault. A PC's chipset answers it with a reset, so some
    kernels do it on purpose."""

    def __init__(self) -> None:
        super().__init__("triple fault")


Handlers = list[Callable[[], None]]
"""What answers each exit, by its reason."""


class VcpuThread:
    """Runs ``vcpu`` on a thread of its own, from each :meth:`start` to the next :meth:`pause`.

    ``host_cpus`` are the CPUs of the host that the thread may use; all if there are none. While it
    is paused there is no thread: who needs the vCPU's state finds it complete, the last
    exit's access included.

    ``trace`` makes of the table of handlers, by exit reason, one that records what they do.

    The callbacks are called on that thread: ``on_reset`` when KVM reports that the guest asked for
    a reset; ``on_crash`` when the guest can't go on, ``on_error`` for a KVM_RUN that fails and for
    an exception that is our bug: after these two the thread ends.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        pio: Bus,
        mmio: Bus,
        *,
        on_crash: Callable[[VcpuThread, GuestCrash], None],
        on_reset: Callable[[], None],
        on_error: Callable[[BaseException], None],
        host_cpus: Collection[int] = (),
        trace: Callable[[Vcpu, Handlers], Handlers] | None = None,
    ) -> None:
        self.vcpu = vcpu
        self._host_cpus = host_cpus
        self._trace = trace
        self._on_crash = on_crash
        self._on_reset = on_reset
        self._on_error = on_error
        self._buses = pio, mmio
        self._handlers = self._build_handlers(pio, mmio)
        self._wrap: Callable[[Handlers], Handlers] | None = None
        self.on_left: Callable[[], None] | None = None
        """Called by the thread when it has left the guest, for whatever reason."""
        self._kick_signal = install_kick_handler()
        self._stopped = False
        self._leaving = False
        self._control = threading.Lock()
        self._ident: int | None = None  # while the thread can be kicked
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """Run the guest, from where it was left if it was. Not while it runs; nothing happens
        after :meth:`stop`, and it returns False then."""
        with self._control:
            if self._stopped:
                return False
            self._leaving = False
            self.vcpu.set_immediate_exit(False)
            name = f"pyvmm-vcpu{self.vcpu.id}"
            self._thread = NamedThread(target=self._main, name=name, daemon=True)
            self._thread.start()
            return True

    def pause(self) -> None:
        """Leave the guest; returns without waiting, see :meth:`join`. Idempotent."""
        with self._control:
            self._leave()

    def stop(self) -> None:
        """Leave the guest for good, as :meth:`pause`."""
        with self._control:
            self._stopped = True
            self._leave()

    def _leave(self) -> None:
        self._leaving = True
        self.vcpu.set_immediate_exit(True)
        if self._ident is not None:
            signal.pthread_kill(self._ident, self._kick_signal)

    def join(self) -> None:
        """Wait for the thread's end, unless this is it or there is none."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def replace(self, vcpu: Vcpu) -> None:
        """Run ``vcpu`` from the next :meth:`start` on; while it is paused."""
        with self._control:
            self.vcpu = vcpu
            handlers = self._build_handlers(*self._buses)
            self._handlers = handlers if self._wrap is None else self._wrap(handlers)

    def wrap_handlers(self, wrap: Callable[[Handlers], Handlers] | None) -> None:
        """Have ``wrap`` make the table of handlers, by exit reason, from the usual one: now, and
        for each vCPU that :meth:`replace` brings. Without it, the usual one. While it is paused."""
        with self._control:
            self._wrap = wrap
        self.replace(self.vcpu)

    def _main(self) -> None:
        # Whoever started this process may have left the signal blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (self._kick_signal,))
        self._ident = threading.get_ident()  # whoever kicked before has set immediate_exit
        try:
            if self._host_cpus:
                os.sched_setaffinity(0, self._host_cpus)
            try:
                self._loop()
            except GuestCrash as crash:
                self._on_crash(self, crash)
        except BaseException as error:
            self._on_error(error)
        finally:
            with self._control:
                self._ident = None
            if self.on_left is not None:
                self.on_left()

    def _loop(self) -> None:
        run, argument = self.vcpu.runner()
        handlers = self._handlers
        while True:
            reason = run(argument)
            if reason >= 0:
                handlers[reason]()
            elif reason in (-errno.EINTR, -errno.EAGAIN):  # a kick; or an AP that got its SIPI
                if self._leaving:
                    return
            else:
                check("KVM_RUN", reason)

    def _build_handlers(self, pio: Bus, mmio: Bus) -> list[Callable[[], None]]:
        def ignore() -> None:
            """The exit asks nothing of us."""

        def unexpected() -> None:
            reason = int.from_bytes(page[lib.RUN_EXIT_REASON : lib.RUN_EXIT_REASON + 4], "little")
            raise GuestCrash(f"unexpected exit {EXIT_REASONS.get(reason, reason)}")

        page = self.vcpu.run_page
        handlers: list[Callable[[], None]] = [unexpected] * 64
        handlers[lib.KVM_EXIT_IO] = _io_handler(page, pio)
        handlers[lib.KVM_EXIT_MMIO] = _mmio_handler(page, mmio)
        handlers[lib.KVM_EXIT_INTR] = ignore
        handlers[lib.KVM_EXIT_IRQ_WINDOW_OPEN] = ignore
        handlers[lib.KVM_EXIT_SHUTDOWN] = self._shutdown
        handlers[lib.KVM_EXIT_FAIL_ENTRY] = self._fail_entry
        handlers[lib.KVM_EXIT_INTERNAL_ERROR] = self._internal_error
        handlers[lib.KVM_EXIT_SYSTEM_EVENT] = self._system_event
        return handlers if self._trace is None else self._trace(self.vcpu, handlers)

    def _shutdown(self) -> None:
        raise TripleFault

    def _fail_entry(self) -> None:
        reason, cpu = FAIL_ENTRY_DETAIL.unpack_from(self.vcpu.run_page, lib.RUN_DETAIL)
        raise GuestCrash(f"the CPU refused to enter the guest, reason {reason:#x} on CPU {cpu}")

    def _internal_error(self) -> None:
        page, detail = self.vcpu.run_page, lib.RUN_DETAIL
        suberror, ndata = INTERNAL_DETAIL.unpack_from(page, detail)
        words = struct.unpack_from(f"<{min(ndata, 16)}Q", page, detail + INTERNAL_DETAIL.size)
        if suberror == lib.KVM_INTERNAL_ERROR_EMULATION:
            instruction = b""
            flags = words[0] if words else 0
            if flags & lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES:
                start = detail + INTERNAL_DETAIL.size + 8
                size = min(page[start], 15)
                instruction = bytes(page[start + 1 : start + 1 + size])
            raise GuestCrash("KVM can't emulate an instruction", instruction)
        data = " ".join(f"{word:#x}" for word in words)
        raise GuestCrash(f"KVM internal error, suberror {suberror}, data {data or 'none'}")

    def _system_event(self) -> None:
        (event,) = struct.unpack_from("<I", self.vcpu.run_page, lib.RUN_DETAIL)
        if event != SYSTEM_EVENT_RESET:
            raise GuestCrash(f"KVM system event {event}")
        self._on_reset()


def data_views(page: memoryview, offset: int) -> list[Any]:
    """Views of the data of an exit as one 1-, 2-, 4- or 8-byte number, indexed by that size."""
    data = page[offset : offset + 8]
    views: list[Any] = [None] * 9
    views[1], views[2], views[4], views[8] = data, data.cast("H"), data.cast("I"), data.cast("Q")
    return views


def _io_handler(page: memoryview, bus: Bus) -> Callable[[], None]:
    """KVM_EXIT_IO: an ``in`` or ``out``, or a burst of ``ins`` or ``outs``."""
    unpack, detail = PIO_DETAIL.unpack_from, lib.RUN_DETAIL
    numbers = data_views(page, lib.PIO_DATA_PAGE)
    read, write = bus.read, bus.write

    def handle() -> None:
        direction, size, port, count = unpack(page, detail)
        if count != 1:
            burst(direction, size, port, count)
        elif direction:
            write(port, size, numbers[size][0])
        else:
            numbers[size][0] = read(port, size)

    def burst(direction: int, size: int, port: int, count: int) -> None:
        data = page[lib.PIO_DATA_PAGE : lib.PIO_DATA_PAGE + size * count]
        if not direction:
            bus.read_string(port, size, data)
            return
        for start in range(0, size * count, size):
            write(port, size, int.from_bytes(data[start : start + size], "little"))

    return handle


def _mmio_handler(page: memoryview, bus: Bus) -> Callable[[], None]:
    """KVM_EXIT_MMIO: a load from or store to a GPA without memory behind it.

    An access of an odd length (one that crosses a page) is done byte by byte.
    """
    unpack, detail = MMIO_DETAIL.unpack_from, lib.RUN_DETAIL
    numbers = data_views(page, detail + 8)
    octets = page[detail + 8 : detail + 16]
    read, write = bus.read, bus.write

    def handle() -> None:
        address, length, is_write = unpack(page, detail)
        number = numbers[length]
        if number is None:
            piecewise(address, length, is_write)
        elif is_write:
            write(address, length, number[0])
        else:
            number[0] = read(address, length)

    def piecewise(address: int, length: int, is_write: int) -> None:
        for index in range(length):
            if is_write:
                write(address + index, 1, octets[index])
            else:
                octets[index] = read(address + index, 1)

    return handle


RESET_VECTOR = 0xFFFF_FFF0

MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS = 0x1A0, 1 << 0
MSR_MTRR_DEF_TYPE, MTRR_ENABLE, MTRR_WRITE_BACK = 0x2FF, 1 << 11, 6

LAPIC_LVT_LINT0, LAPIC_LVT_LINT1 = 0x350, 0x360
DELIVERY_NMI, DELIVERY_EXTINT = 4 << 8, 7 << 8


def prepare(vcpu: Vcpu) -> None:
    """What firmware leaves on every CPU: fast string operations, and all memory write-back by
    the MTRRs, without which Linux takes its caches to be off. MSRs that the CPU lacks are
    passed over; the other bits of MISC_ENABLE are KVM's, which tells there what it can't do."""
    msrs = vcpu.get_msrs([MSR_MISC_ENABLE])
    msrs = {index: value | MISC_ENABLE_FAST_STRINGS for index, value in msrs.items()}
    vcpu.set_msrs({**msrs, MSR_MTRR_DEF_TYPE: MTRR_ENABLE | MTRR_WRITE_BACK})


def at_reset_vector(vcpu: Vcpu) -> bool:
    """Whether the vCPU is where a CPU starts after RESET or INIT (SDM volume 3, section 9.1.4)."""
    try:
        return bool(vcpu.get_sregs()["cs"]["base"] + vcpu.get_regs()["rip"] == RESET_VECTOR)
    except KvmError:
        return False  # nobody can tell


def enter(vcpu: Vcpu, entry: EntryState) -> None:
    """Put the boot vCPU in the state that ``entry`` describes, with the PIC's output and NMI
    reaching its local APIC (Intel MP specification, "virtual wire mode")."""
    sregs = vcpu.get_sregs()
    for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt", "gdt", "idt"):
        sregs[name] = getattr(entry, name)._asdict()
    sregs.update(cr0=entry.cr0, cr3=entry.cr3, cr4=entry.cr4, efer=entry.efer)
    vcpu.set_sregs(sregs)
    vcpu.set_regs(dict.fromkeys(vcpu.get_regs(), 0) | entry.registers)

    lapic = bytearray(vcpu.get_lapic())
    struct.pack_into("<I", lapic, LAPIC_LVT_LINT0, DELIVERY_EXTINT)
    struct.pack_into("<I", lapic, LAPIC_LVT_LINT1, DELIVERY_NMI)
    vcpu.set_lapic(bytes(lapic))
