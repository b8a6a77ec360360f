//! A device from its beginning to its end, and its capsets.

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::ptr;

use hostblob_protocol::DEFAULT_CAPSET_ID;

use crate::boundary::{self, call, call_on};
use crate::device::{Device, Reached};
use crate::error::{Error, Result};
use crate::messages::{self, Listening};
use crate::settings::Settings;
use crate::theirs::Wanted;
use crate::types::{
    RUTABAGA_CAPSET_GFXSTREAM_COMPOSER, RUTABAGA_CAPSET_GFXSTREAM_GLES,
    RUTABAGA_CAPSET_GFXSTREAM_VULKAN, RUTABAGA_WSI_SURFACELESS, rutabaga, rutabaga_builder,
    rutabaga_channels,
};

/// What our capset is called among the names of the others.
const CAPSET_NAME: &str = "hostblob";

/// Most channels of a device.
const MOST_CHANNELS: usize = 64;

/// The capsets that `renderer_features` is for.
const WITH_FEATURES: u64 = 1 << RUTABAGA_CAPSET_GFXSTREAM_VULKAN
    | 1 << RUTABAGA_CAPSET_GFXSTREAM_GLES
    | 1 << RUTABAGA_CAPSET_GFXSTREAM_COMPOSER;

/// The bits of these capsets, separated by colons: "cross-domain:hostblob". Names that are not known have none.
///
/// # Safety
/// `capset_names` is NULL, which is refused, or zero-terminated; `capset_mask` is NULL, which is refused, or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_calculate_capset_mask(
    capset_names: *const c_char,
    capset_mask: *mut u64,
) -> i32 {
    call("rutabaga_calculate_capset_mask", || {
        // SAFETY: as promised by the caller.
        let names = unsafe { boundary::string(capset_names, "capset_names") }?;
        let names = names.ok_or(Error::Pointer("capset_names"))?;
        let mut mask = rutabaga_gfx::calculate_capset_mask(names.split(':'));
        if names.split(':').any(|name| name == CAPSET_NAME) {
            mask |= 1 << DEFAULT_CAPSET_ID;
        }
        // SAFETY: as promised by the caller.
        unsafe { boundary::put(capset_mask, mask, "capset_mask") }
    })
}

/// Makes a device. What hostblob offers is set by the environment: HOSTBLOB_PROVIDER, HOSTBLOB_DEVICE, HOSTBLOB_WINDOW,
/// HOSTBLOB_MEMORY_LIMIT, HOSTBLOB_CONTEXT_LIMIT, HOSTBLOB_CONTEXT_SHARE, HOSTBLOB_WARM_LIMIT, HOSTBLOB_CAPSET_ID and
/// HOSTBLOB_LOG, as the options of hostblobd.
///
/// # Safety
/// `builder` is NULL, which is refused, or points to a structure whose pointers are as it says; `ptr` is NULL, which is refused, or can
/// be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_init(
    builder: *const rutabaga_builder,
    ptr: *mut *mut rutabaga,
) -> i32 {
    messages::start();
    // It outlives the call: what goes wrong in it is said through this.
    let mut messages = None;
    call("rutabaga_init", || {
        boundary::writable(ptr, "ptr")?;
        // SAFETY: as promised by the caller.
        let mut device = unsafe { new_device(builder, &mut messages) }?;
        device.messages = messages.take();
        // SAFETY: as promised by the caller.
        unsafe { boundary::put(ptr, boundary::hand_out(device), "ptr") }
    })
}

/// # Safety
/// As [`rutabaga_init`].
unsafe fn new_device(
    builder: *const rutabaga_builder,
    messages: &mut Option<Listening>,
) -> Result<Device> {
    boundary::writable(builder.cast_mut(), "builder")?;
    // The last field is read by itself: a caller of an older header does not have it.
    // SAFETY: not NULL and aligned as just checked; the fields are there as the caller promised.
    let user_data = unsafe { (*builder).user_data };
    // SAFETY: as above.
    let capset_mask = unsafe { (*builder).capset_mask };
    // SAFETY: as above.
    let wsi = unsafe { (*builder).wsi };
    // SAFETY: as above.
    let fence_cb = unsafe { (*builder).fence_cb }.ok_or(Error::Pointer("fence_cb"))?;
    // SAFETY: as above.
    let debug_cb = unsafe { (*builder).debug_cb };
    // SAFETY: as above.
    let channels = unsafe { (*builder).channels };
    let renderer_features = match capset_mask & WITH_FEATURES {
        0 => ptr::null(),
        // SAFETY: as above.
        _ => unsafe { (*builder).renderer_features },
    };
    *messages = debug_cb.map(|callback| messages::listen(user_data, callback));
    if wsi != u64::from(RUTABAGA_WSI_SURFACELESS) {
        return Err(Error::Field {
            field: "wsi",
            value: wsi,
            expected: "RUTABAGA_WSI_SURFACELESS",
        });
    }
    let wanted = Wanted {
        capset_mask,
        // SAFETY: as promised by the caller.
        channels: unsafe { paths(channels) }?,
        // SAFETY: as promised by the caller.
        renderer_features: unsafe { boundary::string(renderer_features, "renderer_features") }?,
    };
    let reached: Reached = Box::new(move |fence| {
        // SAFETY: the VMM's callback takes these until the device is finished, which ends the thread that this is called on.
        let tell = || unsafe { fence_cb(user_data, fence) };
        if catch_unwind(AssertUnwindSafe(tell)).is_err() {
            log::error!("the fence callback must not unwind");
        }
    });
    Device::new(&Settings::from_environment()?, wanted, reached)
}

