"""A network card's host side: a tap interface.

Linux, Documentation/networking/tuntap.rst, and <linux/if_tun.h>. What is read from a tap is a
packet that the host sends out on the interface, what is written one that arrives there, each behind
a virtio_net_hdr of 12 bytes (IFF_VNET_HDR), so that checksums and the cutting of large segments can
be left to whoever has the hardware for it, or be spared altogether.

An interface is opened by name, which makes it if there is none and we may, or comes as file
descriptors that somebody else has opened. One that we made goes when it is closed; it is brought
up here, but addresses and bridges are the host administrator's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence

from pyvmm.errors import HostError

DEVICE = "/dev/net/tun"
LOADED = "/sys/class/misc/tun"
VNET_HEADER_SIZE = 12
"""struct virtio_net_hdr_v1, which has num_buffers."""

TUNSETIFF = 0x4004_54CA
TUNSETOFFLOAD = 0x4004_54D0
TUNGETIFF = 0x8004_54D2
TUNSETVNETHDRSZ = 0x4004_54D8
TUNSETQUEUE = 0x4004_54D9

IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_MULTI_QUEUE = 0x0100
IFF_ATTACH_QUEUE = 0x0200
IFF_DETACH_QUEUE = 0x0400
IFF_PERSIST = 0x0800


class Offload:
    """What may be left undone in a packet that we read (TUN_F_*)."""

    CSUM = 0x01
    TSO4 = 0x02
    TSO6 = 0x04
    TSO_ECN = 0x08
    UFO = 0x10


# struct ifreq with the flags, or an int, in its union; <linux/sockios.h>.
_IFREQ_FLAGS = struct.Struct("16sH22x")
_IFREQ_INT = struct.Struct("16si20x")
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCSIFMTU = 0x8922
_IFF_UP = 0x1

_INT = struct.Struct("i")


class Tap:
    """An open tap: a file descriptor, non-blocking, for each pair of queues in ``fds``.

    ``offloads`` are those :class:`Offload` bits that the host knows; none is in force until
    :meth:`set_offloads`.
    """

    def __init__(self, name: str, fds: Sequence[int]) -> None:
        self.name = name
        self.fds = tuple(fds)
        self.offloads = 0
        for fd in self.fds:
            os.set_blocking(fd, False)
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, _INT.pack(VNET_HEADER_SIZE))
        segmentation = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.TSO_ECN
        for offloads in (Offload.CSUM, segmentation, segmentation | Offload.UFO):
            try:
                self.set_offloads(offloads)
            except OSError:
                break
            self.offloads = offloads
        self.set_offloads(0)

    @classmethod
    def open(cls, name: str, *, queues: int = 1, mtu: int = 0) -> Tap:
        """Open the interface ``name``, or make it, with an MTU of ``mtu`` if that isn't 0.
        HostError if it can't be."""
        fds: list[int] = []
        try:
            for _ in range(queues):
                fds.append(_open_device())
            multi_queue = _attach(fds[0], name, queues)
            for fd in fds[1:]:
                _set_interface(fd, name, multi_queue)
            if not _interface(fds[0])[1] & IFF_PERSIST:
                _bring_up(name, mtu)  # nobody else has: it is ours
            return cls(name, fds)
        except OSError as error:
            _close(fds)
            raise _explain(name, error, queues) from error
        except BaseException:
            _close(fds)
            raise

    @classmethod
    def inherit(cls, fds: Sequence[int]) -> Tap:
        """Take over descriptors of one interface, a queue each. HostError if they are no tap's."""
        names = set()
        for fd in fds:
            try:
                name, flags = _interface(fd)
            except OSError as error:
                closed = error.errno == errno.EBADF
                raise HostError(
                    f"--net fd={fd}: {'not an open descriptor' if closed else 'not a tap'}",
                    "pass one that TUNSETIFF has attached to a tap",
                ) from error
            if not flags & IFF_TAP or not flags & IFF_VNET_HDR:
                raise HostError(
                    f"--net fd={fd}: {name} was opened without IFF_TAP or without IFF_VNET_HDR",
                    "open it with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR",
                )
            names.add(name)
        if len(names) != 1:
            raise HostError(f"--net fd=: the descriptors are of {' and '.join(sorted(names))}")
        for fd in fds:
            os.set_inheritable(fd, False)
        return cls(names.pop(), fds)

    def set_offloads(self, offloads: int) -> None:
        """From now on packets that we read may need this done to them."""
        fcntl.ioctl(self.fds[0], TUNSETOFFLOAD, offloads)

    def enable_queue(self, index: int, enabled: bool) -> None:
        """Have the host spread packets over this queue too, or no more."""
        flags = IFF_ATTACH_QUEUE if enabled else IFF_DETACH_QUEUE
        try:
            fcntl.ioctl(self.fds[index], TUNSETQUEUE, _IFREQ_FLAGS.pack(b"", flags))
        except OSError as error:
            # It is as wanted already, or the interface is gone, which reading will tell.
            if error.errno not in (errno.EINVAL, errno.EBADFD):
                raise

    def close(self) -> None:
        """Close it. Idempotent."""
        fds, self.fds = self.fds, ()
        _close(fds)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def node_fix() -> str:
    """What makes a missing /dev/net/tun: its module, or where that is loaded, as in a container,
    the device itself."""
    if not os.path.exists(LOADED):
        return "sudo modprobe tun"
    return (
        f"start the container with --device {DEVICE}, or sudo mkdir -p /dev/net &&"
        f" sudo mknod -m 666 {DEVICE} c 10 200"
    )


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise HostError(f"{DEVICE} doesn't exist, so there are no taps", node_fix()) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise HostError(f"no permission for {DEVICE}", f"sudo chmod 666 {DEVICE}") from error
        raise HostError(f"can't open {DEVICE}: {error.strerror}") from error


