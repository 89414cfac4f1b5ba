/*
 * Entry of the 32-bit guest by PVH: flat protected mode without paging, EBX pointing at
 * hvm_start_info. Nothing is promised about the GDT behind the selectors, so we load our own.
 */
#include "pc.h"

        .intel_syntax noprefix
        .text
        .globl  _start
_start: lgdt    [gdt_pointer]
        ljmp    0x08, offset reloaded
reloaded:
        mov     eax, 0x10
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        lea     esp, stack_top
        call    console_init
        push    ebx
        call    guest_main              // void guest_main(const struct start_info *)
        mov     dx, PM1A_CONTROL
        mov     ax, PM1A_S5
        out     dx, ax
halt:   cli
        hlt
        jmp     halt

        .section .rodata
        .balign 8
gdt:    .quad   0
        .quad   0x00CF9B000000FFFF      // code, 32 bits, flat
        .quad   0x00CF93000000FFFF      // data
gdt_pointer:
        .short  . - gdt - 1
        .long   gdt

        .bss
        .balign 16
        .skip   16384
stack_top:

        .section .note.pvh, "a", @note
        .balign 4
        .long   4, 4, 18                // XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   _start

        .section .note.GNU-stack, "", @progbits
