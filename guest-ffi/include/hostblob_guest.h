/* hostblob guest library: host-visible GPU memory for drivers in a virtual machine.
 *
 * Generated from guest-ffi/src/ffi; do not edit.
 *
 * - Handles are owned by the caller until the function that its documentation names takes them. NULL is refused, and so is a
 *   handle of another kind.
 * - All functions may be called from any thread, on the same handle at the same time, except with the call that gives that
 *   handle back.
 * - On an error, outputs are NULL, -1 or untouched, and hb_last_error() says more, to the same thread.
 * - Structures begin with their size, set by the caller; fields that are not set are 0:
 *       hb_allocate_info info = { .size = sizeof(info), .bytes = 4096, .memory_type = HB_MEMORY_TYPE_ANY };
 *
 * Environment: HOSTBLOB_SOCKET picks a socket, HOSTBLOB_RENDER_NODE a node, HOSTBLOB_CAPSET_ID a capset id,
 * HOSTBLOB_LOG a log level.
 *
 * SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
 */

#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/*
 `memory_type` of `hb_allocate_info`: the first type that has `required_properties`.
 */
#define HB_MEMORY_TYPE_ANY 4294967295

/*
 Length of a range: up to the end of the memory (`VK_WHOLE_SIZE`).
 */
#define HB_WHOLE_SIZE 18446744073709551615ull

/*
 A timeout: as long as the device lives.
 */
#define HB_WAIT_FOREVER 18446744073709551615ull

/*
 `hb_allocate_info.flags`: it will be exported as a dma-buf. Gets a blob of its own.
 */
#define HB_ALLOCATE_SHAREABLE 1

/*
 `hb_allocate_info.flags`: gets a blob of its own whatever the size.
 */
#define HB_ALLOCATE_DEDICATED 2

/*
 `hb_allocate_info.flags`: created now and bound to a blob when first mapped; keeps its contents, outside the window, when unmapped.
 */
#define HB_ALLOCATE_DEFERRED 4

/*
 Expected cache mode: whatever the memory type has.
 */
#define HB_CACHE_ANY 0

/*
 Expected cache mode: write-back cached.
 */
#define HB_CACHE_CACHED 1

/*
 Expected cache mode: uncached.
 */
#define HB_CACHE_UNCACHED 2

/*
 Expected cache mode: write-combining.
 */
#define HB_CACHE_WRITE_COMBINED 3

/*
 `hb_map_info.access`: loads.
 */
#define HB_ACCESS_READ 1

/*
 `hb_map_info.access`: stores.
 */
#define HB_ACCESS_WRITE 2

/*
 Bytes of a UUID.
 */
#define HB_UUID_SIZE 16

/*
 Bytes of a name with its closing zero.
 */
#define HB_NAME_SIZE 64

/*
 Most memory heaps (`VK_MAX_MEMORY_HEAPS`).
 */
#define HB_MAX_HEAPS 16

/*
 Most memory types (`VK_MAX_MEMORY_TYPES`).
 */
#define HB_MAX_TYPES 32

/*
 Offset in `hb_memory_wait_released` and `hb_memory_released_fence`: all buffers, and the memory itself, which no host process has
 open then.
 */
#define HB_ALL_BUFFERS 18446744073709551615ull

/*
 Waits of a device that last at the same time, at most.
 */
#define HB_MOST_WAITS 16

/*
 Outcome of a call. Numbers below 0x10000 are those that the host answers; a number keeps its meaning for ever.
 */
