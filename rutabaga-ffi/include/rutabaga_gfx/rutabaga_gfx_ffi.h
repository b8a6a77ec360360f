/* The C interface of rutabaga_gfx 0.1.6, as hostblob serves it.
 *
 * Generated from rutabaga-ffi/src; do not edit. Programs that were built with the header of rutabaga_gfx itself need no other build:
 * names, structures and numbers are the same.
 *
 * - 0 is good. A negative errno is not, and nothing has changed then: -EINVAL for what makes no sense, -ENOMEM at limits, -EOPNOTSUPP for
 *   what is not served, -EIO where a GPU driver refuses, -ENODEV from rutabaga_init() without a GPU, -ESRCH for a panic. The reason goes
 *   to the debug callback.
 * - NULL, ids that do not exist, and devices that were finished are refused.
 *
 * SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
 */

#ifndef RUTABAGA_GFX_FFI_H
#define RUTABAGA_GFX_FFI_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/uio.h>

/*
 The header's version, first part.
 */
#define RUTABAGA_VERSION_MAJOR 0

/*
 The header's version, second part.
 */
#define RUTABAGA_VERSION_MINOR 1

/*
 The header's version, third part.
 */
#define RUTABAGA_VERSION_PATCH 6

/*
 Served where rutabaga_gfx was built with virglrenderer.
 */
#define RUTABAGA_CAPSET_VIRGL 1

/*
 As RUTABAGA_CAPSET_VIRGL.
 */
#define RUTABAGA_CAPSET_VIRGL2 2

/*
 Served where rutabaga_gfx was built with gfxstream.
 */
#define RUTABAGA_CAPSET_GFXSTREAM_VULKAN 3

/*
 As RUTABAGA_CAPSET_VIRGL.
 */
#define RUTABAGA_CAPSET_VENUS 4

/*
 Wayland and the like.
 */
#define RUTABAGA_CAPSET_CROSS_DOMAIN 5

/*
 As RUTABAGA_CAPSET_VIRGL.
 */
#define RUTABAGA_CAPSET_DRM 6

/*
 Magma.
 */
#define RUTABAGA_CAPSET_GFXSTREAM_MAGMA 7

/*
 As RUTABAGA_CAPSET_GFXSTREAM_VULKAN.
 */
#define RUTABAGA_CAPSET_GFXSTREAM_GLES 8

/*
 As RUTABAGA_CAPSET_GFXSTREAM_VULKAN.
 */
#define RUTABAGA_CAPSET_GFXSTREAM_COMPOSER 9

/*
 rutabaga_create_blob.blob_mem: pages of the guest.
 */
#define RUTABAGA_BLOB_MEM_GUEST 1

/*
 rutabaga_create_blob.blob_mem: memory of the host.
 */
#define RUTABAGA_BLOB_MEM_HOST3D 2

/*
 rutabaga_create_blob.blob_mem: both.
 */
#define RUTABAGA_BLOB_MEM_HOST3D_GUEST 3

/*
 rutabaga_create_blob.blob_flags: it can be mapped.
 */
#define RUTABAGA_BLOB_FLAG_USE_MAPPABLE 1

/*
 rutabaga_create_blob.blob_flags: it can be exported.
 */
#define RUTABAGA_BLOB_FLAG_USE_SHAREABLE 2

/*
 rutabaga_create_blob.blob_flags: it can be exported to other devices.
 */
#define RUTABAGA_BLOB_FLAG_USE_CROSS_DEVICE 4

/*
 The bits of map_info that virtio-gpu knows.
 */
#define RUTABAGA_MAP_CACHE_MASK 15

/*
 map_info: cached.
 */
#define RUTABAGA_MAP_CACHE_CACHED 1

/*
 map_info: uncached.
 */
#define RUTABAGA_MAP_CACHE_UNCACHED 2

/*
 map_info: write-combined.
 */
#define RUTABAGA_MAP_CACHE_WC 3

/*
 The bits of map_info that a VMM protects its mapping with.
 */
