"""What a request on a virtqueue asks for, by device type.

Virtual I/O Device (VIRTIO) Version 1.2, sections 5.1 to 5.5 and 5.10. The names of requests and of
commands are those in the device types' own modules, which are imported when there is such a device.

What is needed of a request's buffers is copied on the device's thread when it takes them, and when
it hands them back; everything else is done on the writer's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pyvmm.trace.names import constants, counted
from pyvmm.virtio.buffers import gather
from pyvmm.virtio.device import DeviceId

if TYPE_CHECKING:
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.queue import Chain

SECTOR_SIZE = 512


class Sizes(NamedTuple):
    """A request's buffers: what the device may read, what it may write, and what it has written."""

    readable: int
    writable: int
    written: int


class Meaning(NamedTuple):
    """A request as a person reads it. ``waits`` says that the buffer was given for something to
    come, such as a packet: how long it lay there says nothing of the device."""

    what: str
    bytes: int
    status: str = "ok"
    waits: bool = False


class Describe:
    """A device type whose requests are nothing but so many bytes."""

    HEADER = 0
    """How many bytes are kept of what the device reads, and of what it has written."""

    def popped(self, chain: Chain) -> tuple[Any, list[memoryview]]:
        """The device takes a chain: what to remember of it, and which views :meth:`pushed` wants to
        see again."""
        header = gather(chain.readable, self.HEADER) if self.HEADER else b""
        fields = header, chain.readable_bytes, chain.writable_bytes
        return fields, chain.writable[:] if self.HEADER else []

    def pushed(self, views: list[memoryview]) -> bytes:
        """The device hands it back: what to remember now."""
        return gather(views, self.HEADER) if views else b""

    def meaning(self, index: int, written: int, fields: Any, result: bytes) -> Meaning:
        """Of a request on queue ``index``. ``fields`` is None if nothing was noted but its end."""
        header, readable, writable = (b"", 0, 0) if fields is None else fields
        return self.describe(index, header, result, Sizes(readable, writable, written))

    def describe(self, index: int, header: bytes, result: bytes, sizes: Sizes) -> Meaning:
        """The same for who cares about the beginnings of the buffers alone."""
        if sizes.readable and not sizes.writable:
            return Meaning(f"{sizes.readable} bytes from the guest", sizes.readable)
        return Meaning(f"{sizes.written} bytes to the guest", sizes.written)


class DescribeBlock(Describe):
    """virtio-blk (5.2.6)."""

    HEADER = 32  # struct virtio_blk_req, and the first range of a discard

    def __init__(self) -> None:
        from pyvmm.virtio import blk

        self._verbs = {
            blk.VIRTIO_BLK_T_IN: "read",
            blk.VIRTIO_BLK_T_OUT: "write",
            blk.VIRTIO_BLK_T_FLUSH: "flush",
            blk.VIRTIO_BLK_T_GET_ID: "get the serial number",
            blk.VIRTIO_BLK_T_DISCARD: "discard",
            blk.VIRTIO_BLK_T_WRITE_ZEROES: "write zeroes",
        }
        self._moving = {blk.VIRTIO_BLK_T_IN, blk.VIRTIO_BLK_T_OUT}
        self._ranges = {blk.VIRTIO_BLK_T_DISCARD, blk.VIRTIO_BLK_T_WRITE_ZEROES}
        self._statuses = {
            blk.VIRTIO_BLK_S_OK: "ok",
            blk.VIRTIO_BLK_S_IOERR: "I/O error",
            blk.VIRTIO_BLK_S_UNSUPP: "unsupported",
        }

    def popped(self, chain: Chain) -> tuple[Any, list[memoryview]]:
        fields, _ = super().popped(chain)
        return fields, [chain.writable[-1][-1:]] if chain.writable else []

    def describe(self, index: int, header: bytes, result: bytes, sizes: Sizes) -> Meaning:
        if len(header) < 16 or not result:
            return Meaning("a request that is cut short", 0, "?")
        kind, sector = struct.unpack_from("<I4xQ", header)
        verb = self._verbs.get(kind, f"request type {kind}")
        status = self._statuses.get(result[0], f"status {result[0]}")
        if kind in self._moving:
            size = sizes.writable - 1 if sizes.readable <= 16 else sizes.readable - 16
            return Meaning(
                f"{verb} {counted(size // SECTOR_SIZE, 'sector')} at {sector}", size, status
            )
        if kind in self._ranges and len(header) == self.HEADER:
            sector, sectors = struct.unpack_from("<QI", header, 16)
            more = (sizes.readable - 16) // 16 - 1
            others = f" and {more} more" if more else ""
            return Meaning(f"{verb} {counted(sectors, 'sector')} at {sector}{others}", 0, status)
        return Meaning(verb, 0, status)


