"""What a machine is made of, as the user says it: frozen records, validated when they are made.

Everything wrong raises :class:`~pyvmm.errors.ConfigError`, which names the option. The virtio
devices' records are in :mod:`pyvmm.device_config`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pyvmm.errors import ConfigError
from pyvmm.memory import GIB, HUGE_PAGE_SIZE, MIB, PAGE_SIZE
from pyvmm.options import (
    TRANSPORTS,
    format_size,
    parse_number,
    parse_place,
    parse_size,
    parse_sub_options,
    parse_switch,
)

if TYPE_CHECKING:
    from pyvmm.device_config import (
        BalloonConfig,
        ConsoleConfig,
        DiskConfig,
        NetConfig,
        RngConfig,
        VsockConfig,
    )
    from pyvmm.floppy_config import FloppyConfig
    from pyvmm.user_devices.interface import UserDevice

MIN_MEMORY = 2 * MIB
MAX_MEMORY = 64 * GIB
MAX_CPUS = 64
MAX_HOST_CPU = 8191
"""The highest number that Linux can have."""
MAX_DISKS, MAX_IDE_DISKS = 16, 4
DRIVE_B = 1
"""The BIOS's number of the second floppy drive."""
MAX_SERIAL_PORTS = 4
MAX_NETS = 8

DEFAULT_MEMORY = 256 * MIB
DEFAULT_COMMAND_LINE = "console=ttyS0 reboot=k panic=-1"
DISK_ROOT, IDE_ROOT = "root=/dev/vda rw", "root=/dev/sda rw"
VIRTIO_CONSOLE, SCREEN_CONSOLE = "console=hvc0", "console=tty0"

VIRTIO_OPTIONS = ("disks", "nets", "rng", "balloon", "console", "ports", "vsock")

ENTRIES = ("auto", "64", "32", "16", "pvh", "multiboot", "multiboot2", "real")
ON_REBOOT = ("exit", "restart")


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


class FlatConfig(NamedTuple):
    """A flat binary: bytes that are copied to ``address`` (None: the mode's usual one) and entered
    there, in 16-, 32- or 64-bit mode."""

    path: str
    address: int | None = None
    bits: int = 16

    @property
    def mode(self) -> str:
        """As :func:`pyvmm.boot.flat.load` has it."""
        return {16: "real", 32: "protected", 64: "long"}[self.bits]

    @classmethod
    def parse(cls, text: str) -> FlatConfig:
        """From ``FILE[@ADDRESS][,bits=16|32|64]``."""
        place, options = parse_sub_options(text, "--flat", {"bits": "16|32|64"})
        bits = options.get("bits", "16")
        if bits not in ("16", "32", "64"):
            raise ConfigError(f"--flat {place},bits: {bits!r} is none of 16, 32, 64")
        path, separator, where = place.rpartition("@")
        if not separator:
            return cls(place, None, int(bits))
        try:
            address = int(where, 0)
        except ValueError:
            raise ConfigError(
                f"--flat: {where!r} is not an address", "such as boot.bin@0x7c00"
            ) from None
        if not 0 <= address < MAX_MEMORY:
            raise ConfigError(f"--flat: nothing can be loaded at {where}")
        return cls(path, address, int(bits))


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
            number = parse_number(vcpu, 0, MAX_CPUS - 1, "--cpu-affinity")
            start = parse_number(first, 0, MAX_HOST_CPU, "--cpu-affinity")
            end = parse_number(last, start, MAX_HOST_CPU, "--cpu-affinity") if dash else start
            found.setdefault(number, set()).update(range(start, end + 1))
        return tuple(cls(vcpu, tuple(sorted(cpus))) for vcpu, cpus in sorted(found.items()))


class MemoryBacking(NamedTuple):
    """What the guest's memory is made of; see :class:`~pyvmm.memory.GuestMemory`."""

    hugepages: bool = False
    prealloc: bool = False
    mergeable: bool = False
    thp: bool = True

    @classmethod
    def parse(cls, text: str) -> tuple[int, MemoryBacking]:
        """(size, backing) from ``SIZE[,hugepages=on][,prealloc=on][,mergeable=on][,thp=off]``."""
        known = dict.fromkeys(cls._fields, "on|off")
        size, options = parse_sub_options(text, "--memory", known)
        switches = {
            key: parse_switch(value, f"--memory {size},{key}") for key, value in options.items()
        }
        if switches.get("hugepages") and switches.get("thp"):
            raise ConfigError("--memory: it is in huge pages already: hugepages=on or thp=on")
        return parse_size(size, "--memory"), cls(**switches)


