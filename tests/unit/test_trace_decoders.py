"""What a trace calls the registers, and what it says of the values in them: by device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.virtio_echo import Echo

from pyvmm.devices.pci import BarKind, CapabilityId, PciFunction, PciIdentity
from pyvmm.trace import debug
from pyvmm.trace.ata import AtaDecoder
from pyvmm.trace.cmos import CmosDecoder
from pyvmm.trace.i8042 import I8042Decoder
from pyvmm.trace.names import Bits, character, constants, flags, single_bits
from pyvmm.trace.parts import Decoder
from pyvmm.trace.pci import ConfigPortsDecoder, ConfigSpaceDecoder, EcamDecoder, MsixDecoder
from pyvmm.trace.pit import PitDecoder, PortBDecoder
from pyvmm.trace.power import PortADecoder, PowerDecoder
from pyvmm.trace.serial import SerialDecoder
from pyvmm.trace.virtio import VirtioMmioDecoder, VirtioPciDecoder
from pyvmm.virtio.device import DeviceId, VirtioDevice

READ, WRITE = False, True

Step = tuple[int, int, int, bool, str, str]
"""Offset, size, value, direction; then the register's name and the meaning."""


def follow(decoder: Decoder, *steps: Step) -> None:
    """The decoder says what each step expects, in this order."""
    for offset, size, value, write, register, meaning in steps:
        assert decoder(offset, size, value, write)[1:] == (register, meaning)


class TestSerial:
    def test_set_up_as_a_kernel_does_it(self) -> None:
        follow(
            SerialDecoder("serial COM1"),
            (3, 1, 0x83, WRITE, "LCR", "8 bits, no parity, DLAB"),
            (0, 1, 0x0C, WRITE, "DLL", "divisor 12: 9600 baud"),
            (1, 1, 0x00, WRITE, "DLM", "divisor 12: 9600 baud"),
            (3, 1, 0x03, WRITE, "LCR", "8 bits, no parity"),
            (1, 1, 0x05, WRITE, "IER", "interrupts: received data, line status"),
            (0, 1, 0x48, WRITE, "THR", "'H'"),
            (0, 1, 0x0A, READ, "RBR", r"'\n'"),
        )

    @pytest.mark.parametrize(
        ("offset", "value", "write", "register", "meaning"),
        [
            (0, 0xE4, WRITE, "THR", "0xe4"),
            (1, 0x00, READ, "IER", "interrupts: none"),
            (2, 0x00, WRITE, "FCR", "FIFOs off"),
            (2, 0xC7, WRITE, "FCR",
             "FIFOs on, clear receiver, clear transmitter, interrupt at 14 bytes"),
            (2, 0x01, WRITE, "FCR", "FIFOs on, interrupt at 1 byte"),
            (2, 0xC2, READ, "IIR", "THR_EMPTY, FIFOs on"),
            (2, 0x01, READ, "IIR", "NONE"),
            (3, 0x5E, WRITE, "LCR", "7 bits, 2 stop bits, even parity, break"),
            (4, 0x0B, WRITE, "MCR", "DTR, RTS, OUT2"),
            (5, 0x60, READ, "LSR", "THR_EMPTY, TRANSMITTER_EMPTY"),
            (6, 0xB0, READ, "MSR", "CTS, DSR, DCD"),
            (7, 0x55, WRITE, "SCR", ""),
        ],
    )  # fmt: skip
    def test_registers(
        self, offset: int, value: int, write: bool, register: str, meaning: str
    ) -> None:
        decoder = SerialDecoder("serial COM2")
        assert decoder(offset, 1, value, write) == ("serial COM2", register, meaning)

    def test_a_divisor_of_0(self) -> None:
        follow(
            SerialDecoder("serial COM1"),
            (3, 1, 0x80, WRITE, "LCR", "5 bits, no parity, DLAB"),
            (0, 1, 0x00, WRITE, "DLL", "divisor 0"),
        )


