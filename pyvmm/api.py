"""A machine as a program uses it: what ``import pyvmm`` gives.

    import pyvmm

    with pyvmm.Machine("bzImage", initrd="initrd.img", memory="512M", timeout=120) as vm:
        vm.console.expect("login: ")
        vm.console.send("root\\n")
        print(vm.console.run("uname -r").output)
        vm.power_button()
        print(vm.wait().sentence)

It adds to :class:`pyvmm.machine.Machine` what ``pyvmm run`` has: consoles, a verdict, a timeout.
All methods may be called from any thread. Several machines can run in one process.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from pyvmm import machine as parts
from pyvmm.backends.streams import StreamBackend
from pyvmm.config import MachineConfig
from pyvmm.consoles import Consoles, OnOutput
from pyvmm.errors import ConfigError, GuestFaults
from pyvmm.eventloop import EventLoop
from pyvmm.expect import Console
from pyvmm.memory import GuestMemory
from pyvmm.outcome import Outcome, Reason
from pyvmm.threads import NamedThread
from pyvmm.verdict import Expectations, Verdict, compile_patterns, is_talkative

if TYPE_CHECKING:
    from typing import Self

    from pyvmm.device_config import DiskConfig, NetConfig
    from pyvmm.results import Results
    from pyvmm.step.stepper import Stepper
    from pyvmm.trace.tracer import Tracer
    from pyvmm.user_devices.interface import UserDevice

Path = str | os.PathLike[str]
Texts = str | Sequence[str]

FLUSH_SECONDS = 1.0
"""How long a file or socket may take to swallow a console's last lines."""

LOG = logging.getLogger("pyvmm")
"""What ``pyvmm run`` says on stderr while the guest runs."""


class Stats(NamedTuple):
    """Figures of a run so far.

    ``seconds`` since the start; ``exits`` of each vCPU to PyVMM since the last reset; ``reboots``;
    ``memory`` is how many bytes of the guest's RAM the host has allocated; ``faults`` is what the
    guest did wrong and how often.
    """

    seconds: float
    exits: tuple[int, ...]
    reboots: int
    memory: int
    faults: Mapping[str, int]


class VirtualCpu:
    """One of a machine's vCPUs; the guest is stopped for a moment while it is looked at."""

    def __init__(self, machine: parts.Machine, number: int) -> None:
        self._machine = machine
        self.number = number
        self._closed = False

    def registers(self) -> dict[str, int]:
        """The general registers, ``rip`` and ``rflags``, the control registers and ``efer``, the
        segments' selectors (``cs`` …) and bases (``cs_base`` …), and the descriptor tables'
        (``gdt_base``, ``gdt_limit`` …)."""
        _check_open(self)
        with self._machine.at_rest():
            vcpu = self._machine.vcpus[self.number].vcpu
            general, system = vcpu.get_regs(), vcpu.get_sregs()
        found: dict[str, int] = dict(general)
        for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
            found[name] = system[name]
        for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"):
            found[name] = system[name]["selector"]
            found[f"{name}_base"] = system[name]["base"]
        for name in ("gdt", "idt"):
            found[f"{name}_base"] = system[name]["base"]
            found[f"{name}_limit"] = system[name]["limit"]
        return found

    def translate(self, address: int) -> int | None:
        """The guest-physical address of a virtual one, by the vCPU's page tables; None if it isn't
        mapped."""
        _check_open(self)
        with self._machine.at_rest():
            return self._machine.vcpus[self.number].vcpu.translate(address)

    def recent_exits(self) -> list[str]:
        """Its last exits to PyVMM since the last reset, oldest first, in the words of a crash
        report. Also when the machine has been closed."""
        from pyvmm.crash import exit_lines

        with self._machine.at_rest():
            board = self._machine.board
            vcpu = self._machine.vcpus[self.number].vcpu
            return list(exit_lines(vcpu, board.pio, board.mmio))

    def whereabouts(self) -> list[str]:
        """Where it is: at which instruction, whether it is halted, and what it did last."""
        _check_open(self)
        from pyvmm.crash import whereabouts

        with self._machine.at_rest():
            board = self._machine.board
            return list(whereabouts(self._machine.vcpus[self.number].vcpu, board.pio, board.mmio))


