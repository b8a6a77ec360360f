//! What guests do, in any order, beside a model: a plain map that says what succeeds, which bytes are where, and how many are charged.

#![no_main]

use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use arbitrary::{Arbitrary, Unstructured};
use hostblob_allocator::Host;
use hostblob_capset::Offer;
use hostblob_device::gpu::Gpu;
use hostblob_fuzz::commands::{
    check_reset, command, create_blob, create_context, map_blob, of_resource, run, submit,
    wait_until,
};
use hostblob_fuzz::model::{CONTEXT_PAGES, MEMORY_PAGES, Model};
use hostblob_fuzz::{PAGE, gpu_of, host_with};
use hostblob_protocol::answers::Ring;
use hostblob_protocol::request::{
    BindClientId, CacheMode, Copy, Create, CreateFlags, Fill, Free, MemoryRange, MemorySelector,
    OpenAnswers, Request,
};
use hostblob_protocol::virtio_gpu::{cmd, resp};
use hostblob_protocol::{EnvelopeBuilder, Status};
use libfuzzer_sys::fuzz_target;

/// Pages of the window that commands name, and one: small, so that blobs meet.
const PLACES: u64 = 24;
/// Where the answers rings are: context `n` has page `RINGS + n`, and resource `RINGS + n`.
const RINGS: u32 = 500;

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Op {
    /// CTX_CREATE, and an answers ring.
    Open(Context),
    /// CTX_DESTROY, and the end of its ring.
    Close(Context),
    Create(Context, Client, Pages, bool),
    Bind(Context, Client),
    Free(Context, Client),
    /// RESOURCE_CREATE_BLOB with a client id, or with 0.
    Blob(Context, Resource, Option<Client>, Pages),
    Map(Resource, Small<PLACES>),
    Unmap(Resource),
    Unref(Resource),
    /// The guest process writes where its blob is mapped.
    Write(Resource, Small<6>, u32),
    Fill(Context, Client, Small<6>, Pages, u32),
    Copy(Context, Client, Small<6>, Client, Small<6>, Pages),
    Reset,
}

/// 0 to N - 1.
#[derive(Debug, Clone, Copy)]
struct Small<const N: u64>(u64);

impl<'a, const N: u64> Arbitrary<'a> for Small<N> {
    fn arbitrary(from: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(u64::from(u8::arbitrary(from)?) % N))
    }
}

type Context = Small<4>;
type Client = Small<5>;
type Resource = Small<8>;
type Pages = Small<7>;

fn host() -> &'static Arc<Host> {
    static HOST: OnceLock<Arc<Host>> = OnceLock::new();
    HOST.get_or_init(|| host_with(MEMORY_PAGES * PAGE, CONTEXT_PAGES * PAGE))
}

struct Guest {
    gpu: Gpu,
    model: Model,
    sequence: u64,
}

impl Guest {
    fn new() -> Self {
        Self {
            gpu: gpu_of(host(), Arc::new(|| {})),
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
        let (context, resource) = (|of: Context| of.0 as u32, |of: Resource| of.0 as u32);
        match op {
            Op::Open(of) => self.open(context(of)),
            Op::Close(of) => self.close(context(of)),
            Op::Create(of, Small(client_id), Small(pages), direct) => {
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
                let expected = self.model.create(context(of), client_id, pages, direct);
                assert_eq!(self.ask(context(of), create), expected, "{op:?}");
            }
            Op::Bind(of, Small(client_id)) => {
                let expected = self.model.bind(context(of), client_id);
                let asked = self.ask(context(of), BindClientId { client_id });
                assert_eq!(asked, expected, "{op:?}");
            }
            Op::Free(of, Small(client_id)) => {
                let expected = self.model.free(context(of), client_id);
                assert_eq!(
                    self.ask(context(of), Free { client_id }),
                    expected,
                    "{op:?}"
                );
            }
            Op::Blob(of, id, client, Small(pages)) => {
                let client = client.map_or(0, |client| client.0);
                let expected = self.model.blob(context(of), resource(id), client, pages);
                let create = create_blob(context(of), resource(id), client, pages * PAGE);
                assert_eq!(self.run(&create), expected, "{op:?}");
            }
            Op::Map(id, Small(page)) => {
                let expected = self.model.map(resource(id), page);
                let map = map_blob(resource(id), page * PAGE);
                assert_eq!(self.run(&map), expected, "{op:?}");
            }
            Op::Unmap(id) => {
                let expected = self.model.unmap(resource(id));
                let unmap = of_resource(cmd::RESOURCE_UNMAP_BLOB, 0, resource(id));
                assert_eq!(self.run(&unmap), expected, "{op:?}");
            }
            Op::Unref(id) => {
                let expected = self.model.unref(resource(id));
                let unref = of_resource(cmd::RESOURCE_UNREF, 0, resource(id));
                assert_eq!(self.run(&unref), expected, "{op:?}");
            }
            Op::Write(id, Small(page), value) => {
                if let Some(place) = self.model.write(resource(id), page, value) {
                    let bytes = value.to_le_bytes().repeat(PAGE as usize / 4);
                    let window = self.gpu.window_fd();
                    let written = rustix::io::pwrite(window.as_fd(), &bytes, place * PAGE);
                    assert_eq!(written, Ok(bytes.len()));
                }
            }
            Op::Fill(of, Small(client_id), Small(page), Small(pages), value) => {
                let range = range(client_id, page, pages);
                let expected = self.model.fill(context(of), client_id, page, pages, value);
                assert_eq!(
                    self.ask(context(of), Fill { range, value }),
                    expected,
                    "{op:?}"
                );
            }
            Op::Copy(of, from, Small(from_page), to, Small(to_page), Small(pages)) => {
                let expected =
                    self.model
                        .copy(context(of), (from.0, from_page), (to.0, to_page), pages);
                let copy = Copy {
                    source: range(from.0, from_page, pages),
                    destination_client_id: to.0,
                    destination_offset: to_page * PAGE,
                };
                assert_eq!(self.ask(context(of), copy), expected, "{op:?}");
            }
            Op::Reset => {
                self.gpu.reset();
                self.model = Model::default();
            }
        }
    }

    /// The device is as the model says.
    fn check(&mut self, op: Op) {
        let expected = self.model.charged() * PAGE;
        wait_until("the right charge", || {
            let _ = self.gpu.completed();
            host().used() == expected
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

fuzz_target!(|ops: Vec<Op>| {
    let mut guest = Guest::new();
    for &op in ops.iter().take(64) {
        guest.apply(op);
        guest.check(op);
    }
    check_reset(&mut guest.gpu, host());
});
