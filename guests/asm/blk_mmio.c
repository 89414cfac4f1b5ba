/* The guest `blk` over virtio-mmio (Virtio 1.2, 4.2). */
#include "blk.h"

#include "apic.h"
#include "boot.h"
#include "console.h"
#include "interrupts.h"

#define MAGIC 0x74726976 /* "virt" */
#define CONFIG_CHANGE 2

/* Table 4.1. */
enum {
    MAGIC_VALUE = 0x000, VERSION = 0x004, DEVICE_ID = 0x008,
    DEVICE_FEATURES = 0x010, DEVICE_FEATURES_SEL = 0x014,
    DRIVER_FEATURES = 0x020, DRIVER_FEATURES_SEL = 0x024,
    QUEUE_SEL = 0x030, QUEUE_NUM_MAX = 0x034, QUEUE_NUM = 0x038, QUEUE_READY = 0x044,
    QUEUE_NOTIFY = 0x050, INTERRUPT_STATUS = 0x060, INTERRUPT_ACK = 0x064, STATUS = 0x070,
    QUEUE_DESC = 0x080, QUEUE_DRIVER = 0x090, QUEUE_DEVICE = 0x0A0, CONFIG = 0x100,
};

static uintptr_t base;
static unsigned irq;

/* A number as in C; `text` is left behind it. */
static uint64_t number(const char **text)
{
    unsigned radix = 10, digit;
    uint64_t value = 0;
    if ((*text)[0] == '0' && (*text)[1] == 'x') {
        radix = 16;
        *text += 2;
    }
    for (;; ++*text) {
        char c = **text;
        if ('0' <= c && c <= '9')
            digit = c - '0';
        else if (radix == 16 && 'a' <= c && c <= 'f')
            digit = c - 'a' + 10;
        else
            return value;
        value = value * radix + digit;
    }
}

static uint8_t status(void) { return load32(base + STATUS); }

static void set_status(uint8_t status) { store32(base + STATUS, status); }

static uint32_t offered(unsigned word)
{
    store32(base + DEVICE_FEATURES_SEL, word);
    return load32(base + DEVICE_FEATURES);
}

static void accept(unsigned word, uint32_t bits)
{
    store32(base + DRIVER_FEATURES_SEL, word);
    store32(base + DRIVER_FEATURES, bits);
}

static uint32_t read_config(unsigned offset) { return load32(base + CONFIG + offset); }

INTERRUPT_HANDLER(on_interrupt)
{
    uint32_t causes = load32(base + INTERRUPT_STATUS);
    if (causes & ~CONFIG_CHANGE)
        interrupts++;
    store32(base + INTERRUPT_ACK, causes); /* takes the interrupt back */
    end_of_interrupt();
}

static void set_up_interrupts(const uint8_t *zero_page)
{
    set_handler(QUEUE_VECTOR, on_interrupt);
    io_apic_route(irq, QUEUE_VECTOR | (command_line_has(zero_page, "edge") ? 0 : IO_APIC_LEVEL),
                  apic_id());
}

static unsigned queue_size(void)
{
    store32(base + QUEUE_SEL, 0);
    return load32(base + QUEUE_NUM_MAX);
}

static void set_queue_address(unsigned offset, uintptr_t address)
{
    store32(base + offset, address);
    store32(base + offset + 4, address >> 32);
}

static void enable_queue(unsigned size, uintptr_t descriptors, uintptr_t available, uintptr_t used)
{
    store32(base + QUEUE_SEL, 0);
    check_equal("queue isn't ready yet", load32(base + QUEUE_READY), 0);
    store32(base + QUEUE_NUM, size);
    set_queue_address(QUEUE_DESC, descriptors);
    set_queue_address(QUEUE_DRIVER, available);
    set_queue_address(QUEUE_DEVICE, used);
    store32(base + QUEUE_READY, 1);
    check_equal("queue is ready", load32(base + QUEUE_READY), 1);
}

static void ring(void) { store32(base + QUEUE_NOTIFY, 0); }

const struct transport *find_mmio(const uint8_t *zero_page)
{
    static const struct transport mmio = {
        status,      set_status,        offered,    accept,
        read_config, set_up_interrupts, queue_size, enable_queue,
        ring,
    };
    const char *text = command_line_value(zero_page, "virtio_mmio.device");
    uint64_t size = number(&text);
    text++;
    base = number(&text);
    text++;
    irq = number(&text);
    check_between("size of the registers", size, CONFIG + 1, 4096);
    check_equal("magic value", load32(base + MAGIC_VALUE), MAGIC);
    check_equal("version", load32(base + VERSION), 2);
    check_equal("registers are 32 bits wide", load8(base + MAGIC_VALUE), 0);
    return load32(base + DEVICE_ID) == VIRTIO_BLK ? &mmio : NULL;
}
