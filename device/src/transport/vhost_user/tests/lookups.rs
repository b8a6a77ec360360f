//! Objects of other devices of the VM, which the guest imports by their UUIDs.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use hostblob_capset::Offer;
use hostblob_protocol::answers::{Answer, Ring};
use hostblob_protocol::request::{
    BindClientId, Copy, Create, CreateFlags, Fill, Import, MemoryRange, MemorySelector,
    OpenAnswers, Request, Share,
};
use hostblob_protocol::virtio_gpu::{cmd, resp};
use hostblob_protocol::{EnvelopeBuilder, Status};
use rustix::fs::{MemfdFlags, SealFlags};
use uuid::Uuid;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures as Features, VhostUserSharedMsg};

use super::vmm::{Daemon, Vmm, crosvm, only, qemu};
use crate::transport::vhost_user::channel::REPLY_TIMEOUT;

const PAGE: u64 = 4096;
const RING: u32 = 1;
const OBJECT: Uuid = Uuid::from_bytes(*b"an object's UUID");
const OTHER: Uuid = Uuid::from_bytes(*b"that of another!");

/// A guest's context 1, with a ring of answers.
struct Guest {
    vmm: Vmm,
    sequence: u64,
}

impl Guest {
    fn of(mut vmm: Vmm) -> Self {
        assert_eq!(vmm.create_context(1), resp::OK_NODATA);
        assert_eq!(vmm.create_blob(1, RING), resp::OK_NODATA);
        assert_eq!(vmm.map_blob(RING), resp::OK_MAP_INFO);
        let mut guest = Self { vmm, sequence: 0 };
        let offer = Offer::EVERYTHING;
        let open = OpenAnswers {
            resource_id: RING,
            major: offer.major,
            minor: offer.minor,
            requests: offer.requests,
            create_flags: offer.create_flags,
        };
        assert_eq!(guest.ask(open), Status::Ok);
        guest
    }

    /// Over a VMM that negotiates as QEMU does.
    fn over_qemu(daemon: &Daemon) -> Self {
        Self::of(qemu::run(&daemon.path, Features::all()))
    }

    fn ask(&mut self, request: impl Into<Request>) -> Status {
        self.ask_all(&[request.into()]).status
    }

    fn ask_all(&mut self, requests: &[Request]) -> Answer {
        self.sequence += 1;
        let builder = EnvelopeBuilder::new(self.sequence);
        let all = requests.iter().fold(builder, |all, &one| all.request(one));
        assert_eq!(self.vmm.submit(1, &all.build()), resp::OK_NODATA);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(answer) = self.answer() {
                return answer;
            }
            std::thread::yield_now();
        }
        panic!("no answer to {requests:?}");
    }

    fn answer(&self) -> Option<Answer> {
        let at = u64::from(RING) * PAGE;
        let mut bytes = [0; PAGE as usize];
        for (start, length, file) in self.vmm.shmem.mapped.lock().iter() {
            if (*start..start + length).contains(&at) {
                file.read_exact_at(&mut bytes, at).unwrap();
            }
        }
        let words = bytes.as_chunks().0.iter().copied();
        let words: Vec<AtomicU64> = words.map(u64::from_le_bytes).map(AtomicU64::new).collect();
        Ring::new(&words)?.read(self.sequence)
    }

    /// What the VMM finds from now on.
    fn finds(&self, found: impl FnMut(Uuid) -> Option<(u64, Vec<OwnedFd>)> + Send + 'static) {
        *self.vmm.shmem.finder.lock() = Box::new(found);
    }

    fn lookups(&self) -> Vec<Uuid> {
        std::mem::take(&mut *self.vmm.shmem.lookups.lock())
    }

    /// The VM goes on as if nothing had been.
    fn goes_on(&mut self) {
        let vmm = &mut self.vmm;
        assert_eq!(vmm.create_blob(1, 90), resp::OK_NODATA);
        assert_eq!(vmm.map_blob(90), resp::OK_MAP_INFO);
        assert_eq!(vmm.unref(90), resp::OK_NODATA);
    }
}

