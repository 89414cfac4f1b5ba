"""What the *linux* tier boots. The images are built before (`make guests`): in the lab, where these
tests may run, there is no network."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from linux.boot import Images, built

from guests import artefacts, kernel, memtest, network, vmlinux

LAB_ATTEMPTS = 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the lab, and only there, a test that fails is tried again, and the summary says so.

    QEMU's emulation of AMD-V has faults: now and then, the more the busier the machine, a guest
    stands still or ends in a triple fault, and its RIP is then one of the lab's own kernel, just
    behind a VMRUN, which neither a guest nor a VMM can put there. Guests of a QEMU in the lab
    stand still there, too. On hardware nothing is tried twice.
    """
    if os.environ.get("PYVMM_LAB"):
        for item in items:
            item.add_marker(pytest.mark.flaky(reruns=LAB_ATTEMPTS - 1))


@pytest.fixture(scope="session")
def images() -> Images:
    """Kernels and initrd; a missing one fails with the command that builds it."""
    return Images(
        bzimage=built(kernel.directory("cloud") / "vmlinuz"),
        vmlinux=built(vmlinux.path("cloud")),
        initrd=built(artefacts.BUILD / "initramfs/cloud.cpio.gz"),
        memory_initrd=built(artefacts.BUILD / "initramfs/memory.cpio.gz"),
        sockets_initrd=built(artefacts.BUILD / "initramfs/sockets.cpio.gz"),
        memtest_64=built(memtest.KERNEL_64),
        memtest_32=built(memtest.KERNEL_32),
    )


@pytest.fixture
def root_disk(tmp_path: Path) -> Path:
    """A fresh copy of the busybox root disk."""
    pristine = built(artefacts.BUILD / "disks/busybox.raw")
    return Path(shutil.copy(pristine, tmp_path / "root.raw"))


@pytest.fixture
def tap() -> Iterator[str]:
    """The name of a tap interface on which a guest gets its address by DHCP."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a tap interface")
    with open(artefacts.BUILD / ".tap", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the name and its addresses are there only once
        with network.tap("pyvmm-test"):
            yield "pyvmm-test"
