"""virtio-mmio as Linux finds it by ACPI: a root file system there, both transports at once, and
more devices than there are interrupts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from linux.boot import Images, boot, job

from guests import disk

MIB = 1 << 20


def test_root_behind_mmio(images: Images, root_disk: Path) -> None:
    ended = boot(
        images.bzimage,
        *("--initrd", str(images.initrd), "--cpus", "2"),
        *("--transport", "mmio", "--disk", str(root_disk)),
        *job(
            "grep ' / ' /proc/mounts; echo from the guest >/written; cat /proc/interrupts;"
            " echo disks: /sys/devices/*/LNRO0005:*/virtio*/block/*"
        ),
    )
    assert ended.status == 0, ended
    assert any(line.startswith("/dev/vda / ext4 rw") for line in ended.lines)
    assert "LNRO0005:00/virtio0/block/vda" in ended.value("disks")
    (interrupts,) = [line for line in ended.lines if line.endswith("virtio0")]
    assert "IO-APIC" in interrupts
    assert "5-fasteoi" in interrupts, "a level"
    assert disk.read_file(root_disk, "/written") == "from the guest\n"
    assert "virtio-mmio" not in ended.stderr, "Linux does nothing that counts as a fault"


def test_both_transports_at_once(images: Images, tmp_path: Path) -> None:
    behind_mmio, behind_pci = tmp_path / "mmio.raw", tmp_path / "pci.raw"
    behind_mmio.write_bytes(bytes(range(256)) * 4096 * 4)
    behind_pci.write_bytes(bytes(4 * MIB))
    ended = boot(
        images.bzimage,
        *("--initrd", str(images.initrd), "--append", "stay=1"),
        *("--disk", f"{behind_mmio},transport=mmio,serial=MMIO"),
        *("--disk", f"{behind_pci},serial=PCI"),
        *job(
            "for d in vda vdb; do eval $(cat /sys/block/$d/serial)=/dev/$d; done;"
            " echo two: $MMIO $PCI;"
            " dd if=$MMIO of=$PCI bs=64k iflag=direct oflag=direct 2>/dev/null"
        ),
    )
    assert ended.status == 0, ended
    assert sorted(ended.value("two").split()) == ["/dev/vda", "/dev/vdb"]
    assert behind_pci.read_bytes() == behind_mmio.read_bytes()


def test_more_devices_than_interrupts(images: Images, tmp_path: Path) -> None:
    """The eighth and the ninth share the first ones'; all are read at the same time."""
    disks = [tmp_path / f"{number}.raw" for number in range(9)]
    for number, image in enumerate(disks):
        image.write_bytes(bytes((number + 1,)) * MIB)
    ended = boot(
        images.bzimage,
        *("--initrd", str(images.initrd), "--append", "stay=1", "--transport", "mmio"),
        *(word for image in disks for word in ("--disk", str(image))),
        *job(
            "cd /dev; for d in vd?; do"
            " (dd if=$d bs=16k iflag=direct 2>/dev/null | md5sum >/tmp/$d) & done; wait;"
            " for d in vd?; do echo $d: $(cat /tmp/$d); done; cat /proc/interrupts"
        ),
    )
    assert ended.status == 0, ended
    for number, name in enumerate("abcdefghi"):
        expected = hashlib.md5(disks[number].read_bytes()).hexdigest()
        assert ended.value(f"vd{name}").split()[0] == expected
    assert any(line.endswith("virtio0, virtio7") for line in ended.lines)
    assert "nobody cared" not in "\n".join(ended.lines)
