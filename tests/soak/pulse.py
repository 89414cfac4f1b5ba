"""Whether a machine stands still, or only its network: the guest prints on its serial console all
the time, and we watch when it does."""

from __future__ import annotations

import threading
import time
from pathlib import Path

BEAT = "setsid sh -c 'while sleep 0.2; do echo beat; done >/dev/ttyS0' >/dev/null 2>&1 </dev/null &"
"""What starts it in the guest."""

INTERVAL_SECONDS = 0.1
NOTICED_SECONDS = 1.0


class Pulse(threading.Thread):
    """Watches the file that the console is written to."""

    def __init__(self, console: Path) -> None:
        super().__init__(daemon=True)
        self._console = console
        self._lock = threading.Lock()
        self._guest_gaps: list[float] = []
        self._own_gaps: list[float] = []

    def run(self) -> None:
        size, grown_at, woken_at = 0, time.monotonic(), time.monotonic()
        while True:
            time.sleep(INTERVAL_SECONDS)
            now = time.monotonic()
            try:
                found = self._console.stat().st_size
            except FileNotFoundError:  # the machine is off, and its console gone
                return
            with self._lock:
                if now - woken_at > NOTICED_SECONDS:
                    self._own_gaps.append(now - woken_at)
                woken_at = now
                if found != size:
                    if now - grown_at > NOTICED_SECONDS:
                        self._guest_gaps.append(now - grown_at)
                    size, grown_at = found, now

    def gaps(self) -> str:
        """How often and how long the guest, and this process, did nothing, since the last call."""
        with self._lock:
            guest, own = self._guest_gaps, self._own_gaps
            self._guest_gaps, self._own_gaps = [], []
        parts = []
        for name, seconds in (("guest", guest), ("host", own)):
            if seconds:
                parts.append(f"{name} still {len(seconds)} times, up to {max(seconds):.1f} s")
        return f" ({'; '.join(parts)})" if parts else ""
