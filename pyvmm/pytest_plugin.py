"""The pytest plugin: machines for tests, and what a guest said and did in the report of one that
fails. docs/pytest.md is for its users.

pytest loads it in every run in an environment that has PyVMM (entry point ``pytest11``), so it
keeps out of the way of those that don't use it: nothing else of PyVMM is imported before a test
asks for a machine, and a suite's own fixture or parameter ``kernel``, or its own mark of that name,
is left alone unless the test has a machine as well.

Under pytest-xdist each worker has its own machines. They share nothing, and what they leave behind
has its name from the test.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from pyvmm.api import Machine
    from pyvmm.hostcheck import Finding
    from pyvmm.results import Results

DEFAULT_TIMEOUT = 120.0
"""In seconds, for a machine. Most kernels boot in a few; most hosts of CI are slow and busy."""

REPORTED_LINES = 500
"""How many of a console's lines a report shows."""

MAX_FILE_NAME = 120

HARDWARE_KVM = ("auto", "yes", "no")

NO_KERNEL = (
    "no kernel: name one with --pyvmm-kernel PATH, the option pyvmm_kernel of pytest's"
    ' configuration file, @pytest.mark.kernel("PATH") or pyvmm(kernel="PATH")'
)


class Settings(NamedTuple):
    """What the command line and the configuration file say; paths are absolute."""

    kernels: list[str]
    initrd: str | None
    timeout: float
    keep_logs: str | None
    require_kvm: bool
    hardware_kvm: str

    @classmethod
    def of(cls, config: pytest.Config) -> Settings:
        """Raises UsageError for what makes no sense."""
        base = config.rootpath if config.inipath is None else config.inipath.parent

        def path(name: str) -> str | None:
            given, written = config.getoption(name), config.getini(name)
            return given or (os.path.join(base, written) if written else None)

        timeout = config.getoption("pyvmm_timeout")
        written = config.getini("pyvmm_timeout")
        if timeout is None and written:
            timeout = _from_file("pyvmm_timeout", written, _seconds)
        hardware_kvm = config.getini("pyvmm_hardware_kvm")
        if hardware_kvm not in HARDWARE_KVM:
            choices = ", ".join(HARDWARE_KVM)
            raise pytest.UsageError(f"pyvmm_hardware_kvm: {hardware_kvm!r} is none of {choices}")
        return cls(
            config.getoption("pyvmm_kernel") or list(map(str, config.getini("pyvmm_kernel"))),
            path("pyvmm_initrd"),
            DEFAULT_TIMEOUT if timeout is None else timeout,
            path("pyvmm_keep_logs"),
            config.getoption("pyvmm_require_kvm") or config.getini("pyvmm_require_kvm"),
            hardware_kvm,
        )


SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
FINDINGS: pytest.StashKey[list[Finding]] = pytest.StashKey()
MACHINES: pytest.StashKey[list[Machine]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pyvmm", "virtual machines (PyVMM)")
    group.addoption(
        "--pyvmm-kernel",
        action="append",
        type=_path,
        metavar="PATH",
        help="A kernel for the tests that have a machine; repeated, they run with each.",
    )
    group.addoption("--pyvmm-initrd", type=_path, metavar="PATH", help="The initrd for it.")
    group.addoption(
        "--pyvmm-timeout",
        type=_seconds,
        metavar="SECONDS",
        help=f"How long a machine may run, unless its test says. Default: {DEFAULT_TIMEOUT:g}.",
    )
    group.addoption(
        "--pyvmm-keep-logs",
        type=_path,
        metavar="DIR",
        help="Keep each machine's console and outcome there, of passing tests, too.",
    )
    group.addoption(
        "--pyvmm-require-kvm",
        action="store_true",
        help="A test whose guest can't run on this host fails, and isn't skipped.",
    )
    parser.addini("pyvmm_kernel", "As --pyvmm-kernel, a path a line.", "paths", default=[])
    parser.addini("pyvmm_initrd", "As --pyvmm-initrd.", "string", default="")
    parser.addini("pyvmm_timeout", "As --pyvmm-timeout.", "string", default="")
    parser.addini("pyvmm_keep_logs", "As --pyvmm-keep-logs.", "string", default="")
    parser.addini("pyvmm_require_kvm", "As --pyvmm-require-kvm.", "bool", default=False)
    parser.addini(
        "pyvmm_hardware_kvm",
        "Which kernels don't run on software KVM: Linux (auto), all (yes) or none (no).",
        "string",
        default="auto",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "kernel(path, ...): the kernels that the test runs with, by paths from the root directory,"
        " in place of --pyvmm-kernel; without any, the test names its kernels itself.",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Bad options end the run before its first test."""
    directory = _settings(session.config).keep_logs
    if directory is not None:
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as error:
            problem = f"can't make {directory}: {error.strerror}"
            raise pytest.UsageError(f"--pyvmm-keep-logs: {problem}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "_pyvmm_kernel" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("kernel")
    if mark is None:
        kernels = _settings(metafunc.config).kernels
    else:
        kernels = [os.path.join(metafunc.config.rootpath, path) for path in _paths_of(mark)]
    kernels = list(dict.fromkeys(map(os.path.normpath, kernels)))
    if kernels:
        metafunc.parametrize("_pyvmm_kernel", kernels, ids=short_names(kernels), indirect=True)


def short_names(paths: Sequence[str]) -> list[str]:
    """What tells different paths apart: the file's name, with as many directories as it takes."""
    wholes = [Path(path).parts for path in paths]
    tails = [whole[-1:] for whole in wholes]
    while len(set(tails)) < len(tails):
        tails = [
            whole[-1 - len(tail) :] if tails.count(tail) > 1 else tail
            for whole, tail in zip(wholes, tails, strict=True)
        ]
    return [str(Path(*tail)) for tail in tails]


@pytest.fixture(scope="session")
def _pyvmm_kernel(request: pytest.FixtureRequest) -> str | None:
    """The kernel that the test runs with; None if it was given none."""
    return getattr(request, "param", None)


@pytest.fixture(scope="session", name="kernel")
def _kernel(_pyvmm_kernel: str | None) -> Path:
    """The path of the kernel that the test runs with: @pytest.mark.kernel or --pyvmm-kernel."""
    if _pyvmm_kernel is None:
        pytest.fail(NO_KERNEL, pytrace=False)
    return Path(_pyvmm_kernel)


@pytest.fixture(name="pyvmm")
def _pyvmm(request: pytest.FixtureRequest, _pyvmm_kernel: str | None) -> Iterator[MachineFactory]:
    """Makes virtual machines: `vm = pyvmm()` is a pyvmm.Machine that has been started, with the
    test's kernel. It takes pyvmm.Machine's arguments. All machines are closed at the test's end."""
    factory = MachineFactory(request, _pyvmm_kernel)
    factory.require_host()
    with factory:
        yield factory


class MachineFactory:
    """What the fixture ``pyvmm`` is: call it for a machine that has been started.

    ``kernel`` is the test's own by default, and ``initrd`` then that of ``--pyvmm-initrd``;
    ``timeout`` is that of ``--pyvmm-timeout``. All else is as with :class:`pyvmm.Machine`. With
    ``hardware_kvm`` the test is skipped on software KVM; without, by default, if the kernel is
    Linux.
    """

    def __init__(self, request: pytest.FixtureRequest, kernel: str | None) -> None:
        self._config: pytest.Config = request.config
        self._settings = _settings(request.config)
        self._test: str = request.node.nodeid
        self._kernel = kernel
        self._kept = 0
        self.machines: list[Machine] = []
        request.node.stash[MACHINES] = self.machines

    def __call__(
        self,
        kernel: str | os.PathLike[str] | None = None,
        *,
        hardware_kvm: bool | None = None,
        **options: Any,
    ) -> Machine:
        __tracebackhide__ = True
        path = self._kernel if kernel is None else os.fspath(kernel)
        if path is None:
            pytest.fail(NO_KERNEL, pytrace=False)
        if self._kernel is not None and os.path.abspath(path) == self._kernel:
            options.setdefault("initrd", self._settings.initrd)
        options.setdefault("timeout", self._settings.timeout)
        self.require_host(path, hardware_kvm)

        from pyvmm.api import Machine  # only now: see above
        from pyvmm.errors import PyvmmError

        results = self._results()
        try:
            machine = Machine(path, **options, results=results)
        except Exception as error:
            if results is not None:
                results.record.close()
                results.failed(error)
            if isinstance(error, PyvmmError):  # it says all; our insides don't matter
                raise error.with_traceback(None) from None
            raise
        self.machines.append(machine)
        machine.start()
        return machine

    def _results(self) -> Results | None:
        """The files that are to be kept of the next machine."""
        if self._settings.keep_logs is None:
            return None
        from pyvmm.console_log import ConsoleLog, LogConfig
        from pyvmm.record import Record
        from pyvmm.results import Results

        self._kept += 1
        number = f"-{self._kept}" if self._kept > 1 else ""
        path = os.path.join(self._settings.keep_logs, file_name(self._test) + number)
        record = Record(whole_process=False)
        results = Results({"--json": f"{path}.json"}, self._test, record)
        results.begin()
        record.log = ConsoleLog(LogConfig(f"{path}.log"))
        return results

    def require_host(self, kernel: str | None = None, hardware_kvm: bool | None = None) -> None:
        """Skip the test if this host can't run guests, or not the one with ``kernel``."""
        from pyvmm import hostcheck

        findings = self._config.stash.get(FINDINGS, None)
        if findings is None:
            findings = self._config.stash[FINDINGS] = hostcheck.examine()
        reason = hostcheck.obstacle(findings, linux=False)
        if not reason and kernel is not None:
            reason = hostcheck.obstacle(findings, linux=True)
            if reason and not self._needs_hardware_kvm(kernel, hardware_kvm):
                reason = ""
        if reason and self._settings.require_kvm:
            pytest.fail(f"this host can't run the guest: {reason}", pytrace=False)
        if reason:
            pytest.skip(f"this host can't run the guest: {reason}")

    def _needs_hardware_kvm(self, kernel: str, wanted: bool | None) -> bool:
        if wanted is not None:
            return wanted
        if self._settings.hardware_kvm != "auto":
            return self._settings.hardware_kvm == "yes"
        from pyvmm.boot.identify import is_linux
        from pyvmm.errors import ImageError

        try:
            return is_linux(kernel)
        except ImageError:
            return False  # the machine will say what is wrong with it

    def __enter__(self) -> MachineFactory:
        return self

    def __exit__(self, *exception: object) -> None:
        with ExitStack() as all_of_them:
            for machine in self.machines:
                all_of_them.callback(machine.close)


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Attach what the guests said and did to a report, once it is certain that it is a failure's
    (an expected one isn't: hence ``tryfirst``, which makes this the outermost wrapper)."""
    result = yield
    machines = item.stash.get(MACHINES, None)
    if not machines or result.excinfo is not None:
        return
    report = result.get_result()
    if report.failed:
        for number, machine in enumerate(machines, 1):
            name = machine.config.boots
            guest = f"the guest {name}" if len(machines) == 1 else f"guest {number}, {name}"
            _attach(report, machine, guest)
            # A JUnit file has a test's output as the report on its last phase tells it.
            title, console = report.sections[-1]
            item.add_report_section(report.when, title.removeprefix("Captured "), console + "\n")
    if report.when == "teardown":
        del item.stash[MACHINES]  # pytest keeps the items to the end


def _attach(report: pytest.TestReport, machine: Machine, guest: str) -> None:
    """The outcome belongs to the failure's own text, which JUnit files have, too. pytest takes
    what is called "Captured stdout" for a test's output, and the console is the guest's."""
    outcome = _guarded(_outcome, machine)
    add_to_failure = getattr(report.longrepr, "addsection", None)
    if add_to_failure is not None:
        add_to_failure(f"outcome of {guest}", outcome, "-")
    else:
        report.sections.append((f"outcome of {guest}", outcome))
    if not _explained(machine):
        report.sections.append((f"last exits of {guest}", _guarded(_exits, machine)))
    report.sections.append((f"Captured stdout of {guest}", _guarded(_console, machine)))


def _explained(machine: Machine) -> bool:
    """Whether the outcome's report has all the last exits: a crash's has its vCPU's."""
    outcome = machine.outcome
    return outcome is not None and outcome.reason.name == "CRASH" and len(machine.vcpus) == 1


def _guarded(tell: Any, machine: Machine) -> str:
    """A report with a gap is better than none."""
    try:
        return "\n".join(tell(machine))
    except Exception as error:
        return f"PyVMM can't tell: {type(error).__name__}: {error}"


def _outcome(machine: Machine) -> Iterator[str]:
    outcome = machine.outcome
    if outcome is not None:
        yield outcome.sentence
        yield from outcome.report
        return
    yield f"the guest still runs, after {machine.stats().seconds:.2f} s"
    for vcpu in machine.vcpus:
        yield from vcpu.whereabouts()


def _console(machine: Machine) -> Iterator[str]:
    lines = machine.console.output.splitlines()
    if not lines:
        yield "nothing was printed"
    if len(lines) > REPORTED_LINES:
        yield f"… {len(lines) - REPORTED_LINES} lines before these; --pyvmm-keep-logs keeps all"
    yield from lines[-REPORTED_LINES:]


def _exits(machine: Machine) -> Iterator[str]:
    for vcpu in machine.vcpus:
        yield f"vCPU {vcpu.number}, oldest first:"
        yield from (f"  {line}" for line in vcpu.recent_exits())


def file_name(test: str) -> str:
    """A name for a test's files. Different tests have different ones, hence the digest."""
    digest = hashlib.sha256(test.encode()).hexdigest()[:8]
    words = re.sub(r"[^A-Za-z0-9.=+-]+", "_", test).strip("._")
    return f"{words[-MAX_FILE_NAME:]}-{digest}"


def _settings(config: pytest.Config) -> Settings:
    settings = config.stash.get(SETTINGS, None)
    if settings is None:
        settings = config.stash[SETTINGS] = Settings.of(config)
    return settings


def _paths_of(mark: pytest.Mark) -> tuple[str | os.PathLike[str], ...]:
    wrong = [arg for arg in mark.args if not isinstance(arg, str | os.PathLike) or not str(arg)]
    if wrong or mark.kwargs:
        pytest.fail(f"@pytest.mark.kernel takes paths, not {wrong or mark.kwargs}", pytrace=False)
    return mark.args


def _path(text: str) -> str:
    if not text:  # a script's variable that isn't set
        raise argparse.ArgumentTypeError("the path is empty")
    return os.path.abspath(text)


def _seconds(text: str) -> float:
    from pyvmm.errors import ConfigError
    from pyvmm.options import parse_seconds

    try:
        return parse_seconds(text, "")
    except ConfigError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds") from None


def _from_file(name: str, text: str, parse: Any) -> Any:
    try:
        return parse(text)
    except argparse.ArgumentTypeError as error:
        raise pytest.UsageError(f"{name}: {error}") from None
