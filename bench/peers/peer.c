/* One end of a comparison: READs or WRITEs through a communication library, timed one by one or counted by the second.

     peer PROVIDER version
     peer PROVIDER SECONDS server LENGTH
     peer PROVIDER SECONDS client read|write SIZE DEPTH times WARMUP COUNT
     peer PROVIDER SECONDS client read|write SIZE DEPTH rate WARMUP_NS TIME_NS COUNT

   The server says one line, which the client is given on its standard input. After SECONDS either ends by itself. The
   client says "time NS" for each operation, or "rate OPERATIONS NS", once it has seen that all bytes are right. */
#define _GNU_SOURCE
#include "peer.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

/* Slots that have ended and wait to be used again. */
static size_t *free_slots, *batch;
static size_t free_count, slot_count;
/* How many have, since the start. */
static uint64_t endings;

static void complain(const char *format, va_list arguments)
{
    fputs("peer: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

_Noreturn void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    complain(format, arguments);
    va_end(arguments);
    exit(1);
}

_Noreturn void missing(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    complain(format, arguments);
    va_end(arguments);
    exit(3);
}

void ended(size_t slot)
{
    if (free_count >= slot_count)
        fail("slot %zu ended twice", slot);
    free_slots[free_count++] = slot;
    endings++;
}

void print_hex(const void *bytes, size_t length)
{
    const unsigned char *each = bytes;
    for (size_t at = 0; at < length; at++)
        printf("%02x", each[at]);
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

unsigned char *parse_hex(const char **text, size_t *length)
{
    size_t digits = strspn(*text, "0123456789abcdef");
    unsigned char *bytes = malloc(digits / 2 + 1);
    if (bytes == NULL || digits % 2 != 0 || ((*text)[digits] != ' ' && (*text)[digits] != '\n'))
        fail("what the server said is not understood");
    for (size_t at = 0; at < digits / 2; at++)
        bytes[at] = (unsigned char)(digit((*text)[2 * at]) << 4 | digit((*text)[2 * at + 1]));
    *length = digits / 2;
    *text += digits + 1;
    return bytes;
}

uint64_t parse_number(const char **text)
{
    char *end;
    errno = 0;
    uint64_t number = strtoull(*text, &end, 10);
    if (errno != 0 || end == *text || **text < '0' || **text > '9' || (*end != ' ' && *end != '\n' && *end != '\0'))
        fail("'%s' is no number", *text);
    *text = *end == '\0' ? end : end + 1;
    return number;
}

static uint64_t now(void)
{
    struct timespec time;
    if (clock_gettime(CLOCK_MONOTONIC, &time) != 0)
        fail("clock_gettime: %s", strerror(errno));
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void too_late(int signal)
{
    static const char text[] = "peer: did not come to its end in time\n";
    ssize_t ignored = write(2, text, sizeof text - 1);
    (void)signal;
    (void)ignored;
    _exit(4);
}

/* Nothing here may outlive its time, or who started it. */
static void end_after(uint64_t seconds)
{
    if (seconds == 0 || seconds > 100000)
        fail("SECONDS is 1 to 100000");
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || signal(SIGALRM, too_late) == SIG_ERR)
        fail("cannot arrange for an end: %s", strerror(errno));
    alarm((unsigned)seconds);
}

static unsigned char *memory_of(size_t length)
{
    void *memory;
    int error = posix_memalign(&memory, 4096, length);
    if (error != 0)
        fail("no memory for %zu bytes: %s", length, strerror(error));
    memset(memory, 0, length);
    return memory;
}

/* The byte at this offset of memory that holds `contents`. */
static unsigned char byte(unsigned char contents, size_t offset)
{
    return (unsigned char)(offset ^ offset >> 8 ^ offset >> 12) ^ contents;
}

static void fill(unsigned char contents, unsigned char *memory, size_t length)
{
    for (size_t at = 0; at < length; at++)
        memory[at] = byte(contents, at);
}

static void check(unsigned char contents, const unsigned char *memory, size_t length)
{
    for (size_t at = 0; at < length; at++)
        if (memory[at] != byte(contents, at))
            fail("succeeded, and the byte at %zu is wrong", at);
}

void move_on(void)
{
    enum { POLLS = 1 << 14 };
    static const uint64_t limit = 5000000000;
    static uint64_t polls, since, before;
    library_move();
    if (endings != before || polls == 0) {
        before = endings;
        polls = 1;
        since = 0;
    } else if (++polls % POLLS == 0) {
        uint64_t at = now();
        if (since == 0)
            since = at;
        if (at - since > limit)
            fail("the other end did not answer within 5 seconds");
    }
}

static void until_all_ended(void)
{
    while (free_count < slot_count)
        move_on();
}

static void times(enum op op, size_t size, uint64_t warmup, uint64_t count, uint64_t *looks)
{
    for (uint64_t done = 0; done < warmup + count; done++) {
        if (done >= warmup)
            looks[done - warmup] = now();
        free_count--;
        library_post(op, 0, 0, size, 1);
        until_all_ended();
    }
    looks[count] = now();
}

struct rate {
    uint64_t operations, nanoseconds;
};

/* Posts all slots that have ended. Some may end at once: those are for the next time. */
static void post_all(enum op op, size_t size)
{
    size_t count = free_count;
    memcpy(batch, free_slots, count * sizeof *batch);
    free_count = 0;
    for (size_t at = 0; at < count; at++)
        library_post(op, batch[at], batch[at] * size, size, 0);
}

static struct rate rate(enum op op, size_t size, uint64_t warmup, uint64_t time, uint64_t count)
{
    uint64_t all = 0, begin = now(), from = 0, before = 0;
    post_all(op, size);
    for (;;) {
        move_on();
        if (free_count == 0)
            continue;
        all += free_count;
        uint64_t at = now();
        if (from == 0 && at - begin >= warmup) {
            from = at;
            before = all;
        } else if (from != 0 && (count > 0 ? all - before >= count : at - from >= time)) {
            until_all_ended();
            return (struct rate){all - before, at - from};
        }
        post_all(op, size);
    }
}

static void client(const char *provider, char **words, int number)
{
    if (number < 6)
        fail("too few arguments");
    const char *numbers[] = {words[1], words[2], words[4], words[5], number > 6 ? words[6] : "0"};
    enum op op = strcmp(words[0], "write") == 0 ? OP_WRITE : OP_READ;
    size_t size = parse_number(&numbers[0]), depth = parse_number(&numbers[1]);
    uint64_t first = parse_number(&numbers[2]), second = parse_number(&numbers[3]), third = parse_number(&numbers[4]);
    int timed = strcmp(words[3], "times") == 0;
    if (size == 0 || depth == 0 || depth > 4096 || size > (1UL << 30) / depth || (timed && (depth != 1 || second > 100000000)))
        fail("SIZE, DEPTH or COUNT is out of range");

    static char line[1 << 16];
    if (fgets(line, sizeof line, stdin) == NULL)
        fail("nobody said where the server is");
    slot_count = depth;
    free_slots = calloc(depth, sizeof *free_slots);
    batch = calloc(depth, sizeof *batch);
    uint64_t *looks = calloc(timed ? second + 1 : 1, sizeof *looks);
    if (free_slots == NULL || batch == NULL || looks == NULL)
        fail("no memory");
    for (size_t slot = 0; slot < depth; slot++)
        ended(slot);
    size_t length = size * depth;
    unsigned char *memory = memory_of(length), contents = op == OP_WRITE;
    if (op == OP_WRITE)
        fill(contents, memory, length);
    library_reach(provider, line, memory, length);

    struct rate result = {0, 0};
    if (timed)
        times(op, size, first, second, looks);
    else
        result = rate(op, size, first, second, third);

    if (op == OP_WRITE) {
        library_flush();
        memset(memory, 0, length);
        post_all(OP_READ, size);
        until_all_ended();
    }
    check(contents, memory, length);
    for (uint64_t at = 0; timed && at < second; at++)
        printf("time %" PRIu64 "\n", looks[at + 1] - looks[at]);
    if (!timed)
        printf("rate %" PRIu64 " %" PRIu64 "\n", result.operations, result.nanoseconds);
    if (fflush(stdout) != 0)
        fail("cannot print the result: %s", strerror(errno));
    /* Without a farewell: the other end is ended by whoever started it. */
    _exit(0);
}

int main(int count, char **words)
{
    if (count == 3 && strcmp(words[2], "version") == 0) {
        char version[256];
        library_version(words[1], version, sizeof version);
        puts(version);
        return fflush(stdout) == 0 ? 0 : 1;
    }
    if (count < 5)
        fail("too few arguments");
    const char *seconds = words[2], *length = words[4];
    end_after(parse_number(&seconds));
    if (strcmp(words[3], "client") == 0)
        client(words[1], words + 4, count - 4);
    if (strcmp(words[3], "server") != 0)
        fail("neither server nor client: %s", words[3]);
    size_t bytes = parse_number(&length);
    if (bytes == 0 || bytes > 1UL << 30)
        fail("LENGTH is out of range");
    unsigned char *memory = memory_of(bytes);
    fill(0, memory, bytes);
    library_lend(words[1], memory, bytes);
    if (fflush(stdout) != 0)
        fail("cannot say where this is: %s", strerror(errno));
    for (;;)
        library_move();
}
