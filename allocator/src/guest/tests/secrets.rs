//! What one context wrote is gone when another could see it: written by the processor and by the GPU, given up in every way that there is,
//! looked for in all that the device hands out.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use hostblob_protocol::request::Publish;

use super::*;
use crate::exports::{Event, Exporter, Exports, Viewer};
use crate::host::Outside;
use crate::provider::{Choice, Options, Piece, Placement, open};

const WORD: u32 = 0x5ec2_e7a5;
const SECRET: u64 = (WORD as u64) << 32 | WORD as u64;
const OWNER: u32 = 1;
const THIEF: u32 = 9;
const CLIENT: u64 = 5;
const BLOB: u32 = 50;
/// Where the secret is, and how many pages it has.
const PAGE_AT: u64 = 4;
const PAGES: u64 = 8;

/// What a host process gets: the pages as they are when it asks. Hosts of tests need not have udmabuf.
struct AsTheyAre;

impl Exporter for AsTheyAre {
    fn create(&self, pieces: &[Piece]) -> std::io::Result<OwnedFd> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let copy = File::from(rustix::fs::memfd_create("seen", flags)?);
        let mut at = 0;
        for piece in pieces {
            let mut bytes = vec![0; usize::try_from(piece.length).unwrap()];
            piece.file.read_exact_at(&mut bytes, piece.offset)?;
            copy.write_all_at(&bytes, at)?;
            at += piece.length;
        }
        Ok(copy.into())
    }
}

struct House {
    fixture: Fixture,
    viewer: Viewer,
    /// Nobody holds completions back here.
    with_a_gpu: bool,
}

impl House {
    fn new(gpu: Option<&Arc<dyn Provider>>) -> Self {
        let exports = Exports::new();
        let viewer = exports.join(Arc::new(|| {})).unwrap();
        let mut fixture = Fixture::with(|fake, config| {
            let outside = Outside {
                exports: Some(exports),
                exporter: Some(Arc::new(AsTheyAre)),
            };
            let provider = gpu.map_or(fake, Arc::clone);
            Host::with_outside(provider, config, outside).unwrap()
        });
        fixture.open(OWNER, RING, RING_OFFSET);
        Self {
            fixture,
            viewer,
            with_a_gpu: gpu.is_some(),
        }
    }

    fn ok(&mut self, context: u32, request: impl Into<Ask>) {
        assert_eq!(self.fixture.ask(context, request).status, Status::Ok);
    }

    /// Memory whose name outlives its blob.
    fn named(&mut self, context: u32, client_id: u64, pages: u64) {
        let flags = CreateFlags::HOST_VISIBLE | CreateFlags::SHAREABLE;
        let status = self.fixture.create(context, client_id, pages, flags);
        assert_eq!(status, Status::Ok);
    }

    fn blob(&mut self, context: u32, resource_id: u32, client_id: u64, pages: u64) {
        self.ok(context, BindClientId { client_id });
        let spec = BlobSpec {
            resource_id,
            blob_mem: blob_mem::HOST3D,
            blob_flags: blob_flag::USE_MAPPABLE | blob_flag::USE_SHAREABLE,
            blob_id: client_id,
            size: pages * PAGE,
        };
        self.fixture
            .guest
            .create_blob(context, &spec, None)
            .unwrap();
    }

    fn fill(&mut self, context: u32, client_id: u64, pages: u64) {
        let fill = Fill {
            range: range(client_id, 0, pages * PAGE),
            value: WORD,
        };
        self.ok(context, fill);
    }

    /// Memory of the device alone.
    fn private(&mut self, context: u32, client_id: u64) {
        let types = &self.fixture.guest.host.provider.description().memory_types;
        let in_device = types
            .iter()
            .position(|it| it.placement == Placement::Device);
        let create = Create {
            memory: MemorySelector::Index(u32::try_from(in_device.unwrap()).unwrap()),
            ..create(client_id, PAGES * PAGE, CreateFlags::empty())
        };
        self.ok(context, create);
    }

    /// The secret, mapped: written by the processor, or filled or copied by the GPU.
    fn hold_secret(&mut self, writer: Writer) {
        self.named(OWNER, CLIENT, PAGES);
        self.blob(OWNER, BLOB, CLIENT, PAGES);
        let mapped = self.fixture.guest.map_blob(BLOB, PAGE_AT * PAGE);
        mapped.unwrap();
        match writer {
            Writer::Processor => self.fixture.write(PAGE_AT, PAGES, SECRET),
            Writer::Fill => self.fill(OWNER, CLIENT, PAGES),
            Writer::Copy => {
                self.private(OWNER, CLIENT + 1);
                self.fill(OWNER, CLIENT + 1, PAGES);
                self.copy(OWNER, CLIENT + 1, CLIENT);
                self.ok(
                    OWNER,
                    Free {
                        client_id: CLIENT + 1,
                    },
                );
            }
        }
        assert!(self.fixture.all(PAGE_AT, PAGES, SECRET), "{writer:?}");
    }

