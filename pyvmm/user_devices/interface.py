"""The base classes of devices that users write; docs/devices.md is the chapter about them.

What has no underscore in front is the interface, and stays as it is. It knows neither KVM nor the
rest of the machine: a device reads and writes registers, raises its interrupt, reaches guest
memory and sets timers.

All methods that the machine calls (``reset``, ``read``, ``write``, ``request``, callbacks of timers
and files, ``save``, ``restore``) are called with ``self.lock`` held, so never two at a time.
``read`` and ``write`` come from the vCPUs' threads, callbacks and ``request`` from the I/O thread;
a thread that the device starts by itself takes the lock before it touches anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from pyvmm.bus import Device
from pyvmm.eventloop import NS_PER_SECOND, READABLE, Clock
from pyvmm.interrupts import IrqLine
from pyvmm.memory import GuestMemory


class Machinery(Protocol):
    """What a device's requests go to once it is in a machine."""

    def set_timer(self, callback: Callable[[], None], ns: int, period_ns: int) -> None: ...

    def cancel_timer(self, callback: Callable[[], None]) -> None: ...

    def watch(self, fd: int, callback: Callable[[], None], events: int) -> None: ...

    def unwatch(self, fd: int) -> None: ...

    def log(self, text: str) -> None: ...

    def fault(self, what: str, detail: str, args: tuple[object, ...]) -> None: ...

    def fire(self, vector: int) -> None: ...

    def msix_enabled(self) -> bool: ...

    def send(self, queue: int, data: bytes) -> bool: ...

    def config_changed(self) -> None: ...


_NOT_YET = "the device is in no machine yet: do this in reset(), not __init__"


def _unconnected(level: bool) -> None:
    """What an interrupt line drives before it has a machine."""
    raise RuntimeError(_NOT_YET)


