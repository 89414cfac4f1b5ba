"""Moves a machine's vCPUs by hand: one instruction, up to the next exit, up to a breakpoint.

    with Stepper(machine) as stepper:
        stop = stepper.step()
        print(stop.instruction.text, stop.changes)

The machine stays paused, so none of its vCPUs runs unless it is told to, but its devices are awake:
time goes on for them, and what they have to say arrives as interrupts. What moves:

* :meth:`Stepper.step` moves one vCPU; the others stand still, and so does a vCPU's own stream of
  interrupts (KVM_GUESTDBG_BLOCKIRQ), else a timer would catch each step. A halted vCPU that is
  stepped waits for its interrupt;
* everything else lets all vCPUs run, interrupts and all, and pauses all when one of them stops.

KVM single-steps by the trap flag, and breakpoints are the debug registers, of which there are four.
Where those have no effect, breakpoints are looked for step by step, by the current vCPU alone.
The guest's own use of either is lost meanwhile. ``hlt`` is the one instruction that is carried out
here: KVM, told to step over it, stops behind it with the vCPU still running.
"""

from __future__ import annotations

import signal
import struct
import threading
from collections.abc import Iterable
from functools import partial
from time import monotonic

from pyvmm.errors import GuestMemoryError, KvmError
from pyvmm.kvm._kvm import lib
from pyvmm.kvm.system import host_has_hardware_kvm
from pyvmm.machine import Machine
from pyvmm.memory import PAGE_SIZE
from pyvmm.step import breakpoints
from pyvmm.step.accesses import Access, AccessWatch
from pyvmm.step.breakpoints import MAX_BREAKPOINTS
from pyvmm.step.cpu_state import RFLAGS_RF, CpuState
from pyvmm.step.disassembly import (
    MAX_INSTRUCTION,
    MAX_WRITE,
    Disassembler,
    Instruction,
    stack_top,
)
from pyvmm.step.linear import LinearMemory, read_physical
from pyvmm.step.ring3 import DebugTrap, return_to_ring_3
from pyvmm.step.stop import (
    BREAKPOINT,
    ENDED,
    EXIT,
    HALTED,
    PAUSED,
    REACHED,
    RESET,
    STEPPED,
    TIMEOUT,
    WAITING,
    MemoryWrite,
    Stop,
)
from pyvmm.step.trap_flag import clear_saved
from pyvmm.symbols import Symbols
from pyvmm.vcpu import Handlers, VcpuThread

DEBUG_DETAIL = struct.Struct("<I4xQQQ")
"""kvm_run.debug.arch: exception, pc, dr6, dr7; pc is a linear address."""

DR6_SINGLE_STEP = 1 << 14


