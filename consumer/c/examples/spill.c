/* Leases memory on another machine, puts there what does not fit here, reads it back, compares, and gives the memory back.
 *
 *   cc spill.c $(pkg-config --cflags --libs overbank) -o spill
 *   OVERBANK_AUTHD=head-1:7471 ./spill [BYTES] [DEVICE]
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
        fprintf(stderr, "spill: %s: %s\n", doing, overbank_last_error());
        exit(status);
    }
}

int main(int argc, char **argv) {
    uint64_t bytes = argc > 1 ? strtoull(argv[1], NULL, 10) : 1 << 20;
    overbank_client *client;
    check(overbank_connect(NULL, &client), "connecting");

    overbank_lease *lease;
    check(overbank_lease_create(client, bytes, 10 * 60 * 1000, 0, &lease), "leasing");
    char id[OVERBANK_LEASE_ID_LEN];
    check(overbank_lease_id(lease, id, sizeof id), "asking which lease it is");

    /* The first read or write would do this too, with the default options. */
    overbank_attach_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.device = argc > 2 ? argv[2] : NULL;
    check(overbank_lease_attach(lease, &options), "attaching");

    unsigned char *out = malloc(bytes), *back = malloc(bytes);
    if (out == NULL || back == NULL) {
        fputs("spill: no memory here either\n", stderr);
        return 1;
    }
    for (uint64_t at = 0; at < bytes; at++) {
        out[at] = (unsigned char)(at * 2654435761u >> 7);
    }
    check(overbank_lease_write(lease, 0, out, bytes), "writing");
    check(overbank_lease_read(lease, 0, back, bytes), "reading");
    if (memcmp(out, back, bytes) != 0) {
        fputs("spill: what came back is not what was written\n", stderr);
        return 1;
    }

    bool wiped;
    check(overbank_lease_release(lease, 5000, &wiped), "releasing");
    check(overbank_client_close(client), "closing");
    printf("%" PRIu64 " bytes went to lease %s and came back%s\n", bytes, id, wiped ? "; it is wiped" : "");
    free(out);
    free(back);
    return 0;
}
