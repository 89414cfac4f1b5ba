/*
 * Long mode: what is on PCI bus 0, by both ways to read configuration space, which must agree; and
 * how large the BARs are and where they lie.
 */
#include "console.h"
#include "interrupts.h"
#include "pci.h"

#define CONFIG_SPACE 256
#define WINDOW_START 0xC0000000
#define WINDOW_END 0xE0000000

struct range {
    uint64_t start, size;
};

static struct range ranges[64];
static unsigned range_count;

static void add_range(unsigned function, unsigned index, uint64_t start, uint64_t size)
{
    print("bar: %u.%u BAR %u at %X size %X\n", function >> 3, function & 7, index, start, size);
    check("BAR size is a power of two", size && !(size & (size - 1)));
    check("BAR is aligned to its size", !(start & (size - 1)));
    check("BAR is in the PCI window", WINDOW_START <= start && start + size <= WINDOW_END);
    bool overlap = false;
    for (unsigned i = 0; i < range_count; i++)
        if (start < ranges[i].start + ranges[i].size && ranges[i].start < start + size)
            overlap = true;
    check("BAR overlaps no other", !overlap);
    ranges[range_count++] = (struct range){ start, size };
}

/* Sizing as PCI 3.0, 6.2.5.1 has it: ones written, the low bits read back as zeros. */
static void size_bars(unsigned function)
{
    uint32_t command = pci_read(function, PCI_COMMAND) & 0xFFFF;
    pci_write(function, PCI_COMMAND, command & ~PCI_COMMAND_MEMORY);
    for (unsigned index = 0; index < PCI_BARS; index++) {
        unsigned offset = PCI_BAR_0 + 4 * index;
        uint32_t low = pci_read(function, offset);
        pci_write(function, offset, 0xFFFFFFFF);
        uint64_t mask = pci_read(function, offset);
        pci_write(function, offset, low);
        if (!mask)
            continue;
        uint64_t start = low & ~0xFULL;
        if (low & PCI_BAR_64) {
            uint32_t high = pci_read(function, offset + 4);
            pci_write(function, offset + 4, 0xFFFFFFFF);
            mask |= (uint64_t)pci_read(function, offset + 4) << 32;
            pci_write(function, offset + 4, high);
            start |= (uint64_t)high << 32;
        } else {
            mask |= 0xFFFFFFFF00000000;
        }
        check_equal("BAR keeps its address", pci_read(function, offset), low);
        add_range(function, index, start, ~(mask & ~0xFULL) + 1);
        index += low & PCI_BAR_64 ? 1 : 0;
    }
    pci_write(function, PCI_COMMAND, command);
}

static bool ways_agree(unsigned function)
{
    for (unsigned offset = 0; offset < CONFIG_SPACE; offset += 4)
        if (pci_read(function, offset) != load32(pci_config(function, offset)))
            return false;
    return true;
}

static void visit(unsigned function)
{
    uint32_t id = pci_read(function, PCI_VENDOR_ID);
    print("pci: %u.%u %x:%x\n", function >> 3, function & 7, id & 0xFFFF, id >> 16);
    check("mechanism 1 and ECAM agree", ways_agree(function));
    size_bars(function);
}

void guest_main(const uint8_t *zero_page);

void guest_main(const uint8_t *zero_page)
{
    interrupts_init();
    check("MCFG names the ECAM window", pci_init(zero_page));
    outl(PCI_CONFIG_ADDRESS, 0x80000000);
    check_equal("mechanism 1 is there", inl(PCI_CONFIG_ADDRESS), 0x80000000);
    unsigned found = 0;
    for (unsigned device = 0; device < 32; device++) {
        unsigned first = PCI_FUNCTION(device, 0);
        if ((pci_read(first, PCI_VENDOR_ID) & 0xFFFF) == 0xFFFF)
            continue;
        unsigned functions = pci_read(first, PCI_HEADER_TYPE & ~3) >> 16 & 0x80 ? 8 : 1;
        for (unsigned i = 0; i < functions; i++) {
            if ((pci_read(first + i, PCI_VENDOR_ID) & 0xFFFF) == 0xFFFF)
                continue;
            visit(first + i);
            found++;
        }
    }
    check("there is a host bridge", (pci_read(0, PCI_VENDOR_ID) & 0xFFFF) != 0xFFFF);
    outl(PCI_CONFIG_ADDRESS, 1U << 31 | PCI_FUNCTION(31, 7) << 8);
    check_equal("nobody answers with ones", inl(PCI_CONFIG_DATA), 0xFFFFFFFF);
    outl(PCI_CONFIG_ADDRESS, 0);
    check_equal("closed, mechanism 1 gives ones", inl(PCI_CONFIG_DATA), 0xFFFFFFFF);
    print("functions: %u\n", found);
}
