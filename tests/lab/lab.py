#!/usr/bin/env python3
"""Run a command where KVM is complete: here, or else in the lab.

    python tests/lab/lab.py [--tty] [OPTIONS] -- COMMAND…

The lab is a QEMU machine whose processor, AMD-V included, QEMU's TCG emulates; so Linux's KVM works
in it as on hardware, only slowly. Its kernel is Debian's; its root is this host's, read-only over
virtiofs, under an overlay whose writes vanish with it. So COMMAND finds the same files and the same
Python in the lab as here, at the same paths. One directory is the host's own, for results:
`build/lab-out` in the checkout.

COMMAND runs in the checkout, with `.venv/bin` first on its PATH, little other environment, and
PYVMM_LAB=1 if it is in the lab. Without --tty its standard input is empty. Its output passes
through unchanged, its exit status becomes ours; Ctrl-C reaches it. Our own exit statuses: 124, the
--timeout ran out; 125, the lab failed; 130 and 143, interrupted and terminated.
"""

import argparse
import contextlib
import ctypes
import gzip
import math
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TextIO

PROJECT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(PROJECT))

from guests import artefacts, busybox, cpio, debian, initramfs, kernel  # noqa: E402

HERE = PROJECT / "tests/lab"
RESULTS = artefacts.BUILD / "lab-out"

STATUS_TIMEOUT = 124
STATUS_LAB_FAILED = 125
STATUS_INTERRUPTED = 128 + signal.SIGINT

BOOT_SECONDS = 60  # Usually 3 to 5; a busy machine may need a multiple.
BOOT_ATTEMPTS = 2  # One boot in some hundreds gets stuck in the kernel, early.
SILENCE_SECONDS = 30  # Without a sign of life, which is due every 5, the lab stands still.
PATIENCE_SECONDS = 5  # From the job's end to the lab's.
INTERRUPTS_PASSED_ON = 2  # The third Ctrl-C is for us.

LOG = artefacts.BUILD / "lab/last-failure.log"
LAST_LINES = 10
KERNEL_LOG = "kernel.log"
COMPLAINTS = "complaints.log"  # QEMU's and the file servers'

PR_SET_PDEATHSIG = 1  # prctl(2)
END_OF_FILE = b"\x04"  # What a terminal takes for it.

# In the order of their loading: what the lab's root needs, how we talk, and what it is there for.
MODULES = ["virtio_pci", "virtiofs", "overlay", "virtio_console", "kvm_amd", "tun", "vhost_net"]
# QEMU hides a guest's XSETBV from its hypervisor, and Linux wonders about that. Without XSAVE no
# AVX either: Linux believes CPUID, and its modules for AES would execute what is undefined.
CPU = "max,-xsave,-avx,-avx2,-f16c,-fma,-vaes"
COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on"
    # An emulated CPU now and then loses an interrupt while it enters a guest. A timer that is set
    # for one moment never fires then, and who waits for it waits for ever; a periodic tick, which
    # the emulated hardware repeats by itself, puts that right some milliseconds later.
    " nohz=off highres=off"
    # An interrupt from the other CPU is not repeated. Who waits for its answer does so for ever,
    # and soon both do: a lab like this is lost, and had better say so.
    " softlockup_panic=1"
    # On AMD hosts the lab's kernel finds its two TSCs a few cycles apart, and would read a slow
    # emulated clock chip instead.
    " tsc=reliable"
)
PATH = f"{PROJECT}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSED_ON = re.compile(r"HOME|USER|LANG|LC_\w+|TERM|TZ|CI|NO_COLOR|PY_COLORS|PYTEST_\w+|PYVMM_\w+")


Handler = Callable[[bytes], None]


class LabError(Exception):
    """The lab itself doesn't work, and this is the sentence about it."""


class LostError(LabError):
    """The lab has stopped in the middle of its job, or has crashed there."""


class NotUpError(LabError):
    """The lab has started, but got stuck before it could run the command."""


def opens_kvm() -> bool:
    """Whether this host lets us open /dev/kvm."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def has_hardware_virtualization() -> bool:
    """Whether this host's processor has VMX or SVM; KVM without them can't run Linux."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and not {"vmx", "svm"}.isdisjoint(flags[1].split())


def host_runs_linux() -> bool:
    """Whether this host's KVM is complete enough for a Linux guest."""
    return opens_kvm() and has_hardware_virtualization()


def reason_for_lab(needs: str) -> str | None:
    """Say why a command that `needs` "kvm" or "linux" can't run on this host, if it can't."""
    if not opens_kvm():
        return "/dev/kvm can't be opened here"
    if needs == "linux" and not has_hardware_virtualization():
        return "KVM here can't run Linux (no vmx, no svm)"
    return None


def environment() -> dict[str, str]:
    """What a command gets to see of our environment, here as in the lab."""
    passed = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    return {"TERM": "dumb", **passed, "PATH": PATH}


