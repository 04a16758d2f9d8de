/* Overbank: memory on other machines, leased through an auth daemon, reached by one-sided RDMA, sealed before it leaves.
 *
 * Every function returns a status, OVERBANK_OK where it did what it says; overbank_last_error() has the words of a failure.
 * Handles (overbank_client, overbank_lease, ...) are no addresses: one that is used after its end, or in the place of another
 * kind's, is answered with OVERBANK_CLOSED. What is said of threads at a type holds for all functions that take it, unless
 * they say otherwise. docs/c-api.md has more. */

#ifndef OVERBANK_H
#define OVERBANK_H

/* Made from consumer/c/src by its test `header`: change it there. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * Bytes of a fingerprint as text, with the zero at its end.
 */
#define OVERBANK_FINGERPRINT_LEN 41

/**
 * Bytes of a lease's id as text, with the zero at its end.
 */
#define OVERBANK_LEASE_ID_LEN 33

/**
 * What every function returns. Codes are only ever added, and never change; those up to 99 are also the exit statuses of
 * the command `overbank`.
 */
typedef enum overbank_status {
  /**
   * Done.
   */
  OVERBANK_OK = 0,
  /**
   * Another failure.
   */
  OVERBANK_OTHER = 1,
  /**
   * The call makes no sense: a null pointer, a length, an option, or a request that nobody could do.
   */
  OVERBANK_USAGE = 2,
  /**
   * The auth daemon cannot be reached.
   */
  OVERBANK_AUTHD_UNREACHABLE = 3,
  /**
   * This identity is not trusted, or not for this.
   */
  OVERBANK_NOT_TRUSTED = 4,
  /**
   * The auth daemon has another key than it had.
   */
  OVERBANK_AUTHD_KEY_CHANGED = 5,
  /**
   * The pool is full or the quota used up.
   */
  OVERBANK_NO_ROOM = 6,
  /**
   * The lease is over: expired, released, revoked, or there is none.
   */
  OVERBANK_LEASE_OVER = 7,
  /**
   * The lease is lost: its provider died or is away.
   */
  OVERBANK_LEASE_LOST = 8,
  /**
   * What was in the lease did not come back as it was written: changed, played back, moved, erased, torn, or of unknown
   * freshness.
   */
  OVERBANK_CONTENTS = 9,
  /**
   * More bytes than the lease has there.
   */
  OVERBANK_DOES_NOT_FIT = 10,
  /**
   * Not done in time. It may have been done all the same.
   */
  OVERBANK_DEADLINE = 11,
  /**
   * A local file: the key, the pins or the lease's file is missing, damaged, in use or open to others.
   */
  OVERBANK_LOCAL = 12,
  /**
   * This machine's RDMA device has failed, is down or cannot be used.
   */
  OVERBANK_DEVICE = 13,
  /**
   * Not done yet: it waits for more operators' approval.
   */
  OVERBANK_PROPOSED = 14,
  /**
   * Another thread is in a call with this handle. Nothing was done.
   */
  OVERBANK_BUSY = 100,
  /**
   * The handle stands for nothing: it was closed, or never was one of this kind. Nothing was done.
   */
  OVERBANK_CLOSED = 101,
  /**
   * A fault of the library itself. Close the handle that the call was made with.
   */
  OVERBANK_PANIC = 102,
} overbank_status;

/**
 * What to do with a block of which nobody knows what was written to it last, because a process that wrote the lease was
 * killed, or because the lease is shared.
 */
typedef enum overbank_on_unknown {
  /**
   * Refuse it in the first case, and take it in the second.
   */
  OVERBANK_ON_UNKNOWN_DEFAULT = 0,
  /**
   * Refuse it, whatever is in it.
   */
  OVERBANK_ON_UNKNOWN_REFUSE = 1,
  /**
   * Take what was sealed for it, which may be older than what was written last; refuse an empty one.
   */
  OVERBANK_ON_UNKNOWN_ACCEPT_SEALED = 2,
  /**
   * The same, and take an empty one for one that was never written.
   */
  OVERBANK_ON_UNKNOWN_ACCEPT = 3,
} overbank_on_unknown;

