"""Makes traces, for the tests of what reads them: a boot that never was, but might have been."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MS = 1_000_000
US = 1_000

HEADER: dict[str, Any] = {
    "trace": "pyvmm",
    "version": 1,
    "started": "2026-11-21T16:00:00.123+00:00",
    "kernel": "/boot/vmlinuz-6.1.0-cloud",
    "command_line": "console=ttyS0 reboot=k panic=-1 root=/dev/vda rw",
    "cpus": 2,
    "memory": 512 << 20,
    "host": "hardware KVM",
}

REGISTERS = (
    # device, reason, register, access, address, weight, where in the guest
    ("serial COM1", "IO", "THR", "write", 0x3F8, 50, "io_serial_out+0x13"),
    ("serial COM1", "IO", "LSR", "read", 0x3FD, 40, "io_serial_in+0x15"),
    ("serial COM1", "IO", "IER", "write", 0x3F9, 4, "io_serial_out+0x13"),
    ("pci 00:01.0", "IO", "CONFIG_DATA", "read", 0xCFC, 12, "pci_conf1_read+0xa4"),
    ("pci 00:01.0", "IO", "CONFIG_ADDRESS", "write", 0xCF8, 12, "pci_conf1_read+0x8e"),
    ("virtio-blk vda", "MMIO", "device_status", "write", 0xC0000014, 2, "vp_set_status+0x1b"),
    ("virtio-net eth0", "MMIO", "isr", "read", 0xC0001000, 3, "vp_interrupt+0x2c"),
    ("pit", "IO", "counter 0", "read", 0x40, 8, "pit_hpet_ptimer_calibrate_cpu+0x91"),
    ("cmos", "IO", "data", "read", 0x71, 3, "rtc_cmos_read+0x1f"),
    ("i8042", "IO", "status", "read", 0x64, 3, "i8042_wait_write+0x24"),
    ("", "IO", "", "read", 0x2E, 2, "inb+0x3"),
    ("", "HLT", "", "", 0, 5, "native_safe_halt+0xb"),
)

PHASES = (
    (0.0, "setup", "2 vCPUs, 512 MiB"),
    (0.012, "entry", "64-bit entry point"),
    (0.09, "console", "Linux version 6.1.0-cloud"),
    (0.42, "init", "Run /init as init process"),
    (0.93, "shutdown", "reboot: Power down"),
    (1.0, "end", "powered off"),
)


def boot(exits: int = 2000, duration: int = 4_000 * MS, seed: int = 1) -> Iterator[dict[str, Any]]:
    """The events of a boot, without the header."""
    chance = random.Random(seed)
    weights = [row[5] for row in REGISTERS]
    phases = [(int(share * duration), phase, detail) for share, phase, detail in PHASES]
    for number in range(exits):
        ns = 1 + int(duration * (0.012 + 0.98 * number / exits))
        while phases and phases[0][0] <= ns:
            at, phase, detail = phases.pop(0)
            yield {"ns": at, "kind": "phase", "phase": phase, "detail": detail}
        yield _exit(chance, ns, chance.choices(REGISTERS, weights)[0])
        if number % 20 == 0 and not 0.5 < number / exits < 0.7:
            text = f"[{ns / 1e9:12.6f}] driver {number}: probing the bus, found {number % 7}"
            yield {"ns": ns + 5, "kind": "console", "console": "COM1", "text": text}
        if number % 9 == 0:
            yield from _io(chance, ns)
        if number % 50 == 0:
            touched = (20 << 20) + (90 << 20) * number // exits
            yield {"ns": ns, "kind": "memory", "resident": touched}
    for at, phase, detail in phases:
        yield {"ns": at, "kind": "phase", "phase": phase, "detail": detail}
    yield {"ns": duration, "kind": "end", "reason": "powered off", "detail": "", "status": 0,
           "dropped": 0}  # fmt: skip


def _exit(chance: random.Random, ns: int, row: tuple[Any, ...]) -> dict[str, Any]:
    device, reason, register, access, address, _, symbol = row
    return {
        "ns": ns,
        "kind": "exit",
        "vcpu": chance.choice((0, 0, 0, 1)),
        "rip": 0xFFFFFFFF81000000 + (hash_of(symbol) & 0xFFFFF),
        "symbol": symbol,
        "reason": reason,
        "device": device,
        "register": register,
        "access": access,
        "address": address,
        "size": 1,
        "value": chance.randrange(256),
        "meaning": "",
        "took": int(chance.lognormvariate(9.4, 0.5)),
    }


def _io(chance: random.Random, ns: int) -> Iterator[dict[str, Any]]:
    for device, queue, size in (("virtio-blk vda", 0, 4096), ("virtio-net eth0", 1, 1500)):
        yield {"ns": ns, "kind": "doorbell", "device": device, "queue": queue}
        yield {
            "ns": ns,
            "kind": "request",
            "device": device,
            "queue": queue,
            "what": "read 8 sectors at 2048",
            "bytes": size,
            "took": int(chance.lognormvariate(11.5, 0.9)),
            "depth": chance.randrange(1, 9),
            "status": "ok",
        }
        yield {"ns": ns + 90 * US, "kind": "interrupt", "device": device, "msi": queue + 1,
               "vector": 0x25}  # fmt: skip


def hash_of(text: str) -> int:
    """A number for a text, the same each time."""
    return int.from_bytes(text.encode()[:8].ljust(8), "big") % 0xFFFFB


def write(path: Path, events: Iterator[dict[str, Any]], **header: Any) -> Path:
    """A trace file of these events."""
    with path.open("w") as file:
        for event in ({**HEADER, **header}, *events):
            file.write(json.dumps(event, separators=(",", ":")) + "\n")
    return path
