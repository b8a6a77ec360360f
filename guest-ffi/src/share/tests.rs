//! What only a guest kernel can do, on one that is played: dma-bufs and blobs of guest pages are blobs of the fake daemon.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hostblob_capset::BlobMem;
use hostblob_protocol::request::{BindClientId, request_bit};
use hostblob_protocol::virtio_gpu::blob_mem;
use hostblob_protocol::{Request, Status};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::fake::{Fake, Script};
use crate::memory::Memory;
use crate::options::{AllocateInfo, BlobInfo, OpenOptions, PoolOptions};
use crate::region::Mapping;
use crate::session::Session;
use crate::transport::socket::Socket;
use crate::transport::{BlobSpec, Completion, RawBlob, Transport, TransportKind};

/// The resource ids of blobs in the order of their end, and how many requests had been sent by then.
type Destroyed = Arc<Mutex<Vec<(u32, usize)>>>;
/// Blobs of guest pages, as they were asked for: blob id, mappable, shareable, bytes of the command.
type GuestBlobs = Arc<Mutex<Vec<(u64, bool, bool, usize)>>>;

#[derive(Debug)]
struct Kernel {
    socket: Socket,
    created: Arc<AtomicUsize>,
    guest: GuestBlobs,
    destroyed: Destroyed,
    sent: Arc<Mutex<usize>>,
}

const DMA_BUF: BlobSpec<'_> = BlobSpec {
    blob_mem: blob_mem::HOST3D,
    blob_id: 0,
    size: 8192,
    mappable: true,
    shareable: true,
    command: &[],
};

impl Transport for Kernel {
    fn kind(&self) -> TransportKind {
        TransportKind::Drm
    }
    fn read_capset(&self) -> Result<Vec<u8>> {
        self.socket.read_capset()
    }
    fn create_blob(&self, spec: &BlobSpec<'_>) -> Result<RawBlob> {
        if !spec.size.is_multiple_of(4096) {
            // Before anything is sent.
            return Err(Error::io("creation of a blob", rustix::io::Errno::INVAL));
        }
        self.created.fetch_add(1, Ordering::Relaxed);
        if spec.blob_mem == blob_mem::GUEST {
            let asked = (
                spec.blob_id,
                spec.mappable,
                spec.shareable,
                spec.command.len(),
            );
            self.guest.lock().unwrap().push(asked);
        }
        self.socket.create_blob(&BlobSpec {
            blob_mem: blob_mem::HOST3D,
            ..*spec
        })
    }
    fn map_blob(&self, blob: &RawBlob) -> Result<Mapping> {
        self.socket.map_blob(blob)
    }
    fn destroy_blob(&self, blob: &RawBlob) {
        let sent = *self.sent.lock().unwrap();
        self.destroyed
            .lock()
            .unwrap()
            .push((blob.resource_id, sent));
        self.socket.destroy_blob(blob);
    }
    fn destroys_later(&self) -> bool {
        true
    }
    fn submit(&self, command: &[u8]) -> Result<()> {
        *self.sent.lock().unwrap() += 1;
        self.socket.submit(command)
    }
    fn submit_fenced(&self, command: &[u8], ring: u8) -> Result<Completion> {
        *self.sent.lock().unwrap() += 1;
        self.socket.submit_fenced(command, ring)
    }
    fn wait(&self, completion: &Completion, deadline: Option<Instant>) -> Result<bool> {
        self.socket.wait(completion, deadline)
    }
    fn forget(&self, completion: &Completion) {
        self.socket.forget(completion);
    }
    fn pump(&self) -> Result<()> {
        self.socket.pump()
    }
    fn timeout(&self) -> Duration {
        self.socket.timeout()
    }
    fn export_dma_buf(&self, _: &RawBlob) -> Result<OwnedFd> {
        Ok(std::fs::File::open("/dev/null").unwrap().into())
    }
    fn import_dma_buf(&self, _: BorrowedFd<'_>) -> Result<RawBlob> {
        self.socket.create_blob(&DMA_BUF)
    }
}

struct Guest {
    _fake: Fake,
    script: Script,
    device: Device,
    created: Arc<AtomicUsize>,
    destroyed: Destroyed,
    guest: GuestBlobs,
}

