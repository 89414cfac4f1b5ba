/*
 * INT 10h: a colour text screen of 80 by 25 characters, shown on whatever terminal is at COM1.
 *
 * The screen is kept at B800:0000, as an adapter would, because there are calls that read it. What
 * calls write there is sent to the terminal at once, as UTF-8 with the control sequences of ECMA-48
 * where it has to move or to change colour: nothing but the text itself for a program that prints
 * line by line. What programs write to B800:0000 themselves isn't seen there.
 *
 * With an adapter, whose memory that is, its cursor goes where the screen's is.
 *
 * The terminal's cursor is moved relative to where it is, and down by line feeds. So the screen may
 * begin at any of the terminal's lines, and lines that it scrolls away aren't lost.
 */
#include "bios.h"

        .globl  int10, set_up_video, show_cursor

#define NOWHERE 0xFF                    /* the terminal's column when nobody knows it */

        .data
terminal_column:
        .byte   0
terminal_row:
        .byte   0
terminal_attribute:
        .byte   0
has_crtc:
        .byte   0
        .text

set_up_video:
        mov     word ptr cs:[terminal_column], 0
        mov     byte ptr cs:[terminal_attribute], BLANK >> 8
        mov     dx, CRTC_INDEX
        mov     ax, 0x5A00 | CRTC_CURSOR_LOW
        out     dx, ax
        inc     dx
        in      al, dx
        cmp     al, 0x5A                // it keeps what is written to it
        sete    cs:[has_crtc]
        call    set_text_mode
        jmp     blank_screen

/* The data area; the cursor is at the top. */
set_text_mode:
        mov     byte ptr BDA_VIDEO_MODE, 3
        mov     word ptr BDA_COLUMNS, COLUMNS
        mov     word ptr BDA_PAGE_SIZE, 0x1000
        mov     word ptr BDA_PAGE_START, 0
        mov     word ptr BDA_CURSOR_SHAPE, 0x0607
        mov     byte ptr BDA_PAGE, 0
        mov     word ptr BDA_CRTC, 0x3D4
        mov     byte ptr BDA_CRT_MODE, 0x29
        mov     byte ptr BDA_CRT_PALETTE, 0x30
        mov     byte ptr BDA_ROWS, ROWS - 1
        mov     word ptr BDA_CHARACTER_HEIGHT, 16
        push    es
        push    ds
        pop     es
        mov     di, 0x50                // the cursors of all pages
        mov     cx, 8
        xor     ax, ax
        rep     stosw
        pop     es
        jmp     move_adapter

blank_screen:
        push    es
        push    SCREEN_SEGMENT
        pop     es
        xor     di, di
        mov     eax, BLANK << 16 | BLANK
        mov     cx, COLUMNS * ROWS / 2
        rep     stosd
        pop     es
        ret

        .section .rodata
video_services:
        .word   set_mode, set_cursor_shape, set_cursor, get_cursor
        .word   return, select_page, scroll_up, scroll_down             // 04h: no light pen
        .word   read_cell, write_cells, write_characters, return        // 0Bh: palette
        .word   return, return, teletype, get_mode                      // 0Ch, 0Dh: pixels
        .word   return, fonts, return, write_string                     // 10h, 12h
#define VIDEO_SERVICES 0x14
        .text

int10:  enter_service
        dispatch video_services, VIDEO_SERVICES, return

/* 00h: mode AL; 80h there keeps what is on the screen. There is text of 80 columns only. */
set_mode:
        call    set_text_mode
        test    byte ptr [bp + CALLER_AX], 0x80
        jnz     return
        call    blank_screen
        mov     al, BLANK >> 8
        call    send_attribute
        mov     si, offset clear_screen
        call    send_string
        mov     word ptr cs:[terminal_column], 0
        jmp     return

