/*
 * Lesson 4: from real mode to 64-bit long mode.
 *
 * Long mode needs paging, and paging needs tables, so they are made first: here three pages that
 * map the first GiB to itself in pages of 2 MiB. Then, in this order: CR4.PAE, CR3, EFER.LME,
 * CR0.PG. The CPU is in long mode from then on, but in its 32-bit corner ("compatibility mode"),
 * until a far jump loads CS with a descriptor that has the bit L.
 *
 * Read: Intel SDM volume 3, 10.8.5 (initializing IA-32e mode), 4.5 (4-level paging: the entries of
 * the tables), 3.4.5 (the bit L of a descriptor), 2.2.1 (the register EFER).
 *
 *     pyvmm run --flat build/lessons/04_long.bin
 */
        .intel_syntax noprefix
        .globl  _start

#define COM1 0x3F8
#define LINE_STATUS (COM1 + 5)
#define THR_EMPTY 0x20

#define CODE_32 0x08
#define CODE_64 0x10
#define DATA 0x18

#define PML4 0x1000                     // a page for each level
#define PDPT 0x2000
#define PAGE_DIRECTORY 0x3000
#define PRESENT_WRITABLE 0x3
#define LARGE_PAGE 0x80                 // 2 MiB, and no further table

#define EFER 0xC0000080
#define LME (1 << 8)

        .code16
_start: cli
        xor     ax, ax
        mov     ds, ax
        lgdt    [gdt_pointer]
        mov     eax, cr0
        or      eax, 1                  // PE
        mov     cr0, eax
        ljmp    CODE_32, offset protected

        .code32
protected:
        mov     ax, DATA
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esp, 0x7C00
        mov     esi, offset from_32
        call    print_32

        mov     eax, 0x80000001         // is there a long mode? CPUID says (bit 29 of EDX)
        cpuid
        bt      edx, 29
        jnc     power_off_32

        xor     eax, eax                // empty tables: nothing is present in them
        mov     edi, PML4
        mov     ecx, 3 * 4096 / 4
        rep stosd
        mov     dword ptr [PML4], PDPT | PRESENT_WRITABLE
        mov     dword ptr [PDPT], PAGE_DIRECTORY | PRESENT_WRITABLE
        mov     eax, LARGE_PAGE | PRESENT_WRITABLE
        mov     edi, PAGE_DIRECTORY
1:      mov     [edi], eax              // entry n: the page at n times 2 MiB
        add     edi, 8
        add     eax, 2 << 20
        cmp     edi, PAGE_DIRECTORY + 4096
        jne     1b

        mov     eax, cr4
        or      eax, 1 << 5             // PAE: entries of 64 bits
        mov     cr4, eax
        mov     eax, PML4
        mov     cr3, eax
        mov     ecx, EFER
        rdmsr
        or      eax, LME
        wrmsr
        mov     eax, cr0
        or      eax, 1 << 31            // PG: paging, and with LME long mode
        mov     cr0, eax
        ljmp    CODE_64, offset long_mode

        .code64
long_mode:
        lea     rsi, from_64[rip]
        call    print
        mov     rax, 0x0123456789ABCDEF // no 32-bit code could say that
        call    print_number
        lea     rsi, end_of_line[rip]
        call    print
        mov     dx, 0x604
        mov     ax, 5 << 10 | 1 << 13
        out     dx, ax
stop:   hlt
        jmp     stop

/* Print RAX, sixteen hexadecimal digits. */
print_number:
        mov     rbx, rax
        mov     ecx, 16
1:      rol     rbx, 4                  // the highest digit first
        mov     eax, ebx
        and     eax, 15
        mov     al, digits[rax]
        mov     dx, COM1
        out     dx, al
        loop    1b
        ret

/* The same bytes are 32-bit and 64-bit code, so both modes can call this. */
print_32:
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

        .code32
power_off_32:
        mov     dx, 0x604
        mov     ax, 5 << 10 | 1 << 13
        out     dx, ax
        hlt

        .balign 8
gdt:    .quad   0
        .quad   0x00CF9B000000FFFF      // CODE_32
        .quad   0x00AF9B000000FFFF      // CODE_64: the bit L instead of the bit D
        .quad   0x00CF93000000FFFF      // DATA
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

from_32:
        .asciz  "32 bits, no paging\n"
from_64:
        .asciz  "64 bits, and RAX holds "
digits: .ascii  "0123456789abcdef"
end_of_line:
        .asciz  "\n"
