"""Flat binaries: bytes with no header, copied to an address and entered at their first.

There is no document; boot sectors (0x7C00, real mode) are the model. Meant for guests of our own.
In real mode CS is zero and SP lies just below the code; nothing else is in memory. In the other
modes RSP is the boot stack's.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.boot.entry import EntryState
from pyvmm.boot.image import Image
from pyvmm.errors import ConfigError, ImageError
from pyvmm.memory import MIB, GuestMemory

BOOT_SECTOR = 0x7C00
REAL_MODE_REACH = 0x1_0000
"""What CS = 0 can address."""


def load(
    image: Image, memory: GuestMemory, *, mode: str = "real", address: int | None = None
) -> EntryState:
    """Copy ``image`` to ``address`` (by default 0x7C00 in real mode, 1 MiB otherwise) and enter it
    in ``mode``: "real", "protected" or "long"."""
    if mode not in ("real", "protected", "long"):
        raise ConfigError(f"a flat binary can't be entered in mode {mode!r}")
    if address is None:
        address = BOOT_SECTOR if mode == "real" else layout.HIGH_RAM
    if not memory.contains(address, image.size):
        raise ImageError(
            f"{image.name} ({image.size} bytes) does not fit in RAM at {address:#x}; the machine "
            f"has {memory.size // MIB} MiB"
        )
    if mode == "real":
        if not 0 <= address < REAL_MODE_REACH:
            raise ConfigError(f"real-mode code can't start at {address:#x}, above 64 KiB")
        image.read_into(memory.view(address, image.size), 0)
        return EntryState.real_mode(0, address, rsp=address & ~1)
    if address < layout.HIGH_RAM:
        raise ConfigError(f"a flat {mode}-mode binary can't start at {address:#x}, below 1 MiB")
    image.read_into(memory.view(address, image.size), 0)
    enter = EntryState.long_mode if mode == "long" else EntryState.protected_mode
    return enter(memory, address, rsp=layout.BOOT_STACK_TOP)
