/*
 * Long mode: interrupts by the IOAPIC (the PIT on pin 2, as the MADT says, and the serial port),
 * the local APIC's timer, and an interrupt that a CPU sends itself.
 */
#include "apic.h"

#include "boot.h"
#include "console.h"
#include "interrupts.h"

#define PIT_VECTOR 0x40
#define SERIAL_VECTOR 0x41
#define TIMER_VECTOR 0x42
#define SELF_VECTOR 0x43

#define MADT_LOCAL_APIC 0
#define MADT_IO_APIC 1
#define MADT_OVERRIDE 2

static volatile unsigned count[256];

#define COUNTING_HANDLER(name, vector)                                                             \
    INTERRUPT_HANDLER(name)                                                                        \
    {                                                                                              \
        count[vector]++;                                                                           \
        end_of_interrupt();                                                                        \
    }

COUNTING_HANDLER(on_pit, PIT_VECTOR)
COUNTING_HANDLER(on_timer, TIMER_VECTOR)
COUNTING_HANDLER(on_self, SELF_VECTOR)

INTERRUPT_HANDLER(on_serial)
{
    if ((inb(COM1 + UART_IIR) & 0x0F) == 0x02) /* transmitter empty; reading it takes it back */
        count[SERIAL_VECTOR]++;
    end_of_interrupt();
}

INTERRUPT_HANDLER(on_spurious)
{
}

static void wait_until(unsigned vector, unsigned times)
{
    while (count[vector] < times)
        wait_for_interrupt();
}

/* The IOAPIC's pin for an ISA interrupt. */
static unsigned pin_of(const uint8_t *madt, unsigned irq)
{
    unsigned length = *(const uint32_t *)(madt + 4);
    for (unsigned offset = 44; offset < length; offset += madt[offset + 1])
        if (madt[offset] == MADT_OVERRIDE && madt[offset + 3] == irq)
            return *(const uint32_t *)(madt + offset + 4);
    return irq;
}

static void test_io_apic(const uint8_t *madt)
{
    check_equal("IOAPIC has 24 pins", io_apic_read(1) >> 16 & 0xFF, 23);
    unsigned pin = pin_of(madt, 0);
    check_equal("MADT puts the PIT on pin 2", pin, 2);

    uint16_t divisor = PIT_HZ / 100;
    outb(PIT_CONTROL, 0x34);
    outb(PIT_CHANNEL_0, divisor & 0xFF);
    outb(PIT_CHANNEL_0, divisor >> 8);
    io_apic_route(pin, PIT_VECTOR, apic_id());
    wait_until(PIT_VECTOR, 5);
    io_apic_route(pin, IO_APIC_MASKED, 0);
    check("PIT interrupts by the IOAPIC", true);

    io_apic_route(pin_of(madt, 4), SERIAL_VECTOR, apic_id());
    outb(COM1 + UART_IER, UART_IER_THRE);
    wait_until(SERIAL_VECTOR, 1);
    outb(COM1 + UART_IER, 0);
    io_apic_route(4, IO_APIC_MASKED, 0);
    check("serial interrupt by the IOAPIC", true);
}

static void test_local_apic(void)
{
    apic_write(APIC_TIMER_DIVIDE, 0xB); /* by 1 */
    apic_write(APIC_LVT_TIMER, TIMER_VECTOR);
    apic_write(APIC_TIMER_INITIAL, 10000000);
    check_between("local APIC timer counts down", apic_read(APIC_TIMER_CURRENT), 1, 9999999);
    wait_until(TIMER_VECTOR, 1);
    check_equal("local APIC timer stops at 0", apic_read(APIC_TIMER_CURRENT), 0);

    apic_write(APIC_ICR_LOW, ICR_SELF | SELF_VECTOR);
    wait_until(SELF_VECTOR, 1);
    check("interrupt to oneself", true);
}

void guest_main(const uint8_t *zero_page);

void guest_main(const uint8_t *zero_page)
{
    interrupts_init();
    set_handler(PIT_VECTOR, on_pit);
    set_handler(SERIAL_VECTOR, on_serial);
    set_handler(TIMER_VECTOR, on_timer);
    set_handler(SELF_VECTOR, on_self);
    set_handler(SPURIOUS_VECTOR, on_spurious);
    const uint8_t *madt = acpi_table(zero_page, "APIC");
    check("there is a MADT", madt);
    check_equal("MADT has the local APIC's address", *(const uint32_t *)(madt + 36), LOCAL_APIC);
    apic_init();
    test_io_apic(madt);
    test_local_apic();
}
