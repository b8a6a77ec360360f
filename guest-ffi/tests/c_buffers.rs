//! Sharing and buffers through the C API.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a test calls as C does"
)]
#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

mod fake;

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};

use fake::{Fake, Script};
use hostblob_guest::ffi::buffer::*;
use hostblob_guest::ffi::buffer_pool::*;
use hostblob_guest::ffi::device::*;
use hostblob_guest::ffi::fence::*;
use hostblob_guest::ffi::memory::*;
use hostblob_guest::ffi::share::*;
use hostblob_guest::ffi::status::hb_status::*;
use hostblob_guest::ffi::types::*;

const XR24: u32 = 0x3432_5258;

/// A device on a fake daemon, and shareable memory of 1 MiB.
fn open(script: &Script) -> (Fake, *mut hb_device, *mut hb_memory) {
    let fake = Fake::start(script.clone());
    let path = CString::new(fake.path.to_str().unwrap()).unwrap();
    let (mut device, mut memory) = (null_mut(), null_mut());
    // SAFETY: all pointers are to locals of the right types, for which zeros are values.
    unsafe {
        let info = hb_open_info {
            size: size_of::<hb_open_info>(),
            socket_path: path.as_ptr(),
            ..std::mem::zeroed()
        };
        assert_eq!(hb_device_open(&info, &mut device), HB_OK);
        let info = hb_allocate_info {
            size: size_of::<hb_allocate_info>(),
            bytes: 1 << 20,
            memory_type: HB_MEMORY_TYPE_ANY,
            required_properties: 2,
            flags: HB_ALLOCATE_SHAREABLE,
            ..std::mem::zeroed()
        };
        assert_eq!(hb_allocate(device, &info, &mut memory), HB_OK);
    }
    (fake, device, memory)
}

fn info(offset: u64) -> hb_buffer_info {
    hb_buffer_info {
        size: size_of::<hb_buffer_info>(),
        offset,
        width: 64,
        height: 64,
        stride: 256,
        fourcc: XR24,
        modifier: 0,
    }
}

#[test]
fn memory_is_shared_and_imported() {
    let (_fake, device, memory) = open(&Script::default());
    // SAFETY: handles are live, and all other pointers are to locals of the right types; what is wrong is documented to be refused.
    unsafe {
        let mut uuid = [0; HB_UUID_SIZE];
        assert_eq!(hb_memory_share(memory, uuid.as_mut_ptr()), HB_OK);
        let mut imported = null_mut();
        let status = hb_memory_import_uuid(device, uuid.as_ptr(), &mut imported);
        assert_eq!(status, HB_OK);
        let fill = hb_fill(device, imported, 0, 8, 0x0101_0101, null_mut());
        assert_eq!(fill, HB_OK);
        hb_memory_free(imported);

        imported = device.cast();
        uuid = [0xee; HB_UUID_SIZE];
        let status = hb_memory_import_uuid(device, uuid.as_ptr(), &mut imported);
        assert_eq!(status, HB_ERROR_UNKNOWN_UUID);
        assert!(imported.is_null(), "outputs are cleared");
        let status = hb_memory_import_uuid(device, null(), &mut imported);
        assert_eq!(status, HB_ERROR_INVALID_ARGUMENT);
        assert_eq!(
            hb_memory_share(memory, null_mut()),
            HB_ERROR_INVALID_ARGUMENT
        );
        assert_eq!(
            hb_allocate_guest(device, 4096, &mut imported),
            HB_ERROR_UNSUPPORTED
        );
        assert_eq!(
            hb_allocate_guest(device, 0, &mut imported),
            HB_ERROR_INVALID_ARGUMENT
        );
        hb_memory_free(memory);
        hb_device_close(device);
    }
}