typedef enum hb_status {
  /*
   Done.
   */
  HB_OK = 0,
  /*
   The request bytes are malformed.
   */
  HB_ERROR_MALFORMED = 1,
  /*
   The protocol or structure version is not supported.
   */
  HB_ERROR_UNSUPPORTED_VERSION = 2,
  /*
   The host, or this way to it, does not serve the request.
   */
  HB_ERROR_UNSUPPORTED = 3,
  /*
   An argument is outside its documented values.
   */
  HB_ERROR_INVALID_ARGUMENT = 4,
  /*
   No memory has this client id.
   */
  HB_ERROR_UNKNOWN_CLIENT_ID = 5,
  /*
   The client id is in use.
   */
  HB_ERROR_CLIENT_ID_IN_USE = 6,
  /*
   No memory type fits the request.
   */
  HB_ERROR_INVALID_MEMORY_TYPE = 7,
  /*
   The cache mode differs from the expected one.
   */
  HB_ERROR_CACHE_MODE_MISMATCH = 8,
  /*
   The memory cannot be mapped with this access.
   */
  HB_ERROR_ACCESS_MISMATCH = 9,
  /*
   The host, or this process, is out of memory.
   */
  HB_ERROR_OUT_OF_HOST_MEMORY = 10,
  /*
   The GPU is out of memory.
   */
  HB_ERROR_OUT_OF_DEVICE_MEMORY = 11,
  /*
   The context's memory limit is reached.
   */
  HB_ERROR_CONTEXT_QUOTA_EXCEEDED = 12,
  /*
   The device's memory limit is reached.
   */
  HB_ERROR_DEVICE_QUOTA_EXCEEDED = 13,
  /*
   The window has no room.
   */
  HB_ERROR_WINDOW_EXHAUSTED = 14,
  /*
   The context has too many objects.
   */
  HB_ERROR_TOO_MANY_OBJECTS = 15,
  /*
   The memory cannot be mapped.
   */
  HB_ERROR_NOT_MAPPABLE = 16,
  /*
   Offset and length do not lie inside the memory.
   */
  HB_ERROR_OUT_OF_RANGE = 17,
  /*
   The device, its GPU or its driver is gone; everything after fails like this.
   */
  HB_ERROR_DEVICE_LOST = 18,
  /*
   Flags disagree with the memory's.
   */
  HB_ERROR_FLAGS_MISMATCH = 19,
  /*
   The memory is bound already.
   */
  HB_ERROR_ALREADY_BOUND = 20,
  /*
   The host's GPU driver refused.
   */
  HB_ERROR_DRIVER_FAILURE = 21,
  /*
   Internal error of the host.
   */
  HB_ERROR_HOST_INTERNAL = 22,
  /*
   The memory has no guest pages attached.
   */
  HB_ERROR_NO_BACKING = 24,
  /*
   A host process uses the memory.
   */
  HB_ERROR_IN_USE = 25,
  /*
   Nothing is shared under this UUID.
   */
  HB_ERROR_UNKNOWN_UUID = 26,
  /*
   The memory was not allocated to be shared.
   */
  HB_ERROR_NOT_SHAREABLE = 27,
  /*
   Nothing here offers hostblob.
   */
  HB_ERROR_NO_DEVICE = 65536,
  /*
   The time to wait was over first, here or at the host.
   */
  HB_TIMEOUT = 65537,
  /*
   The device and this library speak different versions.
   */
  HB_ERROR_INCOMPATIBLE = 65538,
  /*
   The operating system refused.
   */
  HB_ERROR_IO = 65539,
  /*
   Internal error of this library.
   */
  HB_ERROR_INTERNAL = 65540,
} hb_status;

/*
 A published buffer of a pool. From `hb_buffer_create`, until `hb_buffer_destroy`.
 */
typedef struct hb_buffer hb_buffer;

/*
 One shareable memory, and the buffers in it. From `hb_buffer_pool_create`, until `hb_buffer_pool_destroy`.
 */
typedef struct hb_buffer_pool hb_buffer_pool;

/*
 A device: one context at the host. From `hb_device_open`, until `hb_device_close`.
 */
typedef struct hb_device hb_device;

/*
 Work on the host GPU, or a wait. From `hb_fill`, `hb_copy` or `hb_memory_released_fence`, until `hb_fence_destroy`.
 */
typedef struct hb_fence hb_fence;

/*
 Memory of the host. From `hb_allocate`, `hb_allocate_guest`, `hb_memory_import` or `hb_memory_import_uuid`, until `hb_memory_free`.
 */
typedef struct hb_memory hb_memory;

