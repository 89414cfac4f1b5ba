"""Build script of :mod:`pyvmm.kvm._kvm`: the KVM ABI from <linux/kvm.h>, checked by the compiler.

The declarations below name what we use; ``...`` leaves layouts and values to the C compiler, so a
wrong field doesn't compile and a right one can't be at a wrong offset. Run by the package's build
(setup.py), not at run time.
"""

from cffi import FFI

REQUESTS = """
    KVM_GET_API_VERSION KVM_CREATE_VM KVM_GET_MSR_INDEX_LIST KVM_CHECK_EXTENSION
    KVM_GET_VCPU_MMAP_SIZE KVM_GET_SUPPORTED_CPUID
    KVM_CREATE_VCPU KVM_SET_USER_MEMORY_REGION KVM_SET_TSS_ADDR KVM_SET_IDENTITY_MAP_ADDR
    KVM_CREATE_IRQCHIP KVM_IRQ_LINE KVM_SET_GSI_ROUTING KVM_IRQFD KVM_IOEVENTFD KVM_SIGNAL_MSI
    KVM_ENABLE_CAP
    KVM_RUN KVM_GET_REGS KVM_SET_REGS KVM_GET_SREGS KVM_SET_SREGS KVM_GET_FPU KVM_SET_FPU
    KVM_GET_MSRS KVM_SET_MSRS KVM_SET_CPUID2 KVM_GET_CPUID2 KVM_GET_LAPIC KVM_SET_LAPIC
    KVM_GET_MP_STATE KVM_SET_MP_STATE KVM_GET_VCPU_EVENTS KVM_SET_VCPU_EVENTS
    KVM_GET_DEBUGREGS KVM_SET_DEBUGREGS KVM_GET_XSAVE2 KVM_GET_XSAVE KVM_SET_XSAVE
    KVM_GET_XCRS KVM_SET_XCRS KVM_SET_GUEST_DEBUG KVM_TRANSLATE KVM_NMI
""".split()

CONSTANTS = """
    KVM_API_VERSION
    KVM_CAP_IRQCHIP KVM_CAP_USER_MEMORY KVM_CAP_SET_TSS_ADDR KVM_CAP_EXT_CPUID KVM_CAP_MP_STATE
    KVM_CAP_NR_VCPUS KVM_CAP_MAX_VCPUS KVM_CAP_NR_MEMSLOTS KVM_CAP_IRQ_ROUTING KVM_CAP_IRQFD
    KVM_CAP_IOEVENTFD KVM_CAP_IOEVENTFD_ANY_LENGTH KVM_CAP_SIGNAL_MSI KVM_CAP_IMMEDIATE_EXIT
    KVM_CAP_SYNC_REGS KVM_CAP_XSAVE KVM_CAP_XSAVE2 KVM_CAP_XCRS KVM_CAP_DEBUGREGS
    KVM_CAP_VCPU_EVENTS KVM_CAP_SET_IDENTITY_MAP_ADDR KVM_CAP_TSC_DEADLINE_TIMER
    KVM_CAP_X2APIC_API KVM_CAP_EXIT_ON_EMULATION_FAILURE KVM_CAP_SET_GUEST_DEBUG
    KVM_CAP_INTERNAL_ERROR_DATA
    KVM_EXIT_UNKNOWN KVM_EXIT_EXCEPTION KVM_EXIT_IO KVM_EXIT_HYPERCALL KVM_EXIT_DEBUG KVM_EXIT_HLT
    KVM_EXIT_MMIO KVM_EXIT_IRQ_WINDOW_OPEN KVM_EXIT_SHUTDOWN KVM_EXIT_FAIL_ENTRY KVM_EXIT_INTR
    KVM_EXIT_SET_TPR KVM_EXIT_TPR_ACCESS KVM_EXIT_NMI KVM_EXIT_INTERNAL_ERROR
    KVM_EXIT_SYSTEM_EVENT KVM_EXIT_IOAPIC_EOI
    KVM_EXIT_IO_IN KVM_EXIT_IO_OUT
    KVM_INTERNAL_ERROR_EMULATION KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    KVM_SYNC_X86_REGS
    KVM_MP_STATE_RUNNABLE KVM_MP_STATE_UNINITIALIZED KVM_MP_STATE_INIT_RECEIVED
    KVM_MP_STATE_HALTED KVM_MP_STATE_SIPI_RECEIVED
    KVM_IRQ_ROUTING_IRQCHIP KVM_IRQ_ROUTING_MSI
    KVM_IRQCHIP_PIC_MASTER KVM_IRQCHIP_PIC_SLAVE KVM_IRQCHIP_IOAPIC
    KVM_IRQFD_FLAG_DEASSIGN KVM_IOEVENTFD_FLAG_PIO KVM_IOEVENTFD_FLAG_DEASSIGN
    KVM_IOEVENTFD_FLAG_DATAMATCH KVM_MEM_READONLY KVM_MEM_LOG_DIRTY_PAGES
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX KVM_CPUID_SIGNATURE KVM_CPUID_FEATURES
    KVM_GUESTDBG_ENABLE KVM_GUESTDBG_SINGLESTEP KVM_GUESTDBG_USE_HW_BP KVM_GUESTDBG_BLOCKIRQ
    KVM_CAP_SET_GUEST_DEBUG2
""".split()