def _set_interface(fd: int, name: str, multi_queue: int) -> None:
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | multi_queue
    fcntl.ioctl(fd, TUNSETIFF, _IFREQ_FLAGS.pack(name.encode(), flags))


def _interface(fd: int) -> tuple[str, int]:
    """The name and flags of a tap."""
    answer = fcntl.ioctl(fd, TUNGETIFF, bytes(_IFREQ_FLAGS.size))
    name, flags = _IFREQ_FLAGS.unpack(answer)
    return name.rstrip(b"\0").decode(errors="replace"), flags


def _attach(fd: int, name: str, queues: int) -> int:
    """Attach the first queue; IFF_MULTI_QUEUE or 0, whichever the interface has. One that
    was made for several queues can't be opened for a single one without it."""
    if queues > 1:
        _set_interface(fd, name, IFF_MULTI_QUEUE)
        return IFF_MULTI_QUEUE
    try:
        _set_interface(fd, name, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _set_interface(fd, name, IFF_MULTI_QUEUE)
    return 0


def _bring_up(name: str, mtu: int) -> None:
    import socket  # here, because a persistent tap needs none

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as control:
        if mtu:
            fcntl.ioctl(control, _SIOCSIFMTU, _IFREQ_INT.pack(name.encode(), mtu))
        request = fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ_FLAGS.pack(name.encode(), 0))
        flags = _IFREQ_FLAGS.unpack(request)[1] | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ_FLAGS.pack(name.encode(), flags))


def _explain(name: str, error: OSError, queues: int) -> HostError:
    several = " multi_queue" if queues > 1 else ""
    make = f"sudo ip tuntap add dev {name} mode tap{several} user $USER"
    if error.errno == errno.EBUSY:
        return HostError(f"{name} is in use by another program", "stop it, or use another tap")
    if error.errno in (errno.EPERM, errno.EACCES):
        if _exists(name):
            return HostError(
                f"no permission for {name}: another user owns it, or it isn't a tap",
                f"sudo ip link delete {name}; {make}",
            )
        return HostError(
            f"there is no tap {name}, and no right to make one",
            f"{make}; sudo ip link set {name} up",
        )
    if error.errno == errno.EINVAL and _exists(name):
        kind = "a tap with several queues" if queues > 1 else "a tap"
        return HostError(f"{name} is not {kind}", f"use another name, or: {make}")
    if error.errno == errno.E2BIG:
        return HostError(f"{name} can't have {queues} queues", "use fewer")
    return HostError(f"can't use {name} as a tap: {error.strerror}", make)


def _exists(name: str) -> bool:
    import socket

    try:
        return bool(socket.if_nametoindex(name))
    except OSError:
        return False
