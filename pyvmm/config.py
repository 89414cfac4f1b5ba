"""What a machine is made of, as the user says it: frozen records, validated when they are made.

The text forms follow QEMU (``disk.raw,readonly=on``) and kvmtool. Everything wrong raises
:class:`~pyvmm.errors.ConfigError`, which names the option.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyvmm.errors import ConfigError
from pyvmm.memory import GIB, KIB, MIB, PAGE_SIZE

MIN_MEMORY = 2 * MIB
MAX_MEMORY = 64 * GIB
MAX_CPUS = 64
MAX_DISKS = 16
MAX_SERIAL_PORTS = 4
MAX_NETS = 8
MAX_QUEUE_PAIRS = 8
MIN_MTU, MAX_MTU = 68, 65521
"""What IPv4 needs (RFC 791), and what a tap can have."""

MAX_TIMEOUT = 10**9
"""In seconds, thirty years: a little less than Python's threads can wait."""

DEFAULT_MEMORY = 256 * MIB
DEFAULT_COMMAND_LINE = "console=ttyS0 reboot=k panic=-1"
DISK_ROOT = "root=/dev/vda rw"

ENTRIES = ("auto", "64", "32", "pvh", "real")
ON_REBOOT = ("exit", "restart")
TRANSPORTS = ("pci", "mmio")

_UNITS = {"": MIB, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40, "B": 1}


def parse_size(text: str, option: str) -> int:
    """Bytes from ``512M``, ``2G``, ``2GiB`` or plain ``512`` (MiB, as in QEMU)."""
    wanted = text.strip().upper().removesuffix("IB")
    digits = wanted.rstrip("BKMGT")
    unit = wanted[len(digits) :]
    if len(unit) > 1:
        unit = unit.removesuffix("B")
    try:
        size = float(digits) * _UNITS[unit]
        if size != int(size):
            raise ValueError(size)
        return int(size)
    except (ValueError, KeyError, OverflowError):
        raise ConfigError(f"{option}: {text!r} is not a size", "such as 512M or 2G") from None


def parse_seconds(text: str, option: str) -> float:
    """A time, such as ``60`` or ``0.5``."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT:
        raise ConfigError(f"{option}: {text!r} is not a time in seconds", "such as 60 or 0.5")
    return seconds


def parse_sub_options(
    text: str, option: str, known: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """``value,key=value,…`` as (value, {key: value}); ``known`` maps keys to what they take."""
    value, *pairs = text.split(",")
    found = {}
    for pair in pairs:
        key, separator, argument = pair.partition("=")
        if key not in known or not separator:
            choices = ", ".join(f"{name}={what}" for name, what in known.items())
            raise ConfigError(f"{option} {text}: {pair!r} is not understood", f"it takes {choices}")
        found[key] = argument
    return value, found


def parse_switch(text: str, option: str) -> bool:
    """``on`` or ``off``."""
    if text not in ("on", "off"):
        raise ConfigError(f"{option}: {text!r} is neither 'on' nor 'off'")
    return text == "on"


def parse_transport(text: str, option: str) -> str:
    """A device's ``transport=``: one of :data:`TRANSPORTS`, or nothing for the machine's."""
    if text and text not in TRANSPORTS:
        raise ConfigError(f"{option}: transport {text!r} is none of {', '.join(TRANSPORTS)}")
    return text


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """A virtio-blk disk backed by a raw image file or a block device at ``path``.

    ``serial`` is what the guest reads as the disk's serial number, at most 20 bytes;
    ``transport`` is one of :data:`TRANSPORTS`, or nothing for the machine's.
    """

    path: str
    readonly: bool = False
    serial: str = ""
    transport: str = ""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("--disk: the path is empty")
        if not self.serial.isprintable():
            raise ConfigError(f"--disk {self.path}: serial {self.serial!r} is not plain text")
        if len(self.serial.encode()) > 20:
            raise ConfigError(f"--disk {self.path}: serial {self.serial!r} is over 20 bytes")
        parse_transport(self.transport, f"--disk {self.path}")

    @classmethod
    def parse(cls, text: str) -> DiskConfig:
        """From ``PATH[,readonly=on][,serial=TEXT][,transport=pci|mmio]``."""
        known = {"readonly": "on|off", "serial": "TEXT", "transport": "|".join(TRANSPORTS)}
        path, options = parse_sub_options(text, "--disk", known)
        readonly = parse_switch(options.get("readonly", "off"), f"--disk {path},readonly")
        return cls(path, readonly, options.get("serial", ""), options.get("transport", ""))


class CpuConfig(NamedTuple):
    """The CPU model: the host's, with features switched on or off by name."""

    features: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def parse(cls, text: str) -> CpuConfig:
        """From ``host[,-feature][,+feature]``."""
        model, *features = text.split(",")
        if model != "host":
            raise ConfigError(f"--cpu: there is no model {model!r}", "use host[,-FEATURE…]")
        switches = []
        for feature in features:
            if feature[:1] not in ("+", "-") or len(feature) < 2:
                raise ConfigError(f"--cpu: {feature!r} is neither +FEATURE nor -FEATURE")
            switches.append((feature[1:], feature[0] == "+"))
        return cls(tuple(switches))