/* 01h: an adapter's is a line, or hidden by 20h in CH. */
set_cursor_shape:
        mov     BDA_CURSOR_SHAPE, cx
        cmp     byte ptr cs:[has_crtc], 0
        je      return
        mov     ah, ch
        and     ah, 0x20
        or      ah, 0x0D
        mov     al, CRTC_CURSOR_START
        mov     dx, CRTC_INDEX
        out     dx, ax
        jmp     return

/* 02h: the cursor to row DH, column DL. The terminal's follows when it is needed there. */
set_cursor:
        cmp     dh, ROWS
        jae     return
        cmp     dl, COLUMNS
        jae     return
        mov     BDA_CURSOR, dx
        call    move_adapter
        jmp     return

/* 03h */
get_cursor:
        mov     ax, BDA_CURSOR
        mov     [bp + CALLER_DX], ax
        mov     ax, BDA_CURSOR_SHAPE
        mov     [bp + CALLER_CX], ax
        mov     word ptr [bp + CALLER_AX], 0
        jmp     return

/* 05h: there is one page, 0. */
select_page:
        jmp     return

/* 0Fh */
get_mode:
        mov     ah, COLUMNS
        mov     al, BDA_VIDEO_MODE
        mov     [bp + CALLER_AX], ax
        mov     byte ptr [bp + CALLER_BX + 1], 0
        jmp     return

/* 11h: with AL 30h, the font's height and the last row; ES:BP would point to a font. */
fonts:  cmp     al, 0x30
        jne     return
        mov     word ptr [bp + CALLER_CX], 16
        mov     byte ptr [bp + CALLER_DX], ROWS - 1
        jmp     return

/* 06h, 07h: the window from row CH, column CL to row DH, column DL by AL lines; all of it if AL is
 * 0. New lines get the attribute BH. */
scroll_up:
        call    get_window
        jc      return
        cmp     cx, 0
        jne     1f
        cmp     dx, (ROWS - 1) << 8 | COLUMNS - 1
        je      scroll_screen
1:      push    cx
        push    dx
2:      call    scrolled_from           // SI: the row that comes to row CH
        call    move_row
        inc     ch
        cmp     ch, dh
        jbe     2b
        jmp     draw_window

scroll_down:
        mov     bh, [bp + CALLER_BX + 1]
        call    get_window
        jc      return
        push    cx
        push    dx
        xchg    ch, dh                  // from the last row up
        neg     al
1:      call    scrolled_from
        call    move_row
        dec     ch
        cmp     ch, dh
        jge     1b

draw_window:
        pop     dx
        pop     cx
        mov     bl, dl
        sub     bl, cl
        inc     bl
1:      push    dx
        push    cx
        mov     dx, cx
        movzx   cx, bl
        push    bx
        call    draw
        pop     bx
        pop     cx
        pop     dx
        inc     ch
        cmp     ch, dh
        jbe     1b
        jmp     return

/* A whole screen goes up by line feeds at its end, and stays in the terminal's memory. */
scroll_screen:
        push    dx
        push    cx
        push    ax
        mov     dx, (ROWS - 1) << 8
        call    move_terminal
        mov     al, bh
        call    send_attribute
        pop     ax
        push    ax
        cmp     al, ROWS
        je      3f
        movzx   cx, al
1:      call    send_line_feed
        loop    1b
        jmp     4f
3:      mov     si, offset clear_screen
        call    send_string
        mov     word ptr cs:[terminal_column], 0
4:      pop     ax
        pop     cx
        pop     dx
2:      call    scrolled_from
        call    move_row
        inc     ch
        cmp     ch, dh
        jbe     2b
        jmp     return

/* The window, cut to the screen, in CX and DX; the number of lines, none or all of them being its
 * height, in AL; the attribute in BH. Carry if there is no such window. */
get_window:
        mov     bh, [bp + CALLER_BX + 1]
        cmp     dh, ROWS
        jb      1f
        mov     dh, ROWS - 1
1:      cmp     dl, COLUMNS
        jb      2f
        mov     dl, COLUMNS - 1
