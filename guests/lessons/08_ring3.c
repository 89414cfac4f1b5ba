/*
 * Lesson 8: ring 3 and back.
 *
 * A user's program runs in ring 3, where privileged instructions and pages without the bit U fault.
 * The only way back is an interrupt or exception: the CPU then loads CS from the interrupt table
 * and the stack from the task state segment, both of which ring 3 can't change. Down goes IRETQ,
 * which pops an RIP, CS, RFLAGS, RSP and SS that we have made up.
 *
 * A real system's calls are `syscall` or `int 0x80`. Where KVM is a software one, neither gets from
 * ring 3 to ring 0, but faults do; so here UD2, an instruction that is undefined on purpose, is the
 * system call. RAX says which one, RDI has its argument.
 *
 * Read: Intel SDM volume 3, 5.5 (privilege levels), 5.11 (page-level protection), 6.14.2 (the stack
 * of a handler), 8.7 (the TSS in 64-bit mode), 8.2.3 (its descriptor), 3.4.5 (descriptors).
 *
 *     pyvmm run -k build/lessons/08_ring3.elf
 */
#include "lesson.h"

#define USER 0x400000 /* the Makefile puts the section .user here: 2 MiB for ring 3 */
#define USER_END 0x600000

#define KERNEL_CODE 0x10 /* as in the GDT that we were entered with */
#define KERNEL_DATA 0x18
#define USER_DATA (0x20 | 3)
#define USER_CODE (0x28 | 3)
#define TASK 0x30

#define UNDEFINED_INSTRUCTION 6
#define GENERAL_PROTECTION 13
#define PAGE_FAULT 14

enum { CALL_EXIT, CALL_PRINT };

/* The program, in assembly so that nothing of it lands elsewhere. RBX is where it wants to go on
 * after a fault. */
__asm__(".pushsection .user, \"ax\"\n"
        "user:   mov     eax, 1\n"                 /* CALL_PRINT */
        "        lea     rdi, hello[rip]\n"
        "        ud2\n"
        "        lea     rbx, 1f[rip]\n"
        "        hlt\n"                            /* not in ring 3 */
        "1:      lea     rbx, 2f[rip]\n"
        "        mov     rax, [0x100000]\n"        /* nor the kernel's memory */
        "2:      mov     eax, 1\n"
        "        mov     edi, 0x100000\n"          /* nor by asking the kernel to read it */
        "        ud2\n"
        "        mov     eax, 0\n"                 /* CALL_EXIT */
        "        ud2\n"
        "hello:  .asciz  \"hello from ring 3\\n\"\n"
        ".popsection\n");
extern const char user[];

/* enter_ring_3(rip, rsp) comes back when something goes to back_in_ring_0 with kernel_rsp. */
__asm__("enter_ring_3:\n"
        "        push    rbx; push rbp; push r12; push r13; push r14; push r15\n"
        "        mov     kernel_rsp, rsp\n"
        "        push    0x23\n"                   /* USER_DATA: SS */
        "        push    rsi\n"
        "        push    0x202\n"                  /* RFLAGS: interrupts on */
        "        push    0x2B\n"                   /* USER_CODE: CS */
        "        push    rdi\n"
        "        iretq\n"
        "back_in_ring_0:\n"
        "        pop     r15; pop r14; pop r13; pop r12; pop rbp; pop rbx\n"
        "        ret\n");
extern void enter_ring_3(uintptr_t rip, uintptr_t rsp);
extern const char back_in_ring_0[];
uint64_t kernel_rsp;

static void system_call(struct frame *frame)
{
    frame->rip += 2; /* behind UD2: a fault's RIP is at the instruction */
    if (frame->rax == CALL_PRINT) {
        if (USER <= frame->rdi && frame->rdi < USER_END)
            print("%s", (const char *)frame->rdi);
        else
            print("ring 0: %p is not yours to print\n", frame->rdi);
    } else if (frame->rax == CALL_EXIT) {
        frame->rip = (uintptr_t)back_in_ring_0;
        frame->cs = KERNEL_CODE;
        frame->rflags = 0x2; /* interrupts off */
        frame->rsp = kernel_rsp;
        frame->ss = KERNEL_DATA;
    }
}

void interrupt(struct frame *frame)
{
    if ((frame->cs & 3) != 3)
        unexpected(frame); /* our own fault */
    switch (frame->vector) {
    case UNDEFINED_INSTRUCTION:
        system_call(frame);
        break;
    case GENERAL_PROTECTION:
        print("ring 0: general protection fault at %p\n", frame->rip);
        frame->rip = frame->rbx;
        break;
    case PAGE_FAULT:
        print("ring 0: page fault at %p, error code %p\n", frame->rip, frame->error);
        frame->rip = frame->rbx;
        break;
    default:
        unexpected(frame);
    }
}

static struct __attribute__((packed)) {
    uint32_t reserved;
    uint64_t rsp[3]; /* the stacks for rings 0 to 2 */
    uint64_t reserved_28, ist[7], reserved_92;
    uint16_t reserved_100, io_map; /* at or behind the limit: no ports for ring 3 */
} task = { .io_map = sizeof task };

static _Alignas(16) uint8_t interrupt_stack[4096];

static void load_segments(void)
{
    static uint64_t gdt[8] = {
        0, 0,
        0x00AF9B000000FFFF, /* KERNEL_CODE */
        0x00CF93000000FFFF, /* KERNEL_DATA */
        0x00CFF3000000FFFF, /* USER_DATA: privilege level 3 */
        0x00AFFB000000FFFF, /* USER_CODE */
    };
    uint64_t base = (uintptr_t)&task;
    gdt[TASK / 8] = (sizeof task - 1) | (base & 0xFFFFFF) << 16 | 0x89ULL << 40 |
                    (base >> 24 & 0xFF) << 56;
    gdt[TASK / 8 + 1] = base >> 32; /* a TSS's descriptor has 16 bytes */
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } pointer = { sizeof gdt - 1, (uintptr_t)gdt };
    task.rsp[0] = (uintptr_t)interrupt_stack + sizeof interrupt_stack;
    __asm__ volatile("lgdt %0" : : "m"(pointer), "m"(gdt));
    __asm__ volatile("ltr %0" : : "r"((uint16_t)TASK));
}

/* Set the bit U for those 2 MiB: in the entries of all levels that lead there. */
static void give_to_user(uint64_t address)
{
    uint64_t cr3;
    __asm__ volatile("mov %0, cr3" : "=r"(cr3));
    uint64_t table = cr3;
    for (unsigned shift = 39; shift >= 21; shift -= 9) {
        volatile uint64_t *entries = (volatile uint64_t *)(table & 0x000FFFFFFFFFF000);
        table = entries[address >> shift & 511] |= 0x4;
    }
    __asm__ volatile("mov cr3, %0" : : "r"(cr3) : "memory"); /* forget old translations */
}

void lesson(const uint8_t *zero_page)
{
    (void)zero_page;
    load_interrupt_table();
    load_segments();
    give_to_user(USER);
    enter_ring_3((uintptr_t)user, USER_END);
    print("ring 0 again\n");
}
