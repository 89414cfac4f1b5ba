/*
 * The reset vector, and the power-on self test: the machine is brought into the state in which the
 * software of 1984 expects it. There is little to test, and little that could fail.
 *
 * Who jumps to F000:FFF0 wants a reboot: the second time, the machine is reset.
 */
#include "bios.h"

        .section .reset, "ax"
        .globl  reset_vector, post
reset_vector:
        ljmp    BIOS_SEGMENT, offset post
        .ascii  "11/21/26"              // F000:FFF5, the date
        .byte   0
        .byte   0xFC                    // F000:FFFE, the model: AT
        .byte   0

        .data
has_run:
        .byte   0                       // a reset loads the ROM again
        .text
post:   cli
        cld
        cmp     byte ptr cs:[has_run], 0
        jne     reboot
        mov     byte ptr cs:[has_run], 1
        mov     al, 0x80                // NMI off as well, and on again below
        out     CMOS_INDEX, al
        xor     ax, ax
        mov     ss, ax
        mov     sp, BOOT_SECTOR
        lidt    cs:[real_mode_idt]
        mov     eax, cr0
        and     eax, 0x9FFFFFFF         // caches on: CD and NW are set by RESET
        mov     cr0, eax

        mov     al, 0x01
        out     POST_PORT, al
        call    set_up_data_area
        call    set_up_vectors
        call    set_up_pics
        call    set_up_pit
        mov     al, 0x02
        out     POST_PORT, al
        call    set_up_serial
        call    set_up_video
        call    set_up_keyboard
        mov     al, 0x03
        out     POST_PORT, al
        call    set_up_clock
        call    set_up_disks
        call    set_up_tables
        mov     al, 0x0D
        out     CMOS_INDEX, al
        in      al, CMOS_DATA
        sti
        mov     al, 0x04
        out     POST_PORT, al
        int     0x19

real_mode_idt:
        .word   0x3FF
        .long   0

/* The BIOS data area and the EBDA. What isn't set here or by the parts' own set-up is zero. */
set_up_data_area:
        push    BDA_SEGMENT
        pop     ds
        push    ds
        pop     es
        xor     di, di
        mov     cx, 0x100 / 2
        xor     ax, ax
        rep     stosw
        mov     word ptr BDA_EBDA, EBDA_SEGMENT
        mov     word ptr BDA_MEMORY_KIB, BASE_MEMORY_KIB
        // An FPU, a PS/2 mouse port and 80 columns in colour; serial ports are added later.
        mov     word ptr BDA_EQUIPMENT, 0x0026
        mov     dword ptr BDA_LPT_TIMEOUTS, 0x00141414      // (of the fourth, flags are there now)
        mov     dword ptr BDA_COM_TIMEOUTS, 0x01010101
        push    EBDA_SEGMENT
        pop     es
        xor     di, di
        mov     cx, EBDA_KIB * 1024 / 2
        rep     stosw
        mov     byte ptr es:[0], EBDA_KIB
        ret

/* IRQ 0 to 7 are interrupts 08h to 0Fh, IRQ 8 to 15 are 70h to 77h. Let timer, keyboard, the slave
 * and the clock through. */
set_up_pics:
        mov     al, 0x11                // ICW1: edges, a slave, ICW4 follows
        out     PIC_MASTER, al
        out     PIC_SLAVE, al
        mov     al, 0x08
        out     PIC_MASTER_DATA, al
        mov     al, 0x70
        out     PIC_SLAVE_DATA, al
        mov     al, 0x04                // ICW3: the slave is at IRQ 2
        out     PIC_MASTER_DATA, al
        mov     al, 0x02
        out     PIC_SLAVE_DATA, al
        mov     al, 0x01                // ICW4: 8086
        out     PIC_MASTER_DATA, al
        out     PIC_SLAVE_DATA, al
        mov     al, 0xF8
        out     PIC_MASTER_DATA, al
        mov     al, 0xFE
        out     PIC_SLAVE_DATA, al
        ret

/* 18.2 interrupts a second: the counter's whole length. */
set_up_pit:
        mov     al, 0x36                // channel 0, two bytes, square wave
        out     PIT_CONTROL, al
        xor     al, al
        out     PIT_CHANNEL_0, al
        out     PIT_CHANNEL_0, al
        ret
