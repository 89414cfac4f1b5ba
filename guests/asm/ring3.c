/*
 * Ring 3 of long mode: ports by permission, faults into ring 0 and back, and interrupts.
 */
#include "console.h"
#include "interrupts.h"
#include "modes.h"

#define DIVIDE_ERROR 0
#define INVALID_OPCODE 6
#define GENERAL_PROTECTION 13
#define PAGE_FAULT 14

#define FAULT_PRESENT 1
#define FAULT_WRITE 2
#define FAULT_USER 4

#define NOT_MAPPED 0x100000000
#define NOBODYS_MMIO 0xD0000000
#define PIT_VECTOR 0x20

static volatile struct {
    unsigned vector;
    uint64_t error, address, cs;
} fault;
static volatile uint64_t resume;
static volatile unsigned ticks;

static void note(unsigned vector, struct interrupt_frame *frame, uint64_t error)
{
    fault.vector = vector;
    fault.error = error;
    fault.cs = frame->cs;
    frame->ip = resume;
}

INTERRUPT_HANDLER(on_divide_error)
{
    note(DIVIDE_ERROR, frame, 0);
}

INTERRUPT_HANDLER(on_invalid_opcode)
{
    note(INVALID_OPCODE, frame, 0);
}

EXCEPTION_HANDLER(on_general_protection)
{
    note(GENERAL_PROTECTION, frame, error);
}

EXCEPTION_HANDLER(on_page_fault)
{
    uint64_t address;
    __asm__ volatile("mov %0, cr2" : "=r"(address));
    fault.address = address;
    note(PAGE_FAULT, frame, error);
}

INTERRUPT_HANDLER(on_pit)
{
    ticks += frame->cs == USER_CODE;
    outb(PIC_MASTER, PIC_EOI);
}

void ring0_main(void);
void ring3_main(void);

void ring0_main(void)
{
    console_init();
    interrupts_init();
    set_handler(DIVIDE_ERROR, on_divide_error);
    set_handler(INVALID_OPCODE, on_invalid_opcode);
    set_handler(GENERAL_PROTECTION, on_general_protection);
    set_handler(PAGE_FAULT, on_page_fault);
    set_handler(PIT_VECTOR, on_pit);
    outb(PIC_MASTER, 0x11);
    outb(PIC_MASTER + 1, PIT_VECTOR);
    outb(PIC_MASTER + 1, 1 << 2);
    outb(PIC_MASTER + 1, 0x01);
    outb(PIC_MASTER + 1, 0xFF);
}

/* Execute something that faults, and go on behind it. */
#define FAULTING(instruction, ...)                                                                 \
    __asm__ volatile("lea rax, 1f[rip]; mov %0, rax; " instruction "; 1:"                          \
                     : "=m"(resume)                                                                \
                     : __VA_ARGS__                                                                 \
                     : "rax", "memory")

static void expect(const char *name, unsigned vector, uint64_t error)
{
    if (fault.vector == vector && fault.error == error && fault.cs == USER_CODE)
        print("ok: %s\n", name);
    else
        print("FAIL: %s: vector %u, error code %X, CS %X\n", name, fault.vector, fault.error,
              fault.cs);
    fault.vector = 0xFF;
}

static void test_faults(void)
{
    FAULTING("mov al, [rcx]", "c"(NOT_MAPPED));
    check_equal("CR2", fault.address, NOT_MAPPED);
    expect("page fault: load where nothing is mapped", PAGE_FAULT, FAULT_USER);
    FAULTING("mov [rcx], al", "c"(NOT_MAPPED));
    expect("page fault: store where nothing is mapped", PAGE_FAULT, FAULT_USER | FAULT_WRITE);
    FAULTING("mov al, [rcx]", "c"(SUPERVISOR_PAGE));
    expect("page fault: load from the supervisor's page", PAGE_FAULT, FAULT_USER | FAULT_PRESENT);
    FAULTING("mov [rcx], al", "c"(SUPERVISOR_PAGE));
    expect("page fault: store to the supervisor's page", PAGE_FAULT,
           FAULT_USER | FAULT_PRESENT | FAULT_WRITE);
    FAULTING("hlt", "c"(0));
    expect("general protection: hlt", GENERAL_PROTECTION, 0);
    FAULTING("mov rax, cr3", "c"(0));
    expect("general protection: CR3", GENERAL_PROTECTION, 0);
    FAULTING("mov ax, cx; mov ds, ax", "c"(0x7FF8));
    expect("general protection: no such segment", GENERAL_PROTECTION, 0x7FF8);
    FAULTING("ud2", "c"(0));
    expect("invalid opcode", INVALID_OPCODE, 0);
    FAULTING("xor eax, eax; div cl", "c"(0));
    expect("divide error", DIVIDE_ERROR, 0);
}

static void test_ports(void)
{
    io_permissions[POST_PORT / 8] |= 1 << POST_PORT % 8;
    FAULTING("out dx, al", "d"(POST_PORT));
    expect("general protection: a port without leave", GENERAL_PROTECTION, 0);
    io_permissions[POST_PORT / 8] = 0;
    FAULTING("out dx, al", "d"(POST_PORT));
    check_equal("a port with leave", fault.vector, 0xFF);
}

static void test_interrupt(void)
{
    outb(PIT_CONTROL, 0x34);
    outb(PIT_CHANNEL_0, (PIT_HZ / 100) & 0xFF);
    outb(PIT_CHANNEL_0, (PIT_HZ / 100) >> 8);
    outb(PIC_MASTER + 1, 0xFE);
    while (ticks < 3)
        __asm__ volatile("pause");
    outb(PIC_MASTER + 1, 0xFF);
    check("interrupts in ring 3", true);
}

/* KVM emulates what touches MMIO, and can't emulate popcnt. */
static void test_emulation(void)
{
    FAULTING("popcnt rax, [rcx]", "c"(NOBODYS_MMIO));
    expect("invalid opcode: more than KVM can emulate", INVALID_OPCODE, 0);
}

void ring3_main(void)
{
    uint16_t cs;
    __asm__("mov %0, cs" : "=r"(cs));
    check_equal("ring 3", cs & 3, 3);
    test_faults();
    test_ports();
    test_interrupt();
    test_emulation();
    outw(PM1A_CONTROL, PM1A_S5);
    for (;;)
        __asm__ volatile("pause");
}