fn start(script: Script) -> Guest {
    let fake = Fake::start(script.clone());
    let timeout = Duration::from_secs(10);
    let kernel = Kernel {
        socket: Socket::open(&fake.path, None, timeout).unwrap(),
        created: Arc::default(),
        guest: Arc::default(),
        destroyed: Arc::default(),
        sent: Arc::default(),
    };
    let (guest, destroyed) = (kernel.guest.clone(), kernel.destroyed.clone());
    let created = kernel.created.clone();
    let size = OpenOptions::default().control_size;
    let session = Session::over(Box::new(kernel), size).unwrap();
    Guest {
        _fake: fake,
        script,
        device: Device::over(session, &PoolOptions::default()),
        created,
        destroyed,
        guest,
    }
}

impl Guest {
    fn import(&self) -> Result<Memory> {
        let null = std::fs::File::open("/dev/null").unwrap();
        self.device.import_dma_buf(null.as_fd())
    }

    /// Requests since the last look.
    fn news(&self) -> Vec<Request> {
        // An answered request is behind those that nobody waits for.
        self.device.request(&[]).unwrap();
        let news = std::mem::take(&mut *self.script.log.lock().unwrap());
        news.into_iter().map(|(_, request)| request).collect()
    }

    fn created(&self) -> usize {
        self.created.load(Ordering::Relaxed)
    }

    /// Memory that is outside the window until it is mapped, without the requests that made it.
    fn deferred(&self) -> Memory {
        let info = AllocateInfo::new(4096).deferred().shareable();
        let memory = self.device.allocate(&info).unwrap();
        self.news();
        memory
    }
}

#[test]
fn a_dma_buf_gets_a_name_that_ends_before_its_handle() {
    let guest = start(Script::default());
    guest.news();
    let memory = guest.import().unwrap();
    assert_eq!((memory.size(), memory.memory_type()), (8192, Some(1)));
    let name = memory.client_id();
    assert_ne!(name, 0);
    let fill = guest.device.fill(&memory, 4096, 4, 7).unwrap();
    fill.wait(None).unwrap();
    let mut bytes = [0; 4];
    memory.read(4096, &mut bytes).unwrap();
    assert_eq!(bytes, [7, 0, 0, 0]);
    memory.share().unwrap();
    // The guest's kernel maps it: the host is not asked.
    memory.map_with(&crate::MapInfo::default()).unwrap();
    let news = guest.news();
    let [
        Request::ImportResource(import),
        Request::Fill(_),
        Request::Share(_),
    ] = news[..]
    else {
        panic!("{news:?}");
    };
    assert_eq!(import.client_id, name);
    assert!(guest.destroyed.lock().unwrap().is_empty());
    drop(memory);
    let destroyed = guest.destroyed.lock().unwrap().clone();
    // OPEN_ANSWERS, an empty envelope, the three above, another empty one, and FREE.
    assert_eq!(destroyed, [(import.resource_id, 7)]);
    let news = guest.news();
    assert!(
        matches!(news[..], [Request::Free(free)] if free.client_id == name),
        "{news:?}"
    );
}

#[test]
fn a_dma_buf_that_the_host_does_not_name_can_be_mapped() {
    let mut old = Script::default();
    old.offer.requests &= !request_bit::IMPORT_RESOURCE;
    let refused = Script {
        refuse: Some((request_bit::IMPORT_RESOURCE, Status::InvalidArgument)),
        ..Script::default()
    };
    for script in [old, refused] {
        let guest = start(script);
        let memory = guest.import().unwrap();
        assert_eq!((memory.client_id(), memory.memory_type()), (0, None));
        memory.write(0, b"mapped").unwrap();
        let unsupported = |error: Error| error.status() == Some(Status::Unsupported);
        assert!(unsupported(
            guest.device.fill(&memory, 0, 4, 0).unwrap_err()
        ));
        assert!(unsupported(memory.share().unwrap_err()));
        guest.news();
        drop(memory);
        assert_eq!(guest.destroyed.lock().unwrap().len(), 1);
        assert!(guest.news().is_empty(), "no name, no FREE");
    }
}

#[test]
fn guest_pages_are_a_blob_that_is_named_after_it_is_made() {
    let script = Script {
        blob_mem: BlobMem::HOST3D | BlobMem::GUEST,
        ..Script::default()
    };
    let guest = start(script);
    guest.news();
    let memory = guest.device.allocate_guest(5000).unwrap();
    assert_eq!((memory.size(), memory.memory_type()), (5000, Some(1)));
    assert_eq!(
        *guest.guest.lock().unwrap(),
        [(0, true, true, 0)],
        "as Linux wants it: no id, no command"
    );
    memory.write(4996, b"ends").unwrap();
    assert_eq!(
        memory.write(4997, b"ends").unwrap_err().status(),
        Some(Status::OutOfRange)
    );
    let other = guest.device.allocate(&AllocateInfo::new(8192)).unwrap();
    let copy = guest.device.copy(&memory, 4996, &other, 0, 4).unwrap();
    copy.wait(None).unwrap();
    let mut bytes = [0; 4];
    other.read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"ends");
    memory.share().unwrap();
    let name = memory.client_id();
    drop(memory);
    let news = guest.news();
    assert!(matches!(news[0], Request::ImportResource(import) if import.client_id == name));
    assert!(matches!(news[news.len() - 1], Request::Free(free) if free.client_id == name));
    assert_eq!(guest.destroyed.lock().unwrap().len(), 1);
}

