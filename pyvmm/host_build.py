"""Build script of :mod:`pyvmm._host`: the Linux calls that Python 3.11's ``os`` lacks, and two that
make many of one.

Run by the package's build (setup.py), not at run time.
"""

from cffi import FFI

ffibuilder = FFI()
ffibuilder.cdef(
    """
    #define CLOCK_MONOTONIC ...
    #define TFD_CLOEXEC ...
    #define TFD_NONBLOCK ...
    #define TFD_TIMER_ABSTIME ...
    #define FALLOC_FL_KEEP_SIZE ...
    #define FALLOC_FL_PUNCH_HOLE ...
    #define FALLOC_FL_ZERO_RANGE ...

    int timerfd_create(int clockid, int flags);
    int pyvmm_timerfd_settime(int fd, int64_t deadline_ns, int64_t period_ns);
    int fallocate(int fd, int mode, int64_t offset, int64_t length);

    #define MADV_DONTNEED ...
    #define MADV_HUGEPAGE ...
    #define MADV_MERGEABLE ...
    #define MADV_POPULATE_WRITE ...
    int madvise(void *address, size_t length, int advice);
    int mincore(void *address, size_t length, unsigned char *pages);
    int pyvmm_set_thread_name(const char *name);

    int pyvmm_read_packets(int fd, const uint64_t *memory, int regions, const void *parts,
                           int number, void *spill, size_t spill_size, int *results, int limit,
                           int limit_bytes);
    int pyvmm_write_packets(int fd, const uint64_t *memory, int regions, const void *parts,
                            int number, const int *counts, int *results, int limit);
    """
)
ffibuilder.set_source(
    "pyvmm._host",
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #include <sys/timerfd.h>
    #include <sys/uio.h>
    #include <time.h>

    #ifndef MADV_POPULATE_WRITE  /* newer than some C libraries: Linux 5.14 */
    #define MADV_POPULATE_WRITE 23
    #endif

    static int pyvmm_set_thread_name(const char *name)
    {
        return prctl(PR_SET_NAME, name, 0, 0, 0);
    }

    static struct timespec timespec_of(int64_t ns)
    {
        struct timespec ts = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };
        return ts;
    }

    /* An absolute deadline; 0 disarms. */
    static int pyvmm_timerfd_settime(int fd, int64_t deadline_ns, int64_t period_ns)
    {
        struct itimerspec spec = {
            .it_value = timespec_of(deadline_ns), .it_interval = timespec_of(period_ns)
        };
        return timerfd_settime(fd, TFD_TIMER_ABSTIME, &spec, 0);
    }

    /*
     * A tap has no recvmmsg(2) and sendmmsg(2): it is a device and no socket. These are they,
     * because for each packet os.readv() and os.writev() need a list of views, made and released,
     * and give the interpreter's lock up and take it back. A packet of 64 KiB that is sent takes
     * 4.9 us in the kernel; the rest was 1.8 us, and is 0.3 to 1.3 with this.
     *
     * A part of a packet is 16 bytes, like a virtqueue's descriptor: a guest's address, a length,
     * and what isn't looked at. Of each region, `memory` has the first address, the first behind
     * it, and where the region is in this process. A part that is in none is -EFAULT, like a bad
     * address of ours: before any byte of the packet is moved.
     */
    struct part {
        uint64_t address;
        uint32_t length, unused;
    };

    static int translate(const struct part *part, const uint64_t *memory, int regions,
                         struct iovec *iovec)
    {
        for (const uint64_t *region = memory; region < memory + 3 * regions; region += 3) {
            if (part->address < region[0] || part->address >= region[1] ||
                part->length > region[1] - part->address)
                continue;
            iovec->iov_base = (void *)(uintptr_t)(region[2] + (part->address - region[0]));
            iovec->iov_len = part->length;
            return 1;
        }
        return 0;
    }

    static int result_of(ssize_t length)
    {
        return length < 0 ? -errno : (int)length;
    }

    /*
     * readv(2) of `limit` packets at most, and no more after `limit_bytes` bytes. Each begins with
     * the first part that the one before has left untouched; what the parts have no room for goes
     * to `spill`. A result is a packet's length, the number of its parts and how many bytes are in
     * the last. Two end it: a packet that has spilled, with no parts and how many bytes have not,
     * and -errno (or 0, an end of file).
     */
    static int pyvmm_read_packets(int fd, const uint64_t *memory, int regions, const void *parts,
                                  int number, void *spill, size_t spill_size, int *results,
                                  int limit, int limit_bytes)
    {
        const struct part *next = parts, *end = next + number;
        struct iovec packet[IOV_MAX];
        int done = 0, bytes = 0;
        do {
            size_t room = 0;
            int count = 0, *result = &results[3 * done++];
            result[1] = 0;
            for (; next + count < end && count < IOV_MAX - 1 && room < spill_size; count++) {
                if (!translate(next + count, memory, regions, &packet[count])) {
                    result[0] = -EFAULT;
                    return done;
                }
                room += packet[count].iov_len;
            }
            packet[count] = (struct iovec){ spill, spill_size };
            int length = result[0] = result_of(readv(fd, packet, count + 1));
            result[2] = (int)room;
            if (length <= 0 || (size_t)length > room)
                break;
            uint32_t rest = length;
            for (; rest > next->length; result[1]++)
                rest -= next++->length;
            next++;
            result[1]++;
            result[2] = rest;
            bytes += length;
        } while (done < limit && bytes < limit_bytes && next < end);
        return done;
    }

    /*
     * writev(2) of one packet after the other, of so many parts each, until one would block. The
     * results are lengths, or -errno, which is that packet's alone. Packets of no parts are passed
     * over.
     */
    static int pyvmm_write_packets(int fd, const uint64_t *memory, int regions, const void *parts,
                                   int number, const int *counts, int *results, int limit)
    {
        const struct part *next = parts, *end = next + number;
        struct iovec packet[IOV_MAX];
        int done = 0;
        for (; done < limit; done++) {
            int count = 0, good = 1;
            for (; count < counts[done] && count < IOV_MAX && next < end; count++)
                good &= translate(next++, memory, regions, &packet[count]);
            results[done] = !good ? -EFAULT : count ? result_of(writev(fd, packet, count)) : 0;
            if (results[done] == -EAGAIN)
                break;
        }
        return done;
    }
    """,
)
