/* What we are told: the command line, and ACPI tables (ACPI specification, section 5.2). */
#ifndef BOOT_H
#define BOOT_H

#include "pc.h"

#define ZERO_PAGE_RSDP 0x070
#define ZERO_PAGE_COMMAND_LINE 0x228

const char *command_line(const uint8_t *zero_page);
bool command_line_has(const uint8_t *zero_page, const char *word);

/* Behind `name=`; NULL if there is no such word. */
const char *command_line_value(const uint8_t *zero_page, const char *name);

/* N of `name=N`; `otherwise` if there is none. */
uint32_t command_line_number(const uint8_t *zero_page, const char *name, uint32_t otherwise);

/* The table with this signature, found from the zero page; NULL if there is none or its checksum is
 * wrong. Its length is the 32-bit word at offset 4. */
const uint8_t *acpi_table(const uint8_t *zero_page, const char *signature);

#endif
