//! The guest kernel's virtio-gpu driver, through a render node.
//!
//! One open file is one virtio-gpu context: closing it (drop) destroys the context and everything in it. The kernel sends commands
//! without waiting, so a refused creation shows first in `mmap`, which waits for the host.

mod node;
mod uapi;

use std::collections::HashMap;
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use hostblob_capset as capset;
use hostblob_protocol::Status;
use hostblob_protocol::virtio_gpu::blob_flag;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

use super::{BlobSpec, Completion, RawBlob, Transport, TransportKind};
use crate::error::{Error, Result};
use crate::region::{Mapping, Region};
use uapi::Command;

/// Bytes asked of GET_CAPS: room for a capset four times as long as today's.
const CAPS_SIZE: usize = 4 * capset::ENCODED_SIZE;

/// A context on a render node.
#[derive(Debug)]
pub(crate) struct Drm {
    node: OwnedFd,
    capset_id: u32,
    timeout: Duration,
    /// Live GEM handles and how often we own each: importing what this file has already gives the same handle again.
    handles: Mutex<HashMap<u32, u32>>,
}

/// A [`Command`] as rustix sends one.
struct Control<'a, T>(&'a mut T);

// SAFETY: `Command` pairs the number with the type that the kernel reads and writes; it writes to the argument, hence MUTATING.
unsafe impl<T: Command> Ioctl for Control<'_, T> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        T::OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Sends an ioctl until it is not interrupted.
fn control<T: Command>(node: BorrowedFd<'_>, argument: &mut T) -> Result<(), Errno> {
    loop {
        // SAFETY: the argument is of the type that the kernel expects for its number (`Command`), it outlives the call, and
        // the addresses in it are of buffers that our callers keep alive across the call, with their true lengths.
        match unsafe { rustix::ioctl::ioctl(node, Control(argument)) } {
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other,
        }
    }
}

impl Drm {
    /// Opens a context on this node, or says why it is not one of ours.
    pub(crate) fn open(path: &Path, capset_id: u32, timeout: Duration) -> Result<Self> {
        let node = node::open(path, capset_id)?;
        node::init_context(node.as_fd(), capset_id)?;
        Ok(Self {
            node,
            capset_id,
            timeout,
            handles: Mutex::default(),
        })
    }

    /// Opens a context on the first node that is one of ours.
    pub(crate) fn open_any(capset_id: u32, timeout: Duration) -> Result<Self> {
        let mut reasons = Vec::new();
        for path in node::list()? {
            match Self::open(&path, capset_id, timeout) {
                Ok(drm) => return Ok(drm),
                Err(error) => {
                    log::debug!("{}: {error}", path.display());
                    reasons.push(error.to_string());
                }
            }
        }
        if reasons.is_empty() {
            reasons.push("there is no render node in /dev/dri".to_owned());
        }
        Err(Error::NoDevice(reasons.join("; ")))
    }

    /// The GEM handle of the dma-buf's blob, and its resource id.
    fn import(&self, fd: BorrowedFd<'_>, size: u64) -> Result<RawBlob, Errno> {
        let prime = uapi::PrimeHandle {
            fd: fd.as_raw_fd(),
            ..Default::default()
        };
        let mut prime = uapi::PrimeFromFd(prime);
        let mut handles = self.handles.lock();
        control(self.node.as_fd(), &mut prime)?;
        let handle = prime.0.handle;
        *handles.entry(handle).or_default() += 1;
        drop(handles);
        let mut blob = RawBlob {
            handle,
            resource_id: 0,
            size,
            window_offset: None,
        };
        let mut info = uapi::ResourceInfo {
            bo_handle: handle,
            ..Default::default()
        };
        control(self.node.as_fd(), &mut info).inspect_err(|_| self.destroy_blob(&blob))?;
        blob.resource_id = info.res_handle;
        Ok(blob)
    }

    fn call<T: Command>(&self, argument: &mut T) -> Result<()> {
        control(self.node.as_fd(), argument).map_err(|errno| failed(T::NAME, errno))
    }

    fn execute(&self, command: &[u8], flags: u32, ring: u8) -> Result<i32> {
        let mut execute = uapi::ExecBuffer {
            flags,
            size: u32::try_from(command.len()).map_err(|_| Error::invalid("command too long"))?,
            command: command.as_ptr().expose_provenance() as u64,
            fence_fd: -1,
            ring_idx: u32::from(ring),
            ..Default::default()
        };
        self.call(&mut execute)?;
        Ok(execute.fence_fd)
    }
}

/// The kernel's refusal in our terms.
fn failed(what: &str, errno: Errno) -> Error {
    match errno {
        Errno::NODEV | Errno::IO => Error::DeviceLost(format!("{what}: {errno}")),
        // drm_mm found no room for the blob in the window.
        Errno::NOSPC => Error::status_of(Status::WindowExhausted, what),
        Errno::NOMEM => Error::status_of(Status::OutOfHostMemory, what),
        _ => Error::io(what, errno),
    }
}

/// Why a dma-buf is no blob of ours. Never that the device is lost: ENODEV is what Linux says of the dma-bufs of other drivers.
fn not_imported(errno: Errno) -> Error {
    let what = "import of a dma-buf";
    match errno {
        Errno::NOMEM => failed(what, errno),
        _ => Error::io(what, errno),
    }
}

