/*
 * Lesson 7: page faults that map the page.
 *
 * A program may have more addresses than the machine has memory: nothing is mapped at first, the
 * first touch of each page faults, and the handler maps a page and returns to the same instruction,
 * which then works and notices nothing. A write to a page mapped read-only faults as well: that is
 * how copy-on-write is made.
 *
 * Read: Intel SDM volume 3, 4.5 (4-level paging: how an address is split, and the bits of entries),
 * 4.7 (page-fault exceptions, and the bits of the error code), 4.10.4.1 (INVLPG), 6.15 (exception
 * 14), 2.5 (CR2, and CR0.WP).
 *
 *     pyvmm run -k build/lessons/07_paging.elf
 */
#include "lesson.h"

#define PAGE 4096
#define PRESENT 0x1
#define WRITABLE 0x2
#define ADDRESS_MASK 0x000FFFFFFFFFF000

#define CR0_WP (1 << 16) /* ring 0, too, may not write to read-only pages */
#define PAGE_FAULT 14
#define ERROR_PRESENT 0x1 /* the page is there, but doesn't allow that */
#define ERROR_WRITE 0x2

#define FAR_AWAY 0x8000000000 /* 512 GiB: beyond the 4 GiB that are mapped, and beyond all RAM */

/* What there is to map, and to make page tables of. */
#define FRAMES 16
static _Alignas(PAGE) uint8_t frames[FRAMES][PAGE];
static unsigned frames_used;

static uint64_t new_frame(void) { return (uintptr_t)frames[frames_used++]; }

/* The entry that maps `address`; tables on the way to it are made if they are missing. The tables'
 * own memory is mapped to itself, so physical addresses can be used to get at them. */
static volatile uint64_t *page_entry(uint64_t address)
{
    uint64_t table;
    __asm__ volatile("mov %0, cr3" : "=r"(table));
    for (unsigned shift = 39;; shift -= 9) {
        volatile uint64_t *entries = (volatile uint64_t *)(table & ADDRESS_MASK);
        volatile uint64_t *entry = &entries[address >> shift & 511]; /* 9 bits a level */
        if (shift == 12)
            return entry;
        if (!(*entry & PRESENT))
            *entry = new_frame() | WRITABLE | PRESENT;
        table = *entry;
    }
}

void interrupt(struct frame *frame)
{
    uint64_t address;
    __asm__ volatile("mov %0, cr2" : "=r"(address));
    if (frame->vector != PAGE_FAULT || address < FAR_AWAY || frames_used + 4 > FRAMES)
        unexpected(frame); /* one page may take three tables as well */
    print("  page fault: %s %p, which is %s\n", frame->error & ERROR_WRITE ? "write to" : "read of",
          address, frame->error & ERROR_PRESENT ? "read-only" : "not mapped");
    volatile uint64_t *entry = page_entry(address);
    if (frame->error & ERROR_PRESENT)
        *entry |= WRITABLE;
    else
        *entry = new_frame() | WRITABLE | PRESENT;
}

static void make_read_only(uint64_t address)
{
    *page_entry(address) &= ~(uint64_t)WRITABLE;
    /* The TLB may know the old entry. */
    __asm__ volatile("invlpg [%0]" : : "r"(address) : "memory");
}

void lesson(const uint8_t *zero_page)
{
    (void)zero_page;
    uint64_t cr0;
    load_interrupt_table();
    __asm__ volatile("mov %0, cr0" : "=r"(cr0));
    __asm__ volatile("mov cr0, %0" : : "r"(cr0 | CR0_WP));

    volatile uint32_t *number = (volatile uint32_t *)FAR_AWAY;
    print("the first write\n");
    *number = 42;
    print("the second\n");
    *number += 1;
    print("it is %d\n", *number);

    print("the next page, read\n");
    print("it is %d\n", number[PAGE / sizeof *number]);

    print("a write to the first, now read-only\n");
    make_read_only(FAR_AWAY);
    *number = 44;
    print("it is %d, after %d frames\n", *number, frames_used);
}