/**
 * Who brings a page that is touched and not here.
 */
typedef enum overbank_faults {
  /**
   * The thread that touched it, in a handler of SIGBUS: the fastest way, and any user may. A system call that is given memory
   * which is not here fails with EFAULT: hold it first. No thread that uses the memory may block SIGBUS; a handler of the
   * program's own is set before the first region is opened, and gets what is not about a region.
   */
  OVERBANK_FAULTS_SIGNAL = 0,
  /**
   * A thread of the region's own. System calls work as on any memory. Needs `sysctl vm.unprivileged_userfaultfd=1`, or read and
   * write access to /dev/userfaultfd, or CAP_SYS_PTRACE.
   */
  OVERBANK_FAULTS_THREAD = 1,
} overbank_faults;

/**
 * A session with the auth daemon, as one identity. Any number of threads may use it at the same time; their requests are
 * made one after another. Ends with `overbank_client_close`. Of no use in a process that was forked from the one that made it.
 */
typedef struct overbank_client overbank_client;

/**
 * One of the lanes of a lease that was split: a connection of its own, for one thread at a time, while other threads use other
 * lanes. A call that meets another with the same handle returns OVERBANK_BUSY and does nothing. Ends with
 * `overbank_lane_close`.
 */
typedef struct overbank_lane overbank_lane;

/**
 * A lease in use. For one thread at a time: a call that meets another with the same handle returns OVERBANK_BUSY and does
 * nothing. For one process at a time too. Ends with `overbank_lease_close` or `overbank_lease_release`; a process that ends
 * without either leaves behind that nobody knows what it wrote last. Of no use in a process that was forked from this one.
 */
typedef struct overbank_lease overbank_lease;

/**
 * A lease as memory: a range of addresses of which only so many bytes are on this machine at a time; the rest is in the lease,
 * sealed, and comes when it is touched. It begins as zeros, whatever was in the lease. Any number of threads may use the memory
 * and make calls with the handle at the same time. Ends with `overbank_region_release`; the lease is renewed until then.
 *
 * What is read is what was written. A page that cannot be had any more, because the lease or its provider is gone, ends the
 * program with SIGBUS where it is touched, after a line on standard error that says why: see `overbank_region_check`. A process
 * that was forked from this one does not have the memory: touching it there ends in SIGSEGV, and calls with the handle return
 * OVERBANK_CLOSED.
 */
typedef struct overbank_region overbank_region;

/**
 * What `overbank_connect` needs to know. Set all of it to zero, then `size` to the size of this struct, then what is to be
 * other than by default.
 */
typedef struct overbank_config {
  /**
   * The size of this struct.
   */
  size_t size;
  /**
   * HOST or HOST:PORT of the auth daemon. Null: OVERBANK_AUTHD, else 127.0.0.1:7471.
   */
  const char *authd;
  /**
   * The directory of the identity and of the pinned keys. Null: OVERBANK_HOME, else `overbank` in XDG_CONFIG_HOME, else
   * `~/.config/overbank`.
   */
  const char *home;
  /**
   * The directory of the lease files, which hold the keys. Null: `overbank` in XDG_RUNTIME_DIR, else `leases` in the home.
   */
  const char *leases;
  /**
   * The auth daemon's fingerprint, where it came by a way that is trusted. Null: it is taken on trust at the first contact,
   * and pinned.
   */
  const char *authd_fingerprint;
  /**
   * How many milliseconds a request to the auth daemon may take. 0: 5000.
   */
  uint64_t deadline_ms;
} overbank_config;

/**
 * How a lease is reached. Set all of it to zero, then `size` to the size of this struct, then what is to be other than by
 * default.
 */
