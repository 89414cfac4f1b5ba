/*
 * INT 17h: there is no printer. Every call says so: out of paper, not selected, timed out.
 */
#include "bios.h"

        .globl  int17

int17:  enter_service
        mov     byte ptr [bp + CALLER_AH], 0x29
        jmp     return
