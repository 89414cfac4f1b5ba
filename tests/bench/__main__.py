"""Measure PyVMM against others: `python -m tests.bench [NAME…]`, in the checkout.

One table of ratios. Every line of it comes from turns: each VMM once a round, so that what else
the host does hits all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from guests.debian import PackageError
from tests.bench import boot, exits, footprint, guest, linux, net, startup, trace
from tests.bench.table import Row, render, to_json
from tests.bench.vmm import BenchError

BENCHMARKS = {
    "loop": exits.loop,
    "exits": guest.exits,
    "trace": trace.trace,
    "start": startup.startup,
    "disk": guest.disk,
    "net": net.net,
    "footprint": footprint.footprint,
    "boot": boot.boot,
    "linux": linux.linux,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure PyVMM against other VMMs."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--rounds", type=int, help="how often each VMM has its turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there too")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Measure what was asked for, or all, if this host lets us."""
    options = parse()
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        sys.exit(f"bench: this host's /dev/kvm can't be used: {error.strerror}")
    rows: list[Row] = []
    for name in options.names or BENCHMARKS:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        arguments = {} if options.rounds is None else {"rounds": options.rounds}
        try:
            rows += BENCHMARKS[name](**arguments)
        except (BenchError, PackageError) as error:
            sys.exit(f"bench: {name}: {error}")
    print(render(rows))
    if options.json:
        options.json.write_text(json.dumps(to_json(rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
