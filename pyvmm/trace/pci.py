"""PCI configuration space, by ports and by ECAM, and MSI-X tables (:mod:`pyvmm.devices.pci`,
:mod:`pyvmm.devices.msix`)."""

from __future__ import annotations

from collections.abc import Mapping

from pyvmm.devices.msix import PBA_OFFSET, MessageControl, VectorControl
from pyvmm.devices.pci import (
    CONFIG_SPACE_SIZE,
    FUNCTIONS,
    BarKind,
    CapabilityId,
    Command,
    PciFunction,
    Register,
    Status,
)
from pyvmm.trace.names import constants, counted, flags, sentence, single_bits
from pyvmm.trace.power import reset_control
from pyvmm.virtio.pci_transport import VIRTIO_VENDOR, PciCapability

CONFIG_ADDRESS, RESET_CONTROL, CONFIG_DATA = 0, 1, 4
ADDRESS_ENABLE = 1 << 31

_NAMES = constants(Register)
_STARTS = sorted(offset for offset in _NAMES if offset < Register.DEVICE_SPECIFIC)
_COMMAND = single_bits(Command)
_STATUS = single_bits(Status)
_CAPABILITIES = constants(CapabilityId)
_MESSAGE_CONTROL = single_bits(MessageControl)

# Names of the fields of capabilities, by their distance from the start: PCI 3.0, sections 6.7 and
# 6.8.2; struct virtio_pci_cap (VIRTIO 1.2, 4.1.4).
_COMMON_FIELDS = {0: "ID", 1: "next"}
_FIELDS: dict[int, dict[int, str]] = {
    CapabilityId.MSI_X: {2: "message control", 4: "table", 8: "PBA"},
    CapabilityId.VENDOR_SPECIFIC: {
        2: "cap_len",
        3: "cfg_type",
        4: "bar",
        8: "offset",
        12: "length",
        16: "data",
    },
}
_CFG_TYPE = 3
_STRUCTURES = constants(PciCapability)
_VIRTIO_VENDOR = VIRTIO_VENDOR.to_bytes(2, "little")


def address_name(bus: int, devfn: int) -> str:
    """As lspci writes it, without the domain."""
    return f"{bus:02x}:{devfn // FUNCTIONS:02x}.{devfn % FUNCTIONS}"


class ConfigSpaceDecoder:
    """Accesses to the configuration space of ``functions``, by devfn; ``names`` are those of the
    devices there."""

    def __init__(self, functions: Mapping[int, PciFunction], names: Mapping[int, str]) -> None:
        self._functions = functions
        self._names = names
        self._sizing: set[tuple[int, int]] = set()  # BARs that were last written with all ones

    def decode(
        self, bus: int, devfn: int, offset: int, size: int, value: int, write: bool
    ) -> tuple[str, str, str]:
        where = address_name(bus, devfn)
        function = self._functions.get(devfn) if bus == 0 else None
        if function is None:  # a guest looks at 256 of these, which aren't as many devices
            meaning = "" if write else "no function there"
            return "pci", f"{where} {register_name(offset)}", meaning
        device = f"pci {where}"
        if offset >= CONFIG_SPACE_SIZE:
            return device, f"config {offset:#x}", "no extended configuration space"
        if offset >= Register.DEVICE_SPECIFIC:
            return device, *_capability_register(function, offset, size, value)
        return device, register_name(offset), self._meaning(devfn, offset, size, value, write)

    def _meaning(self, devfn: int, offset: int, size: int, value: int, write: bool) -> str:
        if Register.BAR0 <= offset < Register.BAR_END:
            return self._bar(devfn, offset, size, value, write)
        match offset:
            case Register.VENDOR_ID:
                who = self._names.get(devfn, "")
                return (
                    f"{value & 0xFFFF:04x}:{value >> 16:04x} {who}".rstrip() if size == 4 else who
                )
            case Register.COMMAND:
                words = flags(_COMMAND, value & 0xFFFF)
                return f"{words}; status {flags(_STATUS, value >> 16)}" if size == 4 else words
            case Register.STATUS:
                return flags(_STATUS, value)
            case Register.REVISION_ID if size == 4:
                return f"revision {value & 0xFF}, class {value >> 8:06x}"
            case Register.CAPABILITIES_POINTER:
                return f"first capability at {value & 0xFF:#x}"
        return ""

    def _bar(self, devfn: int, offset: int, size: int, value: int, write: bool) -> str:
        key = devfn, offset
        ones = value == (1 << 8 * size) - 1
        if write:
            if ones:
                self._sizing.add(key)
                return "asks for its size"
            self._sizing.discard(key)
            return f"at {value & ~0xF:#x}" if value else ""
        if not value:
            return ""
        if key in self._sizing:
            length = -(value & ~0xF) & 0xFFFF_FFFF
            return f"{length:#x} bytes" if length else ""
        kind = "port" if value & BarKind.IO else "memory"
        return f"{kind} at {value & (~0x3 if value & BarKind.IO else ~0xF):#x}"