typedef struct overbank_attach_options {
  /**
   * The size of this struct.
   */
  size_t size;
  /**
   * `auto`, `soft`, or the name of an RDMA device. Null: `auto`.
   */
  const char *device;
  /**
   * Our address as the provider is to see it. Null: the one from which we reach the auth daemon.
   */
  const char *address;
  /**
   * One of `overbank_on_unknown`.
   */
  uint32_t on_unknown;
  /**
   * For how many threads at once, each with a lane of its own: see `overbank_lease_split`. 0: 1.
   */
  uint32_t lanes;
  /**
   * How many nanoseconds to spin for a completion before sleeping for it. 0: 50000. Longer costs a core, shorter latency.
   */
  uint64_t spin_ns;
  /**
   * How many milliseconds a read or a write may take, with everything that it has to try again. 0: 10000.
   */
  uint64_t deadline_ms;
} overbank_attach_options;

/**
 * What to share of a lease. Set all of it to zero, then `size` to the size of this struct, then what is to be other than by
 * default.
 */
typedef struct overbank_share_options {
  /**
   * The size of this struct.
   */
  size_t size;
  /**
   * First byte, of a whole block.
   */
  uint64_t first;
  /**
   * The byte after the last, of a whole block too, or the lease's end. 0: as far as we have it.
   */
  uint64_t end;
  /**
   * For how many milliseconds. 0: as long as the lease lasts by now. A renewal does not make it longer.
   */
  uint64_t ttl_ms;
  /**
   * Whether it may only be read: 0 or 1.
   */
  uint32_t read_only;
  /**
   * Nothing: 0.
   */
  uint32_t reserved;
} overbank_share_options;

/**
 * How a lease is used as memory. Set all of it to zero, then `size` to the size of this struct, then `local_bytes`, then what is
 * to be other than by default.
 */
typedef struct overbank_region_options {
  /**
   * The size of this struct.
   */
  size_t size;
  /**
   * Bytes that may be in this machine's memory, rounded down to whole pages; 32 pages at least. There is no default.
   */
  uint64_t local_bytes;
  /**
   * Bytes that come and go together: a power of two from the kernel's page to 2 MiB, and no less than the lease's block. 0: the
   * larger of the kernel's page and the lease's block.
   */
  uint32_t page;
  /**
   * One of `overbank_faults`.
   */
  uint32_t faults;
  /**
   * Bytes that are fetched ahead of a stream of touches, at most. 0: 262144. Less than a page: none.
   */
  uint64_t ahead_bytes;
  /**
   * How many pages can be fetched at the same moment, each through a lane of its own, 1 to 15. 0: 2.
   */
  uint32_t fetchers;
  /**
   * Nothing: 0.
   */
  uint32_t reserved;
  /**
   * How many milliseconds a page may take, with all that is to be mended meanwhile, before it is given up. 0: 30000.
   */
  uint64_t patience_ms;
  /**
   * To how many milliseconds the lease is renewed, as long as the region lives. 0: what is left of it now.
   */
  uint64_t renew_to_ms;
  /**
   * How the lease is reached; `lanes` says nothing here. Null: all by default, however the lease was attached before.
   */
  const struct overbank_attach_options *attach;
} overbank_region_options;

/**
 * What a region has done so far, and how much of it is here. Set `size` to the size of this struct, and the library fills in the
 * rest. Pages are the region's own.
 */
typedef struct overbank_stats {
  /**
   * The size of this struct, which the caller sets.
   */
  size_t size;
  /**
   * Bytes of the region.
   */
  uint64_t bytes;
  /**
   * Bytes of a page.
   */
  uint64_t page_bytes;
  /**
   * Bytes that may be here.
   */
  uint64_t local_bytes;
  /**
   * Bytes that are here.
   */
  uint64_t resident_bytes;
  /**
   * The most that were here.
   */
  uint64_t peak_resident_bytes;
  /**
   * Touches of what was not here, or not yet for writing.
   */
  uint64_t faults;
  /**
   * Of those, first writes to pages that were here for reading.
   */
  uint64_t write_faults;
  /**
   * Pages that came from the lease.
   */
  uint64_t fetched;
  /**
   * Of those, pages that nobody had asked for yet.
   */
  uint64_t ahead;
  /**
   * Pages of zeros that were mapped without asking anybody.
   */
  uint64_t zeroed;
  /**
   * Pages that went.
   */
  uint64_t evicted;
  /**
   * Of those, pages that were written to the lease.
   */
  uint64_t stored;
  /**
   * Of those that went, pages that held zeros, and so were just forgotten.
   */
  uint64_t emptied;
  /**
   * Pages that were written to while they were on their way out, and so stayed.
   */
  uint64_t kept;
  /**
   * Times that a touch had to wait for room.
   */
  uint64_t waits;
  /**
   * Times that connections were made anew.
   */
  uint64_t mended;
  /**
   * The time that half of all faults took no longer than, in nanoseconds.
   */
  uint64_t fault_p50_ns;
  /**
   * The same of 99 in 100.
   */
  uint64_t fault_p99_ns;
} overbank_stats;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * What a status means, in a few words: a text that is there as long as the program runs, whatever the status. Any thread.
 */
