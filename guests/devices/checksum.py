"""A PCI card that computes the CRC-32 of a piece of guest memory by itself (DMA), and interrupts
when it has: by MSI-X, or else by INTA."""

import zlib

from pyvmm import PciDevice

MAX_LENGTH = 1 << 20
DONE, FAILED = 1, 2


class Checksum(PciDevice):
    """ADDRESS (64 bits in two halves) and LENGTH say which memory; writing LENGTH starts it. STATUS
    is 1 when RESULT is there, 2 if it can't be; writing STATUS takes the interrupt back."""

    vendor_id, device_id, class_code = 0x1234, 0x0C32, 0x12_0000  # a processing accelerator
    length = 32
    msix_vectors = 1
    registers = {0: "ADDRESS_LOW", 4: "ADDRESS_HIGH", 8: "LENGTH", 12: "STATUS", 16: "RESULT"}

    def reset(self) -> None:
        self.words = [0] * (self.length // 4)

    def read(self, offset: int, size: int) -> int:
        return self.words[offset // 4]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset in (0, 4):
            self.words[offset // 4] = value
        elif offset == 8:
            self.words[2] = value
            self.start(self.words[0] | self.words[1] << 32, value)
        elif offset == 12:
            self.words[3] = 0
            self.irq.set(False)

    def start(self, address: int, length: int) -> None:
        self.words[3] = FAILED
        if length > MAX_LENGTH:
            self.fault("LENGTH is too great", "%d", length)
        elif not self.memory.contains(address, length):
            self.fault("ADDRESS is outside memory", "%d bytes at %#x", length, address)
        else:
            self.words[3:5] = DONE, zlib.crc32(self.memory.view(address, length))
        self.irq.set(True)
        self.fire(0)
