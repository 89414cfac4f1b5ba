/*
 * INT 15h: system services, but for those about memory, which are in memory.S.
 */
#include "bios.h"

        .globl  int15, not_supported, nothing_to_do

        .section .rodata
        .balign 4
system_services:                        /* function, where */
        .word   0x24, address_line_20
        .word   0x4F, not_a_key
        .word   0x53, apm
        .word   0x80, nothing_to_do
        .word   0x81, nothing_to_do
        .word   0x82, nothing_to_do
        .word   0x85, nothing_to_do
        .word   0x86, wait_call
        .word   0x87, move_block
        .word   0x88, extended_memory
        .word   0x90, nothing_to_do
        .word   0x91, nothing_to_do
        .word   0xC0, configuration
        .word   0xC1, extended_data_area
        .word   0xE8, memory_e8
        .word   -1
        .text

int15:  enter_service
        mov     di, offset system_services - 4
1:      add     di, 4
        cmp     word ptr cs:[di], -1
        je      not_supported
        cmp     ah, cs:[di]
        jne     1b
        mov     bx, cs:[di + 2]
        mov     di, [bp + CALLER_DI]
        jmp     bx

not_supported:
        mov     ah, 0x86
        jmp     return_error

/* 4Fh: a key's scan code AL, which the caller is to go on with. */
not_a_key:
        jmp     return_carry

/* Open and close a device, end a program, SysReq; and wait for a device, which is the operating
 * system's to do better. */
nothing_to_do:
        mov     byte ptr [bp + CALLER_AH], 0
        jmp     return_ok

/* 86h: CX:DX microseconds. */
wait_call:
        sti
        mov     ax, cx
        shl     eax, 16
        mov     ax, dx
        call    wait_microseconds
        mov     byte ptr [bp + CALLER_AH], 0
        jmp     return_ok

/* C0h */
configuration:
        mov     [bp + CALLER_ES], cs
        mov     word ptr [bp + CALLER_BX], offset configuration_table
        mov     byte ptr [bp + CALLER_AH], 0
        jmp     return_ok

/* C1h */
extended_data_area:
        mov     ax, BDA_EBDA
        mov     [bp + CALLER_ES], ax
        jmp     return_ok