class DescribeNet(Describe):
    """virtio-net (5.1.6). Which queue it is shows in what the chain offers: a command has room for
    an answer, a packet is either read or written."""

    def __init__(self) -> None:
        from pyvmm.virtio import net

        self._header_size = net.HEADER_SIZE
        self._commands = constants(net.Command)

    def popped(self, chain: Chain) -> tuple[Any, list[memoryview]]:
        if not (chain.readable and chain.writable):
            return (b"", chain.readable_bytes, chain.writable_bytes), []
        fields = gather(chain.readable, 2), chain.readable_bytes, chain.writable_bytes
        return fields, [chain.writable[0][:1]]

    def pushed(self, views: list[memoryview]) -> bytes:
        return bytes(views[0]) if views else b""

    def describe(self, index: int, header: bytes, result: bytes, sizes: Sizes) -> Meaning:
        if header:
            number = int.from_bytes(header, "big")
            command = self._commands.get(number, f"command {number:#06x}")
            return Meaning(command, sizes.readable, "error" if result != b"\0" else "ok")
        if sizes.readable:
            size = max(0, sizes.readable - self._header_size)
            return Meaning(f"send {size} bytes", size)
        return Meaning(f"receive {sizes.written} bytes", sizes.written, waits=True)


class DescribeConsole(Describe):
    """virtio-console (5.3.6): queues come in pairs, of which the second is for control messages."""

    HEADER = 8  # struct virtio_console_control

    def __init__(self) -> None:
        from pyvmm.virtio import console

        self._control = console.CONTROL_RECEIVEQ, console.CONTROL_TRANSMITQ
        self._events = constants(console.ControlEvent)

    def describe(self, index: int, header: bytes, result: bytes, sizes: Sizes) -> Meaning:
        message = header if index & 1 else result
        if index in self._control and len(message) == self.HEADER:
            port, event, value = struct.unpack("<IHH", message)
            name = self._events.get(event, f"event {event}")
            what = f"port {port}: {name} {value}"
            return Meaning(what, max(sizes.readable, sizes.written), waits=not index & 1)
        port = index // 2 - 1 if index > 1 else 0
        if index & 1:
            return Meaning(f"port {port}: write {sizes.readable} bytes", sizes.readable)
        return Meaning(f"port {port}: read {sizes.written} bytes", sizes.written, waits=True)


class DescribeEntropy(Describe):
    """virtio-rng (5.4.6)."""

    def describe(self, index: int, header: bytes, result: bytes, sizes: Sizes) -> Meaning:
        return Meaning(f"{sizes.written} random bytes", sizes.written)


class DescribeBalloon(Describe):
    """virtio-balloon (5.5.6). Free pages are reported as buffers to write; everything else is told
    in buffers to read."""

    def describe(self, index: int, header: bytes, result: bytes, sizes: Sizes) -> Meaning:
        from pyvmm.virtio import balloon

        size = sizes.readable
        if sizes.writable:
            return Meaning(f"{sizes.writable >> 10} KiB of free memory", sizes.writable)
        if index == balloon.INFLATE_QUEUE:
            return Meaning(f"lend {counted(size // 4, 'page')}", size)
        if index == balloon.DEFLATE_QUEUE:
            return Meaning(f"take back {counted(size // 4, 'page')}", size)
        return Meaning("statistics", size, waits=True)


class DescribeSocket(Describe):
    """virtio-vsock (5.10.6)."""

    HEADER = 44  # struct virtio_vsock_hdr

    def __init__(self) -> None:
        from pyvmm.virtio import vsock, vsock_connection

        self._header = vsock.HEADER
        self._receive = vsock.RX
        self._operations = constants(vsock_connection.Op)

    def describe(self, index: int, header: bytes, result: bytes, sizes: Sizes) -> Meaning:
        receive = index == self._receive
        packet = result if receive else header
        if len(packet) < self._header.size or (receive and sizes.written < self._header.size):
            return super().describe(index, header, result, sizes)
        _, _, source, target, length, _, operation, *_ = self._header.unpack(packet)
        name = self._operations.get(operation, f"operation {operation}")
        data = f", {length} bytes" if length else ""
        return Meaning(f"{name} from port {source} to {target}{data}", length, waits=receive)


_TYPES: dict[int, type[Describe]] = {
    DeviceId.BLOCK: DescribeBlock,
    DeviceId.NETWORK: DescribeNet,
    DeviceId.CONSOLE: DescribeConsole,
    DeviceId.ENTROPY: DescribeEntropy,
    DeviceId.BALLOON: DescribeBalloon,
    DeviceId.SOCKET: DescribeSocket,
}


def describer(device: VirtioDevice) -> Describe:
    """What knows the requests of this device's type; of a type that isn't ours, their sizes."""
    ours = isinstance(device.device_id, DeviceId)
    return _TYPES[device.device_id]() if ours else Describe()


_SHORT_NAMES = {
    DeviceId.NETWORK: "net",
    DeviceId.BLOCK: "blk",
    DeviceId.CONSOLE: "console",
    DeviceId.ENTROPY: "rng",
    DeviceId.BALLOON: "balloon",
    DeviceId.SOCKET: "vsock",
}


def device_names(devices: Sequence[VirtioDevice]) -> list[str]:
    """What each is called in a trace: ``virtio-blk vda``, ``virtio-rng``."""
    names = []
    for device in devices:
        own = getattr(device, "name", "")
        if not isinstance(device.device_id, DeviceId):  # the user's, with a name in its place
            names.append(str(getattr(device.device_id, "name", device.device_id)))
        else:
            names.append(f"virtio-{_SHORT_NAMES[device.device_id]} {own}".rstrip())
    return names
