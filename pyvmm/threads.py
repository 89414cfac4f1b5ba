"""Threads as the kernel sees them: their names, and the CPUs that they run on.

Python 3.11 keeps a thread's name to itself; prctl(2), PR_SET_NAME, tells it to the kernel, for
``top -H``, ``ps -L`` and debuggers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection

from pyvmm import host


class NamedThread(threading.Thread):
    """A thread of ours; its name is ``pyvmm-…``, of at most 15 bytes (the kernel cuts the rest
    off)."""

    def run(self) -> None:
        host.set_thread_name(self.name)
        super().run()


def usable_cpus(wanted: Collection[int]) -> set[int]:
    """Those of ``wanted`` that a thread of ours can run on: online, and allowed by its cpuset. The
    kernel alone knows, so it is tried, on the calling thread."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, wanted)
        return os.sched_getaffinity(0)
    except OSError:
        return set()
    finally:
        os.sched_setaffinity(0, before)
