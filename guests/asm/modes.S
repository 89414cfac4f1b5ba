/*
 * To ring 3 of long mode, from real mode (a flat binary, entered at 0000:7C00) or, with PVH defined,
 * from the protected mode of a PVH entry. The first 4 GiB are mapped one to one for everybody,
 * except SUPERVISOR_PAGE. ring0_main() is called on the way; ring3_main() runs with interrupts on
 * and leave to use all ports, and doesn't return. Its argument is PVH's hvm_start_info.
 *
 * Where KVM is a software one, ring 3 is the only place whose code runs natively; but IOPL is lost
 * on the way there, so the leave to use ports is the TSS's permission bitmap.
 */
#include "modes.h"

#define TSS_RSP0 4
#define TSS_IO_MAP_BASE 102
#define TSS_SIZE 104
#define IO_PERMISSIONS_SIZE (8192 + 1)

        .intel_syntax noprefix
        .section .text.start, "ax"
        .globl  _start, io_permissions

#ifdef PVH
        .code32
_start: lgdt    [gdt_pointer]
#else
        .code16
_start: cli
        xor     ax, ax
        mov     ds, ax
        lgdt    [gdt_pointer]
        mov     eax, cr0
        or      eax, 1                  // PE
        mov     cr0, eax
#endif
        ljmp    KERNEL_CODE_32, offset protected

        .code32
protected:
        mov     eax, KERNEL_DATA
        mov     ds, eax
        mov     es, eax
        mov     ss, eax

        mov     dword ptr [PML4], PDPT | 7              // present, writable, user
        xor     ecx, ecx
1:      mov     eax, ecx
        shl     eax, 12
        add     eax, PAGE_DIRECTORIES | 7
        mov     [PDPT + ecx * 8], eax
        inc     ecx
        cmp     ecx, 4
        jne     1b
        xor     ecx, ecx
2:      mov     eax, ecx
        shl     eax, 21
        or      eax, 0x87                               // and a 2 MiB page
        mov     [PAGE_DIRECTORIES + ecx * 8], eax
        inc     ecx
        cmp     ecx, 4 * 512
        jne     2b
        and     dword ptr [PAGE_DIRECTORIES + (SUPERVISOR_PAGE >> 21) * 8], ~4

        mov     eax, cr4
        or      eax, 1 << 5             // PAE
        mov     cr4, eax
        mov     eax, PML4
        mov     cr3, eax
        mov     ecx, 0xC0000080         // EFER
        rdmsr
        or      eax, 1 << 8             // LME
        wrmsr
        mov     eax, cr0
        or      eax, 1 << 31            // PG
        mov     cr0, eax
        ljmp    KERNEL_CODE, offset long_mode

        .code64
long_mode:
        mov     rsp, offset ring0_stack
        mov     qword ptr [task_state + TSS_RSP0], offset ring0_stack
        mov     word ptr [task_state + TSS_IO_MAP_BASE], TSS_SIZE
        mov     eax, offset task_state
        mov     [task_descriptor + 2], ax
        shr     eax, 16
        mov     [task_descriptor + 4], al
        mov     [task_descriptor + 7], ah
        mov     ax, TASK
        ltr     ax
        call    ring0_main
        push    USER_DATA
        push    offset ring3_stack
        push    RFLAGS_IF
        push    USER_CODE
        push    offset ring3
        iretq
ring3:  mov     edi, ebx
        call    ring3_main

        .section .data
        .balign 8
gdt:    .quad   0
        .quad   0x00CF9B000000FFFF      // code, 32 bits
        .quad   0x00AF9B000000FFFF      // code, 64 bits
        .quad   0x00CF93000000FFFF      // data
        .quad   0x00CFF3000000FFFF      // data, ring 3
        .quad   0x00AFFB000000FFFF      // code, 64 bits, ring 3
task_descriptor:
        .word   TSS_SIZE + IO_PERMISSIONS_SIZE - 1
        .word   0
        .byte   0, 0x89, 0, 0
        .quad   0
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .bss
        .balign 8
task_state:
        .skip   TSS_SIZE
io_permissions:
        .skip   IO_PERMISSIONS_SIZE
        .balign 16
        .skip   4096
ring0_stack:
        .skip   4096 - 8                // as if called: the ABI's alignment
ring3_stack:

#ifdef PVH
        .section .note.pvh, "a", @note
        .balign 4
        .long   4, 4, 18                // XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   _start
#endif

        .section .note.GNU-stack, "", @progbits