const char *overbank_strerror(int status);

/**
 * What went wrong in this thread's last call that failed: the thing, the cause and the way out, as one line for people.
 * Empty where none has failed. The text belongs to the library and is there until the thread's next call that fails, or
 * its end: copy what is to be kept.
 */
const char *overbank_last_error(void);

/**
 * The library's version, such as "0.1.0": a text that is there as long as the program runs. Any thread.
 */
const char *overbank_version(void);

/**
 * Connects to the auth daemon, proves who both sides are, and puts a new handle into `*client`, which the caller closes with
 * `overbank_client_close`; null where it fails. Makes this borrower's identity where there is none yet. `config` may be null:
 * all as the environment says. Reads the environment: no other thread may change it meanwhile.
 *
 * What you promise:
 * `config` is null or points to such a struct, whose texts end in a zero; `client` points to a place for a handle.
 */
enum overbank_status overbank_connect(const struct overbank_config *config,
                                      struct overbank_client **client);

/**
 * Writes the fingerprint of this borrower's identity into `text`, of `len` bytes, at least OVERBANK_FINGERPRINT_LEN.
 *
 * What you promise:
 * `text` has `len` bytes.
 */
enum overbank_status overbank_client_fingerprint(const struct overbank_client *client, char *text, size_t len);

/**
 * Writes the fingerprint of the auth daemon's key into `text`, of `len` bytes, at least OVERBANK_FINGERPRINT_LEN. Puts into
 * `*first_contact`, which may be null, whether the key was pinned by this connection: people should be shown it then.
 *
 * What you promise:
 * `text` has `len` bytes; `first_contact` is null or points to a bool.
 */
enum overbank_status overbank_client_authd(const struct overbank_client *client,
                                           char *text,
                                           size_t len,
                                           bool *first_contact);

/**
 * Ends the session, once no other thread is in a call with it. Leases that were made or opened with it can be used on, and
 * keep what they need of it. Null is nothing to close.
 */
enum overbank_status overbank_client_close(struct overbank_client *client);

/**
 * Leases `bytes` bytes for `ttl_ms` milliseconds, in blocks of `block` bytes (a power of two from 512 to 1 MiB; 0: 4096), and
 * puts a new handle into `*lease`, which the caller closes or releases; null where it fails. The lease's key is written to a
 * file, by which `overbank_lease_open` finds it again. `client` may be closed before the lease is. Any thread.
 *
 * What you promise:
 * `lease` points to a place for a handle.
 */
enum overbank_status overbank_lease_create(const struct overbank_client *client,
                                           uint64_t bytes,
                                           uint64_t ttl_ms,
                                           uint32_t block,
                                           struct overbank_lease **lease);

/**
 * Takes a lease into use that this identity made on this machine, or that `overbank_share_open` wrote down, by its id, and
 * puts a new handle into `*lease`, which the caller closes or releases; null where it fails. Any thread.
 *
 * What you promise:
 * `id` is a text that ends in a zero; `lease` points to a place for a handle.
 */
enum overbank_status overbank_lease_open(const struct overbank_client *client,
                                         const char *id,
                                         struct overbank_lease **lease);

/**
 * Connects to the lease's provider. A read or a write does this by itself, with the default options, where nobody did
 * before; it also does it again, with the same options, where the connection broke. `options` may be null: all by default.
 *
 * What you promise:
 * `options` is null or points to such a struct, whose texts end in a zero.
 */