#define RUTABAGA_MAP_ACCESS_MASK 240

/*
 map_info: the guest reads.
 */
#define RUTABAGA_MAP_ACCESS_READ 16

/*
 map_info: the guest writes.
 */
#define RUTABAGA_MAP_ACCESS_WRITE 32

/*
 map_info: the guest reads and writes.
 */
#define RUTABAGA_MAP_ACCESS_RW 48

/*
 rutabaga_handle.handle_type: an opaque descriptor of a GPU driver.
 */
#define RUTABAGA_HANDLE_TYPE_MEM_OPAQUE_FD 1

/*
 rutabaga_handle.handle_type: a dma-buf.
 */
#define RUTABAGA_HANDLE_TYPE_MEM_DMABUF 2

/*
 rutabaga_handle.handle_type: not on Linux.
 */
#define RUTABAGA_HANDLE_TYPE_MEM_OPAQUE_WIN32 3

/*
 rutabaga_handle.handle_type: a memfd.
 */
#define RUTABAGA_HANDLE_TYPE_MEM_SHM 4

/*
 rutabaga_handle.handle_type: not on Linux.
 */
#define RUTABAGA_HANDLE_TYPE_MEM_ZIRCON 5

/*
 rutabaga_handle.handle_type: an opaque descriptor of a semaphore.
 */
#define RUTABAGA_HANDLE_TYPE_SIGNAL_OPAQUE_FD 16

/*
 rutabaga_handle.handle_type: a sync file.
 */
#define RUTABAGA_HANDLE_TYPE_SIGNAL_SYNC_FD 32

/*
 rutabaga_handle.handle_type: not on Linux.
 */
#define RUTABAGA_HANDLE_TYPE_SIGNAL_OPAQUE_WIN32 48

/*
 rutabaga_handle.handle_type: not on Linux.
 */
#define RUTABAGA_HANDLE_TYPE_SIGNAL_ZIRCON 64

/*
 rutabaga_handle.handle_type: an eventfd.
 */
#define RUTABAGA_HANDLE_TYPE_SIGNAL_EVENT_FD 80

/*
 rutabaga_handle.handle_type: not on Linux.
 */
#define RUTABAGA_HANDLE_TYPE_PLATFORM_SCREEN_BUFFER_QNX 16777216

/*
 rutabaga_handle.handle_type: EGL's.
 */
#define RUTABAGA_HANDLE_TYPE_PLATFORM_EGL_NATIVE_PIXMAP 33554432

/*
 rutabaga_handle.handle_type: not on Linux.
 */
#define RUTABAGA_HANDLE_TYPE_PLATFORM_AHB 50331648

/*
 rutabaga_channel.channel_type: a Wayland compositor's socket.
 */
#define RUTABAGA_CHANNEL_TYPE_WAYLAND 1

/*
 rutabaga_channel.channel_type: PipeWire's socket.
 */
#define RUTABAGA_CHANNEL_TYPE_PIPEWIRE 16

/*
 rutabaga_channel.channel_type: an X server's socket.
 */
#define RUTABAGA_CHANNEL_TYPE_X11 17

/*
 rutabaga_channel.channel_type: the session bus.
 */
#define RUTABAGA_CHANNEL_TYPE_DBUS_SESSION 18

/*
 rutabaga_channel.channel_type: the system bus.
 */
#define RUTABAGA_CHANNEL_TYPE_DBUS_SYSTEM 19

/*
 rutabaga_builder.wsi: the only one.
 */
#define RUTABAGA_WSI_SURFACELESS 1

/*
 rutabaga_fence.flags: it is a fence.
 */
#define RUTABAGA_FLAG_FENCE 1

/*
 rutabaga_fence.flags: ctx_id and ring_idx count.
 */
#define RUTABAGA_FLAG_INFO_RING_IDX 2

/*
 rutabaga_fence.flags: it can be exported.
 */
#define RUTABAGA_FLAG_FENCE_SHAREABLE 4