2:      cmp     dh, ch
        jb      4f
        cmp     dl, cl
        jb      4f
        mov     ah, dh
        sub     ah, ch
        inc     ah                      // the height
        dec     al
        cmp     al, ah
        jb      3f
        mov     al, ah
        dec     al
3:      inc     al
        clc
        ret
4:      stc
        ret

/* SI is the row that is AL rows below row CH, or -1 if it is outside of the window, whose last row
 * is DH and whose height is AH. For AL below zero, DH is the first row. */
scrolled_from:
        push    ax
        movsx   si, al
        movzx   ax, ch
        add     si, ax
        movzx   ax, dh
        cmp     byte ptr [bp + CALLER_AH], 7
        je      1f
        cmp     si, ax
        jg      2f
        pop     ax
        ret
1:      cmp     si, ax
        jl      2f
        pop     ax
        ret
2:      mov     si, -1
        pop     ax
        ret

/* Row SI's columns CL to DL to row CH; blanks with the attribute BH if SI is -1. */
move_row:
        pusha
        push    es
        push    SCREEN_SEGMENT
        pop     es
        movzx   ax, ch
        imul    di, ax, COLUMNS
        movzx   ax, cl
        add     di, ax
        add     di, di
        movzx   dx, dl
        sub     dx, ax
        inc     dx
        cmp     si, -1
        je      1f
        imul    si, si, COLUMNS
        add     si, ax
        add     si, si
        mov     cx, dx
        rep     movs    word ptr es:[di], word ptr es:[si]
        jmp     2f
1:      mov     ah, bh
        mov     al, ' '
        mov     cx, dx
        rep     stosw
2:      pop     es
        popa
        ret

/* 08h */
read_cell:
        mov     dx, BDA_CURSOR
        call    cell
        mov     ax, es:[di]
        mov     [bp + CALLER_AX], ax
        jmp     return

/* 09h, 0Ah: the character AL (with the attribute BL) CX times from the cursor on, which stays. */
write_cells:
        mov     ah, [bp + CALLER_BX]
        mov     bl, 1
        jmp     1f
write_characters:
        mov     bl, 0
1:      mov     dx, BDA_CURSOR
        call    cell
        mov     si, COLUMNS * ROWS * 2
        sub     si, di
        shr     si, 1                   // no more than there are cells
        cmp     cx, si
        jbe     2f
        mov     cx, si
2:      test    cx, cx
        jz      return
        push    cx
3:      mov     es:[di], al
        test    bl, bl
        jz      4f
        mov     es:[di + 1], ah
4:      add     di, 2
        loop    3b
        pop     si
5:      mov     cx, COLUMNS             // draw them, line by line
        sub     cl, dl
        cmp     cx, si
        jbe     6f
        mov     cx, si
6:      sub     si, cx
        call    draw
        inc     dh
        mov     dl, 0
        test    si, si
        jnz     5b
        jmp     return

/* 0Eh: AL as on a teletype. */
teletype:
        call    type
        jmp     return

/* 13h: the string at ES:BP of CX characters, from row DH and column DL on. Of AL, bit 0 leaves the
 * cursor at its end, and with bit 1 each character is followed by its attribute; otherwise, that is
 * BL. */
write_string:
        push    word ptr BDA_CURSOR
        cmp     dh, ROWS
        jae     3f
        cmp     dl, COLUMNS
        jae     3f
        mov     BDA_CURSOR, dx
        mov     ah, [bp + CALLER_BX]
        mov     si, [bp + CALLER_BP]
        mov     bl, al
        jcxz    3f
1:      mov     es, [bp + CALLER_ES]
        lods    byte ptr es:[si]
        test    bl, 2
        jz      2f
        mov     ah, es:[si]
        inc     si
2:      call    type_coloured
        loop    1b
3:      pop     ax
        test    byte ptr [bp + CALLER_AX], 1
        jnz     return
        mov     BDA_CURSOR, ax
        call    move_adapter
        jmp     return

