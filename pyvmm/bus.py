"""An address space of ranges, each with the device that answers there.

There are two: port I/O (64 Ki ports) and MMIO. A device is called with an *offset* into its own
range and doesn't know where the range lies. The bus refuses overlaps, splits accesses that are
wider than a range allows (as the ISA bus does: a 16-bit ``out`` to an 8-bit device is two 8-bit
ones), and holds the device's lock around each call, so a device needs no thought about vCPUs
that access it at the same time.

Reads where nobody answers give all ones and writes there go nowhere, as on a PC.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from pyvmm.errors import GuestFaults

PIO_SPACE = 1 << 16
MMIO_SPACE = 1 << 52


class Lock(Protocol):
    """What :class:`threading.RLock` and :class:`threading.Lock` have in common."""

    def acquire(self) -> bool: ...

    def release(self) -> None: ...

    def __enter__(self) -> bool: ...

    def __exit__(self, *exception: Any) -> None: ...


class Handler(Protocol):
    """What the bus calls: a device, or one of a device's several windows.

    ``size`` is 1, 2, 4 or 8; ``offset + size`` never exceeds the range's length. The bus holds
    ``lock`` during the call. ``read`` returns a value of ``size`` bytes.
    """

    @property
    def lock(self) -> Lock: ...

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class Device:
    """The base of every emulated device: a lock, and state that can be saved.

    The lock is re-entrant and is held by the bus during ``read`` and ``write``; a device takes it
    itself in whatever else can be called from another thread (timers, backends).
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def reset(self) -> None:
        """Return to the power-on state, as at a platform reset."""
        raise NotImplementedError

    def save(self) -> dict[str, Any]:
        """The guest-visible state as plain values (numbers, strings, bytes, lists, dicts)."""
        raise NotImplementedError

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`save` returned."""
        raise NotImplementedError


class Window(NamedTuple):
    """One of several ranges through which the same device is reached; shares its lock."""

    lock: Lock
    read: Callable[[int, int], int]
    write: Callable[[int, int, int], None]
    read_string: Callable[[int, int, memoryview], None] | None = None
    """For a port that is read by ``ins``, as (offset, size, data): fills ``data``."""


class DoorbellController(Protocol):
    """Lets a guest's write to an address signal an eventfd instead of reaching the bus (KVM's
    ioeventfd), so that the vCPU doesn't leave the guest for it."""

    def attach(self, address: int, length: int, eventfd: int, match: int | None = None) -> None:
        """Writes of ``length`` bytes (0: any length) at MMIO ``address``, of the value ``match``
        if there is one, signal ``eventfd``."""

    def detach(self, address: int, length: int, eventfd: int, match: int | None = None) -> None:
        """Undo :meth:`attach` with the same arguments."""


class Range(NamedTuple):
    """A claimed range, as :meth:`Bus.ranges` lists it.

    The last four are the handler's methods and its lock's, bound once: looking them up at each
    access would double what the bus adds to an exit.
    """

    base: int
    length: int
    name: str
    max_size: int
    handler: Handler
    acquire: Callable[[], object]
    release: Callable[[], object]
    read: Callable[[int, int], int]
    write: Callable[[int, int, int], None]


