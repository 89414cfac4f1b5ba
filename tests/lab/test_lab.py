"""The lab itself: what goes in and what comes out. Most tests boot one, so each asks for much."""

from __future__ import annotations

import contextlib
import os
import pty
import secrets
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import lab

BOOTS = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a lab")
SECONDS = 120


def command(*words: str) -> list[str]:
    return [sys.executable, str(lab.HERE / "lab.py"), "--force-lab", *words]


@contextlib.contextmanager
def started(*words: str, **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    """A lab at work; whatever the test finds, it has ended afterwards."""
    process = subprocess.Popen(command(*words), start_new_session=True, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def is_running(word: str) -> bool:
    """Whether any process has ``word`` in its command line."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in file.read_bytes():
                return True
    return False


def read_until(fd: int, text: bytes) -> bytes:
    """What the terminal shows, down to ``text``."""
    shown = b""
    while text not in shown:
        ready, _, _ = select.select([fd], [], [], SECONDS)
        assert ready, shown
        shown += os.read(fd, 4096)
    return shown


@BOOTS
def test_output_status_and_results_come_back() -> None:
    nonce = secrets.token_hex(8)
    result, elsewhere = lab.RESULTS / f"{nonce}.txt", lab.PROJECT / f"build/{nonce}.txt"
    job = f"""
import fcntl, os, sys
print(fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE00), os.environ["PYVMM_LAB"], os.getcwd())
sys.stdout.flush()
sys.stdout.buffer.write(bytes(range(256)) * 4096)
print("complaint", file=sys.stderr)
for name in ({str(result)!r}, {str(elsewhere)!r}):
    open(name, "w").write({nonce!r})
sys.exit(7)
"""
    run = subprocess.run(
        command("--", sys.executable, "-c", job), timeout=SECONDS, capture_output=True
    )
    first, _, rest = run.stdout.partition(b"\n")
    assert first.decode() == f"12 1 {lab.PROJECT}"
    assert rest == bytes(range(256)) * 4096
    # The first run on a machine also says what it fetches for the lab.
    said = [line for line in run.stderr.splitlines() if not line.startswith(b"setup: ")]
    assert said[1:] == [b"complaint"]
    assert run.returncode == 7
    assert result.read_text() == nonce
    assert not elsewhere.exists()
    result.unlink()


@BOOTS
def test_interrupt_reaches_the_command() -> None:
    job = "trap 'echo stopped; exit 42' INT; echo ready; while :; do sleep 0.1; done"
    with started("--", "sh", "-c", job, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"stopped\n"
        assert process.wait(SECONDS) == 42


@BOOTS
def test_timeout_ends_the_lab() -> None:
    began = time.monotonic()
    with started("--timeout", "1", "--", "sleep", "1000") as process:
        assert process.wait(SECONDS) == lab.STATUS_TIMEOUT
    assert time.monotonic() - began < 10


@BOOTS
def test_terminal_is_passed_through_and_restored() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (33, 101))
    before = termios.tcgetattr(theirs)
    marker = f"sleep 9{secrets.randbelow(10**9)}"
    with started(
        "--tty", "--", "sh", "-c", f"stty size; cat -v; {marker}", stdin=theirs, stdout=theirs
    ) as process:
        read_until(ours, b"33 101\r\n")
        assert termios.tcgetattr(theirs) != before
        os.write(ours, b"a\x01b\n")
        assert b"a^Ab" in read_until(ours, b"a^Ab\r\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 128 + signal.SIGTERM
    assert termios.tcgetattr(theirs) == before


@BOOTS
def test_nothing_outlives_a_killed_lab() -> None:
    with started("--", "sh", "-c", "echo ready; sleep 1000", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (directory,) = {
            word.split("/initrd")[0]
            for children in Path(f"/proc/{process.pid}/task").glob("*/children")
            for child in children.read_text().split()
            for word in Path(f"/proc/{child}/cmdline").read_text().split("\0")
            if word.endswith("/initrd")
        }
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while is_running(directory) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(directory)
    shutil.rmtree(directory)  # A killed lab can't.


@pytest.mark.parametrize(
    ("job", "timeout", "status"),
    [
        (["sh", "-c", "exit 9"], None, 9),
        (["sh", "-c", "kill -9 $$"], None, 137),
        (["sleep", "1000"], 0.1, 124),
        (["no-such-command"], None, 127),
        (["/etc/passwd"], None, 126),
    ],
)
def test_exit_status_without_a_lab(job: list[str], timeout: float | None, status: int) -> None:
    assert lab.run_here(job, has_terminal=False, timeout=timeout) == status


@BOOTS
@pytest.mark.parametrize(
    ("loss", "complaint"),
    [
        ("kill -STOP $(ps -C sleep -o ppid=)", "no sign of life"),
        ("echo c > /proc/sysrq-trigger", "ended by itself"),
    ],
)
def test_a_lab_that_is_lost_is_replaced(loss: str, complaint: str) -> None:
    """The first lab falls silent, or its kernel panics; the second one does the job."""
    mark = lab.RESULTS / "was-lost"
    mark.unlink(missing_ok=True)
    job = f"""
        test -e {mark} && exit 7
        touch {mark}; sync
        {loss}
        sleep 1000
    """
    program = f"""
import sys
from lab import lab
lab.SILENCE_SECONDS = 10
sys.exit(lab.main(["--force-lab", "--attempts", "2", "--", "sh", "-c", {job!r}]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=lab.PROJECT / "tests",
        env={**os.environ, "PYTHONPATH": f"{lab.PROJECT}:{lab.PROJECT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    mark.unlink()
    assert ended.returncode == 7, ended.stderr
    assert complaint in ended.stderr