PLAIN_MEMORY = MemoryBacking()


class _MachineFields(NamedTuple):
    """See :class:`MachineConfig`. A named tuple, not a data class: importing what makes those takes
    a tenth of a run's start."""

    kernel: str | None = None
    flat: FlatConfig | None = None
    firmware: str | None = None
    initrd: str | None = None
    command_line: str = DEFAULT_COMMAND_LINE
    words: str | None = None
    memory_size: int = DEFAULT_MEMORY
    memory_backing: MemoryBacking = PLAIN_MEMORY
    cpus: int = 1
    cpu: CpuConfig = HOST_CPU
    cpu_affinity: tuple[CpuPin, ...] = ()
    disks: tuple[DiskConfig, ...] = ()
    floppies: tuple[FloppyConfig, ...] = ()
    nets: tuple[NetConfig, ...] = ()
    rng: RngConfig | None = None
    balloon: BalloonConfig | None = None
    name: str = ""
    serial: tuple[str, ...] = ("stdio",)
    screen: str | None = None
    console: ConsoleConfig | None = None
    vsock: VsockConfig | None = None
    devices: tuple[UserDevice, ...] = ()
    entry: str = "auto"
    on_reboot: str = "exit"
    transport: str = "pci"
    mmio_cmdline: bool = False
    debug_console: bool = False
    debug_exit: bool = False