class Bus:
    """An address space; ``size`` addresses from 0.

    ``flat`` keeps a table with an entry per address, which makes a look-up one index operation:
    right for the 64 Ki ports. Otherwise ranges are found by bisection behind a last-hit cache.
    """

    find: Callable[[int], Range | None]
    """The range that claims an address."""

    def __init__(self, name: str, size: int, faults: GuestFaults, *, flat: bool = False) -> None:
        self.name = name
        self.size = size
        self._faults = faults
        self._ranges: tuple[Range, ...] = ()
        self._last: Range | None = None
        # An access at the last address can reach a few addresses beyond it.
        self._table: list[Range | None] | None = [None] * (size + 16) if flat else None
        # The table's own method: the hot path is spared a call.
        self.find = self._table.__getitem__ if self._table is not None else self._bisect
        self._update = threading.Lock()
        self._unclaimed_read = f"{name} read that no device claims"
        self._unclaimed_write = f"{name} write that no device claims"

    def ranges(self) -> tuple[Range, ...]:
        """Every claimed range, by rising base address."""
        return self._ranges

    def add(
        self, base: int, length: int, handler: Handler, name: str, *, max_size: int = 8
    ) -> None:
        """Claim ``length`` addresses at ``base``. Accesses wider than ``max_size`` bytes are split.

        Raises ValueError if the range is outside the bus or overlaps another.
        """
        with self._update:
            if length <= 0 or base < 0 or base + length > self.size:
                raise ValueError(f"{name}: {base:#x}+{length:#x} is outside the {self.name} bus")
            for other in self._ranges:
                if base < other.base + other.length and other.base < base + length:
                    raise ValueError(f"{name} at {base:#x} overlaps {other.name}")
            lock = handler.lock
            claimed = Range(
                *(base, length, name, max_size, handler),
                *(lock.acquire, lock.release, handler.read, handler.write),
            )
            self._install((*self._ranges, claimed))

    def remove(self, base: int, handler: Handler) -> None:
        """Give up the range that ``handler`` has at ``base``. KeyError if it has none."""
        with self._update:
            kept = tuple(r for r in self._ranges if r.base != base or r.handler is not handler)
            if len(kept) == len(self._ranges):
                raise KeyError(f"nothing to remove at {base:#x} on the {self.name} bus")
            self._install(kept)

    def _install(self, ranges: tuple[Range, ...]) -> None:
        """Publish new look-up structures; vCPU threads read them without a lock."""
        ordered = tuple(sorted(ranges, key=lambda r: r.base))
        if self._table is not None:
            for gone in set(self._ranges) - set(ordered):
                self._table[gone.base : gone.base + gone.length] = [None] * gone.length
            for new in set(ordered) - set(self._ranges):
                self._table[new.base : new.base + new.length] = [new] * new.length
        self._ranges = ordered
        self._last = None

    def _bisect(self, address: int) -> Range | None:
        last = self._last
        if last is not None and 0 <= address - last.base < last.length:
            return last
        ranges = self._ranges
        index = bisect_right(ranges, address, key=_range_base) - 1
        if index < 0:
            return None
        found = ranges[index]
        if address - found.base >= found.length:
            return None
        self._last = found
        if self._ranges is not ranges:
            self._last = None  # they have changed meanwhile: what we found may be gone
        return found

    def read(self, address: int, size: int) -> int:
        """The value of ``size`` bytes at ``address``, little-endian."""
        found = self.find(address)
        if found is None:
            if size > 1:
                return self._read_split(address, size)
            self._faults.count(self._unclaimed_read)
            return 0xFF
        base, length, _, max_size, _, acquire, release, read, _ = found
        offset = address - base
        if size > max_size or offset + size > length:
            return self._read_split(address, size)
        acquire()
        try:
            return read(offset, size)
        finally:
            release()

    def write(self, address: int, size: int, value: int) -> None:
        """Store ``value`` of ``size`` bytes at ``address``."""
        found = self.find(address)
        if found is None:
            if size > 1:
                self._write_split(address, size, value)
            else:
                self._faults.count(self._unclaimed_write)
            return
        base, length, _, max_size, _, acquire, release, _, write = found
        offset = address - base
        if size > max_size or offset + size > length:
            self._write_split(address, size, value)
            return
        acquire()
        try:
            write(offset, size, value)
        finally:
            release()

    def read_string(self, address: int, size: int, data: memoryview) -> None:
        """Fill ``data`` with as many values of ``size`` bytes as it takes, by reading each at
        ``address``: at once if a device there knows how to."""
        found = self.find(address)
        fill = None if found is None else getattr(found.handler, "read_string", None)
        if found is None or fill is None or address + size > found.base + found.length:
            for start in range(0, len(data), size):
                data[start : start + size] = self.read(address, size).to_bytes(size, "little")
            return
        with found.handler.lock:
            fill(address - found.base, size, data)

    def _read_split(self, address: int, size: int) -> int:
        half = size // 2
        return self.read(address, half) | self.read(address + half, half) << 8 * half

    def _write_split(self, address: int, size: int, value: int) -> None:
        half = size // 2
        self.write(address, half, value & (1 << 8 * half) - 1)
        self.write(address + half, half, value >> 8 * half)


def _range_base(found: Range) -> int:
    return found.base