class TestPit:
    def test_a_periodic_interrupt(self) -> None:
        follow(
            PitDecoder("PIT"),
            (3, 1, 0x34, WRITE, "control word", "counter 0: rate generator, low, then high byte"),
            (0, 1, 0x9C, WRITE, "counter 0", "low byte"),
            (0, 1, 0x2E, WRITE, "counter 0", "high byte: 11932 pulses, 99.9985 Hz"),
            (3, 1, 0x00, WRITE, "control word", "counter 0: latch the count"),
            (0, 1, 0x10, READ, "counter 0", "low byte"),
            (0, 1, 0x01, READ, "counter 0", "high byte: 272"),
        )

    def test_half_a_count(self) -> None:
        follow(
            PitDecoder("PIT"),
            (3, 1, 0x50, WRITE, "control word", "counter 1: terminal count, low byte"),
            (1, 1, 0x12, WRITE, "counter 1", "18 pulses, 66287.9 Hz"),
            (3, 1, 0xA7, WRITE, "control word", "counter 2: square wave, high byte, BCD"),
            (2, 1, 0x00, WRITE, "counter 2", "65536 pulses, 18.2065 Hz"),
        )

    def test_reading_back(self) -> None:
        follow(
            PitDecoder("PIT"),
            (3, 1, 0xE2, WRITE, "control word", "read back status of 0"),
            (0, 1, 0x36, READ, "counter 0", "status: square wave"),
            (3, 1, 0xDE, WRITE, "control word", "read back count of 0, 1, 2"),
            (3, 1, 0xF0, WRITE, "control word", "read back nothing of no counter"),
        )

    def test_port_b(self) -> None:
        follow(PortBDecoder("PIT gate"), (0, 1, 0x21, READ, "port B", "GATE_2, OUT_2"))


class TestRtc:
    def test_the_index_says_what_data_are(self) -> None:
        follow(
            CmosDecoder("RTC"),
            (0, 1, 0x8A, WRITE, "index", "register A, NMI masked"),
            (1, 1, 0xA6, READ, "register A", "update in progress, divider 2, rate 6"),
            (0, 1, 0x04, WRITE, "index", "HOURS"),
            (1, 1, 0x23, READ, "HOURS", "23 in BCD"),
            (0, 1, 0x0B, WRITE, "index", "register B"),
            (1, 1, 0x06, WRITE, "register B", "HOURS_24, DM"),
            (0, 1, 0x04, WRITE, "index", "HOURS"),
            (1, 1, 0x17, READ, "HOURS", "23"),
            (0, 1, 0x0C, WRITE, "index", "register C"),
            (1, 1, 0xC0, READ, "register C", "PF, IRQF"),
            (0, 1, 0x0D, WRITE, "index", "register D"),
            (1, 1, 0x80, READ, "register D", "VRT"),
            (0, 1, 0x40, WRITE, "index", "RAM 0x40"),
            (1, 1, 0x01, WRITE, "RAM 0x40", ""),
        )