#[test]
fn guest_pages_that_the_host_does_not_take_leave_nothing() {
    let guest = start(Script::default());
    let error = guest.device.allocate_guest(4096).unwrap_err();
    assert_eq!(error.status(), Some(Status::Unsupported));
    assert!(guest.guest.lock().unwrap().is_empty());
    let refused = Script {
        blob_mem: BlobMem::all(),
        refuse: Some((request_bit::IMPORT_RESOURCE, Status::TooManyObjects)),
        ..Script::default()
    };
    let guest = start(refused);
    let error = guest.device.allocate_guest(4096).unwrap_err();
    assert_eq!(error.status(), Some(Status::TooManyObjects));
    assert_eq!(guest.destroyed.lock().unwrap().len(), 1);
}

#[test]
fn memory_that_is_mapped_again_at_once_waits_for_its_last_blob() {
    let guest = start(Script::default());
    let memory = guest.deferred();
    memory.write(0, b"kept").unwrap();
    memory.unmap();
    guest.news();
    let created = guest.created();
    guest.script.early_binds.store(3, Ordering::Relaxed);
    let mut bytes = [0; 4];
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"kept");
    let bind = Request::BindClientId(BindClientId {
        client_id: memory.client_id(),
    });
    assert_eq!(guest.news(), [bind; 4]);
    assert_eq!(
        guest.created() - created,
        1,
        "none that the host refuses: each is a line in the guest's kernel log"
    );
}

#[test]
fn memory_that_stays_bound_elsewhere_is_refused_soon() {
    let guest = start(Script::default());
    let memory = guest.deferred();
    guest.script.early_binds.store(u32::MAX, Ordering::Relaxed);
    let bound = |memory: &Memory| {
        let begin = Instant::now();
        let error = memory.map().unwrap_err();
        assert_eq!(error.status(), Some(Status::AlreadyBound));
        begin.elapsed()
    };
    bound(&memory);
    assert_eq!(guest.news().len(), 1, "no blob of ours is on its way");
    drop(guest.device.create_plain_blob(4096).unwrap());
    let waited = bound(&memory);
    assert!(waited >= Duration::from_millis(400), "{waited:?}");
    assert!(waited < Duration::from_secs(5), "{waited:?}");
}

#[test]
fn the_blob_of_exported_memory_outlives_its_mapping() {
    let guest = start(Script::default());
    let memory = guest.deferred();
    memory.write(0, b"kept").unwrap();
    drop(memory.export_dma_buf().unwrap());
    guest.news();
    let created = guest.created();
    // A dma-buf keeps the blob for as long as somebody has it: a new one would be refused.
    memory.unmap();
    assert!(guest.destroyed.lock().unwrap().is_empty());
    let mut bytes = [0; 4];
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"kept");
    assert_eq!((guest.created() - created, guest.news().len()), (0, 0));
    drop(memory);
    assert_eq!(guest.destroyed.lock().unwrap().len(), 1);
    let news = guest.news();
    assert!(matches!(news[..], [Request::Free(_)]), "{news:?}");
}

#[test]
fn blobs_that_the_kernel_would_not_send_take_no_place_for_an_answer() {
    let guest = start(Script::default());
    let created = guest.created();
    for size in [0, 1, 4095, 4097] {
        let info = BlobInfo {
            blob_id: 1,
            size,
            mappable: true,
            shareable: false,
            requests: &[BindClientId { client_id: 1 }.into()],
        };
        let error = guest.device.create_blob(&info).map(drop).unwrap_err();
        assert_eq!(error.status(), Some(Status::InvalidArgument), "{size}");
    }
    assert_eq!(guest.created(), created);
    // Once around the ring of answers.
    let slots = OpenOptions::default().control_size / 32;
    for _ in 0..slots {
        guest.device.request(&[]).unwrap();
    }
}
