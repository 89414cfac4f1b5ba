/*
 * Real mode: a flat binary, entered at 0000:7C00 as a boot sector is. What a BIOS would use first:
 * serial port, interrupts through the vector table, PIT, RTC, keyboard controller.
 */
#include "pc.h"

        .intel_syntax noprefix
        .code16
        .text
        .globl  _start

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

/* EAX from `low` to `high`. */
.macro  check_between low, high, name:vararg
        lea     ebx, [eax - (\low)]
        cmp     ebx, (\high) - (\low) + 1
        sbb     bl, bl                  // -1 if it is below
        inc     bl
        check_zero \name
.endm

.macro  i8042_write port, value
        mov     dl, \port
        mov     al, \value
        call    i8042_send
.endm

/* The controller's or a device's next byte must be `value`. */
.macro  i8042_expect value, name:vararg
        call    i8042_receive
        check_equal al, \value, \name
.endm

_start: xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7C00
        call    test_serial
        call    test_software_interrupt
        call    test_pit
        call    test_rtc
        call    test_i8042
        call    test_post_port
        mov     dx, PM1A_CONTROL
        mov     ax, PM1A_S5
        out     dx, ax
1:      hlt
        jmp     1b

test_serial:
        mov     dx, COM1 + UART_LCR
        mov     al, 0x80
        out     dx, al
        mov     dx, COM1
        mov     ax, 0x000C              // divisor 12: 9600 baud
        out     dx, al
        inc     dx
        mov     al, ah
        out     dx, al
        dec     dx
        in      al, dx
        mov     bl, al                  // the divisor reads back
        mov     dx, COM1 + UART_LCR
        mov     al, 0x03
        out     dx, al
        check_equal bl, 0x0C, "serial divisor latch"

        mov     dx, COM1 + UART_SCR
        mov     al, 0x5A
        out     dx, al
        in      al, dx
        check_equal al, 0x5A, "serial scratch register"

        mov     dx, COM1 + UART_FCR
        mov     al, 0x07                // FIFOs on and empty
        out     dx, al
        mov     dx, COM1 + UART_MCR
        mov     al, 0x10                // loopback: nothing comes out
        out     dx, al
        mov     dx, COM1
        mov     al, 'L'
        out     dx, al
        mov     dx, COM1 + UART_LSR
1:      in      al, dx
        test    al, UART_LSR_DR
        jz      1b
        mov     dx, COM1
        in      al, dx
        mov     bl, al
        mov     dx, COM1 + UART_MCR
        mov     al, 0x03
        out     dx, al
        check_equal bl, 'L', "serial loopback"
        ret

test_software_interrupt:
        mov     word ptr [0x60 * 4], offset on_interrupt_60
        mov     word ptr [0x60 * 4 + 2], 0
        mov     bx, 0x1234
        mov     bp, sp
        stc
        int     0x60
        setc    al                      // IRET restores the flags
        check_equal bx, 0x1235, "int through the vector table"
        check_equal sp, bp, "stack after iret"
        ret

on_interrupt_60:
        inc     bx
        clc
        iret

/* Channel 2 counts down 10 ms while its gate is open, and stands still while it is closed. */
#define PIT_10_MS (PIT_HZ/100)
#define PM_10_MS (PM_TIMER_HZ/100)

test_pit:
        in      al, PORT_B
        and     al, 0xFC                // gate and speaker off
        out     PORT_B, al
        mov     al, 0xB0                // channel 2, two bytes, mode 0
        out     PIT_CONTROL, al
        mov     al, PIT_10_MS & 0xFF
        out     PIT_CHANNEL_2, al
        mov     al, PIT_10_MS >> 8
        out     PIT_CHANNEL_2, al
        call    latch_channel_2
        mov     bx, ax
        call    latch_channel_2
        check_equal ax, bx, "PIT channel 2 stands still with its gate closed"
        in      al, PORT_B
        test    al, PORT_B_OUT_2
        check_zero "PIT channel 2 output is low while it counts"

        mov     dx, PM_TIMER
        in      eax, dx
        mov     ecx, eax
        in      al, PORT_B
        or      al, PORT_B_GATE_2
        out     PORT_B, al
1:      in      al, PORT_B
        test    al, PORT_B_OUT_2
        jz      1b
        mov     dx, PM_TIMER
        in      eax, dx
        sub     eax, ecx
        and     eax, 0xFFFFFF
        // No sooner than it should; later only by what a busy host takes.
        check_between PM_10_MS-100, PM_10_MS*50, "PIT channel 2 took 10 ms"
        ret

/* The count of channel 2 in AX. */
latch_channel_2:
        mov     al, 0x80
        out     PIT_CONTROL, al
        in      al, PIT_CHANNEL_2
        mov     ah, al
        in      al, PIT_CHANNEL_2
        xchg    al, ah
        ret

.macro  read_cmos index
        mov     al, \index
        out     CMOS_INDEX, al
        in      al, CMOS_DATA
.endm

test_rtc:
        read_cmos 0x0D
        and     al, 0x80
        check_equal al, 0x80, "RTC says that its battery is good"
        read_cmos 0x0B
        and     al, 0x06
        check_equal al, 0x02, "RTC counts BCD and 24 hours"

        call    print_time              // the test compares it with the host's

        // The seconds change, to their successor, within little more than a second.
        call    rtc_seconds
        mov     bl, al
        mov     dx, PM_TIMER
        in      eax, dx
        mov     ecx, eax
1:      call    rtc_seconds
        cmp     al, bl
        je      1b
        mov     bh, al
        mov     al, bl
        inc     al
        mov     ah, al
        and     ah, 15
        cmp     ah, 10
        jne     2f
        add     al, 6                   // as DAA, which software KVM lacks
