"""What the *linux* tier boots. The images are built before (`make guests`): in the lab, where these
tests may run, there is no network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from linux.boot import Images, built

from guests import artefacts, kernel, memtest, vmlinux


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
