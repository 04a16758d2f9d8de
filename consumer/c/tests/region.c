/* A lease as memory: what a caller may do with it and what not. Argument 1 is the device; argument 2, if there is one, the end that the
 * region takes: "lost" has it lost. Prints "ok" where all went as it should. */
#include "expect.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096u
#define PAGES 256u
#define SIZE (PAGES * PAGE)
#define LOCAL (64u * PAGE)

static overbank_region *region;
static unsigned char *memory;
static const char *device;

static overbank_region_options by_default(void) {
    static overbank_attach_options attach;
    memset(&attach, 0, sizeof attach);
    attach.size = sizeof attach;
    attach.device = device;
    overbank_region_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.local_bytes = LOCAL;
    options.attach = &attach;
    return options;
}

static unsigned char at(size_t offset) { return (unsigned char)(offset * 2654435761u >> 11); }

/* A page that is not here now. */
static size_t away(void) {
    unsigned char here[PAGES];
    SO(mincore(memory, SIZE, here) == 0);
    for (size_t page = 0; page < PAGES; page++) {
        if (!(here[page] & 1)) return page * PAGE;
    }
    SO(!"all are here");
    return 0;
}

/* A quarter of the memory, written and read over and over by one thread while others do the same. */
static void *quarter(void *which) {
    size_t len = SIZE / 4, first = (size_t)which * len;
    for (unsigned round = 0; round < 4; round++) {
        for (size_t i = first; i < first + len; i++) memory[i] = (unsigned char)(at(i) + round);
        for (size_t i = first; i < first + len; i++) SO(memory[i] == (unsigned char)(at(i) + round));
    }
    return NULL;
}

/* In a call with the region for as long as it is one. */
static void *fetch_on(void *stop) {
    while (!__atomic_load_n((int *)stop, __ATOMIC_SEQ_CST)) OK(overbank_region_fetch(region, 0, SIZE));
    return NULL;
}

static void cannot_be_opened(overbank_client *client, overbank_lease *lease) {
    overbank_region_options options = by_default();
    overbank_attach_options attach = *options.attach;
    overbank_lane *lane;
    char text[4] = "here";
    SO(overbank_region_open(lease, &options, NULL) == OVERBANK_USAGE);
    REFUSED(OVERBANK_USAGE, "options is null", overbank_region_open(lease, NULL, &region));
    REFUSED(OVERBANK_USAGE, "the lease is null", overbank_region_open(NULL, &options, &region));
    REFUSED(OVERBANK_CLOSED, "no open lease", overbank_region_open((overbank_lease *)client, &options, &region));
    options.size = 0;
    REFUSED(OVERBANK_USAGE, "size is 0", overbank_region_open(lease, &options, &region));
    options = by_default();
    options.local_bytes = 0;
    REFUSED(OVERBANK_USAGE, "0 pages of local memory", overbank_region_open(lease, &options, &region));
    SO(region == NULL);
    options = by_default();
    options.page = 12288;
    REFUSED(OVERBANK_USAGE, "12288", overbank_region_open(lease, &options, &region));
    options.page = 512;
    REFUSED(OVERBANK_USAGE, "512", overbank_region_open(lease, &options, &region));
    options.page = 2 * SIZE;
    REFUSED(OVERBANK_USAGE, "", overbank_region_open(lease, &options, &region));
    options = by_default();
    options.faults = 2;
    REFUSED(OVERBANK_USAGE, "faults is 2", overbank_region_open(lease, &options, &region));
    options = by_default();
    options.fetchers = 16;
    REFUSED(OVERBANK_USAGE, "not 1 to 15", overbank_region_open(lease, &options, &region));
    options = by_default();
    options.reserved = 1;
    REFUSED(OVERBANK_USAGE, "reserved", overbank_region_open(lease, &options, &region));
    options = by_default();
    options.attach = &attach;
    attach.address = text;
    text[3] = 0;
    REFUSED(OVERBANK_USAGE, "options.attach.address is 'her'", overbank_region_open(lease, &options, &region));
    attach.address = NULL;
    attach.size = 1;
    REFUSED(OVERBANK_USAGE, "options.attach says that its size is 1", overbank_region_open(lease, &options, &region));
    attach.size = sizeof attach;
    attach.device = "no-such-device";
    REFUSED(OVERBANK_DEVICE, "no-such-device", overbank_region_open(lease, &options, &region));
    /* The lease is what it was: its handle stands for it, and what was in it is there. */
    OK(overbank_lease_attach(lease, by_default().attach));
    OK(overbank_lease_read(lease, 7, text, 4));
    SO(memcmp(text, "what", 4) == 0);
    options = by_default();
    OK(overbank_lease_split(lease, &lane, 1));
    REFUSED(OVERBANK_BUSY, "lanes", overbank_region_open(lease, &options, &region));
    OK(overbank_lane_close(lane));
}

