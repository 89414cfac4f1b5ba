"""Linux reboots in place."""

from __future__ import annotations

from pathlib import Path

import pytest
from linux.boot import Images, boot, job

COUNT_BOOTS = (
    "read -r n < /boots; n=$((n + 1)); echo $n > /boots; sync;"
    " echo boot $n: $(nproc) CPUs, $(cat /proc/uptime | cut -d. -f1) s;"
    " [ $n = 2 ] || { mount -o remount,ro /; reboot -f; }"
)


@pytest.mark.parametrize("how", ["k", "t"])
def test_a_reboot(images: Images, root_disk: Path, how: str) -> None:
    """By the keyboard controller, and by a triple fault. The disk keeps its content; both CPUs
    are there again; and the time since the boot starts anew."""
    ended = boot(
        images.bzimage,
        *("--initrd", str(images.initrd), "--disk", str(root_disk), "--cpus", "2"),
        *("--on-reboot", "restart", "--append", f"reboot={how}", *job(COUNT_BOOTS)),
    )
    assert ended.status == 0, ended
    boots = [line for line in ended.lines if line.startswith("boot ")]
    assert [line.split(":")[0] for line in boots] == ["boot 1", "boot 2"]
    assert all(": 2 CPUs, " in line for line in boots)
    assert "guest powered off after 1 reboot and " in ended.stderr
    assert ("triple fault" in ended.stderr) == (how == "t")


def test_a_panic_is_the_end_of_it(images: Images) -> None:
    """Although the kernel would reboot."""
    options = ("--initrd", str(images.initrd), "--on-reboot", "restart", *job("true", "panic"))
    ended = boot(images.bzimage, *options)
    assert ended.status == 3
    assert 'guest panicked: "sysrq triggered crash" after' in ended.stderr
