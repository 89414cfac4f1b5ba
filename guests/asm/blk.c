/*
 * Long mode: a virtio-blk driver over virtio-pci (Virtio 1.2: 2.7, 4.1, 5.2), with one split
 * virtqueue. Words on the command line:
 *
 *   intx      interrupts by INTA and the IOAPIC instead of MSI-X
 *   readonly  the disk is: a write must fail, and none is tried otherwise
 *   hold      after the flush print `flushed` and stand still, for the test to kill the VMM
 *
 * The test fills byte i of sector s with s ^ i; we write sectors 5 and up with the complement.
 */
#include "boot.h"
#include "apic.h"
#include "console.h"
#include "interrupts.h"
#include "pci.h"

#define VIRTIO_VENDOR 0x1AF4
#define VIRTIO_BLK_DEVICE 0x1042

#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4
#define STATUS_FEATURES_OK 8

#define VIRTIO_BLK_F_RO 5
#define VIRTIO_BLK_F_FLUSH 9
#define VIRTIO_F_INDIRECT_DESC 28
#define VIRTIO_F_VERSION_1 32

#define VIRTIO_BLK_T_IN 0
#define VIRTIO_BLK_T_OUT 1
#define VIRTIO_BLK_T_FLUSH 4
#define VIRTIO_BLK_T_GET_ID 8
#define VIRTIO_BLK_T_UNKNOWN 77

#define VIRTIO_BLK_S_OK 0
#define VIRTIO_BLK_S_IOERR 1
#define VIRTIO_BLK_S_UNSUPP 2
#define STATUS_UNTOUCHED 0xEE

#define SECTOR 512
#define WRITTEN_SECTOR 5
#define WRITTEN_SECTORS 3

#define QUEUE_SIZE 16
#define NO_VECTOR 0xFFFF
#define QUEUE_VECTOR 0x50 /* the CPU's */
#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4

/* struct virtio_pci_common_cfg (4.1.4.3): offsets. */
enum {
    DEVICE_FEATURE_SELECT = 0x00, DEVICE_FEATURE = 0x04,
    DRIVER_FEATURE_SELECT = 0x08, DRIVER_FEATURE = 0x0C,
    CONFIG_MSIX_VECTOR = 0x10, NUM_QUEUES = 0x12, DEVICE_STATUS = 0x14,
    QUEUE_SELECT = 0x16, QUEUE_SIZE_REGISTER = 0x18, QUEUE_MSIX_VECTOR = 0x1A,
    QUEUE_ENABLE = 0x1C, QUEUE_NOTIFY_OFF = 0x1E,
    QUEUE_DESC = 0x20, QUEUE_DRIVER = 0x28, QUEUE_DEVICE = 0x30,
};

/* cfg_type of struct virtio_pci_cap (4.1.4). */
enum { COMMON_CFG = 1, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG };

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

struct request_header {
    uint32_t type, reserved;
    uint64_t sector;
};

static _Alignas(4096) struct descriptor descriptors[QUEUE_SIZE];
static struct {
    uint16_t flags;
    volatile uint16_t index;
    uint16_t ring[QUEUE_SIZE], used_event;
} available;
static _Alignas(4) struct {
    uint16_t flags;
    volatile uint16_t index;
    struct {
        uint32_t id, length;
    } ring[QUEUE_SIZE];
    uint16_t available_event;
} used;

static unsigned function;
static uintptr_t common, notify, isr, config;
static volatile unsigned interrupts;

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

static bool offers(unsigned feature)
{
    store32(common + DEVICE_FEATURE_SELECT, feature / 32);
    return load32(common + DEVICE_FEATURE) >> feature % 32 & 1;
}

