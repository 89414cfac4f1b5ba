"""Runs a machine on this process's terminal and says how it went: what ``pyvmm run`` does.

The supervisor opens the consoles, has a :class:`~pyvmm.verdict.Verdict` read along, keeps the time
and minds the signals.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from _thread import start_new_thread
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from types import FrameType
from typing import TYPE_CHECKING

from pyvmm import layout
from pyvmm.backends.streams import StreamBackend
from pyvmm.backends.terminal import EscapeKeys, Key, RawMode
from pyvmm.config import MachineConfig
from pyvmm.consoles import Consoles, OnOutput
from pyvmm.devices.ps2 import CTRL_ALT_DELETE
from pyvmm.errors import GuestFaults
from pyvmm.eventloop import EventLoop
from pyvmm.machine import Machine
from pyvmm.outcome import Outcome, Reason
from pyvmm.verdict import Expectations, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.record import Record
    from pyvmm.step.prompt import Prompt
    from pyvmm.trace.tracer import Tracer

FLUSH_SECONDS = 1.0
"""How long a reader of the console may take to fetch the last lines."""

SHUTDOWN_SECONDS = 10.0
"""What a guest has to shut down in after SIGTERM has pressed its power button."""

LAST_WORDS_SECONDS = 0.1
"""How long a reset waits for the console's reader to see what the guest said before."""

