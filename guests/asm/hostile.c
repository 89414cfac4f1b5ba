/*
 * A guest that means no good: accesses of every size to pseudo-random ports and addresses in the
 * MMIO hole, preferring those where devices are. It keeps away from what would just end it. The
 * command line has seed=N and accesses=N.
 */
#include "boot.h"
#include "console.h"
#include "pci.h"

#define HOLE_START 0xC0000000U
#define HOLE_SIZE 0x3EC00000U /* up to the IOAPIC */
#define VIRTIO_MMIO 0xE8000000U
#define VIRTIO_MMIO_SIZE 0x200

static uint64_t state;

/* xorshift64 (Marsaglia, 2003). */
static uint64_t random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Whether an access there could reset, switch off or end the machine. */
static bool ends_the_guest(uint16_t port, unsigned size)
{
    static const struct {
        uint16_t first, last;
    } kept_out[] = {
        { I8042_DATA, I8042_DATA },        { I8042_COMMAND, I8042_COMMAND },
        { 0x92, 0x92 },                    { DEBUG_EXIT, DEBUG_EXIT + 3 },
        { PVPANIC, PVPANIC },              { PM1A_CONTROL, PM1A_CONTROL + 1 },
        { RESET_CONTROL, RESET_CONTROL },  { PIC_MASTER, PIC_MASTER + 1 },
        { PIC_SLAVE, PIC_SLAVE + 1 },      { 0x4D0, 0x4D1 },
    };
    for (unsigned i = 0; i < sizeof kept_out / sizeof *kept_out; i++)
        if (port <= kept_out[i].last && kept_out[i].first < port + size)
            return true;
    return port + size > 0x10000;
}

static uint16_t random_port(void)
{
    static const uint16_t favourites[] = { 0x40, 0x43, 0x61, 0x70, 0x71, 0x80, 0x2F8, 0x3F8, 0x3F9,
                                           0x3FA, 0x3FB, 0x3FC, 0x600, 0x608, 0xCF8, 0xCFC };
    uint32_t choice = random();
    if (choice & 1)
        return favourites[choice >> 8 & 15] + (choice >> 16 & 3);
    return choice >> 8;
}

static void poke_port(void)
{
    uint16_t port = random_port();
    uint64_t value = random();
    unsigned kind = random() % 6;
    if (ends_the_guest(port, 1 << kind / 2))
        return;
    switch (kind) {
    case 0: outb(port, value); break;
    case 1: inb(port); break;
    case 2: outw(port, value); break;
    case 3: inw(port); break;
    case 4: outl(port, value); break;
    case 5: inl(port); break;
    }
}

#define MAX_BARS 16

static uintptr_t bars[MAX_BARS];
static unsigned bar_count;
static bool has_virtio_mmio;

static uintptr_t random_address(void)
{
    uint64_t choice = random();
    switch (choice & 3) {
    case 0:
        return HOLE_START + (choice >> 8) % HOLE_SIZE;
    case 1:
        return ecam + ((choice >> 8) % 8 << 15) + (choice >> 16 & 0xFF); /* devices 0 to 7 */
    case 2:
        if (has_virtio_mmio)
            return VIRTIO_MMIO + (choice >> 24 & 3) * VIRTIO_MMIO_SIZE +
                   (choice >> 8 & (choice & 4 ? 0x7C : 0x1FF));
        /* fall through */
    default:
        if (!bar_count)
            return ecam + (choice >> 8 & 0xFFFFF);
        return bars[(choice >> 8) % bar_count] + (choice >> 16 & 0x3FFF);
    }
}

static void poke_memory(void)
{
    uintptr_t address = random_address();
    uint64_t value = random();
    switch (random() & 7) {
    case 0: store8(address, value); break;
    case 1: load8(address); break;
    case 2: store16(address, value); break;
    case 3: load16(address); break;
    case 4: store32(address, value); break;
    case 5: load32(address); break;
    case 6: *(volatile uint64_t *)address = value; break;
    case 7: (void)*(volatile uint64_t *)address; break;
    }
}

static void find_bars(void)
{
    for (unsigned function = 0; function < 256 && bar_count < MAX_BARS; function += 8)
        for (unsigned index = 0; index < PCI_BARS && bar_count < MAX_BARS; index++)
            if (load16(pci_config(function, PCI_VENDOR_ID)) != 0xFFFF && pci_bar(function, index))
                bars[bar_count++] = pci_bar(function, index);
    has_virtio_mmio = load32(VIRTIO_MMIO) == 0x74726976;
}

void guest_main(const uint8_t *zero_page);

void guest_main(const uint8_t *zero_page)
{
    pci_init(zero_page);
    find_bars();
    state = command_line_number(zero_page, "seed", 1) * 0x9E3779B97F4A7C15;
    uint32_t accesses = command_line_number(zero_page, "accesses", 1000);
    print("%u BARs, %u accesses\n", bar_count, accesses);
    for (uint32_t i = 0; i < accesses; i++) {
        if (random() & 1)
            poke_port();
        else
            poke_memory();
    }
    console_init();
    print("\nsurvived\n");
}
