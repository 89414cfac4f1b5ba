/*
 * The least that a VMM can do: run the guest, look at why it came back, run it again. It prints what
 * an exit costs, a line a series: its number, and nanoseconds. See exits.py for the same in Python.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MEMORY_SIZE (16 << 20)
#define ENTRY 0x7C00
#define TSS 0xFFFBD000
#define MARK_PORT 0x5E0
#define LAST_MARK 0xFF
#define TIMES 20000

static int check(const char *what, int result)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static double nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e9 + now.tv_nsec;
}

static void *guest_memory(const char *path)
{
    char *memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int file = check(path, open(path, O_RDONLY));
    check(path, read(file, memory + ENTRY, 0x10000 - ENTRY));
    close(file);
    return memory;
}

static void set_cpuid(int kvm, int vcpu)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + 256 * sizeof *cpuid->entries);
    cpuid->nent = 256;
    check("KVM_GET_SUPPORTED_CPUID", ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid));
    check("KVM_SET_CPUID2", ioctl(vcpu, KVM_SET_CPUID2, cpuid));
    free(cpuid);
}

static void set_entry(int vcpu)
{
    struct kvm_sregs sregs;
    struct kvm_regs regs = { .rip = ENTRY, .rsp = ENTRY, .rflags = 2 };
    check("KVM_GET_SREGS", ioctl(vcpu, KVM_GET_SREGS, &sregs));
    sregs.cs.base = sregs.cs.selector = 0;
    check("KVM_SET_SREGS", ioctl(vcpu, KVM_SET_SREGS, &sregs));
    check("KVM_SET_REGS", ioctl(vcpu, KVM_SET_REGS, &regs));
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    int kvm = check("/dev/kvm", open("/dev/kvm", O_RDWR));
    int vm = check("KVM_CREATE_VM", ioctl(kvm, KVM_CREATE_VM, 0));
    struct kvm_userspace_memory_region region = {
        .memory_size = MEMORY_SIZE,
        .userspace_addr = (uintptr_t)guest_memory(argv[1]),
    };
    check("KVM_SET_USER_MEMORY_REGION", ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
    check("KVM_SET_TSS_ADDR", ioctl(vm, KVM_SET_TSS_ADDR, TSS));
    check("KVM_CREATE_IRQCHIP", ioctl(vm, KVM_CREATE_IRQCHIP, 0));
    int vcpu = check("KVM_CREATE_VCPU", ioctl(vm, KVM_CREATE_VCPU, 0));
    int run_size = check("KVM_GET_VCPU_MMAP_SIZE", ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
    struct kvm_run *run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    set_cpuid(kvm, vcpu);
    set_entry(vcpu);

    volatile uint64_t device = 0;
    int series = LAST_MARK;
    double start = 0;
    for (;;) {
        check("KVM_RUN", ioctl(vcpu, KVM_RUN, 0));
        uint8_t *data = (uint8_t *)run + run->io.data_offset;
        switch (run->exit_reason) {
        case KVM_EXIT_IO:
            if (run->io.port == MARK_PORT) {
                double now = nanoseconds();
                if (series != LAST_MARK)
                    printf("%d %.1f\n", series, (now - start) / TIMES);
                series = *data;
                if (series == LAST_MARK)
                    return 0;
                start = now;
            } else if (run->io.direction == KVM_EXIT_IO_OUT) {
                device = *data;
            } else {
                *data = device;
            }
            break;
        case KVM_EXIT_MMIO:
            if (run->mmio.is_write)
                device = *(uint32_t *)run->mmio.data;
            else
                *(uint32_t *)run->mmio.data = device;
            break;
        default:
            fprintf(stderr, "exit reason %u\n", run->exit_reason);
            return 1;
        }
    }
}
