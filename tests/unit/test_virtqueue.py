"""The split virtqueue against hand-made rings, friendly and hostile."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.memory import GuestMemory
from pyvmm.virtio.queue import MAX_SEEN_BATCHES, Virtqueue, VirtqueueError
from pyvmm.virtio.queue_buffers import Buffers, used_elements

DESCRIPTORS, AVAIL, USED, TABLE, DATA = 0x1000, 0x2000, 0x3000, 0x4000, 0x8000
SIZE = 8
NEXT, WRITE, INDIRECT = 1, 2, 4
DESCRIPTOR = struct.Struct("<QIHH")
MEMORY = 1 << 20


class Rings:
    """A queue of 8 and the driver's side of it."""

    def __init__(self, *, event_idx: bool = False, indirect: bool = True, size: int = SIZE) -> None:
        self.memory = GuestMemory(MEMORY)
        self.interrupts = 0
        self.queue = Virtqueue(self.memory, SIZE, self._interrupt)
        self.queue.size = size
        self.queue.descriptor_area = DESCRIPTORS
        self.queue.driver_area = AVAIL
        self.queue.device_area = USED
        self.queue.ready = True
        self.features = {"event_idx": event_idx, "indirect": indirect}
        self.queue.start(**self.features)
        self.size = size
        self.available = 0

    def _interrupt(self) -> None:
        self.interrupts += 1

    def describe(self, index: int, *fields: int, table: int = DESCRIPTORS) -> None:
        """Write a descriptor: address, length, flags, next."""
        self.memory.write(table + 16 * index, DESCRIPTOR.pack(*fields))

    def offer(self, *heads: int) -> None:
        for head in heads:
            self.memory.write_u16(AVAIL + 4 + 2 * (self.available % self.size), head)
            self.available = (self.available + 1) & 0xFFFF
        self.memory.write_u16(AVAIL + 2, self.available)

    @property
    def used(self) -> tuple[int, list[tuple[int, int]]]:
        """used.idx and the ring's entries."""
        entries = [
            (self.memory.read_u32(USED + 4 + 8 * i), self.memory.read_u32(USED + 8 + 8 * i))
            for i in range(self.size)
        ]
        return self.memory.read_u16(USED + 2), entries

    def set_used_event(self, value: int) -> None:
        self.memory.write_u16(AVAIL + 4 + 2 * self.size, value)

    @property
    def avail_event(self) -> int:
        return self.memory.read_u16(USED + 4 + 8 * self.size)


def test_a_chain_is_the_guests_own_memory_in_order() -> None:
    rings = Rings()
    rings.describe(3, DATA, 16, NEXT, 1)
    rings.describe(1, DATA + 0x100, 512, NEXT | WRITE, 5)
    rings.describe(5, DATA + 0x400, 1, WRITE, 0)
    rings.memory.write(DATA, b"0123456789abcdef")
    rings.offer(3)
    (chain,) = rings.queue.pop_batch(16)
    assert chain.head == 3
    assert [bytes(b) for b in chain.readable] == [b"0123456789abcdef"]
    assert [len(b) for b in chain.writable] == [512, 1]
    assert (chain.readable_bytes, chain.writable_bytes) == (16, 513)
    chain.writable[1][0] = 0x5A
    assert rings.memory.read_u8(DATA + 0x400) == 0x5A
    assert rings.queue.pop_batch(16) == []


def test_pops_no_more_than_asked_for_and_keeps_the_order() -> None:
    rings = Rings()
    for head in range(5):
        rings.describe(head, DATA, 1 + head, 0, 0)
    rings.offer(4, 0, 3, 1)
    assert [c.head for c in rings.queue.pop_batch(3)] == [4, 0, 3]
    assert [c.head for c in rings.queue.pop_batch(3)] == [1]


def test_a_batch_is_pushed_with_one_index_and_one_interrupt() -> None:
    rings = Rings()
    rings.queue.push_batch([(2, 100), (7, 0)])
    index, entries = rings.used
    assert (index, entries[:2]) == (2, [(2, 100), (7, 0)])
    assert rings.interrupts == 1


def test_indices_wrap_around_at_65536() -> None:
    rings = Rings(event_idx=True)
    rings.describe(0, DATA, 1, WRITE, 0)
    for turn in range(0x10000 + 20):
        rings.offer(0)
        (chain,) = rings.queue.pop_batch(16)
        rings.set_used_event(turn & 0xFFFF)
        rings.queue.push_batch([(chain.head, 1)])
    assert rings.interrupts == 0x10000 + 20
    assert rings.used[0] == 20


