"""PCI as firmware and an operating system use it: configuration space by both mechanisms, BARs,
INTx and MSI-X."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fakes import FakeMsi, RecordingFaults, RecordingLine
from unit.virtio_driver import ResetRegister

from pyvmm import layout
from pyvmm.bus import MMIO_SPACE, PIO_SPACE, Bus, Device
from pyvmm.devices.pci import (
    INTA,
    Bar,
    BarKind,
    CapabilityId,
    ConfigPorts,
    PciBus,
    PciFunction,
    PciIdentity,
)
from pyvmm.errors import ConfigError
from pyvmm.interrupts import SharedIrq

COMMAND, STATUS, HEADER_TYPE, BAR0 = 0x04, 0x06, 0x0E, 0x10
IO, MEMORY, MASTER, INTX_DISABLE = 1, 2, 4, 0x400


class Registers(Device):
    """Answers with its offset and remembers what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset & 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


class Card(PciFunction):
    """A function with every kind of BAR, an interrupt pin and MSI-X."""

    def __init__(self, msi: FakeMsi) -> None:
        identity = PciIdentity(0x1234, 0x5678, 0x0C0330, 7, 0xAAAA, 0xBBBB)
        super().__init__(identity, interrupt_pin=INTA)
        self.registers = Registers()
        self.moves: list[tuple[str, int, int | None]] = []
        self.add_bar(0, 0x1000, BarKind.MEMORY32, self.registers, "card registers")
        self.add_bar(1, 0x20, BarKind.IO, self.registers, "card ports")
        self.add_bar(2, 0x10000, BarKind.MEMORY64_PREFETCHABLE, self.registers, "card memory")
        self.add_msix(4, 3, msi, "card")

    def bar_mapped(self, bar: Bar) -> None:
        self.moves.append(("mapped", bar.index, bar.mapped_at))

    def bar_unmapped(self, bar: Bar) -> None:
        self.moves.append(("unmapped", bar.index, bar.mapped_at))


class Pc:
    """Buses, PCI and ``cards``, from slot 1 on; device ``d`` is accessed by ECAM."""

    def __init__(self, cards: int = 1) -> None:
        self.faults = RecordingFaults()
        self.mmio = Bus("MMIO", MMIO_SPACE, self.faults)
        self.pio = Bus("port", PIO_SPACE, self.faults, flat=True)
        self.lines = [RecordingLine() for _ in range(8)]
        self.pci = PciBus(self.mmio, self.pio, [SharedIrq(x) for x in self.lines], self.faults)
        self.reset_register = ResetRegister()
        self.ports = ConfigPorts(self.pci, self.reset_register)
        self.pio.add(layout.PCI_CONFIG, 8, self.ports, "PCI configuration", max_size=4)
        self.mmio.add(layout.ECAM, layout.ECAM_SIZE, self.pci.ecam, "ECAM", max_size=4)
        self.msi = FakeMsi()
        self.cards = [Card(self.msi) for _ in range(cards)]
        for card in self.cards:
            self.pci.add(card)
        self.pci.assign_bars()

    def read(self, offset: int, size: int, device: int = 1, function: int = 0) -> int:
        return self.mmio.read(layout.ECAM + (device << 15 | function << 12 | offset), size)

    def write(self, offset: int, size: int, value: int, device: int = 1) -> None:
        self.mmio.write(layout.ECAM + (device << 15 | offset), size, value)

    def mapped(self) -> dict[str, int]:
        """Where each of the cards' BARs answers."""
        ranges = (*self.mmio.ranges(), *self.pio.ranges())
        return {r.name: r.base for r in ranges if r.name.startswith("card")}


@pytest.fixture
def pc() -> Pc:
    return Pc()


# Configuration mechanism 1.


def outl(pc: Pc, value: int) -> None:
    pc.pio.write(0xCF8, 4, value)


def test_mechanism_1_is_found_the_way_linux_looks_for_it(pc: Pc) -> None:
    pc.pio.write(0xCFB, 1, 1)
    old = pc.pio.read(0xCF8, 4)
    outl(pc, 0x8000_0000)
    assert pc.pio.read(0xCF8, 4) == 0x8000_0000
    outl(pc, old)


