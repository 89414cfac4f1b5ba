/*
 * Lesson 12: a host on the network. A driver for virtio-net, and just enough of Ethernet, ARP, IP
 * and ICMP to answer a ping to 10.0.5.2; after three it powers off.
 *
 * The card has two queues like lesson 11's: into one we put empty buffers, which come back with
 * packets in them; into the other, packets. This time its registers are not on the PCI bus: behind
 * virtio-mmio they lie in memory, one after another, and there are no capabilities to follow.
 *
 * Read: Virtio 1.2, 4.2.2 (the registers) and 4.2.3.1 and 4.2.3.2 (initialization), 2.7 (split virtqueues),
 * 5.1 (network device; 5.1.6 has the header of a packet); RFC 826 (ARP), RFC 791 3.1 (IP header),
 * RFC 792 (echo), RFC 1624 (how a checksum changes with one word).
 *
 *     pyvmm run -n tap0,transport=mmio -k build/lessons/12_net.elf
 */
#include "lesson.h"

#define PINGS 3

static const uint8_t our_ip[4] = { 10, 0, 5, 2 };
static uint8_t our_mac[6];

/* The card (4.2.2). */

#define MMIO 0xE8000000 /* where PyVMM has the first such device; the ACPI tables say so */
#define MAGIC REG32(MMIO + 0x000)
#define VERSION REG32(MMIO + 0x004)
#define DEVICE_ID REG32(MMIO + 0x008)
#define DEVICE_FEATURES REG32(MMIO + 0x010)
#define DEVICE_FEATURES_SEL REG32(MMIO + 0x014)
#define DRIVER_FEATURES REG32(MMIO + 0x020)
#define DRIVER_FEATURES_SEL REG32(MMIO + 0x024)
#define QUEUE_SEL REG32(MMIO + 0x030)
#define QUEUE_NUM REG32(MMIO + 0x038)
#define QUEUE_READY REG32(MMIO + 0x044)
#define QUEUE_NOTIFY REG32(MMIO + 0x050)
#define STATUS REG32(MMIO + 0x070)
#define QUEUE_DESC 0x080 /* these three are addresses of 64 bits, written in halves */
#define QUEUE_DRIVER 0x090
#define QUEUE_DEVICE 0x0A0
#define CONFIG 0x100 /* the card's address is first in it */

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
#define NETWORK_CARD 1
#define VIRTIO_NET_F_MAC (1 << 5)
#define VIRTIO_F_VERSION_1 (1 << (32 - 32))

/* Queues (2.7): a descriptor for each buffer, no chains. */

#define SIZE 4
#define DEVICE_WRITES 2
enum { RECEIVE, TRANSMIT };

static struct queue {
    _Alignas(16) struct {
        uint64_t address;
        uint32_t length;
        uint16_t flags, next;
    } descriptors[SIZE];
    volatile struct {
        uint16_t flags, index, ring[SIZE];
    } available;
    _Alignas(4) volatile struct {
        uint16_t flags, index;
        struct {
            uint32_t id, length;
        } ring[SIZE];
    } used;
    uint16_t seen; /* how much of the used ring */
} queues[2];

static void offer(unsigned number, uint16_t descriptor)
{
    struct queue *queue = &queues[number];
    queue->available.ring[queue->available.index % SIZE] = descriptor;
    compiler_barrier();
    queue->available.index++;
    compiler_barrier();
    QUEUE_NOTIFY = number;
}

/* Wait until the device has used a buffer; which one, and how many bytes it wrote there. */
static unsigned wait_for(unsigned number, uint32_t *length)
{
    struct queue *queue = &queues[number];
    while (queue->used.index == queue->seen)
        __asm__ volatile("pause");
    compiler_barrier();
    unsigned slot = queue->seen++ % SIZE;
    *length = queue->used.ring[slot].length;
    return queue->used.ring[slot].id;
}

static void set_address(unsigned offset, const volatile void *address)
{
    REG32(MMIO + offset) = (uintptr_t)address;
    REG32(MMIO + offset + 4) = (uintptr_t)address >> 32;
}

static bool start_card(void)
{
    if (MAGIC != 0x74726976 || VERSION != 2 || DEVICE_ID != NETWORK_CARD) /* "virt" */
        return false;
    STATUS = 0; /* reset */
    STATUS = ACKNOWLEDGE;
    STATUS = ACKNOWLEDGE | DRIVER;
    DEVICE_FEATURES_SEL = 1; /* features 32 to 63 */
    if (!(DEVICE_FEATURES & VIRTIO_F_VERSION_1))
        return false;
    DRIVER_FEATURES_SEL = 0;
    DRIVER_FEATURES = VIRTIO_NET_F_MAC;
    DRIVER_FEATURES_SEL = 1;
    DRIVER_FEATURES = VIRTIO_F_VERSION_1;
    STATUS = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    if (!(STATUS & FEATURES_OK))
        return false;
    for (unsigned number = RECEIVE; number <= TRANSMIT; number++) {
        QUEUE_SEL = number;
        QUEUE_NUM = SIZE;
        set_address(QUEUE_DESC, queues[number].descriptors);
        set_address(QUEUE_DRIVER, &queues[number].available);
        set_address(QUEUE_DEVICE, &queues[number].used);
        queues[number].available.flags = 1; /* no interrupts: we poll */
        QUEUE_READY = 1;
    }
    STATUS = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    for (unsigned i = 0; i < 6; i++)
        our_mac[i] = REG8(MMIO + CONFIG + i);
    return true;
}

