/* Counts the libc calls that change files below one folder; fails or kills at the n-th.

   Loaded by LD_PRELOAD, so that calls of Python, HDF5 and torch are all seen. Processes forked after
   fault_open() count together. fsync() does nothing: only what other processes see is tested. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
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

/* Once, before any fork: what all processes share. */
void fault_open(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

/* From now on in this process and those it forks; the leader of a kill dies too, unless 0. */
void fault_arm(const char *below, int what, int at, int code, pid_t leader) {
    kind = what, number = at, error = code;
    shared->calls = shared->fired = shared->what[0] = 0;
    shared->leader = leader;
    snprintf(folder, sizeof folder, "%s/", below);
}

int fault_calls(void) { return shared->calls; }
int fault_fired(void) { return shared->fired; }
const char *fault_what(void) { return shared->what; }

/* SIGKILL for this process alone. */
void fault_kill_after(double seconds) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    struct itimerspec at = {.it_value = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)}};
    timer_t timer;
    if (!at.it_value.tv_sec && !at.it_value.tv_nsec) at.it_value.tv_nsec = 1;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &at, NULL))
        perror("fault_kill_after"), _exit(99);
}

static void die(void) {
    if (shared->leader) kill(shared->leader, SIGKILL);
    kill(getpid(), SIGKILL);
    pause();
}

/* What to do at this call on the path (a file descriptor's if there is none). */
static int act(const char *name, int fd, const char *path, int grows) {
    char link[64], full[2 * PATH_MAX];
    if (!folder[0] || (!path && fd <= 2)) return NOTHING; /* messages are no files */
    if (!path || (path[0] != '/' && fd != AT_FDCWD)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, full, PATH_MAX);
        if (length < 0) return NOTHING;
        snprintf(full + length, PATH_MAX, "%s%s", path ? "/" : "", path ? path : "");
    } else if (path[0] == '/') {
        snprintf(full, sizeof full, "%s", path);
    } else if (getcwd(full, PATH_MAX)) {
        size_t length = strlen(full);
        snprintf(full + length, PATH_MAX, "/%s", path);
    }
    if (strncmp(full, folder, strlen(folder))) return NOTHING;
    int here = ++shared->calls == number;
    if (here) {
        snprintf(shared->what, sizeof shared->what, "%s %s", name, full + strlen(folder));
        shared->fired = 1;
    }
    if (here && kind == BEFORE) die();
    /* A disk stays full and a file system read-only; other errors come once. */
    int stays = error == EROFS || (error == ENOSPC && grows);
    if (kind == FAIL && (here || (shared->fired && stays))) {
        errno = error;
        return FAIL;
    }
    return here ? kind : NOTHING;
}

/* Under another name, as the header's declaration may differ; `call` is made if nothing prevents it. */
#define WRAP(type, name, parameters, fd, path, grows, skip, call)                                  \
    type fake_##name parameters __asm__(#name);                                                    \
    type fake_##name parameters {                                                                  \
        static type(*next) parameters;                                                             \
        if (!next) next = dlsym(RTLD_NEXT, #name);                                                 \
        int what = (skip) ? NOTHING : act(#name, fd, path, grows);                                 \
        if (what == FAIL) return -1;                                                               \
        type result = (call);                                                                      \
        if (what == AFTER) die();                                                                  \
        return result;                                                                             \
    }

#define C const char *
#define READS(flags) (((flags) & O_ACCMODE) == O_RDONLY && !((flags) & (O_CREAT | O_TRUNC)))
#define OPEN(name) WRAP(int, name, (C p, int f, mode_t m), AT_FDCWD, p, f & O_CREAT, READS(f), next(p, f, m))
#define OPENAT(name) WRAP(int, name, (int d, C p, int f, mode_t m), d, p, f & O_CREAT, READS(f), next(d, p, f, m))
#define PWRITE(name) WRAP(ssize_t, name, (int d, const void *b, size_t n, off_t o), d, 0, 1, 0, next(d, b, n, o))
#define PWRITEV(name) WRAP(ssize_t, name, (int d, const struct iovec *v, int n, off_t o), d, 0, 1, 0, next(d, v, n, o))
#define FTRUNCATE(name) WRAP(int, name, (int d, off_t n), d, 0, 1, 0, next(d, n))
#define TRUNCATE(name) WRAP(int, name, (C p, off_t n), AT_FDCWD, p, 1, 0, next(p, n))
#define FSYNC(name) WRAP(int, name, (int d), d, 0, 0, 0, 0)

OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
WRAP(int, creat, (C p, mode_t m), AT_FDCWD, p, 1, 0, next(p, m))
WRAP(ssize_t, write, (int d, const void *b, size_t n), d, 0, 1, 0, next(d, b, n))
WRAP(ssize_t, writev, (int d, const struct iovec *v, int n), d, 0, 1, 0, next(d, v, n))
PWRITE(pwrite) PWRITE(pwrite64) PWRITEV(pwritev) PWRITEV(pwritev64)
WRAP(ssize_t, sendfile, (int d, int s, off_t *o, size_t n), d, 0, 1, 0, next(d, s, o, n))
WRAP(ssize_t, copy_file_range, (int s, off_t *i, int d, off_t *o, size_t n, unsigned f), d, 0, 1, 0, next(s, i, d, o, n, f))
FTRUNCATE(ftruncate) FTRUNCATE(ftruncate64) TRUNCATE(truncate) TRUNCATE(truncate64)
FSYNC(fsync) FSYNC(fdatasync)
WRAP(int, mkdir, (C p, mode_t m), AT_FDCWD, p, 1, 0, next(p, m))
WRAP(int, mkdirat, (int d, C p, mode_t m), d, p, 1, 0, next(d, p, m))
WRAP(int, rename, (C o, C p), AT_FDCWD, p, 0, 0, next(o, p))
WRAP(int, renameat, (int e, C o, int d, C p), d, p, 0, 0, next(e, o, d, p))
WRAP(int, renameat2, (int e, C o, int d, C p, unsigned f), d, p, 0, 0, next(e, o, d, p, f))
WRAP(int, link, (C o, C p), AT_FDCWD, p, 1, 0, next(o, p))
WRAP(int, linkat, (int e, C o, int d, C p, int f), d, p, 1, 0, next(e, o, d, p, f))
WRAP(int, symlink, (C o, C p), AT_FDCWD, p, 1, 0, next(o, p))
WRAP(int, unlink, (C p), AT_FDCWD, p, 0, 0, next(p))
WRAP(int, unlinkat, (int d, C p, int f), d, p, 0, 0, next(d, p, f))
WRAP(int, rmdir, (C p), AT_FDCWD, p, 0, 0, next(p))