/*
 How to open a device. Zero everywhere but `size` is the default.
 */
typedef struct hb_open_info {
  /*
   `sizeof(hb_open_info)`.
   */
  size_t size;
  /*
   Unix socket of a `hostblobd --local-socket`; NULL for none.
   */
  const char *socket_path;
  /*
   DRM render node; NULL for none. With neither: `HOSTBLOB_SOCKET`, else `HOSTBLOB_RENDER_NODE`, else any node.
   */
  const char *render_node;
  /*
   virtio-gpu capset id; 0 for the default.
   */
  uint32_t capset_id;
  /*
   After this time without a response, the device counts as lost; 0 for 30 s.
   */
  uint32_t timeout_ms;
  /*
   Bytes of the first block that serves small requests; 0 for 16 MiB.
   */
  uint64_t first_block;
  /*
   Blocks grow up to this size; 0 for 64 MiB.
   */
  uint64_t largest_block;
  /*
   Larger requests get a blob of their own; 0 for 2 MiB, 1 for all.
   */
  uint64_t dedicated_above;
} hb_open_info;

/*
 A memory heap (`VkMemoryHeap`).
 */
typedef struct hb_memory_heap {
  /*
   Bytes.
   */
  uint64_t bytes;
  /*
   `VkMemoryHeapFlags`.
   */
  uint32_t flags;
  /*
   0.
   */
  uint32_t reserved;
} hb_memory_heap;

/*
 A memory type (`VkMemoryType`).
 */
typedef struct hb_memory_type {
  /*
   `VkMemoryPropertyFlags`.
   */
  uint32_t property_flags;
  /*
   Index into the heaps.
   */
  uint32_t heap;
  /*
   `HB_CACHE_*` of its mappings.
   */
  uint32_t cache;
  /*
   0.
   */
  uint32_t reserved;
} hb_memory_type;

/*
 What the host said of itself.
 */
typedef struct hb_capabilities {
  /*
   In: `sizeof(hb_capabilities)`. Out: how much of it was written.
   */
  size_t size;
  /*
   Requests that both sides speak: bit n for the request of number n.
   */
  uint64_t requests;
  /*
   Bytes of the window.
   */
  uint64_t window_size;
  /*
   Largest memory in bytes.
   */
  uint64_t max_memory_bytes;
  /*
   Bytes that this context may hold.
   */
  uint64_t max_context_bytes;
  /*
   Bytes that all contexts together may hold.
   */
  uint64_t max_device_bytes;
  /*
   Protocol version: major, then minor.
   */
  uint32_t version[2];
  /*
   0: a DRM render node, 1: a local socket.
   */
  uint32_t transport;
  /*
   0: the window is one mapping, 1: each blob is its own.
   */
  uint32_t window_mode;
  /*
   Memories and blobs that this context may hold.
   */
  uint32_t max_context_blobs;
  /*
   Sizes of blobs are multiples of it; alignments go up to it.
   */
  uint32_t page_size;
  /*
   `nonCoherentAtomSize`.
   */
  uint32_t non_coherent_atom_size;
  /*
   What reaches the memory at the host: 0 no GPU, 1 Vulkan, 2 OpenGL.
   */
  uint32_t provider;
  /*
   PCI vendor, or 0.
   */
  uint32_t vendor_id;
  /*
   PCI device, or 0.
   */
  uint32_t device_id;
  /*
   `deviceUUID`.
   */
  uint8_t device_uuid[16];
  /*
   `driverUUID`.
   */
  uint8_t driver_uuid[16];
  /*
   Zero-terminated UTF-8.
   */
  char device_name[HB_NAME_SIZE];
  /*
   Zero-terminated UTF-8.
   */
  char driver_name[HB_NAME_SIZE];
  /*
   Entries of `heaps`.
   */
  uint32_t heap_count;
  /*
   Entries of `types`.
   */
  uint32_t type_count;
  /*
   The heaps.
   */
  struct hb_memory_heap heaps[HB_MAX_HEAPS];
  /*
   The types, in the order that Vulkan wants.
   */
  struct hb_memory_type types[HB_MAX_TYPES];
} hb_capabilities;

