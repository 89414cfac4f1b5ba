"""The report at the end of a run: ``pyvmm run --report``.

The run is traced into a file beside the page, which is read when the tracer has closed it, and then
removed. If PyVMM itself is killed, or the page can't be written, that file stays, and ``pyvmm
report`` makes a page of what is in it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable

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
        it. What goes wrong here isn't the run's failure, and then the trace stays."""
        try:
            if os.path.getsize(self.trace):
                self._write(say)
            os.unlink(self.trace)
        except (PyvmmError, OSError) as error:
            say(f"--report: {error}; the trace stays in {self.trace}")
        except KeyboardInterrupt:
            say(f"--report: interrupted; the trace stays in {self.trace}")
        except Exception:  # a bug of ours, which must not take the run's verdict with it
            traceback.print_exc()
            say(f"--report: no page; the trace stays in {self.trace}")

    def _write(self, say: Callable[[str], None]) -> None:
        from pyvmm.report import write_report

        length = os.path.getsize(self.trace)
        if length > LONG:
            say(f"making the report of {length >> 20} MiB of trace")
        write_report(self.trace, self.output)
        say(f"the report is in {self.output}")


def _same_file(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:  # one isn't there yet
        return os.path.realpath(first) == os.path.realpath(second)
