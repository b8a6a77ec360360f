//! Pointers, sizes and panics of the boundary: all that is dangerous about C callers, in one file.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use hostblob_protocol::Status;
use zerocopy::{Immutable, IntoBytes};

use super::status::{self, hb_status};
use crate::error::{Error, Result};

thread_local! {
    pub(super) static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Largest structure that a caller of any version can mean; a larger size is nonsense, not a newer version.
const MOST_BYTES: usize = 64 << 10;

/// Runs a call: its error becomes a number and a text, its panic too.
pub(super) fn call(body: impl FnOnce() -> Result<()>) -> hb_status {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return hb_status::HB_OK,
        Ok(Err(error)) => error,
        Err(_) => Error::Internal("panic; its message is on stderr".to_owned()),
    };
    let text = status::text(&error.to_string());
    // A thread that is ending has no place for the text any more.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = text);
    hb_status::of(&error)
}

/// Which kind of handle a pointer is.
pub(super) trait Kind {
    const TAG: u64;
    const NAME: &'static str;
    /// The opaque C type.
    type Opaque;
}

/// What a handle points to.
#[repr(C)]
struct Tagged<T> {
    tag: AtomicU64,
    value: T,
}

/// A new handle for `value`, owned by the caller until [`give_back`].
pub(super) fn hand_out<T: Kind>(value: T) -> *mut T::Opaque {
    Box::into_raw(Box::new(Tagged {
        tag: AtomicU64::new(T::TAG),
        value,
    }))
    .cast()
}

fn check<T: Kind>(handle: *const T::Opaque) -> Result<*const Tagged<T>> {
    let tagged: *const Tagged<T> = handle.cast();
    if tagged.is_null() || !tagged.is_aligned() {
        return Err(Error::invalid(format!("{} handle {handle:p}", T::NAME)));
    }
    // SAFETY: a handle comes from `hand_out` of some kind and has not been given back (the C API's contract): each kind begins with
    // its tag, and a pointer to that much is valid.
    let tag = unsafe { &*tagged.cast::<AtomicU64>() };
    if tag.load(Ordering::Relaxed) != T::TAG {
        return Err(Error::invalid(format!(
            "{handle:p} is not a {} handle",
            T::NAME
        )));
    }
    Ok(tagged)
}

/// What the handle stands for.
///
/// # Safety
/// `handle` is NULL, or came from [`hand_out`] and lives, unchanged by C, until `'a` ends.
pub(super) unsafe fn get<'a, T: Kind + 'a>(handle: *const T::Opaque) -> Result<&'a T> {
    let tagged = check::<T>(handle)?;
    // SAFETY: the tag says that `hand_out` made it for a `T`, and the caller that it lives; it is only ever shared.
    Ok(unsafe { &(*tagged).value })
}

/// Ends the handle. NULL is fine.
///
/// # Safety
/// As [`get`], and nobody uses the handle during or after this call.
pub(super) unsafe fn give_back<T: Kind>(handle: *mut T::Opaque) -> Result<()> {
    if handle.is_null() {
        return Ok(());
    }
    let tagged = check::<T>(handle)?.cast_mut();
    // SAFETY: the tag says that `hand_out` boxed it as this type; the caller gives up the last use.
    let owned = unsafe { Box::from_raw(tagged) };
    owned.tag.store(0, Ordering::Relaxed);
    drop(owned);
    Ok(())
}

/// Writes an output.
///
/// # Safety
/// `to` is NULL or valid for writing a `T`.
pub(super) unsafe fn put<T>(to: *mut T, value: T, name: &str) -> Result<()> {
    if to.is_null() || !to.is_aligned() {
        return Err(Error::invalid(format!("{name} is {to:p}")));
    }
    // SAFETY: not NULL and aligned as just checked, and valid for writing as the caller promised. Not read or dropped before: it may
    // be uninitialised.
    unsafe { to.write(value) };
    Ok(())
}

