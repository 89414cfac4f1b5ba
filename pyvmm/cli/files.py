"""The files that ``pyvmm run`` leaves for a CI job: ``--json``, ``--junit``, ``--log-console``."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pyvmm.console_log import ConsoleLog, LogConfig
from pyvmm.errors import ConfigError, PyvmmError
from pyvmm.outcome import Outcome
from pyvmm.record import Record
from pyvmm.results import STDOUT, Results, check_place
from pyvmm.supervisor import Supervisor

FAILED = 1
"""The exit status if a result couldn't be written, and would have been 0."""

Prepare = Callable[[dict[str, Any], Record | None], Supervisor]


def run_with_files(options: dict[str, Any], prepare: Prepare) -> int:
    """Run the machine that ``prepare`` makes of ``options``, and write the files that these ask
    for, however it ends; the exit status."""
    record = Record()
    name = options["name"] or os.path.basename(_started_from(options))
    files = {f"--{key}": options[key] for key in ("json", "junit") if options[key] is not None}
    results = Results(files, name, record, _inputs(options))
    try:
        results.begin()
        _leave_stdout_free(options)
        log = _open_log(options, files, record)
        supervisor = prepare(options, record)
        if log is not None:
            log.on_lost = lambda error: supervisor.say(
                f"--log-console: {log.path} ends here: {error.strerror}"
            )
        results.config = supervisor.config
        supervisor.on_abandon = lambda outcome: _abandon(outcome, supervisor, results, record)
        outcome = supervisor.run()
    except BaseException as error:
        record.close()
        results.failed(error)
        raise
    lost = results.end(outcome, supervisor.verdict, supervisor.faults.counts)
    for line in lost:
        supervisor.say(line)
    supervisor.report(outcome)
    return outcome.status or (FAILED if lost else 0)


def leave_usage_error(options: dict[str, Any], sentence: str) -> None:
    """The arguments of ``pyvmm run`` can't be read. The result files that are among ``options``,
    as far as these could be, get the error: no earlier run's result must pass for this one's."""
    files = {f"--{key}": options[key] for key in ("json", "junit") if options[key] is not None}
    if not files:
        return
    name = options["name"] or os.path.basename(options["kernel"] or "pyvmm")
    results = Results(files, name, Record(), _inputs(options))
    with suppress(PyvmmError):  # one complaint is enough
        results.begin()
        results.failed(ConfigError(sentence))


def _abandon(outcome: Outcome, supervisor: Supervisor, results: Results, record: Record) -> None:
    with suppress(OSError):
        record.close()
    results.end(outcome, supervisor.verdict, supervisor.faults.counts)


def _leave_stdout_free(options: dict[str, Any]) -> None:
    """With ``--json -`` nothing else goes there."""
    if options["json"] != STDOUT:
        return
    if any(text.partition(",")[0] == STDOUT for text in options["traces"]):
        raise ConfigError("--json -: stdout is the trace's", "send one of them to a file")
    console = (options["console"] or "").partition(",")[0]
    if "stdio" in (*options["serial"], console, options["screen"]):
        raise ConfigError("--json -: stdout is the console's", "send one of them to a file")
    options["serial"] = options["serial"] or ("null",)


def _open_log(options: dict[str, Any], files: dict[str, str], record: Record) -> ConsoleLog | None:
    """The console's log, in a place of its own."""
    if options["log_console"] is None:
        return None
    config = LogConfig.parse(options["log_console"])
    check_place("--log-console", config.path, _inputs(options), files)
    record.log = ConsoleLog(config)
    return record.log


def _inputs(options: dict[str, Any]) -> list[str]:
    """What the options name that the run needs, as far as it can be told before they are parsed:
    the guest's files, and those that are written by other options."""
    found = [options["kernel"], options["initrd"], options["report"]]
    for name in ("disks", "floppies", "traces"):
        found += [text.partition(",")[0] for text in options[name]]
    ports = [port.partition("=")[2] for port in options["ports"]]
    console = (options["console"] or "").partition(",")[0]
    for place in (*options["serial"], *ports, console, options["screen"] or ""):
        kind, _, path = place.partition(":")
        if kind == "file":
            found.append(path)
    found += [options["firmware"], _flat(options)]
    return [path for path in found if path]


def _started_from(options: dict[str, Any]) -> str:
    """The file that the guest starts from, as :attr:`~pyvmm.config.MachineConfig.boots` has it
    once the options are parsed."""
    disks = (*options["floppies"], *options["disks"], "")
    disk = disks[0].partition(",")[0]
    return options["kernel"] or _flat(options) or disk or options["firmware"] or ""


def _flat(options: dict[str, Any]) -> str:
    place = (options["flat"] or "").partition(",")[0]
    path, separator, _ = place.rpartition("@")
    return path if separator else place