STRUCTURES = """
    struct kvm_userspace_memory_region {
        uint32_t slot; uint32_t flags;
        uint64_t guest_phys_addr; uint64_t memory_size; uint64_t userspace_addr;
        ...;
    };
    struct kvm_regs {
        uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15;
        uint64_t rip, rflags;
        ...;
    };
    struct kvm_segment {
        uint64_t base; uint32_t limit; uint16_t selector;
        uint8_t type, present, dpl, db, s, l, g, avl, unusable;
        ...;
    };
    struct kvm_dtable { uint64_t base; uint16_t limit; ...; };
    struct kvm_sregs {
        struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
        struct kvm_dtable gdt, idt;
        uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
        unsigned long long interrupt_bitmap[4];
        ...;
    };
    struct kvm_fpu {
        uint8_t fpr[8][16]; uint16_t fcw, fsw; uint8_t ftwx; uint16_t last_opcode;
        uint64_t last_ip, last_dp; uint8_t xmm[16][16]; uint32_t mxcsr;
        ...;
    };
    struct kvm_exception_event {
        uint8_t injected, nr, has_error_code, pending; uint32_t error_code;
    };
    struct kvm_interrupt_event { uint8_t injected, nr, soft, shadow; };
    struct kvm_nmi_event { uint8_t injected, pending, masked, pad; };
    struct kvm_smi_event { uint8_t smm, pending, smm_inside_nmi, latched_init; };
    struct kvm_debugregs { unsigned long long db[4]; uint64_t dr6, dr7, flags; ...; };
    struct kvm_mp_state { uint32_t mp_state; ...; };
    struct kvm_xcr { uint32_t xcr; uint64_t value; ...; };
    struct kvm_xcrs { uint32_t nr_xcrs, flags; struct kvm_xcr xcrs[16]; ...; };
    struct kvm_msr_entry { uint32_t index; uint64_t data; ...; };
    struct kvm_msrs { uint32_t nmsrs; struct kvm_msr_entry entries[]; ...; };
    struct kvm_msr_list { uint32_t nmsrs; uint32_t indices[]; ...; };
    struct kvm_cpuid_entry2 { uint32_t function, index, flags, eax, ebx, ecx, edx; ...; };
    struct kvm_cpuid2 { uint32_t nent; struct kvm_cpuid_entry2 entries[]; ...; };
    struct kvm_irq_level { uint32_t irq; uint32_t level; ...; };
    struct kvm_irqfd { uint32_t fd, gsi, flags, resamplefd; ...; };
    struct kvm_ioeventfd {
        uint64_t datamatch, addr; uint32_t len; int32_t fd; uint32_t flags; ...;
    };
    struct kvm_msi { uint32_t address_lo, address_hi, data, flags; ...; };
    struct kvm_enable_cap { uint32_t cap, flags; unsigned long long args[4]; ...; };
    struct kvm_translation {
        uint64_t linear_address, physical_address; uint8_t valid, writeable, usermode; ...;
    };
    struct kvm_guest_debug_arch { unsigned long long debugreg[8]; ...; };
    struct kvm_guest_debug { uint32_t control; struct kvm_guest_debug_arch arch; ...; };
"""