enum overbank_status overbank_lease_attach(struct overbank_lease *lease,
                                           const struct overbank_attach_options *options);

/**
 * Reads `len` bytes from `offset` on into `buffer`. Those that were never written are zeros. Where it fails, `buffer` holds
 * zeros, unless the buffer itself is what is wrong. `buffer` is the caller's, and of no interest once this returns.
 *
 * What you promise:
 * `buffer` has `len` bytes that no other thread uses meanwhile.
 */
enum overbank_status overbank_lease_read(struct overbank_lease *lease,
                                         uint64_t offset,
                                         void *buffer,
                                         size_t len);

/**
 * Writes `len` bytes from `offset` on. When this returns OVERBANK_OK they are in the provider's memory; where it fails, some
 * may be. `bytes` is the caller's, and of no interest once this returns.
 *
 * What you promise:
 * `bytes` has `len` bytes that no other thread writes meanwhile.
 */
enum overbank_status overbank_lease_write(struct overbank_lease *lease,
                                          uint64_t offset,
                                          const void *bytes,
                                          size_t len);

/**
 * Moves the lease's end to `ttl_ms` milliseconds from now; never sooner. Puts into `*left_ms`, which may be null, how long it
 * can be used from now on.
 *
 * What you promise:
 * `left_ms` is null or points to a number.
 */
enum overbank_status overbank_lease_renew(struct overbank_lease *lease,
                                          uint64_t ttl_ms,
                                          uint64_t *left_ms);

/**
 * Puts the usable bytes of the lease into `*bytes`. Any thread, at any time.
 *
 * What you promise:
 * `bytes` points to a number.
 */
enum overbank_status overbank_lease_bytes(const struct overbank_lease *lease, uint64_t *bytes);

/**
 * Puts the bytes of a block into `*block`: what a write makes anew and a read fetches, however little of it is asked for.
 * Any thread, at any time.
 *
 * What you promise:
 * `block` points to a number.
 */
enum overbank_status overbank_lease_block(const struct overbank_lease *lease,
                                          uint32_t *block);

/**
 * Puts the bytes of the lease that can be reached with this handle into `*first` and, the one after the last, `*end`: all of
 * them, unless it was shared with us. Any thread, at any time.
 *
 * What you promise:
 * `first` and `end` point to numbers.
 */
enum overbank_status overbank_lease_reach(const struct overbank_lease *lease,
                                          uint64_t *first,
                                          uint64_t *end);

/**
 * Puts into `*read_only` whether the lease was shared with us for reading only. Any thread, at any time.
 *
 * What you promise:
 * `read_only` points to a bool.
 */
enum overbank_status overbank_lease_read_only(const struct overbank_lease *lease, bool *read_only);

/**
 * Writes the lease's id into `text`, of `len` bytes, at least OVERBANK_LEASE_ID_LEN. Any thread, at any time.
 *
 * What you promise:
 * `text` has `len` bytes.
 */
enum overbank_status overbank_lease_id(const struct overbank_lease *lease, char *text, size_t len);

/**
 * Puts into `*left_ms` how many milliseconds the lease can be used: until a little before its end. 0 once that is over.
 *
 * What you promise:
 * `left_ms` points to a number.
 */
enum overbank_status overbank_lease_time_left_ms(const struct overbank_lease *lease, uint64_t *left_ms);

/**
 * Puts into `*known` whether it is known of every block what was written to it last, so that no older content can pass for
 * it. It is not where the lease is shared, or a process that wrote it was killed.
 *
 * What you promise:
 * `known` points to a bool.
 */
enum overbank_status overbank_lease_freshness_is_known(const struct overbank_lease *lease,
                                                       bool *known);

/**
 * Ends the use of the lease, not the lease: what was written last is saved, for who opens it next. Whatever is returned but
 * OVERBANK_BUSY, the handle is none from here on. Null is nothing to close. Any thread, but not while another is in a call
 * with it.
 */
enum overbank_status overbank_lease_close(struct overbank_lease *lease);

