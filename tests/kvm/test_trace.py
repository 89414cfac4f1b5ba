"""`pyvmm run --trace`: guests of our own, traced in every format and to every end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kvm.command import STATUS_TIMEOUT, TIMEOUT, Ended, command, run, run_to_end, start
from kvm.machines import config
from kvm.terminal import CTRL_C, terminal
from kvm.test_disk import BEFORE, SECTORS

from pyvmm.backends.character import NullBackend
from pyvmm.machine import Machine

Event = dict[str, Any]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "disk.raw"
    image.write_bytes(BEFORE)
    return image


def load(path: Path) -> tuple[Event, list[Event]]:
    """The header and the events of a trace in JSON lines."""
    header, *events = [json.loads(line) for line in path.read_text().splitlines()]
    return header, events


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["kind"] == kind]


def console(events: list[Event]) -> list[str]:
    return [event["text"] for event in of_kind(events, "console")]


def printed(events: list[Event]) -> str:
    """What the exits say that the guest has written to its serial port."""
    return "".join(
        chr(event["value"])
        for event in of_kind(events, "exit")
        if (event.get("device"), event.get("register")) == ("serial COM1", "THR")
    )


def phases(events: list[Event]) -> list[str]:
    return [event["phase"] for event in of_kind(events, "phase")]


class TestADisk:
    """The guest `blk`, by PCI with MSI-X and by MMIO."""

    @pytest.mark.parametrize(
        ("options", "append", "interrupt"),
        [
            ((), "msix", {"msi": 1}),
            ((), "intx", {"gsi": 17}),
            (("--transport", "mmio", "--mmio-cmdline"), "level", {"gsi": 5}),
        ],
    )
    def test_in_json_lines(
        self,
        guests: Path,
        image: Path,
        tmp_path: Path,
        options: tuple[str, ...],
        append: str,
        interrupt: dict[str, int],
    ) -> None:
        trace = tmp_path / "trace.jsonl"
        ended = run(
            guests / "blk",
            *options,
            *("--disk", str(image), "--trace", str(trace)),
            *("--symbols", str(guests / "blk")),
            append=append,
        )
        ended.check()
        header, events = load(trace)
        assert header["kernel"] == str(guests / "blk")
        assert events[-1]["kind"] == "end"
        assert (events[-1]["reason"], events[-1]["status"]) == ("powered off", 0)
        assert phases(events) == ["setup", "entry", "console", "end"]
        assert console(events) == [line.rstrip() for line in ended.lines if line]
        assert printed(events) == ended.console.decode().replace("\r", "")

        requests = {event["what"]: event for event in of_kind(events, "request")}
        assert requests["read 4 sectors at 1"]["bytes"] == 2048
        assert requests["write 3 sectors at 5"]["status"] == "ok"
        assert requests[f"read 1 sector at {SECTORS}"]["status"] == "I/O error"
        assert requests["request type 77"]["status"] == "unsupported"
        assert {request["device"] for request in requests.values()} == {"virtio-blk vda"}
        assert all(request["took"] > 0 for request in requests.values())
        assert max(request["depth"] for request in requests.values()) == 2
        assert of_kind(events, "doorbell")

        interrupts = [e for e in of_kind(events, "interrupt") if e["device"] == "virtio-blk vda"]
        assert interrupts
        assert all(interrupt.items() <= event.items() for event in interrupts)

        registers = {(e["device"], e["register"].lower()) for e in of_kind(events, "exit")}
        assert ("serial COM1", "lcr") in registers
        assert ("virtio-blk vda", "status" if "mmio" in options else "device_status") in registers
        assert ("ACPI", "pm1a_cnt") in registers
        assert any(e.get("symbol", "").startswith("vprint") for e in of_kind(events, "exit"))

    def test_three_formats_at_once(self, guests: Path, image: Path, tmp_path: Path) -> None:
        traces = [tmp_path / f"trace{suffix}" for suffix in (".txt", ".json", ".jsonl")]
        options = [word for trace in traces for word in ("--trace", str(trace))]
        run(guests / "blk", "--disk", str(image), *options, append="msix").check()
        text, perfetto, lines = traces
        _, events = load(lines)
        assert "virtio-blk vda queue 0: read 4 sectors at 1" in text.read_text()
        assert "serial COM1 LCR ← 0x03: 8 bits, no parity" in text.read_text()
        slices = [e for e in json.loads(perfetto.read_text()) if e["ph"] == "X"]
        exits = of_kind(events, "exit")
        assert len(exits) == len([each for each in slices if each["pid"] == 1])
        rows = [line for line in text.read_text().splitlines() if " cpu 0 " in line]
        assert len(rows) == len(exits)

    def test_filters(self, guests: Path, image: Path, tmp_path: Path) -> None:
        trace = tmp_path / "trace.jsonl"
        run(
            guests / "blk",
            *("--disk", str(image), "--trace", str(trace)),
            *("--trace-filter", "kind=request,device=vda"),
            *("--trace-filter", "address=0x3fb,vcpu=0"),
            append="msix",
        ).check()
        _, events = load(trace)
        assert {event["kind"] for event in events} == {"phase", "request", "exit", "end"}
        assert {event["register"] for event in of_kind(events, "exit")} == {"LCR"}


class TestEnds:
    """However a run ends, its trace does too."""

    def test_several_vcpus(self, guests: Path, tmp_path: Path) -> None:
        trace = tmp_path / "trace.jsonl"
        run(guests / "smp", "--cpus", "3", "--trace", str(trace)).check()
        header, events = load(trace)
        assert header["cpus"] == 3
        assert {event["vcpu"] for event in of_kind(events, "exit")} == {0, 1, 2}

    def test_a_crash(self, guests: Path, tmp_path: Path) -> None:
        trace = tmp_path / "trace.jsonl"
        ended = run(guests / "endings", "--trace", str(trace), append="triple-fault")
        _, events = load(trace)
        assert of_kind(events, "exit")[-1]["meaning"] == "triple fault"
        assert events[-1]["reason"] == "crashed"
        assert events[-1]["status"] == ended.status == 4

    def test_boots_in_place(self, guests: Path, image: Path, tmp_path: Path) -> None:
        trace = tmp_path / "trace.jsonl"
        options = "--on-reboot", "restart", "--disk", str(image), "--trace", str(trace)
        run(guests / "reboots", *options).check()
        _, events = load(trace)
        boots = phases(events).count("entry")
        assert boots > 2
        assert phases(events).count("reset") == boots - 1
        assert console(events).count("boot: 0") == 1
        resets = [at for at, event in enumerate(events) if event.get("phase") == "reset"]
        assert of_kind(events[resets[-1] :], "exit")

    def test_a_timeout(self, guests: Path, tmp_path: Path) -> None:
        trace = tmp_path / "trace.jsonl"
        options = "--debug-exit", "--trace", str(trace), "--timeout", "0.5"
        ended = run(guests / "pvh", *options)
        assert ended.status == STATUS_TIMEOUT
        _, events = load(trace)
        assert (events[-1]["reason"], events[-1]["status"]) == ("timed out", STATUS_TIMEOUT)

    def test_a_signal(self, guests: Path, tmp_path: Path) -> None:
        trace = tmp_path / "trace.jsonl"
        with start(guests / "pvh", "--trace", str(trace)) as guest:
            guest.read_until(b"echo until Ctrl-D")
            guest.process.send_signal(signal.SIGINT)
            status, _, _ = guest.finish()
        _, events = load(trace)
        assert (events[-1]["reason"], events[-1]["status"]) == ("interrupted", status)
        assert console(events)[-1].startswith("echo until Ctrl-D")

    def test_kill_leaves_what_can_be_read(self, guests: Path, tmp_path: Path) -> None:
        lines, perfetto = tmp_path / "trace.jsonl", tmp_path / "trace.json"
        options = "--trace", str(lines), "--trace", str(perfetto)
        with start(guests / "pvh", *options) as guest:
            guest.read_until(b"echo until Ctrl-D")
            guest.write(b"x")
            guest.read_until(b"x")
            guest.process.kill()
        whole = lines.read_text().rpartition("\n")[0].splitlines()
        events = [json.loads(line) for line in whole]
        assert any(event.get("text") == "ok: RSDP's checksum" for event in events)
        text = perfetto.read_text().rpartition("\n")[0].rstrip(",\n")
        assert len(json.loads(f"{text}\n]")) > 100

    def test_a_kernel_that_is_none_leaves_an_older_trace(self, tmp_path: Path) -> None:
        trace, kernel = tmp_path / "trace", tmp_path / "kernel"
        trace.write_text("of yesterday")
        kernel.write_text("no kernel")
        assert run(kernel, "--trace", str(trace)).status == 1
        assert trace.read_text() == "of yesterday"


class TestStandardOutput:
    def test_the_console_is_in_the_trace(self, guests: Path) -> None:
        ended = run(guests / "endings", "--trace", "-", append="poweroff")
        assert ended.status == 0
        text = ended.console.decode()
        assert text.startswith("# ")
        assert "COM1 │ " in text
        assert "ACPI PM1a_CNT ← 0x3400: SLP_EN, SLP_TYP 5, power off" in text
        assert text.splitlines()[-1].endswith("powered off (status 0)")

    def test_unless_the_user_says_where(self, guests: Path, tmp_path: Path) -> None:
        log = tmp_path / "console"
        options = "--trace", "-,format=jsonl", "--serial", f"file:{log}"
        ended = run(guests / "endings", *options, append="poweroff")
        _, *events = [json.loads(line) for line in ended.console.splitlines()]
        assert printed(events) == log.read_text().replace("\r", "")

    def test_on_a_terminal_ctrl_c_ends_it(self, guests: Path) -> None:
        """It isn't the guest's terminal, so the keys mean what they always do."""
        options = "--trace", "-", "--trace-filter", "kind=console"
        with terminal(command(guests / "pvh", *options)) as tty:
            tty.read_until(b"echo until Ctrl-D")
            tty.type(CTRL_C)
            tty.read_until(b"interrupted")
            assert tty.finish() == 128 + signal.SIGINT

    def test_a_reader_that_leaves(self, guests: Path) -> None:
        """The guest goes on, and one line says so."""
        process = subprocess.Popen(
            command(guests / "pvh", "--trace", "-", "--timeout", "2"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode().splitlines()
        assert process.wait(TIMEOUT) == STATUS_TIMEOUT
        assert said.count("pyvmm: the trace in standard output ends here: Broken pipe") == 1

    def test_a_reader_that_does_not_read(self, guests: Path) -> None:
        """The guest waits for it, but the end of the run doesn't."""
        with fifo_without_reader() as writer:
            ended = subprocess.run(
                command(guests / "hostile", "--trace", "-,format=jsonl", "--timeout", "1"),
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=subprocess.PIPE,
                timeout=TIMEOUT,
                check=False,
            )
        said = ended.stderr.decode()
        assert ended.returncode in (0, STATUS_TIMEOUT)
        assert "the trace in standard output is not complete: nobody reads it" in said


