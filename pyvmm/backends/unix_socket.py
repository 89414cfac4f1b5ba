"""Unix-domain sockets as the host's side of a device (unix(7)).

:class:`UnixListener` is a listening socket in the file system; :class:`SocketBackend` serves a
character device to whoever connects to one. The socket device has one as well.

A listener that was killed leaves its file behind, and nobody can listen there until it is removed.
So a file that refuses connections is replaced, but one where somebody listens is not, and neither
is one that is no socket.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from pyvmm.backends.character import CharacterDevice
from pyvmm.errors import HostError
from pyvmm.eventloop import READABLE, WRITABLE, Clock, Reactor

READ_SIZE = 1 << 16

OUTPUT_CAPACITY = 64 * 1024
"""Bytes from :meth:`SocketBackend.put` that may wait for the socket."""

COALESCE_NS = 2_000_000
"""How long the first byte waits for company, so that a line of text is one packet."""

RETRY_NS = 100_000_000
"""When to look again for a client, after the host had no file descriptor for it."""


class UnixListener:
    """A listening socket at ``path``, which is removed by :meth:`close`. ``option`` is named in
    errors."""

    def __init__(self, path: str, option: str, backlog: int = 8) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._bind(option)
            self._socket.listen(backlog)
            status = os.stat(path)
        except OSError as error:
            self._socket.close()
            reason = error.strerror or str(error)  # a path that is too long has no errno
            raise HostError(f"{option}: can't listen at {path}: {reason}") from error
        except HostError:
            self._socket.close()
            raise
        self._identity = status.st_dev, status.st_ino

    def _bind(self, option: str) -> None:
        try:
            self._socket.bind(self.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            self._remove_dead(option)
            self._socket.bind(self.path)

    def _remove_dead(self, option: str) -> None:
        """Remove what is at the path if it is a socket that nobody listens at."""
        if not stat.S_ISSOCK(os.stat(self.path).st_mode):
            raise HostError(f"{option}: {self.path} exists and is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            if probe.connect_ex(self.path) != errno.ECONNREFUSED:
                raise HostError(f"{option}: {self.path} is in use", "choose another path")
        os.unlink(self.path)

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next client, non-blocking; None if there is none. OSError if the host has no file
        descriptor left; the client then goes on waiting."""
        try:
            client, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        client.setblocking(False)
        return client

    def close(self) -> None:
        """Stop listening, and remove the path if it is still ours. Idempotent."""
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        with suppress(OSError):
            status = os.stat(self.path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self.path)


