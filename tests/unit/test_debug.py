"""The debug ports."""

from __future__ import annotations

from unit.fakes import RecordingFaults

from pyvmm.bus import Bus
from pyvmm.devices.debug import DebugConsole, DebugExit, PostPort


def test_post_port_keeps_the_last_code_and_ignores_delays() -> None:
    post = PostPort()
    bus = Bus("port", 1 << 16, RecordingFaults(), flat=True)
    bus.add(0x80, 1, post, "POST", max_size=1)
    bus.add(0xED, 1, post.delay_window, "delay", max_size=1)
    bus.write(0x80, 1, 0x31)
    bus.write(0xED, 1, 0x77)
    assert post.code == bus.read(0x80, 1) == 0x31
    assert bus.read(0xED, 1) == 0xFF
    other = PostPort()
    other.restore(post.save())
    assert other.code == 0x31
    other.reset()
    assert other.code == 0


def test_debug_console_passes_bytes_on_and_can_be_found() -> None:
    seen = bytearray()
    console = DebugConsole(seen.extend)
    assert console.read(0, 1) == 0xE9
    for byte in b"hi\n\xff":
        console.write(0, 1, byte)
    assert seen == b"hi\n\xff"


def test_debug_exit_takes_values_of_every_width() -> None:
    values: list[int] = []
    faults = RecordingFaults()
    bus = Bus("port", 1 << 16, faults, flat=True)
    bus.add(0xF4, 4, DebugExit(values.append), "debug exit", max_size=4)
    bus.write(0xF4, 1, 0x10)
    bus.write(0xF4, 2, 0x1234)
    bus.write(0xF4, 4, 0x8000_0001)
    assert values == [0x10, 0x1234, 0x8000_0001]
    assert bus.read(0xF4, 1) == 0