class Stepper:
    """On ``machine``, which is paused by this and started if it wasn't; from one thread at a time.
    ``symbols`` make names of addresses.

    ``vcpu`` is the number of the one that commands are for: assign another. ``breakpoints`` are
    linear addresses. ``interrupts`` lets them in while stepping, too.
    """

    def __init__(self, machine: Machine, symbols: Symbols | None = None) -> None:
        self.machine = machine
        self.symbols = symbols or Symbols([])
        self.disassembler = Disassembler()
        self.vcpu = 0
        self.breakpoints: list[int] = []
        self.interrupts = False
        self._waiting = False
        self._interrupted = False
        self._native_ring_3 = not host_has_hardware_kvm()
        self._left = threading.Event()
        self._access_watch = AccessWatch(machine.board)
        self._accesses: list[Access] = []
        self._stops: list[tuple[VcpuThread, str]] = []
        self._stop_at_access = False
        self._current: VcpuThread | None = None
        machine.pause()
        machine.board.resume()
        for thread in machine.vcpus:
            thread.wrap_handlers(partial(self._wrap, thread))
            thread.on_left = self._left.set
        if not machine.started:
            machine.start()

    def __enter__(self) -> Stepper:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hands off; the machine stays paused, for its ``resume``. Idempotent."""
        with self.machine.at_rest():
            for thread in self.machine.vcpus:
                thread.on_left = None
                thread.wrap_handlers(None)
                if self.machine.outcome is None:
                    thread.vcpu.set_guest_debug(0)
            self.machine.board.pause()

    def interrupt(self) -> None:
        """For a signal handler, which may come at any time: have what waits for the guest raise
        KeyboardInterrupt, with all vCPUs paused. No harm if nothing does."""
        self._interrupted = True
        if self._waiting:
            raise KeyboardInterrupt

    # What can be looked at.

    def state(self, vcpu: int | None = None) -> CpuState:
        """That of a vCPU, by default of the current one."""
        number = self.vcpu if vcpu is None else vcpu
        with self.machine.at_rest():
            return CpuState.of(self.machine.vcpus[number].vcpu)

    def read(self, address: int, size: int, *, physical: bool = False) -> bytes:
        """Memory at a linear address by the current vCPU's page tables, or at a guest-physical
        one. GuestMemoryError where there is none."""
        memory, rom = self.machine.memory, self.machine.rom
        if physical:
            return read_physical(memory, rom, address, size)
        with self.machine.at_rest():
            vcpu = self.machine.vcpus[self.vcpu].vcpu
            return LinearMemory(vcpu, memory, rom).read(address, size)

    def disassemble(self, address: int, count: int = 1) -> list[Instruction]:
        """``count`` instructions from the linear ``address`` on, in the current vCPU's mode; fewer
        where there are none."""
        state = self.state()
        delta = state.rip - state.address
        found = []
        for _ in range(count):
            code = self._read_code(address)
            offset = address + delta & (1 << 64) - 1
            instruction = self.disassembler.decode(code, address, offset, state.bits)
            if instruction is None:
                break
            found.append(instruction)
            address = instruction.next_address
        return found

    def _read_code(self, address: int) -> bytes:
        """As much of an instruction as there is: the next page may not be mapped."""
        try:
            return self.read(address, MAX_INSTRUCTION)
        except GuestMemoryError:
            pass
        try:
            return self.read(address, min(MAX_INSTRUCTION, PAGE_SIZE - address % PAGE_SIZE))
        except GuestMemoryError:
            return b""

    # What moves.

    def step(self) -> Stop:
        """Execute one instruction; of a repeated string instruction, as much as the CPU does at
        once. A halted vCPU waits for an interrupt, unless it can't get one."""
        self._interrupted = False
        return self._step(interrupts=self.interrupts)

    def _step(self, *, interrupts: bool = False, timeout: float | None = None) -> Stop:
        before = self.state()
        number = self.vcpu
        if self.machine.outcome is not None:
            return Stop(ENDED, number, before, before)
        if not before.running and not before.halted:
            return Stop(WAITING, number, before, before)
        if before.halted:
            if not before.interrupts_on:
                return Stop(HALTED, number, before, before)
            return self._step_over(before, None, interrupts=True, timeout=timeout)
        instruction = next(iter(self.disassemble(before.address)), None)
        if instruction is not None and instruction.mnemonic == "hlt" and not before.ring:
            self._halt(len(instruction.code))
            return Stop(HALTED, number, before, self.state(number), instruction)
        if instruction is not None and self._native_ring_3 and instruction.mnemonic == "iretq":
            with self.machine.at_rest():
                vcpu = self.machine.vcpus[number].vcpu
                if return_to_ring_3(vcpu, self.machine.memory, before):
                    return Stop(STEPPED, number, before, CpuState.of(vcpu), instruction)
        return self._step_over(before, instruction, interrupts=interrupts, timeout=timeout)

    def next_exit(self, timeout: float | None = None) -> Stop:
        """Run until the current vCPU has accessed a device (or a breakpoint comes)."""
        self._interrupted = False
        return self._go(timeout, stop_at_access=True)

    def cont(self, timeout: float | None = None) -> Stop:
        """Run until a breakpoint comes, the guest ends, or ``timeout`` seconds have passed."""
        self._interrupted = False
        return self._go(timeout)

    def until(self, address: int, timeout: float | None = None) -> Stop:
        """Run until the linear ``address`` is reached by a vCPU (or another breakpoint comes).
        ValueError if all breakpoints are taken."""
        self._interrupted = False
        return self._until(address, timeout)

    def _until(self, address: int, timeout: float | None) -> Stop:
        if address in self.breakpoints:
            return self._go(timeout)
        self.add_breakpoint(address)
        try:
            stop = self._go(timeout)
        finally:
            self.breakpoints.remove(address)
        reached = stop.why == BREAKPOINT and stop.after.address == address
        return stop._replace(why=REACHED) if reached else stop

    def over(self, timeout: float | None = None) -> Stop:
        """As :meth:`step`, but all of a call, of an interrupt's handler or of a repetition."""
        self._interrupted = False
        before = self.state()
        instruction = next(iter(self.disassemble(before.address)), None)
        if instruction is None or not instruction.calls or not before.running:
            return self._step(interrupts=self.interrupts)
        number, stack = self.vcpu, before.registers["rsp"]
        while True:
            stop = self._until(instruction.next_address, timeout)
            deeper = stop.after.registers["rsp"] < stack  # the same place, in a recursion
            if stop.why != REACHED or stop.vcpu != number or not deeper:
                break
        if stop.vcpu != number:
            return stop
        why = STEPPED if stop.why == REACHED else stop.why
        return stop._replace(why=why, before=before, instruction=instruction)

    def add_breakpoint(self, address: int) -> None:
        """ValueError if there are as many as the CPU has."""
        if len(self.breakpoints) >= MAX_BREAKPOINTS:
            raise ValueError(f"a CPU has only {MAX_BREAKPOINTS} breakpoints, and all are taken")
        self.breakpoints.append(address)

    def _step_over(
        self,
        before: CpuState,
        instruction: Instruction | None,
        *,
        interrupts: bool,
        timeout: float | None,
    ) -> Stop:
        """Have KVM execute one instruction."""
        number = self.vcpu
        ranges: list[tuple[int, bytes]] = []
        if instruction is not None:
            ranges = self._about_to_write(instruction, before)
        control = lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP
        if not interrupts:
            control |= lib.KVM_GUESTDBG_BLOCKIRQ
        if self._in_native_ring_3(before):
            why = self._step_native(before, control)
        else:
            handler = self._int_handler(instruction, before)
            registers = breakpoints.debug_registers([] if handler is None else [handler])
            if handler is not None:
                control |= lib.KVM_GUESTDBG_USE_HW_BP
            threads = [self.machine.vcpus[number]]
            why = self._run(threads, control, registers, stop_at_access=True, timeout=timeout)
        if why in (EXIT, BREAKPOINT):
            why = STEPPED
        stop = self._stop(why, number, before)
        if why != STEPPED:
            return stop
        with self.machine.at_rest():
            vcpu = self.machine.vcpus[number].vcpu
            guest = LinearMemory(vcpu, self.machine.memory)
            clear_saved(vcpu, guest, instruction, before, stop.after)
            stop = stop._replace(after=CpuState.of(vcpu))
        writes = self._written(ranges, before, stop.after)
        return stop._replace(instruction=instruction, writes=writes, woken=before.halted)

    def _int_handler(self, instruction: Instruction | None, state: CpuState) -> int | None:
        """Where an ``int`` leads: single-stepping, hardware stops only behind its ``iret``."""
        if self._native_ring_3 or instruction is None or instruction.mnemonic != "int":
            return None
        if not breakpoints.they_work():
            return None
        vector = instruction.code[-1]
        with self.machine.at_rest():
            vcpu = self.machine.vcpus[self.vcpu].vcpu
            guest = LinearMemory(vcpu, self.machine.memory)
            return breakpoints.handler_of(guest, state, vector)

    def _step_native(self, before: CpuState, control: int) -> str:
        """Where KVM doesn't single-step ring 3."""
        thread = self.machine.vcpus[self.vcpu]
        with self.machine.at_rest():
            trap = DebugTrap(thread.vcpu, self.machine.memory, before)
            vcpu = thread.vcpu
            trap.set()
        control |= lib.KVM_GUESTDBG_USE_HW_BP
        registers = breakpoints.debug_registers([trap.address])
        try:
            why = self._run([thread], control, registers, stop_at_access=True)
        finally:
            with self.machine.at_rest():
                if thread.vcpu is vcpu:  # else there was a reset, and no trace of this is left
                    trap.undo()
        return STEPPED if why == BREAKPOINT else why

    def _go(self, timeout: float | None, *, stop_at_access: bool = False) -> Stop:
        """Run all vCPUs, with breakpoints, the current one's state being the one before."""
        number, before = self.vcpu, self.state()
        if self.machine.outcome is not None:
            return Stop(ENDED, number, before, before)
        if self.breakpoints and (self._in_native_ring_3(before) or not breakpoints.they_work()):
            stop = self._search(timeout, stop_at_access)
            if stop is not None:
                return stop._replace(before=before)
        accesses: tuple[Access, ...] = ()
        for each in range(len(self.machine.vcpus)):
            # Who stands at a breakpoint has seen it: it goes on behind it.
            if self.state(each).address not in self.breakpoints:
                continue
            self.vcpu = each
            try:
                first = self._step()
            finally:
                self.vcpu = number
            if first.why not in (STEPPED, HALTED, WAITING):
                return first
            if each == number:
                accesses = first.accesses
                if accesses and stop_at_access:
                    return first._replace(why=EXIT)
        # A step may have led from one breakpoint to the next.
        for each in range(len(self.machine.vcpus)):
            if self._reached(each, number, before):
                self.vcpu = each
                return self._stop(BREAKPOINT, each, before)._replace(accesses=accesses)
        control = lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_USE_HW_BP if self.breakpoints else 0
        why = self._run(
            self.machine.vcpus,
            control,
            breakpoints.debug_registers(self.breakpoints),
            stop_at_access=stop_at_access,
            timeout=timeout,
        )
        return self._stop(why, number, before)

    def _in_native_ring_3(self, state: CpuState) -> bool:
        """Whether it is where a software KVM minds neither single steps nor breakpoints."""
        return self._native_ring_3 and state.ring == 3 and state.bits == 64

    def _search(self, timeout: float | None, stop_at_access: bool) -> Stop | None:
        """Where breakpoints have no effect, be it in ring 3 or at all: look for them step by step,
        on the current vCPU alone. None if ring 3 is left without having met one, and they have an
        effect there."""
        end = None if timeout is None else monotonic() + timeout
        everywhere = not breakpoints.they_work()
        while True:
            left = None if end is None else end - monotonic()
            stop = self._step(interrupts=everywhere, timeout=left)
            if stop.why == HALTED and everywhere and stop.after.interrupts_on:
                continue
            if stop.why != STEPPED:
                return stop
            if stop.accesses and stop_at_access:
                return stop._replace(why=EXIT)
            if stop.after.address in self.breakpoints:
                return stop._replace(why=BREAKPOINT)
            if not everywhere and stop.after.ring != 3:
                return None
            if left is not None and left <= 0:
                return stop._replace(why=TIMEOUT)

    def _reached(self, vcpu: int, current: int, before: CpuState) -> bool:
        state = self.state(vcpu)
        moved = vcpu == current and state.address != before.address
        return moved and state.running and state.address in self.breakpoints

    def _run(
        self,
        threads: Iterable[VcpuThread],
        control: int,
        registers: Iterable[int] = (0,) * 8,
        *,
        stop_at_access: bool = False,
        timeout: float | None = None,
    ) -> str:
        """Let ``threads`` run, with these settings of KVM_SET_GUEST_DEBUG, until one of them stops;
        then all are paused. Why it stopped; ``vcpu`` is then the one that did."""
        machine = self.machine
        self._accesses, self._stops = [], []
        self._stop_at_access = stop_at_access
        self._current = machine.vcpus[self.vcpu]
        self._left.clear()
        vcpu = self._current.vcpu
        in_time = True
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            try:
                with machine.at_rest():
                    for thread in machine.vcpus:
                        thread.vcpu.set_guest_debug(control, list(registers))
                    started = [thread for thread in threads if thread.start()]
            finally:
                # Those threads leave the signals to the one that waits.
                signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            if started:
                in_time = self._wait(timeout)
        finally:
            for thread in machine.vcpus:
                thread.pause()
            with machine.patience():
                for thread in machine.vcpus:
                    thread.join()
        if not self._stops and in_time:
            self._settle()
        if machine.outcome is not None:
            return ENDED
        if machine.vcpus[self.vcpu].vcpu is not vcpu:
            self.vcpu = 0
            return RESET
        if self._stops:
            stopped = dict(reversed(self._stops))
            thread = self._current if self._current in stopped else self._stops[0][0]
            self.vcpu = thread.vcpu.id
            return stopped[thread]
        return PAUSED if in_time else TIMEOUT

    def _wait(self, timeout: float | None) -> bool:
        try:
            self._waiting = True
            if self._interrupted:
                raise KeyboardInterrupt
            return self._left.wait(timeout)
        finally:
            self._waiting = False

    def _settle(self) -> None:
        """Somebody else has paused a vCPU. If it is for a reset, which is done by the I/O thread,
        wait until that is over."""
        done = threading.Event()
        self.machine.loop.call(done.set)
        while not done.wait(0.1) and self.machine.outcome is None:
            pass

    def _stop(self, why: str, number: int, before: CpuState) -> Stop:
        """What has come of the run that ``why`` ended; ``before`` was the state of the vCPU
        ``number``."""
        try:
            after = self.state()
        except KvmError:
            after = before
        if self.vcpu != number:
            before = after  # another one has stopped, of which nothing is known
        return Stop(why, self.vcpu, before, after, None, tuple(self._accesses))

    def _halt(self, length: int) -> None:
        """What ``hlt`` does, an instruction of ``length`` bytes."""
        with self.machine.at_rest():
            vcpu = self.machine.vcpus[self.vcpu].vcpu
            regs = vcpu.get_regs()
            regs["rip"] += length
            regs["rflags"] &= ~RFLAGS_RF
            vcpu.set_regs(regs)
            events = vcpu.get_vcpu_events()
            events["interrupt"]["shadow"] = 0  # of an `sti` right before
            vcpu.set_vcpu_events(events)
            vcpu.set_mp_state(lib.KVM_MP_STATE_HALTED)

    def _about_to_write(self, instruction: Instruction, state: CpuState) -> list[tuple[int, bytes]]:
        """What is in memory where ``instruction`` will write."""
        found = []
        for address, size in self.disassembler.writes(instruction, state):
            start = address if size else address - MAX_WRITE
            try:
                found.append((start, self.read(start, size or MAX_WRITE)))
            except GuestMemoryError:
                continue  # a device's, or nobody's
        return found

    def _written(
        self, ranges: list[tuple[int, bytes]], before: CpuState, after: CpuState
    ) -> tuple[MemoryWrite, ...]:
        writes = []
        for start, old in ranges:
            if start == stack_top(before) - MAX_WRITE:  # what was pushed
                pushed = stack_top(before) - stack_top(after)
                if not 0 < pushed <= MAX_WRITE or before.bits != after.bits:
                    continue
                start, old = start + MAX_WRITE - pushed, old[-pushed:]
            try:
                writes.append(MemoryWrite(start, old, self.read(start, len(old))))
            except GuestMemoryError:
                continue
        return tuple(writes)

    # On the vCPUs' threads.

    def _wrap(self, thread: VcpuThread, handlers: Handlers) -> Handlers:
        """``handlers``, with an eye on what devices are asked, and an answer to debug exits."""

        def accessed(access: Access) -> None:
            if self._stop_at_access and thread is self._current:
                self._accesses.append(access)
                self._stopped(thread, EXIT)

        wrapped = self._access_watch.wrap(handlers, thread.vcpu.run_page, accessed)
        wrapped[lib.KVM_EXIT_DEBUG] = partial(self._debug_exit, thread)
        return wrapped

    def _debug_exit(self, thread: VcpuThread) -> None:
        _, _, dr6, _ = DEBUG_DETAIL.unpack_from(thread.vcpu.run_page, lib.RUN_DETAIL)
        self._stopped(thread, STEPPED if dr6 & DR6_SINGLE_STEP else BREAKPOINT)

    def _stopped(self, thread: VcpuThread, why: str) -> None:
        self._stops.append((thread, why))
        thread.pause()  # it enters KVM once more, which completes the instruction, and no further
