"""Threads whose names the kernel knows too, for ``top -H``, ``ps -L`` and debuggers.

Python 3.11 keeps a thread's name to itself; prctl(2), PR_SET_NAME, is what tells the kernel.
"""

from __future__ import annotations

import threading

from pyvmm import host


class NamedThread(threading.Thread):
    """A thread of ours; its name is ``pyvmm-…``, of at most 15 bytes (the kernel cuts the rest
    off)."""

    def run(self) -> None:
        host.set_thread_name(self.name)
        super().run()
