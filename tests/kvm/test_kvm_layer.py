"""The KVM layer against the real thing: state goes in and out, events reach the guest, and what
goes wrong has a name."""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from kvm.assembler import assemble
from pyvmm.kvm._kvm import lib

from pyvmm import layout
from pyvmm.boot.entry import EntryState
from pyvmm.errors import HostError, KvmError
from pyvmm.kvm import Kvm, Vcpu, Vm
from pyvmm.kvm.cpuid import guest_cpuid
from pyvmm.kvm.irqchip import InterruptRouter, KvmDoorbells
from pyvmm.kvm.vcpu import install_kick_handler
from pyvmm.memory import MIB, PAGE_SIZE, GuestMemory
from pyvmm.vcpu import MISC_ENABLE_FAST_STRINGS, MSR_MISC_ENABLE, enter, prepare

CODE = 0x1000
PORT = 0x80
NO_MEMORY = 0x8_0000
"""Where the machine below has a hole, within reach of real mode."""

LOCAL_APIC_BASE = 0xFEE0_0000
APIC_SPURIOUS, APIC_SOFTWARE_ENABLE = 0xF0, 0x100

# The XSAVE area: Intel SDM volume 1, section 13.4.
XSAVE_XMM3 = 160 + 3 * 16
XSAVE_XSTATE_BV = 512
XSTATE_X87, XSTATE_SSE = 1, 2

# Linux's names for MSRs that every x86-64 CPU has.
MSR_SYSENTER_CS, MSR_SYSENTER_ESP = 0x174, 0x175
NO_MSR = 0xDEAD_0000
MISC_ENABLE_BTS_UNAVAILABLE = 1 << 11
NO_FILE = 0x7FFF_FFFF


