//! How commands get to the device, and the window to the guest.
//!
//! | transport | carries |
//! |---|---|
//! | [`vfio_user`] | a whole PCI device, for QEMU and cloud-hypervisor |
//! | [`vhost_user`] | queues and the window, for crosvm and QEMU's generic device |
//! | [`local`] | commands over a socket, for programs on this host |
//!
//! A transport that has virtqueues needs of the device what [`Device`] says, wakes its thread with [`Wake`], and has its queues served by
//! `engine`, over [`crate::virtqueue`].

pub(crate) mod accept;
#[cfg(test)]
pub(crate) mod cut;
mod engine;
mod line;
#[cfg(test)]
pub(crate) mod lines;
pub mod local;
mod mappings;
pub mod snapshot;
mod threads;
pub mod vfio_user;
pub mod vhost_user;
mod wake;
mod window;

use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hostblob_capset::WindowMode;
use thiserror::Error;

use crate::gpu::{Gpu, GuestPages, Response, RestoreError, SaveError, WindowChange};
use crate::virtqueue::CommandHandler;

pub use wake::Wake;
use window::LateWindow;
pub use window::{MapperError, WindowMapper};

/// What a transport needs of a virtio device.
pub trait Device: CommandHandler + Send + 'static {
    /// Back to the state after creation.
    fn reset(&mut self);
    /// The device configuration space.
    fn config(&self) -> &[u8];
    /// A write to it.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// The feature bits that its commands serve.
    fn features(&self) -> u64;
    /// The file behind the host-visible window.
    fn window_fd(&self) -> BorrowedFd<'_>;
    /// Its size: a power of two.
    fn window_size(&self) -> u64;

    /// How the guest reaches the window, where a transport maps it late.
    fn window_mode(&self) -> WindowMode {
        WindowMode::Premapped
    }
    /// Whether this command makes the guest reach for the window. A transport that maps the whole window late does it before.
    fn needs_window(_command: &[u8]) -> bool {
        false
    }
    /// Whether this command names pages of the guest.
    fn needs_guest_pages(_command: &[u8]) -> bool {
        false
    }
    /// The guest's memory is `pages` from now on.
    fn guest_pages_changed(&mut self, _pages: &dyn GuestPages) {}
    /// The object of another device of the VM that a command imports. A transport that can find it lends it, and then has the command
    /// executed.
    fn wanted_object(&self, _command: &[u8]) -> Option<[u8; 16]> {
        None
    }
    /// A descriptor of what is wanted, for the next command alone.
    fn lend_object(&mut self, _uuid: [u8; 16], _descriptor: OwnedFd) {}
    /// UUIDs of blobs that other devices may ask for since the last call, and that they may not any more (`false`).
    fn shared_object_changes(&mut self) -> Vec<([u8; 16], bool)> {
        Vec::new()
    }
    /// A descriptor of a blob, for another device of the VM.
    fn shared_object(&mut self, _uuid: [u8; 16]) -> io::Result<Arc<OwnedFd>> {
        Err(io::ErrorKind::NotFound.into())
    }
    /// Whether the guest can reach the window from now on: without it, commands that need it are refused.
    fn set_window_mapped(&mut self, _mapped: bool) {}
    /// Whether the guest may still reach for the window without another command that needs it.
    fn window_in_use(&self) -> bool {
        true
    }
    /// Whether nothing of a guest is there, as after a reset.
    fn is_new(&self) -> bool {
        true
    }
    /// Writes its state. No command is under way, and no response waits in it.
    fn save(&mut self, _sink: &mut dyn Write) -> Result<(), SaveError> {
        Err(io::Error::from(io::ErrorKind::Unsupported).into())
    }
    /// Takes over a state that was saved. It is new, and if that fails it is so again.
    fn restore(&mut self, _source: &mut dyn Read) -> Result<(), RestoreError> {
        Err(RestoreError::Unsupported)
    }
    /// What the command that was just executed changes of what the guest reaches: none unless blobs are mapped one by one.
    fn window_change(&mut self) -> Option<WindowChange> {
        None
    }
    /// What this command maps could not be mapped, for this reason: it is taken back. The response instead; `None` where it comes
    /// out of [`CommandHandler::completed`].
    fn not_mapped(&mut self, _tag: u64, _command: &[u8], _reason: &str) -> Option<Response> {
        None
    }
}

impl Device for Gpu {
    fn reset(&mut self) {
        Gpu::reset(self);
    }

    fn config(&self) -> &[u8] {
        Gpu::config(self)
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        Gpu::write_config(self, offset, data);
    }

    fn features(&self) -> u64 {
        Gpu::features(self)
    }

