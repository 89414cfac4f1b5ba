/*
 * Long mode: an ATA driver (ATA/ATAPI-6) for drive 0 of the first IDE channel, by PIO; each block
 * of data by an interrupt. Words on the command line:
 *
 *   readonly  the disk is: a write must fail, and none is tried otherwise
 *   errors    reading the sectors 5 to 7 must fail
 *   hold      after the flush print `flushed` and stand still, for the test to kill the VMM
 *
 * The test fills byte i of sector s with s ^ i; we write sectors 5 and up with the complement.
 */
#include "apic.h"
#include "boot.h"
#include "console.h"
#include "interrupts.h"

#define CHANNEL 0x1F0
#define DATA (CHANNEL + 0)
#define ERROR (CHANNEL + 1)
#define FEATURES (CHANNEL + 1)
#define COUNT (CHANNEL + 2)
#define LOW (CHANNEL + 3)
#define MID (CHANNEL + 4)
#define HIGH (CHANNEL + 5)
#define DEVICE (CHANNEL + 6)
#define STATUS (CHANNEL + 7)
#define COMMAND (CHANNEL + 7)
#define CONTROL 0x3F6
#define IDE_IRQ 14
#define IDE_VECTOR 0x50

#define BSY 0x80
#define DRDY 0x40
#define DRQ 0x08
#define ERR 0x01
#define ABRT 0x04
#define UNC 0x40

#define DRIVE_0 0xE0 /* with LBA */
#define DRIVE_1 0xF0
#define NIEN 0x02
#define SRST 0x04

#define READ_SECTORS 0x20
#define READ_SECTORS_EXT 0x24
#define WRITE_SECTORS 0x30
#define READ_VERIFY 0x40
#define IDENTIFY_PACKET 0xA1
#define READ_MULTIPLE 0xC4
#define WRITE_MULTIPLE 0xC5
#define SET_MULTIPLE 0xC6
#define FLUSH_CACHE 0xE7
#define IDENTIFY 0xEC

#define SECTOR 512
#define MAX_SECTORS 16
#define WRITTEN_SECTOR 5
#define WRITTEN_SECTORS 3

static volatile unsigned interrupts;
static volatile uint8_t status; /* as the last interrupt found it */
static uint8_t buffer[MAX_SECTORS * SECTOR];

INTERRUPT_HANDLER(on_ide)
{
    status = inb(STATUS); /* which takes the interrupt back */
    interrupts++;
    end_of_interrupt();
}

static void input(void *target, unsigned words)
{
    __asm__ volatile("rep insw" : "+D"(target), "+c"(words) : "d"(DATA) : "memory");
}

static void input_32(void *target, unsigned words)
{
    __asm__ volatile("rep insd" : "+D"(target), "+c"(words) : "d"(DATA) : "memory");
}

static void output(const void *source, unsigned words)
{
    __asm__ volatile("rep outsw" : "+S"(source), "+c"(words) : "d"(DATA) : "memory");
}

static void select_sectors(uint32_t sector, unsigned sectors)
{
    outb(DEVICE, DRIVE_0 | (sector >> 24 & 0x0F));
    outb(COUNT, sectors);
    outb(LOW, sector);
    outb(MID, sector >> 8);
    outb(HIGH, sector >> 16);
}

static void wait_for_interrupts(unsigned number)
{
    while (interrupts < number)
        wait_for_interrupt();
}

/* A command without data: the status at its end. */
static uint8_t command(uint8_t opcode)
{
    unsigned before = interrupts;
    outb(COMMAND, opcode);
    wait_for_interrupts(before + 1);
    return status;
}

/* Read `sectors` sectors to the buffer in blocks of `block`: whether all went well. */
static bool read_sectors(uint8_t opcode, unsigned sectors, unsigned block)
{
    unsigned before = interrupts;
    outb(COMMAND, opcode);
    for (unsigned done = 0; done < sectors; done += block) {
        wait_for_interrupts(++before);
        if ((status & (BSY | DRQ | ERR)) != DRQ)
            return false;
        input(buffer + done * SECTOR, block * SECTOR / 2);
    }
    return !(inb(STATUS) & (BSY | DRQ | ERR)) && interrupts == before;
}

/* The same the other way: the first block is asked for without an interrupt. */
static bool write_sectors(uint8_t opcode, unsigned sectors, unsigned block)
{
    unsigned before = interrupts;
    outb(COMMAND, opcode);
    if ((inb(CONTROL) & (BSY | DRQ | ERR)) != DRQ)
        return false;
    for (unsigned done = 0; done < sectors; done += block) {
        output(buffer + done * SECTOR, block * SECTOR / 2);
        wait_for_interrupts(++before);
        if ((status & (BSY | DRQ | ERR)) != (done + block < sectors ? DRQ : 0))
            return false;
    }
    return interrupts == before;
}

static bool buffer_has(uint32_t sector, unsigned sectors, uint8_t complement)
{
    for (unsigned i = 0; i < sectors * SECTOR; i++)
        if (buffer[i] != (uint8_t)((sector + i / SECTOR) ^ i ^ complement))
            return false;
    return true;
}

