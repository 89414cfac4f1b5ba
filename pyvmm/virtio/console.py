"""virtio-console: a console, and named ports for programs in the guest.

Virtual I/O Device (VIRTIO) Version 1.2, section 5.3. Port 0 is the console (Linux: hvc0); the
others are byte streams with a name (Linux: /dev/vport0p1 …). Each port has a character backend, a
queue for either direction, and flow control: a chain of output is held until the backend has taken
all of it, and input is asked for only when the driver has given buffers to put it in.

VIRTIO_CONSOLE_F_MULTIPORT is offered only if there are named ports. Without it the driver reads a
new window size from the configuration space. With it the size comes in a control message, and
there Linux, for years, took the two numbers in the wrong order; we send them in the right one.

Left out: adding and removing ports while the machine runs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from pyvmm.backends.character import CharacterBackend, NullBackend
from pyvmm.errors import GuestFaults
from pyvmm.eventloop import Clock, Reactor
from pyvmm.virtio.buffers import gather, scatter
from pyvmm.virtio.device import DeviceId
from pyvmm.virtio.loop_device import LoopDevice
from pyvmm.virtio.queue import Chain, Virtqueue, VirtqueueError

QUEUE_SIZE = 64
BATCH = 16
"""Output chains taken at a time, before others have their turn on the I/O thread."""
PIECE = 64 * 1024
"""Output offered to the backend at a time; a chain may be as large as guest memory."""

CONTROL_RECEIVEQ, CONTROL_TRANSMITQ = 2, 3

FIRST_REMINDER_NS, LAST_REMINDER_NS = 10_000_000, 10_000_000_000
"""When the driver is told again that the console has a size. Linux looks at the configuration
space only when it changes, and forgets what it saw if it hasn't made its console yet."""

BREAK = b"\x0f"
"""Ctrl-O: there is no break condition on this line, and Linux's hvc console takes this for it."""

# Offsets in struct virtio_console_config (5.3.4).
_COLS, _MAX_NR_PORTS, _EMERG_WR = 0, 4, 8
_SIZE = struct.Struct("<HH")  # cols, rows
_CONFIG = struct.Struct("<HHII")

_CONTROL = struct.Struct("<IHH")  # struct virtio_console_control: id, event, value


class ConsoleFeature:
    """Feature bits (5.3.3)."""

    SIZE = 1 << 0
    MULTIPORT = 1 << 1
    EMERG_WRITE = 1 << 2


