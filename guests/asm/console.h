/* The first serial port, polled, and the lines by which a guest tells its test how it went. */
#ifndef CONSOLE_H
#define CONSOLE_H

#include "pc.h"

void console_init(void);
void put_char(char character);

/* %s, %c, %u, %x (without 0x) and %X (a uint64_t, likewise). */
void vprint(const char *format, __builtin_va_list arguments);
void print(const char *format, ...);

/* One line: `ok: NAME`, or `FAIL: NAME` and a detail. */
void check(const char *name, bool good);
void check_equal(const char *name, uint64_t got, uint64_t expected);
void check_between(const char *name, uint64_t got, uint64_t low, uint64_t high);

#endif
