/*
 * Long mode: a driver that means no good, of a disk or, with `net` on the command line, of a network
 * card (Virtio 1.2), behind either transport: chains that break every rule, resets in the middle of
 * requests, storms of doorbells. After each the device has to be as good as new. With `broken`
 * instead, it waits for the host's side to fail while it writes (`reading`: reads), and goes on.
 * `ram=N` says where RAM ends, in MiB.
 */
#include "boot.h"
#include "console.h"
#include "virtio.h"

#define VIRTIO_F_INDIRECT_DESC (1ULL << 28)
#define VIRTIO_NET_F_STATUS (1 << 16)
#define VIRTIO_NET_STATUS_AT 6
#define VIRTIO_BLK_T_IN 0
#define VIRTIO_BLK_T_OUT 1
#define VIRTIO_BLK_S_OK 0
#define VIRTIO_BLK_S_IOERR 1

#define SECTOR 512
#define MAGIC 0x600DF00D
#define DEPTH 16
#define LARGE 65536
#define ROUNDS 100
#define RINGS 20000

static struct virtio_device device;
static struct virtqueue receive_queue, queue;
static bool is_net;
static uint64_t ram_end;

static struct request {
    uint32_t type, reserved;
    uint64_t sector;
    volatile uint8_t status;
} requests[DEPTH];
static _Alignas(4096) uint8_t data[DEPTH][LARGE];
static _Alignas(16) struct descriptor table[VIRTQUEUE_SIZE + 2];

static void start(void)
{
    virtio_negotiate(&device, VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC |
                                  (is_net ? VIRTIO_NET_F_STATUS : 0));
    if (is_net)
        virtio_queue(&device, &receive_queue, 0);
    virtio_queue(&device, &queue, is_net);
    virtio_ready(&device);
}

/* Slot n has three descriptors from 3n: a request, data and a status; or one, a packet. */
static void submit(unsigned slot, unsigned type, uint64_t sector, uint32_t length)
{
    struct request *request = &requests[slot];
    struct descriptor *part = &queue.descriptors[3 * slot];
    *request = (struct request){ .type = type, .sector = sector, .status = 0xFF };
    if (is_net) {
        part[0] = (struct descriptor){ (uintptr_t)data[slot], length, 0, 0 };
    } else {
        part[0] = (struct descriptor){ (uintptr_t)request, 16, DESC_NEXT, 3 * slot + 1 };
        part[1] = (struct descriptor){ (uintptr_t)data[slot], length,
                                       DESC_NEXT | (type == VIRTIO_BLK_T_IN ? DESC_WRITE : 0),
                                       3 * slot + 2 };
        part[2] = (struct descriptor){ (uintptr_t)&request->status, 1, DESC_WRITE, 0 };
    }
    virtqueue_offer(&queue, 3 * slot);
}

static void wait(void)
{
    uint16_t head;
    uint32_t length;
    while (!virtqueue_take(&queue, &head, &length))
        __asm__ volatile("pause");
    virtqueue_stay_quiet(&queue);
}

/* The status of one request; of a packet that it has been used. */
static uint8_t request(unsigned type, uint64_t sector)
{
    submit(0, type, sector, SECTOR);
    virtqueue_kick(&queue);
    wait();
    return is_net ? VIRTIO_BLK_S_OK : requests[0].status;
}

static uint32_t *first_word(unsigned slot) { return (uint32_t *)data[slot]; }

/* A disk says so at its beginning. */
static bool works(void)
{
    *first_word(0) = 0;
    return request(VIRTIO_BLK_T_IN, 0) == VIRTIO_BLK_S_OK && (is_net || *first_word(0) == MAGIC);
}

/* The device asks for a reset, and gets it. */
static void expect_refusal(const char *name)
{
    virtqueue_ring(&queue);
    while (!(virtio_status(&device) & VIRTIO_NEEDS_RESET))
        __asm__ volatile("pause");
    bool untouched = !(queue.used[0] >> 16);
    start();
    check(name, untouched && works());
}

static void refuse(const char *name, uint64_t address, uint32_t length, uint16_t flags,
                   uint16_t next)
{
    start();
    queue.descriptors[0] = (struct descriptor){ address, length, flags, next };
    virtqueue_offer(&queue, 0);
    expect_refusal(name);
}

static void refuse_table(const char *name, unsigned entries, uint64_t address, uint16_t flags,
                         uint16_t next)
{
    for (unsigned i = 0; i < entries; i++)
        table[i] = (struct descriptor){ (uintptr_t)data[0], 16, DESC_NEXT, i + 1 };
    table[entries - 1] = (struct descriptor){ address, 16, flags, next };
    refuse(name, (uintptr_t)table, entries * sizeof *table, DESC_INDIRECT, 0);
}