class SocketBackend:
    """A character backend at ``listener``: one client at a time, and the next one when it has
    gone; the others wait in the queue.

    The device learns of clients by :meth:`CharacterDevice.carrier`. A client has gone when it
    closes its socket, or shuts down its sending half. What the device writes while there is none
    is thrown away; a client that doesn't read makes the device wait. ``on_output`` sees every
    byte.
    """

    def __init__(
        self,
        loop: Reactor,
        clock: Clock,
        listener: UnixListener,
        *,
        on_output: Callable[[bytes], None] | None = None,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._listener = listener
        self._on_output = on_output
        self._device: CharacterDevice | None = None
        self._client: socket.socket | None = None
        self._client_reads = False
        self._reading = False
        self._waiting = b""
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._blocked = False
        self._refused = False
        self._started = self._closed = False
        self._flush_timer = clock.timer(self._flush_due)
        self._accept_timer = clock.timer(self._listen)

    def connect(self, device: CharacterDevice) -> None:
        self._device = device

    def start(self) -> None:
        """Begin to accept clients."""
        self._started = True
        self._loop.call(self._start)

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until all output has been sent, ``timeout`` seconds at most; whether it has."""
        with self._lock:
            if self._client is not None:
                self._send_rest(self._client, timeout)
            return not self._unsent

    def close(self, timeout: float = 1.0) -> None:
        """Write what is left, for ``timeout`` seconds at most; close and remove the socket.
        Idempotent. Once nothing runs that could use the device; before the loop is closed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._started:
                self._loop.unwatch(self._listener.fileno())
                self._flush_timer.cancel()
                self._accept_timer.cancel()
            if self._client is not None:
                self._send_rest(self._client, timeout)
                self._watch_client(0)
                self._client.close()
            self._listener.close()

    def send_break(self) -> None:
        """Inject a break condition into the device's input."""
        if self._device is not None:
            self._device.receive_break()

    # Output, from any thread.

    def put(self, byte: int) -> bool:
        with self._lock:
            unsent = self._unsent
            if len(unsent) >= OUTPUT_CAPACITY:
                self._refused = True
                return False
            if not unsent and not self._closed:
                self._flush_timer.arm(self._clock.now_ns() + COALESCE_NS)
            unsent.append(byte)
            return True

    def write(self, data: memoryview) -> int:
        with self._lock:
            if self._flush():
                sent = self._send(data)
                if sent == len(data):
                    return sent
            else:
                sent = 0
            self._refused = True
            return sent

    def _flush_due(self) -> None:
        with self._lock:
            if self._flush() and self._refused and self._device is not None:
                self._refused = False
            else:
                return
        self._device.output_ready()

    def _flush(self) -> bool:
        """Send what :meth:`put` took; whether all has gone."""
        unsent = self._unsent
        if unsent:
            del unsent[: self._send(unsent)]
        return not unsent

    def _send(self, data: memoryview | bytearray) -> int:
        """How much of ``data`` has been sent, or thrown away; the loop watches for room for the
        rest."""
        sent = len(data)
        if self._client is not None and self._client_reads:
            try:
                sent = self._client.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._client_reads = False  # the end of its input says when it has gone
        if sent and self._on_output is not None:
            self._on_output(bytes(data[:sent]))
        self._blocked = sent < len(data)
        self._watch_client()
        return sent

    def _send_rest(self, client: socket.socket, timeout: float) -> None:
        deadline = monotonic() + timeout
        writable = select.poll()
        writable.register(client, select.POLLOUT)
        while not self._flush():
            remaining = deadline - monotonic()
            if remaining <= 0 or not writable.poll(1000 * remaining):
                return

    # Clients and input; on the I/O thread.

    def _start(self) -> None:
        if self._device is not None:
            self._device.carrier(False)
        self._listen()

    def _listen(self) -> None:
        with self._lock:
            if not self._closed and self._client is None:
                self._loop.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        with self._lock:
            if self._closed or self._client is not None:
                return
            try:
                client = self._listener.accept()
            except OSError:
                self._loop.unwatch(self._listener.fileno())
                self._accept_timer.arm(self._clock.now_ns() + RETRY_NS)
                return
            if client is None:
                return
            self._client = client
            self._client_reads = self._reading = True
            self._loop.unwatch(self._listener.fileno())
            self._watch_client()
        if self._device is not None:
            self._device.carrier(True)

    def _watch_client(self, events: int = READABLE | WRITABLE) -> None:
        """Watch for what we wait for, among ``events``."""
        if self._client is None:
            return
        wanted = (READABLE if self._reading else 0) | (WRITABLE if self._blocked else 0)
        if wanted & events:
            self._loop.watch(self._client.fileno(), self._ready, wanted & events)
        else:
            self._loop.unwatch(self._client.fileno())

    def _ready(self) -> None:
        """The client can be written or read, or has gone."""
        with self._lock:
            if self._closed or self._client is None:
                return
            writable, self._blocked = self._blocked, False
        if writable:
            self._room()
        if self._reading:
            self._read()

    def _room(self) -> None:
        with self._lock:
            ready = self._flush() and self._refused
            if ready:
                self._refused = False
            self._watch_client()
        if ready and self._device is not None:
            self._device.output_ready()

    def _read(self) -> None:
        client = self._client
        if client is None:
            return
        try:
            data = client.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # it was killed with our output unread
        if data:
            self._waiting = data
            self._deliver()
        else:
            self._hang_up(client)

    def resume_input(self) -> None:
        self._loop.call(self._deliver)

    def _deliver(self) -> None:
        """Give the device what is waiting, and go on reading if it took all of it."""
        if self._device is None:
            return
        if self._waiting:
            self._waiting = self._waiting[self._device.receive(self._waiting) :]
        with self._lock:
            if not self._closed and self._reading == bool(self._waiting):
                self._reading = not self._waiting
                self._watch_client()

    def _hang_up(self, client: socket.socket) -> None:
        with self._lock:
            if self._closed:
                return
            self._reading = self._blocked = False
            self._watch_client()
            self._client = None
            client.close()
            self._flush()  # nobody is left to read it
            refused, self._refused = self._refused, False
        if self._device is not None:
            self._device.carrier(False)
            if refused:
                self._device.output_ready()
        self._listen()
