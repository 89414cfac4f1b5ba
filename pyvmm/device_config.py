"""What a machine's virtio devices are made of, as the user says it: one record a device type.

Not part of :mod:`pyvmm.config`, because most machines have few of these devices, and then start
sooner without the others' records. What is wrong with a record alone is found here; what doesn't
go together with the rest of the machine, there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from pyvmm.errors import ConfigError
from pyvmm.memory import GIB, KIB, MIB
from pyvmm.options import (
    PLACES,
    TRANSPORTS,
    format_size,
    parse_number,
    parse_only_sub_options,
    parse_place,
    parse_seconds,
    parse_size,
    parse_sub_options,
    parse_switch,
    parse_transport,
)

if TYPE_CHECKING:
    from pyvmm.fault_config import DiskFaults, NetFaults

MAX_CONSOLE_PORTS = 15
MIN_VSOCK_CID, MAX_VSOCK_CID = 3, 0xFFFF_FFFE
MAX_BOOTINDEX = 99
DISK_INTERFACES = ("virtio", "ide")
MAX_QUEUE_PAIRS = 8
MIN_MTU, MAX_MTU = 68, 65521
"""What IPv4 needs (RFC 791), and what a tap can have."""

MIN_RNG_RATE, DEFAULT_RNG_RATE, MAX_RNG_RATE = 1 * KIB, 1 * MIB, 1 * GIB
MIN_STATS_SECONDS = 0.1

# What sub-options take, for the hint about one that isn't understood.
_SWITCH, _TRANSPORT = "on|off", "|".join(TRANSPORTS)
_INTERFACE = "|".join(DISK_INTERFACES)
_DISK_FAULTS = {"error": "eio|enospc[@…]", "latency": "TIME", "seed": "N"}
_NET_FAULTS = {
    "drop": "N%[@rx|tx]",
    "duplicate": "N%[@rx|tx]",
    "corrupt": "N%[@rx|tx]",
    "delay": "TIME[@rx|tx]",
    "seed": "N",
}


class _DiskFields(NamedTuple):
    path: str
    readonly: bool = False
    serial: str = ""
    transport: str = ""
    faults: DiskFaults | None = None
    bootindex: int | None = None
    interface: str = DISK_INTERFACES[0]


class DiskConfig(_DiskFields):
    """A disk backed by a raw image file or a block device at ``path``: virtio-blk's, or one on an
    IDE channel, as ``interface`` says (one of :data:`DISK_INTERFACES`).

    ``serial`` is what the guest reads as the disk's serial number, at most 20 bytes;
    ``transport`` is one of :data:`TRANSPORTS`, or nothing for the machine's; ``faults`` are to be
    injected; ``bootindex`` is the disk's place among those that the BIOS tries to boot from.
    """

    __slots__ = ()

    def __new__(cls, *values: Any, **fields: Any) -> DiskConfig:
        disk = super().__new__(cls, *values, **fields)
        disk._check()
        return disk

    def _check(self) -> None:
        if not self.path:
            raise ConfigError("--disk: the path is empty")
        if not self.serial.isprintable():
            raise ConfigError(f"--disk {self.path},serial: {self.serial!r} is not plain text")
        if len(self.serial.encode()) > 20:
            raise ConfigError(f"--disk {self.path},serial: {self.serial!r} is over 20 bytes")
        parse_transport(self.transport, f"--disk {self.path},transport")
        if self.interface not in DISK_INTERFACES:
            raise ConfigError(
                f"--disk {self.path},interface: {self.interface!r} is none of"
                f" {', '.join(DISK_INTERFACES)}"
            )
        if self.transport and self.interface == "ide":
            raise ConfigError(f"--disk {self.path},transport: goes with interface=virtio only")

    @classmethod
    def parse(cls, text: str) -> DiskConfig:
        """From ``PATH[,readonly=on][,serial=TEXT][,transport=pci|mmio][,bootindex=N]
        [,interface=virtio|ide]``, and the faults' options (:mod:`pyvmm.fault_config`). ``if=`` is
        QEMU's word for ``interface=``."""
        known = {
            "readonly": _SWITCH,
            "serial": "TEXT",
            "transport": _TRANSPORT,
            "bootindex": "N",
            "interface": _INTERFACE,
            "if": _INTERFACE,
            **_DISK_FAULTS,
        }
        path, options = parse_sub_options(text, "--disk", known)
        faults = None
        if options.keys() & _DISK_FAULTS.keys():
            from pyvmm.fault_config import DiskFaults

            faults = DiskFaults.parse(text, f"--disk {path}")
        readonly = parse_switch(options.get("readonly", "off"), f"--disk {path},readonly")
        transport = options.get("transport", "")
        bootindex = None
        if "bootindex" in options:
            bootindex = parse_number(
                options["bootindex"], 0, MAX_BOOTINDEX, f"--disk {path},bootindex"
            )
        interface = options.get("interface", options.get("if", DISK_INTERFACES[0]))
        return cls(
            path, readonly, options.get("serial", ""), transport, faults, bootindex, interface
        )


