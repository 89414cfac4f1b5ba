"""Build script of :mod:`pyvmm._host`: the Linux calls that Python 3.11's ``os`` lacks.

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
    #define MADV_MERGEABLE ...
    #define MADV_POPULATE_WRITE ...
    int madvise(void *address, size_t length, int advice);
    int pyvmm_set_thread_name(const char *name);
    """
)
ffibuilder.set_source(
    "pyvmm._host",
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #include <sys/timerfd.h>
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
    """,
)