#[test]
fn buffers_of_memory_are_shown_and_waited_for() {
    let script = Script::default();
    let (_fake, device, memory) = open(&script);
    // SAFETY: as above.
    unsafe {
        assert_eq!(hb_memory_publish(memory, &info(4096)), HB_OK);
        let flat = hb_buffer_info {
            height: 0,
            ..info(0)
        };
        assert_eq!(hb_memory_publish(memory, &flat), HB_ERROR_INVALID_ARGUMENT);
        assert_eq!(
            hb_memory_publish(memory, &info(1 << 20)),
            HB_ERROR_OUT_OF_RANGE
        );
        assert_eq!(hb_memory_publish(memory, null()), HB_ERROR_INVALID_ARGUMENT);
        let short = hb_buffer_info {
            size: 32,
            ..info(0)
        };
        assert_eq!(hb_memory_publish(memory, &short), HB_ERROR_INVALID_ARGUMENT);

        assert_eq!(hb_memory_wait_released(memory, 4096, 0), HB_OK);
        assert_eq!(hb_memory_present(memory, 4096), HB_OK);
        assert_eq!(hb_memory_wait_released(memory, 4096, 0), HB_TIMEOUT);
        assert_eq!(
            hb_memory_wait_released(memory, HB_ALL_BUFFERS, 1_000_000),
            HB_TIMEOUT
        );
        let mut fence = null_mut();
        let status = hb_memory_released_fence(memory, 4096, HB_WAIT_FOREVER, &mut fence);
        assert_eq!(status, HB_OK);
        assert_eq!(hb_fence_wait(fence, 0), HB_TIMEOUT);
        script.viewers.release(4096);
        assert_eq!(hb_fence_wait(fence, 5_000_000_000), HB_OK);
        hb_fence_destroy(fence);
        assert_eq!(
            hb_memory_wait_released(memory, 4096, HB_WAIT_FOREVER),
            HB_OK
        );
        let status = hb_memory_released_fence(memory, 4096, 0, null_mut());
        assert_eq!(status, HB_ERROR_INVALID_ARGUMENT);
        assert_eq!(hb_memory_withdraw(memory, 4096), HB_OK);

        // Memory that nobody shares.
        let mut other = null_mut();
        let plain = hb_allocate_info {
            size: size_of::<hb_allocate_info>(),
            bytes: 1 << 20,
            memory_type: 1,
            ..std::mem::zeroed()
        };
        assert_eq!(hb_allocate(device, &plain, &mut other), HB_OK);
        assert_eq!(hb_memory_publish(other, &info(0)), HB_ERROR_NOT_SHAREABLE);
        assert_eq!(hb_memory_present(other, 0), HB_ERROR_NOT_SHAREABLE);
        hb_memory_free(other);
        hb_memory_free(memory);
        hb_device_close(device);
    }
}

#[test]
fn a_pool_of_buffers_in_c() {
    let script = Script::default();
    let (_fake, device, memory) = open(&script);
    // SAFETY: as above.
    unsafe {
        let mut pool = null_mut();
        assert_eq!(hb_buffer_pool_create(device, 1 << 20, &mut pool), HB_OK);
        let create = hb_buffer_create_info {
            size: size_of::<hb_buffer_create_info>(),
            width: 100,
            height: 10,
            bytes_per_pixel: 4,
            fourcc: XR24,
        };
        let mut buffers = [null_mut(); 2];
        for buffer in &mut buffers {
            assert_eq!(hb_buffer_create(pool, &create, buffer), HB_OK);
        }
        let mut refused = device.cast();
        let tall = hb_buffer_create_info {
            height: 1 << 20,
            ..create
        };
        let status = hb_buffer_create(pool, &tall, &mut refused);
        assert_eq!(status, HB_ERROR_OUT_OF_HOST_MEMORY);
        assert!(refused.is_null(), "outputs are cleared");
        hb_buffer_pool_destroy(pool);

        let [first, second] = buffers;
        let mut is = info(0);
        assert_eq!(hb_buffer_get_info(second, &mut is), HB_OK);
        assert_eq!((is.size, is.offset % 4096, is.stride), (40, 0, 448));
        assert_eq!((is.width, is.height, is.fourcc), (100, 10, XR24));
        let mut addresses: [*mut c_void; 2] = [null_mut(); 2];
        for (buffer, address) in buffers.into_iter().zip(&mut addresses) {
            assert_eq!(hb_buffer_map(buffer, address), HB_OK);
            address.cast::<u32>().write_volatile(0xff00_00ff);
        }
        let distance = addresses[1].addr() - addresses[0].addr();
        assert_eq!(distance as u64, is.offset);

        assert_eq!(hb_buffer_present(second), HB_OK);
        assert_eq!(hb_buffer_wait_released(second, 0), HB_TIMEOUT);
        assert_eq!(hb_buffer_wait_released(first, HB_WAIT_FOREVER), HB_OK);
        script.viewers.release(is.offset);
        assert_eq!(hb_buffer_wait_released(second, HB_WAIT_FOREVER), HB_OK);
        let mut fd = 5;
        assert_eq!(hb_buffer_export(second, &mut fd), HB_ERROR_UNSUPPORTED);
        assert_eq!(fd, -1);
        let wrong_kind = hb_buffer_present(memory.cast());
        assert_eq!(wrong_kind, HB_ERROR_INVALID_ARGUMENT);
        hb_buffer_destroy(first);
        hb_buffer_destroy(second);
        hb_buffer_destroy(null_mut());
        hb_buffer_pool_destroy(null_mut());
        hb_memory_free(memory);
        hb_device_close(device);
    }
}
