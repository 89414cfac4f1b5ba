"""The host's side of the text screen (devices/text_screen.py): shown live on a terminal, or written
as a log of its lines; and its keyboard.

A timer looks at the screen thirty times a second, and may come while the guest is writing. The
adapter tells when the guest's cursor comes to the beginning of a line, and then the guest stands
still: of one that moves its cursor no line is lost, however fast it scrolls.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pyvmm.backends.screen_keys import KeyDecoder
from pyvmm.backends.screen_text import Transcript
from pyvmm.eventloop import NS_PER_SECOND, EventLoop

if TYPE_CHECKING:
    from pyvmm.backends.screen_display import Display
    from pyvmm.backends.streams import StreamBackend
    from pyvmm.devices.text_screen import Picture

LOOK_NS = NS_PER_SECOND // 30

TYPING_NS = 5_000_000
"""How soon keys that didn't fit into the keyboard are tried again, if some did."""

TYPE_AHEAD = 64
"""Keys that wait for a guest; what is typed beyond stays with whoever sends it."""

SETTING_UP_NS = NS_PER_SECOND
"""A guest that sets up the keyboard throws away what was typed before, which regularly would be the
beginning of piped input. So keys wait until it has printed something, for so long at most."""

MAX_UNWRITTEN = 1 << 16
"""Text that nobody takes. Then the screen is looked at no more until somebody does."""

LINES_END_NS = 100_000_000
"""If the cursor hasn't come to the beginning of a line for so long, the guest doesn't print, or
doesn't move the cursor."""

IN_FLUX = 3
"""For so many looks a screen that changes under one's eyes is left alone."""

ESCAPE_LOOKS = 2
"""For so many looks an ESC waits for the rest of a sequence."""


