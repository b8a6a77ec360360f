//! The callers' side of a provider whose GPU has threads of its own: sessions that only send messages.
//!
//! `submit` never meets a driver. The threads end when the provider and its last session are dropped, after the work in
//! flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

use super::desk::ToWorker;
use super::lane::Lane;
use super::outlet::Outlet;
use super::{CompletionSink, Request, Session};

/// The provider's threads, held by it and its sessions; the last one to go ends them.
pub(super) struct Threads {
    /// Taken in `drop`, which ends the worker.
    sender: Option<Sender<ToWorker>>,
    /// Whoever joins it knows that all other threads have ended as well.
    worker: Option<JoinHandle<()>>,
    next_session: AtomicU64,
    /// Set in `drop`: a worker that waits for something else than messages looks here.
    is_over: Arc<AtomicBool>,
}

impl Threads {
    pub(super) fn new(sender: Sender<ToWorker>, worker: JoinHandle<()>) -> Arc<Self> {
        Self::with_end(sender, worker, Arc::default())
    }

    /// The same; `is_over` is set when the last of them goes.
    pub(super) fn with_end(
        sender: Sender<ToWorker>,
        worker: JoinHandle<()>,
        is_over: Arc<AtomicBool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            is_over,
            sender: Some(sender),
            worker: Some(worker),
            next_session: AtomicU64::new(0),
        })
    }

    /// Opens a session.
    pub(super) fn connect(self: &Arc<Self>, sink: CompletionSink) -> Box<dyn Session> {
        let outlet = Arc::new(Outlet::new(sink));
        let id = self.next_session.fetch_add(1, Ordering::Relaxed);
        self.send(ToWorker::Open {
            session: id,
            lane: Lane::new(Arc::clone(&outlet)),
        });
        Box::new(FrontSession {
            id,
            outlet,
            threads: Arc::clone(self),
        })
    }

    fn send(&self, message: ToWorker) -> bool {
        self.sender
            .as_ref()
            .is_some_and(|sender| sender.send(message).is_ok())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.sender = None;
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            log::error!("a provider's thread panicked");
        }
    }
}

struct FrontSession {
    id: u64,
    outlet: Arc<Outlet>,
    threads: Arc<Threads>,
}

impl Session for FrontSession {
    fn submit(&mut self, sequence: u64, request: Request) {
        let sent = self.threads.send(ToWorker::Request {
            session: self.id,
            sequence,
            request,
        });
        if !sent {
            self.outlet.deliver_gone(sequence);
        }
    }
}

impl Drop for FrontSession {
    fn drop(&mut self) {
        self.outlet.close();
        self.threads.send(ToWorker::Close { session: self.id });
    }
}
