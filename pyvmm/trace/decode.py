"""From what the hooks noted to the events of a trace.

What an access means is a decoder's business (:mod:`pyvmm.trace.parts`). Which one it is was looked
up by the vCPU's thread, because where a device is can change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pyvmm import layout
from pyvmm.console_watch import plain_text
from pyvmm.trace import hooks
from pyvmm.trace.parts import Decoder, board_decoders, wire_names
from pyvmm.vcpu import EXIT_REASONS

if TYPE_CHECKING:
    from pyvmm.board import Board
    from pyvmm.bus import Range
    from pyvmm.symbols import Symbols
    from pyvmm.trace.recorder import Record

Event = dict[str, Any]

MAX_MEANINGS = 4
"""How many elements of a string instruction are told apart."""

NOBODY = "nobody answers"
_ABSENT = (
    (0x000, 0x01F, "DMA controller"),
    (0x020, 0x021, "PIC"),
    (0x081, 0x08F, "DMA page register"),
    (0x0A0, 0x0A1, "PIC"),
    (0x0B2, 0x0B3, "SMI command port"),
    (0x0C0, 0x0DF, "DMA controller"),
    (0x0F0, 0x0F1, "FPU error latch"),
    (0x170, 0x177, "second IDE controller"),
    (0x1F0, 0x1F7, "first IDE controller"),
    (0x201, 0x201, "game port"),
    (0x278, 0x27F, "LPT2"),
    (0x2E8, 0x2EF, "COM4"),
    (0x2F8, 0x2FF, "COM2"),
    (0x376, 0x376, "second IDE controller"),
    (0x378, 0x37F, "LPT1"),
    (0x3B0, 0x3DF, "VGA"),
    (0x3E8, 0x3EF, "COM3"),
    (0x3F0, 0x3F5, "floppy controller"),
    (0x3F6, 0x3F6, "first IDE controller"),
    (0x3F7, 0x3F7, "floppy controller"),
    (0x3F8, 0x3FF, "COM1"),
)
"""What a PC may have at ports that nobody has claimed here, so what a guest is looking for."""


_OPTIONAL = {layout.DEBUG_CONSOLE: "--debug-console", layout.DEBUG_EXIT: "--debug-exit"}


def absent_ports() -> dict[int, str]:
    """What isn't at a port but might be."""
    found = {
        port: f"a PC's {what}" for first, last, what in _ABSENT for port in range(first, last + 1)
    }
    return found | {port: f"without {option}" for port, option in _OPTIONAL.items()}


