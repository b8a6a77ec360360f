//! A daemon that misbehaves on order: speaks the local socket's framing, and does on the CPU what is asked, if its script does not say otherwise.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "a test's own small numbers"
)]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what a test expects"
)]

mod output;
mod viewers;

use std::collections::HashMap;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hostblob_guest::capset::{
    BlobMem, Cache, Capset, Heap, Limits, MemoryType, Offer, Provider, WindowMode,
};
use hostblob_guest::protocol::answers::{MAX_SIZE, Ring};
use hostblob_guest::protocol::local::{Frame, HELLO, Hello, VERSION};
use hostblob_guest::protocol::virtio_gpu::{
    CtrlHdr, FLAG_FENCE, ResourceCreateBlob, ResourceMapBlob, cmd, resp,
};
use hostblob_guest::protocol::{DEFAULT_CAPSET_ID, Envelope, Request, Status};
use hostblob_guest::{Device, OpenOptions};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use output::{Output, Told};
use viewers::Viewers;

pub(crate) const WINDOW: u64 = 1 << 30;

/// What goes wrong.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) hello_version: u32,
    pub(crate) window_bytes: u64,
    pub(crate) send_window: bool,
    /// Closes the connection after so many commands.
    pub(crate) hang_up_after: Option<usize>,
    /// Answers nothing after so many commands.
    pub(crate) go_silent_after: Option<usize>,
    /// The status that requests of this bit get.
    pub(crate) refuse: Option<(u64, Status)>,
    /// Largest `Create` that is granted.
    pub(crate) largest_create: u64,
    /// Fences on ring 1 wait until so many are there, then come in the opposite order.
    pub(crate) reverse_fences: usize,
    /// Maps blobs there instead.
    pub(crate) map_at: Option<u64>,
    /// Maps refused with this response once the control page is there.
    pub(crate) refuse_maps: Option<u32>,
    /// BINDs yet to come while the memory's last blob still is on its way: they find it bound.
    pub(crate) early_binds: Arc<AtomicU32>,
    pub(crate) types: Vec<MemoryType>,
    pub(crate) offer: Offer,
    pub(crate) blob_mem: BlobMem,
    /// All requests so far, with their ring.
    pub(crate) log: Arc<Mutex<Vec<(u8, Request)>>>,
    pub(crate) viewers: Arc<Viewers>,
}

impl Script {
    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<(u8, Request)> {
        self.log.lock().unwrap().clone()
    }
}

impl Default for Script {
    fn default() -> Self {
        Self {
            hello_version: VERSION,
            window_bytes: WINDOW,
            send_window: true,
            hang_up_after: None,
            go_silent_after: None,
            refuse: None,
            largest_create: u64::MAX,
            reverse_fences: 1,
            map_at: None,
            refuse_maps: None,
            early_binds: Arc::default(),
            types: vec![
                MemoryType {
                    property_flags: 0x1,
                    heap: 0,
                    cache: Cache::Cached,
                },
                MemoryType {
                    property_flags: 0xf,
                    heap: 0,
                    cache: Cache::Cached,
                },
                MemoryType {
                    property_flags: 0x2,
                    heap: 0,
                    cache: Cache::WriteCombined,
                },
            ],
            offer: Offer::EVERYTHING,
            blob_mem: BlobMem::HOST3D,
            log: Arc::default(),
            viewers: Arc::default(),
        }
    }
}

pub(crate) fn capset(script: &Script) -> Capset {
    Capset {
        offer: script.offer,
        window_mode: WindowMode::Premapped,
        window_size: WINDOW,
        limits: Limits {
            max_blob_size: WINDOW,
            max_context_bytes: WINDOW,
            max_device_bytes: WINDOW,
            max_context_blobs: 1 << 20,
        },
        page_size: 4096,
        non_coherent_atom_size: 256,
        provider: Provider::System,
        vendor_id: 0,
        device_id: 0,
        device_uuid: [1; 16],
        driver_uuid: [2; 16],
        device_name: "fake device".to_owned(),
        driver_name: "fake driver".to_owned(),
        heaps: vec![Heap {
            size: WINDOW,
            flags: 0,
        }],
        types: script.types.clone(),
        blob_mem: script.blob_mem,
    }
}

/// Under which memory is shared.
pub(crate) fn uuid_of(client_id: u64) -> [u8; 16] {
    std::array::from_fn(|index| client_id as u8 ^ (index as u8) << 4)
}

