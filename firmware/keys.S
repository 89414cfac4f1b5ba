/*
 * The PS/2 keyboard: its set-up, INT 09h, which makes keys of what it sends (scan code set 1), and
 * what INT 16h tells of the keys that are held down.
 *
 * The layout is the US one, with the codes that IBM's BIOS has for a keyboard of 101 keys. Left out
 * are the pause, SysReq and the lights.
 */
#include "bios.h"

        .globl  int09, set_up_keyboard, shift_flags, extended_shift_flags, reboot

/* BDA_SHIFT_FLAGS: what is held down, and what is on. */
#define SHIFT_RIGHT 0x01
#define SHIFT_LEFT 0x02
#define CONTROL 0x04
#define ALT 0x08
#define SCROLL_LOCK 0x10
#define NUM_LOCK 0x20
#define CAPS_LOCK 0x40
#define INSERT 0x80

/* BDA_SHIFT_FLAGS_2: held down is, of two, the left one; and the locks and Ins, by the bits that they
 * have above. */
#define LEFT_CONTROL 0x01
#define LEFT_ALT 0x02
#define LOCKS (SCROLL_LOCK | NUM_LOCK | CAPS_LOCK)

/* BDA_KEYBOARD_MODE: which prefix a byte has, if any; which right keys are held down; 101 keys. */
#define LAST_WAS_E1 0x01
#define LAST_WAS_E0 0x02
#define RIGHT_CONTROL 0x04
#define RIGHT_ALT 0x08
#define EXTENDED_KEYBOARD 0x10

#define LAST_KEY 0x58                   /* that there is a code for */

#define BREAK_PRESSED 0x80              /* BDA_BREAK */
#define WARM_BOOT 0x1234                /* BDA_WARM_BOOT: the POST need not test the memory */

#define COMMAND_SELF_TEST 0xAA
#define COMMAND_WRITE_MODE 0x60
#define COMMAND_ENABLE 0xAE
#define MODE 0x65                       /* interrupts, translation to set 1, no mouse */
#define ENABLE_SCANNING 0xF4

/* An empty buffer; the controller and the keyboard in the state in which keys come by IRQ 1. */
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

/* INT 16h, 02h */
shift_flags:
        mov     al, BDA_SHIFT_FLAGS
        mov     [bp + CALLER_AX], al
        jmp     return

/* INT 16h, 12h: and which of the keys that there are twice, and which locks, are held down. */
extended_shift_flags:
        mov     al, BDA_SHIFT_FLAGS
        mov     ah, BDA_SHIFT_FLAGS_2
        and     ah, LOCKS | LEFT_CONTROL | LEFT_ALT
        mov     bl, BDA_KEYBOARD_MODE
        and     bl, RIGHT_CONTROL | RIGHT_ALT
        or      ah, bl
        mov     [bp + CALLER_AX], ax
        jmp     return

/* INT 09h: a byte from the PS/2 keyboard, in scan code set 1: a key, with bit 7 if it was let go, or
 * one of the prefixes E0h (keys that the first keyboards had only once, or not) and E1h (Pause). */

int09:  push    ds
        pushad
        cld
        push    BDA_SEGMENT
        pop     ds
        in      al, I8042_DATA
        mov     ah, 0x4F
        stc
        int     0x15                    // for programs that hook it
        jnc     key_done
        cmp     al, 0xE0
        je      prefix_e0
        cmp     al, 0xE1
        je      prefix_e1
        mov     dh, BDA_KEYBOARD_MODE   // DH: the byte's prefix, from here on
        test    dh, LAST_WAS_E1
        jnz     pause
        and     byte ptr BDA_KEYBOARD_MODE, ~LAST_WAS_E0 & 0xFF
        movzx   bx, al
        and     bl, 0x7F                // BX: the key
        cmp     bl, LAST_KEY
        ja      key_done
        call    modifier
        jc      key_done
        test    al, 0x80
        jnz     key_done
        jmp     key_pressed

/* E1 1D 45, and E1 9D C5 when it is let go: not Ctrl and NumLock. */
pause:  and     al, 0x7F
        cmp     al, 0x1D
        je      key_done
        and     byte ptr BDA_KEYBOARD_MODE, ~LAST_WAS_E1 & 0xFF
        jmp     key_done

prefix_e0:
        or      byte ptr BDA_KEYBOARD_MODE, LAST_WAS_E0
        jmp     key_done
prefix_e1:
        or      byte ptr BDA_KEYBOARD_MODE, LAST_WAS_E1
key_done:
        mov     al, PIC_EOI
        out     PIC_MASTER, al
