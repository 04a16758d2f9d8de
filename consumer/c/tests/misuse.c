/* Everything that a caller can do wrong: an error each, with words, and no memory touched. Argument 1 is the device. Prints
 * "ok" where all went as it should. */
#include "expect.h"

#include <pthread.h>

#define SIZE (8u << 20)

static overbank_lease *shared;
static overbank_lane *one_lane;
static unsigned char *much;
static pthread_barrier_t both;
static int busy[2];

/* Reads all of it over and over, until somebody was sent away. */
static void *read_lease(void *which) {
    unsigned char *mine = malloc(SIZE);
    pthread_barrier_wait(&both);
    for (int i = 0; i < 200 && !busy[0] && !busy[1]; i++) {
        overbank_status status = overbank_lease_read(shared, 0, mine, SIZE);
        if (status == OVERBANK_BUSY) {
            SO(strstr(overbank_last_error(), "one thread at a time") != NULL);
            for (size_t at = 0; at < SIZE; at++) SO(mine[at] == 0);
            __atomic_store_n((int *)which, 1, __ATOMIC_SEQ_CST);
        } else {
            SO(status == OVERBANK_OK && memcmp(mine, much, SIZE) == 0);
        }
        SO(overbank_lease_close(NULL) == OVERBANK_OK);
    }
    free(mine);
    return NULL;
}

static void *read_lane(void *which) {
    unsigned char *mine = malloc(SIZE);
    pthread_barrier_wait(&both);
    for (int i = 0; i < 200 && !busy[0] && !busy[1]; i++) {
        overbank_status status = overbank_lane_read(one_lane, 0, mine, SIZE);
        if (status == OVERBANK_BUSY) {
            __atomic_store_n((int *)which, 1, __ATOMIC_SEQ_CST);
        } else {
            SO(status == OVERBANK_OK && memcmp(mine, much, SIZE) == 0);
        }
    }
    free(mine);
    return NULL;
}

/* Two threads with one handle: one of them is sent away. */
static void two(void *(*step)(void *)) {
    pthread_t threads[2];
    busy[0] = busy[1] = 0;
    pthread_barrier_init(&both, NULL, 2);
    for (int i = 0; i < 2; i++) SO(pthread_create(&threads[i], NULL, step, &busy[i]) == 0);
    for (int i = 0; i < 2; i++) SO(pthread_join(threads[i], NULL) == 0);
    pthread_barrier_destroy(&both);
    SO(busy[0] || busy[1]);
}

static void *own_words(void *unused) {
    SO(overbank_last_error()[0] == 0);
    return unused;
}

/* Half of the lease, through a lane of its own. */
static void *half(void *lane) {
    static int count;
    int at = __atomic_fetch_add(&count, 1, __ATOMIC_SEQ_CST) % 2;
    size_t len = SIZE / 2;
    unsigned char *mine = malloc(len);
    OK(overbank_lane_write(lane, at * len, much + at * len, len));
    OK(overbank_lane_read(lane, at * len, mine, len));
    SO(memcmp(mine, much + at * len, len) == 0);
    OK(overbank_lane_close(lane));
    free(mine);
    return NULL;
}