/*
 rutabaga_debug.debug_type.
 */
#define RUTABAGA_DEBUG_ERROR 1

/*
 rutabaga_debug.debug_type.
 */
#define RUTABAGA_DEBUG_WARN 2

/*
 rutabaga_debug.debug_type.
 */
#define RUTABAGA_DEBUG_INFO 3

/*
 rutabaga_import_data.flags: info_3d counts.
 */
#define RUTABAGA_IMPORT_FLAG_3D_INFO 1

/*
 rutabaga_import_data.flags: not served.
 */
#define RUTABAGA_IMPORT_FLAG_VULKAN_INFO 2

/*
 rutabaga_import_data.flags: the resource exists.
 */
#define RUTABAGA_IMPORT_FLAG_RESOURCE_EXISTS 1073741824

/*
 rutabaga_import_data.flags: its bytes stay.
 */
#define RUTABAGA_IMPORT_FLAG_PRESERVE_CONTENT 2147483648

/*
 A device: from rutabaga_init() to rutabaga_finish().
 */
struct rutabaga;

/*
 A fence of the guest.
 */
struct rutabaga_fence {
  /*
   RUTABAGA_FLAG_*.
   */
  uint32_t flags;
  /*
   The guest's number for it.
   */
  uint64_t fence_id;
  /*
   Whose, with RUTABAGA_FLAG_INFO_RING_IDX.
   */
  uint32_t ctx_id;
  /*
   On which timeline of the context, with RUTABAGA_FLAG_INFO_RING_IDX: less than 64.
   */
  uint32_t ring_idx;
};

/*
 Told when a fence is reached, from a thread of the library, one at a time. It may call the library, but not finish the device.
 */
typedef void (*rutabaga_fence_callback)(uint64_t user_data, const struct rutabaga_fence *fence);

/*
 A message.
 */
struct rutabaga_debug {
  /*
   RUTABAGA_DEBUG_*.
   */
  uint32_t debug_type;
  /*
   Zero-terminated; gone when the callback returns.
   */
  const char *message;
};

/*
 Told what went wrong, from any thread. It may not call the library.
 */
typedef void (*rutabaga_debug_callback)(uint64_t user_data, const struct rutabaga_debug *debug);

/*
 What a cross-domain context may connect to.
 */
struct rutabaga_channel {
  /*
   Path of a socket, zero-terminated.
   */
  const char *channel_name;
  /*
   RUTABAGA_CHANNEL_TYPE_*.
   */
  uint32_t channel_type;
};

/*
 Several of them.
 */
struct rutabaga_channels {
  /*
   As many as num_channels says.
   */
  struct rutabaga_channel *channels;
  /*
   At most 64.
   */
  size_t num_channels;
};

/*
 What a device is made of.
 */
struct rutabaga_builder {
  /*
   Passed to the callbacks.
   */
  uint64_t user_data;
  /*
   Capsets of rutabaga_gfx, bit n for capset n. That of hostblob is there in any case.
   */
  uint64_t capset_mask;
  /*
   RUTABAGA_WSI_SURFACELESS.
   */
  uint64_t wsi;
  /*
   Not NULL.
   */
  rutabaga_fence_callback fence_cb;
  /*
   May be NULL. All devices of a process have their messages go to the first that has one.
   */
  rutabaga_debug_callback debug_cb;
  /*
   May be NULL.
   */
  struct rutabaga_channels *channels;
  /*
   For gfxstream, and read with its capsets alone: headers up to 0.1.3 have no such field. Zero-terminated; may be NULL.
   */
  const char *renderer_features;
};

/*
 SUBMIT_3D.
 */
struct rutabaga_command {
  /*
   Whose.
   */
  uint32_t ctx_id;
  /*
   Bytes.
   */
  uint32_t cmd_size;
  /*
   They.
   */
  uint8_t *cmd;
  /*
   Fences to wait for first. Contexts of hostblob have no use for them.
   */
  uint32_t num_in_fences;
  /*
   They.
   */
  uint64_t *fence_ids;
};