key_over:
        popad
        pop     ds
        iret

/* Keep track of shift, control, alt and the locks: the key BL, with bit 7 of AL if it was let go.
 * Carry if that is all it does. */
modifier:
        mov     ch, SHIFT_LEFT
        cmp     bl, 0x2A
        je      1f
        mov     ch, SHIFT_RIGHT
        cmp     bl, 0x36
        je      1f
        mov     ch, LEFT_CONTROL
        cmp     bl, 0x1D
        je      3f
        mov     ch, LEFT_ALT
        cmp     bl, 0x38
        je      3f
        mov     ch, CAPS_LOCK
        cmp     bl, 0x3A
        je      6f
        mov     ch, NUM_LOCK
        cmp     bl, 0x45
        je      6f
        mov     ch, INSERT
        cmp     bl, 0x52
        je      7f
        cmp     bl, 0x46
        jne     8f
        mov     ch, SCROLL_LOCK
        test    byte ptr BDA_SHIFT_FLAGS, CONTROL
        jz      6f
8:      clc                             // an ordinary key, as is Break
        ret

        // Shift. With the prefix it isn't held: keyboards say it around grey keys.
1:      test    dh, LAST_WAS_E0
        jnz     9f
        or      BDA_SHIFT_FLAGS, ch
        test    al, 0x80
        jz      9f
        xor     BDA_SHIFT_FLAGS, ch
9:      stc
        ret

        // Control and alt, each of them twice: the flags of the left ones are in BDA_SHIFT_FLAGS_2,
        // those of the right ones two bits higher in BDA_KEYBOARD_MODE, those of both there, too, in
        // BDA_SHIFT_FLAGS.
3:      mov     si, 0x18                // BDA_SHIFT_FLAGS_2
        test    dh, LAST_WAS_E0
        jz      4f
        shl     ch, 2
        mov     si, 0x96                // BDA_KEYBOARD_MODE
4:      or      [si], ch
        test    al, 0x80
        jz      5f
        xor     [si], ch
5:      mov     ah, BDA_KEYBOARD_MODE
        and     ah, RIGHT_CONTROL | RIGHT_ALT
        mov     ch, BDA_SHIFT_FLAGS_2
        and     ch, LEFT_CONTROL | LEFT_ALT
        shl     ch, 2
        or      ah, ch
        and     byte ptr BDA_SHIFT_FLAGS, ~(CONTROL | ALT) & 0xFF
        or      BDA_SHIFT_FLAGS, ah
        test    ah, ALT
        jnz     9b
        xor     ax, ax                  // the character that was typed in digits while alt was down
        xchg    al, BDA_ALT_KEYPAD
        test    al, al
        jz      9b
        call    put_key
        stc
        ret

        // Locks change when they are pressed, not again when the keyboard repeats them.
6:      call    lock
        stc
        ret
7:      test    al, 0x80                // Ins changes only if it isn't a digit: in key_pressed
        jz      8b
        and     byte ptr BDA_SHIFT_FLAGS_2, ~INSERT & 0xFF
        stc
        ret

/* The lock CH is pressed, or let go with bit 7 of AL. */
lock:   test    al, 0x80
        jnz     1f
        test    BDA_SHIFT_FLAGS_2, ch
        jnz     2f
        or      BDA_SHIFT_FLAGS_2, ch
        xor     BDA_SHIFT_FLAGS, ch
2:      ret
1:      not     ch
        and     BDA_SHIFT_FLAGS_2, ch
        ret

/* The key BX is pressed, and isn't one of those. */
#define PLAIN 0
#define SHIFTED 1
#define WITH_CONTROL 2
#define WITH_ALT 3
key_pressed:
        mov     dl, BDA_SHIFT_FLAGS
        mov     cx, WITH_ALT            // CL: which of a key's codes
        test    dl, ALT
        jnz     1f
        mov     cl, WITH_CONTROL
        test    dl, CONTROL
        jnz     1f
        mov     cl, PLAIN
        test    dl, SHIFT_LEFT | SHIFT_RIGHT
        jz      1f
        mov     cl, SHIFTED

1:      cmp     bl, 0x46
        je      break
        cmp     bl, 0x53
        jne     2f
        mov     al, dl
        and     al, CONTROL | ALT
        cmp     al, CONTROL | ALT
        je      reboot
2:      test    dh, LAST_WAS_E0
        jnz     grey_key

        cmp     bl, 0x47
        jae     keypad
        mov     al, CAPS_LOCK
        mov     si, bx
        shl     si, 3
        mov     ah, cs:[si + keys]
        sub     ah, 'a'
        cmp     ah, 26
        jb      lockable
        jmp     look_up

