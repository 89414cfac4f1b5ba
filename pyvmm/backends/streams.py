"""Character backends over file descriptors: stdin and stdout, a file, a pseudo-terminal.

Output goes through a bounded buffer to a thread that does nothing but write it. stdout may be a
terminal stopped with Ctrl-S or a pipe that nobody reads; only a thread of its own can block there
without harm. The alternative, O_NONBLOCK, is a flag of the open file description, which we share
with the shell that started us and with everything else it starts.

Input is read on the I/O thread, and only as fast as the device takes it: what isn't read stays in
the pipe or file.
"""

from __future__ import annotations

import os
import select
import stat
import termios
import threading
from collections.abc import Callable, Sequence
from time import monotonic

from pyvmm.backends.character import CharacterDevice
from pyvmm.backends.terminal import EscapeKeys, raw_attributes
from pyvmm.errors import HostError
from pyvmm.eventloop import READABLE, EventLoop
from pyvmm.threads import NamedThread

OUTPUT_CAPACITY = 64 * 1024
"""Output that may wait to be written; then the device is refused, and its guest waits. As much
again can be in the writing thread's hands."""

COALESCE_SECONDS = 0.002
"""How long the first byte waits for company. A guest prints a byte every few microseconds, and a
system call and a switch of threads for each would cost more than the guest's own work."""

READ_SIZE = 4096

TYPE_AHEAD_LIMIT = 1 << 20
"""Terminal input kept for a guest that doesn't read. Terminal input is always read, else nobody
could quit a guest that hangs; what a user pastes beyond this is lost."""