@contextlib.contextmanager
def fifo_without_reader() -> Iterator[int]:
    """A pipe that somebody has open and never reads."""
    reader, writer = os.pipe()
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


def test_a_full_disk(guests: Path) -> None:
    ended = run(guests / "endings", "--trace", "/dev/full", append="poweroff")
    assert ended.status == 0
    said = "pyvmm: the trace in /dev/full ends here: No space left on device"
    assert ended.stderr.splitlines().count(said) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--trace-filter", "kind=exit"), "--trace-filter: there is nothing to filter"),
        (("--symbols", "vmlinux"), "--symbols is for --trace"),
        (("--trace", "x,format=pdf"), "format=pdf is none of"),
        (("--trace", "x", "--trace-filter", "colour=red"), "'colour=red' is not understood"),
    ],
)
def test_usage(guests: Path, options: tuple[str, ...], says: str) -> None:
    ended = run(guests / "at_once", *options)
    assert ended.status == 2
    assert says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def imported(kernel: Path, *options: str) -> str:
    """What a run says of the modules that it imports."""
    arguments = [sys.executable, "-X", "importtime", "-m", "pyvmm", "run", "--debug-exit"]
    ended: Ended = run_to_end([*arguments, "-k", str(kernel), *options], b"", TIMEOUT)
    return ended.stderr


