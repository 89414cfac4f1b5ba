"""A stopwatch at memory addresses: microseconds since it was started, and an alarm."""

from pyvmm import MmioDevice

STOP, START = 0, 1


class Stopwatch(MmioDevice):
    """CONTROL starts and stops it; TIME_LOW holds the upper half still until TIME_HIGH is read.
    ALARM interrupts after so many microseconds, STATUS counts the alarms and takes them back."""

    default_base, default_irq = 0xF000_0000, 6
    length = 0x14
    registers = {0: "CONTROL", 4: "TIME_LOW", 8: "TIME_HIGH", 12: "ALARM", 16: "STATUS"}

    def reset(self) -> None:
        self.started_ns = -1
        self.high = self.alarms = 0

    def ring(self) -> None:
        self.alarms += 1
        self.irq.set(True)

    def read(self, offset: int, size: int) -> int:
        if offset == 0:
            return START if self.started_ns >= 0 else STOP
        if offset == 4:
            elapsed = self.clock.now_ns() - self.started_ns if self.started_ns >= 0 else 0
            self.high, low = divmod(elapsed // 1000, 1 << 32)
            return low
        if offset == 8:
            return self.high
        if offset == 16:
            rung, self.alarms = self.alarms, 0
            self.irq.set(False)
            return rung
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self.started_ns = self.clock.now_ns() if value == START else -1
        elif offset == 12:
            self.after(value / 1e6, self.ring)
