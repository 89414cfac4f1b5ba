"""The registers of the interval timer and of port 0x61 (:mod:`pyvmm.devices.pit`)."""

from __future__ import annotations

from pyvmm.devices.pit import PIT_HZ, Access, Mode, ReadBack, SystemControlPortB
from pyvmm.trace.names import constants, flags, sentence, single_bits

CONTROL, READ_BACK = 3, 3
COUNTERS = 3

_MODES = {value: name.lower().replace("_", " ") for value, name in constants(Mode).items()}
_ACCESSES = {Access.LSB: "low byte", Access.MSB: "high byte", Access.LSB_MSB: "low, then high byte"}
_PORT_B = single_bits(SystemControlPortB)


class _Counter:
    """How the bytes of a counter's port go together. ``high`` says for reading and for writing
    that the next is the high one of two."""

    def __init__(self) -> None:
        self.access = Access.LSB_MSB
        self.low = 0
        self.high = [False, False]
        self.status_next = False


class PitDecoder:
    """The 8254's four ports."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._counters = [_Counter() for _ in range(COUNTERS)]

    def __call__(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        if offset == CONTROL:
            return self._device, "control word", self._control(value) if write else ""
        return self._device, f"counter {offset}", self._count(offset, value, write)

    def _control(self, value: int) -> str:
        number = value >> 6
        if number == READ_BACK:
            return self._read_back(value)
        counter = self._counters[number]
        access = value >> 4 & 3
        counter.high[False] = False
        if access == Access.LATCH:
            return f"counter {number}: latch the count"
        counter.access = access
        counter.high[True] = False
        mode = value >> 1 & 7
        if mode > Mode.HARDWARE_STROBE:
            mode &= 3
        bcd = "BCD" if value & 1 else ""
        return f"counter {number}: {sentence((_MODES[mode], _ACCESSES[access], bcd))}"

    def _read_back(self, value: int) -> str:
        chosen = [number for number in range(COUNTERS) if value & 2 << number]
        status = not value & ReadBack.DONT_LATCH_STATUS
        count = not value & ReadBack.DONT_LATCH_COUNT
        for number in chosen:
            self._counters[number].status_next |= status
        what = " and ".join(["status"] * status + ["count"] * count) or "nothing"
        return f"read back {what} of {', '.join(map(str, chosen)) or 'no counter'}"

    def _count(self, number: int, value: int, write: bool) -> str:
        counter = self._counters[number]
        if not write and counter.status_next:
            counter.status_next = False
            return f"status: {_MODES[min(value >> 1 & 7, Mode.HARDWARE_STROBE)]}"
        if counter.access == Access.LSB:
            return _duration(value) if write else "low byte"
        if counter.access == Access.MSB:
            return _duration(value << 8) if write else "high byte"
        counter.high[write] = not counter.high[write]
        if counter.high[write]:
            counter.low = value
            return "low byte"
        count = value << 8 | counter.low
        return f"high byte: {_duration(count) if write else count}"


def _duration(count: int) -> str:
    count = count or 0x1_0000
    return f"{count} pulses, {PIT_HZ / count:.6g} Hz"


class PortBDecoder:
    """Port 0x61."""

    def __init__(self, device: str) -> None:
        self._device = device

    def __call__(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        return self._device, "port B", flags(_PORT_B, value)
