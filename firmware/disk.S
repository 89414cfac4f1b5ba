/*
 * INT 13h: every disk of the machine from 80h on, by cylinder, head and sector and by the Enhanced
 * Disk Drive calls (EDD 3.0, with 64-bit buffer addresses). The VMM moves the data.
 *
 * A disk has the geometry that BIOSes gave to large disks for DOS's sake ("LBA-assisted"): 63
 * sectors, 16 to 255 heads, at most 1024 cylinders. There are no floppies.
 */
#include "bios.h"

        .globl  int13, int40, set_up_disks, services, request, request_function, request_status
        .globl  request_unit, request_flags, request_count, request_sector, request_buffer
        .globl  floppy_parameters

#define SECTORS_PER_TRACK 63
#define MAX_CYLINDERS 1024
#define FIRST_DISK 0x80
#define SECTOR_SIZE 512

/* What AH says. */
#define DISK_BAD_REQUEST 0x01
#define DISK_NOT_FOUND 0x04             /* no such sector */
#define DISK_NOT_REMOVABLE 0xB2

        .data
        .balign 8
/* What is asked of the VMM, and its answer: the layout is that of bios_services.py. */
request:
request_function:
        .byte   0
request_status:
        .byte   0
request_unit:
        .byte   0
request_flags:
        .byte   0
request_count:
        .long   0
request_sector:
        .quad   0
request_buffer:
        .quad   0
        .text

/* Have the VMM do `request`, function AL: AH is the status, and carry is set unless it is 0. */
services:
        push    eax
        push    dx
        mov     cs:[request_function], al
        mov     dx, SERVICES_PORT
        mov     eax, BIOS_BASE + offset request
        out     dx, eax
        pop     dx
        pop     eax
        mov     ah, cs:[request_status]
        cmp     ah, 1
        cmc
        ret

set_up_disks:
        mov     al, SERVICE_START
        call    services
        mov     al, cs:[request_unit]
        mov     BDA_DISKS, al
        ret

        .section .rodata
disk_services:
        .word   disk_reset, disk_status, read_sectors, write_sectors
        .word   verify_sectors, bad_request, bad_request, bad_request   // 05h: formatting
        .word   get_parameters, succeed, bad_request, bad_request       // 0Ah: with ECC
        .word   seek_cylinder, disk_reset, bad_request, bad_request
        .word   succeed, succeed, bad_request, bad_request              // 10h: ready?
        .word   succeed, get_type                                       // 14h: self-test
#define DISK_SERVICES 0x16
edd_services:
        .word   edd_check, edd_read, edd_write, edd_verify
        .word   bad_request, not_removable, edd_seek, edd_parameters
        .word   not_changed
#define EDD_SERVICES 9

/* Interrupt 1Eh points here: parameters for a 1.44 MB floppy, as boot sectors copy and change
 * them. */
floppy_parameters:
        .byte   0xDF, 0x02, 0x25, 0x02, 18, 0x1B, 0xFF, 0x6C, 0xF6, 0x0F, 0x08
        .text

/* 40h is where a disk BIOS moves the floppy's services to. */
int40:
int13:  enter_service
        mov     al, dl
        sub     al, FIRST_DISK
        jb      no_floppy
        cmp     al, BDA_DISKS
        jae     no_disk
        mov     cs:[request_unit], al
        mov     al, [bp + CALLER_AX]
        cmp     ah, 0x41
        jae     1f
        dispatch disk_services, DISK_SERVICES, bad_request
1:      sub     ah, 0x41
        dispatch edd_services, EDD_SERVICES, bad_request

no_disk:
no_floppy:
        cmp     ah, 0x01
        je      disk_status
        cmp     ah, 0x15
        jne     bad_request
        mov     word ptr [bp + CALLER_AX], 0    // 15h: no such drive
        jmp     return_ok

not_removable:
        mov     ah, DISK_NOT_REMOVABLE
        jmp     fail
not_found:
        mov     ah, DISK_NOT_FOUND
        jmp     fail
bad_request:
        mov     ah, DISK_BAD_REQUEST
fail:   mov     BDA_DISK_STATUS, ah
        jmp     return_error
