/*
 * INT 14h: the serial ports, and their set-up. All of them are set to 115200 8N1, so that COM1 can
 * be the console; programs may choose another speed, which makes no difference here.
 */
#include "bios.h"

        .globl  int14, set_up_serial

#define TIMEOUT_STATUS 0x80
#define DIVISOR_115200 1
#define SETTLING_READS 40

        .section .rodata
com_ports:
        .word   0x3F8, 0x2F8, 0x3E8, 0x2E8
divisors:                               /* of 110 to 9600 baud */
        .word   1047, 768, 384, 192, 96, 48, 24, 12
extended_divisors:                      /* of 110 to 19200 baud, and ours */
        .word   1047, 768, 384, 192, 96, 48, 24, 12, 6, 1
#define EXTENDED_DIVISORS 10
        .text

/* Those whose scratch register holds what is written there. */
set_up_serial:
        mov     si, offset com_ports
        mov     di, 0                   // BDA_COM_PORTS
        mov     cx, 4
1:      lods    word ptr cs:[si]
        mov     dx, ax
        add     dx, UART_SCR
        mov     al, 0x55
        out     dx, al
        in      al, dx
        cmp     al, 0x55
        jne     3f
        sub     dx, UART_SCR
        mov     [di], dx
        add     di, 2
        add     word ptr BDA_EQUIPMENT, 0x0200
        mov     al, 0x03                // 8N1
        mov     bx, DIVISOR_115200
        call    set_line
        inc     dx                      // IER: nobody serves interrupts
        xor     al, al
        out     dx, al
        inc     dx                      // FCR: FIFOs on; what was typed already stays
        inc     al
        out     dx, al
        add     dx, UART_MCR - UART_FCR // DTR, RTS
        mov     al, 0x03
        out     dx, al
        // The UART gives what it received before only when its set-up seems to be over.
        inc     dx
        mov     bx, SETTLING_READS
2:      in      al, dx
        dec     bx
        jnz     2b
3:      loop    1b
        ret

/* The line control register to AL and the divisor to BX, of the port at DX. */
set_line:
        push    dx
        mov     ah, al
        add     dx, UART_LCR
        or      al, 0x80
        out     dx, al
        sub     dx, UART_LCR
        mov     al, bl
        out     dx, al
        inc     dx
        mov     al, bh
        out     dx, al
        add     dx, UART_LCR - 1
        mov     al, ah
        out     dx, al
        pop     dx
        ret

        .section .rodata
serial_services:
        .word   initialize, transmit, receive, serial_status, extended_initialize, modem_control
#define SERIAL_SERVICES 6
        .text

int14:  enter_service
        cmp     dx, 4
        jae     return
        mov     si, dx
        add     si, si
        mov     dx, [si]
        test    dx, dx
        jz      no_port
        dispatch serial_services, SERIAL_SERVICES, return
no_port:
        mov     byte ptr [bp + CALLER_AH], TIMEOUT_STATUS
        jmp     return

/* 00h: speed, parity, stop bit and length as bits of AL. */
initialize:
        movzx   bx, al
        shr     bx, 5
        add     bx, bx
        mov     bx, cs:[bx + divisors]
        and     al, 0x1F                // LCR has them in the same places
        call    set_line
        jmp     serial_status

/* 04h: break AL, parity BH, stop bits BL, length CH, speed CL. */
extended_initialize:
        movzx   bx, cl
        cmp     bl, EXTENDED_DIVISORS
        jae     return
        add     bx, bx
        mov     bx, cs:[bx + extended_divisors]
        mov     ah, [bp + CALLER_AX]
        and     ah, 1
        shl     ah, 6
        mov     al, [bp + CALLER_BX + 1]
        cmp     al, 4
        ja      return
        mov     si, ax
        and     si, 0xFF
        or      ah, cs:[si + parities]
        mov     al, [bp + CALLER_BX]
        and     al, 1
        shl     al, 2
        or      al, ah
        and     ch, 3
        or      al, ch
        call    set_line
        jmp     serial_status

        .section .rodata
parities:
        .byte   0x00, 0x08, 0x18, 0x28, 0x38
        .text

/* 05h: read (AL 0) or write (AL 1) the modem control register, which is BL. */
modem_control:
        add     dx, UART_MCR
        cmp     al, 1
        ja      return
        je      1f
        in      al, dx
        mov     [bp + CALLER_BX], al
        jmp     2f
1:      mov     al, [bp + CALLER_BX]
        and     al, 0x1F
        out     dx, al
2:      sub     dx, UART_MCR

/* 03h: line and modem status. */
serial_status:
        add     dx, UART_LSR
        in      al, dx
        mov     ah, al
        inc     dx
        in      al, dx
        mov     [bp + CALLER_AX], ax
        jmp     return

/* 01h: AL. */
transmit:
        mov     bh, LSR_THR_EMPTY
        call    wait_for_line
        jc      timed_out
        mov     al, [bp + CALLER_AX]
        out     dx, al
        mov     [bp + CALLER_AH], ah
        jmp     return

/* 02h: into AL. */
receive:
        mov     bh, LSR_DATA_READY
        call    wait_for_line
        jc      timed_out
        in      al, dx
        and     ah, 0x1E                // errors only
        mov     [bp + CALLER_AX], ax
        jmp     return
timed_out:
        or      ah, TIMEOUT_STATUS
        mov     [bp + CALLER_AH], ah
        jmp     return

/* Wait as long as the data area says, in seconds, for a bit in BH of the line status of the port at
 * DX, which is AH then; carry if it doesn't come. */
wait_for_line:
        shr     si, 1
        movzx   ecx, byte ptr [si + 0x7C]       // BDA_COM_TIMEOUTS
        imul    ecx, ecx, PM_TIMER_HZ
        call    read_timer
        mov     edi, eax
        add     dx, UART_LSR
1:      in      al, dx
        test    al, bh
        mov     bl, al
        jnz     2f
        call    read_timer
        sub     eax, edi
        cmp     eax, ecx
        jb      1b
        stc
2:      pushf
        sub     dx, UART_LSR
        popf
        mov     ah, bl
        ret
