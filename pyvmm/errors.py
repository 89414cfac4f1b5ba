"""What can go wrong, and who is told.

Three kinds of error, kept apart:

* the user's (a bad file, option or host setting): :class:`PyvmmError` and its kinds. The command
  line turns one into one line on stderr and an exit status;
* the guest's (a bad address, length, index or opcode): :class:`GuestMemoryError` inside a device,
  answered as hardware would answer and reported to :class:`GuestFaults`, which counts every one
  and prints the first of each kind;
* ours: any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class PyvmmError(Exception):
    """Something that the user can put right.

    ``message`` is one sentence without a final full stop that names the file, option or host
    setting at fault; ``hint`` says what to do about it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(PyvmmError):
    """An option's value can't be used; the command line ends with its usage status."""


class ImageError(PyvmmError):
    """A kernel, initrd or disk image is missing, unreadable or not what it should be."""


class HostError(PyvmmError):
    """The host refuses or lacks something: no /dev/kvm, no memory, a failed system call."""


class DeviceError(PyvmmError):
    """A device that the user has written fails, or its file can't be loaded. ``report`` is the
    traceback, in lines; the exception itself is the cause."""

    def __init__(self, message: str, hint: str = "", report: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.report = report


class KvmError(HostError):
    """A KVM ioctl failed; names the ioctl and the errno."""

    def __init__(self, ioctl: str, errno: int, hint: str = "") -> None:
        super().__init__(f"{ioctl} failed: {os.strerror(errno)} (errno {errno})", hint)
        self.ioctl = ioctl
        self.errno = errno


class GuestMemoryError(Exception):
    """An access outside guest RAM. The address is the guest's, so this is never the user's
    fault: whoever did the access on the guest's behalf catches it."""


def _print_to_stderr(line: str) -> None:
    print(f"pyvmm: {line}", file=sys.stderr)


class GuestFaults:
    """Counts what a guest does wrong; prints the first occurrence of each kind.

    A hostile guest repeats a fault millions of times, so ``kind`` must come from a fixed set of
    strings in our source (it is the key of a table that must not grow), and the detail is
    formatted only when it is printed.
    """

    def __init__(self, emit: Callable[[str], None] = _print_to_stderr) -> None:
        self.counts: dict[str, int] = {}
        self._emit = emit

    def report(self, kind: str, detail: str = "", *args: object) -> None:
        """Count a fault of ``kind``; print ``kind: detail % args`` if it is the first."""
        self._report("guest", kind, detail, args)

    def report_host(self, kind: str, detail: str = "", *args: object) -> None:
        """The same for what the host fails to do for a guest, such as I/O on a full disk."""
        self._report("host", kind, detail, args)

    def _report(self, side: str, kind: str, detail: str, args: tuple[object, ...]) -> None:
        seen = self.counts.get(kind, 0)
        self.counts[kind] = seen + 1
        if not seen:
            self._emit(f"{side}: {kind}{': ' if detail else ''}{detail % args}")

    def tell(self, line: str) -> None:
        """Print what is no fault."""
        self._emit(line)

    def count(self, kind: str) -> None:
        """Count without a word: for what every kernel does while it probes."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