/*
 RESOURCE_CREATE_2D and RESOURCE_CREATE_3D.
 */
struct rutabaga_create_3d {
  uint32_t target;
  uint32_t format;
  uint32_t bind;
  uint32_t width;
  uint32_t height;
  uint32_t depth;
  uint32_t array_size;
  uint32_t last_level;
  uint32_t nr_samples;
  uint32_t flags;
};

/*
 Guest memory, where the VMM has it mapped.
 */
struct rutabaga_iovecs {
  /*
   As many as num_iovecs says.
   */
  struct iovec *iovecs;
  /*
   At most 262144.
   */
  size_t num_iovecs;
};

/*
 TRANSFER_TO_HOST_2D, TRANSFER_TO_HOST_3D and TRANSFER_FROM_HOST_3D.
 */
struct rutabaga_transfer {
  uint32_t x;
  uint32_t y;
  uint32_t z;
  uint32_t w;
  uint32_t h;
  uint32_t d;
  uint32_t level;
  uint32_t stride;
  uint32_t layer_stride;
  uint64_t offset;
};

/*
 RESOURCE_CREATE_BLOB.
 */
struct rutabaga_create_blob {
  /*
   RUTABAGA_BLOB_MEM_*.
   */
  uint32_t blob_mem;
  /*
   RUTABAGA_BLOB_FLAG_*.
   */
  uint32_t blob_flags;
  /*
   What the context calls the memory.
   */
  uint64_t blob_id;
  /*
   Bytes.
   */
  uint64_t size;
};

/*
 A descriptor.
 */
struct rutabaga_handle {
  /*
   The descriptor.
   */
  int64_t os_handle;
  /*
   RUTABAGA_HANDLE_TYPE_*.
   */
  uint32_t handle_type;
};

/*
 Where a blob is mapped.
 */
struct rutabaga_mapping {
  /*
   First byte.
   */
  void *ptr;
  /*
   Bytes.
   */
  uint64_t size;
};

/*
 The planes of an imported image.
 */
struct rutabaga_3d_info {
  uint32_t width;
  uint32_t height;
  uint32_t drm_fourcc;
  uint32_t strides[4];
  uint32_t offsets[4];
  uint64_t modifier;
};

/*
 What an imported descriptor is.
 */
struct rutabaga_import_data {
  /*
   RUTABAGA_IMPORT_FLAG_*.
   */
  uint32_t flags;
  /*
   With RUTABAGA_IMPORT_FLAG_3D_INFO.
   */
  struct rutabaga_3d_info info_3d;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 The bits of these capsets, separated by colons: "cross-domain:hostblob". Names that are not known have none.

