/*
 * A disk's first sectors: they call the BIOS's services one after the other and check what they
 * answer. The first sector is loaded by the BIOS and loads the others.
 *
 * The test has filled the sectors behind these with their numbers, as 32-bit words, up to the disk's
 * 16384th and last one; and attached a second disk that is read-only.
 */
#include "pc.h"

#define SECTORS 15                      /* behind the first */
#define DISK_SECTORS 16384
#define LAST_SECTOR 16383
#define BUFFER 0xB000                   /* in segment 0 */
#define HIGH_BUFFER 0x200000

        .intel_syntax noprefix
        .code16
        .section .text.start, "ax"
        .globl  _start

_start: ljmp    0, offset 1f
1:      xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7C00
        mov     [boot_disk], dl
        mov     ah, 0x42
        mov     si, offset boot_packet
        int     0x13
        jnc     main
        mov     al, '!'
        mov     ah, 0x0E
        int     0x10
        hlt

boot_packet:
        .word   16, SECTORS
        .word   0x7E00, 0
        .quad   1
boot_disk:
        .byte   0
        .org    510
        .word   0xAA55

/* `ok: NAME` if the zero flag is set, else `FAIL: NAME is EAX`. */
.macro  check_zero name:vararg
        .pushsection .rodata
name\@: .asciz  \name
        .popsection
        mov     si, offset name\@
        call    report
.endm

.macro  check_equal register, value, name:vararg
        cmp     \register, \value
        check_zero \name
.endm

/* Carry, and AH. */
.macro  check_refused status, name:vararg
        mov     al, 0
        sbb     al, 0                   // FFh with carry
        check_equal ax, (\status)<<8|0xFF, \name
.endm

/* No carry. */
.macro  check_done name:vararg
        setc    bl
        test    bl, bl
        check_zero \name
.endm

        .text
main:   call    test_data_area
        call    test_disk_parameters
        call    test_reading
        call    test_writing
        call    test_disk_errors
        call    test_memory
        call    test_block_move
        call    test_system
        call    test_time
        call    test_pci
        call    test_bios32
        call    test_tables
        call    test_video
        call    test_serial
        call    test_keyboard
        mov     dx, PM1A_CONTROL
        mov     ax, PM1A_S5
        out     dx, ax
1:      hlt
        jmp     1b

test_data_area:
        mov     al, [boot_disk]
        check_equal al, 0x80, "DL is the boot disk"
        int     0x11
        and     ax, 0x0E30
        check_equal ax, 0x0220, "INT 11h: one serial port, 80 columns"
        int     0x12
        check_equal ax, 639, "INT 12h: 639 KiB"
        mov     ax, ds:[0x400]
        check_equal ax, COM1, "data area: COM1"
        mov     ax, ds:[0x40E]
        check_equal ax, 0x9FC0, "data area: EBDA"
        mov     al, ds:[0x475]
        check_equal al, 2, "data area: two disks"
        mov     ax, ds:[0x44A]
        check_equal ax, 80, "data area: columns"
        mov     ax, ds:[0x13 * 4 + 2]
        check_equal ax, 0xF000, "INT 13h's vector"
        mov     ax, 0x9FC0
        mov     es, ax
        mov     al, es:[0]
        push    ds
        pop     es
        check_equal al, 1, "EBDA: 1 KiB"
        ret

/* 16384 sectors: 16 heads of 63, so 16 whole cylinders. */
test_disk_parameters:
        mov     ah, 0x08
        mov     dl, 0x80
        mov     cx, -1
        int     0x13
        mov     ax, dx
        check_equal ax, 15<<8|2, "INT 13h 08h: heads, disks"
        mov     ax, cx
        check_equal ax, 15<<8|63, "INT 13h 08h: cylinders, sectors"
        mov     ah, 0x15
        mov     dl, 0x80
        int     0x13
        check_equal ah, 3, "INT 13h 15h: a fixed disk"
        mov     ax, cx
        shl     eax, 16
        mov     ax, dx
        check_equal eax, DISK_SECTORS, "INT 13h 15h: its size"
        mov     ah, 0x15
        mov     dl, 0x82
        int     0x13
        check_equal ah, 0, "INT 13h 15h: no third disk"

        mov     ah, 0x41
        mov     bx, 0x55AA
        mov     dl, 0x80
        int     0x13
        movzx   eax, bx
        check_equal ax, 0xAA55, "INT 13h 41h: extensions"
        mov     ax, cx
        and     ax, 1
        check_equal ax, 1, "INT 13h 41h: disk access"
        mov     word ptr ds:[BUFFER], 30
        mov     ah, 0x48
        mov     dl, 0x80
        mov     si, BUFFER
        int     0x13
        check_done "INT 13h 48h"
        mov     eax, ds:[BUFFER + 4]
        check_equal eax, 16, "INT 13h 48h: cylinders"
        mov     eax, ds:[BUFFER + 16]
        check_equal eax, DISK_SECTORS, "INT 13h 48h: sectors"
        mov     eax, ds:[BUFFER + 20]
        check_equal eax, 0, "INT 13h 48h: sectors, upper half"
        mov     ax, ds:[BUFFER + 24]
        check_equal ax, 512, "INT 13h 48h: bytes"
        ret

        .data
        .balign 4
