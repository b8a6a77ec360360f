//! What guests do, in any order, beside a model: a plain map that says what succeeds, which bytes are where, and how many are charged.

#![no_main]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use hostblob_allocator::Host;
use hostblob_capset::Offer;
use hostblob_device::gpu::Gpu;
use hostblob_fuzz::commands::{
    check_reset, command, create_blob, create_context, map_blob, of_resource, run, submit,
    wait_until,
};
use hostblob_fuzz::model::{CONTEXT_PAGES, MEMORY_PAGES, Model};
use hostblob_fuzz::{PAGE, gpu_of, refusing_host};
use hostblob_protocol::answers::Ring;
use hostblob_protocol::request::{
    BindClientId, CacheMode, Copy, Create, CreateFlags, Fill, Free, MemoryRange, MemorySelector,
    OpenAnswers, Request,
};
use hostblob_protocol::virtio_gpu::{cmd, resp};
use hostblob_protocol::{EnvelopeBuilder, Status};
use libfuzzer_sys::fuzz_target;

/// Pages of the window that commands name, and one: small, so that blobs meet.
const PLACES: u64 = 8;
/// Where the answers rings are: context `n` has page `RINGS + n`, and resource `RINGS + n`.
const RINGS: u32 = 500;

#[derive(Debug, Clone, Copy)]
enum Op {
    /// CTX_CREATE, and an answers ring.
    Open(u32),
    /// CTX_DESTROY, and the end of its ring.
    Close(u32),
    /// Context, client id, pages, with MAP_DIRECTLY or not.
    Create(u32, u64, u64, bool),
    Bind(u32, u64),
    Free(u32, u64),
    /// RESOURCE_CREATE_BLOB: context, resource, client id or 0, pages.
    Blob(u32, u32, u64, u64),
    /// Resource, page of the window.
    Map(u32, u64),
    Unmap(u32),
    Unref(u32),
    /// The guest process writes where its blob is mapped: a page, full of the number.
    Write(u32, u64, u32),
    /// Context, client id, first page, pages, number.
    Fill(u32, u64, u64, u64, u32),
    /// Context, from a client id's page, to a client id's page, pages.
    Copy(u32, (u64, u64), (u64, u64), u64),
    /// CREATE of memory of the device: context, client id, pages.
    Private(u32, u64, u64),
    /// The GPU refuses its next work.
    Refuse,
    Reset,
}

/// Bytes of an operation in the input: records of one length, so that a change to one leaves the others as they are.
const RECORD: usize = 6;

impl From<&[u8; RECORD]> for Op {
    fn from(&[kind, a, b, c, d, e]: &[u8; RECORD]) -> Self {
        let (context, resource) = (u32::from(a % 3), u32::from(b % 6));
        let (client, page, pages) = (u64::from(c % 5), u64::from(d % 4), u64::from(e % 5));
        let number = u32::from_le_bytes([e, d, a, !e]);
        match kind {
            234..246 => return Op::Private(context, client, pages),
            246.. => return Op::Refuse,
            _ => {}
        }
        match kind % 26 {
            0 => Op::Open(context),
            1 => Op::Close(context),
            2..5 => Op::Create(context, client, pages, d & 1 == 0),
            5 => Op::Bind(context, client),
            6 => Op::Free(context, client),
            7..10 => Op::Blob(context, resource, client, pages),
            10..12 => Op::Blob(context, resource, 0, pages),
            12..16 => Op::Map(resource, u64::from(d) % PLACES),
            16 => Op::Unmap(resource),
            17 => Op::Unref(resource),
            18..21 => Op::Write(resource, page, number),
            21..23 => Op::Fill(context, client, page, pages, number),
            23..25 => Op::Copy(context, (client, page), (u64::from(b % 5), page / 2), pages),
            _ => Op::Reset,
        }
    }
}

