//! A VMM and its guest's driver, for the tests: the frontend of the crate `vhost`, guest memory in a memfd, and split queues as a driver keeps
//! them, which notifies only when the device has asked for it.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hostblob_allocator::exports::Exports;
use hostblob_allocator::provider::fake::FakeProvider;
use hostblob_allocator::{Config as Limits, Host, Outside};
use hostblob_capset::WindowMode;
use hostblob_protocol::virtio_gpu::{
    CmdSubmit, CtrlHdr, CtxCreate, ResourceCreateBlob, ResourceMapBlob, ResourceOnly, blob_flag,
    blob_mem, cmd,
};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use uuid::Uuid;
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserMMap, VhostUserProtocolFeatures as Features, VhostUserSharedMsg,
};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::gpu::{BlobMem, Gpu};
use crate::shutdown::Shutdown;

pub(super) const WINDOW: u64 = 2 << 20;
pub(super) const CAPSET_ID: u32 = 30;
pub(super) const MEMORY: u64 = 8 << 20;
/// Where the VMM has guest memory, it says.
pub(super) const USER: u64 = 0x7f00_0000_0000;
pub(super) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
pub(super) const SIZE: u16 = 64;
const PATIENCE: Duration = Duration::from_secs(10);

fn limits(memory: u64) -> Limits {
    Limits {
        window_size: WINDOW,
        memory_limit: memory,
        context_limit: memory,
        context_share: 0,
        warm: hostblob_allocator::window::Warmth::up_to(0),
    }
}

/// The daemon's side: listens until it is dropped.
pub(super) struct Daemon {
    pub(super) path: PathBuf,
    pub(super) shutdown: Shutdown,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    pub(super) fn start() -> Self {
        let host = Host::new(Arc::new(FakeProvider::new()) as _, limits(1 << 20)).unwrap();
        Self::serving(move |waker| Gpu::new(&host, CAPSET_ID, BlobMem::all(), waker))
    }

    /// With blobs mapped one by one, and memory for many.
    pub(super) fn on_demand() -> (Self, Arc<Exports>) {
        Self::on_demand_over(FakeProvider::new())
    }

    /// The same over a provider of the test's choice.
    pub(super) fn on_demand_over(provider: FakeProvider) -> (Self, Arc<Exports>) {
        let exports = Exports::new();
        let provider = Arc::new(provider);
        let outside = Outside {
            exports: Some(Arc::clone(&exports)),
            exporter: None,
        };
        let host = Host::with_outside(provider, limits(64 << 20), outside).unwrap();
        let daemon = Self::serving(move |waker| {
            let mode = WindowMode::OnDemand;
            Gpu::in_mode(&host, CAPSET_ID, BlobMem::all(), mode, waker)
        });
        (daemon, exports)
    }