/// Time left until the deadline; `None` is for ever.
fn timespec_until(deadline: Option<Instant>) -> Option<Timespec> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Some(Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    })
}

impl Transport for Drm {
    fn kind(&self) -> TransportKind {
        TransportKind::Drm
    }

    fn read_capset(&self) -> Result<Vec<u8>> {
        node::read_capset(self.node.as_fd(), self.capset_id)
    }

    fn create_blob(&self, spec: &BlobSpec<'_>) -> Result<RawBlob> {
        let mut flags = 0;
        if spec.mappable {
            flags |= blob_flag::USE_MAPPABLE;
        }
        if spec.shareable {
            flags |= blob_flag::USE_SHAREABLE;
        }
        let mut create = uapi::CreateBlob {
            blob_mem: spec.blob_mem,
            blob_flags: flags,
            size: spec.size,
            cmd_size: u32::try_from(spec.command.len())
                .map_err(|_| Error::invalid("command too long"))?,
            cmd: if spec.command.is_empty() {
                0
            } else {
                spec.command.as_ptr().expose_provenance() as u64
            },
            blob_id: spec.blob_id,
            ..Default::default()
        };
        self.call(&mut create)?;
        self.handles.lock().insert(create.bo_handle, 1);
        Ok(RawBlob {
            handle: create.bo_handle,
            resource_id: create.res_handle,
            size: spec.size,
            window_offset: None,
        })
    }

    fn map_blob(&self, blob: &RawBlob) -> Result<Mapping> {
        let mut map = uapi::Map {
            handle: blob.handle,
            ..Default::default()
        };
        self.call(&mut map)?;
        match Region::map(self.node.as_fd(), map.offset, blob.size) {
            Ok(region) => Ok(Mapping::whole(region)),
            // The host refused RESOURCE_MAP_BLOB, or what came before it: this is all that the kernel says.
            Err(Errno::INVAL) => Err(Error::status_of(Status::NotMappable, "mmap of the blob")),
            Err(errno) => Err(failed("mmap of the blob", errno)),
        }
    }

    fn destroy_blob(&self, blob: &RawBlob) {
        let mut handles = self.handles.lock();
        if let Some(owned) = handles.get_mut(&blob.handle) {
            *owned -= 1;
            if *owned > 0 {
                return;
            }
        }
        handles.remove(&blob.handle);
        // Under the lock: an import must not be given this handle again before it is closed.
        let mut close = uapi::GemClose {
            handle: blob.handle,
            ..Default::default()
        };
        if let Err(error) = self.call(&mut close) {
            log::warn!("blob {}: {error}", blob.resource_id);
        }
    }

    fn destroys_later(&self) -> bool {
        true
    }

    fn submit(&self, command: &[u8]) -> Result<()> {
        self.execute(command, 0, 0).map(|_| ())
    }

    fn submit_fenced(&self, command: &[u8], ring: u8) -> Result<Completion> {
        let flags = uapi::EXECBUF_FENCE_FD_OUT | uapi::EXECBUF_RING_IDX;
        let fd = self.execute(command, flags, ring)?;
        if fd < 0 {
            return Err(Error::Incompatible("the kernel gave no fence".to_owned()));
        }
        // SAFETY: the kernel made this descriptor for us in the call above, and nobody else knows its number.
        Ok(Completion::SyncFile(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn wait(&self, completion: &Completion, deadline: Option<Instant>) -> Result<bool> {
        let Completion::SyncFile(fence) = completion else {
            return Err(Error::Internal(
                "a completion of another transport".to_owned(),
            ));
        };
        loop {
            let mut fds = [PollFd::new(fence, PollFlags::IN)];
            match rustix::event::poll(&mut fds, timespec_until(deadline).as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(failed("poll of a fence", errno)),
            }
        }
    }

    fn forget(&self, _: &Completion) {}

    fn pump(&self) -> Result<()> {
        Ok(())
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn export_dma_buf(&self, blob: &RawBlob) -> Result<OwnedFd> {
        let prime = uapi::PrimeHandle {
            handle: blob.handle,
            flags: uapi::PRIME_FLAGS,
            fd: -1,
        };
        let mut prime = uapi::PrimeToFd(prime);
        self.call(&mut prime)?;
        // SAFETY: the kernel made this descriptor for us in the call above, and nobody else knows its number.
        Ok(unsafe { OwnedFd::from_raw_fd(prime.0.fd) })
    }

    fn import_dma_buf(&self, fd: BorrowedFd<'_>) -> Result<RawBlob> {
        let size = rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0))
            .map_err(|errno| Error::io("size of the dma-buf", errno))?;
        self.import(fd, size).map_err(not_imported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dma_buf_of_another_driver_is_refused_and_the_device_is_not_lost() {
        for errno in [Errno::NODEV, Errno::IO, Errno::INVAL, Errno::NOSPC] {
            let error = not_imported(errno);
            assert_eq!(error, Error::io("import of a dma-buf", errno));
            assert_ne!(error.vk_result(), Status::DeviceLost.vk_result());
            assert_eq!(error.status(), None);
        }
        let short = not_imported(Errno::NOMEM);
        assert_eq!(short.status(), Some(Status::OutOfHostMemory));
    }
}
