#include "pci.h"

#include "boot.h"

uintptr_t ecam;

bool pci_init(const uint8_t *zero_page)
{
    const uint8_t *mcfg = acpi_table(zero_page, "MCFG");
    if (mcfg)
        ecam = *(const uint64_t *)(mcfg + 44);
    return ecam;
}

uint32_t pci_read(unsigned function, unsigned offset)
{
    outl(PCI_CONFIG_ADDRESS, 1U << 31 | function << 8 | offset);
    return inl(PCI_CONFIG_DATA);
}

void pci_write(unsigned function, unsigned offset, uint32_t value)
{
    outl(PCI_CONFIG_ADDRESS, 1U << 31 | function << 8 | offset);
    outl(PCI_CONFIG_DATA, value);
}

unsigned pci_capability(unsigned function, uint8_t id, unsigned previous)
{
    if (!(load16(pci_config(function, PCI_STATUS)) & PCI_STATUS_CAPABILITIES))
        return 0;
    unsigned offset = load8(pci_config(function, previous ? previous + 1 : PCI_CAPABILITIES));
    while (offset && load8(pci_config(function, offset)) != id)
        offset = load8(pci_config(function, offset + 1));
    return offset;
}

uint64_t pci_bar(unsigned function, unsigned index)
{
    uintptr_t register_ = pci_config(function, PCI_BAR_0 + 4 * index);
    uint64_t bar = load32(register_);
    if (bar & PCI_BAR_64)
        bar |= (uint64_t)load32(register_ + 4) << 32;
    return bar & ~0xFULL;
}
