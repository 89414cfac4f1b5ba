/*
 * Entry of the 64-bit guests: the Linux 64-bit boot protocol, so long mode with the first 4 GiB
 * mapped, a GDT, interrupts off, and RSI pointing at the zero page.
 */
#include "pc.h"

        .intel_syntax noprefix
        .text
        .globl  _start
_start: lea     rsp, stack_top[rip]
        mov     rbx, rsi
        call    console_init
        mov     rdi, rbx
        call    guest_main              // void guest_main(const uint8_t *zero_page)
        mov     dx, PM1A_CONTROL
        mov     ax, PM1A_S5
        out     dx, ax
halt:   cli
        hlt
        jmp     halt

        .bss
        .balign 16
        .skip   16384
stack_top:

        .section .note.GNU-stack, "", @progbits
