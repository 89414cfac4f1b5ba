"""What a machine is made of, as the user says it: frozen records, validated when they are made.

The text forms follow QEMU (``disk.raw,readonly=on``) and kvmtool. Everything wrong raises
:class:`~pyvmm.errors.ConfigError`, which names the option.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyvmm.errors import ConfigError
from pyvmm.memory import GIB, HUGE_PAGE_SIZE, KIB, MIB, PAGE_SIZE

MIN_MEMORY = 2 * MIB
MAX_MEMORY = 64 * GIB
MAX_CPUS = 64
MAX_HOST_CPU = 8191
"""The highest number that Linux can have."""
MAX_DISKS = 16
MAX_SERIAL_PORTS = 4
MAX_CONSOLE_PORTS = 15
MIN_VSOCK_CID, MAX_VSOCK_CID = 3, 0xFFFF_FFFE
MAX_NETS = 8
MAX_QUEUE_PAIRS = 8
MIN_MTU, MAX_MTU = 68, 65521
"""What IPv4 needs (RFC 791), and what a tap can have."""

MIN_RNG_RATE, DEFAULT_RNG_RATE, MAX_RNG_RATE = 1 * KIB, 1 * MIB, 1 * GIB
MIN_STATS_SECONDS = 0.1

MAX_TIMEOUT = 10**9
"""In seconds, thirty years: a little less than Python's threads can wait."""

DEFAULT_MEMORY = 256 * MIB
DEFAULT_COMMAND_LINE = "console=ttyS0 reboot=k panic=-1"
DISK_ROOT = "root=/dev/vda rw"
VIRTIO_CONSOLE = "console=hvc0"

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
    return value, _parse_pairs(pairs, f"{option} {text}", known)


def parse_only_sub_options(text: str, option: str, known: Mapping[str, str]) -> dict[str, str]:
    """``key=value,…``, perhaps none, as {key: value}."""
    return _parse_pairs(text.split(","), f"{option} {text}", known) if text else {}