HOST_CPU = CpuConfig()


class NetConfig(NamedTuple):
    """A virtio network card on the tap ``ifname``, or on the open descriptors ``fds`` of one.

    ``mac`` is its address (``52:54:00:12:34:56``), or nothing for one made from the machine's name
    and the tap's. ``mtu`` is what the guest is told, and what a tap that is made here gets; 0 is
    the usual. ``queues`` is the number of pairs of queues.
    """

    ifname: str = ""
    fds: tuple[int, ...] = ()
    mac: str = ""
    mtu: int = 0
    queues: int = 1
    transport: str = ""

    @classmethod
    def parse(cls, text: str) -> NetConfig:
        """From ``TAP[,…]``, ``tap,ifname=TAP[,…]`` or ``fd=N[:N…][,…]``."""
        known = {
            "ifname": "TAP",
            "mac": "ADDRESS",
            "mtu": "BYTES",
            "queues": "N",
            "transport": "|".join(TRANSPORTS),
        }
        source, options = parse_sub_options(text, "--net", known)
        ifname = options.pop("ifname", "") if source == "tap" else source
        fds: tuple[int, ...] = ()
        if source.startswith("fd="):
            ifname = ""
            fds = tuple(_parse_number(n, 0, 1 << 20, "--net fd") for n in source[3:].split(":"))
        if "ifname" in options or not (fds or _is_interface_name(ifname)):
            raise ConfigError(
                f"--net {text}: {ifname!r} is not an interface's name",
                "it takes TAP, tap,ifname=TAP or fd=N",
            )
        queues = len(fds) or _parse_number(
            options.get("queues", "1"), 1, MAX_QUEUE_PAIRS, f"--net {text}: queues"
        )
        if "queues" in options and fds:
            raise ConfigError(f"--net {text}: queues= goes with a name, not with fd=")
        if queues > MAX_QUEUE_PAIRS:
            raise ConfigError(f"--net {text}: {queues} queues are more than {MAX_QUEUE_PAIRS}")
        mac = options.get("mac", "")
        if "mac" in options and not _is_unicast_mac(mac):
            raise ConfigError(
                f"--net {text}: {mac!r} is not the address of a card", "such as 52:54:00:12:34:56"
            )
        mtu = 0
        if "mtu" in options:
            mtu = _parse_number(options["mtu"], MIN_MTU, MAX_MTU, f"--net {text}: mtu")
        transport = parse_transport(options.get("transport", ""), f"--net {text}")
        return cls(ifname, fds, mac, mtu, queues, transport)


