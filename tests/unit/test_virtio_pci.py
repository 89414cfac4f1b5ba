"""virtio over PCI: every register as the specification has it, the status machine, interrupts,
doorbells, and a guest that writes anything anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.virtio_driver import (
    ACKNOWLEDGE,
    COMMON,
    COMMON_CFG,
    DEVICE_CFG,
    DRIVER,
    DRIVER_OK,
    EVENT_IDX,
    FEATURES_OK,
    INDIRECT_DESC,
    ISR_CFG,
    NEEDS_RESET,
    NO_VECTOR,
    NOTIFY_CFG,
    VERSION_1,
    Pc,
    VirtioDriver,
)
from unit.virtio_echo import CONFIG, TYPE_FEATURES, Echo

from pyvmm import layout
from pyvmm.virtio.device import DeviceId, VirtioDevice


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def pc(echo: Echo) -> Iterator[Pc]:
    pc = Pc(echo)
    yield pc
    pc.close()


@pytest.fixture
def driver(pc: Pc) -> VirtioDriver:
    return VirtioDriver(pc)


# What the driver finds.


def test_the_function_is_a_modern_virtio_device(driver: VirtioDriver) -> None:
    read = driver.function.read
    assert read(0x00, 4) == (0x1040 + 3) << 16 | 0x1AF4
    assert read(0x08, 1) >= 1
    assert read(0x08, 4) >> 8 == 0x078000
    assert read(0x2E, 2) >= 0x40
    assert read(0x3D, 1) == 1


def test_the_capabilities_describe_four_structures(driver: VirtioDriver) -> None:
    assert set(driver.structures) == {COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG}
    assert driver.pci_cfg
    assert driver.msix
    bar = driver.function.bar(4)
    assert driver.structures[COMMON_CFG].length >= 56
    assert driver.structures[DEVICE_CFG].length == len(CONFIG)
    assert driver.structures[NOTIFY_CFG].length >= driver.structures[NOTIFY_CFG].extra * 2
    assert driver.structures[NOTIFY_CFG].extra % 2 == 0
    for structure in driver.structures.values():
        assert structure.address % 4 == 0
        assert bar <= structure.address
        assert structure.address + structure.length <= bar + 0x4000
    for identity, offset in driver.function.capabilities():
        if identity == 0x09:
            kind, length = driver.function.read(offset + 3, 1), driver.function.read(offset + 2, 1)
            assert length == (20 if kind in (2, 5) else 16)


def test_there_is_one_msix_vector_for_each_queue_and_one_for_the_configuration(
    driver: VirtioDriver,
) -> None:
    assert driver.function.read(driver.msix + 2, 2) & 0x7FF == 2


def test_a_device_without_configuration_has_no_structure_for_it() -> None:
    class Plain(Echo):
        def __init__(self) -> None:
            VirtioDevice.__init__(self, DeviceId.ENTROPY, 0, (8,))
            self.active = None
            self.resets = 0

    pc = Pc(Plain())
    assert DEVICE_CFG not in VirtioDriver(pc).structures
    pc.close()


# The common configuration structure, field by field.

AFTER_RESET = {
    "device_feature_select": 0,
    "device_feature": (TYPE_FEATURES | EVENT_IDX | INDIRECT_DESC) & 0xFFFF_FFFF,
    "driver_feature_select": 0,
    "driver_feature": 0,
    "config_msix_vector": NO_VECTOR,
    "num_queues": 2,
    "device_status": 0,
    "config_generation": 0,
    "queue_select": 0,
    "queue_size": 16,
    "queue_msix_vector": NO_VECTOR,
    "queue_enable": 0,
    "queue_notify_off": 0,
    "queue_desc": 0,
    "queue_driver": 0,
    "queue_device": 0,
    "queue_notify_data": 0,
    "queue_reset": 0,
}

# What is written, and what can be read then, in a device that has just been reset.
WRITES = [
    ("device_feature_select", 0xFFFF_FFFF, 0xFFFF_FFFF),
    ("device_feature", 0, AFTER_RESET["device_feature"]),
    ("driver_feature_select", 0x1234_5678, 0x1234_5678),
    ("driver_feature", 0xFFFF_FFFF, 0xFFFF_FFFF),
    ("config_msix_vector", 2, 2),
    ("config_msix_vector", 3, NO_VECTOR),
    ("num_queues", 7, 2),
    ("device_status", ACKNOWLEDGE, ACKNOWLEDGE),
    ("device_status", 0x70, 0),
    ("config_generation", 9, 0),
    ("queue_select", 0xFFFF, 0xFFFF),
    ("queue_size", 8, 8),
    ("queue_size", 32, 16),
    ("queue_size", 5, 16),
    ("queue_size", 0, 16),
    ("queue_msix_vector", 1, 1),
    ("queue_msix_vector", 3, NO_VECTOR),
    ("queue_enable", 1, 1),
    ("queue_enable", 0, 0),
    ("queue_notify_off", 5, 0),
    ("queue_desc", 0x1234_5678_9ABC_DEF0, 0x1234_5678_9ABC_DEF0),
    ("queue_driver", 0xFEDC_BA98_7654_3210, 0xFEDC_BA98_7654_3210),
    ("queue_device", 0x0F0F_0F0F_F0F0_F0F0, 0x0F0F_0F0F_F0F0_F0F0),
    ("queue_notify_data", 1, 0),
    ("queue_reset", 1, 0),
]


@pytest.mark.parametrize("name", COMMON)
def test_registers_after_reset(driver: VirtioDriver, name: str) -> None:
    assert driver.get(name) == AFTER_RESET[name]


@pytest.mark.parametrize(("name", "value", "expected"), WRITES)
def test_registers_take_what_they_should(
    driver: VirtioDriver, name: str, value: int, expected: int
) -> None:
    driver.set(name, value)
    assert driver.get(name) == expected
    unchanged = [other for other in COMMON if other != name and not other.startswith("queue_")]
    selected_by = {"device_feature_select": "device_feature", "driver_feature_select": ""}
    for other in unchanged:
        if other != selected_by.get(name):
            assert driver.get(other) == AFTER_RESET[other]
    driver.reset()
    assert {other: driver.get(other) for other in COMMON} == AFTER_RESET


def test_64_bit_registers_are_written_in_halves(driver: VirtioDriver) -> None:
    base = driver.structures[COMMON_CFG].address
    driver.pc.mmio.write(base + 0x20, 4, 0x1111_2222)
    driver.pc.mmio.write(base + 0x24, 4, 0x3333_4444)
    assert driver.get("queue_desc") == 0x3333_4444_1111_2222
    driver.pc.mmio.write(base + 0x20, 4, 0)
    assert driver.pc.mmio.read(base + 0x24, 4) == 0x3333_4444


def test_features_come_in_words(driver: VirtioDriver) -> None:
    assert driver.offered() == TYPE_FEATURES | EVENT_IDX | INDIRECT_DESC | VERSION_1
    for word in (2, 3, 4, 0xFFFF_FFFF):
        driver.set("device_feature_select", word)
        assert driver.get("device_feature") == 0


def test_queue_registers_belong_to_the_selected_queue(driver: VirtioDriver) -> None:
    driver.set("queue_desc", 0x1000)
    driver.set("queue_select", 1)
    assert (driver.get("queue_size"), driver.get("queue_notify_off")) == (4, 1)
    assert driver.get("queue_desc") == 0
    driver.set("queue_select", 0)
    assert driver.get("queue_desc") == 0x1000


def test_a_queue_that_does_not_exist_has_size_0_and_ignores_writes(driver: VirtioDriver) -> None:
    driver.set("queue_select", 2)
    queue_registers = [n for n in COMMON if n.startswith("queue_") and n != "queue_select"]
    for name in queue_registers:
        driver.set(name, 1)
    expected = dict.fromkeys(queue_registers, 0) | {"queue_msix_vector": NO_VECTOR}
    assert {name: driver.get(name) for name in queue_registers} == expected


def test_an_enabled_queue_does_not_change(driver: VirtioDriver) -> None:
    ring = driver.add_queue()
    for name in ("queue_desc", "queue_driver", "queue_device"):
        driver.set(name, 0x5000)
    driver.set("queue_size", 2)
    driver.set("queue_enable", 0)
    assert driver.get("queue_desc") == ring.descriptors
    assert driver.get("queue_size") == 16
    assert driver.get("queue_enable") == 1


def test_device_configuration_is_read_in_any_width(driver: VirtioDriver, echo: Echo) -> None:
    assert [driver.config(n, 1) for n in range(12)] == list(CONFIG)
    assert driver.config(0, 4) == int.from_bytes(CONFIG[:4], "little")
    assert driver.config(2, 2) == int.from_bytes(CONFIG[2:4], "little")
    assert driver.config(4, 8) == int.from_bytes(CONFIG[4:], "little")
    assert driver.config(12, 4) == 0
    driver.pc.mmio.write(driver.structures[DEVICE_CFG].address + 4, 2, 0xABCD)
    assert echo.config_writes == [(4, 2, 0xABCD)]


# The status machine.


def test_the_driver_gets_through_initialisation(driver: VirtioDriver, echo: Echo) -> None:
    driver.negotiate()
    assert driver.status == ACKNOWLEDGE | DRIVER | FEATURES_OK
    driver.add_queue()
    assert echo.active is None
    driver.run()
    assert driver.status == ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
    assert echo.active is not None
    assert [queue.ready for queue in echo.active] == [True, False]
    assert echo.features_seen == driver.features


@pytest.mark.parametrize(
    "features", [0, TYPE_FEATURES, VERSION_1 | 1, VERSION_1 | 1 << 63, VERSION_1 | EVENT_IDX << 1]
)
def test_features_ok_is_refused(driver: VirtioDriver, echo: Echo, features: int) -> None:
    driver.negotiate(features)
    assert driver.status == ACKNOWLEDGE | DRIVER
    driver.run()
    assert driver.status == ACKNOWLEDGE | DRIVER
    assert echo.active is None


def test_features_beyond_64_bits_are_refused_too(driver: VirtioDriver) -> None:
    driver.set("driver_feature_select", 1)
    driver.set("driver_feature", VERSION_1 >> 32)
    driver.set("driver_feature_select", 3)
    driver.set("driver_feature", 1)
    driver.set("device_status", ACKNOWLEDGE | DRIVER | FEATURES_OK)
    assert not driver.status & FEATURES_OK


def test_features_are_fixed_by_features_ok(driver: VirtioDriver) -> None:
    driver.negotiate(VERSION_1)
    driver.set("driver_feature_select", 0)
    driver.set("driver_feature", EVENT_IDX)
    assert driver.get("driver_feature") == 0


def test_status_bits_are_not_taken_back_except_by_reset(driver: VirtioDriver, echo: Echo) -> None:
    driver.start()
    driver.set("device_status", ACKNOWLEDGE)
    assert driver.status & DRIVER_OK
    resets = echo.resets
    driver.reset()
    assert echo.resets == resets + 1
    assert echo.active is None


def test_a_queue_can_not_be_enabled_once_the_driver_runs(driver: VirtioDriver) -> None:
    driver.negotiate()
    driver.run()
    driver.add_queue()
    assert driver.get("queue_enable") == 0


@pytest.mark.parametrize("name", ["queue_desc", "queue_driver", "queue_device"])
@pytest.mark.parametrize("address", [0xF000_0000, 1, (1 << 64) - 16])
def test_rings_outside_memory_need_a_reset(
    pc: Pc, driver: VirtioDriver, echo: Echo, name: str, address: int
) -> None:
    driver.negotiate()
    driver.enable_msix()
    driver.set("config_msix_vector", 0)
    driver.set(name, address)
    driver.set("queue_enable", 1)
    driver.run()
    assert driver.status & NEEDS_RESET
    assert pc.msi.fired == [(layout.LOCAL_APIC, 1)]
    assert echo.active is None
    driver.start()
    assert echo.active is not None


def test_a_broken_queue_needs_a_reset_and_says_so_once(
    pc: Pc, driver: VirtioDriver, echo: Echo
) -> None:
    ring = driver.start()
    ring.offer(16)
    echo.serve()
    echo.serve()
    assert driver.status & NEEDS_RESET
    assert pc.msi.fired == [(layout.LOCAL_APIC, 1)]
    assert len(pc.faults.lines) == 1
    driver.set("device_status", 0xFF)
    assert driver.status & NEEDS_RESET
    ring = driver.start()
    assert not driver.status & NEEDS_RESET
    ring.add([], [(0x8000, 4)])
    assert echo.serve() == 1
    assert ring.wait() == [(0, 4)]


# Interrupts.


def test_msix_vectors_for_queues_and_configuration(
    pc: Pc, driver: VirtioDriver, echo: Echo
) -> None:
    ring = driver.start()
    ring.add([(0x8000, 4)], [])
    echo.serve()
    echo.config_changed()
    assert pc.msi.fired == [(layout.LOCAL_APIC, 1), (layout.LOCAL_APIC, 2)]
    assert driver.isr() == 0
    assert driver.get("config_generation") == 1
    assert pc.intx_changes.empty()


def test_without_a_vector_msix_is_silent(pc: Pc, driver: VirtioDriver, echo: Echo) -> None:
    ring = driver.start()
    driver.set("queue_msix_vector", NO_VECTOR)
    driver.set("config_msix_vector", NO_VECTOR)
    ring.add([(0x8000, 4)], [])
    echo.serve()
    echo.config_changed()
    assert pc.msi.fired == []
    assert pc.intx_changes.empty()


def test_intx_is_a_level_until_the_isr_is_read(pc: Pc, driver: VirtioDriver, echo: Echo) -> None:
    ring = driver.start(msix=False)
    ring.add([(0x8000, 4)], [])
    echo.serve()
    assert pc.intx_changes.get_nowait() == (1, True)
    echo.config_changed()
    assert driver.isr() == 3
    assert pc.intx_changes.get_nowait() == (1, False)
    assert driver.isr() == 0
    assert pc.intx_changes.empty()


def test_a_reset_lets_go_of_the_pin(pc: Pc, driver: VirtioDriver, echo: Echo) -> None:
    ring = driver.start(msix=False)
    ring.add([(0x8000, 4)], [])
    echo.serve()
    driver.reset()
    assert not pc.intx[1].level
    assert driver.isr() == 0


def test_the_configuration_interrupt_waits_for_a_driver(
    pc: Pc, driver: VirtioDriver, echo: Echo
) -> None:
    echo.config_changed()
    assert not pc.intx[1].level
    assert driver.get("config_generation") == 1


# Doorbells.


def test_each_queue_has_a_doorbell(driver: VirtioDriver, echo: Echo) -> None:
    driver.negotiate()
    first, second = driver.add_queue(0), driver.add_queue(1)
    assert first.doorbell != second.doorbell
    first.kick()
    assert echo.rung(0) == 0, "not before DRIVER_OK"
    driver.run()
    second.kick()
    second.kick()
    assert (echo.rung(0), echo.rung(1)) == (0, 2)


def test_ioeventfds_are_there_while_the_driver_runs() -> None:
    echo = Echo()
    pc = Pc(echo, doorbells=True)
    assert pc.doorbells is not None
    driver = VirtioDriver(pc)
    ring = driver.start()
    assert pc.doorbells.attached == {
        (ring.doorbell, None): (0, echo.doorbells[0]),
        (ring.doorbell + 4, None): (0, echo.doorbells[1]),
    }
    ring.kick()
    assert echo.rung(0) == 1
    driver.reset()
    assert pc.doorbells.attached == {}
    pc.close()


def test_ioeventfds_follow_the_bar() -> None:
    echo = Echo()
    pc = Pc(echo, doorbells=True)
    assert pc.doorbells is not None
    driver = VirtioDriver(pc)
    driver.start()
    before = set(pc.doorbells.attached)
    old = driver.function.bar(4)
    driver.function.write(0x20, 4, 0xD000_0000)
    assert set(pc.doorbells.attached) == {
        (address - old + 0xD000_0000, None) for address, _ in before
    }
    driver.function.write(0x04, 2, 0)
    assert pc.doorbells.attached == {}
    driver.function.write(0x04, 2, 2)
    assert len(pc.doorbells.attached) == 2
    pc.pci.reset()
    assert pc.doorbells.attached == {}
    pc.close()


# VIRTIO_PCI_CAP_PCI_CFG.


class Window:
    """Registers by way of configuration space."""

    def __init__(self, driver: VirtioDriver) -> None:
        self._function, self._capability = driver.function, driver.pci_cfg

    def select(self, bar: int, offset: int, length: int) -> None:
        self._function.write(self._capability + 4, 1, bar)
        self._function.write(self._capability + 8, 4, offset)
        self._function.write(self._capability + 12, 4, length)

    def read(self, bar: int, offset: int, length: int) -> int:
        self.select(bar, offset, length)
        return self._function.read(self._capability + 16, length)

    def write(self, bar: int, offset: int, length: int, value: int) -> None:
        self.select(bar, offset, length)
        self._function.write(self._capability + 16, length, value)


def test_the_bars_can_be_reached_through_configuration_space(
    driver: VirtioDriver, echo: Echo
) -> None:
    window = Window(driver)
    driver.function.write(0x04, 2, 0)
    assert window.read(4, 0x12, 2) == 2
    window.write(4, 0x14, 1, ACKNOWLEDGE)
    assert window.read(4, 0x14, 1) == ACKNOWLEDGE
    assert window.read(4, 0x2000, 4) == int.from_bytes(CONFIG[:4], "little")
    window.write(1, 8, 4, 0x77)
    assert window.read(1, 8, 4) == 0x77


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [(0, 0, 4), (7, 0, 4), (4, 0x4000, 4), (4, 2, 4), (4, 0, 3), (4, 0, 8), (4, 0xFFFF_FFFC, 4)],
)
def test_what_lies_outside_the_bars_can_not(
    driver: VirtioDriver, bar: int, offset: int, length: int
) -> None:
    window = Window(driver)
    window.select(bar, offset, length)
    driver.function.write(driver.pci_cfg + 16, 4, 0xAAAA_5555)
    assert driver.function.read(driver.pci_cfg + 16, 4) == 0xAAAA_5555
    assert driver.status == 0


# State.


def test_a_platform_reset_ends_the_session(pc: Pc, driver: VirtioDriver, echo: Echo) -> None:
    driver.start()
    pc.pci.reset()
    assert echo.active is None
    assert {name: driver.get(name) for name in COMMON} == AFTER_RESET
    assert driver.function.read(driver.msix + 2, 2) == 2


def test_state_survives_save_and_restore(pc: Pc, driver: VirtioDriver, echo: Echo) -> None:
    ring = driver.start()
    ring.add([], [(0x8000, 4)])
    echo.serve()
    ring.take()
    registers = {name: driver.get(name) for name in COMMON}
    state = pc.pci.save()

    echo_there = Echo()
    there = Pc(echo_there)
    there.memory.write(0, pc.memory.read(0, pc.memory.size))
    there.pci.restore(state)
    driver.pc, ring.memory = there, there.memory
    assert {name: driver.get(name) for name in COMMON} == registers
    ring.wants_interrupts()
    head = ring.add([], [(0x8000, 8)])
    assert echo_there.serve() == 1
    assert ring.wait() == [(head, 8)]
    assert there.msi.fired == [(layout.LOCAL_APIC, 2)]
    there.close()


# Whatever a guest does.

BAR_OFFSETS = st.one_of(
    st.sampled_from([offset for offset, _ in COMMON.values()]),
    st.integers(0, 0x40),
    st.sampled_from([0x1000, 0x2000, 0x3000, 0x3004, 0x3FFC]),
    st.integers(0, 0x3FFF),
)
VALUES = st.one_of(
    st.integers(0, 15),
    st.sampled_from([0x8000, 0x10_0000, 0xFFFF, 0xC000_0000, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
ACCESSES = st.lists(
    st.tuples(st.sampled_from("crrrw"), BAR_OFFSETS, st.sampled_from([1, 2, 4, 8]), VALUES),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(accesses=ACCESSES, progress=st.integers(0, 3))
def test_no_access_in_any_state_breaks_the_device(
    accesses: list[tuple[str, int, int, int]], progress: int
) -> None:
    echo = Echo()
    pc = Pc(echo, doorbells=True)
    driver = VirtioDriver(pc)
    if progress == 1:
        driver.negotiate()
    elif progress == 2:
        driver.start()
    elif progress == 3:
        driver.start(msix=False).offer(99)
        echo.serve()
    for kind, offset, size, value in accesses:
        value &= (1 << 8 * size) - 1
        bar = driver.function.bar(4)
        if kind == "r":
            read = pc.mmio.read(bar + offset, size)
            assert 0 <= read < 1 << 8 * size
        elif kind == "w":
            pc.write(bar + offset, size, value)
        else:
            driver.function.write(offset & 0xFF, min(size, 4), value & 0xFFFF_FFFF)
            driver.function.read(offset & 0xFF, min(size, 4))
        if echo.active is not None:
            for index, queue in enumerate(echo.active):
                if queue.ready:
                    echo.serve(index)
    pc.pci.reset()
    driver = VirtioDriver(pc)
    ring = driver.start()
    head = ring.add([], [(0x8000, 4)])
    assert echo.serve() == 1
    assert ring.wait() == [(head, 4)]
    pc.close()