def test_config_data_gives_bytes_words_and_dwords(pc: Pc) -> None:
    outl(pc, 0x8000_0000 | 1 << 11)
    assert pc.pio.read(0xCFC, 4) == 0x5678_1234
    assert [pc.pio.read(0xCFC + n, 1) for n in range(4)] == [0x34, 0x12, 0x78, 0x56]
    assert pc.pio.read(0xCFE, 2) == 0x5678
    outl(pc, 0x8000_0000 | 1 << 11 | COMMAND)
    pc.pio.write(0xCFC, 2, MASTER)
    assert pc.read(COMMAND, 2) == MASTER


def test_config_address_keeps_its_reserved_bits_zero_and_needs_bit_31(pc: Pc) -> None:
    outl(pc, 0xFFFF_FFFF)
    assert pc.pio.read(0xCF8, 4) == 0x80FF_FFFC
    outl(pc, 1 << 11)
    assert pc.pio.read(0xCFC, 4) == 0xFFFF_FFFF
    pc.pio.write(0xCFC, 4, 0)


def test_only_dwords_reach_config_address(pc: Pc) -> None:
    outl(pc, 0x8000_0800)
    for port, size in ((0xCF8, 1), (0xCF8, 2), (0xCFA, 2), (0xCFA, 1), (0xCF9, 2)):
        pc.pio.write(port, size, 0)
        assert pc.pio.read(port, size) == (1 << 8 * size) - 1
    assert pc.pio.read(0xCF8, 4) == 0x8000_0800
    assert pc.reset_register.value == 0


def test_byte_accesses_to_cf9_go_to_the_reset_register(pc: Pc) -> None:
    outl(pc, 0x8000_0800)
    pc.pio.write(0xCF9, 1, 0x06)
    assert pc.reset_register.value == 0x06
    assert pc.pio.read(0xCF9, 1) == 0x06
    assert pc.pio.read(0xCF8, 4) == 0x8000_0800


def test_config_address_is_saved_and_reset(pc: Pc) -> None:
    outl(pc, 0x8000_0804)
    state = pc.ports.save()
    pc.ports.reset()
    assert pc.pio.read(0xCF8, 4) == 0
    pc.ports.restore(state)
    assert pc.pio.read(0xCF8, 4) == 0x8000_0804


# The bus.


def test_the_host_bridge_is_device_0(pc: Pc) -> None:
    assert pc.read(0, 4, device=0) == 0x0008_1B36
    assert pc.read(0x08, 4, device=0) >> 8 == 0x06_00_00
    assert pc.read(HEADER_TYPE, 1, device=0) == 0


def test_absent_functions_read_all_ones_and_ignore_writes(pc: Pc) -> None:
    for size in (1, 2, 4):
        assert pc.read(0, size, device=2) == (1 << 8 * size) - 1
        assert pc.read(0, size, function=1) == (1 << 8 * size) - 1
    pc.write(COMMAND, 2, 0xFFFF, device=2)
    outl(pc, 0x8000_0000 | 1 << 16)
    assert pc.pio.read(0xCFC, 4) == 0xFFFF_FFFF, "there is only bus 0"


def test_both_mechanisms_see_the_same_and_extended_space_is_empty(pc: Pc) -> None:
    for offset in range(0, 256, 4):
        outl(pc, 0x8000_0000 | 1 << 11 | offset)
        assert pc.pio.read(0xCFC, 4) == pc.read(offset, 4)
    assert pc.read(0x100, 4) == 0
    assert pc.read(0xFE, 4) == 0, "an access across the end"
    pc.write(0xFE, 4, 0xFFFF_FFFF)


def test_identity(pc: Pc) -> None:
    assert pc.read(0x00, 4) == 0x5678_1234
    assert pc.read(0x08, 4) == 0x0C0330_07
    assert pc.read(0x2C, 4) == 0xBBBB_AAAA
    assert pc.read(0x3D, 1) == 1
    assert pc.read(STATUS, 2) & 0x10
    for offset in (0x00, 0x08, 0x0C, 0x2C, 0x30, 0x34):
        before = pc.read(offset, 4)
        pc.write(offset, 4, ~before & 0xFFFF_FFFF)
        assert pc.read(offset, 4) == before