/* Packets. */

#define HEADER 12 /* struct virtio_net_hdr, all zeros for us */
#define BUFFER 2048
#define ARP 0x0806
#define IPV4 0x0800

static uint8_t buffers[SIZE][BUFFER];

static void copy(uint8_t *to, const uint8_t *from, unsigned length)
{
    while (length--)
        *to++ = *from++;
}

static bool is_ours(const uint8_t *ip)
{
    return ip[0] == our_ip[0] && ip[1] == our_ip[1] && ip[2] == our_ip[2] && ip[3] == our_ip[3];
}

/* "Who has our address?" becomes "we have", to the one who asked. */
static bool answer_arp(uint8_t *arp, unsigned length)
{
    if (length < 28 || arp[7] != 1 || !is_ours(arp + 24))
        return false;
    print("ARP request from %d.%d.%d.%d\n", arp[14], arp[15], arp[16], arp[17]);
    arp[7] = 2; /* reply */
    copy(arp + 18, arp + 8, 10); /* the target is who sent it */
    copy(arp + 8, our_mac, 6);
    copy(arp + 14, our_ip, 4);
    return true;
}

/* An echo request becomes the reply; the data go back as they came. */
static bool answer_ping(uint8_t *ip, unsigned length)
{
    uint8_t *icmp = ip + 20;
    bool whole = ip[0] == 0x45 && !(ip[6] & 0x3F) && !ip[7]; /* no options, no fragment */
    if (length < 28 || !whole || ip[9] != 1 || icmp[0] != 8 || !is_ours(ip + 16))
        return false;
    print("ping %d from %d.%d.%d.%d\n", icmp[6] << 8 | icmp[7], ip[12], ip[13], ip[14], ip[15]);
    copy(ip + 16, ip + 12, 4); /* the sum over the header doesn't mind the order */
    copy(ip + 12, our_ip, 4);
    icmp[0] = 0;
    unsigned sum = (icmp[2] << 8 | icmp[3]) + 0x0800; /* what the type was */
    sum += sum >> 16;
    icmp[2] = sum >> 8;
    icmp[3] = sum;
    return true;
}

/* Back to where it came from. */
static void send(uint8_t *buffer, uint32_t length)
{
    uint8_t *ethernet = buffer + HEADER;
    copy(ethernet, ethernet + 6, 6);
    copy(ethernet + 6, our_mac, 6);
    for (unsigned i = 0; i < HEADER; i++)
        buffer[i] = 0;
    queues[TRANSMIT].descriptors[0].address = (uintptr_t)buffer;
    queues[TRANSMIT].descriptors[0].length = length;
    offer(TRANSMIT, 0);
    wait_for(TRANSMIT, &length); /* until then the buffer isn't ours */
}

void lesson(const uint8_t *zero_page)
{
    (void)zero_page;
    if (!start_card()) {
        print("there is no such card: pyvmm run -n tap0,transport=mmio …\n");
        return;
    }
    for (unsigned i = 0; i < SIZE; i++) {
        queues[RECEIVE].descriptors[i].address = (uintptr_t)buffers[i];
        queues[RECEIVE].descriptors[i].length = BUFFER;
        queues[RECEIVE].descriptors[i].flags = DEVICE_WRITES;
        offer(RECEIVE, i);
    }
    print("we are 10.0.5.2, at %x:%x:%x:%x:%x:%x\n", our_mac[0], our_mac[1], our_mac[2], our_mac[3],
          our_mac[4], our_mac[5]);
    for (unsigned pings = 0; pings < PINGS;) {
        uint32_t length;
        unsigned which = wait_for(RECEIVE, &length);
        uint8_t *ethernet = buffers[which] + HEADER, *payload = ethernet + 14;
        unsigned type = ethernet[12] << 8 | ethernet[13], rest = length - HEADER - 14;
        if (length < HEADER + 14)
            type = 0;
        bool is_ping = type == IPV4 && answer_ping(payload, rest);
        if (is_ping || (type == ARP && answer_arp(payload, rest)))
            send(buffers[which], length);
        pings += is_ping;
        offer(RECEIVE, which);
    }
}
