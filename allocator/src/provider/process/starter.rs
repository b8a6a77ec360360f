//! A thread that starts processes: guests are answered meanwhile, however long that takes.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use super::{ProcessError, Running, Spawn};

type Started = Result<Running, ProcessError>;

/// What is under way.
#[derive(Debug, Default)]
struct UnderWay {
    /// To the process that is being started.
    socket: Option<UnixStream>,
    /// None is wanted any more.
    ended: bool,
}

/// The thread. Dropping this ends it, and a process that is being started.
pub(super) struct Starter {
    /// Which process is to be started. Taken in `drop`.
    orders: Option<Sender<u64>>,
    started: Receiver<Started>,
    under_way: Arc<Mutex<UnderWay>>,
    thread: Option<JoinHandle<()>>,
}

impl Starter {
    /// `patience` is how long a process may take for a message, later.
    pub(super) fn new(spawn: Spawn, patience: Duration) -> io::Result<Self> {
        let (orders, ordered) = crossbeam_channel::unbounded();
        let (starts, started) = crossbeam_channel::unbounded();
        let under_way = Arc::<Mutex<UnderWay>>::default();
        let seen = Arc::clone(&under_way);
        let announce = move |socket: &UnixStream| {
            let mut seen = seen.lock();
            if seen.ended {
                return Err(io::ErrorKind::Interrupted.into());
            }
            seen.socket = Some(socket.try_clone()?);
            Ok(())
        };
        let thread = thread::Builder::new()
            .name("hb-keeper-start".to_owned())
            .spawn(move || {
                for generation in ordered {
                    let process = Running::start(&spawn, generation, patience, &announce);
                    // Nobody waits for it at the end: its drop ends it.
                    let _ = starts.send(process);
                }
            })?;
        Ok(Self {
            orders: Some(orders),
            started,
            under_way,
            thread: Some(thread),
        })
    }

    /// Has a process started; `false` where the thread is gone.
    pub(super) fn start(&self, generation: u64) -> bool {
        let orders = self.orders.as_ref();
        orders.is_some_and(|orders| orders.send(generation).is_ok())
    }

    /// Where processes arrive, in the order in which they were asked for.
    pub(super) fn started(&self) -> &Receiver<Started> {
        &self.started
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        self.orders = None;
        let mut under_way = self.under_way.lock();
        under_way.ended = true;
        if let Some(socket) = under_way.socket.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        drop(under_way);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that starts the process with the GPU driver panicked");
        }
    }
}
