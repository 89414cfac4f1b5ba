"""The pytest plugin with guests: what a failing test's report has, what is kept, and a matrix under
pytest-xdist. Each test runs pytest, in a process of its own, on a test suite of its own."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from kvm.command import TIMEOUT

pytest_plugins = ["pytester"]

TITLE = re.compile(r"[-_=]+ (.+?) [-_=]+")


@pytest.fixture
def suite(
    pytester: pytest.Pytester, guests: Path, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """A directory for a test suite, with our guests in guests/."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    (pytester.path / "guests").symlink_to(guests)
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=4 * TIMEOUT)


def sections(result: pytest.RunResult) -> dict[str, dict[str, str]]:
    """Of each test's failure: what is under each title."""
    found: dict[str, dict[str, str]] = {}
    under: dict[str, str] = {}
    name = ""
    for line in result.outlines:
        title = TITLE.fullmatch(line)
        if title is None:
            under[name] = f"{under.get(name, '')}{line}\n"
        elif line.startswith("_") and "test_" in line:
            under = found[title[1].rpartition(" ")[2]] = {}
            name = ""
        else:
            name = title[1]
    return found


FAILURES = """
    import pytest

    def test_passing(pyvmm):
        with pyvmm(command_line="print") as vm:
            vm.console.expect("42 sheep")

    def test_crash(pyvmm):
        with pyvmm(command_line="triple-fault") as vm:
            vm.wait()
        assert vm.outcome.status == 0  # it has been closed

    def test_it_still_runs(pyvmm):
        vm = pyvmm(command_line="print", cpus=2)
        vm.console.expect("> ")
        pytest.fail("a plain text", pytrace=False)

    @pytest.fixture
    def booted(pyvmm):
        vm = pyvmm(command_line="panic")
        vm.console.expect("login: ")

    def test_setup(booted):
        pass

    def test_two(pyvmm):
        pyvmm(command_line="power-off").wait()
        vm = pyvmm("guests/reboots", command_line="")
        vm.console.expect("never printed")

    @pytest.mark.xfail(strict=True)
    def test_expected_failure(pyvmm):
        pyvmm(command_line="panic").console.expect("login: ")

    def test_bad_argument(pyvmm):
        pyvmm(memory="much")

    def test_nothing_of_a_machine():
        assert 0
"""


def test_a_failing_test_has_what_the_guest_said_and_did(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_failures=FAILURES)
    options = ("--pyvmm-kernel=guests/endings", "--junit-xml=junit.xml")
    result = run(suite, *options, "-o", "junit_logging=system-out", "-rPx")
    result.assert_outcomes(passed=1, failed=5, errors=1, xfailed=1)
    found = sections(result)

    assert "test_passing[endings]" not in found  # -rP would show what it had

    crash = found["test_crash[endings]"]
    assert "guest crashed: triple fault" in crash["outcome of the guest endings"]
    assert "RIP 00000000" in crash["outcome of the guest endings"]
    assert "SHUTDOWN" in crash["outcome of the guest endings"]
    assert "last exits of the guest endings" not in crash  # the report has them
    assert crash["Captured stdout of the guest endings"] == "nothing was printed\n"

    running = found["test_it_still_runs[endings]"]
    assert "the guest still runs, after" in running["outcome of the guest endings"]
    assert "halted at 0000000000" in running["outcome of the guest endings"]
    assert "42 sheep" in running["Captured stdout of the guest endings"]
    exits = running["last exits of the guest endings"]
    assert "out 0x3f8, 0x3e (8 bits)  serial COM1+0x0" in exits
    assert "vCPU 0, oldest first" in exits
    assert "vCPU 1, oldest first" in exits

    setup = found["test_setup[endings]"]
    assert 'guest panicked: "the test wants it"' in setup["outcome of the guest endings"]
    assert "Kernel panic" in setup["Captured stdout of the guest endings"]
    assert "in expect" not in setup[""]  # the failure is the caller's

    two = found["test_two[endings]"]
    assert "guest powered off" in two["outcome of guest 1, endings"]
    assert "guest rebooted" in two["outcome of guest 2, reboots"]
    assert "boot: 0" in two["Captured stdout of guest 2, reboots"]
    assert "i8042 command" in two["last exits of guest 2, reboots"]

    bad = found["test_bad_argument[endings]"]
    assert "E       pyvmm.errors.ConfigError: --memory: 'much' is not a size" in bad[""]
    assert "__init__" not in bad[""]
    assert not any("guest" in title for title in found["test_nothing_of_a_machine"])
    assert "test_expected_failure[endings]" not in found

    cases = {case.get("name"): case for case in ET.parse("junit.xml").iter("testcase")}
    (failure,) = cases["test_crash[endings]"].iter("failure")
    assert "guest crashed: triple fault" in (failure.text or "")
    (error,) = cases["test_setup[endings]"].iter("error")
    assert "guest panicked" in (error.text or "")
    (output,) = cases["test_it_still_runs[endings]"].iter("system-out")
    assert "42 sheep" in (output.text or "")


