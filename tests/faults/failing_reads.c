/* LD_PRELOAD: one in FAULTS_ONE_IN openings and reads of files below FAULTS_FOLDER fails with EIO,
   and its path goes to the file FAULTS_TALLY. Without FAULTS_FOLDER nothing happens. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_ulong events;

/* Whether this event is to fail: a function of the seed and of how many there were before. */
static int fails(const char *path)
{
    const char *folder = getenv("FAULTS_FOLDER");
    if (!folder || strncmp(path, folder, strlen(folder)))
        return 0;
    uint64_t z = atomic_fetch_add(&events, 1) + 1000003ull * atoi(getenv("FAULTS_SEED"));
    z = (z + 0x9e3779b97f4a7c15ull) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    if ((z >> 33) % atoi(getenv("FAULTS_ONE_IN")))
        return 0;
    int tally = syscall(SYS_openat, AT_FDCWD, getenv("FAULTS_TALLY"),
                        O_WRONLY | O_CREAT | O_APPEND, 0600);
    dprintf(tally, "%s\n", path);
    close(tally);
    errno = EIO;
    return 1;
}

static int fails_at(int descriptor)
{
    char link[32], path[PATH_MAX];
    if (!getenv("FAULTS_FOLDER"))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return fails(path);
}

#define ORIGINAL(name) \
    static __typeof__(name) *original; \
    if (!original) original = dlsym(RTLD_NEXT, #name)

#define OPENING(name) \
    int name(const char *path, int flags, ...) \
    { \
        ORIGINAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        if (!(flags & (O_ACCMODE | O_DIRECTORY)) && fails(path)) return -1; \
        return original(path, flags, mode); \
    }
OPENING(open)
OPENING(open64)

ssize_t read(int descriptor, void *buffer, size_t size)
{
    ORIGINAL(read);
    return fails_at(descriptor) ? -1 : original(descriptor, buffer, size);
}

#define READING(name, offset_type) \
    ssize_t name(int descriptor, void *buffer, size_t size, offset_type offset) \
    { \
        ORIGINAL(name); \
        return fails_at(descriptor) ? -1 : original(descriptor, buffer, size, offset); \
    }
READING(pread, off_t)
READING(pread64, off64_t)

#define MAPPING(name, offset_type) \
    void *name(void *at, size_t size, int access, int flags, int descriptor, offset_type offset) \
    { \
        ORIGINAL(name); \
        if (descriptor >= 0 && fails_at(descriptor)) return MAP_FAILED; \
        return original(at, size, access, flags, descriptor, offset); \
    }
MAPPING(mmap, off_t)
MAPPING(mmap64, off64_t)
