"""A trace in JSON lines, read one line at a time; gzip's is unpacked on the way.

A trace may be cut (PyVMM was killed, the disk was full) or damaged. What can't be read is counted
and passed over. What isn't a trace at all is refused with a hint.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

from pyvmm.errors import PyvmmError

VERSION = 1

MAX_LINE = 1 << 20
"""A longer line is none of ours, and a file without line ends must not fill the memory."""

GZIP_MAGIC = b"\x1f\x8b"

HINT = "record one with: pyvmm run --trace x.jsonl"


class TraceFile:
    """The events of the trace at ``path``, or on stdin if that is ``-``: iterate once.

    ``header`` is the trace's first line. ``damaged`` counts the lines that couldn't be read, and
    is complete when the iteration has ended.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.damaged = 0
        try:
            stdin = cast(io.BufferedReader, sys.stdin.buffer)
            self._raw = stdin if path == "-" else open(path, "rb")  # noqa: SIM115
            self._file = self._unpacked(self._raw)
            self.header = self._read_header()
        except OSError as error:
            raise PyvmmError(f"can't read {path}: {error.strerror or error}") from error
        except (EOFError, zlib.error) as error:
            raise self._not_a_trace() from error

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self.path != "-":
            self._raw.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        loads = json.loads
        for line in self._lines():
            try:
                event = loads(line.decode("utf-8", "replace"))  # as bytes it takes twice as long
            except (ValueError, RecursionError):
                self.damaged += 1
                continue
            yield event

    def _lines(self) -> Iterator[bytes]:
        """The lines after the header. A cut line is left to the parser, which refuses it."""
        readline = self._file.readline
        try:
            while line := readline(MAX_LINE):
                if len(line) < MAX_LINE or line.endswith(b"\n"):
                    yield line
                    continue
                self.damaged += 1
                while line and not line.endswith(b"\n"):
                    line = readline(MAX_LINE)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.damaged += 1
        except OSError as error:
            raise PyvmmError(f"can't read {self.path}: {error.strerror}") from error

    def _unpacked(self, raw: io.BufferedReader) -> IO[bytes]:
        if raw.peek(2)[:2] == GZIP_MAGIC:
            return cast(IO[bytes], io.BufferedReader(gzip.GzipFile(fileobj=raw)))
        return raw

    def _read_header(self) -> dict[str, Any]:
        line = self._file.readline(MAX_LINE)
        if not line:
            raise PyvmmError(f"{self.path} is empty", HINT)
        try:
            header = json.loads(line)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict) or header.get("trace") != "pyvmm":
            raise self._not_a_trace()
        version = header.get("version")
        if version != VERSION:
            message = f"{self.path} is a trace of version {version!r}"
            raise PyvmmError(message[:200], f"this PyVMM reads version {VERSION}")
        return header

    def _not_a_trace(self) -> PyvmmError:
        return PyvmmError(f"{self.path} is not a trace in JSON lines", HINT)
