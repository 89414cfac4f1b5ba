/*
 * 32-bit protected mode: what PVH hands over, and interrupts by the old controllers. The PIT's
 * ticks are measured with the PM timer, the RTC interrupts through the slave PIC, and the serial
 * port echoes through receive and transmit interrupts until it reads Ctrl-D.
 */
#include "console.h"
#include "interrupts.h"

#define START_INFO_MAGIC 0x336EC578
#define MEMORY_RAM 1

struct start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist, cmdline, rsdp, memmap;
    uint32_t memmap_entries, reserved;
};

struct module {
    uint64_t start, size, cmdline, reserved;
};

struct memmap_entry {
    uint64_t start, size;
    uint32_t type, reserved;
};

#define IRQ_0_VECTOR 0x20
#define IRQ_8_VECTOR 0x28
#define PIT_IRQ 0
#define SERIAL_IRQ 4
#define RTC_IRQ 8

static void pic_init(void)
{
    outb(PIC_MASTER, 0x11); /* ICW1: edge, cascade, ICW4 follows */
    outb(PIC_MASTER + 1, IRQ_0_VECTOR);
    outb(PIC_MASTER + 1, 1 << 2); /* the slave is on IRQ 2 */
    outb(PIC_MASTER + 1, 0x01);
    outb(PIC_SLAVE, 0x11);
    outb(PIC_SLAVE + 1, IRQ_8_VECTOR);
    outb(PIC_SLAVE + 1, 2);
    outb(PIC_SLAVE + 1, 0x01);
    outb(PIC_MASTER + 1, 0xFF);
    outb(PIC_SLAVE + 1, 0xFF);
}

static void unmask(unsigned irq)
{
    uint16_t port = irq < 8 ? PIC_MASTER + 1 : PIC_SLAVE + 1;
    outb(port, inb(port) & ~(1 << irq % 8));
    if (irq >= 8)
        unmask(2);
}

static void mask(unsigned irq)
{
    uint16_t port = irq < 8 ? PIC_MASTER + 1 : PIC_SLAVE + 1;
    outb(port, inb(port) | 1 << irq % 8);
}

static void test_start_info(const struct start_info *info)
{
    check_equal("start info magic", info->magic, START_INFO_MAGIC);
    check_between("start info version", info->version, 1, 1);
    print("command line: %s\n", (const char *)(uintptr_t)info->cmdline);
    print("modules: %u\n", info->nr_modules);
    const struct module *module = (const struct module *)(uintptr_t)info->modlist;
    for (unsigned i = 0; i < info->nr_modules; i++)
        print("module: %s: %c\n", (const char *)(uintptr_t)module[i].cmdline,
              *(const char *)(uintptr_t)module[i].start);

    const uint8_t *rsdp = (const uint8_t *)(uintptr_t)info->rsdp;
    uint8_t sum = 0;
    for (unsigned i = 0; i < 20; i++)
        sum += rsdp[i];
    check_equal("RSDP's signature", *(const uint32_t *)rsdp, 0x20445352 /* "RSD " */);
    check_equal("RSDP's checksum", sum, 0);

    const struct memmap_entry *map = (const struct memmap_entry *)(uintptr_t)info->memmap;
    uint64_t end = 0, ram = 0;
    bool ordered = true;
    for (unsigned i = 0; i < info->memmap_entries; i++) {
        ordered = ordered && map[i].start >= end && map[i].size;
        end = map[i].start + map[i].size;
        if (map[i].type == MEMORY_RAM)
            ram += map[i].size;
    }
    check("memory map is in order and has no overlaps", info->memmap_entries && ordered);
    print("ram: %X\n", ram);
}

static volatile unsigned pit_ticks, rtc_ticks;

INTERRUPT_HANDLER(on_pit)
{
    pit_ticks++;
    outb(PIC_MASTER, PIC_EOI);
}

#define TICKS 20
#define TICKS_PER_SECOND 100

static void test_pit(void)
{
    uint16_t count = PIT_HZ / TICKS_PER_SECOND;
    set_handler(IRQ_0_VECTOR + PIT_IRQ, on_pit);
    outb(PIT_CONTROL, 0x34); /* channel 0, two bytes, mode 2 */
    outb(PIT_CHANNEL_0, count & 0xFF);
    outb(PIT_CHANNEL_0, count >> 8);
    outb(PIT_CONTROL, 0xE2); /* read back the status of channel 0 */
    check_equal("PIT reads back its mode", inb(PIT_CHANNEL_0) & 0x3F, 0x34);

    unmask(PIT_IRQ);
    while (!pit_ticks)
        wait_for_interrupt();
    uint32_t start = inl(PM_TIMER);
    while (pit_ticks <= TICKS)
        wait_for_interrupt();
    uint32_t elapsed = pm_ticks_since(start);
    mask(PIT_IRQ);
    /* The first tick may come late and make the time short; a busy host makes it long. */
    uint32_t expected = PM_TIMER_HZ / TICKS_PER_SECOND * TICKS;
    check_between("PIT ticks 100 times a second", elapsed, expected * 9 / 10, expected * 10);
}