/*
 Counted in this process since the device was opened.
 */
typedef struct hb_statistics {
  /*
   In: `sizeof(hb_statistics)`. Out: how much of it was written.
   */
  size_t size;
  /*
   Blocks that live.
   */
  uint64_t blocks;
  /*
   Their bytes.
   */
  uint64_t block_bytes;
  /*
   Memories that live in blocks.
   */
  uint64_t suballocations;
  /*
   Their bytes, alignment included.
   */
  uint64_t suballocated_bytes;
  /*
   Times that the host was asked for something.
   */
  uint64_t commands;
} hb_statistics;

/*
 What a heap has for this context (`VK_EXT_memory_budget`), and what the library did to serve it.
 */
typedef struct hb_budget_info {
  /*
   In: `sizeof(hb_budget_info)`. Out: how much of it was written.
   */
  size_t size;
  /*
   Bytes that the context may use, its usage included.
   */
  uint64_t budget;
  /*
   Bytes that it uses.
   */
  uint64_t usage;
} hb_budget_info;

/*
 What to allocate. Zero everywhere but `size`, `bytes` and a memory type is fine.
 */
typedef struct hb_allocate_info {
  /*
   `sizeof(hb_allocate_info)`.
   */
  size_t size;
  /*
   Bytes of memory, not 0.
   */
  uint64_t bytes;
  /*
   Of the first byte: 0 (64 is guaranteed) or a power of two up to the page size.
   */
  uint64_t alignment;
  /*
   Index into the types, or `HB_MEMORY_TYPE_ANY`.
   */
  uint32_t memory_type;
  /*
   With `HB_MEMORY_TYPE_ANY`: `VkMemoryPropertyFlags` that the type has.
   */
  uint32_t required_properties;
  /*
   `HB_ALLOCATE_*`.
   */
  uint32_t flags;
  /*
   `HB_CACHE_*`; another one is `HB_ERROR_CACHE_MODE_MISMATCH`.
   */
  uint32_t expected_cache;
  /*
   For the host's log, copied; NULL for none.
   */
  const char *name;
} hb_allocate_info;

/*
 Where memory lies.
 */
typedef struct hb_memory_info {
  /*
   In: `sizeof(hb_memory_info)`. Out: how much of it was written.
   */
  size_t size;
  /*
   Bytes, as asked for.
   */
  uint64_t bytes;
  /*
   The name that the host knows it by; 0 for a dma-buf that it knows no name for.
   */
  uint64_t client_id;
  /*
   Its first byte within that.
   */
  uint64_t offset;
  /*
   Index into the types; `HB_MEMORY_TYPE_ANY` for a dma-buf that the host knows no name for.
   */
  uint32_t memory_type;
  /*
   1: shares a blob with other memory of this process.
   */
  uint32_t suballocated;
} hb_memory_info;

/*
 What the caller counts on when it maps.
 */
typedef struct hb_map_info {
  /*
   `sizeof(hb_map_info)`.
   */
  size_t size;
  /*
   `HB_CACHE_*`; another one is `HB_ERROR_CACHE_MODE_MISMATCH`.
   */
  uint32_t expected_cache;
  /*
   `HB_ACCESS_*`, not 0.
   */
  uint32_t access;
} hb_map_info;

/*
 A buffer in memory: the arguments of SET_SCANOUT_BLOB.
 */
typedef struct hb_buffer_info {
  /*
   `sizeof(hb_buffer_info)`; as an output, how much of it was written.
   */
  size_t size;
  /*
   First byte in the memory. It names the buffer.
   */
  uint64_t offset;
  /*
   Pixels in a row; not 0.
   */
  uint32_t width;
  /*
   Rows; not 0. `stride * height` bytes from `offset` on lie inside the memory.
   */
  uint32_t height;
  /*
   Bytes from one row to the next; not 0.
   */
  uint32_t stride;
  /*
   `DRM_FORMAT_*`; 0 where the bytes are no image.
   */
  uint32_t fourcc;
  /*
   `DRM_FORMAT_MOD_*`; 0 is `DRM_FORMAT_MOD_LINEAR`.
   */
  uint64_t modifier;
} hb_buffer_info;

