/*
 * Lesson 2: what the BIOS knows. A boot sector that reads the rest of itself from the disk, asks
 * where there is RAM, and waits for the clock.
 *
 * Read, in Ralf Brown's Interrupt List: INT 13/AH=42h (extended read), INT 15/AX=E820h (system
 * memory map), INT 1A/AH=00h (ticks since midnight, 18.2 a second); INT 10/AH=0Eh as before.
 *
 *     pyvmm run -d build/lessons/02_bios.img
 */
        .intel_syntax noprefix
        .code16
        .globl  _start

#define SECTORS_MORE 1
#define RANGE 0x500             // where E820h puts a range: 24 bytes of memory nobody uses

_start: ljmp    0, offset begin
begin:  xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7C00
        cld

        // The BIOS has read only our first sector, and left the drive's number in DL.
        mov     si, offset packet
        mov     ah, 0x42                // read what the packet at DS:SI says
        int     0x13
        mov     si, offset no_disk
        jc      failed                  // carry is how all these calls say no
        jmp     second_sector

failed: call    print
power_off:
        mov     dx, 0x604
        mov     ax, 5 << 10 | 1 << 13
        out     dx, ax
stop:   hlt
        jmp     stop

/* Print the text at SI. */
print:  lodsb
        test    al, al
        jz      1f
        mov     ah, 0x0E
        mov     bx, 0x0007
        int     0x10
        jmp     print
1:      ret

/* Print EAX, eight hexadecimal digits. */
print_number:
        mov     cx, 8
1:      rol     eax, 4                  // the highest digit first
        push    eax
        and     al, 0x0F
        add     al, '0'
        cmp     al, '9'
        jbe     2f
        add     al, 'A' - '9' - 1
2:      mov     ah, 0x0E
        mov     bx, 0x0007
        int     0x10
        pop     eax
        loop    1b
        ret

packet: .byte   16, 0                   // its own length
        .word   SECTORS_MORE
        .word   second_sector, 0        // to this offset and segment
        .quad   1                       // from this sector; ours was 0

no_disk:
        .asciz  "the disk can't be read\r\n"

        .org    510
        .byte   0x55, 0xAA
        // From here on it is the second sector, and in memory only once we have read it.

second_sector:
        mov     si, offset was_read
        call    print

        // Memory: each call gives one range, and in EBX what to ask with for the next one.
        xor     ebx, ebx
next_range:
        mov     eax, 0xE820
        mov     edx, 0x534D4150         // "SMAP"
        mov     ecx, 20                 // how long a range is
        mov     di, RANGE
        int     0x15
        jc      no_more                 // some BIOSes say the end so …
        push    ebx
        mov     eax, [RANGE + 4]        // where it begins, 64 bits
        call    print_number
        mov     eax, [RANGE]
        call    print_number
        mov     si, offset long_
        call    print
        mov     eax, [RANGE + 8]        // how long it is; the lower half
        call    print_number
        mov     si, offset ram
        cmp     dword ptr [RANGE + 16], 1
        je      1f
        mov     si, offset no_ram
1:      call    print
        pop     ebx
        test    ebx, ebx                // … and some so
        jnz     next_range
no_more:

        // Time: IRQ 0's handler, which is the BIOS's, counts up. Wait for three ticks.
        mov     bp, 3
next_tick:
        call    ticks
        mov     di, dx
1:      hlt                             // until the next interrupt, whatever it is
        call    ticks
        cmp     dx, di
        je      1b
        mov     si, offset tick
        call    print
        dec     bp
        jnz     next_tick
        jmp     power_off

/* Ticks since midnight, in CX:DX. */
ticks:  sti
        mov     ah, 0
        int     0x1A
        ret

was_read:
        .asciz  "the second sector is here\r\n"
long_:  .asciz  ", long "
ram:    .asciz  ": RAM\r\n"
no_ram: .asciz  ": not for us\r\n"
tick:   .asciz  "tick\r\n"

        .org    512 * (1 + SECTORS_MORE)