def test_slots_are_given_out_in_order_until_there_are_none(pc: Pc) -> None:
    assert [pc.pci.add(Card(pc.msi)) for _ in range(30)] == list(range(2, 32))
    with pytest.raises(ConfigError):
        pc.pci.add(Card(pc.msi))


def test_a_slot_can_be_chosen_once(pc: Pc) -> None:
    assert pc.pci.add(Card(pc.msi), 9) == 9
    with pytest.raises(ValueError):
        pc.pci.add(Card(pc.msi), 9)


def test_the_multi_function_bit_tells_of_siblings(pc: Pc) -> None:
    assert pc.read(HEADER_TYPE, 1) == 0
    pc.pci.add(Card(pc.msi), 1, 3)
    assert pc.read(HEADER_TYPE, 1) == 0x80
    assert pc.read(0, 4, function=3) == 0x5678_1234


def test_capabilities_are_a_list(pc: Pc) -> None:
    first = pc.read(0x34, 1)
    assert pc.read(first, 1) == 0x11
    assert pc.read(first + 1, 1) == 0
    second = pc.cards[0].add_capability(CapabilityId.VENDOR_SPECIFIC, b"\x06abc", b"\0\xff")
    assert pc.read(first + 1, 1) == second
    assert second % 4 == 0
    pc.write(second, 4, 0)
    pc.write(second + 4, 2, 0x5A5A)
    assert pc.read(second, 4) == 0x00_06_00_09, "only the fourth byte is writable"
    assert pc.read(second + 4, 2) == int.from_bytes(b"bc", "little")


# BARs.


def test_firmware_has_placed_the_bars_and_switched_decoding_on(pc: Pc) -> None:
    assert pc.read(COMMAND, 2) == IO | MEMORY
    assert pc.read(0x3C, 1) == 17
    places = pc.mapped()
    assert set(places) == {"card registers", "card ports", "card memory", "card MSI-X"}
    assert places["card memory"] == layout.PCI_WINDOW
    assert places["card ports"] == layout.PCI_IO_WINDOW
    assert pc.read(BAR0, 4) == places["card registers"]
    assert pc.read(BAR0 + 4, 4) == places["card ports"] | 1
    assert pc.read(BAR0 + 8, 4) == places["card memory"] | 0xC
    assert pc.read(BAR0 + 12, 4) == 0


def test_many_cards_get_bars_that_are_aligned_and_apart() -> None:
    pc = Pc(cards=20)
    for card in pc.cards:
        for bar in card.bars.values():
            assert bar.mapped_at is not None
            assert bar.mapped_at % bar.size == 0
    assert not pc.faults.counts


def test_a_window_that_is_too_small_is_the_users_error() -> None:
    faults = RecordingFaults()
    mmio, pio = Bus("MMIO", MMIO_SPACE, faults), Bus("port", PIO_SPACE, faults, flat=True)
    lines = [SharedIrq(RecordingLine()) for _ in range(8)]
    pci = PciBus(mmio, pio, lines, faults, memory_window=(0xC000_0000, 0xC000_2000))
    pci.add(Card(FakeMsi()))
    with pytest.raises(ConfigError):
        pci.assign_bars()


@pytest.mark.parametrize(
    ("register", "size"),
    [(0x10, 0x1000), (0x14, 0x20), (0x20, 0x1000)],
    ids=["memory", "I/O", "MSI-X"],
)
@pytest.mark.parametrize("decoding", [0, IO | MEMORY], ids=["off", "on"])
def test_all_ones_gives_the_size(pc: Pc, register: int, size: int, decoding: int) -> None:
    pc.write(COMMAND, 2, decoding)
    before = pc.read(register, 4)
    places = pc.mapped()
    pc.write(register, 4, 0xFFFF_FFFF)
    flags = before & (3 if before & 1 else 0xF)
    assert pc.read(register, 4) == (1 << 32) - size | flags
    pc.write(register, 4, before)
    assert pc.mapped() == places
    assert not pc.faults.counts, "sizing is no fault"


