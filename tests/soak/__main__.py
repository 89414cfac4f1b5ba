"""Debian under load, in every shape of the machine: `make soak`, or `python -m tests.soak`.

Each configuration, a transport with a number of vCPUs, gets a trial (tests/soak/trial.py) of its
own, where KVM runs Linux: here, or else in a lab of its own. In the lab a trial that fails is tried
again, because the lab's emulated CPU isn't faultless (tests/linux/conftest.py); all that failed is
shown.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time

from guests import artefacts, debian, debian_disk
from tests.lab.lab import host_runs_linux
from tests.soak.trial import FULL, REDUCED, Amounts

LAB = artefacts.PROJECT / "tests/lab/lab.py"
LAB_OPTIONS = ("--memory", "6G", "--attempts", "2")
LAB_ATTEMPTS = 3
TRANSPORTS, CPUS = ("pci", "mmio"), (1, 2, 4)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Use Debian in PyVMM hard, over the network."
    )
    parser.add_argument("--transport", nargs="*", choices=TRANSPORTS, default=TRANSPORTS)
    parser.add_argument("--cpus", nargs="*", type=int, default=CPUS)
    parser.add_argument("--full", action="store_true", help="minutes, 200 MiB")
    for name in Amounts._fields:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    return parser.parse_args(arguments)


def amounts(options: argparse.Namespace) -> Amounts:
    """The full or the reduced ones, but for what was named."""
    given = {name: getattr(options, name) for name in Amounts._fields}
    named = {name: value for name, value in given.items() if value is not None}
    return (FULL if options.full else REDUCED)._replace(**named)


def run(transport: str, cpus: int, how_much: Amounts) -> bool:
    """One configuration's trial."""
    trial = [sys.executable, "-m", "tests.soak.trial"]
    trial += ["--transport", transport, "--cpus", str(cpus)]
    for name, value in how_much._asdict().items():
        trial += [f"--{name.replace('_', '-')}", str(value)]
    attempts = 1 if host_runs_linux() else LAB_ATTEMPTS
    for attempt in range(attempts):
        print(
            f"{transport}, {cpus} vCPUs{f', attempt {attempt + 1}' if attempt else ''}:", flush=True
        )
        start = time.monotonic()
        status = subprocess.run([sys.executable, str(LAB), *LAB_OPTIONS, "--", *trial]).returncode
        print(
            f"  {'passed' if not status else 'failed'} in {time.monotonic() - start:.0f} s",
            flush=True,
        )
        if not status:
            return True
    return False


def main() -> int:
    """All that was asked for."""
    options = parse()
    if os.geteuid():
        print("soak: only root may make tap interfaces", file=sys.stderr)
        return 1
    try:
        debian.ensure("iperf3", "ssh")
        debian_disk.build()
    except debian.PackageError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    how_much = amounts(options)
    print(f"soak: {how_much}", flush=True)
    shapes = list(itertools.product(options.transport, options.cpus))
    failed = [shape for shape in shapes if not run(*shape, how_much)]
    print(f"soak: {len(shapes) - len(failed)} of {len(shapes)} passed")
    for transport, cpus in failed:
        print(f"soak: FAILED: {transport}, {cpus} vCPUs")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
