/*
 * Entry of the Multiboot guests: flat 32-bit protected mode without paging, EAX holding the loader's
 * magic number and EBX the address of what it says. With AOUT_KLUDGE the file is flat and the
 * header has the addresses (Multiboot Specification 0.6.96, section 3.1.3); MULTIBOOT2 is the other
 * protocol, whose header is a list of tags.
 */
#include "pc.h"

        .intel_syntax noprefix
        .section .multiboot, "ax"
#ifdef MULTIBOOT2
        .balign 8
header: .long   0xE85250D6, 0, header_end - header
        .long   -(0xE85250D6 + (header_end - header))
        .short  1, 0                    // information that it can't do without
        .long   8 + 4 * 5
        .long   1, 3, 4, 6, 15          // command line, modules, memory, map, ACPI
        .balign 8
        .short  77, 1                   // nobody knows this one, and it is optional
        .long   8
        .short  0, 0
        .long   8
header_end:
#elif defined(AOUT_KLUDGE)
        .globl  _start
        .balign 4
header: .long   0x1BADB002, 0x00010003, -(0x1BADB002 + 0x00010003)
        .long   header, header, load_end, bss_end, _start
#else
        .balign 4
header: .long   0x1BADB002, 0x00000003, -(0x1BADB002 + 0x00000003)
#endif

        .text
        .globl  _start
_start: lgdt    [gdt_pointer]
        ljmp    0x08, offset reloaded
reloaded:
        mov     ecx, 0x10
        mov     ds, ecx
        mov     es, ecx
        mov     ss, ecx
        lea     esp, stack_top
        push    ebx
        push    eax
        call    console_init
        call    guest_main              // void guest_main(uint32_t magic, const void *info)
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

        .section .note.GNU-stack, "", @progbits
