/*
 * Lesson 5: interrupts, by the PC's first interrupt controller and its first timer.
 *
 * An interrupt is a device's call: its wire goes to the interrupt controller (PIC), which tells the
 * CPU a number, the vector; the CPU looks that up in the interrupt descriptor table and goes there.
 * The table, and what is behind its entries, is in lesson.h and start.S: read those first.
 *
 * Read: Intel SDM volume 3, 6.3 (sources), 6.10 and 6.14 (the table in 64-bit mode); the datasheets
 * 8259A (PIC: "Programming the 8259A", ICW1 to ICW4 and OCW1, OCW2) and 8254 (timer: "Programming
 * the 8254", mode 2).
 *
 *     pyvmm run -k build/lessons/05_pic.elf
 */
#include "lesson.h"

#define PIC1 0x20 /* command; the port after it is for data */
#define PIC2 0xA0
#define ICW1_INIT 0x11 /* more words follow, four in all */
#define ICW4_8086 0x01
#define EOI 0x20

#define TIMER_DATA 0x40
#define TIMER_CONTROL 0x43
#define TIMER_HZ 1193182
#define MODE_2 0x34 /* channel 0, low byte then high, rate generator */

#define FIRST_VECTOR 0x20 /* 0 to 0x1F are the CPU's exceptions */
#define TIMER_IRQ 0

static volatile unsigned ticks;

void interrupt(struct frame *frame)
{
    if (frame->vector != FIRST_VECTOR + TIMER_IRQ)
        unexpected(frame);
    ticks++;
    out8(PIC1, EOI); /* until then the PIC holds back further ones */
}

/* The two PICs, the second of which is behind input 2 of the first. After reset they would send
 * IRQ 0 as vector 8, which to the CPU is a double fault. */
static void start_pics(void)
{
    out8(PIC1, ICW1_INIT);
    out8(PIC2, ICW1_INIT);
    out8(PIC1 + 1, FIRST_VECTOR); /* ICW2: the vector of its input 0 */
    out8(PIC2 + 1, FIRST_VECTOR + 8);
    out8(PIC1 + 1, 1 << 2); /* ICW3: where the other is */
    out8(PIC2 + 1, 2);
    out8(PIC1 + 1, ICW4_8086);
    out8(PIC2 + 1, ICW4_8086);
    out8(PIC1 + 1, ~(1 << TIMER_IRQ)); /* the mask: a 1 keeps an input quiet */
    out8(PIC2 + 1, 0xFF);
}

static void start_timer(unsigned hertz)
{
    unsigned divisor = TIMER_HZ / hertz;
    out8(TIMER_CONTROL, MODE_2);
    out8(TIMER_DATA, divisor & 0xFF);
    out8(TIMER_DATA, divisor >> 8);
}

void lesson(const uint8_t *zero_page)
{
    (void)zero_page;
    load_interrupt_table();
    start_pics();
    start_timer(50);
    print("50 ticks a second\n");
    for (unsigned tick = 1; tick <= 10; tick++) {
        while (ticks < tick)
            wait_for_interrupt();
        print("tick %d\n", tick);
    }
    out8(PIC1 + 1, 0xFF);
    print("no more ticks\n");
}