packet: .byte   16, 0
packet_count:
        .word   1
packet_buffer:
        .word   BUFFER, 0
packet_sector:
        .long   0, 0
packet_flat_buffer:
        .quad   0
        .text

/* AH on disk 80h: one sector, number EDI, to or from BUFFER. */
extended:
        mov     word ptr [packet_count], 1
        mov     [packet_sector], edi
        mov     si, offset packet
        mov     dl, 0x80
        int     0x13
        ret

/* AH on disk 80h: cylinder 4, head 15, sector 24, which is 5000 sectors in. */
by_cylinder:
        mov     al, 1
        mov     cx, 4 << 8 | 24
        mov     dx, 15 << 8 | 0x80
        mov     bx, BUFFER
        int     0x13
        ret

test_reading:
        mov     dword ptr ds:[BUFFER], 0
        mov     ah, 0x02
        call    by_cylinder
        check_done "INT 13h 02h"
        check_equal ax, 1, "INT 13h 02h: one sector"
        mov     eax, ds:[BUFFER]
        check_equal eax, 5000, "INT 13h 02h: the sector"
        mov     eax, ds:[BUFFER + 508]
        check_equal eax, 5000, "INT 13h 02h: to its end"
        mov     dword ptr ds:[BUFFER], 0
        mov     ah, 0x42
        mov     edi, 5001
        call    extended
        mov     eax, ds:[BUFFER]
        check_equal eax, 5001, "INT 13h 42h"
        mov     ah, 0x42
        mov     edi, LAST_SECTOR
        call    extended
        mov     eax, ds:[BUFFER]
        check_equal eax, LAST_SECTOR, "INT 13h 42h: the last sector"
        mov     ah, 0x04
        call    by_cylinder
        check_done "INT 13h 04h"
        mov     ah, 0x44
        mov     edi, LAST_SECTOR
        call    extended
        check_done "INT 13h 44h"
        mov     ah, 0x47
        mov     edi, LAST_SECTOR
        call    extended
        check_done "INT 13h 47h"
        mov     ah, 0x0C
        call    by_cylinder
        check_done "INT 13h 0Ch"
        mov     ah, 0x10
        mov     dl, 0x81
        int     0x13
        check_done "INT 13h 10h"
        mov     ah, 0x42                        // 128 sectors across 64 KiB
        mov     word ptr [packet_buffer], 0xFFF0
        mov     word ptr [packet_buffer + 2], 0x1000
        mov     word ptr [packet_count], 127
        mov     dword ptr [packet_sector], 8000
        mov     si, offset packet
        mov     dl, 0x80
        int     0x13
        check_done "INT 13h 42h: 127 sectors"
        mov     eax, 0x1000 << 4 | 0xFFF0       // 1FFF0h, then 126 sectors on
        add     eax, 126 * 512
        shr     eax, 4
        mov     es, ax
        mov     eax, es:[0]
        push    ds
        pop     es
        check_equal eax, 8126, "INT 13h 42h: the last of 127"
        mov     word ptr [packet_buffer], BUFFER
        mov     word ptr [packet_buffer + 2], 0
        ret

