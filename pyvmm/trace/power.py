"""The registers of power management and of reset (:mod:`pyvmm.devices.power`)."""

from __future__ import annotations

from pyvmm.devices.power import PM_TIMER_HZ, SOFT_OFF, Pm1Control, Pm1Event, PortA, ResetBits
from pyvmm.trace.names import Bits, flags, sentence, single_bits

ENABLE_OFFSET = 2

_EVENTS = single_bits(Pm1Event)
_CONTROL = Bits(
    {bit: name for bit, name in single_bits(Pm1Control).items() if not bit & Pm1Control.SLP_TYP}
)
_RESET = single_bits(ResetBits)
_PORT_A = single_bits(PortA)


class PowerDecoder:
    """The windows of ACPI's fixed hardware, each accessible in parts: ``event``, ``control`` and
    ``timer``."""

    def __init__(self, device: str) -> None:
        self._device = device

    def event(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        value <<= 8 * offset
        status, enable = value & 0xFFFF, value >> 16
        if offset >= ENABLE_OFFSET:
            return self._device, "PM1a_EN", flags(_EVENTS, enable)
        cleared = "clears " if write and status else ""
        if offset + size <= ENABLE_OFFSET:
            return self._device, "PM1a_STS", cleared + flags(_EVENTS, status)
        both = f"{cleared}{flags(_EVENTS, status)}; enable {flags(_EVENTS, enable)}"
        return self._device, "PM1a_STS+EN", both

    def control(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        value <<= 8 * offset
        type_ = (value & Pm1Control.SLP_TYP) // (Pm1Control.SLP_TYP & -Pm1Control.SLP_TYP)
        sleep = f"SLP_TYP {type_}" if type_ else ""
        off = "power off" if type_ in SOFT_OFF and value & Pm1Control.SLP_EN and write else ""
        named = flags(_CONTROL, value & ~Pm1Control.SLP_TYP, "")
        return self._device, "PM1a_CNT", sentence((named, sleep, off)) or "none"

    def timer(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        whole = offset == 0 and size == 4
        return self._device, "PM_TMR", f"{value / PM_TIMER_HZ:.6f} s" if whole else ""


def reset_control(value: int, write: bool) -> str:
    """The meaning of RST_CNT, port 0xCF9."""
    return sentence((flags(_RESET, value), "reset" if write and value & ResetBits.RST_CPU else ""))


class PortADecoder:
    """Port 0x92."""

    def __init__(self, device: str) -> None:
        self._device = device

    def __call__(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        return self._device, "port A", flags(_PORT_A, value)
