/*
 * Long mode: a host on the network with a virtio-net card (Virtio 1.2, 5.1) that answers ARP (RFC
 * 826) and pings (RFC 792), polled. It is 10.0.5.2; `pings=N` on the command line says how many it
 * answers before it powers off. Packets of more than one receive buffer come back as they arrived.
 */
#include "console.h"
#include "boot.h"
#include "pci.h"
#include "virtio.h"

#define VIRTIO_NET_F_MAC (1 << 5)
#define VIRTIO_NET_F_MRG_RXBUF (1 << 15)

#define RECEIVE_QUEUE 0
#define TRANSMIT_QUEUE 1
#define NUM_BUFFERS_AT 10
#define ETHERNET_AT 12
#define TYPE_AT (ETHERNET_AT + 12)
#define PAYLOAD_AT (ETHERNET_AT + 14)
#define ICMP_AT (PAYLOAD_AT + 20)
#define ARP_LENGTH 28

#define BUFFER 512 /* less than a packet may have */
#define MAX_PACKET 2048

static struct virtio_device card;
static struct virtqueue receive_queue, transmit_queue;
static uint8_t buffers[VIRTQUEUE_SIZE][BUFFER];
static uint8_t packet[MAX_PACKET];
static uint8_t mac[6];
static const uint8_t address[4] = { 10, 0, 5, 2 };

static void copy(uint8_t *to, const uint8_t *from, unsigned length)
{
    while (length--)
        *to++ = *from++;
}

static bool equal(const uint8_t *one, const uint8_t *other, unsigned length)
{
    while (length--)
        if (*one++ != *other++)
            return false;
    return true;
}

/* The next packet, from as many buffers as it has; how long it is. */
static unsigned receive(void)
{
    uint16_t head;
    uint32_t written;
    unsigned length = 0, parts = 1;
    for (unsigned part = 0; part < parts; part++) {
        while (!virtqueue_take(&receive_queue, &head, &written))
            __asm__ volatile("pause");
        if (!part)
            parts = buffers[head][NUM_BUFFERS_AT] | buffers[head][NUM_BUFFERS_AT + 1] << 8;
        if (length + written <= MAX_PACKET)
            copy(packet + length, buffers[head], written);
        length += written;
        virtqueue_offer(&receive_queue, head);
    }
    virtqueue_stay_quiet(&receive_queue);
    virtqueue_kick(&receive_queue);
    return length;
}

/* Back to where it came from, in two parts; wait until the device has sent it. */
static void send_back(unsigned length)
{
    uint16_t head;
    uint32_t written;
    for (unsigned i = 0; i < ETHERNET_AT; i++)
        packet[i] = 0;
    copy(packet + ETHERNET_AT, packet + ETHERNET_AT + 6, 6);
    copy(packet + ETHERNET_AT + 6, mac, 6);
    transmit_queue.descriptors[0] = (struct descriptor){ (uintptr_t)packet, 20, DESC_NEXT, 1 };
    transmit_queue.descriptors[1] =
        (struct descriptor){ (uintptr_t)packet + 20, length - 20, 0, 0 };
    virtqueue_offer(&transmit_queue, 0);
    virtqueue_kick(&transmit_queue);
    while (!virtqueue_take(&transmit_queue, &head, &written))
        __asm__ volatile("pause");
    virtqueue_stay_quiet(&transmit_queue);
}

static bool answer_arp(unsigned length)
{
    uint8_t *arp = packet + PAYLOAD_AT;
    if (length < PAYLOAD_AT + ARP_LENGTH || arp[7] != 1 || !equal(arp + 24, address, 4))
        return false;
    arp[7] = 2;
    copy(arp + 18, arp + 8, 10);
    copy(arp + 8, mac, 6);
    copy(arp + 14, address, 4);
    send_back(length);
    return true;
}

static bool answer_ping(unsigned length)
{
    uint8_t *ip = packet + PAYLOAD_AT, *icmp = packet + ICMP_AT;
    if (length < ICMP_AT + 8 || length > MAX_PACKET || ip[0] != 0x45 || ip[9] != 1 || icmp[0] != 8)
        return false;
    copy(ip + 16, ip + 12, 4);
    copy(ip + 12, address, 4);
    icmp[0] = 0;
    unsigned sum = (icmp[2] << 8 | icmp[3]) + 0x0800; /* what the type was (RFC 1624) */
    sum += sum >> 16;
    icmp[2] = sum >> 8;
    icmp[3] = sum;
    send_back(length);
    return true;
}

static bool start(void)
{
    if (!virtio_find(&card, VIRTIO_NET, 0))
        return false;
    uint64_t needed = VIRTIO_NET_F_MAC | VIRTIO_NET_F_MRG_RXBUF;
    check("features", virtio_negotiate(&card, needed | VIRTIO_F_EVENT_IDX) &&
                          (card.features & needed) == needed);
    virtio_queue(&card, &receive_queue, RECEIVE_QUEUE);
    virtio_queue(&card, &transmit_queue, TRANSMIT_QUEUE);
    virtio_ready(&card);
    for (unsigned i = 0; i < 6; i++)
        mac[i] = load8(card.config + i);
    for (uint16_t i = 0; i < receive_queue.size; i++) {
        receive_queue.descriptors[i] =
            (struct descriptor){ (uintptr_t)buffers[i], BUFFER, DESC_WRITE, 0 };
        virtqueue_offer(&receive_queue, i);
    }
    virtqueue_kick(&receive_queue);
    return true;
}

void guest_main(const uint8_t *zero_page);

void guest_main(const uint8_t *zero_page)
{
    unsigned pings = command_line_number(zero_page, "pings", 1), arps = 0;
    bool started = start();
    check("there is a virtio network card", started);
    if (!started)
        return;
    print("mac: %x\nlistening\n", mac[0] << 24 | mac[1] << 16 | mac[4] << 8 | mac[5]);
    for (unsigned answered = 0; answered < pings;) {
        unsigned length = receive();
        uint16_t type = packet[TYPE_AT] << 8 | packet[TYPE_AT + 1];
        if (type == 0x0806)
            arps += answer_arp(length);
        else if (type == 0x0800)
            answered += answer_ping(length);
    }
    check("the host has asked for our address", arps);
    check("all pings are answered", true);
}