class ScreenBackend:
    """Shows the screen on ``stream``, and takes keys from there.

    With a ``display`` it is shown live, and the log goes to ``feed``; else the log is written to
    the stream, whose own listener sees it.
    """

    def __init__(
        self,
        loop: EventLoop,
        stream: StreamBackend,
        feed: Callable[[bytes], None] | None = None,
        display: Display | None = None,
    ) -> None:
        self._loop = loop
        self._stream = stream
        self._display = display
        self._transcript = Transcript(self._write if feed is None else feed)
        self._lock = threading.RLock()
        self._looks = loop.timer(self._look)
        self._typing = loop.timer(self._press_waiting)
        self._picture: Callable[[], Picture] | None = None
        self._press: Callable[[bytes], bool] = lambda keys: True
        self._decoder = KeyDecoder()
        self._escape_looks = 0
        self._keys: deque[bytes] = deque()
        self._refused = False
        self._silent_until = 0
        self._unwritten = b""
        self._shown = False
        self._line_ended_ns = -LINES_END_NS
        self._before: Picture | None = None
        self._in_flux = 0
        self._closed = False
        stream.connect(self)

    # The device's side: pyvmm.devices.text_screen.ScreenView.

    def connect(self, picture: Callable[[], Picture], press: Callable[[bytes], bool], /) -> None:
        self._picture, self._press = picture, press

    def line_ended(self) -> None:
        with self._lock:
            if self._picture is not None and self._keeps_up():
                self._line_ended_ns = self._loop.now_ns()
                self._transcript.look(self._picture(), self._line_ended_ns)

    def restarted(self) -> None:
        with self._lock:
            self._transcript.restart()

    # The stream's side: pyvmm.backends.character.CharacterDevice.

    def receive(self, data: bytes | bytearray) -> int:
        taken = 0
        with self._lock:
            if self._display is not None and self._display.has_notice and data:
                self._display.notice([])  # read; the key isn't for the guest
                return len(data)
            self._escape_looks = 0
            for byte in data:
                if len(self._keys) >= TYPE_AHEAD:
                    self._refused = True
                    break
                self._type(self._decoder.feed(byte))
                taken += 1
        self._press_waiting()
        return taken

    def receive_break(self) -> None:
        """A keyboard has none."""

    def output_ready(self) -> None:
        with self._lock:
            self._write(b"")

    def carrier(self, present: bool) -> None:
        """Whoever looks comes and goes; the screen doesn't mind."""

    # What the machine's owner wants: as of a stream.

    def start(self) -> None:
        """Begin to show."""
        self._stream.start()
        if self._picture is not None:
            with self._lock:
                if self._display is not None:
                    self._show_again()
            now = self._loop.now_ns()
            self._silent_until = now + SETTING_UP_NS
            self._looks.arm(now, LOOK_NS)

    def flush(self, timeout: float) -> None:
        """Show the screen as it is, in ``timeout`` seconds at most; the guest is at rest."""
        with self._lock:
            if self._picture is not None and not self._closed:
                self._transcript.finish(self._picture(), self._loop.now_ns())
        self._stream.flush(timeout)

    def close(self, timeout: float) -> None:
        """The same, and leave the terminal, with what was on the screen last. Idempotent."""
        with self._lock:
            if not self._closed and self._picture is not None and timeout:
                self._looks.cancel()
                self._typing.cancel()
                picture = self._picture()
                self._transcript.finish(picture, self._loop.now_ns())
                self._leave(picture)
            self._closed = True
        while self._unwritten:
            before = len(self._unwritten)
            if not self._stream.flush(timeout) or len(self._unwritten) == before:
                break
        self._stream.close(timeout)

    def send_break(self) -> None:
        """A keyboard has none."""

    @property
    def lines(self) -> list[str]:
        """The text on the screen, without the empty lines at its end."""
        lines = [] if self._picture is None else self._picture().lines
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def live(self) -> bool:
        """Whether the terminal is ours at this moment."""
        return self._shown

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has a new size. May be called by a signal handler."""
        self._loop.call(lambda: self._resize(columns, rows))

    def show_again(self) -> None:
        """Somebody else has written to the terminal. May be called by a signal handler."""
        self._loop.call(self._show_again)

    def abandon(self) -> None:
        """The process ends at once: give the terminal back. For a signal handler."""
        if self._shown:
            from pyvmm.backends.screen_display import LEAVE

            self._shown = False
            with suppress(OSError):
                os.write(1, LEAVE)

    def notice(self, text: str) -> None:
        """Show ``text`` over the screen, until a key is pressed."""
        with self._lock:
            if self._display is not None:
                lines = text.strip("\n").split("\n")
                self._display.notice([*(f" {line}" for line in lines), " Any key goes on."])

    def press(self, keys: bytes) -> None:
        """Press keys, in scan code set 2, behind those that were typed."""
        with self._lock:
            self._type(keys)
        self._press_waiting()

    # Showing.

    def _look(self) -> None:
        with self._lock:
            picture = self._picture
            if picture is None or self._closed:
                return
            if self._keeps_up():
                now = picture()
                if self._stands_still(now, picture):
                    self._transcript.look(now, self._loop.now_ns())
                if self._display is not None and not self._unwritten:
                    self._write(self._display.frame(now))
            if self._decoder.waits:
                self._escape_looks += 1
                if self._escape_looks > ESCAPE_LOOKS:
                    self._type(self._decoder.flush())
        self._press_waiting()

    def _stands_still(self, now: Picture, picture: Callable[[], Picture]) -> bool:
        """Whether ``now`` is worth logging. A guest that moves its cursor says itself when; of
        others a screen that is just being scrolled is no good."""
        before, self._before = self._before, now
        if now == before:
            return True
        if self._loop.now_ns() - self._line_ended_ns < LINES_END_NS:
            return False
        self._in_flux = self._in_flux + 1 if picture() != now else 0
        return self._in_flux % (IN_FLUX + 1) == 0

    def _keeps_up(self) -> bool:
        if self._unwritten:
            self._write(b"")
        return len(self._unwritten) < MAX_UNWRITTEN and not self._closed

    def _write(self, data: bytes) -> None:
        """As much as the stream takes; the rest when there is room."""
        self._unwritten += data
        if self._unwritten:
            taken = self._stream.write(memoryview(self._unwritten))
            self._unwritten = self._unwritten[taken:]

    def _resize(self, columns: int, rows: int) -> None:
        with self._lock:
            if self._display is not None and self._shown:
                self._display.resize(columns, rows)

    def _show_again(self) -> None:
        from pyvmm.backends.screen_display import ENTER

        with self._lock:
            if self._display is not None and not self._closed:
                self._shown = True
                self._display.forget()
                self._write(ENTER)

    def _leave(self, picture: Picture) -> None:
        if self._display is None or not self._shown:
            return
        from pyvmm.backends.screen_display import LEAVE

        self._shown = False
        text = "".join(f"{line}\n" for line in picture.lines).strip("\n")
        self._write(LEAVE + (f"{text}\n".encode() if text else b""))

    # Typing.

    def _type(self, keys: bytes) -> None:
        if keys and len(self._keys) < TYPE_AHEAD:
            self._keys.append(keys)

    def _press_waiting(self) -> None:
        """Give the guest as many keys as the keyboard takes."""
        resume = False
        with self._lock:
            if not self._transcript.begun and self._loop.now_ns() < self._silent_until:
                return  # the next look asks again
            before = len(self._keys)
            while self._keys and self._press(self._keys[0]):
                self._keys.popleft()
            if self._keys and len(self._keys) < before:
                self._typing.arm(self._loop.now_ns() + TYPING_NS)
            if self._refused and len(self._keys) < TYPE_AHEAD:
                self._refused, resume = False, True
        if resume:
            self._stream.resume_input()