def test_machines_are_closed_at_the_tests_end(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import os, pytest, threading

        machines = []

        def guests():
            return [t.name for t in threading.enumerate() if t.name.startswith("pyvmm-vcpu")]

        @pytest.mark.kernel("guests/endings")
        @pytest.mark.parametrize("turn", range(3))
        def test_machines(pyvmm, turn):
            assert not guests()
            assert all(vm.outcome for vm in machines)
            machines.extend(pyvmm(command_line="print") for _ in range(2))
            assert len(guests()) == 2
            assert not any(vm.outcome for vm in machines[-2:])
            assert not turn == 1
    """)
    run(suite).assert_outcomes(passed=2, failed=1)


def test_nothing_is_left_of_a_machine(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import gc, weakref

        machines = []

        def test_machine(pyvmm):
            machines.append(weakref.ref(pyvmm("guests/endings", command_line="print")))

        def test_it_is_gone():
            gc.collect()
            assert machines[0]() is None
    """)
    run(suite).assert_outcomes(passed=2)


MATRIX = """
    import pytest

    @pytest.mark.parametrize("word", ["print", "power-off", "panic"])
    def test_boot(pyvmm, word):
        first = pyvmm(command_line=word)
        if word == "print":
            second = pyvmm(command_line="power-off")
            first.console.expect("> ")
            assert second.wait().status == 0
        else:
            first.wait()
        assert word != "panic"
"""


def test_a_matrix_on_all_cores_leaves_its_logs(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_matrix=MATRIX)
    for place in ("a", "b"):
        suite.mkdir(place).joinpath("kernel").symlink_to(suite.path / "guests/endings")
    kernels = ("--pyvmm-kernel=a/kernel", "--pyvmm-kernel=b/kernel")
    result = run(suite, "-n2", "-v", *kernels, "--pyvmm-keep-logs=out/logs")
    result.assert_outcomes(passed=4, failed=2)
    assert len(set(re.findall(r"\[gw\d\]", result.stdout.str()))) > 1
    report = sections(result)["test_boot[a/kernel-panic]"]
    assert 'guest panicked: "the test wants it"' in report["outcome of the guest kernel"]
    assert "Kernel panic" in report["Captured stdout of the guest kernel"]

    logs = sorted((suite.path / "out/logs").iterdir())
    assert len(logs) == 2 * 8  # a log and a result of each machine
    ends: dict[str, list[str]] = {}
    for path in logs:
        if path.suffix == ".json":
            document = json.loads(path.read_text())
            ends.setdefault(document["name"], []).append(document["reason"])
            if document["reason"] == "panic":
                log = path.with_suffix(".log").read_text()
                assert re.match(r" +\d\.\d{6} \[    0.123456\]\[    T1\] Kernel panic", log)
                assert document["machine"]["command_line"] == "panic"
                assert document["seconds"]["total"] < 2 * TIMEOUT
    for kernel in ("a/kernel", "b/kernel"):
        test = f"test_matrix.py::test_boot[{kernel}-%s]"
        assert sorted(ends.pop(test % "print")) == ["interrupted", "power_off"]
        assert ends.pop(test % "power-off") == ["power_off"]
        assert ends.pop(test % "panic") == ["panic"]
    assert not ends


def test_a_machine_that_cannot_be_made_leaves_a_result(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        def test_missing(pyvmm):
            pyvmm("no/such/kernel")
    """)
    run(suite, "--pyvmm-keep-logs=logs").assert_outcomes(failed=1)
    (result,) = (suite.path / "logs").glob("*.json")
    document = json.loads(result.read_text())
    assert document["reason"] == "error"
    assert "kernel no/such/kernel does not exist" in document["sentence"]
