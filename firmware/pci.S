/*
 * The PCI BIOS (PCI BIOS Specification 2.1): INT 1Ah, B1h, and the same calls for 32-bit code, which
 * finds them by the BIOS32 service directory. One source for both: pci_calls.h.
 */
#include "bios.h"

        .globl  pci_services, bios32

#define PCI_SERVICE 0x49435024          /* $PCI */

/* INT 1Ah with AH = B1h. Interrupts stay off, as section 3.3 wants it: their handlers may use the same
 * two ports. */
pci_services:
        call    pci_call_16
        push    bp
        mov     bp, sp
        jc      1f
        and     byte ptr [bp + 6], ~CARRY & 0xFF
        pop     bp
        iret
1:      or      byte ptr [bp + 6], CARRY
        pop     bp
        iret

#define PCI(name) name##_16
#include "pci_calls.h"
#undef PCI

        .code32
/* Which service EAX is there (BL = 0): its base to EBX, its length to ECX, its entry to EDX. */
bios32: cmp     eax, PCI_SERVICE
        mov     al, 0x80                // no such service
        jne     1f
        test    bl, bl
        mov     al, 0x81                // no such function
        jnz     1f
        mov     al, 0
        mov     ebx, BIOS_BASE
        mov     ecx, 0x10000
        mov     edx, offset pci_32
1:      lret

pci_32: call    pci_call_32
        lret

#define PCI(name) name##_32
#include "pci_calls.h"
