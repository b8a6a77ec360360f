//! A provider for tests: counts, records, refuses and holds back, on top of [`SystemProvider`].
//!
//! The bytes are really filled and copied, so a test can look at them. What a test controls is the messages: the n-th
//! request can be refused with a chosen error (nothing is then done), and completions can be
//! held back until the test lets them go, one at a time, which is how "the GPU is still busy" looks to the caller.
//! Held completions are held messages only: the bytes may already have changed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::outlet::Outlet;
use super::system::SystemProvider;
use super::{
    AttachmentId, Completion, CompletionSink, Description, FileId, Provider, ProviderError,
    REFUSED, Request, Session,
};

/// A request as the fake saw it; [`Request`] without the descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of `Request`")]
pub enum Seen {
    /// [`Request::AddFile`].
    AddFile { file: FileId, length: u64 },
    /// [`Request::AddPieces`], with their lengths.
    AddPieces { file: FileId, lengths: Vec<u64> },
    /// [`Request::RemoveFile`].
    RemoveFile { file: FileId },
    /// [`Request::Attach`].
    Attach {
        attachment: AttachmentId,
        file: FileId,
        offset: u64,
        length: u64,
        memory_type: u32,
    },
    /// [`Request::Allocate`].
    Allocate {
        attachment: AttachmentId,
        length: u64,
        memory_type: u32,
    },
    /// [`Request::Export`].
    Export { attachment: AttachmentId },
    /// [`Request::Release`].
    Release { attachment: AttachmentId },
    /// [`Request::Fill`].
    Fill {
        attachment: AttachmentId,
        offset: u64,
        length: u64,
        value: u32,
    },
    /// [`Request::Copy`].
    Copy {
        source: AttachmentId,
        source_offset: u64,
        destination: AttachmentId,
        destination_offset: u64,
        length: u64,
    },
}

impl From<&Request> for Seen {
    fn from(request: &Request) -> Self {
        match *request {
            Request::AddFile { file, length, .. } => Self::AddFile { file, length },
            Request::AddPieces { file, ref pieces } => Self::AddPieces {
                file,
                lengths: pieces.iter().map(|piece| piece.length).collect(),
            },
            Request::RemoveFile { file } => Self::RemoveFile { file },
            Request::Attach {
                attachment,
                file,
                offset,
                length,
                memory_type,
            } => Self::Attach {
                attachment,
                file,
                offset,
                length,
                memory_type,
            },
            Request::Allocate {
                attachment,
                length,
                memory_type,
            } => Self::Allocate {
                attachment,
                length,
                memory_type,
            },
            Request::Export { attachment } => Self::Export { attachment },
            Request::Release { attachment } => Self::Release { attachment },
            Request::Fill {
                attachment,
                offset,
                length,
                value,
            } => Self::Fill {
                attachment,
                offset,
                length,
                value,
            },
            Request::Copy {
                source,
                source_offset,
                destination,
                destination_offset,
                length,
            } => Self::Copy {
                source,
                source_offset,
                destination,
                destination_offset,
                length,
            },
        }
    }
}

/// A request in [`FakeProvider::requests`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Which session, counted from 0 in the order of `connect`.
    pub session: usize,
    /// As passed to `submit`.
    pub sequence: u64,
    /// What was asked.
    pub request: Seen,
}

/// The fake. Clones share everything, so a test keeps one and gives one away.
#[derive(Debug, Clone)]
pub struct FakeProvider {
    system: Arc<SystemProvider>,
    description: Description,
    control: Arc<Control>,
}

impl FakeProvider {
    /// A fake that does what is asked.
    #[must_use]
    pub fn new() -> Self {
        Self::over(SystemProvider::new(None))
    }

    /// The same over a system provider of the test's choice.
    #[must_use]
    pub fn over(system: SystemProvider) -> Self {
        let mut description = system.description().clone();
        "fake".clone_into(&mut description.device_name);
        Self {
            system: Arc::new(system),
            description,
            control: Arc::default(),
        }
    }

    /// Refuses request number `n`, counted from 0 over all sessions since the fake was made.
    pub fn refuse(&self, n: usize, error: ProviderError) {
        self.control.script.lock().refusals.insert(n, error);
    }

    /// Refuses the next request.
    pub fn refuse_next(&self, error: ProviderError) {
        let mut script = self.control.script.lock();
        let n = script.requests.len();
        script.refusals.insert(n, error);
    }

