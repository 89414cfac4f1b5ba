"""A Debian in PyVMM with two disks and two network cards, used over ssh."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from guests import debian_disk, network
from tests.soak.pulse import BEAT, Pulse

SERIAL_NUMBER = "soak"
"""Of the second disk; by it the guest finds it."""
SECOND_DISK = f"/dev/disk/by-id/virtio-{SERIAL_NUMBER}"

BOOT_SECONDS = 600
COMMAND_SECONDS = 900
"""More than anything takes in the lab, where code runs 15 to 40 times slower."""
POWER_OFF_SECONDS = 120
PATIENT = "systemd.default_device_timeout_sec=600 systemd.default_timeout_start_sec=600"
"""What gives systemd the same patience."""


class Card(NamedTuple):
    """A network card: its tap, and the addresses at its two ends."""

    tap: str
    host: str
    guest: str


CARDS = (
    Card("pyvmm-soak0", network.HOST, network.GUEST),
    Card("pyvmm-soak1", "198.51.100.1", "198.51.100.2"),  # RFC 5737 as well
)


class SoakError(Exception):
    """Something did not go as it must."""


class Server:
    """The running guest."""

    def __init__(self, process: subprocess.Popen[bytes], console: Path, errors: IO[bytes]) -> None:
        self._process = process
        self._console = console
        self._errors = errors
        self._pulse = Pulse(console)

    def watch(self) -> None:
        """Have the guest say all the time that it is alive."""
        self.ssh(BEAT)
        self._pulse.start()

    def gaps(self) -> str:
        """When it didn't, since the last call."""
        return self._pulse.gaps()

    def said(self) -> str:
        """What PyVMM has printed on stderr."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def check_alive(self) -> None:
        """An error if the guest has ended."""
        if self._process.poll() is not None:
            raise SoakError(f"pyvmm ended with status {self._process.returncode}:\n{self.said()}")

    def wait_for_login(self) -> None:
        """Until the serial console asks for a name."""
        deadline = time.monotonic() + BOOT_SECONDS
        while b"login: " not in self._console.read_bytes():
            self.check_alive()
            if time.monotonic() > deadline:
                raise SoakError(f"no login prompt after {BOOT_SECONDS} s{self.last_words()}")
            time.sleep(0.2)

    def last_words(self) -> str:
        """What there is to see of a machine that stands still."""
        lines = "\n".join(self._console.read_text(errors="replace").splitlines()[-10:])
        return f"; the console's last lines:\n{lines}\npyvmm's:\n{self.said()}"

    def ssh(self, command: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run a shell command in the guest; its output."""
        return self.run([*_ssh(), command], seconds)

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a shell command in the guest."""
        return subprocess.Popen([*_ssh(), command], stdout=subprocess.PIPE, text=True)

    def copy(self, source: str, target: str) -> None:
        """Copy a file to the guest, or from it."""
        self.run(["scp", "-q", *debian_disk.ssh_options(), source, target])

    def run(self, words: list[str], seconds: float = COMMAND_SECONDS) -> str:
        """Run a command on the host that has to do with the guest; its output."""
        try:
            result = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            self.check_alive()
            raise SoakError(
                f"not done after {seconds:g} s: {words[-1]}{self.last_words()}"
            ) from None
        if result.returncode:
            self.check_alive()
            said = (result.stderr + result.stdout).strip()[-1000:]
            raise SoakError(f"status {result.returncode}: {' '.join(words)}\n{said}")
        return result.stdout

    def power_off(self) -> str:
        """Switch it off; what PyVMM said at the end."""
        subprocess.run(
            [*_ssh(), "systemctl poweroff"], capture_output=True, timeout=COMMAND_SECONDS
        )
        try:
            status = self._process.wait(POWER_OFF_SECONDS)
        except subprocess.TimeoutExpired:
            raise SoakError(f"still on after {POWER_OFF_SECONDS} s{self.last_words()}") from None
        if status:
            raise SoakError(f"pyvmm ended with status {status}:\n{self.said()}")
        return self.said()


def _ssh() -> list[str]:
    options = [*debian_disk.ssh_options(), "-o", "ServerAliveInterval=30"]
    return ["ssh", *options, f"root@{CARDS[0].guest}"]


@contextlib.contextmanager
def running(root: Path, disk: Path, transport: str, cpus: int) -> Iterator[Server]:
    """The machine, started and logged into once; killed at the end unless it is off by then."""
    words = [sys.executable, "-m", "pyvmm", "run", "--transport", transport, "--cpus", str(cpus)]
    words += ["--kernel", str(debian_disk.KERNEL), "--initrd", str(debian_disk.INITRD)]
    words += ["--memory", "1G", "--append", f"root=/dev/vda quiet {PATIENT}"]
    words += ["--disk", str(root), "--disk", f"{disk},serial={SERIAL_NUMBER}"]
    with contextlib.ExitStack() as stack:
        for card in CARDS:
            stack.enter_context(network.tap(*card))
            words += ["--net", card.tap]
        console = stack.enter_context(tempfile.NamedTemporaryFile())
        errors = stack.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=console, stderr=errors)
        stack.callback(process.wait)
        stack.callback(process.kill)
        server = Server(process, Path(console.name), errors)
        server.wait_for_login()
        _wait_for_ssh(server)
        server.watch()
        yield server


def _wait_for_ssh(server: Server) -> None:
    """Until both cards have their addresses and all of the system is up."""
    deadline = time.monotonic() + BOOT_SECONDS
    while subprocess.run(
        [*_ssh(), "true"], capture_output=True, timeout=COMMAND_SECONDS
    ).returncode:
        server.check_alive()
        if time.monotonic() > deadline:
            raise SoakError(f"no ssh after {BOOT_SECONDS} s{server.last_words()}")
        time.sleep(1)
    state = server.ssh("systemctl is-system-running --wait; true").strip()
    if state != "running":
        raise SoakError(f"the system is {state}: {server.ssh('systemctl --failed --no-legend')}")
    server.ssh("/lib/systemd/systemd-networkd-wait-online --timeout=120")
