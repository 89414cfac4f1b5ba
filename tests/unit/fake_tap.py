"""A pair of sockets that stands for a tap, and packets for it."""

from __future__ import annotations

import socket
import struct

from unit.virtio_driver import TIMEOUT

ALL_TUN = 31
"""Every TUN_F_* offload."""

OUR_MAC = bytes.fromhex("525400123456")
OTHER_MAC = bytes.fromhex("525400abcdef")
HEADER = bytes(12)
"""Of a packet that needs nothing done to it."""


class FakeTap:
    """Implements ``net.Backend``; the network is at ``wires``, the other ends."""

    def __init__(self, queues: int = 1, offloads: int = ALL_TUN) -> None:
        self.name = "tap7"
        self.offloads = offloads
        self.offloads_set: list[int] = []
        self.enabled: dict[int, bool] = {}
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(queues)]
        self._ours = [ours for ours, _ in pairs]
        self.wires = [theirs for _, theirs in pairs]
        for wire in self.wires:
            wire.settimeout(TIMEOUT)
        for ours in self._ours:
            ours.setblocking(False)
        self.fds = tuple(ours.fileno() for ours in self._ours)

    def set_offloads(self, offloads: int) -> None:
        self.offloads_set.append(offloads)

    def enable_queue(self, index: int, enabled: bool) -> None:
        self.enabled[index] = enabled

    def close(self) -> None:
        for each in (*self._ours, *self.wires):
            each.close()


def frame(payload: bytes = b"payload", to: bytes = OUR_MAC, vlan: int | None = None) -> bytes:
    tag = b"" if vlan is None else struct.pack(">HH", 0x8100, vlan)
    return to + OTHER_MAC + tag + b"\x08\x00" + payload
