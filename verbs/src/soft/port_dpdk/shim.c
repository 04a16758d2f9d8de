/* What is inline in DPDK's headers, or a structure that only C can take apart, as plain functions. */
#define _GNU_SOURCE
/* Handles of events. */
#define ALLOW_EXPERIMENTAL_API
#include "shim.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <rte_interrupts.h>
#include <rte_log.h>

int ob_errno(void) { return rte_errno; }

/* The end of the log: a ring of bytes. */
static char kept[2048];
static size_t written;
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;

static ssize_t keep(void *cookie, const char *bytes, size_t count) {
    (void)cookie;
    pthread_mutex_lock(&kept_lock);
    for (size_t at = 0; at < count; at++) kept[written++ % sizeof kept] = bytes[at];
    pthread_mutex_unlock(&kept_lock);
    return (ssize_t)count;
}

int ob_keep_log(void) {
    cookie_io_functions_t functions = {.write = keep};
    FILE *stream = fopencookie(NULL, "w", functions);
    if (stream == NULL) return -1;
    setvbuf(stream, NULL, _IOLBF, 0);
    return rte_openlog_stream(stream);
}

size_t ob_log_len(void) {
    pthread_mutex_lock(&kept_lock);
    size_t len = written;
    pthread_mutex_unlock(&kept_lock);
    return len;
}

size_t ob_log(size_t behind, char *to, size_t room) {
    if (room == 0) return 0;
    pthread_mutex_lock(&kept_lock);
    size_t count = written - behind;
    if (count > sizeof kept) count = sizeof kept;
    if (count > room - 1) count = room - 1;
    for (size_t at = 0; at < count; at++) to[at] = kept[(written - count + at) % sizeof kept];
    pthread_mutex_unlock(&kept_lock);
    to[count] = 0;
    return count;
}

int ob_on_event(int file, void (*then)(void *)) {
    struct rte_intr_handle *handle = rte_intr_instance_alloc(RTE_INTR_INSTANCE_F_PRIVATE);
    int failed = -ENOMEM;
    if (handle == NULL) return failed;
    if (rte_intr_fd_set(handle, file) == 0 && rte_intr_type_set(handle, RTE_INTR_HANDLE_EXT) == 0)
        failed = rte_intr_callback_register(handle, then, NULL);
    /* What was registered is a copy. */
    rte_intr_instance_free(handle);
    return failed;
}

int ob_port_setup(uint16_t port, struct rte_mempool *pool, uint16_t ring, uint16_t mtu, struct ob_port *facts, const char **step) {
    struct rte_eth_dev_info info;
    struct rte_eth_conf conf;
    struct rte_ether_addr mac;
    uint16_t receive = ring, send = ring;
    int failed;

    memset(facts, 0, sizeof *facts);
    memset(&conf, 0, sizeof conf);
    *step = "rte_eth_dev_info_get";
    if ((failed = rte_eth_dev_info_get(port, &info)) != 0) return failed;
    if (info.driver_name != NULL) snprintf(facts->driver, sizeof facts->driver, "%s", info.driver_name);
    if (mtu != 0) {
        conf.rxmode.mtu = mtu;
    }
    conf.rxmode.offloads = info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_IPV4_CKSUM;
    conf.txmode.offloads = info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
    facts->fills_checksum = conf.txmode.offloads != 0;
    *step = "rte_eth_dev_configure";
    if ((failed = rte_eth_dev_configure(port, 1, 1, &conf)) != 0) return failed;
    if (mtu != 0) {
        /* Some drivers take the MTU here only, and some have none to set. */
        *step = "rte_eth_dev_set_mtu";
        failed = rte_eth_dev_set_mtu(port, mtu);
        if (failed != 0 && failed != -ENOTSUP) return failed;
    }
    *step = "rte_eth_dev_adjust_nb_rx_tx_desc";
    if ((failed = rte_eth_dev_adjust_nb_rx_tx_desc(port, &receive, &send)) != 0) return failed;
    *step = "rte_eth_rx_queue_setup";
    if ((failed = rte_eth_rx_queue_setup(port, 0, receive, rte_eth_dev_socket_id(port), NULL, pool)) != 0) return failed;
    *step = "rte_eth_tx_queue_setup";
    if ((failed = rte_eth_tx_queue_setup(port, 0, send, rte_eth_dev_socket_id(port), NULL)) != 0) return failed;
    *step = "rte_eth_macaddr_get";
    if ((failed = rte_eth_macaddr_get(port, &mac)) != 0) return failed;
    memcpy(facts->mac, mac.addr_bytes, sizeof facts->mac);
    *step = "rte_eth_dev_get_mtu";
    if ((failed = rte_eth_dev_get_mtu(port, &facts->mtu)) != 0) return failed;
    facts->receive_ring = receive;
    facts->send_ring = send;
    return 0;
}

int ob_link_is_up(uint16_t port) {
    struct rte_eth_link link;
    memset(&link, 0, sizeof link);
    return rte_eth_link_get_nowait(port, &link) == 0 && link.link_status == RTE_ETH_LINK_UP;
}

uint16_t ob_receive(uint16_t port, struct rte_mbuf **frames, uint16_t count) { return rte_eth_rx_burst(port, 0, frames, count); }

uint16_t ob_send(uint16_t port, struct rte_mbuf **frames, uint16_t count) { return rte_eth_tx_burst(port, 0, frames, count); }

struct rte_mbuf *ob_alloc(struct rte_mempool *pool) { return rte_pktmbuf_alloc(pool); }

void ob_free(struct rte_mbuf *frame) { rte_pktmbuf_free(frame); }

uint8_t *ob_bytes(struct rte_mbuf *frame, uint32_t *len) {
    if (frame->nb_segs != 1 || frame->pkt_len != frame->data_len) return NULL;
    /* A driver that trusts its peer's lengths may have been lied to. */
    if ((uint32_t)frame->data_off + frame->data_len > frame->buf_len) return NULL;
    *len = frame->data_len;
    return rte_pktmbuf_mtod(frame, uint8_t *);
}

uint8_t *ob_room(struct rte_mbuf *frame, uint32_t *room) {
    *room = (uint32_t)frame->data_len + rte_pktmbuf_tailroom(frame);
    return rte_pktmbuf_mtod(frame, uint8_t *);
}

void ob_set_len(struct rte_mbuf *frame, uint16_t len) {
    frame->data_len = len;
    frame->pkt_len = len;
}

void ob_want_checksum(struct rte_mbuf *frame, uint8_t ethernet, uint8_t ipv4) {
    frame->l2_len = ethernet;
    frame->l3_len = ipv4;
    frame->ol_flags |= RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_IP_CKSUM;
}

int ob_is_damaged(const struct rte_mbuf *frame) {
    /* RoCE has no UDP checksum, which some cards take for a wrong one: the ICRC covers what it would. */
    return (frame->ol_flags & RTE_MBUF_F_RX_IP_CKSUM_MASK) == RTE_MBUF_F_RX_IP_CKSUM_BAD;
}
