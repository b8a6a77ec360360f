//! One connection: its threads, and their end.
//!
//! The crate's server accepts its connection itself and keeps the socket to itself, so that it cannot be shut down from outside. To end it
//! while it waits for a message, its thread is sent a real-time signal whose handler does nothing: the wait ends as interrupted. A signal
//! that comes while it does something else is lost, so it is sent again until the thread is gone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use vfio_user::Server;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::backend::Backend;
use super::engine::Engine;
use super::layout;
use crate::shutdown::Shutdown;
use crate::transport::snapshot::{Saves, Snapshots};
use crate::transport::{Device, TransportError, Wake};

/// Between two signals to a thread that is to end.
const SIGNAL_AGAIN: Duration = Duration::from_millis(5);
/// How long a thread may take to end. It does not when the VMM has sent half a message or reads no replies: it is left alone then, as
/// the process is about to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves the connection that waits at `listener` until it ends or the daemon does.
pub(super) fn run<D: Device>(
    listener: &UnixListener,
    device: D,
    wake: Arc<Wake>,
    shutdown: &Shutdown,
    snapshots: &Snapshots,
) -> Result<(), TransportError> {
    let system = |what| move |error| TransportError::System(what, error);
    prepare_signal().map_err(system("signal handler"))?;
    let window = device
        .window_fd()
        .try_clone_to_owned()
        .map_err(system("the window's file"))?;
    let listener = listener
        .try_clone()
        .map_err(system("the listening socket"))?;
    let server = Server::from_owned_fd(
        OwnedFd::from(listener),
        true,
        layout::interrupts(),
        layout::regions(window.as_raw_fd(), device.window_size()),
    );
    let engine = Arc::new(Engine::new(device, wake));
    let mut backend = Backend::new(Arc::clone(&engine), window);
    if let Some(held) = snapshots.take_held()
        && let Err(error) = engine.install(held)
    {
        log::error!("what the restored queues held is lost: {error}");
    }
    let _registered = snapshots.register(Arc::clone(&engine) as Arc<dyn Saves>);
    let ended = Ended::new().map_err(system("eventfd"))?;

    let queues = ended.spawn("hostblob-queues", {
        let engine = Arc::clone(&engine);
        move || engine.run()
    });
    let queues = queues.map_err(system("a thread for the queues"))?;
    let messages = ended.spawn("hostblob-vfio", move || match server.run(&mut backend) {
        Ok(()) => log::info!("the VMM disconnected"),
        // Also what the signal makes of its wait.
        Err(error) => log::info!("the connection to the VMM ended: {error}"),
    });
    let messages = match messages {
        Ok(messages) => messages,
        Err(error) => {
            engine.stop();
            let _ = queues.join();
            return Err(TransportError::System("a thread for messages", error));
        }
    };
    ended.wait(shutdown);
    engine.stop();
    end_messages(messages);
    if queues.join().is_err() {
        log::error!("the queue thread panicked; the device starts anew");
    }
    Ok(())
}

fn end_messages(thread: JoinHandle<()>) {
    let start = Instant::now();
    while !thread.is_finished() {
        if start.elapsed() > PATIENCE {
            log::warn!("the VMM is in the middle of a message: its connection is abandoned");
            return;
        }
        // The handle is not joined, so its thread exists, finished or not.
        let _ = thread.kill(SIGRTMIN());
        std::thread::sleep(SIGNAL_AGAIN);
    }
    if thread.join().is_err() {
        log::error!("the message thread panicked; the device starts anew");
    }
}

/// Makes [`SIGRTMIN`] interrupt system calls, and do nothing else. Once for the process.
fn prepare_signal() -> io::Result<()> {
    extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static PREPARED: OnceLock<Result<(), vmm_sys_util::errno::Error>> = OnceLock::new();
    let prepared = PREPARED.get_or_init(|| register_signal_handler(SIGRTMIN(), interrupt));
    prepared.map_err(Into::into)
}

/// Becomes readable when one of the threads ends, by a panic too.
pub(in crate::transport) struct Ended(Arc<OwnedFd>);

struct Guard(Arc<OwnedFd>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

impl Ended {
    pub(in crate::transport) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(rustix::event::eventfd(0, flags)?)))
    }

    pub(in crate::transport) fn spawn(
        &self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let guard = Guard(Arc::clone(&self.0));
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let _guard = guard;
                work();
            })
    }

    /// Waits for a thread's end or the daemon's.
    pub(in crate::transport) fn wait(&self, shutdown: &Shutdown) {
        let (ended, shutdown) = (self.0.as_fd(), shutdown.as_fd());
        loop {
            let mut poll = [ended, shutdown].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            // Interrupted: again.
            if rustix::event::poll(&mut poll, None).is_ok_and(|ready| ready > 0) {
                return;
            }
        }
    }
}
