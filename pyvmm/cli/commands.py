"""The ``pyvmm`` command for click: its subcommands, each imported when it is called."""

from __future__ import annotations

import importlib
import sys

import click

from pyvmm.errors import ConfigError, PyvmmError

SUBCOMMANDS = {
    "run": "Run a kernel in a virtual machine.",
    "check": "Say what this host can do, and how to fix what it can't.",
    "inspect": "Say what a kernel image is and how it would be booted.",
    "report": "Make a page of charts from a trace.",
}


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


def call() -> int:
    """Do what the command line says; the exit status.

    :raises ConfigError: the command line can't be read.
    :raises PyvmmError: click has another complaint."""
    try:
        return cli.main(prog_name="pyvmm", standalone_mode=False) or 0
    except click.UsageError as error:
        sentence = f"{error.format_message().rstrip('.')} (see '{_command_of(error)} --help')"
        if sys.argv[1:2] == ["run"]:
            from pyvmm.cli.files import leave_usage_error
            from pyvmm.cli.run import readable

            leave_usage_error(readable(sys.argv[2:]), sentence)
        raise ConfigError(sentence) from error
    except click.ClickException as error:
        raise PyvmmError(error.format_message()) from error
    except click.Abort as error:
        raise KeyboardInterrupt from error


def _command_of(error: click.UsageError) -> str:
    """The command whose help has the answer; click doesn't know it in all cases."""
    if error.ctx is not None:
        return error.ctx.command_path
    return " ".join(["pyvmm", *(word for word in sys.argv[1:2] if word in SUBCOMMANDS)])
