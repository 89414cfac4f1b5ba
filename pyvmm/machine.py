"""The machine: a VM, its memory, its vCPUs and the board with the devices; and its lifecycle.

    machine = Machine(config, [terminal])   nothing runs yet, every input has been checked
    machine.start()
    machine.wait()                          until the guest ends, or somebody calls end()
    machine.stop()                          threads joined, disks at rest
    outcome = machine.close()               everything released

Whatever ends a machine (the guest powers off, a vCPU crashes, a timeout, a signal) calls
:meth:`Machine.end`; the first caller decides the outcome.

Between :meth:`Machine.pause` and :meth:`Machine.resume` nothing of the guest moves.
:meth:`Machine.reset` does what a PC's reset button does, while devices keep what they have of the
host's: RAM is cleared, each device returns to its power-on state, and the kernel is loaded anew
and entered by vCPUs of a new VM. A new one, because KVM keeps a good deal of a guest behind many
ioctls, differing by kernel and CPU (MSRs, local APICs, nested guests, paravirtual clocks): so what
the second boot finds is what the first one found, by construction.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from pyvmm import boot, layout
from pyvmm.backends.character import CharacterBackend
from pyvmm.board import Board, Requests, Wiring
from pyvmm.boot import acpi, mptable
from pyvmm.boot.command_line import virtio_mmio_words
from pyvmm.boot.entry import EntryState, RealModeKernel
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError, GuestFaults, HostError, PyvmmError
from pyvmm.eventloop import EventLoop
from pyvmm.kvm import Kvm, Vcpu, Vm
from pyvmm.kvm.cpuid import guest_cpuid
from pyvmm.kvm.irqchip import InterruptRouter, KvmDoorbells
from pyvmm.memory import GuestMemory
from pyvmm.outcome import Outcome, Reason
from pyvmm.peripherals import ConsoleBackends, Peripherals
from pyvmm.threads import usable_cpus
from pyvmm.vcpu import GuestCrash, TripleFault, VcpuThread, at_reset_vector, enter, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.boot.firmware import BiosFacts, Rom
    from pyvmm.devices.text_screen import ScreenView
    from pyvmm.trace.tracer import Tracer


SWITCH_INTERVAL = 100e-6
"""How long, in seconds, a thread that runs Python may keep another from it. The interpreter's 5 ms
are how late a vCPU would see to its exit while a device is busy. With 100 us a woken thread waits
100 us longer than on an idle interpreter, and the busy one loses nothing that can be measured; from
50 us on it does (4 % there). With a disk that serves 32 requests at a time, an exit of the vCPU
takes about 0.15 ms or less in 99 of 100 cases whatever the interval, because each system call of
the disk lets go of the interpreter; the slowest of a run varies too much to choose by."""


NO_BACKENDS = ConsoleBackends()


class Machine:
    """A virtual machine made from ``config``.

    ``serial`` are the backends of COM1 and on, ``virtio_console`` those of the virtio console, if
    there is one; ``screen`` shows the text screen, if there is one; ``loop`` is the event loop that
    they use, if they use one; it is closed with the machine. Raises
    :class:`~pyvmm.errors.PyvmmError` if an image, an option or the host won't do; no disk has been
    written then.

    ``tracer`` records what happens; who made it closes it, after the machine.

    ``peripherals`` has the virtio devices that can be asked for something, such as the balloon.
    """

    def __init__(
        self,
        config: MachineConfig,
        serial: Sequence[CharacterBackend] = (),
        *,
        virtio_console: ConsoleBackends = NO_BACKENDS,
        screen: ScreenView | None = None,
        loop: EventLoop | None = None,
        faults: GuestFaults | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.config = config
        self._tracer = tracer
        self.faults = faults or GuestFaults()
        self.loop = loop or EventLoop()
        self.loop.on_error = self._failed
        self.failure: BaseException | None = None
        self.on_panic: Callable[[], None] | None = None
        """Called instead of :meth:`end` when the guest says by pvpanic that it panicked, on the
        vCPU's thread: for who wants to read what it has to say about it."""
        self._crash: tuple[VcpuThread, GuestCrash] | None = None
        self.before_reset: Callable[[], None] | None = None
        """Called when a reset has brought the guest to rest, on the I/O thread; may call
        :meth:`end`, and there is no reset then."""
        self._serial_ports = len(serial)
        self._virtio_console = virtio_console
        self._screen = screen
        self._lifecycle = threading.RLock()  # held while vCPUs are started, and waited for
        self._started = False
        self._paused = False
        self._rom: Rom | None = None
        self._fw_cfg: dict[str, bytes] | None = None
        self._bios: BiosFacts | None = None
        self._reset_wanted = False
        self._reboots = 0
        self._ended = threading.Event()
        self._end_lock = threading.RLock()
        self._outcome: Outcome | None = None
        self._started_ns = time.monotonic_ns()
        with ExitStack() as resources:
            resources.callback(self.loop.close)
            self._build(serial, resources)
            self._resources = resources.pop_all()  # all went well: they stay until close()

    def _build(self, serial: Sequence[CharacterBackend], resources: ExitStack) -> None:
        """Make all parts; what must be given back is left with ``resources``, last made first."""
        config = self.config
        self.peripherals = Peripherals(config, resources)
        pins = self._check_affinity()
        self.memory = GuestMemory(config.memory_size, **config.memory_backing._asdict())
        resources.callback(self.memory.close)
        entry = self._load_guest()
        if entry.remark:
            self.faults.tell(entry.remark)
        if config.floppies and self._bios is None:
            raise ConfigError(
                "--floppy: the kernel is entered without a BIOS, which alone can read floppies",
                "without --kernel, or for Linux with --boot 16, there is one",
            )

        self._kvm = Kvm()
        resources.callback(self._kvm.close)
        self._vm_resources = ExitStack()
        resources.callback(lambda: self._vm_resources.close())
        vm, vcpus = self._create_vm(entry, self._vm_resources)
        self._router = InterruptRouter(vm)
        self._doorbells = KvmDoorbells(vm)
        self.board = self._build_board(serial)
        resources.callback(self.board.close)
        self.vcpus = [
            VcpuThread(
                vcpu,
                self.board.pio,
                self.board.mmio,
                on_crash=self._crashed,
                on_reset=self.press_reset_button,
                on_error=self._failed,
                host_cpus=pins.get(vcpu.id, ()),
                trace=None if self._tracer is None else self._tracer.exits,
            )
            for vcpu in vcpus
        ]

    def _check_affinity(self) -> dict[int, tuple[int, ...]]:
        """The host's CPUs for each vCPU that has its own."""
        pins = {pin.vcpu: pin.host_cpus for pin in self.config.cpu_affinity}
        for vcpu, cpus in pins.items():
            usable = usable_cpus(cpus)
            missing = [str(cpu) for cpu in cpus if cpu not in usable]
            if missing:
                raise HostError(
                    f"--cpu-affinity: vCPU {vcpu} can't run on host CPU {', '.join(missing)}, which"
                    " is offline or not for this process"
                )
        return pins

    def _load_guest(self) -> EntryState:
        """Put into memory what the guest starts from; the state in which the boot vCPU enters."""
        config = self.config
        if config.screen is not None:
            from pyvmm.devices import text_screen  # few machines have one

            text_screen.clear(self.memory)
        if config.kernel is None:
            return self._load_firmware()
        tables = self._write_tables()
        words = virtio_mmio_words(self._mmio_slots) if config.mmio_cmdline else []
        entry = boot.load(
            config.kernel,
            self.memory,
            command_line=" ".join([*words, config.command_line]),
            words=config.words,
            flat=config.flat,
            initrd=config.initrd,
            entry=config.entry,
            rsdp=tables.rsdp,
        )
        if config.screen is not None and entry.registers.get("rsi") == layout.ZERO_PAGE:
            from pyvmm.boot import zero_page

            zero_page.add_text_screen(self.memory)
        if entry.kernel is not None:
            self._load_bios(tables, entry.kernel)
        if entry.fw_cfg:
            self._fw_cfg = {}  # no files: they are for firmware
        return entry

    def _load_firmware(self) -> EntryState:
        from pyvmm.boot import firmware

        if self.config.firmware is None:
            self._load_bios(self._write_tables())
        else:
            from pyvmm.boot import fw_cfg_files

            self._rom = firmware.load(self.config.firmware, self.memory)
            tables = self._write_acpi_tables(fw_cfg_files.acpi_address(self.memory))
            self._fw_cfg = fw_cfg_files.files(self.memory, tables)
        return EntryState.reset_vector()

    def _load_bios(self, tables: acpi.AcpiTables, kernel: RealModeKernel | None = None) -> None:
        from pyvmm.boot import firmware

        end = tables.rsdp + len(tables.blob)
        self._rom, self._bios = firmware.load_own(
            self.memory, cpus=self.config.cpus, tables=end, kernel=kernel
        )

    def _write_tables(self) -> acpi.AcpiTables:
        """What hardware there is, for kernels with and without ACPI."""
        levels = {slot.gsi for slot in self._mmio_slots}
        mptable.place(self.memory, self.config.cpus, sorted(levels))
        return self._write_acpi_tables()

    def _write_acpi_tables(self, address: int = layout.ACPI_TABLES) -> acpi.AcpiTables:
        tables = acpi.build(
            cpus=self.config.cpus,
            serial_ports=self._serial_ports,
            ide_channels=self.config.ide_channels,
            virtio_mmio=self._mmio_slots,
            virtio_mmio_named=not self.config.mmio_cmdline,
            address=address,
        )
        self.memory.write(address, tables.blob)
        return tables

    @property
    def _wants_adapter(self) -> bool:
        """Whether the guest may count on a text adapter, though nobody sees its screen: anything
        that a PC's firmware or a boot loader starts, and what comes with no header. Linux and
        kernels for PVH are told what there is."""
        config = self.config
        flat = config.flat is not None or config.entry == "real"
        multiboot = self._fw_cfg == {}
        return config.screen is None and (self._bios is not None or multiboot or flat)

    @property
    def _mmio_slots(self) -> list[layout.MmioSlot]:
        return [layout.virtio_mmio_slot(number) for number in range(self.config.mmio_devices)]

    def _build_board(self, serial: Sequence[CharacterBackend]) -> Board:
        wiring = Wiring(
            memory=self.memory,
            line=self._router.line,
            msi=self._router,
            doorbells=self._doorbells,
            clock=self.loop,
            reactor=self.loop,
            faults=self.faults,
        )
        consoles, tracer = self._virtio_console, self._tracer
        if tracer is not None:
            wiring, serial = tracer.wire(wiring), tracer.serial(serial)
            consoles = tracer.virtio_console(consoles)
            tracer.on_error = self._failed
        requests = Requests(
            power_off=lambda: self.end(Reason.POWER_OFF),
            reset=self.press_reset_button,
            panicked=self._panicked,
            debug_exit=lambda value: self.end(Reason.DEBUG_EXIT, value=value),
            failed=self._failed,
        )
        board = Board(wiring, requests, self.config.transport)
        for backend in serial:
            board.add_serial_port(backend)
        self.peripherals.plug(board, consoles)
        if self.config.debug_console and serial:
            board.add_debug_console(serial[0])
        if self.config.debug_exit:
            board.add_debug_exit()
        if self.config.screen is not None:
            board.add_text_screen(self._screen)
        if self._fw_cfg:  # firmware does not start without
            board.add_fw_cfg(self.config.cpus, self._fw_cfg)
        if self.config.devices:
            from pyvmm.user_devices.plugging import plug  # few machines have one

            plug(self.config.devices, board)  # last, so that they yield to all others
        if self._fw_cfg == {} and board.is_free(layout.FW_CFG, layout.FW_CFG_PORTS):
            board.add_fw_cfg(self.config.cpus, self._fw_cfg)
        if self._wants_adapter and board.is_free(*layout.TEXT_SCREEN_PORTS):
            board.add_text_screen(None)
        if self._bios is not None:
            if self._bios.kernel is None:
                for path in self.peripherals.floppies_among_disks():
                    self.faults.tell(f"disk {path} is a floppy's image: --floppy boots it as one")
            board.add_bios_services(
                self.config.boot_order,
                self._bios_facts,
                self._not_bootable,
                self.peripherals.floppies,
            )
        board.assign_pci_addresses()
        assert len(board.mmio_slots) == self.config.mmio_devices  # which the guest is told of
        if tracer is not None:
            tracer.attach(self.config, board)
        return board

    def _create_vm(self, entry: EntryState, resources: ExitStack) -> tuple[Vm, list[Vcpu]]:
        """A VM on the machine's memory, and its vCPUs, the first of them in the state ``entry``."""
        vm = self._kvm.create_vm()
        resources.callback(vm.close)
        # Memory first: after KVM_CREATE_IRQCHIP the first slot waits 7 ms for an RCU grace period.
        for slot, region in enumerate(self.memory.regions):
            vm.set_user_memory_region(slot, region.gpa, region.view)
        if self._rom is not None:
            slot = len(self.memory.regions)
            vm.set_user_memory_region(slot, self._rom.gpa, self._rom.view, readonly=True)
        vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP)
        vm.set_tss_addr(layout.KVM_TSS)
        vm.create_irqchip()
        vcpus = self._create_vcpus(vm, resources)
        enter(vcpus[0], entry)
        return vm, vcpus

    def _create_vcpus(self, vm: Vm, resources: ExitStack) -> list[Vcpu]:
        supported = self._kvm.supported_cpuid()
        tsc_deadline = bool(self._kvm.check_extension("KVM_CAP_TSC_DEADLINE_TIMER"))
        vcpus = []
        for number in range(self.config.cpus):
            vcpu = vm.create_vcpu(number)
            resources.callback(vcpu.close)
            vcpu.set_cpuid2(
                guest_cpuid(
                    supported,
                    apic_id=number,
                    cpus=self.config.cpus,
                    tsc_deadline=tsc_deadline,
                    features=self.config.cpu.features,
                )
            )
            prepare(vcpu)
            vcpus.append(vcpu)
        return vcpus

    def start(self) -> None:
        """Let the guest run, unless the machine is paused."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
        self._started_ns = time.monotonic_ns()
        with self._lifecycle:
            self._started = True
            self.loop.start()
            if self._tracer is not None:
                self._tracer.start()
            self._go_on()

    def pause(self) -> None:
        """Stop the guest where it is. When this returns no vCPU runs and no device touches guest
        memory. Idempotent; from any thread but a vCPU's."""
        with self._lifecycle:
            if not self._paused:
                self._paused = True
                self._halt()
                with self.patience():
                    self.board.pause()

    def resume(self) -> None:
        """Let the guest go on after :meth:`pause`."""
        with self._lifecycle:
            if self._paused:
                self._paused = False
                self.board.resume()
                self._go_on()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """The guest is paused in here, for a look at it; as :meth:`pause` and :meth:`resume`."""
        with self._lifecycle:
            goes_on = not self._paused and self._outcome is None
            if goes_on:
                self.pause()
            else:
                self._halt()
            try:
                yield
            finally:
                if goes_on:
                    self.resume()

    @property
    def rom(self) -> Rom | None:
        """The firmware's, which is no RAM."""
        return self._rom

    @property
    def started(self) -> bool:
        """Whether :meth:`start` has been called."""
        return self._started

    def _halt(self) -> None:
        """Have every vCPU outside the guest when this returns."""
        for thread in self.vcpus:
            thread.pause()
        with self.patience():
            for thread in self.vcpus:
                thread.join()

    def _go_on(self) -> None:
        if self._started and not self._paused:
            for thread in self.vcpus:
                thread.start()

    def press_reset_button(self) -> None:
        """What a guest that wants to reboot does: the machine resets or ends, as the configuration
        says. Doesn't wait; from any thread."""
        if self.config.on_reboot == "restart":
            self.reset()
        else:
            self.end(Reason.REBOOT)

    def reset(self) -> None:
        """Reset the machine and boot it again; it stays paused if it is. Doesn't wait; from any
        thread. If the guest's files can't be loaded any more, that ends the machine."""
        for thread in self.vcpus:
            thread.pause()  # the guest gets no further than the access that asked for it
        with self._end_lock:
            if self._reset_wanted:
                return  # a guest may ask as often as it likes
            self._reset_wanted = True
        self.loop.call(self._reset)

    def _reset(self) -> None:
        """On the I/O thread, for which no vCPU ever waits."""
        with self._lifecycle:
            self._halt()
            self._reset_wanted = False
            if self.before_reset is not None:
                self.before_reset()
            if self._outcome is not None:
                return
            try:
                self._boot_again()
            except PyvmmError as error:
                error.message = f"can't boot again: {error.message}"
                self._failed(error)
            else:
                self._reboots += 1
                if self._tracer is not None:
                    self._tracer.phase("entry")
                self._go_on()

    def _boot_again(self) -> None:
        if self._tracer is not None:
            self._tracer.phase("reset")
        self.board.reset()
        for region in self.memory.regions:
            self.memory.clear(region.gpa, region.size)
        entry = self._load_guest()
        with ExitStack() as resources:
            vm, vcpus = self._create_vm(entry, resources)
            self._router.move(vm)
            self._doorbells.move(vm)
            for thread, vcpu in zip(self.vcpus, vcpus, strict=True):
                thread.replace(vcpu)
            old, self._vm_resources = self._vm_resources, resources.pop_all()
        old.close()

    @property
    def seconds(self) -> float:
        """The time since :meth:`start`."""
        return (time.monotonic_ns() - self._started_ns) / 1e9

    @property
    def reboots(self) -> int:
        """How often the guest was reset and booted again."""
        return self._reboots

    def power_button(self) -> None:
        """Press it: the guest sees an ACPI event and shuts down if it cares."""
        if self._tracer is not None:
            self._tracer.phase("shutdown", "power button")
        self.board.power.press_power_button()

    def set_link(self, card: int, up: bool) -> None:
        """Plug the cable of a network card in or out; the first one is 0."""
        self.peripherals.nets[card].set_link(up)

    def resize_console(self, columns: int, rows: int) -> None:
        """The terminal that the virtio console is on has a new size. May be called by a signal
        handler."""
        console = self.peripherals.console
        if console is not None:
            self.loop.call(lambda: console.resize(columns, rows))

    def end(
        self, reason: Reason, detail: str = "", *, value: int = 0, report: tuple[str, ...] = ()
    ) -> None:
        """Stop the guest; the first call decides the outcome. Doesn't wait; from any thread."""
        with self._end_lock:
            if self._outcome is None:
                self._outcome = Outcome(reason, detail, value, self.seconds, report, self._reboots)
        if self._tracer is not None:
            self._tracer.release()
        # By every caller: the first may be the main thread, and be interrupted by a signal.
        for thread in self.vcpus:
            thread.stop()
        self._ended.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the machine has ended, at most ``timeout`` seconds; whether it has."""
        return self._ended.wait(timeout)

    def stop(self) -> None:
        """End the machine if it hasn't, and wait until neither a vCPU nor a disk is at work.
        The devices stay, so that the rest of their output can be fetched."""
        self.end(Reason.INTERRUPTED)
        with self._lifecycle:
            self._halt()
            with self.patience():
                self.board.quiesce()
            outcome = self._outcome
            if outcome is not None and not outcome.vcpus:
                if outcome.reason is Reason.TIMEOUT:
                    outcome = outcome._replace(report=self._whereabouts())
                if outcome.reason in (Reason.TIMEOUT, Reason.CRASH):
                    self._outcome = outcome._replace(vcpus=self._vcpu_states())

    def patience(self) -> AbstractContextManager[None]:
        """For who waits for the machine's threads: no call into a user's device lasts for long."""
        if not self.board.user_devices:
            return nullcontext()
        from pyvmm.user_devices.overdue import Patience  # few machines have one

        return Patience(self.board.user_devices)

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; complete after :meth:`stop`."""
        return self._outcome

    def close(self) -> Outcome:
        """Stop, and release everything; how it went."""
        self.stop()
        outcome = self._outcome
        assert outcome is not None
        self.loop.stop()
        self._resources.close()
        return outcome

    def _whereabouts(self) -> tuple[str, ...]:
        """Where each vCPU stood when the run was given up, as lines for a person."""
        from pyvmm.crash import whereabouts  # only now: most machines end by themselves

        pio, mmio = self.board.pio, self.board.mmio
        vcpus = [thread.vcpu for thread in self.vcpus]
        return tuple(line for vcpu in vcpus for line in whereabouts(vcpu, pio, mmio))

    def _vcpu_states(self) -> tuple[dict[str, Any], ...]:
        """The same for a program, and after a crash."""
        from pyvmm.crash import state  # as above

        pio, mmio = self.board.pio, self.board.mmio
        crashed, crash = self._crash or (None, None)
        return tuple(
            state(thread.vcpu, self.memory, pio, mmio, crash if thread is crashed else None)
            for thread in self.vcpus
        )

    def _bios_facts(self) -> BiosFacts:
        assert self._bios is not None
        return self._bios

    def _not_bootable(self) -> None:
        self.end(Reason.NOT_BOOTABLE, "or floppy" if self.config.floppies else "")

    def _panicked(self) -> None:
        if self.on_panic is not None:
            self.on_panic()
        else:
            self.end(Reason.PANIC)

    def _crashed(self, thread: VcpuThread, crash: GuestCrash) -> None:
        if isinstance(crash, TripleFault):
            if self.config.on_reboot == "restart":
                self.faults.report("triple fault, which resets the machine")
                self.reset()
                return
        elif at_reset_vector(thread.vcpu):
            self.press_reset_button()  # an INIT to the boot CPU; firmware would boot again
            return
        from pyvmm.crash import explain  # only now: most machines never crash

        self._crash = thread, crash
        report = explain(thread.vcpu, crash, self.memory, self.board.pio, self.board.mmio)
        self.end(Reason.CRASH, crash.summary, report=report)

    def _failed(self, error: BaseException) -> None:
        self.failure = error
        kind = "" if isinstance(error, PyvmmError) else f"{type(error).__name__}: "
        self.end(Reason.ERROR, f"{kind}{error}")
