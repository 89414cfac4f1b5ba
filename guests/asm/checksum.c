/*
 * Long mode: a driver for the PCI card of guests/devices that computes checksums. It interrupts by
 * MSI-X, or with `intx` on the command line by INTA.
 */
#include "apic.h"
#include "boot.h"
#include "console.h"
#include "interrupts.h"
#include "pci.h"

#define IDENTITY (0x0C32 << 16 | 0x1234)
#define VECTOR 0x50

enum { ADDRESS_LOW = 0x00, ADDRESS_HIGH = 0x04, LENGTH = 0x08, STATUS = 0x0C, RESULT = 0x10 };
enum { DONE = 1, FAILED = 2 };

static unsigned function;
static uintptr_t card;
static volatile unsigned interrupts;
static volatile uint32_t status; /* at the last interrupt */
static uint8_t data[5000];

INTERRUPT_HANDLER(on_interrupt)
{
    status = load32(card + STATUS);
    interrupts++;
    store32(card + STATUS, 0); /* takes the interrupt back */
    end_of_interrupt();
}

static bool find(void)
{
    for (function = 0; function < 256; function++)
        if (load32(pci_config(function, PCI_VENDOR_ID)) == IDENTITY)
            return true;
    return false;
}

static void set_up_msix(void)
{
    unsigned capability = pci_capability(function, PCI_CAPABILITY_MSIX, 0);
    check("MSI-X capability", capability);
    uint32_t place = load32(pci_config(function, capability + 4));
    uintptr_t entry = pci_bar(function, place & 7) + (place & ~7U);
    store32(entry + 0, LOCAL_APIC | apic_id() << 12);
    store32(entry + 4, 0);
    store32(entry + 8, VECTOR);
    store32(entry + 12, 0);
    store16(pci_config(function, capability + 2), 0x8000);
}

static uint32_t crc32(const uint8_t *bytes, unsigned length)
{
    uint32_t crc = ~0U;
    while (length--) {
        crc ^= *bytes++;
        for (unsigned bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
    }
    return ~crc;
}

/* Have the card work; its status. */
static uint32_t compute(uint64_t address, uint32_t length)
{
    unsigned before = interrupts;
    store32(card + ADDRESS_LOW, address);
    store32(card + ADDRESS_HIGH, address >> 32);
    store32(card + LENGTH, length);
    while (interrupts == before)
        wait_for_interrupt();
    return status;
}

void guest_main(const uint8_t *zero_page);

void guest_main(const uint8_t *zero_page)
{
    interrupts_init();
    apic_init();
    check("MCFG names the ECAM window", pci_init(zero_page));
    bool found = find();
    check("the card is there", found);
    if (!found)
        return;
    store16(pci_config(function, PCI_COMMAND), PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    card = pci_bar(function, 0);
    set_handler(VECTOR, on_interrupt);
    if (command_line_has(zero_page, "intx"))
        io_apic_route(16 + (function >> 3) % 8, VECTOR | IO_APIC_LEVEL | IO_APIC_ACTIVE_LOW,
                      apic_id());
    else
        set_up_msix();
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = i * 7;
    check_equal("checksum", compute((uintptr_t)data, sizeof data), DONE);
    check_equal("it is right", load32(card + RESULT), crc32(data, sizeof data));
    check_equal("outside memory", compute(1ULL << 60, 16), FAILED);
    check_equal("too long", compute((uintptr_t)data, ~0U), FAILED);
    check_equal("one interrupt each", interrupts, 3);
}