keypad: cmp     bl, 0x53
        ja      look_up
        cmp     cl, WITH_ALT
        je      alt_digit
        mov     al, NUM_LOCK
lockable:                               // the lock AL makes shift its opposite
        test    dl, al
        jz      look_up
        cmp     cl, SHIFTED
        ja      look_up
        xor     cl, SHIFTED

look_up:
        mov     si, bx
        shl     si, 2
        add     si, cx
        add     si, si
        mov     ax, cs:[si + keys]
key_known:
        test    ax, ax
        jz      key_done
        cmp     ax, 0x5200              // Ins
        je      1f
        cmp     ax, 0x52E0
        jne     2f
1:      push    ax
        mov     al, 0
        mov     ch, INSERT
        call    lock
        pop     ax
2:      call    put_key
        jmp     key_done

/* Alt and a digit of the keypad: another digit of a character. */
alt_digit:
        mov     si, bx
        shl     si, 3
        mov     al, cs:[si + keys + 2 * SHIFTED]
        sub     al, '0'
        cmp     al, 9
        ja      look_up
        mov     ch, al
        mov     al, 10
        mul     byte ptr BDA_ALT_KEYPAD
        add     al, ch
        mov     BDA_ALT_KEYPAD, al
        jmp     key_done

/* A key with the prefix E0h. */
grey_key:
        cmp     bl, 0x37
        je      print_screen
        mov     si, offset grey_keys
1:      cmp     byte ptr cs:[si], 0
        je      key_done
        cmp     cs:[si], bl
        je      2f
        add     si, 7
        jmp     1b
2:      sub     cl, SHIFTED
        jae     3f
        mov     cl, 0
3:      add     si, cx
        add     si, cx
        mov     ax, cs:[si + 1]
        jmp     key_known

/* PrtSc: INT 05h, which may take its time; with Ctrl, a key. */
print_screen:
        mov     ax, 0x7200
        cmp     cl, WITH_CONTROL
        je      key_known
        ja      key_done
        mov     al, PIC_EOI
        out     PIC_MASTER, al
        int     0x05
        jmp     key_over

/* Ctrl-Break: what was typed is forgotten, and INT 1Bh called. */
break:  cmp     cl, WITH_CONTROL
        jne     key_done
        or      byte ptr BDA_BREAK, BREAK_PRESSED
        mov     ax, BDA_KEY_START
        mov     BDA_KEY_HEAD, ax
        mov     BDA_KEY_TAIL, ax
        int     0x1B
        xor     ax, ax
        call    put_key
        jmp     key_done

/* Ctrl-Alt-Del. */
reboot: mov     word ptr BDA_WARM_BOOT, WARM_BOOT
        mov     dx, RESET_CONTROL
        mov     al, RESET_VALUE
        out     dx, al
1:      hlt
        jmp     1b

        .section .tables, "a"
/* What INT 16h returns for a key: scan code and character, plain, with shift, control, alt. 0 is
 * nothing. */
.macro  letters first, capitals:vararg
        .set    number, \first
        .irp    c, \capitals
        .word   number << 8 | \c | 0x20, number << 8 | \c, number << 8 | (\c & 0x1F), number << 8
        .set    number, number + 1
        .endr
.endm
.macro  function_keys plain, shifted, control, alt, count
        .set    number, 0
        .rept   \count
        .word   (\plain + number) << 8, (\shifted + number) << 8
        .word   (\control + number) << 8, (\alt + number) << 8
        .set    number, number + 1
        .endr