/// A running fake daemon that serves one client. The socket's file goes with it.
pub(crate) struct Fake {
    pub(crate) path: PathBuf,
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Fake {
    pub(crate) fn start(script: Script) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hb-fake-{}-{number}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let _ = Client::new(stream, script).serve();
        });
        Self { path }
    }

    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions {
            timeout: Duration::from_secs(10),
            ..OpenOptions::socket(&self.path)
        }
    }

    pub(crate) fn open(&self) -> Device {
        Device::open(&self.options()).unwrap()
    }
}

struct Client {
    stream: UnixStream,
    output: Arc<Output>,
    script: Script,
    window: std::fs::File,
    sizes: HashMap<u32, u64>,
    offsets: HashMap<u32, u64>,
    /// Client ids of resources, and where client ids are.
    names: HashMap<u32, u64>,
    places: HashMap<u64, u64>,
    /// Where shared memory is.
    shared: HashMap<[u8; 16], u64>,
    next_offset: u64,
    answers: Option<(u64, usize)>,
    held: Vec<(u64, Told)>,
    commands: usize,
}

impl Client {
    fn new(stream: UnixStream, script: Script) -> Self {
        let window = rustix::fs::memfd_create("fake", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&window, script.window_bytes).unwrap();
        let window: std::fs::File = OwnedFd::into(window);
        let output = Output {
            stream: Mutex::new(stream.try_clone().unwrap()),
            window: window.try_clone().unwrap(),
        };
        Self {
            stream,
            output: Arc::new(output),
            script,
            window,
            sizes: HashMap::new(),
            offsets: HashMap::new(),
            names: HashMap::new(),
            places: HashMap::new(),
            shared: HashMap::new(),
            next_offset: 0,
            answers: None,
            held: Vec::new(),
            commands: 0,
        }
    }

