"""The options of ``pyvmm run``, and how a command line that is right is read.

``click`` makes the help, the shell's completions and the complaints of this table (``run.py``). Its
import alone takes a quarter of the time from the shell to the guest's first instruction, and a
command line that is right needs none of that: :func:`read` takes it at its word, as click would,
and leaves every other one to click.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyvmm.config import DEFAULT_MEMORY, ENTRIES, ON_REBOOT
from pyvmm.options import TRANSPORTS, format_size


class Option:
    """One option: what ``--help`` says of it and what is a value for it."""

    __slots__ = (
        "bare",
        "choices",
        "default",
        "file",
        "flag",
        "help",
        "metavar",
        "name",
        "names",
        "number",
        "repeat",
        "show_default",
    )

    def __init__(
        self,
        *names: str,
        help: str,
        metavar: str | None = None,
        default: Any = None,
        show_default: bool = False,
        flag: bool = False,
        repeat: bool = False,
        number: bool = False,
        file: bool = False,
        choices: Sequence[str] = (),
        bare: str | None = None,
    ) -> None:
        """:param names: as typed; the last one may be a Python name, for the option's value.
        :param flag: there or not there; it takes no value.
        :param repeat: may be there many times; its value is a tuple.
        :param number: its value is an integer.
        :param file: its value begins with a file's name, for the shell's completion.
        :param choices: the only values it takes.
        :param bare: its value if it is there without one."""
        last = names[-1]
        self.names = names if last.startswith("-") else names[:-1]
        self.name = last.lstrip("-").replace("-", "_")
        self.help = help
        self.metavar = metavar
        self.default = () if repeat else False if flag else default
        self.show_default = show_default
        self.flag = flag
        self.repeat = repeat
        self.number = number
        self.file = file
        self.choices = choices
        self.bare = bare


OPTIONS = (
    Option(
        "-k",
        "--kernel",
        file=True,
        metavar="FILE",
        help="bzImage or ELF kernel, compressed (gzip, xz …) or not.  [default: a BIOS boots the"
        " floppy or the first disk]",
    ),
    Option(
        "--firmware", file=True, metavar="FILE", help="A ROM to start from, not PyVMM's own BIOS."
    ),
    Option(
        "--flat",
        file=True,
        metavar="FILE[@ADDRESS][,bits=16|32|64]",
        help="Instead of a kernel, bytes to copy to ADDRESS (0x7c00, or 1M) and enter there.",
    ),
    Option("-i", "--initrd", file=True, metavar="FILE", help="Initial RAM disk."),
    Option(
        "-d",
        "--disk",
        "disks",
        file=True,
        repeat=True,
        metavar="FILE[,readonly=on][,serial=TEXT][,bootindex=N][,interface=ide][,error=…]"
        "[,latency=TIME][,seed=N][,transport=…]",
        help="Raw image or block device, as /dev/vda; again for vdb and on. With interface=ide it"
        " is on an IDE channel, for kernels without virtio; up to 4 are. bootindex is its place"
        " among those that the BIOS tries to boot. error=eio@sector=8..15,"
        " error=eio@write@5% and latency=10ms are faults to inject (docs/faults.md).",
    ),
    Option(
        "--floppy",
        "floppies",
        file=True,
        repeat=True,
        metavar="FILE[,readonly=on][,bootindex=N]",
        help="Raw image of a floppy, 160K to 2.88M, which the BIOS has as drive A:, and boots"
        " unless a bootindex comes before it; again for B:.",
    ),
    Option(
        "-n",
        "--net",
        "nets",
        repeat=True,
        metavar="TAP|fd=N[:N…][,mac=ADDRESS][,mtu=BYTES][,queues=N][,drop=N%][,seed=N]"
        "[,transport=…]",
        help="A network card on the tap interface TAP, which is made if there is none and you may;"
        " or on a tap's open descriptors (fd=3, or fd=3:4 for two queues). Again for eth1 and on."
        " drop=1%, delay=10ms@rx and so on are faults to inject (docs/faults.md).",
    ),
    Option(
        "--name",
        default="",
        metavar="TEXT",
        help="The machine's name, from which its cards have their addresses, and the test's in"
        " --junit.  [default: the kernel's file name]",
    ),
    Option(
        "--rng",
        bare="",
        metavar="[rate=SIZE][,transport=…]",
        help="An entropy device with the host's random numbers, at most SIZE (1M) a second.",
    ),
    Option(
        "--balloon",
        bare="",
        metavar="[size=SIZE][,stats=SECONDS][,free-page-reporting=on][,deflate-on-oom=on]"
        "[,transport=…]",
        help="A device by which the guest gives memory back to the host: SIZE of it, or with"
        " free-page-reporting what it doesn't use.",
    ),
    Option(
        "-m",
        "--memory",
        default=format_size(DEFAULT_MEMORY).replace(" MiB", "M"),
        show_default=True,
        metavar="SIZE[,hugepages=on][,prealloc=on][,mergeable=on][,thp=off]",
        help="Guest memory; with the switches in huge pages reserved for it, allocated at the"
        " start, subject to same-page merging (KSM), or without the huge pages that the host has"
        " at hand.",
    ),
    Option(
        "-c",
        "--cpus",
        number=True,
        default=1,
        show_default=True,
        metavar="N",
        help="Number of vCPUs.",
    ),
    Option(
        "--cpu-affinity",
        metavar="VCPU=CPU[-CPU][,…]",
        help="The host's CPUs that a vCPU runs on: 0=2,1=3 or 0=2-3.",
    ),
    Option(
        "--cpu",
        default="host",
        show_default=True,
        metavar="host[,-FEATURE][,+FEATURE]",
        help="CPU model, with features (as in /proc/cpuinfo) hidden from the guest.",
    ),
    Option(
        "-a",
        "--append",
        repeat=True,
        metavar="TEXT",
        help="Add to the kernel's command line; may be repeated.",
    ),
    Option(
        "--no-default-append",
        flag=True,
        help="Start from an empty command line, not 'console=ttyS0 reboot=k panic=-1'.",
    ),
    Option(
        "--boot",
        "--entry",
        "entry",
        choices=ENTRIES,
        default="auto",
        show_default=True,
        help="How to enter the kernel: 64-, 32- or 16-bit Linux boot protocol (16: by its real-mode"
        " code, through the BIOS), PVH, Multiboot; 'real' takes the file for a flat binary and"
        " starts it in real mode.",
    ),
    Option(
        "--serial",
        repeat=True,
        metavar="stdio|null|pty|file:PATH|unix:PATH",
        help="Where a serial port goes: COM1 first, up to four.  [default: stdio]",
    ),
    Option(
        "--screen",
        bare="stdio",
        metavar="[stdio|null|file:PATH]",
        help="A text screen and its keyboard, for guests that write to B8000h: shown on the"
        " terminal; without one, or in a file, its lines as they come to stand there. With stdio"
        " COM1 goes to null, unless --serial says otherwise, and the default command line gets"
        " 'console=tty0'.",
    ),
    Option(
        "--console",
        metavar="stdio|null|pty|file:PATH|unix:PATH[,transport=…]",
        help="A virtio console (Linux: hvc0). With stdio COM1 goes to null, unless --serial says"
        " otherwise, and the default command line gets 'console=hvc0'.",
    ),
    Option(
        "--port",
        "ports",
        repeat=True,
        metavar="NAME=null|pty|file:PATH|unix:PATH",
        help="A named port of the virtio console (Linux: /dev/virtio-ports/NAME); may be repeated.",
    ),
    Option(
        "--vsock",
        metavar="cid=N,path=PATH[,transport=…]",
        help="A socket device: host programs reach the guest at the Unix socket PATH, by the line"
        " 'CONNECT <port>'; the guest reaches a host program that listens at PATH_<port>.",
    ),
    Option(
        "--device",
        "devices",
        repeat=True,
        metavar="FILE.py:CLASS[,OPTION=VALUE…]",
        help="A device that you have written, a class in a Python file or module (docs/devices.md):"
        " thermometer.py:Thermometer,base=0x510. May be repeated.",
    ),
    Option("--timeout", metavar="SECONDS", help="End the guest after that time, with status 124."),
    Option("--expect", metavar="REGEX", help="End with status 0 once the console prints this."),
    Option(
        "--fail-on",
        repeat=True,
        metavar="REGEX",
        help="End with status 5 if the console prints this; may be repeated.",
    ),
    Option(
        "--fail-on-warnings",
        flag=True,
        help="End with status 5 if the kernel reports a problem: an oops, a BUG, a WARNING, what"
        " lockdep, KASAN and their like find, a lockup or stall.",
    ),
    Option(
        "--log-console",
        file=True,
        metavar="FILE[,wall=on]",
        help="Also write what the consoles print to FILE, each line with the seconds since the"
        " start; with wall=on with the time of day, too.",
    ),
    Option(
        "--junit",
        file=True,
        metavar="FILE",
        help="Write the run's result to FILE, as a JUnit test.",
    ),
    Option(
        "--json",
        file=True,
        metavar="FILE|-",
        help="Write the run's result to FILE, or to stdout, as JSON. With '-' the first serial port"
        " goes to null, unless --serial says otherwise.",
    ),
    Option(
        "--on-reboot",
        choices=ON_REBOOT,
        default="exit",
        show_default=True,
        help="What a reboot does: end the run with status 0, or reset the machine and boot again."
        " Then a triple fault is a reboot, too; a panic still ends the run.",
    ),
    Option(
        "--transport",
        choices=TRANSPORTS,
        default="pci",
        show_default=True,
        help="How the guest reaches virtio devices, unless a device's own transport=pci or"
        " transport=mmio says otherwise.",
    ),
    Option(
        "--mmio-cmdline",
        flag=True,
        help="Tell the guest of virtio-mmio devices on its command line (virtio_mmio.device=…),"
        " not by ACPI: for a Linux with VIRTIO_MMIO_CMDLINE_DEVICES, which Debian's are built"
        " without.",
    ),
    Option(
        "--trace",
        "traces",
        repeat=True,
        metavar="FILE[,format=text|jsonl|perfetto]",
        help="Write down every exit, interrupt and disk or network request as it happens: as text,"
        " in FILE.jsonl as JSON lines, in FILE.json for ui.perfetto.dev. With - to standard"
        " output, and COM1 goes to null, unless --serial says otherwise. May be repeated.",
    ),
    Option(
        "--report",
        file=True,
        metavar="FILE.html",
        help="When the run has ended, however it does, write a page of charts about it: where the"
        " time went, who made the exits. See `pyvmm report`.",
    ),
    Option(
        "--trace-filter",
        "trace_filters",
        repeat=True,
        metavar="[device=TEXT][,kind=KIND][,vcpu=N][,address=FROM[-TO]]",
        help="Trace only what all of this is true of, such as device=serial,kind=exit; again for"
        " something else as well.",
    ),
    Option(
        "--symbols",
        file=True,
        metavar="FILE",
        help="The kernel's vmlinux or System.map, for names of functions in a trace or with --step."
        " Linux needs 'nokaslr' then.",
    ),
    Option("--debug-console", flag=True, help="Add a debug console at port 0xE9."),
    Option(
        "--debug-exit",
        flag=True,
        help="Add a debug exit port at 0xF4: writing v there ends with status 2v + 1.",
    ),
    Option(
        "--step",
        flag=True,
        help="Run the guest by hand: a prompt to step instruction by instruction, or from exit to"
        " exit, and to look at registers, code and memory. For small guests; h there lists the"
        " commands.",
    ),
)


def read(words: Sequence[str]) -> dict[str, Any] | None:
    """The value of every option, by its name, as ``words`` (what comes after ``run``) give them;
    None if there is anything in them that is wrong, or isn't about a run: that is click's."""
    known = {name: option for option in OPTIONS for name in option.names}
    values: dict[str, Any] = {option.name: option.default for option in OPTIONS}
    following = list(reversed(words))
    while following:
        word = following.pop()
        name, equals, value = word.partition("=")
        if name[:2] != "--":
            name, equals, value = word[:2], word[2:], word[2:]
        option = known.get(name)
        if option is None or (option.flag and equals):
            return None
        if option.flag:
            values[option.name] = True
            continue
        if equals:
            following.append(value)
        if option.bare is not None and _is_option(following):
            if equals:
                return None
            text = option.bare
        elif following:
            text = following.pop()
        else:
            return None
        if option.choices and text not in option.choices:
            return None
        if option.repeat:
            values[option.name] = (*values[option.name], text)
        elif not option.number:
            values[option.name] = text
        elif text.isdecimal() and text.isascii():
            values[option.name] = int(text)
        else:
            return None
    return values


def _is_option(following: list[str]) -> bool:
    """Whether no value comes next, but an option, or nothing."""
    return not following or (following[-1][:1] == "-" and len(following[-1]) > 1)
