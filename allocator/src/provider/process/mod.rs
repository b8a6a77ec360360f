//! A provider in a process of its own: a GPU driver that crashes takes nothing with it but its own work.
//!
//! ```text
//! guests ──requests──▶ keeper ──frames, descriptors──▶ child: provider::open, sessions
//!        ◀─answers────   │ ▲                             │
//!                        │ └──────── reader ◀──frames────┘
//!                        └ starts it, and starts it again when it ends
//! ```
//!
//! The bytes are in files that this process has, so guests' mappings and contents go on. What a session had attached is told to the next
//! process when it is used again (`book.rs`); device memory is lost. The child is not trusted: whatever it says is checked, and what makes no
//! sense ends it.
//!
//! | file | holds |
//! |---|---|
//! | `wire.rs` | frames |
//! | `child.rs` | the other process |
//! | `book.rs` | what a session has, whichever process there is |
//! | `running.rs`, `owed.rs` | the process as seen from here, and how much it may say |
//! | `starter.rs` | starting it |
//! | `watch.rs` | how long it has said nothing |
//! | `mod.rs` | the keeper |

mod book;
mod child;
mod owed;
mod running;
mod starter;
mod watch;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use thiserror::Error;

use super::desk::ToWorker;
use super::front::Threads;
use super::{CompletionSink, Description, Provider, ProviderError, Session};
use book::{Book, Outgoing};
use running::{Heard, Running};
use starter::Starter;
use watch::{Kind, Watch};
use wire::ToChild;

pub use child::{serve, serve_stdin};
pub use running::Process;

/// Longest time that a process may take until it serves. Drivers that compile shaders at start take seconds on a busy host.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time that the GPU may take for one job, unless the operator says otherwise. Kernel drivers reset a GPU that hangs after 10 s or
/// less: whoever is slower than this hangs where no reset helps.
pub const JOB_TIME: Duration = Duration::from_secs(20);

/// Shortest time between two starts. A guest that makes the driver crash does not make the host do nothing but start it: a fuzzer does.
const LEAST_PAUSE: Duration = Duration::from_millis(if cfg!(fuzzing) { 0 } else { 100 });
/// The longest pause, after several starts in a row that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Makes a process that calls [`serve_stdin`], with this socket as its standard input.
pub type Spawn = Box<dyn Fn(OwnedFd) -> io::Result<Process> + Send>;

/// What helps where the process itself could not say why.
const ITS_OWN_WORDS: &str = "the lines above are its own; `hostblobd info --sandbox off` shows whether the sandbox is in its way; `--provider system` \
                             needs no driver";

/// Why there is no such provider.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// No process, or no socket, or no thread.
    #[error("no process for the GPU driver: {0}")]
    System(#[from] io::Error),
    /// The process says why it does not serve.
    #[error("{0}")]
    Refused(String),
    /// It ended, or talked nonsense.
    #[error("the process with the GPU driver ended before it served: {ITS_OWN_WORDS}")]
    Ended,
    /// It said nothing.
    #[error(
        "the process with the GPU driver did not serve within {START_TIMEOUT:?}: {ITS_OWN_WORDS}"
    )]
    Timeout,
}

/// A provider that another process serves.
pub struct ProcessProvider {
    description: Description,
    reason: String,
    threads: Arc<Threads>,
}

impl ProcessProvider {
    /// Starts the process, and waits until it serves. Later it is ended, and another one started, when a job takes longer than
    /// `job_time`, or when it answers nothing for so long: [`JOB_TIME`] where nobody knows better.
    ///
    /// # Errors
    /// When it does not.
    pub fn new(spawn: Spawn, job_time: Duration) -> Result<Self, ProcessError> {
        let running = Running::start(&spawn, 1, job_time, |_| Ok(()))?;
        let (description, reason) = (running.description.clone(), running.reason.clone());
        let (sender, inbox) = crossbeam_channel::unbounded();
        let is_over = Arc::<AtomicBool>::default();
        let keeper = Keeper {
            starter: Starter::new(spawn, job_time)?,
            description: description.clone(),
            sessions: HashMap::new(),
            running: Some(running),
            generation: 1,
            is_starting: false,
            next_start: Instant::now() + LEAST_PAUSE,
            pause: LEAST_PAUSE,
            gpu_was_lost: false,
            job_time,
            watch: Watch::new(),
            is_over: Arc::clone(&is_over),
        };
        let thread = thread::Builder::new()
            .name("hb-keeper".to_owned())
            .spawn(move || keeper.run(&inbox))?;
        Ok(Self {
            description,
            reason,
            threads: Threads::with_end(sender, thread, is_over),
        })
    }

    /// Which provider it is, and why: one line for the log.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl std::fmt::Debug for ProcessProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessProvider")
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

impl Provider for ProcessProvider {
    fn description(&self) -> &Description {
        &self.description
    }