/**
 * Ends the lease now. When this returns OVERBANK_OK nothing reaches its memory any more. Waits at most `patience_ms`
 * milliseconds longer for the provider's signed word that the memory is overwritten, and puts into `*wiped`, which may be
 * null, whether it came. Whatever is returned but OVERBANK_BUSY, the handle is none from here on; a lease that is not over
 * then can be opened again. Any thread, but not while another is in a call with it.
 *
 * What you promise:
 * `wiped` is null or points to a bool.
 */
enum overbank_status overbank_lease_release(struct overbank_lease *lease,
                                            uint64_t patience_ms,
                                            bool *wiped);

/**
 * Splits a lease into the lanes that `overbank_lease_attach` was told of (one where it was not), and puts their handles into
 * `lanes[0]` to `lanes[count - 1]`; nulls where it fails. What is written through one is read through any. Each is closed with
 * `overbank_lane_close`; until all are, calls with the lease return OVERBANK_BUSY, but for those that any thread may make at
 * any time. Lanes do not attach anew: where the connection broke, close them all and split again.
 *
 * What you promise:
 * `lanes` points to places for `count` handles.
 */
enum overbank_status overbank_lease_split(struct overbank_lease *lease,
                                          struct overbank_lane **lanes,
                                          size_t count);

/**
 * As `overbank_lease_read`, through this lane.
 *
 * What you promise:
 * `buffer` has `len` bytes that no other thread uses meanwhile.
 */
enum overbank_status overbank_lane_read(struct overbank_lane *lane, uint64_t offset, void *buffer, size_t len);

/**
 * As `overbank_lease_write`, through this lane.
 *
 * What you promise:
 * `bytes` has `len` bytes that no other thread writes meanwhile.
 */
enum overbank_status overbank_lane_write(struct overbank_lane *lane, uint64_t offset, const void *bytes, size_t len);

/**
 * Gives a lane back; with the last one the lease is whole again. Null is nothing to close. Any thread, but not while another
 * is in a call with it.
 */
enum overbank_status overbank_lane_close(struct overbank_lane *lane);

/**
 * Shares a lease, or a part of it, with the trusted identity of the fingerprint `to`: writes a bundle to the file `path`, which
 * is of use to that identity alone and can be sent in any way. `options` may be null: all of it, for writing too. Where others
 * may write, the lease's freshness is unknown from here on.
 *
 * What you promise:
 * `to` and `path` are texts that end in a zero; `options` is null or points to such a struct.
 */
enum overbank_status overbank_lease_share(struct overbank_lease *lease,
                                          const char *to,
                                          const struct overbank_share_options *options,
                                          const char *path);

/**
 * Opens what somebody shared with us, from its bytes, writes it down as a lease file, so that `overbank_lease_open` finds it
 * again, and puts a new handle into `*lease`, which the caller closes; null where it fails. `from` is the fingerprint of who is
 * expected to have shared it; null: anybody. Any thread.
 *
 * What you promise:
 * `bundle` has `len` bytes; `from` is null or a text that ends in a zero; `lease` points to a place for a handle.
 */
enum overbank_status overbank_share_open(const struct overbank_client *client,
                                         const void *bundle,
                                         size_t len,
                                         const char *from,
                                         struct overbank_lease **lease);

/**
 * The same, from a file.
 *
 * What you promise:
 * `path` is a text that ends in a zero; `from` is null or such a text; `lease` points to a place for a handle.
 */
enum overbank_status overbank_share_open_file(const struct overbank_client *client,
                                              const char *path,
                                              const char *from,
                                              struct overbank_lease **lease);

/**
 * Makes memory of a lease, and puts a new handle into `*region`, which the caller releases; null where it fails. The lease belongs
 * to the region then: its handle is none any more, and its id stays. Where it fails the lease's handle stays good, unless the
 * lease is over, and the lease is not attached. Bytes at its end that make no whole page are left out. A lease that is shared
 * makes no region; one whose lanes are open returns OVERBANK_BUSY. Any thread, but not while another is in a call with the lease.
 *
 * What you promise:
 * `options` points to such a struct, and its `attach` to null or another whose texts end in a zero; `region` points to a place for
 * a handle.
 */