static void break_the_rules(void)
{
    uintptr_t good = (uintptr_t)data[0];
    queue.descriptors[1] = (struct descriptor){ good, 16, DESC_NEXT, 0 };
    refuse("loop", good, 16, DESC_NEXT, 1);
    refuse("descriptor that is its own successor", good, 16, DESC_NEXT, 0);
    refuse("successor behind the queue", good, 16, DESC_NEXT, 0xFFFF);
    refuse("behind RAM", ram_end, 16, 0, 0);
    refuse("across the end of RAM", ram_end - 8, 16, DESC_WRITE, 0);
    refuse("at the end of all addresses", -8ULL, 16, 0, 0);
    refuse("in the MMIO hole", device.registers, 16, DESC_WRITE, 0);
    refuse("of length 0", good, 0, 0, 0);
    refuse("4 GiB", good, 0xFFFFFFFF, 0, 0);
    refuse("odd table", (uintptr_t)table, 24, DESC_INDIRECT, 0);
    refuse("empty table", (uintptr_t)table, 0, DESC_INDIRECT, 0);
    refuse("table behind RAM", ram_end, 32, DESC_INDIRECT, 0);
    refuse("table that goes on", (uintptr_t)table, 32, DESC_INDIRECT | DESC_NEXT, 1);
    refuse_table("nested tables", 2, (uintptr_t)table, DESC_INDIRECT, 0);
    refuse_table("loop in a table", 2, good, DESC_NEXT, 0);
    refuse_table("chain longer than the queue", VIRTQUEUE_SIZE + 2, good, 0, 0);

    start();
    virtqueue_offer(&queue, queue.size);
    expect_refusal("head behind the queue");
    start();
    queue.available[1] = queue.size + 1;
    expect_refusal("index that jumps");
    start();
    queue.available[1] = -1;
    expect_refusal("index that goes back");
}

/* Rings and buffers in each other's place: whatever comes of it, only we suffer. */
static void overlap(void)
{
    start();
    for (unsigned i = 0; i < DEPTH; i++) {
        submit(i, VIRTIO_BLK_T_IN, 0, SECTOR);
        queue.descriptors[3 * i + !is_net].address = (uintptr_t)queue.used + 4 * i;
    }
    virtqueue_ring(&queue);
    start();
    check("buffers over rings", works());
}

static void reset_in_the_middle(void)
{
    bool untouched = true;
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned slot = 0; slot < DEPTH; slot++)
            submit(slot, VIRTIO_BLK_T_IN, 0, is_net ? SECTOR : LARGE);
        virtqueue_ring(&queue);
        for (unsigned delay = round % 8 * 50; delay; delay--)
            __asm__ volatile("pause");
        start();
        for (unsigned slot = 0; slot < DEPTH; slot++)
            *first_word(slot) = round;
        untouched &= works();
        for (unsigned slot = 1; slot < DEPTH; slot++)
            untouched &= *first_word(slot) == round;
    }
    check("resets in the middle", untouched);
}

static void storm(void)
{
    for (unsigned i = 0; i < RINGS; i++)
        virtqueue_ring(&queue);
    check("storm of doorbells", works());
    for (unsigned i = 0; i < ROUNDS; i++) { /* full, though nothing has been taken back */
        for (unsigned slot = 0; slot < DEPTH; slot++)
            submit(slot, VIRTIO_BLK_T_IN, 0, SECTOR);
        virtqueue_ring(&queue);
        while ((uint16_t)(queue.used[0] >> 16) != queue.next_available)
            __asm__ volatile("pause");
    }
    start();
    check("storm of requests", works());
}

static void fail_with_the_host(unsigned type)
{
    print("ready\n");
    if (is_net) {
        while (load8(device.config + VIRTIO_NET_STATUS_AT) & 1)
            request(0, 0);
        check("packets are still used", request(0, 0) == VIRTIO_BLK_S_OK);
        return;
    }
    uint64_t sectors = load32(device.config), failed = 0;
    while (!failed)
        for (uint64_t sector = 8; sector < sectors; sector += 8)
            failed += request(type, sector) == VIRTIO_BLK_S_IOERR;
    check("I/O errors", failed);
    check("what is there can still be read", works());
}

void guest_main(const uint8_t *zero_page);

void guest_main(const uint8_t *zero_page)
{
    is_net = command_line_has(zero_page, "net");
    ram_end = (uint64_t)command_line_number(zero_page, "ram", 64) << 20;
    bool found = virtio_find(&device, is_net ? VIRTIO_NET : VIRTIO_BLK, 0);
    check("there is a device", found);
    if (!found)
        return;
    start();
    if (command_line_has(zero_page, "broken")) {
        fail_with_the_host(command_line_has(zero_page, "reading") ? VIRTIO_BLK_T_IN
                                                                  : VIRTIO_BLK_T_OUT);
        return;
    }
    check("it works", works());
    break_the_rules();
    overlap();
    print("warm\n");
    reset_in_the_middle();
    storm();
    break_the_rules();
    print("done\n");
}
