/* What the parts of the guest `bench` share. */
#ifndef BENCH_H
#define BENCH_H

#include "console.h"
#include "virtio.h"

#define BUFFERS 0x1000000 /* 16 MiB and up; the machine has 256 */

extern uint64_t ticks; /* how long a series lasts */

static inline uint64_t now(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static inline void report(const char *name, uint64_t count, uint64_t start)
{
    print("%s: %X %X\n", name, count, now() - start);
}

bool start_disk(void);
void measure_exits(void);
void measure_disk(void);
void measure_busy(void);
bool start_net(void);
void measure_net(void);

#endif