test_writing:
        mov     edi, 0x11223344
        mov     ah, 0x03
        mov     ds:[BUFFER], edi
        call    by_cylinder
        check_done "INT 13h 03h"
        mov     dword ptr ds:[BUFFER], 0
        mov     ah, 0x42
        mov     edi, 5000
        call    extended
        mov     eax, ds:[BUFFER]
        check_equal eax, 0x11223344, "INT 13h 03h: what 42h reads"
        mov     dword ptr ds:[BUFFER], 0x55667788
        mov     ax, 0x4300
        mov     edi, LAST_SECTOR
        call    extended
        check_done "INT 13h 43h"
        mov     dword ptr ds:[BUFFER], 0
        mov     ah, 0x42
        mov     edi, LAST_SECTOR
        call    extended
        mov     eax, ds:[BUFFER]
        check_equal eax, 0x55667788, "INT 13h 43h: what 42h reads"
        mov     ah, 0x00
        mov     dl, 0x80
        int     0x13
        check_done "INT 13h 00h"
        ret

test_disk_errors:
        mov     ah, 0x42
        mov     edi, DISK_SECTORS
        call    extended
        check_refused 0x04, "INT 13h 42h: behind the end"
        mov     ax, [packet_count]
        check_equal ax, 0, "INT 13h 42h: nothing transferred"
        mov     ah, 0x01
        mov     dl, 0x80
        int     0x13
        check_refused 0x04, "INT 13h 01h: the last error"
        mov     word ptr [packet_sector + 4], 1
        mov     ah, 0x42
        mov     edi, 0
        call    extended
        mov     word ptr [packet_sector + 4], 0
        check_refused 0x04, "INT 13h 42h: 2 TiB behind the end"
        mov     ax, 0x0201
        mov     cx, 0x0001
        mov     dx, 16 << 8 | 0x80
        int     0x13
        check_refused 0x04, "INT 13h 02h: no such head"
        mov     ax, 0x0201
        mov     cx, 0x0000
        mov     dx, 0x80
        int     0x13
        check_refused 0x04, "INT 13h 02h: sector 0"
        mov     ax, 0x0201
        mov     cx, 0xFFFF
        mov     dx, 0x80
        int     0x13
        check_refused 0x04, "INT 13h 02h: cylinder 1023"
        mov     ax, 0x0200
        mov     cx, 0x0001
        mov     dx, 0x80
        int     0x13
        check_refused 0x01, "INT 13h 02h: no sectors"
        mov     ax, 0x0301
        mov     cx, 0x0001
        mov     dx, 0x81
        mov     bx, BUFFER
        int     0x13
        check_refused 0x03, "INT 13h 03h: read-only"
        mov     ax, 0x0201
        mov     cx, 0x0001
        mov     dx, 0x81
        mov     bx, BUFFER
        int     0x13
        check_done "INT 13h 02h: the second disk"
        mov     eax, ds:[BUFFER]
        check_equal eax, 0x73696432, "INT 13h 02h: what is on it"
        mov     ax, 0x0201
        mov     dx, 0x82
        int     0x13
        check_refused 0x01, "INT 13h 02h: no third disk"
        mov     ax, 0x0201
        mov     dx, 0x00
        int     0x13
        check_refused 0x01, "INT 13h 02h: no floppy"
        mov     ah, 0x05
        mov     dx, 0x80
        int     0x13
        check_refused 0x01, "INT 13h 05h"
        mov     ah, 0x46
        mov     dx, 0x80
        int     0x13
        check_refused 0xB2, "INT 13h 46h: not removable"
        mov     byte ptr [packet], 8
        mov     ah, 0x42
        mov     edi, 0
        call    extended
        mov     byte ptr [packet], 16
        check_refused 0x01, "INT 13h 42h: a packet that is too short"
        mov     byte ptr [packet], 24
        mov     dword ptr [packet_buffer], -1
        mov     dword ptr [packet_flat_buffer], 0xF0000000
        mov     ah, 0x42
        mov     edi, 0
        call    extended
        mov     byte ptr [packet], 16
        mov     dword ptr [packet_buffer], BUFFER
        check_refused 0x09, "INT 13h 42h: a buffer that is no RAM"
        ret

/* `e820: start size type` for each entry. */
test_memory:
        xor     ebx, ebx
1:      mov     eax, 0xE820
        mov     edx, 0x534D4150
        mov     ecx, 20
        mov     di, BUFFER
        int     0x15
        jc      2f
        push    ebx
        mov     si, offset e820
        call    print
        mov     eax, ds:[BUFFER + 4]
        call    print_hexadecimal
        mov     eax, ds:[BUFFER]
        call    print_hexadecimal
        mov     al, ' '
        call    print_character
        mov     eax, ds:[BUFFER + 12]
        call    print_hexadecimal
        mov     eax, ds:[BUFFER + 8]
        call    print_hexadecimal
        mov     al, ' '
        call    print_character
        mov     eax, ds:[BUFFER + 16]
        call    print_hexadecimal
        call    print_line
        pop     ebx
        test    ebx, ebx
        jnz     1b
