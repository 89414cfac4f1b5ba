"""What a run came to, as files for programs: ``--json`` and ``--junit``.

The JSON document is described in docs/ci.md; a change that could break a reader gets a new
:data:`SCHEMA`. The JUnit file (:mod:`pyvmm.junit`) is made from the same document.

A file appears whole or not at all: it is written beside its place and renamed. Before the guest
starts, one is put there that says that the run did not end. So whatever ends PyVMM, a job never
finds the result of an earlier run, and a place that can't be written is told in time.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyvmm.errors import ConfigError, HostError, PyvmmError
from pyvmm.outcome import Outcome, Reason

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.record import Record
    from pyvmm.verdict import Verdict

SCHEMA = 1

STDOUT = "-"
STREAMS = 1, 2  # our stdout and stderr

UNFINISHED = "pyvmm did not come to an end: it was killed, or still runs"

SOFTWARE_KVM_MODULE = "/sys/module/kvm_pvm"


class Results:
    """The files that ``files`` names by option (``--json``, ``--junit``). ``name`` is the test
    case's; ``inputs`` are the paths that must not be overwritten.

    :meth:`begin`, then :meth:`end` or :meth:`failed`; the last call's result stays.
    """

    def __init__(
        self, files: Mapping[str, str], name: str, record: Record, inputs: Sequence[str] = ()
    ) -> None:
        self._files = files
        self._inputs = inputs
        self._places: dict[str, str] = {}
        self.record = record
        self._name = name
        self.config: MachineConfig | None = None
        """What the machine is made of, once that is known."""

    def begin(self) -> None:
        """Check that the files can be written. Raises ConfigError for a place that isn't one, and
        HostError for one that can't be written."""
        for option, path in self._files.items():
            if path != STDOUT:
                check_place(option, path, self._inputs, self._places)
            elif option != "--json":
                raise ConfigError(f"{option}: it takes a file's path, such as /dev/stdout")
            self._places[option] = path
        document = self._document("unfinished", None, UNFINISHED)
        for option, path in self._places.items():
            if path != STDOUT:
                try:
                    _write(path, _render(option, document), placeholder=True)
                except OSError as error:
                    del self._places[option]
                    raise HostError(f"{option}: can't write {path}: {error.strerror}") from error

    def end(self, outcome: Outcome, verdict: Verdict, faults: Mapping[str, int]) -> list[str]:
        """The run has ended: write what it came to. What can't be written is said in the lines
        that this returns."""
        document = self._document(outcome.reason.name.lower(), outcome.status, outcome.sentence)
        told = outcome.reason in (Reason.DEBUG_EXIT, Reason.INTERRUPTED)
        document["value"] = outcome.value if told else None
        if self.record.setup is not None:
            document["seconds"] |= self._phases(outcome.seconds)
        document["reboots"] = outcome.reboots
        document["panic"] = verdict.panic if outcome.reason is Reason.PANIC else None
        if verdict.match is not None and outcome.reason is not Reason.PANIC:
            match = verdict.match._asdict().items()
            document["match"] = {name: _plain(text) for name, text in match}
        document["report"] = list(outcome.report)
        document["vcpus"] = list(outcome.vcpus)
        document["guest_faults"] = dict(faults)
        return self._replace(document)

    def failed(self, error: BaseException) -> None:
        """There was no run, or we failed."""
        reason, status, sentence = "error", 1, f"internal error: {type(error).__name__}: {error}"
        report: tuple[str, ...] = ()
        if isinstance(error, PyvmmError):
            sentence, report = str(error), getattr(error, "report", ())
            if isinstance(error, ConfigError):
                reason, status = "usage", 2
        elif isinstance(error, KeyboardInterrupt):
            reason, status, sentence = "interrupted", 130, "interrupted"
        document = self._document(reason, status, " ".join(sentence.split()))
        document["report"] = list(report)
        self._replace(document)

    def _phases(self, run: float) -> dict[str, float | None]:
        """The times since the guest's start. What it printed last is read when it has ended."""
        times = {"first_line": self.record.first_line, "init": self.record.init, "run": run}
        return {name: None if t is None else round(min(t, run), 3) for name, t in times.items()}

    def _replace(self, document: dict[str, Any]) -> list[str]:
        lost = []
        for option, path in self._places.items():
            try:
                if path == STDOUT:
                    sys.stdout.write(_render(option, document))
                    sys.stdout.flush()
                else:
                    _write(path, _render(option, document))
            except OSError as error:
                place = "to stdout" if path == STDOUT else path
                lost.append(f"{option}: can't write {place}: {error.strerror}")
        return lost

    def _document(self, reason: str, status: int | None, sentence: str) -> dict[str, Any]:
        """All members, with what is known without an outcome."""
        record = self.record
        return {
            "schema": SCHEMA,
            "name": _plain(self._name),
            "reason": reason,
            "status": status,
            "sentence": _plain(sentence),
            "value": None,
            "started": round(record.began, 3),
            "seconds": {
                "setup": _rounded(record.setup),
                "first_line": _rounded(record.first_line),
                "init": _rounded(record.init),
                "run": None if record.setup is None else _rounded(record.seconds),
                "total": _rounded(record.age),
            },
            "reboots": 0,
            "panic": None,
            "match": None,
            "report": [],
            "vcpus": [],
            "consoles": record.lines,
            "guest_faults": {},
            "machine": None if self.config is None else _machine(self.config),
            "host": {"kernel": os.uname().release, "kvm": _kind_of_kvm()},
            "versions": _versions() if status is not None else {},
        }


