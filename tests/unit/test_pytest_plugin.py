"""The pytest plugin where no guest runs: which tests run with which kernels, which are skipped and
why, what is refused, and that it leaves alone those who don't use it.

Each test runs pytest on a test suite of its own: in a process of its own where hosts and machines
are faked, see ``CONFTEST``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.pytest_plugin import MAX_FILE_NAME, file_name, short_names

pytest_plugins = ["pytester"]

LONG = 120

CONFTEST = """
    import pyvmm.api
    from pyvmm import hostcheck

    class Machine:
        def __init__(self, kernel, results, **options):
            self.options = {"kernel": str(kernel), **options}
        def start(self):
            print("started with", sorted(self.options.items()))
        def close(self):
            print("closed")

    pyvmm.api.Machine = Machine
    hostcheck.examine = lambda: list(FINDINGS)
    hostcheck.host_has_hardware_kvm = lambda: HARDWARE
    FINDINGS = []
    HARDWARE = True
"""

NO_KVM = """
    FINDINGS = [hostcheck.Finding("device", "fail", "/dev/kvm is not there", "modprobe it")]
"""

SOFTWARE_KVM = """
    HARDWARE = False
    hostcheck._kind = lambda: hostcheck.Finding("kind", "note", "it is slow", "buy another")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory for a test suite; the kernels in it are a bzImage as far as its magic number
    goes, and one that isn't Linux."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeconftest(CONFTEST)
    (pytester.path / "bzImage").write_bytes(bytes(0x202) + b"HdrS" + bytes(4096))
    (pytester.path / "small").write_bytes(b"no kernel")
    return pytester


def run(suite: pytest.Pytester, *arguments: str | Path) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=LONG)