class MachineConfig(_MachineFields):
    """Everything that :class:`~pyvmm.machine.Machine` needs to know.

    With ``flat`` the ``kernel`` is a flat binary. Without a ``kernel`` the guest starts at the
    reset vector of ``firmware``, by default PyVMM's own BIOS.

    ``memory_size`` is in bytes; ``command_line`` is complete (see :func:`command_line`),
    and ``words`` the part that is the user's own;
    ``serial`` says where each serial port goes (``stdio``, ``null``, ``pty``, ``file:PATH``,
    ``unix:PATH``), ``screen`` where the text screen does (``stdio``, ``null``, ``file:PATH``), if
    there is one; the virtio devices' records are those of :mod:`pyvmm.device_config`. ``entry``
    is one of :data:`ENTRIES`; ``on_reboot`` one of :data:`ON_REBOOT`. ``transport`` is that of the
    virtio devices which don't name theirs; with ``mmio_cmdline`` those behind mmio are named in
    front of the kernel's command line instead of by ACPI. ``devices`` are the user's own, or the
    text of --device, by which they are made here and now. ``name`` tells the machine from others;
    if it is empty, the kernel's file name does.
    """

    __slots__ = ()

    def __new__(cls, **fields: Any) -> MachineConfig:
        config = super().__new__(cls, **fields)
        config._check()
        if not config.devices:
            return config
        from pyvmm.user_devices.loading import instances

        return config._replace(devices=instances(config.devices))

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> MachineConfig:
        """From the options of ``pyvmm run``, which stand under the names of their parameters and
        may be left out. A disk or network card may be a record already."""
        given = {name: value for name, value in options.items() if value not in (None, ())}
        fields = {name: given[name] for name in cls._fields if name in given}
        on_virtio = given.get("console", "").partition(",")[0] == "stdio"
        on_screen = given.get("screen") == "stdio"
        if "memory" in given:
            fields["memory_size"], fields["memory_backing"] = MemoryBacking.parse(given["memory"])
        if "cpu" in given:
            fields["cpu"] = CpuConfig.parse(given["cpu"])
        if "flat" in given:
            if "kernel" in given:
                raise ConfigError("--flat and --kernel: one of them is the guest")
            fields["flat"] = flat = FlatConfig.parse(given["flat"])
            fields["kernel"] = flat.path
        if "floppies" in given:
            from pyvmm.floppy_config import parse_floppies  # few machines have one

            fields["floppies"] = parse_floppies(given["floppies"])
        if "cpu_affinity" in given:
            fields["cpu_affinity"] = CpuPin.parse(given["cpu_affinity"])
        if any(name in given for name in VIRTIO_OPTIONS):
            fields |= _virtio_devices(given)
        disks = fields.get("disks", ())
        fields["command_line"] = command_line(
            given.get("append", ()),
            default=not given.get("no_default_append"),
            has_disk=bool(disks),
            has_initrd="initrd" in given,
            virtio_console=on_virtio,
            screen=on_screen,
            disk_root=IDE_ROOT if all(disk.interface == "ide" for disk in disks) else DISK_ROOT,
        )
        fields["words"] = " ".join(filter(None, given.get("append", ())))
        if (on_virtio or on_screen) and "serial" not in given:
            fields["serial"] = ("null",)
        return cls(**fields)

    def _check(self) -> None:
        if self.kernel == "":
            raise ConfigError("--kernel: the path is empty")
        if self.firmware == "":
            raise ConfigError("--firmware: the path is empty")
        if not (self.kernel is not None or self.disks or self.floppies or self.firmware):
            raise ConfigError("nothing to run: --kernel, --disk or --firmware says what")
        if self.floppies and self.firmware:
            raise ConfigError("--floppy: only PyVMM's own BIOS can read floppies, not --firmware")
        if self.initrd == "":
            raise ConfigError("--initrd: the path is empty")
        if "\0" in self.command_line:
            raise ConfigError("--append: the command line contains a NUL byte")
        if not self.name.isprintable():
            raise ConfigError(f"--name: {self.name!r} is not plain text")
        for option, value, known in (
            ("--boot", self.entry, ENTRIES),
            ("--on-reboot", self.on_reboot, ON_REBOOT),
            ("--transport", self.transport, TRANSPORTS),
        ):
            if value not in known:
                raise ConfigError(f"{option}: {value!r} is none of {', '.join(known)}")
        self._check_cpus()
        self._check_memory()
        self._check_devices()
        self._check_places()

    def _check_cpus(self) -> None:
        if not 1 <= self.cpus <= MAX_CPUS:
            raise ConfigError(f"--cpus: {self.cpus} is not between 1 and {MAX_CPUS}")
        for pin in self.cpu_affinity:
            if pin.vcpu >= self.cpus:
                raise ConfigError(
                    f"--cpu-affinity: there is no vCPU {pin.vcpu}, the last is {self.cpus - 1}"
                )

    def _check_memory(self) -> None:
        size, backing, balloon = self.memory_size, self.memory_backing, self.balloon
        if not MIN_MEMORY <= size <= MAX_MEMORY:
            raise ConfigError(
                f"--memory: {format_size(size)} is not between"
                f" {format_size(MIN_MEMORY)} and {format_size(MAX_MEMORY)}"
            )
        if size % PAGE_SIZE:
            raise ConfigError(f"--memory: {size} bytes are not whole 4 KiB pages")
        if backing.hugepages and size % HUGE_PAGE_SIZE:
            raise ConfigError(
                f"--memory: hugepages=on takes multiples of 2 MiB, which {format_size(size)} isn't"
            )
        if backing.hugepages and backing.mergeable:
            raise ConfigError("--memory: huge pages can't be merged: hugepages=on or mergeable=on")
        if balloon is None:
            return
        if backing.hugepages:
            raise ConfigError("--balloon: huge pages are reserved for the guest and stay with it")
        if not 0 <= balloon.size <= size:
            raise ConfigError(
                f"--balloon size: {format_size(balloon.size)} is not between 0 and the guest's"
                f" {format_size(size)}"
            )

    def _check_devices(self) -> None:
        if len(self.disks) > MAX_DISKS:
            raise ConfigError(f"--disk: {len(self.disks)} disks are more than {MAX_DISKS}")
        ide = sum(disk.interface == "ide" for disk in self.disks)
        if ide > MAX_IDE_DISKS:
            raise ConfigError(f"--disk: {ide} with interface=ide are more than {MAX_IDE_DISKS}")
        if len(self.nets) > MAX_NETS:
            raise ConfigError(f"--net: {len(self.nets)} cards are more than {MAX_NETS}")
        if len(self.serial) > MAX_SERIAL_PORTS:
            raise ConfigError(
                f"--serial: {len(self.serial)} ports are more than {MAX_SERIAL_PORTS}"
            )

    def _check_places(self) -> None:
        """All are known, and nothing of the host's is two devices' at once."""
        taps = [net.ifname for net in self.nets if net.ifname]
        taps += [f"fd {fd}" for net in self.nets for fd in net.fds]
        for tap in taps:
            if taps.count(tap) > 1:
                raise ConfigError(f"--net: {tap} can't serve twice")
        console = self.console
        consoles = tuple(filter(None, console.places)) if console is not None else ()
        places = self.serial + consoles
        if self.screen is not None:
            parse_place(self.screen, "--screen", known=("stdio", "null", "file:"))
            places += (self.screen,)
        for place in places:
            option = "--console" if place in consoles else "--serial"
            option = "--screen" if place == self.screen else option
            parse_place(place, option)
            if place not in ("null", "pty") and places.count(place) > 1:
                raise ConfigError(f"{option}: {place} can't serve two ports")

    @property
    def boots(self) -> str:
        """The name of the file that the guest starts from: kernel, first disk or firmware."""
        return os.path.basename(self.kernel or next(iter(self._disks), "") or self.firmware or "")

    @property
    def boot_order(self) -> list[int]:
        """The BIOS's numbers of the drives that it tries to boot from, in their order: those with
        a bootindex, then the floppy in A: (0), then the disks (80h and on)."""
        drives = [(floppy.bootindex, number) for number, floppy in enumerate(self.floppies)]
        drives += [(disk.bootindex, 0x80 + number) for number, disk in enumerate(self.disks)]
        chosen = sorted((index, number) for index, number in drives if index is not None)
        others = [number for index, number in drives if index is None and number != DRIVE_B]
        return [number for _, number in chosen] + others

    @property
    def images(self) -> tuple[str, ...]:
        """The files that the guest needs, which nothing of ours may write to."""
        given = (self.kernel, self.firmware, self.initrd, *self._disks)
        return tuple(path for path in given if path is not None)

    @property
    def _disks(self) -> list[str]:
        """The files of the floppies and disks."""
        return [drive.path for drive in self.floppies] + [disk.path for disk in self.disks]

    @property
    def mmio_devices(self) -> int:
        """How many virtio devices there are behind mmio. Every virtio device's configuration is a
        field, or in a tuple that is one, and has an attribute ``transport``."""
        found: list[Any] = []
        for value in self:
            if hasattr(value, "transport"):
                found.append(value)
            elif isinstance(value, tuple):
                found += [item for item in value if hasattr(item, "transport")]
        virtio = [each for each in found if getattr(each, "interface", "virtio") == "virtio"]
        return sum((device.transport or self.transport) == "mmio" for device in virtio)

    @property
    def ide_channels(self) -> int:
        """How many IDE channels there are: each has two disks."""
        return (sum(disk.interface == "ide" for disk in self.disks) + 1) // 2


