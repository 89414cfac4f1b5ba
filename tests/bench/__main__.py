"""All benchmarks: `python -m tests.bench`, in the checkout.

Each runs in a process of its own, because a process's peak memory is never less than that of the
one it was forked from.
"""

from __future__ import annotations

import os
import subprocess
import sys

BENCHMARKS = ("exits", "startup")


def main() -> None:
    """Run them, if this host lets us."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        sys.exit(f"bench: this host's /dev/kvm can't be used: {error.strerror}")
    for name in BENCHMARKS:
        subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=True)
        print()


if __name__ == "__main__":
    main()
