"""The I/O thread: descriptors, calls and timers, from other threads and from its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from pyvmm.eventloop import WRITABLE, EventLoop

PATIENCE = 10
"""Seconds to wait for what takes microseconds, on a busy machine."""

MILLISECOND = 1_000_000


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    loop.start()
    yield loop
    loop.stop()
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def settle(loop: EventLoop) -> None:
    """Wait until the loop has done what it was asked before."""
    done = threading.Event()
    loop.call(done.set)
    assert done.wait(PATIENCE)


def test_a_readable_descriptor_calls_back(loop: EventLoop, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    came = threading.Event()
    got = bytearray()

    def callback() -> None:
        got.extend(os.read(reader, 100))
        came.set()

    loop.watch(reader, callback)
    os.write(writer, b"hello")
    assert came.wait(PATIENCE)
    assert got == b"hello"


def test_readiness_is_told_until_it_is_gone(loop: EventLoop, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    came = threading.Event()
    got = bytearray()

    def one_byte() -> None:
        got.extend(os.read(reader, 1))
        if len(got) == 5:
            came.set()

    loop.watch(reader, one_byte)
    os.write(writer, b"hello")
    assert came.wait(PATIENCE)


def test_watching_again_replaces(loop: EventLoop, pipe: tuple[int, int]) -> None:
    _, writer = pipe
    came = threading.Event()
    loop.watch(writer, lambda: pytest.fail("a pipe's writing end is never readable"))

    def writable() -> None:
        loop.unwatch(writer)
        came.set()

    loop.watch(writer, writable, WRITABLE)
    assert came.wait(PATIENCE)


def test_an_unwatched_descriptor_is_left_alone(loop: EventLoop, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    calls: list[None] = []
    loop.watch(reader, lambda: calls.append(None))
    loop.unwatch(reader)
    loop.unwatch(reader)
    os.write(writer, b"x")
    settle(loop)
    assert calls == []


def test_calls_run_on_the_loops_thread_in_order(loop: EventLoop) -> None:
    ran: list[tuple[int, str]] = []

    def note(number: int) -> None:
        ran.append((number, threading.current_thread().name))

    for number in range(100):
        loop.call(partial(note, number))
    settle(loop)
    assert ran == [(number, "pyvmm-io") for number in range(100)]


def test_a_timer_fires_not_before_its_time(loop: EventLoop) -> None:
    fired = threading.Event()
    times: list[int] = []

    def callback() -> None:
        times.append(loop.now_ns())
        fired.set()

    deadline = loop.now_ns() + 5 * MILLISECOND
    loop.timer(callback).arm(deadline)
    assert fired.wait(PATIENCE)
    assert times[0] >= deadline


def test_a_deadline_that_has_passed_fires_at_once(loop: EventLoop) -> None:
    fired = threading.Event()
    loop.timer(fired.set).arm(0)
    assert fired.wait(PATIENCE)


def test_a_period_repeats(loop: EventLoop) -> None:
    third = threading.Event()
    count: list[None] = []

    def callback() -> None:
        count.append(None)
        if len(count) == 3:
            timer.cancel()
            third.set()

    timer = loop.timer(callback)
    timer.arm(loop.now_ns() + MILLISECOND, MILLISECOND)
    assert third.wait(PATIENCE)
    settle(loop)
    assert len(count) == 3


def test_a_cancelled_timer_does_not_fire(loop: EventLoop) -> None:
    late, early = threading.Event(), threading.Event()
    cancelled = loop.timer(lambda: pytest.fail("cancelled"))
    cancelled.arm(loop.now_ns() + 10 * MILLISECOND)
    cancelled.cancel()
    later = loop.timer(late.set)
    later.arm(loop.now_ns() + 3600 * 1000 * MILLISECOND)
    later.arm(loop.now_ns() + 20 * MILLISECOND)  # replaces
    loop.timer(early.set).arm(loop.now_ns() + MILLISECOND)
    assert early.wait(PATIENCE)
    assert late.wait(PATIENCE)


def test_an_exception_ends_the_loop_and_is_told() -> None:
    errors: list[BaseException] = []
    told = threading.Event()

    def break_down() -> None:
        raise ZeroDivisionError

    def on_error(error: BaseException) -> None:
        errors.append(error)
        told.set()

    loop = EventLoop(on_error)
    loop.start()
    loop.call(break_down)
    assert told.wait(PATIENCE)
    assert isinstance(errors[0], ZeroDivisionError)
    loop.stop()
    loop.close()


def test_stop_can_be_called_twice_and_from_inside() -> None:
    loop = EventLoop()
    loop.start()
    loop.call(loop.stop)
    loop.stop()
    loop.stop()
    loop.close()


def test_the_clock_is_the_hosts(loop: EventLoop) -> None:
    assert abs(loop.wall_ns() - time.time_ns()) < 10**9
    assert loop.now_ns() <= time.monotonic_ns()
