/*
 * INT 13h: every disk of the machine from 80h on, by cylinder, head and sector and by the Enhanced
 * Disk Drive calls (EDD 3.0, with 64-bit buffer addresses); and two floppies, 00h and 01h. The VMM
 * moves the data.
 *
 * A disk has the geometry that BIOSes gave to large disks for DOS's sake ("LBA-assisted"): 63
 * sectors, 16 to 255 heads, at most 1024 cylinders. A floppy has its own. There is no controller of
 * floppies: what the data area says of one is what a program finds that looks there after a call.
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
#define DISK_BAD_FORMAT 0x0C            /* not for this floppy */
#define DISK_NOT_REMOVABLE 0xB2

#define DRIVE_CHANGE_LINE 2             /* 15h: a floppy drive that tells when the floppy changes */
#define DRIVE_FIXED 3
#define HAS_CHANGE_LINE 0x01            /* BDA_FLOPPY_DRIVES, for A:; for B: 4 bits higher */
#define SEVERAL_RATES 0x02
#define DRIVE_KNOWN 0x04
#define DRIVE_360K 1                    /* the CMOS's and call 08h's type */
#define MEDIA_360K 0x93                 /* BDA_FLOPPY_MEDIA */
#define KIND_SIZE 4                     /* floppy_kinds */

/* Parameters of a floppy drive, as INT 1Eh points to them. */
#define PARAMETERS_SIZE 11
#define LAST_SECTOR 4
#define GAP 5
#define FORMAT_GAP 7
#define FILL_BYTE 8

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
floppies:                               // how many
        .byte   0
sectors_per_track:                      // of the disk that `geometry` was asked about
        .byte   0

/* Parameters of A: and B:, for INT 1Eh and call 08h; boot sectors copy the first and change it. */
floppy_parameters:
        .byte   0xDF, 0x02, 0x25, 0x02, 18, 0x1B, 0xFF, 0x6C, 0xF6, 0x0F, 0x08
        .byte   0xDF, 0x02, 0x25, 0x02, 18, 0x1B, 0xFF, 0x6C, 0xF6, 0x0F, 0x08
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
        mov     al, cs:[request_flags]
        mov     cs:[floppies], al
        test    al, al
        jz      1f
        dec     al
        ror     al, 2                   // bits 6 and 7: how many more than one
        or      al, 0x01                // there are some
        or      BDA_EQUIPMENT, al
        xor     dx, dx
2:      call    set_up_floppy
        inc     dx
        cmp     dl, cs:[floppies]
        jb      2b
1:      ret

/* Drive DX, which is kept: its parameters, and the data area. */
set_up_floppy:
        push    dx
        mov     cs:[request_unit], dl
        call    geometry
        pop     dx
        imul    di, dx, PARAMETERS_SIZE
        add     di, offset floppy_parameters
        mov     al, cs:[sectors_per_track]
        mov     cs:[di + LAST_SECTOR], al
        mov     si, offset floppy_kinds
3:      cmp     al, cs:[si]
        jbe     1f
        add     si, KIND_SIZE
        jmp     3b
1:      mov     ax, cs:[si + 1]
        mov     cs:[di + GAP], al
        mov     cs:[di + FORMAT_GAP], ah
        mov     al, cs:[si + 3]
        cmp     byte ptr cs:[request_buffer], DRIVE_360K
        jne     2f
        mov     al, MEDIA_360K
2:      mov     di, dx
        mov     BDA_FLOPPY_MEDIA[di], al
        mov     cl, dl
        mov     al, 1
        shl     al, cl
        or      BDA_FLOPPY_CALIBRATED, al
        shl     cl, 2
        mov     al, HAS_CHANGE_LINE | SEVERAL_RATES | DRIVE_KNOWN
        shl     al, cl
        or      BDA_FLOPPY_DRIVES, al
        ret

        .section .rodata
/* By the sectors on a track, as many or fewer: the gaps between them, to read and to format, and the
 * medium as the data area has it, with its data rate. */
