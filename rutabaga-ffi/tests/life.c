/* The C interface from C, as a VMM uses it and as none should: each return code is checked.
 *
 *     life SCENARIO
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <rutabaga_gfx/rutabaga_gfx_ffi.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                                      \
    do {                                                                                                      \
        if (!(condition)) {                                                                                   \
            fprintf(stderr, "%s:%d: %s\n  last message: %s\n", __FILE__, __LINE__, #condition, last_message); \
            exit(1);                                                                                          \
        }                                                                                                     \
    } while (0)

#define IS(expected, call)                                                                                    \
    do {                                                                                                      \
        int32_t got = (call);                                                                                 \
        if (got != (expected)) {                                                                              \
            fprintf(stderr, "%s:%d: %s is %d, not %d\n  last message: %s\n", __FILE__, __LINE__, #call, got,  \
                    (int)(expected), last_message);                                                           \
            exit(1);                                                                                          \
        }                                                                                                     \
    } while (0)

enum { OURS = 24, PAGE = 4096, BYTES = 1 << 20 };

static char last_message[1024] = "none";

/* ---- Layout: that of rutabaga_gfx_ffi.h 0.1.6 on 64-bit Linux. ---- */

#define SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), #type)
#define AT(type, field, bytes) _Static_assert(offsetof(struct type, field) == (bytes), #type "." #field)

SIZE(rutabaga_create_blob, 24);
AT(rutabaga_create_blob, blob_flags, 4);
AT(rutabaga_create_blob, blob_id, 8);
AT(rutabaga_create_blob, size, 16);
SIZE(rutabaga_create_3d, 40);
AT(rutabaga_create_3d, width, 12);
AT(rutabaga_create_3d, flags, 36);
SIZE(rutabaga_import_data, 64);
AT(rutabaga_import_data, info_3d, 8);
AT(rutabaga_import_data, info_3d.strides, 20);
AT(rutabaga_import_data, info_3d.modifier, 56);
SIZE(rutabaga_transfer, 48);
AT(rutabaga_transfer, level, 24);
AT(rutabaga_transfer, offset, 40);
SIZE(rutabaga_iovecs, 16);
AT(rutabaga_iovecs, num_iovecs, 8);
SIZE(rutabaga_handle, 16);
AT(rutabaga_handle, handle_type, 8);
SIZE(rutabaga_mapping, 16);
AT(rutabaga_mapping, size, 8);
SIZE(rutabaga_command, 32);
AT(rutabaga_command, cmd_size, 4);
AT(rutabaga_command, cmd, 8);
AT(rutabaga_command, num_in_fences, 16);
AT(rutabaga_command, fence_ids, 24);
SIZE(rutabaga_channel, 16);
AT(rutabaga_channel, channel_type, 8);
SIZE(rutabaga_channels, 16);
AT(rutabaga_channels, num_channels, 8);
SIZE(rutabaga_fence, 24);
AT(rutabaga_fence, fence_id, 8);
AT(rutabaga_fence, ctx_id, 16);
AT(rutabaga_fence, ring_idx, 20);
SIZE(rutabaga_debug, 16);
AT(rutabaga_debug, message, 8);
SIZE(rutabaga_builder, 56);
AT(rutabaga_builder, capset_mask, 8);
AT(rutabaga_builder, wsi, 16);
AT(rutabaga_builder, fence_cb, 24);
AT(rutabaga_builder, debug_cb, 32);
AT(rutabaga_builder, channels, 40);
AT(rutabaga_builder, renderer_features, 48);

/* ---- What a VMM has. ---- */

enum { MOST_FENCES = 256 };

struct vmm {
    struct rutabaga *device;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct rutabaga_fence reached[MOST_FENCES];
    unsigned count;
};

static void on_fence(uint64_t user_data, const struct rutabaga_fence *fence)
{
    struct vmm *vmm = (struct vmm *)(uintptr_t)user_data;
    uint32_t capsets = 0;
    struct rutabaga *device = vmm->device;
    if (device != NULL) {
        /* While another thread finishes it, it may be gone. */
        int32_t result = rutabaga_get_num_capsets(device, &capsets);
        CHECK(result == 0 || result == -EINVAL);
        result = rutabaga_finish(&device);
        CHECK(result == -EDEADLK || result == -EINVAL);
    }
    pthread_mutex_lock(&vmm->lock);
    CHECK(vmm->count < MOST_FENCES);
    vmm->reached[vmm->count++] = *fence;
    pthread_cond_broadcast(&vmm->changed);
    pthread_mutex_unlock(&vmm->lock);
}

static void on_message(uint64_t user_data, const struct rutabaga_debug *debug)
{
    CHECK(user_data != 0);
    CHECK(debug->debug_type >= RUTABAGA_DEBUG_ERROR && debug->debug_type <= RUTABAGA_DEBUG_INFO);
    snprintf(last_message, sizeof(last_message), "%s", debug->message);
}

static struct rutabaga_builder builder_of(struct vmm *vmm, uint64_t mask)
{
    memset(vmm, 0, sizeof(*vmm));
    pthread_mutex_init(&vmm->lock, NULL);
    pthread_cond_init(&vmm->changed, NULL);
    return (struct rutabaga_builder){
        .user_data = (uint64_t)(uintptr_t)vmm,
        .capset_mask = mask,
        .wsi = RUTABAGA_WSI_SURFACELESS,
        .fence_cb = on_fence,
        .debug_cb = on_message,
    };
}

static void start(struct vmm *vmm, uint64_t mask)
{
    struct rutabaga_builder builder = builder_of(vmm, mask);
    struct rutabaga_channel wayland = { "/nonexistent/wayland-0", RUTABAGA_CHANNEL_TYPE_WAYLAND };
    struct rutabaga_channels channels = { &wayland, 1 };
    if (mask & (1 << RUTABAGA_CAPSET_CROSS_DOMAIN))
        builder.channels = &channels;
    IS(0, rutabaga_init(&builder, &vmm->device));
    CHECK(vmm->device != NULL);
}

/* Waits until so many callbacks have come. */
static void wait_for(struct vmm *vmm, unsigned count)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    pthread_mutex_lock(&vmm->lock);
    while (vmm->count < count)
        CHECK(pthread_cond_timedwait(&vmm->changed, &vmm->lock, &until) == 0);
    pthread_mutex_unlock(&vmm->lock);
}

static struct rutabaga_fence on_ring(uint32_t context, uint32_t ring, uint64_t id)
{
    return (struct rutabaga_fence){
        .flags = RUTABAGA_FLAG_FENCE | RUTABAGA_FLAG_INFO_RING_IDX,
        .fence_id = id,
        .ctx_id = context,
        .ring_idx = ring,
    };
}

