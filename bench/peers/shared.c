/* Shared memory, and nothing else: the asking end sets a word, the answering end copies the bytes into memory that both
   have and sets another, the asking end copies them out. One at a time; what two processes of one machine cannot beat. */
#define _GNU_SOURCE
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LINE = 64, BYTES = 4096 };

/* The beginning of what both have: the words, each in a line of the processor's cache. The bytes follow at BYTES. */
struct both {
    _Alignas(LINE) _Atomic uint64_t asked;
    size_t offset, size;
    _Alignas(LINE) _Atomic uint64_t answered;
};

static struct both *both;
static unsigned char *own;
static size_t room, asked_slot;
static uint64_t number;
static int lends;

void library_version(const char *provider, char *out, size_t out_room)
{
    snprintf(out, out_room, "%s: a memfd that both have mapped", provider);
}

static void map(int file)
{
    both = mmap(NULL, BYTES + room, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
    if (both == MAP_FAILED)
        fail("mmap: %s", strerror(errno));
}

void library_lend(const char *provider, unsigned char *memory, size_t length)
{
    int file = memfd_create(provider, MFD_CLOEXEC);
    own = memory;
    room = length;
    lends = 1;
    if (file < 0 || ftruncate(file, (off_t)(BYTES + length)) != 0)
        fail("memfd_create: %s", strerror(errno));
    map(file);
    printf("%d %d \n", getpid(), file);
}

void library_reach(const char *provider, const char *line, unsigned char *memory, size_t length)
{
    char path[64];
    uint64_t process = parse_number(&line), file = parse_number(&line);
    (void)provider;
    own = memory;
    room = length;
    snprintf(path, sizeof path, "/proc/%" PRIu64 "/fd/%" PRIu64, process, file);
    int opened = open(path, O_RDWR | O_CLOEXEC);
    if (opened < 0)
        fail("open %s: %s", path, strerror(errno));
    map(opened);
}

void library_post(enum op op, size_t slot, size_t offset, size_t size, int delivered)
{
    (void)delivered;
    if (op != OP_READ || slot != 0)
        fail("only READs, one at a time");
    asked_slot = slot;
    both->offset = offset;
    both->size = size;
    atomic_store_explicit(&both->asked, ++number, memory_order_release);
}

void library_move(void)
{
    unsigned char *bytes = (unsigned char *)both + BYTES;
    if (lends) {
        uint64_t asked = atomic_load_explicit(&both->asked, memory_order_acquire);
        if (asked == number)
            return;
        number = asked;
        if (both->offset > room || both->size > room - both->offset)
            fail("asked for more than is lent");
        memcpy(bytes, own + both->offset, both->size);
        atomic_store_explicit(&both->answered, asked, memory_order_release);
    } else if (atomic_load_explicit(&both->answered, memory_order_acquire) == number) {
        memcpy(own + both->offset, bytes, both->size);
        ended(asked_slot);
    }
}

void library_flush(void) {}
