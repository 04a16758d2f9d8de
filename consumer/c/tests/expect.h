/* What a test in C expects of a call, and how it says that it was not so. */
#include <overbank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Failed with that status, and said so. */
static void refused(int line, overbank_status status, overbank_status wanted, const char *words) {
    if (status != wanted || (wanted != OVERBANK_OK && strstr(overbank_last_error(), words) == NULL)) {
        fprintf(stderr, "line %d: %d (%s) in place of %d (%s): %s\n", line, status, overbank_strerror(status), wanted,
                words, overbank_last_error());
        exit(1);
    }
}
#define REFUSED(wanted, words, call) refused(__LINE__, call, wanted, words)
#define OK(call) refused(__LINE__, call, OVERBANK_OK, "")
#define SO(condition)                                                     \
    do {                                                                  \
        if (!(condition)) {                                               \
            fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition); \
            exit(1);                                                      \
        }                                                                 \
    } while (0)