def test_sizing_a_64_bit_bar(pc: Pc) -> None:
    low = pc.read(0x18, 4)
    pc.write(0x18, 4, 0xFFFF_FFFF)
    pc.write(0x1C, 4, 0xFFFF_FFFF)
    assert pc.read(0x18, 4) == 0xFFFF_000C
    assert pc.read(0x1C, 4) == 0xFFFF_FFFF
    pc.write(0x18, 4, low)
    pc.write(0x1C, 4, 0)
    assert pc.mapped()["card memory"] == low & ~0xF


def test_bars_that_do_not_exist_read_zero(pc: Pc) -> None:
    pc.write(0x24, 4, 0xFFFF_FFFF)
    assert pc.read(0x24, 4) == 0


def test_decoding_follows_the_command_register(pc: Pc) -> None:
    place = pc.mapped()["card registers"]
    assert pc.mmio.read(place + 0x10, 4) == 0x10
    pc.write(COMMAND, 2, IO)
    assert set(pc.mapped()) == {"card ports"}
    assert pc.mmio.read(place + 0x10, 4) == 0xFFFF_FFFF
    pc.write(COMMAND, 2, MEMORY)
    assert set(pc.mapped()) == {"card registers", "card memory", "card MSI-X"}
    pc.write(COMMAND + 1, 1, 0)
    assert pc.mmio.read(place + 0x10, 4) == 0x10


def test_a_bar_moves_and_the_function_is_told(pc: Pc) -> None:
    card = pc.cards[0]
    old, new = pc.mapped()["card registers"], 0xC800_0000
    card.moves.clear()
    pc.write(BAR0, 4, new)
    assert card.moves == [("unmapped", 0, old), ("mapped", 0, new)]
    pc.mmio.write(new + 8, 2, 0x1234)
    assert card.registers.written == [(8, 2, 0x1234)]


def test_firmware_has_a_window_of_its_own(pc: Pc) -> None:
    address = layout.IOAPIC - 0x10_0000
    pc.write(BAR0, 4, address)
    assert pc.mapped()["card registers"] == address


@pytest.mark.parametrize(
    "address",
    [0, layout.PCI_WINDOW - 0x1000, layout.IOAPIC, layout.LOCAL_APIC],
)
def test_an_address_outside_the_window_leaves_the_bar_unmapped(pc: Pc, address: int) -> None:
    pc.write(BAR0, 4, address)
    assert "card registers" not in pc.mapped()
    assert pc.faults.counts["PCI BAR outside its window"]
    assert pc.read(BAR0, 4) == address, "the register itself takes any value"
    pc.write(BAR0, 4, 0xC900_0000)
    assert pc.mapped()["card registers"] == 0xC900_0000


def test_an_overlap_is_refused_until_the_other_has_moved() -> None:
    pc = Pc(cards=2)
    first, second = pc.cards[0].bars[0], pc.cards[1].bars[0]
    contested = second.mapped_at
    assert contested is not None
    pc.write(BAR0, 4, contested, device=1)
    assert (first.mapped_at, second.mapped_at) == (None, contested)
    assert pc.faults.counts["PCI BAR where there is something"] == 1
    pc.write(BAR0, 4, 0xD000_0000, device=2)
    assert (first.mapped_at, second.mapped_at) == (contested, 0xD000_0000)


def test_a_reset_undoes_what_the_guest_did(pc: Pc) -> None:
    config = [pc.read(offset, 4) for offset in range(0, 256, 4)]
    places = pc.mapped()
    pc.write(BAR0, 4, 0xC800_0000)
    pc.write(COMMAND, 2, MASTER | INTX_DISABLE)
    pc.write(pc.read(0x34, 1) + 2, 2, 0xC000)
    pc.cards[0].set_intx(True)
    pc.pci.reset()
    assert [pc.read(offset, 4) for offset in range(0, 256, 4)] == config
    assert pc.mapped() == places


