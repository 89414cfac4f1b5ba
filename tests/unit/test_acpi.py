"""The ACPI tables: checked as an operating system checks them, and by iasl."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pyvmm import layout
from pyvmm.boot import acpi
from pyvmm.boot.acpi import AcpiTables
from pyvmm.errors import ConfigError, PyvmmError

FULL = {
    "cpus": 64,
    "serial_ports": 4,
    "ide_channels": 2,
    "virtio_mmio": [layout.virtio_mmio_slot(number) for number in range(3)],
    "pci_window_64": (1 << 40, 1 << 41),
}
MACHINES = {"small": {"cpus": 1, "serial_ports": 0}, "usual": {"cpus": 2}, "full": FULL}


@pytest.fixture(params=MACHINES)
def tables(request: pytest.FixtureRequest) -> AcpiTables:
    return acpi.build(**MACHINES[request.param])


def at(tables: AcpiTables, gpa: int, length: int) -> bytes:
    start = gpa - layout.ACPI_TABLES
    assert 0 <= start <= len(tables.blob) - length
    return tables.blob[start : start + length]


def follow(tables: AcpiTables) -> dict[str, bytes]:
    """Find every table as an operating system does, from the root pointer on."""
    rsdp = at(tables, tables.rsdp, 36)
    assert rsdp[:8] == b"RSD PTR "
    assert sum(rsdp[:20]) & 0xFF == 0
    assert sum(rsdp) & 0xFF == 0
    assert (rsdp[15], int.from_bytes(rsdp[20:24], "little")) == (2, 36)

    def table(gpa: int) -> bytes:
        return at(tables, gpa, int.from_bytes(at(tables, gpa + 4, 4), "little"))

    found = {"XSDT": table(int.from_bytes(rsdp[24:32], "little"))}
    found["RSDT"] = table(int.from_bytes(rsdp[16:20], "little"))
    listed = list(struct.iter_unpack("<Q", found["XSDT"][36:]))
    assert listed == list(struct.iter_unpack("<I", found["RSDT"][36:]))
    for (gpa,) in listed:
        found[at(tables, gpa, 4).decode()] = table(gpa)
    facs, dsdt = struct.unpack_from("<II", found["FACP"], 36)
    (x_dsdt,) = struct.unpack_from("<Q", found["FACP"], 140)
    assert x_dsdt == dsdt
    assert facs % 64 == 0
    return found | {"FACS": table(facs), "DSDT": table(dsdt)}


def test_every_table_is_found_and_has_a_good_checksum(tables: AcpiTables) -> None:
    found = follow(tables)
    assert found == tables.tables
    for signature, table in found.items():
        assert table[:4] == signature.encode()
        if signature != "FACS":  # has none
            assert sum(table) & 0xFF == 0, signature


def test_the_tables_lie_where_firmware_has_them(tables: AcpiTables) -> None:
    assert tables.rsdp == layout.ACPI_TABLES
    assert tables.rsdp % 16 == 0
    assert layout.ACPI_TABLES + len(tables.blob) <= layout.ACPI_TABLES_END


def test_the_fadt_names_the_machines_ports() -> None:
    fadt = follow(acpi.build(cpus=1))["FACP"]
    assert len(fadt) == 276
    assert fadt[8] == 6
    assert struct.unpack_from("<H", fadt, 46)[0] == layout.SCI_IRQ
    assert struct.unpack_from("<III", fadt, 56) == (layout.PM1A_EVENT, 0, layout.PM1A_CONTROL)
    assert struct.unpack_from("<I", fadt, 76)[0] == layout.PM_TIMER
    assert fadt[116:129] == b"\x01\x08\x00\x01" + (0xCF9).to_bytes(8, "little") + b"\x06"
    for offset, port in ((148, 0x600), (172, 0x604), (208, 0x608)):
        assert struct.unpack_from("<BxxxQ", fadt, offset) == (1, port)


def madt_entries(table: bytes) -> list[bytes]:
    entries, offset = [], 44
    while offset < len(table):
        entries.append(table[offset : offset + table[offset + 1]])
        offset += table[offset + 1]
    assert offset == len(table)
    return entries


@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_the_madt_lists_the_interrupt_controllers(cpus: int) -> None:
    entries = madt_entries(follow(acpi.build(cpus=cpus))["APIC"])
    assert [e[2:] for e in entries if e[0] == 0] == [
        bytes((cpu, cpu, 1, 0, 0, 0)) for cpu in range(cpus)
    ]
    (ioapic,) = [e for e in entries if e[0] == 1]
    assert struct.unpack("<II", ioapic[4:]) == (layout.IOAPIC, 0)
    overrides = {e[3]: struct.unpack("<IH", e[4:]) for e in entries if e[0] == 2}
    assert overrides == {0: (2, 0), 9: (9, 0b1101)}
    assert [e[2:] for e in entries if e[0] == 4] == [bytes((0xFF, 0, 0, 1))]


@pytest.mark.parametrize("named", [True, False])
def test_the_interrupts_of_virtio_mmio_are_levels(named: bool) -> None:
    slots = [layout.virtio_mmio_slot(number) for number in range(20)]
    tables = acpi.build(cpus=1, virtio_mmio=slots, virtio_mmio_named=named)
    entries = madt_entries(follow(tables)["APIC"])
    overrides = {e[3]: struct.unpack("<IH", e[4:]) for e in entries if e[0] == 2}
    used_otherwise = {0, 1, 2, 3, 4, 8, 9, 12, 13}
    levels = set(overrides) - {0, 9}
    assert levels == set(range(16)) - used_otherwise
    assert all(overrides[irq] == (irq, 0b1101) for irq in levels)
    assert (b"LNRO0005" in follow(tables)["DSDT"]) == named


def test_mcfg_has_bus_0() -> None:
    mcfg = follow(acpi.build(cpus=1))["MCFG"]
    assert struct.unpack("<QHBB4x", mcfg[44:]) == (layout.ECAM, 0, 0, 0)


@pytest.mark.parametrize("arguments", [{"cpus": 0}, {"cpus": 256}, {"cpus": 1, "serial_ports": 5}])
def test_machines_that_cannot_be_described(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        acpi.build(**arguments)


def test_tables_are_written_for_iasl(tables: AcpiTables, tmp_path: Path) -> None:
    tables.write_tables(tmp_path)
    assert (tmp_path / "dsdt.dat").read_bytes() == tables.tables["DSDT"]
    assert len(list(tmp_path.iterdir())) == 7
    with pytest.raises(PyvmmError, match="can't write"):
        tables.write_tables(tmp_path / "missing")


# iasl. It belongs to the tests' requirements (acpica-tools): no skipping.


def iasl(directory: Path, *arguments: str) -> str:
    program = shutil.which("iasl")
    assert program, "iasl is missing: install acpica-tools"
    result = subprocess.run(
        [program, *arguments], cwd=directory, capture_output=True, text=True, timeout=60
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    return output


def test_iasl_takes_all_tables_apart_and_together_again(tables: AcpiTables, tmp_path: Path) -> None:
    tables.write_tables(tmp_path)
    for signature, table in tables.tables.items():
        name = signature.lower()
        output = iasl(tmp_path, "-d", f"{name}.dat")
        assert not re.search(r"(?i)error|warning|invalid", output), output
        output = iasl(tmp_path, "-p", f"again_{name}", f"{name}.dsl")
        assert "0 Errors, 0 Warnings, 0 Remarks" in output
        again = (tmp_path / f"again_{name}.aml").read_bytes()
        if signature == "FACS":
            assert again == table
        elif signature != "DSDT":  # whose AML iasl may choose otherwise
            assert again[36:] == table[36:]


def disassembled_dsdt(tmp_path: Path, **arguments: object) -> str:
    acpi.build(**arguments).write_tables(tmp_path)
    iasl(tmp_path, "-d", "dsdt.dat")
    return (tmp_path / "dsdt.dsl").read_text()


def test_interrupt_pins_are_wired_as_the_layout_says(tmp_path: Path) -> None:
    text = disassembled_dsdt(tmp_path, cpus=1)
    numbers = {"Zero": 0, "One": 1}
    routes = [
        tuple(numbers[n] if n in numbers else int(n, 16) for n in match)
        for match in re.findall(
            r"Package \(0x04\)\s*\{\s*(\w+),\s*(\w+),\s*(\w+),\s*(\w+)\s*\}", text
        )
    ]
    expected = [
        (device << 16 | 0xFFFF, pin, 0, layout.PCI_INTX_GSI + (device + pin) % 8)
        for device in range(32)
        for pin in range(4)
    ]
    assert [route for route in routes if route[0] & 0xFFFF == 0xFFFF] == expected


def test_the_dsdt_has_the_devices_that_were_asked_for(tmp_path: Path) -> None:
    text = disassembled_dsdt(tmp_path, **FULL)
    devices = re.findall(r"Device \((\w+)\)", text)
    assert devices[:6] == ["PCI0", "MRES", "KBD", "MOU", "RTC", "PEVT"]
    assert devices[6:12] == ["COM1", "COM2", "COM3", "COM4", "IDE0", "IDE1"]
    assert devices[12:15] == ["VM00", "VM01", "VM02"]
    assert len(devices) == 15 + 64
    (ide,) = re.findall(r"Device \(IDE1.*?\n        }", text, re.DOTALL)
    assert "PNP0600" in ide
    assert [port in ide for port in ("0x0170,", "0x0376,", "{15}")] == [True] * 3
    mmio = re.findall(r"Device \(VM.*?\n        }", text, re.DOTALL)
    for number, device in enumerate(mmio):
        slot = layout.virtio_mmio_slot(number)
        assert '_HID, "LNRO0005"' in device
        assert re.search(rf"_UID, ({('Zero', 'One', '0x02')[number]})", device)
        assert f"0x{slot.base:08X}" in device
        assert f"0x{slot.size:08X}" in device
        assert "Interrupt (ResourceConsumer, Level, ActiveHigh, Shared" in device
        assert f"0x{slot.gsi:08X}," in device
    assert len(mmio) == 3
    assert re.search(r"_S5, Package \(0x04\).*?\{\s*0x05,\s*0x05,", text, re.DOTALL)


def test_the_dsdt_without_serial_ports_has_none(tmp_path: Path) -> None:
    text = disassembled_dsdt(tmp_path, cpus=1, serial_ports=0)
    assert "PNP0501" not in text
    assert "PNP0600" not in text
