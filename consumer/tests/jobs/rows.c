/* Two ranks that fill the rows of one table in a lease, each its own half: rank 0 by the lease, rank 1 by a share of the lower half.
   Each has one row here at a time. Rank 0 then reads all of it.

   rows LEASE DEVICE */
#include <mpi.h>
#include <overbank.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* A row is of 256 KiB. */
enum { WORDS = 1 << 15, ROWS = 32 };

static void check(int status, int wanted, const char *what) {
    if (status == wanted) return;
    fprintf(stderr, "%s: %s, %s\n", what, overbank_strerror(status), overbank_last_error());
    MPI_Abort(MPI_COMM_WORLD, 9);
}

static uint64_t make(uint64_t *row, int number) {
    uint64_t state = (number + 1) * 0x9E3779B97F4A7C15u | 1, sum = 0;
    for (size_t i = 0; i < WORDS; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        row[i] = state;
        sum += state * (i + 1);
    }
    return sum;
}

int main(int argc, char **argv) {
    static uint64_t row[WORDS];
    int rank;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (argc != 3) MPI_Abort(MPI_COMM_WORLD, 2);
    overbank_client *client;
    overbank_lease *lease;
    check(overbank_connect(NULL, &client), OVERBANK_OK, "connect");
    check(overbank_lease_open(client, argv[1], &lease), OVERBANK_OK, "open");
    /* Several write to it, so that nobody knows what was written last: the barrier says so. */
    overbank_attach_options options = {.size = sizeof options, .device = argv[2], .on_unknown = OVERBANK_ON_UNKNOWN_ACCEPT_SEALED};
    check(overbank_lease_attach(lease, &options), OVERBANK_OK, "attach");
    uint64_t mine = 0, all = 0, found = 0;
    for (int number = rank * ROWS / 2; number < (rank + 1) * ROWS / 2; number++) {
        mine += make(row, number);
        check(overbank_lease_write(lease, number * sizeof row, row, sizeof row), OVERBANK_OK, "write");
    }
    MPI_Allreduce(&mine, &all, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0) {
        for (int number = 0; number < ROWS; number++) {
            check(overbank_lease_read(lease, number * sizeof row, row, sizeof row), OVERBANK_OK, "read");
            for (size_t i = 0; i < WORDS; i++) found += row[i] * (i + 1);
        }
        printf("%016llx %s\n", (unsigned long long)found, found == all ? "as written" : "something else");
    } else {
        /* What it was not given. */
        check(overbank_lease_read(lease, 0, row, sizeof row), OVERBANK_DOES_NOT_FIT, "a row of the other's");
    }
    MPI_Barrier(MPI_COMM_WORLD);
    check(overbank_lease_close(lease), OVERBANK_OK, "close");
    check(overbank_client_close(client), OVERBANK_OK, "close");
    MPI_Finalize();
    return 0;
}
