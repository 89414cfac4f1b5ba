"""A guest under the magnifying glass, one instruction or one exit at a time: ``pyvmm run --step``.

* :mod:`~pyvmm.step.stepper` moves a paused machine's vCPUs and says what happened, which is a
  :mod:`~pyvmm.step.stop`: registers before and after, the devices that were accessed
  (:mod:`~pyvmm.step.accesses`), memory that was written. No terminal in it;
* :mod:`~pyvmm.step.cpu_state` is a vCPU's state at one moment, with the mode and flags in words;
* :mod:`~pyvmm.step.disassembly` says what an instruction is, and which memory it writes;
* :mod:`~pyvmm.step.breakpoints`, :mod:`~pyvmm.step.trap_flag` and :mod:`~pyvmm.step.ring3` make
  good what KVM's own debugging lacks, here or there;
* :mod:`~pyvmm.step.command` understands what is typed, :mod:`~pyvmm.step.screen` writes what is
  shown, and :mod:`~pyvmm.step.prompt` is the conversation.

Documents: the kernel's Documentation/virt/kvm/api.rst, "KVM_SET_GUEST_DEBUG"; Intel SDM volume 3,
chapter "Debug, Branch Profile, TSC, and Intel Resource Director Technology Features" (DR0 to DR7).

Nothing of this package is imported by a run without ``--step``.
"""
