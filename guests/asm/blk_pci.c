/* The guest `blk` over virtio-pci (Virtio 1.2, 4.1). */
#include "blk.h"

#include "apic.h"
#include "boot.h"
#include "console.h"
#include "interrupts.h"
#include "pci.h"

#define VIRTIO_VENDOR 0x1AF4
#define VIRTIO_BLK_DEVICE (0x1040 + VIRTIO_BLK)
#define NO_VECTOR 0xFFFF

/* struct virtio_pci_common_cfg (4.1.4.3): offsets. */
enum {
    DEVICE_FEATURE_SELECT = 0x00, DEVICE_FEATURE = 0x04,
    DRIVER_FEATURE_SELECT = 0x08, DRIVER_FEATURE = 0x0C,
    CONFIG_MSIX_VECTOR = 0x10, NUM_QUEUES = 0x12, DEVICE_STATUS = 0x14,
    QUEUE_SELECT = 0x16, QUEUE_SIZE = 0x18, QUEUE_MSIX_VECTOR = 0x1A,
    QUEUE_ENABLE = 0x1C, QUEUE_NOTIFY_OFF = 0x1E,
    QUEUE_DESC = 0x20, QUEUE_DRIVER = 0x28, QUEUE_DEVICE = 0x30,
};

/* cfg_type of struct virtio_pci_cap (4.1.4). */
enum { COMMON_CFG = 1, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG };

static unsigned function;
static uintptr_t common, notify, isr, config;

/* Where in configuration space the virtio capability of this type is; 0 if there is none. */
static unsigned virtio_capability(uint8_t type)
{
    unsigned at = 0;
    while ((at = pci_capability(function, PCI_CAPABILITY_VENDOR, at)))
        if (load8(pci_config(function, at + 3)) == type)
            break;
    return at;
}

/* The address that a virtio capability points at. */
static uintptr_t structure(uint8_t type)
{
    unsigned at = virtio_capability(type);
    if (!at)
        return 0;
    return pci_bar(function, load8(pci_config(function, at + 4))) +
           load32(pci_config(function, at + 8));
}

static bool find_device(void)
{
    for (function = 0; function < 256; function++)
        if (load32(pci_config(function, PCI_VENDOR_ID)) ==
            (VIRTIO_BLK_DEVICE << 16 | VIRTIO_VENDOR))
            return true;
    return false;
}

static void find_structures(void)
{
    store16(pci_config(function, PCI_COMMAND), PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    common = structure(COMMON_CFG);
    isr = structure(ISR_CFG);
    config = structure(DEVICE_CFG);
    notify = structure(NOTIFY_CFG);
    check("common configuration", common);
    check("notifications", notify);
    check("interrupt status", isr);
    check("device configuration", config);
    store16(common + QUEUE_SELECT, 0);
    uint32_t multiplier = load32(pci_config(function, virtio_capability(NOTIFY_CFG) + 16));
    notify += load16(common + QUEUE_NOTIFY_OFF) * multiplier;
}

/* Read a register through configuration space alone (4.1.4.9). */
static void test_configuration_access(void)
{
    unsigned from = virtio_capability(COMMON_CFG), window = virtio_capability(PCI_CFG);
    check("configuration access", window);
    store8(pci_config(function, window + 4), load8(pci_config(function, from + 4)));
    store32(pci_config(function, window + 8),
            load32(pci_config(function, from + 8)) + NUM_QUEUES);
    store32(pci_config(function, window + 12), 2);
    check_equal("configuration access reads the number of queues",
                load16(pci_config(function, window + 16)), load16(common + NUM_QUEUES));
}

static uint8_t status(void) { return load8(common + DEVICE_STATUS); }

static void set_status(uint8_t status) { store8(common + DEVICE_STATUS, status); }

static uint32_t offered(unsigned word)
{
    store32(common + DEVICE_FEATURE_SELECT, word);
    return load32(common + DEVICE_FEATURE);
}

static void accept(unsigned word, uint32_t bits)
{
    store32(common + DRIVER_FEATURE_SELECT, word);
    store32(common + DRIVER_FEATURE, bits);
}

static uint32_t read_config(unsigned offset) { return load32(config + offset); }

INTERRUPT_HANDLER(on_msix)
{
    interrupts++;
    end_of_interrupt();
}

INTERRUPT_HANDLER(on_intx)
{
    if (load8(isr) & 1) /* reading it takes the interrupt back */
        interrupts++;
    end_of_interrupt();
}

static void set_up_msix(void)
{
    unsigned capability = pci_capability(function, PCI_CAPABILITY_MSIX, 0);
    check("MSI-X capability", capability);
    uint16_t control = load16(pci_config(function, capability + 2));
    check("MSI-X has a vector for the queue", (control & 0x7FF) >= 1);
    uint32_t place = load32(pci_config(function, capability + 4));
    uintptr_t entry = pci_bar(function, place & 7) + (place & ~7U) + 16; /* entry 1 */
    store32(entry + 0, LOCAL_APIC | apic_id() << 12);
    store32(entry + 4, 0);
    store32(entry + 8, QUEUE_VECTOR);
    store32(entry + 12, 0);
    store16(pci_config(function, capability + 2), control | 0x8000);
    store16(common + CONFIG_MSIX_VECTOR, NO_VECTOR);
    store16(common + QUEUE_MSIX_VECTOR, 1);
    check_equal("queue takes its vector", load16(common + QUEUE_MSIX_VECTOR), 1);
    set_handler(QUEUE_VECTOR, on_msix);
}

static void set_up_intx(void)
{
    unsigned pin = load8(pci_config(function, PCI_INTERRUPT_PIN));
    check_equal("interrupt pin is INTA", pin, 1);
    set_handler(QUEUE_VECTOR, on_intx);
    /* As the DSDT's _PRT has it. */
    io_apic_route(16 + (function >> 3) % 8, QUEUE_VECTOR | IO_APIC_LEVEL | IO_APIC_ACTIVE_LOW,
                  apic_id());
}

static void set_up_interrupts(const uint8_t *zero_page)
{
    if (command_line_has(zero_page, "intx"))
        set_up_intx();
    else
        set_up_msix();
}

static unsigned queue_size(void) { return load16(common + QUEUE_SIZE); }

static void set_queue_address(unsigned offset, uintptr_t address)
{
    store32(common + offset, address);
    store32(common + offset + 4, address >> 32);
}

static void enable_queue(unsigned size, uintptr_t descriptors, uintptr_t available, uintptr_t used)
{
    store16(common + QUEUE_SIZE, size);
    set_queue_address(QUEUE_DESC, descriptors);
    set_queue_address(QUEUE_DRIVER, available);
    set_queue_address(QUEUE_DEVICE, used);
    store16(common + QUEUE_ENABLE, 1);
}

static void ring(void) { store16(notify, 0); }

const struct transport *find_pci(const uint8_t *zero_page)
{
    static const struct transport pci = {
        status,      set_status,        offered,    accept,
        read_config, set_up_interrupts, queue_size, enable_queue,
        ring,
    };
    check("MCFG names the ECAM window", pci_init(zero_page));
    if (!find_device())
        return NULL;
    find_structures();
    test_configuration_access();
    return &pci;
}