not_changed:
succeed:
        mov     byte ptr BDA_DISK_STATUS, 0
        mov     byte ptr [bp + CALLER_AH], 0
        jmp     return_ok

/* 01h */
disk_status:
        mov     ah, BDA_DISK_STATUS
        mov     [bp + CALLER_AH], ah
        test    ah, ah
        jz      return_ok
        jmp     return_carry

/* 00h, 0Dh: all that was written is made durable. */
disk_reset:
        mov     al, SERVICE_FLUSH
        call    services
        jc      fail
        jmp     succeed

/* 02h, 03h, 04h: AL sectors from cylinder CH and CL bits 6 and 7, head DH, sector CL bits 0 to 5,
 * at ES:BX. */
read_sectors:
        mov     bl, SERVICE_READ
        jmp     transfer
write_sectors:
        mov     bl, SERVICE_WRITE
        jmp     transfer
verify_sectors:
        mov     bl, SERVICE_VERIFY
transfer:
        test    al, al
        jz      bad_request
        push    bx
        call    sector_of_address
        pop     bx
        jc      not_found
        movzx   eax, byte ptr [bp + CALLER_AX]
        mov     cs:[request_count], eax
        movzx   eax, word ptr [bp + CALLER_ES]
        shl     eax, 4
        movzx   edx, word ptr [bp + CALLER_BX]
        add     eax, edx
        mov     cs:[request_buffer], eax
        mov     dword ptr cs:[request_buffer + 4], 0
        mov     al, bl
        call    services
        mov     al, cs:[request_count]
        mov     [bp + CALLER_AX], al            // how many were transferred
        jc      fail
        jmp     succeed

/* 0Ch */
seek_cylinder:
        call    sector_of_address
        jc      not_found
        mov     dword ptr cs:[request_count], 0
        jmp     verify

/* The sector at the address in the caller's CX and DX to request_sector; carry if there is no such
 * head or sector. Other registers are lost. */
sector_of_address:
        call    geometry                        // BX: heads
        jc      1f
        movzx   si, byte ptr [bp + CALLER_DX + 1]
        cmp     bx, si
        jbe     1f
        movzx   eax, byte ptr [bp + CALLER_CX + 1]
        mov     ah, [bp + CALLER_CX]
        shr     ah, 6                           // the cylinder's high bits
        movzx   ebx, bx
        imul    eax, ebx
        movzx   esi, si
        add     eax, esi
        imul    eax, eax, SECTORS_PER_TRACK
        movzx   ecx, byte ptr [bp + CALLER_CX]
        and     cl, 0x3F
        jz      1f
        dec     cl
        add     eax, ecx
        mov     cs:[request_sector], eax
        mov     dword ptr cs:[request_sector + 4], 0
        clc
        ret
1:      stc
        ret

/* The disk's heads in BX and cylinders in CX, its size in EDX:EAX; carry and AH if it can't tell. */
geometry:
        mov     al, SERVICE_DISK
        call    services
        jc      4f
        mov     eax, cs:[request_sector]
        mov     edx, cs:[request_sector + 4]
        push    edx
        push    eax
        test    edx, edx
        jz      1f
        or      eax, -1
1:      mov     bx, 16
        mov     ecx, 16 * SECTORS_PER_TRACK * MAX_CYLINDERS
2:      cmp     eax, ecx
        jbe     3f
        add     ecx, ecx
        add     bx, bx
        cmp     bx, 256
        jb      2b
        dec     bx
3:      movzx   ecx, bx
        imul    ecx, ecx, SECTORS_PER_TRACK
        xor     edx, edx
        div     ecx
        mov     cx, MAX_CYLINDERS
        cmp     eax, MAX_CYLINDERS
        jae     5f
        mov     cx, ax
        cmp     cx, 1
        adc     cx, 0                           // at least one
5:      pop     eax
        pop     edx
        clc
4:      ret

/* 08h: the last cylinder, head and sector, and how many disks there are. */
get_parameters:
        call    geometry
        jc      fail
        mov     byte ptr [bp + CALLER_AX], 0
        dec     cx
        mov     [bp + CALLER_CX + 1], cl
        mov     al, ch
        shl     al, 6
        or      al, SECTORS_PER_TRACK
        mov     [bp + CALLER_CX], al
        dec     bx
        mov     bh, bl
        mov     bl, BDA_DISKS
        mov     [bp + CALLER_DX], bx
        mov     byte ptr [bp + CALLER_BX], 0
        jmp     succeed

