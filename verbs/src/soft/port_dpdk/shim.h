/* What is inline in DPDK's headers, or a structure that only C can take apart, as plain functions. */
#ifndef OVERBANK_DPDK_SHIM_H
#define OVERBANK_DPDK_SHIM_H

#include <stddef.h>
#include <stdint.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

/* What a port turned out to be. */
struct ob_port {
    uint8_t mac[6];
    /* Longest IP packet. */
    uint16_t mtu;
    /* Frames that its rings hold. */
    uint16_t receive_ring;
    uint16_t send_ring;
    /* It fills in IPv4 header checksums that it is asked for. */
    uint8_t fills_checksum;
    char driver[32];
};

/* Of the last call that failed in this thread. */
int ob_errno(void);

/* From now on the last lines of DPDK's log are kept here, in place of standard error. */
int ob_keep_log(void);
/* How many bytes it has had so far. */
size_t ob_log_len(void);
/* Copies what was kept last of what came behind so many bytes, with a zero byte at its end; returns the bytes without it. */
size_t ob_log(size_t behind, char *to, size_t room);

/* From now on DPDK's own thread calls this when the file has something. Returns 0 or -errno. */
int ob_on_event(int file, void (*then)(void *));

/* Sets a port up with one queue in each direction. `mtu`: 0 leaves the driver's own. Returns 0 or -errno, and in `step` what failed. */
int ob_port_setup(uint16_t port, struct rte_mempool *pool, uint16_t ring, uint16_t mtu, struct ob_port *facts, const char **step);
int ob_link_is_up(uint16_t port);

/* Takes up to `count` frames. */
uint16_t ob_receive(uint16_t port, struct rte_mbuf **frames, uint16_t count);
/* Gives up to `count` frames away; returns how many it took. */
uint16_t ob_send(uint16_t port, struct rte_mbuf **frames, uint16_t count);

struct rte_mbuf *ob_alloc(struct rte_mempool *pool);
void ob_free(struct rte_mbuf *frame);
/* The bytes of a frame, which is one segment, or NULL. */
uint8_t *ob_bytes(struct rte_mbuf *frame, uint32_t *len);
/* Where a frame begins in its buffer, and how many bytes it has room for. */
uint8_t *ob_room(struct rte_mbuf *frame, uint32_t *room);
void ob_set_len(struct rte_mbuf *frame, uint16_t len);
/* The port is to fill in the IPv4 header's checksum. */
void ob_want_checksum(struct rte_mbuf *frame, uint8_t ethernet, uint8_t ipv4);
/* The port has seen a checksum that is wrong. */
int ob_is_damaged(const struct rte_mbuf *frame);

#endif
