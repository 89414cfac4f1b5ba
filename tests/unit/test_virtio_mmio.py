"""virtio over MMIO: every register in every width, the interrupt line, doorbells, taking a queue
back, and a guest that writes anything anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fakes import RecordingFaults
from unit.virtio_driver import (
    ACKNOWLEDGE,
    DRIVER_OK,
    EVENT_IDX,
    INDIRECT_DESC,
    MMIO,
    NEEDS_RESET,
    MmioDriver,
    Pc,
)
from unit.virtio_echo import CONFIG, TYPE_FEATURES, Echo

from pyvmm import layout

WORD = 0xFFFF_FFFF
BASE = layout.VIRTIO_MMIO
BAD_READ, BAD_WRITE = "bad virtio-mmio read", "bad virtio-mmio write"

# What can be read of a device that has just been reset.
READABLE = {
    "magic_value": 0x7472_6976,
    "version": 2,
    "device_id": 3,
    "vendor_id": int.from_bytes(b"PYVM", "little"),
    "device_feature": (TYPE_FEATURES | EVENT_IDX | INDIRECT_DESC) & WORD,
    "queue_num_max": 16,
    "queue_enable": 0,
    "interrupt_status": 0,
    "device_status": 0,
    "shm_len": WORD,
    "shm_len_high": WORD,
    "shm_base": WORD,
    "shm_base_high": WORD,
    "config_generation": 0,
}
WRITABLE = {
    "device_feature_select",
    "driver_feature",
    "driver_feature_select",
    "queue_select",
    "queue_size",
    "queue_enable",
    "queue_notify",
    "interrupt_ack",
    "device_status",
    "queue_desc",
    "queue_desc_high",
    "queue_driver",
    "queue_driver_high",
    "queue_device",
    "queue_device_high",
    "shm_select",
}


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def pc(echo: Echo) -> Iterator[Pc]:
    pc = Pc(echo, transport="mmio")
    yield pc
    pc.close()


@pytest.fixture
def driver(pc: Pc) -> MmioDriver:
    return MmioDriver(pc)


def levels(pc: Pc) -> list[bool]:
    """How the interrupt line has changed since the last call."""
    changes = pc.mmio_changes[0]
    return [changes.get_nowait() for _ in range(changes.qsize())]


# The registers.


@pytest.mark.parametrize("name", MMIO)
def test_registers_after_reset(pc: Pc, name: str) -> None:
    value = pc.mmio.read(BASE + MMIO[name], 4)
    if name in READABLE:
        assert value == READABLE[name]
        assert not pc.faults.counts
    else:
        assert value == 0
        assert pc.faults.counts == {BAD_READ: 1}


@pytest.mark.parametrize("name", MMIO)
@pytest.mark.parametrize("progress", range(4))
def test_what_can_only_be_read_is_not_written(
    pc: Pc, driver: MmioDriver, echo: Echo, name: str, progress: int
) -> None:
    advance(driver, echo, progress)
    pc.faults.counts.clear()
    before = pc.transports[0].save()
    pc.mmio.write(BASE + MMIO[name], 4, 0x8000_0000)
    if name in WRITABLE:
        assert not pc.faults.counts
    else:
        assert pc.faults.counts == {BAD_WRITE: 1}
        assert pc.transports[0].save() == before


def test_every_other_access_below_the_configuration_is_a_fault(pc: Pc) -> None:
    before = pc.transports[0].save()
    words = {MMIO[name] for name in READABLE}
    for offset in range(0x100):
        for size in (1, 2, 4, 8):
            if size != 4 or offset not in words:
                pc.faults.counts.clear()
                assert pc.mmio.read(BASE + offset, size) == 0
                pc.mmio.write(BASE + offset, size, 1 << 8 * size - 1)
                if size == 4 and offset in MMIO.values():
                    assert pc.faults.counts == {BAD_READ: 1}
                else:
                    assert pc.faults.counts == {BAD_READ: 1, BAD_WRITE: 1}
    after = pc.transports[0].save()
    assert after["session"]["status"] == before["session"]["status"] == 0


def test_configuration_is_accessed_in_any_width(pc: Pc, driver: MmioDriver, echo: Echo) -> None:
    assert [driver.config(n, 1) for n in range(12)] == list(CONFIG)
    assert driver.config(2, 2) == int.from_bytes(CONFIG[2:4], "little")
    assert driver.config(4, 4) == int.from_bytes(CONFIG[4:8], "little")
    assert driver.config(4, 8) == int.from_bytes(CONFIG[4:], "little")
    assert driver.config(12, 4) == driver.config(0xFC, 4) == 0
    for size in (1, 2, 4):
        pc.mmio.write(BASE + 0x104, size, 0xAB)
    pc.mmio.write(BASE + 0x108, 8, 0x1111_2222_3333_4444)
    halves = [(8, 4, 0x3333_4444), (12, 4, 0x1111_2222)]
    assert echo.config_writes == [(4, 1, 0xAB), (4, 2, 0xAB), (4, 4, 0xAB), *halves]
    assert not pc.faults.counts


def test_a_status_whose_low_byte_is_0_is_no_reset(driver: MmioDriver, echo: Echo) -> None:
    driver.start()
    driver.set("device_status", 0x100)
    assert driver.status & DRIVER_OK
    assert echo.active is not None


# Queues.


def test_a_queue_can_be_taken_back_before_the_driver_runs(driver: MmioDriver, echo: Echo) -> None:
    driver.negotiate()
    driver.add_queue()
    assert driver.get("queue_enable") == 1
    driver.set("queue_enable", 0)
    assert driver.get("queue_enable") == 0
    assert echo.pauses == 0
    driver.set("queue_size", 4)
    ring = driver.add_queue()
    driver.run()
    ring.add([], [(0x8000, 4)])
    assert echo.serve() == 1


def test_a_queue_can_be_taken_back_from_a_running_device(driver: MmioDriver, echo: Echo) -> None:
    driver.start()
    driver.set("queue_enable", 0)
    assert driver.get("queue_enable") == 0
    assert (echo.pauses, echo.paused) == (1, False)
    assert echo.active is not None
    assert not echo.active[0].ready
    driver.set("queue_enable", 0)
    driver.set("queue_enable", 1)
    assert driver.get("queue_enable") == 0, "the device wouldn't learn of it"
    assert echo.pauses == 1


def test_a_broken_device_stays_at_rest_when_its_queue_is_taken_back(
    driver: MmioDriver, echo: Echo
) -> None:
    driver.start().offer(99)
    echo.serve()
    assert driver.status & NEEDS_RESET
    driver.set("queue_enable", 0)
    assert echo.paused


# The interrupt line.


def test_the_line_is_high_until_all_is_acknowledged(pc: Pc, driver: MmioDriver, echo: Echo) -> None:
    ring = driver.start()
    ring.add([], [(0x8000, 4)])
    echo.serve()
    assert levels(pc) == [True]
    echo.config_changed()
    assert levels(pc) == []
    assert driver.get("interrupt_status") == 3
    driver.set("interrupt_ack", 1)
    assert driver.get("interrupt_status") == 2
    assert levels(pc) == [False, True], "an edge for a controller that wants one"
    driver.set("interrupt_ack", 4)
    assert levels(pc)[-1:] == [True]
    driver.set("interrupt_ack", WORD)
    assert driver.get("interrupt_status") == 0
    assert levels(pc) == [False]


@pytest.mark.parametrize("how", ["driver", "platform"])
def test_a_reset_lowers_the_line(pc: Pc, driver: MmioDriver, echo: Echo, how: str) -> None:
    ring = driver.start()
    ring.add([], [(0x8000, 4)])
    echo.serve()
    if how == "driver":
        driver.reset()
    else:
        pc.transports[0].reset()
    assert levels(pc) == [True, False]
    assert driver.get("interrupt_status") == 0


# Doorbells.


def test_the_doorbell_names_the_queue(driver: MmioDriver, echo: Echo) -> None:
    driver.negotiate()
    first, second = driver.add_queue(0), driver.add_queue(1)
    first.kick()
    assert echo.rung(0) == 0, "not before DRIVER_OK"
    driver.run()
    second.kick()
    second.kick()
    assert (echo.rung(0), echo.rung(1)) == (0, 2)
    for value in (2, 0x1_0000, WORD):
        driver.set("queue_notify", value)
    assert (echo.rung(0), echo.rung(1)) == (0, 0)


def test_ioeventfds_are_there_while_the_driver_runs() -> None:
    echo = Echo()
    pc = Pc(echo, doorbells=True, transport="mmio")
    assert pc.doorbells is not None
    driver = MmioDriver(pc)
    ring = driver.start()
    assert pc.doorbells.attached == {
        (BASE + 0x50, 0): (4, echo.doorbells[0]),
        (BASE + 0x50, 1): (4, echo.doorbells[1]),
    }
    ring.kick()
    assert echo.rung(0) == 1
    pc.write(BASE + 0x50, 4, 7)
    assert (echo.rung(0), echo.rung(1)) == (0, 0)
    driver.reset()
    assert pc.doorbells.attached == {}
    driver.start()
    pc.transports[0].reset()
    assert pc.doorbells.attached == {}
    pc.close()


# State.


def test_state_survives_save_and_restore(pc: Pc, driver: MmioDriver, echo: Echo) -> None:
    ring = driver.start()
    driver.set("device_feature_select", 1)
    ring.add([], [(0x8000, 4)])
    echo.serve()
    ring.take()
    registers = {name: driver.get(name) for name in READABLE}
    assert registers["interrupt_status"] == 1
    state = pc.save()

    echo_there = Echo()
    there = Pc(echo_there, doorbells=True, transport="mmio")
    there.memory.write(0, pc.memory.read(0, pc.memory.size))
    there.restore(state)
    driver_there = MmioDriver(there)
    assert {name: driver_there.get(name) for name in READABLE} == registers
    assert levels(there) == [True]
    assert there.doorbells is not None
    assert len(there.doorbells.attached) == 2
    driver_there.isr()
    ring.driver, ring.memory = driver_there, there.memory
    ring.wants_interrupts()
    head = ring.add([], [(0x8000, 8)])
    assert echo_there.serve() == 1
    assert ring.take() == [(head, 8)]
    assert levels(there) == [False, True]
    there.close()


def test_restoring_a_quiet_device_lowers_the_line(pc: Pc, driver: MmioDriver, echo: Echo) -> None:
    quiet = pc.transports[0].save()
    driver.start().offer(99)
    echo.serve()
    assert levels(pc) == [True]
    pc.transports[0].restore(quiet)
    assert levels(pc) == [False]


# Whatever a guest does.


def advance(driver: MmioDriver, echo: Echo, progress: int) -> None:
    """Bring the device into one of its states."""
    if progress == 1:
        driver.negotiate()
    elif progress == 2:
        driver.start()
    elif progress == 3:
        driver.start().offer(99)
        echo.serve()


OFFSETS = st.one_of(
    st.sampled_from(list(MMIO.values())), st.integers(0, 0x1FF), st.integers(0x100, 0x110)
)
VALUES = st.one_of(
    st.integers(0, 15),
    st.sampled_from([ACKNOWLEDGE, 0x8000, 0x10_0000, 0xFFFF, 0xC000_0000, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
ACCESSES = st.lists(
    st.tuples(st.sampled_from("rww"), OFFSETS, st.sampled_from([1, 2, 4, 4, 4, 8]), VALUES),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(accesses=ACCESSES, progress=st.integers(0, 3), doorbells=st.booleans())
def test_no_access_in_any_state_breaks_the_device(
    accesses: list[tuple[str, int, int, int]], progress: int, doorbells: bool
) -> None:
    echo = Echo()
    pc = Pc(echo, doorbells=doorbells, transport="mmio")
    driver = MmioDriver(pc)
    advance(driver, echo, progress)
    for kind, offset, size, value in accesses:
        value &= (1 << 8 * size) - 1
        if kind == "r":
            assert 0 <= pc.mmio.read(BASE + offset, size) < 1 << 8 * size
        else:
            pc.write(BASE + offset, size, value)
        if echo.active is not None:
            for index, queue in enumerate(echo.active):
                if queue.ready:
                    echo.serve(index)
    assert isinstance(pc.faults, RecordingFaults)
    assert len(pc.faults.lines) <= 8, "each kind is printed once"
    pc.transports[0].reset()
    levels(pc)
    ring = driver.start()
    head = ring.add([], [(0x8000, 4)])
    assert echo.serve() == 1
    assert ring.wait() == [(head, 4)]
    pc.close()
