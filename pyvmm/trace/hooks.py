"""What stands between the parts of a machine that is traced: each notes what passes, and passes it
on.

What is noted is plain values; what they mean is found out on the writer's thread
(:mod:`pyvmm.trace.decode`). A record begins with its kind, one of the constants below, and a time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from pyvmm.backends.character import CharacterBackend
from pyvmm.bus import Bus
from pyvmm.interrupts import IrqLine, MsiController, MsiVector
from pyvmm.kvm import Vcpu
from pyvmm.kvm._kvm import lib
from pyvmm.trace.recorder import CAPACITY, Recorder
from pyvmm.trace.requests import Describe
from pyvmm.vcpu import MMIO_DETAIL, PIO_DETAIL, GuestCrash, Handlers, data_views
from pyvmm.virtio.queue import Chain, Virtqueue
from pyvmm.virtio.queue_buffers import Buffers

PIO, MMIO, OTHER, LINE, MSI, DOORBELL, REQUEST, CONSOLE, PHASE = range(9)

# struct kvm_run: kvm_valid_regs, kvm_dirty_regs, then the union s with struct kvm_regs: rax, rbx,
# rcx, rdx, rsi, rdi, rsp, rbp, r8 to r15, rip.
_RIP = lib.RUN_VALID_REGS + 2 * 8 + 16 * 8

MAX_BURST = 256
"""How much is kept of the data of one string instruction; its count is kept in any case."""
MAX_LINE = 4096
"""A longer line of a console counts as several."""


# A vCPU's exits.


def trace_exits(
    recorder: Recorder, vcpu: Vcpu, handlers: Handlers, pio: Bus, mmio: Bus
) -> Handlers:
    """``handlers``, by exit reason, each inside one that records the exit."""
    traced = [
        _trace_other(recorder, vcpu, reason, handler) for reason, handler in enumerate(handlers)
    ]
    io, memory = lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO
    traced[io] = _trace_io(recorder, vcpu, handlers[io], pio)
    traced[memory] = _trace_mmio(recorder, vcpu, handlers[memory], mmio)
    return traced


def _trace_io(
    recorder: Recorder, vcpu: Vcpu, handler: Callable[[], None], bus: Bus
) -> Callable[[], None]:
    page, number, find = vcpu.run_page, vcpu.id, bus.find
    words, rip = page.cast("Q"), _RIP // 8
    unpack, detail, numbers = (
        PIO_DETAIL.unpack_from,
        lib.RUN_DETAIL,
        data_views(page, lib.PIO_DATA_PAGE),
    )
    records, append, throttle = recorder.records, recorder.append, recorder.throttle

    def handle() -> None:
        start = monotonic_ns()
        try:
            handler()
        finally:
            took = monotonic_ns() - start
            direction, size, port, count = unpack(page, detail)
            if count == 1:
                value = numbers[size][0]
            else:
                length = min(size * count, MAX_BURST)
                value = bytes(page[lib.PIO_DATA_PAGE : lib.PIO_DATA_PAGE + length])
            found = find(port)
            append(
                (PIO, start, took, number, words[rip], found, direction, size, port, count, value)
            )
            if len(records) > CAPACITY:
                throttle()

    return handle


def _trace_mmio(
    recorder: Recorder, vcpu: Vcpu, handler: Callable[[], None], bus: Bus
) -> Callable[[], None]:
    page, number = vcpu.run_page, vcpu.id
    words, rip = page.cast("Q"), _RIP // 8
    unpack, detail = MMIO_DETAIL.unpack_from, lib.RUN_DETAIL
    data = (detail + 8) // 8
    records, append, throttle = recorder.records, recorder.append, recorder.throttle

    def handle() -> None:
        start = monotonic_ns()
        address, size, is_write = unpack(page, detail)
        found = bus.find(address)  # before: the access may move what lies there
        try:
            handler()
        finally:
            took = monotonic_ns() - start
            value = words[data] & (1 << 8 * size) - 1
            append(
                (MMIO, start, took, number, words[rip], found, is_write, size, address, 1, value)
            )
            if len(records) > CAPACITY:
                throttle()

    return handle


def _trace_other(
    recorder: Recorder, vcpu: Vcpu, reason: int, handler: Callable[[], None]
) -> Callable[[], None]:
    words, rip = vcpu.run_page.cast("Q"), _RIP // 8

    def handle() -> None:
        start = monotonic_ns()
        summary = ""
        try:
            handler()
        except GuestCrash as crash:
            summary = crash.summary
            raise
        finally:
            took = monotonic_ns() - start
            recorder.add((OTHER, start, took, vcpu.id, words[rip], reason, summary))

    return handle


# Interrupts.


def trace_line(recorder: Recorder, gsi: int, line: IrqLine) -> IrqLine:
    """A wire that records each change of level, and then drives ``line``."""

    def drive(level: bool) -> None:
        recorder.add((LINE, monotonic_ns(), gsi, level))
        line.set(level)

    return IrqLine(drive)


class TracedMsi:
    """A :class:`~pyvmm.interrupts.MsiController` whose vectors record that they are fired."""

    def __init__(self, recorder: Recorder, controller: MsiController) -> None:
        self._recorder = recorder
        self._controller = controller

    def vector(self) -> TracedVector:
        return TracedVector(self._recorder, self._controller.vector())


class TracedVector:
    """A vector; ``owner`` and ``index`` are the device's name and its number for it."""

    def __init__(self, recorder: Recorder, vector: MsiVector) -> None:
        self._recorder = recorder
        self._vector = vector
        self._data = 0
        self.owner = ""
        self.index = 0

    def route(self, address: int, data: int) -> None:
        self._data = data
        self._vector.route(address, data)

    def fire(self) -> None:
        self._recorder.add((MSI, monotonic_ns(), self.owner, self.index, self._data & 0xFF))
        self._vector.fire()

    def close(self) -> None:
        self._vector.close()


