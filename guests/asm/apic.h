/* Local APIC and IOAPIC (Intel SDM volume 3, chapter 11; 82093AA datasheet). */
#ifndef APIC_H
#define APIC_H

#include "pc.h"

#define APIC_ID 0x020
#define APIC_VERSION 0x030
#define APIC_EOI 0x0B0
#define APIC_SPURIOUS 0x0F0
#define APIC_ICR_LOW 0x300
#define APIC_ICR_HIGH 0x310
#define APIC_LVT_TIMER 0x320
#define APIC_LVT_LINT0 0x350
#define APIC_TIMER_INITIAL 0x380
#define APIC_TIMER_CURRENT 0x390
#define APIC_TIMER_DIVIDE 0x3E0

#define APIC_ENABLE 0x100
#define APIC_MASKED 0x10000
#define ICR_INIT 0x4500
#define ICR_STARTUP 0x4600
#define ICR_SELF 0x44000
#define ICR_PENDING 0x1000

#define SPURIOUS_VECTOR 0xFF

static inline uint32_t apic_read(unsigned offset) { return load32(LOCAL_APIC + offset); }
static inline void apic_write(unsigned offset, uint32_t value)
{
    store32(LOCAL_APIC + offset, value);
}

static inline unsigned apic_id(void) { return apic_read(APIC_ID) >> 24; }
static inline void end_of_interrupt(void) { apic_write(APIC_EOI, 0); }

/* Switch it on, with the PICs' output cut off from it. */
static inline void apic_init(void)
{
    outb(PIC_MASTER + 1, 0xFF);
    outb(PIC_SLAVE + 1, 0xFF);
    apic_write(APIC_LVT_LINT0, APIC_MASKED);
    apic_write(APIC_SPURIOUS, APIC_ENABLE | SPURIOUS_VECTOR);
}

static inline void apic_send(unsigned destination, uint32_t command)
{
    apic_write(APIC_ICR_HIGH, destination << 24);
    apic_write(APIC_ICR_LOW, command);
    while (apic_read(APIC_ICR_LOW) & ICR_PENDING)
        ;
}

#define IO_APIC_LEVEL 0x8000
#define IO_APIC_ACTIVE_LOW 0x2000
#define IO_APIC_MASKED 0x10000

static inline uint32_t io_apic_read(unsigned index)
{
    store32(IO_APIC, index);
    return load32(IO_APIC + 0x10);
}

static inline void io_apic_write(unsigned index, uint32_t value)
{
    store32(IO_APIC, index);
    store32(IO_APIC + 0x10, value);
}

static inline void io_apic_route(unsigned pin, uint32_t entry, unsigned destination)
{
    io_apic_write(0x10 + 2 * pin + 1, destination << 24);
    io_apic_write(0x10 + 2 * pin, entry);
}

#endif