def run_here(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """In this process, which is quicker; nothing may be faked."""
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


def collected(result: pytest.RunResult) -> list[str]:
    return [line.partition("::")[2] for line in result.outlines if "::" in line]


def test_it_leaves_alone_those_who_do_not_use_it(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = --strict-markers -W error\nmarkers = kernel: our own")
    pytester.makepyfile("""
        import sys
        import pytest

        @pytest.fixture
        def kernel():
            return "of its own"

        def test_nothing_is_loaded():
            loaded = {name for name in sys.modules if name.split(".")[0] == "pyvmm"}
            assert loaded <= {"pyvmm", "pyvmm.pytest_plugin"}
            assert "_cffi_backend" not in sys.modules

        @pytest.mark.kernel(42, answer=42)
        def test_own_fixture(kernel):
            assert kernel == "of its own"

        @pytest.mark.parametrize("kernel", ["linear", "rbf"])
        def test_own_parameter(kernel):
            assert kernel in ("linear", "rbf")
    """)
    result = run(pytester, "--pyvmm-kernel", "a", "--pyvmm-kernel", "b")
    result.assert_outcomes(passed=4)


def test_every_test_with_a_machine_runs_with_each_kernel(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        def test_machine(pyvmm): pass
        def test_path(kernel): pass
        def test_other(): pass
    """)
    kernels = ("--pyvmm-kernel", "5.15/bzImage", "--pyvmm-kernel", "6.1/bzImage")
    again = ("--pyvmm-kernel", "./6.1/../5.15/bzImage")
    result = run_here(pytester, "--collect-only", "-q", *kernels, *again)
    assert sorted(collected(result)) == [
        "test_machine[5.15/bzImage]",
        "test_machine[6.1/bzImage]",
        "test_other",
        "test_path[5.15/bzImage]",
        "test_path[6.1/bzImage]",
    ]


def test_marks_name_kernels_from_the_root_directory(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\naddopts = --strict-markers")
    suite.mkdir("deep").joinpath("test_marks.py").write_text("""
import pathlib, pytest
ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.kernel("out/a", ROOT / "b")

def test_of_the_module(kernel):
    assert kernel in (ROOT / "out/a", ROOT / "b")

@pytest.mark.kernel("c")
def test_of_its_own(kernel, pyvmm):
    assert pyvmm().options["kernel"] == str(kernel) == str(ROOT / "c")

@pytest.mark.kernel()
def test_none(pyvmm):
    assert pyvmm("d").options["kernel"] == "d"
""")
    result = run(suite, "-v", "--pyvmm-kernel", "not-this-one")
    result.assert_outcomes(passed=4)
    names = ("test_of_the_module[a]", "test_of_the_module[b]", "test_of_its_own[c]", "test_none")
    for name in names:
        assert any(f"::{name} PASSED" in line for line in result.outlines)


def test_defaults_come_from_the_options(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        def test_defaults(pyvmm, kernel, request):
            first, second, third = pyvmm(), pyvmm(kernel, timeout=3), pyvmm("other")
            here = request.config.rootpath
            assert first.options == {
                "kernel": f"{here}/small", "initrd": f"{here}/initrd", "timeout": 7.5
            }
            assert second.options == {**first.options, "timeout": 3}
            assert third.options == {"kernel": "other", "timeout": 7.5}  # its initrd is its own
            print("the test's end")
    """)
    options = ("--pyvmm-kernel=small", "--pyvmm-initrd=initrd", "--pyvmm-timeout=7.5")
    result = run(suite, "-rP", *options)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([*["started*"] * 3, "the test's end", *["closed"] * 3])
    text = "pyvmm_kernel = small\npyvmm_initrd = initrd\npyvmm_timeout = 7.5\n"
    suite.makeini(f"[pytest]\n{text}")
    run(suite).assert_outcomes(passed=1)


def test_without_a_kernel_it_says_how_to_name_one(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        def test_machine(pyvmm): pyvmm()
        def test_path(kernel): pass
    """)
    result = run(suite)
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(["no kernel: name one with --pyvmm-kernel PATH*"] * 2)


MATRIX = """
    def test_own_guest(pyvmm):
        pyvmm("small")

    def test_linux(pyvmm):
        pyvmm("bzImage")

    def test_linux_after_all(pyvmm):
        pyvmm("bzImage", hardware_kvm=False)

    def test_own_guest_that_needs_more(pyvmm):
        pyvmm("small", hardware_kvm=True)

    def test_what_is_missing(pyvmm):
        pyvmm("missing")
"""


def letters(result: pytest.RunResult) -> str:
    """One for each of the tests in ``MATRIX``."""
    line = next(line for line in result.outlines if line.startswith("test_outcomes"))
    return line.split()[1]


def test_where_linux_runs_everything_runs(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_outcomes=MATRIX)
    assert letters(run(suite)) == "....."


def test_without_kvm_all_are_skipped_with_the_reason(suite: pytest.Pytester) -> None:
    suite.makeconftest(CONFTEST + NO_KVM)
    suite.makepyfile(test_outcomes=MATRIX)
    reason = "this host can't run the guest: /dev/kvm is not there (modprobe it)"
    result = run(suite, "-rs")
    result.assert_outcomes(skipped=5)
    assert reason in result.stdout.str()
    result = run(suite, "--pyvmm-require-kvm")
    result.assert_outcomes(errors=5)
    assert reason in result.stdout.str()
    run(suite, "-o", "pyvmm_require_kvm=true").assert_outcomes(errors=5)


def test_on_software_kvm_linux_is_skipped(suite: pytest.Pytester) -> None:
    suite.makeconftest(CONFTEST + SOFTWARE_KVM)
    suite.makepyfile(test_outcomes=MATRIX)
    result = run(suite, "-rs")
    assert "this host can't run the guest: it is slow (buy another)" in result.stdout.str()
    assert letters(result) == ".s.s."
    assert letters(run(suite, "--pyvmm-require-kvm")) == ".F.F."
    assert letters(run(suite, "-o", "pyvmm_hardware_kvm=yes")) == "ss.ss"
    assert letters(run(suite, "-o", "pyvmm_hardware_kvm=no")) == "...s."


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--pyvmm-timeout", "soon"], "--pyvmm-timeout: 'soon' is not a time in seconds"),
        (["--pyvmm-timeout", "-1"], "--pyvmm-timeout: '-1' is not a time in seconds"),
        (["-o", "pyvmm_timeout=soon"], "pyvmm_timeout: 'soon' is not a time in seconds"),
        (["--pyvmm-kernel="], "--pyvmm-kernel: the path is empty"),
        (["--pyvmm-keep-logs", "small.py"], "small.py: File exists"),
        (["-o", "pyvmm_hardware_kvm=maybe"], "'maybe' is none of auto, yes, no"),
    ],
)
def test_bad_options_end_the_run(
    pytester: pytest.Pytester, arguments: list[str], problem: str
) -> None:
    pytester.makepyfile(small="def test_nothing(): pass")
    result = run_here(pytester, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert problem in result.stderr.str()


def test_a_bad_mark_is_told(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.kernel(42)
        def test_machine(pyvmm): pass
    """)
    result = run_here(pytester)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*@pytest.mark.kernel takes paths, not [[]42[]]"])


NAMES = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join)


@given(st.lists(NAMES, min_size=1, unique=True))
def test_short_names_are_different_ends_of_the_paths(names: list[str]) -> None:
    paths = [f"/{name}" for name in names]
    short = short_names(paths)
    assert len(set(short)) == len(paths)
    for path, name in zip(paths, short, strict=True):
        assert f"/{path}".endswith(f"/{name}")


def test_short_names_are_as_short_as_can_be() -> None:
    paths = ["/b/5.15/bzImage", "/b/6.1/bzImage", "/b/6.1/vmlinux"]
    assert short_names(paths) == ["5.15/bzImage", "6.1/bzImage", "vmlinux"]


@given(st.sets(st.text(max_size=300), max_size=20))
def test_file_names_are_different_and_safe(tests: set[str]) -> None:
    names = [file_name(test) for test in tests]
    assert len(set(names)) == len(tests)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9._=+-]+", name)
        assert not name.startswith(".")
        assert len(name) <= MAX_FILE_NAME + 9
