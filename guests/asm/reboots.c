/*
 * Long mode: reboots `reboots=N` times, each time in another way, and then powers off. Before it
 * does, it leaves a trace wherever it can, and each boot looks whether the machine is as new. What
 * it remembers is in the CMOS RAM, which has a battery.
 */
#include "smp.h"

#include "apic.h"
#include "boot.h"
#include "console.h"
#include "pci.h"

#define NVRAM_COUNT 0x40 /* CMOS RAM that nobody else uses */
#define NVRAM_BAR 0x42
#define RTC_REGISTER_B 0x0B
#define RTC_24_HOURS 0x02
#define RTC_PERIODIC 0x40

#define SYSTEM_CONTROL_A 0x92
#define FAST_RESET 0x01

#define MSR_LSTAR 0xC0000082
#define MSR_FS_BASE 0xC0000100
#define MSR_TSC 0x10

#define APIC_IRR 0x200
#define APIC_TIMER_PERIODIC 0x20000
#define TIMER_VECTOR 0x40

#define LOW_TRACE 0x3000
#define HIGH_TRACE 0x1800000
#define TRACE 0x600DCAFE

#define DISK PCI_FUNCTION(1, 0)

extern const uint8_t trampoline[], trampoline_end[], trampoline_cr3[];
void ap_main(void);

static const uint8_t *zero_page;
static volatile unsigned running;

static uint64_t rdmsr(uint32_t index)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
    return (uint64_t)high << 32 | low;
}