/*
 What buffer to create.
 */
typedef struct hb_buffer_create_info {
  /*
   `sizeof(hb_buffer_create_info)`.
   */
  size_t size;
  /*
   Pixels in a row; not 0.
   */
  uint32_t width;
  /*
   Rows; not 0.
   */
  uint32_t height;
  /*
   Bytes; not 0. Rows start at multiples of 64 bytes.
   */
  uint32_t bytes_per_pixel;
  /*
   `DRM_FORMAT_*`; 0 where the bytes are no image.
   */
  uint32_t fourcc;
} hb_buffer_create_info;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 One English sentence for a status. Never NULL; lives for ever. Any number may be passed.
 */
const char *hb_status_string(uint32_t status);

/*
 The `VkResult` that a Vulkan driver returns for a status. Any number may be passed.
 */
int32_t hb_status_vk_result(uint32_t status);

/*
 What the last call of this thread that failed had to say; "" when none has. Never NULL. The text lives until this
 thread's next call that fails: copy what you keep.
 */
const char *hb_last_error(void);

/*
 Version of this library: major in the upper 16 bits, minor in the lower.
 */
uint32_t hb_version(void);

/*
 Opens a device and gives the caller its handle: see `hb_device_close`.

 `info` may be NULL for defaults. `HB_ERROR_NO_DEVICE` where there is none, `HB_ERROR_INCOMPATIBLE` where host
 and library have no version in common.

 # Safety
 `info` is NULL or points to `info->size` bytes with valid strings; `device` points to a place for the handle.
 */
enum hb_status hb_device_open(const struct hb_open_info *info, struct hb_device **device);

/*
 Ends the device handle. NULL is fine.

 Memory and fences from it live on, and the connection with them, until each is given back.

 # Safety
 `device` is NULL or from `hb_device_open`, and not used by any thread during or after this call.
 */
void hb_device_close(struct hb_device *device);

/*
 What the host said of itself. Set `capabilities->size` first.

 # Safety
 `device` is from `hb_device_open`; `capabilities` points to `capabilities->size` writable bytes.
 */
enum hb_status hb_device_capabilities(const struct hb_device *device, struct hb_capabilities *capabilities);

/*
 What the library has done and holds for this device. Set `statistics->size` first.

 # Safety
 `device` is from `hb_device_open`; `statistics` points to `statistics->size` writable bytes.
 */
enum hb_status hb_device_statistics(const struct hb_device *device, struct hb_statistics *statistics);

/*
 What a heap has for this context now. Asks the host. Set `budget->size` first.

 # Safety
 `device` is from `hb_device_open`; `budget` points to `budget->size` writable bytes.
 */
enum hb_status hb_budget(const struct hb_device *device, uint32_t heap, struct hb_budget_info *budget);

/*
 Allocates memory and gives the caller its handle: see `hb_memory_free`.

 Small host-visible requests come out of blocks and cost no command. `vkAllocateMemory`.

 # Safety
 `device` is from `hb_device_open`; `info` points to `info->size` bytes with a valid name; `memory` points to a
 place for the handle.
 */
enum hb_status hb_allocate(struct hb_device *device,
                           const struct hb_allocate_info *info,
                           struct hb_memory **memory);

/*
 Frees memory and ends its handle and its addresses. NULL is fine. Host GPU work that uses it is done before.

 # Safety
 `memory` is NULL or a live handle, and not used by any thread during or after this call.
 */
void hb_memory_free(struct hb_memory *memory);

/*
 Where memory lies. Set `info->size` first.

 # Safety
 `memory` is a live handle; `info` points to `info->size` writable bytes.
 */
enum hb_status hb_memory_get_info(const struct hb_memory *memory, struct hb_memory_info *info);

