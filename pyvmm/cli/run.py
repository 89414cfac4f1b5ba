"""``pyvmm run``: parse, build a configuration, supervise a machine, print how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pyvmm.config import DEFAULT_MEMORY, ENTRIES, ON_REBOOT, MachineConfig
from pyvmm.errors import ConfigError
from pyvmm.options import TRANSPORTS, format_size, parse_seconds
from pyvmm.supervisor import Supervisor
from pyvmm.verdict import Expectations, compile_patterns, is_talkative

if TYPE_CHECKING:
    from pyvmm.record import Record

FILE = click.Path(readable=False)
"""For shell completion; what is wrong with a file, whoever opens it says better."""


@click.command()
@click.option("-k", "--kernel", type=FILE, metavar="FILE",
              help="bzImage or ELF kernel.  [default: a BIOS boots the first disk]")  # fmt: skip
@click.option("--firmware", type=FILE, metavar="FILE",
              help="A ROM to start from, not PyVMM's own BIOS.")  # fmt: skip
@click.option(
    "--flat",
    type=FILE,
    metavar="FILE[@ADDRESS][,bits=16|32|64]",
    help="Instead of a kernel, bytes to copy to ADDRESS (0x7c00, or 1M) and enter there.",
)
@click.option("-i", "--initrd", type=FILE, metavar="FILE", help="Initial RAM disk.")
@click.option(
    "-d",
    "--disk",
    "disks",
    type=FILE,
    multiple=True,
    metavar="FILE[,readonly=on][,serial=TEXT][,bootindex=N][,error=…][,latency=TIME][,seed=N]"
    "[,transport=…]",
    help="Raw image or block device, as /dev/vda; again for vdb and on. bootindex is its place"
    " among those that the BIOS tries to boot. error=eio@sector=8..15,"
    " error=eio@write@5% and latency=10ms are faults to inject (docs/faults.md).",
)
@click.option(
    "-n",
    "--net",
    "nets",
    multiple=True,
    metavar="TAP|fd=N[:N…][,mac=ADDRESS][,mtu=BYTES][,queues=N][,drop=N%][,seed=N][,transport=…]",
    help="A network card on the tap interface TAP, which is made if there is none and you may; or"
    " on a tap's open descriptors (fd=3, or fd=3:4 for two queues). Again for eth1 and on."
    " drop=1%, delay=10ms@rx and so on are faults to inject (docs/faults.md).",
)
@click.option(
    "--name",
    default="",
    metavar="TEXT",
    help="The machine's name, from which its cards have their addresses, and the test's in --junit."
    "  [default: the kernel's file name]",
)
@click.option(
    "--rng",
    is_flag=False,
    flag_value="",
    metavar="[rate=SIZE][,transport=…]",
    help="An entropy device with the host's random numbers, at most SIZE (1M) a second.",
)
@click.option(
    "--balloon",
    is_flag=False,
    flag_value="",
    metavar="[size=SIZE][,stats=SECONDS][,free-page-reporting=on][,deflate-on-oom=on]"
    "[,transport=…]",
    help="A device by which the guest gives memory back to the host: SIZE of it, or with"
    " free-page-reporting what it doesn't use.",
)
@click.option(
    "-m",
    "--memory",
    default=format_size(DEFAULT_MEMORY).replace(" MiB", "M"),
    show_default=True,
    metavar="SIZE[,hugepages=on][,prealloc=on][,mergeable=on][,thp=off]",
    help="Guest memory; with the switches in huge pages reserved for it, allocated at the start,"
    " subject to same-page merging (KSM), or without the huge pages that the host has at hand.",
)
@click.option(
    "-c", "--cpus", type=int, default=1, show_default=True, metavar="N", help="Number of vCPUs."
)
@click.option(
    "--cpu-affinity",
    metavar="VCPU=CPU[-CPU][,…]",
    help="The host's CPUs that a vCPU runs on: 0=2,1=3 or 0=2-3.",
)
@click.option(
    "--cpu",
    default="host",
    show_default=True,
    metavar="host[,-FEATURE][,+FEATURE]",
    help="CPU model, with features (as in /proc/cpuinfo) hidden from the guest.",
)
@click.option(
    "-a",
    "--append",
    multiple=True,
    metavar="TEXT",
    help="Add to the kernel's command line; may be repeated.",
)
@click.option(
    "--no-default-append",
    is_flag=True,
    help="Start from an empty command line, not 'console=ttyS0 reboot=k panic=-1'.",
)
@click.option(
    "--boot",
    "--entry",
    "entry",
    type=click.Choice(ENTRIES),
    default="auto",
    show_default=True,
    help="How to enter the kernel: 64-, 32- or 16-bit Linux boot protocol (16: by its real-mode"
    " code, through the BIOS), PVH, Multiboot; 'real' takes the file for a flat binary and"
    " starts it in real mode.",
)
@click.option(
    "--serial",
    multiple=True,
    metavar="stdio|null|pty|file:PATH|unix:PATH",
    help="Where a serial port goes: COM1 first, up to four.  [default: stdio]",
)
@click.option(
    "--console",
    metavar="stdio|null|pty|file:PATH|unix:PATH[,transport=…]",
    help="A virtio console (Linux: hvc0). With stdio COM1 goes to null, unless --serial says"
    " otherwise, and the default command line gets 'console=hvc0'.",
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    metavar="NAME=null|pty|file:PATH|unix:PATH",
    help="A named port of the virtio console (Linux: /dev/virtio-ports/NAME); may be repeated.",
)
@click.option(
    "--vsock",
    metavar="cid=N,path=PATH[,transport=…]",
    help="A socket device: host programs reach the guest at the Unix socket PATH, by the line"
    " 'CONNECT <port>'; the guest reaches a host program that listens at PATH_<port>.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="FILE.py:CLASS[,OPTION=VALUE…]",
    help="A device that you have written, a class in a Python file or module (docs/devices.md):"
    " thermometer.py:Thermometer,base=0x510. May be repeated.",
)
@click.option(
    "--timeout", metavar="SECONDS", help="End the guest after that time, with status 124."
)
@click.option("--expect", metavar="REGEX", help="End with status 0 once the console prints this.")
@click.option(
    "--fail-on",
    multiple=True,
    metavar="REGEX",
    help="End with status 5 if the console prints this; may be repeated.",
)
@click.option(
    "--fail-on-warnings",
    is_flag=True,
    help="End with status 5 if the kernel reports a problem: an oops, a BUG, a WARNING, what"
    " lockdep, KASAN and their like find, a lockup or stall.",
)
@click.option(
    "--log-console",
    type=FILE,
    metavar="FILE[,wall=on]",
    help="Also write what the consoles print to FILE, each line with the seconds since the start;"
    " with wall=on with the time of day, too.",
)
@click.option(
    "--junit", type=FILE, metavar="FILE", help="Write the run's result to FILE, as a JUnit test."
)
@click.option(
    "--json",
    type=FILE,
    metavar="FILE|-",
    help="Write the run's result to FILE, or to stdout, as JSON. With '-' the first serial port"
    " goes to null, unless --serial says otherwise.",
)
@click.option(
    "--on-reboot",
    type=click.Choice(ON_REBOOT),
    default="exit",
    show_default=True,
    help="What a reboot does: end the run with status 0, or reset the machine and boot again. Then"
    " a triple fault is a reboot, too; a panic still ends the run.",
)
@click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    default="pci",
    show_default=True,
    help="How the guest reaches virtio devices, unless a device's own transport=pci or"
    " transport=mmio says otherwise.",
)
@click.option(
    "--mmio-cmdline",
    is_flag=True,
    help="Tell the guest of virtio-mmio devices on its command line (virtio_mmio.device=…), not by"
    " ACPI: for a Linux with VIRTIO_MMIO_CMDLINE_DEVICES, which Debian's are built without.",
)
@click.option(
    "--trace",
    "traces",
    multiple=True,
    metavar="FILE[,format=text|jsonl|perfetto]",
    help="Write down every exit, interrupt and disk or network request as it happens: as text, in"
    " FILE.jsonl as JSON lines, in FILE.json for ui.perfetto.dev. With - to standard output, and"
    " COM1 goes to null, unless --serial says otherwise. May be repeated.",
)
@click.option(
    "--report",
    type=FILE,
    metavar="FILE.html",
    help="When the run has ended, however it does, write a page of charts about it: where the time"
    " went, who made the exits. See `pyvmm report`.",
)
@click.option(
    "--trace-filter",
    "trace_filters",
    multiple=True,
    metavar="[device=TEXT][,kind=KIND][,vcpu=N][,address=FROM[-TO]]",
    help="Trace only what all of this is true of, such as device=serial,kind=exit; again for"
    " something else as well.",
)
@click.option(
    "--symbols",
    type=FILE,
    metavar="FILE",
    help="The kernel's vmlinux or System.map, for names of functions in a trace or with --step."
    " Linux needs 'nokaslr' then.",
)
@click.option("--debug-console", is_flag=True, help="Add a debug console at port 0xE9.")
@click.option(
    "--debug-exit",
    is_flag=True,
    help="Add a debug exit port at 0xF4: writing v there ends with status 2v + 1.",
)
@click.option(
    "--step",
    is_flag=True,
    help="Run the guest by hand: a prompt to step instruction by instruction, or from exit to exit,"
    " and to look at registers, code and memory. For small guests; h there lists the commands.",
)
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
    if any(options[name] is not None for name in ("json", "junit", "log_console")):
        from pyvmm.cli.files import run_with_files  # only now: most runs want none

        status = run_with_files(options, _prepare)
    else:
        supervisor = _prepare(options)
        outcome = supervisor.run()
        supervisor.report(outcome)
        status = outcome.status
    click.get_current_context().exit(status)


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
    if not options["serial"] and any(trace.path == STDOUT for trace in traces):
        options["serial"] = ("null",)
    return traces, [TraceFilter.parse(text) for text in options["trace_filters"]]
