/*
 * Lesson 9, its other half: where a further CPU starts. In real mode, at a page below 1 MiB that
 * the start-up interrupt names; 09_smp.c copies this there. It is lesson 4 once more, but for the
 * page tables, which the first CPU has already. Then it takes a number, and a stack by that number,
 * and calls further_cpu().
 */
        .intel_syntax noprefix
        .globl  start_page, start_page_end, start_cr3

#define PAGE 0x2000                     // START_PAGE of 09_smp.c
#define COPIED(label) (PAGE + label - start_page)
#define STACK_SHIFT 12
#define MAX_OTHERS 16

        .section .rodata
        .code16
start_page:
        cli
        xor     ax, ax                  // CS is PAGE / 16, but we address from 0
        mov     ds, ax
        lgdt    [COPIED(gdt_pointer)]
        mov     eax, cr0
        or      eax, 1                  // PE
        mov     cr0, eax
        .byte   0x66, 0xEA              // ljmp 0x08:COPIED(protected), which no syntax allows
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
        mov     eax, [COPIED(start_cr3)]
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
        movabs  rbx, offset started
        lock xadd [rbx], eax            // several CPUs are here at once: each gets its own number
        cmp     eax, MAX_OTHERS
        jae     stop
        inc     eax                     // a stack begins at its upper end
        shl     eax, STACK_SHIFT
        movabs  rsp, offset stacks
        add     rsp, rax
        movabs  rax, offset further_cpu
        call    rax
stop:   cli
        hlt
        jmp     stop

        .balign 8
gdt:    .quad   0
        .quad   0x00CF9B000000FFFF      // code, 32 bits
        .quad   0x00AF9B000000FFFF      // code, 64 bits
        .quad   0x00CF93000000FFFF      // data
gdt_pointer:
        .word   . - gdt - 1
        .long   COPIED(gdt)
start_cr3:
        .long   0                       // 09_smp.c puts it into the copy
start_page_end:

        .bss
        .balign 16
started:
        .long   0
        .balign 16
stacks: .skip   MAX_OTHERS << STACK_SHIFT

        .section .note.GNU-stack, "", @progbits