class TestKeyboardController:
    def test_commands_and_their_bytes(self) -> None:
        decoder = I8042Decoder("i8042")
        for port, value, write, register, meaning in (
            (decoder.command, 0xAA, WRITE, "command", "SELF_TEST"),
            (decoder.command, 0x15, READ, "status", "OUTPUT_FULL, SYSTEM_FLAG, NOT_LOCKED"),
            (decoder.data, 0x55, READ, "data", "self-test passed"),
            (decoder.command, 0x60, WRITE, "command", "WRITE_RAM 0 (command byte)"),
            (decoder.data, 0x41, WRITE, "data", "command byte: KEYBOARD_INTERRUPT, TRANSLATE"),
            (decoder.command, 0x20, WRITE, "command", "READ_RAM 0 (command byte)"),
            (decoder.data, 0x01, READ, "data", "command byte: KEYBOARD_INTERRUPT"),
            (decoder.command, 0x63, WRITE, "command", "WRITE_RAM 3"),
            (decoder.data, 0x41, WRITE, "data", "RAM"),
            (decoder.command, 0xD1, WRITE, "command", "WRITE_OUTPUT_PORT"),
            (decoder.data, 0x03, WRITE, "data", "output port: NOT_RESET, A20"),
            (decoder.command, 0xD4, WRITE, "command", "WRITE_TO_MOUSE"),
            (decoder.data, 0xF2, WRITE, "data", "to the mouse: IDENTIFY"),
            (decoder.data, 0xED, WRITE, "data", "to the keyboard: SET_LEDS"),
            (decoder.data, 0xFA, READ, "data", "ACK"),
            (decoder.data, 0x1C, READ, "data", ""),
            (decoder.command, 0xA9, WRITE, "command", "TEST_MOUSE_PORT"),
            (decoder.data, 0x00, READ, "data", "answer to TEST_MOUSE_PORT"),
            (decoder.command, 0xD0, WRITE, "command", "READ_OUTPUT_PORT"),
            (decoder.data, 0x03, READ, "data", "output port: NOT_RESET, A20"),
            (decoder.command, 0xD2, WRITE, "command", "WRITE_KEYBOARD_OUTPUT"),
            (decoder.data, 0x1C, WRITE, "data", "as if from a device"),
            (decoder.command, 0xFE, WRITE, "command", "PULSE_OUTPUT: reset"),
            (decoder.command, 0xFF, WRITE, "command", "PULSE_OUTPUT"),
            (decoder.command, 0x01, WRITE, "command", "no such command"),
        ):
            assert port(0, 1, value, write) == ("i8042", register, meaning)


class TestAta:
    def test_a_sector_is_read(self) -> None:
        ide = AtaDecoder("ide0")
        follow(
            ide.command,
            (6, 1, 0xF3, WRITE, "device", "drive 1, LBA 27:24 3"),
            (6, 1, 0xA5, READ, "device", "drive 0, head 5"),
            (2, 1, 0x01, WRITE, "count", ""),
            (7, 1, 0x20, WRITE, "command", "READ_SECTORS"),
            (7, 1, 0x31, WRITE, "command", "WRITE_SECTORS, no retries"),
            (7, 1, 0x58, READ, "status", "DRQ, DSC, DRDY"),
            (0, 2, 0x1234, READ, "data", ""),
            (1, 1, 0x04, READ, "error", "ABRT"),
            (1, 1, 0x82, WRITE, "features", "DISABLE_WRITE_CACHE"),
        )
        follow(
            ide.control,
            (0, 1, 0x06, WRITE, "device control", "NIEN, SRST"),
            (0, 1, 0x80, READ, "alternate status", "BSY"),
        )


class TestPower:
    def test_registers(self) -> None:
        acpi = PowerDecoder("ACPI")
        follow(
            acpi.event,
            (0, 2, 0x0100, READ, "PM1a_STS", "PWRBTN"),
            (0, 2, 0x0100, WRITE, "PM1a_STS", "clears PWRBTN"),
            (2, 2, 0x0120, WRITE, "PM1a_EN", "GBL, PWRBTN"),
            (3, 1, 0x01, READ, "PM1a_EN", "PWRBTN"),
            (0, 4, 0x0100_0001, READ, "PM1a_STS+EN", "TMR; enable PWRBTN"),
        )
        follow(
            acpi.control,
            (0, 2, 0x3400, WRITE, "PM1a_CNT", "SLP_EN, SLP_TYP 5, power off"),
            (0, 2, 0x2000, WRITE, "PM1a_CNT", "SLP_EN, power off"),
            (0, 2, 0x0001, READ, "PM1a_CNT", "SCI_EN"),
            (0, 2, 0x0000, WRITE, "PM1a_CNT", "none"),
            (1, 1, 0x34, WRITE, "PM1a_CNT", "SLP_EN, SLP_TYP 5, power off"),
        )
        follow(
            acpi.timer,
            (0, 4, 3_579_545, READ, "PM_TMR", "1.000000 s"),
            (1, 1, 0x12, READ, "PM_TMR", ""),
        )

    def test_port_a(self) -> None:
        follow(PortADecoder("system control"), (0, 1, 0x03, WRITE, "port A", "FAST_RESET, A20"))