.endm
keys:   .word   0, 0, 0, 0
        .word   0x011B, 0x011B, 0x011B, 0x0100          // 01h: Esc
        .word   0x0231, 0x0221, 0x0000, 0x7800          // 02h: 1
        .word   0x0332, 0x0340, 0x0300, 0x7900
        .word   0x0433, 0x0423, 0x0000, 0x7A00
        .word   0x0534, 0x0524, 0x0000, 0x7B00
        .word   0x0635, 0x0625, 0x0000, 0x7C00
        .word   0x0736, 0x075E, 0x071E, 0x7D00
        .word   0x0837, 0x0826, 0x0000, 0x7E00
        .word   0x0938, 0x092A, 0x0000, 0x7F00
        .word   0x0A39, 0x0A28, 0x0000, 0x8000
        .word   0x0B30, 0x0B29, 0x0000, 0x8100          // 0Bh: 0
        .word   0x0C2D, 0x0C5F, 0x0C1F, 0x8200          // 0Ch: -
        .word   0x0D3D, 0x0D2B, 0x0000, 0x8300          // 0Dh: =
        .word   0x0E08, 0x0E08, 0x0E7F, 0x0E00          // 0Eh: backspace
        .word   0x0F09, 0x0F00, 0x9400, 0xA500          // 0Fh: tab
        letters 0x10, 'Q', 'W', 'E', 'R', 'T', 'Y', 'U', 'I', 'O', 'P'
        .word   0x1A5B, 0x1A7B, 0x1A1B, 0x1A00          // 1Ah: [
        .word   0x1B5D, 0x1B7D, 0x1B1D, 0x1B00          // 1Bh: ]
        .word   0x1C0D, 0x1C0D, 0x1C0A, 0x1C00          // 1Ch: Enter
        .word   0, 0, 0, 0
        letters 0x1E, 'A', 'S', 'D', 'F', 'G', 'H', 'J', 'K', 'L'
        .word   0x273B, 0x273A, 0x0000, 0x2700          // 27h: ;
        .word   0x2827, 0x2822, 0x0000, 0x2800          // 28h: '
        .word   0x2960, 0x297E, 0x0000, 0x2900          // 29h: `
        .word   0, 0, 0, 0
        .word   0x2B5C, 0x2B7C, 0x2B1C, 0x2B00          // 2Bh: \ .
        letters 0x2C, 'Z', 'X', 'C', 'V', 'B', 'N', 'M'
        .word   0x332C, 0x333C, 0x0000, 0x3300          // 33h: ,
        .word   0x342E, 0x343E, 0x0000, 0x3400          // 34h: .
        .word   0x352F, 0x353F, 0x0000, 0x3500          // 35h: /
        .word   0, 0, 0, 0
        .word   0x372A, 0x372A, 0x9600, 0x3700          // 37h: the keypad's *
        .word   0, 0, 0, 0
        .word   0x3920, 0x3920, 0x3920, 0x3920          // 39h: space
        .word   0, 0, 0, 0
        function_keys 0x3B, 0x54, 0x5E, 0x68, 10
        .word   0, 0, 0, 0
        .word   0, 0, 0, 0
        .word   0x4700, 0x4737, 0x7700, 0x0000          // 47h: 7 and Home
        .word   0x4800, 0x4838, 0x8D00, 0x0000
        .word   0x4900, 0x4939, 0x8400, 0x0000
        .word   0x4A2D, 0x4A2D, 0x8E00, 0x4A00          // 4Ah: -
        .word   0x4B00, 0x4B34, 0x7300, 0x0000
        .word   0x4C00, 0x4C35, 0x8F00, 0x0000
        .word   0x4D00, 0x4D36, 0x7400, 0x0000
        .word   0x4E2B, 0x4E2B, 0x9000, 0x4E00          // 4Eh: +
        .word   0x4F00, 0x4F31, 0x7500, 0x0000
        .word   0x5000, 0x5032, 0x9100, 0x0000
        .word   0x5100, 0x5133, 0x7600, 0x0000
        .word   0x5200, 0x5230, 0x9200, 0x0000          // 52h: 0 and Ins
        .word   0x5300, 0x532E, 0x9300, 0x0000          // 53h: . and Del
        .word   0, 0, 0, 0
        .word   0, 0, 0, 0
        .word   0x565C, 0x567C, 0x0000, 0x0000          // 56h: the key left of Z, if there is one
        function_keys 0x85, 0x87, 0x89, 0x8B, 2

/* Those with the prefix: plain (or with shift), with control, with alt. */
grey_keys:
.macro  grey_key key, plain, control, alt
        .byte   \key
        .word   \plain, \control, \alt
.endm
        grey_key 0x1C, 0xE00D, 0xE00A, 0xA600           // the keypad's Enter
        grey_key 0x35, 0xE02F, 0x9500, 0xA400           // and /
        grey_key 0x47, 0x47E0, 0x77E0, 0x9700
        grey_key 0x48, 0x48E0, 0x8DE0, 0x9800
        grey_key 0x49, 0x49E0, 0x84E0, 0x9900
        grey_key 0x4B, 0x4BE0, 0x73E0, 0x9B00
        grey_key 0x4D, 0x4DE0, 0x74E0, 0x9D00
        grey_key 0x4F, 0x4FE0, 0x75E0, 0x9F00
        grey_key 0x50, 0x50E0, 0x91E0, 0xA000
        grey_key 0x51, 0x51E0, 0x76E0, 0xA100
        grey_key 0x52, 0x52E0, 0x92E0, 0xA200
        grey_key 0x53, 0x53E0, 0x93E0, 0xA300
        .byte   0
        .text