def test_an_indirect_table_is_followed() -> None:
    rings = Rings()
    rings.describe(2, TABLE, 48, INDIRECT, 0)
    rings.describe(0, DATA, 16, NEXT, 2, table=TABLE)
    rings.describe(2, DATA + 16, 4096, NEXT | WRITE, 1, table=TABLE)
    rings.describe(1, DATA + 8192, 1, WRITE, 0, table=TABLE)
    rings.offer(2)
    (chain,) = rings.queue.pop_batch(16)
    assert (chain.head, chain.readable_bytes, chain.writable_bytes) == (2, 16, 4097)


def test_direct_descriptors_may_precede_the_indirect_one_whose_write_flag_means_nothing() -> None:
    rings = Rings()
    rings.describe(0, DATA, 16, NEXT, 1)
    rings.describe(1, TABLE, 16, INDIRECT | WRITE, 0)
    rings.describe(0, DATA + 64, 32, 0, 0, table=TABLE)
    rings.offer(0)
    (chain,) = rings.queue.pop_batch(16)
    assert [len(b) for b in chain.readable] == [16, 32]


def test_an_indirect_chain_may_use_the_devices_queue_size_when_the_drivers_is_smaller() -> None:
    rings = Rings(size=2)
    rings.describe(0, TABLE, 16 * SIZE, INDIRECT, 0)
    for index in range(SIZE):
        last = index == SIZE - 1
        rings.describe(index, DATA, 1, 0 if last else NEXT, index + 1, table=TABLE)
    rings.offer(0)
    assert rings.queue.pop_batch(16)[0].readable_bytes == SIZE


BROKEN = {
    "loop": [(DATA, 1, NEXT, 0)],
    "loop over all": [(DATA, 1, NEXT, (i + 1) % SIZE) for i in range(SIZE)],
    "next out of range": [(DATA, 1, NEXT, SIZE)],
    "next far out of range": [(DATA, 1, NEXT, 0xFFFF)],
    "zero length": [(DATA, 0, 0, 0)],
    "outside memory": [(MEMORY, 1, 0, 0)],
    "runs out of memory": [(MEMORY - 1, 2, 0, 0)],
    "wraps around": [((1 << 64) - 1, 2, 0, 0)],
    "readable behind writable": [(DATA, 1, NEXT | WRITE, 1), (DATA, 1, 0, 0)],
    "indirect with next": [(TABLE, 16, INDIRECT | NEXT, 1), (DATA, 1, 0, 0)],
    "indirect of odd size": [(TABLE, 24, INDIRECT, 0)],
    "indirect of no size": [(TABLE, 0, INDIRECT, 0)],
    "indirect outside memory": [(MEMORY, 16, INDIRECT, 0)],
    "nested indirect": [(DESCRIPTORS + 16, 16, INDIRECT, 0), (TABLE, 16, INDIRECT, 0)],
    "indirect loop": [(DESCRIPTORS + 16, 16, INDIRECT, 0), (DATA, 1, NEXT, 0)],
    "indirect next out of range": [(DESCRIPTORS + 16, 16, INDIRECT, 0), (DATA, 1, NEXT, 1)],
}


@pytest.mark.parametrize("descriptors", BROKEN.values(), ids=BROKEN)
def test_a_broken_chain_is_refused(descriptors: list[tuple[int, int, int, int]]) -> None:
    rings = Rings()
    for index, fields in enumerate(descriptors):
        rings.describe(index, *fields)
    rings.offer(0)
    with pytest.raises(VirtqueueError):
        rings.queue.pop_batch(16)


def test_an_indirect_descriptor_must_have_been_negotiated() -> None:
    rings = Rings(indirect=False)
    rings.describe(0, TABLE, 16, INDIRECT, 0)
    rings.describe(0, DATA, 1, 0, 0, table=TABLE)
    rings.offer(0)
    with pytest.raises(VirtqueueError):
        rings.queue.pop_batch(16)


def test_a_head_out_of_range_is_refused() -> None:
    rings = Rings()
    rings.offer(SIZE)
    with pytest.raises(VirtqueueError):
        rings.queue.pop_batch(16)


def test_more_chains_than_the_queue_holds_are_refused() -> None:
    rings = Rings()
    rings.describe(0, DATA, 1, 0, 0)
    rings.memory.write_u16(AVAIL + 2, SIZE)
    assert len(rings.queue.pop_batch(16)) == SIZE
    rings.memory.write_u16(AVAIL + 2, 2 * SIZE + 1)
    with pytest.raises(VirtqueueError):
        rings.queue.pop_batch(16)


