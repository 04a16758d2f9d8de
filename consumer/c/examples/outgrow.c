/* Uses more memory than it may have here: numbers in a region of which only a part is on this machine at a time, the rest sealed in
 * a lease. Fills them in, sums them up, says what came and went, and gives the memory back.
 *
 *   cc outgrow.c $(pkg-config --cflags --libs overbank) -o outgrow
 *   OVERBANK_AUTHD=head-1:7471 ./outgrow [NUMBERS] [LOCAL BYTES] [DEVICE]
 *
 * The identity in OVERBANK_HOME must be trusted (overbank join). */
#include <inttypes.h>
#include <overbank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the program where a call failed, with the library's own words. */
static void check(overbank_status status, const char *doing) {
    if (status != OVERBANK_OK) {
        fprintf(stderr, "outgrow: %s: %s\n", doing, overbank_last_error());
        exit(status);
    }
}

int main(int argc, char **argv) {
    uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : 1 << 20;
    overbank_client *client;
    check(overbank_connect(NULL, &client), "connecting");
    overbank_lease *lease;
    /* A region has whole pages: one more than needed, for what is left over. */
    check(overbank_lease_create(client, count * sizeof(uint64_t) + 4096, 10 * 60 * 1000, 0, &lease), "leasing");

    overbank_attach_options attach;
    memset(&attach, 0, sizeof attach);
    attach.size = sizeof attach;
    attach.device = argc > 3 ? argv[3] : NULL;
    overbank_region_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.local_bytes = argc > 2 ? strtoull(argv[2], NULL, 10) : 1 << 20;
    options.attach = &attach;
    overbank_region *region;
    overbank_status status = overbank_region_open(lease, &options, &region);
    if (status != OVERBANK_OK) {
        fprintf(stderr, "outgrow: making memory of the lease: %s\n", overbank_last_error());
        /* The lease is still ours. */
        check(overbank_lease_release(lease, 0, NULL), "releasing");
        return status;
    }

    void *start;
    size_t len;
    check(overbank_region_memory(region, &start, &len), "asking where it is");
    uint64_t *numbers = start, sum = 0;
    for (uint64_t at = 0; at < count; at++) {
        numbers[at] = at + 1;
    }
    for (uint64_t at = 0; at < count; at++) {
        sum += numbers[at];
    }
    if (sum != count * (count + 1) / 2) {
        fputs("outgrow: what came back is not what was written\n", stderr);
        return 1;
    }

    overbank_stats stats;
    stats.size = sizeof stats;
    check(overbank_region_stats(region, &stats), "asking what came and went");
    bool wiped;
    check(overbank_region_release(region, 5000, &wiped), "releasing");
    check(overbank_client_close(client), "closing");
    printf("%" PRIu64 " numbers have the sum %" PRIu64 "; %" PRIu64 " pages went, %" PRIu64 " came, at most %" PRIu64
           " bytes were here%s\n",
           count, sum, stats.evicted, stats.fetched, stats.peak_resident_bytes, wiped ? "; it is wiped" : "");
    return 0;
}
