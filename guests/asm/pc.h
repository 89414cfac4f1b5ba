/*
 * The PC as a guest without an operating system sees it: ports, a few registers' bits, and the
 * instructions that reach them. Included by assembly and C, 32 and 64 bits.
 */
#ifndef PC_H
#define PC_H

#define PIC_MASTER 0x20
#define PIC_SLAVE 0xA0
#define PIC_EOI 0x20

#define PIT_CHANNEL_0 0x40
#define PIT_CHANNEL_2 0x42
#define PIT_CONTROL 0x43
#define PIT_HZ 1193182
#define PORT_B 0x61 /* bit 0: gate of channel 2, bit 5: its output */
#define PORT_B_GATE_2 0x01
#define PORT_B_OUT_2 0x20

#define I8042_DATA 0x60
#define I8042_COMMAND 0x64
#define I8042_OUTPUT_FULL 0x01
#define I8042_INPUT_FULL 0x02
#define I8042_FROM_AUX 0x20
#define I8042_PULSE_RESET 0xFE

#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71

#define POST_PORT 0x80
#define DEBUG_CONSOLE 0xE9
#define DEBUG_EXIT 0xF4

#define COM1 0x3F8
#define COM2 0x2F8
#define UART_DATA 0
#define UART_IER 1
#define UART_IER_RDA 0x01
#define UART_IER_THRE 0x02
#define UART_IIR 2
#define UART_FCR 2
#define UART_LCR 3
#define UART_MCR 4
#define UART_LSR 5
#define UART_LSR_DR 0x01
#define UART_LSR_OE 0x02
#define UART_LSR_THRE 0x20
#define UART_SCR 7

#define PVPANIC 0x505
#define PM1A_STATUS 0x600
#define PM1A_POWER_BUTTON 0x100
#define PM1A_CONTROL 0x604
#define PM1A_S5 (5 << 10 | 1 << 13) /* SLP_TYP as the DSDT has it, SLP_EN */
#define PM_TIMER 0x608
#define PM_TIMER_HZ 3579545

#define PCI_CONFIG_ADDRESS 0xCF8
#define PCI_CONFIG_DATA 0xCFC
#define RESET_CONTROL 0xCF9

#define LOCAL_APIC 0xFEE00000
#define IO_APIC 0xFEC00000

#ifndef __ASSEMBLER__

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("out %1, %0" : : "a"(value), "Nd"(port));
}

static inline void outw(uint16_t port, uint16_t value)
{
    __asm__ volatile("out %1, %0" : : "a"(value), "Nd"(port));
}

static inline void outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("out %1, %0" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("in %0, %1" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint16_t inw(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("in %0, %1" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("in %0, %1" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint8_t load8(uintptr_t address) { return *(volatile uint8_t *)address; }
static inline uint16_t load16(uintptr_t address) { return *(volatile uint16_t *)address; }
static inline uint32_t load32(uintptr_t address) { return *(volatile uint32_t *)address; }
static inline void store8(uintptr_t address, uint8_t value)
{
    *(volatile uint8_t *)address = value;
}
static inline void store16(uintptr_t address, uint16_t value)
{
    *(volatile uint16_t *)address = value;
}
static inline void store32(uintptr_t address, uint32_t value)
{
    *(volatile uint32_t *)address = value;
}

/* The PM timer has 24 bits or more: differences are good for 4.6 s. */
static inline uint32_t pm_ticks_since(uint32_t start) { return (inl(PM_TIMER) - start) & 0xFFFFFF; }

static inline void delay_microseconds(uint32_t microseconds)
{
    uint32_t start = inl(PM_TIMER);
    while (pm_ticks_since(start) < microseconds * 4) /* a little more than 3.58 */
        ;
}

static inline void interrupts_on(void) { __asm__ volatile("sti" : : : "memory"); }
static inline void interrupts_off(void) { __asm__ volatile("cli" : : : "memory"); }

/* Sleep until an interrupt has been handled. Called with interrupts off, so that the condition the
 * caller has looked at can't change before the CPU sleeps; returns with them off. */
static inline void wait_for_interrupt(void) { __asm__ volatile("sti; hlt; cli" : : : "memory"); }

_Noreturn static inline void power_off(void)
{
    outw(PM1A_CONTROL, PM1A_S5);
    for (;;)
        __asm__ volatile("cli; hlt");
}

#endif
#endif