# What cffi can't describe field by field (anonymous unions, flexible arrays inside them) is
# reached through these few lines of C.
C_DECLARATIONS = """
    #define EXIT_RING_SLOTS ...
    #define RUN_EXIT_REASON ...
    #define RUN_IMMEDIATE_EXIT ...
    #define RUN_DETAIL ...
    #define RUN_DETAIL_SIZE ...
    #define RUN_VALID_REGS ...
    #define PIO_DATA_PAGE ...

    struct pyvmm_exit { uint32_t reason; uint64_t rip; uint8_t detail[32]; uint64_t pio_data; };
    struct pyvmm_vcpu { int fd; void *run; uint64_t exits; struct pyvmm_exit ring[...]; };
    struct pyvmm_route {
        uint32_t gsi; uint32_t is_msi; uint32_t irqchip; uint32_t pin; uint64_t address;
        uint32_t data;
    };
    struct pyvmm_events {
        struct kvm_exception_event exception; struct kvm_interrupt_event interrupt;
        struct kvm_nmi_event nmi; struct kvm_smi_event smi;
        uint32_t sipi_vector; uint32_t flags;
        uint8_t triple_fault_pending; uint8_t exception_has_payload; uint64_t exception_payload;
    };

    int pyvmm_ioctl(int fd, unsigned long request, void *argument);
    int pyvmm_ioctl_value(int fd, unsigned long request, unsigned long argument);
    int pyvmm_run(struct pyvmm_vcpu *vcpu);
    int pyvmm_set_routes(int vm_fd, struct pyvmm_route *routes, uint32_t count);
    int pyvmm_get_events(int vcpu_fd, struct pyvmm_events *events);
    int pyvmm_set_events(int vcpu_fd, struct pyvmm_events *events);
    int pyvmm_kick_signal(void);
    int pyvmm_install_kick_handler(void);
"""

