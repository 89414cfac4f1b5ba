"""The conversation of ``pyvmm run --step``: reads commands, has the stepper carry them out, shows
what happened.

Commands come from a terminal or a pipe. The guest's console is shown in lines of its own, behind a
bar, and gets its input by a command, because the terminal is ours.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pyvmm.backends.streams import StreamBackend
from pyvmm.errors import GuestMemoryError
from pyvmm.eventloop import EventLoop
from pyvmm.kvm.vcpu import install_kick_handler
from pyvmm.machine import Machine
from pyvmm.outcome import Reason
from pyvmm.step import command
from pyvmm.step.breakpoints import MAX_BREAKPOINTS
from pyvmm.step.command import Command, CommandError
from pyvmm.step.cpu_state import CpuState
from pyvmm.step.disassembly import Disassembler, register_value, stack_top
from pyvmm.step.ring3 import CannotStep
from pyvmm.step.screen import Screen, plain, wants_colour
from pyvmm.step.stepper import Stepper
from pyvmm.step.stop import (
    BREAKPOINT,
    ENDED,
    HALTED,
    PAUSED,
    RESET,
    STEPPED,
    TIMEOUT,
    WAITING,
    Stop,
)
from pyvmm.symbols import Symbols
from pyvmm.threads import NamedThread

FLUSH_SECONDS = 1.0
"""How long a stop waits for what the guest has printed before it."""

MAX_LINE = 4096
"""A longer line of the guest's is shown as several."""

NUDGE_SECONDS = 0.1
"""How long a signal may go unnoticed."""

DEFAULT_DISASSEMBLY = 8
DEFAULT_BYTES = 64


class GuestLines:
    """What the guest prints, in lines of its own. While ``live`` they are shown as they come, else
    when :meth:`flush` is called: somebody is typing."""

    def __init__(self) -> None:
        self.live = False
        self._lock = threading.Lock()
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        """More output; on the thread of the console."""
        with self._lock:
            self._pending += data
            if self.live:
                self._show(to_the_end=False)

    def flush(self) -> None:
        """Show what there is, the beginning of a line, too."""
        with self._lock:
            self._show(to_the_end=True)

    def _show(self, *, to_the_end: bool) -> None:
        *lines, rest = self._pending.split(b"\n")
        while rest and (to_the_end or len(rest) > MAX_LINE):
            lines.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._pending = rest
        for line in lines:
            show(f"| {plain(bytes(line).rstrip(bytes([0x0D])))}")


