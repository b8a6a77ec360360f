//! DEVICE_STATE: the VMM gives a descriptor, and the device's state goes through it on a thread of its own.
//!
//! The VMM says when a transfer begins (SET_DEVICE_STATE_FD), sees its end as the end of the file, and asks then whether all went well
//! (CHECK_DEVICE_STATE). A transfer is given up when the queues run again, when the device is reset, and when the connection ends.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::VhostTransferStateDirection as Direction;

use super::signals::Signals;
use crate::transport::engine::Engine;
use crate::transport::snapshot::{Patient, Saves};
use crate::transport::{Device, threads};

/// How long CHECK_DEVICE_STATE waits: the VMM has seen the end of the file, or made it.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two looks whether a transfer has ended.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

const BUFFER: usize = 1 << 20;

/// A transfer that was begun.
#[derive(Debug)]
pub(super) struct Transfer {
    goes_on: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), String>>,
}

impl Transfer {
    /// Begins one. No queue runs.
    pub(super) fn begin<D: Device>(
        engine: Arc<Engine<D, Signals>>,
        direction: Direction,
        file: File,
    ) -> io::Result<Self> {
        let goes_on = Arc::new(AtomicBool::new(true));
        let (wanted, watched) = (Arc::clone(&goes_on), Arc::clone(&engine));
        let file = Patient::new(file, move || {
            wanted.load(Ordering::SeqCst) && !watched.stopping()
        })?;
        let thread = std::thread::Builder::new().name("hostblob-state".into());
        let thread = thread.spawn(move || {
            let start = Instant::now();
            let (what, done) = match direction {
                Direction::SAVE => ("saved", save(&engine, file)),
                Direction::LOAD => ("restored", load(&engine, file)),
            };
            match &done {
                Ok(()) => log::info!("the device's state was {what} in {:?}", start.elapsed()),
                Err(why) => log::warn!("the device's state was not {what}: {why}"),
            }
            done
        })?;
        Ok(Self { goes_on, thread })
    }

    /// Whether it has ended, well or not.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// It has no point any more: ends it. When this returns it uses neither the device nor the VMM's descriptor.
    pub(super) fn give_up(&self) {
        self.goes_on.store(false, Ordering::SeqCst);
        threads::end(&self.thread, threads::GRACE);
    }

    /// How it went.
    pub(super) fn check(self, stopping: impl Fn() -> bool) -> Result<(), String> {
        let deadline = Instant::now() + CHECK_TIMEOUT;
        while !self.thread.is_finished() {
            if Instant::now() > deadline || stopping() {
                self.give_up();
                return Err("the transfer has not ended".to_owned());
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
        let done = self.thread.join();
        done.unwrap_or_else(|_| Err("the transfer's thread panicked".to_owned()))
    }
}

fn save<D: Device>(
    engine: &Engine<D, Signals>,
    file: Patient<impl Fn() -> bool>,
) -> Result<(), String> {
    let mut sink = BufWriter::with_capacity(BUFFER, file);
    engine.save(&mut sink).map_err(|error| error.to_string())?;
    sink.flush().map_err(|error| error.to_string())
    // The end of the file comes with the end of `sink`.
}

fn load<D: Device>(
    engine: &Engine<D, Signals>,
    file: Patient<impl Fn() -> bool>,
) -> Result<(), String> {
    let mut source = BufReader::with_capacity(BUFFER, file);
    let restored = engine.restore(&mut source);
    restored.map_err(|error| error.to_string())
}