/// The one host, and whether its GPU refuses next.
fn host() -> &'static (Arc<Host>, Arc<AtomicBool>) {
    static HOST: OnceLock<(Arc<Host>, Arc<AtomicBool>)> = OnceLock::new();
    HOST.get_or_init(|| refusing_host(MEMORY_PAGES * PAGE, CONTEXT_PAGES * PAGE))
}

fn set_refuses(refuses: bool) {
    host().1.store(refuses, Ordering::SeqCst);
}

struct Guest {
    gpu: Gpu,
    model: Model,
    sequence: u64,
}

impl Guest {
    fn new() -> Self {
        Self {
            gpu: gpu_of(&host().0, Arc::new(|| {})),
            model: Model::default(),
            sequence: 0,
        }
    }

    fn run(&mut self, command: &[u8]) -> bool {
        matches!(
            run(&mut self.gpu, command),
            resp::OK_NODATA | resp::OK_MAP_INFO
        )
    }

    fn read(&self, page: u64) -> Vec<u8> {
        let mut bytes = vec![0xee; PAGE as usize];
        let got = rustix::io::pread(self.gpu.window_fd(), &mut bytes, page * PAGE);
        assert_eq!(got, Ok(bytes.len()));
        bytes
    }

    /// SUBMIT_3D of a request, and whether its answer says Ok.
    fn ask(&mut self, context: u32, request: impl Into<Request>) -> bool {
        self.sequence += 1;
        let sequence = self.sequence;
        let envelope = EnvelopeBuilder::new(sequence).request(request).build();
        if !self.run(&submit(context, &envelope)) {
            return false;
        }
        let mut status = None;
        wait_until("an answer", || {
            let _ = self.gpu.completed();
            let bytes = self.read(u64::from(RINGS + context));
            let (words, _) = bytes.as_chunks::<8>();
            let words: Vec<_> = words
                .iter()
                .map(|word| AtomicU64::new(u64::from_ne_bytes(*word)))
                .collect();
            let answer = Ring::new(&words).expect("a page").read(sequence);
            status = answer.map(|answer| answer.status);
            status.is_some()
        });
        status == Some(Status::Ok)
    }

    fn open(&mut self, context: u32) {
        let expected = self.model.open(context);
        assert_eq!(self.run(&create_context(context)), expected, "CTX_CREATE");
        if !expected {
            return;
        }
        let resource = RINGS + context;
        let has_room = self.model.blob(context, resource, 0, 1);
        assert_eq!(self.run(&create_blob(context, resource, 0, PAGE)), has_room);
        if !has_room {
            // Without a ring there is nothing to talk about.
            assert!(self.run(&command(cmd::CTX_DESTROY, context, &())));
            self.model.close(context);
            return;
        }
        assert!(self.run(&map_blob(resource, u64::from(resource) * PAGE)));
        assert!(self.model.map(resource, resource.into()));
        let offer = Offer::EVERYTHING;
        let open = OpenAnswers {
            resource_id: resource,
            major: offer.major,
            minor: offer.minor,
            requests: offer.requests,
            create_flags: offer.create_flags,
        };
        assert!(self.ask(context, open));
    }

    fn close(&mut self, context: u32) {
        let expected = self.model.close(context);
        assert_eq!(self.run(&command(cmd::CTX_DESTROY, context, &())), expected);
        if expected {
            // It was mapped: it outlives its context.
            let ring = of_resource(cmd::RESOURCE_UNREF, 0, RINGS + context);
            assert!(self.run(&ring));
            assert!(self.model.unref(RINGS + context));
        }
    }