    pub(super) fn serving<D: crate::transport::Device>(
        new_device: impl Fn(crate::gpu::Waker) -> std::io::Result<D> + Send + 'static,
    ) -> Self {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("hostblob-vhost-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let shutdown = Shutdown::new().unwrap();
        let thread = std::thread::spawn({
            let shutdown = shutdown.clone();
            move || super::super::serve(&listener, new_device, &shutdown).unwrap()
        });
        Self {
            path,
            shutdown,
            thread: Some(thread),
        }
    }

    /// Ends it, and says how long that took.
    pub(super) fn end(&mut self) -> Duration {
        let start = Instant::now();
        self.shutdown.request();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        start.elapsed()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What the VMM answers to a request for the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    No,
    Never,
}

type Hook = Box<dyn FnOnce() + Send>;
/// What the VMM answers to SHARED_OBJECT_LOOKUP: a status and descriptors, or nothing at all.
pub(super) type Finder = Box<dyn FnMut(Uuid) -> Option<(u64, Vec<OwnedFd>)> + Send>;

/// The VMM's side of the channel.
pub(super) struct Shmem {
    pub(super) log: Mutex<Vec<(&'static str, VhostUserMMap)>>,
    pub(super) answer: Mutex<Answer>,
    /// What is mapped: offset, length, and the file.
    pub(super) mapped: Mutex<Vec<(u64, u64, File)>>,
    /// Done in the middle of the next map.
    pub(super) during_map: Mutex<Option<Hook>>,
    /// Shared objects that were announced (`true`) and taken back.
    pub(super) objects: Mutex<Vec<(bool, Uuid)>>,
    /// What other devices of the VM have. By default nothing, and QEMU's answer to that.
    pub(super) finder: Mutex<Finder>,
    /// What was looked up.
    pub(super) lookups: Mutex<Vec<Uuid>>,
    /// How often it was asked to map over what it has.
    pub(super) overlaps: AtomicUsize,
}

impl Shmem {
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.log.lock().iter().map(|(name, _)| *name).collect()
    }

    /// The requests since the last call: name, place, length.
    pub(super) fn requests(&self) -> Vec<(&'static str, u64, u64)> {
        let mut log = self.log.lock();
        let requests = log.drain(..);
        requests
            .map(|(name, request)| (name, request.shm_offset, request.len))
            .collect()
    }

    pub(super) fn is_mapped(&self) -> bool {
        !self.mapped.lock().is_empty()
    }

    fn respond(&self) -> HandlerResult<u64> {
        match *self.answer.lock() {
            Answer::Yes => return Ok(0),
            Answer::No => return Err(std::io::Error::from_raw_os_error(libc::EINVAL)),
            Answer::Never => {}
        }
        while *self.answer.lock() == Answer::Never {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(0)
    }
}

/// SHARED_OBJECT_LOOKUP, if that is the next request: the crate's frontend wants a descriptor with the request, and sends none with
/// the answer. Whether it was; `None` when the channel has ended.
fn look_up(channel: &OwnedFd, shmem: &Shmem) -> Option<bool> {
    const LOOKUP: u32 = 8;
    const NEED_REPLY: u32 = 0x9;
    let mut request = [0; 28];
    let receive = |bytes: &mut [u8], flags| rustix::net::recv(channel, bytes, flags);
    let peek = RecvFlags::PEEK | RecvFlags::WAITALL;
    match receive(&mut request[..12], peek) {
        Ok((_, 12)) => {}
        _ => return None,
    }
    let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
    if word(0) != LOOKUP {
        return Some(false);
    }
    assert_eq!([word(4), word(8)], [NEED_REPLY, 16]);
    receive(&mut request, RecvFlags::WAITALL).unwrap();
    let uuid = Uuid::from_slice(&request[12..]).unwrap();
    shmem.lookups.lock().push(uuid);
    let Some((status, descriptors)) = (shmem.finder.lock())(uuid) else {
        return Some(true);
    };
    let mut answer = [LOOKUP, 0x5, 8].map(u32::to_ne_bytes).concat();
    answer.extend(status.to_ne_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let bytes = [IoSlice::new(&answer)];
    let sent = rustix::net::sendmsg(channel, &bytes, &mut control, SendFlags::NOSIGNAL);
    sent.is_ok().then_some(true)
}

impl VhostUserFrontendReqHandler for Shmem {
    fn shared_object_add(&self, request: &VhostUserSharedMsg) -> HandlerResult<u64> {
        self.objects.lock().push((true, request.uuid));
        Ok(0)
    }

    fn shared_object_remove(&self, request: &VhostUserSharedMsg) -> HandlerResult<u64> {
        self.objects.lock().push((false, request.uuid));
        Ok(0)
    }

    /// As the VMMs do: what overlaps is refused.
    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        self.log.lock().push(("map", *request));
        if let Some(hook) = self.during_map.lock().take() {
            hook();
        }
        self.respond()?;
        let (offset, length) = (request.shm_offset, request.len);
        let mut mapped = self.mapped.lock();
        let overlaps =
            |(start, size, _): &(u64, u64, File)| *start < offset + length && offset < start + size;
        if mapped.iter().any(overlaps) {
            self.overlaps.fetch_add(1, Ordering::Relaxed);
            return Err(std::io::Error::from_raw_os_error(libc::EEXIST));
        }
        // SAFETY: the handler has the descriptor open during this call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let file = File::from(fd.try_clone_to_owned().unwrap());
        mapped.push((offset, length, file));
        Ok(0)
    }

    fn shmem_unmap(&self, request: &VhostUserMMap) -> HandlerResult<u64> {
        self.log.lock().push(("unmap", *request));
        self.respond()?;
        let mut mapped = self.mapped.lock();
        let exactly = (request.shm_offset, request.len);
        match mapped
            .iter()
            .position(|(start, size, _)| (*start, *size) == exactly)
        {
            Some(at) => {
                mapped.remove(at);
                Ok(0)
            }
            None => Err(std::io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }
}

/// One queue as the driver has it.
pub(super) struct DriverQueue {
    pub(super) index: u16,
    pub(super) kick: EventFd,
    pub(super) call: EventFd,
    avail: u16,
    seen: u16,
    /// How often the device was notified.
    pub(super) kicks: usize,
}

impl DriverQueue {
    fn at(&self) -> u64 {
        0x10_000 * (1 + u64::from(self.index))
    }

    fn used_at(&self) -> u64 {
        self.at() + 0x2000
    }
}

pub(super) struct Vmm {
    pub(super) frontend: Frontend,
    pub(super) memory: GuestMemoryMmap,
    pub(super) file: File,
    pub(super) shmem: Arc<Shmem>,
    pub(super) queues: Vec<DriverQueue>,
    pub(super) features: u64,
    channel: Option<(JoinHandle<()>, File)>,
}

pub(super) fn memfd(size: u64) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("guest", flags).unwrap());
    file.set_len(size).unwrap();
    file
}

impl Vmm {
    pub(super) fn connect(path: &Path) -> Self {
        let frontend = Frontend::connect(path, 2).unwrap();
        let file = memfd(MEMORY);
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let ranges = [(GuestAddress(0), MEMORY as usize, Some(offset))];
        let queue = |index| DriverQueue {
            index,
            kick: EventFd::new(libc::EFD_CLOEXEC).unwrap(),
            call: EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).unwrap(),
            avail: 0,
            seen: 0,
            kicks: 0,
        };
        Self {
            frontend,
            memory: GuestMemoryMmap::from_ranges_with_files(ranges).unwrap(),
            file,
            shmem: Arc::new(Shmem {
                log: Mutex::default(),
                answer: Mutex::new(Answer::Yes),
                mapped: Mutex::default(),
                during_map: Mutex::default(),
                objects: Mutex::default(),
                finder: Mutex::new(Box::new(|_| Some((1, Vec::new())))),
                lookups: Mutex::default(),
                overlaps: AtomicUsize::new(0),
            }),
            queues: vec![queue(0), queue(1)],
            features: 0,
            channel: None,
        }
    }

    /// Gives the device a channel, and answers on it from a thread of its own.
    pub(super) fn open_channel(&mut self) {
        let mut handler = FrontendReqHandler::new(Arc::clone(&self.shmem)).unwrap();
        handler.set_reply_ack_flag(true);
        // SAFETY: the handler keeps its end open; this is a copy.
        let end = unsafe { libc::fcntl(handler.get_tx_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        // SAFETY: just made, and nobody else's.
        let end = unsafe { File::from_raw_fd(end) };
        self.frontend.set_backend_request_fd(&end).unwrap();
        // SAFETY: the handler has it open during this call.
        let channel = unsafe { BorrowedFd::borrow_raw(handler.as_raw_fd()) };
        let channel = channel.try_clone_to_owned().unwrap();
        let shmem = Arc::clone(&self.shmem);
        let thread = std::thread::spawn(move || {
            while let Some(was_lookup) = look_up(&channel, &shmem) {
                if was_lookup {
                    continue;
                }
                match handler.handle_request() {
                    Ok(_) | Err(vhost::vhost_user::Error::ReqHandlerError(_)) => {}
                    Err(_) => return,
                }
            }
        });
        self.channel = Some((thread, end));
    }

    pub(super) fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub(super) fn parts(&self, index: usize) -> VringConfigData {
        let at = USER + self.queues[index].at();
        VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: at,
            avail_ring_addr: at + 0x1000,
            used_ring_addr: at + 0x2000,
            log_addr: None,
        }
    }

    /// The driver forgets its queues, as after a reset.
    pub(super) fn fresh_queues(&mut self) {
        for queue in &mut self.queues {
            (queue.avail, queue.seen) = (0, 0);
            let zeros = [0; 0x4000];
            self.memory
                .write_slice(&zeros, GuestAddress(queue.at()))
                .unwrap();
        }
    }

    /// The VM of another VMM, with its memory and its driver.
    pub(super) fn take_over(&mut self, other: &Self) {
        let mut bytes = vec![0; MEMORY as usize];
        let all = GuestAddress(0);
        other.memory.read_slice(&mut bytes, all).unwrap();
        self.memory.write_slice(&bytes, all).unwrap();
        for (queue, from) in self.queues.iter_mut().zip(&other.queues) {
            (queue.avail, queue.seen) = (from.avail, from.seen);
        }
        self.features = other.features;
    }

    fn load(&self, address: u64) -> u16 {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn store(&self, address: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// Puts a command on a queue and notifies if the device wants it.
    pub(super) fn offer(&mut self, queue: usize, command: &[u8]) -> u16 {
        let event_idx = self.features & crate::virtqueue::F_EVENT_IDX != 0;
        let (at, used_at, avail) = {
            let queue = &self.queues[queue];
            (queue.at(), queue.used_at(), queue.avail)
        };
        let head = (avail % (SIZE / 2)) * 2;
        let buffer = 0x10_0000 * (1 + queue as u64) + u64::from(head) * 0x1000;
        let memory = &self.memory;
        memory.write_slice(command, GuestAddress(buffer)).unwrap();
        for (n, address, length, flags, next) in [
            (head, buffer, command.len() as u32, 1_u16, head + 1),
            (head + 1, buffer + 0x1000, 0x1000, 2, 0),
        ] {
            let mut bytes = Vec::from(address.to_le_bytes());
            bytes.extend(length.to_le_bytes());
            bytes.extend([flags.to_le_bytes(), next.to_le_bytes()].concat());
            let slot = GuestAddress(at + 16 * u64::from(n));
            memory.write_slice(&bytes, slot).unwrap();
        }
        let ring = at + 0x1000;
        self.store(ring + 4 + 2 * u64::from(avail % SIZE), head);
        let next = avail.wrapping_add(1);
        self.store(ring + 2, next);
        let wanted = if event_idx {
            let event = self.load(used_at + 4 + 8 * u64::from(SIZE));
            next.wrapping_sub(event).wrapping_sub(1) < next.wrapping_sub(avail)
        } else {
            self.load(used_at) & 1 == 0
        };
        let queue = &mut self.queues[queue];
        queue.avail = next;
        if wanted {
            queue.kicks += 1;
            queue.kick.write(1).unwrap();
        }
        head
    }

    /// The next response should interrupt (2.7.7.1).
    pub(super) fn ask_for_interrupt(&self, queue: usize) {
        let queue = &self.queues[queue];
        let event = queue.at() + 0x1004 + 2 * u64::from(SIZE);
        self.store(event, queue.seen);
    }

    /// The next response, in the order of completion.
    pub(super) fn response(&mut self, queue: usize) -> Vec<u8> {
        loop {
            // It may have come before that was said.
            self.ask_for_interrupt(queue);
            if self.try_response(queue).is_some() {
                break;
            }
            // SAFETY: the queue keeps it open.
            let call = unsafe { BorrowedFd::borrow_raw(self.queues[queue].call.as_raw_fd()) };
            let mut poll = [PollFd::from_borrowed_fd(call, PollFlags::IN)];
            let wait = rustix::event::Timespec::try_from(PATIENCE).unwrap();
            let interrupted = rustix::event::poll(&mut poll, Some(&wait)).unwrap();
            assert_eq!(interrupted, 1, "no response, or no interrupt");
            let _ = self.queues[queue].call.read();
        }
        let slot = &mut self.queues[queue];
        let entry = slot.used_at() + 4 + 8 * u64::from(slot.seen % SIZE);
        slot.seen = slot.seen.wrapping_add(1);
        let [head, length]: [u32; 2] = self.memory.read_obj(GuestAddress(entry)).unwrap();
        let buffer = 0x10_0000 * (1 + queue as u64) + u64::from(head) * 0x1000 + 0x1000;
        let mut bytes = vec![0; length as usize];
        let at = GuestAddress(buffer);
        self.memory.read_slice(&mut bytes, at).unwrap();
        bytes
    }

    pub(super) fn try_response(&self, queue: usize) -> Option<()> {
        let queue = &self.queues[queue];
        (self.load(queue.used_at() + 2) != queue.seen).then_some(())
    }

    /// Executes a command on the control queue; its response's type.
    pub(super) fn run<T: IntoBytes + Immutable>(&mut self, kind: u32, ctx: u32, body: &T) -> u32 {
        self.offer(0, &bytes(kind, ctx, body));
        kind_of(&self.response(0))
    }

    pub(super) fn create_context(&mut self, id: u32) -> u32 {
        let body = CtxCreate {
            context_init: CAPSET_ID.into(),
            ..CtxCreate::default()
        };
        self.run(cmd::CTX_CREATE, id, &body)
    }

    pub(super) fn destroy_context(&mut self, id: u32) -> u32 {
        self.run(cmd::CTX_DESTROY, id, &())
    }

    pub(super) fn create_blob(&mut self, context: u32, resource: u32) -> u32 {
        self.create_blob_of(context, resource, 0, 4096)
    }

    pub(super) fn create_blob_of(
        &mut self,
        context: u32,
        resource: u32,
        blob_id: u64,
        size: u64,
    ) -> u32 {
        let body = ResourceCreateBlob {
            resource_id: resource.into(),
            blob_mem: blob_mem::HOST3D.into(),
            blob_flags: (blob_flag::USE_MAPPABLE | blob_flag::USE_SHAREABLE).into(),
            nr_entries: 0.into(),
            blob_id: blob_id.into(),
            size: size.into(),
        };
        self.run(cmd::RESOURCE_CREATE_BLOB, context, &body)
    }

    pub(super) fn map_blob(&mut self, resource: u32) -> u32 {
        self.run(cmd::RESOURCE_MAP_BLOB, 0, &map_body(resource))
    }

    pub(super) fn map_blob_at(&mut self, resource: u32, offset: u64) -> u32 {
        let mut body = map_body(resource);
        body.offset = offset.into();
        self.run(cmd::RESOURCE_MAP_BLOB, 0, &body)
    }

    /// Requests of our own protocol.
    pub(super) fn submit(&mut self, context: u32, envelope: &[u8]) -> u32 {
        let size = u32::try_from(envelope.len()).unwrap();
        let body = CmdSubmit {
            size: size.into(),
            ..CmdSubmit::default()
        };
        let command = [&bytes(cmd::SUBMIT_3D, context, &body), envelope].concat();
        self.offer(0, &command);
        kind_of(&self.response(0))
    }

    pub(super) fn unref(&mut self, resource: u32) -> u32 {
        self.run(cmd::RESOURCE_UNREF, 0, &only(resource))
    }

    pub(super) fn unmap_blob(&mut self, resource: u32) -> u32 {
        self.run(cmd::RESOURCE_UNMAP_BLOB, 0, &only(resource))
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        *self.shmem.answer.lock() = Answer::No;
        if let Some((thread, end)) = self.channel.take() {
            rustix::net::shutdown(&end, rustix::net::Shutdown::Both).unwrap();
            let _ = thread.join();
        }
    }
}

pub(super) fn map_body(resource: u32) -> ResourceMapBlob {
    ResourceMapBlob {
        resource_id: resource.into(),
        offset: (u64::from(resource) * 4096).into(),
        ..Default::default()
    }
}

pub(super) fn only(resource: u32) -> ResourceOnly {
    ResourceOnly {
        resource_id: resource.into(),
        ..Default::default()
    }
}

pub(super) fn bytes<T: IntoBytes + Immutable>(kind: u32, context: u32, body: &T) -> Vec<u8> {
    let header = CtrlHdr {
        cmd_type: kind.into(),
        ctx_id: context.into(),
        ..CtrlHdr::default()
    };
    [header.as_bytes(), body.as_bytes()].concat()
}

pub(super) fn kind_of(response: &[u8]) -> u32 {
    CtrlHdr::read_from_prefix(response)
        .unwrap()
        .0
        .cmd_type
        .get()
}

/// The exchange of crosvm (devices/src/virtio/vhost_user_frontend/mod.rs of 2026): no acknowledgements are asked for, no memory slots, no
/// RESET_DEVICE.
pub(super) mod crosvm {
    use super::*;

    pub(in super::super) const PROTOCOL: Features = Features::CONFIG
        .union(Features::MQ)
        .union(Features::BACKEND_REQ)
        .union(Features::DEVICE_STATE)
        .union(Features::SHMEM)
        .union(Features::REPLY_ACK);
    /// VIRTIO_DEVICE_TYPE_SPECIFIC_FEATURES_MASK, and what crosvm's transport has.
    const ALLOWED: u64 = 0xff_ffff | 1 << 32 | 1 << 29 | 1 << 28 | F_PROTOCOL_FEATURES;

    /// `VhostUserFrontend::new`, up to where the guest starts; the region that it finds.
    pub(in super::super) fn open(vmm: &mut Vmm) -> Option<(usize, u64)> {
        vmm.frontend.set_owner().unwrap();
        vmm.features = vmm.frontend.get_features().unwrap() & ALLOWED;
        let offered = vmm.frontend.get_protocol_features().unwrap();
        vmm.frontend
            .set_protocol_features(offered & PROTOCOL)
            .unwrap();
        vmm.open_channel();
        assert_eq!(vmm.frontend.get_queue_num().unwrap(), 2);
        let config = vmm.frontend.get_shmem_config().unwrap();
        // `BackendClient::get_shmem_config`: sizes that are not 0, as many as there are regions.
        let sizes = config.memory_sizes;
        sizes
            .into_iter()
            .enumerate()
            .filter(|&(_, size)| size != 0)
            .take(config.nregions.try_into().unwrap())
            .next()
    }

    /// `ack_features`.
    pub(in super::super) fn negotiate(vmm: &mut Vmm) {
        vmm.frontend.set_features(vmm.features).unwrap();
    }

    /// `activate`.
    pub(in super::super) fn activate(vmm: &mut Vmm, bases: [u16; 2]) {
        vmm.frontend.set_mem_table(&[vmm.region()]).unwrap();
        for (index, base) in bases.into_iter().enumerate() {
            let (frontend, queue) = (&mut vmm.frontend, &vmm.queues[index]);
            frontend.set_vring_num(index, SIZE).unwrap();
            let at = USER + queue.at();
            let parts = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: at,
                avail_ring_addr: at + 0x1000,
                used_ring_addr: at + 0x2000,
                log_addr: None,
            };
            frontend.set_vring_addr(index, &parts).unwrap();
            frontend.set_vring_base(index, base).unwrap();
            frontend.set_vring_call(index, &queue.call).unwrap();
            frontend.set_vring_kick(index, &queue.kick).unwrap();
            frontend.set_vring_enable(index, true).unwrap();
        }
    }

    /// `deactivate_vring` of all.
    pub(in super::super) fn deactivate(vmm: &mut Vmm) -> [u16; 2] {
        [0, 1].map(|index| {
            vmm.frontend.set_vring_enable(index, false).unwrap();
            let base = vmm.frontend.get_vring_base(index).unwrap();
            u16::try_from(base).unwrap()
        })
    }

    pub(in super::super) fn start(path: &Path) -> Vmm {
        let mut vmm = Vmm::connect(path);
        open(&mut vmm);
        negotiate(&mut vmm);
        activate(&mut vmm, [0, 0]);
        vmm
    }
}

/// The exchange of QEMU 11's `vhost-user-test-device-pci`: every message acknowledged, memory in slots, RESET_DEVICE.
pub(super) mod qemu {
    use super::*;

    pub(in super::super) fn open(vmm: &mut Vmm, protocol: Features) {
        vmm.features = vmm.frontend.get_features().unwrap();
        assert_ne!(vmm.features & F_PROTOCOL_FEATURES, 0);
        let offered = vmm.frontend.get_protocol_features().unwrap();
        vmm.frontend
            .set_protocol_features(offered & protocol)
            .unwrap();
        vmm.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(vmm.frontend.get_queue_num().unwrap(), 2);
        vmm.frontend.set_owner().unwrap();
        if protocol.contains(Features::BACKEND_REQ) {
            vmm.open_channel();
        }
    }

    /// `vhost_dev_start`.
    pub(in super::super) fn start(vmm: &mut Vmm, bases: [u16; 2]) {
        vmm.frontend.set_features(vmm.features).unwrap();
        for (index, base) in bases.into_iter().enumerate() {
            let parts = vmm.parts(index);
            let (frontend, queue) = (&mut vmm.frontend, &vmm.queues[index]);
            frontend.set_vring_num(index, SIZE).unwrap();
            frontend.set_vring_base(index, base).unwrap();
            frontend.set_vring_addr(index, &parts).unwrap();
            frontend.set_vring_kick(index, &queue.kick).unwrap();
            frontend.set_vring_call(index, &queue.call).unwrap();
        }
        for index in 0..2 {
            vmm.frontend.set_vring_enable(index, true).unwrap();
        }
    }

    /// `vhost_dev_stop`.
    pub(in super::super) fn stop(vmm: &mut Vmm) -> [u16; 2] {
        [0, 1].map(|index| {
            let base = vmm.frontend.get_vring_base(index).unwrap();
            u16::try_from(base).unwrap()
        })
    }

    pub(in super::super) fn run(path: &Path, protocol: Features) -> Vmm {
        let mut vmm = Vmm::connect(path);
        open(&mut vmm, protocol);
        assert_eq!(vmm.frontend.get_max_mem_slots().unwrap(), 512);
        vmm.frontend.add_mem_region(&vmm.region()).unwrap();
        start(&mut vmm, [0, 0]);
        vmm
    }
}
