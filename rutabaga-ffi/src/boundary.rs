//! Pointers, handles and panics of the boundary: all that is dangerous about C callers, in one file.
//!
//! A handle is a number that is never used twice, not an address: one that was given back, or never was, is not found, and nothing
//! is read through it.

use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Arc, LazyLock};

use hostblob_allocator::ratelimit::RateLimiter;
use parking_lot::{Mutex, RwLock};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::types::rutabaga;

struct Live {
    devices: HashMap<usize, Arc<Device>>,
    last: usize,
}

static LIVE: LazyLock<RwLock<Live>> = LazyLock::new(|| {
    RwLock::new(Live {
        devices: HashMap::new(),
        last: 0,
    })
});

/// A guest can make a VMM's calls fail as often as it likes.
static FAILURES: LazyLock<Mutex<RateLimiter>> = LazyLock::new(Mutex::default);

/// Runs a call: its error becomes a negative errno and a message, its panic -ESRCH, as upstream's does.
pub(crate) fn call(name: &str, body: impl FnOnce() -> Result<()>) -> i32 {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error,
        Err(_) => Error::Panic,
    };
    FAILURES.lock().warn(format_args!("{name}: {error}"));
    error.errno()
}

/// Runs a call on a device.
pub(crate) fn call_on(
    handle: *const rutabaga,
    name: &str,
    body: impl FnOnce(&Device) -> Result<()>,
) -> i32 {
    call(name, || {
        let live = LIVE.read().devices.get(&handle.addr()).cloned();
        body(&*live.ok_or(Error::Handle(handle.addr()))?)
    })
}

/// A new handle, owned by the caller until [`give_back`].
pub(crate) fn hand_out(device: Device) -> *mut rutabaga {
    let mut live = LIVE.write();
    live.last += 1;
    let handle = live.last;
    live.devices.insert(handle, Arc::new(device));
    ptr::without_provenance_mut(handle)
}

/// Ends a handle, and its device.
pub(crate) fn give_back(handle: *mut rutabaga) -> Result<()> {
    let mut live = LIVE.write();
    let device = live.devices.get(&handle.addr());
    if device
        .ok_or(Error::Handle(handle.addr()))?
        .is_calling_back()
    {
        return Err(Error::Callback);
    }
    let device = live.devices.remove(&handle.addr());
    // A callback that is under way may call us.
    drop(live);
    if let Some(device) = device {
        device.end();
    }
    Ok(())
}

/// Copies a structure of the caller.
///
/// # Safety
/// `from` is NULL or points to a `T`.
pub(crate) unsafe fn input<T: Copy>(from: *const T, name: &'static str) -> Result<T> {
    if from.is_null() || !from.is_aligned() {
        return Err(Error::Pointer(name));
    }
    // SAFETY: not NULL and aligned as just checked, and a `T` is there as the caller promised.
    Ok(unsafe { from.read() })
}

/// Writes an output.
///
/// # Safety
/// `to` is NULL or valid for writing a `T`.
pub(crate) unsafe fn put<T>(to: *mut T, value: T, name: &'static str) -> Result<()> {
    writable(to, name)?;
    // SAFETY: not NULL and aligned as just checked, and valid for writing as the caller promised.
    unsafe { to.write(value) };
    Ok(())
}

/// That an output can be written, before anything is changed for it.
pub(crate) fn writable<T>(to: *mut T, name: &'static str) -> Result<()> {
    if to.is_null() || !to.is_aligned() {
        return Err(Error::Pointer(name));
    }
    Ok(())
}

/// The elements of an array of the caller: none where its length is 0.
///
/// # Safety
/// Where `count` is at most `most`, `from` is NULL or points to so many elements, which nobody changes while `'a` lasts.
pub(crate) unsafe fn slice<'a, T>(
    from: *const T,
    count: usize,
    most: usize,
    name: &'static str,
) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if count > most {
        return Err(Error::Count { name, count, most });
    }
    if from.is_null() || !from.is_aligned() {
        return Err(Error::Pointer(name));
    }
    // SAFETY: not NULL and aligned as just checked, and the elements are there, unchanged, as the caller promised.
    Ok(unsafe { std::slice::from_raw_parts(from, count) })
}

/// A string of the caller; `None` for NULL.
///
/// # Safety
/// `text` is NULL or a zero-terminated string.
pub(crate) unsafe fn string(text: *const c_char, name: &'static str) -> Result<Option<String>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: as promised by the caller.
    let text = unsafe { CStr::from_ptr(text) };
    match text.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(Error::Text(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic, reason = "that is what is tested")]
    fn a_panic_is_a_number() {
        assert_eq!(call("test", || panic!("on purpose")), -libc::ESRCH);
        assert_eq!(call("test", || Ok(())), 0);
        assert_eq!(call("test", || Err(Error::Pointer("x"))), -libc::EINVAL);
    }

    #[test]
    fn what_is_no_handle_is_not_read_through() {
        for handle in [ptr::null_mut(), ptr::without_provenance_mut(usize::MAX)] {
            assert_eq!(call_on(handle, "test", |_| Ok(())), -libc::EINVAL);
            assert!(give_back(handle).is_err());
        }
    }
}