def test_more_than_4_gib_in_a_chain_is_refused() -> None:
    memory = GuestMemory(3 << 29)
    queue = Virtqueue(memory, SIZE, lambda: None)
    queue.descriptor_area, queue.driver_area, queue.device_area = DESCRIPTORS, AVAIL, USED
    queue.start(event_idx=False, indirect=False)
    for index in range(3):
        fields = (0, 3 << 29, WRITE | (NEXT if index < 2 else 0), index + 1)
        memory.write(DESCRIPTORS + 16 * index, DESCRIPTOR.pack(*fields))
    # Reading its own rings as data is the driver's business.
    memory.write_u16(AVAIL + 2, 1)
    with pytest.raises(VirtqueueError):
        queue.pop_batch(1)


@pytest.mark.parametrize("area", ["descriptor_area", "driver_area", "device_area"])
@pytest.mark.parametrize("address", [1, MEMORY, MEMORY - 16, (1 << 64) - 16])
def test_rings_must_be_aligned_and_in_memory(area: str, address: int) -> None:
    rings = Rings()
    setattr(rings.queue, area, address)
    with pytest.raises(VirtqueueError):
        rings.queue.start(event_idx=True, indirect=True)


def test_a_size_must_be_a_power_of_two() -> None:
    for size in (0, 3, 65536):
        with pytest.raises(ValueError):
            Virtqueue(GuestMemory(4096), size, lambda: None)


def test_the_driver_can_decline_interrupts_by_flag() -> None:
    rings = Rings()
    rings.memory.write_u16(AVAIL, 1)
    rings.queue.push_batch([(0, 0)])
    assert rings.interrupts == 0
    rings.memory.write_u16(AVAIL, 0)
    rings.queue.push_batch([(1, 0)])
    assert rings.interrupts == 1


def test_elements_of_the_used_ring_go_round_its_end() -> None:
    rings = Rings()
    rings.queue.push_batch([(0, 0)] * 6)
    rings.queue.push_elements(used_elements([4, 5, 6], [40, 50, 60]))
    index, entries = rings.used
    assert index == 9
    assert (entries[6], entries[7], entries[0]) == ((4, 40), (5, 50), (6, 60))
    assert entries[1:6] == [(0, 0)] * 5
    assert rings.interrupts == 2


def test_more_used_elements_than_the_ring_has() -> None:
    rings = Rings()
    rings.queue.push_elements(used_elements([1] * SIZE, [2] * SIZE))
    with pytest.raises(VirtqueueError):
        rings.queue.push_elements(used_elements([1] * (SIZE + 1), [2] * (SIZE + 1)))
    assert rings.used[0] == SIZE


def parts(found: Buffers | None) -> list[tuple[int, int]]:
    """Addresses and lengths."""
    assert found is not None
    fields = struct.iter_unpack("<QIHH", found.parts)
    return [(address, length) for address, length, _, _ in fields]


@pytest.mark.parametrize("heads", [[1, 2, 3, 4], [5, 2, 3, 0], [7, 0, 7, 0], [6, 1]])
def test_single_buffers_are_popped_in_their_order(heads: list[int]) -> None:
    rings = Rings()
    for index in range(SIZE):
        rings.describe(index, DATA + 0x100 * index, 16 + index, WRITE, 7 - index)
    rings.offer(*heads)
    found = rings.queue.pop_buffers(16, WRITE)
    assert parts(found) == [(DATA + 0x100 * head, 16 + head) for head in heads]
    assert found is not None
    assert (found.heads, found.counts) == (heads, [1] * len(heads))
    assert found.sizes == [16 + head for head in heads]
    assert rings.queue.pop_buffers(16, WRITE) is None


@pytest.mark.parametrize("indirect", [False, True])
def test_chains_are_popped_as_buffers(indirect: bool) -> None:
    rings = Rings()
    table, first = (TABLE, 0) if indirect else (DESCRIPTORS, 2)
    if indirect:
        rings.describe(2, TABLE, 48, INDIRECT, 0)
    for index in range(first, first + 3):
        flags = NEXT if index < first + 2 else 0
        rings.describe(index, DATA + 0x100 * index, 16 + index, flags, index + 1, table=table)
    rings.describe(6, DATA, 99, 0, 0)
    rings.offer(2, 6)
    found = rings.queue.pop_buffers(16, 0)
    expected = [(DATA + 0x100 * index, 16 + index) for index in range(first, first + 3)]
    assert parts(found) == [*expected, (DATA, 99)]
    assert found is not None
    assert (found.heads, found.counts) == ([2, 6], [3, 1])
    assert found.sizes == [sum(length for _, length in expected), 99]