def register_name(offset: int) -> str:
    """The register at an offset of the header, with the distance if it is one of its bytes."""
    if Register.BAR0 <= offset < Register.BAR_END:
        number, within = divmod(offset - Register.BAR0, 4)
        return f"BAR{number}" + (f"+{within}" if within else "")
    if offset >= Register.DEVICE_SPECIFIC:
        return f"config {offset:#x}"
    start = max(each for each in _STARTS if each <= offset)
    if start == Register.BAR_END and offset >= Register.BAR_END:
        return f"config {offset:#x}"
    name = _NAMES[start]
    return name if start == offset else f"{name}+{offset - start}"


def _capability_register(
    function: PciFunction, offset: int, size: int, value: int
) -> tuple[str, str]:
    """What an access behind the header means: the capability there, and how far into it."""
    found, start = _capability_at(function, offset)
    if not found:
        return f"config {offset:#x}", ""
    within = offset - start
    if found == CapabilityId.VENDOR_SPECIFIC and function.config[0:2] == _VIRTIO_VENDOR:
        kind = function.config[start + _CFG_TYPE]
        name = f"virtio {_STRUCTURES.get(kind, f'structure {kind}')}"
    else:
        name = _CAPABILITIES.get(found, f"capability {found:#04x}")
    field = _COMMON_FIELDS.get(within) or _FIELDS.get(found, {}).get(within) or f"+{within}"
    if within == 0:
        following = f"next at {value >> 8 & 0xFF:#x}" if size > 1 and value >> 8 & 0xFF else ""
        return f"{name} {field}", sentence((_CAPABILITIES.get(value & 0xFF, ""), following))
    if found == CapabilityId.MSI_X and offset <= start + 2 < offset + size:
        control = value >> 8 * (start + 2 - offset) & 0xFFFF
        vectors = counted((control & 0x7FF) + 1, "vector")
        words = flags(_MESSAGE_CONTROL, control & ~0x7FF, "off")
        return f"{name} {field}", f"{vectors}, {words}"
    return f"{name} {field}", ""


def _capability_at(function: PciFunction, offset: int) -> tuple[int, int]:
    """The capability that ``offset`` is in: its ID and where it begins; (0, 0) for none. The list
    isn't the guest's to change, and has an end."""
    config = function.config
    found = 0, 0
    pointer, left = config[Register.CAPABILITIES_POINTER], CONFIG_SPACE_SIZE
    while pointer and left:
        if pointer <= offset and pointer >= found[1]:
            found = config[pointer], pointer
        pointer, left = config[pointer + 1], left - 1
    return found


class ConfigPortsDecoder:
    """Ports 0xCF8 to 0xCFF: the address, the data that it selects, and the reset control."""

    def __init__(self, space: ConfigSpaceDecoder) -> None:
        self._space = space
        self._address = 0

    def __call__(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        if offset >= CONFIG_DATA:
            address = self._address
            if not address & ADDRESS_ENABLE:
                return "pci", "CONFIG_DATA", "no address is set"
            at = address & 0xFC | offset - CONFIG_DATA
            bus, devfn = address >> 16 & 0xFF, address >> 8 & 0xFF
            return self._space.decode(bus, devfn, at, size, value, write)
        if offset == CONFIG_ADDRESS and size == 4:
            if write:
                self._address = value
            return "pci", "CONFIG_ADDRESS", _config_address(value)
        if offset == RESET_CONTROL and size == 1:
            return "reset control", "RST_CNT", reset_control(value, write)
        return "pci", f"port {0xCF8 + offset:#x}", ""


def _config_address(value: int) -> str:
    if not value & ADDRESS_ENABLE:
        return "off"
    where = address_name(value >> 16 & 0xFF, value >> 8 & 0xFF)
    return f"{where} {register_name(value & 0xFC)}"


class EcamDecoder:
    """Configuration space in memory, 4 KiB a function."""

    def __init__(self, space: ConfigSpaceDecoder) -> None:
        self._space = space

    def __call__(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        bus, devfn, at = offset >> 20, offset >> 12 & 0xFF, offset & 0xFFF
        return self._space.decode(bus, devfn, at, size, value, write)


_ENTRY_SIZE = 16
_ENTRY = ("address", "address high", "data", "control")


class MsixDecoder:
    """The BAR with a function's MSI-X table and pending bits."""

    def __init__(self, device: str) -> None:
        self._device = f"{device} MSI-X"

    def __call__(self, offset: int, size: int, value: int, write: bool) -> tuple[str, str, str]:
        if offset >= PBA_OFFSET:
            return self._device, "pending bits", ""
        entry, within = divmod(offset, _ENTRY_SIZE)
        register = f"vector {entry} {_ENTRY[within // 4]}"
        if within == 8 and size >= 4:
            return self._device, register, f"vector {value & 0xFF:#x} of the CPU"
        if within == 12:
            return self._device, register, "masked" if value & VectorControl.MASK else "on"
        return self._device, register, ""
