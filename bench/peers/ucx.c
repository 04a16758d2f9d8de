/* UCX's one-sided operations: ucp_get_nbx and ucp_put_nbx on one endpoint. Which transport is UCX_TLS's matter. */
#include "peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <ucp/api/ucp.h>

static ucp_context_h context;
static ucp_worker_h worker;
static ucp_ep_h endpoint;
static ucp_rkey_h key;
static unsigned char *own;
static uint64_t other;
static int flushing;

static void ok(ucs_status_t status, const char *what)
{
    if (status != UCS_OK)
        fail("%s: %s", what, ucs_status_string(status));
}

void library_version(const char *provider, char *out, size_t room)
{
    (void)provider;
    snprintf(out, room, "UCX %s", ucp_get_version_string());
}

static void start(void)
{
    ucp_config_t *config;
    ok(ucp_config_read(NULL, NULL, &config), "ucp_config_read");
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_RMA};
    ok(ucp_init(&params, config, &context), "ucp_init");
    ucp_config_release(config);
    ucp_worker_params_t one = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE, .thread_mode = UCS_THREAD_MODE_SINGLE};
    ok(ucp_worker_create(context, &one, &worker), "ucp_worker_create");
}

void library_lend(const char *provider, unsigned char *memory, size_t length)
{
    (void)provider;
    start();
    ucp_mem_map_params_t map = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
        .address = memory,
        .length = length,
    };
    ucp_mem_h region;
    ok(ucp_mem_map(context, &map, &region), "ucp_mem_map");
    void *packed;
    size_t packed_length, address_length;
    ok(ucp_rkey_pack(context, region, &packed, &packed_length), "ucp_rkey_pack");
    ucp_address_t *address;
    ok(ucp_worker_get_address(worker, &address, &address_length), "ucp_worker_get_address");
    print_hex(address, address_length);
    putchar(' ');
    print_hex(packed, packed_length);
    printf(" %llu\n", (unsigned long long)(uintptr_t)memory);
    ucp_rkey_buffer_release(packed);
    ucp_worker_release_address(worker, address);
}

void library_reach(const char *provider, const char *line, unsigned char *memory, size_t length)
{
    (void)provider;
    (void)length;
    start();
    size_t address_length, packed_length;
    unsigned char *address = parse_hex(&line, &address_length), *packed = parse_hex(&line, &packed_length);
    other = parse_number(&line);
    own = memory;
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS,
        .address = (const ucp_address_t *)address,
    };
    ok(ucp_ep_create(worker, &params, &endpoint), "ucp_ep_create");
    ok(ucp_ep_rkey_unpack(endpoint, packed, &key), "ucp_ep_rkey_unpack");
    free(address);
    free(packed);
}

static void done(void *request, ucs_status_t status, void *slot)
{
    ok(status, "an operation");
    ucp_request_free(request);
    ended((size_t)(uintptr_t)slot);
}

static void local(void *request, ucs_status_t status, void *nothing)
{
    (void)nothing;
    ok(status, "ucp_put_nbx");
    ucp_request_free(request);
}

static void flushed(void *request, ucs_status_t status, void *nothing)
{
    (void)nothing;
    ok(status, "ucp_ep_flush_nbx");
    ucp_request_free(request);
    flushing = 0;
}

static ucp_request_param_t calling(ucp_send_nbx_callback_t callback, size_t slot)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .cb = {.send = callback},
        .user_data = (void *)(uintptr_t)slot,
    };
    return param;
}

/* Whether it was done at once. */
static int at_once(ucs_status_ptr_t request, const char *what)
{
    if (UCS_PTR_IS_ERR(request))
        fail("%s: %s", what, ucs_status_string(UCS_PTR_STATUS(request)));
    return request == NULL;
}

void library_post(enum op op, size_t slot, size_t offset, size_t size, int delivered)
{
    ucp_request_param_t param = calling(done, slot);
    if (op == OP_READ) {
        if (at_once(ucp_get_nbx(endpoint, own + offset, size, other + offset, key, &param), "ucp_get_nbx"))
            ended(slot);
        return;
    }
    if (!delivered) {
        if (at_once(ucp_put_nbx(endpoint, own + offset, size, other + offset, key, &param), "ucp_put_nbx"))
            ended(slot);
        return;
    }
    ucp_request_param_t put = calling(local, 0);
    at_once(ucp_put_nbx(endpoint, own + offset, size, other + offset, key, &put), "ucp_put_nbx");
    if (at_once(ucp_ep_flush_nbx(endpoint, &param), "ucp_ep_flush_nbx"))
        ended(slot);
}

void library_move(void)
{
    ucp_worker_progress(worker);
}

void library_flush(void)
{
    ucp_request_param_t param = calling(flushed, 0);
    flushing = !at_once(ucp_ep_flush_nbx(endpoint, &param), "ucp_ep_flush_nbx");
    while (flushing)
        move_on();
}
