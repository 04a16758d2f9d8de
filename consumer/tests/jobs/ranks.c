/* Two ranks that exchange more memory than each may have here, in every way that MPI has; a digest of all that came about. */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Words of each block: 8 MiB. */
enum { WORDS = 1 << 20 };

static uint64_t digest = 1469598103934665603u;

static void take_in(const uint64_t *words, size_t count) {
    for (size_t i = 0; i < count; i++) digest = (digest ^ words[i]) * 1099511628211u;
}

static void fill(uint64_t *words, uint64_t seed) {
    uint64_t state = seed * 0x9E3779B97F4A7C15u | 1;
    for (size_t i = 0; i < WORDS; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words[i] = state;
    }
}

static uint64_t *block(void) {
    uint64_t *words = malloc(WORDS * sizeof *words);
    if (words == NULL) {
        fprintf(stderr, "no memory\n");
        MPI_Abort(MPI_COMM_WORLD, 9);
    }
    return words;
}

int main(int argc, char **argv) {
    int rank, ranks;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (ranks != 2) MPI_Abort(MPI_COMM_WORLD, 2);
    const int other = 1 - rank;
    uint64_t *a = block(), *b = block(), *c = block(), *d = block();
    fill(a, 2 + rank);
    fill(b, 4 + rank);
    fill(c, 6 + rank);
    /* By now none of a is here. */
    MPI_Sendrecv(a, WORDS, MPI_UINT64_T, other, 1, d, WORDS, MPI_UINT64_T, other, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    take_in(d, WORDS);

    /* On their way while other memory is used, which drives these pages out. */
    MPI_Request requests[2];
    MPI_Irecv(d, WORDS, MPI_UINT64_T, other, 2, MPI_COMM_WORLD, &requests[0]);
    MPI_Isend(b, WORDS, MPI_UINT64_T, other, 2, MPI_COMM_WORLD, &requests[1]);
    for (size_t i = 0; i < WORDS; i++) c[i] += a[WORDS - 1 - i];
    MPI_Waitall(2, requests, MPI_STATUSES_IGNORE);
    take_in(c, WORDS);
    take_in(d, WORDS);

    /* Every second word: packed from where it lies, and unpacked to there. */
    MPI_Datatype comb;
    MPI_Type_vector(WORDS / 2, 1, 2, MPI_UINT64_T, &comb);
    MPI_Type_commit(&comb);
    MPI_Sendrecv(a, 1, comb, other, 3, b + 1, 1, comb, other, 3, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    take_in(b, WORDS);
    MPI_Type_free(&comb);

    MPI_Allreduce(b, d, WORDS, MPI_UINT64_T, MPI_BXOR, MPI_COMM_WORLD);
    take_in(d, WORDS);
    MPI_Alltoall(c, WORDS / 2, MPI_UINT64_T, d, WORDS / 2, MPI_UINT64_T, MPI_COMM_WORLD);
    take_in(d, WORDS);
    MPI_Allreduce(MPI_IN_PLACE, c, WORDS, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
    take_in(c, WORDS);

    /* One-sided: the other rank reads and writes memory that its owner does not touch meanwhile. */
    MPI_Win window;
    MPI_Win_create(a, WORDS * sizeof *a, sizeof *a, MPI_INFO_NULL, MPI_COMM_WORLD, &window);
    MPI_Win_fence(0, window);
    MPI_Get(d, WORDS, MPI_UINT64_T, other, 0, WORDS, MPI_UINT64_T, window);
    MPI_Win_fence(0, window);
    MPI_Put(b, WORDS / 2, MPI_UINT64_T, other, WORDS / 4, WORDS / 2, MPI_UINT64_T, window);
    MPI_Win_fence(0, window);
    MPI_Accumulate(c, WORDS / 2, MPI_UINT64_T, other, WORDS / 2, WORDS / 2, MPI_UINT64_T, MPI_SUM, window);
    MPI_Win_fence(0, window);
    MPI_Win_free(&window);
    take_in(d, WORDS);
    take_in(a, WORDS);

    uint64_t *all = rank == 0 ? malloc(2 * sizeof *all) : NULL;
    MPI_Gather(&digest, 1, MPI_UINT64_T, all, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("%016llx %016llx\n", (unsigned long long)all[0], (unsigned long long)all[1]);
    free(all);
    free(a);
    free(b);
    free(c);
    free(d);
    MPI_Finalize();
    return 0;
}