def command_line(
    append: Iterable[str] = (),
    *,
    default: bool = True,
    has_disk: bool = False,
    has_initrd: bool = False,
    virtio_console: bool = False,
    screen: bool = False,
    disk_root: str = DISK_ROOT,
) -> str:
    """The kernel's command line: the default, a root device where one is needed, then ``append``.

    ``root=`` is added with a disk and no initrd (an initrd knows better), unless it is given; and
    ``console=hvc0`` if the user's terminal is at the virtio console, ``console=tty0`` if it shows
    the text screen.
    """
    words = [text for text in append if text]
    if default:
        given = " ".join(words).split()
        if has_disk and not has_initrd and not any(w.startswith("root=") for w in given):
            words.insert(0, disk_root)
        if virtio_console:
            words.insert(0, VIRTIO_CONSOLE)
        if screen:
            words.insert(0, SCREEN_CONSOLE)
        words.insert(0, DEFAULT_COMMAND_LINE)
    return " ".join(words)


def _virtio_devices(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are virtio devices, as far as there are any."""
    from pyvmm import device_config  # here, because not every machine has such a device

    found: dict[str, Any] = {}
    if "disks" in given:
        found["disks"] = tuple(
            disk
            if isinstance(disk, device_config.DiskConfig)
            else device_config.DiskConfig.parse(disk)
            for disk in given["disks"]
        )
    if "nets" in given:
        found["nets"] = tuple(
            net if isinstance(net, device_config.NetConfig) else device_config.NetConfig.parse(net)
            for net in given["nets"]
        )
    if "rng" in given:
        found["rng"] = device_config.RngConfig.parse(given["rng"])
    if "balloon" in given:
        found["balloon"] = device_config.BalloonConfig.parse(given["balloon"])
    if "console" in given or "ports" in given:
        ports = given.get("ports", ())
        found["console"] = device_config.ConsoleConfig.parse(given.get("console"), ports)
    if "vsock" in given:
        found["vsock"] = device_config.VsockConfig.parse(given["vsock"])
    return found
