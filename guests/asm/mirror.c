/*
 * Long mode: a driver for the virtio device of guests/devices that gives back what it gets, the
 * last byte first. Polled; behind virtio-pci or virtio-mmio.
 */
#include "console.h"
#include "virtio.h"

#define MIRROR 42
#define REQUESTS 0
#define EVENTS 1

static struct virtio_device device;
static struct virtqueue requests, events;
static const uint8_t text[] = "stressed";
static uint8_t answer[16];
static uint32_t event;

static void wait_for(struct virtqueue *queue, uint32_t *length)
{
    uint16_t head;
    while (!virtqueue_take(queue, &head, length))
        __asm__ volatile("pause");
}

/* Send the text in two pieces; how long the answer is. */
static uint32_t ask(unsigned room)
{
    uint32_t length;
    requests.descriptors[0] = (struct descriptor){ (uintptr_t)text, 3, DESC_NEXT, 1 };
    requests.descriptors[1] = (struct descriptor){ (uintptr_t)text + 3, 5, DESC_NEXT, 2 };
    requests.descriptors[2] = (struct descriptor){ (uintptr_t)answer, room, DESC_WRITE, 0 };
    virtqueue_offer(&requests, 0);
    virtqueue_kick(&requests);
    wait_for(&requests, &length);
    return length;
}

static bool is(const uint8_t *bytes, const char *expected)
{
    while (*expected)
        if (*bytes++ != (uint8_t)*expected++)
            return false;
    return true;
}

void guest_main(const uint8_t *zero_page);

void guest_main(__attribute__((unused)) const uint8_t *zero_page)
{
    bool found = virtio_find(&device, MIRROR, 0);
    check("the device is there", found);
    if (!found)
        return;
    print("transport: %s\n", device.mmio ? "mmio" : "pci");
    check("features", virtio_negotiate(&device, VIRTIO_F_EVENT_IDX));
    virtio_queue(&device, &requests, REQUESTS);
    virtio_queue(&device, &events, EVENTS);
    virtio_ready(&device);
    print("longest: %u\n", load32(device.config));
    events.descriptors[0] =
        (struct descriptor){ (uintptr_t)&event, sizeof event, DESC_WRITE, 0 };
    virtqueue_offer(&events, 0);
    virtqueue_kick(&events);
    for (unsigned i = 0; i < 4; i++) {
        check_equal("length", ask(sizeof answer), 8);
        check("mirrored", is(answer, "desserts"));
    }
    uint32_t length;
    wait_for(&events, &length);
    check_equal("an event", length, sizeof event);
    check_equal("counts the requests", event, 4);
    check_equal("without room there is no answer", ask(4), 0);
}