    /// How many requests were made.
    #[must_use]
    pub fn count(&self) -> usize {
        self.control.script.lock().requests.len()
    }

    /// How many of the requests made satisfy `of`.
    #[must_use]
    pub fn count_of(&self, of: impl Fn(&Seen) -> bool) -> usize {
        let script = self.control.script.lock();
        script.requests.iter().filter(|r| of(&r.request)).count()
    }

    /// Every request, in the order of submission.
    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        self.control.script.lock().requests.clone()
    }

    /// Holds back the completions of all sessions from now on.
    pub fn hold(&self) {
        self.control.gate.lock().held = true;
    }

    /// How many completions are held back: those that are ready and not let go.
    #[must_use]
    pub fn held(&self) -> usize {
        self.control.gate.lock().waiting.len()
    }

    /// Delivers the oldest held completion, from this thread; `false` when none is ready.
    pub fn release_one(&self) -> bool {
        // The gate stays locked while delivering, so that no later completion overtakes this one.
        let mut gate = self.control.gate.lock();
        let Some((outlet, completion)) = gate.waiting.pop_front() else {
            return false;
        };
        outlet.deliver(completion);
        true
    }

    /// Delivers all held completions, from this thread, and holds back no more.
    pub fn release_all(&self) {
        let mut gate = self.control.gate.lock();
        gate.held = false;
        while let Some((outlet, completion)) = gate.waiting.pop_front() {
            outlet.deliver(completion);
        }
    }
}

impl Default for FakeProvider {
    fn default() -> Self {
        Self::new()
    }
}

impl Provider for FakeProvider {
    fn description(&self) -> &Description {
        &self.description
    }

    fn connect(&self, sink: CompletionSink) -> Box<dyn Session> {
        let session = {
            let mut script = self.control.script.lock();
            script.sessions += 1;
            script.sessions - 1
        };
        let lane = Arc::new(Lane {
            outlet: Arc::new(Outlet::new(sink)),
            refused: Mutex::default(),
            control: Arc::clone(&self.control),
        });
        let inner_lane = Arc::clone(&lane);
        let inner = self
            .system
            .connect(Box::new(move |completion| inner_lane.answered(completion)));
        Box::new(FakeSession {
            lane,
            inner,
            session,
        })
    }
}

/// What tests set and read.
#[derive(Default)]
struct Control {
    script: Mutex<Script>,
    gate: Mutex<Gate>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Script {
    sessions: usize,
    requests: Vec<Recorded>,
    refusals: BTreeMap<usize, ProviderError>,
}

#[derive(Default)]
struct Gate {
    held: bool,
    waiting: VecDeque<(Arc<Outlet>, Completion)>,
}

impl Control {
    /// Records a request; why it is refused, if it is.
    fn note(&self, session: usize, sequence: u64, request: &Request) -> Option<ProviderError> {
        let mut script = self.script.lock();
        let n = script.requests.len();
        script.requests.push(Recorded {
            session,
            sequence,
            request: request.into(),
        });
        script.refusals.remove(&n)
    }
}

/// One session's way from the system provider to the caller's sink.
struct Lane {
    outlet: Arc<Outlet>,
    refused: Mutex<HashMap<u64, ProviderError>>,
    control: Arc<Control>,
}

impl Lane {
    fn answered(&self, mut completion: Completion) {
        if let Some(error) = self.refused.lock().remove(&completion.sequence) {
            completion.result = Err(error);
        }
        let mut gate = self.control.gate.lock();
        if gate.held {
            gate.waiting
                .push_back((Arc::clone(&self.outlet), completion));
        } else {
            self.outlet.deliver(completion);
        }
    }
}

struct FakeSession {
    lane: Arc<Lane>,
    inner: Box<dyn Session>,
    session: usize,
}

impl Session for FakeSession {
    fn submit(&mut self, sequence: u64, request: Request) {
        let refusal = self.lane.control.note(self.session, sequence, &request);
        let request = match refusal {
            Some(error) => {
                self.lane.refused.lock().insert(sequence, error);
                REFUSED
            }
            None => request,
        };
        self.inner.submit(sequence, request);
    }
}

impl Drop for FakeSession {
    fn drop(&mut self) {
        self.lane.outlet.close();
    }
}
