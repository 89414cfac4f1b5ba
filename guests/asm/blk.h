/* What the guest `blk` needs of a virtio transport; it has one device with one queue, number 0. */
#ifndef BLK_H
#define BLK_H

#include "pc.h"

#define VIRTIO_BLK 2 /* its device ID */
#define QUEUE_VECTOR 0x50 /* the CPU's, for the queue's interrupt */

struct transport {
    uint8_t (*status)(void);
    void (*set_status)(uint8_t status);
    uint32_t (*offered)(unsigned word); /* of the feature bits */
    void (*accept)(unsigned word, uint32_t bits);
    uint32_t (*config)(unsigned offset);
    void (*set_up_interrupts)(const uint8_t *zero_page);
    unsigned (*queue_size)(void); /* the greatest */
    void (*enable_queue)(unsigned size, uintptr_t descriptors, uintptr_t available, uintptr_t used);
    void (*notify)(void);
};

extern volatile unsigned interrupts; /* by the queue, so far */

/* The first disk there; NULL if there is none. */
const struct transport *find_pci(const uint8_t *zero_page);
const struct transport *find_mmio(const uint8_t *zero_page);

#endif
