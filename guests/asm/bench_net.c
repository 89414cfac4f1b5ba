/*
 * The network's part of the guest `bench`. The host is 10.0.0.1 and we are 10.0.0.2, with the
 * addresses below; neither asks for the other's (tests/bench/net.py).
 *
 * To the host go TCP packets of 64 KiB, as Linux sends them, to an address that is nobody's, so that
 * nobody answers. A packet counts when the device hands it back; it has given it to the tap by then.
 * From the host comes whatever it sends. For the way there and back the host's kernel answers pings,
 * as soon as it gets them.
 */
#include "bench.h"

#define VIRTIO_NET_F_CSUM (1 << 0)
#define VIRTIO_NET_F_GUEST_CSUM (1 << 1)
#define VIRTIO_NET_F_GUEST_TSO4 (1 << 7)
#define VIRTIO_NET_F_HOST_TSO4 (1 << 11)
#define VIRTIO_NET_F_MRG_RXBUF (1 << 15)

#define RECEIVE_QUEUE 0
#define TRANSMIT_QUEUE 1

#define VIRTIO_NET_HDR_F_NEEDS_CSUM 1
#define VIRTIO_NET_HDR_GSO_TCPV4 1

#define ETHERTYPE_IPV4 0x0800
#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define TCP_ACK 0x10
#define ICMP_ECHO 8
#define ICMP_ECHO_REPLY 0

#define HOST 1
#define NOBODY 9

#define MSS 1448
#define PAYLOAD 65160 /* 45 segments */
#define PIECE 32768 /* the size of a buffer that Linux sends from */
#define DEPTH 32 /* packets on their way to the host */
#define PAGE 4096 /* a receive buffer */
#define PING_SIZE 64

struct __attribute__((packed)) headers {
    struct __attribute__((packed)) {
        uint8_t flags, gso_type;
        uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
    } virtio;
    struct __attribute__((packed)) {
        uint8_t destination[6], source[6];
        uint16_t type;
    } ethernet;
    struct __attribute__((packed)) {
        uint8_t version, service;
        uint16_t length, id, fragment;
        uint8_t ttl, protocol;
        uint16_t checksum;
        uint8_t source[4], destination[4];
    } ip;
    union {
        struct __attribute__((packed)) {
            uint16_t source, destination;
            uint32_t sequence, acknowledgement;
            uint8_t offset, flags;
            uint16_t window, checksum, urgent;
        } tcp;
        struct __attribute__((packed)) {
            uint8_t type, code;
            uint16_t checksum, id, sequence;
        } icmp;
    };
};

#define VIRTIO_HEADER 12
#define IP_AT (VIRTIO_HEADER + 14)
#define TRANSPORT_AT (IP_AT + 20)
#define TCP_HEADERS (TRANSPORT_AT + 20)

static struct virtio_device card;
static struct virtqueue receive_queue, transmit_queue;
static _Alignas(64) struct headers headers[DEPTH];
static _Alignas(64) uint8_t ping[VIRTIO_HEADER + PING_SIZE];

#define RECEIVE_BUFFERS BUFFERS
#define TRANSMIT_BUFFERS (BUFFERS + VIRTQUEUE_SIZE * PAGE)

static uint16_t big_endian(uint16_t value) { return value >> 8 | value << 8; }

static uint32_t ones_complement_sum(const uint8_t *data, unsigned length, uint32_t sum)
{
    for (unsigned i = 0; i < length; i += 2)
        sum += data[i] << 8 | data[i + 1];
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return sum;
}

static void fill_in_ip(struct headers *packet, uint8_t protocol, uint8_t host, uint16_t length)
{
    static const uint8_t host_mac[6] = { 2, 0, 0, 0, 0, 1 }, our_mac[6] = { 2, 0, 0, 0, 0, 2 };
    for (unsigned i = 0; i < 6; i++) {
        packet->ethernet.destination[i] = host_mac[i];
        packet->ethernet.source[i] = our_mac[i];
    }
    packet->ethernet.type = big_endian(ETHERTYPE_IPV4);
    packet->ip.version = 0x45;
    packet->ip.length = big_endian(length);
    packet->ip.ttl = 64;
    packet->ip.protocol = protocol;
    packet->ip.source[0] = packet->ip.destination[0] = 10;
    packet->ip.source[3] = 2;
    packet->ip.destination[3] = host;
    packet->ip.checksum = 0;
    packet->ip.checksum =
        big_endian(~ones_complement_sum((const uint8_t *)packet + IP_AT, 20, 0));
}

static void fill_in_tcp(struct headers *packet)
{
    packet->virtio.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    packet->virtio.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
    packet->virtio.hdr_len = TCP_HEADERS - VIRTIO_HEADER;
    packet->virtio.gso_size = MSS;
    packet->virtio.csum_start = TRANSPORT_AT - VIRTIO_HEADER;
    packet->virtio.csum_offset = 16;
    fill_in_ip(packet, PROTOCOL_TCP, NOBODY, 40 + PAYLOAD);
    packet->tcp.source = packet->tcp.destination = big_endian(9);
    packet->tcp.offset = 5 << 4;
    packet->tcp.flags = TCP_ACK;
    /* The pseudo header's sum; who finishes it adds the rest. */
    packet->tcp.checksum = big_endian(ones_complement_sum(
        (const uint8_t *)packet + IP_AT + 12, 8, PROTOCOL_TCP + 20 + PAYLOAD));
}

