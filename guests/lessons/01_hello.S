/*
 * Lesson 1: a boot sector.
 *
 * The BIOS reads the first sector of the disk, 512 bytes, to 0000:7C00. If it ends with 55 AA, the
 * BIOS jumps there, in real mode, with the drive's number in DL. Nothing else is promised: not CS
 * (some jump to 07C0:0000), no stack, no data segments.
 *
 * Read: Ralf Brown's Interrupt List, INT 19 (bootstrap) and INT 10/AH=0Eh (teletype output); Intel
 * SDM volume 3, chapter 21, "8086 emulation", for how real mode makes addresses.
 *
 *     pyvmm run -d build/lessons/01_hello.img
 */
        .intel_syntax noprefix
        .code16
        .globl  _start

_start: ljmp    0, offset begin         // CS is 0 from here on
begin:  xor     ax, ax
        mov     ds, ax                  // LODSB reads from DS:SI
        mov     ss, ax
        mov     sp, 0x7C00              // the stack grows down from below us

        cld                             // LODSB counts up
        mov     si, offset hello
next:   lodsb                           // the next character, into AL
        test    al, al
        jz      done
        mov     ah, 0x0E                // INT 10/AH=0Eh: write AL, move on
        mov     bx, 0x0007              // page 0, grey
        int     0x10
        jmp     next

/*
 * Power off as ACPI has it (ACPI specification 4.8.3.2, PM1 control): sleep type 5 and the bit
 * SLP_EN. A real system would look up the port and the type in the tables FADT and DSDT; on PyVMM
 * they are these.
 */
done:   mov     dx, 0x604
        mov     ax, 5 << 10 | 1 << 13
        out     dx, ax
stop:   hlt
        jmp     stop

hello:  .asciz  "hello from the boot sector\r\n"

        .org    510                     // fill up; an error if we are too long already
        .byte   0x55, 0xAA
