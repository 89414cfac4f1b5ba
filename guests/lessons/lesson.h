/* What the lessons in C share: ports, text on COM1, and the interrupt descriptor table. */
#ifndef LESSON_H
#define LESSON_H

#include <stdbool.h>
#include <stdint.h>

/* A lesson; start.S calls it, and powers off when it returns. */
void lesson(const uint8_t *zero_page);

/* Ports, and the registers of devices in memory. */

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("out %1, %0" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("out %1, %0" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("in %0, %1" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("in %0, %1" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

#define REG8(address) (*(volatile uint8_t *)(uintptr_t)(address))
#define REG16(address) (*(volatile uint16_t *)(uintptr_t)(address))
#define REG32(address) (*(volatile uint32_t *)(uintptr_t)(address))

/* The compiler keeps the order of what is before and behind it; the CPU does so by itself, but for
 * stores that later loads overtake (Intel SDM volume 3, 9.2). */
static inline void compiler_barrier(void) { __asm__ volatile("" : : : "memory"); }

/* Text, on the first serial port (16550). */

#define COM1 0x3F8
#define LINE_STATUS (COM1 + 5)
#define THR_EMPTY 0x20

static inline void put_char(char character)
{
    while (!(in8(LINE_STATUS) & THR_EMPTY))
        ;
    out8(COM1, character);
}

/* Like printf, but knows only %s, %c, %d (an unsigned int, decimal), %x (an unsigned int) and %p (a
 * uint64_t), both hexadecimal. */
static inline void print(const char *format, ...)
{
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    for (; *format; format++) {
        if (*format != '%') {
            put_char(*format);
            continue;
        }
        char kind = *++format;
        if (kind == 's') {
            for (const char *text = __builtin_va_arg(arguments, const char *); *text; text++)
                put_char(*text);
        } else if (kind == 'c') {
            put_char(__builtin_va_arg(arguments, int));
        } else {
            uint64_t number = kind == 'p' ? __builtin_va_arg(arguments, uint64_t)
                                          : __builtin_va_arg(arguments, unsigned);
            unsigned base = kind == 'd' ? 10 : 16, length = 0;
            char digits[20];
            do
                digits[length++] = "0123456789abcdef"[number % base];
            while (number /= base);
            while (length)
                put_char(digits[--length]);
        }
    }
    __builtin_va_end(arguments);
}

/* Interrupts and exceptions: see start.S. Lesson 5 is the first that has any. */

struct frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    uint64_t vector, error;
    uint64_t rip, cs, rflags, rsp, ss; /* where it goes on */
};

/* The lesson's own: called for each. */
void interrupt(struct frame *frame);

/* An exception that a lesson doesn't expect; say where it was, and power off. */
static inline void unexpected(const struct frame *frame)
{
    print("exception %d, error code %p, at %p\n", (unsigned)frame->vector, frame->error,
          frame->rip);
    __asm__ volatile("out %1, %0" : : "a"((uint16_t)(5 << 10 | 1 << 13)), "Nd"((uint16_t)0x604));
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* Intel SDM volume 3, 6.14.1: an interrupt gate of 64-bit mode. */
struct gate {
    uint16_t offset_0;
    uint16_t selector;
    uint8_t ist;
    uint8_t type; /* 0x8E: present, and the handler begins with interrupts off */
    uint16_t offset_16;
    uint32_t offset_32;
    uint32_t reserved;
};

extern const char stubs[]; /* 256 of 16 bytes each */

/* Make a table whose 256 entries lead to interrupt(), and load it. */
static inline void load_interrupt_table(void)
{
    static struct gate table[256];
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } pointer = { sizeof table - 1, (uintptr_t)table };
    uint16_t cs;
    __asm__("mov %0, cs" : "=r"(cs));
    for (unsigned vector = 0; vector < 256; vector++) {
        uintptr_t stub = (uintptr_t)stubs + 16 * vector;
        table[vector] = (struct gate){ stub, cs, 0, 0x8E, stub >> 16, stub >> 32, 0 };
    }
    __asm__ volatile("lidt %0" : : "m"(pointer), "m"(table));
}

static inline void enable_interrupts(void) { __asm__ volatile("sti" : : : "memory"); }
static inline void disable_interrupts(void) { __asm__ volatile("cli" : : : "memory"); }

/* Sleep until an interrupt has been handled. Called with interrupts off, and returns so; STI takes
 * effect only behind the HLT, so that none can slip in between and be missed. */
static inline void wait_for_interrupt(void) { __asm__ volatile("sti; hlt; cli" : : : "memory"); }

#endif