static void comes_and_goes(void) {
    overbank_stats stats;
    for (size_t i = 0; i < SIZE; i += 64) SO(memory[i] == 0);
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++) SO(pthread_create(&threads[i], NULL, quarter, (void *)i) == 0);
    for (int i = 0; i < 100; i++) {
        stats.size = sizeof stats;
        OK(overbank_region_stats(region, &stats));
        SO(stats.resident_bytes <= LOCAL);
    }
    for (int i = 0; i < 4; i++) SO(pthread_join(threads[i], NULL) == 0);
    OK(overbank_region_stats(region, &stats));
    SO(stats.size == sizeof stats && stats.bytes == SIZE && stats.page_bytes == PAGE && stats.local_bytes == LOCAL);
    SO(stats.evicted > PAGES && stats.stored > PAGES && stats.fetched > PAGES && stats.zeroed >= PAGES);
    SO(stats.faults > PAGES && stats.peak_resident_bytes <= LOCAL && stats.peak_resident_bytes > LOCAL / 2);
    SO(stats.fault_p50_ns > 100 && stats.fault_p99_ns >= stats.fault_p50_ns);
    /* A caller that knows less is told less. */
    memset(&stats, 7, sizeof stats);
    stats.size = 16;
    OK(overbank_region_stats(region, &stats));
    SO(stats.size == 16 && stats.bytes == SIZE && stats.page_bytes == 0x0707070707070707);
    stats.size = 0;
    REFUSED(OVERBANK_USAGE, "stats says that its size is 0", overbank_region_stats(region, &stats));
    REFUSED(OVERBANK_USAGE, "stats is null", overbank_region_stats(region, NULL));
}

static void is_held_and_let_go(void) {
    unsigned char back[PAGE];
    uint64_t zeroed = 0;
    int pipes[2];
    SO(pipe(pipes) == 0);
    /* The kernel brings no page by itself, and takes one that is held. */
    size_t gone = away();
    SO(write(pipes[1], memory + gone, PAGE) == -1 && errno == EFAULT);
    OK(overbank_region_hold(region, gone + 5, 1));
    OK(overbank_region_fetch(region, 0, SIZE));
    SO(write(pipes[1], memory + gone, PAGE) == PAGE && read(pipes[0], back, PAGE) == PAGE);
    SO(memcmp(back, memory + gone, PAGE) == 0 && back[5] == (unsigned char)(at(gone + 5) + 3));
    OK(overbank_region_unhold(region, 0, SIZE));
    REFUSED(OVERBANK_DOES_NOT_FIT, "hold less", overbank_region_hold(region, 0, SIZE));
    OK(overbank_region_hold(region, 0, PAGE));
    OK(overbank_region_unhold(region, 0, PAGE));
    SO(close(pipes[0]) == 0 && close(pipes[1]) == 0);

    OK(overbank_region_discard(region, PAGE - 1, 2 * PAGE + 1, &zeroed));
    SO(zeroed == 2 * PAGE && memory[PAGE - 1] == (unsigned char)(at(PAGE - 1) + 3) && memory[3 * PAGE] != 0);
    for (size_t i = PAGE; i < 3 * PAGE; i++) SO(memory[i] == 0);
    OK(overbank_region_discard(region, 1, PAGE, &zeroed));
    SO(zeroed == 0);
    OK(overbank_region_discard(region, SIZE, 0, NULL));
    REFUSED(OVERBANK_DOES_NOT_FIT, "", overbank_region_discard(region, SIZE, 1, &zeroed));
    REFUSED(OVERBANK_DOES_NOT_FIT, "", overbank_region_fetch(region, UINT64_MAX, 1));
    REFUSED(OVERBANK_DOES_NOT_FIT, "", overbank_region_hold(region, 1, SIZE_MAX));
    REFUSED(OVERBANK_DOES_NOT_FIT, "", overbank_region_unhold(region, 0, SIZE + 1));
}