/*
 Gives the address of the memory's first byte: the same until `hb_memory_unmap` or `hb_memory_free`. Cheap to call
 again; there is no count. `info` may be NULL. `vkMapMemory`.

 # Safety
 `memory` is a live handle; `info` is NULL or points to `info->size` bytes; `address` points to a place for the address.
 */
enum hb_status hb_memory_map(struct hb_memory *memory,
                             const struct hb_map_info *info,
                             void **address);

/*
 Gives the address range back; the contents stay. Deferred memory leaves the window, unless it was exported. Does nothing to suballocated memory.

 # Safety
 `memory` is a live handle; no thread uses its addresses during or after this call.
 */
enum hb_status hb_memory_unmap(struct hb_memory *memory);

/*
 Makes CPU writes visible to the host GPU. Nothing to do on coherent types. `vkFlushMappedMemoryRanges`; offset and
 length need no alignment.

 # Safety
 `memory` is a live handle.
 */
enum hb_status hb_memory_flush(struct hb_memory *memory,
                               uint64_t offset,
                               uint64_t length);

/*
 Makes host GPU writes visible to the CPU. Nothing to do on coherent types. `vkInvalidateMappedMemoryRanges`; offset
 and length need no alignment.

 # Safety
 `memory` is a live handle.
 */
enum hb_status hb_memory_invalidate(struct hb_memory *memory,
                                    uint64_t offset,
                                    uint64_t length);

/*
 A dma-buf of the memory, which was allocated with `HB_ALLOCATE_SHAREABLE`. The caller owns the descriptor and
 closes it. `HB_ERROR_UNSUPPORTED` over a local socket.

 # Safety
 `memory` is a live handle; `fd` points to a place for the descriptor.
 */
enum hb_status hb_memory_export(struct hb_memory *memory, int *fd);

/*
 Takes in memory that another process exported from the same device, and gives the caller its handle: see
 `hb_memory_free`. `fd` stays the caller's. `HB_ERROR_UNSUPPORTED` over a local socket.

 It can be mapped. Host GPU work can use it where the host knows a name for it: `client_id` of `hb_memory_get_info` is not 0 then.

 # Safety
 `device` is from `hb_device_open`; `fd` is an open descriptor; `memory` points to a place for the handle.
 */
enum hb_status hb_memory_import(struct hb_device *device,
                                int fd,
                                struct hb_memory **memory);

/*
 Fills a range with a 32-bit value on the host GPU, and gives the caller a fence: see `hb_fence_destroy`.

 Offset and length are multiples of 4; `HB_WHOLE_SIZE` reaches to the end. `fence` may be NULL where nobody waits. The memory
 lives until the work is done. `vkCmdFillBuffer`.

 # Safety
 `device` and `memory` are live handles; `fence` is NULL or points to a place for the handle.
 */
enum hb_status hb_fill(struct hb_device *device,
                       struct hb_memory *memory,
                       uint64_t offset,
                       uint64_t length,
                       uint32_t value,
                       struct hb_fence **fence);

/*
 Copies between memories of a device on the host GPU, and gives the caller a fence: see `hb_fence_destroy`.

 Source and destination may be the same memory where the ranges do not overlap. `fence` may be NULL where nobody waits. Both
 memories live until the work is done. `vkCmdCopyBuffer`.

 # Safety
 `device`, `source` and `destination` are live handles; `fence` is NULL or points to a place for the handle.
 */
enum hb_status hb_copy(struct hb_device *device,
                       struct hb_memory *source,
                       uint64_t source_offset,
                       struct hb_memory *destination,
                       uint64_t destination_offset,
                       uint64_t length,
                       struct hb_fence **fence);

/*
 Waits until the work is done, at most `timeout_ns` nanoseconds, or `HB_WAIT_FOREVER`; 0 only looks.

 `HB_TIMEOUT` when the time was over first; another error when the work failed. May be called again, and by several threads.

 # Safety
 `fence` is a live handle.
 */
enum hb_status hb_fence_wait(const struct hb_fence *fence,
                             uint64_t timeout_ns);

/*
 A sync_file that signals when the work is done. The caller owns the descriptor and closes it. `HB_ERROR_UNSUPPORTED` over a
 local socket.

 # Safety
 `fence` is a live handle; `fd` points to a place for the descriptor.
 */
