/*
 * INT 19h and 18h: the bootstrap. Disks and floppies are tried in the order that the VMM says; or
 * there is a kernel in memory, which it put there, to be entered. When nothing boots the run ends.
 */
#include "bios.h"

        .globl  int18, int19

#define HAS_FLOPPIES 0x01               /* BDA_EQUIPMENT */

/* What SERVICE_BOOT says there is to boot. */
#define BOOT_DISK 0
#define BOOT_KERNEL 1

        .data
boot_attempts:
        .byte   0
        .text

/* From the beginning. */
int19:  mov     byte ptr cs:[boot_attempts], 0

/* The boot sector has given up: the next drive. */
int18:  cli
        cld
        xor     ax, ax
        mov     ss, ax
        mov     sp, BOOT_SECTOR
        push    BDA_SEGMENT
        pop     ds
        sti
next:   mov     al, cs:[boot_attempts]
        inc     byte ptr cs:[boot_attempts]
        mov     cs:[request_unit], al
        mov     al, SERVICE_BOOT
        call    services
        jc      nothing_boots
        cmp     byte ptr cs:[request_flags], BOOT_KERNEL
        je      enter_kernel

        mov     dl, cs:[request_unit]
        push    ss
        pop     es
        mov     bx, BOOT_SECTOR
        mov     ax, 0x0201
        mov     cx, 1
        mov     dh, 0
        int     0x13
        jc      next
        cmp     word ptr es:[BOOT_SECTOR + 510], 0xAA55
        je      1f
        test    dl, dl
        js      next
        // DOS 1 and games of its time put no mark on a floppy. One that is only formatted is all the
        // same.
        mov     eax, es:[BOOT_SECTOR]
        cmp     ax, es:[BOOT_SECTOR + 2]
        je      next
1:      push    dx
        mov     si, offset booting
        call    print
        pop     dx
        push    dx
        call    print_drive
        mov     si, offset new_line
        call    print
        pop     dx
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        xor     bx, bx
        xor     cx, cx
        xor     dh, dh
        xor     si, si
        xor     di, di
        xor     bp, bp
        mov     ax, 0xAA55
        ljmp    0, BOOT_SECTOR

/* What drive DL is called. */
print_drive:
        test    dl, dl
        js      1f
        push    dx
        mov     si, offset floppy
        call    print
        pop     ax
        add     al, 'A'
        jmp     print_character
1:      push    dx
        mov     si, offset disk
        call    print
        pop     dx
        movzx   eax, dl
        sub     al, 0x7F
        jmp     print_decimal

/* A Linux kernel by its real-mode entry (Documentation/arch/x86/boot.rst, "Running the kernel"):
 * request_count has SP and the segment of its set-up code, which is all segments but CS; that is 20h
 * more. */
enter_kernel:
        cli
        mov     eax, cs:[request_count]
        mov     bx, ax
        shr     eax, 16
        mov     ds, ax
        mov     es, ax
        mov     fs, ax
        mov     gs, ax
        mov     ss, ax
        mov     sp, bx
        add     ax, 0x20
        push    ax
        push    0
        retf

nothing_boots:
        mov     si, offset no_bootable_disk
        call    print
        test    byte ptr BDA_EQUIPMENT, HAS_FLOPPIES
        jz      1f
        mov     si, offset or_floppy
        call    print
1:      mov     si, offset new_line
        call    print
        mov     al, SERVICE_GIVE_UP
        call    services
1:      cli
        hlt
        jmp     1b

        .section .rodata
booting:
        .asciz  "Booting from "
disk:   .asciz  "disk "
floppy: .asciz  "floppy "
no_bootable_disk:
        .asciz  "No bootable disk"
or_floppy:
        .asciz  " or floppy"