 # Safety
 `capset_names` is NULL, which is refused, or zero-terminated; `capset_mask` is NULL, which is refused, or can be written.
 */
int32_t rutabaga_calculate_capset_mask(const char *capset_names,
                                       uint64_t *capset_mask);

/*
 Makes a device. What hostblob offers is set by the environment: HOSTBLOB_PROVIDER, HOSTBLOB_DEVICE, HOSTBLOB_WINDOW,
 HOSTBLOB_MEMORY_LIMIT, HOSTBLOB_CONTEXT_LIMIT, HOSTBLOB_CONTEXT_SHARE, HOSTBLOB_WARM_LIMIT, HOSTBLOB_CAPSET_ID and
 HOSTBLOB_LOG, as the options of hostblobd.

 # Safety
 `builder` is NULL, which is refused, or points to a structure whose pointers are as it says; `ptr` is NULL, which is refused, or can
 be written.
 */
int32_t rutabaga_init(const struct rutabaga_builder *builder,
                      struct rutabaga **ptr);

/*
 Ends a device, and sets `*ptr` to NULL. No callback is under way, or comes, after this returns; so none may call this (-EDEADLK).

 # Safety
 `ptr` is NULL, which is refused, or can be read and written. Mappings of blobs are not used any more.
 */
int32_t rutabaga_finish(struct rutabaga **ptr);

/*
 How many capsets there are.

 # Safety
 `num_capsets` is NULL, which is refused, or can be written.
 */
int32_t rutabaga_get_num_capsets(struct rutabaga *ptr, uint32_t *num_capsets);

/*
 GET_CAPSET_INFO. The capset of hostblob is the last one.

 # Safety
 `capset_id`, `capset_version` and `capset_size` are NULL, which is refused, or can be written.
 */
int32_t rutabaga_get_capset_info(struct rutabaga *ptr,
                                 uint32_t capset_index,
                                 uint32_t *capset_id,
                                 uint32_t *capset_version,
                                 uint32_t *capset_size);

/*
 GET_CAPSET: as much of it as there is room for; room beyond it is not touched.

 # Safety
 `capset` is NULL, which is refused, or `capset_size` bytes can be written there.
 */
int32_t rutabaga_get_capset(struct rutabaga *ptr,
                            uint32_t capset_id,
                            uint32_t version,
                            uint8_t *capset,
                            uint32_t capset_size);

/*
 Saves to an empty folder what rutabaga_gfx has. Contexts and blobs of hostblob are a reason to refuse (-EOPNOTSUPP).

 # Safety
 `dir` is NULL, which is refused, or zero-terminated.
 */
int32_t rutabaga_snapshot(struct rutabaga *ptr,
                          const char *dir);

/*
 Restores what rutabaga_snapshot() has saved.

 # Safety
 `dir` is NULL, which is refused, or zero-terminated.
 */
int32_t rutabaga_restore(struct rutabaga *ptr, const char *dir);

/*
 CTX_CREATE. The low byte of `context_init` is a capset id. At most 64 bytes of the name are read.

 # Safety
 `context_name` is NULL, or points to `context_name_len` bytes.
 */
int32_t rutabaga_context_create(struct rutabaga *ptr,
                                uint32_t ctx_id,
                                uint32_t context_init,
                                const char *context_name,
                                uint32_t context_name_len);

/*
 CTX_DESTROY.
 */
int32_t rutabaga_context_destroy(struct rutabaga *ptr, uint32_t ctx_id);

/*
 CTX_ATTACH_RESOURCE. Resources of hostblob are for its contexts, and those of rutabaga_gfx for the others (-EINVAL). A blob of guest
 pages that no context made is for all.
 */
int32_t rutabaga_context_attach_resource(struct rutabaga *ptr,
                                         uint32_t ctx_id,
                                         uint32_t resource_id);

/*
 CTX_DETACH_RESOURCE.
 */
int32_t rutabaga_context_detach_resource(struct rutabaga *ptr, uint32_t ctx_id, uint32_t resource_id);

/*
 SUBMIT_3D.

 # Safety
 `cmd` is NULL, which is refused, or points to a structure whose arrays are as long as it says; the bytes can be written too.
 */
int32_t rutabaga_submit_command(struct rutabaga *ptr,
                                struct rutabaga_command *cmd);

/*
 A fence for what was submitted so far: the callback is called when it is reached, once.

 # Safety
 `fence` is NULL, which is refused, or points to a structure.
 */
int32_t rutabaga_create_fence(struct rutabaga *ptr, const struct rutabaga_fence *fence);

/*
 RESOURCE_CREATE_2D and RESOURCE_CREATE_3D. All 2D resources together have at most HOSTBLOB_MEMORY_LIMIT bytes (-ENOMEM).

 # Safety
 `create_3d` is NULL, which is refused, or points to a structure.
 */
int32_t rutabaga_resource_create_3d(struct rutabaga *ptr,
                                    uint32_t resource_id,
                                    const struct rutabaga_create_3d *create_3d);

/*
 RESOURCE_ATTACH_BACKING.

 # Safety
 `iovecs` is NULL, which is refused, or points to a structure whose array is as long as it says. The ranges are memory until they are
 detached.
 */
int32_t rutabaga_resource_attach_backing(struct rutabaga *ptr,
                                         uint32_t resource_id,
                                         const struct rutabaga_iovecs *iovecs);

/*
 RESOURCE_DETACH_BACKING. The GPU does not use the pages any more when this returns.
 */
int32_t rutabaga_resource_detach_backing(struct rutabaga *ptr, uint32_t resource_id);

/*
 TRANSFER_FROM_HOST_3D, or, with `iovec`, what a 2D resource shows.

 # Safety
 `transfer` is NULL, which is refused, or points to a structure; `iovec` is NULL, or points to one whose bytes can be written.
 */
int32_t rutabaga_resource_transfer_read(struct rutabaga *ptr,
                                        uint32_t ctx_id,
                                        uint32_t resource_id,
                                        const struct rutabaga_transfer *transfer,
                                        const struct iovec *iovec);

/*
 TRANSFER_TO_HOST_2D and TRANSFER_TO_HOST_3D.

 # Safety
 `transfer` is NULL, which is refused, or points to a structure.
 */
int32_t rutabaga_resource_transfer_write(struct rutabaga *ptr,
                                         uint32_t ctx_id,
                                         uint32_t resource_id,
                                         const struct rutabaga_transfer *transfer);

/*
 RESOURCE_CREATE_BLOB. For contexts of hostblob, guest memory is memory of a file that this process has open for reading and writing and
 has mapped shared, as QEMU's memory-backend-memfd,share=on is (-EINVAL otherwise).

 # Safety
 `create` is NULL, which is refused, or points to a structure; `iovecs` is NULL, or as for rutabaga_resource_attach_backing();
 `handle` is NULL, or names a descriptor that is given away, also when the call fails.
 */
int32_t rutabaga_resource_create_blob(struct rutabaga *ptr,
                                      uint32_t ctx_id,
                                      uint32_t resource_id,
                                      const struct rutabaga_create_blob *create,
                                      const struct rutabaga_iovecs *iovecs,
                                      const struct rutabaga_handle *handle);

/*
 RESOURCE_UNREF. The GPU does not use guest pages of the resource any more when this returns.
 */
int32_t rutabaga_resource_unref(struct rutabaga *ptr, uint32_t resource_id);

/*
 A descriptor of a blob, which the caller owns: of a blob of hostblob a dma-buf, where the host has /dev/udmabuf (-EOPNOTSUPP otherwise).

 # Safety
 `handle` is NULL, which is refused, or can be written.
 */
int32_t rutabaga_resource_export_blob(struct rutabaga *ptr,
                                      uint32_t resource_id,
                                      struct rutabaga_handle *handle);

/*
 RESOURCE_MAP_BLOB: where the blob's bytes are in this process, until the blob is unmapped or gone.

 # Safety
 `mapping` is NULL, which is refused, or can be written.
 */
int32_t rutabaga_resource_map(struct rutabaga *ptr, uint32_t resource_id, struct rutabaga_mapping *mapping);

/*
 RESOURCE_UNMAP_BLOB.
 */
int32_t rutabaga_resource_unmap(struct rutabaga *ptr, uint32_t resource_id);

/*
 How a blob is to be mapped: RUTABAGA_MAP_CACHE_* and RUTABAGA_MAP_ACCESS_*.

 # Safety
 `map_info` is NULL, which is refused, or can be written.
 */
int32_t rutabaga_resource_map_info(struct rutabaga *ptr, uint32_t resource_id, uint32_t *map_info);

/*
 A resource of rutabaga_gfx made of a descriptor.

 # Safety
 `import_handle` is NULL, which is refused, or names a descriptor that is given away, also when the call fails; `import_data` is NULL,
 which is refused, or points to a structure.
 */
int32_t rutabaga_resource_import(struct rutabaga *ptr,
                                 uint32_t resource_id,
                                 const struct rutabaga_handle *import_handle,
                                 const struct rutabaga_import_data *import_data);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* RUTABAGA_GFX_FFI_H */