/* AL with the attribute AH as on a teletype; with the cell's attribute. All registers survive. */
type_coloured:
        pusha
        cmp     al, '\r'
        je      type_here
        cmp     al, '\n'
        je      type_here
        cmp     al, '\b'
        je      type_here
        cmp     al, '\a'
        je      type_here
        mov     dx, BDA_CURSOR
        push    ax
        call    cell
        pop     ax
        mov     es:[di + 1], ah
        jmp     type_here
type:   pusha
type_here:
        mov     dx, BDA_CURSOR
        cmp     al, ' '
        jae     1f
        cmp     al, '\r'
        je      carriage_return
        cmp     al, '\n'
        je      line_feed
        cmp     al, '\b'
        je      backspace
        cmp     al, '\t'
        je      tabulate
        cmp     al, '\a'
        je      bell
1:      call    cell
        mov     es:[di], al
        mov     cx, 1
        call    draw
        inc     dl
        cmp     dl, COLUMNS
        jb      typed
        mov     dl, 0
        call    next_line
        jmp     typed
carriage_return:
        mov     dl, 0
        call    move_terminal
        jmp     typed
line_feed:
        call    next_line
        call    move_terminal_row
        jmp     typed
backspace:
        test    dl, dl
        jz      typed
        dec     dl
        call    move_terminal
        jmp     typed
bell:   call    send
        jmp     typed
tabulate:
        mov     al, ' '
        call    type
        test    byte ptr BDA_CURSOR, 7
        jnz     tabulate
        popa
        ret
typed:  mov     BDA_CURSOR, dx
        call    move_adapter
        popa
        ret

/* The adapter's cursor, if there is one, to the screen's. Everything survives. */
move_adapter:
        cmp     byte ptr cs:[has_crtc], 0
        je      1f
        pusha
        mov     al, COLUMNS
        mul     byte ptr BDA_CURSOR + 1
        movzx   cx, byte ptr BDA_CURSOR
        add     cx, ax
        mov     dx, CRTC_INDEX
        mov     ah, ch
        mov     al, CRTC_CURSOR_HIGH
        out     dx, ax
        mov     ah, cl
        mov     al, CRTC_CURSOR_LOW
        out     dx, ax
        popa
1:      ret

/* The row below DH; at the end of the screen that goes up by a line. */
next_line:
        inc     dh
        cmp     dh, ROWS
        jb      1f
        push    ax
        push    cx
        push    si
        push    di
        push    dx
        mov     dh, ROWS - 1
        call    move_terminal_row
        mov     al, BLANK >> 8
        call    send_attribute
        call    send_line_feed
        push    ds
        push    SCREEN_SEGMENT
        pop     es
        push    SCREEN_SEGMENT
        pop     ds
        mov     si, COLUMNS * 2
        xor     di, di
        mov     cx, COLUMNS * (ROWS - 1) / 2
        rep     movsd
        mov     ax, BLANK
        mov     cx, COLUMNS
        rep     stosw
        pop     ds
        pop     dx
        mov     dh, ROWS - 1
        pop     di
        pop     si
        pop     cx
        pop     ax
1:      ret

/* ES:DI is the cell at row DH, column DL; AX survives. */
cell:   push    ax
        push    SCREEN_SEGMENT
        pop     es
        movzx   ax, dh
        imul    di, ax, COLUMNS
        movzx   ax, dl
        add     di, ax
        add     di, di
        pop     ax
        ret

/* Show CX cells from row DH, column DL on; no more than the row has. Blanks at its end are cleared
 * rather than written. */
draw:   pusha
        push    es
        call    cell
        mov     ax, cx
        add     al, dl
        cmp     al, COLUMNS
        jne     2f
        mov     bx, cx
        add     bx, bx
1:      cmp     word ptr es:[di + bx - 2], BLANK
        jne     2f
        sub     bx, 2
        loop    1b
2:      push    ax
        jcxz    4f
        call    move_terminal
