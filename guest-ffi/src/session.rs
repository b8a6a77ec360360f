//! The conversation with the host: capset, control page, requests and their answers.
//!
//! A request travels as an envelope in a transport's command; its answer appears in the control page. Whoever waited for the
//! transport's completion finds the answer there, because the host writes it first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use hostblob_capset::{Agreed, Capset, Offer, negotiate};
use hostblob_protocol::answers::{Answer, MAX_SIZE, MIN_SIZE, Ring};
use hostblob_protocol::envelope::MAX_LENGTH;
use hostblob_protocol::request::OpenAnswers;
use hostblob_protocol::virtio_gpu::blob_mem;
use hostblob_protocol::{EnvelopeBuilder, Request, Status};
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::ledger::Ledger;
use crate::options::OpenOptions;
use crate::pool::Shard;
use crate::region::Mapping;
use crate::transport::{self, BlobSpec, Completion, RING_REQUESTS, RawBlob, Transport};
use crate::waits::Waits;

/// First pause while the answers ring is full; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);
/// Within this time what was freed has reached the host, where the kernel destroys blobs in a work queue.
const REFUND_TIME: Duration = Duration::from_millis(500);

/// An open context.
#[derive(Debug)]
pub(crate) struct Session {
    transport: Box<dyn Transport>,
    capset: Capset,
    agreed: Agreed,
    control: RawBlob,
    page: Mapping,
    ledger: Mutex<Ledger>,
    waits: Mutex<Waits>,
    next_client_id: AtomicU64,
    commands: AtomicU64,
    /// When a blob was last destroyed.
    last_destroyed: Mutex<Option<Instant>>,
    /// Lists of blocks, which keep the session alive.
    shards: OnceLock<Vec<Weak<Shard>>>,
}

/// A request that was sent and not yet answered.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) sequence: u64,
    pub(crate) completion: Completion,
}

fn round_up(size: u64, granule: u64) -> Result<u64> {
    size.checked_next_multiple_of(granule)
        .ok_or_else(|| Error::status_of(Status::OutOfHostMemory, format!("{size} bytes")))
}

/// A kernel is told of no refusal, and this is the first call that waits for the host: what it cannot map is of a context that was refused, or is
/// beyond what the context may have.
fn no_context(error: Error) -> Error {
    match error.status() {
        Some(Status::NotMappable) => Error::NoDevice(
            "the host makes no context, or has no memory for its first page: hostblobd's log says why"
                .to_owned(),
        ),
        _ => error,
    }
}

impl Session {
    /// Connects, negotiates, and opens the control page.
    pub(crate) fn open(options: &OpenOptions) -> Result<Self> {
        Self::over(transport::connect(options)?, options.control_size)
    }

    pub(crate) fn over(transport: Box<dyn Transport>, control_size: u64) -> Result<Self> {
        let incompatible = |reason: String| Error::Incompatible(reason);
        let capset = Capset::decode(&transport.read_capset()?)
            .map_err(|error| incompatible(error.to_string()))?;
        let agreed = negotiate(&Offer::EVERYTHING, &capset.offer)
            .map_err(|error| incompatible(error.to_string()))?;
        let wanted = control_size.clamp(MIN_SIZE as u64, MAX_SIZE as u64);
        let size = round_up(wanted, page_size(&capset))?;
        let spec = BlobSpec {
            blob_mem: blob_mem::HOST3D,
            blob_id: 0,
            size,
            mappable: true,
            shareable: false,
            command: &[],
        };
        let control = transport.create_blob(&spec)?;
        let page = transport.map_blob(&control).map_err(no_context)?;
        let slots = ring(&page)?.slots();
        let session = Self {
            transport,
            capset,
            agreed,
            control,
            page,
            ledger: Mutex::new(Ledger::new(slots)),
            waits: Mutex::default(),
            next_client_id: AtomicU64::new(1),
            commands: AtomicU64::new(0),
            last_destroyed: Mutex::new(None),
            shards: OnceLock::new(),
        };
        session.open_answers()?;
        log::info!(
            "hostblob: {} ({}), protocol 1.{}, {:?}",
            session.capset.device_name,
            session.capset.driver_name,
            agreed.minor,
            session.transport.kind()
        );
        Ok(session)
    }

