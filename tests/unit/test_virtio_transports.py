"""What both transports do alike: which register can be written in which device status, and which
features are offered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from unit.virtio_driver import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    EVENT_IDX,
    FEATURES_OK,
    INDIRECT_DESC,
    NEEDS_RESET,
    VERSION_1,
    Pc,
    VirtioDriver,
)
from unit.virtio_echo import TYPE_FEATURES, Echo

from pyvmm.virtio.device import DriverSession

WORD = 0xFFFF_FFFF


def acknowledged(driver: VirtioDriver) -> None:
    driver.set("device_status", ACKNOWLEDGE | DRIVER)


def negotiated(driver: VirtioDriver) -> None:
    driver.negotiate()


def queue_enabled(driver: VirtioDriver) -> None:
    driver.negotiate()
    driver.add_queue()


def running(driver: VirtioDriver) -> None:
    driver.start()


def running_without_queue(driver: VirtioDriver) -> None:
    driver.negotiate()
    driver.run()


def broken(driver: VirtioDriver) -> None:
    driver.start().offer(99)
    echo = driver.pc.transports[0].device
    assert isinstance(echo, Echo)
    echo.serve()


STATES: dict[str, Callable[[VirtioDriver], None]] = {
    "reset": VirtioDriver.reset,
    "acknowledged": acknowledged,
    "negotiated": negotiated,
    "queue enabled": queue_enabled,
    "running": running,
    "running without the queue": running_without_queue,
    "broken": broken,
}
BEFORE_FEATURES_OK = {"reset", "acknowledged"}
QUEUE_OPEN = {"reset", "acknowledged", "negotiated"}
ALWAYS = set(STATES)


class Written(NamedTuple):
    """What a register does: it takes ``value`` in the states ``open``, and in others nothing."""

    name: str
    value: int
    observed: Callable[[DriverSession], int]
    open: set[str]


TABLE = [
    Written("driver_feature", 0x1234, lambda s: s.driver_features & WORD, BEFORE_FEATURES_OK),
    Written("queue_size", 8, lambda s: s.queues[0].size, QUEUE_OPEN),
    Written("queue_size", 3, lambda s: s.queues[0].size, set()),
    Written("queue_size", 0, lambda s: s.queues[0].size, set()),
    Written("queue_size", 32, lambda s: s.queues[0].size, set()),
    Written("queue_desc", 0x12_3456_7890, lambda s: s.queues[0].descriptor_area, QUEUE_OPEN),
    Written("queue_driver", 0x12_3456_7890, lambda s: s.queues[0].driver_area, QUEUE_OPEN),
    Written("queue_device", 0x12_3456_7890, lambda s: s.queues[0].device_area, QUEUE_OPEN),
    Written("queue_enable", 1, lambda s: int(s.queues[0].ready), QUEUE_OPEN),
    Written("queue_enable", 2, lambda s: int(s.queues[0].ready), set()),
]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture(params=["pci", "mmio"])
def pc(request: pytest.FixtureRequest, echo: Echo) -> Iterator[Pc]:
    pc = Pc(echo, transport=request.param)
    yield pc
    pc.close()


@pytest.fixture
def driver(pc: Pc) -> VirtioDriver:
    return pc.driver()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("written", TABLE, ids=lambda w: f"{w.name}={w.value:#x}")
def test_each_register_in_each_state(
    pc: Pc, driver: VirtioDriver, state: str, written: Written
) -> None:
    STATES[state](driver)
    driver.set("queue_select", 0)
    driver.set("driver_feature_select", 0)
    session = pc.transports[0].session
    before, status = written.observed(session), session.status
    driver.set(written.name, written.value)
    assert written.observed(session) == (written.value if state in written.open else before)
    assert session.status == status


@pytest.mark.parametrize("state", STATES)
def test_selectors_can_always_be_written_and_only_select(
    pc: Pc, driver: VirtioDriver, state: str
) -> None:
    STATES[state](driver)
    before = pc.transports[0].session.save()
    driver.set("device_feature_select", 1)
    assert driver.get("device_feature") == 1
    driver.set("queue_select", 1)
    assert driver.get("queue_size") == 4
    assert driver.get("queue_enable") == 0
    driver.set("driver_feature_select", 7)
    driver.set("driver_feature", WORD)
    driver.set("queue_select", 2)
    for name in ("queue_size", "queue_desc", "queue_driver", "queue_device", "queue_enable"):
        driver.set(name, 1)
    assert driver.get("queue_size") == 0
    assert driver.get("queue_enable") == 0
    assert pc.transports[0].session.save() == before


# What the driver writes to the status, and what can be read then.
STATUS = [
    ("reset", ACKNOWLEDGE, ACKNOWLEDGE),
    ("reset", DRIVER_OK, 0),
    ("reset", FEATURES_OK, 0),
    ("reset", 0x30, 0),
    ("reset", NEEDS_RESET, 0),
    ("acknowledged", FEATURES_OK, ACKNOWLEDGE | DRIVER),
    ("acknowledged", 0, 0),
    ("acknowledged", 128, ACKNOWLEDGE | DRIVER | 128),
    ("negotiated", DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK),
    ("negotiated", ACKNOWLEDGE, ACKNOWLEDGE | DRIVER | FEATURES_OK),
    ("queue enabled", 0, 0),
    ("running", ACKNOWLEDGE, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK),
    ("running", 0, 0),
    ("broken", 0xF, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET),
    ("broken", 0, 0),
]


@pytest.mark.parametrize(("state", "value", "expected"), STATUS)
def test_the_status(driver: VirtioDriver, state: str, value: int, expected: int) -> None:
    STATES[state](driver)
    driver.set("device_status", value)
    assert driver.status == expected


@pytest.mark.parametrize("state", STATES)
def test_a_reset_undoes_everything(pc: Pc, driver: VirtioDriver, state: str) -> None:
    fresh = pc.transports[0].save()
    STATES[state](driver)
    driver.set("device_feature_select", 1)
    driver.set("driver_feature_select", 1)
    driver.set("queue_select", 1)
    driver.reset()
    state_now = pc.transports[0].save()
    for name, value in fresh.items():
        if name in ("session", "interrupt_status", "isr") or "select" in name:
            assert state_now[name] == value


def test_without_a_driver_nothing_interrupts(pc: Pc, driver: VirtioDriver, echo: Echo) -> None:
    """Not even what was about to when the driver went."""
    driver.start(msix=False)
    driver.reset()
    echo.config_changed()
    pc.transports[0].session.queues[0]._interrupt()
    pc.transports[0].session._config_interrupt()
    assert driver.isr() == 0
    assert pc.intx_changes.empty()
    assert all(changes.empty() for changes in pc.mmio_changes)
    assert driver.get("config_generation") == 1


def test_exactly_what_is_implemented_is_offered(driver: VirtioDriver) -> None:
    assert driver.offered() == TYPE_FEATURES | EVENT_IDX | INDIRECT_DESC | VERSION_1
    for word in (2, 3, 4, WORD):
        driver.set("device_feature_select", word)
        assert driver.get("device_feature") == 0


def test_queues_are_served(driver: VirtioDriver, echo: Echo) -> None:
    ring = driver.start()
    ring.add([], [(0x8000, 4)])
    ring.kick()
    assert echo.rung(0) == 1
    assert echo.serve() == 1
    assert not driver.wait_for_interrupt()
    assert ring.take() == [(0, 4)]
    echo.config_changed()
    assert driver.wait_for_interrupt()
    assert driver.get("config_generation") == 1