class TestDeveloperPorts:
    @pytest.mark.parametrize(
        ("decoder", "value", "write", "expected"),
        [
            (debug.pvpanic, 0x01, WRITE, ("pvpanic", "events", "PANICKED")),
            (debug.pvpanic, 0x07, READ,
             ("pvpanic", "events", "knows PANICKED, CRASH_LOADED, SHUTDOWN")),
            (debug.post, 0x2A, WRITE, ("POST", "code", "")),
            (debug.delay, 0x00, WRITE, ("delay", "port", "")),
            (debug.debug_console, 0x41, WRITE, ("debug console", "output", "'A'")),
            (debug.debug_console, 0xE9, READ, ("debug console", "presence", "there")),
            (debug.debug_exit, 0x15, WRITE,
             ("debug exit", "code", "ends the run with status 43")),
            (debug.debug_exit, 0x00, READ, ("debug exit", "code", "")),
        ],
    )  # fmt: skip
    def test_ports(
        self, decoder: Decoder, value: int, write: bool, expected: tuple[str, str, str]
    ) -> None:
        assert decoder(0, 1, value, write) == expected


class Nothing:
    lock = None

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass


@pytest.fixture
def space() -> ConfigSpaceDecoder:
    """A host bridge, and a function with a BAR and a capability of each kind."""
    function = PciFunction(PciIdentity(0x1AF4, 0x1042, 0x01_00_00, 1), interrupt_pin=1)
    function.add_bar(0, 0x1000, BarKind.MEMORY32, Nothing(), "nothing")  # type: ignore[arg-type]
    function.add_capability(CapabilityId.MSI_X, bytes(10))
    function.add_capability(CapabilityId.VENDOR_SPECIFIC, bytes((16, 1)) + bytes(12))
    bridge = PciFunction(PciIdentity(0x1B36, 8, 0x06_00_00))
    names = {0: "host bridge", 16: "virtio-blk vda"}
    return ConfigSpaceDecoder({0: bridge, 16: function}, names)