def _parse_pairs(pairs: Iterable[str], where: str, known: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, separator, argument = pair.partition("=")
        if key not in known or not separator:
            choices = ", ".join(f"{name}={what}" for name, what in known.items())
            raise ConfigError(f"{where}: {pair!r} is not understood", f"it takes {choices}")
        found[key] = argument
    return found


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


class CpuPin(NamedTuple):
    """The vCPU ``vcpu`` runs on these CPUs of the host alone."""

    vcpu: int
    host_cpus: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> tuple[CpuPin, ...]:
        """From ``VCPU=CPU[-CPU][,…]``; a vCPU may be named again, for more CPUs."""
        found: dict[int, set[int]] = {}
        for pin in text.split(","):
            vcpu, separator, cpus = pin.partition("=")
            first, dash, last = cpus.partition("-")
            if not separator:
                raise ConfigError(
                    f"--cpu-affinity: {pin!r} is not understood", "such as 0=2,1=3 or 0=2-3"
                )
            number = _parse_number(vcpu, 0, MAX_CPUS - 1, "--cpu-affinity")
            start = _parse_number(first, 0, MAX_HOST_CPU, "--cpu-affinity")
            end = _parse_number(last, start, MAX_HOST_CPU, "--cpu-affinity") if dash else start
            found.setdefault(number, set()).update(range(start, end + 1))
        return tuple(cls(vcpu, tuple(sorted(cpus))) for vcpu, cpus in sorted(found.items()))


class MemoryBacking(NamedTuple):
    """What the guest's memory is made of; see :class:`~pyvmm.memory.GuestMemory`."""

    hugepages: bool = False
    prealloc: bool = False
    mergeable: bool = False

    @classmethod
    def parse(cls, text: str) -> tuple[int, MemoryBacking]:
        """(size, backing) from ``SIZE[,hugepages=on][,prealloc=on][,mergeable=on]``."""
        known = dict.fromkeys(cls._fields, "on|off")
        size, options = parse_sub_options(text, "--memory", known)
        switches = {
            key: parse_switch(value, f"--memory {size},{key}") for key, value in options.items()
        }
        return parse_size(size, "--memory"), cls(**switches)


PLAIN_MEMORY = MemoryBacking()


class RngConfig(NamedTuple):
    """A virtio entropy device that hands out at most ``rate`` bytes a second."""

    rate: int = DEFAULT_RNG_RATE
    transport: str = ""

    @classmethod
    def parse(cls, text: str) -> RngConfig:
        """From ``[rate=SIZE][,transport=pci|mmio]``."""
        known = {"rate": "SIZE", "transport": "|".join(TRANSPORTS)}
        options = parse_only_sub_options(text, "--rng", known)
        rate = DEFAULT_RNG_RATE
        if "rate" in options:
            rate = parse_size(options["rate"], "--rng rate")
        if not MIN_RNG_RATE <= rate <= MAX_RNG_RATE:
            raise ConfigError(
                f"--rng: rate {format_size(rate)} is not between {format_size(MIN_RNG_RATE)} and"
                f" {format_size(MAX_RNG_RATE)} a second"
            )
        return cls(rate, parse_transport(options.get("transport", ""), "--rng"))


class BalloonConfig(NamedTuple):
    """A virtio memory balloon that takes ``size`` bytes from the guest to begin with, and asks for
    statistics every ``stats_seconds`` if that isn't 0."""

    size: int = 0
    stats_seconds: float = 0.0
    free_page_reporting: bool = False
    deflate_on_oom: bool = False
    transport: str = ""

    @classmethod
    def parse(cls, text: str) -> BalloonConfig:
        """From ``[size=SIZE][,stats=SECONDS][,free-page-reporting=on][,deflate-on-oom=on]
        [,transport=pci|mmio]``."""
        known = {
            "size": "SIZE",
            "stats": "SECONDS",
            "free-page-reporting": "on|off",
            "deflate-on-oom": "on|off",
            "transport": "|".join(TRANSPORTS),
        }
        options = parse_only_sub_options(text, "--balloon", known)
        seconds = 0.0
        if "stats" in options:
            seconds = parse_seconds(options["stats"], "--balloon stats")
            if seconds < MIN_STATS_SECONDS:
                raise ConfigError(f"--balloon: stats can be had every {MIN_STATS_SECONDS} seconds")
        return cls(
            parse_size(options.get("size", "0"), "--balloon size"),
            seconds,
            parse_switch(
                options.get("free-page-reporting", "off"), "--balloon free-page-reporting"
            ),
            parse_switch(options.get("deflate-on-oom", "off"), "--balloon deflate-on-oom"),
            parse_transport(options.get("transport", ""), "--balloon"),
        )


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


class PortConfig(NamedTuple):
    """A port of the virtio console with a name, and where it goes: ``pty``, ``null``,
    ``file:PATH`` or ``unix:PATH``."""

    name: str
    place: str

    @classmethod
    def parse(cls, text: str) -> PortConfig:
        """From ``NAME=PLACE``."""
        name, separator, place = text.partition("=")
        if not separator or not name.isprintable() or not 0 < len(name.encode()) <= 63:
            raise ConfigError(f"--port {text}: no name", "it takes NAME=PLACE")
        if "/" in name:  # udev makes a link of that name
            raise ConfigError(f"--port {text}: there is a slash in the name")
        return cls(name, parse_place(place, f"--port {name}", "pty", "null", "file:", "unix:"))


class ConsoleConfig(NamedTuple):
    """A virtio console: where its console goes (as :class:`PortConfig`'s places, or ``stdio``, or
    nothing if there is none), and its named ports."""

    place: str = ""
    ports: tuple[PortConfig, ...] = ()
    transport: str = ""

    @classmethod
    def parse(cls, text: str | None, ports: Iterable[str] = ()) -> ConsoleConfig:
        """From ``PLACE[,transport=pci|mmio]`` (None: no console) and the ports' ``NAME=PLACE``."""
        known = {"transport": "|".join(TRANSPORTS)}
        place, options = parse_sub_options(text or "", "--console", known)
        if text is not None:
            parse_place(place, "--console", "stdio", "pty", "null", "file:", "unix:")
        transport = parse_transport(options.get("transport", ""), f"--console {place}")
        found = tuple(PortConfig.parse(port) for port in ports)
        if len(found) > MAX_CONSOLE_PORTS:
            raise ConfigError(f"--port: {len(found)} ports are more than {MAX_CONSOLE_PORTS}")
        names = [port.name for port in found]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"--port: there are two called {name}")
        return cls(place, found, transport)

    @property
    def places(self) -> tuple[str, ...]:
        """Where the console and the ports go."""
        return (self.place, *(port.place for port in self.ports))


class VsockConfig(NamedTuple):
    """A virtio socket device: the guest's context ID, and the Unix socket for host programs."""

    cid: int
    path: str
    transport: str = ""

    @classmethod
    def parse(cls, text: str) -> VsockConfig:
        """From ``cid=N,path=PATH[,transport=pci|mmio]``."""
        known = {"cid": "N", "path": "PATH", "transport": "|".join(TRANSPORTS)}
        _, options = parse_sub_options("," + text, "--vsock", known)
        if not options.get("cid") or not options.get("path"):
            raise ConfigError(f"--vsock {text}: cid or path is missing", "cid=3,path=/tmp/v.sock")
        low, high = MIN_VSOCK_CID, MAX_VSOCK_CID
        cid = _parse_number(options["cid"], low, high, f"--vsock {text}: cid")
        transport = parse_transport(options.get("transport", ""), f"--vsock {text}")
        return cls(cid, options["path"], transport)


