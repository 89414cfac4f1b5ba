/*
 * What an exit costs: the same access 20,000 times in a row, for each kind of access, first in ring
 * 0 and then in ring 3. A write to MARK_PORT says which series begins; 0xFF, that all are done.
 * tests/bench/exits.py knows these numbers.
 */
        .intel_syntax noprefix
        .text
        .code64
        .globl  ring0_main, ring3_main

#define MARK_PORT 0x5E0
#define PORT 0x5E4
#define ADDRESS 0xD0000000
#define TIMES 20000

.macro  series number, access:vararg
        mov     dx, MARK_PORT
        mov     al, \number
        out     dx, al
        mov     dx, PORT
        mov     ecx, TIMES
1:      \access
        dec     ecx
        jnz     1b
.endm

.macro  all_series first
        mov     ebx, ADDRESS
        series  \first + 0, out dx, al
        series  \first + 1, in al, dx
        series  \first + 2, mov [rbx], eax
        series  \first + 3, mov eax, [rbx]
.endm

ring0_main:
        all_series 0
        ret

ring3_main:
        all_series 4
        mov     dx, MARK_PORT
        mov     al, 0xFF
        out     dx, al
1:      jmp     1b

        .section .note.GNU-stack, "", @progbits