class UserDevice(Device):
    """What all have in common. Derive from :class:`PioDevice` and so on, not from this.

    ``irq``, ``memory`` and ``clock`` work from the first :meth:`reset` on; ``__init__`` only takes
    the options.
    """

    registers: ClassVar[Mapping[int, str]] = {}
    """Names of registers by their offset, for traces."""

    irq: IrqLine
    """The interrupt line: ``set(level)`` or ``pulse()``."""
    memory: GuestMemory
    """The guest's RAM, for DMA. What raises GuestMemoryError because the guest gave a bad address
    counts as a fault of the guest's."""
    clock: Clock
    """``now_ns()`` and ``wall_ns()``."""

    def __init__(self) -> None:
        super().__init__()
        self.irq = IrqLine(_unconnected)
        self._label = ""
        self._machinery: Machinery | None = None

    # What a device may have of its own.

    def reset(self) -> None:
        """Return to the power-on state. Called before the guest starts, and at each reset of the
        machine; timers are cancelled and the interrupt is low already."""

    def close(self) -> None:
        """Release what ``__init__`` has opened; at the machine's end."""

    def save(self) -> dict[str, Any]:
        """The state as plain values: here, all attributes that are, but for those that begin with
        an underscore."""
        return {
            name: bytes(value) if isinstance(value, bytearray) else value
            for name, value in vars(self).items()
            if not name.startswith("_") and _is_plain(value)
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`save` returned."""
        for name, value in state.items():
            now = getattr(self, name, None)
            setattr(self, name, bytearray(value) if isinstance(now, bytearray) else value)

    # What a device can ask for.

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, in ``seconds``; it replaces an earlier request for the same."""
        self._machine.set_timer(callback, round(seconds * NS_PER_SECOND), 0)

    def every(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` every ``seconds``. Calls that the host is too late for are left out."""
        period = max(1, round(seconds * NS_PER_SECOND))
        self._machine.set_timer(callback, period, period)

    def cancel(self, callback: Callable[[], None]) -> None:
        """Don't call ``callback`` any more."""
        self._machine.cancel_timer(callback)

    def watch(self, fd: int, callback: Callable[[], None], events: int = READABLE) -> None:
        """Call ``callback`` whenever the file descriptor is ready, until :meth:`unwatch`."""
        self._machine.watch(fd, callback, events)

    def unwatch(self, fd: int) -> None:
        """Undo :meth:`watch`, before ``fd`` is closed."""
        self._machine.unwatch(fd)

    def log(self, text: str) -> None:
        """Say something on stderr, behind the device's name. A guest that can make a device talk
        can make it talk a lot: for what it does wrong there is :meth:`fault`."""
        self._machine.log(text)

    def fault(self, what: str, detail: str = "", *args: object) -> None:
        """The guest did something wrong: count it, and say so the first time. ``what`` is one of a
        few fixed texts, ``detail % args`` the case."""
        self._machine.fault(what, detail, args)

    @property
    def _machine(self) -> Machinery:
        if self._machinery is None:
            raise RuntimeError(_NOT_YET)
        return self._machinery


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    return value is None or isinstance(value, (bool, int, float, str, bytes, bytearray))


class _RegisterDevice(UserDevice):
    """A device of ``length`` bytes of registers."""

    length: int = 0
    """How many bytes (for a PCI device, a power of two)."""
    min_size: int = 1
    """The narrowest access that the device takes, in bytes: 1, 2, 4 or 8. Narrower and unaligned
    ones are a fault of the guest's; they read as all ones, and a write does nothing."""
    max_size: int = 1
    """The widest. Wider ones arrive in halves, the lower one first."""

    def read(self, offset: int, size: int) -> int:
        """The value of ``size`` bytes at ``offset`` behind the device's base. A number that has
        more is cut off, a negative one taken as two's complement. Here: all ones."""
        return -1

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest wrote ``value``, which has ``size`` bytes, at ``offset``."""


class _PlacedDevice(_RegisterDevice):
    """A device at an address of its own, perhaps with one of the free ISA interrupts."""

    default_base: int | None = None
    """Where it is, unless ``base`` says otherwise."""
    default_irq: int | None = None
    """Its interrupt, unless ``irq`` says otherwise; None: it has none."""

    def __init__(self, *, base: int | None = None, irq: int | None = None) -> None:
        super().__init__()
        self.base = self.default_base if base is None else base
        self.irq_number = self.default_irq if irq is None else irq


class PioDevice(_PlacedDevice):
    """A device at I/O ports: ``length`` of them from ``base`` on, 8 bits wide unless it says
    otherwise."""


class MmioDevice(_PlacedDevice):
    """A device at memory addresses, with registers of 32 bits unless it says otherwise."""

    min_size = 4
    max_size = 4


class PciDevice(_RegisterDevice):
    """A PCI function: registers behind BAR 0 and an interrupt, INTA by ``self.irq`` or, with
    ``msix_vectors``, MSI-X by :meth:`fire`, its table behind BAR 1."""

    vendor_id: int = 0x1234
    device_id: int = 0
    class_code: int = 0xFF_0000
    """Base class, sub-class, interface; this one fits no defined class."""
    revision: int = 0
    io: bool = False
    """BAR 0 is in I/O space, not in memory."""
    msix_vectors: int = 0

    length = 4096
    min_size = 4
    max_size = 4

    @property
    def msix_enabled(self) -> bool:
        """Whether the driver has chosen MSI-X; ``self.irq`` is silent then."""
        return self._machine.msix_enabled()

    def fire(self, vector: int) -> None:
        """Send an MSI-X message, if the driver has chosen MSI-X."""
        self._machine.fire(vector)


class VirtioDevice(UserDevice):
    """A virtio device, behind PCI or MMIO as all others are (``transport``).

    The driver puts requests into ``queues``, each a buffer to read and one to fill, and
    :meth:`request` answers them. Queues named in ``event_queues`` are for the other way: the driver
    leaves empty buffers there, which :meth:`send` fills.
    """

    device_id: int = 0
    """The device type (Virtio 1.2, 5): 1 to 63, of which 42 and on have no meaning yet."""
    features: int = 0
    """Bits 0 to 23 are the device type's."""
    queues: Sequence[int] = (64,)
    """The size of each queue, a power of two."""
    event_queues: Sequence[int] = ()
    config: bytes = b""
    """The configuration space; :meth:`config_changed` after it was set anew, to the same length."""

    negotiated: int = 0
    """The features that driver and device have agreed on; 0 while there is no driver."""

    def __init__(self, *, transport: str = "") -> None:
        super().__init__()
        self.transport = transport

    def request(self, queue: int, data: bytes, room: int) -> bytes:
        """The driver's request ``data`` in a queue; the answer, of which at most ``room`` bytes are
        taken. Runs on the I/O thread, so it must not block."""
        return b""

    def buffers_added(self, queue: int) -> None:
        """The driver has put buffers into an event queue."""

    def send(self, queue: int, data: bytes) -> bool:
        """Fill the next buffer of an event queue with ``data``, as far as it has room; False if
        there is no buffer."""
        return self._machine.send(queue, data)

    def config_changed(self) -> None:
        """Tell the driver that ``self.config`` is not what it was."""
        self._machine.config_changed()
