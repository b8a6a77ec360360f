//! A device for the tests: echoes commands, at once or when told.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::gpu::{GuestPages, Response, RestoreError, SaveError, Waker};
use crate::transport::Device;
use crate::virtqueue::CommandHandler;

pub(in crate::transport) const WINDOW: u64 = 2 << 20;
pub(in crate::transport) const FEATURES: u64 = 1 << 3;
/// A command that begins with this is kept until [`Control::complete`].
pub(in crate::transport) const KEEP: u8 = b'k';

/// What the test sees and does.
#[derive(Debug, Default)]
pub(in crate::transport) struct State {
    pub(in crate::transport) executed: Vec<Vec<u8>>,
    pub(in crate::transport) resets: usize,
    pub(in crate::transport) config_writes: Vec<(u64, Vec<u8>)>,
    /// How often somebody asked whether the window is in use.
    pub(in crate::transport) looks: usize,
    kept: Vec<(u64, Vec<u8>)>,
    completed: Vec<(u64, Vec<u8>)>,
}

/// The test's end of a [`FakeDevice`].
#[derive(Clone)]
pub(in crate::transport) struct Control {
    pub(in crate::transport) state: Arc<Mutex<State>>,
    waker: Waker,
}

impl Control {
    /// Finishes the kept command number `index`.
    pub(in crate::transport) fn complete(&self, index: usize) {
        let mut state = self.state.lock();
        let kept = state.kept.remove(index);
        state.completed.push(kept);
        drop(state);
        (self.waker)();
    }

    /// How many commands are kept.
    pub(in crate::transport) fn kept(&self) -> usize {
        self.state.lock().kept.len()
    }
}

#[derive(Debug)]
pub(in crate::transport) struct FakeDevice {
    state: Arc<Mutex<State>>,
    window: OwnedFd,
    config: [u8; 24],
}

impl FakeDevice {
    pub(in crate::transport) fn new(waker: Waker) -> (Self, Control) {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let window = rustix::fs::memfd_create("window", flags).unwrap();
        rustix::fs::ftruncate(&window, WINDOW).unwrap();
        let state = Arc::<Mutex<State>>::default();
        let mut config = [0; 24];
        config[12] = 1;
        let device = Self {
            state: Arc::clone(&state),
            window,
            config,
        };
        (device, Control { state, waker })
    }
}

/// The command backwards.
pub(in crate::transport) fn answer(command: &[u8]) -> Vec<u8> {
    command.iter().rev().copied().collect()
}

impl CommandHandler for FakeDevice {
    fn execute(&mut self, tag: u64, command: &[u8], _: &dyn GuestPages) -> Option<Response> {
        let mut state = self.state.lock();
        state.executed.push(command.to_vec());
        if command.first() == Some(&KEEP) {
            state.kept.push((tag, answer(command)));
            return None;
        }
        Some(Response::from_bytes(answer(command)))
    }

    fn completed(&mut self) -> Vec<(u64, Response)> {
        let completed = std::mem::take(&mut self.state.lock().completed);
        completed
            .into_iter()
            .map(|(tag, bytes)| (tag, Response::from_bytes(bytes)))
            .collect()
    }
}

impl Device for FakeDevice {
    fn reset(&mut self) {
        let mut state = self.state.lock();
        state.resets += 1;
        state.kept.clear();
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.state
            .lock()
            .config_writes
            .push((offset, data.to_vec()));
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn window_fd(&self) -> BorrowedFd<'_> {
        self.window.as_fd()
    }

    fn window_size(&self) -> u64 {
        WINDOW
    }

    fn window_in_use(&self) -> bool {
        self.state.lock().looks += 1;
        true
    }

    fn save(&mut self, sink: &mut dyn Write) -> Result<(), SaveError> {
        Ok(sink.write_all(b"fake")?)
    }

    fn restore(&mut self, source: &mut dyn Read) -> Result<(), RestoreError> {
        let mut bytes = [0; 4];
        let read = source.read_exact(&mut bytes);
        read.map_err(|_| RestoreError::Unsupported)
    }
}