3:      mov     al, es:[di + 1]
        call    send_attribute
        mov     al, es:[di]
        call    send_glyph
        inc     dl
        add     di, 2
        loop    3b
        mov     cs:[terminal_column], dl
        cmp     dl, COLUMNS
        jb      4f
        mov     byte ptr cs:[terminal_column], NOWHERE
4:      pop     ax
        cmp     al, COLUMNS
        jne     5f
        cmp     dl, al
        je      5f
        call    move_terminal
        mov     al, BLANK >> 8
        call    send_attribute
        mov     si, offset clear_line
        call    send_string
5:      pop     es
        popa
        ret

/* Bring the terminal's cursor to where the screen's is. */
show_cursor:
        mov     dx, BDA_CURSOR

/* Bring it to row DH, column DL. Everything survives. */
move_terminal:
        pusha
        call    move_terminal_row
        mov     al, cs:[terminal_column]
        cmp     al, dl
        je      2f
        mov     cs:[terminal_column], dl
        test    dl, dl
        jz      1f
        dec     al
        cmp     al, dl
        mov     al, '\b'
        je      3f
        mov     al, dl
        inc     al
        mov     bl, 'G'
        call    send_sequence
        jmp     2f
1:      mov     al, '\r'
3:      call    send
2:      popa
        ret

/* Bring it to row DH; its column may become another. */
move_terminal_row:
        pusha
        mov     al, dh
        xchg    al, cs:[terminal_row]
        sub     al, dh
        je      3f
        jb      1f
        mov     bl, 'A'
        call    send_sequence
        jmp     3f
1:      neg     al
        movzx   cx, al
2:      call    send_line_feed
        loop    2b
3:      popa
        ret

/* AL is lost. */
send_line_feed:
        mov     al, '\n'
        call    send
        cmp     byte ptr cs:[terminal_column], 0
        je      1f
        mov     byte ptr cs:[terminal_column], NOWHERE  // it may have brought a carriage return
1:      ret

/* Write the next characters in the colours of attribute AL. */
send_attribute:
        cmp     al, cs:[terminal_attribute]
        je      3f
        pusha
        mov     cs:[terminal_attribute], al
        mov     dl, al
        mov     si, offset plain
        call    send_string             // ESC [ 0
        cmp     dl, BLANK >> 8
        je      2f
        test    dl, 0x08
        jz      1f
        mov     si, offset bright
        call    send_string
1:      mov     ah, '3'
        mov     al, dl
        call    send_colour
        mov     ah, '4'
        mov     al, dl
        shr     al, 4
        call    send_colour
2:      mov     al, 'm'
        call    send
        popa
3:      ret

/* Parameter `;AH` and the colour AL, whose blue and red are the other way round here. */
send_colour:
        movzx   bx, al
        and     bx, 7
        mov     al, ';'
        call    send
        mov     al, ah
        call    send
        mov     al, cs:[bx + colours]
        jmp     send

/* ESC [ AL BL */
send_sequence:
        push    ax
        mov     si, offset introducer
        call    send_string
        pop     ax
        aam
        add     ax, 0x3030
        cmp     ah, '0'
        je      1f
        xchg    al, ah
        call    send
        mov     al, ah
1:      call    send
        mov     al, bl
        jmp     send

        .section .rodata
introducer:
        .asciz  "\033["
plain:  .asciz  "\033[0"
bright: .asciz  ";1"
clear_screen:
        .asciz  "\033[2J\033[H"
clear_line:
        .asciz  "\033[K"
colours:
        .ascii  "04261537"
        .text

send_string:
        lods    byte ptr cs:[si]
        test    al, al
        jz      1f
        call    send
        jmp     send_string
1:      ret

/* The character AL of code page 437, as UTF-8. */
send_glyph:
        pusha
        movzx   bx, al
        add     bx, bx
        cmp     al, 0x80
        jae     1f
        cmp     al, 0x20
        jae     4f
        mov     ax, cs:[bx + low_glyphs]
        jmp     2f