class EventDecoder:
    """Makes events of records. ``start_ns`` is the time that counts as 0."""

    def __init__(self, start_ns: int, symbols: Symbols | None = None) -> None:
        self._start = start_ns
        self._symbols = symbols
        self._board: Board | None = None
        self._decoders: dict[int, Decoder] = {}
        self._handlers: list[object] = []  # they stay, so that their ids are nobody else's
        self._wires: dict[int, str] = {}
        self._absent = absent_ports()
        self._console_came = self._init_came = self._shutdown_came = False
        self._kinds: dict[int, Callable[..., Iterator[Event]]] = {
            hooks.PIO: self._access,
            hooks.MMIO: self._access,
            hooks.OTHER: self._other,
            hooks.LINE: self._line,
            hooks.MSI: self._msi,
            hooks.DOORBELL: self._doorbell,
            hooks.REQUEST: self._request,
            hooks.CONSOLE: self._console,
            hooks.PHASE: self._phase,
        }

    def attach(self, board: Board) -> None:
        """Learn what is where."""
        self._board = board
        self._wires = wire_names(board)
        self._forget()

    def _forget(self) -> None:
        """The registers are as at power-on, so decoders must be."""
        self._handlers, self._decoders = [], {}
        for handler, decoder in () if self._board is None else board_decoders(self._board):
            self._handlers.append(handler)
            self._decoders[id(handler)] = decoder

    def events(self, record: Record) -> Iterator[Event]:
        """What a record stands for: an event, and perhaps the phase that begins with it."""
        return self._kinds[record[0]](*record)

    # Exits.

    def _access(
        self,
        kind: int,
        start: int,
        took: int,
        vcpu: int,
        rip: int,
        found: Range | None,
        write: int,
        size: int,
        address: int,
        count: int,
        value: int | bytes,
    ) -> Iterator[Event]:
        event = self._exit(start, vcpu, rip, "IO" if kind == hooks.PIO else "MMIO")
        number = value if isinstance(value, int) else int.from_bytes(value[:size], "little")
        if found is None:
            what = self._absent.get(address, "") if kind == hooks.PIO else ""
            device, register = "", "port" if kind == hooks.PIO else "memory"
            meaning = f"{NOBODY} ({what})" if what else NOBODY
        elif isinstance(value, int):
            device, register, meaning = self._explain(found, address, size, number, bool(write))
        else:
            device, register, meaning = self._burst(found, address, size, value, bool(write))
        event |= {
            "device": device,
            "register": register,
            "access": "write" if write else "read",
            "address": address,
            "size": size,
        }
        if count != 1:
            event["count"] = count
            assert isinstance(value, bytes)
            event["data"] = value.hex()
        event |= {"value": number, "meaning": meaning, "took": took}
        yield event

    def _exit(self, start: int, vcpu: int, rip: int, reason: str) -> Event:
        event: Event = {"ns": start - self._start, "kind": "exit", "vcpu": vcpu, "rip": rip}
        if self._symbols is not None:
            symbol = self._symbols.name(rip)
            if symbol:
                event["symbol"] = symbol
        event["reason"] = reason
        return event

    def _explain(
        self, found: Range, address: int, size: int, value: int, write: bool
    ) -> tuple[str, str, str]:
        """An access as the device saw it: one that is too wide for it, in halves."""
        offset = address - found.base
        if size > found.max_size or offset + size > found.length:
            return self._halves(found, address, size, value, write)
        decoder = self._decoders.get(id(found.handler))
        if decoder is None:  # a device of the user's own
            registers: Mapping[int, str] = getattr(found.handler, "registers", {})
            return found.name, registers.get(offset, f"+{offset:#x}"), ""
        return decoder(offset, size, value, write)

    def _halves(
        self, found: Range, address: int, size: int, value: int, write: bool
    ) -> tuple[str, str, str]:
        if size == 1:
            return found.name, f"+{address - found.base:#x}", ""
        half = size // 2
        low = self._explain(found, address, half, value & (1 << 8 * half) - 1, write)
        if address + half >= found.base + found.length:
            return low
        _, register, meaning = self._explain(found, address + half, half, value >> 8 * half, write)
        return low[0], f"{low[1]} and {register}", "; ".join(filter(None, (low[2], meaning)))

    def _burst(
        self, found: Range, address: int, size: int, data: bytes, write: bool
    ) -> tuple[str, str, str]:
        """A string instruction: so many accesses to one register."""
        device = register = ""
        meanings: list[str] = []
        for start in range(0, len(data) - size + 1, size):
            value = int.from_bytes(data[start : start + size], "little")
            device, register, meaning = self._explain(found, address, size, value, write)
            meanings.append(meaning)
        if size == 1 and all(meaning.startswith(("'", '"')) for meaning in meanings):
            return device, register, repr(data.decode("latin-1"))
        more = f"… and {len(meanings) - MAX_MEANINGS} more" if len(meanings) > MAX_MEANINGS else ""
        return device, register, "; ".join(filter(None, (*meanings[:MAX_MEANINGS], more)))

    def _other(
        self, _: int, start: int, took: int, vcpu: int, rip: int, reason: int, summary: str
    ) -> Iterator[Event]:
        event = self._exit(start, vcpu, rip, EXIT_REASONS.get(reason, str(reason)))
        yield event | {"device": "", "register": "", "meaning": summary, "took": took}

    # Interrupts and queues.

    def _line(self, _: int, ns: int, gsi: int, level: bool) -> Iterator[Event]:
        event = {"ns": ns - self._start, "kind": "interrupt", "device": self._wires.get(gsi, "")}
        yield event | {"gsi": gsi, "level": int(level)}

    def _msi(self, _: int, ns: int, device: str, index: int, vector: int) -> Iterator[Event]:
        event = {"ns": ns - self._start, "kind": "interrupt", "device": device}
        yield event | {"msi": index, "vector": vector}

    def _doorbell(self, _: int, ns: int, device: str, queue: int) -> Iterator[Event]:
        yield {"ns": ns - self._start, "kind": "doorbell", "device": device, "queue": queue}

    def _request(
        self,
        _: int,
        start: int,
        took: int,
        device: str,
        queue: int,
        depth: int,
        written: int,
        fields: Any,
        result: bytes,
        describe: Any,
    ) -> Iterator[Event]:
        meaning = describe.meaning(queue, written, fields, result)
        ns = start + took if meaning.waits else start
        yield {
            "ns": ns - self._start,
            "kind": "request",
            "device": device,
            "queue": queue,
            "what": meaning.what,
            "bytes": meaning.bytes,
            "took": 0 if meaning.waits else took,
            "depth": 0 if meaning.waits else depth,
            "status": meaning.status,
        }

    # Consoles, and the phases that show there.

    def _console(self, _: int, ns: int, console: str, line: bytes) -> Iterator[Event]:
        text = plain_text(line).rstrip()
        if not text:
            return
        if not self._console_came:
            self._console_came = True
            yield self._phase_event(ns, "console", console)
        yield {"ns": ns - self._start, "kind": "console", "console": console, "text": text}
        if not self._init_came and ("as init process" in text or "Freeing unused kernel" in text):
            self._init_came = True
            yield self._phase_event(ns, "init", text)
        elif not self._shutdown_came and "reboot: " in text:
            self._shutdown_came = True
            yield self._phase_event(ns, "shutdown", text)

    def _phase(self, _: int, ns: int, phase: str, detail: str) -> Iterator[Event]:
        if phase == "reset":  # all begins anew
            self._forget()
            self._console_came = self._init_came = self._shutdown_came = False
        elif phase == "shutdown":
            self._shutdown_came = True
        yield self._phase_event(ns, phase, detail)

    def _phase_event(self, ns: int, phase: str, detail: str) -> Event:
        return {"ns": max(0, ns - self._start), "kind": "phase", "phase": phase, "detail": detail}
