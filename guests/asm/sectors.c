/*
 * Long mode: every sector of a virtio disk (Virtio 1.2, 5.2) is read, then written, then all is
 * flushed, one request at a time; a line for each says with a character a request how it went: `.`
 * well, `x` an I/O error. `at-once=N` on the command line has N reads under way together instead,
 * and the time that takes is printed, in microseconds. Polled.
 */
#include "boot.h"
#include "console.h"
#include "virtio.h"

#define SECTOR 512
#define VIRTIO_BLK_F_FLUSH (1 << 9)
#define MAX_AT_ONCE 80

enum { IN = 0, OUT = 1, FLUSH = 4 };

static struct virtio_device disk;
static struct virtqueue queue;
static struct request {
    uint32_t type, reserved;
    uint64_t sector;
    uint8_t data[SECTOR];
    volatile uint8_t status;
} requests[MAX_AT_ONCE];

static void offer(unsigned number, uint32_t type, uint64_t sector)
{
    struct request *request = &requests[number];
    struct descriptor *parts = &queue.descriptors[3 * number];
    *request = (struct request){ .type = type, .sector = sector, .status = 0xFF };
    parts[0] = (struct descriptor){ (uintptr_t)request, 16, DESC_NEXT, 3 * number + 1 };
    parts[1] = (struct descriptor){ (uintptr_t)request->data, SECTOR,
                                    DESC_NEXT | (type == IN ? DESC_WRITE : 0), 3 * number + 2 };
    parts[2] = (struct descriptor){ (uintptr_t)&request->status, 1, DESC_WRITE, 0 };
    if (type == FLUSH)
        parts[0].next = 3 * number + 2;
    virtqueue_offer(&queue, 3 * number);
}

static void wait_for(unsigned number)
{
    uint16_t head;
    uint32_t length;
    virtqueue_kick(&queue);
    while (number)
        if (virtqueue_take(&queue, &head, &length))
            number--;
    virtqueue_stay_quiet(&queue);
}

static char carry_out(uint32_t type, uint64_t sector)
{
    offer(0, type, sector);
    wait_for(1);
    return requests[0].status == 0 ? '.' : requests[0].status == 1 ? 'x' : '?';
}

static void all_sectors(const char *name, uint32_t type, uint32_t sectors)
{
    print("%s: ", name);
    for (uint32_t sector = 0; sector < sectors; sector++)
        put_char(carry_out(type, sector));
    print("\n");
}

static void at_once(unsigned number)
{
    for (unsigned i = 0; i < number; i++)
        offer(i, IN, i);
    uint32_t start = inl(PM_TIMER);
    wait_for(number);
    uint64_t ticks = pm_ticks_since(start);
    for (unsigned i = 0; i < number; i++)
        check_equal("status", requests[i].status, 0);
    print("microseconds: %u\n", (unsigned)(ticks * 1000000 / PM_TIMER_HZ));
}

void guest_main(const uint8_t *zero_page);

void guest_main(const uint8_t *zero_page)
{
    bool found = virtio_find(&disk, VIRTIO_BLK, 0);
    check("there is a virtio disk", found);
    if (!found)
        return;
    virtio_negotiate(&disk, VIRTIO_BLK_F_FLUSH | VIRTIO_F_EVENT_IDX);
    virtio_queue(&disk, &queue, 0);
    virtio_ready(&disk);
    unsigned together = command_line_number(zero_page, "at-once", 0);
    if (together) {
        at_once(together < MAX_AT_ONCE ? together : MAX_AT_ONCE);
        return;
    }
    uint32_t sectors = load32(disk.config);
    all_sectors("read", IN, sectors);
    all_sectors("write", OUT, sectors);
    print("flush: %c\n", carry_out(FLUSH, 0));
}
