"""``pyvmm inspect``: what a kernel image is."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pyvmm.boot import identify, payload
from pyvmm.errors import PyvmmError


@click.command()
@click.argument("image", type=click.Path(readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option(
    "--extract-vmlinux",
    "vmlinux",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Unpack the vmlinux in a bzImage into FILE instead.",
)
def inspect(image: str, as_json: bool, vmlinux: Path | None) -> None:
    """Say what a kernel image is and how it would be booted.

    Shows version, boot protocol, entry points, addresses and sizes, compression, PVH note, EFI
    stub, the entry point that `pyvmm run` would use, and what `--boot` can have it use instead. A
    file that can't be booted is named for what it is (a disk image, an initrd, a kernel for Arm,
    what is in a compressed file …), with what to do about it, and the exit status is still 0; it is
    1 if the file can't be read.

    Kernels compressed with LZ4 or Zstandard show their PVH note only where these are installed:
    pip install lz4 zstandard.

    \b
    Examples:
      pyvmm inspect /boot/vmlinuz-$(uname -r)
      pyvmm inspect bzImage --json | jq .entry_points
      pyvmm inspect bzImage --extract-vmlinux vmlinux && pyvmm run --kernel vmlinux
    """
    if vmlinux is not None:
        data = payload.extract_vmlinux(image)
        try:
            vmlinux.write_bytes(data)
        except OSError as error:
            raise PyvmmError(f"can't write {vmlinux}: {error.strerror}") from error
        return
    facts = identify.describe(image)
    click.echo(json.dumps(facts, indent=2) if as_json else identify.format_description(facts))