bool start_net(void)
{
    if (!virtio_find(&card, VIRTIO_NET, 0))
        return false;
    uint64_t needed = VIRTIO_NET_F_CSUM | VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO4 |
                      VIRTIO_NET_F_HOST_TSO4 | VIRTIO_NET_F_MRG_RXBUF;
    bool agreed = virtio_negotiate(&card, needed | VIRTIO_F_EVENT_IDX) &&
                  (card.features & needed) == needed;
    check("network card has what we need", agreed);
    virtio_queue(&card, &receive_queue, RECEIVE_QUEUE);
    virtio_queue(&card, &transmit_queue, TRANSMIT_QUEUE);
    virtio_ready(&card);
    for (uint16_t i = 0; agreed && i < receive_queue.size; i++) {
        receive_queue.descriptors[i] =
            (struct descriptor){ RECEIVE_BUFFERS + i * PAGE, PAGE, DESC_WRITE, 0 };
        virtqueue_offer(&receive_queue, i);
    }
    virtqueue_kick(&receive_queue);
    return agreed;
}

/* Packet `slot` is four descriptors: its headers, and the payload in pieces. */
static void describe_packet(unsigned slot)
{
    struct descriptor *part = &transmit_queue.descriptors[4 * slot];
    fill_in_tcp(&headers[slot]);
    part[0] = (struct descriptor){ (uintptr_t)&headers[slot], TCP_HEADERS, DESC_NEXT,
                                   4 * slot + 1 };
    part[1] = (struct descriptor){ TRANSMIT_BUFFERS + slot * 2 * PIECE, PIECE, DESC_NEXT,
                                   4 * slot + 2 };
    part[2] = (struct descriptor){ TRANSMIT_BUFFERS + (slot * 2 + 1) * PIECE, PAYLOAD - PIECE, 0,
                                   0 };
}

static void measure_sending(void)
{
    uint64_t bytes = 0, start = now();
    unsigned pending = 0;
    uint16_t head;
    uint32_t written;
    for (; pending < DEPTH; pending++) {
        describe_packet(pending);
        virtqueue_offer(&transmit_queue, 4 * pending);
    }
    virtqueue_kick(&transmit_queue);
    while (pending) {
        bool go_on = now() - start < ticks, offered = false;
        while (virtqueue_take(&transmit_queue, &head, &written)) {
            bytes += PAYLOAD;
            if (go_on)
                virtqueue_offer(&transmit_queue, head);
            else
                pending--;
            offered = true;
        }
        if (offered) {
            virtqueue_stay_quiet(&transmit_queue);
            virtqueue_kick(&transmit_queue);
        } else {
            __asm__ volatile("pause");
        }
    }
    report("send", bytes, start);
}

/* Take all that is there and give the buffers back; how many bytes that was. */
static uint64_t receive(void)
{
    uint64_t bytes = 0;
    uint16_t head;
    uint32_t length;
    while (virtqueue_take(&receive_queue, &head, &length)) {
        bytes += length;
        virtqueue_offer(&receive_queue, head);
    }
    if (bytes) {
        virtqueue_stay_quiet(&receive_queue);
        virtqueue_kick(&receive_queue);
    }
    return bytes;
}

/* From the first packet on, so that the host has time to begin when it reads `receiving`. */
static void measure_receiving(void)
{
    uint64_t bytes = 0, start;
    print("receiving\n");
    while (!receive())
        __asm__ volatile("pause");
    for (start = now(); now() - start < ticks;) {
        uint64_t more = receive();
        bytes += more;
        if (!more)
            __asm__ volatile("pause");
    }
    report("receive", bytes, start);
}

/* Let what is still on its way pass: nothing for a while. */
static void calm_down(void)
{
    for (uint64_t start = now(); now() - start < ticks / 4;)
        if (receive())
            start = now();
}

static bool is_reply(uint16_t buffer, uint16_t sequence)
{
    const struct headers *packet =
        (const struct headers *)(uintptr_t)receive_queue.descriptors[buffer].address;
    return packet->ip.protocol == PROTOCOL_ICMP && packet->icmp.type == ICMP_ECHO_REPLY &&
           packet->icmp.sequence == sequence;
}

static bool wait_for_reply(uint16_t sequence)
{
    uint16_t head;
    uint32_t length;
    for (uint64_t start = now(); now() - start < 4 * ticks;) {
        if (!virtqueue_take(&receive_queue, &head, &length)) {
            __asm__ volatile("pause");
            continue;
        }
        bool found = is_reply(head, sequence);
        virtqueue_offer(&receive_queue, head);
        virtqueue_stay_quiet(&receive_queue);
        virtqueue_kick(&receive_queue);
        if (found)
            return true;
    }
    return false;
}

static void send_ping(uint16_t sequence)
{
    struct headers *packet = (struct headers *)ping;
    uint16_t head;
    uint32_t written;
    fill_in_ip(packet, PROTOCOL_ICMP, HOST, PING_SIZE - 14);
    packet->icmp.type = ICMP_ECHO;
    packet->icmp.sequence = sequence;
    packet->icmp.checksum = 0;
    packet->icmp.checksum =
        big_endian(~ones_complement_sum(ping + TRANSPORT_AT, PING_SIZE - 34, 0));
    transmit_queue.descriptors[0] = (struct descriptor){ (uintptr_t)ping, sizeof ping, 0, 0 };
    while (virtqueue_take(&transmit_queue, &head, &written))
        ; /* the one before */
    virtqueue_stay_quiet(&transmit_queue);
    virtqueue_offer(&transmit_queue, 0);
    virtqueue_kick(&transmit_queue);
}

static void measure_round_trips(void)
{
    uint64_t count = 0, start = now();
    for (; now() - start < ticks; count++) {
        send_ping(count);
        if (!wait_for_reply(count)) {
            print("FAIL: no reply to ping %X\n", count);
            return;
        }
    }
    report("ping", count, start);
}

void measure_net(void)
{
    measure_sending();
    measure_receiving();
    print("received\n");
    calm_down();
    measure_round_trips();
}
