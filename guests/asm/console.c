#include "console.h"

void console_init(void)
{
    outb(COM1 + UART_IER, 0);
    outb(COM1 + UART_MCR, 0x0B);
    outb(COM1 + UART_LCR, 0x80);
    outb(COM1 + 0, 1); /* divisor 1: 115200 baud */
    outb(COM1 + 1, 0);
    outb(COM1 + UART_LCR, 0x03); /* 8 bits, no parity, 1 stop bit */
    outb(COM1 + UART_FCR, 0x07);
}

void put_char(char character)
{
    while (!(inb(COM1 + UART_LSR) & UART_LSR_THRE))
        ;
    outb(COM1 + UART_DATA, character);
}

static void put_number(uint64_t number, unsigned base)
{
    char digits[24];
    unsigned count = 0;
    /* By shifts for hexadecimal, so that 32-bit code needs no library for 64-bit division. */
    if (base == 16) {
        do
            digits[count++] = "0123456789abcdef"[number & 15];
        while (number >>= 4);
    } else {
        uint32_t rest = number;
        do
            digits[count++] = '0' + rest % 10;
        while (rest /= 10);
    }
    while (count)
        put_char(digits[--count]);
}

void vprint(const char *format, __builtin_va_list arguments)
{
    for (; *format; format++) {
        if (*format != '%') {
            put_char(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            for (const char *text = __builtin_va_arg(arguments, const char *); *text; text++)
                put_char(*text);
            break;
        case 'c':
            put_char(__builtin_va_arg(arguments, int));
            break;
        case 'u':
            put_number(__builtin_va_arg(arguments, unsigned), 10);
            break;
        case 'x':
            put_number(__builtin_va_arg(arguments, unsigned), 16);
            break;
        case 'X':
            put_number(__builtin_va_arg(arguments, uint64_t), 16);
            break;
        }
    }
}

void print(const char *format, ...)
{
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    vprint(format, arguments);
    __builtin_va_end(arguments);
}

void check(const char *name, bool good) { print("%s: %s\n", good ? "ok" : "FAIL", name); }

void check_equal(const char *name, uint64_t got, uint64_t expected)
{
    if (got == expected)
        print("ok: %s\n", name);
    else
        print("FAIL: %s is %X, not %X\n", name, got, expected);
}

void check_between(const char *name, uint64_t got, uint64_t low, uint64_t high)
{
    if (low <= got && got <= high)
        print("ok: %s\n", name);
    else
        print("FAIL: %s is %X, not from %X to %X\n", name, got, low, high);
}
