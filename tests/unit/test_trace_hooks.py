"""What a tracer sees: exits, wires, vectors, virtqueues and consoles; and that nothing of it is
there without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from pyvmm.kvm._kvm import lib
from unit.fake_vcpu import ADDRESS, IN, OUT, PORT, Exit, FakeVcpu, Registers, io, mmio, plain
from unit.fakes import FakeMsi, RecordingFaults, RecordingLine
from unit.virtio_driver import Pc, VirtioDriver
from unit.virtio_echo import Echo

from pyvmm.backends.character import CharacterDevice
from pyvmm.bus import MMIO_SPACE, PIO_SPACE, Bus
from pyvmm.kvm import Vcpu
from pyvmm.trace import hooks
from pyvmm.trace.hooks import (
    CONSOLE,
    DOORBELL,
    LINE,
    MAX_BURST,
    MAX_LINE,
    MMIO,
    MSI,
    OTHER,
    PIO,
    REQUEST,
    TracedConsole,
    TracedMsi,
    TracedQueue,
    trace_exits,
    trace_line,
)
from pyvmm.trace.recorder import Recorder
from pyvmm.trace.requests import Describe
from pyvmm.vcpu import GuestCrash, Handlers, VcpuThread
from pyvmm.virtio.queue import VIRTQ_DESC_F_WRITE, Virtqueue

RIP = 0x1234_5678_9ABC


@pytest.fixture
def recorder() -> Recorder:
    """One that nobody empties."""
    return Recorder(lambda batch: None, lambda: None, lambda error: None)


def records(recorder: Recorder) -> list[tuple[Any, ...]]:
    """What has been recorded since the last time."""
    found = list(recorder.records)
    recorder.records.clear()
    return found


class Cpu:
    """A vCPU's thread with a script for a guest, traced."""

    def __init__(self, recorder: Recorder | None) -> None:
        self.vcpu = FakeVcpu()
        self.vcpu.id = 3
        self.registers = Registers()
        self.pio = Bus("port", PIO_SPACE, RecordingFaults(), flat=True)
        self.mmio = Bus("MMIO", MMIO_SPACE, RecordingFaults())
        self.pio.add(PORT, 16, self.registers, "ports")
        self.mmio.add(ADDRESS, 16, self.registers, "memory")
        self.crashes: list[GuestCrash] = []

        def trace(vcpu: Vcpu, handlers: Handlers) -> Handlers:
            assert recorder is not None
            return trace_exits(recorder, vcpu, handlers, self.pio, self.mmio)

        self.thread = VcpuThread(
            cast("Vcpu", self.vcpu),
            self.pio,
            self.mmio,
            on_crash=lambda _, crash: self.crashes.append(crash),
            on_reset=lambda: None,
            on_error=lambda error: None,
            trace=None if recorder is None else trace,
        )

    def run(self, *script: Exit) -> None:
        offset = hooks._RIP
        self.vcpu.run_page[offset : offset + 8] = RIP.to_bytes(8, "little")
        self.vcpu.script = list(script)
        self.thread.start()
        self.thread.join()


