"""The kernel's virtual machine monitor: /dev/kvm, its VMs and its vCPUs.

The only package that knows an ioctl. Defined by the kernel's Documentation/virt/kvm/api.rst;
method names are the ioctls' without ``KVM_``. Every failed ioctl raises
:class:`~pyvmm.errors.KvmError`, which names it.
"""

from pyvmm.kvm.cpuid import CpuidEntry
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm

__all__ = ["CpuidEntry", "Kvm", "Vcpu", "Vm"]
