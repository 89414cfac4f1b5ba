#include "virtio.h"

#include "pci.h"

#define VIRTIO_VENDOR 0x1AF4
#define FIRST_DEVICE_ID 0x1040

#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4
#define STATUS_FEATURES_OK 8

#define NO_VECTOR 0xFFFF
#define AVAIL_NO_INTERRUPT 1

/* struct virtio_pci_common_cfg (4.1.4.3). */
enum {
    PCI_DEVICE_FEATURE_SELECT = 0x00, PCI_DEVICE_FEATURE = 0x04,
    PCI_DRIVER_FEATURE_SELECT = 0x08, PCI_DRIVER_FEATURE = 0x0C,
    PCI_DEVICE_STATUS = 0x14, PCI_QUEUE_SELECT = 0x16, PCI_QUEUE_SIZE = 0x18,
    PCI_QUEUE_MSIX_VECTOR = 0x1A, PCI_QUEUE_ENABLE = 0x1C, PCI_QUEUE_NOTIFY_OFF = 0x1E,
    PCI_QUEUE_DESC = 0x20, PCI_QUEUE_DRIVER = 0x28, PCI_QUEUE_DEVICE = 0x30,
};
enum { PCI_COMMON_CFG = 1, PCI_NOTIFY_CFG = 2, PCI_DEVICE_CFG = 4 }; /* cfg_type (4.1.4) */

/* 4.2.2. */
enum {
    MMIO_MAGIC = 0x000, MMIO_VERSION = 0x004, MMIO_DEVICE_ID = 0x008,
    MMIO_DEVICE_FEATURES = 0x010, MMIO_DEVICE_FEATURES_SEL = 0x014,
    MMIO_DRIVER_FEATURES = 0x020, MMIO_DRIVER_FEATURES_SEL = 0x024,
    MMIO_QUEUE_SEL = 0x030, MMIO_QUEUE_NUM_MAX = 0x034, MMIO_QUEUE_NUM = 0x038,
    MMIO_QUEUE_READY = 0x044, MMIO_QUEUE_NOTIFY = 0x050, MMIO_STATUS = 0x070,
    MMIO_QUEUE_DESC = 0x080, MMIO_QUEUE_DRIVER = 0x090, MMIO_QUEUE_DEVICE = 0x0A0,
    MMIO_CONFIG = 0x100,
};
#define MMIO_MAGIC_VALUE 0x74726976 /* "virt" */
#define MMIO_STEP 0x200

/* Where the machines that we know have virtio-mmio devices: QEMU's microvm, and PyVMM. */
static const uintptr_t mmio_bases[] = { 0xFEB00000, 0xE8000000 };
#define MMIO_PLACES 32

static bool find_mmio(struct virtio_device *device, unsigned id, unsigned *skip)
{
    for (unsigned i = 0; i < sizeof mmio_bases / sizeof *mmio_bases; i++)
        for (unsigned n = 0; n < MMIO_PLACES; n++) {
            uintptr_t base = mmio_bases[i] + n * MMIO_STEP;
            if (load32(base + MMIO_MAGIC) != MMIO_MAGIC_VALUE ||
                load32(base + MMIO_VERSION) != 2 || load32(base + MMIO_DEVICE_ID) != id)
                continue;
            if ((*skip)--)
                continue;
            device->mmio = true;
            device->registers = base;
            device->config = base + MMIO_CONFIG;
            return true;
        }
    return false;
}

/* PCI configuration space by mechanism 1, which every PC has. */
static uint8_t config8(unsigned function, unsigned offset)
{
    return pci_read(function, offset & ~3U) >> 8 * (offset & 3);
}

static uintptr_t bar(unsigned function, unsigned index)
{
    uint64_t low = pci_read(function, PCI_BAR_0 + 4 * index);
    if (low & PCI_BAR_64)
        low |= (uint64_t)pci_read(function, PCI_BAR_0 + 4 * index + 4) << 32;
    return low & ~0xFULL;
}

static void find_structures(struct virtio_device *device, unsigned function)
{
    for (unsigned at = config8(function, PCI_CAPABILITIES); at; at = config8(function, at + 1)) {
        if (config8(function, at) != PCI_CAPABILITY_VENDOR)
            continue;
        uintptr_t address = bar(function, config8(function, at + 4)) + pci_read(function, at + 8);
        switch (config8(function, at + 3)) {
        case PCI_COMMON_CFG:
            device->registers = address;
            break;
        case PCI_NOTIFY_CFG:
            device->notify = address;
            device->notify_multiplier = pci_read(function, at + 16);
            break;
        case PCI_DEVICE_CFG:
            device->config = address;
            break;
        }
    }
}