class TestPci:
    def test_a_bar_is_sized_and_placed_by_ports(self, space: ConfigSpaceDecoder) -> None:
        decoder = ConfigPortsDecoder(space)
        follow(
            decoder,
            (4, 4, 0xFFFF_FFFF, READ, "CONFIG_DATA", "no address is set"),
            (0, 4, 0x8000_1010, WRITE, "CONFIG_ADDRESS", "00:02.0 BAR0"),
            (4, 4, 0xFFFF_FFFF, WRITE, "BAR0", "asks for its size"),
            (4, 4, 0xFFFF_F000, READ, "BAR0", "0x1000 bytes"),
            (4, 4, 0xC000_0000, WRITE, "BAR0", "at 0xc0000000"),
            (4, 4, 0xC000_0000, READ, "BAR0", "memory at 0xc0000000"),
            (0, 4, 0x8000_1000, WRITE, "CONFIG_ADDRESS", "00:02.0 VENDOR_ID"),
            (4, 4, 0x1042_1AF4, READ, "VENDOR_ID", "1af4:1042 virtio-blk vda"),
            (6, 2, 0x1042, READ, "DEVICE_ID", ""),
            (0, 4, 0x0000_0000, WRITE, "CONFIG_ADDRESS", "off"),
            (0, 2, 0x1234, WRITE, "port 0xcf8", ""),
        )
        decoder(0, 4, 0x8000_1000, WRITE)
        assert decoder(4, 4, 0, READ)[0] == "pci 00:02.0"

    def test_the_reset_control_lies_among_them(self, space: ConfigSpaceDecoder) -> None:
        decoder = ConfigPortsDecoder(space)
        expected = "reset control", "RST_CNT", "SYS_RST, RST_CPU, reset"
        assert decoder(1, 1, 0x06, WRITE) == expected

    @pytest.mark.parametrize(
        ("at", "size", "value", "write", "register", "meaning"),
        [
            (0x04, 2, 0x0406, WRITE, "COMMAND", "MEMORY_SPACE, BUS_MASTER, INTERRUPT_DISABLE"),
            (0x04, 4, 0x0010_0000, READ, "COMMAND", "none; status CAPABILITIES_LIST"),
            (0x06, 2, 0x0010, READ, "STATUS", "CAPABILITIES_LIST"),
            (0x08, 4, 0x0100_0001, READ, "REVISION_ID", "revision 1, class 010000"),
            (0x11, 1, 0x00, READ, "BAR0+1", ""),
            (0x14, 4, 0x0000_C001, READ, "BAR1", "port at 0xc000"),
            (0x28, 4, 0, READ, "config 0x28", ""),
            (0x2D, 1, 0x1A, READ, "SUBSYSTEM_VENDOR_ID+1", ""),
            (0x34, 1, 0x40, READ, "CAPABILITIES_POINTER", "first capability at 0x40"),
            (0x3C, 1, 0x0A, WRITE, "INTERRUPT_LINE", ""),
            (0x40, 2, 0x4C11, READ, "MSI_X ID", "MSI_X, next at 0x4c"),
            (0x41, 1, 0x4C, READ, "MSI_X next", ""),
            (0x42, 2, 0x8001, WRITE, "MSI_X message control", "2 vectors, ENABLE"),
            (0x42, 2, 0x0000, READ, "MSI_X message control", "1 vector, off"),
            (0x40, 4, 0x8000_4C11, WRITE, "MSI_X ID", "MSI_X, next at 0x4c"),
            (0x44, 4, 0x0000_0001, READ, "MSI_X table", ""),
            (0x4F, 1, 1, READ, "virtio COMMON_CFG cfg_type", ""),
            (0x54, 4, 0, READ, "virtio COMMON_CFG offset", ""),
            (0x55, 1, 0, READ, "virtio COMMON_CFG +9", ""),
            (0x200, 4, 0, READ, "config 0x200", "no extended configuration space"),
        ],
    )
    def test_registers_by_ecam(
        self,
        space: ConfigSpaceDecoder,
        at: int,
        size: int,
        value: int,
        write: bool,
        register: str,
        meaning: str,
    ) -> None:
        decoder = EcamDecoder(space)
        assert decoder(16 << 12 | at, size, value, write) == ("pci 00:02.0", register, meaning)

    def test_where_there_is_nothing(self, space: ConfigSpaceDecoder) -> None:
        decoder = EcamDecoder(space)
        expected = "pci", "00:01.0 VENDOR_ID", "no function there"
        assert decoder(8 << 12, 4, 0xFFFF_FFFF, READ) == expected
        assert decoder(0x40, 4, 0, READ) == ("pci 00:00.0", "config 0x40", "")

    def test_a_msix_table(self) -> None:
        follow(
            MsixDecoder("virtio-blk vda"),
            (16, 4, 0xFEE0_0000, WRITE, "vector 1 address", ""),
            (20, 4, 0, WRITE, "vector 1 address high", ""),
            (24, 4, 0x4021, WRITE, "vector 1 data", "vector 0x21 of the CPU"),
            (28, 4, 0, WRITE, "vector 1 control", "on"),
            (12, 4, 1, READ, "vector 0 control", "masked"),
            (0x800, 8, 0, READ, "pending bits", ""),
        )


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtioDevice]:
    from pyvmm.backends.disk import DiskImage
    from pyvmm.virtio.blk import BlockDevice

    path = tmp_path_factory.mktemp("disk") / "image"
    path.write_bytes(bytes(4096))
    image = DiskImage.open(str(path), readonly=False)
    device = BlockDevice(image)
    yield device
    device.close()
    image.close()


