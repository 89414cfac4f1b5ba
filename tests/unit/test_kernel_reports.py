"""What --fail-on-warnings takes for a report of the kernel's, and what not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.console_watch import ConsoleWatch
from pyvmm.kernel_reports import REPORTS, recognise

FIRST_LINES = [
    ("oops", "BUG: kernel NULL pointer dereference, address: 0000000000000010"),
    ("oops", "BUG: unable to handle page fault for address: ffffc90000000000"),
    ("oops", "BUG: unable to handle kernel paging request at ffffffff00000000"),
    ("oops", "BUG: unable to handle kernel NULL pointer dereference at 0000000000000008"),
    ("oops", "Oops: 0002 [#1] PREEMPT SMP NOPTI"),
    ("oops", "Oops: Oops: 0000 [#1] SMP NOPTI"),
    ("oops", "invalid opcode: 0000 [#1] PREEMPT SMP KASAN"),
    ("oops", "Oops: invalid opcode: 0000 [#2] SMP"),
    ("oops", "divide error: 0000 [#1] SMP"),
    ("bug", "kernel BUG at mm/slub.c:4123!"),
    ("bug", "kernel BUG at foo+0x12/0x40 [verbose debug info unavailable]!"),
    ("general-protection-fault", "general protection fault: 0000 [#1] SMP"),
    (
        "general-protection-fault",
        "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
    ),
    (
        "general-protection-fault",
        "Oops: general protection fault, kernel NULL pointer dereference 0x8: 0000 [#1] SMP",
    ),
    ("double-fault", "traps: PANIC: double fault, error_code: 0x0"),
    ("stack-overflow", "BUG: stack guard page was hit at 00000000b2f481cf (stack is 0..1)"),
    ("stack-overflow", "BUG: TASK stack guard page was hit at ffffc90001717fd8 (stack is 0..1)"),
    ("stack-overflow", "BUG: #DF stack guard page was hit at 0000000040b441e1 (stack is 0..1)"),
    ("stack-corruption", "Thread overran stack, or stack corrupted"),
    ("warning", "WARNING: CPU: 1 PID: 42 at kernel/sched/core.c:123 foo+0x1/0x2"),
    ("warning", "WARNING: CPU: 1 PID: 42 at foo+0x1/0x2 [module]"),
    ("warning", "WARNING: kernel/sched/core.c:123 at foo+0x1/0x2, CPU#1: swapper/0/1"),
    ("warning", "WARNING: at foo+0x1/0x2, CPU#1: swapper/0/1"),
    ("lockdep", "WARNING: possible circular locking dependency detected"),
    ("lockdep", "WARNING: possible recursive locking detected"),
    ("lockdep", "[ INFO: possible circular locking dependency detected ]"),
    ("lockdep", "INFO: possible recursive locking detected"),
    ("lockdep", "WARNING: possible irq lock inversion dependency detected"),
    ("lockdep", "WARNING: inconsistent lock state"),
    ("lockdep", "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected"),
    ("lockdep", "WARNING: bad unlock balance detected!"),
    ("lockdep", "WARNING: held lock freed!"),
    ("lockdep", "WARNING: swapper/0/1 still has locks held!"),
    ("lockdep", "WARNING: lock held when returning to user space!"),
    ("lockdep", "[ BUG: bad unlock balance detected! ]"),
    ("lockdep", "[ BUG: Invalid wait context ]"),
    ("lockdep", "INFO: trying to register non-static key."),
    ("rcu-usage", "WARNING: suspicious RCU usage"),
    ("rcu-usage", "[ INFO: suspicious RCU usage. ]"),
    ("kasan", "BUG: KASAN: slab-use-after-free in foo+0x1/0x2"),
    ("kmsan", "BUG: KMSAN: uninit-value in foo+0x1/0x2"),
    ("kcsan", "BUG: KCSAN: data-race in foo / bar"),
    ("kfence", "BUG: KFENCE: out-of-bounds read in foo+0x1/0x2"),
    ("ubsan", "UBSAN: array-index-out-of-bounds in fs/ext4/super.c:1:2"),
    ("ubsan", "UBSAN: Undefined behaviour in lib/test.c:12:3"),
    ("kmemleak", "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)"),
    ("rcu-stall", "rcu: INFO: rcu_preempt self-detected stall on CPU"),
    ("rcu-stall", "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:"),
    ("rcu-stall", "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 3-... } 22"),
    ("rcu-stall", "INFO: rcu_tasks detected stalls on tasks:"),
    ("hung-task", "INFO: task kworker/u4:3:689 blocked for more than 120 seconds."),
    ("hung-task", "INFO: task sh:1 blocked in I/O wait for more than 241 seconds."),
    ("soft-lockup", "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]"),
    ("soft-lockup", "BUG: soft lockup - CPU#3 stuck for 11s! [syz:1]"),
    ("hard-lockup", "NMI watchdog: Watchdog detected hard LOCKUP on cpu 2"),
    ("hard-lockup", "watchdog: CPU3: Watchdog detected hard LOCKUP on cpu 3"),
    ("workqueue-lockup", "BUG: workqueue lockup - pool cpus=0 node=0 stuck for 31s!"),
    ("atomic-sleep", "BUG: sleeping function called from invalid context at mm/slab.h:1"),
    ("atomic-sleep", "BUG: scheduling while atomic: sh/1/0x00000002"),
    ("preemption", "BUG: using smp_processor_id() in preemptible [00000000] code: sh/1"),
    ("bad-page", "BUG: Bad page state in process sh  pfn:12345"),
    ("bad-page", "BUG: Bad rss-counter state mm:00000000deadbeef type:MM_ANONPAGES val:1"),
    ("slab", "BUG kmalloc-64 (Not tainted): Poison overwritten"),
    ("slab", "BUG kmalloc-64 (Tainted: G    B   W ): Object already free"),
    ("irq", 'irq 11: nobody cared (try booting with the "irqpoll" option)'),
]

HARMLESS = [
    # From the boots of Debian's kernels, and from other ordinary ones.
    "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible",
    "[Firmware Bug]: the BIOS has corrupted hw-PMU resources (MSR 38d is 330)",
    "ACPI BIOS Error (bug): Could not resolve symbol [\\_SB.PCI0], AE_NOT_FOUND",
    "ACPI BIOS Warning (bug): Incorrect checksum in table [FACP]",
    "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.234 msecs",
    "INFO: lockdep is turned off.",
    "EXT4-fs (vda): INFO: recovery required on readonly filesystem",
    "WARNING: can't access registers at ret_from_fork+0x0/0x30",
    "WARNING: kernel stack regs at 00000000abc in sh:1 has bad 'bp' value 0000",
    "WARNING: The mand mount option has been deprecated and",
    "WARNING: 'bootconfig' found on the kernel command line but CONFIG_BOOT_CONFIG is not set.",
    "unchecked MSR access error: WRMSR to 0x1a0 (tried to write 0x1) at rIP: 0xffffffff81",
    "traps: app[7] general protection fault ip:401000 sp:7ffc error:0 in app[400000+1000]",
    "app[7]: segfault at 0 ip 0000000000401000 sp 00007ffc error 4 in app[400000+1000]",
    "rcu: \tRCU debug extended QS entry/exit.",
    "rcu: INFO: something else",
    "Kernel panic - not syncing: that is another matter",
    "workqueue: foo hogged CPU for >10000us 4 times, consider switching to WQ_UNBOUND",
    "kmemleak: Kernel memory leak detector initialized (mem pool available: 15745)",
    "watchdog: Delayed init of the lockup detector failed: -19",
    "NMI watchdog: Perf NMI watchdog permanently disabled",
    "---[ end trace 0000000000000000 ]---",
    "------------[ cut here ]------------",
    "systemd[1]: BUG: this is a program's",
    "Run /init as init process",
    "",
]


@pytest.mark.parametrize(("kind", "line"), FIRST_LINES)
def test_a_report(kind: str, line: str) -> None:
    report = recognise(line.encode(), stamped=True)
    assert report is not None
    assert report.kind == kind


@pytest.mark.parametrize("line", HARMLESS)
def test_an_ordinary_line(line: str) -> None:
    assert recognise(line.encode(), stamped=True) is None


@pytest.mark.parametrize(("kind", "line"), FIRST_LINES)
def test_only_a_line_s_beginning_counts(kind: str, line: str) -> None:
    assert recognise(b"it said: " + line.encode(), stamped=True) is None


def test_any_other_bug_counts_behind_a_time_stamp_only() -> None:
    line = b"BUG: spinlock bad magic on CPU#0, swapper/1"
    report = recognise(line, stamped=True)
    assert report is not None
    assert report.kind == "bug"
    assert recognise(line, stamped=False) is None


def test_every_kind_is_tried() -> None:
    assert {report.kind for report in REPORTS} == {kind for kind, _ in FIRST_LINES}


def test_every_source_is_named() -> None:
    for report in REPORTS:
        assert re.search(r"\.[ch]\b", report.source) or report.vague


@given(st.binary(max_size=300), st.booleans())
def test_any_line_is_survived(line: bytes, stamped: bool) -> None:
    recognise(line, stamped=stamped)


def reported(*lines: str) -> list[tuple[str, str]]:
    """What a console watch tells of these lines."""
    found: list[tuple[str, str]] = []
    ends: list[tuple[str, str]] = []
    watch = ConsoleWatch(
        on_report=lambda kind, line: found.append((kind, line)),
        on_report_end=lambda: ends.append(("end", "")),
    )
    for line in lines:
        watch.feed(line.encode() + b"\r\n")
    return found + ends


WARNING = "WARNING: CPU: 0 PID: 1 at kernel/foo.c:1 foo+0x1/0x2"


@pytest.mark.parametrize(
    "prefix", ["[    1.234567] ", "[    1.2][    T1] ", "<4>[    1.2] ", "<4>"]
)
def test_behind_printk_s_prefixes(prefix: str) -> None:
    assert reported(prefix + WARNING) == [("warning", WARNING)]


def test_without_time_stamps() -> None:
    assert reported("Linux version 6.1", WARNING) == [("warning", WARNING)]


def test_a_program_s_line_where_the_kernel_stamps_its_own() -> None:
    assert reported("[    0.000000] Linux version 6.1", WARNING) == []


def test_the_end_of_a_report() -> None:
    end = "[    1.3] ---[ end trace 0000000000000000 ]---"
    assert reported("[    1.2] " + WARNING, end)[1:] == [("end", "")]


def test_nothing_is_looked_for_unless_it_is_wanted() -> None:
    watch = ConsoleWatch()
    watch.feed(f"[    1.2] {WARNING}\n".encode())  # raises nothing, calls nothing
    assert watch.tail() == [f"[    1.2] {WARNING}"]
