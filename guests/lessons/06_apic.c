/*
 * Lesson 6: the local APIC's timer.
 *
 * Every CPU has an interrupt controller of its own, the local APIC, with a timer in it. Its
 * registers are memory, at 0xFEE00000. How fast the timer counts is not laid down anywhere, so we
 * measure it against a clock whose rate is: ACPI's power management timer.
 *
 * Read: Intel SDM volume 3, 11.4 (the local APIC and its registers; table 11-1 has their
 * addresses), 11.5.1 (the local vector table), 11.5.4 (the timer), 11.8.5 (end of interrupt), 11.9
 * (spurious interrupts); ACPI specification, 4.8.3.3 (PM timer).
 *
 *     pyvmm run -k build/lessons/06_apic.elf
 */
#include "lesson.h"

#define LOCAL_APIC 0xFEE00000
#define APIC(offset) REG32(LOCAL_APIC + (offset))
#define ID 0x020
#define END_OF_INTERRUPT 0x0B0
#define SPURIOUS_VECTOR 0x0F0
#define SOFTWARE_ENABLE 0x100
#define LVT_TIMER 0x320
#define MASKED 0x10000
#define PERIODIC 0x20000
#define INITIAL_COUNT 0x380
#define CURRENT_COUNT 0x390
#define DIVIDE 0x3E0
#define DIVIDE_BY_16 0x3

#define TIMER_VECTOR 0x40
#define SPURIOUS 0xFF

#define PM_TIMER 0x608 /* where PyVMM has it; the FADT table says so */
#define PM_TIMER_HZ 3579545

static volatile unsigned ticks;

void interrupt(struct frame *frame)
{
    if (frame->vector == SPURIOUS)
        return; /* and no end-of-interrupt: there was none */
    if (frame->vector != TIMER_VECTOR)
        unexpected(frame);
    ticks++;
    APIC(END_OF_INTERRUPT) = 0;
}

/* Counts of the APIC's timer in 1/100 s. The PM timer has 24 bits: differences modulo 2^24 are
 * right for 4 s. */
static uint32_t counts_in_10_ms(void)
{
    APIC(LVT_TIMER) = MASKED;
    APIC(INITIAL_COUNT) = 0xFFFFFFFF; /* writing it is what starts the timer */
    uint32_t start = in32(PM_TIMER), passed;
    do
        passed = (in32(PM_TIMER) - start) & 0xFFFFFF;
    while (passed < PM_TIMER_HZ / 100);
    uint64_t counted = 0xFFFFFFFF - APIC(CURRENT_COUNT);
    APIC(INITIAL_COUNT) = 0; /* and this stops it */
    return counted * (PM_TIMER_HZ / 100) / passed;
}

void lesson(const uint8_t *zero_page)
{
    (void)zero_page;
    load_interrupt_table();
    out8(0x21, 0xFF); /* the PICs of lesson 5 stay quiet */
    out8(0xA1, 0xFF);
    APIC(SPURIOUS_VECTOR) = SOFTWARE_ENABLE | SPURIOUS;
    print("local APIC %d\n", APIC(ID) >> 24);

    APIC(DIVIDE) = DIVIDE_BY_16;
    uint32_t counts = counts_in_10_ms();
    print("its timer counts %d million times a second\n", counts / 10000);

    APIC(LVT_TIMER) = TIMER_VECTOR; /* one-shot */
    APIC(INITIAL_COUNT) = counts;
    while (ticks < 1)
        wait_for_interrupt();
    print("one shot, and it stands at %d\n", APIC(CURRENT_COUNT));

    APIC(LVT_TIMER) = PERIODIC | TIMER_VECTOR;
    APIC(INITIAL_COUNT) = 2 * counts;
    for (unsigned tick = 2; tick <= 6; tick++) {
        while (ticks < tick)
            wait_for_interrupt();
        print("periodic tick\n");
    }
    APIC(LVT_TIMER) = MASKED;
}