/* Waits for all that the context has submitted. */
static void settle(struct vmm *vmm, uint32_t context)
{
    static uint64_t id = 1000;
    struct rutabaga_fence fence = on_ring(context, 0, ++id);
    unsigned before = vmm->count;
    IS(0, rutabaga_create_fence(vmm->device, &fence));
    wait_for(vmm, before + 1);
    struct rutabaga_fence *got = &vmm->reached[before];
    CHECK(got->flags == fence.flags && got->fence_id == id && got->ctx_id == context && got->ring_idx == 0);
    vmm->count = 0;
}

/* ---- What a guest sends (docs/protocol.md). ---- */

struct envelope {
    unsigned char bytes[4096];
    uint32_t length;
};

static void put(struct envelope *envelope, const void *value, uint32_t length)
{
    memcpy(envelope->bytes + envelope->length, value, length);
    envelope->length += length;
}

static void put32(struct envelope *envelope, uint32_t value) { put(envelope, &value, 4); }
static void put64(struct envelope *envelope, uint64_t value) { put(envelope, &value, 8); }

/* One request, without a sequence: errors are the call's. */
static void begin(struct envelope *envelope, uint16_t type, uint32_t payload)
{
    memset(envelope, 0, sizeof(*envelope));
    put(envelope, "HBLB\1\0\1\0", 8);
    put32(envelope, 24 + 8 + (payload + 7) / 8 * 8);
    put32(envelope, 0);
    put64(envelope, 0);
    put32(envelope, 1u << 16 | type);
    put32(envelope, payload);
}

static int32_t submit(struct vmm *vmm, uint32_t context, struct envelope *envelope)
{
    envelope->length = (envelope->length + 7) / 8 * 8;
    struct rutabaga_command command = {
        .ctx_id = context,
        .cmd_size = envelope->length,
        .cmd = envelope->bytes,
    };
    return rutabaga_submit_command(vmm->device, &command);
}

enum { HOST_VISIBLE = 1, SHAREABLE = 2, MAP_DIRECTLY = 4 };

static int32_t create_memory(struct vmm *vmm, uint32_t context, uint64_t name, uint64_t size, uint32_t flags)
{
    struct envelope envelope;
    begin(&envelope, 0x8002, 40);
    put64(&envelope, name);
    put64(&envelope, size);
    put32(&envelope, 1); /* by properties: */
    put32(&envelope, 2); /* VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT */
    put32(&envelope, flags);
    put64(&envelope, 0);
    put32(&envelope, 0);
    return submit(vmm, context, &envelope);
}

static int32_t fill(struct vmm *vmm, uint32_t context, uint64_t name, uint64_t offset, uint64_t length, uint32_t value)
{
    struct envelope envelope;
    begin(&envelope, 0x8009, 28);
    put64(&envelope, name);
    put64(&envelope, offset);
    put64(&envelope, length);
    put32(&envelope, value);
    return submit(vmm, context, &envelope);
}

static int32_t import_resource(struct vmm *vmm, uint32_t context, uint64_t name, uint32_t resource)
{
    struct envelope envelope;
    begin(&envelope, 0x800d, 12);
    put64(&envelope, name);
    put32(&envelope, resource);
    return submit(vmm, context, &envelope);
}

static int32_t create_blob(struct vmm *vmm, uint32_t context, uint32_t resource, uint32_t mem, uint32_t flags,
                           uint64_t name, uint64_t size, struct iovec *pages, size_t count)
{
    struct rutabaga_create_blob create = { mem, flags, name, size };
    struct rutabaga_iovecs iovecs = { pages, count };
    return rutabaga_resource_create_blob(vmm->device, context, resource, &create, &iovecs, NULL);
}

static void context(struct vmm *vmm, uint32_t id, uint32_t capset)
{
    IS(0, rutabaga_context_create(vmm->device, id, capset, "test", 4));
}

static void finish(struct vmm *vmm)
{
    IS(0, rutabaga_finish(&vmm->device));
    CHECK(vmm->device == NULL);
}

