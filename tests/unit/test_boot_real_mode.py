"""bzImages by their real-mode entry: what is loaded where, and what the header says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.images import SETUP_SIZE, bzimage

from pyvmm import boot, layout
from pyvmm.boot.entry import RealModeKernel
from pyvmm.boot.zero_page import LoadFlags, SetupHeader
from pyvmm.errors import ImageError
from pyvmm.memory import MIB, GuestMemory

KERNEL = bytes(range(256)) * 16
REAL_MODE = 0x9_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(32 * MIB)
    yield memory
    memory.close()


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., Path]:
    def write(kernel: bytes = KERNEL, **fields: int) -> Path:
        path = tmp_path / "kernel"
        path.write_bytes(bzimage(kernel, **fields))
        return path

    return write


def test_both_parts_and_the_header(memory: GuestMemory, image, tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"initrd!" * 1000)
    state = boot.load(image(), memory, command_line="a b", initrd=tmp_path / "initrd", entry="16")
    assert state.kernel == RealModeKernel(0x9000, 0xE000)
    assert (state.cs.base, state.registers["rip"]) == (0xFFFF_0000, 0xFFF0)
    assert memory.read(0x10_0000, len(KERNEL)) == KERNEL
    header = SetupHeader.parse(memory.read(REAL_MODE, SETUP_SIZE))
    assert header.type_of_loader == 0xFF
    assert header.loadflags == LoadFlags.LOADED_HIGH | LoadFlags.CAN_USE_HEAP
    assert header.heap_end_ptr == 0xE000 - 0x200
    assert memory.read(header.cmd_line_ptr, 4) == b"a b\0"
    assert REAL_MODE + 0xE000 <= header.cmd_line_ptr < layout.EBDA
    assert memory.read(header.ramdisk_image, header.ramdisk_size) == b"initrd!" * 1000
    assert header.code32_start == 0x10_0000


def test_everything_else_of_the_real_mode_part_stays(memory: GuestMemory, image) -> None:
    path = image()
    boot.load(path, memory, entry="16")
    loaded, original = memory.read(REAL_MODE, SETUP_SIZE), path.read_bytes()[:SETUP_SIZE]
    changed = [offset for offset in range(SETUP_SIZE) if loaded[offset] != original[offset]]
    fields = {0x210, 0x211, *range(0x218, 0x220), 0x224, 0x225, *range(0x228, 0x22C)}
    assert set(changed) <= fields


def test_a_zimage_is_loaded_low(memory: GuestMemory, image) -> None:
    state = boot.load(image(loadflags=0), memory)
    assert state.kernel is not None
    assert memory.read(0x1_0000, len(KERNEL)) == KERNEL


def test_a_zimage_that_is_too_large(memory: GuestMemory, image) -> None:
    with pytest.raises(ImageError, match="too large to be loaded below 1 MiB"):
        boot.load(image(bytes(0x8_0001), loadflags=0), memory)


def test_what_borrows_the_form_is_loaded_to_the_end_of_its_file(memory: GuestMemory, image) -> None:
    boot.load(image(syssize=0, version=0x203), memory)
    assert memory.read(0x10_0000, len(KERNEL)) == KERNEL


def test_what_borrows_the_form_gets_the_users_words_alone(memory: GuestMemory, image) -> None:
    boot.load(image(syssize=0, version=0x203), memory, command_line="console=x a", words="a")
    assert memory.read(0x9_E000, 2) == b"a\0"
    boot.load(image(), memory, command_line="console=x a", words="a", entry="16")
    assert memory.read(0x9_E000, 12) == b"console=x a\0"


def test_real_mode_code_of_more_than_32_kib(memory: GuestMemory, image) -> None:
    with pytest.raises(ImageError, match="40 KiB of real-mode code"):
        boot.load(image(bytes(0x2_0000), setup_sects=79, syssize=0x1000), memory, entry="16")


def test_a_command_line_that_is_too_long(memory: GuestMemory, image) -> None:
    with pytest.raises(ImageError, match="takes at most 2047"):
        boot.load(image(), memory, command_line="x" * 2048, entry="16")


def test_a_kernel_that_does_not_fit(image) -> None:
    memory = GuestMemory(16 * MIB)
    with pytest.raises(ImageError, match="the machine has 16 MiB"):
        boot.load(image(), memory, entry="16")
    memory.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "setup_sects": st.integers(0, 255),
            "syssize": st.integers(0, 2**32 - 1),
            "version": st.integers(0x200, 0x20F),
            "loadflags": st.integers(0, 255),
            "code32_start": st.integers(0, 2**32 - 1),
            "initrd_addr_max": st.integers(0, 2**32 - 1),
            "pref_address": st.integers(0, 2**64 - 1),
            "init_size": st.integers(0, 2**32 - 1),
            "kernel_alignment": st.integers(0, 2**32 - 1),
            "cmdline_size": st.integers(0, 2**32 - 1),
        },
    )
)
def test_any_header_is_loaded_or_refused(
    memory: GuestMemory, image, fields: dict[str, int]
) -> None:
    try:
        state = boot.load(image(**fields), memory, command_line="x" * 300, entry="16")
    except ImageError:
        return
    assert state.kernel is not None
