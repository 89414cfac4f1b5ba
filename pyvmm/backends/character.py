"""The contract between a character device (a UART, a debug port) and the host's side of it.

Both directions have flow control, so that nothing is lost and nothing grows: a side that can't
take a character says so, and says again when it can.

    device    put(byte) -> accepted     ->   backend     (a vCPU thread; never blocks)
    device    write(data) -> accepted   ->   backend     (any thread; never blocks)
    device    output_ready()            <-   backend     (after a refused put or write)
    device    receive(data) -> accepted <-   backend     (the I/O thread)
    device    resume_input()            ->   backend     (after an incomplete receive)
    device    carrier(present)          <-   backend     (the I/O thread)

A device uses ``put`` or ``write``, whichever suits it.

A device calls its backend with its own lock held; a backend never calls a device with a lock of
its own held. That order makes a deadlock impossible.
"""

from __future__ import annotations

from typing import Protocol


class CharacterDevice(Protocol):
    """What a backend sees of the device that it serves. Any thread may call."""

    def receive(self, data: bytes | bytearray) -> int:
        """Offer input; the number of bytes taken. If not all are, the device calls
        :meth:`CharacterBackend.resume_input` when it has room again."""

    def receive_break(self) -> None:
        """The line was held in the break condition; Linux takes it for the SysRq key."""

    def output_ready(self) -> None:
        """There is room again for what :meth:`CharacterBackend.put` or
        :meth:`CharacterBackend.write` refused."""

    def carrier(self, present: bool) -> None:
        """Somebody is at the other end now, or nobody any more. Only a backend whose other end
        comes and goes tells; what is written while nobody is there is thrown away."""


class CharacterBackend(Protocol):
    """Where a device's characters go, and come from."""

    def connect(self, device: CharacterDevice) -> None:
        """Serve ``device``. The device calls this when it is made."""

    def put(self, byte: int) -> bool:
        """Take one byte of output; False if there is no room for it now, and then
        :meth:`CharacterDevice.output_ready` follows. Neither blocks nor, as a rule, enters the
        kernel."""

    def write(self, data: memoryview) -> int:
        """Take as much of ``data`` as there is room for: how many bytes. If not all,
        :meth:`CharacterDevice.output_ready` follows. Never blocks; keeps no reference."""

    def resume_input(self) -> None:
        """The device has room for more input. Doesn't call back before it returns."""


class NullBackend:
    """Output goes nowhere, input never comes."""

    def connect(self, device: CharacterDevice) -> None:
        pass

    def put(self, byte: int) -> bool:
        return True

    def write(self, data: memoryview) -> int:
        return len(data)

    def resume_input(self) -> None:
        pass
