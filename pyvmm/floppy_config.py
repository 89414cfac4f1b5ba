"""The floppy drives, as the user says them: ``--floppy``. They are the BIOS's alone, no virtio
devices as all other disks are, so they have an option and a record of their own."""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.device_config import MAX_BOOTINDEX
from pyvmm.errors import ConfigError
from pyvmm.options import parse_number, parse_sub_options, parse_switch

MAX_FLOPPIES = 2
"""What the CMOS and the BIOS data area have room for."""


class FloppyConfig(NamedTuple):
    """A floppy drive with the raw image at ``path`` in it; ``bootindex`` is as a disk's."""

    path: str
    readonly: bool = False
    bootindex: int | None = None

    @classmethod
    def parse(cls, text: str) -> FloppyConfig:
        """From ``PATH[,readonly=on][,bootindex=N]``."""
        path, options = parse_sub_options(
            text, "--floppy", {"readonly": "on|off", "bootindex": "N"}
        )
        if not path:
            raise ConfigError("--floppy: the path is empty")
        readonly = parse_switch(options.get("readonly", "off"), f"--floppy {path},readonly")
        bootindex = None
        if "bootindex" in options:
            bootindex = parse_number(
                options["bootindex"], 0, MAX_BOOTINDEX, f"--floppy {path},bootindex"
            )
        return cls(path, readonly, bootindex)


def parse_floppies(texts: tuple[str, ...]) -> tuple[FloppyConfig, ...]:
    """Drives A: and B:."""
    if len(texts) > MAX_FLOPPIES:
        raise ConfigError(f"--floppy: {len(texts)} drives are more than {MAX_FLOPPIES}")
    return tuple(FloppyConfig.parse(text) for text in texts)
