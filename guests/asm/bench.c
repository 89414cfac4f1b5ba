/*
 * Measures the machine that it runs on, whichever VMM made it. tests/bench/guest.py starts it and
 * reads what it prints; words on the command line:
 *
 *   ticks=N   how long each series lasts, by the time-stamp counter
 *   exits     accesses to a port, to a virtio disk's configuration, and to its doorbell
 *   disk      requests to the disk
 *   busy      how long a write to a port takes while 32 requests are under way
 *   net       packets to the host, from it, and there and back
 *   hold      set the disk up, then print `holding` and do nothing
 *
 * A series' line is `NAME: COUNT TICKS`, both hexadecimal. All runs in ring 3, which every KVM runs
 * at full speed, and looks at the used ring instead of waiting for interrupts.
 */
#include "bench.h"
#include "boot.h"
#include "modes.h"

/* hvm_start_info (Xen, PVH). */
#define START_INFO_COMMAND_LINE 24

uint64_t ticks;

void ring0_main(void);
void ring3_main(const uint8_t *start_info);

void ring0_main(void)
{
    outb(PIC_MASTER + 1, 0xFF); /* firmware may have left the timer ticking */
    outb(PIC_SLAVE + 1, 0xFF);
}

/* What boot.c looks at is Linux's zero page. */
static const uint8_t *zero_page(const uint8_t *start_info)
{
    static _Alignas(4) uint8_t page[4096];
    *(uint32_t *)(page + ZERO_PAGE_COMMAND_LINE) =
        *(const uint32_t *)(start_info + START_INFO_COMMAND_LINE);
    return page;
}

void ring3_main(const uint8_t *start_info)
{
    const uint8_t *page = zero_page(start_info);
    console_init();
    ticks = command_line_number(page, "ticks", 1000000);
    bool has_disk = start_disk();
    if (command_line_has(page, "hold")) {
        print("holding\n");
        for (;;)
            __asm__ volatile("pause");
    }
    print("began: %X\n", now());
    if (has_disk && command_line_has(page, "exits"))
        measure_exits();
    if (has_disk && command_line_has(page, "disk"))
        measure_disk();
    if (has_disk && command_line_has(page, "busy"))
        measure_busy();
    if (command_line_has(page, "net") && start_net())
        measure_net();
    print("ended: %X\n", now());
    outb(DEBUG_EXIT, 0);
    for (;;)
        __asm__ volatile("pause");
}