    fn connect(&self, sink: CompletionSink) -> Box<dyn Session> {
        self.threads.connect(sink)
    }
}

/// Owns the process and all books.
struct Keeper {
    /// Ends before what has started it, which would wait for it.
    running: Option<Running>,
    starter: Starter,
    /// What guests were told. A process that says otherwise is not one for them.
    description: Description,
    sessions: HashMap<u64, Book>,
    generation: u64,
    is_starting: bool,
    /// Not before this is another one started.
    next_start: Instant,
    pause: Duration,
    /// The last process lost its GPU, and none has done work since.
    gpu_was_lost: bool,
    job_time: Duration,
    watch: Watch,
    /// The provider and its sessions are gone.
    is_over: Arc<AtomicBool>,
}

impl Keeper {
    /// Serves until the provider and its sessions are gone.
    fn run(mut self, inbox: &Receiver<ToWorker>) {
        loop {
            let heard = match &self.running {
                Some(running) => running.heard.clone(),
                None => crossbeam_channel::never(),
            };
            let overdue = match self.watch.deadline(self.job_time) {
                Some(deadline) => crossbeam_channel::at(deadline),
                None => crossbeam_channel::never(),
            };
            select! {
                recv(inbox) -> message => match message {
                    Ok(message) => self.take(message),
                    Err(_) => return,
                },
                recv(heard) -> heard => match heard {
                    Ok(heard) => self.hear(heard),
                    Err(_) => self.ended("it ended"),
                },
                recv(self.starter.started()) -> started => match started {
                    Ok(started) => self.started(started),
                    Err(_) => return log::error!("the thread that starts the process with the GPU driver is gone"),
                },
                // What was heard meanwhile counts, so nobody is overdue whose answer waits here.
                recv(overdue) -> _ => if heard.is_empty() {
                    self.ended(&format!("no answer for {:?}", self.job_time));
                },
            }
        }
    }

    fn take(&mut self, message: ToWorker) {
        if self.running.is_none() {
            self.start();
        }
        match message {
            ToWorker::Open { session, lane } => {
                self.sessions
                    .insert(session, Book::new(Arc::clone(&lane.outlet)));
                self.send(&ToChild::Open { session }, &[]);
            }
            ToWorker::Request {
                session,
                sequence,
                request,
            } => {
                let process = self.generation();
                let Some(book) = self.sessions.get_mut(&session) else {
                    return;
                };
                for message in book.request(sequence, request, process) {
                    let Outgoing {
                        number,
                        kind,
                        asked,
                        files,
                    } = message;
                    self.watch.asked(kind, Instant::now());
                    let frame = ToChild::Request {
                        session,
                        sequence: number,
                        request: asked,
                    };
                    self.send(&frame, &files);
                    if self.generation() != process {
                        // What is left is of the process that has just ended.
                        return;
                    }
                }
            }
            ToWorker::Close { session } => {
                // Nobody hears of what was under way.
                let closed = self.sessions.remove(&session);
                for kind in closed.iter().flat_map(Book::unanswered) {
                    self.watch.forget(kind);
                }
                self.send(&ToChild::Close { session }, &[]);
            }
        }
    }

    /// Which process there is.
    fn generation(&self) -> Option<u64> {
        self.running.as_ref().map(|running| running.generation)
    }

    fn send(&mut self, frame: &ToChild, files: &[Arc<std::fs::File>]) {
        if let Some(running) = &self.running
            && let Err(error) = running.send(frame, files)
        {
            self.ended(&format!("it does not listen: {error}"));
        }
    }

    fn hear(&mut self, heard: Heard) {
        let Heard {
            session,
            sequence,
            result,
            beside,
        } = heard;
        if matches!(result, Err(ProviderError::DeviceLost(_))) {
            return self.gpu_lost();
        }
        let is_done = result.is_ok();
        // A session may be gone before its answers are here.
        let Some(book) = self.sessions.get_mut(&session) else {
            return;
        };
        match book.answered(sequence, result, beside) {
            Ok(kind) => {
                self.watch.answered(kind, Instant::now());
                if is_done && kind == Kind::Job && self.gpu_was_lost {
                    self.gpu_was_lost = false;
                    self.pause = LEAST_PAUSE;
                }
            }
            Err(nonsense) => self.ended(nonsense.0),
        }
    }

    /// A process never gets a lost GPU back (VK_ERROR_DEVICE_LOST is for good): only another one does, so this one ends as if it had crashed. What
    /// it has not answered, the loss itself included, is answered when it is dead.
    fn gpu_lost(&mut self) {
        self.gpu_was_lost = true;
        self.slow_down();
        self.ended("its GPU was lost");
    }

    /// Another one that serves no better is not started as soon again.
    fn slow_down(&mut self) {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.next_start = Instant::now() + self.pause;
    }

    /// The process has ended, or is ended now.
    fn ended(&mut self, why: &str) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        log::error!("the process with the GPU driver is started again: {why}");
        // Before anybody is told: until then the driver may reach memory.
        if !running.kill(|| self.is_over.load(Ordering::Relaxed)) {
            return;
        }
        drop(running);
        self.watch = Watch::new();
        for book in self.sessions.values_mut() {
            book.process_ended();
        }
        self.start();
    }

    /// Has another process started, unless one is, or was just now.
    fn start(&mut self) {
        if self.is_starting || Instant::now() < self.next_start {
            return;
        }
        self.next_start = Instant::now() + self.pause;
        self.generation += 1;
        self.is_starting = self.starter.start(self.generation);
    }

    /// A process serves, or it could not be started.
    fn started(&mut self, started: Result<Running, ProcessError>) {
        self.is_starting = false;
        let started = started.and_then(|running| {
            if running.description == self.description {
                return Ok(running);
            }
            Err(ProcessError::Refused(
                "the GPU is another one now".to_owned(),
            ))
        });
        match started {
            Ok(running) => {
                log::info!("the process with the GPU driver serves again");
                self.running = Some(running);
                // A GPU that stays lost may let a process start, and fails its first work.
                if !self.gpu_was_lost {
                    self.pause = LEAST_PAUSE;
                }
                let sessions: Vec<u64> = self.sessions.keys().copied().collect();
                for session in sessions {
                    self.send(&ToChild::Open { session }, &[]);
                }
            }
            Err(error) => {
                log::error!("{error}");
                self.slow_down();
            }
        }
    }
}
