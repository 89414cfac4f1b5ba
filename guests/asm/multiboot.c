/*
 * What a Multiboot loader says, printed line by line: the same lines for both protocols.
 */
#include "console.h"

static void print_module(uint32_t start, uint32_t end, const char *text)
{
    print("module: %s: ", text);
    for (const char *byte = (const char *)start; byte != (const char *)end; byte++)
        put_char(*byte);
    print("\n");
    check("module begins on a page", start % 4096 == 0);
}

/* 2.5 MiB of zeros, which are not in the file. */
static uint8_t zeros[0x280000];

static bool all_zero(void)
{
    for (unsigned i = 0; i < sizeof(zeros); i += 4096)
        if (zeros[i])
            return false;
    return true;
}

#ifdef MULTIBOOT2

#define MAGIC 0x36D76289

struct tag {
    uint32_t type, size;
    uint32_t words[];
};

static void print_map(const struct tag *tag)
{
    uint64_t ram = 0;
    check_equal("size of a map's entry", tag->words[0], 24);
    for (unsigned i = 2; i * 4 + 8 < tag->size; i += 6)
        if (tag->words[i + 4] == 1)
            ram += (uint64_t)tag->words[i + 3] << 32 | tag->words[i + 2];
    print("ram: %X\n", ram);
}

static void print_information(const uint8_t *info)
{
    const uint8_t *end = info + *(const uint32_t *)info;
    const struct tag *tag = (const struct tag *)(info + 8);
    for (; tag->type; tag = (const struct tag *)((const uint8_t *)tag + ((tag->size + 7) & ~7u))) {
        check("tag is aligned and in bounds", !((uintptr_t)tag % 8) && (const uint8_t *)tag < end);
        switch (tag->type) {
        case 1:
            print("command line: %s\n", (const char *)tag->words);
            break;
        case 2:
            print("loader: %s\n", (const char *)tag->words);
            break;
        case 3:
            print_module(tag->words[0], tag->words[1], (const char *)&tag->words[2]);
            break;
        case 4:
            print("lower: %u\nupper: %u\n", tag->words[0], tag->words[1]);
            break;
        case 6:
            print_map(tag);
            break;
        case 15:
            check_equal("RSDP", tag->words[0], 0x20445352 /* "RSD " */);
            break;
        }
    }
    check("information ends with its end tag", (const uint8_t *)tag + 8 == end);
}

#else

#define MAGIC 0x2BADB002

struct information {
    uint32_t flags, lower, upper, boot_device;
    const char *cmdline;
    uint32_t mods_count;
    const uint32_t *mods;
    uint32_t syms[4], mmap_length;
    const uint8_t *mmap;
    uint32_t drives[2], config_table;
    const char *boot_loader_name;
};

static void print_information(const struct information *info)
{
    check_equal("flags", info->flags, 0x24D);
    print("command line: %s\nloader: %s\n", info->cmdline, info->boot_loader_name);
    print("lower: %u\nupper: %u\n", info->lower, info->upper);
    for (unsigned i = 0; i < info->mods_count; i++)
        print_module(info->mods[4 * i], info->mods[4 * i + 1], (const char *)info->mods[4 * i + 2]);
    uint64_t ram = 0;
    for (const uint8_t *entry = info->mmap; entry < info->mmap + info->mmap_length;) {
        const uint32_t *words = (const uint32_t *)entry;
        if (words[5] == 1)
            ram += (uint64_t)words[4] << 32 | words[3];
        entry += words[0] + 4;
    }
    print("ram: %X\n", ram);
}

#endif

void guest_main(uint32_t magic, const void *info);

void guest_main(uint32_t magic, const void *info)
{
    check_equal("magic", magic, MAGIC);
    check("what isn't in the file is zero", all_zero());
    print_information(info);
}