def _parse_number(text: str, low: int, high: int, option: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise ConfigError(f"{option}: {text!r} is not a number from {low} to {high}")
    return int(text)


def _is_interface_name(name: str) -> bool:
    """As the kernel has it, and without the characters that mean something to it in a new one."""
    plain = name.isascii() and name.isprintable() and not set(" /:%=") & set(name)
    return plain and 1 <= len(name) <= 15 and name not in (".", "..")


def _is_unicast_mac(text: str) -> bool:
    pairs = text.split(":")
    digits = "0123456789abcdefABCDEF"
    if len(pairs) != 6 or any(len(pair) != 2 or pair.strip(digits) for pair in pairs):
        return False
    return not int(pairs[0], 16) & 1 and any(int(pair, 16) for pair in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineConfig:
    """Everything that :class:`~pyvmm.machine.Machine` needs to know.

    ``memory_size`` is in bytes; ``command_line`` is complete (see :func:`command_line`);
    ``serial`` says where each serial port goes (``stdio``, ``null``, ``pty``, ``file:PATH``);
    ``entry`` is one of :data:`ENTRIES`; ``on_reboot`` one of :data:`ON_REBOOT`. ``transport`` is
    that of the virtio devices which don't name theirs; with ``mmio_cmdline`` those behind mmio
    are named in front of the kernel's command line instead of by ACPI. ``name`` tells the machine
    from others; if it is empty, the kernel's file name does.
    """

    kernel: str
    initrd: str | None = None
    command_line: str = DEFAULT_COMMAND_LINE
    memory_size: int = DEFAULT_MEMORY
    cpus: int = 1
    cpu: CpuConfig = HOST_CPU
    disks: tuple[DiskConfig, ...] = ()
    nets: tuple[NetConfig, ...] = ()
    name: str = ""
    serial: tuple[str, ...] = ("stdio",)
    entry: str = "auto"
    on_reboot: str = "exit"
    transport: str = "pci"
    mmio_cmdline: bool = False
    debug_console: bool = False
    debug_exit: bool = False

    def __post_init__(self) -> None:
        if not self.kernel:
            raise ConfigError("--kernel: the path is empty")
        if self.initrd == "":
            raise ConfigError("--initrd: the path is empty")
        if not MIN_MEMORY <= self.memory_size <= MAX_MEMORY:
            raise ConfigError(
                f"--memory: {format_size(self.memory_size)} is not between"
                f" {format_size(MIN_MEMORY)} and {format_size(MAX_MEMORY)}"
            )
        if self.memory_size % PAGE_SIZE:
            raise ConfigError(f"--memory: {self.memory_size} bytes are not whole 4 KiB pages")
        if not 1 <= self.cpus <= MAX_CPUS:
            raise ConfigError(f"--cpus: {self.cpus} is not between 1 and {MAX_CPUS}")
        if len(self.disks) > MAX_DISKS:
            raise ConfigError(f"--disk: {len(self.disks)} disks are more than {MAX_DISKS}")
        if len(self.nets) > MAX_NETS:
            raise ConfigError(f"--net: {len(self.nets)} cards are more than {MAX_NETS}")
        taps = [net.ifname for net in self.nets if net.ifname]
        fds = [f"fd {fd}" for net in self.nets for fd in net.fds]
        for place in (*taps, *fds):
            if (taps + fds).count(place) > 1:
                raise ConfigError(f"--net: {place} can't serve twice")
        if not self.name.isprintable():
            raise ConfigError(f"--name: {self.name!r} is not plain text")
        if len(self.serial) > MAX_SERIAL_PORTS:
            raise ConfigError(f"--serial: there are {MAX_SERIAL_PORTS} ports at most")
        for place in self.serial:
            if place not in ("null", "pty") and self.serial.count(place) > 1:
                raise ConfigError(f"--serial: {place} can't serve two ports")
        if self.entry not in ENTRIES:
            raise ConfigError(f"--entry: {self.entry!r} is none of {', '.join(ENTRIES)}")
        if self.on_reboot not in ON_REBOOT:
            raise ConfigError(f"--on-reboot: {self.on_reboot!r} is none of {', '.join(ON_REBOOT)}")
        if self.transport not in TRANSPORTS:
            raise ConfigError(f"--transport: {self.transport!r} is none of {', '.join(TRANSPORTS)}")
        if "\0" in self.command_line:
            raise ConfigError("--append: the command line contains a NUL byte")

    @property
    def mmio_devices(self) -> int:
        """How many virtio devices there are behind mmio. Every virtio device's configuration is a
        field, or in a tuple that is one, and has an attribute ``transport``."""
        found: list[Any] = []
        for name in self.__slots__:
            value = getattr(self, name)
            if hasattr(value, "transport"):
                found.append(value)
            elif isinstance(value, tuple):
                found += [item for item in value if hasattr(item, "transport")]
        return sum((device.transport or self.transport) == "mmio" for device in found)


def command_line(
    append: Iterable[str] = (),
    *,
    default: bool = True,
    has_disk: bool = False,
    has_initrd: bool = False,
) -> str:
    """The kernel's command line: the default, a root device where one is needed, then ``append``.

    ``root=`` is added with a disk and no initrd (an initrd knows better), unless it is given.
    """
    words = [text for text in append if text]
    if default:
        given = " ".join(words).split()
        if has_disk and not has_initrd and not any(w.startswith("root=") for w in given):
            words.insert(0, DISK_ROOT)
        words.insert(0, DEFAULT_COMMAND_LINE)
    return " ".join(words)


def format_size(size: int) -> str:
    """``512 MiB``, ``2 GiB``; bytes if it isn't a whole number of KiB."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"
