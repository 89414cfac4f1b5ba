/*
 * Lesson 11: a disk. A driver for virtio-blk on the PCI bus, first by polling, then by interrupt.
 *
 * Driver and device share a queue in memory. The driver describes a request by a chain of
 * descriptors (address, length, who writes), puts the chain's first number into the available ring
 * and rings a doorbell; the device does the request, and puts the number into the used ring. To
 * know when, the driver looks there again and again, or lets the device interrupt it.
 *
 * Read: Virtio 1.2, 2.7 (split virtqueues), 3.1.1 (initialization), 4.1.4 (where the registers
 * are), 4.1.4.3 (common configuration), 4.1.5.2 (the doorbell), 5.2 (block device); PCI Local Bus
 * Specification 3.0, 6.8.2 (MSI-X); Intel SDM volume 3, 11.11 (message signalled interrupts).
 *
 *     pyvmm run -d disk.raw -k build/lessons/11_blk.elf
 */
#include "lesson.h"

/* PCI, as in lesson 10. */

static unsigned function; /* the disk's */

static uint32_t pci_read(unsigned offset)
{
    out32(0xCF8, 0x80000000 | function << 8 | (offset & 0xFC));
    return in32(0xCFC);
}

static void pci_write(unsigned offset, uint32_t value)
{
    out32(0xCF8, 0x80000000 | function << 8 | (offset & 0xFC));
    out32(0xCFC, value);
}

static uint8_t pci_read8(unsigned offset) { return pci_read(offset) >> 8 * (offset & 3); }

static uint64_t pci_bar(unsigned number)
{
    uint64_t bar = pci_read(0x10 + 4 * number);
    if (bar & 0x4)
        bar |= (uint64_t)pci_read(0x10 + 4 * number + 4) << 32;
    return bar & ~15ULL;
}

/* The device's registers (4.1.4): structures in its BARs, each found by a capability. */

#define VIRTIO_DISK 0x10421AF4 /* device 0x1040 + 2, vendor */
enum { COMMON_CFG = 1, NOTIFY_CFG = 2, DEVICE_CFG = 4 };

static uint64_t common, doorbell, config, msix_table;
static uint32_t doorbell_multiplier;
static unsigned msix_capability;

/* struct virtio_pci_common_cfg (4.1.4.3). */
#define DEVICE_FEATURE_SELECT REG32(common + 0x00)
#define DEVICE_FEATURE REG32(common + 0x04)
#define DRIVER_FEATURE_SELECT REG32(common + 0x08)
#define DRIVER_FEATURE REG32(common + 0x0C)
#define DEVICE_STATUS REG8(common + 0x14)
#define QUEUE_SELECT REG16(common + 0x16)
#define QUEUE_SIZE REG16(common + 0x18)
#define QUEUE_MSIX_VECTOR REG16(common + 0x1A)
#define QUEUE_ENABLE REG16(common + 0x1C)
#define QUEUE_NOTIFY_OFF REG16(common + 0x1E)
#define QUEUE_DESC 0x20 /* these three are addresses of 64 bits, written in halves */
#define QUEUE_DRIVER 0x28
#define QUEUE_DEVICE 0x30

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

static bool find_disk(void)
{
    for (function = 0; function < 256; function += 8)
        if (pci_read(0) == VIRTIO_DISK)
            break;
    if (function == 256)
        return false;
    pci_write(0x04, 0x6); /* it decodes memory, and may access ours */
    unsigned left = 48;
    for (unsigned at = pci_read8(0x34); at && left--; at = pci_read8(at + 1)) {
        uint8_t id = pci_read8(at), type = pci_read8(at + 3);
        uint64_t place = pci_bar(pci_read8(at + 4) & 7) + pci_read(at + 8);
        if (id == 0x11) {
            msix_capability = at;
            msix_table = pci_bar(pci_read(at + 4) & 7) + (pci_read(at + 4) & ~7U);
        } else if (id == 0x09 && type == COMMON_CFG) {
            common = place;
        } else if (id == 0x09 && type == NOTIFY_CFG) {
            doorbell = place;
            doorbell_multiplier = pci_read(at + 16);
        } else if (id == 0x09 && type == DEVICE_CFG) {
            config = place;
        }
    }
    return common && doorbell && config && msix_capability;
}

/* The queue (2.7). */

#define SIZE 4 /* one request of three descriptors is all that is ever in it */
enum { NEXT = 1, DEVICE_WRITES = 2 };
enum { NO_INTERRUPT = 1 };

static _Alignas(16) struct {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
} descriptors[SIZE];
static volatile struct {
    uint16_t flags, index, ring[SIZE];
} available;
static _Alignas(4) volatile struct {
    uint16_t flags, index;
    struct {
        uint32_t id, length;
    } ring[SIZE];
} used;

static void set_address(unsigned offset, const volatile void *address)
{
    REG32(common + offset) = (uintptr_t)address;
    REG32(common + offset + 4) = (uintptr_t)address >> 32;
}

static bool start_disk(void)
{
    DEVICE_STATUS = 0; /* reset */
    while (DEVICE_STATUS)
        ;
    DEVICE_STATUS = ACKNOWLEDGE;
    DEVICE_STATUS = ACKNOWLEDGE | DRIVER;
    DEVICE_FEATURE_SELECT = 1; /* features 32 to 63 */
    if (!(DEVICE_FEATURE & 1))
        return false; /* VIRTIO_F_VERSION_1 is all that we want */
    DRIVER_FEATURE_SELECT = 0;
    DRIVER_FEATURE = 0;
    DRIVER_FEATURE_SELECT = 1;
    DRIVER_FEATURE = 1;
    DEVICE_STATUS = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    if (!(DEVICE_STATUS & FEATURES_OK))
        return false;
    QUEUE_SELECT = 0;
    QUEUE_SIZE = SIZE;
    QUEUE_MSIX_VECTOR = 0; /* entry 0 of the MSI-X table */
    set_address(QUEUE_DESC, descriptors);
    set_address(QUEUE_DRIVER, &available);
    set_address(QUEUE_DEVICE, &used);
    doorbell += QUEUE_NOTIFY_OFF * doorbell_multiplier;
    QUEUE_ENABLE = 1;
    DEVICE_STATUS = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    return true;
}

/* A request (5.2.6): a header, the data, and a byte for the device's answer. */

#define SECTOR 512
enum { IN = 0, OUT = 1 };

static struct {
    uint32_t type, reserved;
    uint64_t sector;
} header;
static char data[SECTOR + 1];
static volatile uint8_t status;

static void submit(uint32_t type, uint64_t sector)
{
    header.type = type;
    header.sector = sector;
    status = 0xFF;
    descriptors[0].address = (uintptr_t)&header;
    descriptors[0].length = sizeof header;
    descriptors[0].flags = NEXT;
    descriptors[0].next = 1;
    descriptors[1].address = (uintptr_t)data;
    descriptors[1].length = SECTOR;
    descriptors[1].flags = NEXT | (type == IN ? DEVICE_WRITES : 0);
    descriptors[1].next = 2;
    descriptors[2].address = (uintptr_t)&status;
    descriptors[2].length = 1;
    descriptors[2].flags = DEVICE_WRITES;
    available.ring[available.index % SIZE] = 0; /* the chain begins at descriptor 0 */
    compiler_barrier();
    available.index++; /* from here on the device may see it */
    compiler_barrier();
    REG16(doorbell) = 0; /* the queue's number */
}

/* Done when the device has used as many requests as we have made available. */
static bool finished(void) { return used.index == available.index; }

/* Interrupts, by MSI-X: the device writes a vector's number to the local APIC, as to memory. */

#define LOCAL_APIC 0xFEE00000
#define DISK_VECTOR 0x50

void interrupt(struct frame *frame)
{
    if (frame->vector != DISK_VECTOR)
        unexpected(frame);
    REG32(LOCAL_APIC + 0x0B0) = 0; /* end of interrupt, as in lesson 6 */
}

static void set_up_interrupts(void)
{
    load_interrupt_table();
    out8(0x21, 0xFF); /* not by the PICs */
    out8(0xA1, 0xFF);
    REG32(LOCAL_APIC + 0x0F0) = 0x1FF; /* on */
    REG32(msix_table + 0) = LOCAL_APIC | REG32(LOCAL_APIC + 0x020) >> 24 << 12; /* to this CPU */
    REG32(msix_table + 4) = 0;
    REG32(msix_table + 8) = DISK_VECTOR;
    REG32(msix_table + 12) = 0; /* not masked */
    pci_write(msix_capability, pci_read(msix_capability) | 1U << 31);
}

static void transfer(uint32_t type, uint64_t sector, bool poll)
{
    available.flags = poll ? NO_INTERRUPT : 0;
    submit(type, sector);
    while (!finished())
        if (!poll)
            wait_for_interrupt();
    compiler_barrier();
    print("%s sector %d by %s: status %d\n", type == IN ? "read" : "write", (unsigned)sector,
          poll ? "polling" : "interrupt", status);
}

void lesson(const uint8_t *zero_page)
{
    (void)zero_page;
    if (!find_disk()) {
        print("there is no virtio disk: pyvmm run -d disk.raw …\n");
        return;
    }
    set_up_interrupts();
    if (!start_disk()) {
        print("the disk doesn't want us\n");
        return;
    }
    uint64_t sectors = REG32(config) | (uint64_t)REG32(config + 4) << 32;
    print("the disk has %d sectors\n", (unsigned)sectors);
    transfer(IN, 0, true);
    print("it begins: %s\n", data);
    static const char text[] = "written by lesson 11";
    for (unsigned i = 0; i < SECTOR; i++)
        data[i] = i < sizeof text ? text[i] : 0;
    transfer(OUT, 1, false);
    data[0] = 0;
    transfer(IN, 1, false);
    print("it reads: %s\n", data);
    transfer(IN, sectors, true); /* behind the last: VIRTIO_BLK_S_IOERR */
}
