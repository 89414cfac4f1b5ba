"""The AML encoder against the specification's grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot import aml


def decode_package_length(data: bytes) -> tuple[int, int]:
    """(length, bytes of the length itself), as an interpreter reads PkgLength."""
    extra = data[0] >> 6
    if not extra:
        return data[0] & 0x3F, 1
    return data[0] & 0xF | int.from_bytes(data[1 : 1 + extra], "little") << 4, 1 + extra


@given(st.integers(0, (1 << 28) - 5))
def test_package_length_counts_itself(content: int) -> None:
    length, own = decode_package_length(aml.package_length(content))
    assert length == content + own == content + len(aml.package_length(content))


@pytest.mark.parametrize("content", [62, 63, 4093, 4094, (1 << 20) - 4, (1 << 20) - 3])
def test_package_length_where_its_own_size_changes(content: int) -> None:
    length, own = decode_package_length(aml.package_length(content))
    assert length == content + own


def test_a_package_that_is_too_long() -> None:
    with pytest.raises(ValueError):
        aml.package_length(1 << 28)


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("_HID", b"_HID"),
        ("KBD", b"KBD_"),
        ("\\_S5", b"\\_S5_"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("_SB.PCI0.COM1", b"\x2f\x03_SB_PCI0COM1"),
        ("^A", b"^A___"),
    ],
)
def test_names(text: str, encoded: bytes) -> None:
    assert aml.path(text) == encoded


@pytest.mark.parametrize("text", ["TOOLONG", "A.TOOLONG"])
def test_bad_names(text: str) -> None:
    with pytest.raises(ValueError):
        aml.path(text)


@given(st.integers(0, (1 << 64) - 1))
def test_integers_are_as_short_as_they_can_be(value: int) -> None:
    encoded = aml.term(value)
    if value < 2:
        assert encoded == bytes((value,))
        return
    size = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[encoded[0]]
    assert len(encoded) == 1 + size
    assert int.from_bytes(encoded[1:], "little") == value
    assert size == 1 or value >> (8 * size // 2)


@pytest.mark.parametrize(
    ("text", "value"), [("PNP0A03", 0x030AD041), ("PNP0501", 0x0105D041), ("PNP0C02", 0x020CD041)]
)
def test_eisa_ids(text: str, value: int) -> None:
    assert aml.eisa_id(text) == value


def test_a_uuid_is_a_buffer_of_mixed_endianness() -> None:
    encoded = aml.uuid("33db4d5b-1ff7-401c-9657-7441c03dd766")
    assert encoded[-16:].hex() == "5b4ddb33f71f1c4096577441c03dd766"


def test_nothing_in_a_buffer_is_lost() -> None:
    data = bytes(range(200))
    encoded = aml.buffer(data)
    assert encoded[0] == 0x11
    length, own = decode_package_length(encoded[1:])
    assert len(encoded) == 1 + length
    assert encoded[1 + own :] == b"\x0a\xc8" + data
