"""``pyvmm run``, once its options are known: build a configuration, supervise a machine, print how
it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError
from pyvmm.options import parse_seconds
from pyvmm.supervisor import Supervisor
from pyvmm.verdict import Expectations, compile_patterns, is_talkative

if TYPE_CHECKING:
    from pyvmm.record import Record


def launch(options: dict[str, Any]) -> int:
    """Run the machine that ``options`` (of :mod:`pyvmm.cli.options`, by name) ask for; the exit
    status."""
    if any(options[name] is not None for name in ("json", "junit", "log_console")):
        from pyvmm.cli.files import run_with_files  # only now: most runs want none

        return run_with_files(options, _prepare)
    supervisor = _prepare(options)
    outcome = supervisor.run()
    supervisor.report(outcome)
    return outcome.status


def _prepare(options: dict[str, Any], record: Record | None = None) -> Supervisor:
    """What the options ask for; nothing runs yet."""
    traces = _parse_traces(options)
    config = MachineConfig.parse(options)
    words = config.command_line.split()
    timeout, expect = options["timeout"], options["expect"]
    expectations = Expectations(
        timeout=None if timeout is None else parse_seconds(timeout, "--timeout"),
        expect=None if expect is None else compile_patterns("--expect", [expect])[0],
        fail_on=compile_patterns("--fail-on", options["fail_on"]),
        fail_on_warnings=options["fail_on_warnings"],
        talkative=is_talkative(config.command_line),
    )
    supervisor = Supervisor(config, expectations, record)
    if expectations.fail_on_warnings and "quiet" in words and "loglevel=" not in " ".join(words):
        supervisor.say("--fail-on-warnings: 'quiet' hides most of them; 'quiet loglevel=5' doesn't")
    if options["step"]:
        from pyvmm.step.prompt import Prompt  # here, because few runs want it

        supervisor.use_prompt(Prompt(options["kernel"], options.get("symbols")))
    if traces:
        from pyvmm.trace.of_run import open_tracer  # likewise

        tracer = open_tracer(
            config,
            *traces,
            symbols=options["symbols"],
            report=options["report"],
            outputs=(options["json"], options["junit"]),
            say=supervisor.say,
        )
        supervisor.use_tracer(tracer)
    return supervisor


def _parse_traces(options: dict[str, Any]) -> tuple[Any, ...]:
    """The traces and their filters, if any are wanted. One to standard output takes the place of
    the serial port that would go there."""
    if not options["traces"] and options["report"] is None:
        if options["trace_filters"]:
            raise ConfigError("--trace-filter: there is nothing to filter", "add --trace FILE")
        if options["symbols"] is not None and not options["step"]:
            raise ConfigError("--symbols is for --trace, --report and --step, and none is there")
        return ()
    from pyvmm.trace.config import STDOUT, TraceConfig, TraceFilter  # only now: few runs want it

    traces = [TraceConfig.parse(text) for text in options["traces"]]
    if any(trace.path == STDOUT for trace in traces):
        if options["screen"] == "stdio":
            raise ConfigError("--trace -: stdout is the screen's", "send one of them to a file")
        options["serial"] = options["serial"] or ("null",)
    return traces, [TraceFilter.parse(text) for text in options["trace_filters"]]