def test_state_survives_save_and_restore(pc: Pc) -> None:
    pc.write(BAR0, 4, 0xC800_0000)
    program_vector(pc, 1, 0xFEE0_1000, 0x41, masked=True)
    set_msix(pc, ENABLE)
    assert pc.cards[0].msix is not None
    pc.cards[0].msix.fire(1)
    config = [pc.read(offset, 4) for offset in range(0, 256, 4)]
    places = pc.mapped()
    state = pc.pci.save()
    other = Pc()
    other.pci.restore(state)
    assert [other.read(offset, 4) for offset in range(0, 256, 4)] == config
    assert other.mapped() == places
    mask_vector(other, 1, False)
    assert other.msi.fired == [(0xFEE0_1000, 0x41)]


# INTx.


def test_the_pin_drives_the_devices_wire_and_shows_in_the_status(pc: Pc) -> None:
    card = pc.cards[0]
    card.set_intx(True)
    assert [line.level for line in pc.lines] == [False, True] + [False] * 6
    assert pc.read(STATUS, 2) & 8
    card.set_intx(False)
    assert not pc.lines[1].level
    assert not pc.read(STATUS, 2) & 8


def test_the_wires_are_shared_by_every_eighth_device() -> None:
    pc = Pc(cards=9)
    pc.cards[0].set_intx(True)
    pc.cards[8].set_intx(True)
    pc.cards[0].set_intx(False)
    assert pc.lines[1].level
    pc.cards[8].set_intx(False)
    assert not pc.lines[1].level


def test_interrupt_disable_silences_the_pin_but_not_the_status(pc: Pc) -> None:
    pc.write(COMMAND, 2, INTX_DISABLE)
    pc.cards[0].set_intx(True)
    assert not pc.lines[1].level
    assert pc.read(STATUS, 2) & 8
    pc.write(COMMAND, 2, 0)
    assert pc.lines[1].level


# MSI-X.

ENABLE, FUNCTION_MASK = 0x8000, 0x4000


def set_msix(pc: Pc, control: int) -> None:
    pc.write(pc.read(0x34, 1) + 2, 2, control)


def mask_vector(pc: Pc, vector: int, masked: bool) -> None:
    pc.mmio.write(pc.mapped()["card MSI-X"] + 16 * vector + 12, 4, int(masked))


def program_vector(pc: Pc, vector: int, address: int, data: int, *, masked: bool = False) -> None:
    entry = pc.mapped()["card MSI-X"] + 16 * vector
    pc.mmio.write(entry, 4, address & 0xFFFF_FFFF)
    pc.mmio.write(entry + 4, 4, address >> 32)
    pc.mmio.write(entry + 8, 4, data)
    mask_vector(pc, vector, masked)


def pending(pc: Pc) -> int:
    return pc.mmio.read(pc.mapped()["card MSI-X"] + 0x800, 8)


def fire(pc: Pc, vector: int) -> None:
    msix = pc.cards[0].msix
    assert msix is not None
    msix.fire(vector)


def test_the_capability_says_where_the_table_is(pc: Pc) -> None:
    capability = pc.read(0x34, 1)
    assert pc.read(capability + 2, 2) == 3 - 1
    assert pc.read(capability + 4, 4) == 4
    assert pc.read(capability + 8, 4) == 0x800 | 4
    pc.write(capability + 2, 2, 0xFFFF)
    assert pc.read(capability + 2, 2) == 0xC002


def test_entries_begin_masked(pc: Pc) -> None:
    table = pc.mapped()["card MSI-X"]
    assert [pc.mmio.read(table + 16 * n + 12, 4) for n in range(3)] == [1, 1, 1]


def test_a_vector_fires_when_enabled_and_unmasked(pc: Pc) -> None:
    program_vector(pc, 1, 0xFEE0_1000, 0x4123)
    fire(pc, 1)
    assert pc.msi.fired == []
    set_msix(pc, ENABLE)
    fire(pc, 1)
    assert pc.msi.fired == [(0xFEE0_1000, 0x4123)]
    assert pending(pc) == 0


