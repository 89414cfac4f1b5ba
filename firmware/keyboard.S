/*
 * INT 16h: keys from the PS/2 keyboard, which INT 09h (keys.S) puts into the buffer, and from COM1,
 * which is asked only by the calls that want a key: a program with a driver of its own for the serial
 * port loses nothing to the BIOS.
 *
 * What comes from COM1 is text and the sequences that terminals send for the other keys (ECMA-48,
 * as xterm has them): each becomes the scan code and character that a PC's keyboard has for it.
 */
#include "bios.h"

        .globl  int16, put_key

#define ESCAPE 0x1B
#define SEQUENCE_TICKS (PM_TIMER_HZ / 50)       /* how long the rest of a sequence may take */

#define CAPABILITIES 0x30               /* calls 0Ah, and 10h to 12h */
#define KEYBOARD_ID 0x41AB              /* 101 keys, translated to scan code set 1 */

        .section .rodata
keyboard_services:
        .word   read_key, look_for_key, shift_flags, return             // 03h: typematic rate
        .word   return, put_key_back, return, return
        .word   return, capabilities, keyboard_id, return
        .word   return, return, return, return
        .word   read_key, look_for_key, extended_shift_flags
#define KEYBOARD_SERVICES 0x13
        .text

int16:  enter_service
        cmp     ah, 0x92
        je      extended_calls
        dispatch keyboard_services, KEYBOARD_SERVICES, return

/* 09h */
capabilities:
        mov     byte ptr [bp + CALLER_AX], CAPABILITIES
        jmp     return

/* 0Ah */
keyboard_id:
        mov     word ptr [bp + CALLER_BX], KEYBOARD_ID
        jmp     return

/* 92h: DOS's KEYB asks, in a way of its own, whether there are calls 10h to 12h. */
extended_calls:
        mov     byte ptr [bp + CALLER_AH], 0x80
        jmp     return

/* 00h, 10h: wait for a key; scan code to AH, character to AL. */
read_key:
        push    es
        call    show_cursor
        pop     es
1:      cli
        mov     bx, BDA_KEY_HEAD
        cmp     bx, BDA_KEY_TAIL
        jne     2f
        call    poll_serial
        mov     bx, BDA_KEY_HEAD
        cmp     bx, BDA_KEY_TAIL
        jne     2f
        call    sleep
        jmp     1b
2:      mov     ax, [bx]
        add     bx, 2
        cmp     bx, BDA_KEY_END
        jb      3f
        mov     bx, BDA_KEY_START
3:      mov     BDA_KEY_HEAD, bx
        call    as_asked
        mov     [bp + CALLER_AX], ax
        jmp     return

/* 01h, 11h: the key that would be read, and no zero flag; or the zero flag. */
look_for_key:
        sti                             // a moment for the keyboard's interrupt, as IBM's BIOS gives:
        in      al, I8042_COMMAND       // there are loops that ask with interrupts off. (Software
        cli                             // KVM delivers one only when the VMM is needed.)
        call    poll_serial
        mov     bx, BDA_KEY_HEAD
        cmp     bx, BDA_KEY_TAIL
        je      1f
        mov     ax, [bx]
        call    as_asked
        mov     [bp + CALLER_AX], ax
        and     byte ptr [bp + CALLER_FLAGS], ~ZERO & 0xFF
        jmp     return
1:      or      byte ptr [bp + CALLER_FLAGS], ZERO
        jmp     return

/* The grey keys have the character E0h, or the keypad's Enter and slash that scan code: but not for the
 * calls that are older than they. */
as_asked:
        cmp     byte ptr [bp + CALLER_AH], 0x10
        jae     3f
        cmp     ah, 0xE0
        je      1f
        cmp     al, 0xE0
        jne     3f
        test    ah, ah
        jz      3f                      // a letter of the terminal's
        mov     al, 0
        ret
1:      mov     ah, 0x35
        cmp     al, '/'
        je      3f
        mov     ah, 0x1C
3:      ret

/* 05h: CX into the buffer; AL is 1 if it is full. */
put_key_back:
        mov     ax, cx
        call    put_key
        setc    al
        mov     [bp + CALLER_AX], al
        jmp     return

/* AX into the buffer; carry if it is full. */
put_key:
        push    bx
        push    cx
        pushf
        cli
        mov     bx, BDA_KEY_TAIL
        mov     cx, bx
        add     cx, 2
        cmp     cx, BDA_KEY_END
        jb      1f
        mov     cx, BDA_KEY_START
1:      cmp     cx, BDA_KEY_HEAD
        je      2f
        mov     [bx], ax
        mov     BDA_KEY_TAIL, cx
        popf
        pop     cx
        pop     bx
        clc
        ret
2:      popf
        pop     cx
        pop     bx
        stc
        ret

/* The serial port as a keyboard. */

/* A key that has come at COM1, into the buffer, if none is there: however often a program looks, what
 * it doesn't take stays in the port, and nothing is lost. */
poll_serial:
        mov     bx, BDA_KEY_HEAD
        cmp     bx, BDA_KEY_TAIL
        jne     1f
        mov     dx, BDA_COM_PORTS
        test    dx, dx
        jz      1f
        call    serial_ready
        jz      1f
        in      al, dx
        cmp     al, ESCAPE
        je      escape
        mov     ah, 0
        cmp     al, 0x80
        jae     put_key                 // no key of a PC's
        cmp     al, 0x7F                // terminals send it for backspace
        jne     2f
        mov     al, '\b'