    fn apply(&mut self, op: Op) {
        let done = match op {
            Op::Open(context) => return self.open(context),
            Op::Close(context) => return self.close(context),
            Op::Create(context, client_id, pages, direct) => {
                let mut flags = CreateFlags::HOST_VISIBLE;
                flags.set(CreateFlags::MAP_DIRECTLY, direct);
                let create = Create {
                    client_id,
                    size: pages * PAGE,
                    memory: MemorySelector::Properties(0),
                    flags,
                    alignment: 0,
                    expected_cache: CacheMode::Any,
                };
                let expected = self.model.create(context, client_id, pages, direct);
                (self.ask(context, create), expected)
            }
            Op::Bind(context, client_id) => {
                let expected = self.model.bind(context, client_id);
                (self.ask(context, BindClientId { client_id }), expected)
            }
            Op::Free(context, client_id) => {
                let expected = self.model.free(context, client_id);
                (self.ask(context, Free { client_id }), expected)
            }
            Op::Blob(context, resource, client, pages) => {
                let expected = self.model.blob(context, resource, client, pages);
                let create = create_blob(context, resource, client, pages * PAGE);
                (self.run(&create), expected)
            }
            Op::Map(resource, page) => {
                let expected = self.model.map(resource, page);
                (self.run(&map_blob(resource, page * PAGE)), expected)
            }
            Op::Unmap(resource) => {
                let expected = self.model.unmap(resource);
                let unmap = of_resource(cmd::RESOURCE_UNMAP_BLOB, 0, resource);
                (self.run(&unmap), expected)
            }
            Op::Unref(resource) => {
                let expected = self.model.unref(resource);
                let unref = of_resource(cmd::RESOURCE_UNREF, 0, resource);
                (self.run(&unref), expected)
            }
            Op::Write(resource, page, value) => {
                if let Some(place) = self.model.write(resource, page, value) {
                    let bytes = value.to_le_bytes().repeat(PAGE as usize / 4);
                    let written = rustix::io::pwrite(self.gpu.window_fd(), &bytes, place * PAGE);
                    assert_eq!(written, Ok(bytes.len()));
                }
                return;
            }
            Op::Fill(context, client_id, page, pages, value) => {
                let range = range(client_id, page, pages);
                let expected = self.model.fill(context, client_id, page, pages, value);
                (self.ask(context, Fill { range, value }), expected)
            }
            Op::Copy(context, from, to, pages) => {
                let expected = self.model.copy(context, from, to, pages);
                let copy = Copy {
                    source: range(from.0, from.1, pages),
                    destination_client_id: to.0,
                    destination_offset: to.1 * PAGE,
                };
                (self.ask(context, copy), expected)
            }
            Op::Private(context, client_id, pages) => {
                let create = Create {
                    client_id,
                    size: pages * PAGE,
                    memory: MemorySelector::Index(0),
                    flags: CreateFlags::empty(),
                    alignment: 0,
                    expected_cache: CacheMode::Any,
                };
                let expected = self.model.create_private(context, client_id, pages);
                (self.ask(context, create), expected)
            }
            Op::Refuse => {
                self.model.refuses = true;
                return set_refuses(true);
            }
            Op::Reset => {
                self.gpu.reset();
                self.model = Model::default();
                return set_refuses(false);
            }
        };
        assert_eq!(done.0, done.1, "whether {op:?} succeeds");
    }

    /// The device is as the model says.
    fn check(&mut self, op: Op) {
        let expected = self.model.charged() * PAGE;
        wait_until("the right charge", || {
            let _ = self.gpu.completed();
            host().0.used() == expected
        });
        for (place, value) in self.model.visible(RINGS) {
            let bytes = self.read(place);
            let (words, _) = bytes.as_chunks::<4>();
            let wrong = words.iter().position(|word| *word != value.to_le_bytes());
            assert_eq!(
                wrong, None,
                "page {place} is not all {value:#x} after {op:?}"
            );
        }
    }
}

fn range(client_id: u64, page: u64, pages: u64) -> MemoryRange {
    MemoryRange {
        client_id,
        offset: page * PAGE,
        length: pages * PAGE,
    }
}

fuzz_target!(|bytes: &[u8]| {
    set_refuses(false);
    let mut guest = Guest::new();
    for context in [1, 2] {
        guest.open(context);
    }
    let (records, _) = bytes.as_chunks();
    for op in records.iter().take(64).map(Op::from) {
        guest.apply(op);
        guest.check(op);
    }
    check_reset(&mut guest.gpu, &host().0);
});