/* Memory of the guest as memory-backend-memfd,share=on has it. */
static unsigned char *guest_memory(size_t size)
{
    int memfd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(memfd >= 0 && ftruncate(memfd, (off_t)size) == 0);
    CHECK(fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

static int all_are(const unsigned char *bytes, size_t length, unsigned char value)
{
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != value)
            return 0;
    return 1;
}

/* ---- Scenarios. ---- */

/* One blob from its beginning to its end. */
static void life(void)
{
    struct vmm vmm;
    start(&vmm, 0);
    struct rutabaga *device = vmm.device;
    uint32_t capsets = 0, id = 0, version = 9, size = 0;
    IS(0, rutabaga_get_num_capsets(device, &capsets));
    CHECK(capsets == 1);
    IS(0, rutabaga_get_capset_info(device, 0, &id, &version, &size));
    CHECK(id == OURS && version == 1 && size == 1024);
    unsigned char capset[1028];
    memset(capset, 0xa5, sizeof(capset));
    IS(0, rutabaga_get_capset(device, OURS, 1, capset, sizeof(capset)));
    uint32_t announced, window_mode;
    memcpy(&announced, capset, 4);
    memcpy(&window_mode, capset + 20, 4);
    CHECK(announced == 1024 && window_mode == 0 && capset[1016] == 0x0e);
    CHECK(all_are(capset + 1024, 4, 0xa5));
    unsigned char part[8] = { 0 };
    IS(0, rutabaga_get_capset(device, OURS, 1, part, 4));
    CHECK(part[1] == 4 && part[4] == 0);

    context(&vmm, 1, OURS);
    IS(0, create_memory(&vmm, 1, 7, BYTES, HOST_VISIBLE | SHAREABLE | MAP_DIRECTLY));
    IS(0, create_blob(&vmm, 1, 5, RUTABAGA_BLOB_MEM_HOST3D,
                      RUTABAGA_BLOB_FLAG_USE_MAPPABLE | RUTABAGA_BLOB_FLAG_USE_SHAREABLE, 7, BYTES, NULL, 0));
    IS(0, rutabaga_context_attach_resource(device, 1, 5));
    uint32_t map_info = 0;
    IS(0, rutabaga_resource_map_info(device, 5, &map_info));
    uint32_t cache = map_info & RUTABAGA_MAP_CACHE_MASK;
    CHECK(cache == RUTABAGA_MAP_CACHE_CACHED || cache == RUTABAGA_MAP_CACHE_WC);
    CHECK((map_info & RUTABAGA_MAP_ACCESS_MASK) == RUTABAGA_MAP_ACCESS_RW);
    struct rutabaga_mapping mapping = { 0 };
    IS(0, rutabaga_resource_map(device, 5, &mapping));
    CHECK(mapping.size == BYTES);
    unsigned char *bytes = mapping.ptr;
    CHECK(all_are(bytes, BYTES, 0));
    memset(bytes, 1, BYTES / 2);
    IS(0, fill(&vmm, 1, 7, BYTES / 2, BYTES / 2, 0x2a2a2a2a));
    settle(&vmm, 1);
    CHECK(all_are(bytes, BYTES / 2, 1) && all_are(bytes + BYTES / 2, BYTES / 2, 0x2a));

    struct rutabaga_handle handle = { -7, 0x77 };
    if (access("/dev/udmabuf", R_OK | W_OK) == 0) {
        IS(0, rutabaga_resource_export_blob(device, 5, &handle));
        CHECK(handle.handle_type == RUTABAGA_HANDLE_TYPE_MEM_DMABUF);
        unsigned char *again = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, (int)handle.os_handle, 0);
        CHECK(again != MAP_FAILED && again[0] == 1 && again[BYTES - 1] == 0x2a);
        CHECK(munmap(again, BYTES) == 0 && close((int)handle.os_handle) == 0);
    } else {
        IS(-EOPNOTSUPP, rutabaga_resource_export_blob(device, 5, &handle));
        CHECK(handle.os_handle == -7 && handle.handle_type == 0x77);
        CHECK(strstr(last_message, "modprobe udmabuf") != NULL);
    }

    /* Its bytes stay where they are. */
    IS(-EINVAL, rutabaga_resource_map(device, 5, &mapping));
    IS(0, rutabaga_resource_unmap(device, 5));
    IS(-EINVAL, rutabaga_resource_unmap(device, 5));
    IS(0, rutabaga_resource_map(device, 5, &mapping));
    CHECK(mapping.ptr == bytes && bytes[0] == 1);
    IS(0, rutabaga_resource_unmap(device, 5));
    IS(0, rutabaga_context_detach_resource(device, 1, 5));
    IS(0, rutabaga_resource_unref(device, 5));
    IS(-EINVAL, rutabaga_resource_unref(device, 5));
    IS(-EINVAL, rutabaga_resource_map(device, 5, &mapping));

    /* Ids can be used again, and what was there before is not seen. */
    IS(0, create_memory(&vmm, 1, 7, BYTES, HOST_VISIBLE | MAP_DIRECTLY));
    IS(0, create_blob(&vmm, 1, 5, RUTABAGA_BLOB_MEM_HOST3D, RUTABAGA_BLOB_FLAG_USE_MAPPABLE, 7, BYTES, NULL, 0));
    IS(0, rutabaga_resource_map(device, 5, &mapping));
    CHECK(all_are(mapping.ptr, BYTES, 0));
    IS(-EINVAL, rutabaga_resource_export_blob(device, 5, &handle));
    IS(0, rutabaga_context_destroy(device, 1));
    IS(-EINVAL, rutabaga_context_destroy(device, 1));
    memset(mapping.ptr, 3, BYTES); /* Mapped blobs outlive their context. */
    IS(0, rutabaga_resource_unmap(device, 5));
    IS(0, rutabaga_resource_unref(device, 5));

    finish(&vmm);
    IS(-EINVAL, rutabaga_finish(&vmm.device));
    vmm.device = device;
    IS(-EINVAL, rutabaga_finish(&vmm.device));
    IS(-EINVAL, rutabaga_get_num_capsets(device, &capsets));
}

/* More mappings than fit at once, and no byte in two of them. */
static void window(void)
{
    struct vmm vmm;
    setenv("HOSTBLOB_WINDOW", "4M", 1);
    setenv("HOSTBLOB_MEMORY_LIMIT", "64M", 1);
    start(&vmm, 0);
    context(&vmm, 1, OURS);
    struct rutabaga_mapping mappings[5];
    for (uint32_t i = 0; i < 5; i++) {
        IS(0, create_memory(&vmm, 1, 1 + i, BYTES, HOST_VISIBLE | MAP_DIRECTLY));
        IS(0, create_blob(&vmm, 1, 1 + i, RUTABAGA_BLOB_MEM_HOST3D, RUTABAGA_BLOB_FLAG_USE_MAPPABLE, 1 + i, BYTES, NULL,
                          0));
    }
    for (uint32_t i = 0; i < 4; i++) {
        IS(0, rutabaga_resource_map(vmm.device, 1 + i, &mappings[i]));
        memset(mappings[i].ptr, (int)(1 + i), BYTES);
    }
    IS(-ENOMEM, rutabaga_resource_map(vmm.device, 5, &mappings[4]));
    /* An unmapped blob makes room, and finds its bytes again elsewhere. */
    IS(0, rutabaga_resource_unmap(vmm.device, 2));
    IS(0, rutabaga_resource_map(vmm.device, 5, &mappings[4]));
    CHECK(all_are(mappings[4].ptr, BYTES, 0));
    IS(0, rutabaga_resource_unref(vmm.device, 1));
    IS(0, rutabaga_resource_map(vmm.device, 2, &mappings[1]));
    CHECK(all_are(mappings[1].ptr, BYTES, 2) && all_are(mappings[2].ptr, BYTES, 3));
    /* Four of 64 MiB are in use. */
    for (uint64_t i = 0; i < 61; i++)
        IS(i < 60 ? 0 : -ENOMEM, create_memory(&vmm, 1, 100 + i, BYTES, 0));
    finish(&vmm);
    unsetenv("HOSTBLOB_WINDOW");
    unsetenv("HOSTBLOB_MEMORY_LIMIT");
}

