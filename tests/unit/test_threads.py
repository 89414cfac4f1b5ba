"""Threads as the kernel names them."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from pyvmm.eventloop import EventLoop
from pyvmm.threads import NamedThread


def kernel_names() -> set[str]:
    """The names of this process's threads, as top -H shows them."""
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}


@pytest.mark.parametrize(
    ("name", "seen"), [("pyvmm-vcpu63", "pyvmm-vcpu63"), ("pyvmm-" + "x" * 20, "pyvmm-" + "x" * 9)]
)
def test_the_kernel_knows_a_threads_name(name: str, seen: str) -> None:
    found: list[str] = []

    def look() -> None:
        identity = threading.get_native_id()
        found.append(Path(f"/proc/self/task/{identity}/comm").read_text().strip())

    thread = NamedThread(target=look, name=name)
    thread.start()
    thread.join()
    assert found == [seen]
    assert thread.name == name


def test_the_io_thread_has_a_name() -> None:
    loop = EventLoop()
    running = threading.Event()
    loop.call(running.set)
    loop.start()
    assert running.wait(30)
    assert "pyvmm-io" in kernel_names()
    loop.stop()
    loop.close()


def test_all_threads_of_ours_are_named() -> None:
    """A plain Thread would be called like the program."""
    package = Path(__file__).parents[2] / "pyvmm"
    plain = [
        str(path)
        for path in package.rglob("*.py")
        if re.search(r"(?<!\w)threading\.Thread\(\s*target", path.read_text())
    ]
    assert plain == []