enum overbank_status overbank_region_open(struct overbank_lease *lease,
                                          const struct overbank_region_options *options,
                                          struct overbank_region **region);

/**
 * Puts the address of the region's first byte into `*start`, a multiple of its page, and into `*len` how many bytes there are.
 * They are there until `overbank_region_release`. Any thread, at any time.
 *
 * What you promise:
 * `start` and `len` point to places for them.
 */
enum overbank_status overbank_region_memory(const struct overbank_region *region,
                                            void **start,
                                            size_t *len);

/**
 * Writes the id of the lease that the region is kept in into `text`, of `len` bytes, at least OVERBANK_LEASE_ID_LEN. Any thread,
 * at any time.
 *
 * What you promise:
 * `text` has `len` bytes.
 */
enum overbank_status overbank_region_lease_id(const struct overbank_region *region,
                                              char *text,
                                              size_t len);

/**
 * Fills in `*stats`, whose `size` the caller has set. Any thread, at any time.
 *
 * What you promise:
 * `stats` points to such a struct, of as many bytes as it says.
 */
enum overbank_status overbank_region_stats(const struct overbank_region *region, struct overbank_stats *stats);

/**
 * Returns OVERBANK_OK where pages come and go as they should, and OVERBANK_LEASE_LOST, with words, where they cannot be had any
 * more: what is not here would then end the program. Asks nobody, so that a loss shows once somebody needed a page, or the lease
 * could not be renewed. Any thread, at any time.
 */
enum overbank_status overbank_region_check(const struct overbank_region *region);

/**
 * Brings all pages that have one of `len` bytes from `offset` on, as reading them would, but for a failure: it is returned. Pages
 * that came may have gone again when this returns, where there are more of them than may be here. Any thread.
 */
enum overbank_status overbank_region_fetch(struct overbank_region *region,
                                           uint64_t offset,
                                           size_t len);

/**
 * Brings all pages that have one of `len` bytes from `offset` on, and keeps them here until `overbank_region_unhold`: for system
 * calls where faults are handled by signal, and for memory that the kernel or a device goes on using after a call has returned
 * (direct I/O, registered buffers). A page is held or not, however often it was asked for. Where it fails, because too little of
 * `local_bytes` would be left for the others (OVERBANK_DOES_NOT_FIT) or pages cannot be had, none more is held than before. Any
 * thread.
 */
enum overbank_status overbank_region_hold(struct overbank_region *region,
                                          uint64_t offset,
                                          size_t len);

/**
 * Lets all pages go again that have one of `len` bytes from `offset` on. Any thread.
 */
enum overbank_status overbank_region_unhold(struct overbank_region *region, uint64_t offset, size_t len);

/**
 * Makes zeros of the pages that lie with all of their bytes in the `len` bytes from `offset` on, and forgets what they held, here
 * and in the lease, without asking for it. Puts into `*zeroed`, which may be null, how many bytes that were. A page that was held
 * is not any more. Any thread.
 *
 * What you promise:
 * `zeroed` is null or points to a number. No other thread uses those bytes meanwhile and counts on what it finds.
 */
enum overbank_status overbank_region_discard(struct overbank_region *region,
                                             uint64_t offset,
                                             size_t len,
                                             uint64_t *zeroed);

/**
 * Ends the region and its lease. Its memory is unmapped: whoever touches it from here on does so at his peril, and what was in it
 * is gone. Waits at most `patience_ms` milliseconds longer for the provider's signed word that what lay there, sealed, is
 * overwritten, and puts into `*wiped`, which may be null, whether it came. Whatever is returned but OVERBANK_BUSY, which says that
 * another thread is in a call with it, the handle is none from here on and the memory gone; a lease that could not be ended goes
 * when its time is over. Null is nothing to release. Any thread.
 *
 * What you promise:
 * No thread uses the region's memory any more. `wiped` is null or points to a bool, outside of it.
 */
enum overbank_status overbank_region_release(struct overbank_region *region,
                                             uint64_t patience_ms,
                                             bool *wiped);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* OVERBANK_H */