def parse_place(text: str, option: str, *known: str) -> str:
    """Where a character device goes: one of the words ``known``, or a path behind one that ends in
    a colon."""
    kind, colon, path = text.partition(":")
    if kind + colon not in known or bool(colon) != bool(path):
        choices = ", ".join(f"{word}PATH" if word[-1] == ":" else word for word in known)
        raise ConfigError(f"{option}: {text!r} is not understood", f"use {choices}")
    return text


def _parse_number(text: str, low: int, high: int, option: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
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
    ``serial`` says where each serial port goes (``stdio``, ``null``, ``pty``, ``file:PATH``,
    ``unix:PATH``);
    ``entry`` is one of :data:`ENTRIES`; ``on_reboot`` one of :data:`ON_REBOOT`. ``transport`` is
    that of the virtio devices which don't name theirs; with ``mmio_cmdline`` those behind mmio
    are named in front of the kernel's command line instead of by ACPI. ``name`` tells the machine
    from others; if it is empty, the kernel's file name does.
    """

    kernel: str
    initrd: str | None = None
    command_line: str = DEFAULT_COMMAND_LINE
    memory_size: int = DEFAULT_MEMORY
    memory_backing: MemoryBacking = PLAIN_MEMORY
    cpus: int = 1
    cpu: CpuConfig = HOST_CPU
    cpu_affinity: tuple[CpuPin, ...] = ()
    disks: tuple[DiskConfig, ...] = ()
    nets: tuple[NetConfig, ...] = ()
    rng: RngConfig | None = None
    balloon: BalloonConfig | None = None
    name: str = ""
    serial: tuple[str, ...] = ("stdio",)
    console: ConsoleConfig | None = None
    vsock: VsockConfig | None = None
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
        self._check_memory_backing()
        for pin in self.cpu_affinity:
            if pin.vcpu >= self.cpus:
                raise ConfigError(
                    f"--cpu-affinity: there is no vCPU {pin.vcpu}, the last is {self.cpus - 1}"
                )
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
        consoles = self.console.places if self.console is not None else ()
        for place in self.serial + consoles:
            if place not in ("null", "pty") and (self.serial + consoles).count(place) > 1:
                option = "--console" if place in consoles else "--serial"
                raise ConfigError(f"{option}: {place} can't serve two ports")
        if self.entry not in ENTRIES:
            raise ConfigError(f"--entry: {self.entry!r} is none of {', '.join(ENTRIES)}")
        if self.on_reboot not in ON_REBOOT:
            raise ConfigError(f"--on-reboot: {self.on_reboot!r} is none of {', '.join(ON_REBOOT)}")
        if self.transport not in TRANSPORTS:
            raise ConfigError(f"--transport: {self.transport!r} is none of {', '.join(TRANSPORTS)}")
        if "\0" in self.command_line:
            raise ConfigError("--append: the command line contains a NUL byte")

    def _check_memory_backing(self) -> None:
        backing, balloon = self.memory_backing, self.balloon
        if backing.hugepages and self.memory_size % HUGE_PAGE_SIZE:
            size = format_size(self.memory_size)
            raise ConfigError(
                f"--memory: hugepages=on takes multiples of 2 MiB, which {size} isn't"
            )
        if backing.hugepages and backing.mergeable:
            raise ConfigError("--memory: huge pages can't be merged: hugepages=on or mergeable=on")
        if balloon is None:
            return
        if backing.hugepages:
            raise ConfigError("--balloon: huge pages are reserved for the guest and stay with it")
        if not 0 <= balloon.size <= self.memory_size:
            size, most = format_size(balloon.size), format_size(self.memory_size)
            raise ConfigError(f"--balloon: {size} is not between 0 and the guest's {most}")

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
    virtio_console: bool = False,
) -> str:
    """The kernel's command line: the default, a root device where one is needed, then ``append``.

    ``root=`` is added with a disk and no initrd (an initrd knows better), unless it is given; and
    ``console=hvc0`` if the user's terminal is at the virtio console.
    """
    words = [text for text in append if text]
    if default:
        given = " ".join(words).split()
        if has_disk and not has_initrd and not any(w.startswith("root=") for w in given):
            words.insert(0, DISK_ROOT)
        if virtio_console:
            words.insert(0, VIRTIO_CONSOLE)
        words.insert(0, DEFAULT_COMMAND_LINE)
    return " ".join(words)


def format_size(size: int) -> str:
    """``512 MiB``, ``2 GiB``; bytes if it isn't a whole number of KiB."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"
