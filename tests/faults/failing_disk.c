/* Preloaded: makes calls on the files of one name fail, by their number, their kind and their place.
   SQLite calls these functions of libc; whatever else the process opens is left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { PREAD, PWRITE, FDATASYNC, FTRUNCATE, OPEN, KINDS };

static char needle[4096];
static unsigned char ours[1 << 16];
static long counted, counts[KINDS], failed, at, first_byte = -1, last_byte = -1;
static int code, lasting, failing_kind = -1;

/* position: the n-th call of all, from 1 on; 0: none. With `lasting` all of its kind from then on. */
void disk_arm(const char *name, int error, long position, int lasts) {
    strncpy(needle, name, sizeof needle - 1);
    code = error; at = position; lasting = lasts;
    counted = failed = 0; failing_kind = -1; first_byte = last_byte = -1;
    memset(counts, 0, sizeof counts);
}

/* Reads of these bytes of the file whose name ends so fail, always: a bad sector. */
void disk_spoil(long first, long last) { first_byte = first; last_byte = last; }
long disk_counted(void) { return counted; }
long disk_failed(void) { return failed; }
int disk_kind(void) { return failing_kind; }

static int fails(int kind) {
    if (!needle[0]) return 0;
    counted++; counts[kind]++;
    int now = counted == at;
    if (now) failing_kind = kind;
    if (now || (lasting && at && counted > at && kind == failing_kind)) {
        failed++; errno = code; return 1;
    }
    return 0;
}

static int mine(int fd) { return fd >= 0 && fd < (1 << 16) && ours[fd]; }
#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int opened(int fd, const char *path) {
    size_t n = strlen(needle), m = path ? strlen(path) : 0;
    if (fd >= 0 && fd < (1 << 16)) {
        ours[fd] = 0;
        if (n && path && strstr(path, needle)) ours[fd] = (m >= n && !strcmp(path + m - n, needle)) ? 2 : 1;
    }
    return fd;
}
#define OPENS(name) int name(const char *path, int flags, ...) { \
    REAL(name); va_list list; va_start(list, flags); mode_t mode = va_arg(list, int); va_end(list); \
    if (needle[0] && path && strstr(path, needle) && fails(OPEN)) return -1; \
    return opened(real(path, flags, mode), path); }
OPENS(open)
OPENS(open64)

ssize_t pread64(int fd, void *to, size_t count, off64_t offset) {
    REAL(pread64);
    if (mine(fd)) {
        if (ours[fd] == 2 && first_byte >= 0 && offset <= last_byte && offset + (long)count > first_byte) {
            failed++; errno = EIO; return -1;
        }
        if (fails(PREAD)) return -1;
    }
    return real(fd, to, count, offset);
}
ssize_t pwrite64(int fd, const void *from, size_t count, off64_t offset) {
    REAL(pwrite64);
    if (mine(fd) && fails(PWRITE)) return -1;
    return real(fd, from, count, offset);
}
int fdatasync(int fd) {
    REAL(fdatasync);
    if (mine(fd) && fails(FDATASYNC)) return -1;
    return real(fd);
}
int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    if (mine(fd) && fails(FTRUNCATE)) return -1;
    return real(fd, length);
}
int close(int fd) {
    REAL(close);
    if (fd >= 0 && fd < (1 << 16)) ours[fd] = 0;
    return real(fd);
}