/* A forked child has neither the memory nor the handle. */
static void is_not_in_a_child(void) {
    int status;
    for (int touch = 0; touch < 2; touch++) {
        pid_t child = fork();
        SO(child >= 0);
        if (child == 0) {
            REFUSED(OVERBANK_CLOSED, "forked", overbank_region_check(region));
            REFUSED(OVERBANK_CLOSED, "forked", overbank_region_release(region, 0, NULL));
            if (touch) memory[0] = 1;
            _exit(0);
        }
        SO(waitpid(child, &status, 0) == child);
        SO(touch ? WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV : WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

/* Faults by a thread: where this user may, the kernel brings pages itself. */
static void is_the_kernels_too(overbank_client *client) {
    overbank_region_options options = by_default();
    overbank_lease *lease;
    size_t len;
    void *start;
    int pipes[2];
    /* What makes no whole page is left out. */
    OK(overbank_lease_create(client, SIZE + 100, 600000, 0, &lease));
    options.faults = OVERBANK_FAULTS_THREAD;
    options.ahead_bytes = 1;
    options.fetchers = 1;
    options.patience_ms = options.renew_to_ms = UINT64_MAX;
    overbank_status status = overbank_region_open(lease, &options, &region);
    if (status == OVERBANK_LOCAL) {
        SO(strstr(overbank_last_error(), "userfaultfd") != NULL);
        OK(overbank_lease_release(lease, 0, NULL));
        return;
    }
    OK(status);
    OK(overbank_region_memory(region, &start, &len));
    SO(len == SIZE);
    memory = start;
    for (size_t i = 0; i < SIZE; i++) memory[i] = at(i);
    SO(pipe(pipes) == 0);
    size_t gone = away();
    SO(write(pipes[1], memory + gone, PAGE) == PAGE);
    size_t other = away();
    SO(read(pipes[0], memory + other, PAGE) == PAGE && memcmp(memory + other, memory + gone, PAGE) == 0);
    SO(memory[gone + 9] == at(gone + 9) && close(pipes[0]) == 0 && close(pipes[1]) == 0);
    OK(overbank_region_release(region, 0, NULL));
}

static void is_lost(void) {
    for (size_t i = 0; i < SIZE; i++) memory[i] = at(i);
    OK(overbank_region_check(region));
    char id[OVERBANK_LEASE_ID_LEN];
    OK(overbank_region_lease_id(region, id, sizeof id));
    puts(id);
    fflush(stdout);
    (void)getchar();
    REFUSED(OVERBANK_LEASE_LOST, "", overbank_region_fetch(region, 0, SIZE));
    REFUSED(OVERBANK_LEASE_LOST, "", overbank_region_check(region));
    size_t gone = away();
    puts("lost");
    fflush(stdout);
    printf("it was %d\n", memory[gone]);
    fflush(stdout);
}

int main(int argc, char **argv) {
    SO(argc >= 2);
    device = argv[1];
    overbank_client *client;
    overbank_lease *lease;
    overbank_region_options options = by_default();
    char text[64], own[64];
    size_t len = 0;
    void *start = NULL;
    bool yes = false;
    OK(overbank_connect(NULL, &client));
    OK(overbank_lease_create(client, SIZE, 600000, 0, &lease));
    OK(overbank_lease_id(lease, own, sizeof own));
    if (argc == 2) {
        OK(overbank_lease_attach(lease, options.attach));
        OK(overbank_lease_write(lease, 7, "what was there", 14));
        cannot_be_opened(client, lease);
    }
    options = by_default();
    options.patience_ms = 8000;
    OK(overbank_region_open(lease, &options, &region));
    REFUSED(OVERBANK_CLOSED, "no open lease", overbank_lease_read(lease, 0, text, 1));
    uint64_t bytes;
    REFUSED(OVERBANK_CLOSED, "no open lease", overbank_lease_bytes(lease, &bytes));
    REFUSED(OVERBANK_CLOSED, "no open lease", overbank_lease_close(lease));
    REFUSED(OVERBANK_CLOSED, "no open lease", overbank_lease_close((overbank_lease *)region));
    REFUSED(OVERBANK_CLOSED, "no open region", overbank_region_check((overbank_region *)lease));
    REFUSED(OVERBANK_LOCAL, "in use", overbank_lease_open(client, own, &lease));
    OK(overbank_client_close(client));
    REFUSED(OVERBANK_USAGE, "start is null", overbank_region_memory(region, NULL, &len));
    REFUSED(OVERBANK_USAGE, "len is null", overbank_region_memory(region, &start, NULL));
    REFUSED(OVERBANK_USAGE, "the region is null", overbank_region_memory(NULL, &start, &len));
    REFUSED(OVERBANK_USAGE, "33 are needed", overbank_region_lease_id(region, text, 32));
    OK(overbank_region_lease_id(region, text, sizeof text));
    SO(strcmp(text, own) == 0);
    OK(overbank_region_memory(region, &start, &len));
    SO(len == SIZE && start != NULL && (uintptr_t)start % PAGE == 0);
    memory = start;
    if (argc > 2) {
        is_lost();
        return 0;
    }
    comes_and_goes();
    is_held_and_let_go();
    is_not_in_a_child();
    OK(overbank_region_check(region));

    /* No end while somebody is in a call. */
    int stop = 0;
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) SO(pthread_create(&threads[i], NULL, fetch_on, &stop) == 0);
    usleep(20000);
    REFUSED(OVERBANK_BUSY, "another thread", overbank_region_release(region, 0, NULL));
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 2; i++) SO(pthread_join(threads[i], NULL) == 0);
    OK(overbank_region_release(region, 10000, &yes));
    SO(yes);
    REFUSED(OVERBANK_CLOSED, "no open region", overbank_region_release(region, 0, &yes));
    SO(!yes);
    REFUSED(OVERBANK_CLOSED, "no open region", overbank_region_check(region));
    OK(overbank_region_release(NULL, 0, NULL));

    OK(overbank_connect(NULL, &client));
    REFUSED(OVERBANK_LEASE_OVER, "", overbank_lease_open(client, own, &lease));
    is_the_kernels_too(client);
    OK(overbank_client_close(client));
    puts("ok");
    return 0;
}