class TestVirtio:
    def test_initialisation_by_pci(self, disk: VirtioDevice) -> None:
        follow(
            VirtioPciDecoder("virtio-blk vda", disk),
            (0x14, 1, 0x00, WRITE, "device_status", "reset"),
            (0x14, 1, 0x03, WRITE, "device_status", "ACKNOWLEDGE, DRIVER"),
            (0x00, 4, 1, WRITE, "device_feature_select", "bits 32 to 63"),
            (0x04, 4, 1, READ, "device_feature", "VERSION_1"),
            (0x00, 4, 0, WRITE, "device_feature_select", "bits 0 to 31"),
            (0x04, 4, 0x2000_0244, READ, "device_feature", "SEG_MAX, BLK_SIZE, FLUSH, EVENT_IDX"),
            (0x08, 4, 0, WRITE, "driver_feature_select", "bits 0 to 31"),
            (0x0C, 4, 0x8000_0200, WRITE, "driver_feature", "FLUSH, 0x80000000"),
            (0x08, 4, 9, WRITE, "driver_feature_select", ""),
            (0x0C, 4, 1, WRITE, "driver_feature", "0x1"),
            (0x10, 2, 0xFFFF, READ, "config_msix_vector", "no vector"),
            (0x12, 2, 1, READ, "num_queues", ""),
            (0x15, 1, 0, READ, "config_generation", ""),
            (0x16, 2, 7, WRITE, "queue_select", "there is no such queue"),
            (0x16, 2, 0, WRITE, "queue_select", ""),
            (0x18, 2, 256, READ, "queue_size", "queue 0: 256 entries"),
            (0x1A, 2, 1, WRITE, "queue_msix_vector", "queue 0: vector 1"),
            (0x20, 4, 0x1000, WRITE, "queue_desc", "queue 0"),
            (0x24, 4, 0, WRITE, "queue_desc high", "queue 0"),
            (0x28, 4, 0x2000, WRITE, "queue_driver", "queue 0"),
            (0x1C, 2, 1, WRITE, "queue_enable", "queue 0: on"),
            (0x11, 1, 0, READ, "common configuration+0x11", ""),
            (0x1000, 1, 3, READ, "ISR status", "QUEUE, CONFIG"),
            (0x2000, 4, 8, READ, "config capacity", ""),
            (0x2004, 4, 0, READ, "config capacity+4", ""),
            (0x2014, 4, 512, READ, "config blk_size", ""),
            (0x3000, 2, 0, WRITE, "doorbell", "queue 0"),
        )

    def test_initialisation_by_mmio(self, disk: VirtioDevice) -> None:
        follow(
            VirtioMmioDecoder("virtio-blk vda", disk),
            (0x000, 4, 0x7472_6976, READ, "MagicValue", "'virt'"),
            (0x004, 4, 2, READ, "Version", ""),
            (0x008, 4, 2, READ, "DeviceID", "virtio-blk vda"),
            (0x070, 4, 0x0B, WRITE, "Status", "ACKNOWLEDGE, DRIVER, FEATURES_OK"),
            (0x014, 4, 1, WRITE, "DeviceFeaturesSel", "bits 32 to 63"),
            (0x010, 4, 1, READ, "DeviceFeatures", "VERSION_1"),
            (0x024, 4, 0, WRITE, "DriverFeaturesSel", "bits 0 to 31"),
            (0x020, 4, 0x20, WRITE, "DriverFeatures", "RO"),
            (0x030, 4, 0, WRITE, "QueueSel", ""),
            (0x034, 4, 256, READ, "QueueNumMax", "queue 0: 256 entries"),
            (0x038, 4, 16, WRITE, "QueueNum", "queue 0: 16 entries"),
            (0x080, 4, 0x1000, WRITE, "QueueDescLow", "queue 0"),
            (0x0A4, 4, 0, WRITE, "QueueDeviceHigh", "queue 0"),
            (0x044, 4, 1, WRITE, "QueueReady", "queue 0: on"),
            (0x050, 4, 0, WRITE, "QueueNotify", "queue 0"),
            (0x060, 4, 1, READ, "InterruptStatus", "USED_BUFFER"),
            (0x064, 4, 1, WRITE, "InterruptACK", "USED_BUFFER"),
            (0x0B0, 4, 0xFFFF_FFFF, READ, "SHMLenLow", ""),
            (0x0C4, 4, 0, READ, "register 0xc4", ""),
            (0x100, 4, 8, READ, "config capacity", ""),
        )

    def test_a_type_of_the_users(self) -> None:
        """Without a field of its own that we could know."""
        echo = Echo()
        echo.device_id = DeviceId.ENTROPY  # which has no configuration
        follow(VirtioPciDecoder("Echo", echo), (0x2004, 1, 0, READ, "config+0x4", ""))
        echo.close()


