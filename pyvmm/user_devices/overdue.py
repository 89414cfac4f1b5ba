"""Calls into users' devices that don't return when the machine is to pause or end.

A loop without end in ``read`` or in a timer's method holds a thread that the machine has to wait
for. Such a call is ended by an exception in its thread (Python/C API, "Initialization,
Finalization, and Threads": PyThreadState_SetAsyncExc), and the device has failed. A call that is
blocked in the host's kernel doesn't notice that: whom the machine waits for is said then.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from types import FrameType

from pyvmm.threads import NamedThread
from pyvmm.user_devices.attachment import Attachment, Overdue, name_of

PATIENCE = 1.0
"""Seconds from one look at the calls to the next; one that is seen twice is overdue."""


class Patience:
    """No call into one of ``devices`` lasts for long while a ``with`` of this does."""

    def __init__(self, devices: Collection[Attachment], patience: float = PATIENCE) -> None:
        self._devices = devices
        self._patience = patience
        self._over = threading.Event()
        self._thread = NamedThread(target=self._run, name="pyvmm-patience", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        seen: dict[FrameType, int] = {}  # how often; the frames are kept, so that none is another
        while not self._over.wait(self._patience):
            calls = list(self._calls())
            for ident, frame, device, function in calls:
                times = seen.get(frame, 0)
                if times == 2:
                    device.log(f"waiting for {name_of(function)} to return")
                elif times:
                    _raise_in(ident)
            seen = {frame: seen.get(frame, 0) + 1 for _, frame, _, _ in calls}

    def _calls(self) -> Iterator[tuple[int, FrameType, Attachment, Callable[..., object]]]:
        """The calls under way: the thread, the frame that made the call, the device, its method."""
        for ident, innermost in sys._current_frames().items():
            frame: FrameType | None = innermost
            while frame is not None and frame.f_code is not Attachment.call.__code__:
                frame = frame.f_back
            if frame is not None and frame.f_locals["self"] in self._devices:
                yield ident, frame, frame.f_locals["self"], frame.f_locals["function"]


def _raise_in(ident: int) -> None:
    set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
    set_exception(ctypes.c_ulong(ident), ctypes.py_object(Overdue))
