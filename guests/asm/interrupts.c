#include "interrupts.h"

#include "console.h"

struct gate {
    uint16_t offset_0, selector;
    uint8_t ist, type;
    uint16_t offset_16;
#ifdef __x86_64__
    uint32_t offset_32, reserved;
#endif
};

static struct gate table[256];

void set_handler(unsigned vector, void *handler)
{
    uintptr_t address = (uintptr_t)handler;
    uint16_t cs;
    __asm__("mov %0, cs" : "=r"(cs));
    table[vector] = (struct gate){
        .offset_0 = address,
        .selector = cs,
        .type = 0x8E, /* present, interrupt gate */
        .offset_16 = address >> 16,
#ifdef __x86_64__
        .offset_32 = address >> 32,
#endif
    };
}

static void die(const char *name, struct interrupt_frame *frame, uintptr_t error)
{
    print("FAIL: exception %s at %X, error code %X\n", name, (uint64_t)frame->ip, (uint64_t)error);
    power_off();
}

#define EXCEPTION(name)                                                                            \
    INTERRUPT_HANDLER(on_##name)                                                                   \
    {                                                                                              \
        die(#name, frame, 0);                                                                      \
    }
#define EXCEPTION_WITH_ERROR_CODE(name)                                                            \
    EXCEPTION_HANDLER(on_##name)                                                                   \
    {                                                                                              \
        die(#name, frame, error);                                                                  \
    }

EXCEPTION(divide_error)
EXCEPTION(debug)
EXCEPTION(nmi)
EXCEPTION(breakpoint)
EXCEPTION(invalid_opcode)
EXCEPTION(no_device)
EXCEPTION_WITH_ERROR_CODE(double_fault)
EXCEPTION_WITH_ERROR_CODE(invalid_tss)
EXCEPTION_WITH_ERROR_CODE(no_segment)
EXCEPTION_WITH_ERROR_CODE(stack_fault)
EXCEPTION_WITH_ERROR_CODE(general_protection)
EXCEPTION_WITH_ERROR_CODE(page_fault)

void load_interrupt_table(void)
{
    struct __attribute__((packed)) {
        uint16_t limit;
        uintptr_t base;
    } pointer = { sizeof table - 1, (uintptr_t)table };
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

void interrupts_init(void)
{
    set_handler(0, on_divide_error);
    set_handler(1, on_debug);
    set_handler(2, on_nmi);
    set_handler(3, on_breakpoint);
    set_handler(6, on_invalid_opcode);
    set_handler(7, on_no_device);
    set_handler(8, on_double_fault);
    set_handler(10, on_invalid_tss);
    set_handler(11, on_no_segment);
    set_handler(12, on_stack_fault);
    set_handler(13, on_general_protection);
    set_handler(14, on_page_fault);
    load_interrupt_table();
}
