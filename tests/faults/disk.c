/* A disk that fails: put under a process with LD_PRELOAD, it counts the file calls below a folder, and at one of them does
 * what it was told to.
 *
 *     cc -O2 -shared -fPIC -o disk.so disk.c -ldl -lpthread
 *
 * FAULTS_DIR     the folder, absolute and without links; calls elsewhere pass by
 * FAULTS_RECORD  a file that gets a line for each counted call: number, call, path, bytes (of a write, else 0), what was done
 * FAULTS_AT      the number of the call at which something happens; from 1
 * FAULTS_CALL    where given, FAULTS_AT counts calls of this name only: open, write, fsync, truncate, rename, chmod, mkdir,
 *                unlink
 * FAULTS_PATH    where given, it counts calls only with this in their path below the folder
 * FAULTS_ACT     what: a number of errno: the call fails with it, and nothing is done; a number and "+": and so do all
 *                later calls that need room (a disk that stays full); "short": a write takes half of its bytes; "short N":
 *                the write takes half, and the next call that needs room fails with errno N; "before", "after": the process
 *                is killed (SIGKILL) before or after the call; "middle": after half of a write
 *
 * The same may be set by faults_plan(), for a process that forks many with one fault each. Not counted: open for reading,
 * reads, close (no data waits for it: files are synced before), and what libc writes by itself from FILE*, which pycap's
 * files are not written by. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PASS, FAIL, SHORT, BEFORE, AFTER, MIDDLE };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX];
static size_t folder_length;
static int record = -1;
static char only_call[32], only_path[256];
static long count, matching, at;
static int act, code, stays, then; /* `then`: the errno of the next call that needs room, once */
static int is_full;