def show(line: str) -> None:
    """A line on stdout. If nobody reads it any more, the prompt's next one finds out."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        pass


class Prompt:
    """Commands for one machine. ``symbol_file`` names its addresses; without one the kernel does,
    if it is an ELF file that has symbols. Raises :class:`~pyvmm.errors.PyvmmError` if there is no
    disassembler, or no such file."""

    def __init__(self, kernel: str | None, symbol_file: str | None = None) -> None:
        Disassembler()
        self._symbols = (
            Symbols.of_kernel(kernel) if symbol_file is None else Symbols.load(symbol_file)
        )
        self._screen = Screen(self._symbols, colour=wants_colour(sys.stdout))
        self._guest = GuestLines()
        self._typing: int | None = None  # where the guest's input goes
        self._flush_consoles: Callable[[float], None] = lambda _: None
        self._reading = False
        self._interrupted = False
        self._expired = False
        self._previous: CpuState | None = None  # before the last command that moved the guest
        self._repeat: Command | None = None

    def open_console(
        self, loop: EventLoop, on_output: Callable[[bytes], None] | None
    ) -> StreamBackend:
        """The backend of the console that is on stdio."""
        reader, self._typing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

        def feed(data: bytes) -> None:
            self._guest.feed(data)
            if on_output is not None:
                on_output(data)

        return StreamBackend(loop, reader, None, on_output=feed)

    def attach(self, machine: Machine, flush_consoles: Callable[[float], None]) -> None:
        """Take ``machine``, which hasn't been started, in hand."""
        self._machine = machine
        self._flush_consoles = flush_consoles
        self._stepper = Stepper(machine, self._symbols)

    def run(self, timeout: float | None = None) -> None:
        """Until the guest's end, which may be the user's wish; or ``timeout`` seconds."""
        with self._signals(timeout):
            self._greet()
            while self._machine.outcome is None:
                try:
                    self._converse()
                except KeyboardInterrupt:
                    show("")
                except BrokenPipeError:
                    self._machine.end(
                        Reason.INTERRUPTED,
                        "because nobody reads the prompt any more",
                        value=signal.SIGPIPE,
                    )
                if self._expired:
                    self._machine.end(Reason.TIMEOUT)
            self._show_guest()

    @contextmanager
    def _signals(self, timeout: float | None) -> Iterator[None]:
        """Ctrl-C interrupts what waits, for the guest or for the user; so does the timeout.

        A signal that comes right before a wait wouldn't end it, because Python acts on signals when
        a system call returns. So something makes it return every now and then."""

        def handle(number: int, _: FrameType | None) -> None:
            self._interrupted = True
            self._expired = self._expired or number == signal.SIGALRM
            if self._reading:
                raise KeyboardInterrupt
            self._stepper.interrupt()

        def nudge() -> None:
            while not over.wait(NUDGE_SECONDS):
                signal.pthread_kill(waiting, kick)

        numbers = [signal.SIGALRM]
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            numbers.append(signal.SIGINT)
        over, waiting, kick = threading.Event(), threading.get_ident(), install_kick_handler()
        nudger = NamedThread(target=nudge, name="pyvmm-nudge", daemon=True)
        before = {number: signal.signal(number, handle) for number in numbers}
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        nudger.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        signal.setitimer(signal.ITIMER_REAL, timeout or 0)
        try:
            yield
        finally:
            over.set()
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    # The conversation.

    def _greet(self) -> None:
        state = self._stepper.state()
        vcpus = len(self._machine.vcpus)
        interrupts = "on" if state.interrupts_on else "off"
        show(f"The guest begins in {state.mode}, interrupts {interrupts}.")
        show("h lists the commands, q quits.")
        if vcpus > 1:
            show(f"There are {vcpus} vCPUs. Commands are for vCPU 0, until v N chooses another.")
            show("While it steps the others stand still; n, u and c let all of them run.")
        self._show_next()
        if sys.stdin.isatty() and sys.stdout.isatty():
            import readline  # input() has a history then

            readline.set_auto_history(True)

    def _converse(self) -> None:
        """One command."""
        self._interrupted = False
        line = self._read()
        if line is None:
            self._quit(Command("quit"))
            return
        if self._machine.outcome is not None:
            return
        try:
            wanted = command.parse(line) if line.strip() else self._repeat
            if wanted is not None:
                self._repeat = None
                self._do(wanted)
        except (CommandError, CannotStep, GuestMemoryError) as error:
            show(f"{error}")

    def _read(self) -> str | None:
        """What is typed; None at the end of the input."""
        text = "step> " if len(self._machine.vcpus) == 1 else f"vcpu {self._stepper.vcpu}> "
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        try:
            self._reading = True
            if self._expired:  # before there was anything to interrupt
                raise KeyboardInterrupt
            if interactive:
                return input(text)
            print(text, end="", flush=True)
            line = sys.stdin.readline()
        except EOFError:
            line = ""
        except UnicodeDecodeError:
            line = "\ufffd\n"
        finally:
            self._reading = False
        if not line:
            print(flush=True)
            return None
        if not interactive:  # a transcript should have the question with the answer
            print(line.rstrip("\n"), flush=True)
        return line

    def _do(self, wanted: Command) -> None:
        action: dict[str, Callable[[Command], None]] = {
            "step": self._step,
            "over": self._over,
            "exit": self._exit,
            "until": self._until,
            "continue": self._continue,
            "break": self._break,
            "registers": self._registers,
            "examine": self._examine,
            "xp": self._examine,
            "disassemble": self._disassemble,
            "print": self._print,
            "input": self._input,
            "vcpu": self._vcpu,
            "irq": self._irq,
            "help": self._help,
            "quit": self._quit,
        }
        action[wanted.kind](wanted)

    # Commands that move the guest.

    def _step(self, wanted: Command) -> None:
        self._repeat = wanted
        stepper, first = self._stepper, self._stepper.state()
        for _ in range(1 if wanted.number is None else wanted.number):
            stop = self._move(stepper.step)
            if stop is None:
                break
            self._show_stop(stop)
            at_breakpoint = stop.after.address in stepper.breakpoints
            if stop.why != STEPPED or self._interrupted or at_breakpoint:
                break
        self._previous = first

    def _over(self, wanted: Command) -> None:
        self._go(wanted, self._stepper.over)

    def _exit(self, wanted: Command) -> None:
        self._go(wanted, self._stepper.next_exit)

    def _until(self, wanted: Command) -> None:
        address = self._evaluate(wanted.address)
        if len(self._stepper.breakpoints) >= MAX_BREAKPOINTS:
            raise CommandError("u needs a breakpoint, and all four are taken; b lists them")
        self._go(wanted, lambda: self._stepper.until(address))

    def _continue(self, wanted: Command) -> None:
        self._go(wanted, lambda: self._stepper.cont(wanted.seconds))

    def _go(self, wanted: Command, move: Callable[[], Stop]) -> None:
        self._repeat = wanted
        first = self._stepper.state()
        stop = self._move(move)
        self._previous = first
        if stop is not None:
            self._show_stop(stop)

    def _move(self, move: Callable[[], Stop]) -> Stop | None:
        """Let the guest run. None if it was interrupted, which has been said then."""
        if self._expired:
            return None
        self._guest.live = True
        try:
            return move()
        except KeyboardInterrupt:
            if not self._expired:
                show("")
                self._show_guest()
                self._show_where("interrupted")
            return None
        finally:
            self._guest.live = False
            self._show_guest()

    def _show_guest(self) -> None:
        self._flush_consoles(FLUSH_SECONDS)
        self._guest.flush()

    # What has happened.

    def _show_stop(self, stop: Stop) -> None:
        screen, stepped = self._screen, stop.why in (STEPPED, HALTED)
        if stop.woken:
            show("an interrupt came:")
        if stepped:
            for line in screen.changes(stop.changes, stop.after):
                show(line)
            for write in stop.writes:
                show(screen.write(write))
        for access in stop.accesses:
            show(screen.access(access))
        if stepped and stop.before.mode != stop.after.mode:
            show(f"      now in {stop.after.mode}")
        if stop.why == ENDED:
            return
        words = self._why(stop)
        if words:
            show(words)
        if stop.why != WAITING:
            self._show_next()

    def _why(self, stop: Stop) -> str:
        """Why it stopped, unless that is plain to see."""
        who = f"vCPU {stop.vcpu}"
        if stop.why == HALTED:
            if stop.after.interrupts_on:
                return f"{who} is halted until an interrupt comes; s or c waits for it"
            return f"{who} is halted, with interrupts off: nothing will wake it"
        if stop.why == WAITING:
            return f"{who} has not been started by the guest; it waits for its start-up IPI"
        if stop.why == RESET:
            return "the machine was reset, and the guest boots again"
        known = {BREAKPOINT: "breakpoint", TIMEOUT: "time is up", PAUSED: "paused"}
        words = known.get(stop.why, "")
        if words and stop.after.halted:
            words += ", while halted"
        return f"{who}: {words}" if words and len(self._machine.vcpus) > 1 else words

    def _show_where(self, words: str) -> None:
        state = self._stepper.state()
        halted = ", while halted" if state.halted else ""
        who = f"vCPU {self._stepper.vcpu}: " if len(self._machine.vcpus) > 1 else ""
        show(f"{who}{words}{halted}")
        self._show_next()

    def _show_next(self) -> None:
        """The instruction that is next."""
        state = self._stepper.state()
        found = self._stepper.disassemble(state.address)
        if found:
            lines = self._screen.instruction(found[0], state, current=True)
        else:
            try:
                data = self._stepper.read(state.address, 1)
            except GuestMemoryError:
                data = b""
            lines = self._screen.unreadable(state, data)
        for line in lines:
            show(line)

    # Commands that look.

    def _registers(self, wanted: Command) -> None:
        state = self._stepper.state()
        changed = () if self._previous is None else self._previous.changes(state)
        for line in self._screen.registers(state, changed):
            show(line)
        if wanted.text == "all":
            for line in self._screen.system_registers(state, changed):
                show(line)

    def _examine(self, wanted: Command) -> None:
        physical = wanted.kind == "xp"
        address = self._evaluate(wanted.address, plain=physical)
        if wanted.format == "i":
            self._list(address, wanted.number or 1)
            return
        if wanted.format == "s":
            self._text(address, physical)
            return
        unit = wanted.unit or 1
        count = wanted.number or (DEFAULT_BYTES // unit if not wanted.unit else 1)
        data = self._stepper.read(address, count * unit, physical=physical)
        for line in self._screen.memory(address, data, unit, wanted.format):
            show(line)
        self._repeat = wanted._replace(address=f"{address + len(data):#x}")

    def _text(self, address: int, physical: bool) -> None:
        """A string up to its NUL."""
        text = bytearray()
        while len(text) < MAX_LINE:
            byte = self._stepper.read(address + len(text), 1, physical=physical)
            if byte == b"\0":
                break
            text += byte
        show(f'{address:08x}  "{plain(bytes(text))}"')

    def _disassemble(self, wanted: Command) -> None:
        state = self._stepper.state()
        address = self._evaluate(wanted.address) if wanted.address else state.address
        self._list(address, wanted.number or DEFAULT_DISASSEMBLY)

    def _list(self, address: int, count: int) -> None:
        state = self._stepper.state()
        found = self._stepper.disassemble(address, count)
        for each in found:
            current = each.address == state.address
            for line in self._screen.instruction(each, state, current=current):
                show(line)
        if not found:
            self._stepper.read(address, 1)  # which says so if there is no memory
            raise CommandError(f"there is no instruction at {address:#x}")
        following = f"{found[-1].next_address:#x}"
        self._repeat = Command("disassemble", count, following)

    def _print(self, wanted: Command) -> None:
        value = self._evaluate(wanted.address, plain=True)
        name = self._symbols.name(value)
        show(f"{value:#x} = {value}" + (f" <{name}>" if name else ""))

    # Commands that change something here.

    def _break(self, wanted: Command) -> None:
        stepper, state = self._stepper, self._stepper.state()
        if wanted.address:
            address = self._evaluate(wanted.address)
            where = self._screen.where(address, state)
            if address in stepper.breakpoints:
                stepper.breakpoints.remove(address)
                show(f"no breakpoint at {where} any more")
                return
            try:
                stepper.add_breakpoint(address)
            except ValueError as error:
                raise CommandError(f"{error}; b lists them") from None
            show(f"breakpoint at {where}")
            return
        for address in stepper.breakpoints:
            show(self._screen.where(address, state))
        if not stepper.breakpoints:
            show("no breakpoints; b ADDR sets one")

    def _input(self, wanted: Command) -> None:
        data = command.unescape(wanted.text)
        if self._typing is None:
            raise CommandError("none of the guest's consoles is here (--serial, --console)")
        try:
            os.write(self._typing, data)
        except BlockingIOError:
            raise CommandError("the guest doesn't read its input, and no more fits") from None

    def _vcpu(self, wanted: Command) -> None:
        vcpus = range(len(self._machine.vcpus))
        if wanted.number is not None:
            if wanted.number not in vcpus:
                raise CommandError(f"there is no vCPU {wanted.number}; the last is {vcpus[-1]}")
            self._stepper.vcpu = wanted.number
            self._previous = None
            state = self._stepper.state()
            if not state.running:
                show(f"vCPU {wanted.number} is {_resting(state)}")
            if state.running or state.halted:
                self._show_next()
            return
        for number in vcpus:
            state = self._stepper.state(number)
            marker = "→" if number == self._stepper.vcpu else " "
            where = f" at {self._screen.where(state.address, state)}, {state.mode}"
            what = "" if state.running else f", {_resting(state)}"
            started = state.running or state.halted
            show(f"{marker} vCPU {number}{where if started else ''}{what}")

    def _irq(self, wanted: Command) -> None:
        if wanted.text:
            self._stepper.interrupts = wanted.text == "on"
        state = "come in" if self._stepper.interrupts else "wait"
        show(f"interrupts {state} while stepping")

    def _help(self, wanted: Command) -> None:
        kinds: tuple[command.Kind, ...] = command.KINDS
        if wanted.text:
            kind = command.BY_NAME.get(wanted.text)
            if kind is None:
                raise CommandError(f"there is no command {wanted.text!r}; h lists them")
            kinds = (kind,)
        for each in kinds:
            names = ", ".join(each.names)
            show(f"{names:15} {each.arguments:12} {each.summary}")
            if wanted.text and each.details:
                show(each.details)
        if not wanted.text:
            show("Enter repeats the last of s, o, n, u, c, x and d.")
            show(command.ADDRESSES)

    def _quit(self, _: Command) -> None:
        self._machine.end(Reason.INTERRUPTED, "from the prompt")

    def _evaluate(self, text: str, *, plain: bool = False) -> int:
        """The linear address that ``text`` stands for. Instruction and stack pointer are where they
        point, which their segments' bases are part of, unless ``plain`` numbers are wanted or
        ``text`` names a segment itself."""
        state = self._stepper.state()
        pointers = {} if plain or ":" in text else _pointers(state)

        def value_of(name: str) -> int | None:
            if name in pointers:
                return pointers[name]
            register = register_value(name, state)
            return self._symbols.address(name) if register is None else register

        return command.evaluate(text, value_of, lambda name: int(state.system[name]["base"]))


def _pointers(state: CpuState) -> dict[str, int]:
    """Where the instruction and stack pointer point, by their names."""
    top = stack_top(state)
    return dict.fromkeys(("rip", "eip", "ip"), state.address) | dict.fromkeys(
        ("rsp", "esp", "sp"), top
    )


def _resting(state: CpuState) -> str:
    """Why a vCPU doesn't run."""
    return "halted" if state.halted else "not started yet by the guest"
