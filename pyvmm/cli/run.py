"""``pyvmm run`` for click: its help, its completions, and its complaints about options."""

from __future__ import annotations

from typing import Any

import click

from pyvmm.cli.launch import launch
from pyvmm.cli.options import OPTIONS, Option

FILE = click.Path(readable=False)
"""For shell completion; what is wrong with a file, whoever opens it says better."""


def _for_click(option: Option) -> click.Option:
    kind: Any = FILE if option.file else int if option.number else None
    settings: dict[str, Any] = {"flag_value": option.bare} if option.bare is not None else {}
    return click.Option(
        [*option.names, option.name],
        help=option.help,
        metavar=option.metavar,
        default=option.default,
        show_default=option.show_default,
        is_flag=option.flag,
        multiple=option.repeat,
        type=click.Choice(option.choices) if option.choices else kind,
        **settings,
    )


@click.command(params=[_for_click(option) for option in OPTIONS])
def run(**options: Any) -> None:
    """Run a kernel in a virtual machine, with the guest's serial port on this terminal.

    Options take sub-options behind commas (--disk disk.raw,readonly=on). A SIZE is 64K, 512M or
    2G; a plain number is MiB.

    Ctrl-A x quits, Ctrl-A h lists the other keys. Without a terminal the console is plain stdin
    and stdout. SIGTERM presses the guest's power button; a second one ends the guest at once, and
    so do 10 seconds without its powering off.

    \b
    Examples:
      pyvmm run --kernel bzImage --disk disk.raw
      pyvmm run -k bzImage -i initrd.img -m 1G -c 2 -a quiet
      pyvmm run -k vmlinux -d root.raw,readonly=on -a "ro init=/bin/sh"
      pyvmm run -k bzImage -i initrd.img --timeout 60 --expect "login: "
      pyvmm run -k bzImage --fail-on-warnings --junit boot.xml --log-console boot.log
      pyvmm run -k bzImage -d disk.raw --report boot.html --timeout 60
      pyvmm run -k bzImage -i initrd.img --console stdio --port agent=unix:/tmp/agent
      pyvmm run -k bzImage -d disk.raw -n tap0 -n tap1,mac=52:54:00:12:34:56
      pyvmm run -k bzImage -i initrd.img -d disk.raw,error=eio@5%,seed=7 -n tap0,drop=1%
      pyvmm run -k bzImage -d disk.raw --rng --balloon size=256M,stats=5
      pyvmm run -d data.raw -d system.raw,bootindex=1
      pyvmm run -k myos.bin --screen
      pyvmm run -k bzImage -d disk.raw --vsock cid=3,path=/tmp/v.sock --on-reboot restart

    \b
    Exit status:
      0    the guest powered off or rebooted, or --expect was met
      1    a bad image, a missing file, no disk that boots, no usable /dev/kvm, another host error
      2    usage
      3    the guest's kernel panicked
      4    the guest crashed: triple fault, KVM internal error, failed entry
      5    the guest ended without --expect, or what --fail-on or --fail-on-warnings looks for came
      124  --timeout ran out
      130  interrupted from the terminal (128 + n: by signal n; 143: by SIGTERM, if the guest
           didn't power off by itself)
      2v+1 the guest wrote v to the debug exit port
    """
    click.get_current_context().exit(launch(options))


def readable(words: list[str]) -> dict[str, Any]:
    """The options in ``words`` (what comes after ``run``), as far as they can be read."""
    context = run.make_context(
        "run", words, resilient_parsing=True, ignore_unknown_options=True, allow_extra_args=True
    )
    defaults = {option.name: option.default for option in OPTIONS}
    return {name: value or defaults[name] for name, value in context.params.items()}