def test_an_entry_can_be_written_with_64_bit_accesses(pc: Pc) -> None:
    set_msix(pc, ENABLE)
    table = pc.mapped()["card MSI-X"]
    pc.mmio.write(table, 8, 0x1_FEE0_0000)
    pc.mmio.write(table + 8, 8, 0x77)
    assert pc.mmio.read(table, 8) == 0x1_FEE0_0000
    fire(pc, 0)
    assert pc.msi.fired == [(0x1_FEE0_0000, 0x77)]


@pytest.mark.parametrize("how", ["vector", "function"])
def test_what_fires_while_masked_is_pending_and_sent_once_on_unmasking(pc: Pc, how: str) -> None:
    program_vector(pc, 2, 0xFEE0_0000, 0x30, masked=how == "vector")
    set_msix(pc, ENABLE | (FUNCTION_MASK if how == "function" else 0))
    fire(pc, 2)
    fire(pc, 2)
    assert pc.msi.fired == []
    assert pending(pc) == 1 << 2
    if how == "vector":
        mask_vector(pc, 2, False)
    else:
        set_msix(pc, ENABLE)
    assert pc.msi.fired == [(0xFEE0_0000, 0x30)]
    assert pending(pc) == 0


def test_masking_and_unmasking_does_not_route_again(pc: Pc) -> None:
    program_vector(pc, 0, 0xFEE0_0000, 0x30)
    set_msix(pc, ENABLE)
    for _ in range(3):
        mask_vector(pc, 0, True)
        mask_vector(pc, 0, False)
    assert pc.msi.vectors[0].routes == [(0xFEE0_0000, 0x30)]
    mask_vector(pc, 0, True)
    program_vector(pc, 0, 0xFEE0_0000, 0x31, masked=True)
    assert len(pc.msi.vectors[0].routes) == 1, "not before it is unmasked"
    mask_vector(pc, 0, False)
    fire(pc, 0)
    assert pc.msi.fired == [(0xFEE0_0000, 0x31)]


def test_msix_silences_the_pin(pc: Pc) -> None:
    pc.cards[0].set_intx(True)
    set_msix(pc, ENABLE)
    assert not pc.lines[1].level
    set_msix(pc, 0)
    assert pc.lines[1].level


def test_closing_gives_the_vectors_back(pc: Pc) -> None:
    msix = pc.cards[0].msix
    assert msix is not None
    msix.close()
    assert all(vector.closed for vector in pc.msi.vectors)


# Whatever a guest does.

accesses = st.lists(
    st.tuples(
        st.booleans(),
        st.one_of(st.integers(0, 0x60), st.integers(0, 0x1FFF)),
        st.sampled_from([1, 2, 4, 8]),
        st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**64 - 1, 0xC010_0000, 7])),
    ),
    max_size=60,
)


@settings(max_examples=60)
@given(accesses=accesses)
def test_no_configuration_write_breaks_the_bus(
    accesses: list[tuple[bool, int, int, int]],
) -> None:
    pc = Pc(cards=2)
    fixed = [pc.read(offset, 4) for offset in (0x00, 0x08, 0x2C, 0x34)]
    for by_ports, offset, size, value in accesses:
        value &= (1 << 8 * size) - 1
        if by_ports:
            pc.pio.write(0xCF8, 4, 0x8000_0000 | 1 << 11 | offset & 0xFC)
            pc.pio.write(0xCFC + offset % 4, size, value)
            pc.pio.read(0xCFC + offset % 4, size)
        else:
            pc.write(offset, size, value)
            pc.read(offset, size)
        msix = pc.cards[0].bars[4].mapped_at
        if msix is not None:
            pc.mmio.write(msix + offset % 0x1000, size, value)
            pc.mmio.read(msix + offset % 0x1000, size)
    assert [pc.read(offset, 4) for offset in (0x00, 0x08, 0x2C, 0x34)] == fixed
    pc.pci.reset()
    assert all(bar.mapped_at for card in pc.cards for bar in card.bars.values())
