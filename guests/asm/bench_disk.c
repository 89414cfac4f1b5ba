/* The disk's part of the guest `bench`, and what one needs a device for otherwise. */
#include "bench.h"

#define SECTOR 512

#define VIRTIO_BLK_F_FLUSH (1 << 9)
#define VIRTIO_BLK_T_IN 0
#define VIRTIO_BLK_T_OUT 1

#define DISK_DEPTH 32 /* at most */

static unsigned next_random = 1;

/* Marsaglia's xorshift. */
static unsigned random(void)
{
    next_random ^= next_random << 13;
    next_random ^= next_random >> 17;
    next_random ^= next_random << 5;
    return next_random;
}

/* Repeat `statement` until the time is up, once at least. */
#define SERIES(name, statement)                                                                    \
    do {                                                                                           \
        uint64_t count = 0, start = now();                                                         \
        do {                                                                                       \
            statement;                                                                             \
            count++;                                                                               \
        } while (now() - start < ticks);                                                           \
        report(name, count, start);                                                                \
    } while (0)

static struct virtio_device disk;
static struct virtqueue disk_queue;
static uint64_t sectors;

static struct request {
    uint32_t type, reserved;
    uint64_t sector;
    volatile uint8_t status;
} requests[DISK_DEPTH];

bool start_disk(void)
{
    if (!virtio_find(&disk, VIRTIO_BLK, 0))
        return false;
    bool agreed = virtio_negotiate(&disk, VIRTIO_F_EVENT_IDX | VIRTIO_BLK_F_FLUSH);
    virtio_queue(&disk, &disk_queue, 0);
    virtio_ready(&disk);
    sectors = load32(disk.config) | (uint64_t)load32(disk.config + 4) << 32;
    return agreed;
}

/* Slot n has three descriptors from 3n, a request and a piece of memory. */
static void submit(unsigned slot, unsigned type, uint64_t sector, uint32_t length)
{
    struct request *request = &requests[slot];
    struct descriptor *part = &disk_queue.descriptors[3 * slot];
    *request = (struct request){ .type = type, .sector = sector, .status = 0xFF };
    part[0] = (struct descriptor){ (uintptr_t)request, 16, DESC_NEXT, 3 * slot + 1 };
    part[1] = (struct descriptor){ BUFFERS + (uint64_t)slot * length, length,
                                   DESC_NEXT | (type == VIRTIO_BLK_T_IN ? DESC_WRITE : 0),
                                   3 * slot + 2 };
    part[2] = (struct descriptor){ (uintptr_t)&request->status, 1, DESC_WRITE, 0 };
    virtqueue_offer(&disk_queue, 3 * slot);
}

static uint64_t next_sector(uint64_t previous, uint32_t length, bool sequential)
{
    uint64_t step = length / SECTOR;
    if (!sequential)
        return random() % (sectors / step) * step;
    return previous + 2 * step > sectors ? 0 : previous + step;
}

/* `depth` requests at a time. */
static void disk_series(const char *name, unsigned type, uint32_t length, unsigned depth,
                        bool sequential)
{
    uint64_t sector = 0, done = 0, errors = 0, start = now();
    unsigned pending = 0;
    uint16_t head;
    uint32_t written;
    for (; pending < depth; pending++)
        submit(pending, type, sector = next_sector(sector, length, sequential), length);
    virtqueue_kick(&disk_queue);
    while (pending) {
        bool go_on = now() - start < ticks, offered = false;
        while (virtqueue_take(&disk_queue, &head, &written)) {
            errors += requests[head / 3].status != 0;
            done++;
            if (go_on)
                submit(head / 3, type, sector = next_sector(sector, length, sequential), length);
            else
                pending--;
            offered = true;
        }
        if (offered) {
            virtqueue_stay_quiet(&disk_queue);
            virtqueue_kick(&disk_queue);
        } else {
            __asm__ volatile("pause");
        }
    }
    if (errors)
        print("FAIL: %s: %X of %X requests\n", name, errors, done);
    else
        report(name, done, start);
}

/* Durations of 1024 ticks, the last one and longer. */
static uint32_t histogram[65536];
#define HISTOGRAM_SHIFT 10

static void report_percentile(const char *name, uint64_t total, unsigned percent)
{
    uint64_t rest = total * (100 - percent) / 100;
    unsigned at = sizeof histogram / sizeof *histogram;
    for (uint64_t seen = 0; at && seen <= rest; seen += histogram[at])
        at--;
    print("%s: %X %X\n", name, (uint64_t)at << HISTOGRAM_SHIFT, total);
}

/* The disk always has as many requests as it takes, and the CPU writes to a port meanwhile. */
void measure_busy(void)
{
    uint64_t total = 0, start = now();
    unsigned pending = 0;
    uint16_t head;
    uint32_t written;
    for (; pending < DISK_DEPTH; pending++)
        submit(pending, VIRTIO_BLK_T_IN, next_sector(0, 4096, false), 4096);
    virtqueue_kick(&disk_queue);
    while (pending) {
        bool go_on = !total || now() - start < 4 * ticks;
        while (virtqueue_take(&disk_queue, &head, &written))
            if (go_on)
                submit(head / 3, VIRTIO_BLK_T_IN, next_sector(0, 4096, false), 4096);
            else
                pending--;
        virtqueue_stay_quiet(&disk_queue);
        virtqueue_kick(&disk_queue);
        if (!go_on)
            continue;
        uint64_t before = now();
        outb(POST_PORT, 0);
        uint64_t place = (now() - before) >> HISTOGRAM_SHIFT;
        unsigned last = sizeof histogram / sizeof *histogram - 1;
        histogram[place < last ? place : last]++;
        total++;
    }
    report_percentile("busy-50", total, 50);
    report_percentile("busy-99", total, 99);
    report_percentile("busy-100", total, 100);
}

void measure_exits(void)
{
    SERIES("port", outb(POST_PORT, 0));
    SERIES("mmio", load32(disk.config));
    SERIES("doorbell", virtqueue_ring(&disk_queue));
}

void measure_disk(void)
{
    disk_series("read-1m", VIRTIO_BLK_T_IN, 1 << 20, 4, true);
    disk_series("write-1m", VIRTIO_BLK_T_OUT, 1 << 20, 4, true);
    disk_series("read-4k-1", VIRTIO_BLK_T_IN, 4096, 1, false);
    disk_series("write-4k-1", VIRTIO_BLK_T_OUT, 4096, 1, false);
    disk_series("read-4k-32", VIRTIO_BLK_T_IN, 4096, 32, false);
    disk_series("write-4k-32", VIRTIO_BLK_T_OUT, 4096, 32, false);
}