class OutputThread:
    """A bounded buffer, and the thread that writes it to ``fd``.

    ``on_output`` sees every byte, on that thread, before it is written. A failed write means that
    the reader has gone (EPIPE, EIO) or that nothing more fits (ENOSPC): ``on_lost`` is told once,
    and from then on output is thrown away so that the guest runs on. With ``reader_may_return``
    (a pseudo-terminal, non-blocking) it is thrown away while nobody is attached. An exception in
    one of these callbacks is our bug and goes to ``on_error``.
    """

    def __init__(
        self,
        fd: int,
        on_room: Callable[[], None],
        on_error: Callable[[BaseException], None],
        *,
        on_output: Callable[[bytes], None] | None = None,
        on_lost: Callable[[OSError], None] | None = None,
        reader_may_return: bool = False,
    ) -> None:
        self._fd = fd
        self._on_room = on_room
        self._on_error = on_error
        self._on_output = on_output
        self._on_lost = on_lost
        self._reader_may_return = reader_may_return
        self._writable = select.poll()
        self._writable.register(fd, select.POLLOUT)
        self._lost = False
        self._buffer = bytearray()
        self._refused = False
        self._idle = True
        self._hurry = False
        self._stopping = False
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._emptied = threading.Condition(self._lock)
        self._thread = NamedThread(target=self._run, name="pyvmm-console", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, byte: int) -> bool:
        """Take a byte; False if the buffer is full. ``on_room`` is called when it isn't any more.

        Enters the kernel only when the thread sleeps, which is at most once every
        ``COALESCE_SECONDS``."""
        with self._lock:
            buffer = self._buffer
            if buffer:
                if len(buffer) >= OUTPUT_CAPACITY:
                    self._refused = True
                    return False
                buffer.append(byte)
                return True
            buffer.append(byte)
            self._filled.notify()
            return True

    def write(self, data: memoryview) -> int:
        """Take as many bytes as there is room for. ``on_room`` is called when there is room for
        the rest."""
        with self._lock:
            buffer = self._buffer
            before = len(buffer)
            accepted = min(len(data), OUTPUT_CAPACITY - before)
            buffer += data[:accepted]
            if accepted < len(data):
                self._refused = True
            # Half a buffer is company enough: don't wait for more.
            if accepted and (not before or len(buffer) >= OUTPUT_CAPACITY // 2):
                self._filled.notify()
            return accepted

    def flush(self, timeout: float) -> bool:
        """Wait until all has been written, ``timeout`` seconds at most; whether it has."""
        if not self._thread.is_alive():
            return not self._buffer
        deadline = monotonic() + timeout
        with self._lock:
            self._hurry = True
            self._filled.notify()
            try:
                while self._buffer or not self._idle:
                    remaining = deadline - monotonic()
                    if remaining <= 0 or not self._emptied.wait(remaining):
                        return False
                return True
            finally:
                self._hurry = False

    def stop(self, timeout: float) -> bool:
        """Flush and end the thread; False if it is stuck in a write. Idempotent."""
        if not self._thread.is_alive():
            return True
        flushed = self.flush(timeout)
        with self._lock:
            self._stopping = True
            self._filled.notify()
        self._thread.join(timeout if flushed else 0)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (data := self._take()) is not None:
                self._write(data)
        except BaseException as error:
            with self._lock:
                self._lost = True
            self._on_error(error)

    def _take(self) -> bytearray | None:
        """Wait for output and take all there is; None at the end."""
        with self._lock:
            self._idle = True
            if not self._buffer:
                self._emptied.notify_all()
            while not self._buffer:
                if self._stopping:
                    return None
                self._filled.wait()
            if not self._hurry and len(self._buffer) < OUTPUT_CAPACITY // 2:
                self._filled.wait(COALESCE_SECONDS)
            data, self._buffer = self._buffer, bytearray()
            self._idle = False
            refused, self._refused = self._refused, False
        if refused:
            self._on_room()
        return data

    def _write(self, data: bytearray) -> None:
        if self._on_output is not None:
            self._on_output(bytes(data))
        if self._lost:
            return
        rest = memoryview(data)
        try:
            while rest:
                if self._reader_may_return and self._hung_up():
                    return
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:
                    # A pseudo-terminal; or whoever we share stdout with has changed its flags.
                    self._writable.poll()
        except OSError as error:
            self._lost = True
            if self._on_lost is not None:
                self._on_lost(error)

    def _hung_up(self) -> bool:
        return any(events & select.POLLHUP for _, events in self._writable.poll(0))


class StreamBackend:
    """A character backend that reads one file descriptor and writes another, or only one of them.

    ``keys`` filters terminal input; ``on_output`` and ``on_lost`` are as for
    :class:`OutputThread`; ``owned`` are descriptors that :meth:`close` closes;
    ``reader_may_return`` says that the other side can hang up and come back; ``empty_first`` says
    that output replaces what is in the file.

    The end of input (end of file, hang-up) just ends the reading.
    """

    def __init__(
        self,
        loop: EventLoop,
        input_fd: int | None,
        output_fd: int | None,
        *,
        keys: EscapeKeys | None = None,
        on_output: Callable[[bytes], None] | None = None,
        on_lost: Callable[[OSError], None] | None = None,
        owned: Sequence[int] = (),
        reader_may_return: bool = False,
        empty_first: bool = False,
    ) -> None:
        self._loop = loop
        self._input_fd = input_fd
        self._keys = keys
        self._owned = owned
        self._reader_may_return = reader_may_return
        self._events = READABLE | (select.EPOLLET if reader_may_return else 0)
        self._pollable = input_fd is not None and _is_pollable(input_fd)
        self._reading = False
        self._watch_lock = threading.Lock()
        self._waiting = bytearray()
        self._device: CharacterDevice | None = None
        self._file_to_empty = output_fd if empty_first else None
        if output_fd is None:
            output_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            self._owned = (*owned, output_fd)
        self._output = OutputThread(
            output_fd,
            self._room,
            self._fail,
            on_output=on_output,
            on_lost=on_lost,
            reader_may_return=reader_may_return,
        )
        self.put = self._output.put  # without a layer between: a guest's every byte comes here
        self.write = self._output.write

    def connect(self, device: CharacterDevice) -> None:
        self._device = device

    def start(self) -> None:
        """Begin to write and to read."""
        if self._file_to_empty is not None:
            os.ftruncate(self._file_to_empty, 0)
        self._output.start()
        self._loop.call(self._deliver)

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until all output has been written, ``timeout`` seconds at most; whether it has."""
        return self._output.flush(timeout)

    def close(self, timeout: float = 1.0) -> None:
        """Stop reading, write what is left (for ``timeout`` seconds at most), close what is ours.
        Idempotent. Once nothing runs that could use the device; before the event loop is closed."""
        self._end_of_input()
        if self._output.stop(timeout):
            for fd in self._owned:
                os.close(fd)
        self._owned = ()

    def send_break(self) -> None:
        """Inject a break condition into the device's input."""
        if self._device is not None:
            self._device.receive_break()

    def resume_input(self) -> None:
        self._loop.call(self._deliver)

    def _room(self) -> None:
        if self._device is not None:
            self._device.output_ready()

    def _fail(self, error: BaseException) -> None:
        """A bug shown on the output thread ends the machine the way one on the I/O thread does."""

        def reraise() -> None:
            raise error

        self._loop.call(reraise)

    # Input; on the I/O thread, but for the end of it in close().

    def _deliver(self) -> None:
        """Give the device what is waiting, and go on reading if it took all of it."""
        if self._device is None:
            return
        if self._waiting:
            del self._waiting[: self._device.receive(self._waiting)]
        if not self._waiting or self._keys is not None:
            self._read_on()
        else:
            self._pause()

    def _read_on(self) -> None:
        if self._reading and not self._reader_may_return:
            return
        with self._watch_lock:
            fd = self._input_fd
            if fd is None:
                return
            self._reading = True
            if self._pollable:
                # Watching an edge-triggered descriptor again asks anew whether it is ready.
                self._loop.watch(fd, self._readable, self._events)
            else:
                # A regular file or /dev/null: epoll refuses it because it is always ready.
                self._loop.call(self._readable)

    def _pause(self) -> None:
        with self._watch_lock:
            self._unwatch()

    def _end_of_input(self) -> None:
        with self._watch_lock:
            self._unwatch()
            self._input_fd = None

    def _unwatch(self) -> None:
        self._reading = False
        if self._pollable and self._input_fd is not None:
            self._loop.unwatch(self._input_fd)

    def _readable(self) -> None:
        fd = self._input_fd
        if fd is None:
            return
        if not self._pollable:
            self._reading = False
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # EIO: the terminal hung up
        if not data:
            if not self._reader_may_return:
                self._end_of_input()
            return  # an edge-triggered descriptor is silent until somebody writes to it again
        if self._keys is not None:
            data = self._keys.feed(data)[: TYPE_AHEAD_LIMIT - len(self._waiting)]
        self._waiting += data
        self._deliver()


def open_file(
    loop: EventLoop,
    path: str,
    *,
    on_output: Callable[[bytes], None] | None = None,
    on_lost: Callable[[OSError], None] | None = None,
) -> StreamBackend:
    """A backend that writes to the file at ``path``, which is made if there is none, and emptied
    when the backend starts: a machine that can't be built costs nobody a log. No input."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o666)
    except OSError as error:
        raise HostError(f"can't write console output to {path}: {error.strerror}") from error
    regular = stat.S_ISREG(os.fstat(fd).st_mode)
    return StreamBackend(
        loop, None, fd, on_output=on_output, on_lost=on_lost, owned=(fd,), empty_first=regular
    )


def open_pty(
    loop: EventLoop,
    announce: Callable[[str], None],
    *,
    on_output: Callable[[bytes], None] | None = None,
) -> StreamBackend:
    """A backend on a new pseudo-terminal; ``announce`` is told its name (/dev/pts/7).

    Nobody need be attached: output is then thrown away, and the guest doesn't wait.
    """
    try:
        master, slave = os.openpty()
        name = os.ttyname(slave)
        # Raw, or the slave would echo the guest's output back to it. The settings last as long
        # as the master is open. So we can close the slave, and the master then polls as hung up
        # until somebody opens the slave: that is how we know whether anybody is there.
        termios.tcsetattr(slave, termios.TCSANOW, raw_attributes(termios.tcgetattr(slave)))
        os.close(slave)
        os.set_blocking(master, False)
    except OSError as error:
        raise HostError(f"can't make a pseudo-terminal: {error.strerror}") from error
    announce(name)
    return StreamBackend(
        loop, master, master, on_output=on_output, owned=(master,), reader_may_return=True
    )


def _is_pollable(fd: int) -> bool:
    """Whether epoll takes ``fd``."""
    with select.epoll() as probe:
        try:
            probe.register(fd, READABLE)
        except PermissionError:
            return False
    return True
