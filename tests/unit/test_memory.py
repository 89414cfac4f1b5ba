"""Guest memory: what is inside, what is outside, and that nothing reaches beyond."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import host
from pyvmm import memory as memory_module
from pyvmm.errors import GuestMemoryError, HostError
from pyvmm.memory import (
    GIB,
    HUGE_PAGE_SIZE,
    MIB,
    MMIO_HOLE_END,
    MMIO_HOLE_START,
    PAGE_SIZE,
    GuestMemory,
)

SIZE = 1 * MIB


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(SIZE)
    yield memory
    memory.close()


@pytest.fixture(scope="module")
def split() -> Iterator[GuestMemory]:
    """Memory with a part above the hole; nothing of it is ever touched but a few pages."""
    memory = GuestMemory(MMIO_HOLE_START + 1 * GIB)
    yield memory
    memory.close()


def test_starts_as_zeros(memory: GuestMemory) -> None:
    assert memory.read(0, SIZE) == bytes(SIZE)


def test_numbers_are_little_endian(memory: GuestMemory) -> None:
    memory.write_u64(0x100, 0x0807_0605_0403_0201)
    assert memory.read(0x100, 8) == bytes(range(1, 9))
    assert memory.read_u8(0x101) == 0x02
    assert memory.read_u16(0x101) == 0x0302
    assert memory.read_u32(0x101) == 0x0504_0302
    memory.write_u8(0x100, 0xFF)
    memory.write_u16(0x102, 0xAABB)
    memory.write_u32(0x104, 0x1122_3344)
    assert memory.read_u64(0x100) == 0x1122_3344_AABB_02FF


def test_a_view_is_the_memory_itself(memory: GuestMemory) -> None:
    view = memory.view(0x1000, 4)
    view[:] = b"abcd"
    assert memory.read(0x1000, 4) == b"abcd"
    assert os.pread(memory.fd, 4, 0x1000) == b"abcd"


def test_fill(memory: GuestMemory) -> None:
    memory.fill(10, 5, 0xAA)
    assert memory.read(9, 7) == b"\0" + b"\xaa" * 5 + b"\0"


@pytest.mark.parametrize(
    ("start", "length"), [(0, PAGE_SIZE), (1, 3 * PAGE_SIZE), (100, 10), (PAGE_SIZE - 1, 2), (5, 0)]
)
def test_clear(memory: GuestMemory, start: int, length: int) -> None:
    memory.fill(0, 5 * PAGE_SIZE, 0xAA)
    memory.clear(start, length)
    expected = bytearray(b"\xaa" * 5 * PAGE_SIZE)
    expected[start : start + length] = bytes(length)
    assert memory.read(0, 5 * PAGE_SIZE) == expected


def test_clear_gives_pages_back(memory: GuestMemory) -> None:
    memory.fill(0, SIZE, 1)
    used = os.fstat(memory.fd).st_blocks
    memory.clear(0, SIZE)
    assert os.fstat(memory.fd).st_blocks < used // 2


def test_memory_that_fits_below_the_hole_is_one_region(memory: GuestMemory) -> None:
    assert [(r.gpa, r.size) for r in memory.regions] == [(0, SIZE)]
    assert memory.top == SIZE


def test_the_rest_lies_above_the_hole(split: GuestMemory) -> None:
    assert [(r.gpa, r.size, r.file_offset) for r in split.regions] == [
        (0, MMIO_HOLE_START, 0),
        (MMIO_HOLE_END, GIB, MMIO_HOLE_START),
    ]
    assert split.top == MMIO_HOLE_END + GIB


def test_regions_are_different_memory(split: GuestMemory) -> None:
    split.write_u32(MMIO_HOLE_END, 0x1111_1111)
    split.write_u32(MMIO_HOLE_START - 4, 0x2222_2222)
    split.clear(MMIO_HOLE_END, PAGE_SIZE)
    assert split.read_u32(MMIO_HOLE_END) == 0
    assert split.read_u32(MMIO_HOLE_START - 4) == 0x2222_2222


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (MMIO_HOLE_START, 1),
        (MMIO_HOLE_START - 1, 2),
        (MMIO_HOLE_END - 1, 1),
        (MMIO_HOLE_END - 1, 2),
        (MMIO_HOLE_END + GIB, 1),
        (MMIO_HOLE_END + GIB - 1, 2),
        (-1, 1),
        (-1, 2),
        (0, -1),
        (8, -8),
        ((1 << 64) - 1, 2),
        (0, 1 << 64),
        (MMIO_HOLE_START - 1, MMIO_HOLE_END - MMIO_HOLE_START + 2),
    ],
)
def test_outside_is_an_error(split: GuestMemory, gpa: int, length: int) -> None:
    assert not split.contains(gpa, length)
    with pytest.raises(GuestMemoryError):
        split.view(gpa, length)
    with pytest.raises(GuestMemoryError):
        split.clear(gpa, length)


def test_an_access_that_is_outside_in_part_changes_nothing(memory: GuestMemory) -> None:
    with pytest.raises(GuestMemoryError):
        memory.write(SIZE - 2, b"abc")
    with pytest.raises(GuestMemoryError):
        memory.write_u64(SIZE - 4, 1)
    assert memory.read(SIZE - 8, 8) == bytes(8)


@given(gpa=st.integers(-(1 << 65), 1 << 65), length=st.integers(-(1 << 65), 1 << 65))
def test_a_view_is_as_long_as_asked_or_an_error(gpa: int, length: int) -> None:
    inside = 0 <= gpa <= SIZE and 0 <= length <= SIZE - gpa
    assert SHARED.contains(gpa, length) == inside
    if inside:
        assert len(SHARED.view(gpa, length)) == length
    else:
        with pytest.raises(GuestMemoryError):
            SHARED.view(gpa, length)


SHARED = GuestMemory(SIZE)


@pytest.mark.parametrize("size", [0, -PAGE_SIZE, 1, PAGE_SIZE + 1])
def test_sizes_are_whole_pages(size: int) -> None:
    with pytest.raises(ValueError):
        GuestMemory(size)


def test_too_much_is_the_hosts_error() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="can't map"):
        GuestMemory(1 << 60)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def resident(memory: GuestMemory) -> int:
    """How much of it is in the host's memory and mapped by this process, in bytes."""
    address = host.address_of(memory.view(0, 1))
    with open("/proc/self/smaps") as smaps:
        text = smaps.read()
    found = re.search(rf"^{address:x}-.*?^Rss: +(\d+) kB", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return int(found[1]) << 10


def smaps_flags(memory: GuestMemory) -> list[str]:
    """The VmFlags of its mapping."""
    address = host.address_of(memory.view(0, 1))
    with open("/proc/self/smaps") as smaps:
        text = smaps.read()
    found = re.search(rf"^{address:x}-.*?^VmFlags: (.*?)$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].split()


@pytest.fixture(params=["shared", "mergeable"])
def either(request: pytest.FixtureRequest) -> Iterator[GuestMemory]:
    """Memory of both kinds that pages can be taken from."""
    try:
        memory = GuestMemory(SIZE, mergeable=request.param == "mergeable")
    except HostError:
        assert not os.path.exists("/sys/kernel/mm/ksm/run")
        pytest.skip("this kernel has no KSM")
    yield memory
    memory.close()


def test_discarded_pages_go_back_to_the_host(either: GuestMemory) -> None:
    either.fill(0, SIZE, 0xAA)
    assert resident(either) == SIZE
    either.discard(PAGE_SIZE, SIZE - 2 * PAGE_SIZE)
    assert resident(either) == 2 * PAGE_SIZE
    pages = SIZE // PAGE_SIZE
    expected = b"\xaa" * PAGE_SIZE + bytes((pages - 2) * PAGE_SIZE) + b"\xaa" * PAGE_SIZE
    assert either.read(0, SIZE) == expected
    either.write(PAGE_SIZE, b"again")
    assert either.read(PAGE_SIZE, 6) == b"again\0"


@given(start=st.integers(0, 5 * PAGE_SIZE), length=st.integers(0, 5 * PAGE_SIZE))
def test_only_whole_pages_are_discarded(start: int, length: int) -> None:
    SHARED.fill(0, 10 * PAGE_SIZE, 0xAA)
    SHARED.discard(start, length)
    first, behind = -(-start // PAGE_SIZE), (start + length) // PAGE_SIZE
    for page in range(10):
        value = 0 if first <= page < behind else 0xAA
        assert SHARED.read(page * PAGE_SIZE, PAGE_SIZE) == bytes((value,)) * PAGE_SIZE


def test_discard_above_the_hole(split: GuestMemory) -> None:
    split.write_u32(MMIO_HOLE_END, 1)
    split.write_u32(MMIO_HOLE_START - PAGE_SIZE, 2)  # the file's page before
    split.discard(MMIO_HOLE_END, PAGE_SIZE)
    assert split.read_u32(MMIO_HOLE_END) == 0
    assert split.read_u32(MMIO_HOLE_START - PAGE_SIZE) == 2
    with pytest.raises(GuestMemoryError):
        split.discard(MMIO_HOLE_START - PAGE_SIZE, 2 * PAGE_SIZE)


def test_a_view_knows_where_it_lies(split: GuestMemory) -> None:
    for gpa in (0, 5, MMIO_HOLE_START - 1, MMIO_HOLE_END, MMIO_HOLE_END + GIB - 1):
        assert split.gpa_of(split.view(gpa, 1)) == gpa
    with pytest.raises(ValueError, match="not a view"):
        split.gpa_of(memoryview(bytearray(1)))


def test_memory_can_be_allocated_beforehand() -> None:
    memory = GuestMemory(SIZE, prealloc=True)
    assert resident(memory) == SIZE
    memory.fill(0, 3 * PAGE_SIZE, 1)
    memory.clear(0, 2 * PAGE_SIZE)  # and stays so
    assert memory.read(0, 3 * PAGE_SIZE) == bytes(2 * PAGE_SIZE) + b"\x01" * PAGE_SIZE
    assert resident(memory) == SIZE
    memory.close()


def test_much_allocated_memory_is_cleared() -> None:
    size = 2 * MIB + 3 * PAGE_SIZE
    memory = GuestMemory(size, prealloc=True)
    memory.fill(0, size, 1)
    memory.clear(1, size - 2)
    assert memory.read(0, size) == b"\x01" + bytes(size - 2) + b"\x01"
    memory.close()


def test_kernels_before_5_14_allocate_in_another_way(
    monkeypatch: pytest.MonkeyPatch, either: GuestMemory
) -> None:
    madvise = host.madvise

    def old(view: memoryview, advice: int) -> None:
        if advice == host.MADV_POPULATE_WRITE:
            raise OSError(errno.EINVAL, "")
        madvise(view, advice)

    monkeypatch.setattr(host, "madvise", old)
    memory = GuestMemory(SIZE, prealloc=True, mergeable=either.fd < 0)
    if either.fd < 0:
        assert resident(memory) == SIZE
    else:
        assert os.fstat(memory.fd).st_blocks * 512 >= SIZE
    memory.close()


def test_more_than_the_host_has_is_not_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(memory_module, "_available", lambda: SIZE - 1)
    with pytest.raises(HostError, match=r"can't map 1 MiB .*: Cannot allocate memory"):
        GuestMemory(SIZE, prealloc=True)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_what_the_host_has() -> None:
    assert 0 < memory_module._available() < 1 << 60


def test_mergeable_memory_is_private_and_the_kernel_knows(either: GuestMemory) -> None:
    mergeable = either.fd == -1
    flags = smaps_flags(either)
    assert ("mg" in flags, "sh" in flags) == (mergeable, not mergeable)


class TestTransparentHugePages:
    """What tests of GuestMemory by itself don't ask for, and machines have by default."""

    def test_the_kernel_knows(self) -> None:
        memory = GuestMemory(8 * MIB, thp=True)
        flags = smaps_flags(memory)
        assert ("hg" in flags, "sh" in flags) == (True, False)
        assert memory.fd == -1

    def test_page_tables_of_guest_and_host_can_have_them_at_the_same_places(self) -> None:
        memory = GuestMemory(MMIO_HOLE_START + 4 * MIB, thp=True)
        for region in memory.regions:
            assert (host.address_of(region.view) - region.gpa) % HUGE_PAGE_SIZE == 0
            assert len(region.view) == region.size
        with pytest.raises(GuestMemoryError):
            memory.view(MMIO_HOLE_END, 4 * MIB + 1)

    def test_what_the_host_has_allocated(self) -> None:
        memory = GuestMemory(16 * MIB, thp=True)
        assert memory.allocated == 0
        memory.write_u8(4 * MIB, 1)
        assert PAGE_SIZE <= memory.allocated <= HUGE_PAGE_SIZE
        memory.clear(0, 16 * MIB)
        assert memory.allocated == 0
        assert memory.read_u8(4 * MIB) == 0

    def test_pieces_go_back_to_the_host(self) -> None:
        memory = GuestMemory(4 * MIB, thp=True)
        memory.fill(0, 4 * MIB, 0xAA)
        memory.discard(PAGE_SIZE, PAGE_SIZE)
        assert memory.allocated == 4 * MIB - PAGE_SIZE
        assert memory.read(0, 3 * PAGE_SIZE) == (
            b"\xaa" * PAGE_SIZE + bytes(PAGE_SIZE) + b"\xaa" * PAGE_SIZE
        )

    def test_a_kernel_without_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(view: memoryview, advice: int) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(host, "madvise", refuse)
        GuestMemory(SIZE, thp=True).write_u8(0, 1)

    def test_reserved_huge_pages_are_more(self) -> None:
        try:
            memory = GuestMemory(2 * HUGE_PAGE_SIZE, hugepages=True, thp=True)
        except HostError:
            return  # the host has none reserved: refused as without thp
        assert memory.fd >= 0


def test_a_kernel_that_merges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(view: memoryview, advice: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(host, "madvise", unknown)
    with pytest.raises(HostError, match="can't merge pages"):
        GuestMemory(SIZE, mergeable=True)


def test_huge_pages_that_there_are_not() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="in huge pages") as error:
        GuestMemory(1 << 50, hugepages=True)
    assert f"sysctl vm.nr_hugepages={(1 << 50) // HUGE_PAGE_SIZE}" in error.value.hint
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_huge_pages_are_discarded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file of small pages: the host needn't have huge ones."""
    monkeypatch.setattr(os, "MFD_HUGETLB", 0)
    monkeypatch.setattr(os, "MFD_HUGE_2MB", 0)
    memory = GuestMemory(2 * HUGE_PAGE_SIZE, hugepages=True)
    memory.fill(0, 2 * HUGE_PAGE_SIZE, 1)
    memory.discard(PAGE_SIZE, 2 * HUGE_PAGE_SIZE - 2 * PAGE_SIZE)
    assert resident(memory) == 2 * HUGE_PAGE_SIZE
    memory.discard(PAGE_SIZE, 2 * HUGE_PAGE_SIZE - PAGE_SIZE)
    assert resident(memory) == HUGE_PAGE_SIZE
    memory.close()


def test_huge_pages_come_in_2_mib() -> None:
    with pytest.raises(ValueError):
        GuestMemory(HUGE_PAGE_SIZE + PAGE_SIZE, hugepages=True)


def test_its_descriptor_goes_with_the_last_reference() -> None:
    memory = GuestMemory(SIZE)
    descriptor = memory.fd
    del memory
    with pytest.raises(OSError):
        os.fstat(descriptor)
