/* PCI configuration space, both ways (PCI 3.0, 3.2.2.3.2; PCI Express, 7.2.2). Bus 0 only. */
#ifndef PCI_H
#define PCI_H

#include "pc.h"

#define PCI_VENDOR_ID 0x00
#define PCI_COMMAND 0x04
#define PCI_COMMAND_MEMORY 0x0002
#define PCI_COMMAND_MASTER 0x0004
#define PCI_COMMAND_INTX_DISABLE 0x0400
#define PCI_STATUS 0x06
#define PCI_STATUS_CAPABILITIES 0x0010
#define PCI_HEADER_TYPE 0x0E
#define PCI_BAR_0 0x10
#define PCI_BARS 6
#define PCI_BAR_IO 0x1
#define PCI_BAR_64 0x4
#define PCI_CAPABILITIES 0x34
#define PCI_INTERRUPT_PIN 0x3D
#define PCI_CAPABILITY_VENDOR 0x09
#define PCI_CAPABILITY_MSIX 0x11

#define PCI_FUNCTION(device, function) ((device) << 3 | (function))

extern uintptr_t ecam; /* the address of bus 0's configuration space, from the MCFG table */

bool pci_init(const uint8_t *zero_page);

uint32_t pci_read(unsigned function, unsigned offset); /* mechanism 1, aligned 32 bits */
void pci_write(unsigned function, unsigned offset, uint32_t value);

/* By ECAM. */
static inline uintptr_t pci_config(unsigned function, unsigned offset)
{
    return ecam + ((uintptr_t)function << 12) + offset;
}

/* Offset of the first capability with this ID after `previous` (0: from the start); 0 if none. */
unsigned pci_capability(unsigned function, uint8_t id, unsigned previous);
uint64_t pci_bar(unsigned function, unsigned index);

#endif