/* Blobs in guest memory that lies here and there. */
static void guest_pages(void)
{
    struct vmm vmm;
    start(&vmm, 0);
    context(&vmm, 1, OURS);
    enum { PAGES = 16 };
    unsigned char *memory = guest_memory(PAGES * PAGE), *other = guest_memory(2 * PAGE);
    /* A hole in the mapping makes two of it. */
    CHECK(mprotect(memory + 15 * PAGE, PAGE, PROT_NONE) == 0);
    struct iovec pages[] = {
        { memory + 9 * PAGE, PAGE }, { other + PAGE, PAGE },     { memory, 2 * PAGE },
        { NULL, 0 },                 { memory + 4 * PAGE, PAGE }, { memory + 5 * PAGE, PAGE },
    };
    unsigned char *expected[] = { memory + 9 * PAGE, other + PAGE, memory, memory + PAGE, memory + 4 * PAGE, memory + 5 * PAGE };
    IS(0, create_blob(&vmm, 0, 3, RUTABAGA_BLOB_MEM_GUEST, 0, 0, 6 * PAGE, pages, 6));
    IS(0, rutabaga_context_attach_resource(vmm.device, 1, 3));
    IS(0, import_resource(&vmm, 1, 30, 3));
    for (uint32_t i = 0; i < 6; i++)
        IS(0, fill(&vmm, 1, 30, i * PAGE, PAGE, 0x01010101 * (i + 1)));
    settle(&vmm, 1);
    for (int i = 0; i < 6; i++)
        CHECK(all_are(expected[i], PAGE, (unsigned char)(i + 1)));
    CHECK(all_are(memory + 2 * PAGE, 2 * PAGE, 0) && all_are(other, PAGE, 0));
    struct rutabaga_mapping mapping;
    IS(-EINVAL, rutabaga_resource_map(vmm.device, 3, &mapping));

    /* Others in their place. */
    IS(0, rutabaga_resource_detach_backing(vmm.device, 3));
    struct iovec all = { memory + 6 * PAGE, 6 * PAGE };
    struct rutabaga_iovecs iovecs = { &all, 1 };
    IS(0, rutabaga_resource_attach_backing(vmm.device, 3, &iovecs));
    IS(0, fill(&vmm, 1, 30, 0, 6 * PAGE, 0x09090909));
    settle(&vmm, 1);
    CHECK(all_are(memory + 6 * PAGE, 6 * PAGE, 9) && all_are(memory, PAGE, 3));
    IS(0, rutabaga_resource_unref(vmm.device, 3));
    IS(-EINVAL, rutabaga_resource_detach_backing(vmm.device, 3));

    /* Two memories of one blob, and transfers between them. */
    IS(0, create_blob(&vmm, 1, 4, RUTABAGA_BLOB_MEM_HOST3D_GUEST, RUTABAGA_BLOB_FLAG_USE_MAPPABLE, 0, PAGE, &(struct iovec){ memory, PAGE }, 1));
    IS(0, rutabaga_resource_map(vmm.device, 4, &mapping));
    struct rutabaga_transfer transfer = { .w = PAGE, .h = 1, .d = 1 };
    memset(memory, 0x44, PAGE);
    IS(0, rutabaga_resource_transfer_write(vmm.device, 1, 4, &transfer));
    settle(&vmm, 1);
    CHECK(all_are(mapping.ptr, PAGE, 0x44));
    memset(mapping.ptr, 0x55, PAGE);
    IS(0, rutabaga_resource_transfer_read(vmm.device, 1, 4, &transfer, NULL));
    settle(&vmm, 1);
    CHECK(all_are(memory, PAGE, 0x55));
    struct iovec pixels = { memory, PAGE };
    IS(-EOPNOTSUPP, rutabaga_resource_transfer_read(vmm.device, 1, 4, &transfer, &pixels));
    transfer.level = 1;
    IS(-EINVAL, rutabaga_resource_transfer_write(vmm.device, 1, 4, &transfer));
    transfer.level = 0, transfer.offset = 1;
    IS(-EINVAL, rutabaga_resource_transfer_write(vmm.device, 1, 4, &transfer));
    IS(0, rutabaga_resource_unref(vmm.device, 4));

    /* Private memory is for rutabaga_gfx alone, and a context of ours is told so. */
    unsigned char *private_memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct iovec private_page = { private_memory, PAGE };
    IS(0, create_blob(&vmm, 0, 6, RUTABAGA_BLOB_MEM_GUEST, 0, 0, PAGE, &private_page, 1));
    CHECK(strstr(last_message, "memory-backend-memfd,share=on") != NULL);
    IS(-EINVAL, rutabaga_context_attach_resource(vmm.device, 1, 6));
    IS(0, rutabaga_resource_unref(vmm.device, 6));
    IS(-EINVAL, create_blob(&vmm, 1, 6, RUTABAGA_BLOB_MEM_HOST3D_GUEST, 0, 0, PAGE, &private_page, 1));
    CHECK(strstr(last_message, "memory-backend-memfd,share=on") != NULL);
    /* Nor is memory that may not be written, memory that is not there, or a part of a page. */
    struct iovec bad[] = { { memory + 15 * PAGE, PAGE }, { (void *)(uintptr_t)PAGE, PAGE }, { memory + 1, PAGE } };
    for (int i = 0; i < 3; i++)
        IS(-EINVAL, create_blob(&vmm, 1, 6, RUTABAGA_BLOB_MEM_HOST3D_GUEST, 0, 0, PAGE, &bad[i], 1));
    /* A blob may die with its pages attached, and a device with its blobs. */
    IS(0, create_blob(&vmm, 0, 7, RUTABAGA_BLOB_MEM_GUEST, 0, 0, 6 * PAGE, pages, 6));
    finish(&vmm);
}

/* Callbacks come in order, also where contexts share the number of a ring. */
static void fences(void)
{
    struct vmm vmm;
    start(&vmm, 1 << RUTABAGA_CAPSET_CROSS_DOMAIN);
    context(&vmm, 1, OURS);
    context(&vmm, 2, OURS);
    context(&vmm, 3, RUTABAGA_CAPSET_CROSS_DOMAIN);
    IS(0, create_memory(&vmm, 1, 7, 16 * BYTES, HOST_VISIBLE | MAP_DIRECTLY));
    IS(0, create_blob(&vmm, 1, 5, RUTABAGA_BLOB_MEM_HOST3D, RUTABAGA_BLOB_FLAG_USE_MAPPABLE, 7, 16 * BYTES, NULL, 0));
    uint64_t id = 0;
    for (uint32_t round = 0; round < 30; round++) {
        IS(0, fill(&vmm, 1, 7, 0, 16 * BYTES, round));
        struct rutabaga_fence of_worker = on_ring(1, 0, ++id), idle = on_ring(2, 0, ++id);
        struct rutabaga_fence global = { .flags = RUTABAGA_FLAG_FENCE, .fence_id = ++id };
        struct rutabaga_fence theirs = { .flags = RUTABAGA_FLAG_FENCE, .fence_id = ++id, .ctx_id = 3 };
        IS(0, rutabaga_create_fence(vmm.device, &of_worker));
        IS(0, rutabaga_create_fence(vmm.device, &idle));
        IS(0, rutabaga_create_fence(vmm.device, &global));
        IS(0, rutabaga_create_fence(vmm.device, &theirs));
    }
    wait_for(&vmm, 120);
    uint64_t last_global = 0, last_ring = 0;
    for (unsigned i = 0; i < 120; i++) {
        struct rutabaga_fence *fence = &vmm.reached[i];
        uint64_t *last = fence->flags & RUTABAGA_FLAG_INFO_RING_IDX ? &last_ring : &last_global;
        CHECK(fence->fence_id > *last);
        *last = fence->fence_id;
    }
    struct rutabaga_fence bad = on_ring(9, 0, 200), ring = on_ring(1, 64, 201);
    IS(-EINVAL, rutabaga_create_fence(vmm.device, &bad));
    IS(-EINVAL, rutabaga_create_fence(vmm.device, &ring));
    /* rutabaga_gfx panics on this one. */
    struct rutabaga_fence shareable = on_ring(3, 0, 202);
    shareable.flags |= RUTABAGA_FLAG_FENCE_SHAREABLE;
    IS(-ESRCH, rutabaga_create_fence(vmm.device, &shareable));
    vmm.count = 0;
    settle(&vmm, 1);
    CHECK(vmm.count == 0);

    /* A device may be finished while callbacks are under way, and none comes after. */
    for (uint64_t i = 0; i < 100; i++) {
        struct rutabaga_fence more = on_ring(2, 0, 300 + i);
        IS(0, rutabaga_create_fence(vmm.device, &more));
    }
    finish(&vmm);
    unsigned count = vmm.count;
    nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
    CHECK(vmm.count == count);
}