    fn copy(&mut self, context: u32, from: u64, to: u64) {
        let copy = Copy {
            source: range(from, 0, PAGES * PAGE),
            destination_client_id: to,
            destination_offset: 0,
        };
        self.ok(context, copy);
    }

    fn unref(&mut self, resource: u32) {
        self.fixture.guest.unref(resource).unwrap();
    }

    /// Takes the secret's place, while it is not mapped: it goes to the parking file.
    fn take_its_place(&mut self) {
        self.fixture.guest.unmap_blob(BLOB).unwrap();
        self.fixture.plain(OWNER, BLOB + 1, PAGE).unwrap();
        let middle = (PAGE_AT + PAGES / 2) * PAGE;
        self.fixture.guest.map_blob(BLOB + 1, middle).unwrap();
        let parked = self.fixture.guest.parking.first().unwrap();
        assert!(has_secret(parked.file()), "it is outside now");
    }

    /// A host process looks at a memory.
    fn seen_outside(&mut self, context: u32, client_id: u64) -> Vec<u8> {
        let publish = Publish {
            client_id,
            offset: 0,
            width: 32,
            height: 32,
            stride: 128,
            fourcc: 0x3432_5258,
            modifier: 0,
        };
        self.ok(context, publish);
        let mut id = None;
        for event in self.viewer.events().try_iter() {
            if let Event::Added(blob) = event {
                id = Some(blob.id);
            }
        }
        self.viewer.open(1, id.expect("it is listed"));
        self.fixture.guest.process_completions();
        for event in self.viewer.events().try_iter() {
            if let Event::Opened { result, .. } = event {
                let file = File::from(result.unwrap().descriptor.try_clone().unwrap());
                let mut bytes = vec![0; usize::try_from(PAGES * PAGE).unwrap()];
                file.read_exact_at(&mut bytes, 0).unwrap();
                return bytes;
            }
        }
        panic!("no descriptor");
    }

    /// Everything that another context gets from now on is zeros, however it asks.
    fn nothing_is_left(&mut self, what: &str) {
        let guest = &mut self.fixture.guest;
        guest.wait_for(guest.work.submitted()).unwrap();
        guest.process_completions();
        if !guest.has_context(THIEF) {
            self.fixture.open(THIEF, RING + 9, RING_OFFSET - PAGE);
        }
        // Before anybody had time to clean: the place itself, parts of it, and more than it.
        for (page, pages) in [(PAGE_AT, PAGES), (PAGE_AT + 3, 2), (PAGE_AT - 4, 20)] {
            self.fixture.allocate(THIEF, 77, 77, page, pages);
            assert!(self.fixture.all(page, pages, 0), "{what}: page {page}");
            self.unref(77);
        }
        // Bytes that are nowhere in the window: of the parking file, and of the device.
        self.named(THIEF, 78, PAGES);
        self.blob(THIEF, 78, 78, PAGES);
        self.fixture.guest.map_blob(78, 30 * PAGE).unwrap();
        self.named(THIEF, 79, PAGES);
        self.copy(THIEF, 79, 78);
        assert!(self.fixture.all(30, PAGES, 0), "{what}: never mapped");
        self.private(THIEF, 80);
        self.copy(THIEF, 80, 78);
        assert!(self.fixture.all(30, PAGES, 0), "{what}: of the device");
        let seen = self.seen_outside(THIEF, 79);
        assert!(seen.iter().all(|byte| *byte == 0), "{what}: outside");
        for client_id in [79, 80] {
            self.ok(THIEF, Free { client_id });
        }
        self.unref(78);
        self.ok(THIEF, Free { client_id: 78 });
        // And the files themselves, as far as anybody could ever see.
        let guest = &self.fixture.guest;
        guest.window.settle();
        assert!(!has_secret(guest.window.file()), "{what}: the window");
        let mut parking = guest.parking.iter();
        let parked = parking.any(|parking| has_secret(parking.file()));
        assert!(!parked, "{what}: the parking file");
    }
}

fn has_secret(file: &crate::window::SharedFile) -> bool {
    let all = Span::new(0, file.size(), file.size()).unwrap();
    let mut words = file.words(all).iter();
    words.any(|word| word.load(Ordering::Relaxed) == SECRET)
}

#[derive(Debug, Clone, Copy)]
enum Writer {
    Processor,
    Fill,
    Copy,
}

