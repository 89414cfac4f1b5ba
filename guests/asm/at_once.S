/* A PVH guest that ends at once, by QEMU's debug exit port: for measuring a start. */
#include "pc.h"

        .intel_syntax noprefix
        .text
        .globl  _start
_start: mov     al, 21
        out     DEBUG_EXIT, al
1:      hlt
        jmp     1b

        .section .note.pvh, "a", @note
        .balign 4
        .long   4, 4, 18                // XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   _start

        .section .note.GNU-stack, "", @progbits