2:      movzx   bx, al
        mov     ah, cs:[bx + scan_codes]
        jmp     put_key
1:      ret

/* No zero flag if a character waits. */
serial_ready:
        push    dx
        add     dx, UART_LSR
        in      al, dx
        pop     dx
        cmp     al, 0xFF                // no port at all
        je      1f
        test    al, LSR_DATA_READY
1:      ret

/* The next character of a sequence in AL; carry if it doesn't come. */
next_serial:
        push    ecx
        call    read_timer
        mov     ecx, eax
1:      call    serial_ready
        jnz     2f
        call    read_timer
        sub     eax, ecx
        cmp     eax, SEQUENCE_TICKS
        jb      1b
        pop     ecx
        stc
        ret
2:      in      al, dx
        pop     ecx
        clc
        ret

/* ESC has come: by itself, before a character, or as the start of CSI … or SS3 …. */
escape: call    next_serial
        jc      lone_escape
        cmp     al, '['
        je      control_sequence
        cmp     al, 'O'
        je      single_shift
        mov     ah, 0
        cmp     al, 0x80
        jae     put_key
        movzx   bx, al
        mov     ah, cs:[bx + scan_codes]
        mov     al, 0                   // the key with Alt
        jmp     put_key
lone_escape:
        mov     ax, 0x01 << 8 | ESCAPE
        jmp     put_key
single_shift:
        call    next_serial
        jc      lone_escape
        xor     cx, cx
        jmp     final

/* CSI: parameters, of which the first counts, then a final character. */
control_sequence:
        xor     cx, cx                  // the parameter
        mov     bl, 0                   // how many were before
1:      call    next_serial
        jc      lone_escape
        cmp     al, 0x40
        jae     final
        cmp     al, ';'
        jne     2f
        inc     bl
2:      cmp     al, '['
        je      1b
        test    bl, bl
        jnz     1b
        sub     al, '0'
        cmp     al, 9
        ja      1b
        mov     ah, cl
        push    ax
        mov     al, ah
        mov     ah, 10
        mul     ah
        mov     cl, al
        pop     ax
        add     cl, al
        jmp     1b

/* AL ends a sequence with the parameter CL. */
final:  cmp     al, '~'
        mov     si, offset final_characters
        jne     1f
        mov     al, cl
        mov     si, offset tilde_parameters
1:      cmp     byte ptr cs:[si], 0
        je      3f                      // no key that we know
        cmp     cs:[si], al
        je      2f
        add     si, 2
        jmp     1b
2:      mov     ah, cs:[si + 1]
        mov     al, 0
        cmp     ah, 0x47                // from Home to Del they are grey keys
        jb      4f
        cmp     ah, 0x53
        ja      4f
        mov     al, 0xE0
4:      jmp     put_key
3:      ret

        .section .tables, "a"
final_characters:                       // final character, scan code
        .byte   'A', 0x48, 'B', 0x50, 'C', 0x4D, 'D', 0x4B, 'H', 0x47, 'F', 0x4F
        .byte   'P', 0x3B, 'Q', 0x3C, 'R', 0x3D, 'S', 0x3E, 'Z', 0x0F, 0
tilde_parameters:                       // parameter, scan code
        .byte   1, 0x47, 2, 0x52, 3, 0x53, 4, 0x4F, 5, 0x49, 6, 0x51, 7, 0x47, 8, 0x4F
        .byte   11, 0x3B, 12, 0x3C, 13, 0x3D, 14, 0x3E, 15, 0x3F, 17, 0x40, 18, 0x41, 19, 0x42
        .byte   20, 0x43, 21, 0x44, 23, 0x85, 24, 0x86, 0

/* The key of each ASCII character. */
scan_codes:
        .byte   0x03, 0x1E, 0x30, 0x2E, 0x20, 0x12, 0x21, 0x22  // ^@ to ^G
        .byte   0x0E, 0x0F, 0x1C, 0x25, 0x26, 0x1C, 0x31, 0x18
        .byte   0x19, 0x10, 0x13, 0x1F, 0x14, 0x16, 0x2F, 0x11
        .byte   0x2D, 0x15, 0x2C, 0x01, 0x2B, 0x1B, 0x07, 0x0C
        .byte   0x39, 0x02, 0x28, 0x04, 0x05, 0x06, 0x08, 0x28  // space to '
        .byte   0x0A, 0x0B, 0x09, 0x0D, 0x33, 0x0C, 0x34, 0x35
        .byte   0x0B, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08
        .byte   0x09, 0x0A, 0x27, 0x27, 0x33, 0x0D, 0x34, 0x35
        .byte   0x03, 0x1E, 0x30, 0x2E, 0x20, 0x12, 0x21, 0x22  // @ to G
        .byte   0x23, 0x17, 0x24, 0x25, 0x26, 0x32, 0x31, 0x18
        .byte   0x19, 0x10, 0x13, 0x1F, 0x14, 0x16, 0x2F, 0x11
        .byte   0x2D, 0x15, 0x2C, 0x1A, 0x2B, 0x1B, 0x07, 0x0C
        .byte   0x29, 0x1E, 0x30, 0x2E, 0x20, 0x12, 0x21, 0x22  // ` to g
        .byte   0x23, 0x17, 0x24, 0x25, 0x26, 0x32, 0x31, 0x18
        .byte   0x19, 0x10, 0x13, 0x1F, 0x14, 0x16, 0x2F, 0x11
        .byte   0x2D, 0x15, 0x2C, 0x1A, 0x2B, 0x1B, 0x29, 0x0E
        .text