ABANDON_SECONDS = 1.0
"""How long a second signal waits for the result files to be written."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Interrupted(BaseException):
    """A signal asked us to end, or to have the guest shut down. Raised in the main thread by the
    handler, because a handler that took a lock could find it held by the very code that it
    interrupted."""

    def __init__(self, number: int) -> None:
        self.number = number


class Supervisor:
    """One run of one machine. Use from the main thread, once: :meth:`run`."""

    def __init__(
        self, config: MachineConfig, expectations: Expectations, record: Record | None = None
    ) -> None:
        self.config = config
        self._record = record
        self.faults = GuestFaults(self.say)
        self.on_abandon: Callable[[Outcome], None] | None = None
        """Called, on a thread of its own, when a second signal ends the process on the spot."""
        self._expectations = expectations
        console = "" if config.console is None else config.console.place
        # Who has no console there keeps the terminal as it is, with a Ctrl-C that works.
        wanted = "stdio" in (*config.serial, console, config.screen) and sys.stdin is not None
        self._terminal = RawMode(sys.stdin.fileno() if wanted else -1)
        self._loop = EventLoop()
        self._consoles: Consoles | None = None
        self.verdict = Verdict(expectations, self._loop, self._end)
        self._at_line_start = True
        self._machine: Machine | None = None
        self._graceful = False  # the next SIGTERM is for the guest
        self._interrupted = False
        self._ending = False
        self._prompt: Prompt | None = None
        self._tracer: Tracer | None = None
        self._unsaid: list[str] = []  # while the terminal shows the guest's screen

    def use_prompt(self, prompt: Prompt) -> None:
        """Let the terminal be ``prompt``'s, and its user move the guest; before :meth:`run`."""
        self._prompt = prompt
        self._terminal = RawMode(-1)
        self.verdict.by_hand = True

    def use_tracer(self, tracer: Tracer) -> None:
        """Have ``tracer`` record the run, and close it with the verdict; before :meth:`run`."""
        self._tracer = tracer

    def run(self) -> Outcome:
        """Build the machine, run it to its end, and return the verdict.

        Raises :class:`~pyvmm.errors.PyvmmError` if it can't be started. An exception on one of
        the machine's threads is raised here. The terminal is restored in all cases.
        """
        outcome = None
        try:
            with self._signals():
                try:
                    self._machine = self._build()
                except BaseException:
                    self._close_consoles(0)
                    raise
                self._machine.before_reset = self._before_reset
                self._machine.on_panic = self.verdict.pvpanic
                with self._terminal:
                    outcome = self._supervise(self._machine)
        except Interrupted as interrupt:
            outcome = Outcome(Reason.INTERRUPTED, value=interrupt.number)
        finally:
            if self._tracer is not None:
                self._tracer.close(outcome)
        return outcome

    def _build(self) -> Machine:
        """The machine, with all its consoles."""
        consoles = self._consoles = Consoles(
            self.config,
            self._loop,
            watch=lambda name: self.verdict.reader(name, self._record),
            open_stdio=self._open_stdio,
            say=self.say,
            terminal=self._screen_size(),
        )
        return Machine(
            self.config,
            consoles.serial,
            virtio_console=consoles.virtio(self._terminal_size()),
            screen=consoles.screen,
            loop=self._loop,
            faults=self.faults,
            tracer=self._tracer,
        )

    def _supervise(self, machine: Machine) -> Outcome:
        gc.freeze()  # what start-up made stays; see pyvmm.cli
        gc.enable()
        try:
            with _signals_blocked():
                if self._record is not None:
                    self._record.start()
                if self._consoles is not None:
                    self._consoles.start()
                if self._prompt is None:
                    machine.start()
                else:
                    self._prompt.attach(machine, self._flush_consoles)
            if self._prompt is None:
                self._await_end(machine)
            else:
                self._prompt.run(self._expectations.timeout)
        except Interrupted as interrupt:
            name = signal.Signals(interrupt.number).name
            machine.end(Reason.INTERRUPTED, f"by {name}", value=interrupt.number)
        finally:
            self._ending = True
            machine.stop()
            self._close_consoles(FLUSH_SECONDS)
            unseen = self.config.screen is None and self.verdict.silent and _has_text(machine)
            outcome = machine.close()
        if machine.failure is not None:
            raise machine.failure
        self._terminal.restore()
        if not self._at_line_start and _share_a_screen(1, 2):
            _print_to_stderr("")
        if unseen:
            self.say("the guest has written to the text screen, which --screen shows")
        return self._with_screen(self.verdict.on(outcome))

    def _with_screen(self, outcome: Outcome) -> Outcome:
        """The screen is part of what explains a timeout, unless it was seen."""
        consoles = self._consoles
        if outcome.reason is not Reason.TIMEOUT or consoles is None or consoles.screen is None:
            return outcome
        lines = consoles.screen.lines
        if self._screen_size() is not None or not lines:
            return outcome
        shown = ("the screen at that time:", *(f"| {line}" for line in lines))
        return outcome._replace(report=(*outcome.report, *shown))

    def _flush_consoles(self, timeout: float) -> None:
        if self._consoles is not None:
            self._consoles.flush(timeout)

    def _close_consoles(self, timeout: float) -> None:
        if self._consoles is not None:
            self._consoles.close(timeout)
        if self._record is not None:
            self._record.close()
        unsaid, self._unsaid = self._unsaid, []
        for line in unsaid:
            self.say(line)

    def _await_end(self, machine: Machine) -> None:
        try:
            self._graceful = True
            in_time = machine.wait(self._expectations.timeout)
        except Interrupted:
            if self._interrupted:
                raise
            in_time = self._shut_down(machine)
        finally:
            self._graceful = False
        if not in_time:
            machine.end(Reason.TIMEOUT)

    def _shut_down(self, machine: Machine) -> bool:
        """Have the guest power off, or end it if it doesn't; False if the user's timeout comes
        first."""
        machine.power_button()
        self.say(f"SIGTERM: the guest has {SHUTDOWN_SECONDS:.0f} s to shut down")
        timeout = self._expectations.timeout
        remaining = SHUTDOWN_SECONDS if timeout is None else timeout - machine.seconds
        if machine.wait(max(0.0, min(remaining, SHUTDOWN_SECONDS))):
            return True
        if remaining < SHUTDOWN_SECONDS:
            return False
        detail = f"by SIGTERM: the guest did not shut down within {SHUTDOWN_SECONDS:.0f} s,"
        machine.end(Reason.INTERRUPTED, detail, value=signal.SIGTERM)
        return True

    def _before_reset(self) -> None:
        """What it said before is to be seen first."""
        self._flush_consoles(LAST_WORDS_SECONDS)
        self.verdict.before_reset()

    def say(self, line: str) -> None:
        """A line of our own on stderr; later, if the terminal shows the guest's screen."""
        screen = None if self._consoles is None else self._consoles.screen
        if screen is not None and screen.live:
            self._unsaid.append(line)
        else:
            _print_to_stderr(f"pyvmm: {line}")

    def report(self, outcome: Outcome) -> None:
        """Say on stderr how the run went: what explains a crash; then, as the last line, which end
        it was and why."""
        for line in outcome.report:
            _print_to_stderr(line)
        self.say(outcome.sentence)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal raises Interrupted. Another one means that the end takes too long for
        somebody: it ends the process on the spot, with nothing but the terminal put right. A first
        SIGTERM while the guest runs doesn't count.

        A signal that was ignored when we were started stays so: that is how nohup(1), and a script
        that starts something in the background, protect it. SIGCONT means that a shell has brought
        us back to the foreground (`fg`), and it had put its own settings on the terminal."""

        def handle(number: int, _: FrameType | None) -> None:
            if self._interrupted:
                if self._consoles is not None and self._consoles.screen is not None:
                    self._consoles.screen.abandon()
                self._terminal.restore()
                self._abandon(number)
                os._exit(128 + number)
            self._interrupted = number != signal.SIGTERM or not self._graceful
            self._graceful = False
            raise Interrupted(number)

        handlers = {each: handle for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN}
        handlers[signal.SIGCONT] = self._resumed
        handlers[signal.SIGWINCH] = self._resized
        before = {each: signal.signal(each, handler) for each, handler in handlers.items()}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _abandon(self, number: int) -> None:
        """Say how it went, if that goes without delay. Not on this thread, because it may hold a
        lock, having been interrupted anywhere."""
        on_abandon = self.on_abandon
        if on_abandon is None:
            return
        seconds = 0.0 if self._machine is None else self._machine.seconds
        name = signal.Signals(number).name
        outcome = Outcome(Reason.INTERRUPTED, f"by {name}", number, seconds)
        done = []

        def tell() -> None:
            try:
                on_abandon(outcome)
            finally:
                done.append(True)

        start_new_thread(tell, ())
        deadline = monotonic() + ABANDON_SECONDS
        while not done and monotonic() < deadline:
            sleep(0.01)

    def _resumed(self, number: int, _: FrameType | None) -> None:
        self._terminal.resume()
        if self._consoles is not None and self._consoles.screen is not None and not self._ending:
            self._consoles.screen.show_again()
        self._resized(number, _)  # a window may change while we aren't in the foreground

    def _resized(self, number: int, _: FrameType | None) -> None:
        if self._machine is None or self._ending:
            return
        size = self._terminal_size()
        if size is not None:
            self._machine.resize_console(*size)
        size = self._screen_size()
        if size is not None and self._consoles is not None and self._consoles.screen is not None:
            self._consoles.screen.resize(*size)

    def _terminal_size(self) -> tuple[int, int] | None:
        """Columns and rows of the terminal that the virtio console is on; None if it isn't."""
        if self.config.console is not None and self.config.console.place == "stdio":
            for fd in (0, 1):
                with suppress(OSError):
                    return os.get_terminal_size(fd)
        return None

    def _screen_size(self) -> tuple[int, int] | None:
        """Columns and rows of the terminal that the text screen is shown on; None if it isn't."""
        if self.config.screen != "stdio" or self._prompt is not None:
            return None
        if os.environ.get("TERM") == "dumb" or not RawMode(1).available:
            return None
        size = os.get_terminal_size(1)
        return size.columns or 80, size.lines or 25

    def _open_stdio(self, feed: OnOutput | None) -> StreamBackend:
        if self._prompt is not None:
            return self._prompt.open_console(self._loop, feed)
        keys = None
        if self._terminal.available:
            keys = EscapeKeys(self._escape_keys(), self._show_keys)
        # A background job that reads its terminal is stopped (SIGTTIN); it gets no input.
        input_fd = None if os.isatty(0) and keys is None else 0

        def on_output(data: bytes) -> None:
            self._at_line_start = data.endswith(b"\n")
            if feed is not None:
                feed(data)

        return StreamBackend(
            self._loop, input_fd, 1, keys=keys, on_output=on_output, on_lost=self._stdout_lost
        )

    def _stdout_lost(self, error: OSError) -> None:
        """`pyvmm run | head`: when the reader has gone, so do we, as a filter would. A full file
        system is no reason to end the guest."""
        if error.errno == errno.EPIPE:
            self._end(
                Reason.INTERRUPTED, "because nobody reads its console any more", signal.SIGPIPE
            )
        else:
            self.say(f"the console's output is lost: {error.strerror}")

    def _show_keys(self, text: str) -> None:
        screen = None if self._consoles is None else self._consoles.screen
        if screen is not None and screen.live:
            screen.notice(text)
        else:
            _print_to_stderr(text)

    def _escape_keys(self) -> dict[str, Key]:
        def quit_machine() -> None:
            self._end(Reason.INTERRUPTED, "from the terminal")

        def send_break() -> None:
            if self._consoles is not None:
                self._consoles.send_break()

        def press_power_button() -> None:
            if self._machine is not None:
                self._machine.power_button()

        def press_reset_button() -> None:
            if self._machine is not None:
                self._machine.press_reset_button()

        keys = {
            "x": Key("quit: end the guest at once", quit_machine),
            "p": Key("press the power button", press_power_button),
            "r": Key("reset", press_reset_button),
            "b": Key("send a break (Linux: the SysRq key)", send_break),
        }
        if self.config.screen == "stdio":
            del keys["b"]
            keys["d"] = Key("press Ctrl-Alt-Del", self._ctrl_alt_delete)
        return keys

    def _ctrl_alt_delete(self) -> None:
        if self._consoles is not None and self._consoles.screen is not None:
            self._consoles.screen.press(CTRL_ALT_DELETE)

    def _end(self, reason: Reason, detail: str = "", value: int = 0) -> None:
        if self._machine is not None:
            self._machine.end(reason, detail, value=value)


def _has_text(machine: Machine) -> bool:
    """Whether there is something on a text screen that nobody has seen."""
    cells = machine.memory.view(layout.TEXT_SCREEN, 2 * 80 * 25)
    if cells == bytes(len(cells)):
        return False
    from pyvmm.devices.text_screen import has_text  # here, because most guests don't touch it

    return has_text(machine.memory)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Threads started in here leave the signals to this one, the only one where Python acts on
    them: the kernel gives a signal to any thread that takes it, and waiting isn't interrupted by
    what another one got."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, signal.SIGCONT, signal.SIGWINCH))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _print_to_stderr(line: str) -> None:
    """If nobody reads stderr any more, the guest goes on, and the status is what it was."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _share_a_screen(first: int, second: int) -> bool:
    """Whether two descriptors are the same terminal, file or pipe."""
    try:
        return os.path.sameopenfile(first, second)
    except OSError:
        return False  # one of them is closed
