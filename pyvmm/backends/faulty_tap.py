"""A tap that loses packets on purpose: what ``-n tap0,drop=1%`` is plugged into.

The card gets one end of a pair of sockets in the place of each of the tap's descriptors; a thread
moves packets between the other ends and the tap, and drops, doubles, damages or delays some of
them. The card itself knows nothing of it.

No offloads are offered, so a packet here is one on the wire: not larger than the MTU, and with its
checksum, by which the receiver finds out that it was damaged. In each direction a generator of its
own decides, which takes a number for each packet and each fault that is left to chance: the same
packets meet the same faults, whatever goes the other way.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from random import Random

from pyvmm.backends.tap import VNET_HEADER_SIZE, Tap
from pyvmm.fault_config import Chances, NetFaults
from pyvmm.threads import NamedThread

MAX_PACKET = VNET_HEADER_SIZE + 14 + 4 + 0xFFFF
MAX_HELD = 1000
"""Packets that are delayed, or that nobody takes, at a time; then no more are read, so the tap's
own queue fills, or the card waits."""
TURN = 64
"""Packets in one direction before the other has its turn."""
DAMAGED_FROM = VNET_HEADER_SIZE + 14
"""Behind the Ethernet header: a packet with a wrong address would be a lost one."""


class Direction:
    """Packets from ``source`` to ``sink``, two descriptors that don't block; ``name`` is for the
    summary."""

    def __init__(self, name: str, source: int, sink: int, chances: Chances, seed: str) -> None:
        self.name = name
        self.source = source
        self.sink = sink
        self.readable = self.writable = True
        self.packets = self.dropped = self.duplicated = self.damaged = 0
        self._chances = chances
        self._random = Random(seed)
        self._held: deque[tuple[int, bytes]] = deque()

    @property
    def next_due_ns(self) -> int | None:
        """When there is something to do that no descriptor will tell."""
        return self._held[0][0] if self._held and self.writable else None

    @property
    def eager(self) -> bool:
        """Whether there is something to read, and room for it."""
        return self.readable and len(self._held) < MAX_HELD

    def read(self, now_ns: int) -> None:
        """Take packets from the source, a limited number. OSError if it is gone."""
        for _ in range(TURN):
            if not self.eager:
                return
            try:
                packet = os.read(self.source, MAX_PACKET)
            except BlockingIOError:
                self.readable = False
                return
            if not packet:
                raise OSError(0, "end of file")
            self._meet(packet, now_ns + self._chances.delay)

    def _meet(self, packet: bytes, due_ns: int) -> None:
        """Hold the packet until it is due, as often and in the state that chance has it."""
        chances, chance = self._chances, self._random.random
        self.packets += 1
        dropped = bool(chances.drop) and chance() < chances.drop
        doubled = bool(chances.duplicate) and chance() < chances.duplicate
        damaged = bool(chances.corrupt) and chance() < chances.corrupt
        if dropped:
            self.dropped += 1
            return
        if damaged and len(packet) > DAMAGED_FROM:
            self.damaged += 1
            packet = self._damage(packet)
        self._held.append((due_ns, packet))
        if doubled:
            self.duplicated += 1
            self._held.append((due_ns, packet))

    def _damage(self, packet: bytes) -> bytes:
        """One bit of it is another."""
        bit = self._random.randrange(8 * DAMAGED_FROM, 8 * len(packet))
        damaged = bytearray(packet)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        return bytes(damaged)

    def write(self, now_ns: int, failed: Callable[[OSError], None]) -> None:
        """Hand on what is due."""
        held = self._held
        while self.writable and held and held[0][0] <= now_ns:
            try:
                os.write(self.sink, held[0][1])
            except BlockingIOError:
                self.writable = False
                return
            except OSError as error:
                failed(error)
            held.popleft()

    def summary(self) -> str:
        """What was done, in a few words."""
        faults = [
            f"{count} {what}"
            for count, what in (
                (self.dropped, "dropped"),
                (self.duplicated, "duplicated"),
                (self.damaged, "damaged"),
            )
            if count
        ]
        return ", ".join([f"{self.packets} {self.name}", *faults])


class FaultyTap:
    """``tap``, which it closes, with ``faults``. The card uses ``fds``; :meth:`start` begins to
    move packets."""

    def __init__(self, tap: Tap, faults: NetFaults) -> None:
        self.name = tap.name
        self.offloads = 0
        self._tap = tap
        self._faults = faults
        self._pairs = [
            socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            for _ in tap.fds
        ]
        self.fds = tuple(cards_end.fileno() for cards_end, _ in self._pairs)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._to_guest: list[Direction] = []
        self._from_guest: list[Direction] = []
        for queue, (fd, (_, end)) in enumerate(zip(tap.fds, self._pairs, strict=True)):
            seed = f"{faults.seed}/{queue}"
            card = end.fileno()
            self._to_guest.append(
                Direction("packets to the guest", fd, card, faults.rx, f"{seed}/rx")
            )
            self._from_guest.append(Direction("from it", card, fd, faults.tx, f"{seed}/tx"))
        self._thread: NamedThread | None = None

    def start(
        self, on_send_error: Callable[[OSError], None], on_error: Callable[[BaseException], None]
    ) -> None:
        """Start the thread. ``on_send_error`` is told of a packet that the tap refuses,
        ``on_error`` of an exception that is a bug of ours."""
        self._on_send_error = on_send_error
        self._on_error = on_error
        self._thread = NamedThread(target=self._work, name=f"pyvmm-{self.name}", daemon=True)
        self._thread.start()

    def set_offloads(self, offloads: int) -> None:
        self._tap.set_offloads(offloads)

    def enable_queue(self, index: int, enabled: bool) -> None:
        self._tap.enable_queue(index, enabled)

    def close(self) -> None:
        """End the thread, and close everything. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            os.eventfd_write(self._wake, 1)
            thread.join()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1
        for pair in self._pairs:
            for end in pair:
                end.close()
        self._tap.close()

    @property
    def used(self) -> bool:
        """Whether there was any packet."""
        return any(each.packets for each in (*self._to_guest, *self._from_guest))

    def summary(self) -> str:
        """What was done to the guest's packets, in a line."""
        parts = [
            direction.summary()
            for pair in zip(self._to_guest, self._from_guest, strict=True)
            for direction in pair
        ]
        return f"{self.name}: {'; '.join(parts)}; seed {self._faults.seed}"

    # The thread.

    def _work(self) -> None:
        # Signals are for the main thread, where Python acts on them.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with select.epoll() as epoll:
                epoll.register(self._wake, select.EPOLLIN)
                for direction in self._to_guest:
                    for fd in (direction.source, direction.sink):
                        epoll.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
                self._run(epoll)
        except BaseException as error:
            self._on_error(error)

    def _run(self, epoll: select.epoll) -> None:
        directions = [*self._to_guest, *self._from_guest]
        timeout = 0.0
        while True:
            for fd, events in epoll.poll(timeout):
                if fd == self._wake:
                    return
                for direction in directions:
                    direction.readable |= fd == direction.source and bool(events & ~select.EPOLLOUT)
                    direction.writable |= fd == direction.sink and bool(events & ~select.EPOLLIN)
            busy = False
            for direction in directions:
                busy |= self._move(direction)
            due = [d.next_due_ns for d in directions if d.next_due_ns is not None]
            if busy:
                timeout = 0.0
            else:
                wait = min(due) - time.monotonic_ns() if due else -1
                timeout = max(wait, 0) / 1e9 if due else -1.0

    def _move(self, direction: Direction) -> bool:
        """One turn of one direction; whether there is more to do at once."""
        try:
            direction.read(time.monotonic_ns())
        except OSError:
            # The tap has been deleted; the card finds the other end closed, and knows what to do.
            direction.readable = False
            for _, end in self._pairs:
                end.shutdown(socket.SHUT_RDWR)
        direction.write(time.monotonic_ns(), self._on_send_error)
        return direction.eager