/// A way to give memory up, its name and what it does.
type Way = (&'static str, fn(&mut House));

const WAYS: [Way; 12] = [
    ("unmapped, unreferenced and freed", |house| {
        house.fixture.guest.unmap_blob(BLOB).unwrap();
        house.unref(BLOB);
        house.ok(OWNER, Free { client_id: CLIENT });
    }),
    ("unreferenced while it was mapped", |house| {
        house.ok(OWNER, Free { client_id: CLIENT });
        house.unref(BLOB);
    }),
    ("gone with its context", |house| {
        house.fixture.guest.unmap_blob(BLOB).unwrap();
        house.fixture.guest.destroy_context(OWNER).unwrap();
    }),
    ("mapped longer than its context was there", |house| {
        house.fixture.guest.destroy_context(OWNER).unwrap();
        assert!(house.fixture.all(PAGE_AT, PAGES, SECRET));
        house.unref(BLOB);
    }),
    ("gone when the guest was reset", |house| {
        house.fixture.guest.reset();
    }),
    ("parked, then freed", |house| {
        house.take_its_place();
        house.unref(BLOB);
        house.ok(OWNER, Free { client_id: CLIENT });
        house.unref(BLOB + 1);
    }),
    ("parked, then gone with its context", |house| {
        house.take_its_place();
        house.unref(BLOB + 1);
        house.fixture.guest.destroy_context(OWNER).unwrap();
    }),
    ("parked, then gone when the guest was reset", |house| {
        house.take_its_place();
        house.fixture.guest.reset();
    }),
    ("parked, brought back elsewhere, then freed", |house| {
        house.take_its_place();
        house.fixture.guest.map_blob(BLOB, 40 * PAGE).unwrap();
        assert!(house.fixture.all(40, PAGES, SECRET));
        house.ok(OWNER, Free { client_id: CLIENT });
        house.unref(BLOB);
        house.unref(BLOB + 1);
    }),
    ("moved while it was not mapped, then freed", |house| {
        house.fixture.guest.unmap_blob(BLOB).unwrap();
        // Over its own place.
        let to = (PAGE_AT + 2) * PAGE;
        house.fixture.guest.map_blob(BLOB, to).unwrap();
        assert!(house.fixture.all(PAGE_AT + 2, PAGES, SECRET));
        house.ok(OWNER, Free { client_id: CLIENT });
        house.unref(BLOB);
    }),
    ("freed while a host process had it open", |house| {
        let seen = house.seen_outside(OWNER, CLIENT);
        assert!(seen.chunks(8).all(|word| word == SECRET.to_le_bytes()));
        house.unref(BLOB);
        house.ok(OWNER, Free { client_id: CLIENT });
    }),
    ("freed while the GPU wrote it", |house| {
        if !house.with_a_gpu {
            house.fixture.fake.hold();
        }
        let fill = Fill {
            range: range(CLIENT, 0, PAGES * PAGE),
            value: WORD,
        };
        for _ in 0..20 {
            house.fixture.send(OWNER, fill);
        }
        house.fixture.send(OWNER, Free { client_id: CLIENT });
        house.unref(BLOB);
        if !house.with_a_gpu {
            house.fixture.guest.window.settle();
            assert!(
                house.fixture.all(PAGE_AT, PAGES, SECRET),
                "not before the GPU is done"
            );
            house.fixture.fake.release_all();
        }
    }),
];

/// Ways of memory that is never mapped.
const PRIVATE_WAYS: [Way; 3] = [
    ("of the parking file from the beginning", |house| {
        house.named(OWNER, CLIENT, PAGES);
        house.fill(OWNER, CLIENT, PAGES);
        house.ok(OWNER, Free { client_id: CLIENT });
    }),
    ("of the device", |house| {
        house.private(OWNER, CLIENT);
        house.fill(OWNER, CLIENT, PAGES);
        house.ok(OWNER, Free { client_id: CLIENT });
    }),
    ("of the device, gone with its context", |house| {
        house.private(OWNER, CLIENT);
        house.fill(OWNER, CLIENT, PAGES);
        house.fixture.guest.destroy_context(OWNER).unwrap();
    }),
];

fn nothing_of_a_secret_is_left(gpu: Option<&Arc<dyn Provider>>) {
    for writer in [Writer::Processor, Writer::Fill, Writer::Copy] {
        for (what, give_up) in WAYS {
            let mut house = House::new(gpu);
            house.hold_secret(writer);
            give_up(&mut house);
            house.nothing_is_left(&format!("{writer:?}, {what}"));
        }
    }
    for (what, give_up) in PRIVATE_WAYS {
        let mut house = House::new(gpu);
        give_up(&mut house);
        house.nothing_is_left(what);
    }
}

#[test]
fn nothing_of_a_secret_is_left_by_the_processor() {
    nothing_of_a_secret_is_left(None);
}

#[test]
fn nothing_of_a_secret_is_left_by_a_gpu() {
    for choice in [Choice::Vulkan, Choice::Gl] {
        let opened = open(choice, &Options::default()).unwrap();
        nothing_of_a_secret_is_left(Some(&opened.provider));
    }
}
