"""The registers of the IDE channels (:mod:`pyvmm.devices.ata`)."""

from __future__ import annotations

from pyvmm.devices.ata import (
    WITH_RETRIES,
    Command,
    Control,
    DeviceBits,
    Error,
    Feature,
    Register,
    Status,
)
from pyvmm.trace.names import constants, flags, sentence, single_bits

_READ = {Register.ERROR: "error", Register.STATUS: "status"}
_WRITTEN = {Register.FEATURES: "features", Register.COMMAND: "command"}
_BOTH = {
    Register.DATA: "data",
    Register.COUNT: "count",
    Register.LOW: "LBA low",
    Register.MID: "LBA mid",
    Register.HIGH: "LBA high",
    Register.DEVICE: "device",
}
_STATUS, _ERROR, _CONTROL = single_bits(Status), single_bits(Error), single_bits(Control)
_COMMANDS, _FEATURES = constants(Command), constants(Feature)
_COMMANDS |= {opcode + 1: f"{_COMMANDS[opcode]}, no retries" for opcode in WITH_RETRIES}


class AtaDecoder:
    """The windows of a channel: ``command`` and ``control``."""

    def __init__(self, device: str) -> None:
        self._device = device

    def command(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        name = _BOTH.get(offset) or (_WRITTEN if write else _READ)[offset]
        return self._device, name, "" if size > 1 else _meaning(offset, value, write)

    def control(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        if write:
            return self._device, "device control", flags(_CONTROL, value)
        return self._device, "alternate status", flags(_STATUS, value)


def _meaning(offset: int, value: int, write: bool) -> str:
    if offset == Register.DEVICE:
        head = f"{'LBA 27:24' if value & DeviceBits.LBA else 'head'} {value & DeviceBits.HEAD}"
        return sentence((f"drive {int(bool(value & DeviceBits.DEV))}", head))
    if offset == Register.STATUS:
        return _COMMANDS.get(value, "") if write else flags(_STATUS, value)
    if offset == Register.ERROR:
        return _FEATURES.get(value, "") if write else flags(_ERROR, value)
    return ""
