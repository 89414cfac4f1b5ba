"""A vCPU's thread: exits become accesses to the buses, and every end is told to somebody."""

from __future__ import annotations

import errno
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from pyvmm.kvm._kvm import lib
from unit.fake_vcpu import (
    ADDRESS,
    IN,
    OUT,
    PORT,
    Exit,
    FakeVcpu,
    Registers,
    detailed,
    io,
    mmio,
    plain,
)
from unit.fakes import RecordingFaults

from pyvmm.bus import MMIO_SPACE, PIO_SPACE, Bus
from pyvmm.errors import KvmError
from pyvmm.kvm import Vcpu
from pyvmm.kvm.vcpu import install_kick_handler
from pyvmm.vcpu import GuestCrash, VcpuThread


class Stage:
    """A thread with its vCPU and both buses, on each of which is ``registers``."""

    def __init__(self) -> None:
        self.vcpu = FakeVcpu()
        self.registers = Registers()
        faults = RecordingFaults()
        pio = Bus("port", PIO_SPACE, faults, flat=True)
        mmio = Bus("MMIO", MMIO_SPACE, faults)
        pio.add(PORT, 16, self.registers, "registers")
        mmio.add(ADDRESS, 16, self.registers, "registers")
        self.crashes: list[GuestCrash] = []
        self.errors: list[BaseException] = []
        self.resets = 0
        self.on_crash: Callable[[GuestCrash], None] = self.crashes.append
        self.thread = VcpuThread(
            cast("Vcpu", self.vcpu),
            pio,
            mmio,
            on_crash=lambda _, crash: self.on_crash(crash),
            on_reset=self._reset,
            on_error=self.errors.append,
        )

    def _reset(self) -> None:
        self.resets += 1
        self.thread.stop()

    def run(self, *script: Exit) -> None:
        """Let the guest do ``script``, and wait for the thread's end."""
        self.vcpu.script = list(script)
        self.thread.start()
        self.thread.join()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.thread.stop()
    stage.thread.join()


class TestAccesses:
    def test_a_burst_is_so_many_accesses(self, stage: Stage) -> None:
        stage.run(io(OUT, 2, b"\x01\x02\x03\x04\x05\x06"), io(IN, 4, bytes(8)))
        assert stage.registers.written == [(0, 2, 0x201), (0, 2, 0x403), (0, 2, 0x605)]
        page = stage.vcpu.run_page[lib.PIO_DATA_PAGE :]
        assert page[:8] == struct.pack("<II", 1, 2)

    def test_an_access_across_the_last_port(self, stage: Stage) -> None:
        stage.run(io(IN, 4, bytes(4), port=PIO_SPACE - 1), io(OUT, 4, b"abcd", port=PIO_SPACE - 1))
        assert [type(error) for error in stage.errors] == [KvmError]  # the script's end, not ours

    @pytest.mark.parametrize("length", range(1, 9))
    def test_mmio_of_any_length(self, stage: Stage, length: int) -> None:
        """Those that cross a page come in odd pieces."""
        value = int.from_bytes(bytes(range(1, length + 1)), "little")
        stage.run(mmio(ADDRESS, length, value=value), mmio(ADDRESS, length))
        stored = sum(v << 8 * offset for offset, _, v in stage.registers.written)
        assert stored == value
        assert stage.registers.reads == (1 if length in (1, 2, 4, 8) else length)


