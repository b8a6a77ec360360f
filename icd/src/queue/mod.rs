//! `VkQueue`: a thread that does one job after the other.
//!
//! A job waits for semaphores, sends the transfers of its command buffers to the host, waits until they are done, and signals. The host
//! executes in order and each transfer sees what those before it wrote, so barriers have nothing to add.

pub(crate) mod submit;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use ash::vk;
use hostblob_guest::Device as Guest;

use crate::command::Transfers;
use crate::debug_utils::Messengers;
use crate::sync::monitor::Monitor;
use crate::sync::semaphore::Payload;
use worker::Worker;

/// A part of a submission.
#[derive(Default)]
struct Job {
    waits: Vec<(Arc<Payload>, u64)>,
    work: Vec<Arc<Transfers>>,
    signals: Vec<(Arc<Payload>, u64)>,
    fence: Option<Arc<AtomicBool>>,
}

/// A queue. Its thread ends with it.
pub(crate) struct Queue {
    /// `None` only while it ends.
    jobs: Option<Sender<Job>>,
    submitted: AtomicU64,
    completed: Arc<AtomicU64>,
    monitor: Arc<Monitor>,
    thread: Option<JoinHandle<()>>,
}

impl Queue {
    /// Starts the thread.
    pub(crate) fn start(
        guest: &Guest,
        monitor: &Arc<Monitor>,
        messengers: &Arc<Messengers>,
    ) -> Result<Self, vk::Result> {
        let (jobs, receiver) = mpsc::channel();
        let completed = Arc::<AtomicU64>::default();
        let worker = Worker {
            guest: guest.clone(),
            monitor: monitor.clone(),
            messengers: messengers.clone(),
            completed: completed.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("hostblob queue".to_owned())
            .spawn(move || worker.run(&receiver))
            .map_err(|error| {
                log::info!("vkCreateDevice: the queue's thread cannot be started: {error}");
                vk::Result::ERROR_OUT_OF_HOST_MEMORY
            })?;
        Ok(Self {
            jobs: Some(jobs),
            submitted: AtomicU64::new(0),
            completed,
            monitor: monitor.clone(),
            thread: Some(thread),
        })
    }

    fn send(&self, jobs: Vec<Job>) -> Result<(), vk::Result> {
        self.monitor.check()?;
        let lost = vk::Result::ERROR_DEVICE_LOST;
        let sender = self.jobs.as_ref().ok_or(lost)?;
        for job in jobs {
            self.submitted.fetch_add(1, Ordering::Relaxed);
            sender.send(job).map_err(|_| lost)?;
        }
        Ok(())
    }

    /// Waits until all that was submitted is done.
    pub(crate) fn wait_idle(&self) -> Result<(), vk::Result> {
        let submitted = self.submitted.load(Ordering::Relaxed);
        let completed = || self.completed.load(Ordering::Acquire) >= submitted;
        self.monitor.wait(None, completed).map(|_| ())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Without a sender the thread's loop ends.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been told.
            let _ = thread.join();
        }
    }
}

pub(crate) fn wait_idle(queue: &Queue) -> Result<(), vk::Result> {
    queue.wait_idle()
}
