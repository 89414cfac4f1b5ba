/*
 * Lesson 10: what is on the PCI bus.
 *
 * Each device has up to eight functions, and each function 256 bytes of configuration space that
 * say what it is (vendor, device, class), where its registers are (base address registers) and what
 * else it can do (a chain of capabilities). Two ports lead there: write an address to the first,
 * read or write 32 bits at the second.
 *
 * Read: PCI Local Bus Specification 3.0, 3.2.2.3.2 (the two ports), 6.1 and 6.2.1 (configuration
 * space), 6.2.5.1 (base address registers, and how their size is found), 6.7 (capabilities); PCI
 * Code and ID Assignment Specification (classes).
 *
 *     pyvmm run -d disk.raw --rng -k build/lessons/10_pci.elf
 */
#include "lesson.h"

#define CONFIG_ADDRESS 0xCF8
#define CONFIG_DATA 0xCFC
#define ENABLE 0x80000000

#define VENDOR_ID 0x00 /* and the device's in the upper half */
#define COMMAND 0x04   /* and the status in the upper half */
#define DECODE_IO_AND_MEMORY 0x3
#define HAS_CAPABILITIES (1 << 20)
#define CLASS 0x08
#define HEADER_TYPE 0x0C
#define MULTIFUNCTION (0x80 << 16)
#define FIRST_BAR 0x10
#define BAR_IO 0x1
#define BAR_64_BITS 0x4
#define CAPABILITIES 0x34
#define INTERRUPT 0x3C

static uint32_t read(unsigned function, unsigned offset)
{
    out32(CONFIG_ADDRESS, ENABLE | function << 8 | (offset & 0xFC));
    return in32(CONFIG_DATA);
}

static void write(unsigned function, unsigned offset, uint32_t value)
{
    out32(CONFIG_ADDRESS, ENABLE | function << 8 | (offset & 0xFC));
    out32(CONFIG_DATA, value);
}

static uint8_t read8(unsigned function, unsigned offset)
{
    return read(function, offset) >> 8 * (offset & 3);
}

/* Of an address written to it, a register keeps only the bits above its size. */
static uint32_t writable_bits(unsigned function, unsigned bar)
{
    uint32_t before = read(function, bar);
    write(function, bar, 0xFFFFFFFF);
    uint32_t bits = read(function, bar);
    write(function, bar, before);
    return bits;
}

static void list_bars(unsigned function)
{
    uint32_t command = read(function, COMMAND);
    write(function, COMMAND, command & ~DECODE_IO_AND_MEMORY); /* while addresses are nonsense */
    for (unsigned bar = FIRST_BAR; bar < FIRST_BAR + 6 * 4; bar += 4) {
        uint64_t address = read(function, bar), bits = writable_bits(function, bar);
        unsigned number = (bar - FIRST_BAR) / 4;
        if (!bits)
            continue; /* there is none */
        if (address & BAR_IO) {
            print("    BAR %d: ports %p to %p\n", number, address & ~3ULL,
                  (address & ~3ULL) + (-(bits & 0xFFFC) & 0xFFFF) - 1);
            continue;
        }
        bits |= 0xFFFFFFFF00000000;
        if (address & BAR_64_BITS) {
            bar += 4; /* the next one is the upper half */
            address |= (uint64_t)read(function, bar) << 32;
            bits = (uint32_t)bits | (uint64_t)writable_bits(function, bar) << 32;
        }
        print("    BAR %d: memory %p to %p\n", number, address & ~15ULL,
              (address & ~15ULL) + -(bits & ~15ULL) - 1);
    }
    write(function, COMMAND, command);
}

static void list_capabilities(unsigned function)
{
    if (!(read(function, COMMAND) & HAS_CAPABILITIES))
        return;
    unsigned left = 48; /* there is no room for more: a chain that is longer is a ring */
    for (unsigned at = read8(function, CAPABILITIES); at && left--; at = read8(function, at + 1)) {
        uint8_t id = read8(function, at);
        print("    capability %x: %s\n", id,
              id == 0x01   ? "power management"
              : id == 0x05 ? "MSI"
              : id == 0x09 ? "vendor's own"
              : id == 0x10 ? "PCI Express"
              : id == 0x11 ? "MSI-X"
                           : "?");
    }
}

static void list(unsigned function)
{
    uint32_t id = read(function, VENDOR_ID), class = read(function, CLASS) >> 8;
    print("%x:%x.%d: vendor %x, device %x, class %x\n", function >> 8, function >> 3 & 31,
          function & 7, id & 0xFFFF, id >> 16, class);
    list_bars(function);
    list_capabilities(function);
    uint8_t pin = read8(function, INTERRUPT + 1);
    if (pin)
        print("    interrupt INT%c\n", 'A' + pin - 1);
}

void lesson(const uint8_t *zero_page)
{
    (void)zero_page;
    /* A function's number: bus (8 bits), device (5 bits), function (3 bits). PyVMM has bus 0. */
    for (unsigned device = 0; device < 32; device++) {
        unsigned first = device << 3;
        unsigned functions = read(first, HEADER_TYPE) & MULTIFUNCTION ? 8 : 1;
        for (unsigned function = first; function < first + functions; function++)
            if ((read(function, VENDOR_ID) & 0xFFFF) != 0xFFFF) /* where nothing is, all ones */
                list(function);
    }
}