class ControlEvent:
    """What a control message says (5.3.6.2)."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


class ConsoleDevice(LoopDevice):
    """A console at ``console`` (None: there is none), and ``ports``: names with their backends.

    ``size`` is the terminal's, columns and rows, if the console is on one.
    """

    def __init__(
        self,
        loop: Reactor,
        clock: Clock,
        faults: GuestFaults,
        console: CharacterBackend | None,
        ports: Sequence[tuple[str, CharacterBackend]] = (),
        size: tuple[int, int] | None = None,
    ) -> None:
        features = ConsoleFeature.EMERG_WRITE
        if size is not None:
            features |= ConsoleFeature.SIZE
        queues = 2
        if ports:
            features |= ConsoleFeature.MULTIPORT
            queues = 4 + 2 * len(ports)
        config = _CONFIG.pack(*(size or (0, 0)), 1 + len(ports), 0)
        super().__init__(loop, DeviceId.CONSOLE, features, (QUEUE_SIZE,) * queues, config)
        self.faults = faults
        self.size = size
        self._clock = clock
        self._reminder = clock.timer(self._remind) if size is not None else None
        self._reminder_ns = 0
        # The messages for the driver that wait for a buffer. A later one replaces an earlier one
        # of its kind, so there is an end to them however slow the driver is.
        self._messages: dict[tuple[int, int], bytes] = {}
        self._console_is_there = console is not None
        self.ports = [ConsolePort(self, 0, "", console or NullBackend())]
        for number, (name, backend) in enumerate(ports, 1):
            self.ports.append(ConsolePort(self, number, name, backend))

    @property
    def multiport(self) -> bool:
        """Whether the driver knows more than the console, and control messages."""
        return bool(self.negotiated & ConsoleFeature.MULTIPORT)

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has a new size."""
        with self.serving:
            if self.size in (None, (columns, rows)):
                return
            self.size = columns, rows
            _SIZE.pack_into(self.config, _COLS, columns, rows)
            if not self.running or not self.negotiated & ConsoleFeature.SIZE:
                return
            if not self.multiport:
                self.config_changed()
            elif self.ports[0].ready:
                self._send_size()

    def write_config(self, offset: int, size: int, value: int) -> None:
        """The emergency write: a character, from a kernel that has nothing else yet (or no more).
        It goes out as long as there is room."""
        if offset == _EMERG_WR:
            self.ports[0].backend.put(value & 0xFF)

    # Life.

    def started(self) -> None:
        self._reminder_ns = FIRST_REMINDER_NS
        self._set_reminder()

    def _set_reminder(self) -> None:
        wanted = self.negotiated & ConsoleFeature.SIZE and not self.multiport
        if self._reminder is not None and wanted:
            self._reminder.arm(self._clock.now_ns() + self._reminder_ns)

    def _remind(self) -> None:
        with self.serving:
            if self.running:
                self.config_changed()
                self._reminder_ns *= 2
                if self._reminder_ns <= LAST_REMINDER_NS:
                    self._set_reminder()

    def stopped(self) -> None:
        if self._reminder is not None:
            self._reminder.cancel()
        for port in self.ports:
            port.stopped()

    def reset(self) -> None:
        with self.serving:
            for port in self.ports:
                self.guarded(port.drain)
            super().reset()
            self._messages.clear()
            for port in self.ports:
                port.reset()

    def save(self) -> dict[str, Any]:
        with self.serving:
            return {
                "ports": [port.save() for port in self.ports],
                "messages": [(*key, message.hex()) for key, message in self._messages.items()],
            }

    def restore(self, state: dict[str, Any]) -> None:
        with self.serving:
            for port, saved in zip(self.ports, state["ports"], strict=True):
                port.restore(saved)
            self._messages = {(p, e): bytes.fromhex(text) for p, e, text in state["messages"]}
            for port in self.ports[1:]:
                if port.ready:  # who is at the other end may have changed
                    key = port.number, ControlEvent.PORT_OPEN
                    self._messages[key] = _CONTROL.pack(*key, port.present)

    # Queues.

    def serve(self, index: int, queue: Virtqueue) -> bool:
        if index >= CONTROL_RECEIVEQ and not self.multiport:
            return False  # queues that this driver doesn't know to exist
        if index == CONTROL_RECEIVEQ:
            self._send_messages()
            return False
        if index == CONTROL_TRANSMITQ:
            return self._receive_messages(queue)
        port = self.ports[index // 2 - 1 if index > CONTROL_TRANSMITQ else 0]
        if index & 1:
            return port.transmit(queue)
        port.buffers_came()
        return False

    # Control messages.

    def send(self, port: int, event: int, value: int = 1, more: bytes = b"") -> None:
        """Tell the driver; with ``serving`` held."""
        self._messages[port, event] = _CONTROL.pack(port, event, value) + more
        self.ring(CONTROL_RECEIVEQ)

    def _send_messages(self) -> None:
        queue = self.queues[CONTROL_RECEIVEQ]
        used = []
        while self._messages:
            chain = queue.pop()
            if chain is None:
                break
            message = self._messages.pop(next(iter(self._messages)))
            if chain.writable_bytes < len(message):
                self.faults.report("virtio-console: buffer too short for a control message")
            used.append((chain.head, scatter(message, chain.writable)))
        if used:
            queue.push_batch(used)

    def _receive_messages(self, queue: Virtqueue) -> bool:
        chains = queue.pop_batch(BATCH)
        if not chains:
            return queue.enable_notifications()
        for chain in chains:
            message = gather(chain.readable, _CONTROL.size)
            if len(message) < _CONTROL.size:
                self.faults.report("virtio-console: control message too short")
            else:
                self._received(*_CONTROL.unpack_from(message))
        queue.push_batch([(chain.head, 0) for chain in chains])
        return True

    def _received(self, number: int, event: int, value: int) -> None:
        if event == ControlEvent.DEVICE_READY:
            self._add_ports(value)
            return
        if number >= len(self.ports):
            self.faults.report("virtio-console: message about no port", "%d", number)
            return
        port = self.ports[number]
        if event == ControlEvent.PORT_READY:
            self._introduce(port, value)
        elif event == ControlEvent.PORT_OPEN:
            port.set_open(bool(value))
        else:
            self.faults.report("virtio-console: unknown control message", "event %d", event)

    def _add_ports(self, value: int) -> None:
        if not value:
            self.faults.report("virtio-console: the driver could not set up the device")
            return
        for port in self.ports:
            if port.number or self._console_is_there:
                self.send(port.number, ControlEvent.PORT_ADD)

    def _introduce(self, port: ConsolePort, value: int) -> None:
        """The driver knows of a port, and now gets to know what it is."""
        if not value:
            self.faults.report("virtio-console: the driver could not add a port")
            return
        port.ready = True
        if port.number == 0:
            self.send(0, ControlEvent.CONSOLE_PORT)
            if self.size is not None and self.negotiated & ConsoleFeature.SIZE:
                self._send_size()
            self.send(0, ControlEvent.PORT_OPEN)
        else:
            name = port.name.encode()
            self.send(port.number, ControlEvent.PORT_NAME, more=name)
            self.send(port.number, ControlEvent.PORT_OPEN, int(port.present))

    def _send_size(self) -> None:
        assert self.size is not None
        self.send(0, ControlEvent.RESIZE, more=_SIZE.pack(*self.size))


class ConsolePort:
    """One port: the character device that its backend sees.

    ``present`` says whether anybody is at the backend's other end, ``ready`` that the driver knows
    the port, ``opened`` that a program in the guest has it open.
    """

    def __init__(
        self, device: ConsoleDevice, number: int, name: str, backend: CharacterBackend
    ) -> None:
        self.number = number
        self.name = name
        self.backend = backend
        self.present = True
        self.ready = False
        self.opened = False
        self._device = device
        self._receiveq = queue_index(number)
        self._transmitq = self._receiveq + 1
        self._sender_waits = False
        self._held: list[Chain] = []
        self._sent = 0
        backend.connect(self)

    # The backend's side.

    def receive(self, data: bytes | bytearray) -> int:
        """As much of ``data`` as the driver has buffers for."""
        accepted = 0

        def deliver() -> bool:
            nonlocal accepted
            accepted = self._deliver(memoryview(data))
            return True

        device = self._device
        with device.serving:
            if self.opened or not device.multiport:
                device.guarded(deliver)
            self._sender_waits = accepted < len(data)
            return accepted

    def _deliver(self, data: memoryview) -> int:
        queue = self._device.queues[self._receiveq]
        if not queue.ready:
            return 0
        used: list[tuple[int, int]] = []
        done = 0
        while done < len(data) and (chain := queue.pop()) is not None:
            if not chain.writable:
                raise VirtqueueError("buffer for input that can't be written")
            written = scatter(data[done:], chain.writable)
            used.append((chain.head, written))
            done += written
        if used:
            queue.push_batch(used)
        return done

    def receive_break(self) -> None:
        if self.number == 0:
            waited = self._sender_waits
            self.receive(BREAK)  # it is lost if the guest doesn't read
            self._sender_waits = waited

    def output_ready(self) -> None:
        self._ring(self._transmitq)

    def carrier(self, present: bool) -> None:
        device = self._device
        with device.serving:
            if self.number and self.present != present:
                self.present = present
                if device.running and self.ready:
                    device.send(self.number, ControlEvent.PORT_OPEN, int(present))

    def _ring(self, index: int) -> None:
        device = self._device
        with device.serving:
            if device.running:
                device.ring(index)

    # The driver's side, with the device's ``serving`` held.

    def set_open(self, opened: bool) -> None:
        self.opened = opened
        if opened:
            self.buffers_came()

    def buffers_came(self) -> None:
        """There may be room for input that had none."""
        if self._sender_waits:
            self._sender_waits = False
            self.backend.resume_input()

    def transmit(self, queue: Virtqueue) -> bool:
        """Hand output to the backend; whether there is more and it may take more."""
        if not self._held:
            self._held = queue.pop_batch(BATCH)
            if not self._held:
                return queue.enable_notifications()
        used = []
        for chain in self._held:
            end = min(self._sent + PIECE, chain.readable_bytes)
            blocked = self._write(chain.readable, end)
            if self._sent < chain.readable_bytes:
                break
            self._sent = 0
            used.append((chain.head, 0))
        else:
            blocked = False
        del self._held[: len(used)]
        if used:
            queue.push_batch(used)
        return not blocked

    def drain(self) -> bool:
        """What the driver has handed over goes out before it is forgotten, as far as the backend
        takes it: a guest's last words before it powers off."""
        queue = self._device.queues[self._transmitq]
        turns = QUEUE_SIZE if queue.ready else 0
        while turns and self.transmit(queue):
            turns -= 1
        return False

    def _write(self, buffers: list[memoryview], end: int) -> bool:
        """Write the chain's bytes from ``_sent`` to ``end``; whether the backend is full."""
        start = 0
        for buffer in buffers:
            if start >= end:
                break
            length = len(buffer)
            if self._sent < start + length:
                piece = buffer[self._sent - start : end - start]
                accepted = self.backend.write(piece)
                self._sent += accepted
                if accepted < len(piece):
                    return True
            start += length
        return False

    # Life.

    def stopped(self) -> None:
        """Let go of guest memory; the chains that are held come again after a pause."""
        if self._held:
            self._device.queues[self._transmitq].unpop(len(self._held))
            self._held = []

    def reset(self) -> None:
        self.ready = self.opened = False
        self._sent = 0

    def save(self) -> dict[str, Any]:
        return {"ready": self.ready, "opened": self.opened, "sent": self._sent}

    def restore(self, state: dict[str, Any]) -> None:
        self.ready, self.opened, self._sent = state["ready"], state["opened"], state["sent"]


def queue_index(port: int) -> int:
    """Where a port's receive queue is; its transmit queue is the next (5.3.2)."""
    return 2 * port + 2 if port else 0