def windows(device: VirtioDevice, space: ConfigSpaceDecoder) -> list[tuple[Decoder, int, int]]:
    """All decoders, with the length of their window and the widest access that it allows."""
    keyboard, acpi = I8042Decoder("i8042"), PowerDecoder("ACPI")
    ide = AtaDecoder("ide0")
    return [
        *((SerialDecoder("COM"), 8, 1), (PitDecoder("PIT"), 4, 1), (PortBDecoder("61"), 1, 1)),
        *((CmosDecoder("RTC"), 2, 1), (keyboard.command, 1, 1), (keyboard.data, 1, 1)),
        *((acpi.event, 4, 4), (acpi.control, 2, 2), (acpi.timer, 4, 4)),
        *((ide.command, 8, 4), (ide.control, 1, 1)),
        *((PortADecoder("92"), 1, 1), (debug.pvpanic, 1, 1), (debug.post, 1, 1)),
        *((debug.debug_console, 1, 1), (debug.debug_exit, 4, 4)),
        *((ConfigPortsDecoder(space), 8, 4), (EcamDecoder(space), 1 << 20, 4)),
        *((MsixDecoder("msix"), 4096, 8), (VirtioPciDecoder("pci", device), 0x4000, 4)),
        (VirtioMmioDecoder("mmio", device), 512, 8),
    ]


@given(data=st.data())
def test_whatever_a_guest_does_there_is_a_line(data: st.DataObject) -> None:
    """The offsets, as far as the bus lets them pass, and the values are the guest's."""
    echo = Echo()
    function = PciFunction(PciIdentity(0x1AF4, 0x1042, 0))
    function.add_capability(CapabilityId.VENDOR_SPECIFIC, bytes(14))
    known = windows(echo, ConfigSpaceDecoder({8: function}, {8: "function"}))
    for _ in range(data.draw(st.integers(1, 30))):
        decoder, length, widest = data.draw(st.sampled_from(known))
        size = data.draw(st.sampled_from([size for size in (1, 2, 4, 8) if size <= widest]))
        offset = data.draw(st.integers(0, length - size))
        value = data.draw(st.integers(0, (1 << 8 * size) - 1))
        device, register, meaning = decoder(offset, size, value, data.draw(st.booleans()))
        assert device
        assert register
        assert isinstance(meaning, str)
    echo.close()


class TestNames:
    def test_constants_of_a_class(self) -> None:
        class Names:
            FIRST = ALSO_FIRST = 1
            MASK = 3
            _PRIVATE = 9
            TEXT = "no number"

        assert constants(Names) == {1: "FIRST", 3: "MASK"}
        assert single_bits(Names) == {1: "FIRST"}
        assert constants(BarKind)[0x4] == "MEMORY64"

    def test_flags(self) -> None:
        assert flags(Bits({1: "A", 4: "B"}), 5) == "A, B"
        assert flags(Bits({1: "A", 4: "B"}), 0x13) == "A, 0x12"
        assert flags(Bits({1: "A"}), 0) == "none"

    @given(st.integers(0, 255))
    def test_a_character_is_printable(self, value: int) -> None:
        assert character(value).isprintable()