/// # Safety
/// `channels` is NULL, or points to a structure whose array and names are there.
unsafe fn paths(channels: *const rutabaga_channels) -> Result<Vec<(u32, PathBuf)>> {
    if channels.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: as promised by the caller.
    let list = unsafe { boundary::input(channels, "channels") }?;
    let (array, count) = (list.channels.cast_const(), list.num_channels);
    // SAFETY: as promised by the caller; the array is only read here.
    let list = unsafe { boundary::slice(array, count, MOST_CHANNELS, "channels->channels") }?;
    let mut paths = Vec::with_capacity(list.len());
    for channel in list {
        // A mask of types is what cross-domain makes of them.
        if channel.channel_type >= u32::BITS {
            return Err(Error::Field {
                field: "channel_type",
                value: channel.channel_type.into(),
                expected: "RUTABAGA_CHANNEL_TYPE_*",
            });
        }
        // SAFETY: as promised by the caller.
        let name = unsafe { boundary::string(channel.channel_name, "channel_name") }?;
        let name = name.ok_or(Error::Pointer("channel_name"))?;
        paths.push((channel.channel_type, name.into()));
    }
    Ok(paths)
}

/// Ends a device, and sets `*ptr` to NULL. No callback is under way, or comes, after this returns; so none may call this (-EDEADLK).
///
/// # Safety
/// `ptr` is NULL, which is refused, or can be read and written. Mappings of blobs are not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_finish(ptr: *mut *mut rutabaga) -> i32 {
    call("rutabaga_finish", || {
        // SAFETY: as promised by the caller.
        let handle = unsafe { boundary::input(ptr.cast_const(), "ptr") }?;
        boundary::give_back(handle)?;
        // SAFETY: as promised by the caller.
        unsafe { boundary::put(ptr, ptr::null_mut(), "ptr") }
    })
}

/// How many capsets there are.
///
/// # Safety
/// `num_capsets` is NULL, which is refused, or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_get_num_capsets(
    ptr: *mut rutabaga,
    num_capsets: *mut u32,
) -> i32 {
    call_on(ptr, "rutabaga_get_num_capsets", |device| {
        let count = device.with(|core| Ok(core.capsets()))?;
        // SAFETY: as promised by the caller.
        unsafe { boundary::put(num_capsets, count, "num_capsets") }
    })
}

/// GET_CAPSET_INFO. The capset of hostblob is the last one.
///
/// # Safety
/// `capset_id`, `capset_version` and `capset_size` are NULL, which is refused, or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_get_capset_info(
    ptr: *mut rutabaga,
    capset_index: u32,
    capset_id: *mut u32,
    capset_version: *mut u32,
    capset_size: *mut u32,
) -> i32 {
    call_on(ptr, "rutabaga_get_capset_info", |device| {
        boundary::writable(capset_id, "capset_id")?;
        boundary::writable(capset_version, "capset_version")?;
        let (id, version, size) = device.with(|core| core.capset_info(capset_index))?;
        // SAFETY: as promised by the caller.
        unsafe { boundary::put(capset_size, size, "capset_size") }?;
        // SAFETY: as promised by the caller.
        unsafe { boundary::put(capset_version, version, "capset_version") }?;
        // SAFETY: as promised by the caller.
        unsafe { boundary::put(capset_id, id, "capset_id") }
    })
}

/// GET_CAPSET: as much of it as there is room for; room beyond it is not touched.
///
/// # Safety
/// `capset` is NULL, which is refused, or `capset_size` bytes can be written there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_get_capset(
    ptr: *mut rutabaga,
    capset_id: u32,
    version: u32,
    capset: *mut u8,
    capset_size: u32,
) -> i32 {
    call_on(ptr, "rutabaga_get_capset", |device| {
        boundary::writable(capset, "capset")?;
        let bytes = device.with(|core| core.capset(capset_id, version))?;
        let room = usize::try_from(capset_size).unwrap_or(usize::MAX);
        let length = bytes.len().min(room);
        // SAFETY: `length` bytes are in `bytes`, and can be written as the caller promised; the two are different memory.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), capset, length) };
        Ok(())
    })
}

/// Saves to an empty folder what rutabaga_gfx has. Contexts and blobs of hostblob are a reason to refuse (-EOPNOTSUPP).
///
/// # Safety
/// `dir` is NULL, which is refused, or zero-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_snapshot(ptr: *mut rutabaga, dir: *const c_char) -> i32 {
    call_on(ptr, "rutabaga_snapshot", |device| {
        // SAFETY: as promised by the caller.
        let folder = unsafe { folder(dir) }?;
        device.with(|core| core.snapshot(folder))
    })
}

/// Restores what rutabaga_snapshot() has saved.
///
/// # Safety
/// `dir` is NULL, which is refused, or zero-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_restore(ptr: *mut rutabaga, dir: *const c_char) -> i32 {
    call_on(ptr, "rutabaga_restore", |device| {
        // SAFETY: as promised by the caller.
        let folder = unsafe { folder(dir) }?;
        device.with(|core| core.restore(folder))
    })
}

/// # Safety
/// `dir` is NULL, or zero-terminated for as long as the folder is used.
unsafe fn folder<'a>(dir: *const c_char) -> Result<&'a Path> {
    if dir.is_null() {
        return Err(Error::Pointer("dir"));
    }
    // SAFETY: as promised by the caller.
    let text = unsafe { CStr::from_ptr(dir) };
    text.to_str().map(Path::new).map_err(|_| Error::Text("dir"))
}
