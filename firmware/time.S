/*
 * Time: the ticks of INT 08h, the clock's alarm of INT 70h, INT 1Ah's calls for both, and waiting.
 */
#include "bios.h"

        .globl  int08, int70, int1a, set_up_clock, read_timer, wait_microseconds, sleep

#define TICKS_A_DAY 0x1800B0
#define STATUS_A 0x0A
#define STATUS_B 0x0B
#define STATUS_C 0x0C
#define UPDATE_IN_PROGRESS 0x80
#define CLOCK_SET 0x80                  /* status B: stopped, to be set */
#define ALARM_INTERRUPT 0x20            /* status B, and C's flag */
#define DAYLIGHT_SAVING 0x01            /* status B */
#define CENTURY 0x32

int08:  push    ds
        push    eax
        push    dx
        push    BDA_SEGMENT
        pop     ds
        mov     eax, BDA_TICKS
        inc     eax
        cmp     eax, TICKS_A_DAY
        jb      1f
        xor     eax, eax
        inc     byte ptr BDA_MIDNIGHT
1:      mov     BDA_TICKS, eax
        int     0x1C
        mov     al, PIC_EOI
        out     PIC_MASTER, al
        pop     dx
        pop     eax
        pop     ds
        iret

/* The clock: its alarm is passed on. */
int70:  push    ax
        read_cmos STATUS_C
        test    al, ALARM_INTERRUPT
        jz      1f
        int     0x4A
1:      mov     al, PIC_EOI
        out     PIC_SLAVE, al
        out     PIC_MASTER, al
        pop     ax
        iret

/* BCD and 24 hours, no interrupts; and the ticks since midnight, by the clock. */
set_up_clock:
        mov     al, 0x26
        write_cmos STATUS_A
        mov     al, 0x02
        write_cmos STATUS_B
        read_cmos STATUS_C
        mov     al, 0
        write_cmos 0x0F                 // shutdown status: a plain reset
        call    wait_for_update
        read_cmos 4
        call    from_bcd
        imul    ebx, eax, 3600
        read_cmos 2
        call    from_bcd
        imul    eax, eax, 60
        add     ebx, eax
        read_cmos 0
        call    from_bcd
        add     eax, ebx
        // TICKS_A_DAY / 86400 a second: that is 0x1800B0 / 0x15180.
        mov     ebx, TICKS_A_DAY
        mul     ebx
        mov     ebx, 86400
        div     ebx
        mov     BDA_TICKS, eax
        ret

/* EAX is what AL has in BCD. */
from_bcd:
        mov     ah, al
        shr     ah, 4
        and     al, 15
        aad
        movzx   eax, ax
        ret

/* Until the clock's registers don't change for a while. */
wait_for_update:
        read_cmos STATUS_A
        test    al, UPDATE_IN_PROGRESS
        jnz     wait_for_update
        ret

/* EAX is the PM timer's count, at PM_TIMER_HZ. */
read_timer:
        push    dx
        mov     dx, PM_TIMER
        in      eax, dx
        pop     dx
        ret

/* Wait EAX microseconds; EAX, ECX and EDX are lost. */
wait_microseconds:
        mov     ecx, 1000000
1:      cmp     eax, ecx
        jbe     2f
        sub     eax, ecx
        push    eax
        mov     eax, ecx
        call    2f
        pop     eax
        mov     ecx, 1000000
        jmp     1b
2:      mov     edx, PM_TIMER_HZ
        mul     edx
        mov     ecx, 1000000
        div     ecx
        mov     ecx, eax
        call    read_timer
        mov     edx, eax
3:      call    read_timer
        sub     eax, edx
        cmp     eax, ecx
        jb      3b
        ret

/* Sleep until an interrupt, if the timer's can come. Interrupts are on afterwards. */
sleep:  push    ax
        in      al, PIC_MASTER_DATA
        test    al, 1
        pop     ax
        sti
        jnz     1f
        hlt
1:      ret

        .section .rodata
time_services:
        .word   get_ticks, set_ticks, get_time, set_time
        .word   get_date, set_date, set_alarm, cancel_alarm
#define TIME_SERVICES 8
        .text

