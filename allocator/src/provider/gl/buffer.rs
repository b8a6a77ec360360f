//! Buffer objects: over a range of a file, and of the device's own memory.
//!
//! GL_AMD_pinned_memory makes a buffer object whose store *is* the caller's pages. It promises that the GPU's accesses and
//! the CPU's are to the same bytes, and leaves the order to the application: what the CPU wrote before a command was
//! given the command sees, and what commands wrote the CPU sees behind a fence (`commands` does both). The pages must stay
//! mapped until the buffer is deleted, and are pinned for so long; so each attachment is one buffer of exactly its own
//! range, as with Vulkan's imports.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::context::Gl;
use super::error::PIN;
use super::persistent::Exposed;
use crate::provider::mapping::SharedFile;
use crate::provider::{Elsewhere, ProviderError};

/// `GL_EXTERNAL_VIRTUAL_MEMORY_BUFFER_AMD`.
const EXTERNAL_VIRTUAL_MEMORY: u32 = 0x9160;

/// The largest buffer: 2 GiB less a page, or what GL calls it by, `GLsizeiptr`, where that is less.
///
/// GL has no query for it. Mesa refuses 4 GiB (GL_INVALID_OPERATION) and carries the offsets and lengths of
/// copies as signed 32-bit numbers inside: more than this could reach bytes outside the buffer.
pub(super) fn largest() -> u64 {
    let page = rustix::param::page_size() as u64;
    (i32::MAX as u64 + 1 - page).min(isize::MAX as u64)
}

/// The name of a buffer object.
pub(super) struct Name {
    raw: u32,
    gl: Rc<Gl>,
}

impl Name {
    /// A new name; with `create` the object as well, without it the first binding makes that.
    pub(super) fn new(gl: &Rc<Gl>, create: bool) -> Result<Self, ProviderError> {
        let mut name = Self {
            raw: 0,
            gl: Rc::clone(gl),
        };
        let raw = &raw mut name.raw;
        gl.call("glGenBuffers", |gl| {
            let make = if create {
                gl.create_buffers
            } else {
                gl.gen_buffers
            };
            // SAFETY: room for the one name that is asked for, in a live local.
            unsafe { make(1, raw) };
        })?;
        Ok(name)
    }

    pub(super) fn raw(&self) -> u32 {
        self.raw
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // Deleting the name 0, where `new` failed, is ignored by GL. An error here leaves nothing to do.
        // SAFETY: one name, of this context and deleted once. No command that uses it is under way: the desk hands what
        // was released to the answers that wait for its last work.
        let _ = self.gl.undo("glDeleteBuffers", |gl| unsafe {
            (gl.delete_buffers)(1, &raw const self.raw);
        });
    }
}

/// A range of a file.
pub(super) struct Place {
    file: Arc<SharedFile>,
    offset: u64,
}

/// What an attachment is.
pub(super) struct GlBytes(Store);

/// Fields are dropped in their order: the buffer before its pages.
enum Store {
    /// Pages of a file, which stay mapped.
    Pinned { name: Name, place: Place },
    /// Device-local memory.
    Own { name: Name, charge: Charge },
    /// A buffer with an address.
    Persistent(Exposed),
}

impl GlBytes {
    pub(super) fn raw(&self) -> u32 {
        match &self.0 {
            Store::Pinned { name, .. } | Store::Own { name, .. } => name.raw,
            Store::Persistent(exposed) => exposed.raw(),
        }
    }

    /// Where in the buffer the attachment begins.
    pub(super) fn start(&self) -> u64 {
        match &self.0 {
            Store::Pinned { .. } | Store::Own { .. } => 0,
            Store::Persistent(exposed) => exposed.skip(),
        }
    }

    /// Which file, by a number of its own, and where in it an offset within the attachment is.
    pub(super) fn in_file(&self, offset: u64) -> Option<(usize, u64)> {
        match &self.0 {
            Store::Pinned { place, .. } => {
                Some((Arc::as_ptr(&place.file).addr(), place.offset + offset))
            }
            Store::Own { .. } | Store::Persistent(_) => None,
        }
    }

    /// A buffer with an address.
    pub(super) fn persistent(exposed: Exposed) -> Self {
        Self(Store::Persistent(exposed))
    }

    /// Where the CPU finds the attachment of `length` bytes.
    pub(super) fn address(&self, length: u64) -> Result<Elsewhere, ProviderError> {
        match &self.0 {
            Store::Persistent(exposed) => Ok(exposed.address(length)),
            _ => Err(ProviderError::Invalid(
                "memory without an address".to_owned(),
            )),
        }
    }

