"""docs/ci.md and the README's part about CI: the YAML parses, the shell in it too, `pyvmm run`
takes the options, and the tables have what there is."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit.test_results import MEMBERS

from pyvmm.cli.run import run
from pyvmm.config import MachineConfig
from pyvmm.kernel_reports import REPORTS
from pyvmm.outcome import Reason
from pyvmm.results import SCHEMA

PROJECT = Path(__file__).parents[2]
CI = PROJECT / "docs/ci.md"
PAGES = (CI, PROJECT / "README.md")


def configurations() -> Iterator[tuple[str, Any]]:
    for page in PAGES:
        for number, text in enumerate(
            re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)
        ):
            yield f"{page.name}-{number}", yaml.safe_load(text)


def workflows() -> dict[str, Any]:
    return {name: found for name, found in configurations() if "jobs" in found}


def scripts() -> Iterator[str]:
    """The shell of all configurations."""
    for _, found in configurations():
        for job in found["jobs"].values() if "jobs" in found else found.values():
            yield from job.get("script", ())
            yield from (step["run"] for step in job.get("steps", ()) if "run" in step)


def test_there_are_configurations() -> None:
    assert len(workflows()) == 2
    assert len(list(configurations())) == 3


@pytest.mark.parametrize("name", list(workflows()))
def test_a_workflow_has_what_actions_wants(name: str) -> None:
    workflow = workflows()[name]
    assert {"name", True, "jobs"} == set(workflow)  # YAML 1.1 takes `on` for a truth value
    for job in workflow["jobs"].values():
        assert {"runs-on", "steps"} <= set(job)
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert set(step) <= {"name", "uses", "with", "run", "if", "env"}
        assert any(step.get("if") == "always()" for step in job["steps"])


@pytest.mark.parametrize("script", list(scripts()))
def test_its_shell(script: str) -> None:
    subprocess.run(["bash", "-n", "-c", script], check=True)
    for command in re.findall(r"pyvmm (run (?:[^\n\\|]|\\\n)*)", script):
        words = shlex.split(command.replace("\\\n", " "))
        context = run.make_context("pyvmm run", words[1:])
        MachineConfig.parse(context.params)


def rows(heading: str) -> set[str]:
    """The names in the first column of the tables of a section."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", CI.read_text(), re.M | re.S)
    cells = re.findall(r"^\| (`.*?) \|", section, re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_all_kinds_of_warnings_are_listed() -> None:
    assert rows("Warnings") == {report.kind for report in REPORTS}


def test_all_members_and_reasons_are_listed() -> None:
    reasons = {reason.name.lower() for reason in Reason} | {"usage", "unfinished"}
    assert rows("JSON") == MEMBERS | reasons
    assert f"| `schema` | {SCHEMA}." in CI.read_text()