/// Memory of two pages that another device has.
fn object() -> File {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let memory = rustix::fs::memfd_create("object", flags).unwrap();
    rustix::fs::ftruncate(&memory, 2 * PAGE).unwrap();
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
    memory.into()
}

/// The VMM's answer where another device has the file as [`OBJECT`].
fn has(file: &File) -> impl FnMut(Uuid) -> Option<(u64, Vec<OwnedFd>)> + Send + use<> {
    let file = file.try_clone().unwrap();
    move |uuid| {
        if uuid == OBJECT {
            Some((0, vec![file.try_clone().unwrap().into()]))
        } else {
            Some((1, Vec::new()))
        }
    }
}

/// How often this process has it open, once as many as there should be.
fn comes_down_to(file: &File, expected: usize) -> bool {
    let name = |it: std::fs::Metadata| (it.dev(), it.ino());
    let wanted = name(file.metadata().unwrap());
    let is_it = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| std::fs::metadata(entry.path()).is_ok_and(|it| name(it) == wanted))
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let all = std::fs::read_dir("/proc/self/fd").unwrap();
        if all.map(is_it).filter(|is_it| *is_it).count() == expected {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

fn import(client_id: u64, uuid: Uuid) -> Import {
    let uuid = uuid.into_bytes();
    Import { client_id, uuid }
}

fn fill(client_id: u64, offset: u64, value: u32) -> Fill {
    let range = MemoryRange {
        client_id,
        offset,
        length: 8,
    };
    Fill { range, value }
}

fn word(file: &File, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, offset).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn the_guest_works_in_an_object_of_another_device() {
    let daemon = Daemon::start();
    let mut guest = Guest::over_qemu(&daemon);
    let file = object();
    guest.finds(has(&file));
    let source = MemoryRange {
        client_id: 5,
        offset: 0,
        length: 8,
    };
    let copy = Copy {
        source,
        destination_client_id: 5,
        destination_offset: PAGE,
    };
    // In one command: it is found before the command begins.
    let answer = guest.ask_all(&[import(5, OBJECT).into(), fill(5, 0, 9).into(), copy.into()]);
    assert_eq!(answer.status, Status::Ok);
    assert_eq!((word(&file, 0), word(&file, PAGE)), (9, 9));
    assert_eq!(guest.lookups(), [OBJECT]);

    // What the owner writes is there, and goes to memory of the guest.
    file.write_all_at(&7_u32.to_le_bytes(), 0).unwrap();
    let create = Create {
        client_id: 6,
        size: PAGE,
        memory: MemorySelector::Properties(0x2),
        flags: CreateFlags::HOST_VISIBLE | CreateFlags::SHAREABLE,
        alignment: 0,
        expected_cache: hostblob_protocol::request::CacheMode::Any,
    };
    assert_eq!(guest.ask(create), Status::Ok);
    for (from, to, at) in [(5, 6, 0), (6, 5, PAGE)] {
        let copy = Copy {
            source: MemoryRange {
                client_id: from,
                ..source
            },
            destination_client_id: to,
            destination_offset: at,
        };
        assert_eq!(guest.ask(copy), Status::Ok);
    }
    assert_eq!(word(&file, PAGE), 7);

    // A name that is known here is asked of nobody.
    let shared = guest.ask_all(&[Share { client_id: 6 }.into()]).details;
    let shared = Uuid::from_u64_pair(shared[0].swap_bytes(), shared[1].swap_bytes());
    assert_eq!(guest.ask(import(7, shared)), Status::Ok);
    assert!(guest.lookups().is_empty());
    // Nor is anything that is not of our contexts.
    let refused = guest.vmm.submit(
        2,
        &EnvelopeBuilder::new(1).request(import(1, OBJECT)).build(),
    );
    assert_eq!(refused, resp::ERR_INVALID_CONTEXT_ID);
    assert!(guest.lookups().is_empty());
    guest.goes_on();
}

#[test]
fn one_object_is_looked_up_for_a_command_and_closed_with_it() {
    let daemon = Daemon::start();
    let mut guest = Guest::over_qemu(&daemon);
    let file = object();
    guest.finds(has(&file));
    let both = [OTHER, OBJECT].map(|uuid| import(5, uuid).into());
    let answer = guest.ask_all(&both);
    assert_eq!((answer.status, answer.index), (Status::UnknownUuid, 0));
    let many: Vec<Request> = (1..=60).map(|id| import(id, OBJECT).into()).collect();
    let mut flood = many.clone();
    flood.push(import(61, OTHER).into());
    let answer = guest.ask_all(&flood);
    assert_eq!((answer.status, answer.index), (Status::UnknownUuid, 60));
    assert_eq!(guest.lookups(), [OTHER, OBJECT]);
    // By the test, by its VMM, and once for all names.
    assert!(comes_down_to(&file, 2 + 1));
    assert_eq!(guest.ask(import(60, OBJECT)), Status::ClientIdInUse);
    assert_eq!(guest.lookups(), [OBJECT]);
    // What is refused for another reason is closed too.
    assert!(comes_down_to(&file, 2 + 1));
    assert_eq!(guest.vmm.unref(RING), resp::OK_NODATA);
    assert_eq!(guest.vmm.destroy_context(1), resp::OK_NODATA);
    assert!(comes_down_to(&file, 2));
}

#[test]
fn what_the_vmm_does_not_have_is_unknown() {
    let daemon = Daemon::start();
    let mut guest = Guest::over_qemu(&daemon);
    // QEMU's status, and that of others.
    for status in [1, u64::MAX - 21] {
        guest.finds(move |_| Some((status, Vec::new())));
        assert_eq!(guest.ask(import(5, OBJECT)), Status::UnknownUuid);
        guest.goes_on();
    }
    assert_eq!(guest.lookups(), [OBJECT; 2]);
    guest.finds(has(&object()));
    assert_eq!(guest.ask(import(5, OBJECT)), Status::Ok);
}

#[test]
fn a_vmm_without_shared_objects_is_not_asked() {
    for protocol in [None, Some(Features::all() - Features::SHARED_OBJECT)] {
        let daemon = Daemon::start();
        let mut guest = Guest::of(match protocol {
            None => crosvm::start(&daemon.path),
            Some(protocol) => qemu::run(&daemon.path, protocol),
        });
        guest.finds(has(&object()));
        assert_eq!(guest.ask(import(5, OBJECT)), Status::UnknownUuid);
        assert!(guest.lookups().is_empty());
        guest.goes_on();
    }
}

#[test]
fn a_silent_vmm_costs_the_time_of_one_command() {
    let daemon = Daemon::start();
    let mut guest = Guest::over_qemu(&daemon);
    guest.finds(|_| None);
    let start = Instant::now();
    assert_eq!(guest.ask(import(5, OBJECT)), Status::UnknownUuid);
    assert!(start.elapsed() >= REPLY_TIMEOUT);
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(guest.ask(import(5, OBJECT)), Status::UnknownUuid);
    }
    assert!(start.elapsed() < REPLY_TIMEOUT);
    assert_eq!(guest.lookups(), [OBJECT]);
    // Nothing that needs no VMM suffers.
    assert_eq!(guest.vmm.create_blob(1, 7), resp::OK_NODATA);
    assert_eq!(guest.vmm.map_blob(7), resp::OK_MAP_INFO);
}

