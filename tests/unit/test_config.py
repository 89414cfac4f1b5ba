"""What users write, as a configuration or one clear sentence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.config import (
    DEFAULT_COMMAND_LINE,
    CpuConfig,
    CpuPin,
    MachineConfig,
    MemoryBacking,
    command_line,
)
from pyvmm.device_config import (
    BalloonConfig,
    ConsoleConfig,
    DiskConfig,
    PortConfig,
    RngConfig,
    VsockConfig,
)
from pyvmm.errors import ConfigError
from pyvmm.memory import GIB, KIB, MIB
from pyvmm.options import format_size, parse_seconds, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512 * MIB),
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("512MB", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("2G", 2 * GIB),
        ("1.5G", 1536 * MIB),
        ("64k", 64 * KIB),
        ("4096B", 4096),
        (" 1G ", GIB),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "M", "lots", "1X", "1GG", "0.1B", "nan", "infG", "1 0G"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--memory.*is not a size") as error:
        parse_size(text, "--memory")
    assert "512M" in error.value.hint


@pytest.mark.parametrize(("text", "seconds"), [("60", 60), ("0.5", 0.5), ("1e9", 1e9)])
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text, "--timeout") == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "10s", "nan", "inf", "1e10"])
def test_what_is_not_a_time(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--timeout.*is not a time"):
        parse_seconds(text, "--timeout")


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_an_error(text: str) -> None:
    try:
        assert isinstance(parse_size(text, "--memory"), int)
    except ConfigError:
        pass


@given(st.integers(1, 1 << 40))
def test_a_formatted_size_reads_back(size: int) -> None:
    text = format_size(size)
    assert parse_size(text.replace(" bytes", "B").replace(" ", ""), "--memory") == size


class TestTransport:
    def test_the_devices_or_else_the_machines(self) -> None:
        disks = tuple(
            DiskConfig.parse(text)
            for text in ("a,transport=mmio", "b", "c,transport=pci", "d,transport=mmio")
        )
        assert [disk.transport for disk in disks] == ["mmio", "", "pci", "mmio"]
        assert MachineConfig(kernel="k", disks=disks).mmio_devices == 2
        assert MachineConfig(kernel="k", disks=disks, transport="mmio").mmio_devices == 3
        assert MachineConfig(kernel="k", transport="mmio").mmio_devices == 0

    def test_ide_disks_have_none(self) -> None:
        disks = (DiskConfig("a", interface="ide"), DiskConfig("b"))
        assert MachineConfig(kernel="k", disks=disks, transport="mmio").mmio_devices == 1
        with pytest.raises(ConfigError, match=r"--disk a,transport: goes with interface=virtio"):
            DiskConfig.parse("a,interface=ide,transport=pci")

    @pytest.mark.parametrize("text", ["isa", "PCI", "mmio ", "pci|mmio"])
    def test_there_are_but_two(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"--disk a,transport: .* is none of pci, mmio"):
            DiskConfig.parse(f"a,transport={text}")
        with pytest.raises(ConfigError, match="--transport"):
            MachineConfig(kernel="k", transport=text)


@pytest.mark.parametrize("place", ["", "x", "file:", "file", "stdio:1", "null:"])
def test_places(place: str) -> None:
    """Whoever makes the record, the user or a program."""
    with pytest.raises(ConfigError, match=r"--serial: .*\(use stdio, null, pty, file:"):
        MachineConfig(kernel="k", serial=(place,))
    if place:
        with pytest.raises(ConfigError, match=r"--console: .* is not understood"):
            MachineConfig(kernel="k", console=ConsoleConfig(place))


class TestDisk:
    def test_a_path_alone(self) -> None:
        assert DiskConfig.parse("disk.raw") == DiskConfig("disk.raw", False, "")

    def test_options(self) -> None:
        disk = DiskConfig.parse("/tmp/a b.raw,readonly=on,serial=X 1")
        assert disk == DiskConfig("/tmp/a b.raw", True, "X 1")

    @pytest.mark.parametrize("text", ["d,interface=ide", "d,if=ide"])
    def test_ide(self, text: str) -> None:
        assert DiskConfig.parse(text) == DiskConfig("d", interface="ide")
        assert DiskConfig.parse("d,if=virtio") == DiskConfig("d")

    def test_there_are_two_channels_of_two(self) -> None:
        disks = tuple(DiskConfig(str(number), interface="ide") for number in range(5))
        for number, channels in enumerate([0, 1, 1, 2, 2]):
            config = MachineConfig(kernel="k", disks=(DiskConfig("v"), *disks[:number]))
            assert config.ide_channels == channels
        with pytest.raises(ConfigError, match=r"--disk: 5 with interface=ide are more than 4"):
            MachineConfig(kernel="k", disks=disks)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "path is empty"),
            (",readonly=on", "path is empty"),
            ("d,readonly", "'readonly' is not understood"),
            ("d,readonly=yes", "neither 'on' nor 'off'"),
            ("d,cache=none", "'cache=none' is not understood"),
            ("d,", "'' is not understood"),
            ("d,serial=123456789012345678901", "over 20 bytes"),
            ("d,serial=ääääääääääää", "over 20 bytes"),
            ("d,interface=scsi", "--disk d,interface: 'scsi' is none of virtio, ide"),
            ("d,if=", "--disk d,interface: '' is none of virtio, ide"),
        ],
    )
    def test_errors(self, text: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said) as error:
            DiskConfig.parse(text)
        assert "--disk" in str(error.value)


class TestCpu:
    def test_features(self) -> None:
        assert CpuConfig.parse("host").features == ()
        assert CpuConfig.parse("host,-avx2,+aes").features == (("avx2", False), ("aes", True))

    @pytest.mark.parametrize("text", ["", "max", "host,avx", "host,", "host,-", "host,+"])
    def test_errors(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--cpu"):
            CpuConfig.parse(text)


class TestMachine:
    @pytest.mark.parametrize(
        ("field", "value", "option"),
        [
            ("memory_size", 1 * MIB, "--memory"),
            ("memory_size", -1, "--memory"),
            ("memory_size", 65 * GIB, "--memory"),
            ("memory_size", 64 * MIB + 1, "--memory"),
            ("cpus", 0, "--cpus"),
            ("cpus", 65, "--cpus"),
            ("disks", (DiskConfig("d"),) * 17, "--disk"),
            ("serial", ("null",) * 5, "--serial"),
            ("entry", "8086", "--boot"),
            ("on_reboot", "explode", "--on-reboot"),
            ("command_line", "a\0b", "--append"),
        ],
    )
    def test_errors_name_the_option(self, field: str, value: Any, option: str) -> None:
        with pytest.raises(ConfigError, match=option):
            MachineConfig(kernel="k", **{field: value})

    @pytest.mark.parametrize("size", [2 * MIB, 64 * MIB, 5 * GIB, 64 * GIB])
    def test_memory_sizes(self, size: int) -> None:
        assert MachineConfig(kernel="k", memory_size=size).memory_size == size


class TestCommandLine:
    def test_default(self) -> None:
        assert command_line() == DEFAULT_COMMAND_LINE

    def test_a_disk_is_the_root(self) -> None:
        line = command_line(["quiet"], has_disk=True)
        assert line == f"{DEFAULT_COMMAND_LINE} root=/dev/vda rw quiet"

    @pytest.mark.parametrize(
        ("disks", "root"), [(["a,if=ide"], "sda"), (["a,if=ide", "b"], "vda"), (["b"], "vda")]
    )
    def test_of_which_kind(self, disks: list[str], root: str) -> None:
        config = MachineConfig.parse({"kernel": "k", "disks": disks})
        assert config.command_line == f"{DEFAULT_COMMAND_LINE} root=/dev/{root} rw"

    def test_an_initrd_knows_better(self) -> None:
        assert "root=" not in command_line(has_disk=True, has_initrd=True)

    def test_a_root_that_is_given(self) -> None:
        line = command_line(["ro root=/dev/vdb"], has_disk=True)
        assert line == f"{DEFAULT_COMMAND_LINE} ro root=/dev/vdb"

    def test_another_word_with_root_in_it(self) -> None:
        assert "root=/dev/vda" in command_line(["nfsroot=x"], has_disk=True)

    def test_without_the_default(self) -> None:
        assert command_line(["a", "", "b c"], default=False, has_disk=True) == "a b c"


class TestMemory:
    def test_a_size_alone(self) -> None:
        assert MemoryBacking.parse("2G") == (2 * GIB, MemoryBacking(False, False, False))

    def test_options(self) -> None:
        assert MemoryBacking.parse("64,hugepages=on,prealloc=on,mergeable=off") == (
            64 * MIB,
            MemoryBacking(hugepages=True, prealloc=True),
        )
        assert MemoryBacking.parse("1G,mergeable=on")[1] == MemoryBacking(mergeable=True)
        assert MemoryBacking.parse("1G")[1].thp
        assert not MemoryBacking.parse("1G,thp=off")[1].thp
        with pytest.raises(ConfigError, match="in huge pages already"):
            MemoryBacking.parse("1G,thp=on,hugepages=on")

    @pytest.mark.parametrize("text", ["", "1X", "1G,huge=on", "1G,prealloc", "1G,prealloc=yes"])
    def test_errors(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--memory"):
            MemoryBacking.parse(text)

    @pytest.mark.parametrize(
        ("size", "backing", "balloon", "said"),
        [
            (63 * MIB, MemoryBacking(hugepages=True), None, "multiples of 2 MiB"),
            (64 * MIB, MemoryBacking(hugepages=True, mergeable=True), None, "can't be merged"),
            (64 * MIB, MemoryBacking(hugepages=True), BalloonConfig(), "--balloon: huge pages"),
            (64 * MIB, MemoryBacking(), BalloonConfig(64 * MIB + 1), "--balloon size: .* 64 MiB"),
            (64 * MIB, MemoryBacking(), BalloonConfig(-MIB), "--balloon size: .* not between 0"),
        ],
    )
    def test_what_does_not_go_together(
        self, size: int, backing: MemoryBacking, balloon: BalloonConfig | None, said: str
    ) -> None:
        with pytest.raises(ConfigError, match=said):
            MachineConfig(kernel="k", memory_size=size, memory_backing=backing, balloon=balloon)

    def test_what_does(self) -> None:
        for backing in (MemoryBacking(prealloc=True), MemoryBacking(mergeable=True)):
            MachineConfig(kernel="k", memory_backing=backing, balloon=BalloonConfig(64 * MIB))


class TestCpuPin:
    def test_one_or_more(self) -> None:
        assert CpuPin.parse("0=2") == (CpuPin(0, (2,)),)
        assert CpuPin.parse("1=3,0=2-3,1=0") == (CpuPin(0, (2, 3)), CpuPin(1, (0, 3)))

    @pytest.mark.parametrize(
        "text",
        ["", "0", "0=", "=1", "0=a", "0=3-2", "0=1-", "0=-1", "64=0", "0=8192", "0=1,", "0=²"],
    )
    def test_errors(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--cpu-affinity"):
            CpuPin.parse(text)

    @given(
        st.dictionaries(
            st.integers(0, 63), st.sets(st.integers(0, 8191), min_size=1, max_size=5), min_size=1
        )
    )
    def test_reads_back(self, pins: dict[int, set[int]]) -> None:
        text = ",".join(f"{vcpu}={cpu}" for vcpu, cpus in pins.items() for cpu in cpus)
        assert {pin.vcpu: set(pin.host_cpus) for pin in CpuPin.parse(text)} == pins

    @given(st.text(alphabet="0123456789=-, x", max_size=12))
    def test_any_text_is_a_list_or_an_error(self, text: str) -> None:
        try:
            pins = CpuPin.parse(text)
        except ConfigError:
            return
        assert all(pin.host_cpus for pin in pins)

    def test_a_vcpu_that_there_is_not(self) -> None:
        with pytest.raises(ConfigError, match="--cpu-affinity: there is no vCPU 2, the last is 1"):
            MachineConfig(kernel="k", cpus=2, cpu_affinity=CpuPin.parse("0=0,2=0"))


class TestRng:
    def test_options(self) -> None:
        assert RngConfig.parse("") == RngConfig(MIB, "")
        assert RngConfig.parse("rate=64K,transport=mmio") == RngConfig(64 * KIB, "mmio")

    @pytest.mark.parametrize(
        "text", ["on", "rate", "rate=", "rate=fast", "rate=1B", "rate=2G", "transport=isa", ","]
    )
    def test_errors(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--rng"):
            RngConfig.parse(text)


class TestBalloon:
    def test_options(self) -> None:
        assert BalloonConfig.parse("") == BalloonConfig(0, 0, False, False, "")
        assert BalloonConfig.parse(
            "size=128M,stats=0.5,free-page-reporting=on,deflate-on-oom=on,transport=pci"
        ) == BalloonConfig(128 * MIB, 0.5, True, True, "pci")

    @pytest.mark.parametrize(
        "text",
        ["128M", "size=", "stats=0", "stats=0.01", "stats=x", "free-page-reporting=1", "oom=on"],
    )
    def test_errors(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--balloon"):
            BalloonConfig.parse(text)

    def test_it_counts_as_a_device(self) -> None:
        config = MachineConfig(
            kernel="k", rng=RngConfig(transport="mmio"), balloon=BalloonConfig(), transport="mmio"
        )
        assert config.mmio_devices == 2


class TestConsole:
    def test_places(self) -> None:
        config = ConsoleConfig.parse("unix:/tmp/a b,transport=mmio", ["x=pty", "y=file:/log,1=2"])
        assert config == ConsoleConfig(
            "unix:/tmp/a b", (PortConfig("x", "pty"), PortConfig("y", "file:/log,1=2")), "mmio"
        )
        assert ConsoleConfig.parse(None, ["a=null"]).place == ""

    @pytest.mark.parametrize("text", ["", "tty", "file:", "unix:", "pty:x", "stdio,size=1"])
    def test_bad_console(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--console"):
            ConsoleConfig.parse(text)

    @pytest.mark.parametrize(
        "ports",
        [["agent"], ["=pty"], ["a=stdio"], ["a=tty"], ["a/b=pty"], ["x" * 64 + "=pty"], ["a=unix:"]]
        + [["a=pty", "a=null"], [f"p{n}=pty" for n in range(16)]],
    )
    def test_bad_ports(self, ports: list[str]) -> None:
        with pytest.raises(ConfigError, match="--port"):
            ConsoleConfig.parse(None, ports)

    def test_one_place_serves_one_port(self) -> None:
        console = ConsoleConfig.parse("stdio")
        with pytest.raises(ConfigError, match="--console: stdio can't serve two"):
            MachineConfig(kernel="k", console=console)
        MachineConfig(kernel="k", console=console, serial=("null",))
        with pytest.raises(ConfigError, match="unix:/s can't serve two"):
            MachineConfig(kernel="k", console=ConsoleConfig.parse(None, ["a=unix:/s", "b=unix:/s"]))

    def test_it_is_one_device_of_its_transport(self) -> None:
        console = ConsoleConfig.parse("null,transport=mmio", ["a=pty", "b=pty"])
        vsock = VsockConfig.parse("cid=3,path=/s,transport=mmio")
        assert MachineConfig(kernel="k", console=console, vsock=vsock).mmio_devices == 2

    def test_command_line(self) -> None:
        assert command_line(["console=tty9"], virtio_console=True).split() == [
            *DEFAULT_COMMAND_LINE.split(),
            "console=hvc0",
            "console=tty9",
        ]
        assert command_line(virtio_console=True, default=False) == ""

    def test_the_text_screen_is_a_console_of_linux(self) -> None:
        assert command_line(screen=True).split()[-1] == "console=tty0"
        config = MachineConfig.parse({"kernel": "k", "screen": "stdio", "append": ("quiet",)})
        assert config.command_line.endswith(" console=tty0 quiet")
        assert config.serial == ("null",)
        config = MachineConfig.parse({"kernel": "k", "screen": "null"})
        assert "tty0" not in config.command_line
        assert config.serial == ("stdio",)


class TestVsock:
    def test_good(self) -> None:
        assert VsockConfig.parse("path=/tmp/v,cid=4294967294") == VsockConfig(0xFFFF_FFFE, "/tmp/v")

    @pytest.mark.parametrize(
        "text",
        ["", "cid=3", "path=/x", "cid=2,path=/x", "cid=4294967295,path=/x", "cid=x,path=/x"]
        + ["cid=3,path=", "cid=3,path=/x,transport=isa", "3,/x"],
    )
    def test_bad(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--vsock"):
            VsockConfig.parse(text)