def test_a_vcpu_that_cannot_be_mapped() -> None:
    """Python duplicates the descriptor for the mapping, and there may be no more."""
    fd = os.open(os.devnull, os.O_RDWR)
    with pytest.raises(HostError, match="can't map the state of vCPU 3: No such device"):
        Vcpu(fd, 3, PAGE_SIZE, sync_regs=False, xsave_size=PAGE_SIZE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


class TinyMachine:
    """One vCPU in real mode and 512 KiB of RAM, without a device."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.memory = GuestMemory(NO_MEMORY)
        self.vm: Vm = kvm.create_vm()
        self.vm.set_tss_addr(layout.KVM_TSS)
        self.vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP)
        self.vm.create_irqchip()
        self.vm.set_user_memory_region(0, 0, self.memory.regions[0].view)
        self.vcpu = self.add_vcpu(0)

    def add_vcpu(self, number: int) -> Vcpu:
        vcpu = self.vm.create_vcpu(number)
        cpuid = guest_cpuid(self.kvm.supported_cpuid(), apic_id=number, cpus=2, tsc_deadline=False)
        vcpu.set_cpuid2(cpuid)
        return vcpu

    def load(self, source: str) -> None:
        """Let the vCPU start with ``source``, interrupts reaching it."""
        self.memory.write(CODE, assemble(source, address=CODE))
        enter(self.vcpu, EntryState.real_mode(0, CODE, rsp=0x8000))

    def next_exit(self) -> int:
        """Run up to the next exit, not counting interrupted runs."""
        while (reason := self.vcpu.run()) == lib.KVM_EXIT_INTR:
            pass
        return reason

    def next_out(self) -> int:
        """Run up to an 8-bit ``out`` to PORT; what was put out."""
        assert self.next_exit() == lib.KVM_EXIT_IO
        direction, size, port = struct.unpack_from("<BBH", self.vcpu.run_page, lib.RUN_DETAIL)
        assert (direction, size, port) == (lib.KVM_EXIT_IO_OUT, 1, PORT)
        return int(self.vcpu.run_page[lib.PIO_DATA_PAGE])

    def close(self) -> None:
        self.vcpu.close()
        self.vm.close()


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    kvm = Kvm()
    yield kvm
    kvm.close()


@pytest.fixture
def machine(kvm: Kvm) -> Iterator[TinyMachine]:
    machine = TinyMachine(kvm)
    yield machine
    machine.close()


@pytest.fixture
def vcpu(machine: TinyMachine) -> Vcpu:
    return machine.vcpu


class TestState:
    def test_registers(self, vcpu: Vcpu) -> None:
        names = [name for name in vcpu.get_regs() if name not in ("rip", "rflags")]
        wanted = {name: 0x0123_4567_89AB_CD00 + n for n, name in enumerate(names)}
        wanted |= {"rip": 0x7C00, "rflags": 0x246}
        vcpu.set_regs(wanted)
        assert vcpu.get_regs() == wanted

    def test_system_registers(self, vcpu: Vcpu) -> None:
        sregs = vcpu.get_sregs()
        sregs["cs"] |= {"base": 0x1_2340, "selector": 0x1234, "limit": 0xFFFF}
        sregs["gdt"] = {"base": 0x5000, "limit": 0x17}
        sregs["cr2"] = 0xDEAD_B000
        vcpu.set_sregs(sregs)
        assert vcpu.get_sregs() == sregs

    def test_floating_point(self, vcpu: Vcpu) -> None:
        fpu = vcpu.get_fpu()
        fpu["fcw"] = 0x027F
        fpu["xmm"][15] = list(range(16))
        vcpu.set_fpu(fpu)
        assert vcpu.get_fpu() == fpu

    def test_xsave(self, vcpu: Vcpu) -> None:
        area = bytearray(vcpu.get_xsave())
        area[XSAVE_XMM3 : XSAVE_XMM3 + 16] = bytes(range(16))
        struct.pack_into("<Q", area, XSAVE_XSTATE_BV, XSTATE_X87 | XSTATE_SSE)
        vcpu.set_xsave(bytes(area))
        assert vcpu.get_fpu()["xmm"][3] == list(range(16))
        assert vcpu.get_xsave()[XSAVE_XMM3 : XSAVE_XMM3 + 16] == bytes(range(16))

    def test_extended_control_registers(self, vcpu: Vcpu) -> None:
        xcrs = vcpu.get_xcrs()  # none where the CPU has no XSAVE, as in the lab
        vcpu.set_xcrs(xcrs)
        assert vcpu.get_xcrs() == xcrs

    def test_msrs(self, vcpu: Vcpu) -> None:
        wanted = {MSR_SYSENTER_CS: 0x10, MSR_SYSENTER_ESP: 0x1234_5678}
        assert vcpu.set_msrs(wanted) == []
        assert vcpu.get_msrs(list(wanted)) == wanted

    def test_an_msr_that_does_not_exist_leaves_the_others_alone(self, vcpu: Vcpu) -> None:
        wanted = {MSR_SYSENTER_CS: 0x18, NO_MSR: 1, MSR_SYSENTER_ESP: 0x9ABC}
        assert vcpu.set_msrs(wanted) == [NO_MSR]
        del wanted[NO_MSR]
        assert vcpu.get_msrs([MSR_SYSENTER_CS, NO_MSR, MSR_SYSENTER_ESP]) == wanted

    def test_firmware_leaves_alone_what_kvm_says_of_its_limits(self, vcpu: Vcpu) -> None:
        """That the branch trace store is unavailable, for one: else Linux would use it."""
        vcpu.set_msrs({MSR_MISC_ENABLE: MISC_ENABLE_BTS_UNAVAILABLE})
        prepare(vcpu)
        wanted = MISC_ENABLE_FAST_STRINGS | MISC_ENABLE_BTS_UNAVAILABLE
        assert vcpu.get_msrs([MSR_MISC_ENABLE]) == {MSR_MISC_ENABLE: wanted}

    def test_msrs_that_are_state_can_be_read(self, kvm: Kvm, vcpu: Vcpu) -> None:
        indices = kvm.msr_indices()
        assert MSR_SYSENTER_CS in indices
        assert MSR_SYSENTER_CS in vcpu.get_msrs(indices)

    def test_local_apic(self, vcpu: Vcpu) -> None:
        page = bytearray(vcpu.get_lapic())
        struct.pack_into("<I", page, APIC_SPURIOUS, APIC_SOFTWARE_ENABLE | 0xEF)
        vcpu.set_lapic(bytes(page))
        assert (
            vcpu.get_lapic()[APIC_SPURIOUS : APIC_SPURIOUS + 4]
            == page[APIC_SPURIOUS : APIC_SPURIOUS + 4]
        )

    def test_run_state(self, machine: TinyMachine) -> None:
        assert machine.vcpu.get_mp_state() == lib.KVM_MP_STATE_RUNNABLE
        other = machine.add_vcpu(1)
        assert other.get_mp_state() == lib.KVM_MP_STATE_UNINITIALIZED
        other.set_mp_state(lib.KVM_MP_STATE_HALTED)
        assert other.get_mp_state() == lib.KVM_MP_STATE_HALTED
        other.close()

    def test_pending_events(self, vcpu: Vcpu) -> None:
        events = vcpu.get_vcpu_events()
        assert events["nmi"]["masked"] == 0
        events["nmi"]["masked"] = 1
        vcpu.set_vcpu_events(events)
        assert vcpu.get_vcpu_events()["nmi"]["masked"] == 1

    def test_debug_registers(self, vcpu: Vcpu) -> None:
        registers = vcpu.get_debugregs()
        registers["db"] = [0x1000, 0x2000, 0x3000, 0x4000]
        vcpu.set_debugregs(registers)
        assert vcpu.get_debugregs() == registers

    def test_cpuid(self, kvm: Kvm, vcpu: Vcpu) -> None:
        table = guest_cpuid(kvm.supported_cpuid(), apic_id=0, cpus=4, tsc_deadline=True)
        vcpu.set_cpuid2(table)
        back = {(e.function, e.subleaf): e for e in vcpu.get_cpuid2()}
        assert back[0, 0] == next(e for e in table if e.function == 0)
        assert back[1, 0].ebx >> 16 & 0xFF == 4
        assert back[0x4000_0000, 0].ebx.to_bytes(4, "little") == b"KVMK"


class TestGuest:
    def test_exits_are_remembered(self, machine: TinyMachine) -> None:
        machine.load("mov al, 7; out 0x80, al; mov al, 8; out 0x80, al; hlt")
        assert [machine.next_out(), machine.next_out()] == [7, 8]
        exits = machine.vcpu.recent_exits()
        assert [exit.reason for exit in exits] == [lib.KVM_EXIT_IO] * 2
        assert [exit.pio_data & 0xFF for exit in exits] == [7, 8]
        assert exits[0].rip < exits[1].rip

    def test_the_ring_of_exits_keeps_the_last(self, machine: TinyMachine) -> None:
        machine.load("1: out 0x80, al; inc al; jmp 1b")
        for _ in range(100):
            machine.next_out()
        exits = machine.vcpu.recent_exits()
        assert machine.vcpu.exits == 100
        assert [exit.pio_data & 0xFF for exit in exits] == list(range(100 - len(exits), 100))

    def test_mmio(self, machine: TinyMachine) -> None:
        machine.load(f"mov ax, {NO_MEMORY >> 4}; mov ds, ax; mov word ptr [0x10], 0x1234; hlt")
        assert machine.next_exit() == lib.KVM_EXIT_MMIO
        address, data, length, is_write = struct.unpack_from(
            "<QQIB", machine.vcpu.run_page, lib.RUN_DETAIL
        )
        assert (address, data & 0xFFFF, length, is_write) == (NO_MEMORY + 0x10, 0x1234, 2, 1)

    def test_a_read_only_slot_turns_stores_into_exits(self, machine: TinyMachine) -> None:
        rom = GuestMemory(PAGE_SIZE)
        rom.write_u8(0, 0x5A)
        machine.vm.set_user_memory_region(1, NO_MEMORY, rom.regions[0].view, readonly=True)
        machine.load(
            f"mov ax, {NO_MEMORY >> 4}; mov ds, ax; mov al, [0]; out 0x80, al; mov [0], al; hlt"
        )
        assert machine.next_out() == 0x5A
        assert machine.next_exit() == lib.KVM_EXIT_MMIO

    def test_single_stepping(self, machine: TinyMachine) -> None:
        machine.load("nop; nop; nop; hlt")
        machine.vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
        assert machine.next_exit() == lib.KVM_EXIT_DEBUG
        assert machine.vcpu.get_regs()["rip"] == CODE + 1

    def test_translation_by_page_tables(self, machine: TinyMachine) -> None:
        enter(machine.vcpu, EntryState.long_mode(machine.memory, CODE))
        assert machine.vcpu.translate(0x1234) == 0x1234
        assert machine.vcpu.translate(1 << 40) is None

    def test_nmi(self, machine: TinyMachine) -> None:
        machine.load("1: jmp 1b; handler: mov al, 2; out 0x80, al; hlt")
        machine.memory.write_u16(2 * 4, CODE + 2)
        machine.memory.write_u16(2 * 4 + 2, 0)
        machine.vcpu.nmi()
        assert machine.next_out() == 2


WAIT_FOR_INTERRUPT = """
        mov     word ptr [{vector} * 4], offset handler
        mov     word ptr [{vector} * 4 + 2], 0
        {prepare}
        out     0x80, al
        sti
1:      hlt
        jmp     1b
handler:
        mov     al, 42
        out     0x80, al
        hlt
"""
"""Says that it is ready, then says 42 from its interrupt handler."""

PIC_INIT = "; ".join(
    f"mov al, {value}; out {port}, al"
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0))
)


def wait_for_isa_interrupt(machine: TinyMachine, irq: int) -> None:
    machine.load(WAIT_FOR_INTERRUPT.format(vector=0x20 + irq, prepare=PIC_INIT))
    for _ in range(5):  # the PIC's own ports are in the kernel: the first `out` is ours
        if machine.next_out() != 42:
            return


def wait_for_message(machine: TinyMachine, vector: int) -> None:
    machine.load(WAIT_FOR_INTERRUPT.format(vector=vector, prepare=""))
    page = bytearray(machine.vcpu.get_lapic())
    struct.pack_into("<I", page, APIC_SPURIOUS, APIC_SOFTWARE_ENABLE | 0xFF)
    machine.vcpu.set_lapic(bytes(page))
    machine.next_out()


class TestInterrupts:
    def test_line(self, machine: TinyMachine) -> None:
        router = InterruptRouter(machine.vm)
        wait_for_isa_interrupt(machine, 4)
        router.line(4).pulse()
        assert machine.next_out() == 42

    def test_irqfd(self, machine: TinyMachine) -> None:
        InterruptRouter(machine.vm)
        eventfd = os.eventfd(0)
        machine.vm.irqfd(eventfd, 5)
        wait_for_isa_interrupt(machine, 5)
        os.eventfd_write(eventfd, 1)
        assert machine.next_out() == 42
        machine.vm.irqfd(eventfd, 5, assign=False)
        os.close(eventfd)

    def test_message(self, machine: TinyMachine) -> None:
        wait_for_message(machine, 0x50)
        assert machine.vm.signal_msi(LOCAL_APIC_BASE, 0x50)
        assert machine.next_out() == 42

    def test_a_message_to_nobody(self, machine: TinyMachine) -> None:
        wait_for_message(machine, 0x50)
        assert not machine.vm.signal_msi(LOCAL_APIC_BASE | 9 << 12, 0x50)

    def test_msi_vector(self, machine: TinyMachine) -> None:
        vector = InterruptRouter(machine.vm).vector()
        wait_for_message(machine, 0x51)
        vector.fire()  # goes nowhere before it is routed
        vector.route(LOCAL_APIC_BASE | 9 << 12, 0x51)
        vector.route(LOCAL_APIC_BASE, 0x51)
        vector.fire()
        assert machine.next_out() == 42
        vector.close()

    def test_moving_to_another_vm(self, kvm: Kvm, machine: TinyMachine) -> None:
        """What a device holds, a line and a routed vector, leads to the new VM."""
        before = TinyMachine(kvm)
        router = InterruptRouter(before.vm)
        line, vector = router.line(4), router.vector()
        vector.route(LOCAL_APIC_BASE, 0x51)
        router.move(machine.vm)
        before.close()
        wait_for_isa_interrupt(machine, 4)
        line.pulse()
        assert machine.next_out() == 42
        wait_for_message(machine, 0x51)
        vector.fire()
        assert machine.next_out() == 42
        vector.close()

    def test_vectors_can_be_given_back(self, machine: TinyMachine) -> None:
        router = InterruptRouter(machine.vm)
        for _ in range(5000):  # more than KVM has GSIs
            vector = router.vector()
            vector.route(LOCAL_APIC_BASE, 0x51)
            vector.close()

    @pytest.mark.parametrize("address", [0, LOCAL_APIC_BASE, (1 << 64) - 1])
    @pytest.mark.parametrize("data", [0, 0xFFFF_FFFF])
    def test_any_message_is_safe(self, machine: TinyMachine, address: int, data: int) -> None:
        vector = InterruptRouter(machine.vm).vector()
        vector.route(address, data)
        vector.fire()
        vector.close()


class TestDoorbells:
    def test_port(self, machine: TinyMachine) -> None:
        eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        machine.vm.ioeventfd(eventfd, 0x90, 1, pio=True)
        machine.load("out 0x90, al; out 0x90, al; mov al, 3; out 0x80, al; hlt")
        assert machine.next_out() == 3
        assert os.eventfd_read(eventfd) == 2
        os.close(eventfd)

    def test_memory(self, machine: TinyMachine) -> None:
        eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        machine.vm.ioeventfd(eventfd, NO_MEMORY + 8, 2)
        machine.load(
            f"mov ax, {NO_MEMORY >> 4}; mov ds, ax; mov [8], ax; mov al, 3; out 0x80, al; hlt"
        )
        assert machine.next_out() == 3
        assert os.eventfd_read(eventfd) == 1
        os.close(eventfd)

    def test_value(self, machine: TinyMachine) -> None:
        eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        machine.vm.ioeventfd(eventfd, PORT, 1, datamatch=7, pio=True)
        machine.load("mov al, 6; out 0x80, al; mov al, 7; out 0x80, al; inc al; out 0x80, al; hlt")
        assert [machine.next_out(), machine.next_out()] == [6, 8]
        assert os.eventfd_read(eventfd) == 1
        os.close(eventfd)

    def test_several_in_one_place(self, machine: TinyMachine) -> None:
        """As virtio-mmio has them: the value says whose."""
        eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        doorbells = KvmDoorbells(machine.vm)
        for value, eventfd in enumerate(eventfds):
            doorbells.attach(NO_MEMORY + 8, 4, eventfd, value)
        doorbells.detach(NO_MEMORY + 8, 4, eventfds[2], 2)
        doorbells.attach(NO_MEMORY + 8, 4, eventfds[2], 5)
        machine.load(
            f"mov ax, {NO_MEMORY >> 4}; mov ds, ax; xor eax, eax; mov [8], eax; inc eax;"
            " mov [8], eax; mov [8], eax; mov al, 5; mov [8], eax; mov al, 3; out 0x80, al; hlt"
        )
        assert machine.next_out() == 3
        assert [os.eventfd_read(eventfd) for eventfd in eventfds] == [1, 2, 1]
        for eventfd in eventfds:
            os.close(eventfd)

    def test_detached(self, machine: TinyMachine) -> None:
        eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        machine.vm.ioeventfd(eventfd, PORT, 1, pio=True)
        machine.vm.ioeventfd(eventfd, PORT, 1, pio=True, assign=False)
        machine.load("mov al, 5; out 0x80, al; hlt")
        assert machine.next_out() == 5
        os.close(eventfd)


class TestAttention:
    def test_immediate_exit(self, machine: TinyMachine) -> None:
        machine.load("1: jmp 1b")
        machine.vcpu.set_immediate_exit(True)
        assert machine.vcpu.run() == -errno.EINTR

    def test_a_kick_interrupts_the_guest(self, machine: TinyMachine) -> None:
        machine.load("out 0x80, al; 1: jmp 1b")
        kick = install_kick_handler()
        machine.next_out()
        results: list[int] = []
        thread = threading.Thread(target=lambda: results.append(machine.vcpu.run()))
        thread.start()
        while thread.is_alive():  # the first may come before KVM_RUN has begun
            assert thread.ident is not None
            machine.vcpu.set_immediate_exit(True)
            signal.pthread_kill(thread.ident, kick)
            thread.join(0.01)
        assert results == [-errno.EINTR]


class TestErrors:
    @pytest.mark.parametrize(
        ("ioctl", "number", "provoke"),
        [
            ("KVM_CREATE_VCPU", errno.EEXIST, lambda m: m.vm.create_vcpu(0)),
            ("KVM_CREATE_VCPU", errno.EINVAL, lambda m: m.vm.create_vcpu(1 << 20)),
            ("KVM_CREATE_IRQCHIP", errno.EEXIST, lambda m: m.vm.create_irqchip()),
            (
                "KVM_SET_USER_MEMORY_REGION",
                errno.EEXIST,
                lambda m: m.vm.set_user_memory_region(1, 0, m.memory.regions[0].view),
            ),
            (
                "KVM_SET_USER_MEMORY_REGION",
                errno.EINVAL,
                lambda m: m.vm.set_user_memory_region(1, MIB + 1, m.memory.regions[0].view),
            ),
            ("KVM_IRQFD", errno.EBADF, lambda m: m.vm.irqfd(NO_FILE, 5)),
        ],
    )
    def test_an_error_names_the_ioctl_and_the_errno(
        self,
        machine: TinyMachine,
        ioctl: str,
        number: int,
        provoke: Callable[[TinyMachine], object],
    ) -> None:
        with pytest.raises(KvmError) as error:
            provoke(machine)
        assert (error.value.ioctl, error.value.errno) == (ioctl, number)
        assert ioctl in str(error.value)
        assert os.strerror(number) in str(error.value)

    def test_no_device(self) -> None:
        with pytest.raises(HostError, match="does not exist") as error:
            Kvm("/dev/no-such-device")
        assert "modprobe" in error.value.hint

    def test_another_device(self) -> None:
        with pytest.raises(HostError, match="is not KVM"):
            Kvm("/dev/null")

    def test_a_capability_that_is_missing_is_0(self, kvm: Kvm) -> None:
        assert kvm.check_extension("KVM_CAP_USER_MEMORY")
        assert kvm.api_version() == 12