static void negotiate(void)
{
    store8(common + DEVICE_STATUS, 0);
    while (load8(common + DEVICE_STATUS))
        ;
    store8(common + DEVICE_STATUS, STATUS_ACKNOWLEDGE);
    store8(common + DEVICE_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    check("version 1 is offered", offers(VIRTIO_F_VERSION_1));
    check("flush is offered", offers(VIRTIO_BLK_F_FLUSH));
    check("indirect descriptors are offered", offers(VIRTIO_F_INDIRECT_DESC));
    store32(common + DRIVER_FEATURE_SELECT, 0);
    store32(common + DRIVER_FEATURE, 1U << VIRTIO_BLK_F_FLUSH | 1U << VIRTIO_F_INDIRECT_DESC |
                                         offers(VIRTIO_BLK_F_RO) << VIRTIO_BLK_F_RO);
    store32(common + DRIVER_FEATURE_SELECT, 1);
    store32(common + DRIVER_FEATURE, 1U << (VIRTIO_F_VERSION_1 - 32));
    uint8_t status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
    store8(common + DEVICE_STATUS, status);
    check_equal("features are accepted", load8(common + DEVICE_STATUS), status);
}

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

static void set_queue_address(unsigned offset, const volatile void *address)
{
    store32(common + offset, (uintptr_t)address);
    store32(common + offset + 4, (uintptr_t)address >> 32);
}

static void enable_queue(void)
{
    check_between("queue's greatest size", load16(common + QUEUE_SIZE_REGISTER), QUEUE_SIZE, 32768);
    store16(common + QUEUE_SIZE_REGISTER, QUEUE_SIZE);
    set_queue_address(QUEUE_DESC, descriptors);
    set_queue_address(QUEUE_DRIVER, &available);
    set_queue_address(QUEUE_DEVICE, &used);
    store16(common + QUEUE_ENABLE, 1);
    store8(common + DEVICE_STATUS, load8(common + DEVICE_STATUS) | STATUS_DRIVER_OK);
}

/* A request's three parts, at `table[0]` to `table[2]`; the links count from `first`. */
struct request {
    struct request_header header;
    volatile uint8_t status;
};

static void describe(struct descriptor *table, unsigned first, struct request *request, void *data,
                     uint32_t length, bool device_writes)
{
    unsigned n = 0;
    table[n++] = (struct descriptor){ (uintptr_t)&request->header, sizeof request->header,
                                      DESC_NEXT, first + 1 };
    if (length)
        table[n++] = (struct descriptor){ (uintptr_t)data, length,
                                          DESC_NEXT | (device_writes ? DESC_WRITE : 0), first + 2 };
    table[n] = (struct descriptor){ (uintptr_t)&request->status, 1, DESC_WRITE, 0 };
    request->status = STATUS_UNTOUCHED;
}

static void offer(unsigned head)
{
    available.ring[available.index % QUEUE_SIZE] = head;
    __asm__ volatile("" : : : "memory");
    available.index++;
}

static void kick_and_wait(unsigned requests)
{
    uint16_t wanted = used.index + requests;
    unsigned before = interrupts;
    store16(notify, 0);
    while (used.index != wanted || interrupts == before)
        wait_for_interrupt();
}

/* One request with the data in one piece; its status. What the used ring says is checked. */
static uint8_t transfer(const char *name, uint32_t type, uint64_t sector, void *data,
                        uint32_t length, bool device_writes)
{
    static struct request request;
    request.header = (struct request_header){ type, 0, sector };
    describe(descriptors, 0, &request, data, length, device_writes);
    unsigned slot = used.index % QUEUE_SIZE;
    offer(0);
    kick_and_wait(1);
    bool whole = request.status == VIRTIO_BLK_S_OK;
    if (used.ring[slot].id || (whole && used.ring[slot].length != length * device_writes + 1))
        print("FAIL: %s: used ring says %u, %u bytes\n", name, used.ring[slot].id,
              used.ring[slot].length);
    return request.status;
}

static uint8_t data[8 * SECTOR];

static uint8_t pattern(uint64_t sector, unsigned index) { return sector ^ index; }

static bool has_pattern(const uint8_t *bytes, uint64_t sector, unsigned sectors, uint8_t flip)
{
    for (unsigned i = 0; i < sectors * SECTOR; i++)
        if (bytes[i] != (pattern(sector + i / SECTOR, i % SECTOR) ^ flip))
            return false;
    return true;
}

static void test_reads(void)
{
    check_equal("read", transfer("read", VIRTIO_BLK_T_IN, 0, data, SECTOR, true), 0);
    check("sector 0 is what the test wrote", has_pattern(data, 0, 1, 0));
    check_equal("read of 4", transfer("read of 4", VIRTIO_BLK_T_IN, 1, data, 4 * SECTOR, true), 0);
    check("sectors 1 to 4 are", has_pattern(data, 1, 4, 0));
}

static void test_two_at_once(void)
{
    static struct request requests[2];
    for (unsigned i = 0; i < 2; i++) {
        requests[i].header = (struct request_header){ VIRTIO_BLK_T_IN, 0, 8 + i };
        describe(descriptors + 3 * i, 3 * i, &requests[i], data + i * SECTOR, SECTOR, true);
        offer(3 * i);
    }
    kick_and_wait(2);
    check("two requests at once", !requests[0].status && !requests[1].status);
    check("each has its data", has_pattern(data, 8, 2, 0));
}

static void test_indirect(void)
{
    static struct descriptor table[3];
    static struct request request;
    request.header = (struct request_header){ VIRTIO_BLK_T_IN, 0, 10 };
    describe(table, 0, &request, data, SECTOR, true);
    descriptors[7] = (struct descriptor){ (uintptr_t)table, sizeof table, DESC_INDIRECT, 0 };
    offer(7);
    kick_and_wait(1);
    check("indirect descriptors", !request.status && has_pattern(data, 10, 1, 0));
}

static void test_identity(void)
{
    data[20] = 0;
    check_equal("identity", transfer("identity", VIRTIO_BLK_T_GET_ID, 0, data, 20, true), 0);
    print("serial: %s\n", (const char *)data);
}

static void test_errors(uint64_t capacity)
{
    check_equal("read behind the end",
                transfer("read behind the end", VIRTIO_BLK_T_IN, capacity, data, SECTOR, true),
                VIRTIO_BLK_S_IOERR);
    check_equal("read at 2^64 - 1",
                transfer("read at 2^64 - 1", VIRTIO_BLK_T_IN, ~0ULL, data, SECTOR, true),
                VIRTIO_BLK_S_IOERR);
    check_equal("unknown request",
                transfer("unknown request", VIRTIO_BLK_T_UNKNOWN, 0, data, SECTOR, true),
                VIRTIO_BLK_S_UNSUPP);
}

static void fill(void)
{
    for (unsigned i = 0; i < WRITTEN_SECTORS * SECTOR; i++)
        data[i] = ~pattern(WRITTEN_SECTOR + i / SECTOR, i % SECTOR);
}

static void test_writes(void)
{
    uint32_t length = WRITTEN_SECTORS * SECTOR;
    fill();
    check_equal("write", transfer("write", VIRTIO_BLK_T_OUT, WRITTEN_SECTOR, data, length, false),
                0);
    check_equal("flush", transfer("flush", VIRTIO_BLK_T_FLUSH, 0, NULL, 0, false), 0);
    print("flushed\n");
}

static void test_read_back(void)
{
    uint32_t length = WRITTEN_SECTORS * SECTOR;
    for (unsigned i = 0; i < length; i++)
        data[i] = 0;
    check_equal("read back",
                transfer("read back", VIRTIO_BLK_T_IN, WRITTEN_SECTOR, data, length, true), 0);
    check("what was written reads back", has_pattern(data, WRITTEN_SECTOR, WRITTEN_SECTORS, 0xFF));
}

static void test_readonly(void)
{
    fill();
    check("read-only is offered", offers(VIRTIO_BLK_F_RO));
    check_equal("write to a read-only disk",
                transfer("write", VIRTIO_BLK_T_OUT, WRITTEN_SECTOR, data, SECTOR, false),
                VIRTIO_BLK_S_IOERR);
}

void guest_main(const uint8_t *zero_page);

void guest_main(const uint8_t *zero_page)
{
    interrupts_init();
    apic_init();
    check("MCFG names the ECAM window", pci_init(zero_page));
    check("there is a virtio disk", find_device());
    if (function == 256)
        return;
    find_structures();
    test_configuration_access();
    negotiate();
    if (command_line_has(zero_page, "intx"))
        set_up_intx();
    else
        set_up_msix();
    enable_queue();
    uint64_t capacity = load32(config) | (uint64_t)load32(config + 4) << 32;
    print("capacity: %X\n", capacity);
    test_reads();
    test_two_at_once();
    test_indirect();
    test_identity();
    test_errors(capacity);
    if (command_line_has(zero_page, "readonly")) {
        test_readonly();
        return;
    }
    test_writes();
    if (command_line_has(zero_page, "hold"))
        for (;;)
            wait_for_interrupt();
    test_read_back();
}
