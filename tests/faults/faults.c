/* Counts the libc calls that change files below one folder; fails or kills at the n-th.

   Loaded by LD_PRELOAD, so that calls of Python, HDF5 and torch are all seen. Processes forked after
   fault_open() count together. fsync() does nothing: what counts is what other processes see. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NOTHING, FAIL, BEFORE, AFTER };

static struct shared {
    atomic_int calls, fired;
    pid_t leader;
    char what[256];
} *shared;
static char folder[PATH_MAX];
static int kind, number, error;

void fault_open(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

/* From now on, in this process and those it forks. A kill also hits the leader, unless it is 0. */
void fault_arm(const char *below, int what, int at, int code, pid_t leader) {
    kind = what, number = at, error = code;
    shared->calls = shared->fired = shared->what[0] = 0;
    shared->leader = leader;
    snprintf(folder, sizeof folder, "%s/", below);
}

int fault_calls(void) { return shared->calls; }
int fault_fired(void) { return shared->fired; }
const char *fault_what(void) { return shared->what; }

/* Kills this process alone. */
void fault_kill_after(double seconds) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    struct itimerspec at = {.it_value = {(time_t)seconds, 1 + (seconds - (time_t)seconds) * 999e6}};
    timer_t timer;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &at, NULL))
        perror("fault_kill_after"), _exit(99);
}

static void die(void) {
    if (shared->leader) kill(shared->leader, SIGKILL);
    kill(getpid(), SIGKILL);
    pause();
}

/* What to do at a call on a path, or on a descriptor if there is none. `size` are the bytes to be
   written, 1 for other calls that need space; as on a disk that gets full, half of them still are. */
static int act(const char *name, int fd, const char *path, size_t *size) {
    char full[2 * PATH_MAX] = "", link[64];
    if (!folder[0] || (!path && fd <= 2)) return NOTHING; /* messages; opened to be read */
    if (!path || *path != '/') {
        snprintf(link, sizeof link, fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, full, PATH_MAX);
        if (length > 0 && path) full[length] = '/';
    }
    if (path) strncat(full, path, PATH_MAX);
    if (strncmp(full, folder, strlen(folder))) return NOTHING;
    int here = ++shared->calls == number;
    if (here) {
        snprintf(shared->what, sizeof shared->what, "%s %s", name, full + strlen(folder));
        shared->fired = 1;
    }
    if (here && kind == BEFORE) die();
    if (kind != FAIL) return here ? kind : NOTHING;
    /* A disk stays full and a file system read-only; other errors come once. */
    int full_disk = error == ENOSPC && size, again = shared->fired && (full_disk || error == EROFS);
    if (here && full_disk && *size > 1) return *size /= 2, NOTHING;
    if (!here && !again) return NOTHING;
    errno = error;
    return FAIL;
}

/* Defined under another name, as headers declare some with "...". */
#define WRAP(type, name, parameters, fd, path, size, call)                                         \
    type fake_##name parameters __asm__(#name);                                                    \
    type fake_##name parameters {                                                                  \
        static type(*next) parameters;                                                             \
        size_t one = 1;                                                                            \
        (void)one;                                                                                 \
        if (!next) next = dlsym(RTLD_NEXT, #name);                                                 \
        int what = act(#name, fd, path, size);                                                     \
        if (what == FAIL) return -1;                                                               \
        type result = (call);                                                                      \
        if (what == AFTER) die();                                                                  \
        return result;                                                                             \
    }
#define C const char *
#define SPACE(f) ((f) & O_CREAT ? &one : NULL)
#define READS(f) (((f) & O_ACCMODE) == O_RDONLY && !((f) & (O_CREAT | O_TRUNC)))
#define OPEN(name) WRAP(int, name, (C p, int f, mode_t m), READS(f) ? 0 : AT_FDCWD, READS(f) ? NULL : p, SPACE(f), next(p, f, m))
#define OPENAT(name) WRAP(int, name, (int d, C p, int f, mode_t m), READS(f) ? 0 : d, READS(f) ? NULL : p, SPACE(f), next(d, p, f, m))
#define PWRITE(name) WRAP(ssize_t, name, (int d, const void *b, size_t n, off_t o), d, NULL, &n, next(d, b, n, o))
#define FTRUNCATE(name) WRAP(int, name, (int d, off_t n), d, NULL, &one, next(d, n))
#define FSYNC(name) WRAP(int, name, (int d), d, NULL, NULL, 0)

OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) PWRITE(pwrite) PWRITE(pwrite64)
FTRUNCATE(ftruncate) FTRUNCATE(ftruncate64) FSYNC(fsync) FSYNC(fdatasync)
WRAP(ssize_t, write, (int d, const void *b, size_t n), d, NULL, &n, next(d, b, n))
WRAP(ssize_t, writev, (int d, const struct iovec *v, int n), d, NULL, &one, next(d, v, n))
WRAP(ssize_t, sendfile, (int d, int s, off_t *o, size_t n), d, NULL, &n, next(d, s, o, n))
WRAP(int, mkdir, (C p, mode_t m), AT_FDCWD, p, &one, next(p, m))
WRAP(int, rename, (C o, C p), AT_FDCWD, p, NULL, next(o, p))
WRAP(int, link, (C o, C p), AT_FDCWD, p, &one, next(o, p))
WRAP(int, unlink, (C p), AT_FDCWD, p, NULL, next(p))
WRAP(int, unlinkat, (int d, C p, int f), d, p, NULL, next(d, p, f))
WRAP(int, rmdir, (C p), AT_FDCWD, p, NULL, next(p))