class TestExits:
    def test_accesses_do_what_they_did_and_are_recorded(self, recorder: Recorder) -> None:
        cpu = Cpu(recorder)
        cpu.run(
            io(OUT, 1, b"A"),
            io(IN, 2, bytes(2)),
            mmio(ADDRESS + 4, 4, value=0x1234_5678),
            mmio(ADDRESS, 8),
            io(OUT, 1, b"B", port=PORT + 100),
        )
        assert cpu.registers.written == [(0, 1, 0x41), (4, 4, 0x1234_5678)]
        found = records(recorder)
        ports, memory = cpu.pio.find(PORT), cpu.mmio.find(ADDRESS)
        assert [(kind, vcpu, rip, *rest) for kind, _, _, vcpu, rip, *rest in found] == [
            (PIO, 3, RIP, ports, OUT, 1, PORT, 1, 0x41),
            (PIO, 3, RIP, ports, IN, 2, PORT, 1, 1),
            (MMIO, 3, RIP, memory, 1, 4, ADDRESS + 4, 1, 0x1234_5678),
            (MMIO, 3, RIP, memory, 0, 8, ADDRESS, 1, 2),
            (PIO, 3, RIP, None, OUT, 1, PORT + 100, 1, 0x42),
        ]
        times = [time for _, time, *_ in found]
        assert times == sorted(times)
        assert all(took >= 0 for _, _, took, *_ in found)

    def test_a_burst_is_one_exit(self, recorder: Recorder) -> None:
        cpu = Cpu(recorder)
        cpu.run(io(OUT, 1, b"hello"), io(OUT, 2, bytes(1000)))
        (*_, count, data), (*_, many, cut) = records(recorder)
        assert (count, data) == (5, b"hello")
        assert (many, cut) == (500, bytes(MAX_BURST))
        assert len(cpu.registers.written) == 505

    def test_a_crash_is_recorded_before_it_ends_the_vcpu(self, recorder: Recorder) -> None:
        cpu = Cpu(recorder)
        cpu.run(plain(lib.KVM_EXIT_INTR), plain(lib.KVM_EXIT_SHUTDOWN))
        assert [crash.summary for crash in cpu.crashes] == ["triple fault"]
        assert [(record[0], *record[3:]) for record in records(recorder)] == [
            (OTHER, 3, RIP, lib.KVM_EXIT_INTR, ""),
            (OTHER, 3, RIP, lib.KVM_EXIT_SHUTDOWN, "triple fault"),
        ]

    def test_an_access_that_fails_is_recorded(self, recorder: Recorder) -> None:
        cpu = Cpu(recorder)

        def fail(offset: int, size: int, value: int) -> None:
            raise GuestCrash("the device has it so")

        cpu.pio.remove(PORT, cpu.registers)
        cpu.registers.write = fail  # type: ignore[method-assign]
        cpu.pio.add(PORT, 16, cpu.registers, "ports")
        cpu.run(io(OUT, 1, b"A"))
        assert len(cpu.crashes) == 1
        assert records(recorder)[0][0] == PIO

    def test_another_vcpu_in_its_place_is_traced_too(self, recorder: Recorder) -> None:
        cpu = Cpu(recorder)
        cpu.run(plain(lib.KVM_EXIT_SHUTDOWN))
        records(recorder)
        cpu.vcpu = FakeVcpu()
        cpu.thread.replace(cast("Vcpu", cpu.vcpu))
        cpu.run(io(OUT, 1, b"A"), plain(lib.KVM_EXIT_SHUTDOWN))
        assert [record[0] for record in records(recorder)] == [PIO, OTHER]

    def test_without_a_tracer_the_handlers_are_the_plain_ones(self, recorder: Recorder) -> None:
        """The loop, and what it calls, has nothing of a trace in it: no wrapper, no test."""
        plain_ones, traced = Cpu(None).thread._handlers, Cpu(recorder).thread._handlers
        assert {handler.__module__ for handler in plain_ones} == {"pyvmm.vcpu"}
        assert {handler.__module__ for handler in traced} == {"pyvmm.trace.hooks"}


class TestInterrupts:
    def test_a_line(self, recorder: Recorder) -> None:
        wire = RecordingLine()
        line = trace_line(recorder, 4, wire)
        line.set(True)
        line.set(True)
        line.set(False)
        assert wire.edges == [True, False]
        assert [(r[0], *r[2:]) for r in records(recorder)] == [(LINE, 4, True), (LINE, 4, False)]

    def test_a_vector(self, recorder: Recorder) -> None:
        inner = FakeMsi()
        vector = TracedMsi(recorder, inner).vector()
        vector.owner, vector.index = "virtio-blk vda", 1
        vector.route(0xFEE0_0000, 0x4021)
        vector.fire()
        vector.close()
        ((kind, _, *rest),) = records(recorder)
        assert (kind, *rest) == (MSI, "virtio-blk vda", 1, 0x21)
        assert inner.vectors[0].fired == [(0xFEE0_0000, 0x4021)]


class Queue:
    """A queue with a driver on the one side, and the test for a device on the other."""

    def __init__(self, recorder: Recorder) -> None:
        self.echo = Echo()
        self.pc = Pc(self.echo)
        self.driver: VirtioDriver = self.pc.driver()
        session = self.echo._session
        assert session is not None
        self.queue: Virtqueue = session.queues[0]
        TracedQueue(recorder, self.queue, "echo", 0, Describe())
        self.ring = self.driver.start()

    def offer(self, readable: int, writable: int) -> int:
        out = [(0x80_0000, readable)] if readable else []
        into = [(0x81_0000, writable)] if writable else []
        return self.ring.add(out, into)


@pytest.fixture
def queue(recorder: Recorder) -> Iterator[Queue]:
    queue = Queue(recorder)
    records(recorder)
    yield queue
    queue.pc.close()


