"""The command line: one file a subcommand, each thin. This file finds them and turns every error
into one line on stderr and the documented exit status.

Subcommands are imported when they are called: start-up time is part of the product.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys
from contextlib import suppress

import click

from pyvmm.errors import ConfigError, PyvmmError

# Start-up makes many objects and no garbage, so looking for some would cost a twentieth of it.
# A subcommand that stays for long switches the collector on again.
gc.disable()

SUBCOMMANDS = {
    "run": "Run a kernel in a virtual machine.",
    "check": "Say what this host can do, and how to fix what it can't.",
    "inspect": "Say what a kernel image is and how it would be booted.",
    "report": "Make a page of charts from a trace.",
}

STATUS_ERROR, STATUS_USAGE, STATUS_INTERRUPTED = 1, 2, 130

OUTPUT_LOST = frozenset((errno.EPIPE, errno.ENOSPC, errno.EIO))
"""What printing to a pipe, file or terminal fails with. Any other OSError up here is a bug."""


class LazyGroup(click.Group):
    """Knows its subcommands by name and summary; imports one when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        command = getattr(importlib.import_module(f"pyvmm.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


def print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"pyvmm {version('pyvmm')}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=print_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """PyVMM runs a kernel on KVM, with a small PC around it written in Python.

    \b
    Examples:
      pyvmm run --kernel bzImage --disk disk.raw
      pyvmm check
      pyvmm inspect bzImage

    \b
    Shell completion (bash; zsh and fish likewise):
      eval "$(_PYVMM_COMPLETE=bash_source pyvmm)"
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """The ``pyvmm`` command."""
    _open_standard_streams()
    try:
        status = cli.main(prog_name="pyvmm", standalone_mode=False)
    except click.UsageError as error:
        sentence = f"{error.format_message().rstrip('.')} (see '{_command_of(error)} --help')"
        if sys.argv[1:2] == ["run"]:
            from pyvmm.cli.files import leave_usage_error

            leave_usage_error(sys.argv[2:], sentence)
        _complain(sentence)
        status = STATUS_USAGE
    except click.ClickException as error:
        _complain(error.format_message())
        status = STATUS_ERROR
    except PyvmmError as error:
        for line in getattr(error, "report", ()):  # the traceback of a device of the user's
            print(line, file=sys.stderr)
        _complain(str(error))
        status = STATUS_USAGE if isinstance(error, ConfigError) else STATUS_ERROR
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        status = STATUS_INTERRUPTED
    except OSError as error:
        if error.errno not in OUTPUT_LOST:
            raise
        if error.errno != errno.EPIPE:  # `pyvmm inspect | head` is no reason to complain
            _complain(f"can't write to stdout: {error.strerror}")
        status = STATUS_ERROR
    # Not sys.exit: taking the interpreter down in order costs 8 ms, and there is nothing left to do
    # but to write what is buffered. A thread that is stuck in a write must not hold us up either.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status or 0)


def _open_standard_streams() -> None:
    """Let those that were closed be /dev/null: else the next file to be opened gets the number, and
    a disk image takes what is meant for stdout."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (stays open)


def _command_of(error: click.UsageError) -> str:
    """The command whose help has the answer; click doesn't know it in all cases."""
    if error.ctx is not None:
        return error.ctx.command_path
    return " ".join(["pyvmm", *(word for word in sys.argv[1:2] if word in SUBCOMMANDS)])


def _complain(sentence: str) -> None:
    with suppress(OSError):
        print(f"pyvmm: {' '.join(sentence.split())}", file=sys.stderr)
