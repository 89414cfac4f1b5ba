"""What this host can do: the facts behind ``pyvmm check``.

Each check is a finding with, if it isn't good, the command that fixes it. The last one doesn't
ask but tries: it runs a guest of a few instructions.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pyvmm import layout
from pyvmm.backends import tap
from pyvmm.boot.entry import EntryState
from pyvmm.errors import HostError, PyvmmError
from pyvmm.kvm import Kvm
from pyvmm.kvm._kvm import lib
from pyvmm.kvm.system import DEVICE, cpu_flags, host_has_hardware_kvm, node_fix, permission_fix
from pyvmm.memory import PAGE_SIZE, GuestMemory
from pyvmm.vcpu import enter

SOFTWARE_KVM_MODULE = "/sys/module/kvm_pvm"
KVM_LOADED = "/sys/class/misc/kvm"
DEVICE_NODE_FIX = f"start the container with --device {DEVICE}, or sudo mknod {DEVICE} c 10 232"

NEEDED_CAPABILITIES = {
    "KVM_CAP_USER_MEMORY": "guest memory from user space",
    "KVM_CAP_IRQCHIP": "interrupt controllers in the kernel",
    "KVM_CAP_IRQ_ROUTING": "routing of interrupts and MSIs",
    "KVM_CAP_IRQFD": "interrupts by eventfd",
    "KVM_CAP_IOEVENTFD": "doorbells by eventfd",
    "KVM_CAP_SIGNAL_MSI": "message-signalled interrupts",
    "KVM_CAP_IMMEDIATE_EXIT": "stopping a vCPU without a race",
    "KVM_CAP_EXT_CPUID": "CPUID as the guest sees it",
    "KVM_CAP_SET_TSS_ADDR": "real mode on Intel",
    "KVM_CAP_VCPU_EVENTS": "pending events as state",
}
USEFUL_CAPABILITIES = {
    "KVM_CAP_SYNC_REGS": "RIP of every exit in crash reports",
    "KVM_CAP_TSC_DEADLINE_TIMER": "the guest's TSC deadline timer",
    "KVM_CAP_IOEVENTFD_ANY_LENGTH": "doorbells of any width",
}

TINY_GUEST_BASE = 0x1000
TINY_GUEST = bytes.fromhex(
    "b8 1700"  #    mov ax, 23
    "83 c0 13"  #   add ax, 19
    "e7 80"  #      out 0x80, ax
    "f4"  #         hlt
)
TINY_GUEST_ANSWER = 42


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``pyvmm check``: ``level`` is ``ok``, ``note`` or ``fail``; ``fix`` is a command
    or what else to do."""

    name: str
    level: str
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """All findings, in the order in which one depends on another."""
    findings = list(_device())
    try:
        kvm = Kvm()
    except PyvmmError as error:
        if all(finding.level != "fail" for finding in findings):
            findings.append(Finding("kvm", "fail", error.message, error.hint))
        return [*findings, _kind(), _tun()]
    try:
        findings.append(Finding("API version", "ok", str(kvm.api_version())))
        findings += _capabilities(kvm)
        findings.append(_vcpus(kvm))
        findings.append(_kind())
        findings.append(_tiny_guest(kvm))
    finally:
        kvm.close()
    return [*findings, _tun()]


def runs_guests(findings: list[Finding]) -> bool:
    """Whether PyVMM works on this host at all."""
    return all(finding.level != "fail" for finding in findings)


def runs_linux(findings: list[Finding]) -> bool:
    """Whether it runs a stock Linux kernel, too: that takes hardware KVM."""
    return runs_guests(findings) and host_has_hardware_kvm()


def obstacle(findings: list[Finding], *, linux: bool) -> str:
    """Why guests (with ``linux``, stock Linux kernels) don't run on this host, and what to do, in
    one line; empty if they do."""
    reasons = [finding for finding in findings if finding.level == "fail"]
    if linux and not reasons and not runs_linux(findings):
        reasons = [_kind()]
    return "; ".join(f"{r.detail} ({r.fix})" if r.fix else r.detail for r in reasons)