#[test]
fn a_vmm_that_keeps_descriptors_is_asked_once() {
    let daemon = Daemon::start();
    let mut guest = Guest::over_qemu(&daemon);
    // QEMU 11.1.3, of what another vhost-user device has.
    guest.finds(|_| Some((0, Vec::new())));
    for _ in 0..3 {
        assert_eq!(guest.ask(import(5, OBJECT)), Status::UnknownUuid);
    }
    assert_eq!(guest.lookups(), [OBJECT]);
    guest.goes_on();
}

#[test]
fn what_is_no_memory_to_import_is_refused_and_closed() {
    let daemon = Daemon::start();
    let mut guest = Guest::over_qemu(&daemon);
    let file = File::from(rustix::fs::memfd_create("unsealed", MemfdFlags::CLOEXEC).unwrap());
    guest.finds(has(&file));
    assert_eq!(guest.ask(import(5, OBJECT)), Status::Unsupported);
    let other = File::open("/proc/self/exe").unwrap();
    guest.finds(has(&other));
    assert_eq!(guest.ask(import(5, OBJECT)), Status::Unsupported);
    assert!(comes_down_to(&file, 1));
    guest.goes_on();
    guest.finds(has(&object()));
    assert_eq!(guest.ask(import(5, OBJECT)), Status::Ok);
}

