/*
 * What is at the addresses that it had in IBM's ROM: the PC/AT Technical Reference lists them for
 * "compatibility", and there are programs that jump there instead of using an interrupt. Each is
 * entered as by the INT instruction.
 *
 * Not there: the video parameters (F0A4) of a CRT controller, and the font (FA6E), for there are no
 * graphics.
 */
#include "bios.h"

        .globl  do_nothing, configuration_table

/* The section's next entry is at `address`; the section begins at `first`. */
.macro  at address
        .org    \address - first
.endm

        .section .entries_1, "ax"
        .set    first, 0xE05B
        at      0xE05B
        jmp     post
        at      0xE2C3                  // NMI
        iret
        at      0xE3FE
        jmp     int13
        at      0xE6F2
        jmp     int19

        at      0xE6F5
configuration_table:                    // INT 15h, C0h
        .word   8                       // bytes that follow
        .byte   0xFC, 0x01, 0x00        // model and submodel: AT; revision
        .byte   0x74                    // two PICs, a clock, INT 15h 4Fh is called, an EBDA
        .byte   0x40                    // INT 16h 09h
        .byte   0x00, 0x00, 0x00

        at      0xE739
        jmp     int14
        at      0xE82E
        jmp     int16
        at      0xE987
        jmp     int09
        at      0xEC59
        jmp     int40
        at      0xEF57                  // the floppy controller's IRQ
        jmp     on_master_irq
        at      0xEFC7                  // a floppy drive's parameters, for 1.44 MB
        .byte   0xDF, 0x02, 0x25, 0x02, 18, 0x1B, 0xFF, 0x6C, 0xF6, 0x0F, 0x08
        at      0xEFD2
        jmp     int17
        at      0xF065
        jmp     int10

        .section .entries_2, "ax"
        .set    first, 0xF841
        at      0xF841
        jmp     int12
        at      0xF84D
        jmp     int11
        at      0xF859
        jmp     int15

        .section .entries_3, "ax"
        .set    first, 0xFE6E
        at      0xFE6E
        jmp     int1a
        at      0xFEA5
        jmp     int08
        at      0xFF53
do_nothing:
        iret
        at      0xFF54                  // PrtSc: there is no printer
        iret
