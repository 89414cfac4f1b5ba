"""A machine's consoles, text screen and named ports: opened where the configuration says that each
goes, before the machine is built; closed after its end.

``stdio`` stands for whoever runs the machine: the terminal of ``pyvmm run``, or a program.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pyvmm.backends.character import CharacterBackend
from pyvmm.backends.streams import StreamBackend, open_file, open_pty
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError
from pyvmm.eventloop import EventLoop
from pyvmm.peripherals import ConsoleBackends

if TYPE_CHECKING:
    from pyvmm.backends.screen import ScreenBackend
    from pyvmm.backends.unix_socket import SocketBackend

OnOutput = Callable[[bytes], None]
"""Sees what a guest writes, on the thread that writes it to the host."""


class Consoles:
    """The consoles of ``config`` on ``loop``.

    ``watch(name)`` is asked once for each console, COM1, hvc0 or screen, for what sees its output;
    ``open_stdio`` makes the backend for ``stdio``; ``terminal`` is the size, in columns and rows,
    of the terminal that this is, if the text screen can be shown on it; ``say`` prints what the
    user must know, such as a pseudo-terminal's name. Raises :class:`~pyvmm.errors.PyvmmError` if a
    place can't be opened.

    ``serial``, :meth:`virtio` and ``screen`` are what the machine is built with.
    """

    def __init__(
        self,
        config: MachineConfig,
        loop: EventLoop,
        *,
        watch: Callable[[str], OnOutput],
        open_stdio: Callable[[OnOutput | None], StreamBackend],
        say: Callable[[str], None],
        terminal: tuple[int, int] | None = None,
    ) -> None:
        self._config = config
        self._loop = loop
        self._open_stdio = open_stdio
        self._say = say
        self._streams: list[StreamBackend | SocketBackend | ScreenBackend] = []
        self.screen: ScreenBackend | None = None
        self._console: CharacterBackend | None = None
        self._ports: list[CharacterBackend] = []
        self.serial: list[CharacterBackend] = []
        try:
            for number, place in enumerate(config.serial, 1):
                self.serial.append(self._open(place, "--serial", watch(f"COM{number}")))
            if config.console is not None:
                if config.console.place:
                    console = config.console.place
                    self._console = self._open(console, "--console", watch("hvc0"))
                for port in config.console.ports:
                    self._ports.append(self._open(port.place, f"--port {port.name}"))
            if config.screen is not None:
                self.screen = self._open_screen(config.screen, watch("screen"), terminal)
        except BaseException:
            self.close(0)
            raise

    def virtio(self, size: tuple[int, int] | None = None) -> ConsoleBackends:
        """The virtio console's backends; ``size`` is its terminal's, columns and rows."""
        return ConsoleBackends(self._console, self._ports, size)

    def start(self) -> None:
        """Begin to write and to read."""
        for stream in self._streams:
            stream.start()

    def flush(self, timeout: float) -> None:
        """Wait until all output has been written and seen, ``timeout`` seconds at most for each."""
        for stream in self._streams:
            stream.flush(timeout)

    def close(self, timeout: float) -> None:
        """Flush, and close all. Idempotent."""
        for stream in self._streams:
            stream.close(timeout)

    def send_break(self) -> None:
        """Inject a break condition into each one's input."""
        for stream in self._streams:
            stream.send_break()

    def _open(self, place: str, option: str, on_output: OnOutput | None = None) -> CharacterBackend:
        """The backend that ``option`` asks for by ``place``."""
        kind, _, path = place.partition(":")
        stream: StreamBackend | SocketBackend
        if kind == "null":
            stream = StreamBackend(self._loop, None, None, on_output=on_output)
        elif kind == "stdio":
            stream = self._open_stdio(on_output)
        elif kind == "pty":
            stream = open_pty(
                self._loop, lambda name: self._announce(option, name), on_output=on_output
            )
        elif kind == "file":
            stream = self._open_file(path, option, on_output)
        else:
            from pyvmm.backends.unix_socket import SocketBackend, UnixListener  # rarely wanted

            listener = UnixListener(path, option)
            stream = SocketBackend(self._loop, self._loop, listener, on_output=on_output)
        self._streams.append(stream)
        return stream

    def _open_screen(
        self, place: str, on_output: OnOutput, terminal: tuple[int, int] | None
    ) -> ScreenBackend:
        from pyvmm.backends.screen import ScreenBackend  # few machines have one

        live = place == "stdio" and terminal is not None
        stream = self._open(place, "--screen", None if live else on_output)
        assert isinstance(stream, StreamBackend)
        self._streams.remove(stream)
        if live and terminal is not None:
            from pyvmm.backends.screen_display import Display

            screen = ScreenBackend(self._loop, stream, on_output, Display(*terminal))
        else:
            screen = ScreenBackend(self._loop, stream)
        self._streams.append(screen)
        return screen

    def _open_file(self, path: str, option: str, on_output: OnOutput | None) -> StreamBackend:
        refuse_to_overwrite(self._config, path, option)

        def lost(error: OSError) -> None:
            self._say(f"the console's output to {path} is lost: {error.strerror}")

        return open_file(self._loop, path, on_output=on_output, on_lost=lost)

    def _announce(self, option: str, name: str) -> None:
        what = "a serial port" if option == "--serial" else f"the {option.removeprefix('--')}"
        self._say(f"{what} is at {name}")


def refuse_to_overwrite(config: MachineConfig, path: str, option: str) -> None:
    """ConfigError if the file at ``path``, which ``option`` would write, is one of the guest's."""
    for image in config.images:
        with suppress(OSError):
            if os.path.samefile(path, image):
                raise ConfigError(f"{option}: {path} is an image that the guest needs")