    fn window_fd(&self) -> BorrowedFd<'_> {
        Gpu::window_fd(self)
    }

    fn window_size(&self) -> u64 {
        Gpu::window_size(self)
    }

    fn needs_window(command: &[u8]) -> bool {
        Gpu::needs_window(command)
    }

    fn needs_guest_pages(command: &[u8]) -> bool {
        Gpu::needs_guest_pages(command)
    }

    fn wanted_object(&self, command: &[u8]) -> Option<[u8; 16]> {
        Gpu::wanted_object(self, command)
    }

    fn lend_object(&mut self, uuid: [u8; 16], descriptor: OwnedFd) {
        Gpu::lend_object(self, uuid, descriptor);
    }

    fn shared_object_changes(&mut self) -> Vec<([u8; 16], bool)> {
        Gpu::shared_object_changes(self)
    }

    fn shared_object(&mut self, uuid: [u8; 16]) -> io::Result<Arc<OwnedFd>> {
        Gpu::shared_object(self, uuid).map_err(io::Error::other)
    }

    fn guest_pages_changed(&mut self, pages: &dyn GuestPages) {
        Gpu::guest_pages_changed(self, pages);
    }

    fn set_window_mapped(&mut self, mapped: bool) {
        Gpu::set_window_mapped(self, mapped);
    }

    fn window_in_use(&self) -> bool {
        Gpu::window_in_use(self)
    }

    fn is_new(&self) -> bool {
        Gpu::is_new(self)
    }

    fn save(&mut self, sink: &mut dyn Write) -> Result<(), SaveError> {
        Gpu::save(self, sink)
    }

    fn restore(&mut self, source: &mut dyn Read) -> Result<(), RestoreError> {
        Gpu::restore(self, source)
    }

    fn window_mode(&self) -> WindowMode {
        Gpu::window_mode(self)
    }

    fn window_change(&mut self) -> Option<WindowChange> {
        Gpu::window_change(self)
    }

    fn not_mapped(&mut self, tag: u64, command: &[u8], reason: &str) -> Option<Response> {
        Gpu::not_mapped(self, tag, command, reason)
    }
}

/// Why a transport cannot go on serving. What goes wrong with one connection only ends that connection.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The system refuses something that every connection needs.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

/// Why a socket cannot be listened on.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("{0}: another process is listening on this socket; end it or choose another path")]
    InUse(PathBuf),
    /// A file that is not a socket is there.
    #[error("{0}: exists and is not a socket; choose another path")]
    NotASocket(PathBuf),
    /// This user may not make it.
    #[error(
        "{0}: no permission to make a socket there; choose a folder of this user, as root too (docs/sandbox.md)"
    )]
    Denied(PathBuf),
    /// The system refuses.
    #[error("{path}: cannot listen there: {error}")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl SocketError {
    fn of(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied(path),
            _ => Self::Bind { path, error },
        }
    }
}

/// Listens on a Unix socket. What a killed daemon left behind is replaced; what is alive, or no socket, is not.
///
/// The path appears when connections are taken, never before: whoever starts a VMM may wait for it.
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let (listener, unpublished) = Unpublished::new(path)?;
    unpublished.publish()?;
    Ok(listener)
}

/// The path of a socket that listens, before it exists.
///
/// Between bind(2) and listen(2) a socket's path exists and connections are refused. So it is bound to another name of the folder, and linked to
/// its own when all that serves it is there.
#[derive(Debug)]
pub struct Unpublished {
    path: PathBuf,
    /// The other name.
    unready: PathBuf,
}

impl Unpublished {
    /// A socket that listens, for this path. What a killed daemon left there is taken away.
    pub fn new(path: &Path) -> Result<(UnixListener, Self), SocketError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        make_room(path)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let unready = path.with_file_name(format!(".{}-{number}", std::process::id()));
        // The other name may be the shorter one.
        let listener = std::os::unix::net::SocketAddr::from_pathname(path)
            .and_then(|_| UnixListener::bind(&unready));
        let listener = listener.map_err(|error| SocketError::of(path, error))?;
        let path = path.to_owned();
        Ok((listener, Self { path, unready }))
    }

    /// Makes the path exist, and returns it.
    pub fn publish(self) -> Result<PathBuf, SocketError> {
        match std::fs::hard_link(&self.unready, &self.path) {
            Ok(()) => Ok(self.path.clone()),
            // Another one was as quick.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(SocketError::InUse(self.path.clone()))
            }
            Err(error) => Err(SocketError::of(&self.path, error)),
        }
    }
}

/// Nothing is at the path, or it was a socket that nobody serves.
fn make_room(path: &Path) -> Result<(), SocketError> {
    let is_socket = match std::fs::symlink_metadata(path) {
        Ok(metadata) => std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()),
        // Not there, or not to be looked at: binding says why.
        Err(_) => return Ok(()),
    };
    if !is_socket {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
        _ => return Err(SocketError::InUse(path.to_owned())),
    }
    std::fs::remove_file(path).map_err(|error| SocketError::of(path, error))
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.unready);
    }
}

#[cfg(test)]
mod no_device;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else() {
        let path = std::env::temp_dir().join(format!("hostblob-listen-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        drop(listen(&path).unwrap());
        let live = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
        drop(live);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "data").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            listen(&path.join("x")),
            Err(SocketError::Bind { .. })
        ));
    }
}
