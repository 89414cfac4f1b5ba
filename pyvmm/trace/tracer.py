"""The tracer: opens a trace's files, puts the hooks into a machine, and writes what they note."""

from __future__ import annotations

import os
import select
import stat
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from pyvmm.errors import ConfigError, HostError
from pyvmm.trace import hooks
from pyvmm.trace.config import STDOUT, TraceConfig, TraceFilter
from pyvmm.trace.decode import EventDecoder
from pyvmm.trace.parts import pci_names, virtio_names
from pyvmm.trace.recorder import Record, Recorder
from pyvmm.trace.requests import describer

if TYPE_CHECKING:
    from pyvmm.backends.character import CharacterBackend
    from pyvmm.board import Board, Wiring
    from pyvmm.config import MachineConfig
    from pyvmm.kvm import Vcpu
    from pyvmm.memory import GuestMemory
    from pyvmm.outcome import Outcome
    from pyvmm.peripherals import ConsoleBackends
    from pyvmm.symbols import Symbols
    from pyvmm.vcpu import Handlers

VERSION = 1
SAMPLE_NS = 100_000_000
"""How often it is looked how much memory the guest has."""

ALWAYS = ("phase",)
"""Kinds of events that no filter takes out: there are few, and all the others refer to them."""


class Format(Protocol):
    """What a trace looks like: what to write at its beginning, for some events, at its end."""

    def begin(self, header: dict[str, Any]) -> str: ...

    def events(self, events: Iterable[dict[str, Any]]) -> str: ...

    def end(self, event: dict[str, Any]) -> str: ...


class Output:
    """A file that a trace is written to. When that fails, the rest of the trace is thrown away and
    ``say`` is told, once: the guest goes on."""

    def __init__(self, config: TraceConfig, fd: int, say: Callable[[str], None]) -> None:
        self.name = "standard output" if config.path == STDOUT else config.path
        self.format = _format(config.format)
        self._fd = fd
        self._owned = config.path != STDOUT
        self._say = say
        self._lost = False

    def give_up(self) -> None:
        """Nobody reads it; the writer's thread may be waiting in a system call."""
        self._lost = True
        self._say(f"the trace in {self.name} is not complete: nobody reads it")

    def break_off(self, why: str | None) -> None:
        """Nothing more is written."""
        if not self._lost:
            self._lost = True
            self._say(f"the trace in {self.name} ends here: {why}")

    def empty(self) -> None:
        """Take out what is in the file, if it is one."""
        if self._owned and stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.ftruncate(self._fd, 0)

    def write(self, text: str) -> None:
        rest = memoryview(text.encode("utf-8", "replace"))
        try:
            while rest and not self._lost:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:  # by the flags of whoever shares our stdout
                    room = select.poll()
                    room.register(self._fd, select.POLLOUT)
                    room.poll()
        except OSError as error:
            self.break_off(error.strerror)

    def close(self) -> None:
        if self._owned:
            os.close(self._fd)


def _format(name: str) -> Format:
    if name == "jsonl":
        from pyvmm.trace.jsonl import JsonLines

        return JsonLines()
    if name == "perfetto":
        from pyvmm.trace.perfetto import Perfetto

        return Perfetto()
    from pyvmm.trace.text import Text

    return Text()


def _print_to_stderr(line: str) -> None:
    print(f"pyvmm: {line}", file=sys.stderr, flush=True)