1:      mov     ax, cs:[bx + high_glyphs - 0x100]
2:      mov     bx, ax
        cmp     ax, 0x80
        jb      4f
        cmp     ax, 0x800
        jae     3f
        shr     ax, 6                   // 110x xxxx
        or      al, 0xC0
        call    send
        jmp     5f
3:      shr     ax, 12                  // 1110 xxxx
        or      al, 0xE0
        call    send
        mov     ax, bx
        shr     ax, 6
        and     al, 0x3F
        or      al, 0x80
        call    send
5:      mov     al, bl                  // 10xx xxxx
        and     al, 0x3F
        or      al, 0x80
4:      cmp     al, 0x7F
        jne     6f
        mov     al, ' '
6:      call    send
        popa
        ret

/* AL to COM1, once it takes it. */
send:   push    dx
        push    ax
        mov     dx, BDA_COM_PORTS
        test    dx, dx
        jz      2f
        add     dx, UART_LSR
1:      in      al, dx
        test    al, LSR_THR_EMPTY
        jz      1b
        sub     dx, UART_LSR
        pop     ax
        push    ax
        out     dx, al
2:      pop     ax
        pop     dx
        ret

        .section .tables, "a"
low_glyphs:
        .word   0x0020, 0x263A, 0x263B, 0x2665, 0x2666, 0x2663, 0x2660, 0x2022
        .word   0x25D8, 0x25CB, 0x25D9, 0x2642, 0x2640, 0x266A, 0x266B, 0x263C
        .word   0x25BA, 0x25C4, 0x2195, 0x203C, 0x00B6, 0x00A7, 0x25AC, 0x21A8
        .word   0x2191, 0x2193, 0x2192, 0x2190, 0x221F, 0x2194, 0x25B2, 0x25BC
high_glyphs:
        .word   0x00C7, 0x00FC, 0x00E9, 0x00E2, 0x00E4, 0x00E0, 0x00E5, 0x00E7
        .word   0x00EA, 0x00EB, 0x00E8, 0x00EF, 0x00EE, 0x00EC, 0x00C4, 0x00C5
        .word   0x00C9, 0x00E6, 0x00C6, 0x00F4, 0x00F6, 0x00F2, 0x00FB, 0x00F9
        .word   0x00FF, 0x00D6, 0x00DC, 0x00A2, 0x00A3, 0x00A5, 0x20A7, 0x0192
        .word   0x00E1, 0x00ED, 0x00F3, 0x00FA, 0x00F1, 0x00D1, 0x00AA, 0x00BA
        .word   0x00BF, 0x2310, 0x00AC, 0x00BD, 0x00BC, 0x00A1, 0x00AB, 0x00BB
        .word   0x2591, 0x2592, 0x2593, 0x2502, 0x2524, 0x2561, 0x2562, 0x2556
        .word   0x2555, 0x2563, 0x2551, 0x2557, 0x255D, 0x255C, 0x255B, 0x2510
        .word   0x2514, 0x2534, 0x252C, 0x251C, 0x2500, 0x253C, 0x255E, 0x255F
        .word   0x255A, 0x2554, 0x2569, 0x2566, 0x2560, 0x2550, 0x256C, 0x2567
        .word   0x2568, 0x2564, 0x2565, 0x2559, 0x2558, 0x2552, 0x2553, 0x256B
        .word   0x256A, 0x2518, 0x250C, 0x2588, 0x2584, 0x258C, 0x2590, 0x2580
        .word   0x03B1, 0x00DF, 0x0393, 0x03C0, 0x03A3, 0x03C3, 0x00B5, 0x03C4
        .word   0x03A6, 0x0398, 0x03A9, 0x03B4, 0x221E, 0x03C6, 0x03B5, 0x2229
        .word   0x2261, 0x00B1, 0x2265, 0x2264, 0x2320, 0x2321, 0x00F7, 0x2248
        .word   0x00B0, 0x2219, 0x00B7, 0x221A, 0x207F, 0x00B2, 0x25A0, 0x00A0