INTERRUPT_HANDLER(on_rtc)
{
    outb(CMOS_INDEX, 0x0C); /* reading the flags lets the next one come */
    if (inb(CMOS_DATA) & 0x40)
        rtc_ticks++;
    outb(PIC_SLAVE, PIC_EOI);
    outb(PIC_MASTER, PIC_EOI);
}

static void cmos_write(uint8_t index, uint8_t value)
{
    outb(CMOS_INDEX, index);
    outb(CMOS_DATA, value);
}

static void test_rtc(void)
{
    set_handler(IRQ_8_VECTOR, on_rtc);
    cmos_write(0x0A, 0x2A); /* 64 periodic interrupts a second */
    cmos_write(0x0B, 0x42);
    outb(CMOS_INDEX, 0x0C);
    inb(CMOS_DATA);
    unmask(RTC_IRQ);
    while (!rtc_ticks)
        wait_for_interrupt();
    uint32_t start = inl(PM_TIMER);
    while (rtc_ticks <= 8)
        wait_for_interrupt();
    uint32_t elapsed = pm_ticks_since(start);
    mask(RTC_IRQ);
    cmos_write(0x0B, 0x02);
    check_between("RTC ticks 64 times a second", elapsed, PM_TIMER_HZ / 10, PM_TIMER_HZ);
}

/* Bytes received and not yet sent. Reception stops while it is full, so the sender has to wait. */
#define RING_SIZE 256
static volatile uint8_t ring[RING_SIZE];
static volatile unsigned received, sent;
static volatile unsigned interrupts[8]; /* by the interrupt's number in the IIR */
static volatile bool end_of_input, overrun;

#define END_OF_TRANSMISSION 0x04
#define FIFO_SIZE 16

static void choose_interrupts(void)
{
    uint8_t wanted = 0;
    if (received - sent < RING_SIZE)
        wanted |= UART_IER_RDA;
    if (received != sent)
        wanted |= UART_IER_THRE;
    outb(COM1 + UART_IER, wanted);
}

static void receive(void)
{
    uint8_t status;
    while (received - sent < RING_SIZE && (status = inb(COM1 + UART_LSR)) & UART_LSR_DR) {
        if (status & UART_LSR_OE)
            overrun = true;
        uint8_t byte = inb(COM1 + UART_DATA);
        if (byte == END_OF_TRANSMISSION)
            end_of_input = true;
        else
            ring[received++ % RING_SIZE] = byte;
    }
}

static void transmit(void)
{
    for (unsigned i = 0; i < FIFO_SIZE && sent != received; i++)
        outb(COM1 + UART_DATA, ring[sent++ % RING_SIZE]);
}

INTERRUPT_HANDLER(on_serial)
{
    uint8_t iir;
    while (!((iir = inb(COM1 + UART_IIR)) & 1)) {
        interrupts[iir >> 1 & 7]++;
        switch (iir >> 1 & 7) {
        case 2: /* data */
        case 6: /* data that have been waiting */
            receive();
            break;
        case 1: /* transmitter empty */
            transmit();
            break;
        default:
            inb(COM1 + UART_LSR);
        }
        choose_interrupts();
    }
    outb(PIC_MASTER, PIC_EOI);
}

static void echo(void)
{
    set_handler(IRQ_0_VECTOR + SERIAL_IRQ, on_serial);
    print("echo until Ctrl-D\n");
    outb(COM1 + UART_FCR, 0x81); /* FIFOs on, interrupt at 8 bytes */
    outb(COM1 + UART_MCR, 0x0B); /* OUT2 lets the interrupt out */
    unmask(SERIAL_IRQ);
    choose_interrupts();
    while (!end_of_input || sent != received)
        wait_for_interrupt();
    mask(SERIAL_IRQ);
    outb(COM1 + UART_IER, 0);
    print("\nechoed %u bytes\n", sent);
    check("no byte overran the receiver", !overrun);
    check("receive interrupts came", interrupts[2] + interrupts[6]);
    check("transmit interrupts came", !sent || interrupts[1]);
}

void guest_main(const struct start_info *info);

void guest_main(const struct start_info *info)
{
    interrupts_init();
    pic_init();
    test_start_info(info);
    test_pit();
    test_rtc();
    echo();
}