    fn greet(&mut self) {
        let hello = Hello {
            version: U32::new(self.script.hello_version),
            capset_id: U32::new(DEFAULT_CAPSET_ID),
            window_size: U64::new(WINDOW),
            features: U64::new(0b11001),
        };
        let frame = Frame {
            length: U32::new(24),
            kind: U32::new(HELLO),
            ..Frame::default()
        };
        let fds = [self.window.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if self.script.send_window {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let bytes = [
            IoSlice::new(frame.as_bytes()),
            IoSlice::new(hello.as_bytes()),
        ];
        rustix::net::sendmsg(&self.stream, &bytes, &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    fn serve(mut self) -> std::io::Result<()> {
        self.greet();
        loop {
            let mut frame = [0; 24];
            self.stream.read_exact(&mut frame)?;
            let frame = Frame::read_from_bytes(&frame).unwrap();
            let mut command = vec![0; frame.length.get() as usize];
            self.stream.read_exact(&mut command)?;
            self.commands += 1;
            if self
                .script
                .hang_up_after
                .is_some_and(|most| self.commands > most)
            {
                return Ok(());
            }
            if self
                .script
                .go_silent_after
                .is_some_and(|most| self.commands > most)
            {
                continue;
            }
            self.execute(frame.tag.get(), &command)?;
        }
    }

    fn respond(&self, tag: u64, kind: u32, aux: u64, body: &[u8]) -> std::io::Result<()> {
        self.output.respond(tag, kind, aux, body)
    }

    fn execute(&mut self, tag: u64, command: &[u8]) -> std::io::Result<()> {
        let (header, body) = CtrlHdr::read_from_prefix(command).unwrap();
        match header.cmd_type.get() {
            cmd::GET_CAPSET => {
                let bytes = capset(&self.script).encode();
                self.respond(tag, resp::OK_CAPSET, 0, &bytes)
            }
            cmd::RESOURCE_CREATE_BLOB => {
                let create = ResourceCreateBlob::read_from_bytes(body).unwrap();
                self.sizes
                    .insert(create.resource_id.get(), create.size.get());
                self.names
                    .insert(create.resource_id.get(), create.blob_id.get());
                self.respond(tag, resp::OK_NODATA, 0, &[])
            }
            cmd::RESOURCE_MAP_BLOB => {
                let map = ResourceMapBlob::read_from_bytes(body).unwrap();
                let resource = map.resource_id.get();
                if let (Some(kind), true) = (self.script.refuse_maps, self.answers.is_some()) {
                    return self.respond(tag, kind, 0, &[]);
                }
                let name = self.names[&resource];
                let offset = match self.places.get(&name) {
                    Some(&place) if name != 0 => place,
                    _ => self.place(self.sizes[&resource]),
                };
                self.offsets.insert(resource, offset);
                self.places.insert(name, offset);
                let told = self.script.map_at.filter(|_| self.answers.is_some());
                self.respond(
                    tag,
                    resp::OK_MAP_INFO,
                    told.unwrap_or(offset),
                    &[1, 0, 0, 0, 0, 0, 0, 0],
                )
            }
            cmd::SUBMIT_3D => self.submit(tag, &header, &body[8..]),
            _ => self.respond(tag, resp::OK_NODATA, 0, &[]),
        }
    }

    fn place(&mut self, size: u64) -> u64 {
        self.next_offset += size;
        self.next_offset - size
    }

    fn submit(&mut self, tag: u64, header: &CtrlHdr, bytes: &[u8]) -> std::io::Result<()> {
        let envelope = Envelope::decode(bytes).unwrap();
        let mut status = Status::Ok;
        let mut details = [0; 2];
        let mut wait = None;
        let ring = header.ring_idx;
        for request in &envelope.requests {
            self.script.log.lock().unwrap().push((ring, *request));
            match request {
                Request::OpenAnswers(open) => {
                    let page = self.offsets[&open.resource_id];
                    let size = self.sizes[&open.resource_id].min(MAX_SIZE as u64);
                    let words: Vec<AtomicU64> = (0..size / 8).map(|_| AtomicU64::new(0)).collect();
                    let ring = Ring::new(&words).unwrap();
                    ring.initialise();
                    self.answers = Some((page, ring.slots()));
                    let bytes: Vec<u8> = words
                        .iter()
                        .flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes())
                        .collect();
                    self.window.write_all_at(&bytes, page).unwrap();
                }
                Request::Create(create) if create.size > self.script.largest_create => {
                    status = Status::ContextQuotaExceeded;
                }
                Request::Fill(fill) => {
                    let range = fill.range;
                    let bytes = fill.value.to_le_bytes().repeat(range.length as usize / 4);
                    self.write(range.client_id, range.offset, &bytes);
                }
                Request::Copy(copy) => {
                    let mut bytes = vec![0; copy.source.length as usize];
                    let from = self.places[&copy.source.client_id] + copy.source.offset;
                    self.window.read_exact_at(&mut bytes, from).unwrap();
                    self.write(copy.destination_client_id, copy.destination_offset, &bytes);
                }
                Request::Share(share) => {
                    let uuid = uuid_of(share.client_id);
                    let place = self.places[&share.client_id];
                    self.shared.insert(uuid, place);
                    let half = |at| u64::from_le_bytes(uuid[at..at + 8].try_into().unwrap());
                    details = [half(0), half(8)];
                }
                Request::Import(import) => match self.shared.get(&import.uuid) {
                    Some(&place) => {
                        self.places.insert(import.client_id, place);
                        details = [1, 8192];
                    }
                    None => status = Status::UnknownUuid,
                },
                Request::ImportResource(import) => match self.offsets.get(&import.resource_id) {
                    Some(&place) => {
                        self.places.insert(import.client_id, place);
                        details = [1, self.sizes[&import.resource_id]];
                    }
                    None => status = Status::InvalidArgument,
                },
                Request::BindClientId(_) => {
                    let early = &self.script.early_binds;
                    let left = early.load(Ordering::Relaxed);
                    if left > 0 {
                        early.store(left - 1, Ordering::Relaxed);
                        status = Status::AlreadyBound;
                    }
                }
                Request::Present(present) => {
                    self.script.viewers.hold(present.offset);
                }
                Request::WaitReleased(asked) => wait = Some((asked.offset, asked.timeout)),
                _ => {}
            }
            if let Some((bit, refused)) = self.script.refuse
                && request.bit() == bit
            {
                status = refused;
            }
        }
        let answer =
            move |status| (envelope.sequence != 0).then_some((envelope.sequence, status, details));
        if let (Some((offset, timeout)), Status::Ok) = (wait, status) {
            let (output, answers) = (self.output.clone(), self.answers);
            let viewers = self.script.viewers.clone();
            std::thread::spawn(move || {
                output.answer(answers, answer(viewers.wait(offset, timeout)));
                let _ = output.respond(tag, resp::OK_NODATA, 0, &[]);
            });
            return Ok(());
        }
        let answer = answer(status);
        if header.flags.get() & FLAG_FENCE != 0 && ring == 1 {
            self.held.push((tag, answer));
            if self.held.len() >= self.script.reverse_fences {
                for (tag, answer) in std::mem::take(&mut self.held).into_iter().rev() {
                    self.output.answer(self.answers, answer);
                    self.respond(tag, resp::OK_NODATA, 0, &[])?;
                }
            }
            return Ok(());
        }
        self.output.answer(self.answers, answer);
        self.respond(tag, resp::OK_NODATA, 0, &[])
    }

    fn write(&self, client_id: u64, offset: u64, bytes: &[u8]) {
        self.window
            .write_all_at(bytes, self.places[&client_id] + offset)
            .unwrap();
    }
}
