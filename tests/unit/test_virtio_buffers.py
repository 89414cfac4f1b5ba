"""Copying to and from buffers, however they are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.virtio.buffers import behind, first, gather, scatter

LENGTHS = st.lists(st.integers(1, 5), max_size=6)


def cut(lengths: list[int]) -> list[memoryview]:
    """Buffers of these lengths; all bytes differ."""
    data = bytearray(range(1, sum(lengths) + 1))
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    return [memoryview(data)[end - size : end] for end, size in zip(ends, lengths, strict=True)]


@given(LENGTHS, st.integers(0, 40))
def test_cutting_in_two(lengths: list[int], size: int) -> None:
    buffers = cut(lengths)
    whole = b"".join(buffers)
    assert gather(buffers, size) == whole[:size]
    assert b"".join(first(buffers, size)) == whole[:size]
    assert b"".join(behind(buffers, size)) == whole[size:]
    assert all([*first(buffers, size), *behind(buffers, size)])  # none of them is empty


@given(LENGTHS, st.binary(max_size=40), st.integers(0, 40))
def test_scattering(lengths: list[int], data: bytes, offset: int) -> None:
    buffers = cut(lengths)
    expected = bytearray(b"".join(buffers))
    done = min(len(data), max(0, len(expected) - offset))
    expected[offset : offset + done] = data[:done]
    assert scatter(data, buffers, offset) == done
    assert b"".join(buffers) == expected