/// Copies bytes of the caller.
///
/// # Safety
/// `from` is NULL or points to `N` bytes.
pub(super) unsafe fn bytes<const N: usize>(from: *const u8, name: &str) -> Result<[u8; N]> {
    if from.is_null() {
        return Err(Error::invalid(format!("{name} is {from:p}")));
    }
    // SAFETY: not NULL, and so many bytes are there as the caller promised; an array of bytes needs no alignment.
    Ok(unsafe { from.cast::<[u8; N]>().read() })
}

/// A string of the caller; `None` for NULL.
///
/// # Safety
/// `text` is NULL or a zero-terminated string that lives, unchanged, until `'a` ends.
pub(super) unsafe fn string<'a>(text: *const c_char, name: &str) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: as promised by the caller.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map(Some)
        .map_err(|_| Error::invalid(format!("{name} is not UTF-8")))
}

/// The size that a structure of the caller begins with.
///
/// # Safety
/// `structure` is NULL or points to a structure that begins with its size as `usize`.
unsafe fn announced<T>(structure: *const T, least: usize, name: &str) -> Result<usize> {
    if structure.is_null() || !structure.is_aligned() {
        return Err(Error::invalid(format!("{name} is {structure:p}")));
    }
    // SAFETY: not NULL, aligned, and begins with a `usize` as promised by the caller.
    let size = unsafe { structure.cast::<usize>().read() };
    if size < least || size > MOST_BYTES {
        return Err(Error::invalid(format!(
            "{name}.size is {size}, at least {least} is needed"
        )));
    }
    Ok(size)
}

/// A structure that C hands in.
///
/// # Safety
/// `repr(C)`, begins with its size as `usize`, and any bytes are a value of it (numbers and raw pointers).
pub(super) unsafe trait Input: Copy {
    /// Its size in its first version.
    const LEAST: usize;
    const NAME: &'static str;
}

/// Copies a size-prefixed input. What the caller's version lacks is zeros; what it has more than ours must be zeros.
///
/// # Safety
/// `structure` is NULL or points to as many bytes as its first `usize` says.
pub(super) unsafe fn input<T: Input>(structure: *const T) -> Result<T> {
    // SAFETY: as promised by the caller; an `Input` begins with its size.
    let size = unsafe { announced(structure, T::LEAST, T::NAME) }?;
    // SAFETY: not NULL (checked by `announced`), and so many bytes are there as promised by the caller; nobody writes to
    // them during the call. C zero-initialises or sets every field, and our structures have no padding.
    let bytes = unsafe { std::slice::from_raw_parts(structure.cast::<u8>(), size) };
    let (known, unknown) = bytes
        .split_at_checked(size_of::<T>())
        .unwrap_or((bytes, &[]));
    if unknown.iter().any(|&byte| byte != 0) {
        let what = format!("{}: fields newer than this library", T::NAME);
        return Err(Error::status_of(Status::UnsupportedVersion, what));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` is at most as long as `T`, and the two are different memory.
    unsafe {
        std::ptr::copy_nonoverlapping(known.as_ptr(), value.as_mut_ptr().cast(), known.len())
    };
    // SAFETY: every byte is set, to zero or the caller's, and any bytes are a value of an `Input`.
    Ok(unsafe { value.assume_init() })
}

/// Copies as much of `value` into a size-prefixed output as the caller has room for, after the size, which becomes what was written.
///
/// # Safety
/// `structure` is NULL or points to as many writable bytes as its first `usize` says.
pub(super) unsafe fn output<T>(structure: *mut T, value: &T, name: &str) -> Result<()>
where
    T: IntoBytes + Immutable,
{
    // SAFETY: as promised by the caller.
    let size = unsafe { announced(structure.cast_const(), size_of::<usize>(), name) }?;
    let length = size.min(size_of::<T>());
    let bytes = value.as_bytes();
    // SAFETY: `length` bytes are readable in `value` and writable at `structure`, as promised by the caller; C's structure and our
    // `value` are different memory.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), structure.cast::<u8>(), length) };
    // SAFETY: not NULL and aligned (checked by `announced`), and begins with a `usize`.
    unsafe { structure.cast::<usize>().write(length) };
    Ok(())
}
