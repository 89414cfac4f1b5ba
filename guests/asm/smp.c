/*
 * Long mode: the first CPU wakes those that the MADT lists, each by INIT and start-up interrupts
 * (Intel MP specification, appendix B.4). Each says its APIC ID, they count together, and each
 * answers an interrupt.
 */
#include "smp.h"

#include "boot.h"
#include "apic.h"
#include "console.h"
#include "interrupts.h"

#define PING_VECTOR 0x60
#define GO_VECTOR 0x61
#define ROUNDS 2000

extern const uint8_t trampoline[], trampoline_end[], trampoline_cr3[];
void ap_main(void);

static volatile unsigned running, counter, ready, go, pinged, console_lock;

static void lock_console(void)
{
    while (__atomic_exchange_n(&console_lock, 1, __ATOMIC_ACQUIRE))
        __asm__ volatile("pause");
}

static void unlock_console(void) { __atomic_store_n(&console_lock, 0, __ATOMIC_RELEASE); }

static void cpuid(uint32_t leaf, uint32_t registers[4])
{
    __asm__ volatile("cpuid"
                     : "=a"(registers[0]), "=b"(registers[1]), "=c"(registers[2]),
                       "=d"(registers[3])
                     : "a"(leaf), "c"(0));
}

/* The local APIC, CPUID leaf 1 and CPUID leaf 0xB say the same about who this is. */
static void introduce(void)
{
    uint32_t registers[4];
    unsigned id = apic_id();
    lock_console();
    cpuid(1, registers);
    print("cpu: %u\n", id);
    check_equal("CPUID leaf 1 agrees with the local APIC", registers[1] >> 24, id);
    check_equal("CPUID counts the CPUs", registers[1] >> 16 & 0xFF, ready);
    cpuid(0, registers);
    if (registers[0] >= 0xB) {
        cpuid(0xB, registers);
        check_equal("CPUID leaf 0xB agrees with the local APIC", registers[3], id);
    }
    unlock_console();
}

static void count_together(void)
{
    while (!go)
        wait_for_interrupt(); /* asleep: the host may have few CPUs for many of ours */
    for (unsigned i = 0; i < ROUNDS; i++)
        __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
}

INTERRUPT_HANDLER(on_ping)
{
    __atomic_fetch_add(&pinged, 1, __ATOMIC_SEQ_CST);
    end_of_interrupt();
}

INTERRUPT_HANDLER(on_go) { end_of_interrupt(); }

void ap_main(void)
{
    load_interrupt_table();
    apic_write(APIC_SPURIOUS, APIC_ENABLE | SPURIOUS_VECTOR);
    introduce();
    __atomic_fetch_add(&running, 1, __ATOMIC_SEQ_CST);
    count_together();
    __atomic_fetch_add(&running, 1, __ATOMIC_SEQ_CST);
    for (;;)
        wait_for_interrupt();
}

static void copy_trampoline(void)
{
    uint64_t cr3;
    volatile uint8_t *copy = (volatile uint8_t *)TRAMPOLINE;
    for (unsigned i = 0; trampoline + i < trampoline_end; i++)
        copy[i] = trampoline[i];
    __asm__ volatile("mov %0, cr3" : "=r"(cr3));
    *(volatile uint32_t *)(copy + (trampoline_cr3 - trampoline)) = cr3;
}

static void start(unsigned id)
{
    apic_send(id, ICR_INIT);
    delay_microseconds(10000);
    for (unsigned i = 0; i < 2; i++) {
        apic_send(id, ICR_STARTUP | TRAMPOLINE >> 12);
        delay_microseconds(200);
    }
}

static void wait_for(volatile unsigned *number, unsigned value)
{
    while (*number < value)
        __asm__ volatile("pause");
}

/* The APIC IDs of the CPUs that can be used. */
static unsigned list_cpus(const uint8_t *madt, unsigned ids[MAX_CPUS])
{
    unsigned count = 0, length = *(const uint32_t *)(madt + 4);
    for (unsigned offset = 44; offset < length; offset += madt[offset + 1])
        if (madt[offset] == 0 && madt[offset + 4] & 1)
            ids[count++] = madt[offset + 3];
    return count;
}

void guest_main(const uint8_t *zero_page);

void guest_main(const uint8_t *zero_page)
{
    static unsigned ids[MAX_CPUS];
    interrupts_init();
    set_handler(PING_VECTOR, on_ping);
    set_handler(GO_VECTOR, on_go);
    apic_init();
    const uint8_t *madt = acpi_table(zero_page, "APIC");
    check("there is a MADT", madt);
    unsigned cpus = ready = list_cpus(madt, ids);
    print("cpus: %u\n", cpus);
    introduce();
    copy_trampoline();
    for (unsigned i = 0; i < cpus; i++)
        if (ids[i] != apic_id())
            start(ids[i]);
    wait_for(&running, cpus - 1);
    check("all CPUs run", true);

    go = 1;
    for (unsigned i = 0; i < cpus; i++)
        if (ids[i] != apic_id())
            apic_send(ids[i], GO_VECTOR);
    count_together();
    wait_for(&running, 2 * (cpus - 1));
    check_equal("no count was lost", counter, cpus * ROUNDS);

    for (unsigned i = 0; i < cpus; i++)
        if (ids[i] != apic_id())
            apic_send(ids[i], PING_VECTOR);
    wait_for(&pinged, cpus - 1);
    check("all CPUs answer an interrupt", true);
}
