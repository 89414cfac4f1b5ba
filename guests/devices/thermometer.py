"""A thermometer at I/O ports: it gets warmer by a degree every tenth of a second, and interrupts
when it is warmer than its limit."""

from typing import Any

from pyvmm import PioDevice


class Thermometer(PioDevice):
    """TEMP and LIMIT are in degrees; STATUS bit 0 is the alarm, which reading it takes back."""

    default_base, default_irq = 0x510, 5
    length = 3
    registers = {0: "TEMP", 1: "LIMIT", 2: "STATUS"}

    def __init__(self, start: int = 20, **place: Any) -> None:
        super().__init__(**place)
        self.start = start

    def reset(self) -> None:
        self.temperature, self.limit, self.alarm = self.start, 255, 0
        self.every(0.1, self.warm_up)

    def warm_up(self) -> None:
        self.temperature = min(self.temperature + 1, 255)
        if self.temperature > self.limit:
            self.alarm = 1
            self.irq.set(True)

    def read(self, offset: int, size: int) -> int:
        value = (self.temperature, self.limit, self.alarm)[offset]
        if offset == 2:
            self.alarm = 0
            self.irq.set(False)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 1:
            self.limit = value