class Machine:
    """A virtual machine with a kernel, or what its disk boots. The arguments are the options of
    ``pyvmm run``, and take the same texts; where there can be several they take a sequence.

    ``append`` is added to the default command line; ``command_line`` replaces both. ``console``
    says which console ``vm.console`` is: the first serial port (``"serial"``), the virtio console
    (``"virtio"``), or the text screen with the keyboard (``"screen"``), whose output are its lines
    as they come to stand there. ``serial`` are the places of the further serial ports, or with the
    two others of all. After ``timeout`` seconds the guest is ended, and the outcome says so.
    A line that one of ``fail_on`` (regular expressions) matches ends it, too, and with
    ``fail_on_warnings`` any report by which Linux says that something in it is wrong. With
    ``paused`` the guest doesn't run before :meth:`resume`. ``trace``, ``trace_filters``,
    ``symbols`` and ``report`` record the run as the options of these names do; the files are
    complete when the machine is closed. ``results`` are files that are written at the guest's end,
    as the pytest plugin wants them.

    Everything is opened and checked when it is made; :class:`~pyvmm.errors.PyvmmError` says what
    won't do. ``with`` starts the guest if it hasn't been, and releases everything at the end;
    :meth:`start` and :meth:`close` do so without.
    """

    def __init__(
        self,
        kernel: Path | None = None,
        *,
        flat: str | None = None,
        firmware: Path | None = None,
        initrd: Path | None = None,
        append: Texts = (),
        command_line: str | None = None,
        memory: str = "256M",
        cpus: int = 1,
        cpu: str = "host",
        cpu_affinity: str | None = None,
        disks: Sequence[Path | DiskConfig] = (),
        floppies: Sequence[Path] = (),
        nets: Sequence[str | NetConfig] = (),
        rng: str | bool | None = None,
        balloon: str | bool | None = None,
        vsock: str | None = None,
        devices: Sequence[str | UserDevice] = (),
        console: str = "serial",
        serial: Sequence[str] = (),
        ports: Sequence[str] = (),
        name: str = "",
        entry: str = "auto",
        on_reboot: str = "exit",
        transport: str = "pci",
        mmio_cmdline: bool = False,
        debug_console: bool = False,
        debug_exit: bool = False,
        timeout: float | None = None,
        fail_on: Texts = (),
        fail_on_warnings: bool = False,
        trace: Texts = (),
        trace_filters: Texts = (),
        symbols: Path | None = None,
        report: Path | None = None,
        paused: bool = False,
        results: Results | None = None,
    ) -> None:
        virtio, on_screen = _which_console(console)
        lists = {
            "disks": disks,
            "floppies": floppies,
            "nets": nets,
            "devices": devices,
            "serial": serial,
            "ports": ports,
        }
        for option, given in lists.items():
            _check_list(option, given)
        if not isinstance(memory, str):
            raise ConfigError(f"memory: {memory!r} is no text such as '512M'")
        if not isinstance(cpus, int):
            raise ConfigError(f"cpus: {cpus!r} is no number")
        self.config = MachineConfig.parse(
            {
                "kernel": None if kernel is None else os.fspath(kernel),
                "flat": flat,
                "firmware": None if firmware is None else os.fspath(firmware),
                "initrd": None if initrd is None else os.fspath(initrd),
                "append": _texts(append) if command_line is None else (command_line,),
                "no_default_append": command_line is not None,
                "memory": memory,
                "cpus": cpus,
                "cpu": cpu,
                "cpu_affinity": cpu_affinity,
                "disks": tuple(map(_path_or_config, disks)),
                "floppies": tuple(map(os.fspath, floppies)),
                "nets": tuple(nets),
                "rng": _switch(rng),
                "balloon": _switch(balloon),
                "vsock": vsock,
                "devices": tuple(devices),
                "console": "stdio" if virtio else None,
                "serial": tuple(serial) if virtio or on_screen else ("stdio", *serial),
                "screen": "stdio" if on_screen else None,
                "ports": tuple(ports),
                "name": name,
                "entry": entry,
                "on_reboot": on_reboot,
                "transport": transport,
                "mmio_cmdline": mmio_cmdline,
                "debug_console": debug_console,
                "debug_exit": debug_exit,
            }
        )
        if timeout is not None and not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ConfigError(f"timeout: {timeout} is not a positive number of seconds")
        self._timeout = timeout
        self._paused = paused
        self._results = results
        expectations = Expectations(
            timeout,
            fail_on=compile_patterns("fail_on", _texts(fail_on)),
            fail_on_warnings=fail_on_warnings,
            talkative=is_talkative(self.config.command_line),
        )
        self._typist = threading.Lock()
        self.console = Console(self._type, lambda: self.outcome)
        self._outcome: Outcome | None = None
        self._over = threading.Event()
        self._closed = False
        self._told = False  # the program, of a failure
        self._minder: threading.Thread | None = None
        tracer = partial(self._open_tracer, trace, trace_filters, symbols, report)
        self._open(expectations, tracer)
        self.vcpus = tuple(VirtualCpu(self._machine, n) for n in range(self.config.cpus))

    def _open(self, expectations: Expectations, open_tracer: Callable[[], Tracer | None]) -> None:
        """Open all that the machine is made of; nothing stays open if something won't do."""
        record = None if self._results is None else self._results.record
        with ExitStack() as resources:
            self._resources = resources
            self._loop = EventLoop()
            resources.callback(self._loop.close)
            self._verdict = Verdict(expectations, self._loop, self._end)
            self._consoles = Consoles(
                self.config,
                self._loop,
                watch=lambda name: self._verdict.reader(name, record),
                open_stdio=self._open_stdio,
                say=LOG.info,
            )
            resources.callback(self._consoles.close, 0)
            self._tracer = open_tracer()
            resources.callback(self._close_tracer)
            self._machine = parts.Machine(
                self.config,
                self._consoles.serial,
                virtio_console=self._consoles.virtio(),
                screen=self._consoles.screen,
                loop=self._loop,
                faults=GuestFaults(LOG.warning),
                tracer=self._tracer,
            )
            self._machine.before_reset = self._before_reset
            self._machine.on_panic = self._verdict.pvpanic
            self._resources = resources.pop_all()

    def _open_tracer(
        self, traces: Texts, filters: Texts, symbols: Path | None, report: Path | None
    ) -> Tracer | None:
        if not traces and report is None:
            if filters or symbols is not None:
                raise ConfigError("trace_filters and symbols go with trace or report")
            return None
        from pyvmm.trace.config import TraceConfig, TraceFilter  # here, because few want it
        from pyvmm.trace.of_run import open_tracer

        return open_tracer(
            self.config,
            [TraceConfig.parse(text) for text in _texts(traces)],
            [TraceFilter.parse(text) for text in _texts(filters)],
            symbols=None if symbols is None else os.fspath(symbols),
            report=None if report is None else os.fspath(report),
            outputs=(),
            say=LOG.warning,
        )

    def _close_tracer(self) -> None:
        if self._tracer is not None:
            self._tracer.close(self._outcome)

    @property
    def memory(self) -> GuestMemory:
        """The guest's RAM; ``vm.memory.read(gpa, length)``."""
        return self._machine.memory

    @property
    def outcome(self) -> Outcome | None:
        """How the guest ended; None while it hasn't."""
        return self._outcome

    def __enter__(self) -> Self:
        if self._minder is None or self._closed:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if kind is None and not self._told and self._machine.failure is not None:
            raise self._machine.failure

    def start(self) -> None:
        """Let the guest run (unless ``paused`` was given). Once."""
        if self._minder is not None or self._closed or self._over.is_set():
            raise RuntimeError("a machine starts once")
        if self._paused:
            self._machine.pause()
        # Python acts on signals in the main thread alone, and a wait there ends only if it is the
        # one to get them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._consoles.start()
            if self._results is not None:
                self._results.record.start()
            self._machine.start()
            self._minder = NamedThread(target=self._mind, name="pyvmm-minder", daemon=True)
            self._minder.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait for the guest's end: how it went. Raises TimeoutError if it hasn't ended after
        ``timeout`` seconds; it runs on then."""
        if not self._over.wait(timeout):
            raise TimeoutError(f"the guest has not ended within {timeout:g} s")
        if self._machine.failure is not None:
            self._told = True
            raise self._machine.failure
        assert self._outcome is not None
        return self._outcome

    def end(self) -> Outcome:
        """Pull the guest's plug, if it hasn't ended by itself; how it went."""
        self._end(Reason.INTERRUPTED, "by the program")
        if self._minder is None and not self._over.is_set():
            self._mind()  # it has never been started
        return self.wait()

    def close(self) -> None:
        """End the guest if it hasn't ended, and release everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for vcpu in self.vcpus:
            vcpu._closed = True
        self._end(Reason.INTERRUPTED, "by the program")
        if self._minder is not None:
            self._minder.join()
        elif not self._over.is_set():
            self._mind()
        self._consoles.close(FLUSH_SECONDS)
        self._machine.close()
        with self._typist:
            self._resources.close()

    def power_button(self) -> None:
        """Press it: the guest sees an ACPI event and shuts down if it cares."""
        _check_open(self)
        self._machine.power_button()

    def reset(self) -> None:
        """Reset the machine and boot it again, whatever ``on_reboot`` says. Doesn't wait."""
        _check_open(self)
        self._machine.reset()

    def pause(self) -> None:
        """Stop the guest where it is. When this returns no vCPU runs and no device touches guest
        memory. Idempotent."""
        _check_open(self)
        self._machine.pause()

    def resume(self) -> None:
        """Let the guest go on after :meth:`pause`."""
        _check_open(self)
        self._machine.resume()

    def stepper(self, symbols: Path | None = None) -> Stepper:
        """Moves the guest by hand, one instruction or exit at a time (docs/step.md); pauses it.
        ``symbols`` is a file that names its addresses, by default the kernel. When the stepper is
        closed, :meth:`resume` lets the guest go on."""
        _check_open(self)
        from pyvmm.step.stepper import Stepper
        from pyvmm.symbols import Symbols

        kernel = self.config.kernel
        found = Symbols.of_kernel(kernel) if symbols is None else Symbols.load(symbols)
        if self._minder is None:
            self._paused = True
            self.start()
        return Stepper(self._machine, found)

    def screen(self) -> list[str]:
        """The text that is on the screen, without the empty lines at its end; with
        ``console="screen"``. Also when the machine has been closed."""
        screen = self._consoles.screen
        if screen is None:
            raise RuntimeError('the machine has no text screen (console="screen")')
        return screen.lines

    def stats(self) -> Stats:
        """Figures of the run so far."""
        machine, ended = self._machine, self._outcome
        return Stats(
            machine.seconds if ended is None else ended.seconds,
            tuple(thread.vcpu.exits for thread in machine.vcpus),
            machine.reboots,
            machine.memory.allocated,
            dict(machine.faults.counts),
        )

    def _end(self, reason: Reason, detail: str = "") -> None:
        self._machine.end(reason, detail)

    def _mind(self) -> None:
        """Wait for the guest's end, or bring it about when its time is over; then collect what the
        consoles still have."""
        machine = self._machine
        if not machine.wait(self._timeout):
            machine.end(Reason.TIMEOUT)
        machine.stop()
        self._consoles.flush(FLUSH_SECONDS)
        outcome = machine.outcome
        assert outcome is not None
        self._outcome = self._verdict.on(outcome)
        if self._results is not None:
            try:
                self._write(self._results, self._outcome)
            except Exception as error:  # for who waits, and waits in vain otherwise
                machine.failure = machine.failure or error
        self.console.end()
        self._over.set()

    def _write(self, results: Results, outcome: Outcome) -> None:
        results.record.close()
        results.config = self.config
        for line in results.end(outcome, self._verdict, self._machine.faults.counts):
            LOG.warning("%s", line)

    def _before_reset(self) -> None:
        """What it said before is to be seen first."""
        self._consoles.flush(FLUSH_SECONDS)
        self._verdict.before_reset()

    def _open_stdio(self, on_output: OnOutput | None) -> StreamBackend:
        def both(data: bytes) -> None:
            if on_output is not None:
                on_output(data)
            self.console.feed(data)

        typing, self._keyboard = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._keyboard, False)
        self._resources.callback(os.close, self._keyboard)
        return StreamBackend(self._loop, typing, None, on_output=both, owned=(typing,))

    def _type(self, data: bytes, deadline: float) -> int:
        """Write ``data`` to the console's input; how much there was room for by ``deadline``."""
        sent = 0
        room = select.poll()
        with self._typist:
            if self._closed:
                return 0
            room.register(self._keyboard, select.POLLOUT)
            while sent < len(data) and not self._over.is_set():
                remaining = deadline - monotonic()
                if remaining <= 0:
                    break
                if room.poll(min(remaining, 1.0) * 1000):
                    sent += os.write(self._keyboard, data[sent : sent + select.PIPE_BUF])
        return sent


def _check_open(what: Machine | VirtualCpu) -> None:
    """RuntimeError if the machine is closed: its descriptors' numbers may be another file's."""
    if what._closed:
        raise RuntimeError("the machine is closed")


def _check_list(option: str, given: object) -> None:
    """A text is a sequence, too, of letters."""
    if isinstance(given, str | bytes | os.PathLike):
        raise ConfigError(f"{option}: {given!r} is no list ({option}=[{given!r}])")


def _which_console(console: str) -> tuple[bool, bool]:
    """Whether it is the virtio console, and whether the text screen."""
    if console not in ("serial", "virtio", "screen"):
        raise ConfigError(f"console: {console!r} is none of 'serial', 'virtio', 'screen'")
    return console == "virtio", console == "screen"


def _texts(given: Texts) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _path_or_config(disk: Path | DiskConfig) -> Any:
    return os.fspath(disk) if isinstance(disk, str | os.PathLike) else disk


def _switch(given: str | bool | None) -> str | None:
    """A device's options: as a text, or True for a device without any."""
    if given is True:
        return ""
    return None if given is False else given