enum hb_status hb_fence_fd(const struct hb_fence *fence,
                           int *fd);

/*
 Ends the fence. NULL is fine. The work goes on.

 # Safety
 `fence` is NULL or from `hb_fill`, `hb_copy` or `hb_memory_released_fence`, and not used by any thread during or after this call.
 */
void hb_fence_destroy(struct hb_fence *fence);

/*
 The UUID under which other processes of this guest can import the memory: see `hb_memory_import_uuid`. Random, so that only who is
 told can; the same each time.

 `HB_ERROR_NOT_SHAREABLE` where the memory was allocated without `HB_ALLOCATE_SHAREABLE`, `HB_ERROR_UNSUPPORTED` where the host does
 not serve it.

 # Safety
 `memory` is a live handle; `uuid` points to `HB_UUID_SIZE` writable bytes.
 */
enum hb_status hb_memory_share(struct hb_memory *memory,
                               uint8_t *uuid);

/*
 Names memory that another process of this guest shares (`hb_memory_share`), or that a host process handed in, and gives the caller
 its handle: see `hb_memory_free`.

 Host GPU work can use it at once. Mapping it makes a blob for it; `HB_ERROR_ALREADY_BOUND` says that another process has one: pass a
 dma-buf on instead. `HB_ERROR_UNKNOWN_UUID` where nothing is shared under it, `HB_ERROR_UNSUPPORTED` where the host does not serve it.

 # Safety
 `device` is from `hb_device_open`; `uuid` points to `HB_UUID_SIZE` bytes; `memory` points to a place for the handle.
 */
enum hb_status hb_memory_import_uuid(struct hb_device *device,
                                     const uint8_t *uuid,
                                     struct hb_memory **memory);

/*
 Allocates memory in the guest's own pages, and gives the caller its handle: see `hb_memory_free`. `bytes` is not 0.

 It is zeros at first, shareable, and outside the window; host GPU work can use it. `HB_ERROR_UNSUPPORTED` where the host takes no
 guest pages, and over a local socket.

 # Safety
 `device` is from `hb_device_open`; `memory` points to a place for the handle.
 */
enum hb_status hb_allocate_guest(struct hb_device *device,
                                 uint64_t bytes,
                                 struct hb_memory **memory);

/*
 Describes a buffer in the memory to host processes. Another one at the same offset takes the place of the first.

 `HB_ERROR_INVALID_ARGUMENT` where width, height or stride is 0, `HB_ERROR_OUT_OF_RANGE` where it does not lie inside the memory,
 `HB_ERROR_NOT_SHAREABLE` where that was allocated without `HB_ALLOCATE_SHAREABLE`, `HB_ERROR_UNSUPPORTED` where the host takes no
 buffers.

 # Safety
 `memory` is a live handle; `info` points to `info->size` bytes.
 */
enum hb_status hb_memory_publish(struct hb_memory *memory,
                                 const struct hb_buffer_info *info);

/*
 Takes the description of the buffer at `offset` back: host processes no longer see it.

 # Safety
 `memory` is a live handle.
 */
enum hb_status hb_memory_withdraw(struct hb_memory *memory, uint64_t offset);

/*
 The published buffer at `offset` has new contents: host processes that have the memory open use it from now on, until each says
 that it has released it. Host GPU work that writes to it is done before.

 # Safety
 `memory` is a live handle.
 */
enum hb_status hb_memory_present(struct hb_memory *memory,
                                 uint64_t offset);

/*
 Waits until no host process uses the buffer at `offset`, or `HB_ALL_BUFFERS`, any more: at most `timeout_ns` nanoseconds, or
 `HB_WAIT_FOREVER`; 0 only asks. `HB_TIMEOUT` when the time was over first.

 Other threads use the device meanwhile. At most `HB_MOST_WAITS` of a device last at the same time (`HB_ERROR_TOO_MANY_OBJECTS`).

 # Safety
 `memory` is a live handle.
 */