void faults_plan(const char *dir, const char *recorded, long number, const char *call, const char *path, const char *what) {
    pthread_mutex_lock(&lock);
    snprintf(folder, sizeof folder, "%s", dir ? dir : "");
    folder_length = strlen(folder);
    snprintf(only_call, sizeof only_call, "%s", call ? call : "");
    snprintf(only_path, sizeof only_path, "%s", path ? path : "");
    count = matching = 0, at = number, act = PASS, code = stays = then = is_full = 0;
    if (record >= 0) syscall(SYS_close, record);
    record = recorded ? (int)syscall(SYS_openat, AT_FDCWD, recorded, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    if (what && !strcmp(what, "before")) act = BEFORE;
    else if (what && !strcmp(what, "after")) act = AFTER;
    else if (what && !strcmp(what, "middle")) act = MIDDLE;
    else if (what && !strncmp(what, "short", 5)) act = SHORT, code = atoi(what + 5);
    else if (what && *what) act = FAIL, code = atoi(what), stays = strchr(what, '+') != NULL;
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void begin(void) {
    const char *number = getenv("FAULTS_AT");
    faults_plan(getenv("FAULTS_DIR"), getenv("FAULTS_RECORD"), number ? atol(number) : 0, getenv("FAULTS_CALL"), getenv("FAULTS_PATH"),
                getenv("FAULTS_ACT"));
}

static int below(const char *path) {
    return folder_length && !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

/* The absolute path of `name` in the folder of `dirfd`; ".." and links in it are not followed. */
static int resolve(int dirfd, const char *name, char *path) {
    if (!folder_length) return 0;
    path[0] = 0;
    if (name[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, dirfd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dirfd);
        ssize_t n = readlink(link, path, PATH_MAX - 1);
        if (n < 0) return 0;
        path[n] = 0;
        while (name[0] == '.' && name[1] == '/') name += 2;
        if (strcmp(name, ".")) snprintf(path + n, PATH_MAX - n, "/%s", name);
    } else {
        snprintf(path, PATH_MAX, "%s", name);
    }
    return below(path);
}

static int resolve_fd(int fd, char *path) {
    if (!folder_length) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

static void killed(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Count a call, and say what is to be done: an act, with errno set for FAIL. needs_room: a full disk has it fail. */
static int counted(const char *call, const char *path, size_t bytes, int needs_room) {
    static const char *names[] = {"", "error", "short", "before", "after", "middle"};
    pthread_mutex_lock(&lock);
    count++;
    int matches = (!*only_call || !strcmp(only_call, call)) && strstr(path + folder_length, only_path);
    int does = matches && ++matching == at ? act : PASS, error = code;
    if (does == SHORT && bytes < 2) does = PASS;
    if (does == MIDDLE && bytes < 2) does = BEFORE;
    if (does == SHORT) then = code;
    else if (does == FAIL) is_full = stays;
    else if (does == PASS && needs_room && (is_full || then)) does = FAIL, error = is_full ? code : then, then = 0;
    if (record >= 0) {
        char line[PATH_MAX + 128];
        int n = snprintf(line, sizeof line, "%ld\t%s\t%s\t%zu\t%s\n", count, call, path + folder_length, bytes, names[does]);
        if (syscall(SYS_write, record, line, (size_t)n) != n) abort();
    }
    pthread_mutex_unlock(&lock);
    if (does == BEFORE) killed();
    if (does == FAIL) errno = error;
    return does;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* A call that is done wholly or not at all. */
#define WHOLE(counts, call, path, needs_room, ...) \
    do { \
        int does_ = (counts) ? counted(call, path, 0, needs_room) : PASS; \
        if (does_ == FAIL) return -1; \
        __typeof__(real(__VA_ARGS__)) result_ = real(__VA_ARGS__); \
        if (does_ == AFTER || does_ == MIDDLE) killed(); \
        return result_; \
    } while (0)

#define OPEN(name, first, dirfd, ...) \
    int name(first const char *path, int flags, ...) { \
        REAL(name); \
        char whole[PATH_MAX]; \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list more; \
            va_start(more, flags); \
            mode = va_arg(more, mode_t); \
            va_end(more); \
        } \
        int counts = (flags & O_ACCMODE) != O_RDONLY && resolve(dirfd, path, whole); \
        WHOLE(counts, "open", whole, (flags & O_CREAT) != 0, __VA_ARGS__ path, flags, mode); \
    }
#define NOTHING
OPEN(open, NOTHING, AT_FDCWD, NOTHING)
OPEN(open64, NOTHING, AT_FDCWD, NOTHING)
#define FIRST int at_fd,
#define PASSED at_fd,
OPEN(openat, FIRST, at_fd, PASSED)
OPEN(openat64, FIRST, at_fd, PASSED)

#define WRITE(name, offset_parameter, ...) \
    ssize_t name(int fd, const void *data, size_t bytes offset_parameter) { \
        REAL(name); \
        char path[PATH_MAX]; \
        int does = resolve_fd(fd, path) ? counted("write", path, bytes, 1) : PASS; \
        if (does == FAIL) return -1; \
        if (does == SHORT || does == MIDDLE) bytes /= 2; \
        ssize_t result = real(fd, data, bytes __VA_ARGS__); \
        if (does == AFTER || does == MIDDLE) killed(); \
        return result; \
    }
#define OFFSET , off_t offset
#define OFFSET64 , off64_t offset
WRITE(write, , )
WRITE(pwrite, OFFSET, , offset)
WRITE(pwrite64, OFFSET64, , offset)

#define WRITEV(name, offset_parameter, ...) \
    ssize_t name(int fd, const struct iovec *parts, int n offset_parameter) { \
        REAL(name); \
        char path[PATH_MAX]; \
        size_t bytes = 0; \
        for (int i = 0; i < n; i++) bytes += parts[i].iov_len; \
        int does = resolve_fd(fd, path) ? counted("write", path, bytes, 1) : PASS; \
        if (does == FAIL) return -1; \
        struct iovec half = {parts[0].iov_base, parts[0].iov_len / 2}; \
        if (does == SHORT || does == MIDDLE) parts = &half, n = 1; \
        ssize_t result = real(fd, parts, n __VA_ARGS__); \
        if (does == AFTER || does == MIDDLE) killed(); \
        return result; \
    }
WRITEV(writev, , )
WRITEV(pwritev, OFFSET, , offset)
WRITEV(pwritev64, OFFSET64, , offset)

#define OF_FD(name, call, needs_room, parameters, ...) \
    int name parameters { \
        REAL(name); \
        char path[PATH_MAX]; \
        WHOLE(resolve_fd(fd, path), call, path, needs_room, __VA_ARGS__); \
    }
OF_FD(fsync, "fsync", 1, (int fd), fd)
OF_FD(fdatasync, "fsync", 1, (int fd), fd)
OF_FD(ftruncate, "truncate", 0, (int fd, off_t length), fd, length)
OF_FD(ftruncate64, "truncate", 0, (int fd, off64_t length), fd, length)
OF_FD(posix_fallocate, "truncate", 1, (int fd, off_t offset, off_t length), fd, offset, length)
OF_FD(fchmod, "chmod", 0, (int fd, mode_t mode), fd, mode)

#define OF_PATH(name, call, dirfd, needs_room, parameters, ...) \
    int name parameters { \
        REAL(name); \
        char whole[PATH_MAX]; \
        WHOLE(resolve(dirfd, path, whole), call, whole, needs_room, __VA_ARGS__); \
    }
OF_PATH(mkdir, "mkdir", AT_FDCWD, 1, (const char *path, mode_t mode), path, mode)
OF_PATH(mkdirat, "mkdir", at_fd, 1, (int at_fd, const char *path, mode_t mode), at_fd, path, mode)
OF_PATH(unlink, "unlink", AT_FDCWD, 0, (const char *path), path)
OF_PATH(unlinkat, "unlink", at_fd, 0, (int at_fd, const char *path, int flags), at_fd, path, flags)
OF_PATH(rmdir, "unlink", AT_FDCWD, 0, (const char *path), path)
OF_PATH(chmod, "chmod", AT_FDCWD, 0, (const char *path, mode_t mode), path, mode)
/* The path of a rename is the one that it makes. */
OF_PATH(rename, "rename", AT_FDCWD, 0, (const char *from, const char *path), from, path)
OF_PATH(renameat, "rename", at_fd, 0, (int from_fd, const char *from, int at_fd, const char *path), from_fd, from, at_fd, path)