/* rutabaga_gfx beside hostblob: one space of ids, and who made a thing gets the calls on it. */
static void both(void)
{
    struct vmm vmm;
    start(&vmm, 1 << RUTABAGA_CAPSET_CROSS_DOMAIN | 1 << OURS);
    uint32_t capsets, id, version, size;
    IS(0, rutabaga_get_num_capsets(vmm.device, &capsets));
    CHECK(capsets == 2);
    IS(0, rutabaga_get_capset_info(vmm.device, 0, &id, &version, &size));
    CHECK(id == RUTABAGA_CAPSET_CROSS_DOMAIN && size == 16);
    uint32_t cross_domain[4] = { 0 };
    IS(0, rutabaga_get_capset(vmm.device, RUTABAGA_CAPSET_CROSS_DOMAIN, 0, (uint8_t *)cross_domain, size));
    CHECK(cross_domain[0] == 1 && cross_domain[1] == 1 << RUTABAGA_CHANNEL_TYPE_WAYLAND);
    IS(0, rutabaga_get_capset_info(vmm.device, 1, &id, &version, &size));
    CHECK(id == OURS);
    IS(-EINVAL, rutabaga_get_capset_info(vmm.device, 2, &id, &version, &size));

    context(&vmm, 1, OURS);
    context(&vmm, 2, RUTABAGA_CAPSET_CROSS_DOMAIN);
    IS(-EINVAL, rutabaga_context_create(vmm.device, 1, RUTABAGA_CAPSET_CROSS_DOMAIN, NULL, 0));
    IS(-EINVAL, rutabaga_context_create(vmm.device, 2, OURS, NULL, 0));

    IS(0, create_memory(&vmm, 1, 7, PAGE, HOST_VISIBLE | MAP_DIRECTLY));
    IS(0, create_blob(&vmm, 1, 10, RUTABAGA_BLOB_MEM_HOST3D, RUTABAGA_BLOB_FLAG_USE_MAPPABLE, 7, PAGE, NULL, 0));
    struct rutabaga_create_3d image = { .target = 2, .format = 1, .bind = 2, .width = 64, .height = 16, .depth = 1 };
    IS(0, rutabaga_resource_create_3d(vmm.device, 11, &image));
    IS(-EINVAL, rutabaga_resource_create_3d(vmm.device, 10, &image));
    IS(-EINVAL, create_blob(&vmm, 1, 11, RUTABAGA_BLOB_MEM_HOST3D, 0, 0, PAGE, NULL, 0));
    IS(-EINVAL, rutabaga_context_attach_resource(vmm.device, 2, 10));
    CHECK(strstr(last_message, "made by hostblob") != NULL);
    IS(-EINVAL, rutabaga_context_attach_resource(vmm.device, 1, 11));
    CHECK(strstr(last_message, "made by rutabaga_gfx") != NULL);
    IS(-EINVAL, rutabaga_context_detach_resource(vmm.device, 2, 10));
    IS(0, rutabaga_context_attach_resource(vmm.device, 2, 11));
    IS(0, rutabaga_context_detach_resource(vmm.device, 2, 11));

    /* Guest pages that no context made are for both. */
    unsigned char *memory = guest_memory(2 * PAGE);
    struct iovec page = { memory, PAGE }, ring = { memory + PAGE, PAGE };
    IS(0, create_blob(&vmm, 0, 12, RUTABAGA_BLOB_MEM_GUEST, RUTABAGA_BLOB_FLAG_USE_MAPPABLE, 0, PAGE, &page, 1));
    IS(0, create_blob(&vmm, 0, 13, RUTABAGA_BLOB_MEM_GUEST, RUTABAGA_BLOB_FLAG_USE_MAPPABLE, 0, PAGE, &ring, 1));
    IS(0, rutabaga_context_attach_resource(vmm.device, 1, 12));
    IS(0, rutabaga_context_attach_resource(vmm.device, 2, 12));
    IS(0, rutabaga_context_attach_resource(vmm.device, 2, 13));
    IS(0, import_resource(&vmm, 1, 8, 12));
    IS(0, fill(&vmm, 1, 8, 0, PAGE, 0x07070707));
    settle(&vmm, 1);
    CHECK(all_are(memory, PAGE, 7));

    /* A cross-domain context asks for an image: the answer comes into its ring, and is announced. */
    uint32_t init[5] = { 1 | 20 << 16, 0, 12, 13, RUTABAGA_CHANNEL_TYPE_WAYLAND };
    struct rutabaga_command command = { .ctx_id = 2, .cmd_size = sizeof(init), .cmd = (uint8_t *)init };
    IS(-EINVAL, rutabaga_submit_command(vmm.device, &command)); /* There is no compositor. */
    struct rutabaga_fence fence = on_ring(2, 0, 1);
    IS(0, rutabaga_create_fence(vmm.device, &fence));
    struct rutabaga_fence global = { .flags = RUTABAGA_FLAG_FENCE, .fence_id = 2 };
    IS(0, rutabaga_create_fence(vmm.device, &global));
    wait_for(&vmm, 1);

    IS(0, rutabaga_resource_unref(vmm.device, 12));
    IS(-EINVAL, rutabaga_resource_unref(vmm.device, 12));
    IS(0, rutabaga_resource_unref(vmm.device, 11));
    IS(0, rutabaga_context_destroy(vmm.device, 2));
    IS(-EINVAL, rutabaga_context_destroy(vmm.device, 2));
    struct rutabaga_mapping mapping;
    IS(0, rutabaga_resource_map(vmm.device, 10, &mapping));
    finish(&vmm);
}

