"""What a guest that is stepped asks of its devices, in the words of a trace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from pyvmm.board import Board
from pyvmm.bus import Bus, Range
from pyvmm.kvm._kvm import lib
from pyvmm.trace import hooks
from pyvmm.trace.decode import EventDecoder
from pyvmm.vcpu import MMIO_DETAIL, PIO_DETAIL, Handlers

PORT, MMIO = "port", "MMIO"

OnAccess = Callable[["Access"], None]


class Access(NamedTuple):
    """What the guest asked of a device, or of nobody: ``values`` has several elements after a
    string instruction. ``register`` and ``meaning`` are in words, as in a trace."""

    space: str
    write: bool
    address: int
    size: int
    values: tuple[int, ...]
    device: str
    register: str
    meaning: str


class Details(NamedTuple):
    """An access as KVM tells of it; ``data`` is in place once the access is done."""

    space: str
    write: bool
    address: int
    size: int
    data: bytes


class AccessWatch:
    """Sees what the vCPUs ask of ``board``; all of it, because what one access means may depend on
    one before it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._decoder = EventDecoder(0)
        self._decoder.attach(board)
        self._decoding = threading.Lock()

    def wrap(self, handlers: Handlers, page: memoryview, on_access: OnAccess) -> Handlers:
        """A vCPU's ``handlers``, such that each access is told to ``on_access`` when it is done.
        ``page`` is that of the vCPU's kvm_run."""
        wrapped = list(handlers)
        for reason, details, bus in (
            (lib.KVM_EXIT_IO, _port_details, self._board.pio),
            (lib.KVM_EXIT_MMIO, _mmio_details, self._board.mmio),
        ):
            wrapped[reason] = self._telling(
                handlers[reason], partial(details, page), bus, on_access
            )
        return wrapped

    def _telling(
        self,
        handler: Callable[[], None],
        details: Callable[[], Details],
        bus: Bus,
        on_access: OnAccess,
    ) -> Callable[[], None]:
        def handle() -> None:
            found = bus.find(details().address)  # before: the access may move what lies there
            handler()
            on_access(self._explain(details(), found))

        return handle

    def _explain(self, details: Details, found: Range | None) -> Access:
        space, write, address, size, data = details
        starts = range(0, len(data), size)
        values = tuple(int.from_bytes(data[start : start + size], "little") for start in starts)
        value = values[0] if len(values) == 1 else data[: hooks.MAX_BURST]
        kind = hooks.PIO if space == PORT else hooks.MMIO
        with self._decoding:
            record = (kind, 0, 0, 0, 0, found, write, size, address, len(values), value)
            event = next(self._decoder.events(record))
        device = event["device"]
        return Access(
            space, write, address, size, values, device, event["register"], event["meaning"]
        )


def _port_details(page: memoryview) -> Details:
    direction, size, port, count = PIO_DETAIL.unpack_from(page, lib.RUN_DETAIL)
    data = bytes(page[lib.PIO_DATA_PAGE : lib.PIO_DATA_PAGE + size * count])
    return Details(PORT, bool(direction), port, size, data)


def _mmio_details(page: memoryview) -> Details:
    address, size, is_write = MMIO_DETAIL.unpack_from(page, lib.RUN_DETAIL)
    start = lib.RUN_DETAIL + 8
    return Details(MMIO, bool(is_write), address, size, bytes(page[start : start + size]))