static void test_reset(void)
{
    outb(CONTROL, SRST | NIEN);
    check_equal("a drive in reset is busy", inb(STATUS), BSY);
    outb(CONTROL, NIEN);
    while (inb(STATUS) & BSY)
        ;
    check_equal("signature", inb(COUNT) | inb(LOW) << 8 | inb(MID) << 16 | inb(HIGH) << 24, 0x0101);
    check_equal("diagnostic code", inb(ERROR), 1);
    outb(DEVICE, DRIVE_1);
    print("drive 1: %x\n", inb(STATUS));
    outb(DEVICE, DRIVE_0);
}

static void identify(void)
{
    outb(COMMAND, IDENTIFY);
    check("IDENTIFY has data", inb(CONTROL) & DRQ);
    input_32(buffer, SECTOR / 4);
    check_equal("and no more", inb(CONTROL) & (BSY | DRQ | ERR), 0);
    print("sectors: %u\n", *(uint32_t *)(buffer + 120));
    print("serial: ");
    for (unsigned i = 20; i < 40; i += 2) {
        put_char(buffer[i + 1]);
        put_char(buffer[i]);
    }
    print("\n");
    check_equal("no interrupt while they are off", interrupts, 0);
}

static void test_reading(void)
{
    select_sectors(2, 3);
    check("READ SECTORS", read_sectors(READ_SECTORS, 3, 1) && buffer_has(2, 3, 0));
    outb(COUNT, 8);
    check_equal("SET MULTIPLE MODE", command(SET_MULTIPLE) & ERR, 0);
    select_sectors(16, 16);
    check("READ MULTIPLE", read_sectors(READ_MULTIPLE, 16, 8) && buffer_has(16, 16, 0));
    select_sectors(0, 0); /* the upper halves first */
    select_sectors(62, 2);
    check("READ SECTORS EXT", read_sectors(READ_SECTORS_EXT, 2, 1) && buffer_has(62, 2, 0));
    select_sectors(40, 2);
    outb(COMMAND, READ_SECTORS);
    wait_for_interrupts(interrupts + 1);
    outb(CONTROL, SRST); /* in the middle of the data */
    outb(CONTROL, 0);
    check_equal("a reset ends a transfer", inb(STATUS) & (BSY | DRQ), 0);
    select_sectors(63, 2);
    check("behind the end", command(READ_SECTORS) & ERR);
    check("IDENTIFY PACKET DEVICE", command(IDENTIFY_PACKET) & ERR && inb(ERROR) == ABRT);
}

static void test_writing(void)
{
    for (unsigned i = 0; i < WRITTEN_SECTORS * SECTOR; i++)
        buffer[i] = ~((WRITTEN_SECTOR + i / SECTOR) ^ i);
    select_sectors(WRITTEN_SECTOR, 2);
    check("WRITE SECTORS", write_sectors(WRITE_SECTORS, 2, 1));
    __builtin_memcpy(buffer, buffer + 2 * SECTOR, SECTOR);
    outb(COUNT, 1);
    check_equal("blocks of one", command(SET_MULTIPLE) & ERR, 0);
    select_sectors(WRITTEN_SECTOR + 2, 1);
    check("WRITE MULTIPLE", write_sectors(WRITE_MULTIPLE, 1, 1));
    check_equal("FLUSH CACHE", command(FLUSH_CACHE) & ERR, 0);
    select_sectors(WRITTEN_SECTOR, WRITTEN_SECTORS);
    check("what was written reads back",
          read_sectors(READ_SECTORS, 3, 1) && buffer_has(WRITTEN_SECTOR, 3, 0xFF));
}

static void test_errors(void)
{
    select_sectors(4, 3);
    check("a sector that can't be read", !read_sectors(READ_SECTORS, 3, 1) && inb(ERROR) == UNC);
    check_equal("its number", inb(LOW) | inb(MID) << 8 | inb(HIGH) << 16, 5);
    select_sectors(0, 16);
    check("is found by READ VERIFY", command(READ_VERIFY) & ERR && inb(ERROR) == UNC);
}

void guest_main(const uint8_t *zero_page);

void guest_main(const uint8_t *zero_page)
{
    interrupts_init();
    set_handler(IDE_VECTOR, on_ide);
    apic_init();
    io_apic_route(IDE_IRQ, IDE_VECTOR, apic_id());
    check("there is a drive", inb(STATUS) != 0xFF);
    test_reset();
    interrupts_on();
    identify();
    interrupts_off();
    outb(CONTROL, 0);
    wait_for_interrupts(1); /* IDENTIFY's, which nobody has taken back */
    if (command_line_has(zero_page, "errors")) {
        test_errors();
        return;
    }
    test_reading();
    if (command_line_has(zero_page, "readonly")) {
        select_sectors(WRITTEN_SECTOR, 1);
        check("write to a read-only disk", command(WRITE_SECTORS) & ERR);
        return;
    }
    test_writing();
    if (command_line_has(zero_page, "hold")) {
        print("flushed\n");
        for (;;)
            wait_for_interrupt();
    }
}