/* 2D resources, which rutabaga_gfx has when no capset of its own is asked for. */
static void two_dimensions(void)
{
    struct vmm vmm;
    start(&vmm, 0);
    unsigned char from[16 * 16 * 4], to[16 * 16 * 4];
    struct rutabaga_create_3d image = { .target = 2, .format = 1, .bind = 2, .width = 16, .height = 16, .depth = 1 };
    struct iovec source = { from, sizeof(from) }, destination = { to, sizeof(to) };
    struct rutabaga_iovecs iovecs = { &source, 1 };
    struct rutabaga_transfer transfer = { .w = 16, .h = 16, .d = 1 };
    IS(0, rutabaga_resource_create_3d(vmm.device, 1, &image));
    IS(-EINVAL, rutabaga_resource_transfer_write(vmm.device, 0, 1, &transfer));
    IS(0, rutabaga_resource_attach_backing(vmm.device, 1, &iovecs));
    memset(from, 8, sizeof(from));
    memset(to, 0, sizeof(to));
    IS(0, rutabaga_resource_transfer_write(vmm.device, 0, 1, &transfer));
    transfer.stride = 16 * 4;
    IS(0, rutabaga_resource_transfer_read(vmm.device, 0, 1, &transfer, &destination));
    CHECK(all_are(to, sizeof(to), 8));
    IS(-EINVAL, rutabaga_resource_transfer_read(vmm.device, 0, 1, &transfer, NULL));
    destination.iov_base = NULL;
    IS(-EINVAL, rutabaga_resource_transfer_read(vmm.device, 0, 1, &transfer, &destination));
    IS(0, rutabaga_resource_detach_backing(vmm.device, 1));
    IS(0, rutabaga_resource_unref(vmm.device, 1));
    /* What no host has. */
    image.width = image.height = 0xffffffff;
    IS(-ENOMEM, rutabaga_resource_create_3d(vmm.device, 1, &image));
    image.width = 0x40000000, image.height = 0;
    IS(-ENOMEM, rutabaga_resource_create_3d(vmm.device, 1, &image));
    image.width = image.height = 1 << 14; /* 1 GiB of the 4 that all may have. */
    for (uint32_t i = 1; i < 9; i++)
        IS(i <= 4 ? 0 : -ENOMEM, rutabaga_resource_create_3d(vmm.device, i, &image));
    IS(0, rutabaga_resource_unref(vmm.device, 2));
    IS(0, rutabaga_resource_create_3d(vmm.device, 9, &image));

    /* Snapshots are rutabaga_gfx's. */
    char folder[] = "/tmp/life-XXXXXX", file[64];
    CHECK(mkdtemp(folder) != NULL);
    for (uint32_t i = 1; i < 10; i++)
        rutabaga_resource_unref(vmm.device, i);
    context(&vmm, 1, OURS);
    IS(-EOPNOTSUPP, rutabaga_snapshot(vmm.device, folder));
    IS(-EOPNOTSUPP, rutabaga_restore(vmm.device, folder));
    IS(0, rutabaga_context_destroy(vmm.device, 1));
    image.width = image.height = 16;
    IS(0, rutabaga_resource_create_3d(vmm.device, 1, &image));
    IS(0, rutabaga_snapshot(vmm.device, folder));
    finish(&vmm);
    start(&vmm, 0);
    IS(0, rutabaga_restore(vmm.device, folder));
    IS(-EINVAL, rutabaga_resource_create_3d(vmm.device, 1, &image));
    IS(0, rutabaga_resource_unref(vmm.device, 1));
    IS(-EINVAL, rutabaga_restore(vmm.device, "/nonexistent"));
    finish(&vmm);
    snprintf(file, sizeof(file), "rm -r %s", folder);
    CHECK(system(file) == 0);
}

