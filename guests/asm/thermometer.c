/*
 * Long mode: a driver for the thermometer of guests/devices, which is at the ports `base=` and
 * interrupts at IRQ 5, by the IOAPIC. It waits for the alarm, three times; with `reboot`, all of it
 * once more after a reset.
 */
#include "apic.h"
#include "boot.h"
#include "console.h"
#include "interrupts.h"

#define IRQ 5
#define VECTOR 0x50
#define NVRAM_REBOOTED 0x40 /* in the CMOS, which a battery keeps */

enum { TEMP, LIMIT, STATUS };

static uint16_t base;
static volatile unsigned alarms;

INTERRUPT_HANDLER(on_alarm)
{
    outb(base + LIMIT, 255); /* no further one for now */
    if (inb(base + STATUS) & 1)
        alarms++;
    end_of_interrupt();
}

void guest_main(const uint8_t *zero_page);

void guest_main(const uint8_t *zero_page)
{
    interrupts_init();
    apic_init();
    set_handler(VECTOR, on_alarm);
    io_apic_route(IRQ, VECTOR, apic_id());
    base = command_line_number(zero_page, "base", 0x510);
    check_equal("start", inb(base + TEMP), command_line_number(zero_page, "start", 20));
    for (unsigned i = 1; i <= 3; i++) {
        uint8_t before = inb(base + TEMP);
        outb(base + LIMIT, before + 1);
        check_equal("LIMIT can be read", inb(base + LIMIT), before + 1);
        while (alarms < i)
            wait_for_interrupt();
        check_between("it is warmer now", inb(base + TEMP), before + 2, 255);
    }
    check_equal("the alarm is taken back", inb(base + STATUS), 0);
    outb(CMOS_INDEX, NVRAM_REBOOTED);
    if (command_line_has(zero_page, "reboot") && inb(CMOS_DATA) != 1) {
        outb(CMOS_DATA, 1);
        outb(RESET_CONTROL, 0x06);
    }
}
