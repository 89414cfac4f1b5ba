"""The command line seen from outside: bad input gives one line, the right status, and no write.

All of it fails before /dev/kvm is needed.
"""

from __future__ import annotations

import fcntl
import grp
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from unit.images import Segment, bzimage, elf

from pyvmm.errors import HostError
from pyvmm.kvm import Kvm
from pyvmm.kvm.system import permission_fix
from pyvmm.memory import GIB, MIB

ERROR, USAGE = 1, 2


def pyvmm(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyvmm", *map(str, arguments)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def refuses(status: int, said: str, *arguments: str | Path) -> None:
    """The command ends with ``status`` and one line on stderr in which ``said`` is found."""
    ended = pyvmm(*arguments)
    assert ended.returncode == status, ended
    assert ended.stdout == ""
    assert re.fullmatch(r"pyvmm: [^\n]+\n", ended.stderr)
    assert re.search(said, ended.stderr), ended.stderr


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage())
    return path


KERNELS = {
    "text": (b"#!/bin/sh\necho no kernel\n" * 40, "script"),
    "empty": (b"", "empty"),
    "truncated bzImage": (bzimage(bytes(1 << 16))[:8000], "truncated"),
    "cut setup header": (bzimage()[:0x200], "truncated|not a kernel"),
    "truncated ELF": (elf(Segment(16 * MIB, bytes(4096)))[:1000], "truncated"),
    "ELF for Arm": (elf(Segment(16 * MIB), machine=183), "AArch64|ARM64|aarch64"),
    "big-endian ELF": (elf(Segment(16 * MIB), data_encoding=2), "big-endian"),
    "overlapping segments": (
        elf(Segment(16 * MIB, bytes(8192)), Segment(16 * MIB + 4096, bytes(16))),
        "overlap",
    ),
    "segments outside RAM": (elf(Segment(3 * GIB)), "RAM|memory"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_file_that_is_no_good_kernel(tmp_path: Path, name: str) -> None:
    content, said = KERNELS[name]
    path = tmp_path / "kernel"
    path.write_bytes(content)
    refuses(ERROR, f"{path}.*({said})", "run", "--kernel", path)


def test_a_missing_kernel(tmp_path: Path) -> None:
    refuses(ERROR, "does not exist|No such file|missing", "run", "-k", tmp_path / "nothing")


def test_a_directory_as_kernel(tmp_path: Path) -> None:
    refuses(ERROR, "directory", "run", "-k", tmp_path)


def test_an_unreadable_kernel() -> None:
    refuses(ERROR, "/proc/self/mem", "run", "-k", "/proc/self/mem")


def test_a_socket_as_kernel(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        refuses(ERROR, "is a socket", "run", "-k", tmp_path / "socket")


def test_an_initrd_that_does_not_fit(kernel: Path, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    with initrd.open("wb") as file:
        file.truncate(GIB)
    refuses(ERROR, f"{initrd}.*fit", "run", "-k", kernel, "-i", initrd, "-m", "512M")


def test_a_missing_initrd(kernel: Path, tmp_path: Path) -> None:
    refuses(ERROR, "initrd", "run", "-k", kernel, "-i", tmp_path / "initrd")


def test_a_command_line_that_is_too_long(kernel: Path) -> None:
    refuses(ERROR, "command line.*5[0-9]{3}.*2047", "run", "-k", kernel, "-a", "x" * 5000)


DISKS = {
    "empty": (b"", "empty"),
    "odd": (bytes(1000), "512"),
}


@pytest.mark.parametrize("name", DISKS)
def test_a_disk_that_is_no_good(kernel: Path, tmp_path: Path, name: str) -> None:
    content, said = DISKS[name]
    path = tmp_path / "disk"
    path.write_bytes(content)
    refuses(ERROR, f"{path}.*{said}", "run", "-k", kernel, "-d", path)


def test_a_disk_that_flock_has_locked(kernel: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refuses(ERROR, f"{path}.*use", "run", "-k", kernel, "-d", path)


def test_two_readers_or_one_writer(kernel: Path, tmp_path: Path) -> None:
    from pyvmm.backends.disk import DiskImage

    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    image = DiskImage.open(str(path))
    try:
        refuses(ERROR, f"{path}.*use", "run", "-k", kernel, "-d", path)
        refuses(ERROR, f"{path}.*use", "run", "-k", kernel, "-d", f"{path},readonly=on")
    finally:
        image.close()


def test_a_run_that_fails_to_start_writes_no_disk(tmp_path: Path) -> None:
    disk, kernel = tmp_path / "disk", tmp_path / "kernel"
    disk.write_bytes(bytes(range(256)) * 16)
    kernel.write_text("no kernel")
    before = (disk.read_bytes(), disk.stat().st_mtime_ns)
    refuses(ERROR, "kernel", "run", "-k", kernel, "-d", disk)
    assert (disk.read_bytes(), disk.stat().st_mtime_ns) == before


def test_a_run_that_fails_to_start_leaves_an_old_log(tmp_path: Path) -> None:
    log, kernel = tmp_path / "log", tmp_path / "kernel"
    log.write_text("yesterday's")
    kernel.write_text("no kernel")
    refuses(ERROR, "kernel", "run", "-k", kernel, "--serial", f"file:{log}")
    assert log.read_text() == "yesterday's"


def test_the_log_is_not_an_image_that_is_in_use(kernel: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    for image in (kernel, disk):
        before = image.read_bytes()
        arguments = ["run", "-k", kernel, "-d", disk, "--serial", f"file:{image}"]
        refuses(USAGE, f"--serial: {image}", *arguments)
        assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("--kernel", ["run"]),
        ("pyvmm run --help", ["run", "-k"]),
        ("--kernel.*empty", ["run", "-k", ""]),
        ("--initrd.*empty", ["run", "-k", "x", "-i", ""]),
        ("--timeout.*'0'", ["run", "-k", "x", "--timeout", "0"]),
        ("--timeout.*'inf'", ["run", "-k", "x", "--timeout", "inf"]),
        ("--timeout.*'10s'.*seconds", ["run", "-k", "x", "--timeout", "10s"]),
        ("--expect.*empty", ["run", "-k", "x", "--expect", ""]),
        ("--fail-on.*empty", ["run", "-k", "x", "--fail-on", ""]),
        ("--serial.*stdio.*two", ["run", "-k", "x", "--serial", "stdio", "--serial", "stdio"]),
        ("--disk d,serial: ", ["run", "-k", "x", "--disk", "d,serial=\udcff"]),
        ("--memory.*1 MiB.*2 MiB", ["run", "-k", "x", "--memory", "1M"]),
        ("--memory.*'lots'", ["run", "-k", "x", "--memory", "lots"]),
        ("--memory", ["run", "-k", "x", "--memory", "65G"]),
        ("--memory.*2 MiB", ["run", "-k", "x", "--memory", "63M,hugepages=on"]),
        ("--cpus.*0", ["run", "-k", "x", "--cpus", "0"]),
        ("--cpu-affinity.*vCPU 1", ["run", "-k", "x", "--cpu-affinity", "1=0"]),
        ("--rng.*'fast=on'", ["run", "-k", "x", "--rng", "fast=on"]),
        ("--balloon.*'big'", ["run", "-k", "x", "--balloon", "big"]),
        ("--cpus.*0", ["run", "-k", "x", "--rng", "--balloon", "--cpus", "0"]),
        ("--cpus", ["run", "-k", "x", "--cpus", "two"]),
        ("--timeout", ["run", "-k", "x", "--timeout", "-1"]),
        ("--expect", ["run", "-k", "x", "--expect", "("]),
        ("--fail-on", ["run", "-k", "x", "--fail-on", "["]),
        ("--serial.*'modem'", ["run", "-k", "x", "--serial", "modem"]),
        ("--disk.*'readwrite=on'", ["run", "-k", "x", "--disk", "d,readwrite=on"]),
        ("--disk.*'maybe'", ["run", "-k", "x", "--disk", "d,readonly=maybe"]),
        ("--cpu.*'486'", ["run", "-k", "x", "--cpu", "486"]),
        ("--entry", ["run", "-k", "x", "--entry", "8086"]),
        ("no-such-option", ["run", "--no-such-option"]),
        ("no-such-command", ["no-such-command"]),
    ],
)
def test_usage(said: str, arguments: list[str]) -> None:
    refuses(USAGE, said, *arguments)


@pytest.mark.parametrize("command", [[], ["run"], ["check"], ["inspect"]])
def test_help_is_complete(command: list[str]) -> None:
    ended = pyvmm(*command, "--help")
    assert ended.returncode == 0
    assert "Examples:" in ended.stdout


def test_the_run_help_has_the_exit_statuses() -> None:
    text = pyvmm("run", "--help").stdout
    for status in ("0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "124", "130"):
        assert re.search(rf"^ +{status} +[\w-]", text, re.MULTILINE), status


def test_shell_completion_knows_commands_and_options() -> None:
    def complete(words: str) -> str:
        count = str(len(words.split(" ")) - 1)
        return pyvmm(_PYVMM_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count).stdout

    assert "plain,inspect" in complete("pyvmm i")
    assert "plain,--serial" in complete("pyvmm run --se")
    assert "file,b" in complete("pyvmm run -k b")
    assert "file,b" in complete("pyvmm run -d b")
    assert "file,b" in complete("pyvmm inspect b")


def test_inspect_prints_json(kernel: Path) -> None:
    facts = json.loads(pyvmm("inspect", "--json", kernel).stdout)
    assert facts["kind"] == "bzImage"


def test_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    refuses(ERROR, "does not exist", "run", "-k", os.fsdecode(bytes(tmp_path) + b"/\xff"))


def test_output_that_has_no_room() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "pyvmm", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == ERROR
    assert ended.stderr == "pyvmm: can't write to stdout: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(kernel: Path, closed: str) -> None:
    command = [sys.executable, "-m", "pyvmm", "inspect", str(kernel)]
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command], capture_output=True, check=False
    )
    assert ended.returncode == 0
    assert ended.stderr == b""


def test_no_kvm(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="does not exist") as raised:
        Kvm(str(tmp_path / "kvm"))
    assert "modprobe" in raised.value.hint


def test_something_else_than_kvm() -> None:
    with pytest.raises(HostError, match="not KVM") as raised:
        Kvm("/dev/null")
    assert "mknod /dev/null c 10 232" in raised.value.hint


def test_a_directory_that_a_container_s_mount_has_made(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"can't open .*: Is a directory") as raised:
        Kvm(str(tmp_path))
    assert f"rm -r {tmp_path}" in raised.value.hint


def test_kvm_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    device = tmp_path / "kvm"
    device.touch(0o600)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match="no permission to open") as raised:
        Kvm(str(device))
    assert "chmod 660" in raised.value.hint
    assert "usermod -aG kvm" in raised.value.hint


@pytest.mark.parametrize(
    ("mode", "group", "fix"),
    [
        (0o660, "vmusers", "sudo usermod -aG vmusers $USER, then log in again"),
        (0o660, "root", "sudo usermod -aG kvm $USER, then log in again"),  # not to the group root
        (0o600, "vmusers", "sudo usermod -aG kvm $USER, then log in again"),
    ],
)
def test_what_gives_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, group: str, fix: str
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(mode)
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_name=group))
    command = permission_fix(str(device))
    assert command.endswith(fix)
    assert command == fix or command.startswith("sudo groupadd --force --system kvm && ")


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("--console: 'tty' is not understood", ["--console", "tty"]),
        ("--console: stdio can't serve two", ["--console", "stdio", "--serial", "stdio"]),
        ("--port x: 'stdio' is not understood", ["--port", "x=stdio"]),
        ("--vsock .*cid", ["--vsock", "cid=1,path=/x"]),
        ("--serial: 'unix:' is not understood", ["--serial", "unix:"]),
    ],
)
def test_bad_character_devices(kernel: Path, said: str, options: list[str]) -> None:
    refuses(USAGE, said, "run", "-k", kernel, *options)


@pytest.mark.parametrize("option", ["--serial={}", "--console={}", "--port=x={}", "--vsock={}"])
def test_a_socket_in_use(kernel: Path, tmp_path: Path, option: str) -> None:
    path = tmp_path / "s"
    place = f"cid=3,path={path}" if "vsock" in option else f"unix:{path}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        refuses(ERROR, f"{path} is in use", "run", "-k", kernel, option.format(place))
    assert path.is_socket()


def test_a_machine_that_cant_be_built_leaves_no_socket(tmp_path: Path) -> None:
    path, missing = tmp_path / "s", tmp_path / "missing"
    refuses(ERROR, "missing", "run", "-k", missing, "--console", f"unix:{path}")
    assert not path.exists()