2:      mov     eax, 0xE820
        mov     edx, 0
        mov     ecx, 20
        xor     ebx, ebx
        int     0x15
        check_refused 0x86, "INT 15h E820h without SMAP"
        mov     ax, 0xE801
        int     0x15
        push    bx
        push    cx
        push    dx
        push    ax
        mov     si, offset e801
        call    print
        mov     cx, 4
1:      pop     ax
        push    cx
        movzx   eax, ax
        call    print_hexadecimal
        mov     al, ' '
        call    print_character
        pop     cx
        loop    1b
        call    print_line
        mov     ah, 0x88
        int     0x15
        push    ax
        mov     si, offset e88
        call    print
        pop     ax
        movzx   eax, ax
        call    print_hexadecimal
        call    print_line
        mov     ax, 0x2401
        int     0x15
        check_done "INT 15h 2401h"
        mov     ax, 0x2402
        int     0x15
        check_equal ax, 0x0001, "INT 15h 2402h: A20 is on"
        mov     ax, 0x2400
        int     0x15
        check_refused 0x86, "INT 15h 2400h"
        ret

        .section .rodata
e820:   .asciz  "e820: "
e801:   .asciz  "e801: "
e88:    .asciz  "88: "
        .data
        .balign 8
descriptors:
        .quad   0, 0
        .quad   0x00CF93000000FFFF | (HIGH_BUFFER & 0xFFFFFF) << 16
        .quad   0x00CF93000000FFFF | BUFFER << 16
        .quad   0, 0
        .text

/* A sector to 2 MiB by its flat address, and down again. */
test_block_move:
        mov     byte ptr [packet], 24
        mov     dword ptr [packet_buffer], -1
        mov     dword ptr [packet_flat_buffer], HIGH_BUFFER
        mov     ah, 0x42
        mov     edi, 7000
        call    extended
        mov     byte ptr [packet], 16
        mov     dword ptr [packet_buffer], BUFFER
        mov     dword ptr ds:[BUFFER + 508], 0
        mov     ah, 0x87
        mov     cx, 256
        mov     si, offset descriptors
        int     0x15
        check_done "INT 15h 87h"
        mov     eax, ds:[BUFFER + 508]
        check_equal eax, 7000, "INT 13h 42h: a flat address; INT 15h 87h: it comes down"
        mov     byte ptr [descriptors + 0x17], 0xF0     // base F0200000h
        mov     ah, 0x87
        mov     cx, 256
        mov     si, offset descriptors
        int     0x15
        check_refused 0x02, "INT 15h 87h: no RAM"
        ret

test_system:
        mov     ah, 0xC0
        int     0x15
        mov     eax, es:[bx]
        push    ds
        pop     es
        check_equal eax, 0x01FC0008, "INT 15h C0h: an AT"
        mov     ah, 0xC1
        int     0x15
        mov     ax, es
        push    ds
        pop     es
        check_equal ax, 0x9FC0, "INT 15h C1h: the EBDA"
        mov     ax, 0x5300
        xor     bx, bx
        int     0x15
        mov     ax, bx
        check_equal ax, 0x504D, "INT 15h 5300h: APM"
        mov     ah, 0x00
        mov     dx, 0
        int     0x17
        check_equal ah, 0x29, "INT 17h: no printer"
        mov     dx, PM_TIMER
        in      eax, dx
        mov     edi, eax
        mov     ah, 0x86
        mov     cx, 0
        mov     dx, 20000
        int     0x15
        mov     dx, PM_TIMER
        in      eax, dx
        sub     eax, edi
        cmp     eax, PM_TIMER_HZ/50 - 100
        setb    al
        test    al, al
        check_zero "INT 15h 86h: 20 ms"
        ret

test_time:
        mov     word ptr ds:[0x1C * 4], offset on_tick
        mov     word ptr ds:[0x1C * 4 + 2], 0
        mov     ah, 0
        int     0x1A
        mov     edi, ecx
        shl     edi, 16
        mov     di, dx
