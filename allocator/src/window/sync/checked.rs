//! The same as parking_lot and crossbeam-channel offer, over loom: of their interfaces, what the window uses.

#![allow(clippy::expect_used, reason = "a model ends where it fails")]

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, SendError};

// A poisoned lock is a model that has failed already.
const POISONED: &str = "a thread of the model has panicked";

#[derive(Debug)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().expect(POISONED)))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect(POISONED)
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect(POISONED)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(loom::sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().expect(POISONED);
        guard.0 = Some(self.0.wait(held).expect(POISONED));
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// Nothing: the checker tries what happens meanwhile all the same.
pub(crate) fn sleep(_: Duration) {}

/// What is in a channel.
#[derive(Debug)]
struct Queue<T> {
    messages: VecDeque<T>,
    /// Waits of the receiver that end without a message.
    timeouts: usize,
}

#[derive(Debug)]
struct Channel<T> {
    queue: Mutex<Queue<T>>,
    changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Channel<T>>);

#[derive(Debug)]
pub(crate) struct Receiver<T>(Arc<Channel<T>>);

pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let channel = Arc::new(Channel {
        queue: Mutex::new(Queue {
            messages: VecDeque::new(),
            timeouts: 0,
        }),
        changed: Condvar::new(),
    });
    (Sender(Arc::clone(&channel)), Receiver(channel))
}

impl<T> Sender<T> {
    /// Where nobody receives any more the message stays here: nobody looks at the result.
    pub(crate) fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.0.queue.lock().messages.push_back(message);
        self.0.changed.notify_all();
        Ok(())
    }

    /// Lets the receiver's time pass: its next wait that finds no message ends without one.
    pub(crate) fn let_time_pass(&self) {
        self.0.queue.lock().timeouts += 1;
        self.0.changed.notify_all();
    }
}

impl<T> Receiver<T> {
    /// Time passes where the model says so.
    pub(crate) fn recv_timeout(&self, _: Duration) -> Result<T, RecvTimeoutError> {
        let mut queue = self.0.queue.lock();
        loop {
            if let Some(message) = queue.messages.pop_front() {
                return Ok(message);
            }
            if let Some(rest) = queue.timeouts.checked_sub(1) {
                queue.timeouts = rest;
                return Err(RecvTimeoutError::Timeout);
            }
            self.0.changed.wait(&mut queue);
        }
    }

    pub(crate) fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.0.queue.lock().messages.pop_front())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.queue.lock().messages.len()
    }
}
