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

void guest_main(uint32_t magic, const void *info);

#ifndef AOUT_KLUDGE /* for then the loader doesn't look for sections */

/* Elf32_Shdr and Elf32_Sym. */
struct section {
    uint32_t name, type, flags, address, offset, size, link, info, alignment, entry_size;
};
struct symbol {
    uint32_t name, value, size;
    uint8_t info, other;
    uint16_t section;
};
#define SHT_SYMTAB 2

static bool same(const char *one, const char *two)
{
    while (*one && *one == *two)
        one++, two++;
    return *one == *two;
}

/* The loader has loaded our symbols, too: we find ourselves among them. */
static void check_sections(const struct section *sections, uint32_t number, uint32_t entry_size,
                           uint32_t names)
{
    bool found = false, named = false;
    check_equal("size of a section's header", entry_size, sizeof(struct section));
    for (const struct section *section = sections; section < sections + number; section++) {
        if (same((const char *)sections[names].address + section->name, ".symtab"))
            named = section->type == SHT_SYMTAB;
        if (section->type != SHT_SYMTAB)
            continue;
        const char *texts = (const char *)sections[section->link].address;
        const struct symbol *symbols = (const struct symbol *)section->address;
        for (unsigned i = 0; i < section->size / sizeof(struct symbol); i++)
            if (same(texts + symbols[i].name, "guest_main"))
                found = symbols[i].value == (uintptr_t)guest_main;
    }
    check("sections have names", named);
    check("symbols are loaded", found);
}

#endif

/* QEMU's fw_cfg: an item's first bytes. */
static uint64_t fw_cfg(uint16_t item, unsigned bytes)
{
    uint64_t value = 0;
    outw(0x510, item);
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)inb(0x511) << 8 * i;
    return value;
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
        case 9:
            check_sections((const struct section *)&tag->words[3], tag->words[0], tag->words[1],
                           tag->words[2]);
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
    uint32_t sections, section_size;
    const struct section *syms;
    uint32_t names, mmap_length;
    const uint8_t *mmap;
    uint32_t drives[2], config_table;
    const char *boot_loader_name;
};

static void print_information(const struct information *info)
{
#ifdef AOUT_KLUDGE
    check_equal("flags", info->flags, 0x24D);
#else
    check_equal("flags", info->flags, 0x26D);
    check_sections(info->syms, info->sections, info->section_size, info->names);
#endif
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

void guest_main(uint32_t magic, const void *info)
{
    check_equal("magic", magic, MAGIC);
    check("what isn't in the file is zero", all_zero());
    print_information(info);
    print("cpus: %u of %u\nfw_cfg ram: %X\n", (unsigned)fw_cfg(0x05, 2), (unsigned)fw_cfg(0x0F, 2),
          fw_cfg(0x03, 8));
}
