//! The local socket: the same device without a VM (framing: [`hostblob_protocol::local`]).
//!
//! Each connection is a guest of its own on a thread of its own, with its own window. A client that breaks the framing, stops
//! reading or goes away loses its connection and all that it held, and nobody else notices.

mod client;
mod offsets;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use hostblob_allocator::Host;
use rustix::event::{PollFd, PollFlags};

use crate::shutdown::Shutdown;

/// Connections at a time: each has a window, two threads and a few descriptors.
pub const MAX_CLIENTS: usize = 64;

/// Serves `listener` on a thread of its own until `shutdown`. Joining the thread waits for all connections to end.
pub fn spawn(
    listener: UnixListener,
    host: Arc<Host>,
    capset_id: u32,
    shutdown: Shutdown,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("hostblob-local".into())
        .spawn(move || {
            if let Err(error) = accept_all(&listener, &host, capset_id, &shutdown) {
                log::error!("local socket: no more connections are accepted: {error}");
            }
        })
}

fn accept_all(
    listener: &UnixListener,
    host: &Arc<Host>,
    capset_id: u32,
    shutdown: &Shutdown,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let live = Arc::new(AtomicUsize::new(0));
    let mut clients: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let mut poll = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(shutdown, PollFlags::IN),
        ];
        match rustix::event::poll(&mut poll, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if shutdown.is_requested() {
            break;
        }
        match listener.accept() {
            Ok((stream, _)) => {
                clients.retain(|client| !client.is_finished());
                if live.load(Ordering::Relaxed) >= MAX_CLIENTS {
                    log::warn!(
                        "local socket: {MAX_CLIENTS} clients are connected, one more was refused"
                    );
                    continue;
                }
                clients.extend(spawn_client(stream, host, capset_id, shutdown, &live));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Out of descriptors or memory: a pause, so that the loop does not spin, and clients can end.
                log::warn!("local socket: a connection could not be accepted: {error}");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
    for client in clients {
        let _ = client.join();
    }
    Ok(())
}

fn spawn_client(
    stream: UnixStream,
    host: &Arc<Host>,
    capset_id: u32,
    shutdown: &Shutdown,
    live: &Arc<AtomicUsize>,
) -> Option<JoinHandle<()>> {
    let (host, shutdown, counter) = (Arc::clone(host), shutdown.clone(), Arc::clone(live));
    live.fetch_add(1, Ordering::Relaxed);
    let thread = std::thread::Builder::new()
        .name("hostblob-client".into())
        .spawn(move || {
            match client::serve(stream, &host, capset_id, &shutdown) {
                Ok(()) => log::debug!("local socket: client left"),
                Err(error) => log::warn!("local socket: client ended: {error}"),
            }
            counter.fetch_sub(1, Ordering::Relaxed);
        });
    match thread {
        Ok(thread) => Some(thread),
        Err(error) => {
            live.fetch_sub(1, Ordering::Relaxed);
            log::warn!("local socket: no thread for a client: {error}");
            None
        }
    }
}
