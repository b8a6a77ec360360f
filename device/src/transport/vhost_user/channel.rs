//! Our messages to the VMM (the backend channel): SHMEM_MAP and SHMEM_UNMAP, and SHARED_OBJECT_ADD, _REMOVE and _LOOKUP.
//!
//! The crate's client for this channel waits for ever. A VMM that has stopped its device does not read the channel (crosvm, while it sleeps), and a
//! broken one never answers; so here replies have a deadline, a late one is known for what it is, and the end of the connection ends the wait.

mod mapper;
mod requests;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vhost::vhost_user::message::BackendReq;

pub(super) use mapper::Mapper;
#[cfg(test)]
pub(super) use requests::REPLY_TIMEOUT;

/// Shared memory region of the window: `VIRTIO_GPU_SHM_ID_HOST_VISIBLE`.
pub(super) const WINDOW_REGION: u8 = 1;

/// How long after its answer a VMM may change the memory.
const CHANGE_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 200 });

/// Version 1.
const VERSION: u32 = 0x1;

/// What a request is for, and so what the VMM must have negotiated.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Window,
    Objects,
}

/// The channel as the message thread sees it.
#[derive(Debug, Default)]
pub(super) struct Channel {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    socket: Option<Arc<UnixStream>>,
    /// SHMEM and what it needs were negotiated.
    usable: bool,
    /// SHARED_OBJECT and what it needs were negotiated.
    sharing: bool,
    /// Changes of guest memory so far.
    changes: u64,
    /// No queue runs.
    stopped: bool,
}

impl Channel {
    /// The VMM gave a channel.
    pub(super) fn set_socket(&self, socket: UnixStream) {
        self.state.lock().socket = Some(Arc::new(socket));
    }

    /// Whether the VMM can map.
    pub(super) fn set_usable(&self, usable: bool) {
        self.state.lock().usable = usable;
    }

    /// Whether the VMM wants to hear of shared objects, and can be asked for those of others.
    pub(super) fn set_sharing(&self, sharing: bool) {
        self.state.lock().sharing = sharing;
    }

    /// Other devices of the VM may ask for a blob (SHARED_OBJECT_ADD), or no longer (SHARED_OBJECT_REMOVE). Nothing is answered.
    pub(super) fn announce(&self, uuid: [u8; 16], is_there: bool) {
        let state = self.state.lock();
        let Some(socket) = state.socket.as_ref().filter(|_| state.sharing) else {
            return;
        };
        let request = if is_there {
            BackendReq::SHARED_OBJECT_ADD
        } else {
            BackendReq::SHARED_OBJECT_REMOVE
        };
        if let Err(error) = send(socket, request, VERSION, &uuid, None) {
            log::warn!("the VMM is not told of a shared object: {error}");
            if error.kind() == io::ErrorKind::WriteZero {
                // Half a message is on its way.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// The socket, where the VMM may be asked for objects of other devices.
    fn socket_for_objects(&self) -> Option<Arc<UnixStream>> {
        let state = self.state.lock();
        state.socket.clone().filter(|_| state.sharing)
    }

    /// Ends it, and whoever waits on it.
    pub(super) fn close(&self) {
        let socket = self.state.lock().socket.take();
        self.changed.notify_all();
        if let Some(socket) = socket {
            // Fails when it has ended already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// The VMM has stopped the queues, or started one. When it returns, nothing is sent until one is started.
    pub(super) fn set_stopped(&self, stopped: bool) {
        self.state.lock().stopped = stopped;
        self.changed.notify_all();
    }

    /// The VMM has changed guest memory.
    pub(super) fn memory_changed(&self) {
        let mut state = self.state.lock();
        state.changes = state.changes.wrapping_add(1);
        self.changed.notify_all();
    }

    fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Waits for a change after the first `seen`; whether one came.
    fn wait_for_change(&self, seen: u64) -> bool {
        let mut state = self.state.lock();
        let same = |state: &mut State| state.changes == seen;
        let wait = self
            .changed
            .wait_while_for(&mut state, same, CHANGE_TIMEOUT);
        !wait.timed_out()
    }

    /// The socket, if there is one to be used. Waits while the queues are stopped: QEMU 11.1 ends when it handles a request then.
    fn with_socket<R>(&self, purpose: Purpose, f: impl FnOnce(&Arc<UnixStream>) -> R) -> Option<R> {
        let mut state = self.state.lock();
        let held = |state: &mut State| state.stopped && state.socket.is_some();
        self.changed.wait_while(&mut state, held);
        // Under the lock, so that nothing is sent once they are stopped.
        let may = match purpose {
            Purpose::Window => state.usable,
            Purpose::Objects => state.sharing,
        };
        state.socket.as_ref().filter(|_| may).map(f)
    }
}

/// Sends one message, whole.
fn send(
    socket: &UnixStream,
    request: BackendReq,
    flags: u32,
    body: &[u8],
    file: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::new();
    for word in [u32::from(request), flags, length] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message.extend_from_slice(body);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    // A VMM that does not read lets the socket fill up.
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(&message)], &mut control, flags)?;
    if sent == message.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

#[cfg(test)]
mod tests;
