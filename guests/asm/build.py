"""Small guests of our own, for the tests and benchmarks that need no Linux.

``python3 -m guests.asm.build`` makes them all in ``build/guests/`` with the C compiler, and prints
where. Each talks on COM1: a line ``ok: NAME`` for what works, ``FAIL: NAME …`` for what doesn't; at
the end it powers off by ACPI.

They are in assembly where a mode or an instruction is the matter, and in C otherwise. Where KVM is
a software one, it interprets a guest's kernel and knows but the common instructions, so: no SSE
(the flag -mgeneral-regs-only), no ``int``, no ``syscall`` outside real mode.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from guests import artefacts

SOURCES = artefacts.PROJECT / "guests/asm"
TARGET = artefacts.BUILD / "guests"

COMPILER = """
    gcc -O2 -std=gnu17 -masm=intel -ffreestanding -mgeneral-regs-only -fno-pic -fno-stack-protector
    -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -fcf-protection=none
    -Wall -Wextra -Werror
    -static -no-pie -nostdlib -Wl,--build-id=none -Wl,-z,noseparate-code
""".split()


@dataclass(frozen=True)
class Kind:
    """How a guest is made: flags, and the sources that it shares with others of its kind."""

    flags: str
    sources: str = ""


FLAT = Kind("-m64 -mno-red-zone -Wl,-T,flat.ld -Wl,--oformat=binary")
"""A flat binary, for --entry real."""

LONG = Kind(
    "-m64 -mno-red-zone -Wl,-Ttext-segment=0x100000",
    "long.S console.c interrupts.c boot.c pci.c",
)
"""An ELF64 file, entered in long mode."""

PVH = Kind("-m32 -Wl,-Ttext-segment=0x100000")
"""An ELF32 file with a PVH note, entered in protected mode."""

PVH_64 = Kind("-m64 -DPVH -Wl,-Ttext-segment=0x100000")
"""An ELF64 file with a PVH note, which every VMM can start; it goes to ring 3 by itself."""

MULTIBOOT = Kind(
    "-m32 -Wl,-T,multiboot.ld,--no-warn-rwx-segments", "multiboot.S multiboot.c console.c"
)
"""An ELF32 file with a Multiboot header."""

MULTIBOOT_2 = Kind(f"-DMULTIBOOT2 {MULTIBOOT.flags}", MULTIBOOT.sources)

MULTIBOOT_FLAT = Kind(f"-DAOUT_KLUDGE {MULTIBOOT.flags} -Wl,--oformat=binary", MULTIBOOT.sources)
"""No ELF file at all: the header says where it goes."""

GUESTS = {
    "real": (FLAT, "real.S"),
    "pvh": (PVH, "pvh.S pvh.c console.c interrupts.c"),
    "multiboot": (MULTIBOOT, ""),
    "multiboot2": (MULTIBOOT_2, ""),
    "multiboot_flat": (MULTIBOOT_FLAT, ""),
    "enumerate": (LONG, "enumerate.c"),
    "apic": (LONG, "apic.c"),
    "blk": (LONG, "blk.c blk_pci.c blk_mmio.c"),
    "ide": (LONG, "ide.c"),
    "net": (LONG, "net.c virtio.c"),
    "smp": (LONG, "smp.c trampoline.S"),
    "endings": (LONG, "endings.c"),
    "reboots": (LONG, "reboots.c trampoline.S"),
    "hostile": (LONG, "hostile.c"),
    "hostile_virtio": (LONG, "hostile_virtio.c virtio.c"),
    "sectors": (LONG, "sectors.c virtio.c"),
    "thermometer": (LONG, "thermometer.c"),
    "stopwatch": (LONG, "stopwatch.c"),
    "checksum": (LONG, "checksum.c"),
    "mirror": (LONG, "mirror.c virtio.c"),
    "ring3": (FLAT, "modes.S ring3.c console.c interrupts.c"),
    "exits": (FLAT, "modes.S exits.S"),
    "bios": (FLAT, "bios.S"),
    "at_once": (PVH, "at_once.S"),
    "bench": (PVH_64, "modes.S bench.c bench_disk.c bench_net.c virtio.c pci.c boot.c console.c"),
}


def build() -> Path:
    """Make all guests unless they are fresh; the directory that they are in."""
    inputs = artefacts.digest(path for path in SOURCES.iterdir() if path.is_file())
    with artefacts.lock():
        if not artefacts.is_fresh(TARGET, inputs):
            with artefacts.making(TARGET, inputs) as unfinished:
                unfinished.mkdir()
                for name, (kind, sources) in GUESTS.items():
                    _compile(unfinished / name, kind, sources)
    return TARGET


def _compile(target: Path, kind: Kind, sources: str) -> None:
    flags, files = kind.flags.split(), f"{kind.sources} {sources}".split()
    subprocess.run([*COMPILER, *flags, *files, "-o", target], cwd=SOURCES, check=True)


def main() -> None:
    """Build the guests."""
    try:
        print(build())
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"guests: {error}")


if __name__ == "__main__":
    main()
