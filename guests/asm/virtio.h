/*
 * A virtio driver for measuring devices (Virtio 1.2): behind virtio-pci (4.1) or virtio-mmio (4.2),
 * split queues (2.7) with event indices, polled, without interrupts.
 */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "pc.h"

#define VIRTIO_NET 1
#define VIRTIO_BLK 2

#define VIRTIO_F_EVENT_IDX (1ULL << 29)
#define VIRTIO_F_VERSION_1 (1ULL << 32)

#define VIRTQUEUE_SIZE 256 /* at most */
#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4

#define VIRTIO_NEEDS_RESET 64 /* in the status (2.1) */

struct virtio_device {
    bool mmio;
    uintptr_t registers; /* the common configuration structure, or all registers */
    uintptr_t config, notify;
    uint32_t notify_multiplier;
    uint64_t features; /* that both sides have */
};

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

struct virtqueue {
    _Alignas(4096) struct descriptor descriptors[VIRTQUEUE_SIZE];
    _Alignas(4096) volatile uint16_t available[3 + VIRTQUEUE_SIZE];
    _Alignas(4096) volatile uint32_t used[2 + 2 * VIRTQUEUE_SIZE];
    uintptr_t doorbell;
    uint32_t number;
    bool event_idx, mmio;
    uint16_t size, next_available, kicked, next_used;
};

/* The device with this ID that comes after `skip` others; false if there is none. */
bool virtio_find(struct virtio_device *device, unsigned id, unsigned skip);

/* Reset it and agree on the offered ones of these features, VERSION_1 included. */
bool virtio_negotiate(struct virtio_device *device, uint64_t wanted);
void virtio_queue(struct virtio_device *device, struct virtqueue *queue, unsigned number);
void virtio_ready(struct virtio_device *device);
uint8_t virtio_status(struct virtio_device *device);

/* Hand the chain that begins at this descriptor over; visible to the device at once. */
static inline void virtqueue_offer(struct virtqueue *queue, uint16_t head)
{
    queue->available[2 + queue->next_available % queue->size] = head;
    __asm__ volatile("" : : : "memory");
    queue->available[1] = ++queue->next_available;
}

/* The doorbell: its width is the transport's (4.1.5.2, 4.2.2). */
static inline void virtqueue_ring(struct virtqueue *queue)
{
    if (queue->mmio)
        store32(queue->doorbell, queue->number);
    else
        store16(queue->doorbell, queue->number);
}

/* Tell the device what was offered since the last call, if it cares. */
void virtqueue_kick(struct virtqueue *queue);

/* Take a chain back if there is one; `length` is how much the device wrote. */
static inline bool virtqueue_take(struct virtqueue *queue, uint16_t *head, uint32_t *length)
{
    if ((uint16_t)(queue->used[0] >> 16) == queue->next_used)
        return false;
    unsigned at = 1 + 2 * (queue->next_used % queue->size);
    *head = queue->used[at];
    *length = queue->used[at + 1];
    queue->next_used++;
    return true;
}

/* Go on wanting no interrupts; at least once in 32,768 chains. */
static inline void virtqueue_stay_quiet(struct virtqueue *queue)
{
    queue->available[2 + queue->size] = queue->next_used - 1; /* passed already */
}

#endif
