"""PyVMM: a small PC on KVM, with everything but the CPU written in Python."""