    fn open_answers(&self) -> Result<()> {
        let open = OpenAnswers {
            resource_id: self.control.resource_id,
            major: hostblob_protocol::VERSION_MAJOR,
            minor: self.agreed.minor,
            requests: self.agreed.requests,
            create_flags: self.agreed.create_flags,
        };
        let answer = self.ask(&[open.into()], None)?;
        if !ring(&self.page)?.is_initialised() {
            return Err(Error::Incompatible(
                "the answers ring has another layout".to_owned(),
            ));
        }
        check(&answer, "opening of the control page")
    }

    pub(crate) fn capset(&self) -> &Capset {
        &self.capset
    }

    pub(crate) fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// For calls that are none of ours to count: mappings, exports, waits.
    pub(crate) fn transport(&self) -> &dyn Transport {
        self.transport.as_ref()
    }

    pub(crate) fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    pub(crate) fn reserve_client_id(&self) -> u64 {
        self.next_client_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Bytes that a blob of `size` has.
    pub(crate) fn blob_size(&self, size: u64) -> Result<u64> {
        round_up(size, page_size(&self.capset))
    }

    /// That both sides speak this request.
    pub(crate) fn needs(&self, bit: u64, what: &str) -> Result<()> {
        if self.agreed.requests & bit == bit {
            return Ok(());
        }
        Err(Error::status_of(Status::Unsupported, what))
    }

    fn count(&self) {
        self.commands.fetch_add(1, Ordering::Relaxed);
    }

    fn read_page(&self, sequence: u64) -> Option<Answer> {
        ring(&self.page).ok()?.read(sequence)
    }

    /// A sequence number with a free slot. Waits while the ring is full.
    fn begin(&self, late: bool) -> Result<u64> {
        let give_up = Instant::now() + self.transport.timeout();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(sequence) = self.ledger.lock().begin(late, |s| self.read_page(s)) {
                return Ok(sequence);
            }
            self.transport.pump()?;
            if Instant::now() >= give_up {
                return Err(Error::DeviceLost("the host answers no requests".to_owned()));
            }
            std::thread::sleep(pause);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// The answer that must be in the page by now; a host that is a little late is waited for.
    pub(crate) fn answer(&self, sequence: u64) -> Result<Answer> {
        let give_up = Instant::now() + self.transport.timeout();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(answer) = self.ledger.lock().take(sequence, |s| self.read_page(s)) {
                return Ok(answer);
            }
            let pumped = self.transport.pump();
            if pumped.is_err() || Instant::now() >= give_up {
                self.ledger.lock().forget(sequence);
                pumped?;
                return Err(Error::DeviceLost(format!(
                    "request {sequence} was never answered"
                )));
            }
            std::thread::sleep(pause);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// Sends requests whose completion is told on a ring.
    pub(crate) fn send(&self, requests: &[Request], name: Option<&str>, ring: u8) -> Result<Sent> {
        self.send_as(self.number(false, requests, name)?, ring)
    }

    /// Sends a request that the host may answer much later. It holds nothing back: neither the fences of other rings nor, in the
    /// answers ring, the requests of other threads.
    pub(crate) fn send_wait(&self, request: Request, what: &str) -> Result<Sent> {
        let mut waits = self.waits.lock();
        let is_pending = |sequence| {
            let mut ledger = self.ledger.lock();
            ledger.is_pending(sequence, |s| self.read_page(s))
        };
        let (ring, place) = waits
            .free_ring(is_pending)
            .ok_or_else(|| Error::status_of(Status::TooManyObjects, what))?;
        let sent = self.send_as(self.number(true, &[request], None)?, ring)?;
        *place = sent.sequence;
        Ok(sent)
    }

    /// Requests in an envelope, and the number of their answer: to be sent, or abandoned.
    fn number(
        &self,
        late: bool,
        requests: &[Request],
        name: Option<&str>,
    ) -> Result<(u64, Vec<u8>)> {
        let sequence = self.begin(late)?;
        let bytes = envelope(sequence, requests, name)
            .inspect_err(|_| self.ledger.lock().abandon(sequence))?;
        Ok((sequence, bytes))
    }

    fn send_as(&self, (sequence, bytes): (u64, Vec<u8>), ring: u8) -> Result<Sent> {
        self.count();
        match self.transport.submit_fenced(&bytes, ring) {
            Ok(completion) => Ok(Sent {
                sequence,
                completion,
            }),
            Err(error) => {
                self.ledger.lock().abandon(sequence);
                Err(error)
            }
        }
    }

    /// Nobody will look at the answer.
    pub(crate) fn forget(&self, sent: &Sent) {
        self.transport.forget(&sent.completion);
        self.ledger.lock().forget(sent.sequence);
    }

    /// Sends requests and waits for their answer, whatever it says.
    pub(crate) fn ask(&self, requests: &[Request], name: Option<&str>) -> Result<Answer> {
        let sent = self.send(requests, name, RING_REQUESTS)?;
        let deadline = Instant::now() + self.transport.timeout();
        let waited = self.transport.wait(&sent.completion, Some(deadline));
        self.transport.forget(&sent.completion);
        match waited {
            Ok(true) => self.answer(sent.sequence),
            Ok(false) => {
                self.ledger.lock().forget(sent.sequence);
                Err(Error::DeviceLost("the host does not answer".to_owned()))
            }
            Err(error) => {
                self.ledger.lock().forget(sent.sequence);
                Err(error)
            }
        }
    }

    /// Creates a blob, the requests executed just before, and maps it where it is mappable. `what` names it in errors.
    ///
    /// The error is the host's answer where there is one, since the transport knows less.
    pub(crate) fn create_blob(
        &self,
        spec: BlobSpec<'_>,
        requests: &[Request],
        name: Option<&str>,
        what: &str,
    ) -> Result<(RawBlob, Option<Mapping>, Option<Answer>)> {
        // A kernel may refuse other sizes before it sends the requests, whose place in the answers ring would wait for ever.
        if spec.size == 0 || self.blob_size(spec.size)? != spec.size {
            return Err(Error::invalid(format!("{what} of {} bytes", spec.size)));
        }
        self.count();
        if requests.is_empty() {
            let (blob, mapping) = self.create_and_map(&spec)?;
            return Ok((blob, mapping, None));
        }
        let (sequence, bytes) = self.number(false, requests, name)?;
        let created = self.create_and_map(&BlobSpec {
            command: &bytes,
            ..spec
        });
        if let Err(error) = created {
            // The host may have answered, or may yet.
            let mut ledger = self.ledger.lock();
            let answer = ledger.take(sequence, |s| self.read_page(s));
            ledger.forget(sequence);
            drop(ledger);
            if let Some(answer) = answer {
                check(&answer, what)?;
            }
            return Err(error);
        }
        let (blob, mapping) = created?;
        match self
            .answer(sequence)
            .and_then(|answer| check(&answer, what).map(|()| answer))
        {
            Ok(answer) => Ok((blob, mapping, Some(answer))),
            Err(error) => {
                drop(mapping);
                self.transport.destroy_blob(&blob);
                Err(error)
            }
        }
    }

    fn create_and_map(&self, spec: &BlobSpec<'_>) -> Result<(RawBlob, Option<Mapping>)> {
        let blob = self.transport.create_blob(spec)?;
        if !spec.mappable {
            return Ok((blob, None));
        }
        match self.transport.map_blob(&blob) {
            Ok(mapping) => Ok((blob, Some(mapping))),
            Err(error) => {
                self.transport.destroy_blob(&blob);
                Err(error)
            }
        }
    }

    pub(crate) fn destroy_blob(&self, blob: &RawBlob) {
        self.count();
        self.transport.destroy_blob(blob);
        if self.transport.destroys_later() {
            *self.last_destroyed.lock() = Some(Instant::now());
        }
    }

    /// Where blocks are; told once.
    pub(crate) fn set_shards<'a>(&self, shards: impl Iterator<Item = &'a Arc<Shard>>) {
        let _ = self.shards.set(shards.map(Arc::downgrade).collect());
    }

    /// Gives empty blocks back; whether there were any.
    fn trim(&self) -> bool {
        let shards = self.shards.get().into_iter().flatten();
        let trimmed = shards
            .filter_map(Weak::upgrade)
            .filter(|shard| shard.trim());
        trimmed.count() > 0
    }

    /// When every blob that was destroyed will have reached the host; `None` where all have.
    fn refunds_end(&self) -> Option<Instant> {
        let end = (*self.last_destroyed.lock())? + REFUND_TIME;
        (Instant::now() < end).then_some(end)
    }

    /// Asks for what a blob that was destroyed may stand in the way of: again while the answer is `busy` and one may be on its way to
    /// the host. Where none is, false, and nothing was asked.
    pub(crate) fn ask_behind_refunds(
        &self,
        request: Request,
        busy: Status,
        what: &str,
    ) -> Result<bool> {
        let Some(end) = self.refunds_end() else {
            return Ok(false);
        };
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = self.ask(&[request], None)?;
            if answer.status != busy || Instant::now() >= end {
                return check(&answer, what).map(|()| true);
            }
            std::thread::sleep(pause);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// Tries to get memory; tries again after a shortage without the blocks that are empty, and for as long as memory freed by this process may be
    /// on its way to the host. So whoever frees and allocates at a limit sees them in that order.
    pub(crate) fn with_refunds<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let mut pause = FIRST_PAUSE;
        loop {
            let result = attempt();
            let Err(error) = &result else { return result };
            if !error.is_shortage() {
                return result;
            }
            if self.trim() {
                continue;
            }
            if self.refunds_end().is_none() {
                return result;
            }
            std::thread::sleep(pause);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// Sends requests whose answer nobody needs.
    pub(crate) fn tell(&self, requests: &[Request]) {
        self.tell_named(requests, None);
    }

    /// The same, with a name for the memory that they create or map.
    pub(crate) fn tell_named(&self, requests: &[Request], name: Option<&str>) {
        self.count();
        let told = envelope(0, requests, name).and_then(|bytes| self.transport.submit(&bytes));
        if let Err(error) = told {
            log::debug!("{requests:?}: {error}");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.transport.destroy_blob(&self.control);
    }
}

/// The host's answer as a result.
pub(crate) fn check(answer: &Answer, what: &str) -> Result<()> {
    match answer.status {
        Status::Ok => Ok(()),
        status => Err(Error::status_of(status, what)),
    }
}

fn page_size(capset: &Capset) -> u64 {
    (rustix::param::page_size() as u64).max(u64::from(capset.page_size))
}

fn ring(page: &Mapping) -> Result<Ring<'_>> {
    page.words()
        .and_then(Ring::new)
        .ok_or_else(|| Error::Internal("the control page is too small".to_owned()))
}

fn envelope(sequence: u64, requests: &[Request], name: Option<&str>) -> Result<Vec<u8>> {
    let mut builder = EnvelopeBuilder::new(sequence);
    for &request in requests {
        builder = builder.request(request);
    }
    if let Some(name) = name {
        builder = builder.debug_name(name);
    }
    let bytes = builder.build();
    if bytes.len() > MAX_LENGTH {
        return Err(Error::invalid(format!("requests of {} bytes", bytes.len())));
    }
    Ok(bytes)
}