/* 15h: a fixed disk, and its size in sectors in CX:DX. */
get_type:
        call    geometry
        jc      fail
        test    edx, edx
        jz      1f
        or      eax, -1
1:      mov     [bp + CALLER_DX], ax
        shr     eax, 16
        mov     [bp + CALLER_CX], ax
        mov     byte ptr BDA_DISK_STATUS, 0
        mov     byte ptr [bp + CALLER_AH], 3
        jmp     return_ok

/* 41h */
edd_check:
        cmp     word ptr [bp + CALLER_BX], 0x55AA
        jne     bad_request
        mov     word ptr [bp + CALLER_BX], 0xAA55
        mov     word ptr [bp + CALLER_CX], 0x0001       // the fixed disk access subset
        mov     byte ptr BDA_DISK_STATUS, 0
        mov     byte ptr [bp + CALLER_AH], 0x30         // EDD 3.0
        jmp     return_ok

/* 42h, 43h, 44h, 47h: what the packet at DS:SI says. */
#define PACKET_SIZE es:[si]
#define PACKET_COUNT es:[si + 2]
#define PACKET_BUFFER es:[si + 4]
#define PACKET_SECTOR es:[si + 8]
#define PACKET_FLAT_BUFFER es:[si + 16]
#define PACKET_END 24

edd_read:
        mov     bl, SERVICE_READ
        jmp     edd_transfer
edd_write:
        cmp     al, 2                           // 1, 2: verify, which nothing is gained by
        ja      bad_request
        mov     bl, SERVICE_WRITE
        jmp     edd_transfer
edd_verify:
        mov     bl, SERVICE_VERIFY
edd_transfer:
        mov     es, [bp + CALLER_DS]
        cmp     byte ptr PACKET_SIZE, 16
        jb      bad_request
        movzx   eax, word ptr PACKET_COUNT
        mov     cs:[request_count], eax
        call    packet_sector
        mov     eax, PACKET_BUFFER
        xor     edx, edx
        cmp     eax, -1
        jne     1f
        cmp     byte ptr PACKET_SIZE, PACKET_END
        jb      bad_request
        mov     eax, PACKET_FLAT_BUFFER
        mov     edx, es:[si + 20]
        jmp     2f
1:      movzx   ecx, ax
        shr     eax, 16
        shl     eax, 4
        add     eax, ecx
2:      mov     cs:[request_buffer], eax
        mov     cs:[request_buffer + 4], edx
        mov     al, bl
        call    services
        mov     bx, cs:[request_count]
        mov     PACKET_COUNT, bx
        jc      fail
        jmp     succeed
edd_seek:
        mov     es, [bp + CALLER_DS]
        cmp     byte ptr PACKET_SIZE, 16
        jb      bad_request
        call    packet_sector
        mov     dword ptr cs:[request_count], 0
verify: mov     al, SERVICE_VERIFY
        call    services
        jc      fail
        jmp     succeed

packet_sector:
        mov     eax, PACKET_SECTOR
        mov     cs:[request_sector], eax
        mov     eax, es:[si + 12]
        mov     cs:[request_sector + 4], eax
        ret

/* 48h: into the buffer at DS:SI, of which there must be 26 bytes. */
edd_parameters:
        mov     es, [bp + CALLER_DS]
        mov     di, si
        cmp     word ptr es:[di], 26
        jb      bad_request
        push    di
        call    geometry
        pop     di
        jc      fail
        push    edx
        push    eax
        movzx   ebx, bx
        movzx   ecx, cx
        mov     ax, 26
        cmp     word ptr es:[di], 30
        jb      1f
        mov     ax, 30
        mov     dword ptr es:[di + 26], -1      // no further parameters
1:      stosw
        mov     ax, 0x0002                      // the geometry is valid
        stosw
        mov     eax, ecx
        stosd
        mov     eax, ebx
        stosd
        mov     eax, SECTORS_PER_TRACK
        stosd
        pop     eax
        stosd
        pop     eax
        stosd
        mov     ax, SECTOR_SIZE
        stosw
        jmp     succeed
