//! Persistent mapped buffers (GL_ARB_buffer_storage): device memory with an address, for a VMM in this process.
//!
//! Where the driver has no pinned memory its own pages are the only ones that the GPU and the CPU share. They are mapped as long as the
//! buffer lives. A VMM may have given the address to its guest, so a buffer lives until the provider's session and everybody who
//! holds the address have let go of it; but GL objects belong to one thread. So the last one sends the buffer's name back there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::buffer::{Budget, Charge, GlBytes, Name, size};
use super::context::Gl;
use crate::provider::{Elsewhere, HostAddress, ProviderError};

/// Memory that the CPU reads and writes while the GPU uses it, preferably the CPU's own.
const STORAGE: u32 = ACCESS | glow::CLIENT_STORAGE_BIT;
/// Both see what the other wrote, in the order that fences say.
const ACCESS: u32 =
    glow::MAP_READ_BIT | glow::MAP_WRITE_BIT | glow::MAP_PERSISTENT_BIT | glow::MAP_COHERENT_BIT;

/// All persistent mapped buffers of a context.
pub(super) struct Persistent {
    buffers: RefCell<HashMap<u32, (Name, Charge)>>,
    budget: Rc<Budget>,
    let_go: Sender<u32>,
    gone: Receiver<u32>,
}

impl Persistent {
    pub(super) fn new(budget: &Rc<Budget>) -> Self {
        let (let_go, gone) = crossbeam_channel::unbounded();
        Self {
            buffers: RefCell::default(),
            budget: Rc::clone(budget),
            let_go,
            gone,
        }
    }

    /// What has something to read when [`Persistent::collect`] has something to do.
    pub(super) fn gone(&self) -> &Receiver<u32> {
        &self.gone
    }

    /// Deletes the buffers that nobody has any more.
    pub(super) fn collect(&self) {
        for name in self.gone.try_iter() {
            self.delete(name);
        }
    }

    /// Deletes a buffer that nobody has any more.
    pub(super) fn delete(&self, name: u32) {
        // Deleting unmaps it.
        drop(self.buffers.borrow_mut().remove(&name));
    }

    /// Whether somebody still has an address, or a session a buffer.
    pub(super) fn is_in_use(&self) -> bool {
        !self.buffers.borrow().is_empty()
    }

    /// A mapped buffer of `length` bytes, whole pages; its contents are undefined.
    pub(super) fn allocate(&self, length: u64) -> Result<GlBytes, ProviderError> {
        let gl = &self.budget.gl;
        let page = rustix::param::page_size();
        // Drivers promise 64 bytes (GL_MIN_MAP_BUFFER_ALIGNMENT), a guest maps pages.
        let room = length.saturating_add(page as u64);
        let charge = self.budget.charge(room)?;
        let bytes = size(charge.bytes)?;
        let name = Name::new(gl, true)?;
        gl.call("glNamedBufferStorage", |gl| {
            // SAFETY: an object of this context without a store, and no data.
            unsafe { (gl.named_buffer_storage)(name.raw(), bytes, std::ptr::null(), STORAGE) };
        })?;
        let start = map(gl, &name, bytes)?;
        let skip = start.addr().get().wrapping_neg() % page;
        // SAFETY: less than a page, of which the buffer has one more than is asked for.
        let base = unsafe { start.byte_add(skip) };
        let raw = name.raw();
        self.buffers.borrow_mut().insert(raw, (name, charge));
        Ok(GlBytes::persistent(Exposed {
            base,
            skip: skip as u64,
            buffer: Arc::new(Buffer {
                raw,
                let_go: self.let_go.clone(),
            }),
        }))
    }
}

fn map(gl: &Rc<Gl>, name: &Name, bytes: isize) -> Result<NonNull<c_void>, ProviderError> {
    let mut start = std::ptr::null_mut();
    gl.call("glMapNamedBufferRange", |gl| {
        // SAFETY: all of the buffer's store, with no other access than it was made for.
        start = unsafe { (gl.map_named_buffer_range)(name.raw(), 0, bytes, ACCESS) };
    })?;
    NonNull::new(start)
        .ok_or_else(|| ProviderError::Driver("glMapNamedBufferRange gave no address".to_owned()))
}

/// A buffer, somewhere. The last one to drop it has it deleted.
struct Buffer {
    raw: u32,
    let_go: Sender<u32>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Where the context is gone, the buffer is too.
        let _ = self.let_go.send(self.raw);
    }
}

/// A mapped buffer.
pub(super) struct Exposed {
    base: NonNull<c_void>,
    /// Where the first whole page is.
    skip: u64,
    buffer: Arc<Buffer>,
}

impl Exposed {
    pub(super) fn raw(&self) -> u32 {
        self.buffer.raw
    }

    pub(super) fn skip(&self) -> u64 {
        self.skip
    }

    /// Its first `length` bytes.
    pub(super) fn address(&self, length: u64) -> Elsewhere {
        let owner = Arc::clone(&self.buffer);
        Elsewhere::Address(HostAddress::new(self.base, length, owner))
    }
}