def _device() -> Iterator[Finding]:
    try:
        status = os.stat(DEVICE)
    except OSError:
        fix = DEVICE_NODE_FIX if os.path.exists(KVM_LOADED) else _module_fix()
        yield Finding("device", "fail", f"{DEVICE} does not exist", fix)
        return
    owner, group = _user_name(status.st_uid), _group_name(status.st_gid)
    mode = stat.filemode(status.st_mode)
    detail = f"{DEVICE} {mode} {owner}:{group}"
    if not stat.S_ISCHR(status.st_mode):
        yield Finding("device", "fail", f"{detail}: not a device", node_fix())
    elif os.access(DEVICE, os.R_OK | os.W_OK):
        yield Finding("device", "ok", detail)
    else:
        yield Finding("device", "fail", f"{detail}: no permission", permission_fix())


def _module_fix() -> str:
    flags = cpu_flags()
    if "vmx" in flags:
        return "sudo modprobe kvm_intel"
    if "svm" in flags:
        return "sudo modprobe kvm_amd"
    return "switch on VT-x or AMD-V in the firmware, or nested virtualisation for this VM"


def _capabilities(kvm: Kvm) -> Iterator[Finding]:
    missing = [name for name in NEEDED_CAPABILITIES if not kvm.check_extension(name)]
    for name in missing:
        detail = f"{name} is missing: {NEEDED_CAPABILITIES[name]}"
        yield Finding("capabilities", "fail", detail, "a newer kernel on the host")
    if not missing:
        yield Finding("capabilities", "ok", "all that are needed")
    for name, purpose in USEFUL_CAPABILITIES.items():
        if not kvm.check_extension(name):
            yield Finding("capabilities", "note", f"{name} is missing: no {purpose}")


def _vcpus(kvm: Kvm) -> Finding:
    recommended = kvm.check_extension("KVM_CAP_NR_VCPUS")
    most = kvm.check_extension("KVM_CAP_MAX_VCPUS")
    return Finding("vCPUs", "ok", f"{recommended} recommended, {most} at most")


def _kind() -> Finding:
    if host_has_hardware_kvm():
        return Finding("kind", "ok", "hardware virtualisation: runs any guest, Linux included")
    if os.path.exists(SOFTWARE_KVM_MODULE):
        return Finding(
            "kind",
            "note",
            "software KVM (module kvm_pvm): small guests run, stock Linux does not",
            "for Linux use a machine with vmx or svm in /proc/cpuinfo",
        )
    return Finding("kind", "note", "no vmx or svm in /proc/cpuinfo", _module_fix())


def _tun() -> Finding:
    if not os.path.exists(tap.DEVICE):
        return Finding("network", "note", f"{tap.DEVICE} does not exist: no tap", tap.node_fix())
    if not os.access(tap.DEVICE, os.R_OK | os.W_OK):
        fix = f"sudo chmod 666 {tap.DEVICE}"
        return Finding("network", "note", f"{tap.DEVICE}: no permission", fix)
    return Finding("network", "ok", f"{tap.DEVICE} opens")


def _tiny_guest(kvm: Kvm) -> Finding:
    """Run a guest of a few instructions that adds two numbers and tells the sum."""
    start = time.perf_counter()
    try:
        answer = _run_tiny_guest(kvm)
    except HostError as error:
        return Finding("guest", "fail", f"a tiny guest did not run: {error.message}", error.hint)
    milliseconds = (time.perf_counter() - start) * 1000
    if answer != TINY_GUEST_ANSWER:
        return Finding("guest", "fail", f"a tiny guest said {answer}, not {TINY_GUEST_ANSWER}")
    return Finding("guest", "ok", f"a tiny guest ran and ended in {milliseconds:.0f} ms")


def _run_tiny_guest(kvm: Kvm) -> int | None:
    """What the tiny guest put out on the POST port; None if it exited in another way."""
    vm = kvm.create_vm()
    memory = GuestMemory(2 * PAGE_SIZE)
    vm.set_user_memory_region(0, 0, memory.regions[0].view)
    memory.write(TINY_GUEST_BASE, TINY_GUEST)
    vm.set_tss_addr(layout.KVM_TSS)
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    try:
        enter(vcpu, EntryState.real_mode(0, TINY_GUEST_BASE))
        if vcpu.run() != lib.KVM_EXIT_IO:
            return None
        return vcpu.recent_exits()[0].pio_data & 0xFFFF
    finally:
        vcpu.close()
        vm.close()
        memory.close()


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