# Virtqueues.


class _Pending:
    """A request that the device has taken and not completed yet."""

    __slots__ = ("depth", "fields", "start", "views")

    def __init__(self, start: int, depth: int, fields: Any, views: list[memoryview]) -> None:
        self.start = start
        self.depth = depth
        self.fields = fields
        self.views = views


class TracedQueue:
    """Has ``queue`` record its requests, from when they are popped to when they are pushed, and
    that the device was woken by its doorbell: on this one object all methods that chains pass
    through are replaced. The queue belongs to one thread, so there is no lock."""

    def __init__(
        self, recorder: Recorder, queue: Virtqueue, device: str, index: int, describe: Describe
    ) -> None:
        self._recorder = recorder
        self._device = device
        self._index = index
        self._describe = describe
        self._pending: dict[int, _Pending] = {}
        self._asleep = False
        self._queue = queue
        self._pop_batch, self._pop_buffers = queue.pop_batch, queue.pop_buffers
        self._push_batch, self._push_elements = queue.push_batch, queue.push_elements
        self._unpop, self._reset = queue.unpop, queue.reset
        self._enable_notifications = queue.enable_notifications
        for name in (
            *("pop_batch", "pop_buffers", "push_batch", "push_elements"),
            *("unpop", "reset", "enable_notifications"),
        ):
            setattr(queue, name, getattr(self, name))

    def enable_notifications(self) -> bool:
        more = self._enable_notifications()
        self._asleep = not more
        return more

    def _woken(self, ns: int) -> None:
        """There are chains. If the driver had been asked to ring for them, it has."""
        if self._asleep:
            self._asleep = False
            self._recorder.add((DOORBELL, ns, self._device, self._index))

    def pop_batch(self, limit: int) -> list[Chain]:
        start = monotonic_ns()
        chains = self._pop_batch(limit)
        if chains:
            self._woken(start)
        for chain in chains:
            fields, views = self._describe.popped(chain)
            self._note(chain.head, start, fields, views)
        return chains

    def pop_buffers(self, limit: int, flag: int) -> Buffers | None:
        start = monotonic_ns()
        found = self._pop_buffers(limit, flag)
        if found is not None:
            self._woken(start)
            for head, size in zip(found.heads, found.sizes, strict=True):
                self._note(head, start, (b"", 0, size) if flag else (b"", size, 0), [])
        return found

    def _note(self, head: int, start: int, fields: Any, views: list[memoryview]) -> None:
        self._pending.pop(head, None)  # a driver that offers a chain twice
        self._pending[head] = _Pending(start, len(self._pending) + 1, fields, views)

    def unpop(self, count: int) -> None:
        for _ in range(min(count, len(self._pending))):
            self._pending.popitem()
        self._unpop(count)

    def push_batch(self, used: list[tuple[int, int]]) -> None:
        self._complete(used)
        self._push_batch(used)

    def push_elements(self, elements: bytes | bytearray) -> None:
        self._complete(struct.iter_unpack("<II", elements))
        self._push_elements(elements)

    def _complete(self, used: Any) -> None:
        """Before the driver knows: afterwards its buffers are no longer ours to read."""
        now = monotonic_ns()
        for head, written in used:
            pending = self._pending.pop(head, None)
            if pending is not None:
                result = self._describe.pushed(pending.views)
                self._recorder.add(
                    (REQUEST, pending.start, now - pending.start, self._device, self._index)
                    + (pending.depth, written, pending.fields, result, self._describe)
                )

    def reset(self) -> None:
        self._pending.clear()
        self._asleep = False
        self._reset()


# Consoles.


class TracedConsole:
    """A :class:`~pyvmm.backends.character.CharacterBackend` that records the lines on their way to
    ``backend``; ``name`` is the console's. A line that isn't finished yet, such as a prompt, is
    recorded by :meth:`flush`."""

    def __init__(self, recorder: Recorder, name: str, backend: CharacterBackend) -> None:
        self._recorder = recorder
        self._name = name
        self._backend = backend
        self._line = bytearray()
        self.connect = backend.connect
        self.resume_input = backend.resume_input

    def put(self, byte: int) -> bool:
        accepted = self._backend.put(byte)
        if accepted:
            if byte == 0x0A:
                self.flush()
            else:
                self._line.append(byte)
                if len(self._line) >= MAX_LINE:
                    self.flush()
        return accepted

    def write(self, data: memoryview) -> int:
        data = memoryview(bytes(data))  # what the guest changes meanwhile isn't what was written
        accepted = self._backend.write(data)
        *ends, rest = bytes(data[:accepted]).split(b"\n")
        for end in ends:
            self._line += end
            self.flush()
        self._line += rest
        if len(self._line) >= MAX_LINE:
            self.flush()
        return accepted

    def flush(self) -> None:
        """Record what there is of a line."""
        line, self._line = self._line, bytearray()
        now = monotonic_ns()
        for start in range(0, len(line), MAX_LINE):
            piece = bytes(line[start : start + MAX_LINE])
            self._recorder.add((CONSOLE, now, self._name, piece))
