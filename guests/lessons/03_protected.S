/*
 * Lesson 3: from real mode to 32-bit protected mode.
 *
 * In real mode a segment register times 16 is where the segment begins, and it ends after 64 KiB.
 * In protected mode it holds a selector, which names a descriptor in a table of ours, the GDT; the
 * descriptor says where the segment begins, how long it is and what may be done with it. This code
 * makes such a table, switches, and uses two segments: one of the whole 4 GiB, and one that begins
 * somewhere else.
 *
 * Read: Intel SDM volume 3, 3.4 (segments; 3.4.5 has a descriptor's fields) and 10.9.1 (the switch
 * to protected mode). There is no BIOS here: the text goes to the serial port itself (16550:
 * PC16550D datasheet, 8.0 "Registers").
 *
 *     pyvmm run --flat build/lessons/03_protected.bin
 */
        .intel_syntax noprefix
        .globl  _start

#define COM1 0x3F8
#define LINE_STATUS (COM1 + 5)
#define THR_EMPTY 0x20                  // the next byte may be written

#define CODE 0x08                       // selectors: a descriptor's offset in the table
#define DATA 0x10
#define VIDEO 0x18

#define BIG_ADDRESS 0x200000            // 2 MiB: no real-mode segment gets there

        .code16
_start: cli                             // the vectors for interrupts are real mode's
        xor     ax, ax
        mov     ds, ax
        lgdt    [gdt_pointer]
        mov     eax, cr0
        or      eax, 1                  // PE, protection enable
        mov     cr0, eax
        ljmp    CODE, offset protected  // loads CS, and with it the size of code: 32 bits

        .code32
protected:
        mov     ax, DATA                // what the segment registers held means nothing any more
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esp, 0x7C00
        mov     esi, offset hello
        call    print

        mov     dword ptr [BIG_ADDRESS], 0x600D600D
        cmp     dword ptr [BIG_ADDRESS], 0x600D600D
        jne     power_off
        mov     esi, offset big
        call    print

        mov     ax, VIDEO               // it begins at 0xB8000, where a PC's screen is:
        mov     fs, ax                  // offset 0 in it is address 0xB8000
        mov     byte ptr fs:[0], 'X'
        cmp     byte ptr [0xB8000], 'X'
        jne     power_off
        mov     esi, offset based
        call    print

power_off:
        mov     dx, 0x604
        mov     ax, 5 << 10 | 1 << 13
        out     dx, ax
stop:   hlt
        jmp     stop

/* Print the text at ESI on COM1. */
print:  mov     dx, LINE_STATUS
1:      in      al, dx
        test    al, THR_EMPTY
        jz      1b
        lodsb
        test    al, al
        jz      2f
        mov     dx, COM1
        out     dx, al
        jmp     print
2:      ret

/*
 * A descriptor, from its lowest byte on: limit 15:0, base 15:0, base 23:16, then access: present
 * (0x80), code or data (0x10), code (0x08), writable or readable (0x02), accessed (0x01); then
 * flags: limit in pages of 4 KiB (0x80), 32 bits (0x40), and limit 19:16; last, base 31:24.
 */
        .balign 8
gdt:    .quad   0                                               // no selector 0
        .word   0xFFFF, 0
        .byte   0, 0x9B, 0xCF, 0                                // CODE: 4 GiB from 0
        .word   0xFFFF, 0
        .byte   0, 0x93, 0xCF, 0                                // DATA: likewise
        .word   0x7FFF, 0x8000
        .byte   0x0B, 0x93, 0x40, 0                             // VIDEO: 32 KiB from 0xB8000
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

hello:  .asciz  "hello from protected mode\n"
big:    .asciz  "2 MiB is within reach\n"
based:  .asciz  "a segment can begin anywhere\n"