class TestQueues:
    def test_a_request_from_pop_to_push(self, queue: Queue, recorder: Recorder) -> None:
        head = queue.offer(100, 50)
        queue.queue.pop_batch(1)
        assert not records(recorder)  # it isn't over
        queue.queue.push_batch([(head, 40)])
        ((kind, _, took, device, index, depth, written, fields, _, _),) = records(recorder)
        assert (kind, device, index, depth, written) == (REQUEST, "echo", 0, 1, 40)
        assert fields == (b"", 100, 50)
        assert took >= 0
        assert queue.ring.take() == [(head, 40)]

    def test_depth_counts_what_is_in_flight(self, queue: Queue, recorder: Recorder) -> None:
        heads = [queue.offer(8, 0) for _ in range(3)]
        queue.queue.pop_batch(2)
        queue.queue.pop_batch(2)
        queue.queue.push_batch([(head, 0) for head in heads])
        assert [record[5] for record in records(recorder)] == [1, 2, 3]

    def test_chains_that_are_given_back_unseen(self, queue: Queue, recorder: Recorder) -> None:
        heads = [queue.offer(8, 0) for _ in range(2)]
        queue.queue.pop_batch(2)
        queue.queue.unpop(1)
        queue.queue.push_batch([(heads[0], 0)])
        queue.queue.pop_batch(2)
        queue.queue.push_batch([(heads[1], 0)])
        assert [record[5] for record in records(recorder)] == [1, 1]

    def test_buffers_for_packets(self, queue: Queue, recorder: Recorder) -> None:
        heads = [queue.offer(0, 100) for _ in range(2)]
        found = queue.queue.pop_buffers(8, VIRTQ_DESC_F_WRITE)
        assert found is not None
        queue.queue.push_elements(
            b"".join(head.to_bytes(4, "little") + bytes((60, 0, 0, 0)) for head in heads)
        )
        assert [(r[0], r[6], r[7]) for r in records(recorder)] == [(REQUEST, 60, (b"", 0, 100))] * 2

    def test_a_doorbell_is_what_ends_a_sleep(self, queue: Queue, recorder: Recorder) -> None:
        assert queue.queue.pop_batch(1) == []
        assert not queue.queue.enable_notifications()
        assert queue.queue.pop_batch(1) == []  # it was woken by something else
        assert not records(recorder)
        queue.offer(8, 0)
        queue.queue.pop_batch(1)
        ((kind, _, *rest),) = records(recorder)
        assert (kind, *rest) == (DOORBELL, "echo", 0)
        queue.offer(8, 0)
        queue.queue.pop_batch(1)  # which the device found by itself
        assert not records(recorder)

    def test_a_reset_forgets_what_was_in_flight(self, queue: Queue, recorder: Recorder) -> None:
        queue.offer(8, 0)
        queue.queue.pop_batch(1)
        queue.driver.reset()
        ring = queue.driver.start()
        ring.add([(0x80_0000, 8)], [])
        queue.queue.pop_batch(1)
        queue.queue.push_batch([(0, 0)])
        assert [record[5] for record in records(recorder) if record[0] == REQUEST] == [1]

    def test_a_chain_that_was_never_popped(self, queue: Queue, recorder: Recorder) -> None:
        queue.queue.push_batch([(7, 0)])
        assert not records(recorder)


class Sink:
    """A console's backend that takes so much."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.taken = b""
        self.device: CharacterDevice | None = None
        self.resumed = 0

    def connect(self, device: CharacterDevice) -> None:
        self.device = device

    def put(self, byte: int) -> bool:
        return self.write(memoryview(bytes((byte,)))) == 1

    def write(self, data: memoryview) -> int:
        accepted = min(self.room, len(data))
        self.room -= accepted
        self.taken += data[:accepted]
        return accepted

    def resume_input(self) -> None:
        self.resumed += 1


class TestConsoles:
    def lines(self, recorder: Recorder) -> list[bytes]:
        found = records(recorder)
        assert all((r[0], r[2]) == (CONSOLE, "COM1") for r in found)
        return [r[3] for r in found]

    def test_lines_by_byte(self, recorder: Recorder) -> None:
        console = TracedConsole(recorder, "COM1", Sink())
        for byte in b"one\r\n\ntwo":
            assert console.put(byte)
        assert self.lines(recorder) == [b"one\r"]
        console.flush()
        assert self.lines(recorder) == [b"two"]

    def test_lines_in_pieces(self, recorder: Recorder) -> None:
        sink = Sink()
        console = TracedConsole(recorder, "COM1", sink)
        assert console.write(memoryview(b"on")) == 2
        assert console.write(memoryview(b"e\ntwo\nthr")) == 9
        assert self.lines(recorder) == [b"one", b"two"]
        assert sink.taken == b"one\ntwo\nthr"

    def test_what_is_refused_comes_again(self, recorder: Recorder) -> None:
        sink = Sink(room=4)
        console = TracedConsole(recorder, "COM1", sink)
        assert console.write(memoryview(b"one\ntwo\n")) == 4
        assert not console.put(ord("t"))
        sink.room = 9
        assert console.write(memoryview(b"two\n")) == 4
        assert self.lines(recorder) == [b"one", b"two"]

    def test_a_line_without_end(self, recorder: Recorder) -> None:
        console = TracedConsole(recorder, "COM1", Sink())
        for _ in range(MAX_LINE + 1):
            console.put(ord("x"))
        console.write(memoryview(bytes(2 * MAX_LINE)))
        assert [len(line) for line in self.lines(recorder)] == [MAX_LINE, MAX_LINE, MAX_LINE, 1]

    def test_it_stands_in_for_the_backend(self, recorder: Recorder) -> None:
        sink = Sink()
        console = TracedConsole(recorder, "COM1", sink)
        device = cast("CharacterDevice", object())
        console.connect(device)
        console.resume_input()
        assert sink.device is device
        assert sink.resumed == 1
