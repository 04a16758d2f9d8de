// What a program may expect of the C library's and the kernel's memory functions. Argument 1 names the case. Each ends with
// status 0 and the word "ok" where all was as it should be, with the library preloaded or without, unless it says so.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define PAGE ((size_t)4096)
#define CHECK(what) do { if (!(what)) { fprintf(stderr, "line %d: %s (errno %d)\n", __LINE__, #what, errno); exit(1); } } while (0)
#define FAILS(what, code) do { errno = 0; CHECK((long)(what) == -1); CHECK(errno == (code)); } while (0)

static void fill(void *at, size_t length, unsigned seed) {
    for (size_t i = 0; i < length; i++) ((unsigned char *)at)[i] = (unsigned char)((i >> 12) * 31 + i * 7 + seed);
}
static int holds(const void *at, size_t length, unsigned seed) {
    for (size_t i = 0; i < length; i++)
        if (((const unsigned char *)at)[i] != (unsigned char)((i >> 12) * 31 + i * 7 + seed)) return 0;
    return 1;
}
static int zeros(const void *at, size_t length) {
    for (size_t i = 0; i < length; i++) if (((const unsigned char *)at)[i]) return 0;
    return 1;
}
static void *memory(size_t length) {
    void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}
static sigjmp_buf faulted;
static void on_fault(int signal) { siglongjmp(faulted, signal); }
// Whether a write there ends in SIGSEGV.
static int write_faults(volatile char *at) {
    struct sigaction action = {.sa_handler = on_fault}, before;
    sigaction(SIGSEGV, &action, &before);
    int signal = sigsetjmp(faulted, 1);
    if (!signal) *at = 1;
    sigaction(SIGSEGV, &before, NULL);
    return signal == SIGSEGV;
}

static void blocks(void) {
    for (size_t size = 100 << 10; size < 20 * MIB; size = size * 3 / 2 + 1) {
        char *a = malloc(size), *b = malloc(size);
        CHECK(a && b && a != b && (uintptr_t)a % 16 == 0 && malloc_usable_size(a) >= size);
        fill(a, malloc_usable_size(a), 1);
        fill(b, size, 2);
        CHECK(holds(a, size, 1) && holds(b, size, 2));
        free(a);
        // What was written is not seen again.
        char *c = calloc(size / 10, 10);
        CHECK(c && zeros(c, size / 10 * 10));
        fill(c, size / 10 * 10, 3);
        CHECK(holds(b, size, 2));
        free(c);
        free(b);
    }
    size_t aligns[] = {16, 64, PAGE, 64 << 10, 2 * MIB};
    for (int i = 0; i < 5; i++) {
        void *other = malloc(300 << 10), *at = NULL;
        CHECK(posix_memalign(&at, aligns[i], 3 * MIB + 5) == 0 && (uintptr_t)at % aligns[i] == 0);
        fill(at, 3 * MIB + 5, 4);
        void *b = aligned_alloc(aligns[i], 4 * MIB), *c = memalign(aligns[i], MIB + 1);
        CHECK(b && c && (uintptr_t)b % aligns[i] == 0 && (uintptr_t)c % aligns[i] == 0);
        fill(b, 4 * MIB, 5);
        fill(c, MIB + 1, 6);
        CHECK(holds(at, 3 * MIB + 5, 4) && holds(b, 4 * MIB, 5) && holds(c, MIB + 1, 6));
        free(at); free(b); free(c); free(other);
    }
    char *v = valloc(MIB), *p = pvalloc(MIB + 1);
    CHECK(v && p && (uintptr_t)v % PAGE == 0 && (uintptr_t)p % PAGE == 0 && malloc_usable_size(p) >= MIB + PAGE);
    fill(v, MIB, 7); fill(p, MIB + PAGE, 8);
    free(v); free(p);
    // Small ones too, and none.
    char *small = malloc(10), *none = malloc(0);
    CHECK(small && malloc_usable_size(small) >= 10 && malloc_usable_size(NULL) == 0);
    free(small); free(none); free(NULL);
    // What cannot be had, or asked for.
    volatile size_t huge = SIZE_MAX / 2 + 1, most = SIZE_MAX;
    errno = 0; CHECK(!malloc(huge) && errno == ENOMEM);
    errno = 0; CHECK(!calloc(huge, 2) && errno == ENOMEM);
    errno = 0; CHECK(!calloc(most, 1) && errno == ENOMEM);
    errno = 0; CHECK(!reallocarray(NULL, huge, 4) && errno == ENOMEM);
    void *at = (void *)5;
    CHECK(posix_memalign(&at, 3, MIB) == EINVAL && posix_memalign(&at, 4, MIB) == EINVAL && at == (void *)5);
    CHECK(posix_memalign(&at, 64, huge) == ENOMEM && at == (void *)5);
    errno = EXDEV;
    free(malloc(2 * MIB));
    CHECK(errno == EXDEV);
}