class TestEnd:
    def test_a_stop_before_the_start(self, stage: Stage) -> None:
        stage.thread.stop()
        stage.run(plain(lib.KVM_EXIT_SHUTDOWN))
        assert (stage.crashes, stage.errors) == ([], [])

    def test_a_pause_and_going_on(self, stage: Stage) -> None:
        """The script goes on where it was; a stop ends it for good."""

        def pause(page: memoryview) -> int:
            stage.thread.pause()
            return int(lib.KVM_EXIT_INTR)

        stage.run(pause, plain(lib.KVM_EXIT_SHUTDOWN))
        assert (stage.crashes, len(stage.vcpu.script)) == ([], 1)
        stage.thread.start()
        stage.thread.join()
        assert len(stage.crashes) == 1
        stage.thread.stop()
        stage.run(plain(lib.KVM_EXIT_SHUTDOWN))
        assert len(stage.crashes) == 1

    def test_another_vcpu_in_its_place(self, stage: Stage) -> None:
        stage.run(plain(lib.KVM_EXIT_SHUTDOWN))
        stage.vcpu = FakeVcpu()
        stage.thread.replace(cast("Vcpu", stage.vcpu))
        stage.run(io(OUT, 1, b"A"), plain(lib.KVM_EXIT_SHUTDOWN))
        assert stage.registers.written == [(0, 1, 0x41)]

    def test_a_stop_after_the_end(self, stage: Stage) -> None:
        """The thread's identity may be another's by then, or nobody's."""
        stage.run(plain(lib.KVM_EXIT_SHUTDOWN))
        stage.thread.stop()

    def test_a_stop_from_the_guest_itself(self, stage: Stage) -> None:
        def reset(page: memoryview) -> int:
            struct.pack_into("<I", page, lib.RUN_DETAIL, 2)
            return int(lib.KVM_EXIT_SYSTEM_EVENT)

        stage.run(reset, plain(lib.KVM_EXIT_SHUTDOWN))
        assert (stage.resets, stage.crashes, stage.errors) == (1, [], [])

    def test_a_triple_fault(self, stage: Stage) -> None:
        stage.run(plain(lib.KVM_EXIT_SHUTDOWN))
        assert [crash.summary for crash in stage.crashes] == ["triple fault"]

    def test_a_failed_entry(self, stage: Stage) -> None:
        stage.run(detailed(lib.KVM_EXIT_FAIL_ENTRY, struct.pack("<QI", 0x8000_0021, 3)))
        assert [crash.summary for crash in stage.crashes] == [
            "the CPU refused to enter the guest, reason 0x80000021 on CPU 3"
        ]

    @pytest.mark.parametrize("told", [bytes.fromhex("f3 48 0f b8 f6"), b""])
    def test_an_instruction_that_kvm_does_not_know(self, stage: Stage, told: bytes) -> None:
        """Its bytes come along if KVM has them."""
        flags = lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES if told else 0
        head = struct.pack("<IIQB", lib.KVM_INTERNAL_ERROR_EMULATION, 3, flags, len(told))
        stage.run(detailed(lib.KVM_EXIT_INTERNAL_ERROR, head + told.ljust(15, b"\xcc")))
        (crash,) = stage.crashes
        assert (crash.summary, crash.instruction) == ("KVM can't emulate an instruction", told)

    @pytest.mark.parametrize(("words", "data"), [((), "none"), ((0x80, 7), "0x80 0x7")])
    def test_another_internal_error(self, stage: Stage, words: tuple[int, ...], data: str) -> None:
        detail = struct.pack(f"<II{len(words)}Q", 3, len(words), *words)
        stage.run(detailed(lib.KVM_EXIT_INTERNAL_ERROR, detail))
        assert [crash.summary for crash in stage.crashes] == [
            f"KVM internal error, suberror 3, data {data}"
        ]

    @pytest.mark.parametrize("reason", [lib.KVM_EXIT_HYPERCALL, lib.KVM_EXIT_DEBUG, 63])
    def test_an_exit_that_nobody_asked_for(self, stage: Stage, reason: int) -> None:
        stage.run(plain(reason))
        assert len(stage.crashes) == 1
        assert "unexpected exit" in stage.crashes[0].summary
        assert stage.errors == []

    def test_a_kvm_run_that_fails(self, stage: Stage) -> None:
        stage.run(plain(-errno.ENOMEM))
        assert [str(error) for error in stage.errors] == [
            "KVM_RUN failed: Cannot allocate memory (errno 12) (the host is out of memory)"
        ]

    def test_a_crash_report_that_fails(self, stage: Stage) -> None:
        """Or the machine would wait for ever for a guest that no longer runs."""

        def fail(crash: GuestCrash) -> None:
            raise OverflowError("a number of the guest's")

        stage.on_crash = fail
        stage.run(plain(lib.KVM_EXIT_SHUTDOWN))
        assert [type(error) for error in stage.errors] == [OverflowError]

    def test_a_kick_that_our_parent_has_blocked(self, stage: Stage) -> None:
        """As some launchers do; a guest that sleeps could then not be ended."""
        kick = install_kick_handler()
        blocked: list[bool] = []

        def look(page: memoryview) -> int:
            blocked.append(kick in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            return int(lib.KVM_EXIT_SHUTDOWN)

        before = signal.pthread_sigmask(signal.SIG_BLOCK, (kick,))
        try:
            stage.run(look)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert blocked == [False]

    def test_stops_from_everywhere(self, stage: Stage) -> None:
        """While the thread comes to its end by itself."""
        stage.vcpu.script = [plain(lib.KVM_EXIT_INTR)] * 1000
        stoppers = [threading.Thread(target=stage.thread.stop) for _ in range(8)]
        stage.thread.start()
        for stopper in stoppers:
            stopper.start()
        stage.thread.join()
        for stopper in stoppers:
            stopper.join()
        assert stage.crashes == []