int1a:  cmp     ah, 0xB1
        je      pci_services
        enter_service
        dispatch time_services, TIME_SERVICES, return_carry

/* 00h: in CX:DX, and in AL whether midnight has passed since the last call. */
get_ticks:
        cli
        mov     eax, BDA_TICKS
        mov     [bp + CALLER_DX], ax
        shr     eax, 16
        mov     [bp + CALLER_CX], ax
        xor     ax, ax
        xchg    al, BDA_MIDNIGHT
        mov     [bp + CALLER_AX], ax
        jmp     return_ok

/* 01h */
set_ticks:
        mov     ax, cx
        shl     eax, 16
        mov     ax, dx
        mov     BDA_TICKS, eax
        mov     byte ptr BDA_MIDNIGHT, 0
        mov     byte ptr [bp + CALLER_AH], 0
        jmp     return_ok

/* 02h: hours, minutes, seconds to CH, CL, DH, in BCD; and to DL, whether the clock is to follow
 * daylight saving time: it is only kept, as the clock doesn't. */
get_time:
        call    wait_for_update
        read_cmos 4
        mov     [bp + CALLER_CX + 1], al
        read_cmos 2
        mov     [bp + CALLER_CX], al
        read_cmos 0
        mov     [bp + CALLER_DX + 1], al
        read_cmos STATUS_B
        and     al, DAYLIGHT_SAVING
        mov     [bp + CALLER_DX], al
        jmp     clock_read

/* 04h: century, year, month, day to CH, CL, DH, DL. */
get_date:
        call    wait_for_update
        read_cmos CENTURY
        mov     [bp + CALLER_CX + 1], al
        read_cmos 9
        mov     [bp + CALLER_CX], al
        read_cmos 8
        mov     [bp + CALLER_DX + 1], al
        read_cmos 7
        mov     [bp + CALLER_DX], al
clock_read:
        mov     byte ptr [bp + CALLER_AX + 1], 0
        read_cmos STATUS_B
        test    al, CLOCK_SET
        jnz     return_carry            // it stands still
        jmp     return_ok

/* 03h */
set_time:
        call    stop_clock
        mov     al, [bp + CALLER_DX + 1]
        write_cmos 0
        mov     al, [bp + CALLER_CX]
        write_cmos 2
        mov     al, [bp + CALLER_CX + 1]
        write_cmos 4
        read_cmos STATUS_B
        and     al, ~DAYLIGHT_SAVING & 0xFF
        mov     ah, [bp + CALLER_DX]
        and     ah, DAYLIGHT_SAVING
        or      al, ah
        write_cmos STATUS_B
        jmp     start_clock

/* 05h */
set_date:
        call    stop_clock
        mov     al, [bp + CALLER_DX]
        write_cmos 7
        mov     al, [bp + CALLER_DX + 1]
        write_cmos 8
        mov     al, [bp + CALLER_CX]
        write_cmos 9
        mov     al, [bp + CALLER_CX + 1]
        write_cmos CENTURY
start_clock:
        read_cmos STATUS_B
        and     al, ~CLOCK_SET & 0xFF
        write_cmos STATUS_B
        mov     byte ptr [bp + CALLER_AH], 0
        jmp     return_ok
stop_clock:
        read_cmos STATUS_B
        or      al, CLOCK_SET
        write_cmos STATUS_B
        ret

/* 06h: INT 4Ah at CH:CL:DH, each day; carry if there is an alarm already. */
set_alarm:
        read_cmos STATUS_B
        test    al, ALARM_INTERRUPT
        jnz     return_carry
        mov     al, [bp + CALLER_DX + 1]
        write_cmos 1
        mov     al, [bp + CALLER_CX]
        write_cmos 3
        mov     al, [bp + CALLER_CX + 1]
        write_cmos 5
        in      al, PIC_SLAVE_DATA
        and     al, 0xFE
        out     PIC_SLAVE_DATA, al
        read_cmos STATUS_B
        or      al, ALARM_INTERRUPT
        write_cmos STATUS_B
        jmp     return_ok

/* 07h */
cancel_alarm:
        read_cmos STATUS_B
        and     al, ~ALARM_INTERRUPT & 0xFF
        write_cmos STATUS_B
        jmp     return_ok
