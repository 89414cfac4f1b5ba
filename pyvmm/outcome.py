"""How a run ended, and the exit status that says so."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple


class Reason(Enum):
    """Why a machine ended."""

    POWER_OFF = "powered off"
    REBOOT = "rebooted"
    EXPECTED = "printed what was expected"
    DEBUG_EXIT = "wrote to the debug exit port"
    NOT_BOOTABLE = "found no disk to boot"
    PANIC = "panicked"
    CRASH = "crashed"
    MISSED = "ended without what was expected"
    FAILED = "printed what must not come"
    WARNED = "reported a problem of its kernel"
    TIMEOUT = "timed out"
    INTERRUPTED = "interrupted"
    ERROR = "internal error"


EXIT_STATUS = {
    Reason.POWER_OFF: 0,
    Reason.REBOOT: 0,
    Reason.EXPECTED: 0,
    Reason.NOT_BOOTABLE: 1,
    Reason.PANIC: 3,
    Reason.CRASH: 4,
    Reason.MISSED: 5,
    Reason.FAILED: 5,
    Reason.WARNED: 5,
    Reason.TIMEOUT: 124,
    Reason.INTERRUPTED: 130,
    Reason.ERROR: 1,
}
"""The contract of ``pyvmm run``; Reason.DEBUG_EXIT computes its own."""


class Outcome(NamedTuple):
    """How a run ended.

    ``detail`` is what belongs to the reason: the panic's message, the crash's summary, the line
    that matched, the signal. ``value`` is what the guest wrote to the debug exit port, or the
    number of the signal that interrupted the run. ``seconds`` is the time since the start, and
    ``report`` the lines that explain a crash, or say where the vCPUs stood at a timeout.
    ``reboots`` counts how often the machine was reset meanwhile. ``vcpus`` are the vCPUs' states
    after a crash or a timeout, as plain values: see :func:`pyvmm.crash.state`.
    """

    reason: Reason
    detail: str = ""
    value: int = 0
    seconds: float = 0.0
    report: tuple[str, ...] = ()
    reboots: int = 0
    vcpus: tuple[dict[str, Any], ...] = ()

    def __repr__(self) -> str:
        """What a failed assertion about it shows."""
        return f"<Outcome {self.reason.name}: {self.sentence}>"

    @property
    def status(self) -> int:
        """The exit status of ``pyvmm run``."""
        if self.reason is Reason.DEBUG_EXIT:
            return (self.value << 1 | 1) & 0xFF  # as QEMU's isa-debug-exit
        if self.reason is Reason.INTERRUPTED and self.value:
            return 128 + self.value
        return EXIT_STATUS[self.reason]

    @property
    def sentence(self) -> str:
        """One line for a person: which end, why, after how long."""
        subject = {
            Reason.POWER_OFF: "guest powered off",
            Reason.REBOOT: "guest rebooted",
            Reason.EXPECTED: "expected text came",
            Reason.DEBUG_EXIT: f"guest exited with value {self.value:#x}",
            Reason.NOT_BOOTABLE: "no bootable disk",
            Reason.PANIC: "guest panicked",
            Reason.CRASH: "guest crashed",
            Reason.MISSED: "expected text did not come",
            Reason.FAILED: "text that must not come came",
            Reason.WARNED: "guest's kernel reported a problem",
            Reason.TIMEOUT: "guest ran into the timeout",
            Reason.INTERRUPTED: "interrupted",
            Reason.ERROR: "internal error",
        }[self.reason]
        joint = " " if self.reason in (Reason.INTERRUPTED, Reason.NOT_BOOTABLE) else ": "
        detail = joint + self.detail if self.detail else ""
        reboots = ""
        if self.reboots:
            reboots = f"{self.reboots} reboot{'s' if self.reboots > 1 else ''} and "
        return f"{subject}{detail} after {reboots}{self.seconds:.2f} s"
