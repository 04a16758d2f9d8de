/* libfabric's one-sided operations on a reliable datagram endpoint of the provider that was asked for. */
#include "peer.h"

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ENTRIES = 64, SLOTS = 4096 };

static struct fi_info *info;
static struct fid_domain *domain;
static struct fid_ep *endpoint;
static struct fid_cq *queue;
static struct fid_av *addresses;
static struct fid_mr *region;
static fi_addr_t peer;
static unsigned char *own;
static uint64_t other, key;
/* What each operation under way is known by; a library may use the bytes until it has ended. */
static struct fi_context2 contexts[SLOTS];

static void ok(int status, const char *what)
{
    if (status != 0)
        fail("%s: %s", what, fi_strerror(-status));
}

static void find(const char *provider)
{
    struct fi_info *hints = fi_allocinfo();
    if (hints == NULL || (hints->fabric_attr->prov_name = strdup(provider)) == NULL)
        fail("no memory");
    hints->ep_attr->type = FI_EP_RDM;
    hints->caps = FI_RMA;
    hints->mode = FI_CONTEXT | FI_CONTEXT2;
    hints->domain_attr->threading = FI_THREAD_DOMAIN;
    hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
    int status = fi_getinfo(FI_VERSION(1, 14), "127.0.0.1", NULL, FI_SOURCE, hints, &info);
    fi_freeinfo(hints);
    if (status == -FI_ENODATA || status == -FI_ENOSYS)
        missing("libfabric has no provider %s with reliable datagrams and RMA", provider);
    ok(status, "fi_getinfo");
    /* The name also finds layers over it. */
    while (info != NULL && strcmp(info->fabric_attr->prov_name, provider) != 0)
        info = info->next;
    if (info == NULL)
        missing("libfabric's provider %s has no reliable datagrams with RMA by itself", provider);
}

void library_version(const char *provider, char *out, size_t room)
{
    find(provider);
    uint32_t version = fi_version();
    snprintf(out, room, "libfabric %u.%u, provider %s", FI_MAJOR(version), FI_MINOR(version), info->fabric_attr->prov_name);
}

static void start(const char *provider, unsigned char *memory, size_t length)
{
    find(provider);
    struct fid_fabric *fabric;
    ok(fi_fabric(info->fabric_attr, &fabric, NULL), "fi_fabric");
    ok(fi_domain(fabric, info, &domain, NULL), "fi_domain");
    struct fi_cq_attr cq = {.format = FI_CQ_FORMAT_CONTEXT, .wait_obj = FI_WAIT_NONE, .size = SLOTS};
    ok(fi_cq_open(domain, &cq, &queue, NULL), "fi_cq_open");
    struct fi_av_attr av = {.type = info->domain_attr->av_type, .count = 1};
    ok(fi_av_open(domain, &av, &addresses, NULL), "fi_av_open");
    ok(fi_endpoint(domain, info, &endpoint, NULL), "fi_endpoint");
    ok(fi_ep_bind(endpoint, &addresses->fid, 0), "fi_ep_bind");
    ok(fi_ep_bind(endpoint, &queue->fid, FI_TRANSMIT | FI_RECV), "fi_ep_bind");
    ok(fi_enable(endpoint), "fi_enable");
    uint64_t rights = FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE;
    ok(fi_mr_reg(domain, memory, length, rights, 0, 1, 0, &region, NULL), "fi_mr_reg");
}

void library_lend(const char *provider, unsigned char *memory, size_t length)
{
    start(provider, memory, length);
    unsigned char name[512];
    size_t name_length = sizeof name;
    ok(fi_getname(&endpoint->fid, name, &name_length), "fi_getname");
    int by_address = (info->domain_attr->mr_mode & FI_MR_VIRT_ADDR) != 0;
    print_hex(name, name_length);
    printf(" %llu %llu\n", (unsigned long long)fi_mr_key(region), by_address ? (unsigned long long)(uintptr_t)memory : 0);
}

void library_reach(const char *provider, const char *line, unsigned char *memory, size_t length)
{
    start(provider, memory, length);
    size_t name_length;
    unsigned char *name = parse_hex(&line, &name_length);
    key = parse_number(&line);
    other = parse_number(&line);
    own = memory;
    int inserted = fi_av_insert(addresses, name, 1, &peer, 0, NULL);
    if (inserted != 1)
        fail("fi_av_insert: %d", inserted);
    free(name);
}

void library_post(enum op op, size_t slot, size_t offset, size_t size, int delivered)
{
    (void)delivered;
    struct iovec from = {.iov_base = own + offset, .iov_len = size};
    void *descriptor = fi_mr_desc(region);
    struct fi_rma_iov to = {.addr = other + offset, .len = size, .key = key};
    struct fi_msg_rma message = {
        .msg_iov = &from,
        .desc = &descriptor,
        .iov_count = 1,
        .addr = peer,
        .rma_iov = &to,
        .rma_iov_count = 1,
        .context = &contexts[slot],
    };
    uint64_t flags = FI_COMPLETION;
    if (op == OP_WRITE)
        flags |= FI_DELIVERY_COMPLETE;
    for (;;) {
        ssize_t status =
            op == OP_READ ? fi_readmsg(endpoint, &message, flags) : fi_writemsg(endpoint, &message, flags);
        if (status == 0)
            return;
        if (status != -FI_EAGAIN)
            fail("%s: %s", op == OP_READ ? "fi_readmsg" : "fi_writemsg", fi_strerror((int)-status));
        move_on();
    }
}

void library_move(void)
{
    struct fi_cq_entry entries[ENTRIES];
    ssize_t found = fi_cq_read(queue, entries, ENTRIES);
    if (found == -FI_EAGAIN)
        return;
    if (found == -FI_EAVAIL) {
        struct fi_cq_err_entry error = {0};
        char text[256];
        if (fi_cq_readerr(queue, &error, 0) != 1)
            fail("fi_cq_read: an error that cannot be read");
        fail("an operation: %s", fi_cq_strerror(queue, error.prov_errno, error.err_data, text, sizeof text));
    }
    if (found < 0)
        fail("fi_cq_read: %s", fi_strerror((int)-found));
    for (ssize_t at = 0; at < found; at++)
        ended((size_t)((struct fi_context2 *)entries[at].op_context - contexts));
}

void library_flush(void)
{
    /* Each WRITE ends when it is delivered. */
}