def run_here(command: list[str], has_terminal: bool, timeout: float | None) -> int:
    """Run the command on the host."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    stdin = None if has_terminal else subprocess.DEVNULL
    program = shutil.which(command[0], path=PATH) if "/" not in command[0] else command[0]
    try:
        process = subprocess.Popen(
            [program or command[0], *command[1:]], cwd=PROJECT, env=environment(), stdin=stdin
        )
    except OSError as error:
        say(f"{command[0]}: {error.strerror}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The terminal sends it to the command as well.
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        say(f"timed out after {timeout:g} s")
        status = STATUS_TIMEOUT
    finally:
        process.kill()
    return status if status >= 0 else 128 - status


class Lab:
    """One lab, from its start to the command's exit status."""

    def __init__(
        self, command: list[str], *, has_terminal: bool, memory: str, timeout: float | None
    ) -> None:
        self._command = command
        self._has_terminal = has_terminal
        self._memory = memory
        self._began = time.monotonic()
        self._deadline = self._began + BOOT_SECONDS
        self._timeout_at = self._began + timeout if timeout is not None else math.inf
        self._is_up = False
        self._word = b""
        self._interrupts = 0
        self._status: int | None = None

    def run(self) -> int:
        """Start the lab, carry everything between it and us, and return the command's status."""
        with contextlib.ExitStack() as self._stack:
            directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pyvmm-lab-"))
            self._directory = Path(directory)
            self._selector = self._stack.enter_context(selectors.PollSelector())
            self._listen_to(self._stack.enter_context(signals()), self._pass_on)
            self._start()
            return self._carry()

    def _start(self) -> None:
        """Start the two file servers and QEMU, with a socket pair for each stream."""
        image = kernel.build()
        initrd = self._directory / "initrd"
        initrd.write_bytes(self._job_archive() + base_initramfs().read_bytes())
        RESULTS.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(self._file_server("host", Path("/"), "always"))
        self._stack.enter_context(self._file_server("results", RESULTS, "auto"))

        pairs = [self._pair() for _ in range(4)]
        ours, theirs = zip(*pairs, strict=True)
        fds = [end.fileno() for end in theirs]
        self._stack.enter_context(self._child(self._qemu(image, initrd, fds), fds))
        for end in theirs:
            end.close()
        self._streams = ours
        self._console, output, errors, self._control = ours
        self._listen_to(self._console, lambda data: write(1, data))
        self._listen_to(output, lambda data: write(1, data))
        self._listen_to(errors, lambda data: write(2, data))
        self._listen_to(self._control, self._hear)

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        return self._stack.enter_context(ours), self._stack.enter_context(theirs)

    def _listen_to(self, source: socket.socket | TextIO, handler: Handler) -> None:
        """Have `handler` called with what comes from `source`, and with b"" at its end."""
        self._selector.register(source, selectors.EVENT_READ, handler)

    def _qemu(self, image: Path, initrd: Path, streams: list[int]) -> list[str]:
        """QEMU's command line; `streams` are fds for the console and the virtio-serial ports."""
        command = [str(debian.which("qemu-system-x86_64")), "-nodefaults", "-no-user-config"]
        command += ["-no-reboot", "-display", "none", "-accel", "tcg,thread=multi", "-cpu", CPU]
        command += ["-smp", "2", "-m", self._memory, "-machine", "q35,memory-backend=memory"]
        command += ["-object", f"memory-backend-memfd,id=memory,size={self._memory},share=on"]
        command += ["-kernel", str(image), "-initrd", str(initrd), "-append", COMMAND_LINE]
        command += ["-serial", f"file:{self._directory}/{KERNEL_LOG}"]
        command += ["-device", "virtio-serial-pci"]  # The first virtio device: vport0.
        for number, fd in enumerate(streams):
            kind = "virtserialport" if number else "virtconsole"
            command += ["-chardev", f"socket,id=stream{number},fd={fd}"]
            command += ["-device", f"{kind},nr={number},chardev=stream{number}"]
        for tag in ("host", "results"):
            command += ["-chardev", f"socket,id={tag},path={self._directory}/{tag}"]
            command += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
        return command

    def _job_archive(self) -> bytes:
        """Pack what is this run's own; the kernel unpacks it before the rest of the initramfs."""
        modules = kernel.directory("cloud") / "lib/modules" / kernel.release("cloud")
        setup = ["mkdir -p /lib/modules", f"ln -sf {shlex.quote(str(modules))} /lib/modules/"]
        if not any(path.is_relative_to("/tmp") for path in (PROJECT, Path(sys.base_prefix))):
            setup.append("mount -t tmpfs tmp /tmp")
        variables = [f"{k}={v}" for k, v in {**environment(), "PYVMM_LAB": "1"}.items()]
        job = ["echo $$ > /run/lab/pid", f"cd {shlex.quote(str(PROJECT))}"]
        job.append(f"exec /usr/bin/env -i {shlex.join([*variables, *self._command])}")

        archive = cpio.Archive()
        archive.file("lab/results", str(RESULTS).encode())
        archive.file("lab/setup", "".join(f"{line}\n" for line in setup).encode())
        archive.file("lab/job", "".join(f"{line}\n" for line in job).encode())
        if self._has_terminal:
            archive.file("lab/terminal", b"%d %d\n" % window_size())
        elif os.path.sameopenfile(1, 2):
            archive.file("lab/merged", b"")
        return bytes(archive)

    @contextlib.contextmanager
    def _file_server(self, tag: str, source: Path, cache: str) -> Iterator[None]:
        """Serve a directory tree to the lab; QEMU finds the server at a socket named as the tag."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{self._directory}/{tag}")
            listener.listen(1)
            command = [str(debian.VIRTIOFSD), f"--fd={listener.fileno()}", "-o", f"source={source}"]
            command += ["-o", f"cache={cache}", "-o", "sandbox=chroot", "-o", "log_level=err"]
            with self._child(command, [listener.fileno()]):
                yield

    @contextlib.contextmanager
    def _child(self, command: list[str], fds: list[int]) -> Iterator[None]:
        """Run a process of ours, out of the terminal's reach; it doesn't outlive us."""
        with (self._directory / COMPLAINTS).open("ab") as complaints:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=complaints,
                stderr=complaints,
                pass_fds=fds,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def _carry(self) -> int:
        """Carry bytes, words and signals until QEMU is silent, or it is time to end it."""
        while any(stream in self._selector.get_map() for stream in self._streams):
            ready = self._selector.select(self._seconds_left())
            if not ready:
                break
            for key, _ in ready:
                data = read(key.fd)
                if not data:
                    self._selector.unregister(key.fileobj)
                key.data(data)
            if self._interrupts > (INTERRUPTS_PASSED_ON if self._is_up else 0):
                return STATUS_INTERRUPTED
        return self._conclude()

    def _seconds_left(self) -> float | None:
        deadline = min(self._deadline, self._timeout_at)
        return None if deadline == math.inf else max(0.0, deadline - time.monotonic())

    def _conclude(self) -> int:
        """Say how it ended, when QEMU is silent or the time is up."""
        if self._status is not None:
            return self._status
        if time.monotonic() >= self._timeout_at:
            say(f"timed out after {self._timeout_at - self._began:g} s")
            return STATUS_TIMEOUT
        log = f"its last lines, of {self._keep_log()}:\n{self._last_lines()}"
        if time.monotonic() < self._deadline:
            raise (LostError if self._is_up else LabError)(f"the lab ended by itself; {log}")
        if self._is_up:
            raise LostError(f"the lab gave no sign of life for {SILENCE_SECONDS} s; {log}")
        raise NotUpError(f"the lab isn't up after {BOOT_SECONDS} s; {log}")

    def _last_lines(self) -> str:
        log = LOG.read_text("utf-8", "replace").partition("Call Trace")[0]
        return "\n".join(f"  {line}" for line in log.splitlines()[-LAST_LINES:])

    def _keep_log(self) -> Path:
        """Save what QEMU, the file servers and the lab's kernel said."""
        files = [self._directory / name for name in (COMPLAINTS, KERNEL_LOG)]
        LOG.write_bytes(b"".join(file.read_bytes() for file in files if file.exists()))
        return LOG

    def _hear(self, data: bytes) -> None:
        """Take what the second stage says: `up`, `alive`, `exit STATUS`."""
        *lines, self._word = (self._word + data).split(b"\n")
        for line in lines:
            word, _, argument = line.decode().partition(" ")
            if word == "up":
                self._is_up = True
                self._deadline = time.monotonic() + SILENCE_SECONDS
                if self._has_terminal:
                    self._stack.enter_context(raw_terminal())
                    self._listen_to(sys.stdin, self._type)
            elif word == "alive" and self._status is None:
                self._deadline = time.monotonic() + SILENCE_SECONDS
            elif word == "exit":
                self._status = int(argument)
                self._deadline = time.monotonic() + PATIENCE_SECONDS

    def _pass_on(self, numbers: bytes) -> None:
        """Tell the job about signals that we got."""
        for number in numbers:
            if number == signal.SIGINT:
                self._interrupts += 1
                self._tell(self._control, b"signal INT\n")
            elif number == signal.SIGWINCH and self._has_terminal:
                self._tell(self._control, b"size %d %d\n" % window_size())

    def _type(self, keys: bytes) -> None:
        """Pass on what is typed; b"" is the end of an input that isn't a terminal."""
        self._tell(self._console, keys or END_OF_FILE)

    @staticmethod
    def _tell(stream: socket.socket, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # QEMU has gone; we'll see that soon.
            stream.sendall(data)


def base_initramfs() -> Path:
    """Make the initramfs that all labs start from, unless it is fresh; return its path."""
    program = busybox.build()
    kernel.build()
    modules = kernel.module_files("cloud", MODULES)
    target = artefacts.BUILD / "lab/initramfs.gz"
    sources = [HERE, *(Path(module.__file__ or "") for module in (cpio, initramfs))]
    inputs = artefacts.digest([*sources, program, *modules])
    with artefacts.lock():
        if not artefacts.is_fresh(target, inputs):
            with artefacts.making(target, inputs) as unfinished:
                archive = cpio.Archive()
                for name in ("init", "lab/stage2"):
                    archive.file(name, (HERE / Path(name).name).read_bytes(), 0o755)
                archive.file("bin/busybox", program.read_bytes(), 0o755)
                for applet in busybox.applets(program):
                    archive.symlink(f"bin/{Path(applet).name}", "busybox")
                for directory in ("dev", "proc", "sys", "run"):
                    archive.directory(directory)
                initramfs.add_modules(archive, modules, kernel.release("cloud"))
                unfinished.write_bytes(gzip.compress(bytes(archive), mtime=0))
    return target


@contextlib.contextmanager
def signals() -> Iterator[socket.socket]:
    """Turn SIGINT and SIGWINCH into bytes on a socket, and SIGTERM and SIGHUP into our end."""

    def end(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    for number in (signal.SIGINT, signal.SIGWINCH):
        signal.signal(number, lambda _number, _frame: None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    with reader, writer:
        yield reader
        signal.set_wakeup_fd(-1)


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Let every key through to the lab, until the block ends in whatever way."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def window_size() -> tuple[int, int]:
    """The rows and columns of our terminal."""
    with contextlib.suppress(termios.error):
        if any(size := termios.tcgetwinsize(0)):
            return size
    return 24, 80


def die_with_parent() -> None:
    """In a child that is about to exec: have it killed when we die, however we do."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def read(fd: int) -> bytes:
    """Read what is there; b"" at the end, which is also where a killed process leaves its peer."""
    try:
        return os.read(fd, 65536)
    except ConnectionResetError:
        return b""


def write(fd: int, data: bytes) -> None:
    """Write all of it."""
    while data:
        data = data[os.write(fd, data) :]


def say(line: str) -> None:
    """Tell the user something, apart from the command's output."""
    print(f"lab: {line}", file=sys.stderr, flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Take the command line apart."""
    parser = argparse.ArgumentParser(
        description="Run a command where KVM is complete: here, or else in the lab.",
        usage="lab.py [OPTIONS] -- COMMAND…",
    )
    option = parser.add_argument
    option("--tty", action="store_true", help="COMMAND gets our terminal")
    option("--needs", choices=["kvm", "linux"], default="linux", help="what it needs KVM for")
    option("--force-lab", action="store_true", help="use the lab even if it isn't needed")
    option("--memory", default="4G", help="of the lab (default: 4G)")
    option("--timeout", type=float, metavar="SECONDS", help="end everything then, with status 124")
    option("--attempts", type=int, default=1, metavar="N", help="if the lab is lost, start anew")
    option("command", nargs="+", metavar="COMMAND")
    return parser.parse_args(arguments)


def run_in_lab(options: argparse.Namespace) -> int:
    """Run the command in a lab. If that doesn't come up, nothing has begun, so start over; if it
    is lost later, start over as often as the user allows."""
    boots, attempts = BOOT_ATTEMPTS, options.attempts
    while True:
        lab = Lab(
            options.command,
            has_terminal=options.tty,
            memory=options.memory,
            timeout=options.timeout,
        )
        try:
            return lab.run()
        except NotUpError as error:
            boots -= 1
            if not boots:
                raise
            say(f"{error}\nlab: starting it again")
        except LostError as error:
            attempts -= 1
            if not attempts:
                raise
            say(f"{error}\nlab: starting it and the command again")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line's command at the right place; return the exit status."""
    options = parse(arguments)
    reason = "--force-lab" if options.force_lab else reason_for_lab(options.needs)
    if reason is None:
        say(f"not needed, KVM here will do: running {options.command[0]} directly")
        return run_here(options.command, options.tty, options.timeout)
    try:
        debian.ensure("qemu-system-x86_64", "virtiofsd", "depmod")
        if os.geteuid() != 0:
            raise LabError("the lab's file server needs root: try with sudo")
        say(f"{reason}: running {options.command[0]} in the lab, Linux under QEMU's TCG")
        return run_in_lab(options)
    except (LabError, debian.PackageError) as error:
        say(str(error))
        return STATUS_LAB_FAILED
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return STATUS_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