static void growth(void) {
    for (int turn = 0; turn < 3; turn++) {
        char *at = NULL, *other = NULL;
        size_t before = 0;
        for (size_t size = 1000; size < 40 * MIB; size = size * 7 / 4) {
            at = realloc(at, size);
            CHECK(at && holds(at, before, turn));
            fill(at, size, turn);
            before = size;
            // Now and then something is in the way.
            if (turn) { free(other); other = malloc(size / 2); CHECK(other); }
        }
        for (size_t size = before; size > 100; size /= 3) {
            at = realloc(at, size);
            CHECK(at && holds(at, size, turn));
        }
        at = reallocarray(at, 3, MIB);
        CHECK(at && holds(at, 100, turn));
        errno = 0;
        volatile size_t most = SIZE_MAX / 2 + 1;
        CHECK(!realloc(at, most) && errno == ENOMEM && holds(at, 100, turn));
        CHECK(realloc(at, 0) == NULL);
        free(other);
    }
    // What grew, and what was cut off and grows again, holds no old bytes where calloc says so.
    char *at = malloc(8 * MIB);
    fill(at, 8 * MIB, 9);
    at = realloc(at, 2 * MIB);
    char *rest = calloc(1, 6 * MIB);
    CHECK(holds(at, 2 * MIB, 9) && zeros(rest, 6 * MIB));
    free(at); free(rest);
}

static void *churn(void *argument) {
    unsigned seed = (unsigned)(uintptr_t)argument, state = seed * 2654435761u + 1;
    struct { char *at; size_t size; unsigned seed; } held[12] = {0};
    for (int step = 0; step < 200; step++) {
        state = state * 1664525u + 1013904223u;
        int i = (state >> 8) % 12;
        size_t size = 1000 + (state >> 4) % (2 * MIB);
        if (held[i].at) {
            CHECK(holds(held[i].at, held[i].size, held[i].seed));
            if (state & 64) {
                char *new = realloc(held[i].at, size);
                CHECK(new && holds(new, size < held[i].size ? size : held[i].size, held[i].seed));
                held[i].at = new;
            } else {
                free(held[i].at);
                held[i].at = state & 128 ? calloc(1, size) : malloc(size);
                CHECK(held[i].at && (!(state & 128) || zeros(held[i].at, size)));
            }
        } else held[i].at = malloc(size);
        CHECK(held[i].at);
        held[i].size = size; held[i].seed = state;
        fill(held[i].at, size, state);
        size_t length = (1 + state % 100) * PAGE * 3;
        char *map = memory(length);
        CHECK(map[0] == 0 && map[length - 1] == 0);
        map[0] = map[length - 1] = 1;
        CHECK(munmap(map, length) == 0);
    }
    for (int i = 0; i < 12; i++) free(held[i].at);
    return NULL;
}
static void threads(void) {
    pthread_t thread[4];
    for (uintptr_t i = 0; i < 4; i++) CHECK(pthread_create(&thread[i], NULL, churn, (void *)(i + 1)) == 0);
    for (int i = 0; i < 4; i++) CHECK(pthread_join(thread[i], NULL) == 0);
}

static volatile int go_on = 1;
static void *forever(void *argument) {
    while (go_on) churn(argument);
    return NULL;
}
// Nothing but the books, again and again.
static void *hurried(void *argument) {
    while (go_on) {
        void *block = malloc(MIB), *map = memory(2 * MIB);
        CHECK(block && munmap(map + MIB, MIB) == 0 && munmap(map, MIB) == 0);
        free(block);
    }
    return argument;
}
// A fork in the middle of other threads' work leaves nothing locked in the child.
static void forking_threads(void) {
    // Else a child might have the pool first.
    void *volatile first = malloc(MIB);
    free(first);
    pthread_t thread[3];
    for (uintptr_t i = 0; i < 3; i++) CHECK(pthread_create(&thread[i], NULL, i ? hurried : forever, (void *)(i + 1)) == 0);
    for (int i = 0; i < 200; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            alarm(20);
            char *at = malloc(MIB);
            fill(at, MIB, 1);
            free(at);
            void *map = memory(MIB);
            munmap(map, MIB);
            _exit(7);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    }
    go_on = 0;
    for (int i = 0; i < 3; i++) pthread_join(thread[i], NULL);
}