class Tracer:
    """Traces one machine. Made by :meth:`open`, given to the machine, and closed when that is."""

    def __init__(
        self, outputs: Sequence[Output], filters: Sequence[TraceFilter], symbols: Symbols | None
    ) -> None:
        self._outputs = outputs
        self._filters = filters
        self._start_ns = time.monotonic_ns()
        self._started = datetime.now(UTC)
        self._decoder = EventDecoder(self._start_ns, symbols)
        self._recorder = Recorder(self._write, self._finish, self._failed)
        self._consoles: list[hooks.TracedConsole] = []
        self._header: dict[str, Any] | None = None
        self._board: Board | None = None
        self._memory: GuestMemory | None = None
        self._sampled_ns = 0
        self._resident = -1
        self._running = False
        self._outcome: Outcome | None = None
        self.on_error: Callable[[BaseException], None] | None = None
        """Told of an exception on the writer's thread, which is a bug of ours."""
        self.on_closed: Callable[[], None] | None = None
        """Called once, when the traces are written as far as they will ever be."""
        self._recorder.add((hooks.PHASE, self._start_ns, "setup", ""))

    @classmethod
    def open(
        cls,
        configs: Sequence[TraceConfig],
        filters: Sequence[TraceFilter] = (),
        *,
        symbols: str | None = None,
        inputs: Iterable[str | None] = (),
        say: Callable[[str], None] = _print_to_stderr,
    ) -> Tracer:
        """A tracer that writes all of ``configs``, of events that one of ``filters`` lets pass.

        ``symbols`` is a file for :class:`~pyvmm.symbols.Symbols`; ``inputs`` are files that
        the machine needs and that are not to be written; ``say`` gets a line when a trace can't be
        written any further. Existing files stay as they are until the machine starts.
        """
        known = None
        if symbols is not None:
            from pyvmm.symbols import Symbols

            known = Symbols.load(symbols)
        outputs: list[Output] = []
        try:
            for number, config in enumerate(configs):
                others = [each.path for each in configs[:number] if each.path != STDOUT]
                if config.path == STDOUT and STDOUT in (each.path for each in configs[:number]):
                    raise ConfigError("--trace: two traces can't go to standard output")
                outputs.append(Output(config, _open(config.path, inputs, others), say))
        except BaseException:
            for output in outputs:
                output.close()
            raise
        return cls(outputs, filters, known)

    # What the machine calls while it is made.

    def wire(self, wiring: Wiring) -> Wiring:
        """The same wires and vectors, with a look at what passes."""
        line, recorder = wiring.line, self._recorder
        return wiring._replace(
            line=lambda gsi: hooks.trace_line(recorder, gsi, line(gsi)),
            msi=hooks.TracedMsi(recorder, wiring.msi),
        )

    def serial(self, backends: Sequence[CharacterBackend]) -> Sequence[CharacterBackend]:
        """The backends of the serial ports, likewise."""
        return [self._console(f"COM{n}", backend) for n, backend in enumerate(backends, 1)]

    def virtio_console(self, backends: ConsoleBackends) -> ConsoleBackends:
        """The virtio console's, likewise; its ports are no consoles."""
        if backends.console is None:
            return backends
        return backends._replace(console=self._console("hvc0", backends.console))

    def _console(self, name: str, backend: CharacterBackend) -> CharacterBackend:
        console = hooks.TracedConsole(self._recorder, name, backend)
        self._consoles.append(console)
        return console

    def attach(self, config: MachineConfig, board: Board) -> None:
        """``board``, whose wiring is ours, has all its devices."""
        self._board, self._memory = board, board.wiring.memory
        self._decoder.attach(board)
        self._header = self._make_header(config)
        names = virtio_names(board)
        for transport in board.virtio:
            name, describe = names[id(transport)], describer(transport.device)
            for index, queue in enumerate(transport.session.queues):
                hooks.TracedQueue(self._recorder, queue, name, index, describe)
        functions = pci_names(board)
        for devfn, function in board.pci.functions().items():
            for index, vector in enumerate(function.msix.vectors if function.msix else ()):
                if isinstance(vector, hooks.TracedVector):
                    vector.owner, vector.index = functions[devfn], index

    def exits(self, vcpu: Vcpu, handlers: Handlers) -> Handlers:
        """The handlers of a vCPU's exits, likewise; after :meth:`attach`."""
        board = self._board
        assert board is not None
        return hooks.trace_exits(self._recorder, vcpu, handlers, board.pio, board.mmio)

    # What it calls while it runs, from any thread.

    def start(self) -> None:
        """The guest is about to run."""
        if not self._running:
            self._running = True
            for output in self._outputs:
                output.empty()
            self._recorder.start()
            self.phase("entry")

    def phase(self, name: str, detail: str = "") -> None:
        """A phase of the run begins."""
        self._recorder.add((hooks.PHASE, time.monotonic_ns(), name, detail))

    def release(self) -> None:
        """The end has come: the guest waits no more for who doesn't read its trace."""
        self._recorder.release()

    def close(self, outcome: Outcome | None = None) -> None:
        """Write the rest, and how the run went; when the machine has been closed. Idempotent."""
        try:
            self._close(outcome)
        finally:
            on_closed, self.on_closed = self.on_closed, None
            if on_closed is not None:
                on_closed()

    def _close(self, outcome: Outcome | None) -> None:
        if self._running:
            self._running = False
            for console in self._consoles:
                console.flush()
            self.phase("end")
            self._outcome = outcome
            if not self._recorder.stop():
                for output in self._outputs:
                    output.give_up()
                self._outputs = ()  # the writer may be in a system call, so they stay open
        for output in self._outputs:
            output.close()
        self._outputs = ()

    # The writer's thread.

    def _write(self, records: Sequence[Record]) -> None:
        if self._header is not None:
            header, self._header = self._header, None
            for output in self._outputs:
                output.write(output.format.begin(header))
        events: list[dict[str, Any]] = []
        for record in records:
            events += self._decoder.events(record)
        self._sample_memory(events)
        if self._filters:
            events = [event for event in events if self._wanted(event)]
        if events:
            # An interrupt is noted before the exit that raised it, which isn't over then.
            events.sort(key=_time)
            for output in self._outputs:
                output.write(output.format.events(events))

    def _finish(self) -> None:
        end = self._end_event(self._outcome)
        for output in self._outputs:
            output.write(output.format.end(end))

    def _wanted(self, event: dict[str, Any]) -> bool:
        return event["kind"] in ALWAYS or any(each.passes(event) for each in self._filters)

    def _sample_memory(self, events: list[dict[str, Any]]) -> None:
        """How much the guest has now; with the time of the last event, which may lag behind."""
        now = time.monotonic_ns()
        if self._memory is None or now - self._sampled_ns < SAMPLE_NS:
            return
        self._sampled_ns = now
        resident = self._memory.allocated
        if resident != self._resident:
            self._resident = resident
            ns = events[-1]["ns"] if events else now - self._start_ns
            events.append({"ns": ns, "kind": "memory", "resident": resident})

    def _failed(self, error: BaseException) -> None:
        for output in self._outputs:  # who ends the machine may have done so already
            output.break_off(f"{type(error).__name__}: {error}")
        if self.on_error is None:
            raise error
        self.on_error(error)

    def _make_header(self, config: MachineConfig) -> dict[str, Any]:
        from pyvmm.kvm.system import host_has_hardware_kvm

        return {
            "trace": "pyvmm",
            "version": VERSION,
            "started": self._started.isoformat(timespec="milliseconds"),
            "kernel": config.kernel,
            "command_line": config.command_line,
            "cpus": config.cpus,
            "memory": config.memory_size,
            "host": "hardware KVM" if host_has_hardware_kvm() else "software KVM",
        }

    def _end_event(self, outcome: Outcome | None) -> dict[str, Any]:
        ns = time.monotonic_ns() - self._start_ns
        event: dict[str, Any] = {"ns": ns, "kind": "end"}
        if outcome is None:
            return event | {"reason": "failed", "detail": "", "status": 1, "dropped": 0}
        return event | {
            "reason": outcome.reason.value,
            "detail": outcome.detail,
            "status": outcome.status,
            "dropped": 0,
        }


def _time(event: dict[str, Any]) -> int:
    ns: int = event["ns"]
    return ns


def _open(path: str, inputs: Iterable[str | None], others: Iterable[str]) -> int:
    """A descriptor for ``path``; the file is made if there is none, and not changed if there is."""
    if path == STDOUT:
        return 1
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o666)
    except OSError as error:
        raise HostError(f"can't write the trace to {path}: {error.strerror}") from error
    for what, files in (
        ("is an image that the guest needs", inputs),
        ("can't be two traces", others),
    ):
        for other in files:
            if other is not None and _same_file(fd, other):
                os.close(fd)
                raise ConfigError(f"--trace: {path} {what}")
    return fd


def _same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False
