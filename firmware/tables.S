/*
 * What operating systems look for in segment F000, on 16-byte boundaries: the SMBIOS entry points
 * and the BIOS32 service directory. (The ACPI root pointer is at E000:0000, where they look, too.)
 */
#include "bios.h"

        .globl  set_up_tables, bios32_directory

        .data
        .balign 16
smbios_3_entry:                         /* 24 bytes */
        .fill   32, 1, 0
smbios_2_entry:                         /* 31 bytes */
        .fill   32, 1, 0

bios32_directory:
        .ascii  "_32_"
        .long   BIOS_BASE + bios32
        .byte   0                       // revision
        .byte   1                       // length in paragraphs
        .byte   0                       // checksum
        .fill   5, 1, 0
        .text

/* Right after SERVICE_START, which said where the VMM has left the two SMBIOS entry points. */
set_up_tables:
        mov     eax, cs:[request_sector]
        test    eax, eax
        jz      1f
        shr     eax, 4
        mov     ds, ax
        push    cs
        pop     es
        xor     si, si
        mov     di, offset smbios_3_entry
        mov     cx, 64 / 4
        rep     movsd
        push    BDA_SEGMENT
        pop     ds
1:      mov     si, offset bios32_directory
        mov     cx, 15
        mov     byte ptr cs:[bios32_directory + 10], 0
        mov     ah, 0
2:      lods    byte ptr cs:[si]
        sub     ah, al
        loop    2b
        mov     cs:[bios32_directory + 10], ah
        ret