class RngConfig(NamedTuple):
    """A virtio entropy device that hands out at most ``rate`` bytes a second."""

    rate: int = DEFAULT_RNG_RATE
    transport: str = ""

    @classmethod
    def parse(cls, text: str) -> RngConfig:
        """From ``[rate=SIZE][,transport=pci|mmio]``."""
        known = {"rate": "SIZE", "transport": _TRANSPORT}
        options = parse_only_sub_options(text, "--rng", known)
        rate = DEFAULT_RNG_RATE
        if "rate" in options:
            rate = parse_size(options["rate"], "--rng rate")
        if not MIN_RNG_RATE <= rate <= MAX_RNG_RATE:
            raise ConfigError(
                f"--rng rate: {format_size(rate)} is not between {format_size(MIN_RNG_RATE)} and"
                f" {format_size(MAX_RNG_RATE)} a second"
            )
        return cls(rate, parse_transport(options.get("transport", ""), "--rng transport"))


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
            "free-page-reporting": _SWITCH,
            "deflate-on-oom": _SWITCH,
            "transport": _TRANSPORT,
        }
        options = parse_only_sub_options(text, "--balloon", known)
        seconds = 0.0
        if "stats" in options:
            seconds = parse_seconds(options["stats"], "--balloon stats")
            if seconds < MIN_STATS_SECONDS:
                raise ConfigError(f"--balloon stats: can be had every {MIN_STATS_SECONDS} seconds")
        return cls(
            parse_size(options.get("size", "0"), "--balloon size"),
            seconds,
            parse_switch(
                options.get("free-page-reporting", "off"), "--balloon free-page-reporting"
            ),
            parse_switch(options.get("deflate-on-oom", "off"), "--balloon deflate-on-oom"),
            parse_transport(options.get("transport", ""), "--balloon transport"),
        )


class NetConfig(NamedTuple):
    """A virtio network card on the tap ``ifname``, or on the open descriptors ``fds`` of one.

    ``mac`` is its address (``52:54:00:12:34:56``), or nothing for one made from the machine's name
    and the tap's. ``mtu`` is what the guest is told, and what a tap that is made here gets; 0 is
    the usual. ``queues`` is the number of pairs of queues; ``faults`` are to be injected.
    """

    ifname: str = ""
    fds: tuple[int, ...] = ()
    mac: str = ""
    mtu: int = 0
    queues: int = 1
    transport: str = ""
    faults: NetFaults | None = None

    @classmethod
    def parse(cls, text: str) -> NetConfig:
        """From ``TAP[,…]``, ``tap,ifname=TAP[,…]`` or ``fd=N[:N…][,…]``; the faults' options are
        in :mod:`pyvmm.fault_config`."""
        known = {
            "ifname": "TAP",
            "mac": "ADDRESS",
            "mtu": "BYTES",
            "queues": "N",
            "transport": _TRANSPORT,
            **_NET_FAULTS,
        }
        source, options = parse_sub_options(text, "--net", known)
        faults = None
        if options.keys() & _NET_FAULTS.keys():
            from pyvmm.fault_config import NetFaults

            faults = NetFaults.parse(text, f"--net {source}")
        ifname = options.pop("ifname", "") if source == "tap" else source
        fds: tuple[int, ...] = ()
        if source.startswith("fd="):
            ifname = ""
            fds = tuple(parse_number(n, 0, 1 << 20, "--net fd") for n in source[3:].split(":"))
        if "ifname" in options or not (fds or _is_interface_name(ifname)):
            raise ConfigError(
                f"--net {text}: {ifname!r} is not an interface's name",
                "it takes TAP, tap,ifname=TAP or fd=N",
            )
        queues = len(fds) or parse_number(
            options.get("queues", "1"), 1, MAX_QUEUE_PAIRS, f"--net {source},queues"
        )
        if "queues" in options and fds:
            raise ConfigError(f"--net {source},queues: goes with a name, not with fd=")
        if queues > MAX_QUEUE_PAIRS:
            raise ConfigError(f"--net {source}: {queues} queues are more than {MAX_QUEUE_PAIRS}")
        mac = options.get("mac", "")
        if "mac" in options and not _is_unicast_mac(mac):
            raise ConfigError(
                f"--net {source},mac: {mac!r} is not the address of a card",
                "such as 52:54:00:12:34:56",
            )
        mtu = 0
        if "mtu" in options:
            mtu = parse_number(options["mtu"], MIN_MTU, MAX_MTU, f"--net {source},mtu")
        transport = parse_transport(options.get("transport", ""), f"--net {source},transport")
        return cls(ifname, fds, mac, mtu, queues, transport, faults)


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
        return cls(name, parse_place(place, f"--port {name}", known=PLACES[1:]))


class ConsoleConfig(NamedTuple):
    """A virtio console: where its console goes (as :class:`PortConfig`'s places, or ``stdio``, or
    nothing if there is none), and its named ports."""

    place: str = ""
    ports: tuple[PortConfig, ...] = ()
    transport: str = ""

    @classmethod
    def parse(cls, text: str | None, ports: Iterable[str] = ()) -> ConsoleConfig:
        """From ``PLACE[,transport=pci|mmio]`` (None: no console) and the ports' ``NAME=PLACE``."""
        known = {"transport": _TRANSPORT}
        place, options = parse_sub_options(text or "", "--console", known)
        if text is not None:
            parse_place(place, "--console")
        transport = parse_transport(options.get("transport", ""), f"--console {place},transport")
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
        known = {"cid": "N", "path": "PATH", "transport": _TRANSPORT}
        options = parse_only_sub_options(text, "--vsock", known)
        if not options.get("cid") or not options.get("path"):
            raise ConfigError(
                f"--vsock {text}: cid or path is missing", "such as cid=3,path=/tmp/v.sock"
            )
        low, high = MIN_VSOCK_CID, MAX_VSOCK_CID
        cid = parse_number(options["cid"], low, high, "--vsock cid")
        transport = parse_transport(options.get("transport", ""), "--vsock transport")
        return cls(cid, options["path"], transport)


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
