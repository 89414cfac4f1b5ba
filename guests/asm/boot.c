#include "boot.h"

static bool same(const void *a, const void *b, unsigned length)
{
    const uint8_t *left = a, *right = b;
    while (length && *left == *right)
        left++, right++, length--;
    return !length;
}

static bool adds_up(const uint8_t *table, unsigned length)
{
    uint8_t sum = 0;
    while (length--)
        sum += *table++;
    return !sum;
}

const char *command_line(const uint8_t *zero_page)
{
    return (const char *)(uintptr_t) * (const uint32_t *)(zero_page + ZERO_PAGE_COMMAND_LINE);
}

/* Behind `word`, where it is the beginning of one on the command line; NULL if it isn't. */
static const char *find_word(const uint8_t *zero_page, const char *word)
{
    unsigned length = 0;
    while (word[length])
        length++;
    for (const char *text = command_line(zero_page); *text;) {
        if (same(text, word, length))
            return text + length;
        while (*text && *text != ' ')
            text++;
        while (*text == ' ')
            text++;
    }
    return NULL;
}

bool command_line_has(const uint8_t *zero_page, const char *word)
{
    const char *end = find_word(zero_page, word);
    return end && (*end == ' ' || !*end);
}

const char *command_line_value(const uint8_t *zero_page, const char *name)
{
    const char *end = find_word(zero_page, name);
    return end && *end == '=' ? end + 1 : NULL;
}

uint32_t command_line_number(const uint8_t *zero_page, const char *name, uint32_t otherwise)
{
    const char *text = command_line_value(zero_page, name);
    if (!text)
        return otherwise;
    uint32_t number = 0;
    for (; '0' <= *text && *text <= '9'; text++)
        number = number * 10 + *text - '0';
    return number;
}

const uint8_t *acpi_table(const uint8_t *zero_page, const char *signature)
{
    const uint8_t *rsdp = (const uint8_t *)*(const uint64_t *)(zero_page + ZERO_PAGE_RSDP);
    if (!rsdp || !same(rsdp, "RSD PTR ", 8) || !adds_up(rsdp, 20) || !adds_up(rsdp, 36))
        return NULL;
    const uint8_t *xsdt = (const uint8_t *)*(const uint64_t *)(rsdp + 24);
    unsigned length = *(const uint32_t *)(xsdt + 4);
    if (!same(xsdt, "XSDT", 4) || !adds_up(xsdt, length))
        return NULL;
    for (unsigned offset = 36; offset + 8 <= length; offset += 8) {
        const uint8_t *table = (const uint8_t *)*(const uint64_t *)(xsdt + offset);
        if (same(table, signature, 4))
            return adds_up(table, *(const uint32_t *)(table + 4)) ? table : NULL;
    }
    return NULL;
}