1:      hlt
        mov     ah, 0
        int     0x1A
        mov     ax, cx
        shl     eax, 16
        mov     ax, dx
        sub     eax, edi
        cmp     eax, 2
        jb      1b
        cmp     al, al
        check_zero "INT 1Ah 00h: ticks"
        cmp     byte ptr [ticks], 1
        setb    al
        test    al, al
        check_zero "INT 1Ch is called"
        mov     ah, 0x01
        mov     cx, 0x0018
        mov     dx, 0x00AE              // one before the last tick of the day
        int     0x1A
1:      hlt
        mov     ah, 0
        int     0x1A
        test    al, al
        jz      1b
        mov     ax, cx
        check_equal ax, 0, "INT 1Ah 00h: midnight"
        mov     ah, 0x02
        int     0x1A
        check_done "INT 1Ah 02h"
        mov     ah, 0x04
        int     0x1A
        mov     al, ch
        check_equal al, 0x20, "INT 1Ah 04h: the century"
        mov     ah, 0x05                // 29 February 2024, 13:14:15
        mov     cx, 0x2024
        mov     dx, 0x0229
        int     0x1A
        mov     ah, 0x03
        mov     cx, 0x1314
        mov     dx, 0x1500
        int     0x1A
        mov     ah, 0x04
        int     0x1A
        mov     ax, cx
        check_equal ax, 0x2024, "INT 1Ah 05h: the year"
        mov     ax, dx
        check_equal ax, 0x0229, "INT 1Ah 05h: the day"
        mov     ah, 0x02
        int     0x1A
        mov     al, ch
        check_equal al, 0x13, "INT 1Ah 03h: the hour"
        mov     word ptr ds:[0x4A * 4], offset on_alarm
        mov     word ptr ds:[0x4A * 4 + 2], 0
        mov     ah, 0x06
        mov     cx, 0xFFFF              // every second
        mov     dx, 0xFF00
        int     0x1A
        check_done "INT 1Ah 06h"
        mov     ah, 0x06
        int     0x1A
        setc    al
        check_equal al, 1, "INT 1Ah 06h: there is an alarm already"
1:      hlt
        cmp     byte ptr [alarms], 0
        je      1b
        mov     ah, 0x07
        int     0x1A
        check_done "INT 4Ah is called"
        ret
on_tick:
        inc     byte ptr cs:[ticks]
        iret
on_alarm:
        inc     byte ptr cs:[alarms]
        iret
        .data
ticks:  .byte   0
alarms: .byte   0
        .text

test_pci:
        mov     ax, 0xB101
        int     0x1A
        mov     eax, edx
        check_equal eax, 0x20494350, "INT 1Ah B101h"
        mov     ax, 0xB103              // a host bridge
        mov     ecx, 0x060000
        mov     si, 0
        int     0x1A
        check_done "INT 1Ah B103h"
        mov     ax, bx
        check_equal ax, 0, "INT 1Ah B103h: where"
        mov     ax, 0xB102              // the second disk
        mov     dx, 0x1AF4
        mov     cx, 0x1042
        mov     si, 1
        int     0x1A
        setc    al
        mov     ah, bl
        check_equal ax, 0x1000, "INT 1Ah B102h: the second disk"
        mov     ax, 0xB109
        mov     di, 2
        int     0x1A
        mov     ax, cx
        check_equal ax, 0x1042, "INT 1Ah B109h"
        mov     ax, 0xB108
        mov     di, 0
        int     0x1A
        mov     al, cl
        check_equal al, 0xF4, "INT 1Ah B108h"
        mov     ax, 0xB10A
        mov     di, 0
        int     0x1A
        mov     eax, ecx
        check_equal eax, 0x10421AF4, "INT 1Ah B10Ah"
        mov     ax, 0xB10B              // the interrupt line register
        mov     di, 0x3C
        mov     cl, 0x5A
        int     0x1A
        mov     ax, 0xB108
        int     0x1A
        mov     al, cl
        check_equal al, 0x5A, "INT 1Ah B10Bh"
        mov     ax, 0xB109
        mov     di, 3
        int     0x1A
        check_refused 0x87, "INT 1Ah B109h: a bad register"
        mov     ax, 0xB102
        mov     dx, 0x1AF4
        mov     cx, 0x1042
        mov     si, 2
        int     0x1A
        check_refused 0x86, "INT 1Ah B102h: no third disk"
        mov     ax, 0xB102
        mov     dx, 0xFFFF
        int     0x1A
        check_refused 0x83, "INT 1Ah B102h: no vendor"
        mov     ax, 0xB10F
        int     0x1A
        check_refused 0x81, "INT 1Ah B10Fh"
        ret

        .data
        .balign 8
