/*
 * INT 16h: keys from the PS/2 keyboard, which INT 09h puts into the buffer, and from COM1, which is
 * asked only by the calls that want a key: a program with a driver of its own for the serial port
 * loses nothing to the BIOS.
 *
 * What comes from COM1 is text and the sequences that terminals send for the other keys (ECMA-48,
 * as xterm has them): each becomes the scan code and character that a PC's keyboard has for it.
 */
#include "bios.h"

        .globl  int09, int16, set_up_keyboard

#define SHIFT_RIGHT 0x01
#define SHIFT_LEFT 0x02
#define CONTROL 0x04
#define ALT 0x08
#define SCROLL_LOCK 0x10
#define NUM_LOCK 0x20
#define CAPS_LOCK 0x40
#define INSERT 0x80

#define ESCAPE 0x1B
#define SEQUENCE_TICKS (PM_TIMER_HZ / 50)       /* how long the rest of a sequence may take */

#define EXTENDED_KEYBOARD 0x10          /* BDA_KEYBOARD_MODE: 101 keys; the last byte was E0h */
#define LAST_WAS_E0 0x02

#define COMMAND_SELF_TEST 0xAA
#define COMMAND_WRITE_MODE 0x60
#define COMMAND_ENABLE 0xAE
#define MODE 0x65                       /* interrupts, translation to set 1, no mouse */
#define ENABLE_SCANNING 0xF4

set_up_keyboard:
        mov     word ptr BDA_KEY_START, BDA_KEY_BUFFER
        mov     word ptr BDA_KEY_END, BDA_KEY_BUFFER_END
        mov     word ptr BDA_KEY_HEAD, BDA_KEY_BUFFER
        mov     word ptr BDA_KEY_TAIL, BDA_KEY_BUFFER
        mov     byte ptr BDA_KEYBOARD_MODE, EXTENDED_KEYBOARD
        call    drain
        mov     al, COMMAND_SELF_TEST
        call    send_command
        call    receive_byte
        mov     al, COMMAND_WRITE_MODE
        call    send_command
        mov     al, MODE
        call    send_byte
        mov     al, COMMAND_ENABLE
        call    send_command
        mov     al, ENABLE_SCANNING
        call    send_byte
        call    receive_byte            // its acknowledgement
drain:  in      al, I8042_COMMAND
        test    al, I8042_OUTPUT_FULL
        jz      1f
        in      al, I8042_DATA
        jmp     drain
1:      ret

send_command:
        mov     ah, al
        call    wait_for_controller
        mov     al, ah
        out     I8042_COMMAND, al
        ret
send_byte:
        mov     ah, al
        call    wait_for_controller
        mov     al, ah
        out     I8042_DATA, al
        ret
wait_for_controller:
        mov     cx, 1000
1:      in      al, I8042_COMMAND
        test    al, I8042_INPUT_FULL
        jz      2f
        loop    1b
2:      ret
receive_byte:
        mov     cx, 1000
1:      in      al, I8042_COMMAND
        test    al, I8042_OUTPUT_FULL
        jnz     2f
        loop    1b
        ret
2:      in      al, I8042_DATA
        ret

/* INT 16h. */

int16:  enter_service
        test    ah, ah
        jz      read_key
        cmp     ah, 0x10
        je      read_key
        cmp     ah, 0x01
        je      look_for_key
        cmp     ah, 0x11
        je      look_for_key
        cmp     ah, 0x02
        je      shift_flags
        cmp     ah, 0x12
        je      extended_shift_flags
        cmp     ah, 0x05
        je      put_key_back
        cmp     ah, 0x03
        je      return                  // the typematic rate is the terminal's
        cmp     ah, 0x09
        jne     return
        mov     byte ptr [bp + CALLER_AX], 0x60 // 09h: calls 10h to 12h are there
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

/* The grey cursor keys have the character E0h, but not for the calls that are older than they. */
as_asked:
        cmp     byte ptr [bp + CALLER_AH], 0x10
        jae     1f
        cmp     al, 0xE0
        jne     1f
        test    ah, ah
        jz      1f                      // a letter of the terminal's
        mov     al, 0
1:      ret

/* 02h */
shift_flags:
        mov     al, BDA_SHIFT_FLAGS
        mov     [bp + CALLER_AX], al
        jmp     return

/* 12h */
extended_shift_flags:
        mov     al, BDA_SHIFT_FLAGS
        mov     ah, BDA_SHIFT_FLAGS_2
        and     ah, 0x03                // the left control and alt keys
        mov     [bp + CALLER_AX], ax
        jmp     return

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

/* What has come at COM1, into the buffer; no more than one key, so that nothing is lost. */
poll_serial:
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

        .section .rodata
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

