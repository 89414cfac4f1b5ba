"""Disks as Linux uses them: a root file system, read-only, several, and after the VMM's death."""

from __future__ import annotations

from pathlib import Path

from kvm.command import Running
from linux.boot import Images, boot, boot_command, job

from guests import disk

MIB = 1 << 20


def test_root_on_vda(images: Images, root_disk: Path) -> None:
    ended = boot(
        images.bzimage,
        *("--initrd", str(images.initrd), "--disk", str(root_disk), "--cpus", "2"),
        *job("grep ' / ' /proc/mounts; echo from the guest >/written"),
    )
    assert ended.status == 0, ended
    assert any(line.startswith("/dev/vda / ext4 rw") for line in ended.lines)
    assert disk.read_file(root_disk, "/written") == "from the guest\n"


def test_what_was_synced_survives_kill_9(images: Images, root_disk: Path) -> None:
    running = Running(
        boot_command(
            images.bzimage,
            *("--initrd", str(images.initrd), "--disk", str(root_disk)),
            *job("echo kept >/written; sync; echo synced:", "hang"),
        )
    )
    running.read_until(b"synced:")
    running.process.kill()
    running.finish()
    assert disk.read_file(root_disk, "/written") == "kept\n"


def test_a_read_only_disk(images: Images, root_disk: Path) -> None:
    before = root_disk.read_bytes()
    ended = boot(
        images.bzimage,
        *("--initrd", str(images.initrd), "--append", "stay=1"),
        *("--disk", f"{root_disk},readonly=on"),
        *job(
            "echo ro: $(cat /sys/block/vda/ro); mount -o ro,noload /dev/vda /mnt && ls -d /mnt/bin;"
            " dd if=/dev/zero of=/dev/vda count=1 2>/dev/null || echo write: refused"
        ),
    )
    assert ended.status == 0
    assert ended.value("ro") == "1"
    assert ended.value("write") == "refused"
    assert "/mnt/bin" in ended.lines
    assert root_disk.read_bytes() == before


def test_two_disks_with_serials_and_checksums(images: Images, tmp_path: Path) -> None:
    """Every byte written arrives, by buffered and by direct I/O."""
    first, second = tmp_path / "first.raw", tmp_path / "second.raw"
    first.write_bytes(bytes(range(256)) * 4096 * 8)
    second.write_bytes(bytes(8 * MIB))
    ended = boot(
        images.bzimage,
        *("--initrd", str(images.initrd), "--append", "stay=1"),
        *("--disk", f"{first},serial=FIRST", "--disk", f"{second},serial=SECOND-disk"),
        *job(
            "for d in vda vdb; do echo $d: $(cat /sys/block/$d/serial) $(cat /sys/block/$d/size);"
            " done; dd if=/dev/vda of=/dev/vdb bs=64k iflag=direct oflag=direct 2>/dev/null;"
            " sync; echo sum: $(md5sum </dev/vdb)"
        ),
    )
    assert ended.status == 0, ended
    assert ended.value("vda") == "FIRST 16384"
    assert ended.value("vdb") == "SECOND-disk 16384"
    assert second.read_bytes() == first.read_bytes()


def test_discarded_blocks_go_back_to_the_host(images: Images, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(b"\xff" * 8 * MIB)
    ended = boot(
        images.bzimage,
        *("--initrd", str(images.initrd), "--disk", str(image), "--append", "stay=1"),
        *job("blkdiscard /dev/vda && echo discard: done"),
    )
    assert ended.status == 0
    assert ended.value("discard") == "done"
    assert image.stat().st_blocks < 8 * MIB // 512


def test_one_image_has_one_writer(images: Images, root_disk: Path) -> None:
    running = Running(
        boot_command(
            images.bzimage,
            *("--initrd", str(images.initrd), "--disk", str(root_disk)),
            *job("echo up:", "hang"),
        )
    )
    running.read_until(b"up:")
    refused = boot(images.bzimage, "--disk", str(root_disk))
    running.process.terminate()
    running.finish()
    assert refused.status == 1
    assert str(root_disk) in refused.stderr
    assert "use" in refused.stderr
