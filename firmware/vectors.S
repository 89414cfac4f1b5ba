/*
 * The interrupt vector table; how services end; what becomes of interrupts that nobody serves, and of
 * the CPU's faults; and printing, for all parts of the BIOS that have something to say.
 */
#include "bios.h"

        .globl  set_up_vectors, return, return_ok, return_carry, return_error, on_master_irq

/* How services end. Carry is the caller's to see in the flags that IRET restores. */
return_error:                           // AH is the error
        mov     [bp + CALLER_AH], ah
return_carry:
        or      byte ptr [bp + CALLER_FLAGS], CARRY
        jmp     return
return_ok:
        and     byte ptr [bp + CALLER_FLAGS], ~CARRY & 0xFF
return: popad
        pop     es
        pop     ds
        iret

/* All of segment 0's first KiB: a vector that nobody serves leads to an IRET, the one that IBM's has for
 * it. */
set_up_vectors:
        xor     ax, ax
        mov     es, ax
        xor     di, di
        mov     eax, BIOS_SEGMENT << 16
        mov     ax, offset do_nothing
        mov     cx, 256
        rep     stosd
        mov     si, offset vectors
1:      lods    word ptr cs:[si]
        cmp     ax, -1
        je      2f
        mov     di, ax
        shl     di, 2
        lods    word ptr cs:[si]
        mov     es:[di], ax
        jmp     1b
        // Pointers to tables that we don't have, and the vectors that programs may take.
2:      mov     di, 0x1D * 4
        xor     eax, eax
        stosd                           // 1Dh: video parameters
        mov     di, 0x1F * 4
        stosd                           // 1Fh: graphics font
        mov     di, 0x41 * 4
        stosd                           // 41h and 46h: parameters of disks 80h and 81h
        mov     di, 0x46 * 4
        stosd
        mov     di, 0x60 * 4
        mov     cx, 8
        rep     stosd                   // 60h to 67h
        ret

        .section .rodata
vectors:
        .word   0x00, on_divide_error
        .word   0x06, on_invalid_opcode
        .word   0x08, int08
        .word   0x09, int09
        .word   0x0A, on_master_irq
        .word   0x0B, on_master_irq
        .word   0x0C, on_irq4
        .word   0x0D, on_irq5
        .word   0x0E, on_master_irq
        .word   0x0F, on_master_irq
        .word   0x10, int10
        .word   0x11, int11
        .word   0x12, int12
        .word   0x13, int13
        .word   0x14, int14
        .word   0x15, int15
        .word   0x16, int16
        .word   0x17, int17
        .word   0x18, int18
        .word   0x19, int19
        .word   0x1A, int1a
        .word   0x1E, floppy_parameters
        .word   0x40, int40
        .word   0x70, int70
        .word   0x71, on_slave_irq
        .word   0x72, on_slave_irq
        .word   0x73, on_slave_irq
        .word   0x74, on_slave_irq
        .word   0x75, on_slave_irq
        .word   0x76, on_slave_irq
        .word   0x77, on_slave_irq
        .word   -1
        .text

/* An interrupt of a device without a driver: acknowledged, and masked lest it come for ever. The
 * one in service has the highest priority, and the lowest bit. */
on_slave_irq:
        push    ax
        mov     al, 0x0B                // OCW3: read the in-service register
        out     PIC_SLAVE, al
        in      al, PIC_SLAVE
        test    al, al
        jz      1f                      // a spurious one: the slave's, not the master's, is none
        mov     ah, al
        neg     al
        and     ah, al
        in      al, PIC_SLAVE_DATA
        or      al, ah
        out     PIC_SLAVE_DATA, al
        mov     al, PIC_EOI
        out     PIC_SLAVE, al
1:      mov     al, PIC_EOI
        out     PIC_MASTER, al
        pop     ax
        iret

on_master_irq:
        push    ax
        mov     al, 0x0B
        out     PIC_MASTER, al
        in      al, PIC_MASTER
        test    al, al
        jz      1f
        mov     ah, al
        neg     al
        and     ah, al
        in      al, PIC_MASTER_DATA
        or      al, ah
        out     PIC_MASTER_DATA, al
        mov     al, PIC_EOI
        out     PIC_MASTER, al
1:      pop     ax
        iret

/* IRQ 4 and 5 have the vectors that the CPU uses for stack and protection faults, such as an operand
 * beyond the end of a segment. If the PIC has no such interrupt in service it was a fault; or
 * somebody's handler has called this one when all was done. A fault comes again at once. */
.macro  irq_or_fault number, message
        push    ax
        mov     al, 0x0B                // OCW3: read the in-service register
        out     PIC_MASTER, al
        in      al, PIC_MASTER
        test    al, 1 << \number
        pop     ax
        jnz     on_master_irq
        enter_service
        mov     si, offset \message
        jmp     stop_if_repeated
.endm
on_irq4:
        irq_or_fault 4, stack_fault
on_irq5:
        irq_or_fault 5, protection_fault
stop_if_repeated:
        mov     eax, [bp + CALLER_IP]   // and CS
        mov     ecx, BDA_TICKS
        cmp     eax, cs:[fault_address]
        jne     1f
        cmp     ecx, cs:[fault_time]
        jne     1f
        dec     byte ptr cs:[fault_repeats]
        jz      stop
        jmp     return
1:      mov     cs:[fault_address], eax
        mov     cs:[fault_time], ecx
        mov     byte ptr cs:[fault_repeats], 200
        jmp     return

        .data
fault_address:
        .long   0
fault_time:
        .long   0
fault_repeats:
        .byte   0
        .text

/* Faults return to the instruction that caused them: going on would be an endless loop. */
on_divide_error:
        enter_service
        mov     si, offset divide_error
        jmp     stop
on_invalid_opcode:
        enter_service
        mov     si, offset invalid_opcode
stop:   call    print
        mov     ax, [bp + CALLER_CS]
        call    print_word
        mov     al, ':'
        call    print_character
        mov     ax, [bp + CALLER_IP]
        call    print_word
        mov     si, offset new_line
        call    print
1:      cli
        hlt
        jmp     1b

        .section .rodata
divide_error:
        .asciz  "\r\nBIOS: divide error at "
invalid_opcode:
        .asciz  "\r\nBIOS: invalid opcode at "
stack_fault:
        .asciz  "\r\nBIOS: stack fault at "
protection_fault:
        .asciz  "\r\nBIOS: protection fault at "
        .globl  new_line
new_line:
        .asciz  "\r\n"
        .text

/* AX as four digits. */
print_word:
        mov     cx, 4
1:      rol     ax, 4
        push    ax
        and     al, 15
        cmp     al, 10
        jb      2f
        add     al, 'A' - '0' - 10
2:      add     al, '0'
        call    print_character
        pop     ax
        loop    1b
        ret

        .globl  print, print_character, print_decimal
/* The string at CS:SI; SI is lost. */
print:  lods    byte ptr cs:[si]
        test    al, al
        jz      1f
        call    print_character
        jmp     print
1:      ret

/* AL by whoever serves INT 10h now. */
print_character:
        push    bx
        mov     ah, 0x0E
        xor     bx, bx
        int     0x10
        pop     bx
        ret

/* EAX as a decimal number. */
print_decimal:
        mov     ebx, 10
        xor     cx, cx
1:      xor     edx, edx
        div     ebx
        push    dx
        inc     cx
        test    eax, eax
        jnz     1b
2:      pop     ax
        add     al, '0'
        call    print_character
        loop    2b
        ret