#[test]
fn the_vmm_may_ask_the_same_device_meanwhile() {
    let daemon = Daemon::start();
    let mut guest = Guest::over_qemu(&daemon);
    let mut frontend = guest.vmm.frontend.clone();
    let file = object();
    let mut found = has(&file);
    // As QEMU does for a UUID that it has of this very device.
    guest.finds(move |uuid| {
        let start = Instant::now();
        assert!(
            frontend
                .get_shared_object(&VhostUserSharedMsg { uuid })
                .is_err()
        );
        assert!(start.elapsed() < REPLY_TIMEOUT);
        found(uuid)
    });
    assert_eq!(guest.ask(import(5, OBJECT)), Status::Ok);
}

#[test]
fn an_object_is_mapped_with_its_own_descriptor() {
    let (daemon, _exports) = Daemon::on_demand();
    let mut guest = Guest::over_qemu(&daemon);
    let file = object();
    guest.finds(has(&file));
    guest.vmm.shmem.requests();
    let client_id = 7;
    let bind = BindClientId { client_id };
    let answer = guest.ask_all(&[import(client_id, OBJECT).into(), bind.into()]);
    assert_eq!(answer.status, Status::Ok);
    let (vmm, size) = (&mut guest.vmm, 2 * PAGE);
    assert_eq!(vmm.create_blob_of(1, 2, client_id, size), resp::OK_NODATA);
    assert_eq!(vmm.map_blob_at(2, 4 * PAGE), resp::OK_MAP_INFO);
    let (name, request) = vmm.shmem.log.lock()[0];
    let place = (request.fd_offset, request.shm_offset, request.len);
    assert_eq!((name, place), ("map", (0, 4 * PAGE, size)));
    let inodes: Vec<u64> = vmm
        .shmem
        .mapped
        .lock()
        .iter()
        .map(|(_, _, file)| file.metadata().unwrap().ino())
        .collect();
    assert_eq!(inodes[1], file.metadata().unwrap().ino());
    vmm.shmem.requests();
    // It does not stay mapped.
    assert_eq!(vmm.run(cmd::RESOURCE_UNREF, 0, &only(2)), resp::OK_NODATA);
    assert_eq!(vmm.shmem.requests(), [("unmap", 4 * PAGE, size)]);
    assert_eq!(guest.ask(fill(client_id, PAGE, 3)), Status::Ok);
    assert_eq!(word(&file, PAGE), 3);
}

#[test]
fn where_the_window_is_mapped_as_a_whole_an_object_is_not() {
    let daemon = Daemon::start();
    let mut guest = Guest::over_qemu(&daemon);
    guest.finds(has(&object()));
    let client_id = 7;
    let bind = BindClientId { client_id };
    let answer = guest.ask_all(&[import(client_id, OBJECT).into(), bind.into()]);
    assert_eq!((answer.status, answer.index), (Status::NotMappable, 1));
}
