/*
 * Where a further CPU starts after its start-up interrupt: real mode, at a page below 1 MiB to
 * which the first CPU has copied this. From there to long mode, with the first CPU's page tables,
 * and to ap_main on a stack of its own.
 */
#include "smp.h"

        .intel_syntax noprefix
        .section .rodata
        .globl  trampoline, trampoline_end, trampoline_cr3

/* Where a label is after the copy. */
#define COPIED(label) (TRAMPOLINE + label - trampoline)

        .code16
trampoline:
        cli
        xor     ax, ax
        mov     ds, ax
        lgdt    [COPIED(gdt_pointer)]
        mov     eax, cr0
        or      eax, 1                  // PE
        mov     cr0, eax
        .byte   0x66, 0xEA              // a far jump with a 32-bit offset
        .long   COPIED(protected)
        .word   0x08

        .code32
protected:
        mov     eax, 0x18
        mov     ds, eax
        mov     ss, eax
        mov     eax, cr4
        or      eax, 1 << 5             // PAE
        mov     cr4, eax
        mov     eax, [COPIED(trampoline_cr3)]
        mov     cr3, eax
        mov     ecx, 0xC0000080         // EFER
        rdmsr
        or      eax, 1 << 8             // LME
        wrmsr
        mov     eax, cr0
        or      eax, 1 << 31            // PG
        mov     cr0, eax
        .byte   0xEA
        .long   COPIED(long_mode)
        .word   0x10

        .code64
long_mode:
        mov     eax, 1
        movabs  rbx, offset next_stack
        lock xadd [rbx], eax
        shl     eax, STACK_SHIFT
        movabs  rsp, offset ap_stacks
        add     rsp, rax
        add     rsp, 1 << STACK_SHIFT
        movabs  rax, offset ap_main
        call    rax
1:      cli
        hlt
        jmp     1b

        .balign 8
gdt:    .quad   0
        .quad   0x00CF9B000000FFFF      // code, 32 bits
        .quad   0x00AF9B000000FFFF      // code, 64 bits
        .quad   0x00CF93000000FFFF      // data
gdt_pointer:
        .word   . - gdt - 1
        .long   COPIED(gdt)
trampoline_cr3:
        .long   0
trampoline_end:

        .bss
        .balign 16
next_stack:
        .long   0
        .balign 16
ap_stacks:
        .skip   MAX_CPUS << STACK_SHIFT

        .section .note.GNU-stack, "", @progbits
