"""A virtio device that gives back what it gets, the last byte first, and tells how often it did."""

from pyvmm import VirtioDevice

REQUESTS, EVENTS = 0, 1


class Mirror(VirtioDevice):
    """Queue 0 takes requests. Every fourth one leaves a message in queue 1: how many there were, as
    32 bits. The configuration space says the longest request, as 32 bits."""

    device_id = 42
    queues = (64, 8)
    event_queues = (EVENTS,)

    def __init__(self, longest: int = 4096, transport: str = "") -> None:
        super().__init__(transport=transport)
        self.longest = longest
        self.config = longest.to_bytes(4, "little")

    def reset(self) -> None:
        self.count = 0

    def request(self, queue: int, data: bytes, room: int) -> bytes:
        if len(data) > min(room, self.longest):
            self.fault("request without room for the answer", "%d bytes", len(data))
            return b""
        self.count += 1
        if self.count % 4 == 0:
            self.send(EVENTS, self.count.to_bytes(4, "little"))
        return data[::-1]
