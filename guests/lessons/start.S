/*
 * What lessons 5 to 12 begin with. They are entered in long mode by the 64-bit Linux boot protocol
 * (Linux, Documentation/arch/x86/boot.rst, "64-bit boot protocol"): the first 4 GiB mapped to
 * themselves, a GDT loaded, interrupts off, and in RSI the address of the zero page, a structure
 * that says what machine this is. That leaves a stack to be made, and lesson(zero_page) to be
 * called.
 */
        .intel_syntax noprefix
        .globl  _start, stubs
        .weak   interrupt               // lessons without interrupts have none

_start: lea     rsp, stack_top[rip]
        mov     rdi, rsi
        call    lesson
        mov     dx, 0x604               // ACPI: power off (lesson 1)
        mov     ax, 5 << 10 | 1 << 13
        out     dx, ax
stop:   cli
        hlt
        jmp     stop

/*
 * Interrupts and exceptions (Intel SDM volume 3, 6.14). The CPU pushes SS, RSP, RFLAGS, CS and RIP,
 * and for some exceptions an error code. It doesn't say which vector it was, so there is an entry
 * for each, 16 bytes apart, that pushes the number, and a zero where the CPU pushes no error code.
 * What is on the stack then is the struct frame of lesson.h.
 */
        .balign 16
stubs:
        .set    vector, 0
        .rept   256
        .balign 16
        .if     vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21
        push    0
        .endif
        push    vector
        jmp     save
        .set    vector, vector + 1
        .endr

save:   push    rax
        push    rbx
        push    rcx
        push    rdx
        push    rsi
        push    rdi
        push    rbp
        push    r8
        push    r9
        push    r10
        push    r11
        push    r12
        push    r13
        push    r14
        push    r15
        cld
        mov     rdi, rsp
        mov     rbp, rsp
        and     rsp, ~15                // as C expects it
        call    interrupt               // void interrupt(struct frame *frame)
        mov     rsp, rbp
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     r11
        pop     r10
        pop     r9
        pop     r8
        pop     rbp
        pop     rdi
        pop     rsi
        pop     rdx
        pop     rcx
        pop     rbx
        pop     rax
        add     rsp, 16                 // vector and error code
        iretq

        .bss
        .balign 16
        .skip   16384
stack_top:

        .section .note.GNU-stack, "", @progbits