static bool find_pci(struct virtio_device *device, unsigned id, unsigned *skip)
{
    for (unsigned function = 0; function < 256; function += 8) {
        if (pci_read(function, PCI_VENDOR_ID) != ((FIRST_DEVICE_ID + id) << 16 | VIRTIO_VENDOR))
            continue;
        if ((*skip)--)
            continue;
        pci_write(function, PCI_COMMAND,
                  PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
        device->mmio = false;
        find_structures(device, function);
        return true;
    }
    return false;
}

bool virtio_find(struct virtio_device *device, unsigned id, unsigned skip)
{
    return find_pci(device, id, &skip) || find_mmio(device, id, &skip);
}

uint8_t virtio_status(struct virtio_device *device)
{
    return device->mmio ? load32(device->registers + MMIO_STATUS)
                        : load8(device->registers + PCI_DEVICE_STATUS);
}

static void add_status(struct virtio_device *device, uint8_t bits)
{
    bits |= virtio_status(device);
    if (device->mmio)
        store32(device->registers + MMIO_STATUS, bits);
    else
        store8(device->registers + PCI_DEVICE_STATUS, bits);
}

bool virtio_negotiate(struct virtio_device *device, uint64_t wanted)
{
    bool mmio = device->mmio;
    uintptr_t registers = device->registers;
    if (mmio)
        store32(registers + MMIO_STATUS, 0);
    else
        store8(registers + PCI_DEVICE_STATUS, 0);
    add_status(device, STATUS_ACKNOWLEDGE);
    add_status(device, STATUS_DRIVER);
    device->features = 0;
    wanted |= VIRTIO_F_VERSION_1;
    for (unsigned word = 0; word < 2; word++) {
        store32(registers + (mmio ? MMIO_DEVICE_FEATURES_SEL : PCI_DEVICE_FEATURE_SELECT), word);
        uint32_t both = wanted >> 32 * word;
        both &= load32(registers + (mmio ? MMIO_DEVICE_FEATURES : PCI_DEVICE_FEATURE));
        store32(registers + (mmio ? MMIO_DRIVER_FEATURES_SEL : PCI_DRIVER_FEATURE_SELECT), word);
        store32(registers + (mmio ? MMIO_DRIVER_FEATURES : PCI_DRIVER_FEATURE), both);
        device->features |= (uint64_t)both << 32 * word;
    }
    add_status(device, STATUS_FEATURES_OK);
    return virtio_status(device) & STATUS_FEATURES_OK && device->features & VIRTIO_F_VERSION_1;
}

static void set_address(uintptr_t at, const volatile void *address)
{
    store32(at, (uintptr_t)address);
    store32(at + 4, (uintptr_t)address >> 32);
}

static uint16_t at_most(uint32_t size)
{
    return size < VIRTQUEUE_SIZE ? size : VIRTQUEUE_SIZE;
}

void virtio_queue(struct virtio_device *device, struct virtqueue *queue, unsigned number)
{
    uintptr_t registers = device->registers;
    queue->number = number;
    queue->mmio = device->mmio;
    queue->next_available = queue->kicked = queue->next_used = 0;
    queue->available[0] = AVAIL_NO_INTERRUPT;
    queue->available[1] = 0;
    queue->used[0] = 0;
    queue->event_idx = device->features & VIRTIO_F_EVENT_IDX;
    if (device->mmio) {
        store32(registers + MMIO_QUEUE_SEL, number);
        queue->size = at_most(load32(registers + MMIO_QUEUE_NUM_MAX));
        store32(registers + MMIO_QUEUE_NUM, queue->size);
        set_address(registers + MMIO_QUEUE_DESC, queue->descriptors);
        set_address(registers + MMIO_QUEUE_DRIVER, queue->available);
        set_address(registers + MMIO_QUEUE_DEVICE, queue->used);
        store32(registers + MMIO_QUEUE_READY, 1);
        queue->doorbell = registers + MMIO_QUEUE_NOTIFY;
    } else {
        store16(registers + PCI_QUEUE_SELECT, number);
        queue->size = at_most(load16(registers + PCI_QUEUE_SIZE));
        store16(registers + PCI_QUEUE_SIZE, queue->size);
        store16(registers + PCI_QUEUE_MSIX_VECTOR, NO_VECTOR);
        set_address(registers + PCI_QUEUE_DESC, queue->descriptors);
        set_address(registers + PCI_QUEUE_DRIVER, queue->available);
        set_address(registers + PCI_QUEUE_DEVICE, queue->used);
        queue->doorbell = device->notify +
                          load16(registers + PCI_QUEUE_NOTIFY_OFF) * device->notify_multiplier;
        store16(registers + PCI_QUEUE_ENABLE, 1);
    }
    virtqueue_stay_quiet(queue);
}

void virtio_ready(struct virtio_device *device) { add_status(device, STATUS_DRIVER_OK); }

void virtqueue_kick(struct virtqueue *queue)
{
    uint16_t new = queue->next_available, old = queue->kicked;
    queue->kicked = new;
    __asm__ volatile("lock or dword ptr [rsp], 0" : : : "memory"); /* stores before loads */
    bool wanted;
    if (queue->event_idx) {
        uint16_t event = queue->used[1 + 2 * queue->size];
        wanted = (uint16_t)(new - event - 1) < (uint16_t)(new - old);
    } else {
        wanted = !(queue->used[0] & 1);
    }
    if (wanted)
        virtqueue_ring(queue);
}