/* What makes no sense, in every function. */
static void nonsense(void)
{
    struct vmm vmm;
    start(&vmm, 0);
    struct rutabaga *bogus[] = { NULL, (struct rutabaga *)(uintptr_t)0xdeadbeef, (struct rutabaga *)&vmm };
    uint64_t mask;
    uint32_t n, m, k;
    uint8_t byte;
    struct rutabaga_create_3d image = { .width = 1, .height = 1 };
    struct rutabaga_create_blob blob = { RUTABAGA_BLOB_MEM_HOST3D, 1, 0, PAGE };
    struct rutabaga_import_data import = { 0 };
    struct rutabaga_transfer transfer = { .w = 1, .h = 1, .d = 1 };
    struct iovec range = { &byte, 1 };
    struct rutabaga_iovecs iovecs = { &range, 1 };
    struct rutabaga_handle handle = { -1, 2 };
    struct rutabaga_mapping mapping;
    struct rutabaga_command command = { 0 };
    struct rutabaga_fence fence = on_ring(1, 0, 1);

    for (int i = 0; i < 3; i++) {
        struct rutabaga *no = bogus[i];
        IS(-EINVAL, rutabaga_get_num_capsets(no, &n));
        IS(-EINVAL, rutabaga_get_capset_info(no, 0, &n, &m, &k));
        IS(-EINVAL, rutabaga_get_capset(no, OURS, 1, &byte, 1));
        IS(-EINVAL, rutabaga_context_create(no, 1, OURS, NULL, 0));
        IS(-EINVAL, rutabaga_context_destroy(no, 1));
        IS(-EINVAL, rutabaga_context_attach_resource(no, 1, 1));
        IS(-EINVAL, rutabaga_context_detach_resource(no, 1, 1));
        IS(-EINVAL, rutabaga_resource_create_3d(no, 1, &image));
        IS(-EINVAL, rutabaga_resource_import(no, 1, &handle, &import));
        IS(-EINVAL, rutabaga_resource_attach_backing(no, 1, &iovecs));
        IS(-EINVAL, rutabaga_resource_detach_backing(no, 1));
        IS(-EINVAL, rutabaga_resource_transfer_read(no, 1, 1, &transfer, NULL));
        IS(-EINVAL, rutabaga_resource_transfer_write(no, 1, 1, &transfer));
        IS(-EINVAL, rutabaga_resource_create_blob(no, 1, 1, &blob, NULL, NULL));
        IS(-EINVAL, rutabaga_resource_unref(no, 1));
        IS(-EINVAL, rutabaga_resource_export_blob(no, 1, &handle));
        IS(-EINVAL, rutabaga_resource_map(no, 1, &mapping));
        IS(-EINVAL, rutabaga_resource_unmap(no, 1));
        IS(-EINVAL, rutabaga_resource_map_info(no, 1, &n));
        IS(-EINVAL, rutabaga_submit_command(no, &command));
        IS(-EINVAL, rutabaga_create_fence(no, &fence));
        IS(-EINVAL, rutabaga_snapshot(no, "/tmp"));
        IS(-EINVAL, rutabaga_restore(no, "/tmp"));
        IS(-EINVAL, rutabaga_finish(&no));
    }
    IS(-EINVAL, rutabaga_finish(NULL));
    IS(-EINVAL, rutabaga_calculate_capset_mask(NULL, &mask));
    IS(-EINVAL, rutabaga_calculate_capset_mask("venus", NULL));
    IS(-EINVAL, rutabaga_calculate_capset_mask("\xff", &mask));

    /* A device that is one: no pointers, ids that do not exist. */
    struct rutabaga *device = vmm.device;
    IS(-EINVAL, rutabaga_get_num_capsets(device, NULL));
    IS(-EINVAL, rutabaga_get_capset_info(device, 0, NULL, &m, &k));
    IS(-EINVAL, rutabaga_get_capset_info(device, 0, &n, NULL, &k));
    IS(-EINVAL, rutabaga_get_capset_info(device, 0, &n, &m, NULL));
    IS(-EINVAL, rutabaga_get_capset_info(device, 1, &n, &m, &k));
    IS(-EINVAL, rutabaga_get_capset_info(device, UINT32_MAX, &n, &m, &k));
    IS(-EINVAL, rutabaga_get_capset(device, OURS, 1, NULL, 1));
    IS(-EINVAL, rutabaga_context_create(device, 0, OURS, NULL, 0));
    IS(-EINVAL, rutabaga_context_destroy(device, 1));
    IS(-EINVAL, rutabaga_context_destroy(device, UINT32_MAX));
    IS(-EINVAL, rutabaga_context_attach_resource(device, 1, 1));
    IS(-EINVAL, rutabaga_context_detach_resource(device, 1, 1));
    /* A guest says that its name is longer than the command has room for, and QEMU passes that on. */
    char name[64];
    memset(name, 'n', sizeof(name));
    IS(0, rutabaga_context_create(device, 1, OURS, name, UINT32_MAX));
    IS(-EINVAL, rutabaga_context_create(device, 1, OURS, NULL, UINT32_MAX));
    IS(0, rutabaga_context_create(device, 2, OURS, NULL, UINT32_MAX));
    IS(-EINVAL, rutabaga_context_attach_resource(device, 1, 1));
    IS(-EINVAL, rutabaga_resource_create_3d(device, 1, NULL));
    IS(-EINVAL, rutabaga_resource_create_3d(device, 0, &image));

    IS(-EINVAL, rutabaga_resource_create_blob(device, 1, 1, NULL, NULL, NULL));
    IS(-EINVAL, rutabaga_resource_create_blob(device, 1, 0, &blob, NULL, NULL));
    IS(-EINVAL, rutabaga_resource_create_blob(device, 7, 1, &blob, NULL, NULL));
    IS(0, rutabaga_resource_create_blob(device, 1, 1, &blob, NULL, NULL));
    IS(-EINVAL, rutabaga_resource_create_blob(device, 1, 1, &blob, NULL, NULL));
    struct rutabaga_create_blob bad_blobs[] = {
        { 0, 1, 0, PAGE },          { 4, 1, 0, PAGE },    { 2, 8, 0, PAGE },          { 2, 1, 99, PAGE },
        { 2, 1, 0, 0 },             { 2, 1, 0, PAGE - 1 }, { 2, 1, 0, UINT64_MAX },
    };
    for (int i = 0; i < 7; i++)
        CHECK(rutabaga_resource_create_blob(device, 1, 2, &bad_blobs[i], NULL, NULL) < 0);
    struct rutabaga_iovecs bad_iovecs[] = {
        { NULL, 1 }, { &range, SIZE_MAX }, { &range, (1 << 18) + 1 }, { (struct iovec *)((char *)&range + 1), 1 },
    };
    struct iovec bad_ranges[] = { { NULL, 1 }, { &byte, SIZE_MAX }, { (void *)UINTPTR_MAX, PAGE } };
    blob.blob_mem = RUTABAGA_BLOB_MEM_GUEST;
    for (int i = 0; i < 4; i++) {
        IS(-EINVAL, rutabaga_resource_create_blob(device, 0, 2, &blob, &bad_iovecs[i], NULL));
        IS(-EINVAL, rutabaga_resource_attach_backing(device, 1, &bad_iovecs[i]));
    }
    for (int i = 0; i < 3; i++) {
        iovecs.iovecs = &bad_ranges[i];
        IS(-EINVAL, rutabaga_resource_create_blob(device, 0, 2, &blob, &iovecs, NULL));
        IS(-EINVAL, rutabaga_resource_transfer_read(device, 1, 1, &transfer, &bad_ranges[i]));
    }
    iovecs.iovecs = &range;
    IS(-EINVAL, rutabaga_resource_attach_backing(device, 1, NULL));
    IS(-EINVAL, rutabaga_resource_attach_backing(device, 1, &iovecs));
    IS(-EINVAL, rutabaga_resource_attach_backing(device, 99, &iovecs));
    IS(-EINVAL, rutabaga_resource_detach_backing(device, 1));
    IS(-EINVAL, rutabaga_resource_transfer_read(device, 1, 1, NULL, NULL));
    IS(-EINVAL, rutabaga_resource_transfer_read(device, 1, 99, &transfer, NULL));
    IS(-EINVAL, rutabaga_resource_transfer_write(device, 1, 1, NULL));
    IS(-EINVAL, rutabaga_resource_transfer_write(device, 1, 1, &transfer));
    IS(-EINVAL, rutabaga_resource_transfer_write(device, 1, 99, &transfer));

    /* Descriptors that are none; and one that is, which is taken in any case. */
    int64_t no_descriptors[] = { -1, INT64_MIN, INT64_MAX, 1 << 20, INT32_MAX };
    blob.blob_mem = RUTABAGA_BLOB_MEM_HOST3D;
    for (int i = 0; i < 5; i++) {
        handle.os_handle = no_descriptors[i];
        IS(-EINVAL, rutabaga_resource_create_blob(device, 1, 2, &blob, NULL, &handle));
        IS(-EINVAL, rutabaga_resource_import(device, 2, &handle, &import));
    }
    handle.os_handle = open("/dev/null", O_RDWR);
    IS(-EOPNOTSUPP, rutabaga_resource_create_blob(device, 1, 2, &blob, NULL, &handle));
    CHECK(fcntl((int)handle.os_handle, F_GETFD) == -1);
    handle.os_handle = open("/dev/null", O_RDWR);
    IS(-EINVAL, rutabaga_resource_import(device, 1, &handle, &import));
    CHECK(fcntl((int)handle.os_handle, F_GETFD) == -1);
    IS(-EINVAL, rutabaga_resource_import(device, 1, NULL, &import));
    handle.os_handle = open("/dev/null", O_RDWR);
    IS(-EINVAL, rutabaga_resource_import(device, 2, &handle, NULL));

    IS(-EINVAL, rutabaga_resource_unref(device, 0));
    IS(-EINVAL, rutabaga_resource_unref(device, 99));
    IS(-EINVAL, rutabaga_resource_export_blob(device, 1, NULL));
    IS(-EINVAL, rutabaga_resource_export_blob(device, 1, &handle));
    IS(-EINVAL, rutabaga_resource_export_blob(device, 99, &handle));
    IS(-EINVAL, rutabaga_resource_map(device, 1, NULL));
    IS(-EINVAL, rutabaga_resource_map(device, 99, &mapping));
    IS(-EINVAL, rutabaga_resource_unmap(device, 1));
    IS(-EINVAL, rutabaga_resource_unmap(device, 99));
    IS(-EINVAL, rutabaga_resource_map_info(device, 1, NULL));
    IS(-EINVAL, rutabaga_resource_map_info(device, 99, &n));
    blob.blob_flags = 0;
    IS(0, rutabaga_resource_create_blob(device, 1, 3, &blob, NULL, NULL));
    IS(-EINVAL, rutabaga_resource_map_info(device, 3, &n));
    IS(-EINVAL, rutabaga_resource_map(device, 3, &mapping));

    /* Commands. */
    IS(-EINVAL, rutabaga_submit_command(device, NULL));
    command.ctx_id = 9;
    IS(-EINVAL, rutabaga_submit_command(device, &command));
    command.ctx_id = 1;
    IS(-EINVAL, rutabaga_submit_command(device, &command));
    command.cmd_size = 4096;
    IS(-EINVAL, rutabaga_submit_command(device, &command));
    command.num_in_fences = UINT32_MAX, command.cmd_size = 0;
    IS(-EINVAL, rutabaga_submit_command(device, &command));
    command.num_in_fences = 1;
    IS(-EINVAL, rutabaga_submit_command(device, &command));
    unsigned char noise[512];
    srand(1);
    command = (struct rutabaga_command){ .ctx_id = 1, .cmd = noise };
    for (int i = 0; i < 2000; i++) {
        for (size_t at = 0; at < sizeof(noise); at++)
            noise[at] = (unsigned char)rand();
        if (i & 1)
            memcpy(noise, "HBLB\1\0\1\0", 8);
        command.cmd_size = (uint32_t)(i % 512);
        IS(-EINVAL, rutabaga_submit_command(device, &command));
    }
    IS(-EINVAL, rutabaga_create_fence(device, NULL));
    fence.ctx_id = 9;
    IS(-EINVAL, rutabaga_create_fence(device, &fence));
    fence.ctx_id = 1, fence.ring_idx = UINT32_MAX;
    IS(-EINVAL, rutabaga_create_fence(device, &fence));
    IS(-EINVAL, rutabaga_snapshot(device, NULL));
    IS(-EINVAL, rutabaga_restore(device, NULL));

    settle(&vmm, 1);
    finish(&vmm);
}

