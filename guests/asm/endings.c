/*
 * The many ways in which a guest ends, or doesn't. The command line names one.
 */
#include "apic.h"
#include "boot.h"
#include "console.h"

static const uint8_t *zero_page;

static void stand_still(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void reset_by_i8042(void) { outb(I8042_COMMAND, I8042_PULSE_RESET); }

static void reset_by_chipset(void)
{
    outb(RESET_CONTROL, 0x02);
    outb(RESET_CONTROL, 0x06);
}

/* As the FADT says (ACPI 6.5, section 4.8.3.6). */
static void reset_by_acpi(void)
{
    const uint8_t *fadt = acpi_table(zero_page, "FACP");
    check("FADT has a reset register", *(const uint32_t *)(fadt + 112) & 1 << 10);
    check_equal("which is a port", fadt[116], 1);
    outb(*(const uint64_t *)(fadt + 120), fadt[128]);
}

/* The boot CPU goes to the reset vector, as after the chipset's "soft reset". */
static void init_boot_cpu(void)
{
    apic_send(apic_id(), ICR_INIT);
    stand_still();
}

static void fault_thrice(void)
{
    static const struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } no_table;
    __asm__ volatile("lidt %0; ud2" : : "m"(no_table));
}

/* popcnt, which KVM's instruction emulator lacks and every CPU has. */
static void run_what_software_kvm_lacks(void)
{
    uint64_t bits;
    __asm__ volatile("popcnt %0, %1" : "=r"(bits) : "r"(0xFFULL));
    check_equal("popcnt", bits, 8);
}

static void panic(void)
{
    print("[    0.123456][    T1] Kernel panic - not syncing: the test wants it\n");
    print("[    0.123457][    T1] ---[ end Kernel panic - not syncing: the test wants it ]---\n");
    stand_still();
}

/* As with panic=-1. */
static void panic_and_reboot(void)
{
    print("[    0.123456][    T1] Kernel panic - not syncing: the test wants it\n");
    reset_by_i8042();
}

/* As where the console is slow: the message comes after the device has been told. */
static void tell_pvpanic_and_panic(void)
{
    outb(PVPANIC, 1);
    panic();
}

/* As Linux reports it. */
static void print_oops(void)
{
    print("[    0.100000][    T1] BUG: kernel NULL pointer dereference, address: 0000000000000010\n"
          "[    0.100001][    T1] Oops: 0002 [#1] PREEMPT SMP\n"
          "[    0.100002][    T1]  do_one_initcall+0x56/0x220\n"
          "[    0.100003][    T1] ---[ end trace 0000000000000000 ]---\n");
}

static void oops_and_go_on(void)
{
    print_oops();
    print("[    0.200000][    T1] and yet it runs\n");
    stand_still();
}

static void oops_and_panic(void)
{
    print_oops();
    panic();
}

static void run_in_circles(void)
{
    print("[    0.100000] last words\n");
    for (;;)
        ;
}

/* What a terminal, an XML parser and a UTF-8 decoder choke on. */
static void print_poison(void)
{
    print("\x1b[31mred\x1b[0m ]]> <b>&amp; \"quoted\"\x01\x08 \xff\xfe \xed\xa0\x80"
          " \xef\xbf\xbf\r\n\tend");
    power_off();
}

static void wait_for_the_power_button(void)
{
    print("waiting\n");
    while (!(inw(PM1A_STATUS) & PM1A_POWER_BUTTON))
        ;
    print("power button\n");
}

static void tell_pvpanic(void)
{
    outb(PVPANIC, 1);
    stand_still();
}

static void exit_by_debug_port(void)
{
    outb(DEBUG_EXIT, 21);
    stand_still();
}

static void print_and_stand_still(void)
{
    print("first line\nsecond line, 42 sheep\nprompt> ");
    stand_still();
}

/* By a string instruction, with half a FIFO at a time, for speed. */
static void babble(void)
{
    static const char text[40] = "all work and no play makes a dull guest\n";
    for (unsigned at = 0;; at = (at + 8) % sizeof text) {
        const char *from = text + at;
        uint64_t count = 8;
        while (!(inb(COM1 + UART_LSR) & UART_LSR_THRE))
            ;
        __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(COM1 + UART_DATA) : "memory");
    }
}

static void use_debug_console(void)
{
    check_equal("debug console is there", inb(DEBUG_CONSOLE), 0xE9);
    for (const char *text = "by port 0xE9\n"; *text; text++)
        outb(DEBUG_CONSOLE, *text);
}

static void use_second_serial_port(void)
{
    for (const char *text = "by COM2\n"; *text; text++) {
        while (!(inb(COM2 + UART_LSR) & UART_LSR_THRE))
            ;
        outb(COM2 + UART_DATA, *text);
    }
}

static const struct {
    const char *word;
    void (*end)(void);
} endings[] = {
    { "power-off", power_off },
    { "i8042-reset", reset_by_i8042 },
    { "chipset-reset", reset_by_chipset },
    { "acpi-reset", reset_by_acpi },
    { "init", init_boot_cpu },
    { "triple-fault", fault_thrice },
    { "popcnt", run_what_software_kvm_lacks },
    { "panic-reboot", panic_and_reboot },
    { "pvpanic-first", tell_pvpanic_and_panic },
    { "oops-panic", oops_and_panic },
    { "oops", oops_and_go_on },
    { "circles", run_in_circles },
    { "poison", print_poison },
    { "panic", panic },
    { "power-button", wait_for_the_power_button },
    { "pvpanic", tell_pvpanic },
    { "debug-exit", exit_by_debug_port },
    { "halt", stand_still },
    { "print", print_and_stand_still },
    { "babble", babble },
    { "debug-console", use_debug_console },
    { "com2", use_second_serial_port },
};

void guest_main(const uint8_t *zero_page_);

void guest_main(const uint8_t *zero_page_)
{
    zero_page = zero_page_;
    for (unsigned i = 0; i < sizeof endings / sizeof *endings; i++)
        if (command_line_has(zero_page, endings[i].word)) {
            endings[i].end();
            return;
        }
    print("FAIL: no ending is called '%s'\n", command_line(zero_page));
}