def test_an_indirect_table_that_is_offered_again_may_have_changed() -> None:
    rings = Rings()
    rings.describe(0, TABLE, 32, INDIRECT, 0)
    rings.describe(0, DATA, 16, NEXT, 1, table=TABLE)
    for length in (16, 16, 17, 17, 18):
        rings.describe(1, DATA + 64, length, 0, 0, table=TABLE)
        rings.offer(0)
        assert parts(rings.queue.pop_buffers(16, 0)) == [(DATA, 16), (DATA + 64, length)]


def test_an_indirect_table_behind_other_descriptors_may_have_changed() -> None:
    rings = Rings()
    rings.describe(0, DATA, 16, NEXT, 1)
    rings.describe(1, TABLE, 16, INDIRECT, 0)
    for length in (16, 16, 17, 17, 18):
        rings.describe(0, DATA + 64, length, 0, 0, table=TABLE)
        rings.offer(0)
        assert parts(rings.queue.pop_buffers(16, 0)) == [(DATA, 16), (DATA + 64, length)]


def test_what_is_remembered_has_an_end() -> None:
    rings = Rings()
    for index in range(SIZE):
        rings.describe(index, DATA, 16, 0, 0)
    for heads in itertools.product(range(SIZE), repeat=3):
        rings.offer(*heads)
        found = rings.queue.pop_buffers(16, 0)
        assert found is not None
        assert found.heads == list(heads)
    assert len(rings.queue._seen) <= MAX_SEEN_BATCHES


def test_a_chain_that_is_offered_again_may_have_changed() -> None:
    rings = Rings()
    chain = [(DATA, 16, NEXT, 1), (DATA + 64, 32, NEXT, 2), (DATA + 128, 48, 0, 0)]
    changes = [
        [],
        [],
        [(1, (DATA + 64, 33, NEXT, 2))],
        [(2, (DATA, 48, 0, 0))],
        [(0, (DATA, 16, NEXT, 2))],
        [(0, (DATA, 16, 0, 1))],
        [(0, (DATA, 16, NEXT, 1)), (2, (DATA, 48, NEXT, 3)), (3, (DATA, 1, 0, 0))],
    ]
    for index, fields in enumerate(chain):
        rings.describe(index, *fields)
    for change in changes:
        for index, fields in change:
            rings.describe(index, *fields)
        rings.offer(0)
        found = parts(rings.queue.pop_buffers(16, 0))
        rings.queue.unpop(1)
        (popped,) = rings.queue.pop_batch(16)
        assert found == [(rings.memory.gpa_of(view), len(view)) for view in popped.readable]
    rings.describe(2, DATA, 48, NEXT, 0)
    rings.offer(0)
    with pytest.raises(VirtqueueError, match="loop"):
        rings.queue.pop_buffers(16, 0)


@given(
    start=st.integers(0, 0xFFFF),
    batch=st.integers(1, SIZE),
    ahead=st.integers(0, 0xFFFF),
)
def test_the_used_event_asks_for_an_interrupt_when_it_is_passed(
    start: int, batch: int, ahead: int
) -> None:
    rings = Rings(event_idx=True)
    state = rings.queue.save()
    rings.queue.restore({**state, "next_used": start})
    rings.queue.start(**rings.features)
    rings.set_used_event((start + ahead) & 0xFFFF)
    rings.queue.push_batch([(0, 0)] * batch)
    # The entry with number used_event is among those just pushed.
    assert rings.interrupts == (1 if ahead < batch else 0)


def test_notifications_by_flag() -> None:
    rings = Rings()
    rings.queue.disable_notifications()
    assert rings.memory.read_u16(USED) == 1
    assert not rings.queue.enable_notifications()
    assert rings.memory.read_u16(USED) == 0


def test_notifications_by_event_index() -> None:
    rings = Rings(event_idx=True)
    rings.describe(0, DATA, 1, 0, 0)
    rings.offer(0, 0, 0)
    rings.queue.disable_notifications()
    rings.queue.pop_batch(2)
    assert rings.queue.enable_notifications(), "the third came while the device wasn't looking"
    assert rings.avail_event == 2
    rings.queue.pop_batch(2)
    assert not rings.queue.enable_notifications()
    assert rings.avail_event == 3
    assert rings.memory.read_u16(USED) == 0