gdt:    .quad   0
        .quad   0x00CF9B000000FFFF      // 08h: code, 32 bits
        .quad   0x00CF93000000FFFF      // 10h: data
        .quad   0x000F9B000000FFFF      // 18h: code, 16 bits
gdt_pointer:
        .word   4 * 8 - 1
        .long   gdt
bios32: .long   0
        .word   0x08
pci_entry:
        .long   0
        .word   0x08
        .text

/* The 32-bit calls: find them as a kernel does, and ask for PCI. */
test_bios32:
        mov     edi, 0x5F32335F
        call    find_signature
        check_equal al, 0, "BIOS32: the directory's checksum"
        mov     eax, es:[bx + 4]
        push    ds
        pop     es
        mov     [bios32], eax
        cli
        lgdt    [gdt_pointer]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        ljmp    0x08, offset 1f
        .code32
1:      mov     ax, 0x10
        mov     ds, eax
        mov     ss, eax
        mov     eax, 0x49435024
        xor     ebx, ebx
        lcall   [bios32]
        mov     ds:[BUFFER], al
        add     ebx, edx
        mov     [pci_entry], ebx
        mov     eax, 0xB10A
        mov     ebx, 0
        mov     edi, 8
        lcall   [pci_entry]
        mov     ds:[BUFFER + 4], ecx
        mov     eax, 0x12345678
        xor     ebx, ebx
        lcall   [bios32]
        mov     ds:[BUFFER + 8], al
        ljmp    0x18, offset 2f
        .code16
2:      mov     eax, cr0
        and     al, 0xFE
        mov     cr0, eax
        ljmp    0, offset 3f
3:      xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        sti
        mov     al, ds:[BUFFER]
        check_equal al, 0, "BIOS32: there is a PCI service"
        mov     eax, ds:[BUFFER + 4]
        shr     eax, 8
        check_equal eax, 0x060000, "BIOS32: it reads the host bridge's class"
        mov     al, ds:[BUFFER + 8]
        check_equal al, 0x80, "BIOS32: and there are no others"
        ret

/* ES:BX is the first paragraph of segment E000 and on, or F000 and on, that starts with EDI; AL is
 * the sum of 16 bytes, or FFh if there is none. */
find_signature:
        mov     ax, 0xE000
        jmp     1f
find_in_segment_f000:
        mov     ax, 0xF000
1:      mov     es, ax
        cmp     es:[0], edi
        je      2f
        inc     ax
        jnz     1b
        mov     al, -1
        ret
2:      mov     cx, 16
sum:    xor     bx, bx
        mov     al, 0
1:      add     al, es:[bx]
        inc     bx
        loop    1b
        xor     bx, bx
        ret

test_tables:
        mov     edi, 0x20445352         // RSD
        call    find_signature
        mov     cx, 20
        call    sum
        check_equal al, 0, "the ACPI root pointer's checksum"
        mov     edi, 0x334D535F         // _SM3
        call    find_in_segment_f000
        mov     cx, 24
        call    sum
        check_equal al, 0, "the 64-bit SMBIOS entry point's checksum"
        mov     edi, 0x5F4D535F         // _SM_
        call    find_in_segment_f000
        mov     cx, 31
        call    sum
        check_equal al, 0, "the 32-bit SMBIOS entry point's checksum"
        mov     eax, es:[0x18]          // the tables start with the BIOS's
        shr     eax, 4
        mov     es, ax
        mov     bx, 0
        mov     al, es:[0]
        push    ds
        pop     es
        check_equal al, 0, "the first SMBIOS table"
        ret