enum hb_status hb_memory_wait_released(struct hb_memory *memory,
                                       uint64_t offset,
                                       uint64_t timeout_ns);

/*
 The fence of such a wait, given to the caller: see `hb_fence_destroy`. It is signalled when no host process uses the buffer, or when
 the time is over; `hb_fence_wait` returns `HB_TIMEOUT` then, too. More than a day is a day.

 It counts as a wait until then, destroyed or not. The memory lives as long.

 # Safety
 `memory` is a live handle; `fence` points to a place for the handle.
 */
enum hb_status hb_memory_released_fence(struct hb_memory *memory,
                                        uint64_t offset,
                                        uint64_t timeout_ns,
                                        struct hb_fence **fence);

/*
 Allocates memory for buffers of `bytes` together, each rounded up to pages, and gives the caller the handle: see
 `hb_buffer_pool_destroy`. The memory is an eighth larger.

 `HB_ERROR_UNSUPPORTED` where the host takes no buffers; other errors are those of `hb_allocate`.

 # Safety
 `device` is from `hb_device_open`; `pool` points to a place for the handle.
 */
enum hb_status hb_buffer_pool_create(struct hb_device *device,
                                     uint64_t bytes,
                                     struct hb_buffer_pool **pool);

/*
 Ends the pool's handle. NULL is fine. Its buffers live on, and the memory with them.

 # Safety
 `pool` is NULL or from `hb_buffer_pool_create`, and not used by any thread during or after this call.
 */
void hb_buffer_pool_destroy(struct hb_buffer_pool *pool);

/*
 Cuts a buffer out of the pool, publishes it, and gives the caller its handle: see `hb_buffer_destroy`. It starts at a page; its bytes
 are zeros or those of an earlier buffer of the pool; its modifier is `DRM_FORMAT_MOD_LINEAR`.

 `HB_ERROR_OUT_OF_HOST_MEMORY` where the pool has no room, `HB_ERROR_INVALID_ARGUMENT` where a number is 0 or a row too long.

 # Safety
 `pool` is a live handle; `info` points to `info->size` bytes; `buffer` points to a place for the handle.
 */
enum hb_status hb_buffer_create(struct hb_buffer_pool *pool,
                                const struct hb_buffer_create_info *info,
                                struct hb_buffer **buffer);

/*
 Withdraws the buffer, gives its bytes to the next one, and ends its handle and its address. NULL is fine. Whoever must not see the
 next one waits for the release first.

 # Safety
 `buffer` is NULL or from `hb_buffer_create`, and not used by any thread during or after this call.
 */
void hb_buffer_destroy(struct hb_buffer *buffer);

/*
 Where the buffer lies in the pool's memory, and what it is. Set `info->size` first.

 # Safety
 `buffer` is a live handle; `info` points to `info->size` writable bytes.
 */
enum hb_status hb_buffer_get_info(const struct hb_buffer *buffer, struct hb_buffer_info *info);

/*
 Gives the address of the buffer's `stride * height` bytes: the same until `hb_buffer_destroy`.

 # Safety
 `buffer` is a live handle; `address` points to a place for the address.
 */
enum hb_status hb_buffer_map(const struct hb_buffer *buffer, void **address);

/*
 The buffer has new contents: `hb_memory_present`.

 # Safety
 `buffer` is a live handle.
 */
enum hb_status hb_buffer_present(struct hb_buffer *buffer);

/*
 Waits until no host process uses the buffer any more: `hb_memory_wait_released`.

 # Safety
 `buffer` is a live handle.
 */
enum hb_status hb_buffer_wait_released(struct hb_buffer *buffer, uint64_t timeout_ns);

/*
 A dma-buf of the whole memory of the pool; `hb_buffer_get_info` has the buffer's offset and stride in it. The caller owns the
 descriptor and closes it. `HB_ERROR_UNSUPPORTED` over a local socket.

 # Safety
 `buffer` is a live handle; `fd` points to a place for the descriptor.
 */
enum hb_status hb_buffer_export(struct hb_buffer *buffer,
                                int *fd);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus
