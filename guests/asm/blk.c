/*
 * Long mode: a virtio-blk driver (Virtio 1.2: 2.7, 5.2) with one split virtqueue, over virtio-pci
 * or, if the command line says where that is, virtio-mmio. Words on the command line:
 *
 *   virtio_mmio.device=SIZE@BASE:IRQ  as for Linux
 *   intx      with PCI: interrupts by INTA and the IOAPIC instead of MSI-X
 *   edge      with MMIO: take the interrupt line's edges, not its level
 *   readonly  the disk is: a write must fail, and none is tried otherwise
 *   hold      after the flush print `flushed` and stand still, for the test to kill the VMM
 *
 * The test fills byte i of sector s with s ^ i; we write sectors 5 and up with the complement.
 */
#include "blk.h"

#include "apic.h"
#include "boot.h"
#include "console.h"
#include "interrupts.h"

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
#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4

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

static const struct transport *transport;
volatile unsigned interrupts;

static bool offers(unsigned feature)
{
    return transport->offered(feature / 32) >> feature % 32 & 1;
}

static void negotiate(void)
{
    transport->set_status(0);
    while (transport->status())
        ;
    transport->set_status(STATUS_ACKNOWLEDGE);
    transport->set_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    check("version 1 is offered", offers(VIRTIO_F_VERSION_1));
    check("flush is offered", offers(VIRTIO_BLK_F_FLUSH));
    check("indirect descriptors are offered", offers(VIRTIO_F_INDIRECT_DESC));
    transport->accept(0, 1U << VIRTIO_BLK_F_FLUSH | 1U << VIRTIO_F_INDIRECT_DESC |
                             offers(VIRTIO_BLK_F_RO) << VIRTIO_BLK_F_RO);
    transport->accept(1, 1U << (VIRTIO_F_VERSION_1 - 32));
    uint8_t status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
    transport->set_status(status);
    check_equal("features are accepted", transport->status(), status);
}

static void enable_queue(void)
{
    check_between("queue's greatest size", transport->queue_size(), QUEUE_SIZE, 32768);
    transport->enable_queue(QUEUE_SIZE, (uintptr_t)descriptors, (uintptr_t)&available,
                            (uintptr_t)&used);
    transport->set_status(transport->status() | STATUS_DRIVER_OK);
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
    transport->notify();
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
    transport = command_line_value(zero_page, "virtio_mmio.device") ? find_mmio(zero_page)
                                                                    : find_pci(zero_page);
    check("there is a virtio disk", transport);
    if (!transport)
        return;
    negotiate();
    transport->set_up_interrupts(zero_page);
    enable_queue();
    uint64_t capacity = transport->config(0) | (uint64_t)transport->config(4) << 32;
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
