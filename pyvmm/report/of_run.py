"""The report at the end of a run: ``pyvmm run --report``.

The run is traced into a file beside the page, which is read when the tracer has closed it, and then
removed. If PyVMM itself is killed, that file stays, and ``pyvmm report`` makes a page of what is
in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress

from pyvmm.errors import ConfigError, HostError, PyvmmError

LONG = 20 << 20
"""Bytes of a trace that take some seconds to read."""


class RunReport:
    """The page to be written to ``output``, by way of the trace in the file :attr:`trace`.

    ``files`` are those that the run has other uses for.
    """

    def __init__(self, output: str, files: Iterable[str | None]) -> None:
        if not output or output == "-":
            raise ConfigError(f"--report: {output!r} is no file's name", "such as boot.html")
        directory = os.path.dirname(output) or "."
        if os.path.isdir(output):
            raise HostError(f"--report: {output} is a directory")
        if not os.path.isdir(directory):
            raise HostError(f"--report: there is no directory {directory}")
        if not os.access(directory, os.W_OK):
            raise HostError(f"--report: can't write in the directory {directory}")
        for other in files:
            if other is not None and _same_file(output, other):
                raise ConfigError(f"--report: {output} is a file that the run has another use for")
        self.output = output
        self.trace = f"{output}.{os.urandom(3).hex()}.jsonl"

    def write(self, say: Callable[[str], None]) -> None:
        """Write the page, if the guest ran at all, and remove the trace; ``say`` gets a line about
        it. What goes wrong here isn't the run's failure."""
        from pyvmm.report import write_report

        try:
            length = os.path.getsize(self.trace)
            if length > LONG:
                say(f"making the report of {length >> 20} MiB of trace")
            if length:
                write_report(self.trace, self.output)
                say(f"the report is in {self.output}")
        except (PyvmmError, OSError) as error:
            say(f"--report: {error}")
        finally:
            with suppress(OSError):
                os.unlink(self.trace)


def _same_file(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:  # one isn't there yet
        return os.path.realpath(first) == os.path.realpath(second)
