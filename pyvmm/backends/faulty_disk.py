"""A disk image that fails on purpose: what ``-d disk.raw,error=eio@sector=2048..4096`` opens.

It stands in front of a :class:`~pyvmm.backends.disk.DiskImage` and lets the requests through that
no rule wants to fail. One that fails moves no data. What a rule leaves to chance is decided by a
generator of its own, which takes one number for each request that the rule is about, in the order
in which they come: the same requests meet the same faults.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from random import Random

from pyvmm.backends.disk import SECTOR_SIZE, DiskImage
from pyvmm.errors import ConfigError
from pyvmm.fault_config import ERRORS, MAX_SECTOR, DiskFaults, DiskRule


class FaultyImage(DiskImage):
    """``image``, with ``faults``; it belongs to whoever made it."""

    def __init__(self, image: DiskImage, faults: DiskFaults) -> None:
        super().__init__(image.path, -1, image.size, readonly=image.readonly)
        sectors = image.size // SECTOR_SIZE
        for rule in faults.rules:
            if rule.first >= sectors or sectors <= rule.last < MAX_SECTOR:
                raise ConfigError(
                    f"--disk {image.path},error: the last sector is {sectors - 1},"
                    f" not {max(rule.first, rule.last)}"
                )
        self._image = image
        self._faults = faults
        self._rules = [
            (rule, Random(f"{faults.seed}/{number}").random if rule.rate < 1 else None)
            for number, rule in enumerate(faults.rules)
        ]
        self.requests = 0
        self.failed: dict[str, int] = {}
        """How many requests failed, by operation."""

    def read(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        self._meet("read", offset, length)
        self._image.read(buffers, offset, length)

    def write(self, buffers: Sequence[memoryview], offset: int, length: int) -> None:
        self._meet("write", offset, length)
        self._image.write(buffers, offset, length)

    def flush(self) -> None:
        self._meet("flush", 0, self.size)
        self._image.flush()

    def discard(self, offset: int, length: int) -> None:
        self._meet("discard", offset, length)
        self._image.discard(offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self._meet("write", offset, length)
        self._image.write_zeroes(offset, length, unmap=unmap)

    def close(self) -> None:
        """The image is closed by its owner."""

    def _meet(self, operation: str, offset: int, length: int) -> None:
        """Raise what the request is to fail with, if it is."""
        self.requests += 1
        first, last = offset // SECTOR_SIZE, (offset + length - 1) // SECTOR_SIZE
        for rule, chance in self._rules:
            if _concerns(rule, operation, first, last) and _happens(rule, chance):
                self.failed[operation] = self.failed.get(operation, 0) + 1
                number = ERRORS[rule.error]
                raise OSError(number, f"{os.strerror(number)} (injected)", self.path)

    @property
    def used(self) -> bool:
        """Whether there was any request."""
        return self.requests > 0

    def summary(self) -> str:
        """What was done to the guest, in a line."""
        failed = ", ".join(
            f"{count} {name}{'s' if count > 1 else ''}" for name, count in self.failed.items()
        )
        total = sum(self.failed.values())
        line = f"{self.path}: {total} of {self.requests} requests failed on purpose"
        line += f" ({failed})" if failed else ""
        if self._faults.latency_ns:
            line += f", each took {self._faults.latency_ns / 1e6:g} ms more"
        chances = any(rule.rate < 1 for rule in self._faults.rules)
        return line + (f", seed {self._faults.seed}" if chances else "")


def _concerns(rule: DiskRule, operation: str, first: int, last: int) -> bool:
    return operation in rule.operations and first <= rule.last and last >= rule.first


def _happens(rule: DiskRule, chance: Callable[[], float] | None) -> bool:
    return chance is None or chance() < rule.rate