def test_without_a_trace_nothing_of_it_is_imported(guests: Path, tmp_path: Path) -> None:
    assert "pyvmm.trace" not in imported(guests / "at_once")
    assert "pyvmm.trace" in imported(guests / "at_once", "--trace", str(tmp_path / "trace"))


def test_one_format_does_not_import_the_others(guests: Path, tmp_path: Path) -> None:
    said = imported(guests / "at_once", "--trace", str(tmp_path / "trace.txt"))
    assert "pyvmm.trace.text" in said
    assert "pyvmm.trace.perfetto" not in said
    assert "pyvmm.trace.jsonl" not in said


def test_without_a_trace_a_machine_has_no_hooks(guests: Path, image: Path) -> None:
    """Neither in the exit loop nor at a wire, a queue or a console."""
    machine = Machine(config(guests / "blk", image), [NullBackend()])
    router = machine._router
    assert machine.board.wiring.line == router.line
    assert machine.board.wiring.msi is router
    for thread in machine.vcpus:
        assert {handler.__module__ for handler in thread._handlers} == {"pyvmm.vcpu"}
    (transport,) = machine.board.virtio
    for queue in transport.session.queues:
        assert not any(callable(value) for name, value in vars(queue).items() if name[0] != "_")
    assert isinstance(machine.board.serial_ports[0]._backend, NullBackend)
    machine.close()