floppy_kinds:
        .byte   14, 0x2A, 0x50, 0x97    // 720 KiB
        .byte   17, 0x1B, 0x54, 0x15    // 1.2 MB
        .byte   24, 0x1B, 0x6C, 0x17    // 1.44 MB
        .byte   255, 0x1B, 0x54, 0xD7   // 2.88 MB

floppy_services:
        .word   disk_reset, disk_status, read_sectors, write_sectors
        .word   verify_sectors, format_track, bad_request, bad_request
        .word   get_parameters
#define FLOPPY_SERVICES 9
late_floppy_services:
        .word   get_type, not_changed, set_type, set_medium             // 15h
#define FIRST_LATE_SERVICE 0x15
#define LATE_FLOPPY_SERVICES 4
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

        .text

/* 40h is where a disk BIOS moves the floppy's services to. */
int40:
int13:  enter_service
        mov     cs:[request_unit], dl
        cmp     dl, FIRST_DISK
        jb      1f
        mov     al, dl
        sub     al, FIRST_DISK
        cmp     al, BDA_DISKS
        jae     no_disk
        mov     al, [bp + CALLER_AX]
        cmp     ah, 0x41
        jae     2f
        dispatch disk_services, DISK_SERVICES, bad_request
2:      sub     ah, 0x41
        dispatch edd_services, EDD_SERVICES, bad_request
1:      cmp     dl, cs:[floppies]
        jae     no_disk
        cmp     ah, FIRST_LATE_SERVICE
        jae     3f
        dispatch floppy_services, FLOPPY_SERVICES, bad_request
3:      sub     ah, FIRST_LATE_SERVICE
        dispatch late_floppy_services, LATE_FLOPPY_SERVICES, bad_request

no_disk:
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
fail:   call    status_byte
        mov     [di], ah
        jmp     return_error
not_changed:
succeed:
        call    status_byte
        mov     byte ptr [di], 0
        mov     byte ptr [bp + CALLER_AH], 0
        jmp     return_ok

/* DI is where the data area has the status of the last call, which floppies have another of. */
status_byte:
        mov     di, BDA_DISK_STATUS
        test    byte ptr [bp + CALLER_DX], FIRST_DISK
        jnz     1f
        mov     di, BDA_FLOPPY_STATUS
1:      ret

/* 01h */
disk_status:
        call    status_byte
        mov     ah, [di]
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
        mov     al, [bp + CALLER_CX]
        and     al, 0x3F
        cmp     al, cs:[sectors_per_track]
        ja      1f
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
        movzx   ecx, byte ptr cs:[sectors_per_track]
        imul    eax, ecx
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

/* The disk's heads in BX and cylinders in CX, its size in EDX:EAX, and sectors_per_track; carry and
 * AH if it can't tell. */
geometry:
        mov     al, SERVICE_DISK
        call    services
        jc      4f
        mov     eax, cs:[request_sector]
        mov     edx, cs:[request_sector + 4]
        mov     byte ptr cs:[sectors_per_track], SECTORS_PER_TRACK
        test    byte ptr cs:[request_unit], FIRST_DISK
        jnz     6f
        mov     ecx, cs:[request_count]
        mov     cs:[sectors_per_track], cl
        movzx   bx, ch
        shr     ecx, 16
        clc
        ret
6:      push    edx
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

/* 08h: the last cylinder, head and sector, and how many disks there are; of a floppy also its drive's
 * type and where its parameters are. */
get_parameters:
        call    geometry
        jc      fail
        mov     byte ptr [bp + CALLER_AX], 0
        dec     cx
        mov     [bp + CALLER_CX + 1], cl
        mov     al, ch
        shl     al, 6
        or      al, cs:[sectors_per_track]
        mov     [bp + CALLER_CX], al
        movzx   di, byte ptr [bp + CALLER_DX]   // the drive
        dec     bx
        mov     bh, bl
        mov     bl, BDA_DISKS
        test    di, FIRST_DISK
        jnz     1f
        mov     bl, cs:[floppies]
        movzx   ax, byte ptr cs:[request_buffer]
        mov     [bp + CALLER_BX], ax
        call    point_at_parameters
        jmp     2f
