//! The C functions: `rutabaga_gfx_ffi.h` is generated from these files and `types.rs`.

pub mod context;
pub mod device;
pub mod resource;

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use libc::iovec;

use crate::boundary;
use crate::error::{Error, Result};
use crate::types::{rutabaga_handle, rutabaga_iovecs};

/// Most ranges of guest memory in one call: as many as hostblobd takes.
const MOST_IOVECS: usize = 1 << 18;

/// The ranges of guest memory that are not empty; `None` for NULL.
///
/// # Safety
/// `iovecs` is NULL, or points to a structure whose array is as long as it says.
unsafe fn pages(iovecs: *const rutabaga_iovecs) -> Result<Option<Vec<iovec>>> {
    if iovecs.is_null() {
        return Ok(None);
    }
    // SAFETY: as promised by the caller.
    let list = unsafe { boundary::input(iovecs, "iovecs") }?;
    // SAFETY: as promised by the caller; the array is only read here.
    let list = unsafe {
        boundary::slice(
            list.iovecs.cast_const(),
            list.num_iovecs,
            MOST_IOVECS,
            "iovecs->iovecs",
        )
    }?;
    let mut pages = Vec::with_capacity(list.len());
    for range in list.iter().filter(|range| range.iov_len != 0) {
        check_range(range)?;
        pages.push(*range);
    }
    Ok(Some(pages))
}

/// That a range is one of addresses that a process can have.
fn check_range(range: &iovec) -> Result<()> {
    let end = range.iov_base.addr().checked_add(range.iov_len);
    if range.iov_base.is_null() || end.is_none() || isize::try_from(range.iov_len).is_err() {
        return Err(Error::Field {
            field: "iov_base",
            value: range.iov_base.addr() as u64,
            expected: "the address of iov_len bytes",
        });
    }
    Ok(())
}

/// Takes over a descriptor of the caller.
///
/// # Safety
/// The descriptor, if it is open, is the caller's to give away.
unsafe fn take_descriptor(handle: rutabaga_handle) -> Result<(OwnedFd, u32)> {
    let bad = || Error::Field {
        field: "os_handle",
        value: handle.os_handle.cast_unsigned(),
        expected: "an open descriptor",
    };
    let number = i32::try_from(handle.os_handle).map_err(|_| bad())?;
    if number < 0 {
        return Err(bad());
    }
    // SAFETY: a number of the right range; whether it is open is what is asked.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(borrowed).map_err(|_| bad())?;
    // SAFETY: it is open, and the caller gives it away.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    Ok((owned, handle.handle_type))
}