static void maps(void) {
    char *a = memory(8 * MIB);
    CHECK(zeros(a, 8 * MIB));
    fill(a, 8 * MIB, 1);
    // The middle goes, the ends stay.
    CHECK(munmap(a + 2 * MIB, 3 * MIB) == 0);
    CHECK(holds(a, 2 * MIB, 1));
    char copy[PAGE];
    fill(a, 8, 1);
    memcpy(copy, a + 5 * MIB, PAGE);
    char *b = memory(3 * MIB);
    CHECK(zeros(b, 3 * MIB));
    fill(b, 3 * MIB, 2);
    CHECK(!memcmp(copy, a + 5 * MIB, PAGE) && holds(a, 2 * MIB, 1));
    // Unmapping what is not mapped is no error; nor is a range over several mappings and holes.
    CHECK(munmap(b, 3 * MIB) == 0 && munmap(b, 3 * MIB) == 0);
    CHECK(munmap(a, 8 * MIB) == 0);
    char *c = memory(8 * MIB);
    CHECK(zeros(c, 8 * MIB));
    FAILS(munmap(c + 1, MIB), EINVAL);
    FAILS(munmap(c, 0), EINVAL);
    FAILS(mmap(NULL, 0, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), EINVAL);
    CHECK(munmap(c, 8 * MIB) == 0);
    // A length that is no multiple of a page.
    char *d = memory(MIB + 5);
    fill(d, MIB + PAGE, 3);
    CHECK(munmap(d, MIB + 5) == 0);
    // A hint is followed where nothing is in the way.
    char *e = memory(8 * MIB);
    CHECK(munmap(e, 2 * MIB) == 0 && munmap(e + 4 * MIB, 2 * MIB) == 0);
    char *f = mmap(e + 4 * MIB, 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(f == e + 4 * MIB && zeros(f, 2 * MIB));
    char *g = mmap(e + 2 * MIB, 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(g != MAP_FAILED && g != e + 2 * MIB);
    fill(f, 2 * MIB, 5);
    CHECK(zeros(g, 2 * MIB) && munmap(e, 8 * MIB) == 0 && munmap(g, 2 * MIB) == 0);
}

static void remaps(void) {
    char *a = memory(8 * MIB);
    fill(a, 8 * MIB, 1);
    CHECK(mremap(a, 8 * MIB, 3 * MIB, 0) == a && holds(a, 3 * MIB, 1));
    // Behind it is room again, with nothing in it.
    CHECK(mremap(a, 3 * MIB, 5 * MIB, 0) == a && holds(a, 3 * MIB, 1) && zeros(a + 3 * MIB, 2 * MIB));
    fill(a, 5 * MIB, 2);
    // Something is in the way: the second half stays where it is.
    FAILS(mremap(a, 2 * MIB, 4 * MIB, 0), ENOMEM);
    char *b = mremap(a, 2 * MIB, 20 * MIB, MREMAP_MAYMOVE);
    CHECK(b != MAP_FAILED && b != a && holds(b, 2 * MIB, 2) && zeros(b + 2 * MIB, 18 * MIB));
    char kept[16];
    memcpy(kept, a + 4 * MIB, 16);
    fill(b, 20 * MIB, 3);
    CHECK(!memcmp(kept, a + 4 * MIB, 16));
    CHECK(munmap(a + 2 * MIB, 3 * MIB) == 0);
    // To a place of the caller's, over what is there.
    char *target = memory(20 * MIB);
    fill(target, 20 * MIB, 4);
    CHECK(mremap(b, 20 * MIB, 10 * MIB, MREMAP_MAYMOVE | MREMAP_FIXED, target + 5 * MIB) == target + 5 * MIB);
    CHECK(holds(target + 5 * MIB, 10 * MIB, 3) && holds(target, 5 * MIB, 4));
    // Where it was nothing is; here memory that stays gets empty.
    char *c = mremap(target + 5 * MIB, 10 * MIB, 10 * MIB, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    CHECK(c != MAP_FAILED && holds(c, 10 * MIB, 3) && zeros(target + 5 * MIB, 10 * MIB) && holds(target, 5 * MIB, 4));
    CHECK(munmap(target, 20 * MIB) == 0 && munmap(c, 10 * MIB) == 0);
    char *d = memory(2 * MIB);
    FAILS(mremap(d + 1, MIB, MIB, 0), EINVAL);
    FAILS(mremap(d, MIB, 0, 0), EINVAL);
    FAILS(mremap(d, MIB, MIB, 64), EINVAL);
    FAILS(mremap(d, MIB, MIB, MREMAP_FIXED, d), EINVAL);
    FAILS(mremap(d, MIB, MIB, MREMAP_FIXED | MREMAP_MAYMOVE, d + PAGE), EINVAL);
    CHECK(munmap(d + MIB, MIB) == 0);
    FAILS(mremap(d, 2 * MIB, 3 * MIB, MREMAP_MAYMOVE), EFAULT);
    // What the kernel has moves over it.
    char *file = mmap(NULL, MIB, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *e = memory(4 * MIB);
    fill(e, 4 * MIB, 6);
    CHECK(mremap(file, MIB, MIB, MREMAP_MAYMOVE | MREMAP_FIXED, e + MIB) == e + MIB && zeros(e + MIB, MIB));
    CHECK(holds(e, MIB, 6));
    CHECK(mremap(e + MIB, MIB, PAGE, 0) == e + MIB && munmap(e, 4 * MIB) == 0);
}

static void advice(void) {
    char *a = memory(4 * MIB);
    fill(a, 4 * MIB, 1);
    CHECK(madvise(a + MIB, MIB, MADV_DONTNEED) == 0);
    CHECK(holds(a, MIB, 1) && zeros(a + MIB, MIB) && a[2 * MIB] != 0);
    // A length in the middle of a page takes all of that page; blocks of malloc can be advised on too.
    fill(a, 4 * MIB, 2);
    CHECK(madvise(a + PAGE, PAGE + 1, MADV_DONTNEED) == 0 && zeros(a + PAGE, 2 * PAGE) && holds(a, PAGE, 2));
    CHECK(a[3 * PAGE + 1] != 0);
    char *block = aligned_alloc(PAGE, 4 * MIB);
    fill(block, 4 * MIB, 3);
    CHECK(madvise(block, 2 * MIB, MADV_DONTNEED) == 0 && zeros(block, 2 * MIB) && block[2 * MIB + 1] != 0);
    free(block);
    FAILS(madvise(a + 1, PAGE, MADV_DONTNEED), EINVAL);
    FAILS(madvise(a, PAGE, 12345), EINVAL);
    FAILS(madvise(a, PAGE, 6), EINVAL);
    int harmless[] = {MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTFORK, MADV_DONTDUMP, MADV_COLD};
    for (int i = 0; i < 7; i++) CHECK(madvise(a, 4 * MIB, harmless[i]) == 0);
    CHECK(madvise(a, 0, MADV_DONTNEED) == 0);
    // A hole is said, and what is around it still done.
    fill(a, 4 * MIB, 4);
    CHECK(munmap(a + MIB, MIB) == 0);
    FAILS(madvise(a, 3 * MIB, MADV_DONTNEED), ENOMEM);
    CHECK(zeros(a, MIB) && zeros(a + 2 * MIB, MIB) && a[3 * MIB + 1] != 0);
    fill(a, MIB, 5);
    CHECK(madvise(a, MIB, MADV_FREE) == 0);
    fill(a, MIB, 6);
    CHECK(holds(a, MIB, 6) && munmap(a, 4 * MIB) == 0);
}

static void fixed(void) {
    int memory_flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    char *a = memory(8 * MIB);
    fill(a, 8 * MIB, 1);
    CHECK(mmap(a + MIB, MIB, PROT_READ | PROT_WRITE, memory_flags, -1, 0) == a + MIB);
    CHECK(holds(a, MIB, 1) && zeros(a + MIB, MIB) && a[2 * MIB + 1] != 0);
    // Without access, then with it again.
    CHECK(mmap(a + MIB, MIB, PROT_NONE, memory_flags, -1, 0) == a + MIB && write_faults(a + MIB + 5));
    CHECK(mprotect(a + MIB, MIB, PROT_READ | PROT_WRITE) == 0 && zeros(a + MIB, MIB));
    CHECK(mmap(a + MIB, MIB, PROT_NONE, memory_flags, -1, 0) == a + MIB && write_faults(a + MIB + 5));
    CHECK(mmap(a + MIB, MIB, PROT_READ | PROT_WRITE, memory_flags, -1, 0) == a + MIB && !write_faults(a + MIB + 5));
    // A file over a part.
    char name[] = "/tmp/overbank-fixed-XXXXXX";
    int file = mkstemp(name);
    CHECK(file >= 0 && unlink(name) == 0);
    char *bytes = malloc(MIB);
    fill(bytes, MIB, 2);
    CHECK(write(file, bytes, MIB) == (ssize_t)MIB);
    free(bytes);
    FAILS(mmap(a + 2 * MIB, MIB, PROT_READ, MAP_PRIVATE | MAP_FIXED, 12345, 0), EBADF);
    CHECK(a[2 * MIB + 1] != 0);
    CHECK(mmap(a + 2 * MIB, MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == a + 2 * MIB);
    CHECK(holds(a + 2 * MIB, MIB, 2) && holds(a, MIB, 1) && a[3 * MIB + 1] != 0);
    a[2 * MIB] = 77;
    char first;
    CHECK(pread(file, &first, 1, 0) == 1 && first == 77);
    CHECK(madvise(a + 2 * MIB, MIB, MADV_DONTNEED) == 0 && a[2 * MIB] == 77);
    // It goes with the rest; new memory is never there without being asked for.
    CHECK(munmap(a, 8 * MIB) == 0);
    char *b = memory(8 * MIB);
    CHECK(zeros(b, 8 * MIB));
    fill(b, 8 * MIB, 3);
    CHECK(pread(file, &first, 1, 0) == 1 && first == 77 && holds(b, 8 * MIB, 3));
    CHECK(munmap(b, 8 * MIB) == 0);
}

static void protection(void) {
    char *a = memory(4 * MIB);
    fill(a, 4 * MIB, 1);
    CHECK(mprotect(a, MIB, PROT_READ) == 0 && holds(a, MIB, 1) && write_faults(a) && !write_faults(a + MIB));
    CHECK(mprotect(a, MIB, PROT_READ | PROT_WRITE) == 0 && !write_faults(a));
    // What goes while it cannot be written is sound when it comes again.
    for (int i = 0; i < 20; i++) {
        char *b = memory(2 * MIB);
        CHECK(!write_faults(b) && !write_faults(b + 2 * MIB - 1));
        CHECK(mprotect(b + PAGE, MIB, PROT_NONE) == 0 && munmap(b, 2 * MIB) == 0);
        char *c = aligned_alloc(PAGE, 2 * MIB);
        CHECK(!write_faults(c + PAGE) && mprotect(c, PAGE, PROT_READ) == 0 && write_faults(c));
        CHECK(mprotect(c, PAGE, PROT_READ | PROT_WRITE) == 0);
        free(c);
    }
    CHECK(munmap(a + MIB, MIB) == 0);
    FAILS(mprotect(a, 3 * MIB, PROT_READ), ENOMEM);
    FAILS(mprotect(a + 1, MIB, PROT_READ), EINVAL);
    CHECK(munmap(a, 4 * MIB) == 0);
}

// Whether this user may lock memory as `locks` does.
static void can_lock(void) {
    void *at = memory(32 * MIB);
    if (mlock(at, 32 * MIB) != 0) exit(3);
}

// Only where 8 MiB of the pool may be local.
static void locks(void) {
    unsigned char resident[2048];
    char *a = memory(8 * MIB), *b = memory(8 * MIB);
    CHECK(mincore(a, 8 * MIB, resident) == 0 && !(resident[0] & 1) && !(resident[2047] & 1));
    a[5 * PAGE] = 1;
    CHECK(mincore(a, 8 * MIB, resident) == 0 && (resident[5] & 1) && !(resident[6] & 1));
    CHECK(mlock(a + 5, MIB) == 0 && mincore(a, 8 * MIB, resident) == 0 && (resident[0] & 1) && (resident[256] & 1));
    CHECK(mlock(a, 2 * MIB) == 0);
    FAILS(mlock(b, 7 * MIB), ENOMEM);
    CHECK(mlock(b, 6 * MIB) == 0);
    FAILS(mlock(a + 2 * MIB, MIB), ENOMEM);
    CHECK(munlock(b, MIB) == 0 && mlock(a + 2 * MIB, MIB) == 0);
    FAILS(mlock(a + 3 * MIB, MIB), ENOMEM);
    // What is unmapped counts no more.
    CHECK(munmap(a, 8 * MIB) == 0 && mlock(b, 8 * MIB) == 0);
    CHECK(munlockall() == 0);
    a = memory(8 * MIB);
    CHECK(mlock(a, 8 * MIB) == 0);
    FAILS(mlockall(MCL_CURRENT), ENOMEM);
    CHECK(munmap(b, 8 * MIB) == 0 && mlockall(MCL_CURRENT) == 0 && munlockall() == 0);
    CHECK(munmap(a + MIB, MIB) == 0);
    FAILS(mlock(a, 4 * MIB), ENOMEM);
    FAILS(mincore(a, 4 * MIB, resident), ENOMEM);
    CHECK(munmap(a, 8 * MIB) == 0);
}

// Only with the library: in a child the pool is not there, and nothing else is in its place.
static void child(const char *does) {
    char *a = malloc(4 * MIB), *map = memory(4 * MIB);
    fill(a, 4 * MIB, 1);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        if (!strcmp(does, "reads")) _exit(a[5]);
        if (!strcmp(does, "grows")) { a = realloc(a, 8 * MIB); _exit(a[5]); }
        if (!strcmp(does, "reads-later")) {
            // It gets gigabytes of other memory, none of it there.
            for (int i = 0; i < 64; i++) memset(memory(64 * MIB), 1, PAGE);
            free(malloc(64 * MIB));
            _exit(map[5]);
        }
        // All that needs none of it works.
        CHECK(malloc_usable_size(a) >= 4 * MIB);
        free(a);
        char *own = malloc(4 * MIB);
        CHECK(own && munmap(map, 4 * MIB) == 0);
        fill(own, 4 * MIB, 2);
        CHECK(holds(own, 4 * MIB, 2));
        own = realloc(own, 9 * MIB);
        CHECK(holds(own, 4 * MIB, 2));
        free(own);
        if (fork() == 0) _exit(3);
        int status;
        CHECK(wait(&status) > 0 && WEXITSTATUS(status) == 3);
        execl("/bin/sh", "sh", "-c", "exit 5", NULL);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && holds(a, 4 * MIB, 1));
    printf("%d\n", WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status));
}

// Only with the library: 64 MiB are more than there is.
static void full(void) {
    char *a = malloc(20 * MIB);
    CHECK(a);
    errno = 0;
    char *b = malloc(64 * MIB), *c = mmap(NULL, 64 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("%d %d %d\n", b != NULL, c != MAP_FAILED, errno);
    char *d = realloc(a, 64 * MIB);
    if (!d) free(a);
    free(d);
    free(b);
}

// Its own end, without the C library's.
static void ends(void) {
    char *a = malloc(4 * MIB);
    fill(a, 4 * MIB, 1);
    write(1, "ok\n", 3);
    _exit(9);
}

static void twice(void) {
    char *volatile a = malloc(4 * MIB);
    free(a);
    free(a);
}

// Holds the pool until its standard input ends.
static void waits(void) {
    char *a = malloc(4 * MIB);
    fill(a, 4 * MIB, 1);
    write(1, "ready\n", 6);
    char byte;
    read(0, &byte, 1);
}

int main(int count, char **words) {
    CHECK(count >= 2);
    struct { const char *name; void (*does)(void); } cases[] = {
        {"blocks", blocks}, {"growth", growth}, {"threads", threads}, {"forking-threads", forking_threads}, {"maps", maps},
        {"remaps", remaps}, {"advice", advice}, {"fixed", fixed}, {"protection", protection}, {"can-lock", can_lock}, {"locks", locks},
        {"full", full}, {"ends", ends}, {"twice", twice}, {"waits", waits},
    };
    if (!strcmp(words[1], "child")) { child(words[2]); return 0; }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (!strcmp(words[1], cases[i].name)) { cases[i].does(); printf("ok\n"); return 0; }
    return 2;
}
