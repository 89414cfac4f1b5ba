"""The reports by which a running Linux kernel says that something in it is wrong, other than a
panic: what ``--fail-on-warnings`` looks for.

They are known by their first lines, taken from the kernel's own format strings; the source file of
each stands beside it. Some have changed over the years; all forms since Linux 4.4 are here.

A line counts only from its beginning, behind what printk puts there (see
:mod:`pyvmm.console_watch`). What an ordinary boot prints is no report: ``[Firmware Bug]: …``,
``Spectre V2 : WARNING: Unprivileged eBPF is enabled …``, ``INFO: NMI handler … took too long``,
``ACPI BIOS Error (bug): …``; nor are lines that belong to a report or a kernel's unwinder
(``WARNING: can't access registers at …``), nor what a kernel says of a program (``traps: app[7]
general protection fault``) or of the machine (``unchecked MSR access error``).
"""

from __future__ import annotations

import re
from typing import NamedTuple


class KernelReport(NamedTuple):
    """A kind of report. ``beginning`` is a regular expression for what its first line begins
    with. A ``vague`` one counts only behind a time stamp, because a program may say so, too."""

    kind: str
    source: str
    beginning: bytes
    vague: bool = False


REPORTS = (
    KernelReport("kasan", "mm/kasan/report.c", rb"BUG: KASAN: "),
    KernelReport("kmsan", "mm/kmsan/report.c", rb"BUG: KMSAN: "),
    KernelReport("kcsan", "kernel/kcsan/report.c", rb"BUG: KCSAN: "),
    KernelReport("kfence", "mm/kfence/report.c", rb"BUG: KFENCE: "),
    KernelReport("ubsan", "lib/ubsan.c", rb"UBSAN: .{1,80} in \S+:\d+:\d+"),
    KernelReport("kmemleak", "mm/kmemleak.c", rb"kmemleak: \d+ new suspected memory leaks"),
    KernelReport(
        "lockdep",
        "kernel/locking/lockdep.c",
        rb"(?:WARNING: |\[ INFO: |INFO: )(?:"
        rb"possible (?:circular locking|recursive locking|irq lock inversion)"
        rb"|inconsistent lock state|\S+-safe -> \S+-unsafe lock order)",
    ),
    KernelReport(
        "lockdep",
        "kernel/locking/lockdep.c",
        rb"(?:WARNING: |\[ BUG: |BUG: )(?:bad (?:unlock balance|contention) detected!"
        rb"|held lock freed!|.{1,40} still has locks held!"
        rb"|lock held when returning to user space!|Nested lock was not taken)",
    ),
    KernelReport("lockdep", "kernel/locking/lockdep.c", rb"\[ BUG: Invalid wait context \]"),
    KernelReport(
        "lockdep", "kernel/locking/lockdep.c", rb"INFO: trying to register non-static key"
    ),
    KernelReport(
        "rcu-usage", "kernel/locking/lockdep.c", rb"(?:WARNING: |\[ INFO: )suspicious RCU usage"
    ),
    KernelReport(
        "rcu-stall",
        "kernel/rcu/tree_stall.h, tree_exp.h, tasks.h",
        rb"(?:rcu: )?INFO: \S+ (?:self-detected stall on CPU"
        rb"|detected (?:expedited )?stalls on (?:CPUs/)?tasks)",
    ),
    KernelReport(
        "hung-task",
        "kernel/hung_task.c",
        rb"INFO: task .{1,64}:\d+ .{0,40}blocked .{0,80}for more than \d+ seconds",
    ),
    KernelReport("soft-lockup", "kernel/watchdog.c", rb"(?:watchdog: )?BUG: soft lockup - CPU#"),
    KernelReport(
        "hard-lockup",
        "kernel/watchdog.c, watchdog_hld.c",
        rb"(?:(?:NMI )?watchdog: )?(?:CPU\d+: )?Watchdog detected hard LOCKUP on cpu ",
    ),
    KernelReport("workqueue-lockup", "kernel/workqueue.c", rb"BUG: workqueue lockup - pool"),
    KernelReport(
        "atomic-sleep",
        "kernel/sched/core.c",
        rb"BUG: (?:sleeping function called from invalid context at |scheduling while atomic: )",
    ),
    KernelReport(
        "preemption", "lib/smp_processor_id.c", rb"BUG: using \S+ in preemptible \[[0-9a-f]+\]"
    ),
    KernelReport(
        "bad-page",
        "mm/page_alloc.c, mm/memory.c, kernel/fork.c",
        rb"BUG: Bad (?:page (?:state|map|cache) in process |rss-counter state )",
    ),
    KernelReport("slab", "mm/slub.c", rb"BUG \S{1,64} \([^)]{1,80}\): "),
    KernelReport(
        "stack-overflow",
        "arch/x86/kernel/traps.c, dumpstack_64.c",
        rb"BUG: (?:\S+ )?stack guard page was hit at ",
    ),
    KernelReport(
        "stack-corruption",
        "arch/x86/mm/fault.c, kernel/sched/core.c",
        rb"Thread overran stack, or stack corrupted",
    ),
    KernelReport(
        "oops",
        "arch/x86/mm/fault.c",
        rb"BUG: (?:kernel NULL pointer dereference, address: |unable to handle "
        rb"(?:page fault for address|kernel paging request|kernel NULL pointer dereference))",
    ),
    KernelReport("bug", "lib/bug.c", rb"kernel BUG at "),
    KernelReport(
        "double-fault", "arch/x86/kernel/traps.c", rb"(?:traps: )?PANIC: double fault, error_code: "
    ),
    KernelReport(
        "general-protection-fault",
        "arch/x86/kernel/traps.c",
        rb"(?:Oops: )?general protection fault(?:, |: [0-9a-f]{4} )",
    ),
    KernelReport(  # whatever else dies: invalid opcode, divide error, control protection fault
        "oops",
        "arch/x86/kernel/dumpstack.c",
        rb"(?:Oops: )?[A-Za-z][^:\[]{1,80}: [0-9a-f]{4,8} \[#\d+\]",
    ),
    KernelReport(
        "warning",
        "kernel/panic.c",
        rb"WARNING: (?:CPU: \d+ PID: \d+ at |(?:\S+:\d+ )?at .{1,200}, CPU#\d+: )",
    ),
    KernelReport("irq", "kernel/irq/spurious.c", rb"irq \d+: nobody cared \(try booting with"),
    KernelReport("bug", "everywhere in the kernel", rb"BUG: ", vague=True),
)

END = b"---[ end trace "
"""kernel/panic.c: what many reports end with. Registers can follow, or a panic."""

_HINTS = (b"BUG", b"WARNING", b"INFO", b"[#", b"UBSAN", b"PANIC", b"LOCKUP", b"kmemleak", b"Thread",
          b"fault", b"nobody cared")  # fmt: skip
"""One of these is in the first line of every report."""

_BEGINNINGS = tuple((re.compile(report.beginning), report) for report in REPORTS)


def recognise(line: bytes, *, stamped: bool) -> KernelReport | None:
    """Which report begins with ``line``, from which printk's prefix has been taken; ``stamped``
    says that there was one. None for any other line."""
    if not any(hint in line for hint in _HINTS):
        return None
    for beginning, report in _BEGINNINGS:
        if beginning.match(line) and (stamped or not report.vague):
            return report
    return None
