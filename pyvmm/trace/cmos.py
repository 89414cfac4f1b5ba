"""The real-time clock's registers and the CMOS RAM (:mod:`pyvmm.devices.cmos`)."""

from __future__ import annotations

from pyvmm.devices.cmos import (
    Equipment,
    Register,
    RegisterA,
    RegisterB,
    RegisterC,
    RegisterD,
)
from pyvmm.trace.names import constants, flags, sentence, single_bits

DATA = 1
INDEX_MASK, NMI_DISABLED = 0x7F, 0x80
_CLOCK_END = Register.A

_NAMES = constants(Register)
_FLAGS = {
    Register.B: single_bits(RegisterB),
    Register.C: single_bits(RegisterC),
    Register.D: single_bits(RegisterD),
    Register.EQUIPMENT: single_bits(Equipment),
}


class CmosDecoder:
    """The index port and the data port. What data mean depends on the index."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._index = 0
        self._binary = False

    def __call__(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        if offset != DATA:
            if write:
                self._index = value & INDEX_MASK
            nmi = "NMI masked" if value & NMI_DISABLED else ""
            return self._device, "index", sentence((_name(value & INDEX_MASK), nmi))
        return self._device, _name(self._index), self._meaning(value)

    def _meaning(self, value: int) -> str:
        index = self._index
        if index == Register.B:
            self._binary = bool(value & RegisterB.DM)
        if index in _FLAGS:
            return flags(_FLAGS[index], value)
        if index == Register.A:
            return sentence(
                (
                    "update in progress" if value & RegisterA.UIP else "",
                    f"divider {(value & RegisterA.DV) >> 4}",
                    f"rate {value & RegisterA.RS}",
                )
            )
        if index < _CLOCK_END or index == Register.CENTURY:
            return str(value) if self._binary else f"{value:02x} in BCD"
        return ""


def _name(index: int) -> str:
    name = _NAMES.get(index)
    if name is None:
        return f"RAM {index:#04x}"
    return f"register {name}" if len(name) == 1 else name