def _machine(config: MachineConfig) -> dict[str, Any]:
    return {
        "kernel": None if config.kernel is None else _plain(config.kernel),
        "initrd": None if config.initrd is None else _plain(config.initrd),
        "command_line": _plain(config.command_line),
        "cpus": config.cpus,
        "memory": config.memory_size,
        "disks": [_plain(disk.path) for disk in config.disks],
        "floppies": [_plain(floppy.path) for floppy in config.floppies],
    }


def _kind_of_kvm() -> str:
    from pyvmm.kvm.system import DEVICE, host_has_hardware_kvm

    if not os.path.exists(DEVICE):
        return "none"
    if host_has_hardware_kvm():
        return "hardware"
    return "software" if os.path.exists(SOFTWARE_KVM_MODULE) else "unknown"


def _versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version  # slow, and wanted at the end

    pyvmm = None
    with suppress(PackageNotFoundError):
        pyvmm = version("pyvmm")
    return {"pyvmm": pyvmm, "python": sys.version.partition(" ")[0]}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _plain(text: str) -> str:
    """``text`` without the surrogates that stand for a path's bytes that aren't UTF-8."""
    return text.encode(errors="replace").decode() if not text.isascii() else text


def _render(option: str, document: dict[str, Any]) -> str:
    if option == "--junit":
        from pyvmm.junit import render

        return render(document)
    import json

    return json.dumps(document, indent=1) + "\n"


def check_place(option: str, path: str, inputs: Sequence[str], others: Mapping[str, str]) -> None:
    """ConfigError unless ``path`` is a place of its own: none of ``inputs``, the files that the run
    needs, and none of ``others``, which belong to options."""
    if not path:
        raise ConfigError(f"{option}: the path is empty")
    if any(_same(path, each) for each in inputs):
        raise ConfigError(f"{option}: {path} is a file that the run needs")
    for other, taken in others.items():
        if _same(path, taken):
            raise ConfigError(f"{option}: {path} is {other}'s file")


def _same(first: str, second: str) -> bool:
    """Whether two paths are one file, or will be."""
    with suppress(OSError):
        if os.path.samefile(first, second):
            return True
    with suppress(OSError):  # of a working directory that has been removed
        return os.path.realpath(first) == os.path.realpath(second)
    return first == second


def _write(path: str, text: str, *, placeholder: bool = False) -> None:
    """Put ``text`` at ``path``, all at once; to what is no regular file (a pipe), or one of our
    standard streams (/dev/stdout), it is added as it is, and no placeholder."""
    data = text.encode()
    try:
        status = os.stat(path)  # of the path as it is: /dev/stdout leads to what has no name
        mode, stream = status.st_mode, _stream(status)
    except FileNotFoundError:
        mode, stream = stat.S_IFREG, None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISREG(mode) and stream is None:
        target = os.path.realpath(path)
        if os.path.exists(target) and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        _replace_file(target, data)
    elif not placeholder:
        if stream is not None:
            descriptor = os.dup(stream)  # opened anew, a socket fails and a file is overwritten
        else:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY)
        _write_all(descriptor, data)


def _stream(status: os.stat_result) -> int | None:
    """Our stdout or stderr, if that is what this is the status of."""
    for fd in STREAMS:
        with suppress(OSError):
            if os.path.samestat(status, os.fstat(fd)):
                return fd
    return None


def _write_all(descriptor: int, data: bytes) -> None:
    """Write ``data`` and close the descriptor."""
    with open(descriptor, "wb", buffering=0) as file:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) or 0 :]


def _replace_file(target: str, data: bytes) -> None:
    temporary = os.path.join(os.path.dirname(target), f".pyvmm-{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666)
    try:
        _write_all(descriptor, data)
        os.rename(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