    /// Pins a range of a file.
    pub(super) fn pin(
        gl: &Rc<Gl>,
        file: &Arc<SharedFile>,
        offset: u64,
        length: u64,
    ) -> Result<Self, ProviderError> {
        let size = size(length)?;
        let pointer = file.mapping().range(offset, length)?.as_ptr();
        let page = rustix::param::page_size();
        if !pointer.addr().is_multiple_of(page) || !length.is_multiple_of(page as u64) {
            return Err(ProviderError::Invalid(format!(
                "{length} bytes at {offset} are not aligned to {page}"
            )));
        }
        let name = Name::new(gl, false)?;
        gl.call(PIN, |gl| {
            // SAFETY: a target of GL_AMD_pinned_memory, which the callers checked is offered, and a name of this context.
            unsafe { (gl.bind_buffer)(EXTERNAL_VIRTUAL_MEMORY, name.raw) };
            // SAFETY: `range` checked that `length` bytes from `pointer` on are inside the mapping of `file`, which the
            // result keeps until after the buffer is deleted (field order).
            unsafe {
                (gl.buffer_data)(EXTERNAL_VIRTUAL_MEMORY, size, pointer, glow::STREAM_COPY);
            }
            // SAFETY: binds nothing, so that no later call reaches the buffer by the target.
            unsafe { (gl.bind_buffer)(EXTERNAL_VIRTUAL_MEMORY, 0) };
        })?;
        let file = Arc::clone(file);
        Ok(Self(Store::Pinned {
            name,
            place: Place { file, offset },
        }))
    }

    /// Allocates device memory of at least `length` bytes, whose size is a multiple of 4; its contents are undefined.
    pub(super) fn allocate(budget: &Rc<Budget>, length: u64) -> Result<Self, ProviderError> {
        let charge = budget.charge(length)?;
        let size = size(charge.bytes)?;
        let name = Name::new(&budget.gl, true)?;
        budget.gl.call("glNamedBufferStorage", |gl| {
            // SAFETY: an object of this context without a store; no data, and no flags: the CPU never reaches it.
            unsafe { (gl.named_buffer_storage)(name.raw, size, std::ptr::null(), 0) };
        })?;
        Ok(Self(Store::Own { name, charge }))
    }

    /// Bytes of device-local memory, a multiple of 4; 0 for others.
    pub(super) fn own_size(&self) -> u64 {
        match &self.0 {
            Store::Own { charge, .. } => charge.bytes,
            Store::Pinned { .. } | Store::Persistent(_) => 0,
        }
    }
}

/// A size or an offset as GL takes it; checked against the largest buffer before any driver sees it.
pub(super) fn size(bytes: u64) -> Result<isize, ProviderError> {
    isize::try_from(bytes)
        .ok()
        .filter(|_| bytes <= largest())
        .ok_or_else(|| {
            ProviderError::Invalid(format!(
                "{bytes} bytes are more than the largest buffer of {}",
                largest()
            ))
        })
}

/// How much device memory is live: drivers grant what the machine does not have.
pub(super) struct Budget {
    pub(super) gl: Rc<Gl>,
    limit: u64,
    live: Cell<u64>,
}

impl Budget {
    pub(super) fn new(gl: &Rc<Gl>, limit: u64) -> Rc<Self> {
        Rc::new(Self {
            gl: Rc::clone(gl),
            limit,
            live: Cell::new(0),
        })
    }

    pub(super) fn charge(self: &Rc<Self>, length: u64) -> Result<Charge, ProviderError> {
        let live = self.live.get();
        let left = self.limit.saturating_sub(live);
        let bytes = length
            .checked_next_multiple_of(4)
            .filter(|bytes| *bytes <= left)
            .ok_or_else(|| {
                ProviderError::OutOfDeviceMemory(format!("{length} bytes asked, {left} left"))
            })?;
        self.live.set(live + bytes);
        Ok(Charge {
            bytes,
            budget: Rc::clone(self),
        })
    }
}

/// A part of a budget, given back when dropped.
pub(super) struct Charge {
    pub(super) bytes: u64,
    budget: Rc<Budget>,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let live = &self.budget.live;
        live.set(live.get().saturating_sub(self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_driver_sees_a_size_that_it_could_take_for_a_negative_one() {
        let largest = largest();
        assert!(i32::try_from(largest).is_ok());
        assert_eq!(size(largest), Ok(isize::try_from(largest).unwrap()));
        for bytes in [largest + 1, 1 << 32, 1 << 63, u64::MAX] {
            assert!(matches!(size(bytes), Err(ProviderError::Invalid(_))));
        }
    }
}