C_SOURCE = r"""
    #include <errno.h>
    #include <linux/kvm.h>
    #include <linux/kvm_para.h>
    #include <signal.h>
    #include <stddef.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/ioctl.h>

    /* Named twins of the anonymous structures in struct kvm_vcpu_events. */
    struct kvm_exception_event {
        uint8_t injected, nr, has_error_code, pending; uint32_t error_code;
    };
    struct kvm_interrupt_event { uint8_t injected, nr, soft, shadow; };
    struct kvm_nmi_event { uint8_t injected, pending, masked, pad; };
    struct kvm_smi_event { uint8_t smm, pending, smm_inside_nmi, latched_init; };

    struct pyvmm_events {
        struct kvm_exception_event exception; struct kvm_interrupt_event interrupt;
        struct kvm_nmi_event nmi; struct kvm_smi_event smi;
        uint32_t sipi_vector; uint32_t flags;
        uint8_t triple_fault_pending; uint8_t exception_has_payload; uint64_t exception_payload;
    };

    #define EXIT_RING_SLOTS 64
    #define RUN_EXIT_REASON offsetof(struct kvm_run, exit_reason)
    #define RUN_IMMEDIATE_EXIT offsetof(struct kvm_run, immediate_exit)
    #define RUN_DETAIL offsetof(struct kvm_run, io)
    #define RUN_DETAIL_SIZE sizeof(((struct kvm_run *)0)->padding)
    #define RUN_VALID_REGS offsetof(struct kvm_run, kvm_valid_regs)
    /* arch/x86 puts the data of a PIO exit at KVM_PIO_PAGE_OFFSET pages behind kvm_run. */
    #define PIO_DATA_PAGE 4096

    struct pyvmm_exit { uint32_t reason; uint64_t rip; uint8_t detail[32]; uint64_t pio_data; };
    struct pyvmm_vcpu {
        int fd; void *run; uint64_t exits; struct pyvmm_exit ring[EXIT_RING_SLOTS];
    };
    struct pyvmm_route {
        uint32_t gsi; uint32_t is_msi; uint32_t irqchip; uint32_t pin; uint64_t address;
        uint32_t data;
    };

    static int result_of(int result) { return result < 0 ? -errno : result; }

    static int pyvmm_ioctl(int fd, unsigned long request, void *argument)
    {
        return result_of(ioctl(fd, request, argument));
    }

    static int pyvmm_ioctl_value(int fd, unsigned long request, unsigned long argument)
    {
        return result_of(ioctl(fd, request, argument));
    }

    /* Run the vCPU until it exits; the exit reason, or -errno. The exit is also noted in a ring,
     * for the report on a crash: 64 bytes copied here cost a few nanoseconds, in Python they
     * would cost more than all the rest of an exit. */
    static int pyvmm_run(struct pyvmm_vcpu *vcpu)
    {
        if (ioctl(vcpu->fd, KVM_RUN, 0) < 0)
            return -errno;
        struct kvm_run *run = vcpu->run;
        struct pyvmm_exit *slot = &vcpu->ring[vcpu->exits++ % EXIT_RING_SLOTS];
        slot->reason = run->exit_reason;
        slot->rip = run->s.regs.regs.rip;
        memcpy(slot->detail, &run->io, sizeof slot->detail);
        memcpy(&slot->pio_data, (char *)run + PIO_DATA_PAGE, sizeof slot->pio_data);
        return run->exit_reason;
    }

    static int pyvmm_set_routes(int vm_fd, struct pyvmm_route *routes, uint32_t count)
    {
        struct kvm_irq_routing *table =
            calloc(1, sizeof *table + count * sizeof(struct kvm_irq_routing_entry));
        if (!table)
            return -ENOMEM;
        table->nr = count;
        for (uint32_t i = 0; i < count; i++) {
            struct kvm_irq_routing_entry *entry = &table->entries[i];
            entry->gsi = routes[i].gsi;
            if (routes[i].is_msi) {
                entry->type = KVM_IRQ_ROUTING_MSI;
                entry->u.msi.address_lo = (uint32_t)routes[i].address;
                entry->u.msi.address_hi = (uint32_t)(routes[i].address >> 32);
                entry->u.msi.data = routes[i].data;
            } else {
                entry->type = KVM_IRQ_ROUTING_IRQCHIP;
                entry->u.irqchip.irqchip = routes[i].irqchip;
                entry->u.irqchip.pin = routes[i].pin;
            }
        }
        int result = result_of(ioctl(vm_fd, KVM_SET_GSI_ROUTING, table));
        free(table);
        return result;
    }

    static int pyvmm_get_events(int vcpu_fd, struct pyvmm_events *out)
    {
        struct kvm_vcpu_events events = { 0 };
        int result = result_of(ioctl(vcpu_fd, KVM_GET_VCPU_EVENTS, &events));
        memcpy(&out->exception, &events.exception, sizeof events.exception);
        memcpy(&out->interrupt, &events.interrupt, sizeof events.interrupt);
        memcpy(&out->nmi, &events.nmi, sizeof events.nmi);
        memcpy(&out->smi, &events.smi, sizeof events.smi);
        out->sipi_vector = events.sipi_vector;
        out->flags = events.flags;
        out->triple_fault_pending = events.triple_fault.pending;
        out->exception_has_payload = events.exception_has_payload;
        out->exception_payload = events.exception_payload;
        return result;
    }

    static int pyvmm_set_events(int vcpu_fd, struct pyvmm_events *in)
    {
        struct kvm_vcpu_events events = { 0 };
        memcpy(&events.exception, &in->exception, sizeof events.exception);
        memcpy(&events.interrupt, &in->interrupt, sizeof events.interrupt);
        memcpy(&events.nmi, &in->nmi, sizeof events.nmi);
        memcpy(&events.smi, &in->smi, sizeof events.smi);
        events.sipi_vector = in->sipi_vector;
        events.flags = in->flags;
        events.triple_fault.pending = in->triple_fault_pending;
        events.exception_has_payload = in->exception_has_payload;
        events.exception_payload = in->exception_payload;
        return result_of(ioctl(vcpu_fd, KVM_SET_VCPU_EVENTS, &events));
    }

    _Static_assert(sizeof(((struct kvm_vcpu_events *)0)->exception)
                   == sizeof(struct kvm_exception_event), "kvm_vcpu_events.exception");
    _Static_assert(sizeof(((struct kvm_vcpu_events *)0)->interrupt)
                   == sizeof(struct kvm_interrupt_event), "kvm_vcpu_events.interrupt");
    _Static_assert(sizeof(((struct kvm_vcpu_events *)0)->nmi)
                   == sizeof(struct kvm_nmi_event), "kvm_vcpu_events.nmi");
    _Static_assert(sizeof(((struct kvm_vcpu_events *)0)->smi)
                   == sizeof(struct kvm_smi_event), "kvm_vcpu_events.smi");

    /* A real-time signal: nobody else's default. */
    static int pyvmm_kick_signal(void) { return SIGRTMIN + 4; }

    static void ignore_kick(int signal) { (void)signal; }

    /* The kick only has to interrupt KVM_RUN. Without SA_RESTART the ioctl returns EINTR; a C
     * handler that does nothing spares the interpreter a trip to its main thread. */
    static int pyvmm_install_kick_handler(void)
    {
        struct sigaction action = { .sa_handler = ignore_kick };
        sigemptyset(&action.sa_mask);
        return result_of(sigaction(pyvmm_kick_signal(), &action, 0));
    }
"""

ffibuilder = FFI()
ffibuilder.cdef(
    "".join(f"#define {name} ...\n" for name in (*REQUESTS, *CONSTANTS))
    + STRUCTURES
    + C_DECLARATIONS
)
ffibuilder.set_source("pyvmm.kvm._kvm", C_SOURCE)
