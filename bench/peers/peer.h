/* What the peers of a comparison share: peer.c measures, ucx.c or fabric.c moves the bytes. Both ends poll. */
#ifndef PEER_H
#define PEER_H

#include <stddef.h>
#include <stdint.h>

/* Of a library: which, and its version. */
void library_version(const char *provider, char *out, size_t room);

/* The answering end: lends its memory, and prints one line that says where it is reached. */
void library_lend(const char *provider, unsigned char *memory, size_t length);

/* The asking end: connects to whoever printed the line. `memory` is what is read into and written from. */
void library_reach(const char *provider, const char *line, unsigned char *memory, size_t length);

enum op { OP_READ, OP_WRITE };

/* Begins to move `size` bytes between the same offset of both memories; ends with `ended(slot)`, here or in
   `library_move`. A WRITE that must be `delivered` ends when it is in the other end's memory, another as soon as its
   bytes may be changed. */
void library_post(enum op op, size_t slot, size_t offset, size_t size, int delivered);

/* Moves the library on. Never waits. */
void library_move(void);

/* Waits until all WRITEs are in the other end's memory. */
void library_flush(void);

/* Said by the library's side. */
void ended(size_t slot);

/* Moves the library on, and fails where nothing has ended for a long time. For loops of the asking end. */
void move_on(void);

/* Prints the complaint and ends the process: status 1, or 3 for what this machine does not have. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void missing(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Bytes as hexadecimal digits, without a line's end. */
void print_hex(const void *bytes, size_t length);

/* The bytes of the digits before the next blank, which *text then stands behind; allocated. */
unsigned char *parse_hex(const char **text, size_t *length);

/* The number before the next blank. */
uint64_t parse_number(const char **text);

#endif
