/*
 * Lesson 9: the other CPUs.
 *
 * At first one CPU runs, and the others wait. The first finds them in a table of the firmware's,
 * ACPI's MADT, and wakes each by interrupts from its local APIC to theirs: INIT, then a start-up
 * interrupt, twice, which carries the page where to start, in real mode (09_smp_start.S). Then all
 * count in one variable: with a plain `counter++` they would lose some, with an atomic one they
 * don't.
 *
 * Read: Intel SDM volume 3, 9.4 (how CPUs start), 11.6.1 (the interrupt command register); ACPI
 * specification, 5.2.5 to 5.2.8 (from RSDP to XSDT) and 5.2.12 (MADT); Linux,
 * Documentation/arch/x86/zero-page.rst, for acpi_rsdp_addr.
 *
 *     pyvmm run -c 4 -k build/lessons/09_smp.elf
 */
#include "lesson.h"

#define START_PAGE 0x2000
#define ZERO_PAGE_RSDP 0x070

#define LOCAL_APIC 0xFEE00000
#define APIC(offset) REG32(LOCAL_APIC + (offset))
#define ID 0x020
#define COMMAND_LOW 0x300
#define COMMAND_HIGH 0x310 /* bits 31 to 24: to which local APIC */
#define PENDING 0x1000
#define INIT 0x4500
#define START_UP 0x4600

#define PM_TIMER 0x608
#define PM_TIMER_MHZ 4 /* a little more than its 3.58, so that waits are no shorter than asked */

#define MADT_CPU 0
#define ENABLED 1
#define ROUNDS 1000
#define MAX_OTHERS 16 /* as many stacks as 09_smp_start.S has */

extern const uint8_t start_page[], start_page_end[], start_cr3[];
void further_cpu(void);

static volatile unsigned running, counter, done;
static volatile bool console_taken, go;

static unsigned my_id(void) { return APIC(ID) >> 24; }

static void introduce(void)
{
    while (__atomic_test_and_set(&console_taken, __ATOMIC_ACQUIRE))
        __asm__ volatile("pause");
    print("CPU %d runs\n", my_id());
    __atomic_clear(&console_taken, __ATOMIC_RELEASE);
}

static void count(void)
{
    for (unsigned i = 0; i < ROUNDS; i++)
        __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED); /* lock xadd, or lock inc */
    __atomic_fetch_add(&done, 1, __ATOMIC_RELEASE);
}

/* Start-up: called from 09_smp_start.S, on each CPU but the first. */
void further_cpu(void)
{
    introduce();
    __atomic_fetch_add(&running, 1, __ATOMIC_RELEASE);
    while (!go)
        __asm__ volatile("pause");
    count();
}

static void wait_microseconds(uint32_t microseconds)
{
    uint32_t start = in32(PM_TIMER);
    while (((in32(PM_TIMER) - start) & 0xFFFFFF) < microseconds * PM_TIMER_MHZ)
        ;
}

static void send(unsigned cpu, uint32_t command)
{
    APIC(COMMAND_HIGH) = cpu << 24;
    APIC(COMMAND_LOW) = command; /* this one sends it */
    while (APIC(COMMAND_LOW) & PENDING)
        ;
}

static void wake(unsigned cpu)
{
    send(cpu, INIT);
    wait_microseconds(10000);
    for (unsigned i = 0; i < 2; i++) {
        send(cpu, START_UP | START_PAGE >> 12);
        wait_microseconds(200);
    }
}

static void copy_start_page(void)
{
    uint64_t cr3;
    __asm__ volatile("mov %0, cr3" : "=r"(cr3));
    for (const uint8_t *from = start_page; from < start_page_end; from++)
        REG8(START_PAGE + (from - start_page)) = *from;
    REG32(START_PAGE + (start_cr3 - start_page)) = cr3;
}

/* The MADT: RSDP to XSDT, and in there the table that begins with "APIC". */
static const uint8_t *find_madt(const uint8_t *zero_page)
{
    const uint8_t *rsdp = *(const uint8_t *const *)(zero_page + ZERO_PAGE_RSDP);
    const uint8_t *xsdt = *(const uint8_t *const *)(rsdp + 24);
    for (unsigned at = 36; at < *(const uint32_t *)(xsdt + 4); at += 8) {
        const uint8_t *table = *(const uint8_t *const *)(xsdt + at);
        if (*(const uint32_t *)table == ('A' | 'P' << 8 | 'I' << 16 | 'C' << 24))
            return table;
    }
    return 0;
}

void lesson(const uint8_t *zero_page)
{
    const uint8_t *madt = find_madt(zero_page);
    if (!madt) {
        print("there is no MADT\n");
        return;
    }
    introduce();
    copy_start_page();
    unsigned others = 0, length = *(const uint32_t *)(madt + 4);
    for (const uint8_t *entry = madt + 44; entry < madt + length; entry += entry[1])
        if (entry[0] == MADT_CPU && entry[4] & ENABLED && entry[3] != my_id() &&
            others < MAX_OTHERS) {
            wake(entry[3]);
            others++;
        }
    while (running < others)
        __asm__ volatile("pause");
    go = true;
    count();
    while (done < others + 1)
        __asm__ volatile("pause");
    print("%d CPUs counted to %d\n", others + 1, counter);
}