test_video:
        mov     ah, 0x0F
        int     0x10
        check_equal ax, 80<<8|3, "INT 10h 0Fh: mode 3"
        mov     ah, 0x03
        mov     bh, 0
        int     0x10
        push    dx
        mov     ah, 0x02
        mov     dx, 2 << 8 | 70
        int     0x10
        mov     ah, 0x03
        int     0x10
        mov     di, dx
        mov     ax, 0x09 << 8 | 'x'
        mov     bx, 0x001E
        mov     cx, 3
        int     0x10
        mov     ah, 0x02
        inc     dx
        int     0x10
        mov     ah, 0x08
        mov     bh, 0
        int     0x10
        mov     bp, ax
        pop     dx
        mov     ah, 0x02
        int     0x10
        mov     ax, di
        check_equal ax, 2<<8|70, "INT 10h 02h, 03h: the cursor"
        mov     ax, bp
        check_equal ax, 0x1E<<8|'x', "INT 10h 09h, 08h: a coloured character"
        mov     ax, 0x4F00
        int     0x10
        check_equal ax, 0x4F00, "INT 10h 4Fh: no VBE"
        ret

test_serial:
        mov     ah, 0x03
        mov     dx, 0
        int     0x14
        and     ah, 0x60
        check_equal ah, 0x60, "INT 14h 03h"
        mov     ah, 0x03
        mov     dx, 1
        int     0x14
        check_equal ah, 0x80, "INT 14h 03h: no COM2"
        mov     ax, 0x0100 | '*'
        mov     dx, 0
        int     0x14
        and     ah, 0x80
        check_equal ah, 0, "INT 14h 01h"
        ret

/* Keys as the controller would send them: a, A with shift, cursor up, and F1 with alt. */
test_keyboard:
        mov     si, offset typed
1:      lodsb
        test    al, al
        jz      3f
        mov     ah, al
2:      in      al, I8042_COMMAND
        test    al, I8042_INPUT_FULL | I8042_OUTPUT_FULL
        jnz     2b
        mov     al, 0xD2
        out     I8042_COMMAND, al
4:      in      al, I8042_COMMAND
        test    al, I8042_INPUT_FULL
        jnz     4b
        mov     al, ah
        out     I8042_DATA, al
        jmp     1b
3:      mov     ah, 0x00
        int     0x16
        check_equal ax, 0x1E61, "INT 16h 00h: a"
        mov     ah, 0x01
        int     0x16
        check_equal ax, 0x1E41, "INT 16h 01h: A"
        mov     ah, 0x00
        int     0x16
        mov     ah, 0x10
        int     0x16
        check_equal ax, 0x48E0, "INT 16h 10h: cursor up"
        mov     ah, 0x00
        int     0x16
        check_equal ax, 0x6800, "INT 16h 00h: Alt F1"
        mov     ah, 0x02
        int     0x16
        check_equal al, 0x08, "INT 16h 02h: Alt"
        mov     ah, 0x01
        int     0x16
        setz    al
        check_equal al, 1, "INT 16h 01h: no more"
        mov     ah, 0x05
        mov     cx, 0x1234
        int     0x16
        check_equal al, 0, "INT 16h 05h"
        mov     ah, 0x00
        int     0x16
        check_equal ax, 0x1234, "INT 16h 05h: it comes back"
        ret
        .section .rodata
typed:  .byte   0x1E, 0x9E, 0x2A, 0x1E, 0x9E, 0xAA, 0xE0, 0x48, 0xE0, 0xC8, 0x38, 0x3B, 0xBB, 0
        .text

/* The name at SI, by the zero flag; AX to DX survive. */
report: pushad
        mov     di, si
        mov     si, offset ok
        jz      1f
        mov     si, offset failed
        call    print
        mov     si, di
        call    print
        mov     si, offset is
        call    print
        mov     bp, sp
        mov     eax, [bp + 28]
        call    print_hexadecimal
        jmp     2f
1:      call    print
        mov     si, di
        call    print
2:      call    print_line
        popad
        ret

        .section .rodata
ok:     .asciz  "ok: "
failed: .asciz  "FAIL: "
is:     .asciz  " is "
newline:
        .asciz  "\r\n"
        .text

print_line:
        mov     si, offset newline
print:  lodsb
        test    al, al
        jz      1f
        call    print_character
        jmp     print
1:      ret

print_hexadecimal:
        mov     cx, 8
1:      rol     eax, 4
        push    ax
        and     al, 15
        add     al, '0'
        cmp     al, '9'
        jbe     2f
        add     al, 'a' - '0' - 10
2:      call    print_character
        pop     ax
        loop    1b
        ret

print_character:
        push    bx
        mov     ah, 0x0E
        mov     bx, 7
        int     0x10
        pop     bx
        ret

        .section .note.GNU-stack, "", @progbits
