"""`pyvmm run` as a user has it: a process, seen from outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PYVMM = (sys.executable, "-m", "pyvmm")

TIMEOUT = 60
"""Seconds that a guest may take; most take one. The machine may be a busy or an emulated one."""

AT_ONCE = 15.0 if "PYVMM_LAB" in os.environ else 1.5
"""Seconds from a fact to the run's end. The promise is 1; but this machine may be a busy one, and
the lab's is an emulated one, tens of times slower."""

STATUS_TIMEOUT = 124


@dataclass(frozen=True)
class Ended:
    """How a run ended, and what it said."""

    status: int
    console: bytes
    stderr: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """The console's lines."""
        return self.console.decode(errors="replace").replace("\r", "").splitlines()

    def value(self, name: str) -> str:
        """What stands behind ``name: `` on the console."""
        return next(
            line.removeprefix(f"{name}: ") for line in self.lines if line.startswith(f"{name}: ")
        )

    @property
    def passed(self) -> list[str]:
        """The names of what the guest found to be good."""
        return [line.removeprefix("ok: ") for line in self.lines if line.startswith("ok: ")]

    @property
    def failures(self) -> list[str]:
        """What it found to be otherwise."""
        return [line for line in self.lines if line.startswith("FAIL: ")]

    def check(self) -> None:
        """The guest ran to its end, powered off, and found nothing to be wrong."""
        assert self.failures == []
        assert self.status == 0, self
        assert self.passed


def command(kernel: Path, *options: str, append: str | None = None) -> list[str]:
    """The command line; ``append`` is the guest's whole one."""
    words = [*PYVMM, "run", "--kernel", str(kernel), "--no-default-append", *options]
    if append is not None:
        words += ["--append", append]
    if "--timeout" not in options:
        words += ["--timeout", str(TIMEOUT)]
    return words


def run(
    kernel: Path, *options: str, append: str | None = None, stdin: bytes | None = None
) -> Ended:
    """Run a guest to its end; its standard input is ``stdin``, or empty."""
    return run_to_end(command(kernel, *options, append=append), stdin or b"", TIMEOUT)


def run_to_end(arguments: Sequence[str], stdin: bytes, timeout: int) -> Ended:
    """Run a command that should end by itself within ``timeout`` seconds."""
    start = time.monotonic()
    process = subprocess.run(
        arguments, input=stdin, capture_output=True, timeout=2 * timeout, check=False
    )
    return Ended(
        process.returncode, process.stdout, process.stderr.decode(), time.monotonic() - start
    )


def last_line(stderr: str) -> str:
    """The one that says how the run went."""
    return stderr.splitlines()[-1]


class Running:
    """A run that goes on; :meth:`read_until` and :meth:`write` speak with the guest."""

    def __init__(self, arguments: Sequence[str], inherit: Sequence[int] = ()) -> None:
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=inherit,
        )
        self.output = b""

    def read_until(self, text: bytes) -> bytes:
        """What comes up to the next ``text``, inclusive. EOFError if it doesn't come."""
        assert self.process.stdout is not None
        while text not in self.output:
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                raise EOFError(f"{text!r} did not come: {self.output!r}")
            self.output += piece
        head, _, self.output = self.output.partition(text)
        return head + text

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def peak_memory(self) -> int:
        """The most memory that the process had so far, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10

    def finish(self) -> tuple[int, bytes, str]:
        """Status, the rest of the console, stderr."""
        rest, stderr = self.process.communicate(timeout=2 * TIMEOUT)
        return self.process.returncode, self.output + rest, stderr.decode()


@contextlib.contextmanager
def start(
    kernel: Path, *options: str, append: str | None = None, inherit: Sequence[int] = ()
) -> Iterator[Running]:
    """Run a guest in the background; it is killed if it still runs at the end."""
    running = Running(command(kernel, *options, append=append), inherit)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()
