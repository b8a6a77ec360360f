//! Connections to a socket, each served on a thread of its own.

use std::fmt::Display;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use crate::shutdown::Shutdown;

/// A socket and what its connections are called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Service {
    /// In the log.
    pub(crate) name: &'static str,
    /// Of the thread that accepts.
    pub(crate) thread: &'static str,
    /// Of the threads that serve.
    pub(crate) client_thread: &'static str,
    /// Connections at a time.
    pub(crate) most: usize,
}

/// What is done with each connection.
pub(crate) type Serve<E> = Arc<dyn Fn(UnixStream) -> Result<(), E> + Send + Sync>;

impl Service {
    /// Serves `listener` on a thread of its own until `shutdown`, which `serve` also heeds. Joining the thread waits for all
    /// connections to end.
    pub(crate) fn spawn<E: Display + 'static>(
        self,
        listener: UnixListener,
        shutdown: Shutdown,
        serve: Serve<E>,
    ) -> io::Result<JoinHandle<()>> {
        Builder::new().name(self.thread.into()).spawn(move || {
            if let Err(error) = self.accept_all(&listener, &shutdown, &serve) {
                log::error!("{}: no more connections are accepted: {error}", self.name);
            }
        })
    }

    fn accept_all<E: Display + 'static>(
        self,
        listener: &UnixListener,
        shutdown: &Shutdown,
        serve: &Serve<E>,
    ) -> io::Result<()> {
        listener.set_nonblocking(true)?;
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
                    if clients.len() >= self.most {
                        let (name, most) = (self.name, self.most);
                        log::warn!("{name}: {most} clients are connected, one more was refused");
                        continue;
                    }
                    clients.extend(self.spawn_client(stream, serve));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Out of descriptors or memory: a pause, so that the loop does not spin, and clients can end.
                    log::warn!("{}: a connection could not be accepted: {error}", self.name);
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        for client in clients {
            let _ = client.join();
        }
        Ok(())
    }

    fn spawn_client<E: Display + 'static>(
        self,
        stream: UnixStream,
        serve: &Serve<E>,
    ) -> Option<JoinHandle<()>> {
        let serve = Arc::clone(serve);
        let thread = Builder::new()
            .name(self.client_thread.into())
            .spawn(move || match serve(stream) {
                Ok(()) => log::debug!("{}: client left", self.name),
                Err(error) => log::warn!("{}: client ended: {error}", self.name),
            });
        thread
            .inspect_err(|error| log::warn!("{}: no thread for a client: {error}", self.name))
            .ok()
    }
}
