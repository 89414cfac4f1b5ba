/*
 * How much memory there is, where, and moving it: INT 12h, and of INT 15h the calls 87h, 88h, 24h
 * and E8h. (And INT 11h, which answers in the same way as 12h.)
 */
#include "bios.h"

        .globl  int11, int12, move_block, extended_memory, memory_e8, address_line_20

#define SMAP 0x534D4150
#define CMOS_ABOVE_1_MIB 0x30           /* in KiB, two bytes */
#define CMOS_ABOVE_16_MIB 0x34          /* in 64 KiB, below 4 GiB */
#define KIB_1_TO_16_MIB 0x3C00

int11:  push    ds
        push    BDA_SEGMENT
        pop     ds
        mov     ax, BDA_EQUIPMENT
        pop     ds
        iret

int12:  push    ds
        push    BDA_SEGMENT
        pop     ds
        mov     ax, BDA_MEMORY_KIB
        pop     ds
        iret

/* AX is the CMOS word with its low byte at register AL. */
read_cmos_word:
        mov     ah, al
        inc     al
        out     CMOS_INDEX, al
        in      al, CMOS_DATA
        xchg    al, ah
        out     CMOS_INDEX, al
        in      al, CMOS_DATA
        ret

/* INT 15h, 88h: KiB from 1 MiB on, at most 63 MiB, as programs that know no more expect. */
extended_memory:
        mov     al, CMOS_ABOVE_1_MIB
        call    read_cmos_word
        cmp     ax, 63 * 1024
        jb      1f
        mov     ax, 63 * 1024
1:      mov     [bp + CALLER_AX], ax
        jmp     return_ok

/* INT 15h, E8h */
memory_e8:
        cmp     al, 0x20
        je      memory_map
        cmp     al, 0x01
        je      1f
        cmp     al, 0x81
        jne     not_supported
1:      mov     al, CMOS_ABOVE_16_MIB
        call    read_cmos_word
        movzx   ebx, ax
        mov     al, CMOS_ABOVE_1_MIB
        call    read_cmos_word
        cmp     ax, KIB_1_TO_16_MIB
        jb      2f
        mov     ax, KIB_1_TO_16_MIB
2:      movzx   eax, ax
        cmp     byte ptr [bp + CALLER_AX], 0x81
        je      3f
        mov     [bp + CALLER_AX], ax    // E801h
        mov     [bp + CALLER_CX], ax
        mov     [bp + CALLER_BX], bx
        mov     [bp + CALLER_DX], bx
        jmp     return_ok
3:      mov     [bp + CALLER_AX], eax   // E881h: the same with 32 bits
        mov     [bp + CALLER_CX], eax
        mov     [bp + CALLER_BX], ebx
        mov     [bp + CALLER_DX], ebx
        jmp     return_ok

/* E820h: the entry that EBX stands for to ES:DI, 20 bytes, and what stands for the next one. */
memory_map:
        cmp     edx, SMAP
        jne     not_supported
        cmp     ecx, 20
        jb      not_supported
        mov     ebx, [bp + CALLER_BX]
        cmp     ebx, 255
        ja      not_supported
        mov     cs:[request_unit], bl
        mov     al, SERVICE_MEMORY
        call    services
        jc      not_supported
        push    cs
        pop     ds
        mov     di, [bp + CALLER_DI]
        mov     si, offset request_sector
        mov     cx, 4
        rep     movsd                   // start and size
        mov     si, offset request_count
        movsd                           // type
        xor     ebx, ebx
        mov     bl, cs:[request_unit]   // 0 behind the last
        mov     [bp + CALLER_BX], ebx
        mov     dword ptr [bp + CALLER_CX], 20
        mov     dword ptr [bp + CALLER_AX], SMAP
        jmp     return_ok

/* INT 15h, 87h: CX words, between what two descriptors of the table at ES:SI say. The table is the
 * caller's for protected mode, but it is the VMM that moves the data: between places in RAM only. */
#define SOURCE_DESCRIPTOR 0x10
#define TARGET_DESCRIPTOR 0x18
#define MOVE_EXCEPTION 2
move_block:
        movzx   eax, cx
        add     eax, eax
        mov     cs:[request_count], eax
        lea     di, [si + SOURCE_DESCRIPTOR]
        call    descriptor_base
        mov     cs:[request_sector], eax
        lea     di, [si + TARGET_DESCRIPTOR]
        call    descriptor_base
        mov     cs:[request_buffer], eax
        xor     eax, eax
        mov     cs:[request_sector + 4], eax
        mov     cs:[request_buffer + 4], eax
        mov     al, SERVICE_COPY
        call    services
        jc      1f
        mov     byte ptr [bp + CALLER_AH], 0
        or      byte ptr [bp + CALLER_FLAGS], ZERO
        jmp     return_ok
1:      and     byte ptr [bp + CALLER_FLAGS], ~ZERO & 0xFF
        mov     ah, MOVE_EXCEPTION
        jmp     return_error

/* EAX is the base in the descriptor at ES:DI. */
descriptor_base:
        mov     eax, es:[di + 2]
        and     eax, 0xFFFFFF
        movzx   ecx, byte ptr es:[di + 7]
        shl     ecx, 24
        or      eax, ecx
        ret

/* INT 15h, 24h: address line 20 is always on. */
address_line_20:
        cmp     al, 1
        je      1f
        cmp     al, 2
        je      2f
        cmp     al, 3
        jne     not_supported           // 0: it can't be switched off
        mov     word ptr [bp + CALLER_BX], 0x0003       // at the keyboard controller and port 92h
        jmp     1f
2:      mov     byte ptr [bp + CALLER_AX], 1
1:      mov     byte ptr [bp + CALLER_AH], 0
        jmp     return_ok