/* INT 09h: a byte from the PS/2 keyboard, in scan code set 1. */

int09:  push    ds
        pushad
        cld
        push    BDA_SEGMENT
        pop     ds
        in      al, I8042_DATA
        mov     ah, 0x4F
        stc
        int     0x15                    // for programs that hook it
        jnc     9f
        cmp     al, 0xE0
        je      8f
        mov     bl, al
        and     bx, 0x7F
        cmp     bl, 0x58
        ja      7f
        call    modifier
        jc      7f
        test    al, 0x80
        jnz     7f                      // a key that was let go
        call    translate
        jc      7f
        call    put_key
7:      and     byte ptr BDA_KEYBOARD_MODE, ~LAST_WAS_E0 & 0xFF
        jmp     9f
8:      or      byte ptr BDA_KEYBOARD_MODE, LAST_WAS_E0
9:      mov     al, PIC_EOI
        out     PIC_MASTER, al
        popad
        pop     ds
        iret

/* Keep track of shift, control, alt and the locks; carry if AL (BL without bit 7) was one. */
modifier:
        mov     si, offset modifiers
1:      mov     cx, cs:[si]
        jcxz    4f
        add     si, 2
        cmp     cl, bl
        jne     1b
        cmp     ch, SCROLL_LOCK
        jae     3f
        test    al, 0x80
        jnz     2f
        or      BDA_SHIFT_FLAGS, ch
        stc
        ret
2:      not     ch
        and     BDA_SHIFT_FLAGS, ch
        stc
        ret
3:      test    al, 0x80
        stc
        jnz     5f
        xor     BDA_SHIFT_FLAGS, ch     // a lock
        stc
5:      ret
4:      clc
        ret

        .section .rodata
modifiers:                              // key, flag
        .byte   0x36, SHIFT_RIGHT, 0x2A, SHIFT_LEFT, 0x1D, CONTROL, 0x38, ALT
        .byte   0x46, SCROLL_LOCK, 0x45, NUM_LOCK, 0x3A, CAPS_LOCK
        .word   0
plain_keys:
        .ascii  "\0\0331234567890-=\b\tqwertyuiop[]\r\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 \0"
shifted_keys:
        .ascii  "\0\033!@#$%^&*()_+\b\0QWERTYUIOP{}\r\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 \0"
keypad: .ascii  "789-456+1230."
        .text

/* Key BL as AX is to be; carry if it is to be nothing. */
translate:
        mov     ah, bl
        mov     al, 0
        mov     dl, BDA_SHIFT_FLAGS
        cmp     bl, 0x3B
        jae     3f
        mov     al, cs:[bx + plain_keys]
        test    dl, SHIFT_LEFT | SHIFT_RIGHT
        jz      1f
        mov     al, cs:[bx + shifted_keys]
1:      test    dl, CAPS_LOCK
        jz      2f
        mov     cl, al
        or      cl, 0x20
        sub     cl, 'a'
        cmp     cl, 26
        jae     2f
        xor     al, 0x20
2:      test    dl, ALT
        jz      5f
        mov     al, 0                   // the scan code alone; digits have others
        cmp     bl, 0x02
        jb      8f
        cmp     bl, 0x0D
        ja      8f
        add     ah, 0x76
        jmp     8f
5:      test    dl, CONTROL
        jz      7f
        cmp     al, 0x40
        jb      8f
        and     al, 0x1F
        jmp     8f
7:      test    al, al
        jnz     8f
        cmp     bl, 0x0F                // back-tab
        je      8f
        stc
        ret

3:      cmp     bl, 0x45
        jae     4f
        mov     dh, 0x19                // F1 to F10: 54h, 5Eh, 68h on with shift, control, alt
        test    dl, SHIFT_LEFT | SHIFT_RIGHT
        jnz     6f
        mov     dh, 0x23
        test    dl, CONTROL
        jnz     6f
        mov     dh, 0x2D
        test    dl, ALT
        jz      8f
6:      add     ah, dh
        jmp     8f

4:      cmp     bl, 0x57
        jae     9f
        cmp     bl, 0x47
        jb      1f
        cmp     bl, 0x53
        ja      1f
        mov     al, 0xE0
        test    byte ptr BDA_KEYBOARD_MODE, LAST_WAS_E0
        jnz     8f
        mov     al, cs:[bx + keypad - 0x47]
        test    dl, NUM_LOCK
        jnz     8f
        cmp     al, '+'
        je      8f
        cmp     al, '-'
        je      8f
        mov     al, 0
8:      clc
        ret
9:      add     ah, 0x85 - 0x57         // F11, F12
        clc
        ret
1:      stc
        ret