int main(int argc, char **argv) {
    SO(argc == 2);
    overbank_client *client = (overbank_client *)0x10, *closed;
    overbank_lease *lease = (overbank_lease *)0x10, *other;
    overbank_attach_options options;
    overbank_config config;
    overbank_share_options share;
    char text[64], small[8], *endless = malloc(1 << 20);
    uint64_t number = 0, end = 0;
    uint32_t block = 0;
    bool yes = false;
    memset(endless, 'x', (1 << 20) - 1);
    endless[(1 << 20) - 1] = 0;
    SO(overbank_last_error()[0] == 0 && overbank_version()[0] >= '0');

    /* connecting */
    REFUSED(OVERBANK_USAGE, "client is null", overbank_connect(NULL, NULL));
    memset(&config, 0, sizeof config);
    REFUSED(OVERBANK_USAGE, "size is 0", overbank_connect(&config, &client));
    SO(client == NULL);
    config.size = sizeof config;
    config.authd = "no host:";
    REFUSED(OVERBANK_USAGE, "no address", overbank_connect(&config, &client));
    config.authd = endless;
    REFUSED(OVERBANK_USAGE, "config.authd has more than", overbank_connect(&config, &client));
    config.authd = "\xff";
    REFUSED(OVERBANK_USAGE, "not UTF-8", overbank_connect(&config, &client));
    config.authd = "127.0.0.1:1";
    REFUSED(OVERBANK_AUTHD_UNREACHABLE, "127.0.0.1:1", overbank_connect(&config, &client));
    config.authd = NULL;
    config.deadline_ms = UINT64_MAX;
    OK(overbank_connect(&config, &client));
    OK(overbank_client_close(client));
    config.authd_fingerprint = "12";
    REFUSED(OVERBANK_USAGE, "config.authd_fingerprint is no fingerprint", overbank_connect(&config, &client));
    config.authd_fingerprint = "0000000000000000000000000000000000000000";
    REFUSED(OVERBANK_AUTHD_KEY_CHANGED, "0000000000", overbank_connect(&config, &client));
    OK(overbank_connect(NULL, &client));
    SO(client != NULL);
    OK(overbank_connect(NULL, &closed));
    OK(overbank_client_close(closed));
    REFUSED(OVERBANK_CLOSED, "no open client", overbank_client_close(closed));
    REFUSED(OVERBANK_CLOSED, "no open client", overbank_lease_create(closed, 4096, 60000, 0, &lease));
    SO(lease == NULL);
    OK(overbank_client_close(NULL));
    REFUSED(OVERBANK_USAGE, "41 are needed", overbank_client_fingerprint(client, small, sizeof small));
    REFUSED(OVERBANK_USAGE, "text is null", overbank_client_fingerprint(client, NULL, 64));
    OK(overbank_client_fingerprint(client, text, sizeof text));
    SO(strlen(text) == OVERBANK_FINGERPRINT_LEN - 1);
    OK(overbank_client_authd(client, text, OVERBANK_FINGERPRINT_LEN, NULL));
    OK(overbank_client_authd(client, text, OVERBANK_FINGERPRINT_LEN, &yes));

    /* making and opening */
    REFUSED(OVERBANK_USAGE, "client is null", overbank_lease_create(NULL, 4096, 60000, 0, &lease));
    REFUSED(OVERBANK_USAGE, "lease is null", overbank_lease_create(client, 4096, 60000, 0, NULL));
    REFUSED(OVERBANK_USAGE, "", overbank_lease_create(client, 4096, 60000, 100, &lease));
    REFUSED(OVERBANK_USAGE, "", overbank_lease_create(client, 0, 60000, 0, &lease));
    REFUSED(OVERBANK_NO_ROOM, "", overbank_lease_create(client, (uint64_t)1 << 40, 60000, 0, &lease));
    REFUSED(OVERBANK_USAGE, "id is null", overbank_lease_open(client, NULL, &lease));
    REFUSED(OVERBANK_USAGE, "id names no lease", overbank_lease_open(client, "zz", &lease));
    REFUSED(OVERBANK_USAGE, "id has more than", overbank_lease_open(client, endless, &lease));
    REFUSED(OVERBANK_LEASE_OVER, "", overbank_lease_open(client, "00000000000000000000000000000000", &lease));
    REFUSED(OVERBANK_USAGE, "path is null", overbank_share_open_file(client, NULL, NULL, &lease));
    REFUSED(OVERBANK_LOCAL, "/no/such", overbank_share_open_file(client, "/no/such/file", NULL, &lease));
    REFUSED(OVERBANK_LOCAL, "", overbank_share_open(client, endless, 1 << 20, NULL, &lease));
    REFUSED(OVERBANK_LOCAL, "", overbank_share_open(client, NULL, 0, NULL, &lease));
    REFUSED(OVERBANK_USAGE, "bundle is null", overbank_share_open(client, NULL, 1, NULL, &lease));
    SO(lease == NULL);
    overbank_status longest = overbank_lease_create(client, 4096, UINT64_MAX, 0, &lease);
    SO(longest == OVERBANK_OK || longest == OVERBANK_USAGE);
    if (longest == OVERBANK_OK) OK(overbank_lease_release(lease, 0, NULL));
    OK(overbank_lease_create(client, SIZE, 600000, 0, &lease));

    /* one kind's handle in the place of another's, and what never was one */
    REFUSED(OVERBANK_CLOSED, "no open lease", overbank_lease_bytes((overbank_lease *)client, &number));
    REFUSED(OVERBANK_CLOSED, "no open client", overbank_client_close((overbank_client *)lease));
    REFUSED(OVERBANK_CLOSED, "no open lease", overbank_lease_close((overbank_lease *)&number));
    REFUSED(OVERBANK_CLOSED, "no open lane", overbank_lane_close((overbank_lane *)lease));

    /* asking */
    OK(overbank_lease_bytes(lease, &number));
    OK(overbank_lease_block(lease, &block));
    SO(number == SIZE && block == 4096);
    OK(overbank_lease_reach(lease, &number, &end));
    SO(number == 0 && end == SIZE);
    REFUSED(OVERBANK_USAGE, "bytes is null", overbank_lease_bytes(lease, NULL));
    REFUSED(OVERBANK_USAGE, "end is null", overbank_lease_reach(lease, &number, NULL));
    REFUSED(OVERBANK_USAGE, "the lease is null", overbank_lease_block(NULL, &block));
    REFUSED(OVERBANK_USAGE, "33 are needed", overbank_lease_id(lease, text, 32));
    OK(overbank_lease_id(lease, text, OVERBANK_LEASE_ID_LEN));
    OK(overbank_lease_read_only(lease, &yes));
    SO(!yes && strlen(text) == 32);
    OK(overbank_lease_freshness_is_known(lease, &yes));
    SO(yes);
    OK(overbank_lease_renew(lease, 900000, NULL));
    OK(overbank_lease_renew(lease, 900000, &number));
    OK(overbank_lease_time_left_ms(lease, &end));
    SO(number > 800000 && number <= 900000 && end <= number && end > 800000);

    /* in use already, in this process too */
    REFUSED(OVERBANK_LOCAL, "in use", overbank_lease_open(client, text, &other));
    SO(other == NULL);

    /* attaching */
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.device = "no-such-device";
    REFUSED(OVERBANK_DEVICE, "no-such-device", overbank_lease_attach(lease, &options));
    options.device = argv[1];
    options.address = "here";
    REFUSED(OVERBANK_USAGE, "'here'", overbank_lease_attach(lease, &options));
    options.address = NULL;
    options.on_unknown = 9;
    REFUSED(OVERBANK_USAGE, "on_unknown is 9", overbank_lease_attach(lease, &options));
    options.on_unknown = OVERBANK_ON_UNKNOWN_REFUSE;
    options.lanes = 1000;
    REFUSED(OVERBANK_USAGE, "1000", overbank_lease_attach(lease, &options));
    options.lanes = 2;
    options.deadline_ms = UINT64_MAX;
    OK(overbank_lease_attach(lease, &options));
    OK(overbank_lease_read(lease, 0, text, 1));
    options.deadline_ms = 0;
    OK(overbank_lease_attach(lease, &options));

    /* reading and writing */
    much = malloc(SIZE);
    for (size_t at = 0; at < SIZE; at++) much[at] = (unsigned char)(at * 2654435761u >> 9);
    OK(overbank_lease_write(lease, 0, much, SIZE));
    memset(text, 7, sizeof text);
    REFUSED(OVERBANK_USAGE, "buffer is null", overbank_lease_read(lease, 0, NULL, 1));
    REFUSED(OVERBANK_USAGE, "bytes is null", overbank_lease_write(lease, 0, NULL, 1));
    REFUSED(OVERBANK_USAGE, "negative", overbank_lease_read(lease, 0, text, (size_t)-1));
    REFUSED(OVERBANK_USAGE, "negative", overbank_lease_write(lease, 0, text, (size_t)-1));
    SO(text[0] == 7);
    REFUSED(OVERBANK_DOES_NOT_FIT, "64B", overbank_lease_read(lease, SIZE - 63, text, 64));
    for (size_t at = 0; at < 64; at++) SO(text[at] == 0);
    REFUSED(OVERBANK_DOES_NOT_FIT, "64B", overbank_lease_write(lease, UINT64_MAX, text, 64));
    REFUSED(OVERBANK_USAGE, "the lease is null", overbank_lease_read(NULL, 0, text, 64));
    OK(overbank_lease_read(lease, SIZE, NULL, 0));
    OK(overbank_lease_write(lease, 0, NULL, 0));
    REFUSED(OVERBANK_DOES_NOT_FIT, "", overbank_lease_read(lease, SIZE + 1, NULL, 0));
    pthread_t thread;
    SO(pthread_create(&thread, NULL, own_words, NULL) == 0 && pthread_join(thread, NULL) == 0);

    /* sharing */
    memset(&share, 0, sizeof share);
    REFUSED(OVERBANK_USAGE, "to is null", overbank_lease_share(lease, NULL, NULL, "no-such-folder/x"));
    REFUSED(OVERBANK_USAGE, "to is no fingerprint", overbank_lease_share(lease, "me", NULL, "no-such-folder/x"));
    OK(overbank_client_fingerprint(client, text, sizeof text));
    REFUSED(OVERBANK_USAGE, "path is null", overbank_lease_share(lease, text, NULL, NULL));
    REFUSED(OVERBANK_USAGE, "size is 0", overbank_lease_share(lease, text, &share, "no-such-folder/x"));
    share.size = sizeof share;
    share.read_only = 2;
    REFUSED(OVERBANK_USAGE, "read_only", overbank_lease_share(lease, text, &share, "no-such-folder/x"));
    share.read_only = 1;
    share.end = 100;
    REFUSED(OVERBANK_USAGE, "4096", overbank_lease_share(lease, text, &share, "no-such-folder/x"));
    share.first = 2 * SIZE;
    share.end = 0;
    REFUSED(OVERBANK_DOES_NOT_FIT, "", overbank_lease_share(lease, text, &share, "no-such-folder/x"));

    /* two threads, one lease; then lanes */
    shared = lease;
    two(read_lease);
    overbank_lane *lanes[3] = {(overbank_lane *)1, (overbank_lane *)1, (overbank_lane *)1};
    REFUSED(OVERBANK_USAGE, "lanes is null", overbank_lease_split(lease, NULL, 2));
    REFUSED(OVERBANK_USAGE, "count is 0", overbank_lease_split(lease, lanes, 0));
    REFUSED(OVERBANK_USAGE, "attached with 2", overbank_lease_split(lease, lanes, 3));
    SO(lanes[0] == NULL && lanes[1] == NULL && lanes[2] == NULL);
    OK(overbank_lease_split(lease, lanes, 2));
    REFUSED(OVERBANK_BUSY, "lanes", overbank_lease_split(lease, &one_lane, 1));
    REFUSED(OVERBANK_BUSY, "lanes", overbank_lease_read(lease, 0, text, 64));
    REFUSED(OVERBANK_BUSY, "lanes", overbank_lease_close(lease));
    REFUSED(OVERBANK_BUSY, "lanes", overbank_lease_release(lease, 0, NULL));
    OK(overbank_lease_bytes(lease, &number));
    REFUSED(OVERBANK_USAGE, "buffer is null", overbank_lane_read(lanes[0], 0, NULL, 1));
    REFUSED(OVERBANK_DOES_NOT_FIT, "", overbank_lane_read(lanes[0], SIZE, text, 1));
    REFUSED(OVERBANK_DOES_NOT_FIT, "", overbank_lane_write(lanes[0], SIZE, text, 1));
    REFUSED(OVERBANK_USAGE, "lane is null", overbank_lane_read(NULL, 0, text, 1));
    OK(overbank_lane_close(NULL));
    one_lane = lanes[0];
    two(read_lane);
    /* Each its own: both close theirs at the same time. */
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) SO(pthread_create(&threads[i], NULL, half, lanes[i]) == 0);
    for (int i = 0; i < 2; i++) SO(pthread_join(threads[i], NULL) == 0);
    REFUSED(OVERBANK_CLOSED, "no open lane", overbank_lane_close(lanes[0]));
    REFUSED(OVERBANK_CLOSED, "no open lane", overbank_lane_read(lanes[1], 0, text, 1));
    unsigned char *back = malloc(SIZE);
    OK(overbank_lease_read(lease, 0, back, SIZE));
    SO(memcmp(back, much, SIZE) == 0);

    /* closed, and used all the same; the lease itself goes on */
    OK(overbank_lease_id(lease, text, sizeof text));
    OK(overbank_client_close(client));
    OK(overbank_lease_write(lease, 5, "later", 5));
    OK(overbank_lease_close(lease));
    REFUSED(OVERBANK_CLOSED, "no open lease", overbank_lease_close(lease));
    REFUSED(OVERBANK_CLOSED, "no open lease", overbank_lease_write(lease, 0, much, 1));
    memset(back, 7, 8);
    REFUSED(OVERBANK_CLOSED, "no open lease", overbank_lease_read(lease, 0, back, 8));
    SO(back[0] == 0 && back[7] == 0);
    REFUSED(OVERBANK_CLOSED, "no open lease", overbank_lease_release(lease, 0, NULL));
    OK(overbank_connect(NULL, &client));
    OK(overbank_lease_open(client, text, &other));
    SO(other != lease);
    options.lanes = 0;
    OK(overbank_lease_attach(other, &options));
    OK(overbank_lease_read(other, 5, back, 5));
    SO(memcmp(back, "later", 5) == 0);
    OK(overbank_lease_freshness_is_known(other, &yes));
    SO(yes);
    OK(overbank_lease_release(other, UINT64_MAX, &yes));
    SO(yes);
    REFUSED(OVERBANK_CLOSED, "no open lease", overbank_lease_release(other, 0, &yes));
    SO(!yes);
    REFUSED(OVERBANK_LEASE_OVER, "", overbank_lease_open(client, text, &other));
    OK(overbank_client_close(client));
    free(endless);
    free(much);
    free(back);
    puts("ok");
    return 0;
}