/* Builders that are none, and an environment that is wrong. */
static void beginnings(void)
{
    uint64_t mask = 1;
    IS(0, rutabaga_calculate_capset_mask("cross-domain:hostblob:nothing:", &mask));
    CHECK(mask == (1 << RUTABAGA_CAPSET_CROSS_DOMAIN | 1 << OURS));
    IS(0, rutabaga_calculate_capset_mask("", &mask));
    CHECK(mask == 0);

    struct vmm vmm;
    struct rutabaga_builder builder = builder_of(&vmm, 0), bad;
    struct rutabaga *device = (struct rutabaga *)&vmm;
    IS(-EINVAL, rutabaga_init(NULL, &device));
    IS(-EINVAL, rutabaga_init(&builder, NULL));
    bad = builder, bad.fence_cb = NULL;
    IS(-EINVAL, rutabaga_init(&bad, &device));
    bad = builder, bad.wsi = 2;
    IS(-EINVAL, rutabaga_init(&bad, &device));
    /* Built without gfxstream, as upstream's is where nobody asks for it. */
    bad = builder, bad.capset_mask = 1 << RUTABAGA_CAPSET_GFXSTREAM_VULKAN;
    IS(-EINVAL, rutabaga_init(&bad, &device));
    struct rutabaga_channel channel = { NULL, RUTABAGA_CHANNEL_TYPE_WAYLAND };
    struct rutabaga_channels channels = { &channel, 1 };
    bad = builder, bad.channels = &channels, bad.capset_mask = 1 << RUTABAGA_CAPSET_CROSS_DOMAIN;
    IS(-EINVAL, rutabaga_init(&bad, &device));
    channel = (struct rutabaga_channel){ "/x", 32 };
    IS(-EINVAL, rutabaga_init(&bad, &device));
    channels.num_channels = SIZE_MAX;
    IS(-EINVAL, rutabaga_init(&bad, &device));
    channels = (struct rutabaga_channels){ NULL, 1 };
    IS(-EINVAL, rutabaga_init(&bad, &device));
    CHECK(device == (struct rutabaga *)&vmm);

    setenv("HOSTBLOB_WINDOW", "8GiB", 1);
    IS(-EINVAL, rutabaga_init(&builder, &device));
    CHECK(strstr(last_message, "HOSTBLOB_WINDOW=8GiB: a number of bytes is expected") != NULL);
    setenv("HOSTBLOB_WINDOW", "3M", 1);
    IS(-EINVAL, rutabaga_init(&builder, &device));
    CHECK(strstr(last_message, "power of two") != NULL);
    unsetenv("HOSTBLOB_WINDOW");

    /* A caller of a header without renderer_features, whose builder ends at the end of readable memory. */
    unsigned char *end = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(end != MAP_FAILED && mprotect(end + PAGE, PAGE, PROT_NONE) == 0);
    size_t old = offsetof(struct rutabaga_builder, renderer_features);
    struct rutabaga_builder *short_builder = memcpy(end + PAGE - old, &builder, old);
    IS(0, rutabaga_init(short_builder, &vmm.device));

    /* Another device beside it. */
    struct vmm second;
    setenv("HOSTBLOB_CAPSET_ID", "30", 1);
    start(&second, 0);
    uint32_t id, version, size;
    IS(0, rutabaga_get_capset_info(second.device, 0, &id, &version, &size));
    CHECK(id == 30);
    finish(&vmm);
    IS(-EINVAL, rutabaga_context_create(second.device, 1, OURS, NULL, 0));
    context(&second, 1, 30);
    settle(&second, 1);
    finish(&second);
    unsetenv("HOSTBLOB_CAPSET_ID");
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } scenarios[] = {
        { "life", life },     { "window", window }, { "guest_pages", guest_pages },
        { "fences", fences }, { "both", both },     { "two_dimensions", two_dimensions },
        { "nonsense", nonsense }, { "beginnings", beginnings },
    };
    for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++) {
        if (argc > 1 && strcmp(argv[1], scenarios[i].name) != 0)
            continue;
        scenarios[i].run();
        printf("%s ok\n", scenarios[i].name);
        fflush(stdout);
    }
    return 0;
}
