/*
 * The calls of the PCI BIOS, for the mode that is assembled now; PCI(name) is a name in it.
 *
 * AL is the function. AH is the result, with carry unless it is 0. All registers survive in which
 * nothing is returned.
 */
#ifndef PCI_SIGNATURE
#define PCI_SIGNATURE 0x20494350        /* PCI */
#define PCI_NOT_SUPPORTED 0x81
#define PCI_BAD_VENDOR 0x83
#define PCI_NOT_FOUND 0x86
#define PCI_BAD_REGISTER 0x87
#endif

PCI(pci_call):
        and     al, 0x7F
        cmp     al, 0x01
        je      PCI(present)
        cmp     al, 0x02
        je      PCI(find_device)
        cmp     al, 0x03
        je      PCI(find_class)
        cmp     al, 0x08
        jb      PCI(unsupported)
        cmp     al, 0x0D
        ja      PCI(unsupported)
        jmp     PCI(configure)

PCI(unsupported):
        mov     ah, PCI_NOT_SUPPORTED
        stc
        ret

/* 01h: configuration mechanism 1, version 2.10, the last bus is 0. */
PCI(present):
        mov     edx, PCI_SIGNATURE
        mov     ax, 0x0001
        mov     bx, 0x0210
        mov     cl, 0
        mov     edi, BIOS_BASE + offset pci_32
        clc
        ret

/* 02h: the SI-th function of vendor DX and device CX. */
PCI(find_device):
        cmp     dx, 0xFFFF
        mov     ah, PCI_BAD_VENDOR
        stc
        je      1f
        push    edx
        push    ecx
        shl     ecx, 16
        mov     cx, dx                  // as it stands in register 0
        push    edi
        xor     edi, edi
        call    PCI(find)
        pop     edi
        pop     ecx
        pop     edx
1:      ret

/* 03h: the SI-th function of class ECX. */
PCI(find_class):
        push    edx
        push    ecx
        push    edi
        shl     ecx, 8
        mov     edi, 8
        call    PCI(find)
        pop     edi
        pop     ecx
        pop     edx
        ret

/* Into BX, the SI-th function whose register EDI is ECX; but its low byte if EDI isn't 0. */
PCI(find):
        push    esi
        push    eax
        movzx   esi, si
        push    ebx
        xor     ebx, ebx
1:      push    edi
        xor     edi, edi
        call    PCI(select)
        in      eax, dx
        pop     edi
        cmp     ax, 0xFFFF
        je      4f                      // no function there
        test    edi, edi
        jz      2f
        call    PCI(select)
        in      eax, dx
        xor     al, al
2:      cmp     eax, ecx
        jne     3f
        dec     esi
        js      5f
3:      test    bl, 7                   // a single-function device answers for all its functions
        jnz     4f
        push    edi
        mov     edi, 0x0C
        call    PCI(select)
        in      eax, dx
        pop     edi
        test    eax, 0x800000
        jnz     4f
        or      bl, 7
4:      inc     bl
        jnz     1b
        pop     ebx
        pop     eax
        pop     esi
        mov     ah, PCI_NOT_FOUND
        stc
        ret
5:      mov     edx, ebx
        pop     ebx
        mov     bx, dx
        pop     eax
        pop     esi
        mov     ah, 0
        clc
        ret

/* Register DI of function BX at the port that DX then is. EAX is lost. */
PCI(select):
        movzx   eax, bx
        shl     eax, 8
        mov     dx, di
        mov     al, dl
        and     al, 0xFC
        or      eax, 0x80000000
        mov     dx, PCI_ADDRESS
        out     dx, eax
        mov     dx, PCI_DATA
        ret

/* 08h to 0Dh: read or write (bit 2 of AL + 0, 1, 2) a byte, word or dword of register DI of function
 * BX, which is in CL, CX or ECX. */
PCI(configure):
        push    edx
        push    ebx
        push    eax
        cmp     di, 0x100
        jae     7f
        sub     al, 0x08
        mov     ah, 0
        cmp     al, 3
        jb      1f
        sub     al, 3
        inc     ah
1:      cmp     al, 1
        jb      2f
        ja      3f
        test    di, 1
        jnz     7f
        jmp     2f
3:      test    di, 3
        jnz     7f
2:      push    eax
        call    PCI(select)
        mov     eax, edi
        and     al, 3
        add     dl, al
        pop     eax
        test    ah, ah
        jnz     4f
        cmp     al, 1
        jb      5f
        je      6f
        in      eax, dx
        mov     ecx, eax
        jmp     9f
5:      in      al, dx
        mov     cl, al
        jmp     9f
6:      in      ax, dx
        mov     cx, ax
        jmp     9f
4:      cmp     al, 1
        mov     eax, ecx
        jb      5f
        je      6f
        out     dx, eax
        jmp     9f
5:      out     dx, al
        jmp     9f
6:      out     dx, ax
9:      pop     eax
        mov     ah, 0
        pop     ebx
        pop     edx
        clc
        ret
7:      pop     eax
        mov     ah, PCI_BAD_REGISTER
        pop     ebx
        pop     edx
        stc
        ret
