/*
 * Long mode: a driver for the stopwatch of guests/devices, which is at 0xF0000000 and interrupts at
 * IRQ 6, by the IOAPIC.
 */
#include "apic.h"
#include "console.h"
#include "interrupts.h"

#define IRQ 6
#define VECTOR 0x50
#define BASE 0xF0000000

enum { CONTROL = 0x00, TIME_LOW = 0x04, TIME_HIGH = 0x08, ALARM = 0x0C, STATUS = 0x10 };

static volatile unsigned alarms;

INTERRUPT_HANDLER(on_alarm)
{
    alarms += load32(BASE + STATUS);
    end_of_interrupt();
}

static uint64_t microseconds(void)
{
    uint32_t low = load32(BASE + TIME_LOW);
    return low | (uint64_t)load32(BASE + TIME_HIGH) << 32;
}

void guest_main(const uint8_t *zero_page);

void guest_main(__attribute__((unused)) const uint8_t *zero_page)
{
    interrupts_init();
    apic_init();
    set_handler(VECTOR, on_alarm);
    io_apic_route(IRQ, VECTOR, apic_id());
    check_equal("it stands still at first", load32(BASE + CONTROL), 0);
    check_equal("and shows nothing", microseconds(), 0);
    store32(BASE + CONTROL, 1);
    store32(BASE + ALARM, 20000);
    while (!alarms)
        wait_for_interrupt();
    check_between("the alarm comes after 20 ms", microseconds(), 20000, 20000000);
    check_equal("once", alarms, 1);
    check_equal("a byte of a register can't be read", load8(BASE + CONTROL), 0xFF);
    store8(BASE + CONTROL, 0);
    check_equal("nor written", load32(BASE + CONTROL), 1);
    store32(BASE + CONTROL, 0);
    check_equal("it stops", load32(BASE + CONTROL), 0);
}