static void wrmsr(uint32_t index, uint64_t value)
{
    __asm__ volatile("wrmsr" : : "c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

static uint8_t cmos_read(uint8_t index)
{
    outb(CMOS_INDEX, index);
    return inb(CMOS_DATA);
}

static void cmos_write(uint8_t index, uint8_t value)
{
    outb(CMOS_INDEX, index);
    outb(CMOS_DATA, value);
}

static uint32_t first_bar(void)
{
    return pci_read(DISK, PCI_BAR_0 + 4); /* the disk's MSI-X table */
}

static bool bar_is_where_it_was(unsigned boot)
{
    uint32_t bar = first_bar();
    if (boot == 0)
        for (unsigned i = 0; i < 4; i++)
            cmos_write(NVRAM_BAR + i, bar >> 8 * i);
    uint32_t before = 0;
    for (unsigned i = 0; i < 4; i++)
        before |= (uint32_t)cmos_read(NVRAM_BAR + i) << 8 * i;
    return bar == before;
}

static void look_for_traces(unsigned boot)
{
    check_equal("low RAM is clear", load32(LOW_TRACE), 0);
    check_equal("high RAM is clear", load32(HIGH_TRACE), 0);
    check_equal("PIC mask", inb(PIC_MASTER + 1), 0);
    check_equal("IOAPIC entry is masked", io_apic_read(0x10 + 2 * 5) & IO_APIC_MASKED,
                IO_APIC_MASKED);
    check_equal("local APIC is off", apic_read(APIC_SPURIOUS), SPURIOUS_VECTOR);
    check_equal("local APIC timer", apic_read(APIC_LVT_TIMER), APIC_MASKED);
    check_equal("local APIC timer count", apic_read(APIC_TIMER_CURRENT), 0);
    check_equal("no interrupt is pending", apic_read(APIC_IRR + 0x10 * (TIMER_VECTOR / 32)), 0);
    check_equal("RTC register B", cmos_read(RTC_REGISTER_B), RTC_24_HOURS);
    check_equal("POST code", inb(POST_PORT), 0);
    check_equal("system control port B", inb(PORT_B) & 0x0F, 0);
    check_equal("PCI command register", pci_read(DISK, PCI_COMMAND) & PCI_COMMAND_MASTER, 0);
    check("BAR", bar_is_where_it_was(boot));
    check_equal("LSTAR", rdmsr(MSR_LSTAR), 0);
    check_equal("FS base", rdmsr(MSR_FS_BASE), 0);
    check_equal("TSC", rdmsr(MSR_TSC) >> 60, 0);
}

static void leave_traces(void)
{
    store32(LOW_TRACE, TRACE);
    store32(HIGH_TRACE, TRACE);
    outb(PIC_MASTER + 1, 0xFB);
    io_apic_route(5, 0x45, 0);
    apic_write(APIC_SPURIOUS, APIC_ENABLE | SPURIOUS_VECTOR);
    apic_write(APIC_LVT_TIMER, APIC_TIMER_PERIODIC | TIMER_VECTOR);
    apic_write(APIC_TIMER_INITIAL, 100000); /* fires, and interrupts are off */
    cmos_write(RTC_REGISTER_B, RTC_24_HOURS | RTC_PERIODIC);
    outb(POST_PORT, 0x42);
    outb(PORT_B, PORT_B_GATE_2);
    pci_write(DISK, PCI_BAR_0 + 4, first_bar() + 0x100000);
    pci_write(DISK, PCI_COMMAND, pci_read(DISK, PCI_COMMAND) | PCI_COMMAND_MASTER);
    wrmsr(MSR_LSTAR, TRACE);
    wrmsr(MSR_FS_BASE, TRACE);
    wrmsr(MSR_TSC, 1ULL << 60);
}

/* The other CPU; it is running when the machine resets. */
void ap_main(void)
{
    running++;
    for (;;)
        __asm__ volatile("pause");
}

static void start_other_cpu(void)
{
    uint64_t cr3;
    volatile uint8_t *copy = (volatile uint8_t *)TRAMPOLINE;
    for (unsigned i = 0; trampoline + i < trampoline_end; i++)
        copy[i] = trampoline[i];
    __asm__ volatile("mov %0, cr3" : "=r"(cr3));
    *(volatile uint32_t *)(copy + (trampoline_cr3 - trampoline)) = cr3;
    check_equal("the other CPU waits to be started", running, 0);
    apic_write(APIC_SPURIOUS, APIC_ENABLE | SPURIOUS_VECTOR);
    apic_send(1, ICR_INIT);
    delay_microseconds(10000);
    apic_send(1, ICR_STARTUP | TRAMPOLINE >> 12);
    while (!running)
        __asm__ volatile("pause");
    check("the other CPU runs", true);
}

static void by_i8042(void) { outb(I8042_COMMAND, I8042_PULSE_RESET); }

static void by_port_a(void) { outb(SYSTEM_CONTROL_A, FAST_RESET); }

static void by_chipset(void)
{
    outb(RESET_CONTROL, 0x02);
    outb(RESET_CONTROL, 0x06);
}

/* As the FADT says (ACPI 6.5, section 4.8.3.6). */
static void by_acpi(void)
{
    const uint8_t *fadt = acpi_table(zero_page, "FACP");
    outb(*(const uint64_t *)(fadt + 120), fadt[128]);
}

/* To the boot CPU: it goes to the reset vector. */
static void by_init(void)
{
    apic_send(apic_id(), ICR_INIT);
    for (;;)
        __asm__ volatile("pause");
}

static void by_triple_fault(void)
{
    static const struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } no_table;
    __asm__ volatile("lidt %0; ud2" : : "m"(no_table));
}

static const struct {
    const char *name;
    void (*reboot)(void);
} ways[] = {
    { "i8042", by_i8042 },
    { "port-a", by_port_a },
    { "chipset", by_chipset },
    { "acpi", by_acpi },
    { "triple-fault", by_triple_fault },
    { "init", by_init },
};

void guest_main(const uint8_t *zero_page_);

void guest_main(const uint8_t *zero_page_)
{
    zero_page = zero_page_;
    unsigned boot = cmos_read(NVRAM_COUNT);
    print("boot: %u\n", boot);
    if (!command_line_has(zero_page, "hurry")) {
        look_for_traces(boot);
        if (command_line_has(zero_page, "smp"))
            start_other_cpu();
    }
    leave_traces();
    if (boot == command_line_number(zero_page, "reboots", 5))
        return;
    cmos_write(NVRAM_COUNT, boot + 1);
    unsigned way = boot % (sizeof ways / sizeof *ways);
    print("reboot: %s\n", ways[way].name);
    ways[way].reboot();
    print("FAIL: still here after the reset\n");
}