1:      mov     byte ptr [bp + CALLER_BX], 0
2:      mov     [bp + CALLER_DX], bx
        jmp     succeed

/* The caller's ES:DI at those of drive DI. */
point_at_parameters:
        imul    di, di, PARAMETERS_SIZE
        add     di, offset floppy_parameters
        mov     [bp + CALLER_DI], di
        mov     [bp + CALLER_ES], cs
        ret

/* 05h: AL sectors of the track CH, head DH. ES:BX has their addresses, in the order in which they are
 * to lie on the track; here they lie as they do, so of each only its number and size must fit. */
#define ADDRESS_SIZE 4
#define SIZE_512 2
format_track:
        mov     cl, [bp + CALLER_CX]
        push    cx
        and     cl, 0xC0
        inc     cx                              // from the track's first sector on
        mov     [bp + CALLER_CX], cl
        call    sector_of_address
        pop     cx
        mov     [bp + CALLER_CX], cl
        jc      not_found
        mov     es, [bp + CALLER_ES]
        mov     si, [bp + CALLER_BX]
        movzx   cx, byte ptr [bp + CALLER_AX]
        test    cx, cx
        jz      bad_request
1:      mov     ax, es:[si + 2]
        dec     al
        cmp     al, cs:[sectors_per_track]
        jae     bad_format
        cmp     ah, SIZE_512
        jne     bad_format
        add     si, ADDRESS_SIZE
        loop    1b
        movzx   eax, byte ptr cs:[sectors_per_track]
        mov     cs:[request_count], eax
        mov     es, cx
        les     si, es:[0x1E * 4]
        mov     al, es:[si + FILL_BYTE]
        mov     cs:[request_buffer], al
        mov     al, SERVICE_FILL
        call    services
        jc      fail
        jmp     succeed
bad_format:
        mov     ah, DISK_BAD_FORMAT
        jmp     fail

/* 17h: AL says what is to be formatted: 1, 2: 360 KiB and less; 3: 1.2 MB; 4, 5: 720 KiB. */
set_type:
        call    geometry
        mov     bl, cs:[sectors_per_track]
        mov     al, [bp + CALLER_AX]
        dec     al
        cmp     al, 5
        jae     bad_request
        cmp     al, 2
        je      1f
        cmp     bl, 9
        ja      bad_format
        jmp     succeed
1:      cmp     bl, 15
        jne     bad_format
        jmp     succeed

/* 18h: the same by the last cylinder and sector in CX, as call 08h has them. ES:DI points to the
 * parameters then. */
set_medium:
        call    geometry
        dec     cx
        xchg    cl, ch
        shl     cl, 6
        or      cl, cs:[sectors_per_track]
        cmp     [bp + CALLER_CX], cx
        jne     bad_format
        movzx   di, byte ptr [bp + CALLER_DX]
        call    point_at_parameters
        jmp     succeed

/* 15h: a fixed disk, and its size in sectors in CX:DX; or a floppy. */
get_type:
        mov     al, DRIVE_CHANGE_LINE
        cmp     byte ptr [bp + CALLER_DX], FIRST_DISK
        jb      2f
        call    geometry
        jc      fail
        test    edx, edx
        jz      1f
        or      eax, -1
1:      mov     [bp + CALLER_DX], ax
        shr     eax, 16
        mov     [bp + CALLER_CX], ax
        mov     al, DRIVE_FIXED
2:      call    status_byte
        mov     byte ptr [di], 0
        mov     [bp + CALLER_AH], al
        jmp     return_ok

/* 41h */
edd_check:
        cmp     word ptr [bp + CALLER_BX], 0x55AA
        jne     bad_request
        mov     word ptr [bp + CALLER_BX], 0xAA55
        mov     word ptr [bp + CALLER_CX], 0x0001       // the fixed disk access subset
        mov     byte ptr ds:[BDA_DISK_STATUS], 0
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
        mov     ax, 0x0003                      // the geometry is valid; 64 KiB are no boundary
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
