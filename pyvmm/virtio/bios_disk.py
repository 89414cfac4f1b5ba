"""The disks as the BIOS has them: their images, unless a virtio driver is at work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyvmm.backends.disk import DiskImage
from pyvmm.virtio.blk import BlockDevice

if TYPE_CHECKING:
    from pyvmm.virtio.mmio_transport import VirtioMmio
    from pyvmm.virtio.pci_transport import VirtioPci


class BiosDisk:
    """The image of a virtio-blk device behind ``transport``."""

    def __init__(self, transport: VirtioPci | VirtioMmio, image: DiskImage) -> None:
        self._transport = transport
        self.image = image

    @property
    def in_use(self) -> bool:
        """Whether a driver has set DRIVER_OK."""
        return self._transport.session.running

    def to_rest(self) -> None:
        """Take the disk from its driver, if it has one."""
        self._transport.dismiss_driver()


def bios_disks(transports: Iterable[VirtioPci | VirtioMmio]) -> list[BiosDisk]:
    """Those behind ``transports``, in their order."""
    return [
        BiosDisk(transport, transport.device.image)
        for transport in transports
        if isinstance(transport.device, BlockDevice)
    ]