def test_state_survives_save_and_restore() -> None:
    rings = Rings(event_idx=True)
    rings.describe(0, DATA, 1, 0, 0)
    rings.describe(1, DATA, 2, 0, 0)
    rings.offer(0)
    rings.queue.pop_batch(16)
    rings.queue.push_batch([(0, 0)])
    rings.offer(1)
    state = rings.queue.save()
    other = Virtqueue(rings.memory, SIZE, lambda: None)
    other.restore(state)
    other.start(**rings.features)
    assert [c.head for c in other.pop_batch(16)] == [1]
    other.push_batch([(1, 0)])
    assert rings.used[0] == 2


def test_reset_forgets_the_driver() -> None:
    rings = Rings()
    rings.queue.size = 2
    rings.queue.reset()
    assert rings.queue.save() == Virtqueue(rings.memory, SIZE, lambda: None).save()


# Mostly plausible values, so that chains get long before something is wrong with them.
addresses = st.one_of(
    st.integers(0, MEMORY),
    st.sampled_from([DESCRIPTORS, AVAIL, USED, TABLE]),
    st.integers(0, 2**64 - 1),
)
lengths = st.one_of(
    st.integers(0, 64), st.integers(0, 8).map(lambda n: 16 * n), st.integers(0, 2**32 - 1)
)
descriptors = st.tuples(
    addresses, lengths, st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)), st.integers(0, SIZE)
)


@given(
    table=st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    indirect=st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    heads=st.lists(st.integers(0, SIZE), max_size=SIZE),
    index=st.one_of(st.none(), st.integers(0, 0xFFFF)),
    event_idx=st.booleans(),
)
def test_no_ring_makes_the_queue_do_anything_but_work_or_refuse(
    table: list[tuple[int, int, int, int]],
    indirect: list[tuple[int, int, int, int]],
    heads: list[int],
    index: int | None,
    event_idx: bool,
) -> None:
    rings = Rings(event_idx=event_idx)
    for slot, fields in enumerate(table):
        rings.describe(slot, *fields)
    for slot, fields in enumerate(indirect):
        rings.describe(slot, *fields, table=TABLE)
    rings.offer(*heads)
    if index is not None:
        rings.memory.write_u16(AVAIL + 2, index)
    try:
        chains = rings.queue.pop_batch(SIZE)
    except VirtqueueError:
        return
    for chain in chains:
        assert 1 <= len(chain.readable) + len(chain.writable) <= 2 * SIZE
        assert chain.readable_bytes == sum(map(len, chain.readable))
        assert chain.writable_bytes == sum(map(len, chain.writable))
    rings.queue.push_batch([(chain.head, chain.writable_bytes & 0xFFFF_FFFF) for chain in chains])
    rings.queue.enable_notifications()


@given(
    tables=st.lists(st.lists(descriptors, min_size=SIZE, max_size=SIZE), min_size=1, max_size=3),
    indirect=st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    heads=st.lists(st.integers(0, SIZE), min_size=1, max_size=SIZE),
    flag=st.sampled_from([0, WRITE]),
)
def test_buffers_are_what_chains_have(
    tables: list[list[tuple[int, int, int, int]]],
    indirect: list[tuple[int, int, int, int]],
    heads: list[int],
    flag: int,
) -> None:
    """In every ring, and however it changes; and what is not in memory is never taken for it."""
    rings = Rings()
    for slot, fields in enumerate(indirect):
        rings.describe(slot, *fields, table=TABLE)
    for table in [each for each in tables for _ in range(2)]:
        for slot, fields in enumerate(table):
            rings.describe(slot, *fields)
        rings.offer(*heads)
        try:
            chains = rings.queue.pop_batch(SIZE)
            rings.queue.unpop(len(chains))
            expected = [chain.writable if flag else chain.readable for chain in chains]
        except VirtqueueError:
            try:
                popped = parts(rings.queue.pop_buffers(SIZE, flag))
            except VirtqueueError:
                return
            assert not all(rings.memory.contains(*part) for part in popped)
            return
        found = rings.queue.pop_buffers(SIZE, flag)
        assert parts(found) == [
            (rings.memory.gpa_of(view), len(view)) for views in expected for view in views
        ]
        assert found is not None
        assert found.heads == [chain.head for chain in chains]
        assert found.counts == [len(views) for views in expected]
        assert found.sizes == [sum(map(len, views)) for views in expected]
