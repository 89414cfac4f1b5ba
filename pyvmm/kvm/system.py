"""/dev/kvm itself: what the host's KVM can do, and new VMs."""

from __future__ import annotations

import errno
import os
import stat

from pyvmm.errors import HostError, KvmError
from pyvmm.kvm._kvm import ffi, lib
from pyvmm.kvm.cpuid import CpuidEntry, entries_from, new_table
from pyvmm.kvm.ioctl import ioctl, ioctl_value
from pyvmm.kvm.vm import Vm

DEVICE = "/dev/kvm"

_EXPECTED_MSRS = 1024
"""Room that has always been enough; if once it isn't, KVM says how much is."""


def permission_fix(device: str = DEVICE) -> str:
    """The command that gives this user access to ``device``."""
    import grp

    status = os.stat(device)
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    group_may = status.st_mode & stat.S_IRGRP and status.st_mode & stat.S_IWGRP
    if group_may and group != "root":
        return f"sudo usermod -aG {group} $USER, then log in again"
    return (
        f"sudo groupadd --force --system kvm && sudo chgrp kvm {device} && sudo chmod 660 {device}"
        " && sudo usermod -aG kvm $USER, then log in again"
    )


def node_fix(device: str = DEVICE) -> str:
    """The command that puts KVM's device where something else is: a directory that a container's
    mount has made, a device without a driver."""
    return (
        f"load the module kvm_intel or kvm_amd; sudo rm -r {device}; sudo mknod {device} c 10 232"
    )


def cpu_flags() -> frozenset[str]:
    """The flags of this host's CPUs, as /proc/cpuinfo has them; empty if it can't be read."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpuinfo:
            for line in cpuinfo:
                if line.startswith("flags"):
                    return frozenset(line.split())
    except OSError:
        pass
    return frozenset()


def host_has_hardware_kvm() -> bool:
    """Whether this host's CPU offers vmx or svm; without them, a /dev/kvm is a software one."""
    flags = cpu_flags()
    if flags:
        return "vmx" in flags or "svm" in flags
    return os.path.exists("/sys/module/kvm_intel") or os.path.exists("/sys/module/kvm_amd")


class Kvm:
    """An open /dev/kvm.

    Raises :class:`~pyvmm.errors.HostError` if it is missing, not permitted, or not KVM.
    """

    def __init__(self, device: str = DEVICE) -> None:
        try:
            self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise HostError(
                f"{device} does not exist: this host has no KVM",
                "load the module with 'modprobe kvm_intel' or 'modprobe kvm_amd'; in a virtual"
                " machine, nested virtualisation must be on; 'pyvmm check' tells more",
            ) from error
        except PermissionError as error:
            raise HostError(f"no permission to open {device}", permission_fix(device)) from error
        except OSError as error:
            raise HostError(f"can't open {device}: {error.strerror}", node_fix(device)) from error
        try:
            version = self.api_version()
        except HostError as error:
            self.close()
            raise HostError(f"{device} is not KVM: {error.message}", node_fix(device)) from error
        if version != lib.KVM_API_VERSION:
            self.close()
            raise HostError(f"KVM's API version is {version}, not {lib.KVM_API_VERSION}")

    def close(self) -> None:
        os.close(self.fd)

    def api_version(self) -> int:
        """Always 12 since Linux 2.6.22 (api.rst, section 4.1)."""
        return ioctl_value(self.fd, "KVM_GET_API_VERSION")

    def check_extension(self, capability: str) -> int:
        """0 if ``capability`` (such as ``"KVM_CAP_IRQFD"``) is missing; else 1 or its number."""
        return ioctl_value(self.fd, "KVM_CHECK_EXTENSION", getattr(lib, capability))

    def create_vm(self) -> Vm:
        """A new, empty VM."""
        run_size = ioctl_value(self.fd, "KVM_GET_VCPU_MMAP_SIZE")
        return Vm(ioctl_value(self.fd, "KVM_CREATE_VM"), run_size)

    def supported_cpuid(self) -> list[CpuidEntry]:
        """What CPUID can be on this host and KVM (api.rst, section 4.46)."""
        table = new_table(256)
        ioctl(self.fd, "KVM_GET_SUPPORTED_CPUID", table)
        return entries_from(table)

    def msr_indices(self) -> list[int]:
        """The MSRs that are the guest's state (api.rst, section 4.3)."""
        table = ffi.new("struct kvm_msr_list *", {"indices": _EXPECTED_MSRS})
        table.nmsrs = _EXPECTED_MSRS
        try:
            ioctl(self.fd, "KVM_GET_MSR_INDEX_LIST", table)
        except KvmError as error:
            if error.errno != errno.E2BIG:
                raise
            table = ffi.new("struct kvm_msr_list *", {"indices": table.nmsrs})
            table.nmsrs = len(table.indices)
            ioctl(self.fd, "KVM_GET_MSR_INDEX_LIST", table)
        return list(table.indices[0 : table.nmsrs])