2:      cmp     al, 0x60
        jne     3f
        mov     al, 0
3:      push    bx
        cmp     al, bh
        check_zero "RTC counts seconds in BCD"
        pop     bx
        mov     dx, PM_TIMER
        in      eax, dx
        sub     eax, ecx
        and     eax, 0xFFFFFF
        check_between 0, PM_TIMER_HZ*3/2, "RTC seconds last a second"

        xor     eax, eax
        read_cmos 0x35                  // memory between 16 MiB and 4 GiB, in 64 KiB
        mov     ah, al
        read_cmos 0x34
        mov     si, offset cmos_memory
        call    print
        call    print_hexadecimal
        mov     si, offset newline
        jmp     print

/* The seconds in AL, once no update is in progress. */
rtc_seconds:
1:      read_cmos 0x0A
        test    al, 0x80
        jnz     1b
        read_cmos 0x00
        ret

/* `rtc: YY-MM-DD HH:MM:SS` */
print_time:
        mov     si, offset rtc_is
        call    print
        call    rtc_seconds             // waits for a quiet moment
        mov     di, offset time_registers
1:      read_cmos [di]
        mov     ah, al
        shr     al, 4
        call    print_digit
        mov     al, ah
        and     al, 15
        call    print_digit
        mov     al, [di + 1]
        call    print_character
        add     di, 2
        cmp     di, offset time_registers_end
        jne     1b
        ret

        .pushsection .rodata
rtc_is: .asciz  "rtc: "
time_registers:                         // register, what follows it
        .byte   9, '-', 8, '-', 7, ' ', 4, ':', 2, ':', 0, '\n'
time_registers_end:
cmos_memory:
        .asciz  "cmos memory above 16 MiB: "
        .popsection

test_i8042:
        call    i8042_drain
        i8042_write I8042_COMMAND, 0xAD
        i8042_write I8042_COMMAND, 0xA7
        call    i8042_drain
        i8042_write I8042_COMMAND, 0xAA
        i8042_expect 0x55, "i8042 self-test"
        i8042_write I8042_COMMAND, 0xAB
        i8042_expect 0x00, "i8042 keyboard interface test"
        i8042_write I8042_COMMAND, 0xA9
        i8042_expect 0x00, "i8042 auxiliary interface test"

        i8042_write I8042_COMMAND, 0x60 // command byte: both devices on, no interrupts,
        i8042_write I8042_DATA, 0x04    // no translation, system flag
        i8042_write I8042_COMMAND, 0x20
        i8042_expect 0x04, "i8042 command byte"
        i8042_write I8042_COMMAND, 0xD0
        call    i8042_receive
        and     al, 0x03
        check_equal al, 0x03, "i8042 output port: A20 on, no reset"

        i8042_write I8042_DATA, 0xFF
        i8042_expect 0xFA, "keyboard takes reset"
        i8042_expect 0xAA, "keyboard passes its test"
        i8042_write I8042_DATA, 0xF2
        i8042_expect 0xFA, "keyboard takes identify"
        i8042_expect 0xAB, "keyboard identity"
        i8042_expect 0x83, "keyboard identity, second byte"
        i8042_write I8042_DATA, 0xEE
        i8042_expect 0xEE, "keyboard echo"

        i8042_write I8042_COMMAND, 0xD4
        i8042_write I8042_DATA, 0xFF
        i8042_expect 0xFA, "mouse takes reset"
        in      al, I8042_COMMAND
        and     al, I8042_FROM_AUX
        check_equal al, I8042_FROM_AUX, "i8042 says that the byte is the mouse's"
        i8042_expect 0xAA, "mouse passes its test"
        i8042_expect 0x00, "mouse identity"
        ret

/* AL to port DL, once the controller takes it. */
i8042_send:
        mov     dh, 0
        mov     ah, al
1:      in      al, I8042_COMMAND
        test    al, I8042_INPUT_FULL
        jnz     1b
        mov     al, ah
        out     dx, al
        ret

i8042_receive:
1:      in      al, I8042_COMMAND
        test    al, I8042_OUTPUT_FULL
        jz      1b
        in      al, I8042_DATA
        ret

i8042_drain:
1:      in      al, I8042_COMMAND
        test    al, I8042_OUTPUT_FULL
        jz      2f
        in      al, I8042_DATA
        jmp     1b
2:      ret

test_post_port:
        mov     al, 0x42
        out     POST_PORT, al
        in      al, POST_PORT           // what it gives is not laid down
        cmp     ax, ax
        check_zero "POST port"
        ret

/* The name at SI, by the zero flag; AX to DX survive. */
report: pusha
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
        mov     ax, [bp + 14]
        call    print_hexadecimal
        jmp     2f
1:      call    print
        mov     si, di
        call    print
2:      mov     si, offset newline
        call    print
        popa
        ret

        .pushsection .rodata
ok:     .asciz  "ok: "
failed: .asciz  "FAIL: "
is:     .asciz  " is "
newline:
        .asciz  "\n"
        .popsection

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
        call    print_digit
        pop     ax
        loop    1b
        ret

print_digit:
        add     al, '0'
        cmp     al, '9'
        jbe     print_character
        add     al, 'a' - '0' - 10
print_character:
        push    dx
        push    ax
        mov     dx, COM1 + UART_LSR
1:      in      al, dx
        test    al, UART_LSR_THRE
        jz      1b
        pop     ax
        mov     dx, COM1 + UART_DATA
        out     dx, al
        pop     dx
        ret

        .section .note.GNU-stack, "", @progbits
